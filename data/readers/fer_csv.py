"""FER2013 as CSV: `fer2013.csv`, `icml_face_data.csv`, and the challenge's train.csv and test.csv.

A row is an image: pixels as numbers separated by spaces, label, and Usage. No field contains a
delimiter or a line end, so lines are split as bytes, and NumPy parses the pixels: several times as
fast as a general CSV reader, in little memory, with exact row numbers for errors.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from math import isqrt
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from data.dataset import SPLITS, UNLABELED, FaceDataset
from utils.classes import EMOTIONS
from utils.errors import DataError

CHUNK_ROWS = 128  # 1 MB of FER2013: the arrays stay in the processor's cache
HEADER_BYTES = 65536
MAX_ROW_BYTES = 16 << 20  # 2048 x 2048 pixels; without a limit one row may fill the memory

_SPLIT_OF_FIELD = {split.lower().encode(): split for split in SPLITS}


class Header(NamedTuple):
    """The first line of a CSV: its delimiter, and the names of its columns in lower case."""

    delimiter: bytes
    names: tuple[str, ...]


def _parse_header(line: bytes) -> Header | None:
    """Return the header in a line, or None if it has no column `pixels` or a column twice."""
    text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    for delimiter in ",;\t":
        names = tuple(name.strip(' \t\r\n"').lower() for name in text.split(delimiter))
        if "pixels" in names and max(map(names.count, ("emotion", "pixels", "usage"))) == 1:
            return Header(delimiter.encode(), names)
    return None


def read_header(path: Path) -> Header | None:
    """Return the header of a file, or None if it is not a CSV of images."""
    with open(path, "rb") as file:
        return _parse_header(file.readline(HEADER_BYTES))


def read_csv(
    path: Path, class_names: Sequence[str] = (), default_split: str = "Training"
) -> FaceDataset:
    """Read one CSV of images, with its columns in any order; blank lines are skipped.

    Truncation is detected within a row, and from a missing line end (a warning), but not between
    two rows.

    `class_names` are those of the labels 0, 1, ..., or FER2013's if empty. `default_split` is that
    of the images if there is no column `Usage`. Without a column `emotion` it is PrivateTest, and
    all images are UNLABELED.

    Raises:
        DataError: A row is invalid; the message names the first one.
    """
    class_names, chunks = tuple(class_names) or EMOTIONS, []
    with open(path, "rb") as file:
        header = _checked_header(path, file.readline(HEADER_BYTES))
        parser, rows = _RowParser(path, header, len(class_names), default_split), _rows(path, file)
        while chunk := list(islice(rows, CHUNK_ROWS)):
            chunks.append(parser.parse(chunk))
            number, last_line = chunk[-1]
    if not chunks:
        raise DataError(f"{path} has a header but no rows; download the file again")
    if not last_line.endswith(b"\n") and header.names[-1] in ("emotion", "pixels"):
        print(f"warning: {path} may be truncated: no line end after row {number}", file=sys.stderr)
    pixels, labels, split = (np.concatenate(arrays) for arrays in zip(*chunks))
    width = isqrt(pixels.shape[1])
    images = pixels.reshape(-1, width, width)
    return FaceDataset(images, labels, split, class_names, source=str(path))


def parse_pixels(texts: list[bytes]) -> np.ndarray:
    """Parse n texts of P numbers, 0 to 255, separated by single spaces: uint8 [n, P].

    At the space after each number, the bytes before it are its units, tens and hundreds.
    """
    joined = np.frombuffer(b" %b " % b" ".join(texts), np.uint8)
    digits = joined - ord("0")  # a byte below "0" wraps around to a large number
    ends = np.flatnonzero(joined == ord(" "))
    lengths = np.diff(ends) - 1
    ends = ends[1:]
    if np.count_nonzero(digits < 10) + len(ends) + 1 != len(joined):
        raise ValueError("characters other than digits and spaces")
    if lengths.min() < 1 or lengths.max() > 3:
        raise ValueError("a double space, or a number of more than three digits")
    values = digits[ends - 1].astype(np.uint16)
    values += np.where(lengths > 1, digits[ends - 2], 0).astype(np.uint16) * 10
    values += np.where(lengths > 2, digits[ends - 3], 0).astype(np.uint16) * 100
    if values.max() > 255:
        raise ValueError("a number above 255")
    text_ends = np.cumsum([0, *(len(text) + 1 for text in texts)])
    counts = np.diff(np.searchsorted(ends, text_ends, side="right"))
    if (counts != counts[0]).any():
        raise ValueError("different numbers of pixels")
    return values.astype(np.uint8).reshape(len(texts), -1)


def _rows(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each line after the header that is not blank."""
    number = 1
    while line := file.readline(MAX_ROW_BYTES):
        number += 1
        if len(line) == MAX_ROW_BYTES:
            limit = f"{MAX_ROW_BYTES >> 20} MiB, the limit"
            raise DataError(f"{path}, row {number}: longer than {limit}; download the file again")
        if line.strip():
            yield number, line


def _checked_header(path: Path, line: bytes) -> Header:
    has_cr = b"\r" in line.rstrip(b"\r\n")  # then the whole file is one line
    if (header := _parse_header(line)) and not has_cr:
        return header
    remedy = "the first row must name the columns, as in 'emotion,pixels,Usage'"
    if not line.strip():
        problem = "is empty, or begins with a blank row"
    elif line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line:
        problem, remedy = "is UTF-16 or not text", "save it as UTF-8"
    elif has_cr:
        problem, remedy = "has the line ends of Mac OS 9 (CR)", "save it with those of Unix (LF)"
    elif line.strip(b'" ')[:1].isdigit():
        problem = "has no header: row 1 is data"
    else:
        problem = f"is not a CSV of images: row 1 is {_quote(line)}"
    raise DataError(f"{path} {problem}; {remedy}")


class _RowParser:
    """Parses rows in chunks, and one by one to locate an error."""

    def __init__(self, path: Path, header: Header, num_classes: int, default_split: str) -> None:
        self.path, self.header = path, header
        self.label_of_field = {str(label).encode(): label for label in range(num_classes)}
        self.default_split = default_split if "emotion" in header.names else "PrivateTest"
        self.num_pixels: int | None = None  # of the first row

    def parse(self, rows: list[tuple[int, bytes]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return pixels uint8 [n, P], labels int64 [n] and split str [n] of numbered lines."""
        labels, split = [UNLABELED] * len(rows), [self.default_split] * len(rows)
        try:
            fields = [self._fields(line) for _, line in rows]
            pixels = self._pixels([row["pixels"] for row in fields])
            if "emotion" in self.header.names:
                labels = [self.label_of_field[row["emotion"]] for row in fields]
            if "usage" in self.header.names:
                split = [_SPLIT_OF_FIELD[row["usage"].lower()] for row in fields]
        except (KeyError, ValueError) as error:
            raise self._error(rows) from error
        return pixels, np.array(labels, np.int64), np.array(split, "U12")

    def _fields(self, line: bytes) -> dict[str, bytes]:
        fields = line.split(self.header.delimiter)
        if len(fields) != len(self.header.names):
            raise ValueError("another number of fields than in the header")
        return {name: field.strip(b' \t\r\n"') for name, field in zip(self.header.names, fields)}

    def _pixels(self, texts: list[bytes]) -> np.ndarray:
        try:
            pixels = parse_pixels(texts)
        except ValueError:  # possibly because of repeated spaces only
            pixels = parse_pixels([b" ".join(text.split()) for text in texts])
        num_pixels = self.num_pixels or pixels.shape[1]
        if pixels.shape[1] != num_pixels or isqrt(num_pixels) ** 2 != num_pixels:
            raise ValueError("not a square, or another size than the first row")
        self.num_pixels = num_pixels
        return pixels

    def _error(self, rows: list[tuple[int, bytes]]) -> DataError:
        """Return an error that names the first invalid row."""
        number, line, problem = next(
            (*row, text) for row in rows for text in self._problems(row[1])
        )
        remedy = "correct or remove the row, or download the file again"
        if not line.endswith(b"\n"):  # only possible in the last row
            remedy += ". There is no line end, so the file is probably truncated: a complete "
            remedy += "fer2013.csv has 35,887 rows after its header"
        return DataError(f"{self.path}, row {number}: {problem}; {remedy}")

    def _problems(self, line: bytes) -> Iterator[str]:
        if b"\0" in line:
            yield "NUL bytes, so the file is damaged or not UTF-8"
        try:
            fields = self._fields(line)
        except ValueError:
            count, expected = line.count(self.header.delimiter) + 1, len(self.header.names)
            yield f"{count} fields, expected {expected} as in the header"
        values = fields["pixels"].split()
        for position, value in enumerate(values, start=1):
            if not (value.isdigit() and len(value) <= 3 and int(value) <= 255):
                yield f"pixel {position} is {_quote(value)}, expected a whole number from 0 to 255"
        if len(values) != (num_pixels := self.num_pixels or len(values)):
            yield f"{len(values)} pixels, expected {num_pixels} as in the first row"
        if not values or isqrt(num_pixels) ** 2 != num_pixels:
            yield f"{num_pixels} pixels, which is not a square (48 x 48 is 2304)"
        self.num_pixels = num_pixels
        if (emotion := fields.get("emotion", b"0")) not in self.label_of_field:
            expected = f"expected a whole number from 0 to {len(self.label_of_field) - 1}"
            hint = "the number of the class"
            if emotion.isdigit():
                hint = "for other classes, use --class_names"
            yield f"emotion is {_quote(emotion)}, {expected} ({hint})"
        if (usage := fields.get("usage", b"training")).lower() not in _SPLIT_OF_FIELD:
            yield f"Usage is {_quote(usage)}, expected one of {', '.join(SPLITS)}"


def _quote(text: bytes) -> str:
    return f"'{text[:60].decode('utf-8', 'backslashreplace').strip()}'"
