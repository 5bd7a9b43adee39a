"""Compare crop margins around dlib's box, on photographs made of PublicTest.

    python -m tools.benchmarks.margin --data data/fer2013.csv

Each PublicTest image is enlarged to the size of a photograph, in which dlib detects the face. The
accuracy on the crops is compared with that on FER2013's own crops of the same faces.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import joblib
import numpy as np

from data.dataset import UNLABELED, resize_image
from data.source import find_source, load_dataset
from inference.detector import MARGIN, crop, detect_faces, expand_boxes
from inference.runtime import Runtime, load_runtime
from utils.cli import parse
from utils.errors import DataError, run_main
from utils.run_folder import PHOTO_WEIGHTS


@dataclass(frozen=True)
class MarginOptions:
    """Options of the benchmark."""

    data: str = ""
    """The data set, as for train.py."""
    model_path: str = str(PHOTO_WEIGHTS)
    """The weights."""
    margins: tuple[float, ...] = (0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
    """Sides of the crop, as multiples of the box's side."""
    side: int = 192
    """Width of the photographs in pixels."""


def main() -> None:
    options = parse(MarginOptions, sys.argv[1:], __doc__)
    runtime = load_runtime(options.model_path, "-1")
    source = find_source(options.data)
    dataset = load_dataset(source, runtime.image_width, 1, ()).subset("PublicTest")
    dataset = dataset.select(dataset.labels != UNLABELED)
    if not len(dataset) or dataset.class_names != runtime.class_names:
        raise DataError(
            f"{dataset.source} has no PublicTest images with the classes of {options.model_path}; "
            "give another --data"
        )
    photographs = [resize_image(image, options.side) for image in dataset.images]
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        detected = [detections.boxes[:1] for detections in pool.map(detect_faces, photographs)]
    rows = np.flatnonzero([len(boxes) for boxes in detected])
    if not len(rows):
        raise DataError(f"dlib detects no face in the PublicTest images of {dataset.source}")
    print(f"data     {source.description}")
    print(f"dlib detects {len(rows):,} of {len(dataset):,} PublicTest faces")
    labels, width = dataset.labels[rows], runtime.image_width
    print_accuracy("FER2013's crop", runtime, dataset.images[rows], labels)
    for margin in options.margins:
        boxes = expand_boxes(np.concatenate(detected), margin)
        crops = [crop(photographs[i], box, width) for i, box in zip(rows, boxes)]
        mark = " *" if margin == MARGIN else ""
        print_accuracy(f"{margin:g} times the box{mark}", runtime, crops, labels)
    print("* the margin of predict.py")


def print_accuracy(
    name: str, runtime: Runtime, images: Sequence[np.ndarray], labels: np.ndarray
) -> None:
    """Print the accuracy on grayscale images [N, W, W], and its standard error."""
    pixels = np.repeat(np.stack(images)[:, None], runtime.channels, axis=1)
    batches = np.array_split(pixels, max(1, len(pixels) // 64))
    predicted = np.concatenate([runtime(batch).probabilities.argmax(1) for batch in batches])
    is_correct = predicted == labels
    error = is_correct.std() / np.sqrt(len(labels))
    accuracy = f"{100 * is_correct.mean():7.2f} %"
    print(f"{name:24}{accuracy}  (standard error {100 * error:.2f})", flush=True)


if __name__ == "__main__":
    run_main(main)
