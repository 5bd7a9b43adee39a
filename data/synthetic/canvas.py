"""The surface a synthetic face is painted on, and the poor camera that photographs it.

Nothing here knows of faces: `data.synthetic.portrait` says what is painted.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

WIDTH = 48  # pixels of a photograph, FER2013's own
ZOOM = 3  # it is painted at ZOOM x WIDTH and shrunk by area, which softens every edge
SIDE = ZOOM * WIDTH  # pixels of the canvas
CIRCLE = np.stack([f(np.arange(24) * np.pi / 12) for f in (np.cos, np.sin)], axis=1)
SQUARISH = np.sign(CIRCLE) * np.abs(CIRCLE) ** 0.7  # between a circle and a square


class Canvas:
    """A picture over a random background: `pixels`, float32 [SIDE, SIDE], 0 black to 1 white.

    Points and widths are in a unit of `unit` pixels of the photograph, blurs (a Gaussian's
    deviation) in its pixels. A shape is a path [n, 2] of (x, y) or several [k, n, 2], so
    that both eyes are one shape.
    """

    def __init__(self, unit: float, rng: np.random.Generator):
        self.unit, self.rng = unit, rng
        self.pixels = self._background()

    def _background(self) -> np.ndarray:
        """Return an empty picture: a tone, a slope of light, and more or less clutter."""
        rng, x = self.rng, np.linspace(-0.5, 0.5, SIDE, dtype=np.float32)
        slope = rng.normal(0, 0.2, 2).astype(np.float32)
        clutter = np.float32(rng.choice([0.03, 0.12, 0.25])) * self.texture(*rng.integers(3, 9, 2))
        tone = np.float32(rng.uniform(0.02, 0.98))
        return np.clip(tone + slope[0] * x + slope[1] * x[:, None] + clutter, 0, 1)

    def texture(self, columns: int, rows: int) -> np.ndarray:
        """Return smooth noise, about -1 to 1, of so many blots each way; like `pixels`."""
        return enlarged(self.rng.uniform(-1, 1, (rows, columns)).astype(np.float32))

    def lay(self, shape, tone, opacity=1.0, *, width=0.0, blur=0.0, inside=None) -> None:
        """Lay a tone over polygons, or along open paths.

        Args:
            shape: [n, 2] or [k, n, 2] in the unit.
            tone: 0 black to 1 white, or a picture of tones like `pixels`.
            opacity: 0 leaves what is there, 1 (or more) covers it.
            width: of the pen that follows the paths, in the unit; 0 fills polygons.
            blur: of the edge, in pixels of the photograph.
            inside: a mask like `pixels`, 0 where nothing may be laid.
        """
        if opacity < 0.04:  # nobody would see it
            return
        window, cover = self._stencil(shape, width, blur)
        weight = cover * np.float32(min(opacity, 1) / 255)
        if inside is not None:
            weight *= inside[window]
        below = self.pixels[window]
        below += ((tone[window] if isinstance(tone, np.ndarray) else tone) - below) * weight

    def mask(self, shape, blur=0.0) -> np.ndarray:
        """Return a float32 picture like `pixels`, 1 inside the polygons; arguments as in `lay`."""
        mask = np.zeros_like(self.pixels)
        window, cover = self._stencil(shape, 0, blur)
        mask[window] = cover * np.float32(1 / 255)
        return mask

    def _stencil(self, shape, width, blur) -> tuple[tuple[slice, slice], np.ndarray]:
        """Draw a shape in a small window of the canvas: the window, uint8 255 where it covers."""
        points = np.asarray(shape) * (self.unit * ZOOM) + (ZOOM - 1) / 2
        points = points.reshape(-1, *points.shape[-2:])  # [k, n, 2]
        pen = max(1, round(width * self.unit * ZOOM)) if width else 0
        pad = 3 * blur * ZOOM + pen + 2  # a Gaussian ends at three deviations
        (x0, y0), (x1, y1) = points.min(axis=(0, 1)).tolist(), points.max(axis=(0, 1)).tolist()
        left, top = max(0, int(x0 - pad)), max(0, int(y0 - pad))
        right, bottom = min(SIDE, int(x1 + pad)), min(SIDE, int(y1 + pad))
        right, bottom = max(left, right), max(top, bottom)
        cover = np.zeros((bottom - top, right - left), np.uint8)
        if cover.size:  # else it lies outside the canvas
            paths = list(np.rint((points - (left, top)) * 16).astype(np.int32))  # 4 bits of a pixel
            if pen:
                cv2.polylines(cover, paths, False, 255, pen, cv2.LINE_AA, shift=4)
            else:
                cv2.fillPoly(cover, paths, 255, cv2.LINE_AA, shift=4)
            if blur:
                cover = cv2.GaussianBlur(cover, (0, 0), blur * ZOOM)
        return np.s_[top:bottom, left:right], cover

    def photograph(self) -> np.ndarray:
        """Take a poor photograph, as the web's are: uint8 [WIDTH, WIDTH]."""
        rng = self.rng
        picture = cv2.resize(self.pixels, (WIDTH, WIDTH), interpolation=cv2.INTER_AREA)
        picture = np.clip(picture, 0, 1) ** rng.uniform(0.7, 1.3)
        spread = rng.uniform(0.2, 0.29) / max(picture.std(), 0.05)
        picture = (picture - picture.mean()) * spread + np.clip(rng.normal(0.5, 0.1), 0.28, 0.75)
        if rng.random() < 0.5:
            picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.25, 0.7))
        picture = picture * 255 + rng.normal(size=picture.shape) * rng.uniform(0.5, 5)
        picture = np.clip(np.round(picture), 0, 255).astype(np.uint8)
        quality = int(rng.integers(50, 100))
        _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        return cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE)


def enlarged(picture: np.ndarray) -> np.ndarray:
    """Enlarge a float32 picture [h, w] smoothly to the whole canvas: float32 [SIDE, SIDE]."""
    return cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


def curve(points: np.ndarray, closed: bool = False) -> np.ndarray:
    """Lead a smooth path [..., m, 2] through points [..., n, 2], in the points' unit."""
    return _spline(points.shape[-2], closed) @ points


@lru_cache
def _spline(n: int, closed: bool) -> np.ndarray:
    """Return the matrix [m, n] that makes n points a smooth path of m (Catmull-Rom)."""
    t = np.linspace(0, 1, 6)
    basis = [2 * t**2 - t**3 - t, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]
    rows = []
    for start in range(n if closed else n - 1):
        near = np.arange(start - 1, start + 3)
        near = near % n if closed else near.clip(0, n - 1)
        rows.append(np.stack(basis, axis=1) / 2 @ np.eye(n)[near])
    return np.concatenate(rows)


def oval(centre: np.ndarray, radii, rim: np.ndarray = CIRCLE) -> np.ndarray:
    """Return ovals [..., 24, 2] about centres [..., 2]; `rim` [24, 2] is CIRCLE or SQUARISH."""
    return centre[..., None, :] + rim * radii
