"""Cache files of arrays that are slow to compute; damaged ones are computed again."""

import os
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from zipfile import ZipInfo

import numpy as np

from utils.errors import ProjectError
from utils.files import atomic_write

CACHE_DIR = Path(os.environ.get("FER_CACHE") or Path(__file__).resolve().parent / "cache")
CACHE_FORMAT = 6  # increased whenever the same files of a data set would give other arrays
MAPPED_BYTES = 16 << 20  # arrays of at least this size are memory-mapped
Arrays = dict[str, np.ndarray]


def load_arrays(path: Path) -> Arrays | None:
    """Return the arrays of a file of `store_arrays`, or None if it is missing or damaged.

    Large arrays are memory-mapped copy-on-write, so a data set may be larger than the memory.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if archive.zip.testzip():  # a wrong CRC
                return None
            members = {name: archive.zip.getinfo(f"{name}.npy") for name in archive.files}
            arrays = {
                name: archive[name] if member.file_size < MAPPED_BYTES else _map(path, member)
                for name, member in members.items()
            }
        for name, array in arrays.items():
            if array.ndim == 0 and array.dtype.kind == "U":  # the name of another file
                arrays[name] = np.asarray(np.load(path.parent / str(array), mmap_mode="c"))
        return arrays
    except Exception:  # a damaged file raises many types
        return None


def _map(path: Path, member: ZipInfo) -> np.ndarray:
    """Return a memory map of one array of an uncompressed .npz file."""
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)  # ZIP: the lengths of the name and the extra field
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        np.lib.format.read_magic(file)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        order = "F" if is_fortran else "C"
        return np.asarray(np.memmap(path, dtype, "c", file.tell(), shape, order))


def store_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to an uncompressed .npz file atomically, or raise a RunError.

    Of an array that is a memory-mapped file itself, the file's name is written.
    """
    files = {name: a.filename for name, a in arrays.items() if isinstance(a, np.memmap)}
    names = {name: np.array(os.path.relpath(file, path.parent)) for name, file in files.items()}
    with atomic_write(path) as partial, open(partial, "wb") as file:
        np.savez(file, **{**arrays, **names})


def cached(path: Path, compute: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of a cache file, or compute and store them.

    The name of the file has a digest of everything that the arrays depend on. A cache file that
    cannot be written is a warning.
    """
    if arrays := load_arrays(path):
        return arrays
    arrays = compute()
    # Another process may have stored its arrays in the meantime, and have them mapped.
    if existing := load_arrays(path):
        return existing
    try:
        store_arrays(path, arrays)
    except ProjectError as error:
        remedy = "set FER_CACHE to a folder that can be written"
        print(f"warning: no cache file; {remedy}: {error}", file=sys.stderr)
        return arrays
    return load_arrays(path) or arrays  # mapped arrays take no memory
