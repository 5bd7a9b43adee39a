"""Faces as lists: an image path a line, an integer label a line, landmarks beside the images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.dataset import EMOTIONS, LANDMARK_NUM, FaceDataset, resize_landmarks
from data.readers.folders import read_images
from utils.errors import DataError

SPLITS = {"train": "Training", "validation": "PublicTest", "test": "PrivateTest"}
FAR = 10  # landmarks further from the image than ten times its size are not meant as its pixels


@dataclass(frozen=True)
class Lists:
    """The splits of one list layout: `train_images.txt` with `train_labels.txt`, and so on."""

    root: Path
    splits: tuple[str, ...]

    def files(self) -> list[Path]:
        """Return all files that the faces depend on.

        Raises:
            DataError: a list names no image, or a missing one.
        """
        lists = [self._list(split, what) for split in self.splits for what in ("images", "labels")]
        images = [path for split in self.splits for path in self._images(split)]
        beside = [*lists, *map(_landmark_file, images)]  # a missing list is told by `read`
        return images + [path for path in beside if path.is_file()]

    def read(self, width: int, channels: int, class_names: Sequence[str] = ()) -> FaceDataset:
        """Read the faces as width x width pixels, grey or in RGB, and their landmarks if any.

        Raises:
            DataError: lists that do not match, a wrong label, an image or a
                landmark file that cannot be used; file and line are named.
        """
        class_names = tuple(class_names) or EMOTIONS
        paths, labels, usages = [], [], []
        for split in self.splits:
            images = self._images(split)
            paths += images
            labels += self._labels(split, len(images), len(class_names))
            usages += [SPLITS[split]] * len(images)
        images, sizes = read_images(paths, width, channels)
        landmarks = np.full((len(paths), LANDMARK_NUM, 2), np.nan, np.float32)
        for i, path in enumerate(map(_landmark_file, paths)):
            if path.is_file():
                landmarks[i] = resize_landmarks(_landmarks(path, sizes[i]), sizes[i], width)
        return FaceDataset(
            images,
            np.array(labels, np.int64),
            np.array(usages, "U12"),
            class_names,
            landmarks=None if np.isnan(landmarks).all() else landmarks,
            source=str(self.root),
        )

    def _list(self, split: str, what: str) -> Path:
        return self.root / f"{split}_{what}.txt"

    def _images(self, split: str) -> list[Path]:
        file = self._list(split, "images")
        paths = [self.root / line for line in read_lines(file)]
        for number, path in enumerate(paths, start=1):
            if not path.is_file():
                raise DataError(
                    f"{file}, line {number}: there is no image {path}; "
                    "write each path relative to the list's folder, or absolute"
                )
        return paths

    def _labels(self, split: str, count: int, class_num: int) -> list[int]:
        file = self._list(split, "labels")
        if not file.is_file():
            raise DataError(f"{file} is missing; put the labels there, one integer per line")
        lines = read_lines(file)
        for number, line in enumerate(lines, start=1):
            if not re.fullmatch("[0-9]{1,9}", line) or int(line) >= class_num:
                raise DataError(
                    f"{file}, line {number}: '{line[:60]}' is not a label from 0 to "
                    f"{class_num - 1}; mend the line, or train with other --class_names"
                )
        if len(lines) != count:
            raise DataError(
                f"{file} has {len(lines)} lines, but {self._list(split, 'images').name} has "
                f"{count}; line {min(len(lines), count) + 1} is the first without its counterpart, "
                "so give each image its label"
            )
        return [int(line) for line in lines]


def find_lists(folder: Path) -> Lists | None:
    """Return the lists that stand in this very folder, or None."""
    splits = tuple(split for split in SPLITS if (folder / f"{split}_images.txt").is_file())
    return Lists(folder, splits) if splits else None


def read_lines(file: Path, most: int = 256 << 20) -> list[str]:
    """Return the lines of a text, without blanks around them, nor empty ones at the end.

    Raises:
        DataError: it is of more bytes than `most`, not UTF-8, or empty.
    """
    if (size := file.stat().st_size) > most:
        raise DataError(
            f"{file} has {size:,} bytes, and such a file at most {most:,}; mend or remove it"
        )
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}); save it as UTF-8") from error
    if not lines:
        raise DataError(f"{file} is empty; write one entry per line, or remove the file")
    return [line.strip() for line in lines]


def _landmark_file(image: Path) -> Path:
    return image.with_suffix(".txt")


def _landmarks(file: Path, size: np.ndarray) -> np.ndarray:
    """Return the landmarks float64 [68, 2] in a file, in pixels of an image of size [2]."""
    remedy = (
        f"it must hold {2 * LANDMARK_NUM} numbers, x and y by turns, in pixels of its image; "
        "mend or remove it"
    )
    numbers = []
    for number, line in enumerate(read_lines(file, 1 << 16), start=1):
        try:
            numbers += map(float, re.split(r"[\s,]+", line.strip(" ,\t"))) if line else []
        except ValueError as error:
            raise DataError(f"{file}, line {number}: {error}; {remedy}") from error
    if len(numbers) != 2 * LANDMARK_NUM:
        raise DataError(f"{file} holds {len(numbers)} numbers; {remedy}")
    landmarks = np.array(numbers).reshape(LANDMARK_NUM, 2)
    if not (np.abs(landmarks) <= FAR * size.max()).all():  # NaN is not <= anything
        raise DataError(f"{file} holds numbers that are not finite or far off its image; {remedy}")
    return landmarks
