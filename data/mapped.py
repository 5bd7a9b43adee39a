"""Images that do not fit into memory: decoded once into a memory-mapped file in the cache."""

import io
import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import psutil
from filelock import FileLock

from data.cache import CACHE_DIR
from utils.errors import DataError
from utils.progress import progress_bar

MAX_MEMORY_SHARE = 0.5  # of the free memory


def fits_in_memory(size: int) -> bool:
    """Return whether `size` bytes leave enough free memory."""
    return size < MAX_MEMORY_SHARE * psutil.virtual_memory().available


def decode_to_file(
    key: str, shape: tuple[int, ...], decode: Callable[[int], Iterable[np.ndarray]]
) -> np.memmap:
    """Return images uint8 [N, H, W] or [N, H, W, 3] in a memory-mapped file of the cache.

    The file is written image by image, so an interrupted call continues after the last complete
    one. Another process that calls this function with the same key waits.

    Args:
        key: A digest of everything that the images depend on.
        shape: Of all images.
        decode: Returns the images from a number on.

    Raises:
        DataError: The disk is too small, or the folder cannot be written.
    """
    path = CACHE_DIR / "images" / f"{key}.npy"
    header, size = _npy_header(shape), math.prod(shape[1:])
    partial, gigabytes = path.with_suffix(".npy.part"), math.prod(shape) / 1e9
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            is_complete = path.exists() and path.stat().st_size == len(header) + size * shape[0]
            if not is_complete:
                written = partial.stat().st_size if partial.exists() else 0
                done = max(0, written - len(header)) // size
                _check_disk(path.parent, size * (shape[0] - done), gigabytes)
                print(
                    f"images   {shape[0]:,} images do not fit into memory; decoding them once into "
                    f"{path} ({gigabytes:.1f} GB; {done:,} are finished)",
                    flush=True,
                )
                with open(partial, "ab") as file:
                    file.truncate(len(header) + size * done if done else 0)
                    file.write(b"" if done else header)
                    shared = {"total": shape[0], "initial": done, "unit": "image"}
                    for image in progress_bar(decode(done), "decoding images", **shared):
                        file.write(image.tobytes())
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
        return np.load(path, mmap_mode="c")
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror or error}); set FER_CACHE to a folder with "
            f"{gigabytes:.1f} GB of free space. An interrupted decoding continues"
        ) from error


def _check_disk(folder: Path, needed: int, gigabytes: float) -> None:
    """Raise a DataError if a folder has less free space than needed."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"the images do not fit into memory, and need {gigabytes:.1f} GB on disk, of which "
            f"{needed / 1e9:.1f} GB are missing; {folder} has {free / 1e9:.1f} GB of free space. "
            "Set FER_CACHE to a folder on a larger disk, or use a smaller --image_width or "
            "--channels 1"
        )


def _npy_header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()
