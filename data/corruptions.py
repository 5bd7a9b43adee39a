"""What befalls faces outside of a benchmark: cut out otherwise, turned, dark, noisy, small."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from data.dataset import resize_image

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # of one uint8 image


def corrupt(images: np.ndarray, name: str) -> np.ndarray:
    """Return the faces after one of CORRUPTIONS; the same ones at every call.

    Args:
        images: uint8 [N, W, W] or [N, W, W, 3].
        name: in CORRUPTIONS.
    """
    change, rng = CORRUPTIONS[name], np.random.default_rng(0)
    return np.stack([change(image, rng) for image in images]) if len(images) else images


def _zoom(share: float) -> Change:
    """Cut out this share of the face's side, more than 1 for a wider view."""
    return lambda image, _: _warp(image, 0, 1 / share)


def _turn(degrees: float) -> Change:
    return lambda image, _: _warp(image, degrees, 1)


def _warp(image: np.ndarray, degrees: float, scale: float) -> np.ndarray:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    how = {"flags": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_REPLICATE}
    return cv2.warpAffine(image, matrix, (width, height), **how)


def _gamma(exponent: float) -> Change:
    table = np.round(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
    return lambda image, _: table[image]


def _jpeg(quality: int) -> Change:
    def change(image: np.ndarray, _: np.random.Generator) -> np.ndarray:
        # OpenCV takes colours as blue, green and red.
        bgr = image[..., ::-1] if image.ndim == 3 else image
        _, code = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))
        changed = cv2.imdecode(code, cv2.IMREAD_UNCHANGED)
        return changed[..., ::-1] if image.ndim == 3 else changed

    return change


def _noise(deviation: float) -> Change:
    """Add Gaussian noise of so many grey levels."""

    def change(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noisy = image + rng.normal(0, deviation, image.shape)
        return np.clip(np.round(noisy), 0, 255).astype(np.uint8)

    return change


def _small(width: int) -> Change:
    """Take the face as one of so many pixels, enlarged as any other small one."""
    return lambda image, _: resize_image(resize_image(image, width), image.shape[0])


CORRUPTIONS: dict[str, Change] = {
    "crop 0.8": _zoom(0.8),
    "crop 1.25": _zoom(1.25),
    "rotation 20": _turn(20),
    "gamma 0.45": _gamma(0.45),
    "gamma 2.2": _gamma(2.2),
    "JPEG quality 30": _jpeg(30),
    "noise 15": _noise(15),
    "24 pixels": _small(24),
}
