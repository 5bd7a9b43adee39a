"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import RunError

PARTIAL = ".part"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name when the block ends well.

    A reader, or a process killed at any moment, sees the old file or the new
    one, never a part; two writers do not mix, because each has its own
    temporary file. When the block raises, the old file stays.

    Raises:
        RunError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
        os.close(handle)
        partial = Path(name)
        yield partial
        with open(partial, "r+b") as file:  # Windows syncs only what can be written
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())  # mkstemp makes it private to its owner
        partial.replace(path)
    except OSError as error:
        raise RunError(
            f"{path} could not be written ({error.strerror or error}); "
            "free disk space or name another folder. What stood there before is unchanged."
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def partial_files(folder: Path) -> list[Path]:
    """Return what `atomic_write` left in a folder where its process was killed."""
    return list(folder.glob(f".*{PARTIAL}"))


def printable(name: str) -> str:
    """Return a file's name as it can be printed: what is not UTF-8 in it becomes question marks."""
    return os.fsencode(name).decode("utf-8", "replace")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
