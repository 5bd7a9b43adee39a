"""FacePredictor: faces in images and their expressions, as a library.

from inference.predictor import FacePredictor

predictor = FacePredictor("model_save/resnet18_ferplus.pth")
for face in predictor(image):
    print(face.expression, face.box)
"""

import math
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

import numpy as np

from inference.align import (
    MAX_SHIFT,
    MAX_VIEWS,
    NUM_ALIGNMENTS,
    align,
    box_matrix,
    crop_aligned,
    jitter,
    landmark_shifts,
    stack_crops,
    transform,
)
from inference.detector import (
    DETECTION_SIZE,
    MIN_FACE_SIZE,
    MIN_SCORE,
    crop,
    detect_faces,
    expand_boxes,
    load_centerface,
)
from inference.explain import explain_face
from inference.face import Face, FaceCrops
from inference.runtime import load_runtime
from utils.errors import DataError, OptionError
from utils.predictions import Predictions
from utils.run_folder import FERPLUS_WEIGHTS


class FacePredictor:
    """Detects faces in images, and predicts their expressions and landmarks.

    `detect` crops the faces of an image. `predict` predicts the crops, aligns them twice with the
    predicted landmarks, leaves out false detections, and averages over `views`.

    On a CPU, PyTorch weights make glibc keep up to 1 GiB of freed memory for the next batch.

    Args:
        model_path: Weights of this project, of RainbowRui's, or an .onnx file.
        cropped: Each image is one tightly cropped face.
        detector: "dlib", or the path of a CenterFace .onnx file.
        detection_size: As in `inference.detector.detect_faces`.
        min_score: Minimum score of a detected face.
        views: Crops per face, aligned with the predicted landmarks, over which the probabilities
            are averaged. With 0, the prediction is that of the detector's crop. -1 is 1, and 0 if
            `cropped`.
        max_shift: A detection is left out if its landmarks move by more than this in the last
            alignment (root mean square, in widths of the crop), because most such detections are no
            faces. No effect with `cropped` or with 0 views.
        explain: Explain the predicted class, or the class of this name.
        batch_size: Faces per step of the network.
        threads: CPU threads (of the whole process, for a .pth file); 0 is one per idle core.
        gpu_ids: As in train.py.

    Attributes:
        class_names: Names of the probabilities.
        runtime: The network.

    Raises:
        WeightsError: The weights or the detector cannot be loaded.
        OptionError: There is no such GPU, or a value is out of range.
    """

    def __init__(
        self,
        model_path: str | Path = FERPLUS_WEIGHTS,
        *,
        cropped: bool = False,
        detector: str = "dlib",
        detection_size: int = DETECTION_SIZE,
        min_score: float = MIN_SCORE,
        views: int = -1,
        max_shift: float = MAX_SHIFT,
        explain: bool | str = False,
        batch_size: int = 64,
        threads: int = 0,
        gpu_ids: str = "",
    ) -> None:
        limits = {"batch_size": (batch_size, 1), "threads": (threads, 0), "views": (views, -1)}
        limits["detection_size"] = (detection_size, MIN_FACE_SIZE)
        for name, (value, minimum) in limits.items():
            if not isinstance(value, Integral) or value < minimum:
                raise OptionError(f"{name} {value} must be a whole number of at least {minimum}")
        if views > MAX_VIEWS:
            raise OptionError(f"views {views} must be at most {MAX_VIEWS}")
        if not math.isfinite(min_score):
            raise OptionError(f"min_score {min_score} must be a finite number")
        if not max_shift >= 0:
            raise OptionError(f"max_shift {max_shift} must be 0 or more; inf keeps all detections")
        self.runtime = load_runtime(model_path, str(gpu_ids), threads)
        self.class_names = self.runtime.class_names
        self.detector = str(detector)
        if self.detector != "dlib" and not cropped:
            load_centerface(self.detector)  # an invalid file is an error here
        self.cropped, self.detection_size, self.min_score = cropped, detection_size, min_score
        self.batch_size, self.max_shift = batch_size, math.inf if cropped else max_shift
        self.views = (0 if cropped else 1) if views < 0 else views
        self.explain = explain

    @property
    def explain(self) -> bool | str:
        """Whether to explain the predicted class, or the class to explain."""
        return self._explain

    @explain.setter
    def explain(self, value: bool | str) -> None:
        if isinstance(value, str) and value not in self.class_names:
            names = ", ".join(self.class_names)
            raise OptionError(f"explain '{value}' is not a class of the weights: {names}")
        self._explain = value

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

    def detect(self, image: np.ndarray) -> FaceCrops:
        """Detect and crop the faces of an image. Several threads may call it at once."""
        _check_image(image)
        if self.cropped:
            boxes, scores = np.array([[0, 0, *image.shape[1::-1]]], np.float32), None
            crop_boxes = boxes.astype(int)
        else:
            options = self.detection_size, self.min_score, self.detector
            boxes, scores = detect_faces(image, *options)
            crop_boxes = expand_boxes(boxes)
        width = self.runtime.image_width
        matrices = np.array([box_matrix(box, width) for box in crop_boxes]).reshape(-1, 2, 3)
        crops = [crop(image, box, width) for box in crop_boxes]
        pixels = stack_crops(crops, width, self.runtime.channels)
        return FaceCrops(boxes, scores, matrices, pixels, image)

    def predict(self, crops: Sequence[FaceCrops]) -> list[list[Face]]:
        """Predict the faces of several images, in batches that combine them."""
        if not any(len(image_crops.boxes) for image_crops in crops):
            return [[] for _ in crops]
        matrices, predictions, shifts = self.predict_aligned(crops)
        results, row = [], 0
        for image_crops in crops:
            faces = []
            for i, box in enumerate(image_crops.boxes):
                if shifts[row] <= self.max_shift:
                    score = None if image_crops.scores is None else float(image_crops.scores[i])
                    faces.append(self._face(box, score, matrices[row], predictions, row))
                row += 1
            results.append(faces)
        return results

    def predict_aligned(
        self, crops: Sequence[FaceCrops]
    ) -> tuple[np.ndarray, Predictions, np.ndarray]:
        """Return the matrices, predictions and landmark shifts of the F > 0 faces of all images.

        The matrices [F, 2, 3] are those of the aligned crops, or of the detector's with 0 views.
        The shifts [F] are those of `landmark_shifts` in the last alignment, infinite if it failed,
        and 0 without alignment.
        """
        matrices = np.concatenate([image_crops.matrices for image_crops in crops])
        predictions = self._run(np.concatenate([image_crops.pixels for image_crops in crops]))
        shifts = np.zeros(len(matrices))
        if not self.views:
            return matrices, predictions, shifts
        images = [image_crops.image for image_crops in crops for _ in image_crops.boxes]
        width, mean_face = self.runtime.image_width, self.runtime.mean_face
        for _ in range(0 if predictions.landmarks is None else NUM_ALIGNMENTS):
            last = matrices, predictions.landmarks
            aligned = [align(m, points, mean_face) for m, points in zip(*last)]
            is_face = [matrix is not None for matrix in aligned]
            matrices = np.stack([m if new is None else new for m, new in zip(matrices, aligned)])
            predictions = self._run(self._crop(images, matrices))
            shifts = landmark_shifts(last, (matrices, predictions.landmarks), width)
            shifts = np.where(is_face, shifts, math.inf)
        probabilities = [predictions.probabilities]
        for view in range(1, self.views):
            moved = [jitter(matrix, width, view) for matrix in matrices]
            probabilities.append(self._run(self._crop(images, moved)).probabilities)
        return matrices, predictions._replace(probabilities=np.mean(probabilities, axis=0)), shifts

    def _crop(self, images: Sequence[np.ndarray], matrices: Sequence[np.ndarray]) -> np.ndarray:
        """Return the crops of matrices, one of each image, as uint8 [F, C, W, W]."""
        width = self.runtime.image_width
        crops = [crop_aligned(image, m, width) for image, m in zip(images, matrices)]
        return stack_crops(crops, width, self.runtime.channels)

    def _run(self, pixels: np.ndarray) -> Predictions:
        """Predict uint8 [N, C, W, W] in batches."""
        return self.runtime.predict(pixels, self.batch_size, bool(self.explain))

    def _face(
        self,
        box: np.ndarray,
        score: float | None,
        matrix: np.ndarray,
        predictions: Predictions,
        row: int,
    ) -> Face:
        """Return a face whose prediction is a row of `predictions`."""
        probabilities, landmarks = predictions.probabilities[row], None
        if predictions.landmarks is not None:
            landmarks = transform(matrix, predictions.landmarks[row]).astype(np.float32)
        expression, explanation = self.class_names[int(probabilities.argmax())], None
        if self.explain:
            name = self.explain if isinstance(self.explain, str) else expression
            index, width = self.class_names.index(name), self.runtime.image_width
            explanation = explain_face(name, index, predictions, row, matrix, width)
        return Face(
            box=box,
            score=score,
            expression=expression,
            probabilities=probabilities,
            importance=float(predictions.importance[row]),
            landmarks=landmarks,
            unsure_below=self.runtime.unsure_below,
            explanation=explanation,
        )


def _check_image(image: np.ndarray) -> None:
    if image is None:
        raise DataError("None is not an image; cv2.imread returns it for an unreadable file")
    is_uint8 = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size
    if not is_uint8 or (image.ndim != 2 and image.shape[2:] != (3,)):
        kind, shape = getattr(image, "dtype", type(image).__name__), getattr(image, "shape", "")
        raise DataError(f"an image must be uint8 [H, W] or [H, W, 3] in RGB, got {kind} {shape}")
