"""FER+: FER2013's faces as ten taggers saw them, instead of its own labels.

Barsoum et al., "Training Deep Networks for Facial Expression Recognition with
Crowd-Sourced Label Distribution", ICMI 2016, arXiv:1608.01041. The votes are in
fer2013new.csv (github.com/microsoft/FERPlus), a row for each row of fer2013.csv.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from data.dataset import EMOTIONS, UNLABELED, FaceDataset
from utils.errors import DataError

CLASSES = (*EMOTIONS, "contempt")  # FER2013's order, and FER+'s eighth
# The file's columns in that order, then the two that are no expression.
COLUMNS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral", "contempt")
OTHERS = ("unknown", "NF")
URL = "https://github.com/microsoft/FERPlus"
# The majority is FER2013's own label in 68 % of the faces, and in 18 % where they are in another
# order. A few faces could differ by chance.
LEAST_AGREEMENT, ENOUGH = 0.4, 100


def explicit_class_names(class_names: tuple[str, ...], votes: bool) -> tuple[str, ...]:
    """Return the classes to name when faces are read for what knows these: none of FER2013's own.

    They come by themselves, and with the `votes`, if it learnt from those, the eighth.
    """
    return () if votes or class_names == EMOTIONS else class_names


def with_ferplus_labels(faces: FaceDataset, path: str | Path) -> FaceDataset:
    """Return the faces with FER+'s votes, and its majority as their labels.

    As in the paper a class that a single tagger named is taken for a slip and
    dropped. A face has the label that more than half of the other votes name; where
    there is none (a tie, say), or where it is "unknown" or "not a face", it has none.

    Args:
        faces: of fer2013.csv, in its order.
        path: fer2013new.csv.

    Returns:
        The faces, of eight classes, their `votes` int [N, 10] in the order of CLASSES and OTHERS.

    Raises:
        DataError: the file cannot be read, or belongs to other faces.
    """
    votes = _read(Path(path), faces)
    counted = np.where(votes > 1, votes, 0)
    best = counted.argmax(1)
    decided = (2 * counted.max(1) > counted.sum(1)) & (best < len(CLASSES))
    both = decided & (faces.labels != UNLABELED)
    agreement = (best == faces.labels)[both].mean() if both.sum() >= ENOUGH else 1.0
    if agreement < LEAST_AGREEMENT:
        raise DataError(
            f"{path} agrees with the labels of {faces.source} in {100 * agreement:.0f} % of the "
            "faces, so these are in another order: FER+ belongs to fer2013.csv itself, not to its "
            "faces in folders or lists"
        )
    return replace(
        faces,
        labels=np.where(decided, best, UNLABELED),
        class_names=CLASSES,
        votes=votes,
        source=f"{faces.source}, with FER+ labels",
    )


def vote_distributions(votes: np.ndarray) -> np.ndarray:
    """Return the shares of the eight classes in votes [N, 10] without single ones: float32 [N, 8].

    They are 0 for a face for whom no class has two votes; it has no label either.
    """
    shares = votes[:, : len(CLASSES)].astype(np.float32)
    shares[shares < 2] = 0
    return shares / np.maximum(shares.sum(1, keepdims=True), 1)


def _read(path: Path, faces: FaceDataset) -> np.ndarray:
    try:
        table = pd.read_csv(path)
        if lacking := {"Usage", *COLUMNS, *OTHERS} - set(table.columns):
            raise ValueError(f"it lacks the columns {', '.join(sorted(lacking))}")
        votes = table[[*COLUMNS, *OTHERS]].to_numpy()
        split = table["Usage"].to_numpy(str)
        if not np.issubdtype(votes.dtype, np.integer) or (votes < 0).any():
            raise ValueError("a number of votes is no whole number")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as FER+'s votes ({error}); fetch fer2013new.csv from {URL}"
        ) from error
    if len(votes) != len(faces):
        raise DataError(
            f"{path} has votes for {len(votes):,} faces, and {faces.source} has {len(faces):,}; "
            "FER+ belongs to the whole fer2013.csv, whose rows are in its order"
        )
    if (differ := np.flatnonzero(split != faces.split)).size:
        i = differ[0]
        raise DataError(
            f"{path}: its face {i} is {split[i]}, and that of {faces.source} is {faces.split[i]}; "
            f"FER+ belongs to fer2013.csv with its own order and usages ({', '.join(SPLITS)})"
        )
    return votes.astype(np.int64)
