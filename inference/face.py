"""A predicted face, and the crops of an image's faces."""

from typing import NamedTuple

import numpy as np

from inference.explain import Explanation


class Face(NamedTuple):
    """One face of an image."""

    box: np.ndarray  # float32 [4], (left, top, right, bottom) edges in pixels of the image
    score: float | None  # the detector's; None for an image that is one face
    expression: str  # the most probable class
    probabilities: np.ndarray  # float32 [C], in the order of FacePredictor.class_names
    importance: float  # SCN's, 0 to 1, by which the logits are multiplied
    landmarks: np.ndarray | None  # float32 [68, 2] in pixels of the image, iBUG order
    unsure_below: float = 0.0  # confidence below which at most half are right
    explanation: Explanation | None = None  # of a class, where it was asked for

    @property
    def confidence(self) -> float:
        """The probability of the expression, a better confidence measure than the importance."""
        return float(self.probabilities.max())

    @property
    def caption(self) -> str:
        """Expression and probability, such as "happy 89 %" or "unsure (sad 31 %)"."""
        text = f"{self.expression} {100 * self.confidence:.0f} %"
        return f"unsure ({text})" if self.confidence < self.unsure_below else text


class FaceCrops(NamedTuple):
    """The F faces of one image, cropped for the network."""

    boxes: np.ndarray  # float32 [F, 4], as in Face
    scores: np.ndarray | None  # float32 [F]
    matrices: np.ndarray  # float64 [F, 2, 3], from pixels of each crop to pixels of the image
    pixels: np.ndarray  # uint8 [F, C, W, W]
    image: np.ndarray  # uint8 [H, W] or [H, W, 3]
