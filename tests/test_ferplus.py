"""FER+: majorities and distributions of votes, invalid files, and runs with them."""

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
from votes import write_votes

import test
import train
from data.dataset import EMOTIONS, UNLABELED, FaceDataset
from data.ferplus import (
    CLASSES,
    training_targets,
    vote_distributions,
    with_ferplus_labels,
    with_human_labels,
)
from data.source import find_source
from data.synthetic.generate import synthetic_dataset
from engine.evaluate import load_dataset_for
from models.losses import weighted_cross_entropy
from utils.errors import DataError, OptionError
from utils.metrics import human_agreement

REAL = Path(__file__).resolve().parents[2] / "shared/fer2013"
TINY = ("--gpu_ids", "-1", "--width", "0.1", "--image_width", "32", "--batch_size", "16")


@pytest.fixture(scope="module")
def dataset():
    return synthetic_dataset(training=7, public=3, private=3)


def test_label_is_the_majority_of_the_votes(dataset, tmp_path):
    cases = {  # neutral happy surprise sad anger disgust fear contempt unknown NF
        (6, 1, 1, 0, 0, 0, 0, 0, 2, 0): "neutral",  # 6 of 8, without the single votes
        (4, 0, 0, 1, 3, 2, 0, 0, 0, 0): None,  # 4 of 9 is not a majority
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
    part = dataset.select(np.arange(len(cases)))
    labeled = with_ferplus_labels(part, write_votes(tmp_path / "v.csv", part, list(cases)))
    names = [None if label == UNLABELED else CLASSES[label] for label in labeled.labels]
    assert names == list(cases.values())
    assert labeled.class_names == (*EMOTIONS, "contempt")
    assert labeled.votes.shape == (13, 10)
    assert (labeled.votes.sum(1) == [sum(votes) for votes in cases]).all()
    assert "FER+" in labeled.source


def test_distributions_ignore_single_votes():
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
    labels, split = np.array([0, 3, UNLABELED]), np.full(3, "Training")
    part = FaceDataset(np.zeros((3, 48, 48), np.uint8), labels, split, CLASSES, votes=votes)
    assert training_targets(part, "majority") is None
    np.testing.assert_allclose(training_targets(part, "distribution"), expected)
    expected = [[0.75, 0, 0, 0, 0, 0, 0.25, 0], [0, 0, 0, 1, 0, 0, 0, 0], [0] * 8]
    mixture = training_targets(part, "mixture")
    assert mixture.dtype == np.float32
    np.testing.assert_allclose(mixture, expected)


def test_loss_of_a_distribution_is_the_mean_over_the_labels():
    logits, importance = torch.randn(3, 8), torch.rand(3, 1)
    targets = torch.zeros(3, 8)
    targets[:, 2], targets[:, 5] = 0.25, 0.75
    by_label = [weighted_cross_entropy(logits, importance, torch.full((3,), k)) for k in (2, 5)]
    loss = weighted_cross_entropy(logits, importance, targets)
    torch.testing.assert_close(loss, 0.25 * by_label[0] + 0.75 * by_label[1])


def test_images_in_another_order_are_an_error(tmp_path):
    dataset = synthetic_dataset(training=20, public=1, private=1)
    column = np.array([4, 5, 6, 1, 3, 2, 0])  # of each class of FER2013
    votes = 10 * np.eye(10, dtype=int)[column[dataset.labels]]
    path = write_votes(tmp_path / "v.csv", dataset, votes)
    assert (with_ferplus_labels(dataset, path).labels == dataset.labels).all()
    order = np.random.default_rng(0).permutation(len(dataset))
    moved = replace(dataset.select(order), split=dataset.split)
    with pytest.raises(DataError, match="in another order"):
        with_ferplus_labels(moved, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("NF", "nothing"), "missing columns: NF"),
        (lambda text: "\n".join(text.split("\n")[:-5]), "needs the complete fer2013.csv"),
        (
            lambda text: text.replace("PublicTest", "PrivateTest", 1),
            r"row \d+: Usage is .* own order",
        ),
        (lambda text: text.replace("f3.png,0", "f3.png,0.5", 1), "not a whole number"),
        (lambda text: "", "cannot be read as FER"),
    ],
)
def test_invalid_file_is_an_error(dataset, tmp_path, damage, message):
    votes = np.zeros((len(dataset), 10), int)
    path = write_votes(tmp_path / "v.csv", dataset, votes)
    path.write_text(damage(path.read_text()))
    with pytest.raises(DataError, match=message):
        with_ferplus_labels(dataset, path)
    with pytest.raises(DataError, match=r"github\.com/microsoft/FERPlus"):
        with_ferplus_labels(dataset, tmp_path / "none.csv")


def test_custom_classes_may_have_the_names_of_ferplus(dataset, tmp_path):
    eight = replace(dataset, labels=np.arange(len(dataset)) % 8)
    source = find_source(str(write_csv(eight, tmp_path / "eight.csv")))
    checkpoint = SimpleNamespace(class_names=CLASSES, options={}, image_width=32, channels=1)
    loaded = load_dataset_for(checkpoint, source)
    assert loaded.class_names == CLASSES
    assert (loaded.labels == eight.labels).all()
    source = find_source(str(write_csv(dataset, tmp_path / "seven.csv")))
    checkpoint.options["ferplus"] = "votes.csv"  # the eighth class comes with the votes
    assert load_dataset_for(checkpoint, source).class_names == EMOTIONS


def run(script, *argv):
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", [script.__file__, *map(str, argv)])
        script.main()


@pytest.fixture(scope="module")
def votes_csv(dataset, tmp_path_factory):
    """Votes that mostly agree with the labels, with contempt and unlabeled images."""
    rng = np.random.default_rng(0)
    columns = ["neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt"]
    votes = np.zeros((len(dataset), 10), int)
    for i, label in enumerate(dataset.labels):
        name = "contempt" if i % 9 == 0 else EMOTIONS[label]
        votes[i, columns.index(name)] = 7
        votes[i, rng.integers(0, 8)] += 3
    votes[5::11] = [0] * 8 + [10, 0]
    return write_votes(tmp_path_factory.mktemp("votes") / "fer2013new.csv", dataset, votes)


@pytest.mark.parametrize("target", ["majority", "mixture"])
def test_run_with_votes(dataset, votes_csv, tmp_path, target, capsys):
    csv_path = write_csv(dataset, tmp_path / "dataset.csv")
    argv = ("--data", csv_path, "--ferplus", votes_csv, "--no_landmarks")
    options = (
        *("--ferplus_target", target, "--total_epoch", 2),
        *("--relabel", "ema", "--relabel_epoch", 1, "--margin_2", 0, "--relabel_cap", 1),
    )
    run(train, *argv, *TINY, *options, "--out", tmp_path / "r")
    output = capsys.readouterr().out
    assert "with FER+ labels" in output
    config = json.loads((tmp_path / "r/config.json").read_text())
    assert config["options"]["relabel"] == ("ema" if target == "majority" else "none")
    scores = json.loads((tmp_path / "r/metrics.json").read_text())
    expected = with_ferplus_labels(dataset, votes_csv)
    has_label = (expected.labels != UNLABELED) & (expected.split == "PrivateTest")
    assert scores["PrivateTest"]["n"] == has_label.sum() < 21
    assert scores["PrivateTest"]["labels"] == "FER+"
    with open(tmp_path / "r/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert "contempt" in rows[0]
    assert any(row["label"] == "" for row in rows)  # predicted, too
    with open(tmp_path / "r/metrics.csv", newline="") as file:
        num_relabels = sum(int(row["relabeled"]) for row in csv.DictReader(file))
    assert (num_relabels > 0) == (target == "majority")
    weights = ("--model_path", tmp_path / "r/best.pth")
    run(test, *weights, *argv, "--out", tmp_path / "t", "--gpu_ids", "-1")
    assert json.loads((tmp_path / "t/metrics.json").read_text()) == scores
    with pytest.raises(DataError, match="for FER2013 with FER\\+'s labels, give --ferplus"):
        run(test, *weights, "--data", csv_path, "--no_landmarks", "--out", tmp_path / "x")


def test_human_labels_are_those_of_the_classes(dataset, votes_csv):
    expected = with_ferplus_labels(dataset, votes_csv).labels
    judged = with_human_labels(dataset, votes_csv)
    assert (judged.labels == dataset.labels).all()
    assert (expected == CLASSES.index("contempt")).any()
    np.testing.assert_equal(judged.human_labels, np.where(expected == 7, UNLABELED, expected))
    assert judged.digest == dataset.digest
    two = replace(dataset, class_names=("sad", "angry"), labels=np.zeros(len(dataset), np.int64))
    assert set(with_human_labels(two, votes_csv).human_labels[expected == 4]) == {0}
    others = replace(dataset, class_names=("a", "b"))
    with pytest.raises(DataError, match="no majority for a class of the synthetic data set"):
        with_human_labels(others, votes_csv)
    with pytest.raises(DataError, match="FER\\+ needs the complete"):
        with_human_labels(dataset.select(np.arange(5)), votes_csv)


def test_human_agreement_does_not_change_the_training(dataset, votes_csv, tmp_path):
    data = write_csv(dataset, tmp_path / "dataset.csv")
    argv = (
        "--data",
        data,
        "--no_landmarks",
        *TINY,
        "--total_epoch",
        2,
        "--label_noise",
        0.3,
        "--amp",
        "fp32",
    )
    argv += ("--relabel", "ema", "--relabel_epoch", 1, "--margin_2", 0, "--relabel_cap", 1)
    run(train, *argv, "--out", tmp_path / "without")
    run(train, *argv, "--ferplus_test", votes_csv, "--out", tmp_path / "with")
    one, other = (torch.load(tmp_path / name / "last.pth") for name in ("without", "with"))
    for name in ("network", "labels", "predictions"):
        torch.testing.assert_close(one["training"][name], other["training"][name], rtol=0, atol=0)
    torch.testing.assert_close(one["net"], other["net"], rtol=0, atol=0)
    scores = json.loads((tmp_path / "with/metrics.json").read_text())
    plain = json.loads((tmp_path / "without/metrics.json").read_text())
    for split in ("PublicTest", "PrivateTest"):
        assert scores[split].items() >= plain[split].items()
    assert scores["Training"].keys() - plain["Training"].keys() == {
        *("human_relabel_n", "human_relabel_new", "human_relabel_old", "human_relabel_neither"),
        *("human_relabel_by_class", "auroc_importance_label"),
    }
    with open(tmp_path / "with/metrics.csv", newline="") as file:
        agreements = [float(row["public_human_agreement"]) for row in csv.DictReader(file)]
    epoch = torch.load(tmp_path / "with/best.pth")["epoch"]
    assert scores["PublicTest"]["human_agreement"] == pytest.approx(agreements[epoch - 1])
    run(train, "--resume", tmp_path / "with")  # it keeps the option
    assert json.loads((tmp_path / "with/metrics.json").read_text()) == scores
    weights = ("--model_path", tmp_path / "with/best.pth", "--no_landmarks", "--gpu_ids", "-1")
    run(test, *weights, "--data", data, "--ferplus_test", votes_csv, "--out", tmp_path / "t")
    tested = json.loads((tmp_path / "t/metrics.json").read_text())
    assert tested == {split: scores[split] for split in ("PublicTest", "PrivateTest")}
    for script in (train, test):
        with pytest.raises(DataError, match="cannot be read as FER\\+ votes"):
            run(
                script,
                *(weights if script is test else TINY),
                "--data",
                data,
                "--ferplus_test",
                "none.csv",
                "--out",
                tmp_path / "x",
            )


def test_contradictory_options_are_an_error(dataset, votes_csv, tmp_path):
    csv_path = write_csv(dataset, tmp_path / "dataset.csv")
    with pytest.raises(OptionError, match="needs the votes"):
        run(train, "--data", csv_path, "--ferplus_target", "distribution")
    with pytest.raises(OptionError, match="--ferplus defines the classes"):
        run(train, "--data", csv_path, "--ferplus", votes_csv, "--class_names", "a", "b")
    for script in (train, test):
        with pytest.raises(OptionError, match="--ferplus_test compares predictions on FER2013's"):
            run(script, "--data", csv_path, "--ferplus", votes_csv, "--ferplus_test", votes_csv)


@pytest.mark.skipif(not (REAL / "fer2013new.csv").exists(), reason="the real votes are missing")
def test_real_votes():
    with open(REAL / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    n = len(rows)
    dataset = replace(
        synthetic_dataset(training=1, public=0, private=0),
        images=np.zeros((n, 1, 1), np.uint8),
        labels=np.array([int(row["emotion"]) for row in rows]),
        split=np.array([row["Usage"] for row in rows]),
        landmarks=None,
    )
    labeled = with_ferplus_labels(dataset, REAL / "fer2013new.csv")
    has_label = labeled.labels != UNLABELED
    assert 0.8 < has_label.mean() < 0.95
    agreement = (labeled.labels == dataset.labels)[has_label].mean()
    assert 0.6 < agreement < 0.8  # the labels of FER2013 are noisy
    private = with_human_labels(dataset, REAL / "fer2013new.csv").subset("PrivateTest")
    scores = human_agreement(private.human_labels, private.labels, EMOTIONS)
    assert scores["human_agreement_n"] == 3137
    assert scores["human_agreement"] == pytest.approx(0.674, abs=5e-4)
