"""Compare crop margins around dlib's box, on photographs made of PublicTest.

    python -m tools.benchmarks.margin --data data/fer2013.csv --ferplus data/fer2013new.csv

Each PublicTest image is enlarged to the size of a photograph, in which dlib detects the face. The
accuracy on the crops is compared with that on FER2013's own crops of the same faces, and with that
of `--views N`, which aligns the crops with the predicted landmarks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import joblib
import numpy as np

from data.dataset import resize_image
from inference.align import stack_crops
from inference.detector import MARGIN, crop, expand_boxes
from inference.predictor import FacePredictor
from inference.runtime import Runtime
from tools.benchmarks.common import FaceOptions, predict_largest, public_test
from utils.cli import parse
from utils.errors import DataError, run_main


@dataclass(frozen=True)
class MarginOptions(FaceOptions):
    """Options of the benchmark."""

    margins: tuple[float, ...] = (0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
    """Sides of the crop, as multiples of the box's side."""
    side: int = 192
    """Width of the photographs in pixels."""
    views: tuple[int, ...] = (1, 2, 4, 8)
    """Values of --views."""


def main() -> None:
    options = parse(MarginOptions, sys.argv[1:], __doc__)
    predictor = FacePredictor(options.model_path, max_shift=math.inf, gpu_ids="-1")  # keeps all
    runtime = predictor.runtime
    dataset = public_test(options, runtime)
    photographs = [resize_image(image, options.side) for image in dataset.images]
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        faces = list(pool.map(predictor.detect, photographs))
    rows = np.flatnonzero([len(crops.boxes) for crops in faces])
    if not len(rows):
        raise DataError(f"dlib detects no face in the PublicTest images of {dataset.source}")
    print(f"dlib detects {len(rows):,} of {len(dataset):,} PublicTest faces")
    labels, width = dataset.labels[rows], runtime.image_width
    print_accuracy("FER2013's crop", runtime, dataset.images[rows], labels)
    for margin in options.margins:
        boxes = expand_boxes(np.concatenate([faces[i].boxes[:1] for i in rows]), margin)
        crops = [crop(photographs[i], box, width) for i, box in zip(rows, boxes)]
        mark = " *" if margin == MARGIN else ""
        print_accuracy(f"{margin:g} times the box{mark}", runtime, crops, labels)
    print("* the margin of predict.py")
    for views in options.views:
        predicted = predict_largest(predictor, [faces[i] for i in rows], views).argmax(1)
        print_row(f"--views {views}", predicted == labels)


def print_accuracy(
    name: str, runtime: Runtime, images: Sequence[np.ndarray], labels: np.ndarray
) -> None:
    """Print the accuracy on grayscale images [N, W, W], and its standard error."""
    pixels = stack_crops(images, runtime.image_width, runtime.channels)
    print_row(name, runtime.predict(pixels).probabilities.argmax(1) == labels)


def print_row(name: str, is_correct: np.ndarray) -> None:
    error = is_correct.std() / np.sqrt(len(is_correct))
    accuracy = f"{100 * is_correct.mean():7.2f} %"
    print(f"{name:24}{accuracy}  (standard error {100 * error:.2f})", flush=True)


if __name__ == "__main__":
    run_main(main)
