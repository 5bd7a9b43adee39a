"""A data set of image files: one folder per class, in train/, validation/ and test/."""

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.dataset import SPLITS, FaceDataset, canonical_class, quoted
from data.readers.images import is_image, read_images
from utils.classes import EMOTIONS
from utils.errors import DataError

# Folders of Linux and Windows at the root of a disk, which only the system may open.
SYSTEM_FOLDERS = ("lost+found", "System Volume Information", "$RECYCLE.BIN")

_NAMES_OF_SPLIT = {
    "Training": "train(ing)?",
    "PublicTest": "val(id(ation)?)?|dev|public.*",
    "PrivateTest": "test(ing)?|private.*",
}


def split_of_name(name: str) -> str | None:
    """Return the split that the name of a folder or file means (`train`, `Valid`), or None."""
    matches = (s for s, names in _NAMES_OF_SPLIT.items() if re.fullmatch(names, name.lower()))
    return next(matches, None)


def natural_key(name: str) -> tuple:
    """Return a sort key that puts `2.png` before `10.png`."""
    parts = re.split("([0-9]+)", name)  # text and numbers alternate
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def list_visible(folder: Path) -> list[Path]:
    """Return the entries of a folder in natural order, without hidden and system files."""
    hidden = (".", "__", *SYSTEM_FOLDERS)
    visible = (path for path in folder.iterdir() if not path.name.startswith(hidden))
    return sorted(visible, key=lambda path: natural_key(path.name))


@dataclass(frozen=True)
class FolderLayout:
    """Image files in a folder per class, with or without folders per split around them.

    `images` contains the files in natural order, by split folder (`root` if there are none) and
    name of the class folder. No list is empty.
    """

    root: Path
    images: dict[Path, dict[str, list[Path]]]

    def files(self) -> list[Path]:
        """Return all files that the data set depends on, in the order of the images."""
        return [p for folders in self.images.values() for paths in folders.values() for p in paths]

    def read(self, width: int, channels: int, class_names: Sequence[str] = ()) -> FaceDataset:
        classes, class_of = self._classes(tuple(class_names))
        self._check_classes(classes, class_of, bool(class_names))
        if ignored := self._ignored_files():
            fault = f"{len(ignored)} files are ignored, such as {ignored[0].relative_to(self.root)}"
            remedy = "put images directly into the folder of their class, in train/ or test/"
            print(f"warning: {fault}; {remedy}", file=sys.stderr)
        labels, split = [], []
        for split_folder, folders in self.images.items():
            for name, paths in folders.items():
                labels += [classes.index(class_of[name])] * len(paths)
                prefixes = [path.name.partition("_")[0] for path in paths]  # as PublicTest_17.png
                split += [p if p in SPLITS else _split_of_folder(split_folder) for p in prefixes]
        images = read_images(self.files(), width, channels)
        labels, split = np.array(labels, np.int64), np.array(split, "U12")
        return FaceDataset(images, labels, split, classes, source=str(self.root))

    def _ignored_files(self) -> list[Path]:
        """Return the files of class folders, and the images of splits, that are not read."""
        read = set(self.files())
        class_folders = {split / name for split, names in self.images.items() for name in names}
        names = {folder.name for folder in class_folders}
        others = [p for p in list_visible(self.root) if p.is_dir() and p not in self.images]
        splits = [*self.images, *(p for p in others if names & _class_folders(p).keys())]
        files = (file for split in splits for file in _walk(split) if file not in read)
        return [file for file in files if file.parent in class_folders or is_image(file)]

    def _classes(self, class_names: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, str]]:
        """Return the classes in the order of their labels, and the class of each folder name."""
        names = {name for folders in self.images.values() for name in folders}
        for name in sorted(names):
            if name.encode(errors="ignore").decode() != name:
                raise DataError(f"{self.root}: the folder {name!r} is not UTF-8; rename it")
        numbers = {str(label): name for label, name in enumerate(class_names or EMOTIONS)}
        are_numbers = names <= numbers.keys() and not names & set(class_names)
        if are_numbers:
            class_of = {name: numbers[name] for name in names}
        else:
            # A class keeps the spelling of --class_names.
            spellings = {_class_of_name(name): name for name in class_names}
            class_of = {name: spellings.get(c := _class_of_name(name), c) for name in names}
            class_of |= {name: name for name in names & set(class_names)}
        present = set(class_of.values())
        if class_names:
            return class_names, class_of
        # Named classes for training may be some of FER2013's; a test set may lack some of them.
        is_test = all(_split_of_folder(split) != "Training" for split in self.images)
        has_all = are_numbers or (is_test and present & set(EMOTIONS))
        first = [name for name in EMOTIONS if has_all or name in present]
        return (*first, *sorted(present - set(first))), class_of

    def _check_classes(
        self, classes: tuple[str, ...], class_of: dict[str, str], are_given: bool
    ) -> None:
        """Raise a DataError unless folders and classes fit; a test set may lack some."""
        origin = " of the weights or --class_names" if are_given else ""
        if unknown := sorted(name for name, c in class_of.items() if c not in classes):
            fault = (
                f"the folders {quoted(unknown)} are none of the classes {quoted(classes)}{origin}"
            )
            raise DataError(f"{self.root}: {fault}; remove them, or correct --class_names")
        for split, folders in self.images.items():
            for c in {class_of[name] for name in folders}:
                if len(same := [name for name in folders if class_of[name] == c]) > 1:
                    fault = f"{split} has the folders {quoted(same)}, which all mean {c}"
                    raise DataError(f"{fault}; merge them, or keep these names with --class_names")
        if all(_split_of_folder(split) != "Training" for split in self.images):
            return  # a test set may lack a class
        for split, folders in self.images.items():
            if missing := set(classes) - {class_of[name] for name in folders}:
                meanings = {n: "" if n == class_of[n] else f" for {class_of[n]}" for n in folders}
                present = ", ".join(f"'{n}'{meaning}" for n, meaning in meanings.items())
                raise DataError(
                    f"{split} has no folder with images of the class {quoted(sorted(missing))}"
                    f"{origin} (it has {present}); add the missing images to each of train/, "
                    "validation/ and test/, or give the present classes with --class_names"
                )


def find_folders(folder: Path) -> FolderLayout | None:
    """Return the layout whose split or class folders lie directly in a folder, or None."""
    splits = [path for path in list_visible(folder) if split_of_name(path.name) and path.is_dir()]
    splits.sort(key=lambda path: SPLITS.index(split_of_name(path.name)))
    if images := {split: folders for split in splits if (folders := _class_folders(split))}:
        return FolderLayout(folder, images)
    folders = _class_folders(folder)
    is_layout = len(folders) > 1 or any(map(canonical_class, folders))
    return FolderLayout(folder, {folder: folders}) if is_layout else None


def _class_folders(split: Path) -> dict[str, list[Path]]:
    """Return the image files of each folder that has any; an empty folder counts as missing."""
    folders = (path for path in list_visible(split) if path.is_dir())
    files = {folder.name: [p for p in list_visible(folder) if is_image(p)] for folder in folders}
    return {name: images for name, images in files.items() if images}


def _split_of_folder(folder: Path) -> str:
    return split_of_name(folder.name) or "Training"


def _class_of_name(name: str) -> str:
    """Return the class of a folder name. macOS decomposes umlauts, so they are normalized."""
    return canonical_class(name) or unicodedata.normalize("NFC", name)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the visible files in a folder and below it, without following links to folders."""
    for path in list_visible(folder):
        if path.is_file() or not path.exists():  # a broken link
            yield path
        elif path.is_dir() and not path.is_symlink():
            yield from _walk(path)
