"""Prediction records, written one after the other to a CSV and a JSON file."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO, StringIO
from pathlib import Path
from typing import Any

from utils.errors import RunError


class Records:
    """Writes records to predictions.csv and predictions.json, which are complete after each one.

    In the CSV file landmarks have the columns x0, y0, x1 and so on, a class called `left` has the
    column `probabilities_left`, and explanations have columns such as `explanation_eyes`.

    Args:
        folder: A folder without these files.
        template: A record with the columns of a CSV file without records.

    Raises:
        RunError: The folder is not writable, or the disk is full.
    """

    def __init__(self, folder: Path, template: Mapping[str, Any]) -> None:
        with _report_write_errors():
            self._csv = _TerminatedFile(folder / "predictions.csv", b"")
            self._json = _TerminatedFile(folder / "predictions.json", b"\n]\n")
            self._json.append(b"[")
        self._template, self._count = template, 0

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        with self._csv, self._json, _report_write_errors():  # closes the files
            if not self._count:
                self._csv.append(_csv_line(dict(_flatten(self._template))))

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record of plain values, lists and dicts, or raise a RunError."""
        flat = dict(_flatten(record))
        line = _csv_line(flat.values())
        text = (",\n" if self._count else "\n") + json.dumps(record)
        sizes = self._csv.size, self._json.size
        with _report_write_errors():
            try:
                self._csv.append(line if self._count else _csv_line(flat) + line)
                self._json.append(text.encode())
            except BaseException:  # Ctrl-C too
                self._csv.shorten(sizes[0])
                self._json.shorten(sizes[1])
                raise
        self._count += 1


@contextmanager
def _report_write_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"the predictions cannot be written ({error.strerror}); free disk space, or give "
            "another --out. Earlier predictions are kept"
        ) from error


class _TerminatedFile(FileIO):
    """A new, growing file that ends with a fixed terminator at all times."""

    def __init__(self, path: Path, terminator: bytes) -> None:
        super().__init__(path, "x")
        self._terminator, self.size = terminator, 0

    def append(self, content: bytes) -> None:
        """Insert content before the terminator. After an error the file must be truncated."""
        rest = memoryview(content + self._terminator)
        self.seek(self.size)
        while rest:
            rest = rest[self.write(rest) :]
        self.size += len(content)

    def shorten(self, size: int) -> None:
        """Remove the content after `size` bytes."""
        self.size = size
        self.truncate(size)
        self.seek(size)
        self.write(self._terminator)


def _csv_line(values: Iterable[Any]) -> bytes:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


def _flatten(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the columns and values of a record."""
    for name, value in record.items():
        if name == "explanation":
            values = value | value["parts"]
            yield from ((f"explanation_{key}", values[key]) for key in values if key != "parts")
        elif isinstance(value, Mapping):
            for key, item in value.items():
                is_taken = key in record or re.fullmatch("[xy][0-9]+", key)
                yield f"{name}_{key}" if is_taken else key, item
        elif name == "landmarks":
            for i, (x, y) in enumerate(value):
                yield f"x{i}", x
                yield f"y{i}", y
        else:
            yield name, value
