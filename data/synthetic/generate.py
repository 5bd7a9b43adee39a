"""The sample: a small seven-class set of faces drawn in code, with their true landmarks.

FER2013 may not be copied, so these stand in for it in the tests, the demo and the
README. Here is what a face is: a mean anatomy in 3D, an identity, the action units
of an expression (Ekman & Friesen's FACS) and a pose; `data.synthetic.portrait` paints it. A
face depends on its own number and the seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data.synthetic.canvas import WIDTH
from data.dataset import EMOTIONS, LANDMARK_NUM, SPLITS, FaceDataset
from data.landmarks import FLIP
from data.synthetic.portrait import EYES, Looks, portrait

# Unit of the anatomy: half the face's width; origin between the eyes; x right, y down,
# z towards the viewer. Only the image-left half is written, its mirror is the other:
# the 68 landmarks, then four points of the head's outline above the ears (68-71).
# fmt: off
HALF_FACE = {
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
MIRROR = np.r_[FLIP, 74:67:-1]  # the point of the other half, for each of the 75
UPPER, LOWER = [37, 38, 43, 44, 61, 62, 63], [41, 40, 47, 46, 67, 66, 65]  # lids, inner lips

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
# fmt: on
HAIR_STYLES = {"short": 0.32, "fringe": 0.2, "parted": 0.15, "long": 0.23, "bald": 0.1}  # how often


def synthetic_dataset(
    training: int = 200, public: int = 40, private: int = 40, seed: int = 0
) -> FaceDataset:
    """Draw `training`, `public` and `private` faces of each of the seven classes.

    The same seed gives the same bytes (with the same OpenCV), and face i of a class
    and usage is the same however many there are. Classes take turns, so every
    stretch is balanced.

    Returns:
        Faces: images uint8 [N, 48, 48] and the true landmarks float32 [N, 68, 2] in
        pixels (pixel centres at whole numbers), N = 7 (training + public + private).
    """
    keys = [
        (split, index, label)
        for split, count in enumerate((training, public, private))
        for index in range(count)
        for label in range(len(EMOTIONS))
    ]
    images = np.empty((len(keys), WIDTH, WIDTH), dtype=np.uint8)
    landmarks = np.empty((len(keys), LANDMARK_NUM, 2), dtype=np.float32)
    for i, key in enumerate(keys):
        rng = np.random.default_rng([seed, *key])
        images[i], landmarks[i] = draw_face(EMOTIONS[key[2]], rng)
    return FaceDataset(
        images=images,
        labels=np.array([label for _, _, label in keys], dtype=np.int64),
        split=np.array([SPLITS[split] for split, _, _ in keys], dtype="U12"),
        landmarks=landmarks,
        source="synthetic sample (drawn in code, no real faces)",
    )


def draw_face(emotion: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one face: uint8 [48, 48] and its landmarks [68, 2] in pixels."""
    shape, looks = _identity(rng)
    strengths = _expression(emotion, rng)
    points, unit = _pose(_met(_moved(shape, AU_MOVES, strengths)), rng)
    image = portrait(looks, dict(zip(AU_NUMBERS, strengths)), points, unit, rng)
    return image, points[:LANDMARK_NUM]


def _whole(half: Mapping[int, Sequence[float]]) -> np.ndarray:
    """Complete a table of the image-left half by its mirror: [75, 2 or 3]."""
    size = len(next(iter(half.values())))
    whole = np.zeros((len(MIRROR), size))
    for index, values in half.items():
        whole[MIRROR[index]] = [-values[0], *values[1:]]
        whole[index] = values
    return whole


def _moves(table: Mapping[str, Mapping[int, Sequence[float]]]) -> np.ndarray:
    """Return a table of moves in hundredths as an array [len(table), 75, 2] in the unit."""
    return np.stack([_whole(half) for half in table.values()]) / 100


MEAN_FACE, AU_MOVES, IDENTITY_MOVES = _whole(HALF_FACE), _moves(ACTION_UNITS), _moves(IDENTITY)
AU_NUMBERS = [int(name.split()[0].removeprefix("AU")) for name in ACTION_UNITS]


def _moved(shape: np.ndarray, moves: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Add weighted moves to a shape [75, 3]; they lie in the face's plane, so z stays."""
    shape = shape.copy()
    shape[:, :2] += np.tensordot(weights, moves, axes=1)
    return shape


def _met(shape: np.ndarray) -> np.ndarray:
    """Let lids and lips that would cross meet halfway."""
    upper, lower = shape[UPPER, 1], shape[LOWER, 1]
    middle = (upper + lower) / 2
    shape[UPPER, 1], shape[LOWER, 1] = np.minimum(upper, middle), np.maximum(lower, middle)
    return shape


def _identity(rng: np.random.Generator) -> tuple[np.ndarray, Looks]:
    """Draw who a face is: its shape [75, 3] at rest, in the unit above, and its looks."""
    weights = np.clip(rng.normal(size=len(IDENTITY)), -2, 2)
    shape = _moved(MEAN_FACE, IDENTITY_MOVES, weights)
    shape *= 1 + rng.normal(0, [0.04, 0.04, 0.08])
    looks = Looks(
        skin=rng.beta(3, 2) * 0.55 + 0.3,
        hair=rng.uniform(0.05, 0.25) if rng.random() < 0.7 else rng.uniform(0.25, 0.75),
        lips=rng.uniform(0.62, 0.86),
        iris=rng.uniform(0.05, 0.35),
        brow=rng.uniform(0.05, 0.11),
        age=rng.random(),
        style=rng.choice(list(HAIR_STYLES), p=list(HAIR_STYLES.values())),
        beard=rng.uniform(0.3, 0.9) if rng.random() < 0.16 else 0.0,
        glasses=rng.uniform(0.4, 1.0) if rng.random() < 0.1 else 0.0,
    )
    return shape, looks


def _expression(emotion: str, rng: np.random.Generator) -> np.ndarray:
    """Draw strengths [len(ACTION_UNITS)]: weak to strong, uneven, with a little of the others."""
    means = np.array([EXPRESSIONS[emotion].get(number, 0.0) for number in AU_NUMBERS])
    strength = rng.uniform(0.35, 1.2)
    uneven = np.clip(rng.normal(1, 0.3, len(means)), 0, 2)
    stray = np.maximum(rng.normal(-0.08, 0.12, len(means)), 0)
    return means * strength * uneven + stray


def _pose(shape: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Turn the head and place it in the frame: points [75, 2] in pixels, pixels per unit."""
    yaw, pitch, roll = np.radians(np.clip(rng.normal(0, [11, 6, 5]), -26, 26))
    turn = _rotation(yaw, 0, 2) @ _rotation(pitch, 1, 2)
    pivot = [0, 0.3, 0]  # the middle of the face, which keeps its distance as the head turns
    x, y, z = ((shape - pivot) @ turn.T + pivot).T
    near = 1 + 0.08 * z  # weak perspective: what is near is larger
    flat = np.stack([x * near, y * near], axis=1) @ _rotation(roll, 0, 1)[:2, :2].T
    # The crop follows the face, as a detector's box does, but not into a face turned away.
    unit = min(rng.normal(36.5, 1.8) / np.ptp(flat[[0, 16], 0]), 21.5)
    jaw = flat[:17, 0]
    middle = np.array([jaw.min() + jaw.max(), flat[EYES, 1].mean() + flat[8, 1]]) / 2
    return (flat - middle) * unit + rng.normal([23.5, 31.8], 0.9), unit


def _rotation(angle: float, i: int, j: int) -> np.ndarray:
    """Rotate axis j towards axis i in three dimensions."""
    turn = np.eye(3)
    turn[[i, j], [i, j]] = np.cos(angle)
    turn[i, j], turn[j, i] = np.sin(angle), -np.sin(angle)
    return turn
