"""Face detection with dlib or CenterFace, and the crops that the network expects."""

from __future__ import annotations

import threading
from typing import NamedTuple

import cv2
import numpy as np

from data.dataset import resize_image
from inference.centerface import CenterFace
from utils.errors import DataError

# Side of the square crop, and distance of its center above the box's center, in box sides. Much
# smaller or larger crops lower the accuracy (python -m tools.benchmarks.margin).
MARGIN, LIFT = 1.2, 0.07
MIN_FACE_SIZE = 80  # pixels; dlib finds no smaller face
MAX_ENLARGED_SIDE = 4000  # pixels, the longer side of a small image after it is enlarged
MIN_SCORE = 0.2  # dlib's own threshold is 0, where badges and buttons are detected as faces
DETECTION_SIZE = 1000  # pixels, the longer side of a photograph for the detection

_thread_local = threading.local()


class Detections(NamedTuple):
    """F detected faces of one image, the largest face first."""

    boxes: np.ndarray  # float32 [F, 4], (left, top, right, bottom) edges in pixels
    scores: np.ndarray  # float32 [F], mostly 1 to 2 for a clear face


def detect_faces(
    image: np.ndarray,
    detection_size: int = DETECTION_SIZE,
    min_score: float = MIN_SCORE,
    detector: str = "dlib",
) -> Detections:
    """Detect faces: dlib finds frontal ones, CenterFace also small, turned and hidden ones.

    Args:
        image: uint8 [H, W] or [H, W, 3] in RGB.
        detection_size: Longer side in pixels to which the image is resized, up to twice its own
            size (more if it is smaller than 80 pixels). Faces must be 80 pixels wide there for
            dlib, and about 12 for CenterFace, which does not enlarge images.
        min_score: Minimum score of a face.
        detector: "dlib", or the path of a CenterFace .onnx file.
    """
    if detector == "dlib":
        boxes, scores = _run_dlib(image, detection_size, min_score)
    else:
        boxes, scores = load_centerface(detector)(image, detection_size, min_score)
    order = np.argsort(boxes[:, 0] - boxes[:, 2], kind="stable")
    return Detections(boxes[order].astype(np.float32), np.array(scores, np.float32)[order])


def load_centerface(path: str) -> CenterFace:
    """Return the CenterFace detector of this thread: OpenCV's networks are not thread-safe."""
    if getattr(_thread_local, "path", None) != path:
        _thread_local.centerface, _thread_local.path = CenterFace(path), path
    return _thread_local.centerface


def _run_dlib(
    image: np.ndarray, detection_size: int, min_score: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes [F, 4] and scores [F] of dlib's detector."""
    gray = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    shorter, longer = sorted(gray.shape)
    scale = min(detection_size / longer, 2.0)
    if shorter < MIN_FACE_SIZE:  # the second limit is for long, narrow images
        scale = max(scale, min(2 * MIN_FACE_SIZE / shorter, MAX_ENLARGED_SIDE / longer))
    size = np.array(gray.shape[::-1])
    resized_size = np.maximum(np.round(size * scale), 1).astype(int)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(gray, resized_size.tolist(), interpolation=interpolation)
    rectangles, scores, _ = _detector().run(resized, 0, min_score)
    boxes = np.array([(r.left(), r.top(), r.right() + 1, r.bottom() + 1) for r in rectangles])
    return boxes.reshape(-1, 4) / np.tile(resized_size / size, 2), np.array(scores)


def expand_boxes(boxes: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """Return square crop boxes, int [F, 4], that frame faces as the images of FER2013 do.

    They may extend beyond the image. Their side is `margin` times that of the detected box.
    """
    side = boxes[:, 2] - boxes[:, 0]
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2 - LIFT * side
    side = np.maximum(np.round(margin * side), 1).astype(int)
    corner = np.round(np.stack((x, y), 1) - side[:, None] / 2).astype(int)
    return np.hstack((corner, corner + side[:, None]))


def crop(image: np.ndarray, box: np.ndarray, width: int) -> np.ndarray:
    """Crop a box and resize it to width x width pixels; border pixels are repeated beyond it."""
    left, top, right, bottom = (int(edge) for edge in box)
    height, columns = image.shape[:2]
    padding = max(0, -top), max(0, bottom - height), max(0, -left), max(0, right - columns)
    inside = image[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    return resize_image(cv2.copyMakeBorder(inside, *padding, cv2.BORDER_REPLICATE), width)


def _detector():
    """Return the detector of this thread: dlib's detector is not thread-safe."""
    if not hasattr(_thread_local, "detector"):
        try:
            import dlib  # noqa: PLC0415  (not needed for cropped faces)
        except ImportError as error:
            raise DataError(
                f"dlib is not installed ({error}). Run `pip install dlib-bin`, or give images of "
                "one face each with --cropped"
            ) from error
        _thread_local.detector = dlib.get_frontal_face_detector()
    return _thread_local.detector
