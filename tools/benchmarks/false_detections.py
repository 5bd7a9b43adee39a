"""Choose the threshold of false detections, on faces and on pictures without people.

    python -m tools.benchmarks.false_detections --data data/fer2013.csv \
        --ferplus data/fer2013new.csv

Faces are detected in photographs made of PublicTest, upright and rotated, with the default minimum
score. False detections are those with a very low minimum score in pictures of scikit-image and
scikit-learn at several sizes and orientations.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from skimage import data as skimage_data
from sklearn.datasets import load_sample_images

from inference.align import MAX_SHIFT
from inference.detector import MIN_SCORE
from inference.predictor import FacePredictor
from tools.benchmarks.common import FaceOptions, public_test
from tools.benchmarks.stability import photograph
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
    detector: str = "dlib"
    """dlib, or the path of a CenterFace .onnx file."""
    rotations: tuple[float, ...] = (0.0, 20.0, 30.0, 45.0)
    """Rotations of the photographs in degrees."""
    scales: tuple[float, ...] = (0.35, 0.5, 0.7, 1.0, 1.4)
    """Sizes of the pictures, as factors."""
    min_score: float = -0.7
    """Minimum score of a false detection; with the default of predict.py there are hardly any."""
    thresholds: tuple[float, ...] = (0.02, 0.025, 0.03, 0.04)
    """Values of max_shift."""


def main() -> None:
    options = parse(FalseDetectionOptions, sys.argv[1:], __doc__)
    predictor = FacePredictor(
        options.model_path, detector=options.detector, gpu_ids="-1", views=1, threads=1
    )
    dataset = public_test(options, predictor.runtime, options.images)
    thresholds = [f"{t:g}{' (default)' if t == MAX_SHIFT else ''}" for t in options.thresholds]
    print(f"{'share in % by max_shift':>40}{'n':>6}", *(f"{text:>21}" for text in thresholds))
    pictures = pictures_without_people(options.scales)
    others, scores = shifts_of(predictor, pictures, options.min_score)
    for min_score in (options.min_score, MIN_SCORE):
        found = others[scores >= min_score]
        name = f"false detections left out, score >= {min_score:g}"
        print_row(name, [found > t for t in options.thresholds])
    for angle in options.rotations:
        photographs = (photograph(image, (1.0, 0.0, 0.0, angle)) for image in dataset.images)
        faces, _ = shifts_of(predictor, photographs, MIN_SCORE, largest=True)
        name = f"faces kept, rotated by {angle:g} degrees"
        print_row(name, [faces <= t for t in options.thresholds])


def pictures_without_people(scales: Sequence[float]) -> Iterator[np.ndarray]:
    """Yield pictures, uint8 [H, W] or [H, W, 3], at several sizes and in four orientations."""
    astronaut = skimage_data.astronaut().copy()
    astronaut[FACE] = 128
    images = [astronaut, *load_sample_images().images]
    images += [getattr(skimage_data, name)() for name in NAMES]
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
            *_, moves = predictor.predict_aligned([crops])
            count = 1 if largest else len(crops.boxes)
            shifts.append(moves[:count])
            scores.append(crops.scores[:count])
    return np.concatenate(shifts), np.concatenate(scores)


def print_row(name: str, masks: Sequence[np.ndarray], end: str = "\n") -> None:
    """Print the shares of True in percent, with their Wilson intervals."""
    columns = [f"{name:>40}{len(masks[0]):6}"]
    for mask in masks if len(masks[0]) else ():
        low, high = (100 * bound for bound in wilson(int(mask.sum()), len(mask)))
        columns.append(f"{100 * mask.mean():.1f} ({low:.1f} to {high:.1f})".rjust(21))
    print(*columns, end=end, flush=True)


if __name__ == "__main__":
    run_main(main)
