"""Write one page on one run or several: numbers with their intervals, figures, what differs.

python report.py model_save/RUN                          on what the run left
python report.py model_save/A model_save/B --out page.html   the same faces, compared in pairs

The page needs nothing beside it: it can be mailed. It shows faces of the data set where the runs'
figures do, so it is bound to that set's terms.
"""

from __future__ import annotations

import base64
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import jinja2
import numpy as np
import pandas as pd
import tyro
from scipy.stats import binomtest

from utils.comparison import bootstrap, mcnemar
from utils.errors import DataError, OptionError, RunError, run_main
from utils.files import atomic_write
from utils.options import parse
from utils.run import RunFolder

TEMPLATE = Path(__file__).resolve().parent / "utils" / "report.html"
FIGURES = {
    "learning_curves.png": "Learning curves",
    "confusion_matrix.png": "Confusion matrix",
    "reliability.png": "Reliability",
    "importance_by_class.png": "Importance by label",
    "landmarks.png": "Landmarks",
    "importance.png": "Most and least important faces",
    "relabels.png": "Relabeled faces",
}


@dataclass(frozen=True)
class ReportOptions:
    """Options of report.py."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders that train.py or test.py wrote."""
    out: str = "report.html"
    """The page to write."""


def main() -> None:
    options = parse(ReportOptions, sys.argv[1:], __doc__)
    if not options.runs:
        raise OptionError("name the folder of a run: report.py model_save/RUN")
    if len(set(options.runs)) < len(options.runs):
        raise OptionError("a run is named twice")
    runs = [describe(RunFolder(Path(path))) for path in options.runs]
    pairs = [compared for one, other in combinations(runs, 2) for compared in compare(one, other)]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    with atomic_write(options.out) as partial:
        partial.write_text(template.render(runs=runs, pairs=pairs), encoding="utf-8")
    print(f"{options.out}: {len(runs)} runs, {len(pairs)} comparisons")


def describe(run: RunFolder) -> dict[str, Any]:
    """Return what the page tells of a run.

    Raises:
        RunError: the folder holds no finished run, or a damaged file.
    """
    if not (run / "metrics.json").is_file():
        raise RunError(
            f"{run.path} holds no metrics.json, so no finished run; let train.py or test.py end"
        )
    scores = run.read_json("metrics.json")
    try:
        predictions = pd.read_csv(run / "predictions.csv", keep_default_na=False)
        usages = [
            usage_of(name, score, predictions[predictions["usage"] == name])
            for name, score in scores.items()
            if score.get("n")
        ]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{run / 'predictions.csv'} does not fit its run ({error})") from error
    options = {}
    if (run / "config.json").is_file():
        options = run.read_json("config.json").get("options", {})
    return {
        "name": run.path.name,
        "path": run.path,
        "options": {k: v for k, v in options.items() if v not in ("", [], None)},
        "usages": usages,
        "noise": scores.get("Training", {}) if "noisy" in scores.get("Training", {}) else {},
        "figures": [
            (title, base64.b64encode((run / name).read_bytes()).decode())
            for name, title in FIGURES.items()
            if (run / name).is_file()
        ],
        "predictions": predictions,
    }


def usage_of(name: str, score: dict[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
    """Return the scores of a usage, with the interval that chance leaves its accuracy (Wilson)."""
    labelled = rows[rows["label"] != ""]
    right = int((labelled["label"] == labelled["predicted"]).sum())
    if len(labelled) != score["n"]:
        raise ValueError(f"{len(labelled)} labelled faces of {name}, {score['n']} in metrics.json")
    interval = binomtest(right, score["n"]).proportion_ci(method="wilson")
    return {"name": name, "low": interval.low, "high": interval.high, **score}


def compare(one: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the differences of two runs on the labelled faces that both have predicted.

    Raises:
        DataError: they were evaluated on other faces or labels.
    """
    keys = ["index", "usage", "label"]
    both = one["predictions"].merge(other["predictions"], on=keys, suffixes=("_a", "_b"))
    result = []
    for usage, rows in both[both["label"] != ""].groupby("usage"):
        first = (rows["predicted_a"] == rows["label"]).to_numpy()
        second = (rows["predicted_b"] == rows["label"]).to_numpy()
        better, worse, p = mcnemar(second, first)
        low, high = bootstrap(second[None], first[None])
        result.append(
            {
                "one": one["name"],
                "other": other["name"],
                "usage": usage,
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
            f"{one['path']} and {other['path']} have no labelled face in common, so they cannot be "
            "compared; evaluate both on the same set with test.py"
        )
    return result


if __name__ == "__main__":
    run_main(main)
