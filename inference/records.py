"""Predictions as they come, in a table and as JSON: no video is too long for the memory."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import FileIO, StringIO
from pathlib import Path
from typing import Any

from utils.errors import RunError
from utils.files import atomic_write


class Records:
    """Writes one record after the other to predictions.csv and predictions.json.

    In the table landmarks become as many columns, x0, y0, x1 and so on, and each probability one of
    the class's name; a class called `left` has the column `probabilities_left`. Both files are
    whole after each record, so that a full disk costs nothing that was written before.
    """

    def __init__(self, table: FileIO, text: FileIO) -> None:
        self._csv, self._json = _Ended(table, b""), _Ended(text, b"\n]\n")
        self._json.append(b"[")
        self._count = 0

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, blank: Mapping[str, Any]) -> Iterator[Records]:
        """Open both files, which take their names when the block ends, even by an error or Ctrl-C.

        Args:
            folder: of both.
            blank: a record whose names are the columns of a table that gets none.

        Raises:
            RunError: the folder cannot be written, or the disk is full.
        """
        with ExitStack() as stack:
            paths = [
                stack.enter_context(atomic_write(folder / f"predictions.{kind}"))
                for kind in ("csv", "json")
            ]
            with _told():
                records = cls(*(stack.enter_context(open(p, "wb", buffering=0)) for p in paths))
            pending: BaseException | None = None
            try:
                yield records
            except (Exception, KeyboardInterrupt) as error:
                pending = error  # what was found until then is kept
            if not records._count:
                with _told():
                    records._csv.append(_line(dict(_flat(blank))))
        if pending:
            raise pending

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record of plain values, lists of numbers and dicts of them.

        Raises:
            RunError: the disk is full.
        """
        flat = dict(_flat(record))
        line = _line("" if value is None else value for value in flat.values())
        text = (",\n" if self._count else "\n") + json.dumps(record)
        sizes = self._csv.size, self._json.size
        with _told():
            try:
                self._csv.append(line if self._count else _line(flat) + line)
                self._json.append(text.encode())
            except BaseException:  # Ctrl-C, too, which may come in between
                self._csv.cut(sizes[0])
                self._json.cut(sizes[1])
                raise
        self._count += 1


class _Ended:
    """A file that grows, and has its end at all times."""

    def __init__(self, file: FileIO, end: bytes) -> None:
        self._file, self._end, self.size = file, end, 0

    def append(self, content: bytes) -> None:
        """Write something before the end. Where that fails, the file is to be cut."""
        rest = memoryview(content + self._end)
        self._file.seek(self.size)
        while rest:
            rest = rest[self._file.write(rest) :]
        self.size += len(content)

    def cut(self, size: int) -> None:
        """Take away what stands behind so many bytes, but for the end."""
        self.size = size
        self._file.truncate(size)
        self._file.seek(size)
        self._file.write(self._end)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"the predictions cannot be written ({error.strerror}); free disk space, or name "
            "another --out. Those that were written are kept"
        ) from error


def _line(values: Iterable[Any]) -> bytes:
    """Return one line of a table."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


def _flat(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            for key, each in value.items():
                taken = key in record or re.fullmatch("[xy][0-9]+", key)
                yield f"{name}_{key}" if taken else key, each
        elif name == "landmarks":
            for i, (x, y) in enumerate(value):
                yield f"x{i}", x
                yield f"y{i}", y
        else:
            yield name, value
