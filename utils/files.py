"""Atomic writing of files."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import RunError

PARTIAL = ".part"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, and rename it to `path` if the block succeeds.

    If the block raises or the process is killed, the old file is unchanged. Missing folders are
    created.

    Raises:
        RunError: The folder is not writable, or the disk is full.
    """
    path = Path(path)
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
        new.touch(exist_ok=False)
        partial = new
        yield partial
        with open(partial, "r+b") as file:  # Windows syncs only files that are open for writing
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise RunError(
            f"{path} could not be written ({error.strerror or error}); free disk space or choose "
            "another folder. A previous version of the file is unchanged."
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def partial_files(folder: Path) -> list[Path]:
    """Return the temporary files of `atomic_write` in a folder; a killed process leaves some."""
    return list(folder.glob(f".*{PARTIAL}"))


def printable(name: str) -> str:
    """Return a file name for printing, with a replacement character for what is not UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")
