"""Comparison tables of finished runs: comparison.csv, which is also printed."""

from pathlib import Path

import numpy as np
import pandas as pd

from tools.plan import Plan, Run
from utils.errors import RunError
from utils.files import atomic_write
from utils.run_folder import RunFolder
from utils.statistics import compare

# Metrics whose means over seeds are added.
MEANS = ("balanced_accuracy", "landmark_error", "ece", "auroc_confidence", "auroc_importance")
MEANS += ("auroc_importance_label", "human_relabel_new", "human_relabel_old")
MEANS += ("relabel_precision", "relabel_recall")
UNITS = "Units: mean and std in %, difference, low and high in points, landmark_error in pixels, "
UNITS += "all other metrics from 0 to 1"


def write_comparison(
    runs: list[Run], plan: Plan, split: str, path: Path, subfolder: str = ""
) -> None:
    """Write the comparison of finished runs of a plan on a split to the CSV file `path`; print it.

    Human agreement has the columns of `compare`, with the prefix `human_agreement_`. `subfolder` is
    where each run folder has predictions.csv and metrics.json of the split.

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
    comparison = comparison.round(4)
    with atomic_write(path) as partial:
        comparison.to_csv(partial, index=False, lineterminator="\n")
    print(f"\n{split}, differences from {plan.baseline}; also in {path}\n{UNITS}")
    text = comparison.to_string(index=False, na_rep="-", float_format="{:g}".format)
    print(text, flush=True)


def _labeled_predictions(folder: Path, split: str) -> pd.DataFrame:
    table = RunFolder(folder).read_csv("predictions.csv")
    table = table[(table["split"] == split) & (table["label"] != "")]
    if table.empty:
        raise RunError(f"{folder} has no labeled images of {split}, so there is nothing to compare")
    return table
