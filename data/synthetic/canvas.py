"""The canvas of a synthetic face, and a simulated low-quality camera. Independent of faces."""

from functools import lru_cache

import cv2
import numpy as np

WIDTH = 48  # pixels of the final image, as in FER2013
ZOOM = 3  # the canvas is larger by this factor, and averaged at the end
SIDE = ZOOM * WIDTH  # pixels of the canvas
CIRCLE = np.stack([f(np.arange(24) * np.pi / 12) for f in (np.cos, np.sin)], axis=1)
ROUNDED_SQUARE = np.sign(CIRCLE) * np.abs(CIRCLE) ** 0.7


class Canvas:
    """A grayscale picture on a random background.

    Shapes are paths [n, 2] of points (x, y), or several of them [k, n, 2]. Points and line widths
    are in units of `unit` pixels of the final image; blurs are standard deviations in its pixels.
    The attribute `pixels` is float32 [SIDE, SIDE], 0 for black to 1 for white.
    """

    def __init__(self, unit: float, rng: np.random.Generator) -> None:
        self.unit, self.rng = unit, rng
        # The background is a random tone with a gradient and smooth noise.
        x = np.linspace(-0.5, 0.5, SIDE, dtype=np.float32)
        slope = rng.normal(0, 0.2, 2).astype(np.float32)
        noise = np.float32(rng.choice([0.03, 0.12, 0.25])) * self.texture(*rng.integers(3, 9, 2))
        tone = np.float32(rng.uniform(0.02, 0.98))
        self.pixels = np.clip(tone + slope[0] * x + slope[1] * x[:, None] + noise, 0, 1)

    def texture(self, columns: int, rows: int) -> np.ndarray:
        """Return smooth noise on a grid, about -1 to 1, in the shape of `pixels`."""
        return enlarge(self.rng.uniform(-1, 1, (rows, columns)).astype(np.float32))

    def paint(
        self,
        shape: np.ndarray,
        tone: float | np.ndarray,
        opacity: float = 1.0,
        *,
        width: float = 0.0,
        blur: float = 0.0,
        mask: np.ndarray | None = None,
    ) -> None:
        """Paint polygons, or lines of a width, in one tone or in tones of the shape of `pixels`.

        The opacity is 0 to 1; `mask` is a factor on it, in the shape of `pixels`.
        """
        if opacity < 0.04:  # invisible
            return
        window, coverage = self._rasterize(shape, width, blur)
        weight = coverage * np.float32(min(opacity, 1) / 255)
        if mask is not None:
            weight *= mask[window]
        pixels = self.pixels[window]
        pixels += ((tone[window] if isinstance(tone, np.ndarray) else tone) - pixels) * weight

    def mask(self, shape: np.ndarray, blur: float = 0.0) -> np.ndarray:
        """Return a mask in the shape of `pixels`: float32, 1 inside the polygons, 0 outside."""
        mask = np.zeros_like(self.pixels)
        window, coverage = self._rasterize(shape, 0, blur)
        mask[window] = coverage * np.float32(1 / 255)
        return mask

    def _rasterize(
        self, shape: np.ndarray, width: float, blur: float
    ) -> tuple[tuple[slice, slice], np.ndarray]:
        """Return the window of the canvas that contains a shape, and its coverage, uint8."""
        points = np.asarray(shape) * (self.unit * ZOOM) + (ZOOM - 1) / 2
        points = points.reshape(-1, *points.shape[-2:])  # [k, n, 2]
        line = max(1, round(width * self.unit * ZOOM)) if width else 0
        pad = 3 * blur * ZOOM + line + 2  # three standard deviations
        (x0, y0), (x1, y1) = points.min(axis=(0, 1)).tolist(), points.max(axis=(0, 1)).tolist()
        left, top = max(0, int(x0 - pad)), max(0, int(y0 - pad))
        right, bottom = min(SIDE, int(x1 + pad)), min(SIDE, int(y1 + pad))
        right, bottom = max(left, right), max(top, bottom)
        coverage = np.zeros((bottom - top, right - left), np.uint8)
        if coverage.size:  # otherwise the shape lies outside the canvas
            paths = list(np.rint((points - (left, top)) * 16).astype(np.int32))  # 4 fractional bits
            if line:
                cv2.polylines(coverage, paths, False, 255, line, cv2.LINE_AA, shift=4)
            else:
                cv2.fillPoly(coverage, paths, 255, cv2.LINE_AA, shift=4)
            if blur:
                coverage = cv2.GaussianBlur(coverage, (0, 0), blur * ZOOM)
        return np.s_[top:bottom, left:right], coverage

    def photograph(self) -> np.ndarray:
        """Return uint8 [WIDTH, WIDTH] with random contrast, blur, noise and JPEG artifacts."""
        rng = self.rng
        image = cv2.resize(self.pixels, (WIDTH, WIDTH), interpolation=cv2.INTER_AREA)
        image = np.clip(image, 0, 1) ** rng.uniform(0.7, 1.3)
        contrast = rng.uniform(0.2, 0.29) / max(image.std(), 0.05)
        image = (image - image.mean()) * contrast + np.clip(rng.normal(0.5, 0.1), 0.28, 0.75)
        if rng.random() < 0.5:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.25, 0.7))
        image = image * 255 + rng.normal(size=image.shape) * rng.uniform(0.5, 5)
        image = np.clip(np.round(image), 0, 255).astype(np.uint8)
        quality = int(rng.integers(50, 100))
        _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        return cv2.imdecode(content, cv2.IMREAD_GRAYSCALE)


def enlarge(picture: np.ndarray) -> np.ndarray:
    """Enlarge a float32 picture [h, w] smoothly to [SIDE, SIDE]."""
    return cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


def spline(points: np.ndarray, closed: bool = False) -> np.ndarray:
    """Return a smooth path [..., m, 2] through points [..., n, 2] (Catmull-Rom)."""
    return _spline_matrix(points.shape[-2], closed) @ points


@lru_cache
def _spline_matrix(n: int, closed: bool) -> np.ndarray:
    """Return the matrix [m, n] that maps n points to the m points of a path."""
    t = np.linspace(0, 1, 6)
    basis = [2 * t**2 - t**3 - t, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]
    rows = []
    for start in range(n if closed else n - 1):
        neighbors = np.arange(start - 1, start + 3)
        neighbors = neighbors % n if closed else neighbors.clip(0, n - 1)
        rows.append(np.stack(basis, axis=1) / 2 @ np.eye(n)[neighbors])
    return np.concatenate(rows)


def ellipse(
    center: np.ndarray, radii: float | list[float], outline: np.ndarray = CIRCLE
) -> np.ndarray:
    """Return ellipses [..., 24, 2] with centers [..., 2]; `outline` may be ROUNDED_SQUARE."""
    return center[..., None, :] + outline * radii
