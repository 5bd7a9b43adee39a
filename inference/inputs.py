"""What the paths of a command line name: pictures, folders of them, videos, cameras."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from PIL import Image

from data.readers.folders import IMAGE_SUFFIXES, natural_key
from inference.video import MATROSKA, SUFFIXES
from utils.errors import DataError

# Matroska and WebM, Windows Media, MPEG's program stream and video, Flash, Ogg.
VIDEO_STARTS = (
    *(MATROSKA, b"\x30\x26\xb2\x75", b"\0\0\1\xba", b"\0\0\1\xb3"),
    *(b"FLV", b"OggS"),
)


def find_inputs(path: str, alone: bool = True) -> list[Path | int]:
    """Return the pictures and videos that a path, folder or pattern names, or a camera's number.

    The results of an earlier run are left out, but where their folder is named, `alone`: with other
    paths it may have come from a shell's pattern.

    Raises:
        DataError: there are none, nor such results.
    """
    if not path:
        raise DataError("a path is empty; name a picture, a folder, a video or a camera")
    file = Path(path).expanduser()
    if not os.path.exists(file) and re.fullmatch("[0-9]{1,4}", path):
        return [int(path)]
    named = os.path.exists(file)
    matches = [file] if named else glob.glob(str(file), recursive=True)
    matches = sorted(matches, key=lambda match: natural_key(str(match)))
    if not matches:
        raise DataError(f"{path}: there is no such file or folder, and nothing matches it")
    files = [found for match in matches for found in _files_in(Path(match), named and alone)]
    if not named:  # a pattern may match what a run wrote
        runs = {folder for folder in {found.parent for found in files} if _is_of_a_run(folder)}
        files = [found for found in files if found.parent not in runs]
    if not files and not (named and _is_of_a_run(file)):
        raise DataError(f"{path} holds no pictures and no videos")
    return files


def _is_of_a_run(folder: str | Path) -> bool:
    """Tell whether a folder holds the results of predict.py."""
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    # While it runs, or where it was killed, they have not taken their names yet.
    return all(any(f"predictions.{kind}" in name for name in names) for kind in ("csv", "json"))


def _files_in(path: Path, named: bool) -> list[Path]:
    """Return the pictures and videos in a folder, or the file itself.

    Left out are hidden ones, and what an earlier run of predict.py drew in a folder below, or in
    this one where nobody `named` it, and links to folders. A folder that cannot be read stands for
    its files, and so does a link that leads nowhere: whoever reads it tells what is wrong.
    """
    if not path.is_dir():
        return [path]
    known, files, closed = {*IMAGE_SUFFIXES, *SUFFIXES}, [], []
    for folder, folders, names in os.walk(path, onerror=closed.append):
        if not (named and Path(folder) == path) and _is_of_a_run(folder):
            print(f"left out {folder}: the results of an earlier run")
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for link in filter(os.path.islink, (os.path.join(folder, name) for name in folders)):
            print(f"left out {link}: a link to a folder")
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    files = [file for file in files if file.suffix.lower() in known]
    files = [file for file in files if file.is_file() or file.is_symlink()]
    files += [Path(error.filename) for error in closed]
    return sorted(files, key=lambda file: natural_key(str(file)))


def _moves(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # Pillow raises a dozen kinds on a damaged file; whoever reads it tells
        return False


def is_video(source: Path | int) -> bool:
    """Tell whether it is a video or a camera, not a picture.

    Where the name does not say, the file's first bytes do. A GIF that moves is a video.
    """
    if isinstance(source, int):
        return True
    suffix = source.suffix.lower()
    if suffix in SUFFIXES or suffix in IMAGE_SUFFIXES:
        return suffix in SUFFIXES or (suffix == ".gif" and _moves(source))
    try:
        if not source.is_file():  # a pipe would be waited for
            return False
        with open(source, "rb") as file:
            head = file.read(189)
    except OSError:
        return False  # whoever reads it tells what is wrong
    if head[4:8] == b"ftyp":  # so do pictures such as HEIC and AVIF begin
        return head[8:11] not in (b"hei", b"hev", b"mif", b"msf", b"avi")
    known = head.startswith(VIDEO_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
    return known or head[:1] == head[188:] == b"G"  # packets of MPEG's transport stream
