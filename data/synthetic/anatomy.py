"""Tables of synthetic faces: 3D shape, action units, expressions, and variation between people.

Lengths are in face units: half the width of the face. The origin is between the eyes, x points
right, y down, z towards the camera. Tables contain the image-left half; the other is its mirror
image. Points 0 to 67 are the iBUG landmarks, 68 to 74 the outline of the head above the ears.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.coordinates import FLIP

MIRROR = np.r_[FLIP, 74:67:-1]  # index of the mirror image of each of the 75 points
JAW, SKULL = list(range(17)), list(range(68, 75))
BROWS = np.array([[17, 18, 19, 20, 21], [26, 25, 24, 23, 22]])  # from the temple to the nose
EYES = np.array([[36, 37, 38, 39, 40, 41], [45, 44, 43, 42, 47, 46]])  # outer corner, upper lid
LIPS, MOUTH = list(range(48, 60)), list(range(60, 68))
UPPER, LOWER = [37, 38, 43, 44, 61, 62, 63], [41, 40, 47, 46, 67, 66, 65]  # lids, inner lips

# The neutral mean face: x, y, z.
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

# Displacement (x, y) of landmarks by an action unit (Ekman and Friesen's FACS) of strength 1, in
# hundredths of the face unit.
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

# Mean strength of each action unit in an expression.
EXPRESSIONS = {
    "angry": {4: 1.0, 7: .8, 24: .9, 17: .3, 5: .2},
    "disgust": {9: 1.1, 10: 1.1, 4: .15, 7: .6, 25: .5, 6: .4, 15: .4},
    "fear": {1: 1.0, 2: .3, 4: .35, 5: 1.0, 20: 1.0, 25: 1.2, 26: .25},
    "happy": {6: .9, 12: 1.1, 25: .7},
    "sad": {1: 1.0, 4: .35, 15: 1.1, 17: .6, 43: .45},
    "surprise": {1: 1.0, 2: 1.1, 5: .8, 25: .4, 26: 1.1},
    "neutral": {},
}

# Displacement (x, y) per standard deviation of a person's features, in hundredths of the face unit.
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

# The relief for shading: bumps of a height and radii (x, y), centered at the mean of some landmarks
# plus an offset (x, y), in face units.
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

HAIR_STYLES = {"short": 0.32, "fringe": 0.2, "parted": 0.15, "long": 0.23, "bald": 0.1}  # frequency
# Distance of the hairline from the root of the nose, relative to the outline of the skull.
HAIRLINE = {"short": 0.72, "fringe": 0.52, "parted": 0.60, "long": 0.68}


@dataclass(frozen=True)
class Appearance:
    """The appearance of a person; tones are from 0 (black) to 1 (white)."""

    skin: float  # tone
    hair: float  # tone
    lips: float  # tone relative to that of the skin
    iris: float  # tone
    brow: float  # thickness in face units
    age: float  # 0 to 1, depth of the folds
    style: str  # of the hair, from HAIR_STYLES
    beard: float  # opacity, 0 for none
    glasses: float  # opacity of the rims, 0 for none


def _mirrored(half: Mapping[int, Sequence[float]]) -> np.ndarray:
    """Return the whole face of a table of the image-left half: [75, 2 or 3]."""
    size = len(next(iter(half.values())))
    whole = np.zeros((len(MIRROR), size))
    for index, values in half.items():
        whole[MIRROR[index]] = [-values[0], *values[1:]]
        whole[index] = values
    return whole


MEAN_FACE = _mirrored(HALF_FACE)  # [75, 3]
ACTION_UNIT_SHIFTS = np.stack([*map(_mirrored, ACTION_UNITS.values())]) / 100  # [K, 75, 2]
ACTION_UNIT_NUMBERS = [int(name.split()[0].removeprefix("AU")) for name in ACTION_UNITS]
IDENTITY_SHIFTS = np.stack([*map(_mirrored, IDENTITY.values())]) / 100  # [features, 75, 2]

RELIEF_WEIGHTS = np.stack([np.isin(np.arange(75), at) / len(at) for _, at, *_ in RELIEF])
RELIEF_OFFSETS, RELIEF_HEIGHTS, RELIEF_RADII = map(np.array, list(zip(*RELIEF))[2:])
IS_CHEEK = np.array([name == "cheek" for name, *_ in RELIEF])
