"""Faces as image files in a folder per class, under train/, validation/ and test/."""

from __future__ import annotations

import re
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from data.dataset import EMOTIONS, SPLITS, FaceDataset, canonical_class, quoted, resize_image
from utils.errors import DataError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"),
    # Cameras and telephones write these, too; what cannot be decoded is then named.
    *(".jfif", ".jpe", ".jp2", ".avif", ".heic", ".heif"),
)
MAX_PIXELS = 80_000_000  # of one image, beyond which Pillow too would warn
# What Linux and Windows keep at the top of a disk, where only they may look.
OF_THE_SYSTEM = ("lost+found", "System Volume Information", "$RECYCLE.BIN")
ORIENTATION = 0x0112  # EXIF's tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Of odd EXIF, which no picture suffers from, and of large ones, which are errors here. Once for all
# threads: warnings.catch_warnings is not made for them.
warnings.filterwarnings("ignore", module="PIL")

_USAGE_OF_SPLIT = {
    "Training": re.compile(r"train(ing)?"),
    "PublicTest": re.compile(r"val(id(ation)?)?|dev|public.*"),
    "PrivateTest": re.compile(r"test(ing)?|private.*"),
}


def split_of_name(name: str) -> str | None:
    """Return the usage that a folder's or file's name such as `train` or `Valid` means, or None."""
    matches = (u for u, pattern in _USAGE_OF_SPLIT.items() if pattern.fullmatch(name.lower()))
    return next(matches, None)


def natural_key(name: str) -> tuple:
    """Return a sort key that puts `2.png` before `10.png`."""
    parts = re.split("([0-9]+)", name)  # text, number, text and so on
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def list_visible(folder: Path) -> list[Path]:
    """Return what stands in a folder, in natural order, without what systems leave there."""
    left = (".", "__", *OF_THE_SYSTEM)
    found = (path for path in folder.iterdir() if not path.name.startswith(left))
    return sorted(found, key=lambda path: natural_key(path.name))


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


@dataclass(frozen=True)
class Tree:
    """The image files of a folder tree.

    Attributes:
        root: the folder that holds the splits, or for a flat tree the classes.
        images: by split folder (the root itself for a flat tree) and name of
            the class folder, the image files in natural order; no empty lists.
    """

    root: Path
    images: dict[Path, dict[str, list[Path]]]

    def files(self) -> list[Path]:
        """Return all files that the faces depend on, in the order of the faces."""
        return [p for folders in self.images.values() for paths in folders.values() for p in paths]

    def read(self, width: int, channels: int, class_names: Sequence[str] = ()) -> FaceDataset:
        """Read the faces as width x width pixels, grey or in RGB.

        Raises:
            DataError: a class is missing or unknown, or an image cannot be read.
        """
        classes, class_of_folder = self._classes(class_names)
        if left_out := self._left_out():
            print(
                f"warning: {len(left_out)} files are left out, such as "
                f"{left_out[0].relative_to(self.root)}: faces are pictures right in the folder of "
                "their class, in train/, validation/ or test/",
                file=sys.stderr,
            )
        labels, usages = [], []
        for split, folders in self.images.items():
            for name, paths in folders.items():
                labels += [classes.index(class_of_folder[name])] * len(paths)
                usages += [_usage_of_file(path) or self._usage(split) for path in paths]
        images, _ = read_images(self.files(), width, channels)
        labels, usages = np.array(labels, np.int64), np.array(usages, "U12")
        return FaceDataset(images, labels, usages, classes, source=str(self.root))

    def _left_out(self) -> list[Path]:
        """Return the files that are not read, though somebody may have meant them as faces.

        They are no pictures by their names, stand in folders below those of the classes, or in a
        split of an unknown name.
        """
        taken = set(self.files())
        classes = {split / name for split, folders in self.images.items() for name in folders}
        names = {folder.name for folder in classes}
        others = [p for p in list_visible(self.root) if p.is_dir() and p not in self.images]
        splits = [*self.images, *(p for p in others if names & _class_folders(p).keys())]
        files = (file for split in splits for file in _files_below(split) if file not in taken)
        return [file for file in files if file.parent in classes or is_image(file)]

    def _usage(self, split: Path) -> str:
        return split_of_name(split.name) or "Training"  # of a flat tree, train/ or not

    def _classes(self, wanted: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
        """Return the classes in the order of their labels, and the class of each folder name."""
        names = {name for folders in self.images.values() for name in folders}
        if broken := sorted(name for name in names if not _is_text(name)):
            raise DataError(
                f"{self.root}: the name of the folder {broken[0]!r} is not in UTF-8; rename it"
            )
        codes = {str(code): name for code, name in enumerate(wanted or EMOTIONS)}
        coded = names <= codes.keys() and not names & set(wanted)
        class_of = {n: codes[n] if coded else _class_of(n) for n in names}
        # A class that is asked for has the name that it is asked by.
        asked = {_class_of(name): name for name in wanted}
        class_of = {n: n if n in wanted else asked.get(c, c) for n, c in class_of.items()}
        present = set(class_of.values())
        classes = tuple(wanted)
        if not classes and present & set(EMOTIONS):
            classes = EMOTIONS + tuple(sorted(present - set(EMOTIONS)))
        classes = classes or tuple(sorted(present))
        whose = ", which the weights or --class_names want" * bool(wanted)
        if unknown := sorted(name for name in names if class_of[name] not in classes):
            raise DataError(
                f"{self.root}: the folders {quoted(unknown)} are none of the classes "
                f"{quoted(classes)}{whose}; remove them, or train with a --class_names that has "
                "them"
            )
        if all(self._usage(split) != "Training" for split in self.images):
            return classes, class_of  # nothing to train on, so not each class is needed
        for split, folders in self.images.items():
            if missing := set(classes) - {class_of[name] for name in folders}:
                read_as = ", ".join(
                    f"'{n}'" + f", read as {class_of[n]}" * (class_of[n] != n) for n in folders
                )
                raise DataError(
                    f"{split} has no folder with images of the class {quoted(sorted(missing))}"
                    f"{whose} (it has {read_as}); add what is missing to each of train/, "
                    "validation/ and test/, or train with the --class_names to take"
                )
        return classes, class_of


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _class_of(name: str) -> str:
    """Return the class of a folder's name: macOS takes an umlaut apart, others write it as one."""
    return canonical_class(name) or unicodedata.normalize("NFC", name)


def find_tree(folder: Path) -> Tree | None:
    """Return the tree that begins in this very folder, or None."""
    splits = [path for path in list_visible(folder) if split_of_name(path.name) and path.is_dir()]
    splits.sort(key=lambda path: SPLITS.index(split_of_name(path.name)))
    images = {split: folders for split in splits if (folders := _class_folders(split))}
    if images:
        return Tree(folder, images)
    folders = _class_folders(folder)
    if len(folders) > 1 or any(map(canonical_class, folders)):
        return Tree(folder, {folder: folders})
    return None


def _files_below(folder: Path) -> Iterator[Path]:
    """Return the visible files in a folder and below it; links to folders are not followed."""
    for path in list_visible(folder):
        if path.is_file():
            yield path
        elif path.is_dir() and not path.is_symlink():
            yield from _files_below(path)


def _class_folders(split: Path) -> dict[str, list[Path]]:
    """Return the image files of each folder that has any: an empty one counts as missing."""
    folders = {p.name: list(filter(is_image, list_visible(p))) for p in list_visible(split) if p.is_dir()}
    return {name: images for name, images in folders.items() if images}


def _usage_of_file(path: Path) -> str | None:
    prefix, underscore, _ = path.name.partition("_")
    return prefix if underscore and prefix in SPLITS else None


def read_images(paths: Sequence[Path], width: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Read N image files as width x width pixels.

    Returns:
        images: uint8 [N, width, width], or [N, width, width, 3] in RGB for 3 channels.
        sizes: int64 [N, 2], width and height of each file's image in pixels.

    Raises:
        DataError: a file is no image, or an absurdly large one.
    """
    shape = (len(paths), width, width) if channels == 1 else (len(paths), width, width, 3)
    images, sizes = np.empty(shape, np.uint8), np.empty((len(paths), 2), np.int64)
    for i, path in enumerate(tqdm(paths, "reading images", disable=None, leave=False)):
        image = read_image(path, channels)
        images[i], sizes[i] = resize_image(image, width), image.shape[1::-1]
    return images, sizes


def read_image(path: Path, channels: int) -> np.ndarray:
    """Read one image file of any mode, upright: uint8 [H, W], or [H, W, 3] in RGB.

    Raises:
        DataError: the file is no image, cut off, or an absurdly large one.
    """
    size = ""
    try:
        with _opened(path) as image:
            size = f"{image.width} x {image.height} pixels; "
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            # ImageOps.exif_transpose writes the other tags anew, and fails where one is odd.
            turn = TURNS.get(image.getexif().get(ORIENTATION))
            upright = image if turn is None else image.transpose(turn)
        if upright.mode.startswith("I"):  # 16 bits, which `convert` would clip at 255
            upright = Image.fromarray((np.asarray(upright) / 257).clip(0, 255).astype(np.uint8))
        elif upright.mode == "F":
            raise ValueError("floating-point pixels")
        elif upright.has_transparency_data:  # what is behind it, nobody should see
            upright = upright.convert("RGBA")
            grey = Image.new("RGBA", upright.size, (128, 128, 128, 255))
            upright = Image.alpha_composite(grey, upright)
        mode = "L" if channels == 1 else "RGB"
        return np.array(upright if upright.mode == mode else upright.convert(mode))
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} is too large ({size}at most {MAX_PIXELS:,} are read); make it smaller"
        ) from error
    except Exception as error:  # Pillow raises a dozen kinds on a damaged file
        raise DataError(
            f"{path} cannot be read as an image ({error}); mend, convert or remove it"
        ) from error


def _opened(path: Path) -> Image.Image:
    """Open an image by Pillow, or by OpenCV where only that knows the format."""
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        content = np.frombuffer(path.read_bytes(), np.uint8)
        if not content.size:
            raise ValueError("the file is empty") from None
        pixels = cv2.imdecode(content, cv2.IMREAD_COLOR)  # 8 bits, upright
        if pixels is None:
            raise
        return Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
