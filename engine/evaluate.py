"""Evaluation of one network or an ensemble on the splits of a data set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from data import ferplus
from data.corruptions import CORRUPTIONS, corrupt
from data.dataset import UNLABELED, FaceDataset
from data.in_memory import images_to_device
from data.source import Source, load_dataset
from engine.results import Evaluation
from models.checkpoint import Checkpoint
from models.fernet import FERNet
from models.predict import predict
from utils import metrics
from utils.errors import DataError, WeightsError
from utils.predictions import Predictions
from utils.progress import progress_bar


def load_dataset_for(
    checkpoint: Checkpoint, source: Source, class_names: Sequence[str] = ()
) -> FaceDataset:
    """Load a data set as a checkpoint needs it: image width, channels, and order of the classes.

    `class_names` is what its numeric labels mean, if not the checkpoint's classes.
    """
    has_votes = bool(checkpoint.options.get("ferplus"))
    names = ferplus.explicit_class_names(checkpoint.class_names, has_votes)
    if names and not class_names:
        print(f"classes  {', '.join(names)}: numeric labels count in this order")
    width, channels = checkpoint.image_width, checkpoint.channels
    dataset = load_dataset(source, width, channels, class_names or names)
    is_subset = class_names and set(dataset.class_names) <= set(checkpoint.class_names)
    return dataset.with_class_order(checkpoint.class_names) if is_subset else dataset


def check_compatible(checkpoints: Sequence[Checkpoint], paths: Sequence[str]) -> Checkpoint:
    """Return the first checkpoint; raise a WeightsError if the networks cannot be an ensemble."""
    first = checkpoints[0]
    for path, other in zip(paths, checkpoints):
        for name in ("class_names", "image_width", "channels"):
            if getattr(first, name) != getattr(other, name):
                raise WeightsError(
                    f"{path} and {paths[0]} cannot be an ensemble: {name} is "
                    f"{getattr(other, name)} and {getattr(first, name)}"
                )
    return first


def evaluate(
    networks: Sequence[FERNet],
    dataset: FaceDataset,
    splits: Sequence[str],
    batch_size: int = 256,
    tta: bool = False,
) -> Evaluation:
    """Predict some splits of a data set in float32, in the given order.

    `networks` are one, or an ensemble, in evaluation mode; `dataset` is the whole data set.

    Raises:
        DataError: The splits are empty.
    """
    present = dataset.counts()
    if not present.keys() & set(splits):
        raise DataError(
            f"{dataset.source} has no images of {' or '.join(splits)}, only {', '.join(present)}; "
            f"give another split, such as --splits {next(iter(present))}"
        )
    rows = np.concatenate([np.flatnonzero(dataset.split == s) for s in dict.fromkeys(splits)])
    samples = dataset.select(rows)
    predictions = predict_ensemble(networks, samples.images, batch_size, tta)
    duplicates = dataset.duplicates()[rows] if "Training" in present else None
    return Evaluation(samples, predictions, rows, duplicates)


def evaluate_training_labels(
    network: FERNet, dataset: FaceDataset, clean_labels: np.ndarray, final: np.ndarray
) -> dict[str, Any]:
    """Compute the quality of relabeling, and whether the importance detects incorrect labels.

    Args:
        network: In evaluation mode.
        dataset: The whole data set, with the labels at the start of the training.
        clean_labels: int [M], the labels of the data set without label noise.
        final: int [N], the labels of the Training images at the end of the training.

    Returns:
        With label noise, `metrics.relabel_scores`. With `human_labels`, the auroc_importance_label
        of the Training images and, if a label changed, `metrics.human_relabels`.
    """
    rows = dataset.training_rows
    clean, given, scores = clean_labels[rows], dataset.labels[rows], {}
    if (clean != given).any():
        scores |= metrics.relabel_scores(clean, given, final)
    if dataset.human_labels is not None:
        if (given != final).any():
            human_labels, names = dataset.human_labels[rows], dataset.class_names
            scores |= metrics.human_relabels(human_labels, given, final, names)
        training = evaluate([network], dataset, ["Training"]).scores()["Training"]
        scores["auroc_importance_label"] = training["auroc_importance_label"]
    return scores


def predict_ensemble(
    networks: Sequence[FERNet], images: np.ndarray, batch_size: int, tta: bool
) -> Predictions:
    """Return the mean predictions for uint8 images [N, W, W] or [N, W, W, 3]."""
    pixels = images_to_device(images, networks[0].pixel_mean.device)
    return Predictions.average([predict(net, pixels, batch_size, tta) for net in networks])


def evaluate_corruptions(
    networks: Sequence[FERNet], clean: Evaluation, batch_size: int, tta: bool = False
) -> pd.DataFrame:
    """Evaluate the labeled images of an evaluation after each of CORRUPTIONS.

    Returns:
        A row per corruption, after one for the clean images ("none"): `corruption`, and for each
        split its accuracy and its accuracy drop (`<split> drop`), in percent.
    """
    labeled = clean.samples.labels != UNLABELED
    samples = clean.samples.select(labeled)
    correct = {"none": clean.predicted[labeled] == samples.labels}
    for name in progress_bar(CORRUPTIONS, "corruptions", unit="corruption"):
        images = corrupt(samples.images, name)
        predictions = predict_ensemble(networks, images, batch_size, tta)
        correct[name] = predictions.probabilities.argmax(1) == samples.labels
    table = pd.DataFrame({"corruption": list(correct)})
    for name in dict.fromkeys(samples.split.tolist()):
        rows = samples.split == name
        accuracy = np.array([100 * hits[rows].mean() for hits in correct.values()])
        table[name], table[f"{name} drop"] = accuracy, accuracy[0] - accuracy
    return table
