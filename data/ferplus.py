"""FER+: the labels of ten annotators for the images of FER2013, as labels or as a reference.

Barsoum et al., "Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label
Distribution", ICMI 2016, arXiv:1608.01041. The votes are in fer2013new.csv
(github.com/microsoft/FERPlus), one row for each row of fer2013.csv.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from data.dataset import UNLABELED, FaceDataset
from utils.classes import EMOTIONS
from utils.errors import DataError

CLASSES = (*EMOTIONS, "contempt")
# The columns of the file in the order of CLASSES, and the two that are not an expression.
COLUMNS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral", "contempt")
OTHERS = ("unknown", "NF")
# The majority equals FER2013's label in 68 % of the images, and in 18 % if the order is wrong.
MIN_AGREEMENT = 0.4
MIN_COMPARED = 100  # images; fewer could differ by chance


def explicit_class_names(class_names: tuple[str, ...], has_votes: bool) -> tuple[str, ...]:
    """Return the class names for `load_dataset`: () for FER2013, whose labels FER+ may replace."""
    return () if has_votes or class_names == EMOTIONS else class_names


def with_ferplus(dataset: FaceDataset, ferplus: str, ferplus_test: str) -> FaceDataset:
    """Return the data set with FER+ as `labels` or as `human_labels`, whichever path is given."""
    if ferplus:
        return with_ferplus_labels(dataset, ferplus)
    return with_human_labels(dataset, ferplus_test) if ferplus_test else dataset


def with_ferplus_labels(dataset: FaceDataset, path: str | Path) -> FaceDataset:
    """Return the data set with FER+'s votes, and their majority as labels.

    As in the paper, a class with a single vote is dropped as an outlier, and the label is the class
    with more than half of the other votes. An image without such a class, or whose majority is
    "unknown" or "not a face", is UNLABELED.

    Args:
        dataset: FER2013 from fer2013.csv, in its order.
        path: fer2013new.csv.

    Raises:
        DataError: The file cannot be read, or belongs to other images.
    """
    votes = _read(Path(path), dataset)
    labels, source = _majority(votes), f"{dataset.source}, with FER+ labels"
    _check_order(path, dataset, labels)
    return replace(dataset, labels=labels, class_names=CLASSES, votes=votes, source=source)


def with_human_labels(dataset: FaceDataset, path: str | Path) -> FaceDataset:
    """Return the data set with FER+'s majority as `human_labels`; its own labels stay.

    The majority is that of `with_ferplus_labels`. Images whose majority is none of the data set's
    classes are UNLABELED.

    Raises:
        DataError: The file cannot be read, or belongs to other images or classes.
    """
    names = dataset.class_names
    index = [names.index(name) if name in names else UNLABELED for name in CLASSES]
    human_labels = np.array([*index, UNLABELED])[_majority(_read(Path(path), dataset))]
    if (human_labels == UNLABELED).all():
        raise DataError(f"{path} has no majority for a class of {dataset.source}; give FER2013")
    _check_order(path, dataset, human_labels)
    return replace(dataset, human_labels=human_labels)


def _majority(votes: np.ndarray) -> np.ndarray:
    counted = np.where(votes > 1, votes, 0)
    majority = counted.argmax(1)
    is_clear = (2 * counted.max(1) > counted.sum(1)) & (majority < len(CLASSES))
    return np.where(is_clear, majority, UNLABELED)


def _check_order(path: str | Path, dataset: FaceDataset, labels: np.ndarray) -> None:
    compared = (labels != UNLABELED) & (dataset.labels != UNLABELED)
    agreement = np.mean((labels == dataset.labels)[compared]) if compared.any() else 1.0
    if agreement < MIN_AGREEMENT and compared.sum() >= MIN_COMPARED:
        fault = f"agrees with {dataset.source} in {100 * agreement:.0f} % of the labels only"
        remedy = "the images are in another order, so give fer2013.csv, not folders or lists"
        raise DataError(f"{path} {fault}; {remedy}")


def training_targets(dataset: FaceDataset, kind: str) -> np.ndarray | None:
    """Return class probabilities [N, 8] as targets of the images, or None for their labels.

    Args:
        dataset: With FER+'s labels, unless `kind` is "majority".
        kind: "majority" (the labels), "distribution" (of the votes), or "mixture" (their mean).
    """
    if kind == "majority":
        return None
    distributions = vote_distributions(dataset.votes)
    if kind == "distribution":
        return distributions
    return (distributions + (dataset.labels[:, None] == np.arange(len(CLASSES)))) / np.float32(2)


def vote_distributions(votes: np.ndarray) -> np.ndarray:
    """Return the class probabilities [N, 8] of votes [N, 10], without single votes.

    A row is 0 if no class has two votes. Such an image has no label either.
    """
    counted = votes[:, : len(CLASSES)].astype(np.float32)
    counted[counted < 2] = 0
    return counted / np.maximum(counted.sum(1, keepdims=True), 1)


def _read(path: Path, dataset: FaceDataset) -> np.ndarray:
    try:
        table = pd.read_csv(path)
        if missing := {"Usage", *COLUMNS, *OTHERS} - set(table.columns):
            raise ValueError(f"missing columns: {', '.join(sorted(missing))}")
        votes = table[[*COLUMNS, *OTHERS]].to_numpy()
        split = table["Usage"].to_numpy(str)
        if not np.issubdtype(votes.dtype, np.integer) or (votes < 0).any():
            raise ValueError("a number of votes is not a whole number")
    except (OSError, ValueError) as error:
        remedy = "download fer2013new.csv from https://github.com/microsoft/FERPlus"
        raise DataError(f"{path} cannot be read as FER+ votes ({error}); {remedy}") from error
    if len(votes) != len(dataset):
        fault = f"has votes for {len(votes):,} images, but {dataset.source} has {len(dataset):,}"
        raise DataError(f"{path} {fault}; FER+ needs the complete fer2013.csv")
    if (differing := np.flatnonzero(split != dataset.split)).size:
        row = differing[0]
        fault = f"Usage is {split[row]}, but {dataset.source} has {dataset.split[row]}"
        raise DataError(f"{path}, row {row + 2}: {fault}; FER+ needs fer2013.csv in its own order")
    return votes.astype(np.int64)
