"""Faces marked in a picture: a box, the expression, and the landmarks."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

BLUE, RED, WHITE = (33, 102, 172), (214, 96, 77), (255, 255, 255)  # RGB, as in the figures
FONT = cv2.FONT_HERSHEY_DUPLEX
CAPTION = 0.25  # the height of a caption, a share of its box's width


def annotate(
    image: np.ndarray,
    boxes: np.ndarray,
    landmarks: np.ndarray | None,
    captions: Sequence[str],
) -> np.ndarray:
    """Return a copy of an image with its faces marked; lines and letters go with their size.

    Args:
        image: uint8 [H, W, 3] in RGB.
        boxes: [F, 4]: left, top, right, bottom in pixels.
        landmarks: [F, 68, 2] in pixels, or None.
        captions: F texts.
    """
    image = image.copy()
    for i, (left, top, right, bottom) in enumerate(np.round(boxes).astype(int).tolist()):
        size = right - left
        line = max(1, round(size / 120))
        cv2.rectangle(image, (left, top), (right, bottom), BLUE, line, cv2.LINE_AA)
        if landmarks is not None:
            for x, y in landmarks[i]:
                # Four bits of fractions: landmarks are finer than pixels.
                centre = round(16 * float(x)), round(16 * float(y))
                radius = round(16 * max(0.8, size / 85))
                cv2.circle(image, centre, radius, RED, cv2.FILLED, cv2.LINE_AA, 4)
        _label(image, captions[i], (left, top, right, bottom))
    return image


def annotate_picture(
    image: np.ndarray,
    boxes: np.ndarray,
    landmarks: np.ndarray | None,
    captions: Sequence[str],
    sides: tuple[int, int],
) -> np.ndarray:
    """Mark faces as `annotate` does, in a picture whose size may change for it.

    A white band is added on top where a caption would otherwise hide its face.

    Args:
        image, boxes, landmarks, captions: as of `annotate`.
        sides: pixels between which the result's longer side is brought.
    """
    scale = np.clip(1.0, *(side / max(image.shape[:2]) for side in sides))
    if scale != 1:  # a large picture is copied no more than it must be
        size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, size, interpolation=how)
    boxes = boxes * scale
    heights = np.maximum(CAPTION * (boxes[:, 2] - boxes[:, 0]), 20)
    band = int(np.ceil(np.max(heights - boxes[:, 1], initial=0)))
    if band:
        image = cv2.copyMakeBorder(image, band, 0, 0, 0, cv2.BORDER_CONSTANT, value=WHITE)
    down = np.array([0, band])
    if landmarks is not None:
        landmarks = (landmarks + 0.5) * scale - 0.5 + down
    return annotate(image, boxes + np.tile(down, 2), landmarks, captions)


def _label(image: np.ndarray, text: str, box: tuple[int, int, int, int]) -> None:
    """Write a text over a box, under it where the picture ends above, or low within it, smaller."""
    left, top, right, bottom = box
    high, wide = image.shape[:2]
    scale = min(max((right - left) / 220, 0.35), 3.0)
    for most in (high, high / 8):  # pixels of height: within the box little of the face is hidden
        thickness = max(1, round(scale * 1.2))
        (width, height), below = cv2.getTextSize(text, FONT, scale, thickness)
        scale *= min(1.0, wide / (width + height), most / (2 * height + below))
        thickness = max(1, round(scale * 1.2))
        (width, height), below = cv2.getTextSize(text, FONT, scale, thickness)
        pad = max(2, round(height / 3))
        whole = height + below + 2 * pad
        if top >= whole or bottom + whole <= high:
            break
    start = top - whole if top >= whole else min(bottom, high - whole)
    left = max(0, min(left, wide - width - 2 * pad))
    cv2.rectangle(image, (left, start), (left + width + 2 * pad, start + whole), BLUE, cv2.FILLED)
    place = left + pad, start + pad + height
    cv2.putText(image, text, place, FONT, scale, WHITE, thickness, cv2.LINE_AA)
