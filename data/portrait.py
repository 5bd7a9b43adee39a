"""The painting of a synthetic face, from the background forward, and the poor camera.

`data.sample` says what a face is; this says how it looks: skin, folds, hair and light
on a canvas larger than the frame, then a small, noisy, compressed photograph of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

WIDTH = 48  # pixels of a face, FER2013's own
ZOOM = 3  # it is painted at ZOOM x WIDTH and shrunk by area, which softens every edge
CANVAS = ZOOM * WIDTH

# The 68 landmarks of iBUG, and seven points of the head's outline above the ears.
JAW, SKULL = list(range(17)), list(range(68, 75))
BROWS = np.array([[17, 18, 19, 20, 21], [26, 25, 24, 23, 22]])  # from the temple to the nose
EYES = np.array([[36, 37, 38, 39, 40, 41], [45, 44, 43, 42, 47, 46]])  # outer corner, upper lid
LIPS, MOUTH = list(range(48, 60)), list(range(60, 68))
SIDES = np.array([[-1, 1], [1, 1]])  # outward from the middle, on either side

# The relief that light falls on: a bump at the mean of some landmarks, moved by (x, y),
# its height and its radii in x and y, all in the face's unit.
# fmt: off
RELIEF = [
    ("nose", [28, 29], (0, 0), .14, (.13, .32)), ("tip", [30], (0, 0), .17, (.16, .15)),
    ("wing", [31], (0, -.04), .07, (.09, .09)), ("wing", [35], (0, -.04), .07, (.09, .09)),
    ("socket", EYES[0], (.02, -.06), -.11, (.26, .15)),
    ("socket", EYES[1], (-.02, -.06), -.11, (.26, .15)),
    ("brow", BROWS[0], (0, .02), .06, (.30, .11)), ("brow", BROWS[1], (0, .02), .06, (.30, .11)),
    ("cheek", [36, 41, 48], (-.02, .05), .12, (.28, .26)),
    ("cheek", [45, 46, 54], (.02, .05), .12, (.28, .26)),
    ("philtrum", [33, 51], (0, 0), -.03, (.06, .10)), ("lip", [50, 52], (0, .03), .05, (.22, .07)),
    ("lip", [57, 66], (0, 0), .08, (.20, .08)), ("groove", [57], (0, .13), -.06, (.22, .07)),
    ("chin", [8], (0, -.17), .10, (.24, .18)),
]
# fmt: on
RELIEF_AT = np.stack([np.isin(np.arange(75), at) / len(at) for _, at, *_ in RELIEF])
RELIEF_MOVE, RELIEF_HEIGHT, RELIEF_RADII = (np.array([row[i] for row in RELIEF]) for i in (2, 3, 4))
IS_CHEEK = np.array([name == "cheek" for name, *_ in RELIEF])

# How far the hairline lies from the root of the nose: 1 is the skull's outline.
HAIRLINE = {"short": 0.72, "fringe": 0.52, "parted": 0.60, "long": 0.68}
RIM = np.stack([f(np.arange(24) * np.pi / 12) for f in (np.cos, np.sin)], axis=1)  # a circle
SQUARISH = np.sign(RIM) * np.abs(RIM) ** 0.7  # between a circle and a square


@dataclass(frozen=True)
class Looks:
    """What there is to see of a person besides the shape; a tone is 0 black to 1 white."""

    skin: float  # tone
    hair: float  # tone
    lips: float  # tone, as a share of the skin's
    iris: float  # tone
    brow: float  # thickness, in the face's unit
    age: float  # 0..1, how deep the folds are
    style: str  # of the hair, a key of HAIRLINE or "bald"
    beard: float  # 0..1, 0 for none
    glasses: float  # 0..1, how dark the rims are, 0 for none


def portrait(
    looks: Looks,
    au: Mapping[int, float],
    points: np.ndarray,
    unit: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Paint and photograph one face: uint8 [48, 48].

    Args:
        looks: the person's.
        au: the strength of each action unit by its number, about 0 to 1.
        points: [75, 2] in pixels of the frame, the landmarks and the skull's outline.
        unit: pixels per unit of the face, which is half its width.
        rng: decides everything else: background, light, hand, camera.
    """
    return _photograph(_Painting(looks, au, points / unit, unit, rng).finished(), rng)


class _Painting:
    """One face being painted: `pixels`, float32 [CANVAS, CANVAS], 0 black to 1 white.

    `points` and every length are in the face's unit, blurs in pixels of the frame. A
    shape is a path [n, 2] or several [k, n, 2], so that both eyes are one shape.
    """

    def __init__(self, looks, au, points, unit, rng):
        self.looks, self.au, self.points, self.unit, self.rng = looks, au, points, unit, rng
        self.pixels = _background(rng)
        self.hair = looks.hair + min(0.5 * looks.hair, 0.12) * _texture(rng, 30, 5)

    def finished(self) -> np.ndarray:
        """Paint from the background forward."""
        self.shoulders()
        if self.looks.style != "bald":
            self.hair_behind()
        skin = self.head()
        self.beard(skin)
        self.folds()
        self.nose()
        self.mouth()
        eyes = self.eyes()
        self.brows()
        # The wet eyes gather light, so they lie less in the shade.
        self.pixels *= 1 + skin * (1 - 0.75 * eyes) * (self.light() - 1)
        if self.looks.style != "bald":
            self.hair_before()
        if self.looks.glasses:
            self.glasses()
        if self.rng.random() < 0.1:
            self.hand()
        return self.pixels

    def lay(self, shape, tone, opacity=1.0, *, width=0.0, blur=0.0, inside=None) -> None:
        """Lay a tone, or a picture, over polygons, or along open paths of a width."""
        if opacity < 0.04:  # nobody would see it
            return
        window, cover = self.stencil(shape, width, blur)
        weight = cover * np.float32(min(opacity, 1) / 255)
        if inside is not None:
            weight *= inside[window]
        below = self.pixels[window]
        below += ((tone[window] if isinstance(tone, np.ndarray) else tone) - below) * weight

    def mask(self, shape, blur=0.0) -> np.ndarray:
        """Return a float32 picture like `pixels`, 1 inside the polygons."""
        mask = np.zeros_like(self.pixels)
        window, cover = self.stencil(shape, 0, blur)
        mask[window] = cover * np.float32(1 / 255)
        return mask

    def stencil(self, shape, width, blur) -> tuple[tuple[slice, slice], np.ndarray]:
        """Draw a shape in a small window of the canvas: the window, uint8 255 where it covers."""
        points = np.asarray(shape) * (self.unit * ZOOM) + (ZOOM - 1) / 2
        points = points.reshape(-1, *points.shape[-2:])  # [k, n, 2]
        pen = max(1, round(width * self.unit * ZOOM)) if width else 0
        pad = 3 * blur * ZOOM + pen + 2  # a Gaussian ends at three deviations
        (x0, y0), (x1, y1) = points.min(axis=(0, 1)).tolist(), points.max(axis=(0, 1)).tolist()
        left, top = max(0, int(x0 - pad)), max(0, int(y0 - pad))
        right, bottom = min(CANVAS, int(x1 + pad)), min(CANVAS, int(y1 + pad))
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

    def shoulders(self) -> None:
        sides = self.points[[4, 12]] * 0.8 + self.points[8] * 0.2
        neck = np.concatenate([sides, sides[::-1] + [0, 2]])
        self.lay(neck, self.looks.skin * 0.55, blur=0.3)
        collar = [(-2.5, 0.6), (-0.8, 0.25), (0, 0.7), (0.8, 0.25), (2.5, 0.6), (2.5, 3), (-2.5, 3)]
        self.lay(self.points[8] + collar, self.rng.uniform(0.05, 0.95), blur=0.3)

    def skull(self, k) -> np.ndarray:
        """Return the outline of the skull [7, 2], k times as far from the root of the nose."""
        return self.points[27] + (self.points[SKULL] - self.points[27]) * k

    def hair_behind(self) -> None:
        crown = self.skull(1.13)
        if self.looks.style == "long":
            crown = np.stack([crown[0] + [-0.18, 2.2], *crown, crown[-1] + [0.18, 2.2]])
        self.lay(_curve(crown), self.hair * 0.8, blur=0.3)

    def hair_before(self) -> None:
        """Paint the hair over the forehead; long hair falls over the cheeks' edges too."""
        low = HAIRLINE[self.looks.style] + self.rng.normal(0, 0.03)
        slant = self.rng.choice([-0.16, 0.16]) * (self.looks.style == "parted")
        line = [0.98, 0.92, low + 0.08 - slant, low, low + 0.08 + slant, 0.92, 0.98]
        ends = [self.points[[0, 16]] + SIDES * [0.02, 0.1]]
        if self.looks.style == "long":
            locks = self.points[[3, 13]] + SIDES * [0.05, 0]
            ends += [locks, locks + SIDES * [0.3, 0.3]]
        left, right = np.stack(ends, axis=1)
        edge = _curve(np.concatenate([left[::-1], self.skull(np.array(line)[:, None]), right]))
        self.lay(edge, 0.0, 0.25, width=0.12, blur=0.6)  # the shadow that it casts
        self.lay(np.concatenate([edge, self.skull(1.16)[::-1]]), self.hair, blur=0.25)

    def head(self) -> np.ndarray:
        """Paint the ears and the bare skin; return the skin's mask."""
        ears = self.points[[0, 16]] * 0.7 + self.points[[1, 15]] * 0.3
        self.lay(_oval(ears, [0.10, 0.26]), self.looks.skin * 0.75, blur=0.2)
        head = self.mask(_curve(self.points[JAW + SKULL[::-1]], closed=True), blur=0.25)
        self.pixels += (self.looks.skin - self.pixels) * head
        return head

    def beard(self, skin: np.ndarray) -> None:
        upper = self.points[[14, 54, 35, 33, 31, 48, 2]] + [0, 0.06]
        upper[[5, 1]] += SIDES * [0.12, -0.08]  # around the corners of the mouth
        outline = np.concatenate([self.points[2:15], upper])
        self.lay(outline, self.hair, 0.75 * self.looks.beard, blur=1.1, inside=skin)

    def folds(self) -> None:
        """Paint the wrinkles: each lies where its action units press the skin together."""
        au, old = self.au, self.looks.age
        nose, corner, brow, temple = self.points[[[31, 35], [48, 54], [21, 22], [36, 45]]]

        def crease(*path, depth, width=0.04, blur=0.3):
            path = _curve(np.stack(np.broadcast_arrays(*path), axis=-2))
            self.lay(path, self.looks.skin * 0.45, depth, width=width, blur=blur)

        cheek = (nose + corner) / 2 + SIDES * [0.16, -0.06]
        pulled = 0.08 + 0.25 * old + 0.35 * max(au[9], au[10], 0.7 * au[12])
        crease(nose + SIDES * [0.06, -0.08], cheek, corner + SIDES * [0.15, 0.02], depth=pulled)
        droop = 0.1 * old + 0.5 * au[15]
        crease(corner + SIDES * [0.03, 0.05], corner + SIDES * [0.1, 0.2], depth=droop)
        frown = brow + SIDES * [-0.07, 0]
        crease(frown - [0, 0.15], frown + [0, 0.1], depth=0.6 * au[4] + 0.3 * au[9])
        bag = self.points[EYES[:, [0, 5, 3]]] + [0, 0.09]
        crease(*bag.swapaxes(0, 1), depth=0.1 + 0.2 * old + 0.25 * max(au[6], au[7]))
        three = np.array([[-1], [0], [1]]) * [0, 1]
        crow = temple[:, None] + SIDES[:, None] * [0.08, 0]
        fan = crow + SIDES[:, None] * ([0.14, 0] + 0.08 * three)
        crease(crow, fan, depth=0.5 * au[6] * old, width=0.03, blur=0.2)
        root = self.points[27] + [0, 0.02] + 0.06 * three
        crease(root - [0.1, 0], root + [0.1, 0], depth=0.55 * au[9], width=0.03, blur=0.2)
        forehead = self.points[[18, 20, 23, 25]][:, None] - [0, 0.36] + 0.14 * three
        crease(*forehead, depth=0.45 * max(au[1], au[2]) * (0.4 + old))
        chin = self.points[[58, 57, 56]] + [0, 0.1]
        crease(*chin, depth=0.2 + 0.3 * au[17], width=0.07, blur=0.5)

    def nose(self) -> None:
        dark = self.looks.skin * 0.35
        wing = SIDES[:, None] * [(0.02, -0.16), (0.08, -0.08), (0.05, 0.02), (-0.05, 0.03)]
        self.lay(_curve(self.points[[31, 35], None] + wing), dark, 0.35, width=0.05, blur=0.3)
        nostrils = self.points[[31, 35]] * 0.45 + self.points[[32, 34]] * 0.55
        self.lay(_oval(nostrils, [0.065, 0.035]), dark * 0.5, 0.8, blur=0.25)
        self.lay(_curve(self.points[31:36] + [0, 0.04]), dark, 0.3, width=0.06, blur=0.4)

    def mouth(self) -> None:
        au, skin = self.au, self.looks.skin
        self.lay(_curve(self.points[LIPS], closed=True), skin * self.looks.lips, 0.9, blur=0.2)
        upper, lower = self.points[60:65], self.points[[60, 67, 66, 65, 64]]
        gap = np.maximum(lower[:, 1] - upper[:, 1], 0)
        if gap.max() > 0.05:
            cavity = _curve(self.points[MOUTH], closed=True)
            self.lay(cavity, 0.05, blur=0.1)
            bared = np.clip(0.35 + max(au[10], au[12], au[20]) - 0.8 * au[26], 0.15, 0.95)
            edge = upper + np.minimum(0.6 * gap, 0.15)[:, None] * [0, 1]
            teeth = np.concatenate([upper, edge[::-1]])
            self.lay(teeth, 0.35 + 0.5 * skin, bared, blur=0.15, inside=self.mask(cavity))
        shut = np.clip(1 - gap.max() / 0.12, 0, 1)
        seam, width = _curve((upper + lower) / 2), 0.05 + 0.03 * au[24]  # pressed lips shade it
        self.lay(seam, skin * 0.2, 0.85 * shut, width=width, blur=0.15)
        self.lay(_oval(self.points[[48, 54]], 0.05), skin * 0.3, 0.5, blur=0.3)

    def eyes(self) -> np.ndarray:
        """Paint both eyes; return their mask."""
        skin, eyes = self.looks.skin, self.points[EYES]
        within = self.mask(_curve(eyes, closed=True))
        self.pixels += (0.5 + 0.4 * skin - self.pixels) * within
        gaze = np.clip(self.rng.normal(0, [0.035, 0.012]), -0.06, 0.06)
        iris = eyes.mean(axis=1) + gaze
        self.lay(_oval(iris, 0.095), self.looks.iris, inside=within)
        self.lay(_oval(iris, 0.045), 0.02, inside=within)
        self.lay(_oval(iris - 0.035, 0.025), 0.95, inside=within)  # a highlight
        lid, below = _curve(eyes[:, :4]), _curve(eyes[:, [3, 4, 5, 0]])
        self.lay(lid + [0, 0.03], 0.1, 0.4, width=0.05, blur=0.2, inside=within)  # its shadow
        self.lay(lid, 0.06, 0.85, width=0.045, blur=0.12)
        self.lay(lid - [0, 0.08], skin * 0.4, 0.45, width=0.03, blur=0.2)
        self.lay(below, skin * 0.4, 0.5, width=0.025, blur=0.12)
        return within

    def brows(self) -> None:
        path = _curve(self.points[BROWS]) + [0, 0.02]
        taper = np.interp(np.linspace(0, 1, path.shape[1]), [0, 0.35, 0.8, 1], [0.25, 0.9, 1, 0.7])
        half = taper[:, None] * [0, self.looks.brow / 2]
        outline = np.concatenate([path - half, (path + half)[:, ::-1]], axis=1)
        self.lay(outline, min(self.looks.hair, 0.5 * self.looks.skin), 0.85, blur=0.25)

    def light(self) -> np.ndarray:
        """Return how much light (about 1) each pixel of the skin sends back, like `pixels`."""
        grid = (np.arange(WIDTH) / self.unit).astype(np.float32)  # a smooth relief: 1 a pixel
        outline = self.points[JAW + SKULL]
        low, high = outline.min(axis=0), outline.max(axis=0)
        x, y = (((grid - c) / r) ** 2 for c, r in zip((low + high) / 2, (high - low) * 0.52))
        dome = 0.85 * np.sqrt(np.maximum(1 - x - y[:, None], 0.02))
        centres = RELIEF_AT @ self.points + RELIEF_MOVE  # [bumps, 2]
        bumps = np.exp(-(((grid - centres[..., None]) / RELIEF_RADII[..., None]) ** 2))
        smile = 1 + IS_CHEEK * (0.6 * self.au[6] + 0.3 * self.au[12])  # raised cheeks stand out
        height = dome + (bumps[:, 1].T * (RELIEF_HEIGHT * smile)) @ bumps[:, 0]
        height = height.astype(np.float32)
        slope_y, slope_x = np.gradient(height, grid[1])
        east, north = self.rng.normal(0, 0.45), abs(self.rng.normal(0.45, 0.3))  # mostly from above
        facing = 1 - np.float32(east) * slope_x + np.float32(north) * slope_y  # Lambert's law
        facing = np.maximum(facing, 0) / np.sqrt(1 + slope_x**2 + slope_y**2)
        ambient = np.float32(self.rng.uniform(0.3, 0.6))
        hollow = cv2.GaussianBlur(height, (0, 0), 0.14 * self.unit) - height  # sees less of the sky
        light = ambient + (1 - ambient) * facing - 1.5 * np.maximum(hollow, 0)
        return _enlarged(np.clip(light, 0.1, 1.6))

    def glasses(self) -> None:
        rims = _oval(self.points[EYES].mean(axis=1) + [0, 0.03], [0.34, 0.25], SQUARISH)
        self.lay(rims, 0.9, 0.08)
        bridge = [rims[0, 0], self.points[27], rims[1, 12]]
        arms = [[self.points[0], rims[0, 12]], [rims[1, 0], self.points[16]]]
        closed = np.concatenate([rims, rims[:, :1]], axis=1)
        for path, width in ((closed, 0.05), (bridge, 0.045), (arms, 0.045)):
            self.lay(path, 0.08, self.looks.glasses, width=width, blur=0.1)

    def hand(self) -> None:
        """Paint fingers over the cheek, the chin or the mouth, as FER2013's people do."""
        target = self.points[self.rng.choice([3, 5, 8, 11, 13, 48, 54])]
        away = (target - self.points[30]) / np.linalg.norm(target - self.points[30])
        across = away[::-1] * [-1, 1]
        for finger in range(-2, 2):
            tip = target + 0.24 * finger * across + 0.05 * abs(finger) * away
            path = [tip, tip + 2.5 * away]
            self.lay(path, self.looks.skin * 0.35, 0.6, width=0.27, blur=0.4)  # the shade around it
            self.lay(path, self.looks.skin * 0.95, width=0.21, blur=0.25)


def _background(rng: np.random.Generator) -> np.ndarray:
    """Return an empty canvas: a tone, a slope of light, and more or less clutter."""
    x = np.linspace(-0.5, 0.5, CANVAS, dtype=np.float32)
    slope = rng.normal(0, 0.2, 2).astype(np.float32)
    clutter = np.float32(rng.choice([0.03, 0.12, 0.25])) * _texture(rng, *rng.integers(3, 9, 2))
    tone = np.float32(rng.uniform(0.02, 0.98))
    return np.clip(tone + slope[0] * x + slope[1] * x[:, None] + clutter, 0, 1)


def _texture(rng: np.random.Generator, columns: int, rows: int) -> np.ndarray:
    """Return smooth noise of mean 0 and about unit range, as large as the canvas."""
    return _enlarged(rng.uniform(-1, 1, (rows, columns)).astype(np.float32))


def _enlarged(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)


def _curve(points: np.ndarray, closed: bool = False) -> np.ndarray:
    """Lead a smooth path through points [..., n, 2]."""
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


def _oval(centre: np.ndarray, radii, rim: np.ndarray = RIM) -> np.ndarray:
    """Return ellipses [..., 24, 2] about centres [..., 2]."""
    return centre[..., None, :] + rim * radii


def _photograph(painting: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Take a poor photograph of a painting, as the web's are: uint8 [48, 48]."""
    picture = cv2.resize(painting, (WIDTH, WIDTH), interpolation=cv2.INTER_AREA)
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
