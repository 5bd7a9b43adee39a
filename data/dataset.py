"""`FaceDataset`: what every reader returns, whatever the layout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np

from utils.classes import EMOTIONS
from utils.errors import DataError

SPLITS = ("Training", "PublicTest", "PrivateTest")
UNLABELED = -1

_SPELLINGS = {
    "angry": ("angry", "anger", "ang", "an"),
    "disgust": ("disgust", "disgusted", "dis", "di"),
    "fear": ("fear", "fearful", "afraid", "scared", "fea", "fe"),
    "happy": ("happy", "happiness", "joy", "hap", "ha"),
    "sad": ("sad", "sadness", "sa"),
    "surprise": ("surprise", "surprised", "sur", "su"),
    "neutral": ("neutral", "neutrality", "normal", "neu", "ne"),
}
_CLASS_OF_SPELLING = {word: name for name, words in _SPELLINGS.items() for word in words}


@dataclass(frozen=True)
class FaceDataset:
    """A data set of N images of one face each.

    Landmarks are in pixels, whose centers have whole coordinates, so the left edge of the image is
    at -0.5.
    """

    images: np.ndarray  # uint8 [N, H, W], or [N, H, W, 3] in RGB
    labels: np.ndarray  # int64 [N], an index into `class_names`, or UNLABELED
    split: np.ndarray  # str [N], from SPLITS
    class_names: tuple[str, ...] = EMOTIONS  # in the order of the labels
    landmarks: np.ndarray | None = None  # float32 [N, 68, 2], x and y, NaN for images without any
    votes: np.ndarray | None = None  # int64 [N, 10], FER+'s votes
    # int64 [N], FER+'s majority as an index into `class_names`, or UNLABELED: only for evaluation.
    human_labels: np.ndarray | None = None
    source: str = ""  # its description, for messages

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """1 for grayscale images, 3 for RGB."""
        return 3 if self.images.ndim == 4 else 1

    @property
    def has_landmarks(self) -> np.ndarray:
        """Mask [N] of the images with landmarks."""
        if self.landmarks is None:
            return np.zeros(len(self), dtype=bool)
        return ~np.isnan(self.landmarks).any(axis=(1, 2))

    @property
    def training_rows(self) -> np.ndarray:
        """Rows [M] of the labeled Training images."""
        return np.flatnonzero((self.split == "Training") & (self.labels != UNLABELED))

    @cached_property
    def digest(self) -> str:
        """Digest of the images, labels and splits."""
        return _digest(self.images, self.labels, self.split.astype("U12"))

    @cached_property
    def target_digest(self) -> str:
        """Digest of the landmarks and votes."""
        return _digest(*(a for a in (self.landmarks, self.votes) if a is not None))

    def select(self, index: np.ndarray) -> FaceDataset:
        """Return the images that an index or a mask [N] selects."""
        arrays = {name: v for name, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **{name: array[index] for name, array in arrays.items()})

    def subset(self, *splits: str) -> FaceDataset:
        """Return the images of some splits, in their order."""
        return self.select(np.isin(self.split, splits))

    def counts(self) -> dict[str, int]:
        """Return the number of images of each split that is present."""
        return {s: n for s in SPLITS if (n := int(np.count_nonzero(self.split == s)))}

    def describe(self) -> str:
        """Return the source, the number of images, and the classes, in two lines."""
        counts = ", ".join(f"{n:,} {split}" for split, n in self.counts().items())
        classes, used = ", ".join(self.class_names), len(self.training_rows)
        if 0 < used < self.counts().get("Training", 0):
            counts += f"; trains on {used:,}"
        return f"{self.source}: {len(self):,} images, {counts}\nclasses  {classes}"

    def resized(self, width: int) -> FaceDataset:
        """Return the data set with images of width x width pixels, landmarks included."""
        old_height, old_width = self.images.shape[1:3]
        if old_height == old_width == width:
            return self
        images = np.stack([resize_image(image, width) for image in self.images])
        if (landmarks := self.landmarks) is not None:
            landmarks = resize_landmarks(landmarks, (old_width, old_height), width)
        return replace(self, images=images, landmarks=landmarks)

    def with_label_noise(self, share: float, seed: int) -> FaceDataset:
        """Return the data set with a share of the Training labels replaced by random other ones."""
        rng, rows = np.random.default_rng(seed), self.training_rows
        rows = rng.permutation(rows)[: round(share * len(rows))]
        labels, classes = self.labels.copy(), len(self.class_names)
        labels[rows] = (labels[rows] + rng.integers(1, classes, len(rows))) % classes
        return replace(self, labels=labels)

    def with_images_per_class(self, count: int, seed: int) -> FaceDataset:
        """Return the data set with `count` random Training images of each class, or all for 0.

        The others become UNLABELED, so no row moves. A class with fewer images keeps all.
        """
        if not count:
            return self
        rng, labels, rows = np.random.default_rng(seed), self.labels.copy(), self.training_rows
        for label in range(len(self.class_names)):
            labels[rng.permutation(rows[self.labels[rows] == label])[count:]] = UNLABELED
        return replace(self, labels=labels)

    def with_class_order(self, class_names: tuple[str, ...]) -> FaceDataset:
        """Return the data set with labels that index other class names, a superset of its own."""
        index = np.array([*map(class_names.index, self.class_names), UNLABELED])
        return replace(self, labels=index[self.labels], class_names=class_names)

    def pixel_statistics(self, split: str) -> tuple[float, float]:
        """Return mean and standard deviation of a split's pixels, 0 to 255."""
        counts = np.zeros(256, np.int64)
        for rows in np.array_split(np.flatnonzero(self.split == split), len(self) // 1024 + 1):
            counts += np.bincount(self.images[rows].ravel(), minlength=256)
        levels = np.arange(256)
        mean = np.average(levels, weights=counts)
        return float(mean), float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))

    def mean_face(self) -> np.ndarray:
        """Return the mean landmarks of the Training images, float32 [68, 2]."""
        rows = self.has_landmarks & (self.split == "Training")
        if not rows.any():
            fault = f"{self.source}: no Training image has landmarks"
            raise DataError(f"{fault}; use larger or clearer images, or --no_landmarks")
        return self.landmarks[rows].mean(axis=0, dtype=np.float64).astype(np.float32)

    def duplicates(self) -> np.ndarray:
        """Return a mask [N] of the test images whose pixels are also in Training."""
        digests = np.array([_digest(image) for image in self.images])
        training = self.split == "Training"
        return ~training & np.isin(digests, digests[training])


def canonical_class(spelling: str) -> str | None:
    """Return FER2013's name of a class in any common spelling, or None for another class."""
    return _CLASS_OF_SPELLING.get(spelling.strip().lower())


def match_classes(names: Sequence[str], others: Sequence[str]) -> dict[int, int]:
    """Return the index in `others` by the index in `names` of the classes that both have.

    A class has the same name in any common spelling of FER2013's names, and in any case.
    """
    index = {_normalized_class(name): i for i, name in enumerate(others)}
    index |= {name: i for i, name in enumerate(others)}
    keys = [name if name in index else _normalized_class(name) for name in names]
    return {i: index[key] for i, key in enumerate(keys) if key in index}


def _normalized_class(name: str) -> str:
    return canonical_class(name) or name.strip().lower()


def resize_image(image: np.ndarray, width: int) -> np.ndarray:
    """Return uint8 [H, W] or [H, W, 3] as width x width, antialiased."""
    interpolation = cv2.INTER_AREA if width < max(image.shape[:2]) else cv2.INTER_CUBIC
    return cv2.resize(image, (width, width), interpolation=interpolation)


def resize_landmarks(landmarks: np.ndarray, size: tuple[int, int], width: int) -> np.ndarray:
    """Move landmarks [..., 68, 2] from an image of size (width, height) to a square of `width`."""
    scale = width / np.asarray(size, dtype=np.float32)
    return ((landmarks + 0.5) * scale - 0.5).astype(np.float32)


def check_trainable(dataset: FaceDataset) -> None:
    """Raise a DataError if there are no Training images of a class, or no PublicTest images."""
    labels, names = dataset.labels[dataset.training_rows], dataset.class_names
    missing = [name for name, n in zip(names, np.bincount(labels, minlength=len(names))) if n == 0]
    if not len(labels):
        fault = "no labeled Training images; a CSV needs a column emotion, a folder train/<class>/"
    elif len(names) < 2:
        fault = f"{quoted(names)} is the only class; at least two are needed"
    elif missing:
        fault = f"no Training image of {quoted(missing)}; add some, or correct --class_names"
    elif not ((dataset.split == "PublicTest") & (dataset.labels != UNLABELED)).any():
        fault = "no labeled PublicTest images; add a folder validation/, or images to hold out"
    else:
        return
    raise DataError(f"{dataset.source}: {fault}")


def quoted(names: Iterable[str]) -> str:
    """Return names for a message: quoted, separated by commas."""
    return ", ".join(f"'{name}'" for name in names)


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
