"""Compare face detectors on photographs made of PublicTest.

    python -m tools.benchmarks.detectors --data data/fer2013.csv \
        --ferplus data/fer2013new.csv --detectors dlib PATH.onnx

Faces are small, rotated, partly hidden or narrowed. Each row has the share of photographs in which
a detector finds the face, and in which FacePredictor keeps it with the default max_shift. A face is
found if a crop overlaps FER2013's image by an intersection over union of at least `--min_iou`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from inference.align import MAX_SHIFT
from inference.detector import expand_boxes
from inference.predictor import FacePredictor
from inference.tracking import box_iou
from tools.benchmarks.common import FaceOptions, public_test
from tools.benchmarks.false_detections import print_row
from tools.benchmarks.stability import CANVAS, FACE, photograph
from utils.cli import parse
from utils.errors import run_main

SMALL, NARROW = 0.25, 0.55  # factors of the size and of the width
ROTATIONS = (20, 40, 60, 90)  # degrees


@dataclass(frozen=True)
class DetectorOptions(FaceOptions):
    """Options of the benchmark."""

    images: int = 300
    """Images, drawn at random from PublicTest."""
    detectors: tuple[str, ...] = ("dlib",)
    """dlib, or paths of CenterFace .onnx files."""
    min_iou: float = 0.4
    """Minimum intersection over union of a found face."""


def main() -> None:
    options = parse(DetectorOptions, sys.argv[1:], __doc__)
    for name in options.detectors:
        predictor = FacePredictor(
            options.model_path, detector=name, gpu_ids="-1", views=1, threads=1
        )
        dataset = public_test(options, predictor.runtime, options.images)
        print(f"{name:>40}{'n':>6}{'found (%)':>22}{'kept (%)':>22}{'ms':>6}")
        cases: dict[str, list[tuple[bool, bool, float]]] = {}
        for image in dataset.images:
            for case, photo, box in photographs(image):
                cases.setdefault(case, []).append(find_face(predictor, photo, box, options.min_iou))
        for case, results in cases.items():
            found, kept, seconds = zip(*results)
            print_row(case, [np.array(found), np.array(kept)], end="")
            print(f"{1000 * statistics.median(seconds):7.1f}", flush=True)


def photographs(image: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield names, photographs and the true boxes (left, top, right, bottom) of FER2013's image."""
    middle, upright = len(image) // 2, (1.0, 0.0, 0.0, 0.0)
    yield "upright", photograph(image, upright), face_box()
    yield f"{SMALL * FACE:g} pixels", photograph(image, (SMALL, 0.0, 0.0, 0.0)), face_box(SMALL)
    for angle in ROTATIONS:
        rotated = photograph(image, (1.0, 0.0, 0.0, angle))
        yield f"rotated by {angle} degrees", rotated, face_box()
    for name, half in (("lower", np.s_[middle:]), ("left", np.s_[:, :middle])):
        hidden = image.copy()
        hidden[half] = 128
        yield f"{name} half hidden", photograph(hidden, upright), face_box()
    narrow = cv2.resize(photograph(image, upright), None, fx=NARROW, fy=1.0)
    yield f"narrowed to {100 * NARROW:g} %", narrow, face_box() * (NARROW, 1, NARROW, 1)


def face_box(scale: float = 1.0) -> np.ndarray:
    """Return the box of FER2013's image in the middle of a photograph."""
    half = scale * FACE / 2
    return CANVAS / 2 + half * np.array([-1, -1, 1, 1])


def find_face(
    predictor: FacePredictor, photo: np.ndarray, box: np.ndarray, min_iou: float
) -> tuple[bool, bool, float]:
    """Return whether the face is found, whether it is kept, and the seconds of the detection."""
    start = time.perf_counter()
    crops = predictor.detect(photo)
    seconds = time.perf_counter() - start
    ious = np.array([box_iou(crop, box) for crop in expand_boxes(crops.boxes)])
    found = ious >= min_iou
    if not found.any():
        return False, False, seconds
    *_, shifts = predictor.predict_aligned([crops])
    return True, bool((found & (shifts <= MAX_SHIFT)).any()), seconds


if __name__ == "__main__":
    run_main(main)
