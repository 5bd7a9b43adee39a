"""Progress bars that are lines in a log."""

import sys
from collections.abc import Iterable
from typing import TextIO

from tqdm import tqdm

LOG_SECONDS = 30


class _LogLines(tqdm):
    """A tqdm that prints a line now and then, for output that is not a terminal."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.n < (self.total or float("inf")):  # a finished task prints its own result
            self.fp.write(f"{self}\n")
            self.fp.flush()


def progress_bar(
    iterable: Iterable | None = None,
    description: str = "",
    *,
    total: int | None = None,
    initial: int = 0,
    unit: str = "batch",
    disable: bool = False,
) -> tqdm:
    """Return a progress bar on a terminal, and a line every 30 seconds in a log.

    The arguments are those of tqdm: None as iterable is for manual updates, and `initial` is the
    number of items that are finished already.
    """
    shared = {"desc": description, "total": total, "initial": initial, "unit": unit, "leave": False}
    if disable or sys.stderr.isatty():
        return tqdm(iterable, disable=disable, **shared)
    every = {"mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS, "delay": LOG_SECONDS}
    return _LogLines(iterable, **shared, **every, ascii=True, ncols=80)


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print a line without breaking a progress bar."""
    if sys.stderr.isatty():
        tqdm.write(text, file=file)
    else:
        print(text, file=file, flush=True)
