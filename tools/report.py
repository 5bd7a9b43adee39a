"""Write an HTML page about one or several runs: metrics with intervals, figures, comparisons.

    python -m tools.report model_save/RUN                              one run
    python -m tools.report model_save/A model_save/B --out page.html   paired comparison of two runs
    python -m tools.report model_save/A model_save/B --data D          with images where they differ
    python -m tools.report model_save/A --data D --ferplus_test F      with human agreement

The page is a single file. It contains images of the data set, so its terms of use apply.
"""

import base64
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import jinja2
import pandas as pd
import tyro

from data import ferplus
from data.dataset import FaceDataset
from data.source import find_source, load_dataset
from tools.report_explanations import explanation_figure
from tools.report_pairs import compare_runs, has_labels, plot_pair
from utils.cli import parse
from utils.errors import DataError, OptionError, RunError, run_main
from utils.files import atomic_write
from utils.metrics import human_agreement, human_relabels
from utils.run_folder import RunFolder
from utils.statistics import wilson
from utils.validation import check_label_options

FIGURES = {
    "learning_curves.png": "Learning curves",
    "confusion_matrix.png": "Confusion matrix",
    "reliability.png": "Reliability diagram",
    "importance_by_class.png": "Importance by label",
    "landmarks.png": "Landmarks",
    "importance.png": "Highest and lowest importance",
    "relabels.png": "Relabeled images",
}
REQUIRED = {"accuracy", "accuracy_without_duplicates", "balanced_accuracy", "macro_f1", "ece"}
REQUIRED |= {"landmark_error", "recall"}
Result = dict[str, Any]


@dataclass(frozen=True)
class ReportOptions:
    """Options of tools.report."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of train.py or test.py."""
    out: str = "report.html"
    """The page to write."""
    data: str = ""
    """The data set that the runs were evaluated on, to show images on which two runs differ, and
    the mean explanation of each class (of runs with a best.pth)."""
    figure: str = ""
    """Also write the last figure of such images to this PNG file."""
    ferplus: str = ""
    """FER+'s fer2013new.csv, for the --data of runs that were evaluated on its labels."""
    ferplus_test: str = ""
    """FER+'s fer2013new.csv: compare predictions and relabels with its majority labels; needs
    --data. Runs of train.py and test.py with this option have the values already."""


def main() -> None:
    options = parse(ReportOptions, sys.argv[1:], __doc__)
    paths = [Path(path) for path in options.runs]
    check_options(options, paths)
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    runs = [describe_run(RunFolder(path), name) for path, name in zip(paths, names)]
    pairs = [pair for one, other in combinations(runs, 2) for pair in compare_runs(one, other)]
    if options.data:
        add_images(options, runs, pairs)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, loader=jinja2.PackageLoader("tools")
    )
    environment.filters["base64"] = lambda png: base64.b64encode(png).decode()
    page = environment.get_template("report.html").render(runs=runs, pairs=pairs)
    with atomic_write(options.out) as partial:
        partial.write_text(page, encoding="utf-8")
    print(f"{options.out}: runs: {len(runs)}, comparisons: {len(pairs)}")
    if options.figure:
        figures = [pair["figure"] for pair in pairs if pair["figure"]]
        if not figures:
            raise DataError(
                f"all runs are correct on the same images, so {options.figure} is not written"
            )
        with atomic_write(options.figure) as partial:
            partial.write_bytes(figures[-1])


def check_options(options: ReportOptions, paths: Sequence[Path]) -> None:
    """Raise an OptionError if a value is missing, or a run is given twice."""
    if not paths:
        raise OptionError("give the folder of a run: python -m tools.report model_save/RUN")
    if len({path.resolve() for path in paths}) < len(paths):
        raise OptionError("a run is given twice; give different folders")
    if (options.ferplus or options.ferplus_test) and not options.data:
        raise OptionError("FER+ has labels for the images of --data; give --data, too")
    check_label_options((), options.ferplus, options.ferplus_test)
    if options.figure and (not options.data or len(paths) < 2):
        raise OptionError("--figure shows images on which runs differ; give two runs and --data")


def describe_run(run: RunFolder, name: str) -> Result:
    """Return the content of the page for a run.

    Raises:
        RunError: The run is not finished, or a file is damaged.
    """
    if not run.path.is_dir():
        raise RunError(f"{run.path}: no such folder; give the folder of a run")
    if not (run / "metrics.json").is_file():
        raise RunError(f"{run.path} has no metrics.json, so the run is not finished; resume it")
    scores = run.read_json("metrics.json")
    try:
        predictions = run.read_csv("predictions.csv")
        splits = [
            describe_split(split, score, predictions[predictions["split"] == split])
            for split, score in scores.items()
            if score.get("n")
        ]
        if not splits:
            raise ValueError("no split has labeled images")
        options, relabels = {}, None
        if (run / "relabels.csv").is_file():  # test.py writes none
            relabels = run.read_csv("relabels.csv")[["row", "from", "to"]]
        if (run / "config.json").is_file():
            options = dict(run.read_json("config.json").get("options", {}))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise RunError(f"the files in {run.path} are inconsistent ({error})") from error
    files = {title: run / file for file, title in FIGURES.items() if (run / file).is_file()}
    return {
        "name": name,
        "path": run.path,
        "options": {k: v for k, v in options.items() if v not in ("", [], None)},
        "splits": splits,
        "training": scores.get("Training", {}),
        "relabels": relabels,
        "figures": {title: file.read_bytes() for title, file in files.items()},
        "predictions": predictions,
    }


def describe_split(name: str, score: Result, rows: pd.DataFrame) -> Result:
    """Return the metrics of a split, with the Wilson interval of its accuracy.

    A ValueError or KeyError is raised if they are incomplete, or belong to other predictions.
    """
    if missing := REQUIRED - score.keys():
        raise KeyError(f"metrics.json lacks {', '.join(sorted(missing))}")
    labeled = rows[rows["label"] != ""]
    if len(labeled) != score["n"]:
        raise ValueError(f"{name} has {len(labeled)} labeled images, in metrics.json {score['n']}")
    low, high = wilson(int((labeled["label"] == labeled["predicted"]).sum()), score["n"])
    return {"name": name, "low": low, "high": high, **score}


def add_images(options: ReportOptions, runs: list[Result], pairs: list[Result]) -> None:
    """Add to pairs the figures of images, and to runs explanations and the agreement with FER+."""
    scores = runs[0]["splits"][0]
    has_votes = scores.get("labels") == "FER+"
    class_names = ferplus.explicit_class_names(tuple(scores["recall"]), has_votes)
    dataset = load_dataset(find_source(options.data), class_names=class_names)
    if options.ferplus:
        dataset = ferplus.with_ferplus_labels(dataset, options.ferplus)
    for pair in pairs:
        pair["figure"] = plot_pair(pair, dataset)
    for run in runs:
        if explanations := explanation_figure(run["path"] / "best.pth", dataset):
            run["figures"]["Mean explanations"] = explanations
    if options.ferplus_test:
        dataset = ferplus.with_human_labels(dataset, options.ferplus_test)
        for run in runs:
            add_agreement(run, dataset)


def add_agreement(run: Result, dataset: FaceDataset) -> None:
    """Add the human agreement of the predictions and relabels of a run from `describe_run`."""
    names, code = dataset.class_names, {name: i for i, name in enumerate(dataset.class_names)}
    for split in run["splits"]:
        rows = run["predictions"][run["predictions"]["split"] == split["name"]]
        if not has_labels(dataset, rows):
            raise DataError(
                f"{dataset.source} does not have the images and labels that {run['name']} was "
                "evaluated on; give the same --data"
            )
        predicted = rows["predicted"].map(code).to_numpy()
        split.update(human_agreement(dataset.human_labels[rows["index"]], predicted, names))
    run["training"] |= relabel_agreement(run, dataset)


def relabel_agreement(run: Result, dataset: FaceDataset) -> Result:
    """Return `metrics.human_relabels` of the Training images.

    It is empty for a run that relabeled nothing, or was trained on other labels.
    """
    relabels, options = run["relabels"], run["options"]
    has_other_labels = options.get("ferplus") or options.get("label_noise")
    if relabels is None or relabels.empty or has_other_labels:
        return {}
    code = {name: i for i, name in enumerate(dataset.class_names)}
    first, last = (relabels.drop_duplicates("row", keep=keep) for keep in ("first", "last"))
    rows, old = first["row"].to_numpy(), first["from"].map(code).to_numpy()
    if rows.max() >= len(dataset) or rows.min() < 0 or (dataset.labels[rows] != old).any():
        raise DataError(
            f"{dataset.source} does not have the images that {run['name']} relabeled; give the "
            "--data of the training"
        )
    final = dataset.labels.copy()
    final[last["row"]] = last["to"].map(code)
    rows = dataset.training_rows
    labels = (dataset.human_labels[rows], dataset.labels[rows], final[rows])
    return human_relabels(*labels, dataset.class_names)


if __name__ == "__main__":
    run_main(main)
