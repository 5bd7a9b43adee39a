"""Inputs of a command line: images, folders of images and videos, videos, cameras."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from data.readers.folders import natural_key
from data.readers.images import IMAGE_SUFFIXES
from utils.errors import DataError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
VIDEO_SUFFIXES += (".3gp", ".flv", ".ogv", ".ts", ".mts", ".m2ts")


def find_all_inputs(paths: Sequence[str]) -> list[Path | int]:
    """Return the images, videos and cameras of several paths, each one once.

    Raises:
        DataError: A path does not exist, or has no images and no videos.
    """
    unique = {}
    for source in (source for path in paths for source in _find_inputs(path)):
        key = source if isinstance(source, int) else os.path.realpath(source)
        unique.setdefault(key, source)
    return list(unique.values())


def is_video(source: Path | int) -> bool:
    """Return whether a source is a video (an animated GIF too) or a camera, not an image."""
    if isinstance(source, int):
        return True
    suffix = source.suffix.lower()
    return suffix in VIDEO_SUFFIXES or (suffix == ".gif" and _is_animated(source))


def _find_inputs(path: str) -> list[Path | int]:
    """Return the images and videos of a path, folder or pattern, or the number of a camera."""
    if not path:
        raise DataError("a path is empty; give an image, a folder, a video or a camera's number")
    file = Path(os.path.expanduser(path))
    exists = os.path.exists(file)
    if not exists and re.fullmatch("[0-9]{1,4}", path):
        return [int(path)]
    matches = [file] if exists else map(Path, glob.glob(str(file), recursive=True))
    if not (matches := sorted(matches, key=lambda file: natural_key(str(file)))):
        raise DataError(f"{path}: no such file or folder, and no file matches it as a pattern")
    files = [found for match in matches for found in _files_in(match)]
    if not files:
        raise DataError(f"{path} has no images and no videos")
    return files


def _files_in(path: Path) -> list[Path]:
    """Return the images and videos in a folder and below, or the file itself.

    Hidden files, links to folders, and folders below with results of an earlier run are left out.
    An unreadable folder and a broken link are returned, so that the reader reports them.
    """
    if not path.is_dir():
        return [path]
    files = []
    for name, folders, names in os.walk(path, onerror=lambda e: files.append(Path(e.filename))):
        folder = Path(name)
        if folder != path and {"predictions.csv", "predictions.json"} <= set(names):
            print(f"Left out {folder}: results of an earlier run")
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for link in filter(Path.is_symlink, (folder / name for name in folders)):
            print(f"Left out {link}: a link to a folder")
        for file in (folder / name for name in names if not name.startswith(".")):
            is_input = file.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
            if is_input and (file.is_file() or file.is_symlink()):
                files.append(file)
    return sorted(files, key=lambda file: natural_key(str(file)))


def _is_animated(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # Pillow raises many kinds for a damaged file; the image reader reports it
        return False
