"""Comparison tables of finished runs: comparison.csv, and a printed table with units."""

from pathlib import Path

import numpy as np
import pandas as pd

from tools.plan import Plan, Run
from utils.errors import RunError
from utils.files import atomic_write
from utils.run_folder import RunFolder
from utils.statistics import compare

# Metrics whose means over seeds are added: header and format of the printed column, factor.
MEANS: dict[str, tuple[str, str, float]] = {
    "balanced_accuracy": ("balanced accuracy (%)", "{:.2f}", 100),
    "landmark_error": ("landmark error (px)", "{:.2f}", 1),
    "ece": ("ECE", "{:.3f}", 1),
    "auroc_confidence": ("AUROC confidence", "{:.3f}", 1),
    "auroc_importance": ("AUROC importance", "{:.3f}", 1),
    "auroc_importance_label": ("AUROC importance, label (Training)", "{:.3f}", 1),
    "human_relabel_new": ("relabels: FER+ agrees with the new label (%)", "{:.1f}", 100),
    "human_relabel_old": ("with the old label (%)", "{:.1f}", 100),
    "relabel_precision": ("relabel precision (%)", "{:.1f}", 100),
    "relabel_recall": ("relabel recall (%)", "{:.1f}", 100),
}


def write_comparison(
    runs: list[Run], plan: Plan, split: str, path: Path, subfolder: str = ""
) -> None:
    """Write and print the comparison of the runs on a split.

    Args:
        runs: Finished runs.
        plan: Their plan.
        split: The split to compare on.
        path: The CSV file to write. Accuracies, human agreement and differences are in percent,
            landmark_error is in pixels, all other metrics are from 0 to 1. Human agreement has the
            columns of `compare`, with the prefix `human_agreement_`.
        subfolder: Where each run folder has predictions.csv and metrics.json of the split.

    Raises:
        RunError: The split has no labels, or different ones in two runs.
    """
    labels = None
    correct: dict[str, dict[int, np.ndarray]] = {}
    agreeing: dict[str, dict[int, np.ndarray]] = {}
    metrics = []
    for run in runs:
        folder = run.folder / subfolder
        table = _labeled_predictions(folder, split)
        labels = table["label"].tolist() if labels is None else labels
        if labels != table["label"].tolist():
            raise RunError(
                f"{folder} has predictions for other images or labels than "
                f"{runs[0].folder / subfolder}; give all runs the same --data, and a new --out"
            )
        hits = (table["label"] == table["predicted"]).to_numpy()
        correct.setdefault(run.variant, {})[run.seed] = hits
        if "human_label" in table:
            judged = table[table["human_label"] != ""]
            hits = (judged["human_label"] == judged["predicted"]).to_numpy()
            agreeing.setdefault(run.variant, {})[run.seed] = hits
        scores = RunFolder(folder).read_json("metrics.json")[split]
        scores |= RunFolder(run.folder).read_json("metrics.json").get("Training", {})
        metrics.append({"variant": run.variant, **{name: scores.get(name) for name in MEANS}})
    means = pd.DataFrame(metrics).set_index("variant").astype(float).groupby("variant").mean()
    comparison = compare(correct, plan.baseline)
    if plan.baseline in agreeing:
        agreement = compare(agreeing, plan.baseline).set_index("variant")
        comparison = comparison.join(agreement.add_prefix("human_agreement_"), on="variant")
    comparison = comparison.join(means.dropna(axis=1, how="all"), on="variant")
    with atomic_write(path) as partial:
        comparison.round(4).to_csv(partial, index=False, lineterminator="\n")
    print(f"\n{split}, differences from {plan.baseline}; also in {path}")
    print(printed_table(comparison).to_string(index=False), flush=True)


def printed_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return a comparison as texts, each column in the unit that its header names."""
    table = comparison[["variant", "seeds"]].astype(str)
    table["accuracy ± std (%)"] = _mean_texts(comparison)
    if "difference" in comparison:
        better, worse = (_texts(comparison[name], "{:.0f}") for name in ("better", "worse"))
        table["difference, 95 % interval (points)"] = _difference_texts(comparison)
        has_pairs = comparison["pairs"].notna()
        table["better/worse (images)"] = (better + "/" + worse).where(has_pairs, "-")
        table["McNemar p"] = comparison["mcnemar"].fillna("-")
    if "human_agreement_mean" in comparison:
        human = comparison.filter(like="human_agreement_")
        human = human.rename(columns=lambda name: name.removeprefix("human_agreement_"))
        table["human agreement ± std (%)"] = _mean_texts(human)
        if "difference" in human:
            table["its difference, 95 % interval (points)"] = _difference_texts(human)
    for name, (header, text, factor) in MEANS.items():
        if name in comparison:
            table[header] = _texts(factor * comparison[name], text)
    return table


def _labeled_predictions(folder: Path, split: str) -> pd.DataFrame:
    table = RunFolder(folder).read_csv("predictions.csv")
    table = table[(table["split"] == split) & (table["label"] != "")]
    if table.empty:
        raise RunError(f"{folder} has no labeled images of {split}, so there is nothing to compare")
    return table


def _mean_texts(comparison: pd.DataFrame) -> pd.Series:
    std = _texts(comparison["std"], " ± {:.2f}", missing="")
    return _texts(comparison["mean"], "{:.2f}") + std


def _difference_texts(comparison: pd.DataFrame) -> pd.Series:
    columns = (comparison[name] for name in ("difference", "low", "high"))
    difference, low, high = (_texts(column, "{:+.2f}") for column in columns)
    interval = difference + " (" + low + " to " + high + ")"
    return interval.where(comparison["pairs"].notna(), "-")


def _texts(column: pd.Series, text: str, missing: str = "-") -> pd.Series:
    return column.map(text.format).where(column.notna(), missing)
