"""Choose the threshold of false detections, on faces and on pictures without people.

    python -m tools.benchmarks.false_detections --data data/fer2013.csv \
        --ferplus data/fer2013new.csv

Faces are detected in photographs made of PublicTest, with the default minimum score. Non-faces are
what dlib detects, with a very low minimum score, in pictures of scikit-image and scikit-learn at
several sizes and orientations. `max_shift` of FacePredictor compares the landmarks of two passes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from skimage import data as pictures
from sklearn.datasets import load_sample_images

from data.dataset import resize_image
from inference.align import MAX_SHIFT
from inference.detector import MIN_SCORE
from inference.predictor import FacePredictor
from tools.benchmarks.common import FaceOptions, public_test
from utils.cli import parse
from utils.errors import run_main
from utils.statistics import wilson

# Without people in them; `camera` and `coins` show some.
NAMES = ("brick", "chelsea", "clock", "coffee", "grass", "gravel", "hubble_deep_field", "moon")
NAMES += ("page", "retina", "rocket", "text")
FACE = slice(60, 190), slice(150, 300)  # of the astronaut, whose suit has a flag and patches


@dataclass(frozen=True)
class FalseDetectionOptions(FaceOptions):
    """Options of the benchmark."""

    images: int = 500
    """Images, drawn at random from PublicTest."""
    scales: tuple[float, ...] = (0.35, 0.5, 0.7, 1.0, 1.4)
    """Sizes of the pictures, as factors."""
    min_score: float = -0.4
    """Minimum score of a false detection; with the default of predict.py there are hardly any."""
    thresholds: tuple[float, ...] = (0.02, 0.025, 0.03, 0.035, 0.04)
    """Values of max_shift."""


def main() -> None:
    options = parse(FalseDetectionOptions, sys.argv[1:], __doc__)
    predictor = FacePredictor(options.model_path, gpu_ids="-1", views=1, threads=1)
    dataset = public_test(options, predictor.runtime)
    rows = np.random.default_rng(1).permutation(len(dataset))[: options.images]
    photographs = (resize_image(image, 192) for image in dataset.images[rows])
    faces, _ = shifts_of(predictor, photographs, MIN_SCORE, largest=True)
    pictures_ = pictures_without_people(options.scales)
    others, scores = shifts_of(predictor, pictures_, options.min_score)
    print(f"{len(faces):,} faces; {len(others):,} false detections, of which ", end="")
    print(f"{(scores >= MIN_SCORE).sum()} have at least the default score of {MIN_SCORE:g}")
    for threshold in options.thresholds:
        accepted, rejected = faces <= threshold, others > threshold
        mark = " (default)" if threshold == MAX_SHIFT else ""
        print(f"{threshold:6g}: {share(accepted)} of the faces accepted, ", end="")
        print(f"{share(rejected)} of the false detections rejected{mark}")


def pictures_without_people(scales: Sequence[float]) -> Iterator[np.ndarray]:
    """Yield pictures, uint8 [H, W] or [H, W, 3], at several sizes and in four orientations."""
    astronaut = pictures.astronaut().copy()
    astronaut[FACE] = 128
    images = [astronaut, *load_sample_images().images]
    images += [getattr(pictures, name)() for name in NAMES]
    for image in images:
        for scale in scales:
            height, width = (max(1, round(scale * side)) for side in image.shape[:2])
            resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            yield from (np.ascontiguousarray(np.rot90(resized, k)) for k in range(4))


def shifts_of(
    predictor: FacePredictor, images: Iterator[np.ndarray], min_score: float, largest: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the landmark shifts and the scores of all detections, or of each image's largest."""
    predictor.min_score = min_score
    shifts, scores = [np.zeros(0)], [np.zeros(0)]
    for crops in map(predictor.detect, images):
        if len(crops.boxes):
            *_, moves = predictor.predict_passes([crops])
            count = 1 if largest else len(crops.boxes)
            shifts.append(moves[:count])
            scores.append(crops.scores[:count])
    return np.concatenate(shifts), np.concatenate(scores)


def share(mask: np.ndarray) -> str:
    """Return the share of True in percent, with its Wilson interval."""
    if not len(mask):
        return "none"
    low, high = (100 * bound for bound in wilson(int(mask.sum()), len(mask)))
    return f"{100 * mask.mean():.1f} % ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    run_main(main)
