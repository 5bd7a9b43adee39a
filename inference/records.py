"""Prediction records, written one after the other to a CSV and a JSON file."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import FileIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np

from inference.predictor import Face
from utils.errors import RunError
from utils.files import atomic_write

EDGES = ("left", "top", "right", "bottom")
COLUMNS = ("file", "annotated", "frame", "time", "face", *EDGES)
COLUMNS += ("score", "expression", "confidence", "importance")


def empty_record(class_names: Sequence[str]) -> dict[str, Any]:
    """Return a record without values."""
    return dict.fromkeys(COLUMNS) | {"probabilities": dict.fromkeys(class_names)}


def face_record(
    face: Face, probabilities: np.ndarray, confidence: float, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return the record of a face, without its file and frame.

    Args:
        face: The face.
        probabilities: [C], its own or smoothed ones.
        confidence: To record.
        class_names: C names.
    """
    record = dict(zip(EDGES, _round(face.box, 1))) | {
        "score": None if face.score is None else round(face.score, 3),
        "expression": class_names[int(probabilities.argmax())],
        "confidence": round(confidence, 4),
        "importance": round(face.importance, 4),
        "probabilities": dict(zip(class_names, _round(probabilities, 4))),
    }
    if face.landmarks is not None:
        record["landmarks"] = _round(face.landmarks, 2)
    return record


class Records:
    """Writes records to predictions.csv and predictions.json.

    In the CSV file landmarks become the columns x0, y0, x1 and so on, and each probability a column
    named by its class; a class called `left` has the column `probabilities_left`. Both files are
    complete after each record, so a full disk loses none of the earlier ones.
    """

    def __init__(self, csv_file: FileIO, json_file: FileIO) -> None:
        self._csv, self._json = _TerminatedFile(csv_file, b""), _TerminatedFile(json_file, b"\n]\n")
        self._json.append(b"[")
        self._count = 0

    @classmethod
    @contextmanager
    def open(cls, folder: Path, template: Mapping[str, Any]) -> Iterator[Records]:
        """Open both files. They get their names when the block ends, even by an error or Ctrl-C.

        Args:
            folder: Folder of the files.
            template: A record with the columns of a CSV file without records.

        Raises:
            RunError: The folder is not writable, or the disk is full.
        """
        with ExitStack() as stack:
            paths = [
                stack.enter_context(atomic_write(folder / f"predictions.{kind}"))
                for kind in ("csv", "json")
            ]
            with _write_errors():
                records = cls(*(stack.enter_context(open(p, "wb", buffering=0)) for p in paths))
            pending: BaseException | None = None
            try:
                yield records
            except (Exception, KeyboardInterrupt) as error:
                pending = error  # raised after the files have their names
            if not records._count:
                with _write_errors():
                    records._csv.append(_csv_line(dict(_flatten(template))))
        if pending:
            raise pending

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record of plain values, lists of numbers and dicts of them.

        Raises:
            RunError: The disk is full.
        """
        flat = dict(_flatten(record))
        line = _csv_line("" if value is None else value for value in flat.values())
        text = (",\n" if self._count else "\n") + json.dumps(record)
        sizes = self._csv.size, self._json.size
        with _write_errors():
            try:
                self._csv.append(line if self._count else _csv_line(flat) + line)
                self._json.append(text.encode())
            except BaseException:  # Ctrl-C too
                self._csv.truncate(sizes[0])
                self._json.truncate(sizes[1])
                raise
        self._count += 1


class _TerminatedFile:
    """A growing file that ends with a fixed terminator at all times."""

    def __init__(self, file: FileIO, terminator: bytes) -> None:
        self._file, self._terminator, self.size = file, terminator, 0

    def append(self, content: bytes) -> None:
        """Insert content before the terminator. After an error the file must be truncated."""
        rest = memoryview(content + self._terminator)
        self._file.seek(self.size)
        while rest:
            rest = rest[self._file.write(rest) :]
        self.size += len(content)

    def truncate(self, size: int) -> None:
        """Remove the content after `size` bytes."""
        self.size = size
        self._file.truncate(size)
        self._file.seek(size)
        self._file.write(self._terminator)


@contextmanager
def _write_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"the predictions cannot be written ({error.strerror}); free disk space, or give "
            "another --out. Earlier predictions are kept"
        ) from error


def _csv_line(values: Iterable[Any]) -> bytes:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


def _flatten(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the columns and values of a record."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            for key, item in value.items():
                is_taken = key in record or re.fullmatch("[xy][0-9]+", key)
                yield f"{name}_{key}" if is_taken else key, item
        elif name == "landmarks":
            for i, (x, y) in enumerate(value):
                yield f"x{i}", x
                yield f"y{i}", y
        else:
            yield name, value


def _round(values: np.ndarray, digits: int) -> list:
    return np.round(values.astype(float), digits).tolist()
