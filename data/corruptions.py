"""Common corruptions of images, to measure robustness.

After Hendrycks and Dietterich (2019, arXiv:1903.12261), with other corruptions and one severity.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from data.dataset import resize_image

Corruption = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # of one uint8 image


def corrupt(images: np.ndarray, name: str) -> np.ndarray:
    """Return corrupted images. The same images give the same result at every call.

    Args:
        images: uint8 [N, W, W] or [N, W, W, 3].
        name: A key of CORRUPTIONS.
    """
    corruption, rng = CORRUPTIONS[name], np.random.default_rng(0)
    return np.stack([corruption(image, rng) for image in images]) if len(images) else images


def _zoom(share: float) -> Corruption:
    """Crop to a share of the width; a share above 1 zooms out."""
    return lambda image, _: _warp(image, 0, 1 / share)


def _rotate(degrees: float) -> Corruption:
    """Rotate counterclockwise."""
    return lambda image, _: _warp(image, degrees, 1)


def _warp(image: np.ndarray, degrees: float, scale: float) -> np.ndarray:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    border = cv2.BORDER_REPLICATE
    return cv2.warpAffine(image, matrix, (width, height), borderMode=border)


def _gamma(exponent: float) -> Corruption:
    table = np.round(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
    return lambda image, _: table[image]


def _jpeg(quality: int) -> Corruption:
    def compress(image: np.ndarray, _: np.random.Generator) -> np.ndarray:
        # OpenCV expects colors in the order blue, green, red.
        bgr = image[..., ::-1] if image.ndim == 3 else image
        _, content = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))
        compressed = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
        return compressed[..., ::-1] if image.ndim == 3 else compressed

    return compress


def _noise(deviation: float) -> Corruption:
    """Add Gaussian noise with a standard deviation in gray levels."""

    def add_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noisy = image + rng.normal(0, deviation, image.shape)
        return np.clip(np.round(noisy), 0, 255).astype(np.uint8)

    return add_noise


def _downscale(width: int) -> Corruption:
    """Reduce the width to a number of pixels, and enlarge the image again."""
    return lambda image, _: resize_image(resize_image(image, width), image.shape[0])


CORRUPTIONS: dict[str, Corruption] = {
    "crop 0.8": _zoom(0.8),
    "crop 1.25": _zoom(1.25),
    "rotation 20": _rotate(20),
    "gamma 0.45": _gamma(0.45),
    "gamma 2.2": _gamma(2.2),
    "JPEG quality 30": _jpeg(30),
    "noise 15": _noise(15),
    "24 pixels": _downscale(24),
}
