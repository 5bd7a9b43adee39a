"""What took long to make, kept in files: a damaged one is made anew, never an error."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from zipfile import ZipInfo

import numpy as np

from utils.errors import ProjectError
from utils.files import atomic_write

# Elsewhere where the repository is read-only, or shared by users who may not write to it.
CACHE_DIR = Path(os.environ.get("FER_CACHE") or Path(__file__).resolve().parent / "cache")

MAPPED_BYTES = 16 << 20  # arrays from this size on stay in their file

Arrays = dict[str, np.ndarray]


def load_arrays(path: Path) -> Arrays | None:
    """Return the arrays that `store_arrays` wrote, or None where there is no whole file of them.

    Large ones stay in the file, mapped, so that a set may be larger than the memory; what
    is changed in them is changed in memory alone.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:  # reading checks each array's CRC
            names = {name: archive.zip.getinfo(f"{name}.npy") for name in archive.files}
            return {
                name: archive[name] if member.file_size < MAPPED_BYTES else _map(archive, member)
                for name, member in names.items()
            }
    except Exception:  # a damaged file raises a dozen kinds, and all of them mean the same here
        return None


def _map(archive: np.lib.npyio.NpzFile, member: ZipInfo) -> np.ndarray:
    """Return a large array of an uncompressed .npz where it lies in the file."""
    with archive.zip.open(member) as content:
        while content.read(1 << 20):  # to its end, where the CRC is checked
            pass
    path = archive.zip.filename
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)  # in the ZIP format: the lengths of name and extra
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        order = "F" if fortran else "C"
        return np.asarray(np.memmap(path, dtype, "c", file.tell(), shape, order))


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
    there = load_arrays(path)
    if there is not None and fits(there):  # another process was faster, and has its arrays mapped
        return there
    try:
        store_arrays(path, arrays)
    except ProjectError as error:
        print(
            f"warning: no cache, so the next start is as slow (set FER_CACHE): {error}",
            file=sys.stderr,
        )
        return arrays
    return load_arrays(path) or arrays  # the memory that they took is free again
