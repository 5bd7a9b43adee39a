"""Coordinates of landmarks: pixels for people and files, normalized for the network.

In pixels, centers are whole numbers, so an image of width W spans -0.5 to W - 0.5. Normalized
coordinates span -1 to 1 for every width, as in `grid_sample` with align_corners=False. Both
functions take arrays or tensors whose last axis is x, y.
"""

from __future__ import annotations

from typing import TypeVar

Points = TypeVar("Points")  # a NumPy array or a tensor


def to_pixels(landmarks: Points, width: int) -> Points:
    """Convert normalized coordinates to pixels of an image of this width."""
    return (landmarks + 1) * (width / 2) - 0.5


def to_normalized(landmarks: Points, width: int) -> Points:
    """Convert pixels of an image of this width to normalized coordinates."""
    return (landmarks + 0.5) / (width / 2) - 1
