"""The data set of a run: the user's, the one under data/, a download, or the synthetic one."""

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.cache import CACHE_DIR, CACHE_FORMAT, Arrays, cached
from data.dataset import SPLITS, UNLABELED, FaceDataset
from data.readers.folders import split_of_name
from data.readers.layouts import SUPPORTED_FORMATS, Layout, locate, unknown_layout_error
from utils.classes import EMOTIONS
from utils.errors import DataError
from utils.internet import is_reachable

KAGGLE_SET = "msambare/fer2013"
KAGGLE_URL = f"https://www.kaggle.com/datasets/{KAGGLE_SET}"
DATA_DIR = Path(__file__).resolve().parent
MAX_HASHED = 8 << 30  # bytes of files whose content is part of the cache key
HELD_OUT = 10  # every tenth Training image, where a data set has no PublicTest
HELD_OUT_NOTE = "every tenth Training image is held out as PublicTest, because there is none"


@dataclass(frozen=True)
class SyntheticLayout:
    """The synthetic data set as a layout: its images depend on the code that renders them."""

    root: Path = DATA_DIR / "synthetic"

    def files(self) -> list[Path]:
        return sorted(self.root.glob("*.py"))

    def read(self, width: int, channels: int, class_names: Sequence[str]) -> FaceDataset:
        """Render the images as width x width pixels, grayscale whatever the channels."""
        from data.synthetic.generate import synthetic_dataset  # noqa: PLC0415  (rarely needed)

        if class_names and class_names != EMOTIONS:
            fault = f"the synthetic data set has the classes {' '.join(EMOTIONS)}"
            raise DataError(f"{fault}; leave out --class_names, or give other --data")
        return synthetic_dataset().resized(width)


@dataclass(frozen=True)
class Source:
    """A data set that was located but not read."""

    layout: Layout  # which reads it
    data: str  # value of --data that selects it again: its path, or "sample"
    description: str  # which data set was chosen, and why

    @property
    def is_synthetic(self) -> bool:
        """Whether it is the synthetic data set."""
        return isinstance(self.layout, SyntheticLayout)

    @property
    def name(self) -> str:
        """A short name, for the title of a figure."""
        return "synthetic data set" if self.is_synthetic else Path(self.data).name


def find_source(data: str = "") -> Source:
    """Locate a data set without reading it, or raise a DataError.

    Args:
        data: A file or folder, or "sample". If empty: what lies under data/, else a download of
            FER2013, else the synthetic data set.
    """
    if data == "sample":
        return Source(SyntheticLayout(), "sample", "the synthetic data set, as given by --data")
    if data:
        path = Path(os.path.expanduser(data))
        if not path.exists():
            raise DataError(f"--data {path}: no such file or folder; give {SUPPORTED_FORMATS}")
        if (layout := locate(path)) is None:
            raise unknown_layout_error(path)
        return Source(layout, str(path), f"{path}, as given by --data")
    if layout := locate(DATA_DIR):
        return Source(layout, str(layout.root), f"{layout.root}, found under data/")
    if (folder := download()) and (layout := locate(folder)):
        return Source(layout, str(folder), f"Kaggle's JPEG copy of FER2013, in {folder}")
    description = (
        "the synthetic data set, which only shows that everything runs. There is no data set in "
        f"{DATA_DIR}, and none could be downloaded. For FER2013, put fer2013.csv or the unpacked "
        f"{KAGGLE_URL} there, or give its path with --data"
    )
    return Source(SyntheticLayout(), "sample", description)


def download() -> Path | None:
    """Return the folder of Kaggle's public copy of FER2013, or None if it is not available.

    A complete earlier download is used as it is. `FER_OFFLINE=1` in the environment disables both.
    """
    if os.environ.get("FER_OFFLINE", "0") not in ("", "0"):
        return None
    cache = os.environ.get("KAGGLEHUB_CACHE") or os.path.expanduser("~/.cache/kagglehub")
    folder = Path(cache, "datasets", KAGGLE_SET)
    complete = [int(mark.stem) for mark in folder.glob("*.complete") if mark.stem.isdigit()]
    newest = folder / "versions" / str(max(complete, default=0))
    if newest.is_dir():
        return newest
    if not is_reachable(KAGGLE_URL):  # kagglehub itself would wait long
        return None
    try:
        import kagglehub  # noqa: PLC0415  (only needed for a download)

        print(f"Downloading FER2013 ({KAGGLE_SET}, 60 MB) from Kaggle", file=sys.stderr)
        return Path(kagglehub.dataset_download(KAGGLE_SET))
    except Exception as error:  # the synthetic data set is used instead
        print(f"warning: the download from Kaggle failed: {error}", file=sys.stderr)
        return None


def load_dataset(
    source: Source, width: int = 48, channels: int = 1, class_names: Sequence[str] = ()
) -> FaceDataset:
    """Read a data set, or load it from the cache, whose key is the content of its files.

    Images are width x width, grayscale for 1 channel (always for a CSV), RGB for 3. The labels are
    in the order of `class_names`, or if empty in the data set's own. It has a PublicTest split (see
    `hold_out`), and landmarks if the layout has any.

    Raises:
        DataError: The data set cannot be read; the message names the file, and the row of a CSV.
    """
    class_names, layout = tuple(class_names), source.layout
    # The name of the root folder may mean a split, such as test/.
    split = split_of_name(layout.root.name) if layout.root.is_dir() else None
    options = (CACHE_FORMAT, width, channels, class_names, *([split] if split else []))

    def read() -> Arrays:
        dataset = layout.read(width, channels, class_names)
        shape = (len(dataset.labels), width, width)
        are_images = dataset.images.dtype == np.uint8 and dataset.images.shape[:3] == shape
        are_labels = np.isin(dataset.labels, range(UNLABELED, len(dataset.class_names))).all()
        if not (are_images and are_labels and np.isin(dataset.split, SPLITS).all()):
            fault = f"{type(layout).__name__} returns images, labels or splits of another form"
            raise DataError(f"{layout.root}: {fault}; see FaceDataset in data/dataset.py")
        names = ("images", "labels", "split", "landmarks")
        arrays = {name: getattr(dataset, name) for name in names}
        arrays["class_names"] = np.array(dataset.class_names)
        return {name: array for name, array in arrays.items() if array is not None}

    arrays = cached(CACHE_DIR / f"dataset-{_key(layout, options)}.npz", read)
    names = tuple(map(str, arrays.pop("class_names")))
    origin = "the synthetic data set" if source.is_synthetic else source.data
    return hold_out(FaceDataset(**arrays, class_names=names, source=origin))


def hold_out(dataset: FaceDataset) -> FaceDataset:
    """Move every tenth Training image of each class to PublicTest if that has no labeled image.

    Of a class with two to nine images one is moved, of a class with a single image none.
    """
    labeled = dataset.labels != UNLABELED
    training = labeled & (dataset.split == "Training")
    if not training.any() or (labeled & (dataset.split == "PublicTest")).any():
        return dataset
    split = dataset.split.copy()
    for label in range(len(dataset.class_names)):
        rows = np.flatnonzero(training & (dataset.labels == label))
        last = rows[1:][-1:]  # none of a single row
        moved = rows[HELD_OUT - 1 :: HELD_OUT] if len(rows) >= HELD_OUT else last
        split[moved] = "PublicTest"
    return replace(dataset, split=split, source=f"{dataset.source} ({HELD_OUT_NOTE})")


def _key(layout: Layout, options: tuple) -> str:
    """Return a digest of all files, their paths within the data set, and the options.

    Of large data sets the time of modification counts instead of the content.
    """
    digest = hashlib.sha256(repr(options).encode())  # four times as fast as BLAKE2 on most CPUs
    root = layout.root if layout.root.is_dir() else layout.root.parent
    files = [(path, path.stat()) for path in layout.files()]
    is_large = sum(status.st_size for _, status in files) > MAX_HASHED
    for path, status in files:
        digest.update(os.fsencode(os.path.relpath(path, root)) + b"\0%d\0" % status.st_size)
        if is_large:
            digest.update(b"%d\0" % status.st_mtime_ns)
            continue
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:32]
