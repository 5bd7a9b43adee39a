"""The frame of landmarks: pixels for people and files, half widths for the network.

In pixels, centres are whole numbers, so a face of width W spans -0.5 to W - 0.5.
In half widths from the face's centre it spans -1 to 1, whatever its size, as
`grid_sample` has it without align_corners. Both functions take arrays or tensors
whose last axis is x, y.
"""

from __future__ import annotations

from typing import TypeVar

Points = TypeVar("Points")  # a NumPy array or a tensor


def to_pixels(landmarks: Points, width: int) -> Points:
    """Turn half widths into pixels of a face `width` pixels wide."""
    return (landmarks + 1) * (width / 2) - 0.5


def to_half_widths(landmarks: Points, width: int) -> Points:
    """Turn pixels of a face `width` pixels wide into half widths."""
    return (landmarks + 0.5) / (width / 2) - 1
