"""The layouts of data sets, and the search for one in a folder, by names and first bytes."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from data.cache import CACHE_DIR
from data.dataset import FaceDataset
from data.readers.affectnet import SPLIT_OF_CSV, find_affectnet
from data.readers.archives import is_archive, unpacked
from data.readers.fer_csv import read_csv, read_header
from data.readers.folders import find_folders, list_visible, split_of_name
from data.readers.lists import find_lists
from data.readers.raf_db import LABEL_FILE, find_raf_db
from utils.errors import DataError

SUPPORTED_FORMATS = (
    "a CSV (fer2013.csv, icml_face_data.csv, or train.csv with test.csv); "
    "folders train/<class>/*.jpg (validation/ and test/ may be missing); "
    "lists (train_images.txt with train_labels.txt); RAF-DB (EmoLabel/ and Image/); "
    "AffectNet (train_set/ and val_set/, or training.csv with Manually_Annotated_Images/); "
    "or a .zip or .tar.gz of one of these"
)
SEARCH_DEPTH = 4  # levels of folders around a data set, as unpacking and downloads create them
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")
CSV_SUFFIXES = (".csv", ".tsv", ".txt")
CSV_NAMES = ("fer2013.csv", "icml_face_data.csv", "train.csv", "test.csv")


class Layout(Protocol):
    """A data set that was located, with its reader; `root` is its file or folder."""

    root: Path

    def files(self) -> list[Path]:
        """Return all files that the data set depends on; the cache key is their content."""

    def read(self, width: int, channels: int, class_names: Sequence[str]) -> FaceDataset:
        """Return width x width images, in RGB for 3 channels; `class_names` may be empty."""


@dataclass(frozen=True)
class CsvLayout:
    """One CSV, or the challenge's train.csv and test.csv together."""

    root: Path
    paths: tuple[Path, ...]

    def files(self) -> list[Path]:
        return list(self.paths)

    def read(self, width: int, channels: int, class_names: Sequence[str]) -> FaceDataset:
        """Read the images as width x width pixels, grayscale whatever the channels."""
        parts = [read_csv(p, class_names, _split_of_csv(p)).resized(width) for p in self.paths]
        if len(parts) == 1:  # concatenation would copy the images
            return parts[0]
        names = ("images", "labels", "split")
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return replace(parts[0], **arrays)


@dataclass(frozen=True)
class ArchiveLayout:
    """A .zip or .tar of another layout, or of one more archive."""

    root: Path
    may_nest: bool = True

    def files(self) -> list[Path]:
        return [self.root]

    def read(self, width: int, channels: int, class_names: Sequence[str]) -> FaceDataset:
        """Unpack the archive into a temporary folder, and read its content."""
        with unpacked(self.root) as folder:
            try:
                layout = locate(folder)
                if isinstance(layout, ArchiveLayout):
                    layout = replace(layout, may_nest=False) if self.may_nest else None
                if layout is None:
                    raise unknown_layout_error(folder)
                return layout.read(width, channels, class_names)
            except DataError as error:  # name the archive, not the temporary folder
                raise DataError(str(error).replace(str(folder), str(self.root))) from error


def locate(path: Path) -> Layout | None:
    """Return the layout of a file or folder, or None; only the first bytes of files are read.

    A folder is searched breadth-first. Unpacked data sets have priority over archives.

    Raises:
        DataError: There are several CSVs of one kind, several folders of class folders, or an
            archive of an unsupported kind.
    """
    if path.is_file():
        return _locate_file(path)
    for folder in _folders(path):
        for find in (find_raf_db, find_affectnet, find_lists, find_csv, find_folders):
            if layout := find(folder):
                if find is find_folders and folder != path:
                    _check_siblings(folder)
                return layout
    files = [file for folder in _folders(path) for file in list_visible(folder) if file.is_file()]
    for file in files:
        if file.name.lower().endswith(ARCHIVE_SUFFIXES) and is_archive(file):
            return ArchiveLayout(file)
    # Reading a file of this name gives an error that explains what is wrong.
    named = (file for file in files if file.name.lower() in CSV_NAMES)
    return next((CsvLayout(file, (file,)) for file in named), None)


def _check_siblings(folder: Path) -> None:
    """Raise a DataError if the folder next to this one has class folders, too."""
    folders = [p for p in list_visible(folder.parent) if p.is_dir() and find_folders(p)]
    if len(folders) > 1:
        names = ", ".join(p.name for p in folders)
        raise DataError(
            f"{folder.parent} contains several data sets ({names}); give one with --data. If these "
            "are classes, put the images directly into their folders"
        )


def _locate_file(path: Path) -> Layout | None:
    if is_archive(path):
        return ArchiveLayout(path)
    if path.name == LABEL_FILE.name:
        return find_raf_db(Path(os.path.abspath(path.parent)).parent)
    if path.name in SPLIT_OF_CSV and (affectnet := find_affectnet(path.parent)):
        return affectnet
    is_list = path.name.endswith(("_images.txt", "_labels.txt"))
    return find_lists(path.parent) if is_list else CsvLayout(path, (path,))


def unknown_layout_error(path: Path) -> DataError:
    """Return an error that lists the content of a path without a known layout."""
    entries = list_visible(path) if path.is_dir() else []
    names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries]
    more = [f"and {len(names) - 10} more"] if len(names) > 10 else []
    found = ", ".join(names[:10] + more) or "nothing"
    fault = f"{path} contains no data set in a supported layout (found: {found})"
    return DataError(f"{fault}; supported are: {SUPPORTED_FORMATS}")


def find_csv(folder: Path) -> CsvLayout | None:
    """Return the CSVs of images that lie directly in a folder, or None."""
    headers = {
        path: header.names
        for path in list_visible(folder)
        if path.suffix.lower() in CSV_SUFFIXES and path.is_file() and (header := read_header(path))
    }
    complete = [path for path, names in headers.items() if "usage" in names]
    # Kaggle's fer2013.csv and icml_face_data.csv contain the same images.
    if len(complete) > 1 and any(path.name.lower() not in CSV_NAMES for path in complete):
        found = ", ".join(path.name for path in complete)
        raise DataError(f"{folder} contains several CSVs of images ({found}); give one with --data")
    if complete:
        return CsvLayout(complete[0], (complete[0],))
    parts: dict[str, Path] = {}
    for path, names in headers.items():
        split = _split_of_csv(path) if "emotion" in names else "PrivateTest"
        if split in parts:
            found = f"{parts[split].name}, {path.name}"
            raise DataError(
                f"{folder} contains several CSVs of {split} images ({found}); give one with --data"
            )
        parts[split] = path
    return CsvLayout(folder, tuple(parts.values())) if parts else None


def _split_of_csv(path: Path) -> str:
    return split_of_name(path.stem) or "Training"


def _folders(root: Path) -> Iterator[Path]:
    """Yield a folder and those below it, breadth-first."""
    level = [root]
    for _ in range(SEARCH_DEPTH + 1):
        yield from level
        level = [p for f in level for p in list_visible(f) if p.is_dir() and p != CACHE_DIR]
