"""Tests with the real FER2013, if it is in shared/fer2013 next to the repository."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.dataset import EMOTIONS, UNLABELED
from data.ferplus import with_ferplus_labels
from data.source import find_source, load_dataset
from engine.evaluate import predict_ensemble
from models.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared/fer2013"
# By weights: the classes that they predict for PublicTest and PrivateTest, uint8 [7178], and the
# largest probability of every 16th image, float16. For other weights, write it again: those of
# predictions.csv of test.py, the classes as indices of the network's class names.
PREDICTIONS = Path(__file__).with_name("released_predictions.npz")

pytestmark = pytest.mark.skipif(
    not (REAL / "make_csv.py").exists(), reason="the real FER2013 is not next to the repository"
)


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "fer2013.csv"
    subprocess.run([sys.executable, REAL / "make_csv.py", path], check=True)
    return path


@pytest.fixture(scope="module")
def dataset(csv):
    return load_dataset(find_source(str(csv)), 48, 1)


@pytest.mark.parametrize("weights", ["resnet18", "resnet18_ferplus"])
def test_released_weights_predict_what_was_published(dataset, weights):
    """All images take minutes. A network that computes anything else differs in some of these."""
    network = load_checkpoint(ROOT / f"model_save/{weights}.pth").network()
    rows = np.flatnonzero(dataset.split != "Training")[::16]
    probabilities = predict_ensemble([network], dataset.images[rows], 256, False).probabilities
    published = np.load(PREDICTIONS)
    # Another CPU may round differently.
    assert (probabilities.argmax(1) != published[weights][::16]).sum() <= 1
    np.testing.assert_allclose(probabilities.max(1), published[f"{weights}_confidence"], atol=2e-3)


@pytest.mark.parametrize("weights", ["resnet18", "resnet18_ferplus"])
def test_these_predictions_have_the_published_accuracies(dataset, weights):
    assert dataset.class_names == EMOTIONS
    if weights == "resnet18_ferplus":
        dataset = with_ferplus_labels(dataset, REAL / "fer2013new.csv")
    card = (ROOT / f"model_save/{weights}.md").read_text()
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    published = "\n".join(document.read_text() for document in documents)
    held_out = dataset.split != "Training"
    labels = dataset.labels[held_out]
    correct = np.load(PREDICTIONS)[weights] == labels
    for split in ("PublicTest", "PrivateTest"):
        row = re.search(rf"^\| {split} \| (\d+) \| ([\d.]+) \|.*?\| ([\d.]+) \|", card, re.M)
        is_counted = (dataset.split == split)[held_out] & (labels != UNLABELED)
        is_unique = is_counted & ~dataset.duplicates()[held_out]
        assert str(is_counted.sum()) == row[1]
        assert f"{100 * correct[is_counted].mean():.2f}" == row[2]
        assert f"{100 * correct[is_unique].mean():.2f}" == row[3]
        assert row[2] in published


def test_small_network_learns_from_the_real_images(csv, tmp_path):
    network = ("--width", "0.125", "--image_width", "32", "--no_landmarks", "--gpu_ids", "-1")
    schedule = ("--recipe", "cpu", "--total_epoch", "1", "--warmup_epoch", "0.2", "--ema", "0.99")
    command = [sys.executable, ROOT / "train.py", "--data", csv, "--out", tmp_path / "run"]
    subprocess.run([*command, *network, *schedule], check=True)
    scores = json.loads((tmp_path / "run/metrics.json").read_text())
    assert scores["PublicTest"]["n"] == scores["PrivateTest"]["n"] == 3589
    assert scores["PrivateTest"]["duplicates"] == 288
    assert scores["PrivateTest"]["accuracy"] > 0.33  # always "happy" gives 0.245
    assert scores["PrivateTest"]["landmark_error"] is None
