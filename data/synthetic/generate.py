"""The synthetic data set: seven balanced classes of rendered faces with exact landmarks.

FER2013 may not be redistributed, so tests and the demo use these images. A face consists of a 3D
shape, a person's features, the action units of an expression, and a pose
(`data.synthetic.anatomy`); `data.synthetic.portrait` renders it.
"""

import numpy as np

from data.dataset import SPLITS, FaceDataset
from data.synthetic import anatomy
from data.synthetic.anatomy import ACTION_UNIT_NUMBERS, EYES, JAW, LOWER, UPPER, Appearance
from data.synthetic.portrait import Portrait
from utils.classes import EMOTIONS
from utils.coordinates import NUM_LANDMARKS


def synthetic_dataset(
    training: int = 200, public: int = 40, private: int = 40, seed: int = 0
) -> FaceDataset:
    """Render numbers of images per class and split, uint8 [N, 48, 48], with their landmarks.

    Each image depends on the seed, its split, its class and its number in them, but not on the
    number of images. The same seed gives the same bytes (with the same OpenCV).
    """
    counts = enumerate((training, public, private))
    keys = [(s, i, label) for s, n in counts for i in range(n) for label in range(len(EMOTIONS))]
    rngs = (np.random.default_rng([seed, *key]) for key in keys)
    samples = [render_sample(EMOTIONS[key[2]], rng) for key, rng in zip(keys, rngs)]
    images, landmarks = (np.stack(arrays) for arrays in zip(*samples))
    labels = np.array([label for _, _, label in keys], np.int64)
    split = np.array([SPLITS[split] for split, _, _ in keys], "U12")
    source = "the synthetic data set"
    return FaceDataset(images, labels, split, landmarks=landmarks, source=source)


def render_sample(emotion: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Render one random face: uint8 [48, 48], and its landmarks float32 [68, 2] in pixels."""
    shape, appearance = _person(rng)
    strengths = _expression(emotion, rng)
    shape = _shift(shape, anatomy.ACTION_UNIT_SHIFTS, strengths)
    # Lids and lips that cross are closed at their common middle.
    upper, lower = shape[UPPER, 1], shape[LOWER, 1]
    middle = (upper + lower) / 2
    shape[UPPER, 1], shape[LOWER, 1] = np.minimum(upper, middle), np.maximum(lower, middle)
    points, unit = _project(shape, rng)
    action_units = dict(zip(ACTION_UNIT_NUMBERS, strengths))
    image = Portrait(appearance, action_units, points, unit, rng).render()
    return image, points[:NUM_LANDMARKS].astype(np.float32)


def _shift(shape: np.ndarray, shifts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Add weighted displacements [K, 75, 2] to x and y of a shape [75, 3]."""
    shape = shape.copy()
    shape[:, :2] += np.tensordot(weights, shifts, axes=1)
    return shape


def _person(rng: np.random.Generator) -> tuple[np.ndarray, Appearance]:
    """Return a random neutral shape [75, 3] and a random appearance."""
    weights = np.clip(rng.normal(size=len(anatomy.IDENTITY)), -2, 2)
    shape = _shift(anatomy.MEAN_FACE, anatomy.IDENTITY_SHIFTS, weights)
    shape *= 1 + rng.normal(0, [0.04, 0.04, 0.08])
    styles = anatomy.HAIR_STYLES
    appearance = Appearance(
        skin=rng.beta(3, 2) * 0.55 + 0.3,
        hair=rng.uniform(0.05, 0.25) if rng.random() < 0.7 else rng.uniform(0.25, 0.75),
        lips=rng.uniform(0.62, 0.86),
        iris=rng.uniform(0.05, 0.35),
        brow=rng.uniform(0.05, 0.11),
        age=rng.random(),
        style=rng.choice(list(styles), p=list(styles.values())),
        beard=rng.uniform(0.3, 0.9) if rng.random() < 0.16 else 0.0,
        glasses=rng.uniform(0.4, 1.0) if rng.random() < 0.1 else 0.0,
    )
    return shape, appearance


def _expression(emotion: str, rng: np.random.Generator) -> np.ndarray:
    """Return random strengths [K] of the action units of an expression, with weak other ones."""
    means = np.array([anatomy.EXPRESSIONS[emotion].get(n, 0.0) for n in ACTION_UNIT_NUMBERS])
    strength = rng.uniform(0.35, 1.2)
    variation = np.clip(rng.normal(1, 0.3, len(means)), 0, 2)
    others = np.maximum(rng.normal(-0.08, 0.12, len(means)), 0)
    return means * strength * variation + others


def _project(shape: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Rotate and project a shape: points [75, 2] in pixels, and pixels per face unit."""
    yaw, pitch, roll = np.radians(np.clip(rng.normal(0, [11, 6, 5]), -26, 26))
    rotation = _rotation(yaw, 0, 2) @ _rotation(pitch, 1, 2)
    pivot = [0, 0.3, 0]  # the middle of the face
    x, y, z = ((shape - pivot) @ rotation.T + pivot).T
    scale = 1 + 0.08 * z  # weak perspective
    flat = np.stack([x * scale, y * scale], axis=1) @ _rotation(roll, 0, 1)[:2, :2].T
    # The crop has about the size of a detector's box; its limit is for faces in half profile.
    unit = min(rng.normal(36.5, 1.8) / np.ptp(flat[[0, 16], 0]), 21.5)
    jaw = flat[JAW, 0]
    middle = np.array([jaw.min() + jaw.max(), flat[EYES, 1].mean() + flat[8, 1]]) / 2
    return (flat - middle) * unit + rng.normal([23.5, 31.8], 0.9), unit


def _rotation(angle: float, i: int, j: int) -> np.ndarray:
    """Return the rotation [3, 3] of axis j towards axis i."""
    rotation = np.eye(3)
    rotation[[i, j], [i, j]] = np.cos(angle)
    rotation[i, j], rotation[j, i] = np.sin(angle), -np.sin(angle)
    return rotation
