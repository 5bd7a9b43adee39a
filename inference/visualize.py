"""Annotated images: a box, a caption and landmarks for each face.

They are drawn with OpenCV. torchvision.utils needs PyTorch, and predict.py runs an .onnx file
without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from inference.predictor import Face

BLUE, RED, WHITE = (33, 102, 172), (214, 96, 77), (255, 255, 255)  # RGB, as in the figures
FONT = cv2.FONT_HERSHEY_DUPLEX
CAPTION_HEIGHT = 0.25  # as a fraction of the box's width
SUBPIXEL_BITS = 4  # fractional bits of the coordinates of landmarks


def annotate(image: np.ndarray, faces: Iterable[Face], captions: Sequence[str]) -> np.ndarray:
    """Return a copy of an image with annotated faces. Lines and text scale with the boxes."""
    image, one = image.copy(), 1 << SUBPIXEL_BITS
    for face, caption in zip(faces, captions):
        left, top, right, bottom = np.round(face.box).astype(int).tolist()
        size = right - left
        thickness = max(1, round(size / 120))
        cv2.rectangle(image, (left, top), (right, bottom), BLUE, thickness, cv2.LINE_AA)
        if face.landmarks is not None:
            radius = round(one * max(0.8, size / 85))
            for center in np.round(one * face.landmarks).astype(int).tolist():
                cv2.circle(image, center, radius, RED, cv2.FILLED, cv2.LINE_AA, SUBPIXEL_BITS)
        _draw_caption(image, caption, (left, top, right, bottom))
    return image


def annotate_resized(
    image: np.ndarray, faces: Sequence[Face], sides: tuple[int, int], first_number: int = 0
) -> np.ndarray:
    """Resize an image and annotate its faces, with numbers if there are several.

    A white band is added on top if a caption would otherwise hide its face.

    Args:
        image: uint8 [H, W, 3] in RGB.
        faces: Its faces.
        sides: Smallest and largest longer side of the result in pixels.
        first_number: Number of the first face.
    """
    scale = np.clip(1.0, *(side / max(image.shape[:2]) for side in sides))
    if scale != 1:  # cv2.resize would copy an image of the right size
        size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, size, interpolation=interpolation)
    boxes = scale * np.array([face.box for face in faces]).reshape(-1, 4)
    heights = np.maximum(CAPTION_HEIGHT * (boxes[:, 2] - boxes[:, 0]), 20)
    band = int(np.ceil(np.max(heights - boxes[:, 1], initial=0)))
    if band:
        image = cv2.copyMakeBorder(image, band, 0, 0, 0, cv2.BORDER_CONSTANT, value=WHITE)
    moved, captions = [], []
    for number, (face, box) in enumerate(zip(faces, boxes), first_number):
        landmarks = face.landmarks
        if landmarks is not None:
            landmarks = (landmarks + 0.5) * scale - 0.5 + (0, band)
        moved.append(face._replace(box=box + (0, band, 0, band), landmarks=landmarks))
        captions.append(f"{number}: {face.caption}" if len(faces) > 1 else face.caption)
    return annotate(image, moved, captions)


def _draw_caption(image: np.ndarray, text: str, box: tuple[int, int, int, int]) -> None:
    """Draw a text above a box, else below it, else smaller at the bottom within it."""
    left, top, right, bottom = box
    height, width = image.shape[:2]
    scale = min(max((right - left) / 220, 0.35), 3.0)
    for max_height in (height, height / 8):  # within the box the caption hides little of the face
        scale = _fit_scale(text, scale, width, max_height)
        thickness = max(1, round(scale * 1.2))
        (text_width, text_height), baseline = cv2.getTextSize(text, FONT, scale, thickness)
        padding = max(2, round(text_height / 3))
        total = text_height + baseline + 2 * padding
        if top >= total or bottom + total <= height:
            break
    y = top - total if top >= total else min(bottom, height - total)
    x = max(0, min(left, width - text_width - 2 * padding))
    cv2.rectangle(image, (x, y), (x + text_width + 2 * padding, y + total), BLUE, cv2.FILLED)
    origin = x + padding, y + padding + text_height
    cv2.putText(image, text, origin, FONT, scale, WHITE, thickness, cv2.LINE_AA)


def _fit_scale(text: str, scale: float, max_width: float, max_height: float) -> float:
    thickness = max(1, round(scale * 1.2))
    (width, height), baseline = cv2.getTextSize(text, FONT, scale, thickness)
    return scale * min(1.0, max_width / (width + height), max_height / (2 * height + baseline))
