"""What took long to make, kept in files: a damaged one is made anew, never an error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from utils.errors import ProjectError
from utils.files import atomic_write

# Elsewhere where the repository is read-only, or shared by users who may not write to it.
CACHE_DIR = Path(os.environ.get("FER_CACHE") or Path(__file__).resolve().parent / "cache")

Arrays = dict[str, np.ndarray]


def load_arrays(path: Path) -> Arrays | None:
    """Return the arrays that `store_arrays` wrote, or None where there is no whole file of them."""
    try:
        with np.load(path, allow_pickle=False) as archive:  # reading checks each array's CRC
            return {name: archive[name] for name in archive.files}
    except Exception:  # a damaged file raises a dozen kinds, and all of them mean the same here
        return None


def store_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays (no objects) to an uncompressed .npz that is either whole or not there.

    Raises:
        RunError: the folder cannot be written, or the disk is full.
    """
    with atomic_write(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def cached(
    kind: str,
    key: str,
    make: Callable[[], Arrays],
    folder: Path = CACHE_DIR,
    fits: Callable[[Arrays], bool] = lambda arrays: True,
) -> Arrays:
    """Return what `make` returns, from the file `kind`-`key`.npz in `folder` where that is whole.

    `key` names all that the result depends on. A file that cannot be read, or
    that does not pass `fits`, is made anew; one that cannot be written is a
    warning. Errors are those of `make`.
    """
    path = Path(folder) / f"{kind}-{key}.npz"
    arrays = load_arrays(path)
    if arrays is not None and fits(arrays):
        return arrays
    arrays = make()
    try:
        store_arrays(path, arrays)
    except ProjectError as error:
        print(f"warning: no cache, so the next start is as slow: {error}", file=sys.stderr)
    return arrays
