"""A data set as lists: one image path per line, one integer label per line, landmark files."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.dataset import SPLITS, FaceDataset, resize_landmarks
from data.readers.folders import split_of_name
from data.readers.images import image_size, read_images
from utils.classes import EMOTIONS
from utils.coordinates import NUM_LANDMARKS
from utils.errors import DataError

MAX_LIST_BYTES = 256 << 20
MAX_LANDMARK_BYTES = 1 << 16
MAX_DISTANCE = 10  # of landmarks from the origin, in image sizes; larger ones are not in pixels


@dataclass(frozen=True)
class ListLayout:
    """Lists of images and labels: `train_images.txt` with `train_labels.txt`, and so on."""

    root: Path  # the folder of the lists
    names: tuple[str, ...]  # of the lists, such as "train" for train_images.txt

    def files(self) -> list[Path]:
        """Return all files that the data set depends on; a missing image is a DataError."""
        names = [f"{name}_{kind}.txt" for name in self.names for kind in ("images", "labels")]
        images = [path for name in self.names for path in self._images(name)]
        optional = [self.root / name for name in names]  # `read` reports missing labels
        optional += [path.with_suffix(".txt") for path in images]
        return images + [path for path in optional if path.is_file()]

    def read(self, width: int, channels: int, class_names: Sequence[str] = ()) -> FaceDataset:
        class_names = tuple(class_names) or EMOTIONS
        paths, labels, split = [], [], []
        for name in self.names:
            images = self._images(name)
            paths += images
            labels += self._labels(name, len(images), len(class_names))
            split += [split_of_name(name)] * len(images)
        images = read_images(paths, width, channels)
        files = [path.with_suffix(".txt") for path in paths]
        landmarks = read_landmarks(paths, files, _read_numbers, width)
        labels, split = np.array(labels, np.int64), np.array(split, "U12")
        return FaceDataset(images, labels, split, class_names, landmarks, source=str(self.root))

    def _images(self, name: str) -> list[Path]:
        file = self.root / f"{name}_images.txt"
        paths = [self.root / line for line in read_lines(file)]
        for number, path in enumerate(paths, start=1):
            if not path.is_file():
                remedy = "give a path relative to the folder of the list, or an absolute one"
                raise DataError(f"{file}, line {number}: there is no image {path}; {remedy}")
        return paths

    def _labels(self, name: str, count: int, num_classes: int) -> list[int]:
        file = self.root / f"{name}_labels.txt"
        if not file.is_file():
            raise DataError(f"{file} is missing; write the labels there, one integer per line")
        lines = read_lines(file)
        for number, line in enumerate(lines, start=1):
            if not re.fullmatch("[0-9]{1,9}", line) or int(line) >= num_classes:
                raise DataError(
                    f"{file}, line {number}: '{line[:60]}' is not a label from 0 to "
                    f"{num_classes - 1}; correct it, or train with other --class_names"
                )
        if len(lines) != count:
            raise DataError(
                f"{file} has {len(lines)} lines, but {name}_images.txt has {count}; they differ "
                f"from line {min(len(lines), count) + 1} on, so give each image one label"
            )
        return [int(line) for line in lines]


def find_lists(folder: Path) -> ListLayout | None:
    """Return the lists that lie directly in a folder, or None."""
    names = [path.name.removesuffix("_images.txt") for path in folder.glob("*_images.txt")]
    names = sorted(filter(split_of_name, names), key=lambda n: (SPLITS.index(split_of_name(n)), n))
    return ListLayout(folder, tuple(names)) if names else None


def read_lines(file: Path, max_bytes: int = MAX_LIST_BYTES) -> list[str]:
    """Return the lines of a text file, stripped; an empty, binary or large file is a DataError."""
    if (size := file.stat().st_size) > max_bytes:
        raise DataError(f"{file} has {size:,} bytes, the limit is {max_bytes:,}; correct it")
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}); save it as UTF-8") from error
    if not lines:
        raise DataError(f"{file} is empty; write one entry per line, or remove the file")
    return [line.strip() for line in lines]


def read_landmarks(
    images: Sequence[Path], files: Sequence[Path], read: Callable[[Path], Sequence], width: int
) -> np.ndarray | None:
    """Return the landmarks float32 [N, 68, 2] of N images resized to a width, or None.

    `read` returns the numbers in one of the files, of which any may be missing.
    """
    landmarks = np.full((len(images), NUM_LANDMARKS, 2), np.nan, np.float32)
    for i, (image, file) in enumerate(zip(images, files)):
        if file.is_file():
            size = image_size(image)
            points = check_landmarks(read(file), size, str(file))
            landmarks[i] = resize_landmarks(points, size, width)
    return None if np.isnan(landmarks).all() else landmarks


def check_landmarks(values: Sequence, size: tuple[int, int], where: str) -> np.ndarray:
    """Return 136 numbers or texts as landmarks float64 [68, 2].

    They are x and y in pixels of an image of size (width, height).

    Raises:
        DataError: The values are no landmarks; the message names `where`.
    """
    remedy = "expected 136 numbers, x and y in pixels of the image; correct or remove them"
    try:
        numbers = np.asarray(values).astype(np.float64).ravel()
    except ValueError as error:
        raise DataError(f"{where}: {error}; {remedy}") from error
    if len(numbers) != 2 * NUM_LANDMARKS:
        raise DataError(f"{where} has {len(numbers)} numbers; {remedy}")
    if not (np.abs(numbers) <= MAX_DISTANCE * max(size)).all():  # false for NaN, too
        raise DataError(f"{where} has numbers that are not finite or far off the image; {remedy}")
    return numbers.reshape(NUM_LANDMARKS, 2)


def _read_numbers(file: Path) -> list[float]:
    numbers = []
    for number, line in enumerate(read_lines(file, MAX_LANDMARK_BYTES), start=1):
        try:
            numbers += map(float, line.replace(",", " ").split())
        except ValueError as error:
            remedy = "expected 136 numbers; correct or remove the file"
            raise DataError(f"{file}, line {number}: {error}; {remedy}") from error
    return numbers
