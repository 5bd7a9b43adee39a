"""RAF-DB, a data set of SCN's paper, as its authors distribute it: aligned images and a label file.

S. Li, W. Deng and J. Du, Reliable Crowdsourcing and Deep Locality-Preserving Learning for
Expression Recognition in the Wild, CVPR 2017.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.dataset import FaceDataset, match_classes, quoted
from data.readers.folders import split_of_name
from data.readers.images import read_images
from data.readers.lists import read_lines
from utils.classes import EMOTIONS
from utils.errors import DataError

LABEL_FILE = Path("EmoLabel", "list_patition_label.txt")  # sic
CLASSES = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")  # labels 1 to 7
LINE = re.compile(r"((train|test)_[0-9]+)\.jpg\s+([1-7])")


@dataclass(frozen=True)
class RafDbLayout:
    """The basic emotions of RAF-DB; `root` is its folder `basic/` with EmoLabel/ and Image/."""

    root: Path

    def files(self) -> list[Path]:
        """Return the label file and all images; an invalid line of the file is a DataError."""
        return [self.root / LABEL_FILE, *(path for path, _, _ in self._samples())]

    def read(self, width: int, channels: int, class_names: Sequence[str] = ()) -> FaceDataset:
        classes = tuple(class_names) or EMOTIONS
        index = match_classes(CLASSES, classes)
        if missing := [name for i, name in enumerate(CLASSES) if i not in index]:
            raise DataError(
                f"{self.root} is RAF-DB, and its {quoted(missing)} are none of the classes "
                f"{quoted(classes)} of the weights or --class_names; name all seven"
            )
        paths, labels, split = zip(*self._samples())
        images = read_images(paths, width, channels)
        labels = np.array([index[label - 1] for label in labels], np.int64)
        return FaceDataset(images, labels, np.array(split, "U12"), classes, source=str(self.root))

    def _samples(self) -> list[tuple[Path, int, str]]:
        """Return image, label from 1 to 7, and split of each sample."""
        file, samples = self.root / LABEL_FILE, []
        for number, line in enumerate(read_lines(file), start=1):
            where = f"{file}, line {number}"
            if not (match := LINE.fullmatch(line)):
                raise DataError(
                    f"{where}: '{line[:60]}' is not as in 'train_00001.jpg 5'; correct it"
                )
            name, prefix, label = match.groups()
            path = self.root / "Image" / "aligned" / f"{name}_aligned.jpg"
            if not path.is_file():
                raise DataError(f"{where}: there is no image {path}; unpack aligned.zip there")
            samples.append((path, int(label), split_of_name(prefix)))
        return samples


def find_raf_db(folder: Path) -> RafDbLayout | None:
    """Return RAF-DB if its label file lies directly in a folder's EmoLabel/, or None."""
    return RafDbLayout(folder) if (folder / LABEL_FILE).is_file() else None
