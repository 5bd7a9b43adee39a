"""The real FER2013, where it stands beside the checkout in shared/fer2013."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared/fer2013"

pytestmark = pytest.mark.skipif(
    not (REAL / "make_csv.py").exists(), reason="the real FER2013 is not beside this checkout"
)


def test_a_small_network_learns_something_of_the_real_faces(tmp_path):
    subprocess.run([sys.executable, REAL / "make_csv.py", tmp_path / "fer2013.csv"], check=True)
    small = ("--width", "0.125", "--image_width", "32", "--no_landmarks", "--gpu_ids", "-1")
    schedule = ("--recipe", "cpu", "--total_epoch", "1", "--warmup_epoch", "0.2")
    run = [sys.executable, ROOT / "train.py", "--data", tmp_path / "fer2013.csv"]
    subprocess.run([*run, "--out", tmp_path / "run", *small, *schedule], check=True)
    scores = json.loads((tmp_path / "run/metrics.json").read_text())
    assert scores["PublicTest"]["n"] == scores["PrivateTest"]["n"] == 3589
    assert scores["PrivateTest"]["duplicates"] == 288
    assert scores["PrivateTest"]["accuracy"] > 0.33  # always "happy" gives 0.245
    assert scores["PrivateTest"]["landmark_error"] is None
