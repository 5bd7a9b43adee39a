"""The layouts in which a data set may stand, told apart by content, and the search for one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from data.readers.archives import is_archive, unpacked
from data.cache import CACHE_DIR
from data.dataset import FaceDataset
from data.readers.fer_csv import read_csv, read_header
from data.readers.folders import find_tree, split_of_name, list_visible
from data.readers.lists import find_lists
from data.readers.raf_db import LIST, find_raf_db
from utils.errors import DataError

LAYOUTS = (
    "a CSV (fer2013.csv, icml_face_data.csv, or train.csv with test.csv); "
    "folders train/<class>/*.jpg with test/ or validation/; "
    "lists (train_images.txt with train_labels.txt); RAF-DB (EmoLabel/ beside Image/); "
    "or a .zip or .tar.gz of one of these"
)
SEARCH_DEPTH = 4  # folders around a data set, as unpacking and downloads leave them
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")
CSV_SUFFIXES = (".csv", ".tsv", ".txt")
CSV_NAMES = ("fer2013.csv", "icml_face_data.csv", "train.csv", "test.csv")


class Layout(Protocol):
    """A data set's place, all files that its faces depend on, and its reader."""

    root: Path

    def files(self) -> list[Path]:
        """Return all of them, those that others name too: the cache goes by their content."""
        ...

    def read(self, width: int, channels: int, class_names: Sequence[str]) -> FaceDataset:
        """Return the faces as width x width pixels; classes in the order given, if any."""
        ...


@dataclass(frozen=True)
class CsvSet:
    """One CSV, or the challenge's train.csv and test.csv together."""

    root: Path
    paths: tuple[Path, ...]

    def files(self) -> list[Path]:
        return list(self.paths)

    def read(self, width: int, channels: int, class_names: Sequence[str]) -> FaceDataset:
        """Read the faces as width x width pixels, grey whatever the channels."""
        parts = [
            read_csv(path, tuple(class_names), _usage_of_csv(path)).resized(width)
            for path in self.paths
        ]
        if len(parts) == 1:  # a copy of the largest sets would take their memory twice
            return parts[0]
        return replace(
            parts[0],
            images=np.concatenate([part.images for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            usage=np.concatenate([part.usage for part in parts]),
        )


@dataclass(frozen=True)
class Archive:
    """A .zip or .tar of another layout, or of one archive more."""

    root: Path
    may_nest: bool = True

    def files(self) -> list[Path]:
        return [self.root]

    def read(self, width: int, channels: int, class_names: Sequence[str]) -> FaceDataset:
        """Unpack into a temporary folder, and read what is there."""
        with unpacked(self.root) as folder:
            try:
                layout = locate(folder)
                if isinstance(layout, Archive):
                    layout = replace(layout, may_nest=False) if self.may_nest else None
                if layout is None:
                    raise unknown_layout_error(folder)
                return layout.read(width, channels, class_names)
            except DataError as error:  # name what the user knows, not a folder that goes away
                raise DataError(str(error).replace(str(folder), str(self.root))) from error


def locate(path: Path) -> Layout | None:
    """Return the layout of a file or folder; cheap, for only the first bytes are read.

    A folder is searched a few levels deep, breadth first; unpacked layouts come
    before archives.

    Raises:
        DataError: the folder holds several CSVs of one kind, or the file is an
            archive of an unknown kind.
    """
    if path.is_file():
        return _locate_file(path)
    for folder in _folders(path):
        for find in (find_raf_db, find_lists, find_csv, find_tree):
            if layout := find(folder):
                return layout
    files = [file for folder in _folders(path) for file in list_visible(folder) if file.is_file()]
    for file in files:
        if file.name.lower().endswith(ARCHIVE_SUFFIXES) and is_archive(file):
            return Archive(file)
    for file in files:
        if file.name.lower() in CSV_NAMES:  # no CSV of faces, so that reading it says why
            return CsvSet(file, (file,))
    return None


def _locate_file(path: Path) -> Layout | None:
    if is_archive(path):
        return Archive(path)
    if path.name == LIST.name:
        return find_raf_db(Path(os.path.abspath(path.parent)).parent)
    is_list = path.name.endswith(("_images.txt", "_labels.txt"))
    return find_lists(path.parent) if is_list else CsvSet(path, (path,))


def unknown_layout_error(path: Path) -> DataError:
    """Return the error that tells what a path holds instead of a known layout."""
    names = [f"{p.name}/" if p.is_dir() else p.name for p in list_visible(path)] if path.is_dir() else []
    found = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return DataError(
        f"{path} holds no data set of a known layout (found: {found or 'nothing'}); "
        f"known are: {LAYOUTS}"
    )


def find_csv(folder: Path) -> CsvSet | None:
    """Return the CSVs of faces that stand in this very folder, or None.

    Raises:
        DataError: there are several of one kind.
    """
    headers = {
        path: header
        for path in list_visible(folder)
        if path.suffix.lower() in CSV_SUFFIXES and path.is_file() and (header := read_header(path))
    }
    whole = [path for path, header in headers.items() if "usage" in header.names]
    # Kaggle's fer2013.csv and icml_face_data.csv are the same faces.
    if len(whole) > 1 and any(path.name.lower() not in CSV_NAMES for path in whole):
        raise DataError(
            f"{folder} holds several CSVs of faces ({', '.join(path.name for path in whole)}); "
            "name one with --data"
        )
    if whole:
        return CsvSet(whole[0], (whole[0],))
    parts: dict[str, Path] = {}
    for path, header in headers.items():
        usage = _usage_of_csv(path) if "emotion" in header.names else "PrivateTest"
        if usage in parts:
            raise DataError(
                f"{folder} holds several CSVs of {usage} faces ({parts[usage].name}, {path.name}); "
                "remove one, or name the file with --data"
            )
        parts[usage] = path
    return CsvSet(folder, tuple(parts.values())) if parts else None


def _usage_of_csv(path: Path) -> str:
    return split_of_name(path.stem) or "Training"


def _folders(root: Path) -> Iterator[Path]:
    level = [root]
    for _ in range(SEARCH_DEPTH + 1):
        yield from level
        level = [p for f in level for p in list_visible(f) if p.is_dir() and p != CACHE_DIR]
