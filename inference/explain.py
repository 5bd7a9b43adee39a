"""Explanations: signed contributions of facial parts to a logit, and a heat map of a face."""

from typing import Any, NamedTuple

import cv2
import numpy as np

from inference.align import box_matrix, compose
from utils.predictions import Predictions

# Landmarks of each part, in iBUG order.
PARTS = {"brows": (17, 27), "eyes": (36, 48), "nose": (27, 36), "mouth": (48, 68), "jaw": (0, 17)}
BACKGROUND = "background"
FACE_DISTANCE = 1 / 12  # from the landmarks to the background, in widths of the image


class Explanation(NamedTuple):
    """A class's logit as a sum: bias plus the contributions of all parts."""

    expression: str  # the class
    logit: float  # weighted by the importance
    bias: float
    parts: dict[str, float]  # contributions; positive ones raise the logit
    map: np.ndarray  # float32 [w, w], the contribution of each cell of the crop, times w * w
    matrix: np.ndarray  # float64 [2, 3], from cells of the map to pixels of the image

    def record(self) -> dict[str, Any]:
        """Return plain values, as in predictions.json."""
        parts = {name: round(value, 6) for name, value in self.parts.items()}
        values = {"logit": round(self.logit, 6), "bias": round(self.bias, 6)}
        return {"class": self.expression, **values, "parts": parts}


def explain_face(
    name: str, index: int, predictions: Predictions, row: int, matrix: np.ndarray, width: int
) -> Explanation:
    """Return the explanation of a class (its name and index) for a row of predictions.

    `matrix` maps the crop's pixels, `width` along each axis, to the image.
    """
    heat = predictions.maps[row, index]
    landmarks = None if predictions.landmarks is None else predictions.landmarks[row]
    logit, bias = (float(values[row, index]) for values in (predictions.logits, predictions.bias))
    parts = split_by_part(heat, landmarks, width)
    to_image = compose(matrix, box_matrix(np.array([0, 0, width, width]), len(heat)))
    return Explanation(name, logit, bias, parts, heat, to_image)


def split_by_part(heat: np.ndarray, landmarks: np.ndarray | None, width: int) -> dict[str, float]:
    """Split the mean of a map [w, w] into the contributions of facial parts.

    A cell contributes to each part in proportion to the area that they share. The image belongs as
    a whole to the background if there are no landmarks.
    """
    shares = part_shares(landmarks, width, len(heat))
    return dict(zip([*PARTS, BACKGROUND], (shares * heat).mean((1, 2)).tolist()))


def part_shares(landmarks: np.ndarray | None, width: int, cells: int) -> np.ndarray:
    """Return the fraction of each cell that each part and the background covers.

    A pixel belongs to the part of its nearest landmark if it lies within the convex hull of the
    landmarks or close to one of them, else to the background. The landmarks [68, 2] are in pixels
    of the crop, and the result is float64 [parts + 1, cells, cells], with a sum of 1 in each cell.
    """
    side = cells * max(1, round(width / cells))  # pixels, a multiple of the cells
    part = np.full((side, side), len(PARTS))
    if landmarks is not None:
        points = (landmarks + 0.5) * (side / width) - 0.5
        y, x = np.mgrid[:side, :side]
        distances = np.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1])
        hull = cv2.convexHull(np.round(points).astype(np.int32))
        is_face = cv2.fillConvexPoly(np.zeros((side, side), np.uint8), hull, 1) > 0
        is_face |= distances.min(2) < FACE_DISTANCE * side
        owner = np.empty(len(landmarks), int)
        for i, (first, last) in enumerate(PARTS.values()):
            owner[first:last] = i
        part = np.where(is_face, owner[distances.argmin(2)], part)
    masks = part == np.arange(len(PARTS) + 1)[:, None, None]
    step = side // cells
    return masks.reshape(-1, cells, step, cells, step).mean((2, 4))
