"""Write one page on one run or several: numbers with their intervals, figures, what differs.

    python report.py model_save/RUN                              on what the run left
    python report.py model_save/A model_save/B --out page.html   the same faces, compared in pairs
    python report.py model_save/A model_save/B --data D          with faces that they read otherwise
    python report.py model_save/A --data D --ferplus F           FER+ as the judge of its relabels

The page needs nothing beside it: it can be mailed. It shows faces of the data set where the runs'
figures do, so it is bound to that set's terms.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import jinja2
import numpy as np
import pandas as pd
import tyro

from data import ferplus
from data.dataset import UNLABELED, FaceDataset
from data.source import find_source, load_dataset
from utils.cli import parse
from utils.errors import DataError, OptionError, RunError, run_main
from utils.files import atomic_write
from utils.image_grids import plot_disagreements
from utils.metrics import relabel_scores
from utils.run_folder import RunFolder
from utils.statistics import bootstrap, mcnemar, wilson

TEMPLATE = Path(__file__).resolve().parent / "utils" / "tools.report.html"
FIGURES = {
    "learning_curves.png": "Learning curves",
    "confusion_matrix.png": "Confusion matrix",
    "reliability.png": "Reliability",
    "importance_by_class.png": "Importance by label",
    "landmarks.png": "Landmarks",
    "importance.png": "Most and least important faces",
    "relabels.png": "Relabeled faces",
}
SHOWN = ("accuracy", "accuracy_without_duplicates", "balanced_accuracy", "macro_f1", "ece")
SHOWN += ("landmark_error", "recall")
FACES_SHOWN = 8  # of those that two runs read otherwise


@dataclass(frozen=True)
class ReportOptions:
    """Options of report.py."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders that train.py or test.py wrote."""
    out: str = "tools.report.html"
    """The page to write."""
    data: str = ""
    """The faces that the runs were evaluated on: show some that two runs read otherwise."""
    picture: str = ""
    """Write the last picture of such faces into a PNG of its own too."""
    ferplus: str = ""
    """FER+'s fer2013new.csv: tell how often its majority agrees with what relabeling did. With
    --data it is needed for runs that were evaluated by its labels, too."""


def main() -> None:
    options = parse(ReportOptions, sys.argv[1:], __doc__)
    if not options.runs:
        raise OptionError("name the folder of a run: report.py model_save/RUN")
    paths = [Path(path) for path in options.runs]
    if len({path.resolve() for path in paths}) < len(paths):
        raise OptionError("a run is named twice")
    if options.ferplus and not options.data:
        raise OptionError("--ferplus judges the labels of --data; name the faces too")
    if options.picture and (not options.data or len(options.runs) < 2):
        raise OptionError("--picture shows faces that two runs read otherwise: two runs and --data")
    names = names_of(paths)
    runs = [describe_run(RunFolder(path), name) for path, name in zip(paths, names, strict=True)]
    pairs = [pair for one, other in combinations(runs, 2) for pair in compare_runs(one, other)]
    if options.data:
        scores = runs[0]["usages"][0]
        classes = ferplus.to_name(tuple(scores["recall"]), scores.get("labels") == "FER+")
        faces = load_dataset(find_source(options.data), class_names=classes)
        judge = ferplus.with_ferplus_labels(faces, options.ferplus) if options.ferplus else None
        drawn = [plot_pair(pair, faces, judge) for pair in pairs]
        for pair, picture in zip(pairs, drawn):
            pair["picture"] = base64.b64encode(picture).decode()
        if judge:
            for run in runs:
                run["ferplus"] = relabel_agreement(run, faces, judge)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    with atomic_write(options.out) as partial:
        partial.write_text(template.render(runs=runs, pairs=pairs), encoding="utf-8")
    print(f"{options.out}: runs: {len(runs)}, comparisons: {len(pairs)}")
    if options.picture:
        if not any(drawn):
            raise DataError(f"all runs read the same faces right: {options.picture} is not drawn")
        with atomic_write(options.picture) as partial:
            partial.write_bytes([picture for picture in drawn if picture][-1])


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return the folders' own names, or the paths where two folders have the same."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def describe_run(run: RunFolder, name: str) -> dict[str, Any]:
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
        predictions = pd.read_csv(
            run / "predictions.csv", keep_default_na=False, dtype={"label": str, "predicted": str}
        )
        splits = [
            usage_of(split, score, predictions[predictions["usage"] == split])
            for split, score in scores.items()
            if score.get("n")
        ]
        if not splits:
            raise ValueError("no usage has labelled faces")
        relabels = None
        if (run / "relabels.csv").is_file():  # test.py leaves none
            relabels = pd.read_csv(
                run / "relabels.csv", keep_default_na=False, dtype={"from": str, "to": str}
            )[["row", "from", "to"]]
        options = {}
        if (run / "config.json").is_file():
            options = dict(run.read_json("config.json").get("options", {}))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise RunError(f"the files in {run.path} do not fit its run ({error})") from error
    return {
        "name": name,
        "path": run.path,
        "options": {k: v for k, v in options.items() if v not in ("", [], None)},
        "usages": splits,
        "noise": scores.get("Training", {}) if "noisy" in scores.get("Training", {}) else {},
        "relabels": relabels,
        "ferplus": {},
        "figures": [
            (title, base64.b64encode((run / name).read_bytes()).decode())
            for name, title in FIGURES.items()
            if (run / name).is_file()
        ],
        "predictions": predictions,
    }


def usage_of(name: str, score: dict[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
    """Return the scores of a usage, with the interval that chance leaves its accuracy (Wilson).

    Raises:
        ValueError, KeyError: the scores are not whole, or of other faces.
    """
    if missing := {*SHOWN} - score.keys():
        raise KeyError(f"metrics.json lacks {', '.join(sorted(missing))}")
    labelled = rows[rows["label"] != ""]
    right = int((labelled["label"] == labelled["predicted"]).sum())
    if len(labelled) != score["n"]:
        raise ValueError(f"{len(labelled)} labelled faces of {name}, {score['n']} in metrics.json")
    low, high = wilson(right, score["n"])
    return {"name": name, "low": low, "high": high, **score}


def compare_runs(one: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the differences of two runs on the labelled faces that both have predicted.

    Raises:
        DataError: they were evaluated on other faces or labels.
    """
    keys = ["index", "usage"]
    both = one["predictions"].merge(other["predictions"], on=keys, suffixes=("_a", "_b"))
    if (both["label_a"] != both["label_b"]).any():
        raise DataError(
            f"{one['path']} and {other['path']} were evaluated on other faces or labels, so they "
            "cannot be compared; evaluate both on the same set with test.py"
        )
    both = both.rename(columns={"label_a": "label"})
    result = []
    for split, rows in both[both["label"] != ""].groupby("usage"):
        first = (rows["predicted_a"] == rows["label"]).to_numpy()
        second = (rows["predicted_b"] == rows["label"]).to_numpy()
        better, worse, p = mcnemar(second, first)
        low, high = bootstrap(second[None], first[None])
        result.append(
            {
                "one": one["name"],
                "other": other["name"],
                "usage": split,
                "rows": rows,
                "picture": "",
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


def plot_pair(pair: dict[str, Any], faces: FaceDataset, judge: FaceDataset | None = None) -> bytes:
    """Draw faces that only one of two runs read right, as many of each as chance would show.

    Args:
        pair: what `compare_runs` tells of the two.
        faces: that they were evaluated on.
        judge: the same with FER+'s labels, which those may be that they were evaluated by.

    Returns:
        A PNG; empty where there are no such faces.

    Raises:
        DataError: the runs were evaluated on other faces.
    """
    rows = pair["rows"]
    index = rows["index"].to_numpy()

    def fits(labelled: FaceDataset) -> bool:
        names = np.array([*labelled.class_names, ""])
        return index.max() < len(faces) and (names[labelled.labels[index]] == rows["label"]).all()

    if not any(fits(each) for each in (faces, judge) if each is not None):
        raise DataError(
            f"{faces.source} has not the faces and labels by which {pair['one']} and "
            f"{pair['other']} were evaluated; give the --data, and for FER+ labels the --ferplus, "
            "that train.py or test.py had"
        )
    readings = {pair["one"]: rows["predicted_a"], pair["other"]: rows["predicted_b"]}
    differ = np.flatnonzero(np.logical_xor(*(read == rows["label"] for read in readings.values())))
    if not len(differ):
        return b""
    some = np.random.default_rng(0).permutation(differ)[:FACES_SHOWN]
    figure = plot_disagreements(
        faces.images[index[some]],
        rows["label"].to_numpy()[some],
        {name: read.to_numpy()[some] for name, read in readings.items()},
        f"{pair['usage']}: {len(some)} of the {len(differ)} faces that one run alone reads right",
    )
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
        return file.getvalue()


def relabel_agreement(
    run: dict[str, Any], faces: FaceDataset, judge: FaceDataset
) -> dict[str, Any]:
    """Return what FER+'s majority, which no run on FER2013's labels has seen, says of its relabels.

    Args:
        run: what `describe_run` tells of it.
        faces: with the labels that it was trained on.
        judge: the same faces with FER+'s labels; those that have none of FER2013's are left out.

    Returns:
        `metrics.relabel_scores` of the Training faces that FER+ has a label for; empty for a run
        that relabeled nothing, or was trained on other labels.

    Raises:
        DataError: the run relabeled other faces.
    """
    relabels, trained_on = run["relabels"], run["options"]
    others = trained_on.get("ferplus") or trained_on.get("label_noise")
    if relabels is None or relabels.empty or others:
        return {}
    code = {name: i for i, name in enumerate(faces.class_names)}
    first = relabels.drop_duplicates("row", keep="first")
    rows, given = first["row"].to_numpy(), first["from"].map(code).to_numpy()
    if rows.max() >= len(faces) or rows.min() < 0 or (faces.labels[rows] != given).any():
        raise DataError(
            f"{faces.source} has not the faces that {run['name']} relabeled; give the --data that "
            "train.py had"
        )
    final = faces.labels.copy()
    last = relabels.drop_duplicates("row", keep="last")
    final[last["row"]] = last["to"].map(code)
    known = (faces.split == "Training") & (judge.labels != UNLABELED)
    known &= judge.labels < len(faces.class_names)  # contempt
    return relabel_scores(judge.labels[known], faces.labels[known], final[known])


if __name__ == "__main__":
    run_main(main)
