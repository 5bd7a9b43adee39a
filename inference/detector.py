"""Faces in photographs: found by dlib, and cut out as FER2013 cuts its own."""

from __future__ import annotations

import threading
from typing import NamedTuple

import cv2
import numpy as np

from data.dataset import resize_image
from utils.errors import DataError

# The square to cut out: its side as a multiple of the box's, and how far its centre is above
# the box's, in box sides. A network trained on FER2013 reads these squares as well as any; much
# smaller or larger ones worse (python -m tools.benchmarks.margin).
MARGIN, LIFT = 1.2, 0.07
SMALLEST = 80  # pixels: dlib finds no smaller face
LONGEST = 4000  # pixels, the longer side of a small picture enlarged
MIN_SCORE = 0.2  # dlib's own threshold is 0, just above which it takes badges for faces

_of_thread = threading.local()


class Found(NamedTuple):
    """F faces in one picture.

    Attributes:
        boxes: float32 [F, 4]: left, top, right and bottom edge in pixels, the largest first.
        scores: float32 [F], dlib's own, mostly 1 to 2 for a clear face.
    """

    boxes: np.ndarray
    scores: np.ndarray


def detect_faces(image: np.ndarray, detail: int = 1000, min_score: float = MIN_SCORE) -> Found:
    """Look for frontal faces.

    Args:
        image: uint8 [H, W] or [H, W, 3] in RGB.
        detail: the longer side in pixels at which faces are sought, up to twice the
            picture's own (more for one of under 80 pixels). Faces must be 80 pixels wide there;
            the time grows with its square.
        min_score: dlib's score from which on it is a face. A clear one has 1 to 2; of
            PublicTest's faces that score at all, one in five stays below 0.2.

    Raises:
        DataError: dlib is missing.
    """
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    scale = min(detail / max(height, width), 2.0)
    if min(height, width) < SMALLEST:
        # A strip is no face, and would grow without end.
        scale = max(scale, min(2 * SMALLEST / min(height, width), LONGEST / max(height, width)))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    boxes, scores, _ = _detector().run(
        cv2.resize(grey, size, interpolation=interpolation), 0, min_score
    )
    edges = np.array([(b.left(), b.top(), b.right() + 1, b.bottom() + 1) for b in boxes])
    edges = edges.reshape(-1, 4) / (np.array(size * 2) / (width, height, width, height))
    order = np.argsort(edges[:, 0] - edges[:, 2], kind="stable")
    return Found(edges[order].astype(np.float32), np.array(scores, np.float32)[order])


def expand_boxes(boxes: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """Return what FER2013 would cut out for boxes [F, 4]: int [F, 4], left, top, right, bottom.

    The side of each is so many times (`margin`) the box's.
    """
    side = boxes[:, 2] - boxes[:, 0]
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2 - LIFT * side
    side = np.maximum(np.round(margin * side), 1).astype(int)
    left, top = (np.round(centre - side / 2).astype(int) for centre in (x, y))
    return np.stack((left, top, left + side, top + side), 1)


def cut(image: np.ndarray, square: np.ndarray, width: int) -> np.ndarray:
    """Return a part (left, top, right, bottom) of an image as width x width pixels.

    Beyond the image's border its last pixels are repeated.
    """
    left, top, right, bottom = (int(edge) for edge in square)
    height, columns = image.shape[:2]
    beyond = max(0, -top), max(0, bottom - height), max(0, -left), max(0, right - columns)
    part = image[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    return resize_image(cv2.copyMakeBorder(part, *beyond, cv2.BORDER_REPLICATE), width)


def _detector():
    """Return this thread's detector: it keeps its work in itself, so two must not share one."""
    if not hasattr(_of_thread, "detector"):
        try:
            import dlib  # noqa: PLC0415  (whoever brings cropped faces does not need it)
        except ImportError as error:
            raise DataError(
                f"dlib is not installed ({error}); run `pip install dlib-bin`, or give pictures "
                "of one face each with --cropped"
            ) from error
        _of_thread.detector = dlib.get_frontal_face_detector()
    return _of_thread.detector
