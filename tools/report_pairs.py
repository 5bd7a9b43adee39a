"""Paired comparison of two runs, and a figure of images on which they differ."""

from typing import Any

import numpy as np
import pandas as pd

from data.dataset import FaceDataset
from utils.errors import DataError
from utils.figures import to_png
from utils.image_grids import plot_disagreements
from utils.statistics import bootstrap, mcnemar


def compare_runs(one: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare two results of `describe_run` on the images that both have predictions for.

    Returns:
        For each split: the difference of the second run from the first in percentage points, its
        95 % bootstrap interval, McNemar's test, and the share of equal predictions.
    """
    keys = ["index", "split"]
    both = one["predictions"].merge(other["predictions"], on=keys, suffixes=("_a", "_b"))
    remedy = "evaluate both on the same data set with test.py"
    if (both["label_a"] != both["label_b"]).any():
        raise DataError(
            f"{one['path']} and {other['path']} have different images or labels; {remedy}"
        )
    both = both[both["label_a"] != ""].rename(columns={"label_a": "label"})
    if both.empty:
        raise DataError(f"{one['path']} and {other['path']} share no labeled image; {remedy}")
    result = []
    for split, rows in both.groupby("split"):
        first = (rows["predicted_a"] == rows["label"]).to_numpy()
        second = (rows["predicted_b"] == rows["label"]).to_numpy()
        better, worse, p = mcnemar(second, first)
        low, high = bootstrap(second[None], first[None])
        agreement = (rows["predicted_a"] == rows["predicted_b"]).mean()
        result.append(
            {"one": one["name"], "other": other["name"], "split": split, "n": len(rows)}
            | {"difference": 100 * (second.mean() - first.mean()), "low": low, "high": high}
            | {"better": better, "worse": worse, "p": p, "agreement": agreement}
            | {"rows": rows, "figure": b""}
        )
    return result


def plot_pair(pair: dict[str, Any], dataset: FaceDataset) -> bytes:
    """Plot a random sample of the images that only one run of a pair predicts correctly.

    Returns a PNG; empty if there are no such images. The pair is one of `compare_runs`.
    """
    rows = pair["rows"]
    if not has_labels(dataset, rows):
        raise DataError(
            f"{dataset.source} does not have the images and labels that {pair['one']} and "
            f"{pair['other']} were evaluated on; give the same --data, and for FER+ labels the "
            "same --ferplus, as for train.py or test.py"
        )
    is_correct = [rows[name] == rows["label"] for name in ("predicted_a", "predicted_b")]
    differ = np.flatnonzero(np.logical_xor(*is_correct))
    if not len(differ):
        return b""
    shown = rows.iloc[np.random.default_rng(0).permutation(differ)[:8]]
    figure = plot_disagreements(
        dataset.images[shown["index"]],
        shown["label"].tolist(),
        {pair["one"]: shown["predicted_a"].tolist(), pair["other"]: shown["predicted_b"].tolist()},
        f"{pair['split']}: {len(shown)} of the {len(differ)} images that only one run predicts "
        "correctly",
    )
    return to_png(figure)


def has_labels(dataset: FaceDataset, rows: pd.DataFrame) -> bool:
    """Return whether the data set has the images and labels of predictions."""
    names = np.array([*dataset.class_names, ""])
    index = rows["index"].to_numpy()
    return index.max() < len(dataset) and (names[dataset.labels[index]] == rows["label"]).all()
