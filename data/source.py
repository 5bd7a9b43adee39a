"""Where the faces come from: the user's data, the data folder, a download, or the sample."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.cache import CACHE_DIR, Arrays, cached
from data.download import KAGGLE_SET, KAGGLE_URL, download
from data.faces import EMOTIONS, UNKNOWN, Faces, as_promised, broken_promises
from data.folders import usage_of_split
from data.layouts import LAYOUTS, Layout, locate, nothing_found
from utils.errors import DataError

DATA_DIR = Path(__file__).resolve().parent
FORMAT = 5  # of the cache: one more whenever the same files would give other faces
HELD_OUT = 10  # every tenth Training face, where a set brings no PublicTest
HELD_OUT_NOTE = "every tenth Training face held out as PublicTest, for it brings none"


@dataclass(frozen=True)
class Source:
    """Which data set was taken.

    Attributes:
        path: its file or folder; None for the sample.
        line: what was taken and why, for a person to read.
    """

    path: Path | None
    line: str

    @property
    def is_sample(self) -> bool:
        return self.path is None

    @property
    def name(self) -> str:
        """A short name, for a figure's title."""
        return "synthetic sample" if self.is_sample else self.path.name


@dataclass(frozen=True)
class Sample:
    """The built-in sample, as one more layout: its faces depend on the code that draws them."""

    root: Path = Path(__file__).resolve().with_name("sample.py")

    def files(self) -> list[Path]:
        """Return every file that draws: what a face is, what is painted of it, and on what."""
        return [self.root.with_name(name) for name in ("sample.py", "portrait.py", "canvas.py")]

    def read(self, width: int, channels: int, class_names: Sequence[str]) -> Faces:
        """Draw the faces as width x width pixels, grey whatever the channels."""
        from data.sample import synthetic_faces  # noqa: PLC0415  (real faces do without it)

        if class_names and class_names != EMOTIONS:
            raise DataError(
                f"the synthetic sample has the classes {' '.join(EMOTIONS)}; "
                "leave out --class_names, or name a data set with --data"
            )
        return synthetic_faces().resized(width)


def find_source(data: str | None = None) -> Source:
    """Decide which data set to take, without reading it.

    Args:
        data: the user's file or folder, or "sample"; where there is none, what
            stands in `data/` is taken, else a download of FER2013, else the sample.

    Raises:
        DataError: `data` does not exist, or is of no known layout.
    """
    if data == "sample":
        return Source(None, "the synthetic sample: faces drawn in code, as asked")
    if data:
        path = Path(data).expanduser()
        with _readable(path):
            if not path.exists():
                raise DataError(f"--data {path}: no such file or folder; it may be {LAYOUTS}")
            if locate(path) is None:
                raise nothing_found(path)
        return Source(path, f"{path}, as asked")
    with _readable(DATA_DIR):
        if layout := locate(DATA_DIR):
            return Source(layout.root, f"{layout.root}, in the data folder")
    if folder := download():
        with _readable(folder):
            if locate(folder):
                line = f"FER2013 from Kaggle ({KAGGLE_SET}), in {folder}"
                return Source(folder, line)
    return Source(
        None,
        "the synthetic sample: faces drawn in code, which only shows that everything runs, for "
        f"{DATA_DIR} holds no data set and none could be downloaded. For FER2013, put "
        f"fer2013.csv or the unpacked {KAGGLE_URL} there, or name it with --data",
    )


def load_faces(
    source: Source,
    width: int = 48,
    channels: int = 1,
    class_names: Sequence[str] = (),
    cache: Path = CACHE_DIR,
) -> Faces:
    """Read a data set, or take it from the cache, where it goes by its content.

    Args:
        width: of the faces that are returned, in pixels.
        channels: 1 for grey, 3 for RGB (a CSV's faces are grey in any case).
        class_names: the classes in the order of the labels, and of the numbers in a CSV, a list or
            the names of folders; the data set's own where empty.

    Returns:
        Faces of uint8 [N, width, width] or [N, width, width, 3], with a PublicTest
        (see `hold_out`), and with landmarks where the layout brings them.

    Raises:
        DataError: the data set cannot be used; the file and the place are named.
    """
    class_names = tuple(class_names)
    with _readable(source.path):
        layout = locate(source.path) if source.path else Sample()
        if layout is None:
            raise nothing_found(source.path)
        arrays = cached(
            "faces",
            _key(layout, (FORMAT, width, channels, class_names, *_told_by_name(layout))),
            lambda: _arrays(as_promised(layout.read(width, channels, class_names), width)),
            cache,
            lambda arrays: _fits(arrays, width),
        )
    return hold_out(replace(_faces(arrays), source=str(source.path or "the synthetic sample")))


def hold_out(faces: Faces) -> Faces:
    """Make every tenth Training face of each class PublicTest where no labelled one is.

    The epoch can then be chosen without a look at the test faces. A class of
    two to nine faces gives one, a single face stays.
    """
    labelled = faces.labels != UNKNOWN
    training = labelled & (faces.usage == "Training")
    if not training.any() or (labelled & (faces.usage == "PublicTest")).any():
        return faces
    usage = faces.usage.copy()
    for label in range(len(faces.class_names)):
        which = np.flatnonzero(training & (faces.labels == label))
        usage[which[HELD_OUT - 1 :: HELD_OUT] if len(which) >= HELD_OUT else which[1:][-1:]] = (
            "PublicTest"
        )
    return replace(faces, usage=usage, source=f"{faces.source} ({HELD_OUT_NOTE})")


def _key(layout: Layout, options: tuple) -> str:
    """Return a name for the content of all files, their places within the set, and the options."""
    digest = hashlib.sha256(repr(options).encode())  # four times as fast as BLAKE2 on most CPUs
    root = layout.root if layout.root.is_dir() else layout.root.parent
    for path in layout.files():
        digest.update(os.fsencode(os.path.relpath(path, root)) + b"\0%d\0" % path.stat().st_size)
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:32]


def _told_by_name(layout: Layout) -> tuple[str, ...]:
    """Return the usage of faces that stand in a folder such as test/, without others beside it."""
    usage = usage_of_split(layout.root.name) if layout.root.is_dir() else None
    return (usage,) if usage else ()


def _arrays(faces: Faces) -> Arrays:
    arrays = {"images": faces.images, "labels": faces.labels, "usage": faces.usage}
    arrays["class_names"] = np.array(faces.class_names)
    return arrays if faces.landmarks is None else {**arrays, "landmarks": faces.landmarks}


def _faces(arrays: Arrays) -> Faces:
    names = tuple(map(str, arrays["class_names"]))
    return Faces(**{**arrays, "class_names": names})


def _fits(arrays: Arrays, width: int) -> bool:
    """Return whether a cache holds what `_arrays` makes."""
    named = arrays.keys() - {"landmarks"} == {"images", "labels", "usage", "class_names"}
    return named and not broken_promises(_faces(arrays), width)


@contextmanager
def _readable(path: Path | None) -> Iterator[None]:
    """Turn what the system refuses into a DataError that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or path} cannot be read ({error.strerror or error}); "
            "check the path and its permissions"
        ) from error
