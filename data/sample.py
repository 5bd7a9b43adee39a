"""The sample: a small seven-class set of faces drawn in code, with their true landmarks.

FER2013 may not be copied, so these stand in for it in the tests, the demo and the
README. Each face is made as a person makes one: a mean anatomy in 3D, an identity,
the action units of an expression (Ekman & Friesen's FACS), a pose, paint and light,
and at last a poor camera. A face depends on its own number and the seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from data.faces import EMOTIONS, LANDMARK_NUM, USAGES, Faces

WIDTH = 48  # pixels of a face, FER2013's own
ZOOM = 3  # it is painted at ZOOM x WIDTH and shrunk by area, which softens every edge

# Unit of the anatomy: half the face's width; origin between the eyes; x right, y down,
# z towards the viewer. Only the image-left half is written, its mirror is the other:
# the 68 landmarks, then four points of the head's outline above the ears (68-71).
# fmt: off
_HALF_FACE = {
    0: (-1.00, .02, -.85), 1: (-.99, .28, -.80), 2: (-.96, .54, -.70), 3: (-.90, .80, -.55),
    4: (-.81, 1.04, -.38), 5: (-.68, 1.25, -.18), 6: (-.48, 1.40, .02), 7: (-.25, 1.48, .14),
    8: (.00, 1.51, .18), 17: (-.82, -.20, -.05), 18: (-.69, -.31, .10), 19: (-.52, -.34, .20),
    20: (-.34, -.32, .27), 21: (-.17, -.25, .30), 27: (.00, -.04, .27), 28: (.00, .13, .38),
    29: (.00, .30, .50), 30: (.00, .46, .60), 31: (-.20, .59, .30), 32: (-.10, .62, .37),
    33: (.00, .65, .41), 36: (-.62, .00, -.02), 37: (-.52, -.07, .09), 38: (-.38, -.07, .13),
    39: (-.26, .01, .10), 40: (-.38, .04, .12), 41: (-.52, .04, .08), 48: (-.37, .94, .12),
    49: (-.24, .87, .26), 50: (-.10, .83, .34), 51: (.00, .85, .36), 57: (.00, 1.11, .33),
    58: (-.12, 1.10, .30), 59: (-.25, 1.05, .22), 60: (-.33, .94, .13), 61: (-.11, .93, .30),
    62: (.00, .93, .32), 66: (.00, .95, .32), 67: (-.11, .95, .29),
    68: (-1.02, -.35, -.80), 69: (-.97, -.80, -.55), 70: (-.64, -1.24, -.3),
    71: (.00, -1.40, -.15),
}
# fmt: on
_MIRROR = np.array(
    [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)]
    + [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    + [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
    + [*range(74, 67, -1)]
)
_JAW, _SKULL = list(range(17)), list(range(68, 75))
_BROWS = np.array([[17, 18, 19, 20, 21], [26, 25, 24, 23, 22]])  # from the temple to the nose
_EYES = np.array([[36, 37, 38, 39, 40, 41], [45, 44, 43, 42, 47, 46]])  # outer corner, upper lid
_LIPS, _MOUTH = list(range(48, 60)), list(range(60, 68))
_ABOVE, _BELOW = [37, 38, 43, 44, 61, 62, 63], [41, 40, 47, 46, 67, 66, 65]  # lids, inner lips

# Where an action unit at full strength moves a landmark, in hundredths of the unit (x, y).
# fmt: off
ACTION_UNITS = {
    "AU1 inner brow raiser": {19: (0, -6), 20: (0, -14), 21: (1, -20)},
    "AU2 outer brow raiser": {17: (0, -10), 18: (0, -17), 19: (0, -15), 20: (0, -7)},
    "AU4 brow lowerer": {17: (0, 2), 18: (2, 6), 19: (4, 11), 20: (6, 17), 21: (7, 21)},
    "AU5 upper lid raiser": {37: (0, -7), 38: (0, -7), 40: (0, 2), 41: (0, 2)},
    "AU6 cheek raiser": {40: (0, -4), 41: (0, -4), 36: (2, 1), 37: (0, 2)},
    "AU7 lid tightener": {37: (0, 4), 38: (0, 4), 40: (0, -3), 41: (0, -3)},
    "AU9 nose wrinkler": {20: (3, 5), 21: (4, 8), 30: (0, -4), 31: (-3, -9), 32: (0, -6),
                          33: (0, -5), 49: (0, -5), 50: (0, -7), 51: (0, -6), 61: (0, -4)},
    "AU10 upper lip raiser": {31: (-3, -4), 48: (0, -3), 49: (-1, -13), 50: (0, -14), 51: (0, -12),
                              60: (0, -2), 61: (0, -12), 62: (0, -11)},
    "AU12 lip corner puller": {48: (-16, -15), 49: (-9, -6), 59: (-9, -5), 60: (-15, -14),
                               61: (-3, -1), 67: (-3, -1), 50: (-2, 1), 51: (0, 2), 58: (-3, 0)},
    "AU15 lip corner depressor": {48: (-3, 12), 49: (-3, 7), 59: (-3, 8), 60: (-3, 11),
                                  61: (-3, 3), 67: (-3, 3)},
    "AU17 chin raiser": {8: (0, -4), 57: (0, -7), 58: (0, -6), 59: (0, -3), 62: (0, -4),
                         66: (0, -4), 61: (0, -3), 67: (0, -3), 51: (0, -3), 50: (0, -3)},
    "AU20 lip stretcher": {48: (-15, 9), 49: (-8, 2), 59: (-9, 6), 60: (-14, 8), 67: (-7, 2),
                           61: (-6, 1)},
    "AU24 lip pressor": {48: (3, 0), 60: (3, 0), 49: (2, 6), 50: (0, 6), 51: (0, 5), 57: (0, -7),
                         58: (0, -7), 59: (2, -5)},
    "AU25 lips part": {61: (-4, -3), 62: (0, -3), 50: (0, -2), 51: (0, -2), 66: (0, 11),
                       67: (-4, 10), 57: (0, 9), 58: (-1, 8), 59: (-2, 6)},
    "AU26 jaw drop": {3: (0, 2), 4: (1, 9), 5: (2, 17), 6: (2, 23), 7: (1, 26), 8: (0, 27),
                      48: (5, 11), 49: (2, 1), 59: (1, 23), 58: (-2, 28), 57: (0, 29), 60: (7, 12),
                      61: (-2, 0), 67: (-3, 26), 66: (0, 29)},
    "AU43 eyes closing": {37: (0, 8), 38: (0, 8)},
}
EXPRESSIONS = {  # the mean strength of each action unit
    "angry": {4: 1.0, 7: .8, 24: .9, 17: .3, 5: .2},
    "disgust": {9: 1.1, 10: 1.1, 4: .15, 7: .6, 25: .5, 6: .4, 15: .4},
    "fear": {1: 1.0, 2: .3, 4: .35, 5: 1.0, 20: 1.0, 25: 1.2, 26: .25},
    "happy": {6: .9, 12: 1.1, 25: .7},
    "sad": {1: 1.0, 4: .35, 15: 1.1, 17: .6, 43: .45},
    "surprise": {1: 1.0, 2: 1.1, 5: .8, 25: .4, 26: 1.1},
    "neutral": {},
}
# How people differ, in hundredths of the unit per standard deviation.
IDENTITY = {
    "broad jaw": {3: (-2, 0), 4: (-4, 1), 5: (-5, 2), 6: (-3, 1)},
    "long chin": {5: (0, 3), 6: (0, 5), 7: (0, 7), 8: (0, 7)},
    "large eyes": {36: (-2, 0), 37: (0, -2), 38: (0, -2), 40: (0, 1), 41: (0, 1)},
    "eyes apart": {i: (-2, 0) for i in (*range(36, 42), *range(17, 22))},
    "slanted eyes": {36: (0, -3), 37: (0, -1), 41: (0, -1), 39: (0, 1)},
    "high brows": {i: (0, -3) for i in range(17, 22)},
    "arched brows": {17: (0, 2), 18: (0, -1), 19: (0, -3), 20: (0, -1)},
    "long nose": {29: (0, 2), 30: (0, 4), 31: (0, 4), 32: (0, 4), 33: (0, 4)},
    "broad nose": {31: (-4, 0), 32: (-2, 0)},
    "wide mouth": {48: (-4, 0), 49: (-2, 0), 59: (-2, 0), 60: (-4, 0)},
    "full lips": {49: (0, -1), 50: (0, -3), 51: (0, -3), 57: (0, 4), 58: (0, 4), 59: (0, 2)},
    "low mouth": {i: (0, 3) for i in (48, 49, 50, 51, *range(57, 63), 66, 67)},
}
# The relief that light falls on: a bump at the mean of some landmarks, moved by (x, y),
# its height and its radii in x and y, all in the face's unit.
RELIEF = [
    ("nose", [28, 29], (0, 0), .14, (.13, .32)), ("tip", [30], (0, 0), .17, (.16, .15)),
    ("wing", [31], (0, -.04), .07, (.09, .09)), ("wing", [35], (0, -.04), .07, (.09, .09)),
    ("socket", _EYES[0], (.02, -.06), -.11, (.26, .15)),
    ("socket", _EYES[1], (-.02, -.06), -.11, (.26, .15)),
    ("brow", _BROWS[0], (0, .02), .06, (.30, .11)), ("brow", _BROWS[1], (0, .02), .06, (.30, .11)),
    ("cheek", [36, 41, 48], (-.02, .05), .12, (.28, .26)),
    ("cheek", [45, 46, 54], (.02, .05), .12, (.28, .26)),
    ("philtrum", [33, 51], (0, 0), -.03, (.06, .10)), ("lip", [50, 52], (0, .03), .05, (.22, .07)),
    ("lip", [57, 66], (0, 0), .08, (.20, .08)), ("groove", [57], (0, .13), -.06, (.22, .07)),
    ("chin", [8], (0, -.17), .10, (.24, .18)),
]
# How far the hairline lies from the root of the nose: 1 is the skull's outline.
HAIRLINE = {"short": .72, "fringe": .52, "parted": .60, "long": .68, "bald": None}
# fmt: on
_RELIEF_AT = np.stack(
    [np.isin(np.arange(75), landmarks) / len(landmarks) for _, landmarks, *_ in RELIEF]
)
_RELIEF_MOVE, _RELIEF_RISE, _RELIEF_RADII = (
    np.array([row[i] for row in RELIEF]) for i in (2, 3, 4)
)
_IS_CHEEK = np.array([name == "cheek" for name, *_ in RELIEF])
_SIDES = np.array([[-1, 1], [1, 1]])  # outward from the middle, on either side


@dataclass(frozen=True)
class _Person:
    """Who a face is: its shape (float64 [75, 3], the unit above) and its looks (tones 0..1)."""

    shape: np.ndarray
    skin: float
    hair: float
    lips: float
    iris: float
    brow: float  # thickness, in the unit
    age: float  # 0..1, how deep the folds are
    style: str  # of the hair, a key of HAIRLINE
    beard: float  # 0..1, 0 for none
    glasses: float  # 0..1, how dark the rims are, 0 for none


def synthetic_faces(
    training: int = 200, public: int = 40, private: int = 40, seed: int = 0
) -> Faces:
    """Draw `training`, `public` and `private` faces of each of the seven classes.

    The same seed gives the same bytes (with the same OpenCV), and face i of a class
    and usage is the same however many there are. Classes take turns, so every
    stretch is balanced.

    Returns:
        Faces: images uint8 [N, 48, 48] and the true landmarks float32 [N, 68, 2] in
        pixels (pixel centres at whole numbers), N = 7 (training + public + private).
    """
    keys = [
        (usage, index, label)
        for usage, count in enumerate((training, public, private))
        for index in range(count)
        for label in range(len(EMOTIONS))
    ]
    images = np.empty((len(keys), WIDTH, WIDTH), dtype=np.uint8)
    landmarks = np.empty((len(keys), LANDMARK_NUM, 2), dtype=np.float32)
    for i, key in enumerate(keys):
        rng = np.random.default_rng([seed, *key])
        images[i], landmarks[i] = draw_face(EMOTIONS[key[2]], rng)
    return Faces(
        images=images,
        labels=np.array([label for _, _, label in keys], dtype=np.int64),
        usage=np.array([USAGES[usage] for usage, _, _ in keys], dtype="U12"),
        landmarks=landmarks,
        source="synthetic sample (drawn in code, no real faces)",
    )


def draw_face(emotion: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one face: uint8 [48, 48] and its landmarks float32 [68, 2] in pixels."""
    person = _identity(rng)
    units = _expression(emotion, rng)
    points, unit = _pose(_met(_moved(person.shape, _AU_MOVES, units)), rng)
    painting = _Portrait(person, units, points, unit, rng).paint()
    return _camera(painting, rng), points[:LANDMARK_NUM].astype(np.float32)


# ---------------------------------------------------------------- anatomy and expression


def _whole(half: Mapping[int, Sequence[float]]) -> np.ndarray:
    """Complete a table of the image-left half by its mirror: [75, 2 or 3]."""
    size = len(next(iter(half.values())))
    whole = np.zeros((len(_MIRROR), size))
    for index, values in half.items():
        whole[_MIRROR[index]] = [-values[0], *values[1:]]
        whole[index] = values
    return whole


def _moves(table: Mapping[str, Mapping[int, Sequence[float]]]) -> np.ndarray:
    """A table of moves in hundredths as an array [len(table), 75, 2] in the unit."""
    return np.stack([_whole(half) for half in table.values()]) / 100


_MEAN_FACE, _AU_MOVES, _IDENTITY_MOVES = _whole(_HALF_FACE), _moves(ACTION_UNITS), _moves(IDENTITY)
_AU_NUMBERS = [int(name.split()[0][2:]) for name in ACTION_UNITS]


def _moved(shape: np.ndarray, moves: np.ndarray, weights: np.ndarray) -> np.ndarray:
    shape = shape.copy()
    shape[:, :2] += np.tensordot(weights, moves, axes=1)
    return shape


def _met(shape: np.ndarray) -> np.ndarray:
    """Lids and lips meet, they never cross."""
    upper, lower = shape[_ABOVE, 1], shape[_BELOW, 1]
    middle = (upper + lower) / 2
    shape[_ABOVE, 1], shape[_BELOW, 1] = np.minimum(upper, middle), np.maximum(lower, middle)
    return shape


def _identity(rng: np.random.Generator) -> _Person:
    weights = np.clip(rng.normal(size=len(_IDENTITY_MOVES)), -2, 2)
    shape = _moved(_MEAN_FACE, _IDENTITY_MOVES, weights)
    shape *= 1 + rng.normal(0, [0.04, 0.04, 0.08])
    skin = rng.beta(3, 2) * 0.55 + 0.3
    return _Person(
        shape=shape,
        skin=skin,
        hair=rng.uniform(0.05, 0.25) if rng.random() < 0.7 else rng.uniform(0.25, 0.75),
        lips=rng.uniform(0.62, 0.86),
        iris=rng.uniform(0.05, 0.35),
        brow=rng.uniform(0.05, 0.11),
        age=rng.random(),
        style=rng.choice(list(HAIRLINE), p=[0.32, 0.2, 0.15, 0.23, 0.1]),
        beard=rng.uniform(0.3, 0.9) if rng.random() < 0.16 else 0.0,
        glasses=rng.uniform(0.4, 1.0) if rng.random() < 0.1 else 0.0,
    )


def _expression(emotion: str, rng: np.random.Generator) -> np.ndarray:
    """Strengths [len(ACTION_UNITS)]: weak to strong, uneven, with a little of the others."""
    means = np.array([EXPRESSIONS[emotion].get(number, 0.0) for number in _AU_NUMBERS])
    strength = rng.uniform(0.35, 1.2)
    uneven = np.clip(rng.normal(1, 0.3, len(means)), 0, 2)
    stray = np.maximum(rng.normal(-0.08, 0.12, len(means)), 0)
    return means * strength * uneven + stray


def _pose(shape: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Turn the head and place it in the frame: points [75, 2] in pixels, pixels per unit."""
    yaw, pitch, roll = np.radians(np.clip(rng.normal(0, [11, 6, 5]), -26, 26))
    turn = _rotation(yaw, 0, 2) @ _rotation(pitch, 1, 2)
    x, y, z = ((shape - [0, 0.3, 0]) @ turn.T + [0, 0.3, 0]).T
    near = 1 + 0.08 * z  # weak perspective: what is near is larger
    flat = np.stack([x * near, y * near], axis=1) @ _rotation(roll, 0, 1)[:2, :2].T
    ears = flat[[0, 16], 0]
    # The crop follows the face, as a detector's box does, but not into a face turned away.
    unit = min(rng.normal(36.5, 1.8) / np.ptp(ears), 21.5)
    jaw = flat[_JAW, 0]
    middle = np.array([jaw.min() + jaw.max(), flat[_EYES, 1].mean() + flat[8, 1]]) / 2
    return (flat - middle) * unit + rng.normal([23.5, 31.8], 0.9), unit


def _rotation(angle: float, i: int, j: int) -> np.ndarray:
    """Rotate axis j towards axis i in three dimensions."""
    turn = np.eye(3)
    turn[[i, j], [i, j]] = np.cos(angle)
    turn[i, j], turn[j, i] = np.sin(angle), -np.sin(angle)
    return turn


# ---------------------------------------------------------------- paint


class _Portrait:
    """One face being painted: `pixels`, float32 [ZOOM * 48, ZOOM * 48], 0 black to 1 white.

    `points` [75, 2] and every length are in the face's unit, blurs in pixels of the final
    frame. A shape is a path [n, 2] or several [k, n, 2], so that both eyes are one shape.
    """

    def __init__(self, person: _Person, strengths, points, unit, rng):
        self.person, self.unit, self.rng = person, unit, rng
        self.au = dict(zip(_AU_NUMBERS, strengths))
        self.points = points / unit
        self.pixels = _background(rng)
        self.hair = person.hair + min(0.5 * person.hair, 0.12) * _texture(rng, 30, 5)

    def paint(self) -> np.ndarray:
        """Paint from the background forward."""
        self.shoulders()
        if self.person.style != "bald":
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
        if self.person.style != "bald":
            self.hair_before()
        if self.person.glasses:
            self.glasses()
        if self.rng.random() < 0.1:
            self.hand()
        return self.pixels

    def fill(self, shape, tone, opacity=1.0, *, blur=0.0, inside=None) -> None:
        """Lay a tone, or a picture, over polygons with a blurred edge."""
        self.lay(cv2.fillPoly, shape, tone, opacity, blur=blur, inside=inside)

    def line(self, shape, width, tone, opacity=1.0, *, blur=0.0, inside=None) -> None:
        """Draw open paths of a width."""
        pen = {"isClosed": False, "thickness": max(1, round(width * self.unit * ZOOM))}
        self.lay(cv2.polylines, shape, tone, opacity, blur=blur, inside=inside, **pen)

    def mask(self, shape, blur=0.0) -> np.ndarray:
        """float32 [H, W], 1 inside the polygons."""
        pixels, self.pixels = self.pixels, np.zeros_like(self.pixels)
        self.fill(shape, 1.0, blur=blur)
        pixels, self.pixels = self.pixels, pixels
        return pixels

    def lay(self, draw, shape, tone, opacity, *, blur, inside, **pen) -> None:
        if opacity < 0.04:  # nobody would see it
            return
        shape = np.asarray(shape) * (self.unit * ZOOM) + (ZOOM - 1) / 2
        pad, side = 3 * blur * ZOOM + pen.get("thickness", 0) + 2, len(self.pixels)
        (x0, y0), (x1, y1) = (f(shape.reshape(-1, 2), axis=0).tolist() for f in (np.min, np.max))
        x0, y0, x1, y1 = max(0, int(x0 - pad)), max(0, int(y0 - pad)), int(x1 + pad), int(y1 + pad)
        x1, y1 = min(side, x1), min(side, y1)
        if x0 >= x1 or y0 >= y1:
            return
        window = np.s_[y0:y1, x0:x1]
        weight = np.zeros((y1 - y0, x1 - x0), np.uint8)
        paths = np.round((shape - (x0, y0)) * 16).astype(np.int32)  # 4 bits of a pixel
        paths = list(paths.reshape(-1, *paths.shape[-2:]))
        draw(weight, paths, color=255, lineType=cv2.LINE_AA, shift=4, **pen)
        if blur:
            weight = cv2.GaussianBlur(weight, (0, 0), blur * ZOOM)
        weight = weight * np.float32(min(opacity, 1) / 255)
        if inside is not None:
            weight *= inside[window]
        below = self.pixels[window]
        below += ((tone[window] if isinstance(tone, np.ndarray) else tone) - below) * weight

    def shoulders(self) -> None:
        sides = self.points[[4, 12]] * 0.8 + self.points[8] * 0.2
        neck = np.concatenate([sides, sides[::-1] + [0, 2]])
        self.fill(neck, self.person.skin * 0.55, blur=0.3)
        collar = [(-2.5, 0.6), (-0.8, 0.25), (0, 0.7), (0.8, 0.25), (2.5, 0.6), (2.5, 3), (-2.5, 3)]
        self.fill(self.points[8] + collar, self.rng.uniform(0.05, 0.95), blur=0.3)

    def skull(self, k) -> np.ndarray:
        """The outline of the skull [7, 2], k times as far from the root of the nose."""
        return self.points[27] + (self.points[_SKULL] - self.points[27]) * k

    def hair_behind(self) -> None:
        crown = self.skull(1.13)
        if self.person.style == "long":
            crown = np.stack([crown[0] + [-0.18, 2.2], *crown, crown[-1] + [0.18, 2.2]])
        self.fill(_curve(crown), self.hair * 0.8, blur=0.3)

    def hair_before(self) -> None:
        """Hair over the forehead; the long style also falls over the cheeks' edges."""
        low = HAIRLINE[self.person.style] + self.rng.normal(0, 0.03)
        slant = self.rng.choice([-0.16, 0.16]) * (self.person.style == "parted")
        line = [0.98, 0.92, low + 0.08 - slant, low, low + 0.08 + slant, 0.92, 0.98]
        ends = [self.points[[0, 16]] + _SIDES * [0.02, 0.1]]
        if self.person.style == "long":
            locks = self.points[[3, 13]] + _SIDES * [0.05, 0]
            ends += [locks, locks + _SIDES * [0.3, 0.3]]
        left, right = np.stack(ends, axis=1)
        edge = _curve(np.concatenate([left[::-1], self.skull(np.array(line)[:, None]), right]))
        self.line(edge, 0.12, 0.0, 0.25, blur=0.6)  # the shadow that it casts
        self.fill(np.concatenate([edge, self.skull(1.16)[::-1]]), self.hair, blur=0.25)

    def head(self) -> np.ndarray:
        """Paint the ears and the bare skin; return the skin's mask."""
        ears = self.points[[0, 16]] * 0.7 + self.points[[1, 15]] * 0.3
        self.fill(_oval(ears, [0.10, 0.26]), self.person.skin * 0.75, blur=0.2)
        head = self.mask(_curve(self.points[_JAW + _SKULL[::-1]], closed=True), blur=0.25)
        self.pixels += (self.person.skin - self.pixels) * head
        return head

    def beard(self, skin: np.ndarray) -> None:
        upper = self.points[[14, 54, 35, 33, 31, 48, 2]] + [0, 0.06]
        upper[[5, 1]] += _SIDES * [0.12, -0.08]
        outline = np.concatenate([self.points[2:15], upper])
        self.fill(outline, self.hair, 0.75 * self.person.beard, blur=1.1, inside=skin)

    def folds(self) -> None:
        """Wrinkles: each lies where its action units press the skin together."""
        au, old = self.au, self.person.age
        nose, corner, brow, temple = self.points[[[31, 35], [48, 54], [21, 22], [36, 45]]]

        def crease(*path, depth, width=0.04, blur=0.3):
            path = _curve(np.stack(np.broadcast_arrays(*path), axis=-2))
            self.line(path, width, self.person.skin * 0.45, depth, blur=blur)

        cheek = (nose + corner) / 2 + _SIDES * [0.16, -0.06]
        pulled = 0.08 + 0.25 * old + 0.35 * max(au[9], au[10], 0.7 * au[12])
        crease(nose + _SIDES * [0.06, -0.08], cheek, corner + _SIDES * [0.15, 0.02], depth=pulled)
        droop = 0.1 * old + 0.5 * au[15]
        crease(corner + _SIDES * [0.03, 0.05], corner + _SIDES * [0.1, 0.2], depth=droop)
        frown = brow + _SIDES * [-0.07, 0]
        crease(frown - [0, 0.15], frown + [0, 0.1], depth=0.6 * au[4] + 0.3 * au[9])
        bag = self.points[_EYES[:, [0, 5, 3]]] + [0, 0.09]
        crease(*bag.swapaxes(0, 1), depth=0.1 + 0.2 * old + 0.25 * max(au[6], au[7]))
        three = np.array([[-1], [0], [1]]) * [0, 1]
        crow = temple[:, None] + _SIDES[:, None] * [0.08, 0]
        fan = crow + _SIDES[:, None] * ([0.14, 0] + 0.08 * three)
        crease(crow, fan, depth=0.5 * au[6] * old, width=0.03, blur=0.2)
        root = self.points[27] + [0, 0.02] + 0.06 * three
        crease(root - [0.1, 0], root + [0.1, 0], depth=0.55 * au[9], width=0.03, blur=0.2)
        forehead = self.points[[18, 20, 23, 25]][:, None] - [0, 0.36] + 0.14 * three
        crease(*forehead, depth=0.45 * max(au[1], au[2]) * (0.4 + old))
        chin = self.points[[58, 57, 56]] + [0, 0.1]
        crease(*chin, depth=0.2 + 0.3 * au[17], width=0.07, blur=0.5)

    def nose(self) -> None:
        dark = self.person.skin * 0.35
        wing = _SIDES[:, None] * [(0.02, -0.16), (0.08, -0.08), (0.05, 0.02), (-0.05, 0.03)]
        self.line(_curve(self.points[[31, 35], None] + wing), 0.05, dark, 0.35, blur=0.3)
        nostrils = self.points[[31, 35]] * 0.45 + self.points[[32, 34]] * 0.55
        self.fill(_oval(nostrils, [0.065, 0.035]), dark * 0.5, 0.8, blur=0.25)
        self.line(_curve(self.points[31:36] + [0, 0.04]), 0.06, dark, 0.3, blur=0.4)

    def mouth(self) -> None:
        au, skin = self.au, self.person.skin
        self.fill(_curve(self.points[_LIPS], closed=True), skin * self.person.lips, 0.9, blur=0.2)
        upper, lower = self.points[60:65], self.points[[60, 67, 66, 65, 64]]
        gap = np.maximum(lower[:, 1] - upper[:, 1], 0)
        if gap.max() > 0.05:
            cavity = _curve(self.points[_MOUTH], closed=True)
            self.fill(cavity, 0.05, blur=0.1)
            bared = np.clip(0.35 + max(au[10], au[12], au[20]) - 0.8 * au[26], 0.15, 0.95)
            edge = upper + np.minimum(0.6 * gap, 0.15)[:, None] * [0, 1]
            teeth = np.concatenate([upper, edge[::-1]])
            self.fill(teeth, 0.35 + 0.5 * skin, bared, blur=0.15, inside=self.mask(cavity))
        shut = np.clip(1 - gap.max() / 0.12, 0, 1)
        seam = _curve((upper + lower) / 2)
        self.line(seam, 0.05 + 0.03 * au[24], skin * 0.2, 0.85 * shut, blur=0.15)
        self.fill(_oval(self.points[[48, 54]], 0.05), skin * 0.3, 0.5, blur=0.3)

    def eyes(self) -> np.ndarray:
        """Paint both eyes; return their mask."""
        skin, eyes = self.person.skin, self.points[_EYES]
        outline = _curve(eyes, closed=True)
        within = self.mask(outline)
        self.pixels += (0.5 + 0.4 * skin - self.pixels) * within
        gaze = np.clip(self.rng.normal(0, [0.035, 0.012]), -0.06, 0.06)
        iris = eyes.mean(axis=1) + gaze
        self.fill(_oval(iris, 0.095), self.person.iris, inside=within)
        self.fill(_oval(iris, 0.045), 0.02, inside=within)
        self.fill(_oval(iris - 0.035, 0.025), 0.95, inside=within)
        lid, below = _curve(eyes[:, :4]), _curve(eyes[:, [3, 4, 5, 0]])
        self.line(lid + [0, 0.03], 0.05, 0.1, 0.4, blur=0.2, inside=within)  # the lid's shadow
        self.line(lid, 0.045, 0.06, 0.85, blur=0.12)
        self.line(lid - [0, 0.08], 0.03, skin * 0.4, 0.45, blur=0.2)
        self.line(below, 0.025, skin * 0.4, 0.5, blur=0.12)
        return within

    def brows(self) -> None:
        path = _curve(self.points[_BROWS]) + [0, 0.02]
        taper = np.interp(np.linspace(0, 1, path.shape[1]), [0, 0.35, 0.8, 1], [0.25, 0.9, 1, 0.7])
        half = taper[:, None] * [0, self.person.brow / 2]
        outline = np.concatenate([path - half, (path + half)[:, ::-1]], axis=1)
        self.fill(outline, min(self.person.hair, 0.5 * self.person.skin), 0.85, blur=0.25)

    def light(self) -> np.ndarray:
        """How much light (about 1) each pixel of the skin returns: float32 like `pixels`."""
        grid = (np.arange(WIDTH) / self.unit).astype(np.float32)  # a smooth relief: 1 a pixel
        outline = self.points[_JAW + _SKULL]
        low, high = outline.min(axis=0), outline.max(axis=0)
        x, y = (((grid - c) / r) ** 2 for c, r in zip((low + high) / 2, (high - low) * 0.52))
        dome = 0.85 * np.sqrt(np.maximum(1 - x - y[:, None], 0.02))
        centres = _RELIEF_AT @ self.points + _RELIEF_MOVE  # [bumps, 2]
        bumps = np.exp(-(((grid - centres[..., None]) / _RELIEF_RADII[..., None]) ** 2))
        smile = 1 + _IS_CHEEK * (0.6 * self.au[6] + 0.3 * self.au[12])  # raised cheeks stand out
        height = dome + (bumps[:, 1].T * (_RELIEF_RISE * smile)) @ bumps[:, 0]
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
        dark = self.person.glasses
        rims = _oval(self.points[_EYES].mean(axis=1) + [0, 0.03], [0.34, 0.25], power=0.7)
        self.fill(rims, 0.9, 0.08)
        self.line(np.concatenate([rims, rims[:, :1]], axis=1), 0.05, 0.08, dark, blur=0.1)
        self.line([rims[0, 0], self.points[27], rims[1, 12]], 0.045, 0.08, dark, blur=0.1)
        arms = [[self.points[0], rims[0, 12]], [rims[1, 0], self.points[16]]]
        self.line(arms, 0.045, 0.08, dark, blur=0.1)

    def hand(self) -> None:
        """Fingers over the cheek, the chin or the mouth."""
        target = self.points[self.rng.choice([3, 5, 8, 11, 13, 48, 54])]
        away = (target - self.points[30]) / np.linalg.norm(target - self.points[30])
        across = away[::-1] * [-1, 1]
        for finger in range(-2, 2):
            tip = target + 0.24 * finger * across + 0.05 * abs(finger) * away
            self.line([tip, tip + 2.5 * away], 0.27, self.person.skin * 0.35, 0.6, blur=0.4)
            self.line([tip, tip + 2.5 * away], 0.21, self.person.skin * 0.95, blur=0.25)


def _background(rng: np.random.Generator) -> np.ndarray:
    x = np.linspace(-0.5, 0.5, WIDTH * ZOOM, dtype=np.float32)
    slope = rng.normal(0, 0.2, 2).astype(np.float32)
    clutter = np.float32(rng.choice([0.03, 0.12, 0.25])) * _texture(rng, *rng.integers(3, 9, 2))
    tone = np.float32(rng.uniform(0.02, 0.98))
    return np.clip(tone + slope[0] * x + slope[1] * x[:, None] + clutter, 0, 1)


def _texture(rng: np.random.Generator, columns: int, rows: int) -> np.ndarray:
    """Smooth noise of mean 0 and about unit range, as large as the canvas."""
    return _enlarged(rng.uniform(-1, 1, (rows, columns)).astype(np.float32))


def _enlarged(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, (WIDTH * ZOOM, WIDTH * ZOOM), interpolation=cv2.INTER_CUBIC)


def _curve(points: np.ndarray, closed: bool = False) -> np.ndarray:
    """A smooth path through points [..., n, 2]."""
    return _spline(points.shape[-2], closed) @ points


@lru_cache
def _spline(n: int, closed: bool) -> np.ndarray:
    """The matrix [m, n] that makes n points a smooth path of m (Catmull-Rom)."""
    t = np.linspace(0, 1, 6)
    basis = [2 * t**2 - t**3 - t, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]
    rows = []
    for start in range(n if closed else n - 1):
        near = np.arange(start - 1, start + 3)
        near = near % n if closed else near.clip(0, n - 1)
        rows.append(np.stack(basis, axis=1) / 2 @ np.eye(n)[near])
    return np.concatenate(rows)


def _oval(centre: np.ndarray, radii, power: float = 1.0) -> np.ndarray:
    """Ellipses [..., 24, 2] about centres [..., 2]; a power below 1 squares them."""
    angle = np.arange(24) * np.pi / 12
    rim = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return centre[..., None, :] + np.sign(rim) * np.abs(rim) ** power * radii


# ---------------------------------------------------------------- camera


def _camera(painting: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Take a poor photograph of the painting: uint8 [48, 48]."""
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
