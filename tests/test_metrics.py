"""Metrics and result files, compared with values computed by hand."""

import json

import numpy as np
import pytest

from data.dataset import FaceDataset
from engine.results import Evaluation, summary
from utils import metrics
from utils.metrics import human_agreement, human_relabels
from utils.predictions import Predictions
from utils.run_folder import RunFolder

NAMES = ("a", "b", "c")


def one_hot(predicted, confidence=1.0):
    rest = (1 - confidence) / 2
    return np.where(np.arange(3) == np.array(predicted)[:, None], confidence, rest)


def test_scores_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    predicted = [0, 0, 0, 1, 1, 0, 2, 2]
    scores = metrics.score(labels, one_hot(predicted), NAMES)
    assert scores["n"] == 8
    assert scores["accuracy"] == 6 / 8
    assert scores["recall"] == {"a": 0.75, "b": 0.5, "c": 1.0}
    assert scores["balanced_accuracy"] == pytest.approx((0.75 + 0.5 + 1) / 3)
    # F1 = 2 TP / (2 TP + FP + FN): a 6/8, b 2/4, c 4/4.
    assert scores["macro_f1"] == pytest.approx((0.75 + 0.5 + 1) / 3)


def test_a_class_that_does_not_occur_is_ignored():
    scores = metrics.score(np.array([0, 0, 1]), one_hot([0, 2, 1]), NAMES)
    assert scores["recall"] == {"a": 0.5, "b": 1.0, "c": None}
    assert scores["balanced_accuracy"] == 0.75


def test_calibration_error_by_hand():
    # Two bins: confidence 0.9 with 3 of 4 correct, gap 0.15; 0.4 with 1 of 1 correct, gap 0.6.
    probabilities = np.concatenate((one_hot([0, 0, 0, 0], 0.9), [[0.4, 0.3, 0.3]]))
    labels = np.array([0, 0, 0, 1, 0])
    error = metrics.expected_calibration_error(labels, probabilities)
    assert error == pytest.approx((4 * 0.15 + 1 * 0.6) / 5)


def test_correctness_auroc_by_hand():
    correct = np.array([True, True, False, False])
    # Four pairs of a correct and a wrong prediction: in three the correct one is greater.
    assert metrics.correctness_auroc(np.array([0.9, 0.5, 0.6, 0.1]), correct) == 3 / 4
    assert metrics.correctness_auroc(np.array([0.9, 0.6, 0.6, 0.1]), correct) == 3.5 / 4
    assert metrics.correctness_auroc(np.array([0.1, 0.2, 0.8, 0.9]), correct) == 0
    assert metrics.correctness_auroc(np.ones(4), correct) is None  # all values are equal
    assert metrics.correctness_auroc(np.arange(4), np.ones(4, bool)) is None


def test_correct_predictions_with_full_confidence_are_calibrated():
    labels = np.array([0, 1, 2])
    assert metrics.expected_calibration_error(labels, one_hot(labels)) == 0


def test_landmark_error_by_hand():
    true = np.zeros((3, 68, 2))
    true[2] = np.nan
    predicted = np.zeros((3, 68, 2))
    predicted[0] = (3, 4)  # a distance of 5 pixels; the second is exact, the third has no landmarks
    assert metrics.landmark_error(predicted, true) == 2.5
    assert metrics.landmark_error(predicted[2:], true[2:]) is None


PREDICTIONS = Predictions(
    probabilities=one_hot([0, 1, 2, 0, 1, 0], 0.8),
    importance=np.linspace(0.1, 0.9, 6),
    landmarks=np.full((6, 68, 2), 24.0),
)


def evaluation(predictions=PREDICTIONS, has_training=True, **changes):
    fields = {
        "images": np.random.default_rng(0).integers(0, 256, (6, 48, 48), dtype=np.uint8),
        "labels": np.array([0, 1, 2, 0, 1, 2]),
        "split": np.array(["PublicTest"] * 3 + ["PrivateTest"] * 3),
        "class_names": NAMES,
    }
    duplicates = np.array([False, False, False, True, False, False]) if has_training else None
    return Evaluation(FaceDataset(**fields | changes), predictions, np.arange(10, 16), duplicates)


def test_splits_are_scored_separately_and_without_duplicates():
    scores = evaluation().scores()
    assert scores["PublicTest"]["accuracy"] == 1
    assert scores["PublicTest"]["duplicates"] == 0
    assert scores["PrivateTest"]["accuracy"] == pytest.approx(2 / 3)
    assert scores["PrivateTest"]["accuracy_without_duplicates"] == 0.5  # a correct one is left out
    assert scores["PrivateTest"]["duplicates"] == 1
    assert scores["PrivateTest"]["landmark_error"] is None
    assert scores["PrivateTest"]["auroc_importance"] == 0  # the wrong one has the greatest
    assert scores["PrivateTest"]["auroc_confidence"] is None  # all are equally confident
    assert scores["PublicTest"]["auroc_importance"] is None  # all are correct


def test_undefined_metrics_are_none():
    scores = evaluation(has_training=False, labels=np.array([0, 1, 2, -1, -1, -1])).scores()
    assert scores["PublicTest"]["accuracy_without_duplicates"] is None
    assert scores["PrivateTest"] == {"n": 0, "unlabeled": 3}
    assert "no scores" in summary(scores)


@pytest.mark.usefixtures("drawn_figures")
def test_results_are_written(tmp_path):
    run = RunFolder.create(str(tmp_path / "run"), "x")
    evaluation().write(run, "title")
    scores = json.loads((tmp_path / "run/metrics.json").read_text())
    assert scores["PrivateTest"]["n"] == 3
    lines = (tmp_path / "run/predictions.csv").read_text().splitlines()
    assert lines[0] == "index,split,label,predicted,importance,a,b,c"
    assert lines[1] == "10,PublicTest,a,a,0.1,0.8,0.1,0.1"
    assert lines[6] == "15,PrivateTest,c,a,0.9,0.8,0.1,0.1"
    for name in ("confusion_matrix", "landmarks", "importance"):
        assert (tmp_path / f"run/{name}.png").stat().st_size > 5000


def test_unlabeled_images_get_predictions(tmp_path):
    run = RunFolder.create(str(tmp_path / "run"), "x")
    predictions = PREDICTIONS._replace(landmarks=None)
    evaluation(predictions, labels=np.full(6, -1)).write(run, "title")
    lines = (tmp_path / "run/predictions.csv").read_text().splitlines()
    assert lines[1].startswith("10,PublicTest,,a,")
    assert not (tmp_path / "run/confusion_matrix.png").exists()


def test_figures_are_those_of_the_last_labeled_split(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(Evaluation, "_write_figures", lambda *args: titles.append(args[-1]))
    for labels in (None, np.array([0, 1, 2, -1, -1, -1])):
        run = RunFolder.create(str(tmp_path / str(len(titles))), "x")
        (evaluation() if labels is None else evaluation(labels=labels)).write(run, "title")
    assert titles == ["title, PrivateTest", "title, PublicTest"]


def test_human_agreement_by_hand():
    human, predicted = np.array([0, 0, 0, 1, -1]), np.array([0, 0, 1, 1, 2])
    scores = human_agreement(human, predicted, "abc")
    assert scores["human_agreement_n"] == 4
    assert scores["human_agreement"] == 0.75
    assert scores["human_agreement_interval"] == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert scores["human_agreement_by_class"] == {"a": pytest.approx(2 / 3), "b": 1.0, "c": None}
    nobody = human_agreement(np.array([-1]), np.array([0]), "abc")
    assert nobody["human_agreement"] is None
    assert nobody["human_agreement_interval"] is None
    scores = evaluation(human_labels=np.array([0, -1, -1, 2, -1, 2])).scores()
    assert scores["PublicTest"]["human_agreement_n"] == 1
    assert "human agreement on PrivateTest (FER+ majority, n = 2)" in summary(scores)


def test_importance_detects_labels_that_annotators_agree_with():
    # Importances 0.1, 0.2, ... of images with the labels 0, 1, 2: the second and third are right.
    scores = evaluation(human_labels=np.array([1, 1, 2, -1, -1, -1])).scores()
    assert scores["PublicTest"]["auroc_importance_label"] == 1
    assert scores["PrivateTest"]["auroc_importance_label"] is None


def test_human_relabels_by_hand():
    human = np.array([0, 1, 2, -1, 1, 1])
    given = np.array([1, 1, 1, 1, 0, 1])
    final = np.array([0, 0, 0, 0, 0, 1])
    scores = human_relabels(human, given, final, "abc")
    third = pytest.approx(1 / 3)  # the images 0, 1 and 2: the new label, the old one, neither
    expected = {"n": 3, "new": third, "old": third, "neither": third}
    assert scores.pop("human_relabel_by_class")["b"] == expected
    assert scores == {f"human_relabel_{name}": value for name, value in expected.items()}
