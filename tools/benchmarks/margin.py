"""How much around dlib's box to cut out: photographs made of PublicTest, read at several margins.

    python -m tools.benchmarks.margin --data fer2013.csv

Each face is enlarged to a picture, in which dlib finds it as it does in a photograph. What was cut
out then is compared with FER2013's own cut of the same faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import joblib
import numpy as np
import tyro

from data.dataset import UNLABELED, resize_image
from data.source import find_source, load_dataset
from inference.detector import MARGIN, cut, detect_faces, expand_boxes
from inference.runtime import Runtime, load_runtime
from utils.errors import DataError, run_main
from utils.run_folder import PHOTO_WEIGHTS

USAGE = "PublicTest"  # what chooses


@dataclass(frozen=True)
class MarginOptions:
    """Options of the benchmark."""

    data: str = ""
    """The faces, as of train.py."""
    model_path: str = str(PHOTO_WEIGHTS)
    """The weights."""
    margins: tuple[float, ...] = (0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
    """Sides of the square, as multiples of the box's."""
    side: int = 192
    """Pixels of the pictures."""


def main() -> None:
    options = tyro.cli(MarginOptions, description=__doc__, use_underscores=True)
    runtime = load_runtime(options.model_path, "-1")
    source = find_source(options.data)
    faces = load_dataset(source, runtime.image_width, 1, ()).subset(USAGE)
    faces = faces.select(faces.labels != UNLABELED)
    if not len(faces) or faces.class_names != runtime.class_names:
        raise DataError(
            f"{faces.source} has no {USAGE} faces with the labels of {options.model_path}; "
            "name others with --data"
        )
    pictures = [resize_image(face, options.side) for face in faces.images]
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        found = list(pool.map(lambda picture: detect_faces(picture).boxes[:1], pictures))
    which = np.flatnonzero([len(boxes) for boxes in found])
    if not len(which):
        raise DataError(f"dlib finds none of the {USAGE} faces of {faces.source}")
    print(f"data     {source.description}\ndlib finds {len(which):,} of {len(faces):,} {USAGE} faces")
    boxes, labels = np.concatenate(found), faces.labels[which]
    rates = {"as FER2013 cuts them": accuracy(runtime, faces.images[which], labels)}
    for margin in options.margins:
        parts = expand_boxes(boxes, margin)
        cuts = [cut(pictures[i], part, runtime.image_width) for i, part in zip(which, parts)]
        rates[f"{margin:g} times the box{' *' * (margin == MARGIN)}"] = accuracy(
            runtime, cuts, labels
        )
    for name, rate in rates.items():
        error = np.sqrt(rate * (1 - rate) / len(which))
        print(f"{name:24}{100 * rate:7.2f} %  (standard error {100 * error:.2f})")
    print("* predict.py's")


def accuracy(runtime: Runtime, images: Sequence[np.ndarray], labels: np.ndarray) -> float:
    """Return the share of grey faces [N, W, W] that a network reads as labelled."""
    pixels = np.repeat(np.stack(images)[:, None], runtime.channels, axis=1)
    parts = np.array_split(pixels, max(1, len(pixels) // 64))
    best = np.concatenate([runtime(part).probabilities.argmax(1) for part in parts])
    return float((best == labels).mean())


if __name__ == "__main__":
    run_main(main)
