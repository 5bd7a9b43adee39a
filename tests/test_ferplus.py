"""FER+: votes, majorities and shares by hand, and a run on them."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kills import write_csv

import test
import train
from data.dataset import EMOTIONS, UNLABELED
from data.ferplus import CLASSES, vote_distributions, with_ferplus_labels
from data.source import find_source
from data.synthetic.generate import synthetic_dataset
from models.losses import weighted_cross_entropy
from utils.errors import DataError, OptionError

REAL = Path(__file__).resolve().parents[2] / "shared/fer2013"
HEADER = (
    "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
)
TINY = ("--gpu_ids", "-1", "--width", "0.1", "--image_width", "32", "--batch_size", "16")


def write_votes(path, faces, votes):
    """Write votes [N, 10], in the file's own order of columns."""
    rows = [
        f"{u},f{i}.png,{','.join(map(str, v))}" for i, (u, v) in enumerate(zip(faces.split, votes))
    ]
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def faces():
    return synthetic_dataset(training=7, public=3, private=3)


def some(faces, n):
    return faces.select(np.arange(n))


def test_majorities_by_hand(faces, tmp_path):
    cases = {  # neutral happy surprise sad anger disgust fear contempt unknown NF
        (6, 1, 1, 0, 0, 0, 0, 0, 2, 0): "neutral",  # 6 of 8, the single votes dropped
        (4, 0, 0, 1, 3, 2, 0, 0, 0, 0): None,  # 4 of 9 is no majority
        (5, 5, 0, 0, 0, 0, 0, 0, 0, 0): None,  # a tie
        (0, 0, 0, 0, 0, 0, 0, 7, 3, 0): "contempt",
        (0, 1, 1, 1, 0, 0, 0, 0, 6, 1): None,  # unknown
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 10): None,  # not a face
        (1, 1, 1, 1, 1, 1, 1, 1, 1, 1): None,
        (0, 0, 0, 0, 0, 0, 2, 1, 1, 1): "fear",
        (0, 0, 0, 0, 0, 10, 0, 0, 0, 0): "disgust",
        (0, 10, 0, 0, 0, 0, 0, 0, 0, 0): "happy",
        (0, 0, 10, 0, 0, 0, 0, 0, 0, 0): "surprise",
        (0, 0, 0, 10, 0, 0, 0, 0, 0, 0): "sad",
        (0, 0, 0, 0, 10, 0, 0, 0, 0, 0): "angry",
    }
    some_faces = some(faces, len(cases))
    labelled = with_ferplus_labels(
        some_faces, write_votes(tmp_path / "v.csv", some_faces, list(cases))
    )
    names = [None if label == UNLABELED else CLASSES[label] for label in labelled.labels]
    assert names == list(cases.values())
    assert labelled.class_names == (*EMOTIONS, "contempt")
    assert labelled.votes.shape == (13, 10)
    assert (labelled.votes.sum(1) == [sum(votes) for votes in cases]).all()
    assert "FER+" in labelled.source


def test_shares_by_hand():
    votes = np.array(
        [
            # angry disgust fear happy sad surprise neutral contempt unknown NF
            [4, 0, 0, 0, 1, 0, 4, 0, 1, 0],
            [0, 0, 0, 10, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0, 0, 8, 0],
        ]
    )
    expected = [[0.5, 0, 0, 0, 0, 0, 0.5, 0], [0, 0, 0, 1, 0, 0, 0, 0], [0] * 8]
    np.testing.assert_allclose(vote_distributions(votes), expected)


def test_the_loss_of_shares_is_the_mean_of_the_labels_losses():
    logits, a = torch.randn(3, 8), torch.rand(3, 1)
    shares = torch.zeros(3, 8)
    shares[:, 2], shares[:, 5] = 0.25, 0.75
    by_label = [weighted_cross_entropy(logits, a, torch.full((3,), k)) for k in (2, 5)]
    by_shares = weighted_cross_entropy(logits, a, shares)
    torch.testing.assert_close(by_shares, 0.25 * by_label[0] + 0.75 * by_label[1])


def test_faces_in_another_order_are_refused(tmp_path):
    faces = synthetic_dataset(training=20, public=1, private=1)
    column = np.array([4, 5, 6, 1, 3, 2, 0])  # of each of FER2013's classes
    votes = 10 * np.eye(10, dtype=int)[column[faces.labels]]
    path = write_votes(tmp_path / "v.csv", faces, votes)
    assert (with_ferplus_labels(faces, path).labels == faces.labels).all()
    order = np.random.default_rng(0).permutation(len(faces))
    moved = replace(faces.select(order), split=faces.split)
    with pytest.raises(DataError, match="in another order"):
        with_ferplus_labels(moved, path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda text: text.replace("NF", "nothing"),
            "it lacks the columns NF",
        ),
        (lambda text: "\n".join(text.split("\n")[:-5]), "belongs to the whole fer2013.csv"),
        (lambda text: text.replace("PublicTest", "PrivateTest", 1), "its own order and usages"),
        (lambda text: text.replace("f3.png,0", "f3.png,0.5", 1), "no whole number"),
        (lambda text: "", "cannot be read as FER"),
    ],
)
def test_another_file_is_refused(faces, tmp_path, spoil, words):
    votes = np.zeros((len(faces), 10), int)
    path = write_votes(tmp_path / "v.csv", faces, votes)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(DataError, match=words):
        with_ferplus_labels(faces, path)
    with pytest.raises(DataError, match=r"github\.com/microsoft/FERPlus"):
        with_ferplus_labels(faces, tmp_path / "none.csv")


def test_weights_of_one_s_own_classes_may_have_ferplus_s_names(faces, tmp_path):
    eight = replace(faces, labels=np.arange(len(faces)) % 8)
    source = find_source(str(write_csv(eight, tmp_path / "eight.csv")))
    own = SimpleNamespace(class_names=CLASSES, options={}, image_width=32, channels=1)
    read = test.load_dataset_for(own, source)
    assert read.class_names == CLASSES
    assert (read.labels == eight.labels).all()
    source = find_source(str(write_csv(faces, tmp_path / "seven.csv")))
    own.options["ferplus"] = "votes.csv"  # the eighth comes with the votes
    assert test.load_dataset_for(own, source).class_names == EMOTIONS


def run(script, *argv):
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", [script.__file__, *map(str, argv)])
        script.main()


@pytest.fixture(scope="module")
def votes_csv(faces, tmp_path_factory):
    """Votes that mostly agree with the label; contempt too, and some faces of which nobody knew."""
    rng = np.random.default_rng(0)
    ferplus = [6, 3, 5, 4, 0, 1, 2, 7]  # the columns of the file by CLASSES
    column = {name: ferplus.index(i) for i, name in enumerate(CLASSES)}
    order = ["neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt"]
    assert all(order[column[name]] == name for name in CLASSES)
    votes = np.zeros((len(faces), 10), int)
    for i, label in enumerate(faces.labels):
        name = "contempt" if i % 9 == 0 else EMOTIONS[label]
        votes[i, column[name]] = 7
        votes[i, rng.integers(0, 8)] += 3
    votes[5::11] = [0] * 8 + [10, 0]
    return write_votes(tmp_path_factory.mktemp("votes") / "fer2013new.csv", faces, votes)


@pytest.mark.parametrize("target", ["majority", "distribution"])
def test_a_run_on_votes(faces, votes_csv, tmp_path, target, capsys):
    csv_path = write_csv(faces, tmp_path / "faces.csv")
    argv = ("--data", csv_path, "--ferplus", votes_csv, "--no_landmarks")
    more = (
        "--ferplus_target",
        target,
        "--total_epoch",
        2,
        "--relabel_epoch",
        1,
        "--margin_2",
        0.01,
    )
    run(train, *argv, *TINY, *more, "--out", tmp_path / "r")
    told = capsys.readouterr().out
    assert "with FER+ labels" in told
    assert ("relabel  never" in told) == (target == "distribution")
    scores = json.loads((tmp_path / "r/metrics.json").read_text())
    expected = with_ferplus_labels(faces, votes_csv)
    labelled = (expected.labels != UNLABELED) & (expected.split == "PrivateTest")
    assert scores["PrivateTest"]["n"] == labelled.sum() < 21
    assert scores["PrivateTest"]["labels"] == "FER+"
    with open(tmp_path / "r/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert "contempt" in rows[0]
    assert any(row["label"] == "" for row in rows)  # read all the same
    with open(tmp_path / "r/metrics.csv", newline="") as file:
        moved = sum(int(row["relabeled"]) for row in csv.DictReader(file))
    assert (moved > 0) == (target == "majority")
    weights = ("--model_path", tmp_path / "r/best.pth")
    run(test, *weights, *argv, "--out", tmp_path / "t", "--gpu_ids", "-1")
    assert json.loads((tmp_path / "t/metrics.json").read_text()) == scores
    with pytest.raises(DataError, match="Those are FER\\+ labels: give --ferplus"):
        run(test, *weights, "--data", csv_path, "--no_landmarks", "--out", tmp_path / "x")


def test_options_that_contradict(faces, votes_csv, tmp_path):
    csv_path = write_csv(faces, tmp_path / "faces.csv")
    with pytest.raises(OptionError, match="needs the votes"):
        run(train, "--data", csv_path, "--ferplus_target", "distribution")
    with pytest.raises(OptionError, match="classes of its own"):
        run(train, "--data", csv_path, "--ferplus", votes_csv, "--class_names", "a", "b")


@pytest.mark.skipif(not (REAL / "fer2013new.csv").exists(), reason="the real FER+ is not here")
def test_the_real_votes():
    with open(REAL / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    n = len(rows)
    faces = replace(
        synthetic_dataset(training=1, public=0, private=0),
        images=np.zeros((n, 1, 1), np.uint8),
        labels=np.array([int(row["emotion"]) for row in rows]),
        split=np.array([row["Usage"] for row in rows]),
        landmarks=None,
    )
    labelled = with_ferplus_labels(faces, REAL / "fer2013new.csv")
    known = labelled.labels != UNLABELED
    assert 0.8 < known.mean() < 0.95
    agree = (labelled.labels == faces.labels)[known].mean()
    assert 0.6 < agree < 0.8  # FER2013's own labels are noisy
