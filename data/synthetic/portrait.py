"""The painting of a synthetic face: what is painted of it, and in which order.

`data.synthetic.generate` says what a face is; this says how it looks: skin, folds, hair and light,
from the background forward, on a `data.synthetic.canvas` that is photographed at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from data.synthetic.canvas import SQUARISH, WIDTH, Canvas, curve, enlarged, oval

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
    looks: Looks, au: Mapping[int, float], points: np.ndarray, unit: float, rng: np.random.Generator
) -> np.ndarray:
    """Paint and photograph one face: uint8 [48, 48].

    Args:
        looks: the person's.
        au: the strength of each action unit by its number, about 0 to 1.
        points: [75, 2] in pixels of the frame, the landmarks and the skull's outline.
        unit: pixels per unit of the face, which is half its width.
        rng: decides everything else: background, light, hand, camera.
    """
    return _Painting(looks, au, points / unit, unit, rng).finished()


class _Painting(Canvas):
    """One face on its canvas; `points` [75, 2] and every length are in the face's unit."""

    def __init__(self, looks, au, points, unit, rng):
        super().__init__(unit, rng)
        self.looks, self.au, self.points = looks, au, points
        self.hair = looks.hair + min(0.5 * looks.hair, 0.12) * self.texture(30, 5)

    def finished(self) -> np.ndarray:
        """Paint from the background forward, then photograph it: uint8 [48, 48]."""
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
        return self.photograph()

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
        self.lay(curve(crown), self.hair * 0.8, blur=0.3)

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
        edge = curve(np.concatenate([left[::-1], self.skull(np.array(line)[:, None]), right]))
        self.lay(edge, 0.0, 0.25, width=0.12, blur=0.6)  # the shadow that it casts
        self.lay(np.concatenate([edge, self.skull(1.16)[::-1]]), self.hair, blur=0.25)

    def head(self) -> np.ndarray:
        """Paint the ears and the bare skin; return the skin's mask."""
        ears = self.points[[0, 16]] * 0.7 + self.points[[1, 15]] * 0.3
        self.lay(oval(ears, [0.10, 0.26]), self.looks.skin * 0.75, blur=0.2)
        head = self.mask(curve(self.points[JAW + SKULL[::-1]], closed=True), blur=0.25)
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
            path = curve(np.stack(np.broadcast_arrays(*path), axis=-2))
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
        self.lay(curve(self.points[[31, 35], None] + wing), dark, 0.35, width=0.05, blur=0.3)
        nostrils = self.points[[31, 35]] * 0.45 + self.points[[32, 34]] * 0.55
        self.lay(oval(nostrils, [0.065, 0.035]), dark * 0.5, 0.8, blur=0.25)
        self.lay(curve(self.points[31:36] + [0, 0.04]), dark, 0.3, width=0.06, blur=0.4)

    def mouth(self) -> None:
        au, skin = self.au, self.looks.skin
        self.lay(curve(self.points[LIPS], closed=True), skin * self.looks.lips, 0.9, blur=0.2)
        upper, lower = self.points[60:65], self.points[[60, 67, 66, 65, 64]]
        gap = np.maximum(lower[:, 1] - upper[:, 1], 0)
        if gap.max() > 0.05:
            cavity = curve(self.points[MOUTH], closed=True)
            self.lay(cavity, 0.05, blur=0.1)
            bared = np.clip(0.35 + max(au[10], au[12], au[20]) - 0.8 * au[26], 0.15, 0.95)
            edge = upper + np.minimum(0.6 * gap, 0.15)[:, None] * [0, 1]
            teeth = np.concatenate([upper, edge[::-1]])
            self.lay(teeth, 0.35 + 0.5 * skin, bared, blur=0.15, inside=self.mask(cavity))
        shut = np.clip(1 - gap.max() / 0.12, 0, 1)
        seam, width = curve((upper + lower) / 2), 0.05 + 0.03 * au[24]  # pressed lips shade it
        self.lay(seam, skin * 0.2, 0.85 * shut, width=width, blur=0.15)
        self.lay(oval(self.points[[48, 54]], 0.05), skin * 0.3, 0.5, blur=0.3)

    def eyes(self) -> np.ndarray:
        """Paint both eyes; return their mask."""
        skin, eyes = self.looks.skin, self.points[EYES]
        within = self.mask(curve(eyes, closed=True))
        self.pixels += (0.5 + 0.4 * skin - self.pixels) * within
        gaze = np.clip(self.rng.normal(0, [0.035, 0.012]), -0.06, 0.06)
        iris = eyes.mean(axis=1) + gaze
        self.lay(oval(iris, 0.095), self.looks.iris, inside=within)
        self.lay(oval(iris, 0.045), 0.02, inside=within)
        self.lay(oval(iris - 0.035, 0.025), 0.95, inside=within)  # a highlight
        lid, below = curve(eyes[:, :4]), curve(eyes[:, [3, 4, 5, 0]])
        self.lay(lid + [0, 0.03], 0.1, 0.4, width=0.05, blur=0.2, inside=within)  # its shadow
        self.lay(lid, 0.06, 0.85, width=0.045, blur=0.12)
        self.lay(lid - [0, 0.08], skin * 0.4, 0.45, width=0.03, blur=0.2)
        self.lay(below, skin * 0.4, 0.5, width=0.025, blur=0.12)
        return within

    def brows(self) -> None:
        path = curve(self.points[BROWS]) + [0, 0.02]
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
        return enlarged(np.clip(light, 0.1, 1.6))

    def glasses(self) -> None:
        rims = oval(self.points[EYES].mean(axis=1) + [0, 0.03], [0.34, 0.25], SQUARISH)
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
