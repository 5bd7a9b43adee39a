"""FER2013 as CSV: `fer2013.csv`, `icml_face_data.csv`, and the challenge's train.csv and test.csv.

A row is a face: its pixels as numbers between spaces, its label, its usage. No
field of it holds a delimiter or a line end, so lines are split as bytes: exact
row numbers, little memory, and several times the speed of a general CSV reader.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import isqrt
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data.dataset import EMOTIONS, UNLABELED, SPLITS, FaceDataset
from utils.errors import DataError

CHUNK_ROWS = 128  # 1 MB of FER2013: the working arrays stay in the processor's cache
HEADER_BYTES = 65536
MAX_ROW_BYTES = 16 << 20  # 2048 x 2048 pixels; without a limit one row may fill the memory

_USAGE_OF_FIELD = {usage.lower().encode(): usage for usage in SPLITS}


@dataclass(frozen=True)
class Header:
    """The first line of a CSV: its delimiter, and the names of its columns in lower case."""

    delimiter: bytes
    names: tuple[str, ...]


def parse_header(line: bytes) -> Header | None:
    """Return the header that a line is, or None where it names no `pixels`, or a column twice."""
    text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    for delimiter in ",;\t":
        names = tuple(name.strip(' \t\r\n"').lower() for name in text.split(delimiter))
        if "pixels" in names and max(map(names.count, ("emotion", "pixels", "usage"))) == 1:
            return Header(delimiter.encode(), names)
    return None


def read_header(path: Path) -> Header | None:
    """Return the header of a file, or None where it is no CSV of faces. Cheap."""
    with open(path, "rb") as file:
        return parse_header(file.readline(HEADER_BYTES))


def read_csv(path: Path, class_names: tuple[str, ...] = (), usage: str = "Training") -> FaceDataset:
    """Read one CSV of faces; its columns go by their names, in any order.

    Blank lines are skipped. A file cut off between two rows, or within the last
    pixel of a file whose last column is `pixels`, cannot be told from a whole
    one; for the latter a missing line end is a warning.

    Args:
        class_names: the classes that the labels 0, 1, ... mean; FER2013's where empty.
        usage: of the labelled faces, where there is no column `Usage`. Without a
            column `emotion` the labels are UNKNOWN, and the usage PrivateTest.

    Returns:
        Faces whose images are uint8 [N, H, H], as wide as the file has them.

    Raises:
        DataError: the file is no such CSV, or a row is wrong: the first one is named.
    """
    class_names = tuple(class_names) or EMOTIONS
    with open(path, "rb") as file:
        header = _checked_header(path, file.readline(HEADER_BYTES))
        table = _Table(path, header, len(class_names), usage)
        rows = ((number, line) for number, line in _lines(path, file) if line.strip())
        chunks, chunk = [], []
        while some := list(islice(rows, CHUNK_ROWS)):
            chunks.append(table.parse(chunk := some))
    if not chunks:
        raise DataError(f"{path} has a header but no rows; bring the whole file")
    if not chunk[-1][1].endswith(b"\n") and header.names[-1] in ("emotion", "pixels"):
        print(f"warning: {path} has no line end after its last row: cut off?", file=sys.stderr)
    pixels, labels, usages = (np.concatenate(arrays) for arrays in zip(*chunks))
    width = isqrt(pixels.shape[1])
    return FaceDataset(pixels.reshape(-1, width, width), labels, usages, class_names, source=str(path))


def parse_pixels(texts: list[bytes]) -> np.ndarray:
    """Return equally many numbers per text, 0 to 255 between single spaces, as uint8 [n, P].

    Whole arrays of digits at a time: at the space after each number, the bytes
    before it are its units, tens and hundreds.

    Raises:
        ValueError: the texts are anything else.
    """
    joined = np.frombuffer(b" %b " % b" ".join(texts), np.uint8)
    digits = joined - ord("0")  # a byte below "0" wraps around to a large one
    ends = np.flatnonzero(joined == ord(" "))
    lengths = np.diff(ends) - 1
    ends = ends[1:]
    if np.count_nonzero(digits < 10) + len(ends) + 1 != len(joined):
        raise ValueError("something else than digits and spaces")
    if lengths.min() < 1 or lengths.max() > 3:
        raise ValueError("a double space, or a number of more than three digits")
    values = digits[ends - 1].astype(np.uint16)
    values += np.where(lengths > 1, digits[ends - 2], 0).astype(np.uint16) * 10
    values += np.where(lengths > 2, digits[ends - 3], 0).astype(np.uint16) * 100
    if values.max() > 255:
        raise ValueError("a number beyond 255")
    text_ends = np.cumsum([0, *(len(text) + 1 for text in texts)])
    counts = np.diff(np.searchsorted(ends, text_ends, side="right"))
    if (counts != counts[0]).any():
        raise ValueError("texts of several counts")
    return values.astype(np.uint8).reshape(len(texts), -1)


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of each line after the header."""
    number = 1
    while line := file.readline(MAX_ROW_BYTES):
        number += 1
        if len(line) == MAX_ROW_BYTES:
            raise DataError(
                f"{path}, row {number}: it is longer than {MAX_ROW_BYTES >> 20} MiB, the limit, "
                "so it is no face; fetch the file anew"
            )
        yield number, line


def _checked_header(path: Path, line: bytes) -> Header:
    is_mac = b"\r" in line.rstrip(b"\r\n")  # then the whole file is this one line
    if (header := parse_header(line)) and not is_mac:
        return header
    remedy = "the first row must name the columns, as in 'emotion,pixels,Usage'"
    if not line.strip():
        fault = "is empty, or begins with a blank row"
    elif line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line:
        fault, remedy = "is UTF-16, or no text at all", "save it as UTF-8"
    elif is_mac:
        fault, remedy = "has the line ends of an old Mac (CR)", "save it with those of Unix (LF)"
    elif line.strip(b'" ')[:1].isdigit():
        fault = "has no header: row 1 is data"
    else:
        fault = f"is not a CSV of faces: row 1 is {_shown(line)}"
    raise DataError(f"{path} {fault}; {remedy}")


class _Table:
    """The rows of one CSV: parsed in chunks, and one by one where a chunk holds a fault."""

    def __init__(self, path: Path, header: Header, class_num: int, usage: str) -> None:
        self.path, self.header, self.class_num = path, header, class_num
        self.label_of_field = {str(label).encode(): label for label in range(class_num)}
        self.usage = usage if "emotion" in header.names else "PrivateTest"
        self.pixel_num: int | None = None  # the first row's; all have as many

    def parse(self, rows: list[tuple[int, bytes]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return pixels uint8 [n, P], labels int64 [n] and usages str [n] of numbered lines."""
        try:
            fields = [self._fields(line) for _, line in rows]
            pixels = self._pixels([row["pixels"] for row in fields])
            labels = [self._label(row) for row in fields]
            usages = [self._usage(row) for row in fields]
        except (KeyError, ValueError):
            for number, line in rows:
                self._check(number, line)
            raise
        return pixels, np.array(labels, np.int64), np.array(usages, "U12")

    def _fields(self, line: bytes) -> dict[str, bytes]:
        fields = line.split(self.header.delimiter)
        if len(fields) != len(self.header.names):
            raise ValueError("a row of another length than the header")
        return {name: field.strip(b' \t\r\n"') for name, field in zip(self.header.names, fields)}

    def _pixels(self, texts: list[bytes]) -> np.ndarray:
        try:
            pixels = parse_pixels(texts)
        except ValueError:  # perhaps for its spaces alone
            pixels = parse_pixels([b" ".join(text.split()) for text in texts])
        pixel_num = self.pixel_num or pixels.shape[1]
        if pixels.shape[1] != pixel_num or isqrt(pixel_num) ** 2 != pixel_num:
            raise ValueError("no square, or another one than in the rows before")
        self.pixel_num = pixel_num
        return pixels

    def _label(self, fields: dict[str, bytes]) -> int:
        return self.label_of_field[fields["emotion"]] if "emotion" in fields else UNLABELED

    def _usage(self, fields: dict[str, bytes]) -> str:
        return _USAGE_OF_FIELD[fields["usage"].lower()] if "usage" in fields else self.usage

    def _check(self, number: int, line: bytes) -> None:
        """Raise a DataError where the row is wrong."""
        if not (fault := next(self._faults(line), None)):
            return
        remedy = "mend or remove the row, or fetch the file anew"
        if not line.endswith(b"\n"):  # only the file's last row can lack it
            remedy += (
                ". The file ends in this row without a line end, so it seems cut off: "
                "the whole fer2013.csv has 35,887 rows after its header"
            )
        raise DataError(f"{self.path}, row {number}: {fault}; {remedy}")

    def _faults(self, line: bytes) -> Iterator[str]:
        if b"\0" in line:
            yield "it holds NUL bytes, so the file is damaged or not UTF-8"
        try:
            fields = self._fields(line)
        except ValueError:
            found, wanted = line.count(self.header.delimiter) + 1, len(self.header.names)
            yield f"it has {found} fields, where the header has {wanted}"
        values = fields["pixels"].split()
        for position, value in enumerate(values, start=1):
            if not (value.isdigit() and len(value) <= 3 and int(value) <= 255):
                yield f"pixel {position} is {_shown(value)}, not a whole number from 0 to 255"
        if len(values) != (pixel_num := self.pixel_num or len(values)):
            yield f"it has {len(values)} pixels, where the rows before have {pixel_num}"
        if not values or isqrt(pixel_num) ** 2 != pixel_num:
            yield f"it has {pixel_num} pixels, which is not a square (48 x 48 is 2304)"
        self.pixel_num = pixel_num
        try:
            self._label(fields)
        except KeyError:
            remedy = "training with --class_names takes other classes"
            if not fields["emotion"].strip().isdigit():
                remedy = "write the number of its class, counted from 0"
            yield (
                f"its emotion is {_shown(fields['emotion'])}, not a whole number "
                f"from 0 to {self.class_num - 1} ({remedy})"
            )
        try:
            self._usage(fields)
        except KeyError:
            yield f"its Usage is {_shown(fields['usage'])}, not one of {', '.join(USAGES)}"


def _shown(text: bytes) -> str:
    return f"'{text[:60].decode('utf-8', 'backslashreplace').strip()}'"
