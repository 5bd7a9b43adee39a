"""tools.report: a single-file page with the metrics of its runs; and figures."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from kills import write_csv
from matplotlib import rcParams
from matplotlib.colors import to_hex
from matplotlib.font_manager import findfont
from test_ferplus import write_votes

import train
from data.dataset import EMOTIONS
from data.ferplus import with_ferplus_labels, with_human_labels
from data.synthetic.generate import synthetic_dataset
from tools import report, report_pairs
from utils.errors import DataError, OptionError, RunError
from utils.figures import BLUE, RED, figure_style, save_figure
from utils.image_grids import plot_disagreements, plot_relabeled
from utils.metrics import expected_calibration_error, reliability
from utils.plots import (
    plot_confusion_matrix,
    plot_expressions_over_time,
    plot_importance_by_class,
    plot_learning_curves,
    plot_reliability,
)
from utils.run_folder import ROOT, RunFolder


def run(script, *argv):
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", [script.__file__, *map(str, argv)])
        script.main()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    dataset = synthetic_dataset(training=7, public=3, private=3)
    csv = write_csv(dataset, folder / "images.csv")
    argv = ("--data", csv, "--gpu_ids", "-1", "--width", 0.1, "--image_width", 32)
    argv += ("--batch_size", 16, "--total_epoch", 2, "--relabel_epoch", 1, "--margin_2", 0)
    argv += ("--relabel", "ema", "--relabel_cap", 1, "--no_landmarks")
    run(train, *argv, "--out", folder / "one")
    run(train, *argv, "--seed", 1, "--label_noise", 0.2, "--out", folder / "<two>")
    return folder


def test_a_page_with_data_has_the_mean_explanations(runs, tmp_path, monkeypatch):
    paths = []
    figure = b"\x89PNG of the explanations"
    monkeypatch.setattr(
        report, "explanation_figure", lambda path, data: paths.append(path) or figure
    )
    argv = ("--data", runs / "images.csv", "--out", tmp_path / "page.html")
    run(report, runs / "one", *argv)
    assert paths == [runs / "one/best.pth"]
    html = (tmp_path / "page.html").read_text()
    assert "Mean explanations" in html
    assert base64.b64encode(figure).decode() in html


def test_a_page_of_two_runs(runs, tmp_path):
    run(report, runs / "one", runs / "<two>", "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<two>" not in page  # the name is text, not HTML
    assert "&lt;two&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is loaded
    figures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(figures) == 12  # curves, matrix, reliability, two of importance, relabels; twice
    assert all(base64.b64decode(figure).startswith(b"\x89PNG") for figure in figures)
    scores = json.loads((runs / "one/metrics.json").read_text())
    cells = re.findall(r"<td>(.*?)</td>", page)
    shown = f"<b>{100 * scores['PrivateTest']['accuracy']:.2f}</b>"
    assert shown in cells
    tables = [pd.read_csv(runs / name / "predictions.csv") for name in ("one", "<two>")]
    correct = [(t["label"] == t["predicted"])[t["split"] == "PrivateTest"] for t in tables]
    difference = 100 * (correct[1].mean() - correct[0].mean())
    assert f"<b>{difference:+.2f}</b>" in cells
    assert "10 Training labels are incorrect" in page
    assert "batch_size = 16" in page
    assert all(f"<td>{name}</td>" in page for name in EMOTIONS)


def test_images_on_which_two_runs_differ(runs, tmp_path):
    out = ("--out", tmp_path / "page.html")
    both = (runs / "one", runs / "<two>", "--data", runs / "images.csv", *out)
    run(report, *both, "--figure", tmp_path / "differ.png")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    tables = [pd.read_csv(runs / name / "predictions.csv") for name in ("one", "<two>")]
    correct = [t["label"] == t["predicted"] for t in tables]
    differ = [
        split
        for split, part in tables[0].groupby("split")
        if (correct[0] ^ correct[1])[part.index].any()
    ]
    assert differ
    assert page.count("only &lt;two&gt; predicts correctly") == len(differ)
    figures = re.findall(r'predicts correctly"\s+src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(figures[-1]) == (tmp_path / "differ.png").read_bytes()
    other = write_csv(synthetic_dataset(training=6, public=3, private=3), tmp_path / "other.csv")
    with pytest.raises(DataError, match="does not have the images and labels that one and\\s<two>"):
        run(report, runs / "one", runs / "<two>", "--data", other, *out)


def test_images_are_shown_with_the_labels_of_the_evaluation(tmp_path):
    dataset = synthetic_dataset(training=1, public=1, private=1)
    votes = np.zeros((len(dataset), 10), int)
    votes[:, 7] = 10  # contempt for all images
    ferplus = with_ferplus_labels(dataset, write_votes(tmp_path / "v.csv", dataset, votes))
    rows = pd.DataFrame({"index": [0, 1], "label": "contempt"})
    rows["predicted_a"], rows["predicted_b"] = ["contempt", "sad"], "sad"
    pair = {"one": "a", "other": "b", "split": "Training", "rows": rows}
    assert report_pairs.plot_pair(pair, ferplus).startswith(b"\x89PNG")
    with pytest.raises(DataError, match="for FER\\+ labels the same --ferplus"):
        report_pairs.plot_pair(pair, dataset)


def test_better_and_worse_are_those_of_the_second_run():
    def result(name, predicted):
        rows = {"index": range(4), "split": "PublicTest", "label": "a", "predicted": predicted}
        return {"name": name, "path": name, "predictions": pd.DataFrame(rows)}

    (pair,) = report_pairs.compare_runs(result("one", list("abbb")), result("other", list("baab")))
    assert (pair["better"], pair["worse"]) == (2, 1)
    assert pair["difference"] == pytest.approx(25)
    assert pair["agreement"] == pytest.approx(0.25)


def test_runs_with_other_classes_are_compared(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("angry", "happy"):  # two of FER2013's, so that --class_names is required
        (tmp_path / "images/train" / name).mkdir(parents=True)
        for i in range(20):
            image = rng.integers(0, 256, (48, 48)).astype(np.uint8)
            cv2.imwrite(str(tmp_path / f"images/train/{name}/{i}.png"), image)
    argv = ("--data", tmp_path / "images", "--class_names", "happy", "angry", "--no_landmarks")
    argv += ("--gpu_ids", "-1", "--width", 0.1, "--batch_size", 16, "--total_epoch", 1)
    for seed in range(2):
        run(train, *argv, "--seed", seed, "--out", tmp_path / str(seed))
    both = (tmp_path / "0", tmp_path / "1")
    run(report, *both, "--data", tmp_path / "images", "--out", tmp_path / "page.html")
    assert "<td>happy</td>" in (tmp_path / "page.html").read_text()


def test_class_names_in_relabels_are_text(runs, tmp_path):
    shutil.copytree(runs / "one", tmp_path / "run")
    (tmp_path / "run/relabels.csv").write_text("row,from,to,epoch\n3,0,NA,2\n")
    moves = report.describe_run(RunFolder(tmp_path / "run"), "a")["relabels"]
    assert moves.to_numpy().tolist() == [[3, "0", "NA"]]


def test_relabels_of_one_epoch_fill_three_rows():
    relabels = [(i % 5, 0, 1, 7) for i in range(40)]
    figure = plot_relabeled(relabels, np.zeros((5, 8, 8), np.uint8), ("a", "b"), "t")
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles == ["t: relabeled in epoch 7", *["relabeled in epoch 7"] * 2]
    few = plot_relabeled(relabels[:3], np.zeros((5, 8, 8), np.uint8), ("a", "b"), "t")
    assert len(few.subfigs) == 1


def test_the_figure_of_disagreements():
    images = np.zeros((3, 8, 8), np.uint8)
    predictions = {"off": ["b", "b", "a"], "on": ["a", "c", "a"]}
    figure = plot_disagreements(images, ["a", "b", "a"], predictions, "t")
    frames = [axes.spines["left"].get_edgecolor() for axes in figure.axes]
    assert [to_hex(frame) for frame in frames] == [RED, BLUE, BLUE, BLUE, RED, BLUE]
    assert [axes.get_xlabel() for axes in figure.axes] == ["b", "b", "a", "a", "c", "a"]
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "a", "", "", ""]


def test_relabel_agreement_by_hand(tmp_path):
    dataset = synthetic_dataset(training=1, public=1, private=1)  # an image per class and split
    majority = list(dataset.labels)
    majority[1:5] = [0, 0, 7, -1]  # instead of disgust, fear, happy, sad
    columns = [4, 5, 6, 1, 3, 2, 0, 7, 8]  # of the file, in the order of CLASSES, then "unknown"
    votes = np.zeros((len(dataset), 10), int)
    votes[np.arange(len(dataset)), [columns[k] for k in majority]] = 10
    path = write_votes(tmp_path / "votes.csv", dataset, votes)
    dataset = with_human_labels(dataset, path)
    relabels = pd.DataFrame(
        [
            (1, "disgust", "fear"),
            (2, "fear", "neutral"),
            (1, "fear", "angry"),
            (3, "happy", "sad"),
            (4, "sad", "fear"),
            (5, "surprise", "happy"),
        ],
        columns=("row", "from", "to"),
    )
    described = {"name": "a", "relabels": relabels, "options": {}}
    # Rows 1, 2 and 5 count: 1 ends at the majority, 2 does not, 5 leaves it.
    scores = report.relabel_agreement(described, dataset)
    assert scores.pop("human_relabel_by_class")["fear"] == {
        "n": 1,
        "new": 0,
        "old": 0,
        "neither": 1,
    }
    assert scores == {
        **{"human_relabel_n": 3, "human_relabel_new": pytest.approx(1 / 3)},
        **{
            "human_relabel_old": pytest.approx(1 / 3),
            "human_relabel_neither": pytest.approx(1 / 3),
        },
    }
    on_ferplus = described | {"options": {"ferplus": "v.csv"}}
    assert report.relabel_agreement(on_ferplus, dataset) == {}
    without = described | {"relabels": relabels[:0]}
    assert report.relabel_agreement(without, dataset) == {}
    for others in (relabels.assign(row=relabels["row"] + 1), relabels.assign(row=10**6)):
        with pytest.raises(DataError, match="does not have the images that a relabeled"):
            report.relabel_agreement(described | {"relabels": others}, dataset)


def test_a_page_with_ferplus(runs, tmp_path):
    data = ("--data", runs / "images.csv")
    dataset = synthetic_dataset(training=7, public=3, private=3)
    votes = np.zeros((len(dataset), 10), int)
    votes[:, 4] = 10  # angry for all images
    path = write_votes(tmp_path / "votes.csv", dataset, votes)
    out = ("--out", tmp_path / "page.html")
    run(report, runs / "one", *data, "--ferplus_test", path, *out)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    table = pd.read_csv(runs / "one/predictions.csv")
    shares = [100 * (part["predicted"] == "angry").mean() for _, part in table.groupby("split")]
    header = page[page.index("Human agreement (%)") :]
    assert all(f"<td>{share:.2f}</td>" in header for share in shares)
    assert "Relabeled images, by old label" in page
    for option in ("--ferplus", "--ferplus_test"):
        with pytest.raises(OptionError, match="give --data, too"):
            run(report, runs / "one", option, path, *out)
    with pytest.raises(OptionError, match="Leave one of them out"):
        run(report, runs / "one", *data, "--ferplus", path, "--ferplus_test", path, *out)
    run(report, runs / "one", *out)
    assert "Human agreement" not in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_wilson_interval_by_hand():
    rows = pd.DataFrame({"label": ["a"] * 100, "predicted": ["a"] * 60 + ["b"] * 40})
    interval = report.describe_split(
        "PublicTest", dict.fromkeys(report.REQUIRED) | {"n": 100}, rows
    )
    # Wilson: (p + z^2/2n +- z sqrt(p q/n + z^2/4n^2)) / (1 + z^2/n) with z = 1.96
    assert interval["low"] == pytest.approx(0.5020, abs=1e-4)
    assert interval["high"] == pytest.approx(0.6906, abs=1e-4)


def test_errors(runs, tmp_path):
    out = ("--out", tmp_path / "page.html")
    with pytest.raises(OptionError, match="give the folder"):
        run(report)
    with pytest.raises(OptionError, match="twice"):
        run(report, runs / "one", runs / "one")
    with pytest.raises(OptionError, match="two runs and --data"):
        run(report, runs / "one", "--figure", tmp_path / "differ.png")
    shutil.copytree(runs / "one", tmp_path / "one")  # of the same name
    alike = (runs / "one", tmp_path / "one", "--data", runs / "images.csv")
    with pytest.raises(DataError, match=r"correct on the same images, so .*differ\.png is not"):
        run(report, *alike, "--figure", tmp_path / "differ.png", *out)
    assert "<html" in (tmp_path / "page.html").read_text()
    (tmp_path / "page.html").unlink()
    with pytest.raises(RunError, match="the run is not finished"):
        run(report, tmp_path, *out)
    shutil.copytree(runs / "one", tmp_path / "cut")
    table = (tmp_path / "cut/predictions.csv").read_text().splitlines()
    (tmp_path / "cut/predictions.csv").write_text("\n".join(table[:-5]))
    with pytest.raises(RunError, match="are inconsistent"):
        run(report, tmp_path / "cut", *out)
    for name, text in (
        ("metrics.json", '{"PublicTest": 5}'),
        ("metrics.json", '{"PublicTest": {"n": 21}}'),
        ("metrics.json", "{}"),
        ("config.json", '{"options": 5}'),
    ):
        shutil.copytree(runs / "one", tmp_path / "damaged", dirs_exist_ok=True)
        (tmp_path / "damaged" / name).write_text(text)
        with pytest.raises(RunError, match="are inconsistent"):
            run(report, tmp_path / "damaged", *out)
    with pytest.raises(OptionError, match="twice"):
        run(report, runs / "one", runs / "<two>/../one")
    shutil.copytree(runs / "one", tmp_path / "other")
    moved = pd.read_csv(tmp_path / "other/predictions.csv")
    moved["index"] += 1000
    moved.to_csv(tmp_path / "other/predictions.csv", index=False)
    with pytest.raises(DataError, match="share no labeled image"):
        run(report, runs / "one", tmp_path / "other", *out)
    relabeled = pd.read_csv(runs / "one/predictions.csv")
    relabeled.loc[3, "label"] = "sad" if relabeled.loc[3, "label"] != "sad" else "fear"
    relabeled.to_csv(tmp_path / "other/predictions.csv", index=False)
    with pytest.raises(DataError, match="different images or labels"):
        run(report, runs / "one", tmp_path / "other", *out)
    assert not (tmp_path / "page.html").exists()


def test_reliability_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.6, 0.4]])
    labels = np.array([0, 1, 1, 0])
    rows = reliability(labels, probabilities)
    expected = [(0.6, 1.0, 1), (0.65, 1.0, 1), (0.9, 0.5, 2)]
    np.testing.assert_allclose(rows, expected)
    error = (0.4 + 0.35 + 2 * 0.4) / 4
    assert expected_calibration_error(labels, probabilities) == pytest.approx(error)


def test_figures_do_not_need_a_notebook(tmp_path):
    # A notebook sets this for all processes that it starts, also if its package is not installed.
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    code = (
        "import sys\n"
        "from utils.figures import save_figure\n"
        "from utils.plots import plot_reliability\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"save_figure(plot_reliability([(0.5, 0.5, 1)], 0.0, 't'), {str(tmp_path / 'a.png')!r})\n"
    )
    command = [sys.executable, "-c", code]
    subprocess.run(command, env=os.environ | backend, cwd=ROOT, check=True)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_figures_leave_the_global_style_unchanged(tmp_path):
    before = dict(rcParams)
    figure = plot_confusion_matrix(np.eye(2, dtype=int), ("a", "b"), "t")
    save_figure(figure, tmp_path / "a.png")
    with figure_style():
        families = list(rcParams["font.family"])
    assert dict(rcParams) == before
    assert families[0] == "DejaVu Sans"  # Matplotlib's own
    for name in families:
        assert findfont(name, fallback_to_default=False)
    assert figure.axes[0].title.get_fontfamily() == families


def history(**columns):
    rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
    shared = {"train_accuracy": 0.5, "public_accuracy": 0.5}
    return [
        {"epoch": i, **shared, **{k: v for k, v in row.items() if v is not None}}
        for i, row in enumerate(rows, 1)
    ]


def curves(rows):
    lines = plot_learning_curves(rows, "t").axes[0].lines
    return {line.get_label(): line.get_ydata().tolist() for line in lines}


def test_a_loss_of_some_epochs_only_is_plotted():
    rows = history(loss_a=[2, 1, 1], loss_b=[1, 1, None], loss_c=[None, 3, 3])
    expected = {"a": [2, 1, 1], "b": [1, 1, np.nan], "c": [np.nan, 3, 3]}
    np.testing.assert_equal(curves(rows), expected)


def test_the_logarithmic_axis_has_no_isolated_points():
    # A rank loss is often 0 after the first epoch, and rises for single epochs.
    rows = history(loss_a=[2, 1, 1, 1, 1], loss_rank=[0.1, 0, 0.01, 1e-5, 0])
    assert list(curves(rows)) == ["a"]
    rows = history(loss_a=[2, 1, 1, 1, 1], loss_rank=[0.1, 0.2, 0, 0.01, 0])
    np.testing.assert_equal(curves(rows)["rank"], [0.1, 0.2, np.nan, np.nan, np.nan])
    assert curves(history(loss_a=[2])) == {"a": [2]}  # a run of one epoch


def test_axes_are_labeled_with_units():
    def labels(figure):
        return [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]

    rows = history(loss_a=[2, 1])
    expected = [("Epoch", "Loss terms"), ("Epoch", "Accuracy (%)")]
    assert labels(plot_learning_curves(rows, "t")) == expected
    figure = plot_confusion_matrix(np.eye(2, dtype=int), ("a", "b"), "t")
    assert labels(figure) == [("Predicted class", "True class")]
    figure = plot_reliability([(0.5, 0.5, 1)], 0.0, "t")
    assert labels(figure) == [("", "Accuracy (%)"), ("Confidence (%)", "Images")]
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "Perfect calibration"
    figure = plot_importance_by_class({"a": np.array([0.1, 0.2])}, "t")
    assert figure.axes[-1].get_xlabel() == "Importance"
    probabilities = np.full((2, 2), 0.5)
    figure = plot_expressions_over_time({"face 0": (np.arange(3.0), probabilities)}, "ab", "t")
    assert labels(figure) == [("Time (s)", "Probability (%)")]
