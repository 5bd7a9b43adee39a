"""The real FER2013, where it stands beside the checkout in shared/fer2013."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared/fer2013"

pytestmark = pytest.mark.skipif(
    not (REAL / "make_csv.py").exists(), reason="the real FER2013 is not beside this checkout"
)


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "fer2013.csv"
    subprocess.run([sys.executable, REAL / "make_csv.py", path], check=True)
    return path


@pytest.mark.parametrize("weights", ["", "resnet18_half", "resnet18_photos"])
def test_the_released_weights_give_what_their_card_and_the_readme_say(csv, tmp_path, weights):
    # As bash test.sh does, but for dlib, which would take minutes where nothing is cached.
    run = [sys.executable, ROOT / "test.py", "--data", csv, "--gpu_ids", "-1", "--no_landmarks"]
    run += ["--model_path", ROOT / f"model_save/{weights}.pth"] if weights else []
    subprocess.run([*run, "--out", tmp_path / "out"], check=True)
    scores = json.loads((tmp_path / "out/metrics.json").read_text())
    card = (ROOT / f"model_save/{weights or 'resnet18'}.md").read_text()
    readme = (ROOT / "README.md").read_text()
    for split in ("PublicTest", "PrivateTest"):
        told = re.search(rf"^\| {split} \| 3589 \| ([\d.]+) \|.*?\| ([\d.]+) \|", card, re.M)
        accuracy, without = (
            100 * scores[split][f"accuracy{w}"] for w in ("", "_without_duplicates")
        )
        # Another CPU may round otherwise, and one face is 0.03 points.
        assert accuracy == pytest.approx(float(told[1]), abs=0.06)
        assert without == pytest.approx(float(told[2]), abs=0.06)
        assert told[1] in readme


def test_a_small_network_learns_something_of_the_real_faces(csv, tmp_path):
    small = ("--width", "0.125", "--image_width", "32", "--no_landmarks", "--gpu_ids", "-1")
    schedule = ("--recipe", "cpu", "--total_epoch", "1", "--warmup_epoch", "0.2")
    run = [sys.executable, ROOT / "train.py", "--data", csv]
    subprocess.run([*run, "--out", tmp_path / "run", *small, *schedule], check=True)
    scores = json.loads((tmp_path / "run/metrics.json").read_text())
    assert scores["PublicTest"]["n"] == scores["PrivateTest"]["n"] == 3589
    assert scores["PrivateTest"]["duplicates"] == 288
    assert scores["PrivateTest"]["accuracy"] > 0.33  # always "happy" gives 0.245
    assert scores["PrivateTest"]["landmark_error"] is None
