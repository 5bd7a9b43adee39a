"""FER2013 as CSV: `fer2013.csv`, `icml_face_data.csv`, and the challenge's train.csv and test.csv.

A row is an image: pixels as numbers separated by spaces, label, and Usage.
"""

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from data.dataset import SPLITS, UNLABELED, FaceDataset
from utils.classes import EMOTIONS
from utils.errors import DataError

CHUNK_ROWS = 1024  # 8 MB of FER2013's text in memory
HEADER_LENGTH = 65536


class Header(NamedTuple):
    """The first line of a CSV: its delimiter, and the names of its columns in lower case."""

    delimiter: str
    names: tuple[str, ...]


def read_header(path: Path) -> Header | None:
    """Return the header of a file, or None if it is not a CSV of images."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        line = file.readline(HEADER_LENGTH)
    for delimiter in ",;\t":
        names = tuple(name.strip(' \t\n"').lower() for name in line.split(delimiter))
        if "pixels" in names and max(map(names.count, ("emotion", "pixels", "usage"))) == 1:
            return Header(delimiter, names)
    return None


def read_csv(
    path: Path, class_names: Sequence[str] = (), default_split: str = "Training"
) -> FaceDataset:
    """Read one CSV of images, with its columns in any order; blank lines are skipped.

    Truncation is detected within a row, and from a missing line end (a warning), but not between
    two rows.

    `class_names` are those of the labels 0, 1, ..., or FER2013's if empty. `default_split` is that
    of the images if there is no column `Usage`. Without a column `emotion` it is PrivateTest, and
    all images are UNLABELED. An invalid row is a DataError with its number in the file.
    """
    if not (header := read_header(path)):
        remedy = "row 1 must name the columns, as in 'emotion,pixels,Usage', in UTF-8, not UTF-16"
        raise DataError(f"{path} is not a CSV of images; {remedy}")
    class_names = tuple(class_names) or EMOTIONS
    labels = {str(label): label for label in range(len(class_names))}
    splits = {split.lower(): split for split in SPLITS}
    if "emotion" not in header.names:
        labels, default_split = {"": UNLABELED}, "PrivateTest"
    if "usage" not in header.names:
        splits = {"": default_split}
    remedy = "correct or remove the row, give other --class_names, or download the file again"
    samples: list[tuple[np.ndarray, int, str]] = []
    for number, emotion, pixels, usage in _rows(path, header):
        try:
            num_pixels = len(samples[0][0]) if samples else None
            label = _value(labels, "emotion", emotion)
            samples.append((_pixels(pixels, num_pixels), label, _value(splits, "Usage", usage)))
        except ValueError as error:
            raise DataError(f"{path}, row {number}: {error}; {remedy}") from error
    if not samples:
        raise DataError(f"{path} has a header but no rows; download the file again")
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() not in b"\r\n" and header.names[-1] in ("emotion", "pixels"):
            fault = f"{path} may be truncated: no line end after row {number}"
            print(f"warning: {fault}", file=sys.stderr)
    images, labels, split = zip(*samples)
    images = np.stack(images).reshape(len(images), isqrt(len(images[0])), -1)
    labels, split = np.array(labels, np.int64), np.array(split, "U12")
    return FaceDataset(images, labels, split, class_names, source=str(path))


def _rows(path: Path, header: Header) -> Iterator[tuple[int, str, str, str]]:
    """Yield number, emotion, pixels and Usage of each row; those of a missing column are empty."""
    # No field contains a delimiter or a line end. Without quoting, the row numbers are exact.
    text = {"dtype": str, "na_filter": False, "quoting": csv.QUOTE_NONE, "encoding": "utf-8-sig"}
    rows = {"skip_blank_lines": False, "chunksize": CHUNK_ROWS}
    try:
        with pd.read_csv(
            path, sep=header.delimiter, encoding_errors="replace", **text, **rows
        ) as tables:
            for table in tables:
                if not isinstance(table.index, pd.RangeIndex):  # pandas takes a field for a name
                    raise ValueError("row 2 has more fields than row 1")
                table.columns = header.names
                texts = [
                    table[name].str.strip(' "') if name in table else [""] * len(table)
                    for name in ("emotion", "pixels", "usage")
                ]
                yield from (row for row in zip(table.index + 2, *texts) if any(row[1:]))
    except ValueError as error:
        fault = f"cannot be read ({str(error).strip()})"
        raise DataError(f"{path} {fault}; correct it, or download the file again") from error


def _pixels(text: str, expected: int | None) -> np.ndarray:
    """Parse the pixels of one image, uint8 [P], or raise a ValueError."""
    try:  # NumPy warns of an empty text
        pixels = np.loadtxt([text], np.int16, comments=None, ndmin=1) if text else np.zeros(0)
    except ValueError as error:  # its row number is that of the list
        raise ValueError(f"pixels: {str(error).partition(' at row')[0][:99]}") from error
    if len(pixels) != (expected or len(pixels)):
        raise ValueError(f"{len(pixels)} pixels, expected {expected} as in the first row")
    if not len(pixels) or isqrt(len(pixels)) ** 2 != len(pixels):
        raise ValueError(f"{len(pixels)} pixels, which is not a square (48 x 48 is 2304)")
    if pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"pixels from {pixels.min()} to {pixels.max()}, expected 0 to 255")
    return pixels.astype(np.uint8)


def _value(values: dict[str, Any], column: str, text: str) -> Any:
    """Return the value of a text in a column, or raise a ValueError."""
    if text.lower() not in values:
        expected = ", ".join(map(str, values.values()))
        raise ValueError(f"{column} is '{text[:60]}', expected one of {expected}")
    return values[text.lower()]
