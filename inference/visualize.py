"""Annotated images: a box, a caption and landmarks for each face.

They are drawn with OpenCV. torchvision.utils needs PyTorch, and predict.py runs an .onnx file
without it.
"""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from inference.align import box_matrix, compose, crop_aligned, transform
from inference.face import Face

BLUE, RED, WHITE = (33, 102, 172), (214, 96, 77), (255, 255, 255)  # RGB, as in the figures
FONT = cv2.FONT_HERSHEY_DUPLEX
CAPTION_HEIGHT = 0.25  # as a fraction of the box's width
HEAT_OPACITY = 0.85
PANEL = 400  # pixels, the width of a face in a figure
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
        if caption:
            _draw_caption(image, caption, (left, top, right, bottom))
    return image


def draw_heat_maps(image: np.ndarray, faces: Iterable[Face]) -> np.ndarray:
    """Return a copy of an image [H, W, 3] with the activation maps of explained faces.

    Red raises the logit of the explained class and blue lowers it. The crops are in grayscale.
    """
    image = image.copy()
    for explanation in (face.explanation for face in faces if face.explanation):
        heat, cells = explanation.map, len(explanation.map)
        side = 16 * cells
        relative = heat / max(np.abs(heat).max(), 1e-9)
        fine = cv2.resize(relative, (side, side), interpolation=cv2.INTER_CUBIC)
        matrix = compose(explanation.matrix, box_matrix(np.array([0, 0, cells, cells]), side))
        corners = transform(matrix, np.array([(-1, -1), (side, -1), (side, side), (-1, side)]))
        left, top = np.maximum(np.floor(corners.min(0)), 0).astype(int)
        right, bottom = np.maximum(np.ceil(corners.max(0)) + 1, 0).astype(int)
        region = image[top:bottom, left:right]
        if not region.size:
            continue
        size = region.shape[1::-1]
        matrix[:, 2] -= left, top
        is_inside = cv2.warpAffine(np.ones_like(fine), matrix, size)[..., None] > 0.5
        value = cv2.warpAffine(fine, matrix, size, borderMode=cv2.BORDER_REPLICATE)[..., None]
        opacity = HEAT_OPACITY * np.abs(value).clip(0, 1)
        color = np.where(value > 0, np.float32(RED), np.float32(BLUE))
        gray = cv2.cvtColor(region, cv2.COLOR_RGB2GRAY)[..., None]
        drawn = np.round(gray * (1 - opacity) + color * opacity).astype(np.uint8)
        region[:] = np.where(is_inside, drawn, region)
    return image


def face_panels(image: np.ndarray, face: Face) -> tuple[np.ndarray, np.ndarray]:
    """Return an explained face annotated, and the same with its activation map.

    Both are uint8 [PANEL, PANEL, 3].
    """
    cells, matrix = len(face.explanation.map), face.explanation.matrix
    center = transform(matrix, np.full(2, (cells - 1) / 2))
    radius = 0.6 * cells * np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    region = np.concatenate([center - radius, center + radius]) + 0.5
    panel = crop_aligned(image, box_matrix(region, PANEL), PANEL)
    if panel.ndim == 2:
        panel = cv2.cvtColor(panel, cv2.COLOR_GRAY2RGB)
    to_panel = cv2.invertAffineTransform(box_matrix(region, PANEL))
    scale = PANEL / (2 * radius)
    moved = face._replace(
        box=(face.box - np.tile(region[:2], 2)) * scale,
        landmarks=None if face.landmarks is None else transform(to_panel, face.landmarks),
        explanation=face.explanation._replace(matrix=compose(to_panel, matrix)),
    )
    return annotate(panel, [moved], [""]), draw_heat_maps(panel, [moved])


def annotate_resized(
    image: np.ndarray, faces: Sequence[Face], sides: tuple[int, int], first_number: int = 0
) -> np.ndarray:
    """Resize an image, uint8 [H, W, 3] in RGB, and annotate its faces.

    Several faces have numbers, from `first_number`. A white band is added on top if a caption would
    otherwise hide its face. `sides` are the smallest and largest longer side of the result in
    pixels.
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
