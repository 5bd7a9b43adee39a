"""Faces in pictures, found, cut out and read: predict.py as a library.

from inference.predictor import FacePredictor

predictor = FacePredictor("model_save/resnet18_photos.pth")
for face in predictor(image):
    print(face.expression, face.box)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from inference.detector import MIN_SCORE, SMALLEST, cut, detect_faces, expand_boxes
from inference.runtime import load_runtime
from utils.errors import DataError, OptionError
from utils.run_folder import PHOTO_WEIGHTS

DETAIL = 1000  # pixels: the longer side at which faces are sought in a photograph


class Face(NamedTuple):
    """One face in a picture.

    Attributes:
        box: float32 [4]: left, top, right and bottom edge in the picture's pixels.
        score: the detector's, 0 at its threshold; None for a picture that is one face.
        expression: the most probable class.
        probabilities: float32 [C], in the order of `FacePredictor.class_names`.
        importance: SCN's, 0 to 1: what the logits are multiplied by.
        landmarks: float32 [68, 2] in the picture's pixels, iBUG order; or None.
    """

    box: np.ndarray
    score: float | None
    expression: str
    probabilities: np.ndarray
    importance: float
    landmarks: np.ndarray | None

    @property
    def confidence(self) -> float:
        """The probability of the expression. It tells right readings from wrong ones far better
        than the importance does: see EXPERIMENTS.md."""
        return float(self.probabilities.max())


class FaceCrops(NamedTuple):
    """The faces of one picture, cut out for the network.

    Attributes:
        boxes: float32 [F, 4], as of Face.
        scores: float32 [F], or None.
        parts: float32 [F, 4]: the part of the picture that each face is.
        pixels: uint8 [F, C, W, W].
    """

    boxes: np.ndarray
    scores: np.ndarray | None
    parts: np.ndarray
    pixels: np.ndarray


class FacePredictor:
    """Finds faces and reads them. Constructed once, called with pictures.

    Args:
        model_path: weights of this project, of the original method, or an .onnx file.
        cropped: each picture is one face, tightly cut out.
        detail: the longer side in pixels at which faces are sought (see inference.detector).
        min_score: the detector's score from which on it is a face.
        batch_size: faces per step of the network.
        threads: of the network, on a CPU; 0 takes one per core.
        gpu_ids: as of train.py. On a CPU, PyTorch's weights have glibc keep freed memory, up to
            1 GiB, for the process's next batch.

    Attributes:
        class_names: of the probabilities.

    Raises:
        WeightsError: the weights cannot be loaded.
        OptionError: no such GPU, or a value out of range.
    """

    def __init__(
        self,
        model_path: str | Path = PHOTO_WEIGHTS,
        *,
        cropped: bool = False,
        detail: int = DETAIL,
        min_score: float = MIN_SCORE,
        batch_size: int = 64,
        threads: int = 0,
        gpu_ids: str = "",
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("threads", threads, 0),
            ("detail", detail, SMALLEST),
        ):
            if value < least:
                raise OptionError(f"{name} {value} must be at least {least}")
        if not math.isfinite(min_score):
            raise OptionError(f"min_score {min_score} must be a number")
        self._loaded_from = model_path, str(gpu_ids), threads
        self._runtime = load_runtime(*self._loaded_from)
        self.class_names = self._runtime.class_names
        self.cropped, self.detail, self.min_score = cropped, detail, min_score
        self.batch_size = batch_size

    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> list[Face] | list[list[Face]]:
        """Return the faces of a picture, the largest first; of a list of pictures, a list of these.

        Args:
            images: uint8 [H, W], or [H, W, 3] in RGB (OpenCV reads BGR: image[..., ::-1]).

        Raises:
            DataError: something that is no such picture.
        """
        if isinstance(images, np.ndarray):
            return self.read([self.find(images)])[0]
        if not isinstance(images, (list, tuple)):
            _check(images)  # which says what it should be
        return self.read([self.find(image) for image in images])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the network: another process, such as joblib's, loads it from its file."""
        return {name: value for name, value in vars(self).items() if name != "_runtime"}

    def __copy__(self) -> FacePredictor:
        """Share the network, as a copy of this process can."""
        copied = object.__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._runtime = load_runtime(*self._loaded_from)

    def find(self, image: np.ndarray, detail: int | None = None) -> FaceCrops:
        """Return the faces of a picture, cut out: the part of a call that threads may share."""
        _check(image)
        height, width = image.shape[:2]
        if self.cropped:
            boxes, scores = np.array([[0, 0, width, height]], np.float32), None
            parts = boxes.astype(int)
        else:
            boxes, scores = detect_faces(image, detail or self.detail, self.min_score)
            parts = expand_boxes(boxes)
        side = self._runtime.image_width
        pixels = np.empty((len(parts), self._runtime.channels, side, side), np.uint8)
        for i, part in enumerate(parts):
            pixels[i] = _planes(cut(image, part, side), self._runtime.channels)
        return FaceCrops(boxes, scores, parts.astype(np.float32), pixels)

    def read(self, cuts: Sequence[FaceCrops]) -> list[list[Face]]:
        """Return the faces of each picture, read by the network in batches."""
        if not cuts:
            return []
        pixels = np.concatenate([each.pixels for each in cuts])
        faces: list[Face] = []
        every = [(each, i) for each in cuts for i in range(len(each.boxes))]
        for start in range(0, len(pixels), self.batch_size):
            some = slice(start, start + self.batch_size)
            readings = self._runtime(pixels[some])
            for k, (each, i) in enumerate(every[some]):
                points = readings.landmarks
                faces.append(
                    Face(
                        box=each.boxes[i],
                        score=None if each.scores is None else float(each.scores[i]),
                        expression=self.class_names[int(readings.probabilities[k].argmax())],
                        probabilities=readings.probabilities[k],
                        importance=float(readings.importance[k]),
                        landmarks=None
                        if points is None
                        else self._placed(points[k], each.parts[i]),
                    )
                )
        ends = np.cumsum([len(each.boxes) for each in cuts])
        return [faces[end - len(each.boxes) : end] for end, each in zip(ends, cuts)]

    def _placed(self, points: np.ndarray, part: np.ndarray) -> np.ndarray:
        """Move landmarks from a cut-out face's pixels to the picture's."""
        scale = (part[2:] - part[:2]) / self._runtime.image_width
        return ((points + 0.5) * scale - 0.5 + part[:2]).astype(np.float32)


def marks(faces: Sequence[Face]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the boxes [F, 4] and the landmarks [F, 68, 2], or None, as they are drawn."""
    boxes = np.array([face.box for face in faces]).reshape(-1, 4)
    points = [face.landmarks for face in faces if face.landmarks is not None]
    return boxes, np.array(points) if points else None


def _check(image: np.ndarray) -> None:
    shape = getattr(image, "shape", None)
    fine = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size
    if not fine or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
        if image is None:
            raise DataError("None is no picture; cv2.imread gives it for what it cannot read")
        kind = getattr(image, "dtype", type(image).__name__)
        raise DataError(
            f"a picture is uint8 [H, W] or [H, W, 3] in RGB, and this is {kind} {shape}"
        )


def _planes(face: np.ndarray, channels: int) -> np.ndarray:
    """Return a face [W, W] or [W, W, 3] as [channels, W, W]."""
    if channels == 1:
        return (face if face.ndim == 2 else cv2.cvtColor(face, cv2.COLOR_RGB2GRAY))[None]
    return (
        np.broadcast_to(face[None], (3, *face.shape)) if face.ndim == 2 else face.transpose(2, 0, 1)
    )
