"""tools.report.py: one page, whole in itself, with the numbers of its runs."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from kills import write_csv
from matplotlib.colors import to_hex
from test_ferplus import write_votes

import train
from data.dataset import EMOTIONS
from data.ferplus import with_ferplus_labels
from data.synthetic.generate import synthetic_dataset
from tools import report
from utils.errors import DataError, OptionError, RunError
from utils.image_grids import BLUE, RED, plot_disagreements, plot_learning_curves, plot_relabeled
from utils.metrics import expected_calibration_error, reliability
from utils.run_folder import RunFolder


def run(script, *argv):
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", [script.__file__, *map(str, argv)])
        script.main()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    faces = synthetic_dataset(training=7, public=3, private=3)
    csv = write_csv(faces, folder / "faces.csv")
    argv = (
        "--data",
        csv,
        "--gpu_ids",
        "-1",
        "--width",
        0.1,
        "--image_width",
        32,
        "--batch_size",
        16,
    )
    argv += ("--total_epoch", 2, "--relabel_epoch", 1, "--margin_2", 0, "--no_landmarks")
    run(train, *argv, "--out", folder / "one")
    run(train, *argv, "--seed", 1, "--label_noise", 0.2, "--out", folder / "<two>")
    return folder


def test_a_page_of_two_runs(runs, tmp_path):
    run(report, runs / "one", runs / "<two>", "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<two>" not in page  # the name is text, not HTML
    assert "&lt;two&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing from elsewhere
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 12  # curves, matrix, reliability, two of importance, relabels; twice
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    scores = json.loads((runs / "one/metrics.json").read_text())
    cells = re.findall(r"<td>(.*?)</td>", page)
    shown = f"<b>{100 * scores['PrivateTest']['accuracy']:.2f}</b>"
    assert shown in cells
    constant_tables = [pd.read_csv(runs / name / "predictions.csv") for name in ("one", "<two>")]
    right = [(t["label"] == t["predicted"])[t["usage"] == "PrivateTest"] for t in constant_tables]
    difference = 100 * (right[1].mean() - right[0].mean())
    assert f"<b>{difference:+.2f}</b>" in cells
    assert "Of 10 labels that were made wrong" in page
    assert "batch_size = 16" in page
    assert all(f"<td>{name}</td>" in page for name in EMOTIONS)


def test_faces_that_two_runs_read_otherwise(runs, tmp_path):
    out = ("--out", tmp_path / "page.html")
    both = (runs / "one", runs / "<two>", "--data", runs / "faces.csv", *out)
    run(report, *both, "--picture", tmp_path / "faces.png")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    constant_tables = [pd.read_csv(runs / name / "predictions.csv") for name in ("one", "<two>")]
    right = [t["label"] == t["predicted"] for t in constant_tables]
    differ = [
        split
        for split, part in constant_tables[0].groupby("usage")
        if (right[0] ^ right[1])[part.index].any()
    ]
    assert differ
    assert page.count("&lt;two&gt; on the same faces") == len(differ)
    pictures = re.findall(r'on the same faces"\s+src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(pictures[-1]) == (tmp_path / "faces.png").read_bytes()
    other = write_csv(synthetic_dataset(training=6, public=3, private=3), tmp_path / "other.csv")
    with pytest.raises(DataError, match="has not the faces and labels by which one and <two>"):
        run(report, runs / "one", runs / "<two>", "--data", other, *out)


def test_faces_are_pictured_by_the_labels_that_judged_them(tmp_path):
    faces = synthetic_dataset(training=1, public=1, private=1)
    votes = np.zeros((len(faces), 10), int)
    votes[:, 7] = 10  # contempt, all of them
    judge = with_ferplus_labels(faces, write_votes(tmp_path / "v.csv", faces, votes))
    rows = pd.DataFrame({"index": [0, 1], "label": "contempt"})
    rows["predicted_a"], rows["predicted_b"] = ["contempt", "sad"], "sad"
    pair = {"one": "a", "other": "b", "usage": "Training", "rows": rows}
    assert report.plot_pair(pair, faces, judge).startswith(b"\x89PNG")
    with pytest.raises(DataError, match="for FER\\+ labels the --ferplus"):
        report.plot_pair(pair, faces)


def test_runs_of_other_classes_find_their_faces(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("angry", "happy"):  # two of FER2013's, so that they must be named
        (tmp_path / "faces/train" / name).mkdir(parents=True)
        for i in range(20):
            face = rng.integers(0, 256, (48, 48)).astype(np.uint8)
            cv2.imwrite(str(tmp_path / f"faces/train/{name}/{i}.png"), face)
    argv = ("--data", tmp_path / "faces", "--class_names", "happy", "angry", "--no_landmarks")
    argv += ("--gpu_ids", "-1", "--width", 0.1, "--batch_size", 16, "--total_epoch", 1)
    for seed in range(2):
        run(train, *argv, "--seed", seed, "--out", tmp_path / str(seed))
    both = (tmp_path / "0", tmp_path / "1")
    run(report, *both, "--data", tmp_path / "faces", "--out", tmp_path / "page.html")
    assert "<td>happy</td>" in (tmp_path / "page.html").read_text()


def test_classes_in_relabels_are_words_whatever_they_look_like(runs, tmp_path):
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


def test_the_picture_of_two_readings():
    images = np.zeros((3, 8, 8), np.uint8)
    readings = {"off": ["b", "b", "a"], "on": ["a", "c", "a"]}
    figure = plot_disagreements(images, ["a", "b", "a"], readings, "t")
    frames = [axes.spines["left"].get_edgecolor() for axes in figure.axes]
    assert [to_hex(frame) for frame in frames] == [RED, BLUE, BLUE, BLUE, RED, BLUE]
    assert [axes.get_xlabel() for axes in figure.axes] == ["b", "b", "a", "a", "c", "a"]
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "a", "", "", ""]


def test_ferplus_as_the_judge_by_hand(tmp_path):
    faces = synthetic_dataset(training=1, public=1, private=1)  # a face of each class, three times
    majority = list(faces.labels)
    majority[1:5] = [
        0,
        0,
        7,
        -1,
    ]  # not disgust, fear, happy, sad
    columns = [4, 5, 6, 1, 3, 2, 0, 7, 8]  # of the file, by CLASSES, then "unknown"
    votes = np.zeros((len(faces), 10), int)
    votes[np.arange(len(faces)), [columns[k] for k in majority]] = 10
    judge = with_ferplus_labels(faces, write_votes(tmp_path / "votes.csv", faces, votes))
    moves = pd.DataFrame(
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
    told = {"name": "a", "relabels": moves, "options": {}}
    # Counted are rows 0, 1, 2, 5, 6: 1 came to the majority at last, 2 did not, 5 left it.
    assert report.relabel_agreement(told, faces, judge) == {
        **{"noisy": 2, "relabeled": 3, "relabel_precision": pytest.approx(1 / 3)},
        **{"relabel_harm": pytest.approx(1 / 3), "relabel_recall": 0.5},
    }
    assert report.relabel_agreement(told | {"options": {"ferplus": "v.csv"}}, faces, judge) == {}
    assert report.relabel_agreement(told | {"relabels": moves[:0]}, faces, judge) == {}
    for others in (moves.assign(row=moves["row"] + 1), moves.assign(row=10**6)):
        with pytest.raises(DataError, match="has not the faces that a relabeled"):
            report.relabel_agreement(told | {"relabels": others}, faces, judge)


def test_a_page_with_ferplus(runs, tmp_path):
    data = ("--data", runs / "faces.csv")
    faces = synthetic_dataset(training=7, public=3, private=3)
    votes = np.zeros((len(faces), 10), int)
    votes[:, 4] = 10  # all are angry
    path = write_votes(tmp_path / "votes.csv", faces, votes)
    run(report, runs / "one", *data, "--ferplus", path, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "it contradicts 42 of the" in page
    with pytest.raises(OptionError, match="name the faces too"):
        run(report, runs / "one", "--ferplus", path, "--out", tmp_path / "page.html")


def test_the_interval_by_hand():
    rows = pd.DataFrame({"label": ["a"] * 100, "predicted": ["a"] * 60 + ["b"] * 40})
    interval = report.usage_of("PublicTest", dict.fromkeys(report.SHOWN) | {"n": 100}, rows)
    # Wilson: (p + z^2/2n +- z sqrt(p q/n + z^2/4n^2)) / (1 + z^2/n) with z = 1.96
    assert interval["low"] == pytest.approx(0.5020, abs=1e-4)
    assert interval["high"] == pytest.approx(0.6906, abs=1e-4)


def test_mistakes(runs, tmp_path):
    out = ("--out", tmp_path / "page.html")
    with pytest.raises(OptionError, match="name the folder"):
        run(report)
    with pytest.raises(OptionError, match="twice"):
        run(report, runs / "one", runs / "one")
    with pytest.raises(OptionError, match="two runs and --data"):
        run(report, runs / "one", "--picture", tmp_path / "faces.png")
    shutil.copytree(runs / "one", tmp_path / "one")  # and of the same name
    alike = (runs / "one", tmp_path / "one", "--data", runs / "faces.csv")
    with pytest.raises(DataError, match=r"read the same faces right: .*faces\.png is not drawn"):
        run(report, *alike, "--picture", tmp_path / "faces.png", *out)
    assert "<html" in (tmp_path / "page.html").read_text()  # which there is, all the same
    (tmp_path / "page.html").unlink()
    with pytest.raises(RunError, match="no finished run"):
        run(report, tmp_path, *out)
    shutil.copytree(runs / "one", tmp_path / "cut")
    table = (tmp_path / "cut/predictions.csv").read_text().splitlines()
    (tmp_path / "cut/predictions.csv").write_text("\n".join(table[:-5]))
    with pytest.raises(RunError, match="do not fit its run"):
        run(report, tmp_path / "cut", *out)
    for name, text in (
        ("metrics.json", '{"PublicTest": 5}'),
        ("metrics.json", '{"PublicTest": {"n": 21}}'),
        ("metrics.json", "{}"),
        ("config.json", '{"options": 5}'),
    ):
        shutil.copytree(runs / "one", tmp_path / "damaged", dirs_exist_ok=True)
        (tmp_path / "damaged" / name).write_text(text)
        with pytest.raises(RunError, match="do not fit its run"):
            run(report, tmp_path / "damaged", *out)
    with pytest.raises(OptionError, match="twice"):
        run(report, runs / "one", runs / "<two>/../one")
    shutil.copytree(runs / "one", tmp_path / "other")
    moved = pd.read_csv(tmp_path / "other/predictions.csv")
    moved["index"] += 1000
    moved.to_csv(tmp_path / "other/predictions.csv", index=False)
    with pytest.raises(DataError, match="no labelled face in common"):
        run(report, runs / "one", tmp_path / "other", *out)
    relabel_agreement = pd.read_csv(runs / "one/predictions.csv")
    relabel_agreement.loc[3, "label"] = (
        "sad" if relabel_agreement.loc[3, "label"] != "sad" else "fear"
    )
    relabel_agreement.to_csv(tmp_path / "other/predictions.csv", index=False)
    with pytest.raises(DataError, match="other faces or labels"):
        run(report, runs / "one", tmp_path / "other", *out)
    assert not (tmp_path / "page.html").exists()


def test_reliability_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.6, 0.4]])
    labels = np.array([0, 1, 1, 0])
    rows = reliability(labels, probabilities, bins=5)
    expected = [(0.6, 1.0, 1), (0.65, 1.0, 1), (0.9, 0.5, 2)]
    np.testing.assert_allclose(rows, expected)
    error = (0.4 + 0.35 + 2 * 0.4) / 4
    assert expected_calibration_error(labels, probabilities, bins=5) == pytest.approx(error)


def test_figures_need_no_notebook():
    # Which asks for this in all that it starts, also where its package is not.
    asked = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command = [sys.executable, "-c", "import utils.plots"]
    subprocess.run(command, env=os.environ | asked, cwd=Path(report.__file__).parent, check=True)


def test_a_loss_of_some_epochs_is_drawn_there():
    first = {"epoch": 1, "loss_a": 2.0, "loss_b": 1.0, "train_accuracy": 0.5}
    second = {"epoch": 2, "loss_a": 1.0, "loss_c": 3.0, "train_accuracy": 0.6}
    figure = plot_learning_curves([row | {"public_accuracy": 0.5} for row in (first, second)], "t")
    lines = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines}
    np.testing.assert_equal(lines, {"a": [2, 1], "b": [1, np.nan], "c": [np.nan, 3]})
