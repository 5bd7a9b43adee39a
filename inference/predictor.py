"""FacePredictor: faces in images and their expressions, as a library.

from inference.predictor import FacePredictor

predictor = FacePredictor("model_save/resnet18_photos.pth")
for face in predictor(image):
    print(face.expression, face.box)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from inference import detector
from inference.runtime import load_runtime
from utils.errors import DataError, OptionError
from utils.predictions import Predictions
from utils.run_folder import PHOTO_WEIGHTS


class Face(NamedTuple):
    """One face of an image."""

    box: np.ndarray  # float32 [4], (left, top, right, bottom) edges in pixels of the image
    score: float | None  # the detector's; None for an image that is one face
    expression: str  # the most probable class
    probabilities: np.ndarray  # float32 [C], in the order of FacePredictor.class_names
    importance: float  # SCN's, 0 to 1, by which the logits are multiplied
    landmarks: np.ndarray | None  # float32 [68, 2] in pixels of the image, iBUG order

    @property
    def confidence(self) -> float:
        """The probability of the expression, a better confidence measure than the importance."""
        return float(self.probabilities.max())

    @property
    def caption(self) -> str:
        """Expression and probability, such as "happy 89 %"."""
        return f"{self.expression} {100 * self.confidence:.0f} %"


class FaceCrops(NamedTuple):
    """The F faces of one image, cropped for the network."""

    boxes: np.ndarray  # float32 [F, 4], as in Face
    scores: np.ndarray | None  # float32 [F]
    crop_boxes: np.ndarray  # float32 [F, 4], the region of each crop in the image
    pixels: np.ndarray  # uint8 [F, C, W, W]


class FacePredictor:
    """Detects faces in images, and predicts their expressions and landmarks.

    On a CPU, PyTorch weights make glibc keep up to 1 GiB of freed memory for the next batch.

    Args:
        model_path: Weights of this project, of the original method, or an .onnx file.
        cropped: Each image is one tightly cropped face.
        detection_size: As in `inference.detector.detect_faces`.
        min_score: Minimum score of a detected face.
        batch_size: Faces per step of the network.
        threads: CPU threads of the network; 0 is one per core.
        gpu_ids: As in train.py.

    Attributes:
        class_names: Names of the probabilities.

    Raises:
        WeightsError: The weights cannot be loaded.
        OptionError: There is no such GPU, or a value is out of range.
    """

    def __init__(
        self,
        model_path: str | Path = PHOTO_WEIGHTS,
        *,
        cropped: bool = False,
        detection_size: int = detector.DETECTION_SIZE,
        min_score: float = detector.MIN_SCORE,
        batch_size: int = 64,
        threads: int = 0,
        gpu_ids: str = "",
    ) -> None:
        values = {"batch_size": batch_size, "threads": threads, "detection_size": detection_size}
        for (name, value), minimum in zip(values.items(), (1, 0, detector.MIN_FACE_SIZE)):
            if value < minimum:
                raise OptionError(f"{name} {value} must be at least {minimum}")
        if not math.isfinite(min_score):
            raise OptionError(f"min_score {min_score} must be a finite number")
        self._runtime = load_runtime(model_path, str(gpu_ids), threads)
        self.class_names = self._runtime.class_names
        self.cropped, self.detection_size, self.min_score = cropped, detection_size, min_score
        self.batch_size = batch_size

    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> list[Face] | list[list[Face]]:
        """Return the faces of an image, the largest first; for a list of images a list of these.

        Args:
            images: uint8 [H, W], or [H, W, 3] in RGB (OpenCV has BGR: image[..., ::-1]).

        Raises:
            DataError: An argument is not such an image.
        """
        if isinstance(images, (list, tuple)):
            return self.predict([self.detect(image) for image in images])
        return self.predict([self.detect(images)])[0]

    def detect(self, image: np.ndarray, detection_size: int | None = None) -> FaceCrops:
        """Detect and crop the faces of an image. Several threads may call it at once."""
        _check_image(image)
        if self.cropped:
            boxes, scores = np.array([[0, 0, *image.shape[1::-1]]], np.float32), None
            crop_boxes = boxes.astype(int)
        else:
            size = detection_size or self.detection_size
            boxes, scores = detector.detect_faces(image, size, self.min_score)
            crop_boxes = detector.expand_boxes(boxes)
        side, channels = self._runtime.image_width, self._runtime.channels
        pixels = np.empty((len(crop_boxes), channels, side, side), np.uint8)
        for i, box in enumerate(crop_boxes):
            face = detector.crop(image, box, side)
            if channels == 1 and face.ndim == 3:
                face = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
            pixels[i] = face if face.ndim == 2 else face.transpose(2, 0, 1)
        return FaceCrops(boxes, scores, crop_boxes.astype(np.float32), pixels)

    def predict(self, crops: Sequence[FaceCrops]) -> list[list[Face]]:
        """Predict the faces of several images, in batches that combine them."""
        counts = [len(image_crops.boxes) for image_crops in crops]
        if not any(counts):
            return [[] for _ in crops]
        pixels = np.concatenate([image_crops.pixels for image_crops in crops])
        starts = range(0, len(pixels), self.batch_size)
        batches = [self._runtime(pixels[start : start + self.batch_size]) for start in starts]
        predictions, ends = Predictions.concatenate(batches), np.cumsum(counts)
        return [
            [self._face(image_crops, i, predictions, end - count + i) for i in range(count)]
            for image_crops, count, end in zip(crops, counts, ends)
        ]

    def _face(self, crops: FaceCrops, i: int, predictions: Predictions, row: int) -> Face:
        """Return face `i` of an image, whose prediction is a row of `predictions`."""
        probabilities, landmarks = predictions.probabilities[row], None
        if predictions.landmarks is not None:
            corners = crops.crop_boxes[i].reshape(2, 2)
            scale = (corners[1] - corners[0]) / self._runtime.image_width
            landmarks = (predictions.landmarks[row] + 0.5) * scale - 0.5 + corners[0]
        return Face(
            box=crops.boxes[i],
            score=None if crops.scores is None else float(crops.scores[i]),
            expression=self.class_names[int(probabilities.argmax())],
            probabilities=probabilities,
            importance=float(predictions.importance[row]),
            landmarks=landmarks,
        )


def _check_image(image: np.ndarray) -> None:
    if image is None:
        raise DataError("None is not an image; cv2.imread returns it for an unreadable file")
    is_uint8 = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size
    if not is_uint8 or (image.ndim != 2 and image.shape[2:] != (3,)):
        kind, shape = getattr(image, "dtype", type(image).__name__), getattr(image, "shape", "")
        raise DataError(f"an image must be uint8 [H, W] or [H, W, 3] in RGB, got {kind} {shape}")
