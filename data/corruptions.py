"""Common corruptions of images, to measure robustness.

After Hendrycks and Dietterich (2019, arXiv:1903.12261), with other corruptions and one severity.
They are computed with OpenCV: torchvision's transforms round differently, so that the published
values would change.
"""

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from data.dataset import resize_image


def corrupt(images: np.ndarray, name: str) -> np.ndarray:
    """Return corrupted images. The same images give the same result at every call.

    Args:
        images: uint8 [N, W, W] or [N, W, W, 3].
        name: A key of CORRUPTIONS.
    """
    corruption, rng = CORRUPTIONS[name], np.random.default_rng(0)
    return np.stack([corruption(image, rng) for image in images]) if len(images) else images


def _warp(
    image: np.ndarray, _: np.random.Generator, scale: float = 1, degrees: float = 0
) -> np.ndarray:
    """Scale about the center, and rotate counterclockwise."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)


def _gamma(image: np.ndarray, _: np.random.Generator, exponent: float) -> np.ndarray:
    return np.round(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)[image]


def _jpeg(image: np.ndarray, _: np.random.Generator, quality: int) -> np.ndarray:
    order = np.s_[..., ::-1] if image.ndim == 3 else np.s_[:]  # OpenCV expects BGR
    _, content = cv2.imencode(".jpg", image[order], (cv2.IMWRITE_JPEG_QUALITY, quality))
    return cv2.imdecode(content, cv2.IMREAD_UNCHANGED)[order]


def _noise(image: np.ndarray, rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Add Gaussian noise with a standard deviation in gray levels."""
    noisy = image + rng.normal(0, deviation, image.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def _downscale(image: np.ndarray, _: np.random.Generator, width: int) -> np.ndarray:
    """Reduce the width to a number of pixels, and enlarge the image again."""
    return resize_image(resize_image(image, width), image.shape[0])


# Functions of one uint8 image and a random generator.
CORRUPTIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "zoom in (crop to 0.8 of the side)": partial(_warp, scale=1 / 0.8),
    "zoom out 1.25 × (the border is repeated)": partial(_warp, scale=1 / 1.25),
    "rotation by 20 degrees": partial(_warp, degrees=20),
    "gamma 0.45": partial(_gamma, exponent=0.45),
    "gamma 2.2": partial(_gamma, exponent=2.2),
    "JPEG quality 30": partial(_jpeg, quality=30),
    "noise of 15 gray levels": partial(_noise, deviation=15),
    "resized to 24 pixels and back": partial(_downscale, width=24),
}
