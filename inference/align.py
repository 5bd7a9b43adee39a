"""Crops aligned with landmarks. A 2 x 3 matrix maps pixels of a crop to pixels of its image."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from data.dataset import resize_image

# Scale, shift in x and y as fractions of the width, and rotation in degrees of each further view.
JITTER = (
    *((0.95, 0.0, 0.0, 0.0), (1.05, 0.0, 0.0, 0.0), (1.0, 0.03, 0.0, 4.0), (1.0, -0.03, 0.0, -4.0)),
    *((1.0, 0.0, 0.03, -4.0), (1.0, 0.0, -0.03, 4.0), (1.05, 0.03, 0.03, 0.0)),
)
MAX_SCALE_CHANGE = 2.0
MAX_SHIFT = 0.025  # widths of the crop; docs/inference.md has the shares of other values
MAX_VIEWS = 1 + len(JITTER)
NUM_ALIGNMENTS = 2  # each with the landmarks of the crop before; one is too few for rotated faces


def box_matrix(box: np.ndarray, width: int) -> np.ndarray:
    """Return the matrix of a crop of width x width pixels of a box [4]."""
    corner, opposite = np.reshape(box, (2, 2)).astype(float)
    scale = (opposite - corner) / width
    return np.column_stack([np.diag(scale), corner + scale / 2 - 0.5])


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points [..., 2] from a crop to its image."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def fit_similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the matrix of the similarity transform that maps points [N, 2] to others best.

    It has scale, rotation and translation, and minimizes the squared distances. Points are complex
    numbers x + iy here, so that scale and rotation are one factor.
    """
    mean, target_mean = source.mean(0), target.mean(0)
    z, w = ((points @ (1, 1j)) for points in (source - mean, target - target_mean))
    factor = np.vdot(z, w) / (np.vdot(z, z).real or 1.0)
    linear = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([linear, target_mean - linear @ mean])


def align(matrix: np.ndarray, landmarks: np.ndarray, mean_face: np.ndarray) -> np.ndarray | None:
    """Return the matrix of a crop in which the landmarks of another crop are at the mean face.

    None if they would change the scale more than MAX_SCALE_CHANGE times: there is no face. The
    matrix is that of the other crop, and landmarks and mean face are [L, 2] in pixels of the crops.
    """
    change = fit_similarity(mean_face, landmarks)
    scale = math.sqrt(np.linalg.det(change[:, :2]))
    is_valid = 1 / MAX_SCALE_CHANGE <= scale <= MAX_SCALE_CHANGE
    return compose(matrix, change) if is_valid else None


def landmark_shifts(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], width: int
) -> np.ndarray:
    """Return the root mean square distances [F] of the landmarks of two passes, in crop widths.

    A pass has matrices [F, 2, 3] and landmarks [F, 68, 2] in pixels of crops of this width. Where
    there is no face, the network's landmarks follow the crop instead of the image.
    """
    distances = [
        np.sqrt(np.square(transform(m2, l2) - transform(m1, l1)).sum(1).mean())
        for m1, l1, m2, l2 in zip(*first, *second)
    ]
    scales = np.sqrt(np.abs(np.linalg.det(first[0][:, :, :2])))
    return np.array(distances) / (width * scales)


def jitter(matrix: np.ndarray, width: int, view: int) -> np.ndarray:
    """Return the matrix of another view of a crop; view 0 is the crop itself."""
    if not view:
        return matrix
    scale, x, y, degrees = JITTER[view - 1]
    center = (width - 1) / 2
    change = cv2.getRotationMatrix2D((center, center), degrees, scale)
    change[:, 2] += np.array([x, y]) * width
    return compose(matrix, change)


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Return the matrix that applies `inner` and then `outer`."""
    return np.column_stack([outer[:, :2] @ inner[:, :2], transform(outer, inner[:, 2])])


def crop_aligned(image: np.ndarray, matrix: np.ndarray, width: int) -> np.ndarray:
    """Return the crop of a matrix, antialiased; border pixels are repeated beyond the image."""
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    k = max(1, min(math.ceil(scale), 1024 // width))  # samples per pixel and axis
    finer = compose(matrix, box_matrix(np.array([0, 0, width, width]), k * width))
    flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_LINEAR if scale > 1 else cv2.INTER_CUBIC)
    crop = cv2.warpAffine(
        image, finer, (k * width, k * width), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return resize_image(crop, width)


def stack_crops(crops: Sequence[np.ndarray], width: int, channels: int) -> np.ndarray:
    """Return crops [W, W], or [W, W, 3] in RGB, as uint8 [F, channels, W, W]."""
    pixels = np.empty((len(crops), channels, width, width), np.uint8)
    for i, crop in enumerate(crops):
        is_rgb = channels == 1 and crop.ndim == 3
        face = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY) if is_rgb else crop
        pixels[i] = face if face.ndim == 2 else face.transpose(2, 0, 1)
    return pixels
