"""Predictions as they come, in a table and as JSON: no video is too long for the memory."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from utils.errors import RunError
from utils.files import atomic_write


class Records:
    """Writes one record after the other to predictions.csv and predictions.json.

    In the table landmarks become as many columns, x0, y0, x1 and so on, and each probability one of
    the class's name; a class called `left` has the column `probabilities_left`.
    """

    def __init__(self, table: Any, text: Any) -> None:
        self._csv, self._json = csv.writer(table, lineterminator="\n"), text
        self._count = 0
        text.write("[")

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
            pending: BaseException | None = None
            try:
                with (
                    open(paths[0], "w", newline="", encoding="utf-8") as table,
                    open(paths[1], "w", encoding="utf-8") as text,
                ):
                    records = cls(table, text)
                    try:
                        yield records
                    except (Exception, KeyboardInterrupt) as error:
                        pending = error  # what was found until then is kept
                    if not records._count:
                        records._csv.writerow(dict(_flat(blank)))
                    text.write("\n]\n")
            except OSError as error:
                raise RunError(
                    f"{folder} cannot be written ({error.strerror}); name another --out"
                ) from error
        if pending:
            raise pending

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record of plain values, lists of numbers and dicts of them."""
        flat = dict(_flat(record))
        if not self._count:
            self._csv.writerow(flat)
        self._csv.writerow("" if value is None else value for value in flat.values())
        # In one piece, which no Ctrl-C can end within.
        self._json.write((",\n" if self._count else "\n") + json.dumps(record))
        self._count += 1


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
