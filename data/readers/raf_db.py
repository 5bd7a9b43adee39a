"""RAF-DB, a set of SCN's paper, as its authors hand it out: aligned faces and one list of labels.

S. Li, W. Deng and J. Du, Reliable Crowdsourcing and Deep Locality-Preserving Learning for
Expression Recognition in the Wild, CVPR 2017.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.dataset import EMOTIONS, FaceDataset, canonical_class, quoted
from data.readers.folders import read_images
from data.readers.lists import read_lines
from utils.errors import DataError

LIST = Path("EmoLabel", "list_patition_label.txt")  # spelt so
CLASSES = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")  # its labels 1 to 7
SPLITS = {"train": "Training", "test": "PrivateTest"}
LINE = re.compile(r"((train|test)_[0-9]+)\.jpg\s+([1-7])")


@dataclass(frozen=True)
class RafDb:
    """The basic emotions of RAF-DB: `basic/`, with EmoLabel/ and Image/ in it."""

    root: Path

    def files(self) -> list[Path]:
        """Return the list and all images.

        Raises:
            DataError: a line of the list is wrong, or its image missing.
        """
        return [self.root / LIST, *(path for path, _, _ in self._faces())]

    def read(self, width: int, channels: int, class_names: Sequence[str] = ()) -> FaceDataset:
        """Read the aligned faces as width x width pixels, grey or in RGB.

        Args:
            width: in pixels.
            channels: 1 or 3.
            class_names: the order of the classes; FER2013's by default.

        Raises:
            DataError: as for `files`; an image cannot be read, or a class is not among those asked
                for.
        """
        classes = tuple(class_names) or EMOTIONS
        places = {canonical_class(name) or name: place for place, name in enumerate(classes)}
        if missing := [name for name in CLASSES if name not in places]:
            raise DataError(
                f"{self.root} is RAF-DB, and its {quoted(missing)} are none of the classes "
                f"{quoted(classes)}, which the weights or --class_names want; name all seven"
            )
        paths, labels, usages = zip(*self._faces())
        images, _ = read_images(paths, width, channels)
        labels = np.array([places[CLASSES[label - 1]] for label in labels], np.int64)
        return FaceDataset(images, labels, np.array(usages, "U12"), classes, source=str(self.root))

    def _faces(self) -> list[tuple[Path, int, str]]:
        """Return each face's image, its label from 1 to 7 and its usage."""
        file, faces = self.root / LIST, []
        for number, line in enumerate(read_lines(file), start=1):
            if not (match := LINE.fullmatch(line)):
                raise DataError(
                    f"{file}, line {number}: '{line[:60]}' is not as 'train_00001.jpg 5', a name "
                    "and a label from 1 to 7; take RAF-DB's basic/ as it was handed out"
                )
            name, split, label = match.groups()
            path = self.root / "Image" / "aligned" / f"{name}_aligned.jpg"
            if not path.is_file():
                raise DataError(
                    f"{file}, line {number}: there is no image {path}; unpack RAF-DB's aligned.zip "
                    "there"
                )
            faces.append((path, int(label), SPLITS[split]))
        return faces


def find_raf_db(folder: Path) -> RafDb | None:
    """Return RAF-DB if its list of labels stands right below this folder, or None."""
    return RafDb(folder) if (folder / LIST).is_file() else None
