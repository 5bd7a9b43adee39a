"""Coordinates of the 68 landmarks: pixels for people and files, normalized for the network.

In pixels, centers are whole numbers, so an image of width W spans -0.5 to W - 0.5. Normalized
coordinates span -1 to 1 for every width, as in `grid_sample` with align_corners=False. Both
functions take arrays or tensors whose last axis is x, y.
"""

from typing import TypeVar

import numpy as np

Points = TypeVar("Points")  # a NumPy array or a tensor
NUM_LANDMARKS = 68

# A horizontal flip swaps the 68 iBUG landmarks in pairs (jaw, brows, nose, eyes, mouth):
# landmarks[FLIP] with x -> W - 1 - x are the landmarks of the flipped image.
_JAW_BROWS_NOSE = np.r_[16:-1:-1, 26:16:-1, 27:31, 35:30:-1]
_EYES_MOUTH = np.r_[45:41:-1, 47, 46, 39:35:-1, 41, 40, 54:47:-1, 59:54:-1, 64:59:-1, 67:64:-1]
FLIP = np.concatenate([_JAW_BROWS_NOSE, _EYES_MOUTH]).astype(np.int64)


def to_pixels(landmarks: Points, width: int) -> Points:
    """Convert normalized coordinates to pixels of an image of this width."""
    return (landmarks + 1) * (width / 2) - 0.5


def to_normalized(landmarks: Points, width: int) -> Points:
    """Convert pixels of an image of this width to normalized coordinates."""
    return (landmarks + 0.5) / (width / 2) - 1
