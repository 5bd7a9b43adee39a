"""Tests with the real FER2013, if it is in shared/fer2013 next to the repository."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared/fer2013"

pytestmark = pytest.mark.skipif(
    not (REAL / "make_csv.py").exists(), reason="the real FER2013 is not next to the repository"
)


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "fer2013.csv"
    subprocess.run([sys.executable, REAL / "make_csv.py", path], check=True)
    return path


@pytest.mark.parametrize("weights", ["resnet18", "resnet18_half", "resnet18_photos"])
def test_released_weights_have_the_published_accuracies(csv, tmp_path, weights):
    # As `bash test.sh`, without the landmarks, which take minutes if they are not cached.
    command = [sys.executable, ROOT / "test.py", "--data", csv, "--gpu_ids", "-1", "--no_landmarks"]
    if weights != "resnet18":  # the default
        command += ["--model_path", ROOT / f"model_save/{weights}.pth"]
    subprocess.run([*command, "--out", tmp_path / "out"], check=True)
    scores = json.loads((tmp_path / "out/metrics.json").read_text())
    card = (ROOT / f"model_save/{weights}.md").read_text()
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    published = "\n".join(document.read_text() for document in documents)
    for split in ("PublicTest", "PrivateTest"):
        row = re.search(rf"^\| {split} \| 3589 \| ([\d.]+) \|.*?\| ([\d.]+) \|", card, re.M)
        # Another CPU may round differently, and one image is 0.03 points.
        accuracy, without_duplicates = map(float, row.groups())
        assert 100 * scores[split]["accuracy"] == pytest.approx(accuracy, abs=0.06)
        assert 100 * scores[split]["accuracy_without_duplicates"] == pytest.approx(
            without_duplicates, abs=0.06
        )
        assert row[1] in published


def test_small_network_learns_from_the_real_images(csv, tmp_path):
    network = ("--width", "0.125", "--image_width", "32", "--no_landmarks", "--gpu_ids", "-1")
    schedule = ("--recipe", "cpu", "--total_epoch", "1", "--warmup_epoch", "0.2")
    command = [sys.executable, ROOT / "train.py", "--data", csv, "--out", tmp_path / "run"]
    subprocess.run([*command, *network, *schedule], check=True)
    scores = json.loads((tmp_path / "run/metrics.json").read_text())
    assert scores["PublicTest"]["n"] == scores["PrivateTest"]["n"] == 3589
    assert scores["PrivateTest"]["duplicates"] == 288
    assert scores["PrivateTest"]["accuracy"] > 0.33  # always "happy" gives 0.245
    assert scores["PrivateTest"]["landmark_error"] is None
