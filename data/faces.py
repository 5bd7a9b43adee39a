"""`Faces`: the one thing that `data` hands on, whatever layout it was read from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property

import cv2
import numpy as np

from utils.errors import DataError

# FER2013's own order: the class of code 0 comes first.
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
USAGES = ("Training", "PublicTest", "PrivateTest")
UNKNOWN = -1  # the label of a face that has none
LANDMARK_NUM = 68

_SPELLINGS = {
    "angry": ("anger", "ang", "an"),
    "disgust": ("disgusted", "dis", "di"),
    "fear": ("fearful", "afraid", "scared", "fea", "fe"),
    "happy": ("happiness", "joy", "hap", "ha"),
    "sad": ("sadness", "sa"),
    "surprise": ("surprised", "sur", "su"),
    "neutral": ("neutrality", "normal", "neu", "ne"),
}
_CLASS_OF_SPELLING = {
    spelling: name for name, others in _SPELLINGS.items() for spelling in (name, *others)
}


def canonical_class(spelling: str) -> str | None:
    """Return FER2013's name of a class in any common spelling, or None for another class."""
    return _CLASS_OF_SPELLING.get(spelling.strip().lower())


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


@dataclass(frozen=True)
class Faces:
    """A data set of N faces.

    Attributes:
        images: uint8 [N, H, W], or [N, H, W, 3] in RGB.
        labels: int64 [N], an index into `class_names`, or UNKNOWN.
        usage: str [N], each one of USAGES.
        class_names: the C classes, in the order of the labels.
        landmarks: float32 [N, 68, 2], x and y in pixels (pixel centres at whole
            numbers), NaN for a face that has none; None while nobody looked.
        votes: int64 [N, 10], FER+'s votes per face, or None.
        source: where the faces come from, for a person to read.
    """

    images: np.ndarray
    labels: np.ndarray
    usage: np.ndarray
    class_names: tuple[str, ...] = EMOTIONS
    landmarks: np.ndarray | None = None
    votes: np.ndarray | None = None
    source: str = ""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def has_landmarks(self) -> np.ndarray:
        """bool [N]: the faces whose landmarks are known."""
        if self.landmarks is None:
            return np.zeros(len(self), dtype=bool)
        return ~np.isnan(self.landmarks).any(axis=(1, 2))

    @property
    def training_rows(self) -> np.ndarray:
        """int [M]: the rows of the faces to train on, the labelled Training ones."""
        return np.flatnonzero((self.usage == "Training") & (self.labels != UNKNOWN))

    @cached_property
    def digest(self) -> str:
        """A name for this very content: equal pixels, labels and usages give equal digests."""
        return _digest(self.images, self.labels, self.usage.astype("U12"))

    @cached_property
    def target_digest(self) -> str:
        """Likewise of what is learnt besides the labels: the landmarks and the votes."""
        known = (array for array in (self.landmarks, self.votes) if array is not None)
        return _digest(*known)

    def select(self, which: np.ndarray) -> Faces:
        """Return the faces that an index or a mask [N] picks."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: v[which] for name, v in values.items() if isinstance(v, np.ndarray)}
        return replace(self, **arrays)

    def of(self, *usages: str) -> Faces:
        """Return the faces of the named usages, in their order here."""
        return self.select(np.isin(self.usage, usages))

    def counts(self) -> dict[str, int]:
        """Return the number of faces of each usage that is present."""
        return {u: n for u in USAGES if (n := int(np.count_nonzero(self.usage == u)))}

    def resized(self, width: int) -> Faces:
        """Return the faces as width x width pixels, the landmarks moved along."""
        height, old = self.images.shape[1:3]
        if (height, old) == (width, width):
            return self
        images = np.stack([resize_image(image, width) for image in self.images])
        landmarks = self.landmarks
        if landmarks is not None:
            landmarks = resize_landmarks(landmarks, (old, height), width)
        return replace(self, images=images, landmarks=landmarks)

    def with_noise(self, share: float, seed: int) -> Faces:
        """Return the faces with a share of the Training labels replaced by other ones at random."""
        rng = np.random.default_rng(seed)
        rows = self.training_rows
        rows = rng.permutation(rows)[: round(share * len(rows))]
        labels, classes = self.labels.copy(), len(self.class_names)
        labels[rows] = (labels[rows] + rng.integers(1, classes, len(rows))) % classes
        return replace(self, labels=labels)

    def in_order(self, class_names: tuple[str, ...]) -> Faces:
        """Return the faces with their labels counted among these classes, which have all theirs."""
        places = np.array([*map(class_names.index, self.class_names), UNKNOWN])
        return replace(self, labels=places[self.labels], class_names=class_names)

    def grey_levels(self, usage: str) -> tuple[float, float]:
        """Return the mean and the standard deviation of a usage's pixels, 0 to 255."""
        counts = np.zeros(256, np.int64)
        for rows in np.array_split(np.flatnonzero(self.usage == usage), len(self) // 1024 + 1):
            counts += np.bincount(self.images[rows].ravel(), minlength=256)
        levels = np.arange(256)
        mean = np.average(levels, weights=counts)
        return float(mean), float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))

    def mean_face(self) -> np.ndarray:
        """Return the mean landmarks of the Training faces that have any: float32 [68, 2], pixels.

        Raises:
            DataError: no Training face has landmarks.
        """
        known = self.has_landmarks & (self.usage == "Training")
        if not known.any():
            raise DataError(
                f"{self.source}: no Training face has landmarks, so there is no mean face; "
                "train with --no_landmarks, or bring larger or clearer faces"
            )
        return self.landmarks[known].mean(axis=0, dtype=np.float64).astype(np.float32)

    def duplicates(self) -> np.ndarray:
        """bool [N]: held-out faces whose very pixels also stand among the Training faces."""
        names = np.array(
            [hashlib.blake2b(i.tobytes(), digest_size=16).hexdigest() for i in self.images]
        )
        training = self.usage == "Training"
        return ~training & np.isin(names, names[training])


def resize_image(image: np.ndarray, width: int) -> np.ndarray:
    """Return uint8 [H, W] or [H, W, 3] as width x width, without aliasing."""
    shrinks = width < max(image.shape[:2])
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (width, width), interpolation=interpolation)


def resize_landmarks(landmarks: np.ndarray, size: tuple[int, int], width: int) -> np.ndarray:
    """Move landmarks [..., 68, 2] from an image of size (width, height) to a square `width`.

    Pixel centres are whole numbers, so the image's left edge is at -0.5.
    """
    scale = width / np.asarray(size, dtype=np.float32)
    return ((landmarks + 0.5) * scale - 0.5).astype(np.float32)


def broken_promises(faces: Faces, width: int) -> list[str]:
    """Return what N faces of this width should be by Faces' promise, and are not."""
    n, images, labels = len(faces), faces.images, faces.labels
    classes, landmarks = len(faces.class_names), faces.landmarks
    promises = {
        f"images: uint8 [{n}, {width}, {width}], or with 3 colours": images.dtype == np.uint8
        and images.shape[1:] in ((width, width), (width, width, 3)),
        f"labels: int64 [{n}], from {UNKNOWN} to {classes - 1}": labels.dtype == np.int64
        and labels.shape == (n,)
        and bool(((labels >= UNKNOWN) & (labels < classes)).all()),
        f"usage: [{n}], each of {', '.join(USAGES)}": faces.usage.shape == (n,)
        and bool(np.isin(faces.usage, USAGES).all()),
        f"landmarks: [{n}, {LANDMARK_NUM}, 2], or None": landmarks is None
        or landmarks.shape == (n, LANDMARK_NUM, 2),
    }
    return [promise for promise, kept in promises.items() if not kept]


def as_promised(faces: Faces, width: int) -> Faces:
    """Return what a reader made of N faces of this width, if it is what Faces promises.

    Raises:
        DataError: it is not, so that something else would be learnt than is there.
    """
    if broken := broken_promises(faces, width):
        raise DataError(
            f"{faces.source or 'these faces'}: the reader of this layout does not give "
            f"{'; '.join(broken)}; mend its `read` (see CONTRIBUTING.md)"
        )
    return faces


def check_trainable(faces: Faces) -> None:
    """Raise a DataError unless every class has Training faces, and PublicTest any."""
    labels = faces.labels[faces.training_rows]
    if not len(labels):
        raise DataError(
            f"{faces.source}: no labelled Training faces, so nothing to train on; a CSV needs a "
            "column emotion and rows whose Usage is Training, a folder train/<class>/"
        )
    if len(faces.class_names) < 2:
        raise DataError(
            f"{faces.source}: {listed(faces.class_names)} is the only class, and to tell apart "
            "there must be two"
        )
    counts = np.bincount(labels, minlength=len(faces.class_names))
    if missing := [name for name, n in zip(faces.class_names, counts) if n == 0]:
        raise DataError(
            f"{faces.source}: no Training face of {listed(missing)}; "
            "add some, or name the classes that there are with --class_names"
        )

    if not ((faces.usage == "PublicTest") & (faces.labels != UNKNOWN)).any():
        raise DataError(
            f"{faces.source}: no labelled PublicTest faces, and too few Training ones to hold some "
            "out, so no epoch can be chosen; add a validation/ folder or more faces"
        )


def listed(names: Iterable[str]) -> str:
    """Return names for a message: quoted, with commas between."""
    return ", ".join(f"'{name}'" for name in names)
