"""Inputs of a command line: images, folders of images and videos, videos, cameras."""

from __future__ import annotations

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
VIDEO_SUFFIXES += (".3gp", ".flv", ".ogv", ".mts", ".m2ts")
# The first bytes of Matroska and WebM, Windows Media, MPEG program streams, MPEG video, FLV, Ogg.
VIDEO_SIGNATURES = (b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75", b"\0\0\1\xba", b"\0\0\1\xb3")
VIDEO_SIGNATURES += (b"FLV", b"OggS")
IMAGE_BRANDS = (b"hei", b"hev", b"mif", b"msf", b"avi")  # HEIC and AVIF begin as MP4 does


def find_all_inputs(paths: Sequence[str]) -> list[Path | int]:
    """Return the images, videos and cameras of several paths, each one once.

    The results of earlier runs are left out, except where their folder is the only path: one of
    several paths may come from a shell's pattern.

    Raises:
        DataError: A path does not exist, or there is no input.
    """
    unique = {}
    for source in (s for path in paths for s in _find_inputs(path, is_only_path=len(paths) == 1)):
        key = source if isinstance(source, int) else os.path.realpath(source)
        unique.setdefault(key, source)
    if not unique:
        raise DataError(
            "these folders have results of earlier runs, which are left out. To predict such "
            "images, give one of these folders alone"
        )
    return list(unique.values())


def is_video(source: Path | int) -> bool:
    """Return whether a source is a video (an animated GIF too) or a camera, not an image.

    The suffix decides, or the first bytes where it is unknown.
    """
    if isinstance(source, int):
        return True
    suffix = source.suffix.lower()
    if suffix in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES):
        return suffix in VIDEO_SUFFIXES or (suffix == ".gif" and _is_animated(source))
    return _has_video_signature(source)


def _find_inputs(path: str, is_only_path: bool) -> list[Path | int]:
    """Return the images and videos of a path, folder or pattern, or the number of a camera."""
    if not path:
        raise DataError("a path is empty; give an image, a folder, a video or a camera's number")
    file = Path(path).expanduser()
    exists = os.path.exists(file)
    if not exists and re.fullmatch("[0-9]{1,4}", path):
        return [int(path)]
    matches = [file] if exists else map(Path, glob.glob(str(file), recursive=True))
    if not (matches := sorted(matches, key=_natural_order)):
        raise DataError(f"{path}: no such file or folder, and no file matches it as a pattern")
    files = [found for match in matches for found in _files_in(match, exists and is_only_path)]
    if not exists:  # a pattern may match the files of an earlier run
        runs = {folder for folder in {found.parent for found in files} if _is_results(folder)}
        files = [found for found in files if found.parent not in runs]
    if not files and not (exists and _is_results(file)):
        raise DataError(f"{path} has no images and no videos")
    return files


def _files_in(path: Path, keep_results: bool) -> list[Path]:
    """Return the images and videos in a folder and below, or the file itself.

    Hidden files, links to folders and folders with results of earlier runs are left out; `path`
    itself may have such results if `keep_results`. An unreadable folder and a broken link are
    returned, so that the reader reports them.
    """
    if not path.is_dir():
        return [path]
    files, unreadable = [], []
    for name, folders, names in os.walk(path, onerror=unreadable.append):
        folder = Path(name)
        if _is_results(folder) and not (keep_results and folder == path):
            print(f"Left out {folder}: results of an earlier run")
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for link in filter(Path.is_symlink, (folder / name for name in folders)):
            print(f"Left out {link}: a link to a folder")
        visible = [folder / name for name in names if not name.startswith(".")]
        files += [f for f in visible if f.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)]
    files = [file for file in files if file.is_file() or file.is_symlink()]
    return sorted([*files, *(Path(error.filename) for error in unreadable)], key=_natural_order)


def _natural_order(path: Path) -> list:
    return natural_key(str(path))


def _is_results(folder: Path) -> bool:
    """Return whether a folder has results of predict.py."""
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    # The files of a running or killed process have temporary names that contain these.
    return all(any(f"predictions.{kind}" in name for name in names) for kind in ("csv", "json"))


def _has_video_signature(source: Path) -> bool:
    try:
        if not source.is_file():  # opening a pipe would block
            return False
        with open(source, "rb") as file:
            head = file.read(189)
    except OSError:
        return False  # the image reader reports the error
    if head[4:8] == b"ftyp":
        return head[8:11] not in IMAGE_BRANDS
    is_avi = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    is_transport_stream = head[:1] == head[188:] == b"G"  # packets of 188 bytes
    return head.startswith(VIDEO_SIGNATURES) or is_avi or is_transport_stream


def _is_animated(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # Pillow raises many kinds for a damaged file; the image reader reports it
        return False
