"""Paired comparison of two runs, and a figure of images on which they differ."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from data.dataset import FaceDataset
from utils.errors import DataError
from utils.figures import save_figure
from utils.image_grids import plot_disagreements
from utils.statistics import bootstrap, mcnemar

NUM_IMAGES = 8  # in the figure


def compare_runs(one: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare two runs on the labeled images that both have predictions for.

    Args:
        one: The first run, from `report.describe_run`.
        other: The second run.

    Returns:
        For each split: the difference of the second run from the first in percentage points, its
        95 % bootstrap interval, McNemar's test, and the share of equal predictions.

    Raises:
        DataError: The runs were evaluated on different images or labels.
    """
    keys = ["index", "split"]
    both = one["predictions"].merge(other["predictions"], on=keys, suffixes=("_a", "_b"))
    if (both["label_a"] != both["label_b"]).any():
        raise DataError(
            f"{one['path']} and {other['path']} were evaluated on different images or labels; "
            "evaluate both on the same data set with test.py"
        )
    both = both.rename(columns={"label_a": "label"})
    result = []
    for split, rows in both[both["label"] != ""].groupby("split"):
        first = (rows["predicted_a"] == rows["label"]).to_numpy()
        second = (rows["predicted_b"] == rows["label"]).to_numpy()
        better, worse, p = mcnemar(second, first)
        low, high = bootstrap(second[None], first[None])
        result.append(
            {
                "one": one["name"],
                "other": other["name"],
                "split": split,
                "rows": rows,
                "figure": "",
                "n": len(rows),
                "difference": 100 * (second.mean() - first.mean()),
                "low": low,
                "high": high,
                "better": better,
                "worse": worse,
                "p": p,
                "agreement": float(np.mean(rows["predicted_a"] == rows["predicted_b"])),
            }
        )
    if not result:
        raise DataError(
            f"{one['path']} and {other['path']} have no labeled image in common; evaluate both on "
            "the same data set with test.py"
        )
    return result


def plot_pair(
    pair: dict[str, Any], dataset: FaceDataset, ferplus_dataset: FaceDataset | None = None
) -> bytes:
    """Plot a random sample of the images that only one of two runs predicts correctly.

    Args:
        pair: From `compare_runs`.
        dataset: The data set that the runs were evaluated on.
        ferplus_dataset: The same with FER+ labels, if the runs may have been evaluated on these.

    Returns:
        A PNG; empty if there are no such images.

    Raises:
        DataError: The runs were evaluated on other images.
    """
    rows = pair["rows"]
    index = rows["index"].to_numpy()

    def has_labels_of_runs(labeled: FaceDataset) -> bool:
        names = np.array([*labeled.class_names, ""])
        return index.max() < len(dataset) and (names[labeled.labels[index]] == rows["label"]).all()

    candidates = [dataset] if ferplus_dataset is None else [dataset, ferplus_dataset]
    if not any(map(has_labels_of_runs, candidates)):
        raise DataError(
            f"{dataset.source} does not have the images and labels that {pair['one']} and "
            f"{pair['other']} were evaluated on; give the same --data, and for FER+ labels the "
            "same --ferplus, as for train.py or test.py"
        )
    predictions = {pair["one"]: rows["predicted_a"], pair["other"]: rows["predicted_b"]}
    correct = [predicted == rows["label"] for predicted in predictions.values()]
    differ = np.flatnonzero(np.logical_xor(*correct))
    if not len(differ):
        return b""
    shown = np.random.default_rng(0).permutation(differ)[:NUM_IMAGES]
    figure = plot_disagreements(
        dataset.images[index[shown]],
        rows["label"].to_numpy()[shown],
        {name: predicted.to_numpy()[shown] for name, predicted in predictions.items()},
        f"{pair['split']}: {len(shown)} of the {len(differ)} images that only one run predicts "
        "correctly",
    )
    with io.BytesIO() as file:
        save_figure(figure, file)
        return file.getvalue()
