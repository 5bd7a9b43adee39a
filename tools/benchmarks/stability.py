"""Measure how stable predictions are when the same face is scaled, shifted or rotated.

    python -m tools.benchmarks.stability --data data/fer2013.csv --ferplus data/fer2013new.csv

PublicTest images become photographs at eight scales, with four shifts, and in two rotations, in
which dlib detects the faces. A row for each `--views` has, over the faces that are detected in all
variants: the share with the same class in all of them, the mean over the faces of the standard
deviation of the winning probability, and the accuracy. Larger rotations follow, with the faces
detected there and upright, and the predictions of one photograph at five sizes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import joblib
import numpy as np
from matplotlib import cbook

from inference.face import FaceCrops
from inference.predictor import FacePredictor
from tools.benchmarks.common import (
    FaceOptions,
    mean_and_interval,
    predict_largest,
    public_test,
)
from utils.cli import parse
from utils.errors import DataError, run_main

CANVAS, FACE = 288, 192  # widths of the photograph and, at scale 1, of FER2013's image in pixels
# Scale, shift in x and y in pixels, and rotation in degrees.
SCALES = [(s, 0.0, 0.0, 0.0) for s in (0.5, 0.64, 0.78, 0.92, 1.0, 1.15, 1.3, 1.5)]
SHIFTS = [(1.0, x, y, 0.0) for x, y in ((9.0, 0.0), (-9.0, 0.0), (0.0, 9.0), (0.0, -9.0))]
ROTATIONS = [(1.0, 0.0, 0.0, angle) for angle in (-10.0, 10.0)]
VARIANTS = SCALES + SHIFTS + ROTATIONS  # scale 1 is also the fifth shift and the third rotation
LARGE_ROTATIONS = [(1.0, 0.0, 0.0, angle) for angle in (0.0, 20.0, 30.0, 45.0)]  # upright first
SIZES = (1.0, 0.8, 0.7, 0.6, 0.5)  # of the photograph, as factors


@dataclass(frozen=True)
class StabilityOptions(FaceOptions):
    """Options of the benchmark."""

    images: int = 500
    """Images, drawn at random from PublicTest."""
    views: tuple[int, ...] = (0, 1, 2, 4, 8)
    """Values of --views to compare."""
    threads: int = 0
    """CPU threads of the network; 0 is one per idle core (.pth) or one per core (.onnx)."""


def main() -> None:
    options = parse(StabilityOptions, sys.argv[1:], __doc__)
    shared = {"gpu_ids": "-1", "threads": options.threads}
    predictor = FacePredictor(options.model_path, max_shift=math.inf, **shared)  # keeps all
    dataset = public_test(options, predictor.runtime, options.images)
    labels = dataset.labels
    crops = detect_variants(predictor, dataset.images, VARIANTS, options.threads)
    found = [i for i, faces in enumerate(crops) if all(len(face.boxes) for face in faces)]
    if not found:
        raise DataError("no face is detected in all variants; give more --images")
    print(f"{len(found):,} of {len(dataset):,} faces are detected in all {len(VARIANTS)} variants")
    print(f"{'views':>6}{'same class (%)':>26}{'std of probability':>30}{'accuracy (%)':>26}")
    for views in options.views:
        probabilities = predict_largest(predictor, [c for i in found for c in crops[i]], views)
        probabilities = probabilities.reshape(len(found), len(VARIANTS), -1)
        print_row(views, probabilities, labels[found])
    print("\naccuracy (%) of the same faces upright and rotated by degrees")
    crops = detect_variants(predictor, dataset.images, LARGE_ROTATIONS, options.threads)
    for k, (*_, angle) in enumerate(LARGE_ROTATIONS):
        found = [i for i, faces in enumerate(crops) if len(faces[0].boxes) and len(faces[k].boxes)]
        print(f"{angle:6.0f} (n = {len(found)})", end="")
        for views in options.views:
            pairs = [crops[i][variant] for variant in (0, k) for i in found]
            predicted = predict_largest(predictor, pairs, views).argmax(1).reshape(2, -1)
            upright, rotated = 100 * (predicted == labels[found]).mean(1)
            print(f"  views {views}: {upright:.2f}, {rotated:.2f}", end="")
        print(flush=True)
    print(f"\nGrace Hopper at the sizes {', '.join(map(str, SIZES))}")
    for views in options.views:
        predictor.views = views
        print(f"  views {views}: ", ", ".join(predict_sizes(predictor)))


def photograph(image: np.ndarray, variant: Sequence[float]) -> np.ndarray:
    """Return a square image as a photograph whose face is scaled, shifted and rotated."""
    scale, x, y, degrees = variant
    width, center = len(image), (CANVAS - 1) / 2
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2,) * 2, degrees, scale * FACE / width)
    matrix[:, 2] += np.array([x, y]) + center - (width - 1) / 2
    size = CANVAS, CANVAS
    return cv2.warpAffine(
        image, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )


def detect_variants(
    predictor: FacePredictor, images: np.ndarray, variants: Sequence[Sequence[float]], threads: int
) -> list[list[FaceCrops]]:
    """Return for each image the detected faces of all variants."""
    jobs = [(image, variant) for image in images for variant in variants]
    with ThreadPoolExecutor(threads or joblib.cpu_count()) as pool:
        crops = list(pool.map(lambda job: predictor.detect(photograph(*job)), jobs))
    return [crops[i : i + len(variants)] for i in range(0, len(crops), len(variants))]


def predict_sizes(predictor: FacePredictor) -> list[str]:
    """Return the prediction of Matplotlib's photograph of Grace Hopper at each of SIZES."""
    image = cv2.imread(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))[..., ::-1]
    resized = [cv2.resize(image, None, fx=s, fy=s, interpolation=cv2.INTER_AREA) for s in SIZES]
    faces = [face for (face,) in predictor(resized)]
    return [f"{face.expression} {100 * face.confidence:.0f} %" for face in faces]


def print_row(views: int, probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Print the measures of probabilities [faces, variants, C], with 95 % bootstrap intervals."""
    classes, winner = probabilities.argmax(2), probabilities.mean(1).argmax(1)
    winning = np.take_along_axis(probabilities, winner[:, None, None], 2)[..., 0]
    same_class = mean_and_interval(100 * (classes == classes[:, :1]).all(1), 1)
    std = mean_and_interval(winning.std(1), 4)
    accuracy = mean_and_interval(100 * (classes == labels[:, None]).mean(1), 2)
    print(f"{views:6}{same_class:>26}{std:>30}{accuracy:>26}", flush=True)


if __name__ == "__main__":
    run_main(main)
