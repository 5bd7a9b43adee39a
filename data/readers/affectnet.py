"""AffectNet as its authors distribute it: cropped images, or lists of faces in full pictures.

A. Mollahosseini, B. Hasani and M. H. Mahoor, AffectNet: A Database for Facial Expression, Valence,
and Arousal Computing in the Wild, IEEE Transactions on Affective Computing, 2019, arXiv:1708.03985.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data.dataset import FaceDataset, match_classes, quoted, resize_landmarks
from data.readers.folders import list_visible
from data.readers.images import clip_box, image_size, read_images
from data.readers.lists import check_landmarks, read_landmarks
from utils.classes import EMOTIONS
from utils.coordinates import NUM_LANDMARKS
from utils.errors import DataError

CLASSES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt")
OTHERS = ("none", "uncertain", "no face")  # labels 8 to 10
SPLIT_OF_FOLDER = {"train_set": "Training", "val_set": "PublicTest"}
SPLIT_OF_CSV = {"training.csv": "Training", "validation.csv": "PublicTest"}
PICTURES = "Manually_Annotated_Images"
COLUMNS = [
    *("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height"),
    *("facial_landmarks", "expression", "valence", "arousal"),
]


@dataclass(frozen=True)
class CroppedAffectNet:
    """`train_set/` and `val_set/` with `images/<id>.jpg` and `annotations/<id>_exp.npy`."""

    root: Path

    def files(self) -> list[Path]:
        images = [path for path, _ in self._images()]
        annotations = [_annotation(path, kind) for path in images for kind in ("exp", "lnd")]
        return images + [path for path in annotations if path.is_file()]

    def read(self, width: int, channels: int, class_names: Sequence[str] = ()) -> FaceDataset:
        paths, split = zip(*self._images())
        files = [_annotation(path, "exp") for path in paths]
        labels = np.array([_label(_load(file), str(file)) for file in files], np.int64)
        classes, labels, rows = _select(labels, class_names)
        paths, split = [paths[i] for i in rows], np.array(split, "U12")[rows]
        files = [_annotation(path, "lnd") for path in paths]
        landmarks = read_landmarks(paths, files, _load, width)
        images = read_images(paths, width, channels)
        return FaceDataset(images, labels, split, classes, landmarks, source=str(self.root))

    def _images(self) -> list[tuple[Path, str]]:
        """Return path and split of each image."""
        images = [
            (path, split)
            for name, split in SPLIT_OF_FOLDER.items()
            if (folder := self.root / name / "images").is_dir()
            for path in list_visible(folder)
            if path.suffix.lower() == ".jpg"
        ]
        if not images:
            fault = f"{self.root} has no images/*.jpg in train_set/ or val_set/"
            raise DataError(f"{fault}; unpack them there")
        return images


@dataclass(frozen=True)
class ListedAffectNet:
    """`training.csv` and `validation.csv` with the pictures in `Manually_Annotated_Images/`."""

    root: Path

    def files(self) -> list[Path]:
        """Return the lists and pictures; an invalid row or a missing picture is a DataError."""
        lists = [self.root / name for name in SPLIT_OF_CSV if (self.root / name).is_file()]
        table, labels = self._read_lists()
        return lists + list(dict.fromkeys(self._pictures(table[labels < len(CLASSES)])))

    def read(self, width: int, channels: int, class_names: Sequence[str] = ()) -> FaceDataset:
        table, labels = self._read_lists()
        classes, labels, rows = _select(labels, class_names)
        table = table.iloc[rows]
        paths, boxes = self._pictures(table), _boxes(table)
        landmarks = np.empty((len(paths), NUM_LANDMARKS, 2), np.float32)
        columns = zip(paths, boxes, table["facial_landmarks"], table["where"])
        for i, (path, box, text, where) in enumerate(columns):
            size = image_size(path)
            left, top, right, bottom = clip_box(box, size, path)
            points = check_landmarks(text.replace(",", ";").split(";"), size, where)
            face = right - left, bottom - top
            landmarks[i] = resize_landmarks(points - (left, top), face, width)
        images, split = read_images(paths, width, channels, boxes), table["split"].to_numpy("U12")
        return FaceDataset(images, labels, split, classes, landmarks, source=str(self.root))

    def _read_lists(self) -> tuple[pd.DataFrame, np.ndarray]:
        """Return all rows as text, with `split` and `where` (file and row), and their labels."""
        tables = []
        for name, split in SPLIT_OF_CSV.items():
            if (file := self.root / name).is_file():
                has_header = _first_line(file).startswith(COLUMNS[0])
                shared = {"dtype": str, "encoding": "utf-8-sig", "na_filter": False}
                try:
                    table = pd.read_csv(file, names=None if has_header else COLUMNS, **shared)
                    if missing := set(COLUMNS[:7]) - set(table.columns):
                        raise ValueError(f"missing columns: {', '.join(sorted(missing))}")
                except ValueError as error:
                    raise DataError(f"{file} cannot be read ({error}); copy it again") from error
                where = [f"{file}, row {i + 1 + has_header}" for i in range(len(table))]
                tables.append(table.fillna("").assign(where=where, split=split))
        table = pd.concat(tables, ignore_index=True)
        labels = [_label(text, where) for text, where in zip(table["expression"], table["where"])]
        return table, np.array(labels, np.int64)

    def _pictures(self, table: pd.DataFrame) -> list[Path]:
        paths = [self.root / PICTURES / name for name in table[COLUMNS[0]]]
        for path, where in zip(paths, table["where"]):
            if not path.is_file():
                raise DataError(f"{where}: there is no picture {path}; unpack it there")
        return paths


def find_affectnet(folder: Path) -> CroppedAffectNet | ListedAffectNet | None:
    """Return AffectNet if its folders or lists lie directly in a folder, or None."""
    if any((folder / name / "annotations").is_dir() for name in SPLIT_OF_FOLDER):
        return CroppedAffectNet(folder)
    lists = [folder / name for name in SPLIT_OF_CSV if (folder / name).is_file()]
    if any(_first_line(file).startswith(COLUMNS[0]) for file in lists):
        return ListedAffectNet(folder)
    return None


def _select(
    labels: np.ndarray, class_names: Sequence[str]
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Return the classes, and labels and rows of the images of these classes.

    `labels` are AffectNet's, 0 to 10. The number of the other images is printed.
    """
    classes = tuple(class_names) or (*EMOTIONS, "contempt")
    names = CLASSES + OTHERS
    index = match_classes(names, classes)
    new = np.array([index.get(i, -1) for i in range(len(names))])[labels]
    rows = np.flatnonzero(new >= 0)
    if not len(rows):
        fault = f"AffectNet has no image of {quoted(classes)}, only of {quoted(CLASSES)}"
        raise DataError(f"{fault}; correct --class_names")
    if len(rows) < len(labels):
        counts = np.bincount(labels[new < 0], minlength=len(names))
        dropped = [f"{n:,} {name}" for n, name in zip(counts, names) if n]
        print(f"note     AffectNet: {counts.sum():,} images are dropped ({', '.join(dropped)})")
    return classes, new[rows], rows


def _label(value: str | np.ndarray, where: str) -> int:
    """Return a label from 0 to 10, given as text or an array of one number or text."""
    try:
        label = np.asarray(value).astype(np.float64).item()
    except ValueError:  # no number, or several
        label = -1.0
    if label not in range(len(CLASSES + OTHERS)):
        fault = f"the expression is {str(value)[:60]}, expected 0 to 10"
        raise DataError(f"{where}: {fault}; correct or remove it")
    return int(label)


def _boxes(table: pd.DataFrame) -> np.ndarray:
    """Return the face boxes int64 [N, 4]: left, top, right, bottom."""
    boxes = np.empty((len(table), 4), np.int64)
    for i, (*texts, where) in enumerate(table[[*COLUMNS[1:5], "where"]].to_numpy()):
        try:
            x, y, width, height = (round(float(text)) for text in texts)
        except (ValueError, OverflowError) as error:
            fault = f"{where}: the face box {', '.join(texts)} is invalid ({error})"
            raise DataError(f"{fault}; correct or remove the row") from error
        boxes[i] = x, y, x + width, y + height
    return boxes


def _annotation(image: Path, kind: str) -> Path:
    return image.parents[1] / "annotations" / f"{image.stem}_{kind}.npy"


def _load(file: Path) -> np.ndarray:
    """Return the numbers or texts in a .npy file."""
    if not file.is_file():
        raise DataError(f"{file} is missing; unpack the annotations again, or remove the image")
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{file} cannot be read ({error}); copy it again") from error


def _first_line(file: Path) -> str:
    with open(file, encoding="utf-8-sig", errors="replace") as lines:
        return lines.readline(1000)
