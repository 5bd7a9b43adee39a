"""The benchmarks run, and print a row for everything that they measure."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from kills import write_csv

from data.synthetic.generate import synthetic_dataset
from tools.benchmarks.baseline import JpegDataset
from tools.benchmarks.inference import write_untrained
from utils.coordinates import to_pixels

ROOT = Path(__file__).resolve().parents[1]


def run(module, *argv):
    command = [sys.executable, "-m", f"tools.benchmarks.{module}", *map(str, argv)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_throughput_prints_all_rows():
    output = run(
        *("throughput", "--width", 0.1, "--batch_size", 7, "--steps", 2, "--rounds", 1),
        *("--workers", 0, "--gpu_ids", "-1", "--image_width", 32, 32, 48),
    )
    lines = {line[:40].strip(): line.split()[-1] for line in output.splitlines() if line}
    for name in ("bare loop", "trainer", "trainer, --image_width 32 32 48"):
        assert float(lines[name]) > 0
    assert float(lines["DataLoader baseline"]) == 1.0
    assert "peak memory" in output


def test_the_baseline_transforms_pixels_and_landmarks_alike(tmp_path):
    dataset = synthetic_dataset(training=1, public=0, private=0)
    spot = cv2.circle(np.zeros((48, 48), np.uint8), (30, 20), 3, 255, -1)
    points = np.full((len(dataset), 68, 2), (30, 20), np.float32)
    images = np.stack([spot] * len(dataset))
    baseline = JpegDataset(tmp_path, replace(dataset, images=images, landmarks=points))
    y, x = np.indices((48, 48))
    for _ in range(20):
        pixels, _, landmarks = baseline[0]
        bright = np.maximum(pixels[0].numpy() - 30, 0)
        center = [(axis * bright).sum() / bright.sum() for axis in (x, y)]
        np.testing.assert_allclose(to_pixels(landmarks, 48)[5], center, atol=0.3)


def test_the_number_of_operations_of_the_full_network():
    output = run(
        *("throughput", "--batch_size", 2, "--steps", 1, "--rounds", 1, "--image_width", 32),
        *("--workers", 0, "--gpu_ids", "-1"),
    )
    # 7.48 at 48 pixels: proportional to the area, except for the heads and the first layer.
    assert "3.32 GFLOP per image" in output
    assert "--image_width" not in output


def test_inference_prints_all_runtimes():
    argv = ("--width", 0.1, "--seconds", 0.02, "--rounds", 1, "--batch_sizes", 1, 3)
    argv += ("--video_seconds", 0.2)
    output = run("inference", *argv)
    for name in ("PyTorch", "ONNX, float32", "ONNX, int8"):
        rates, *videos = (line for line in output.splitlines() if line.startswith(name))
        assert rates.count(" x ") == 2
        if name != "PyTorch":
            (video,) = videos
            assert "(20 faces found)" in video  # 5 frames with 4 faces each
            assert "(60 faces found)" in video
    assert re.search(r"detection: \d+ frames/s", output)


def test_margins_are_compared_on_the_same_images(tmp_path):
    write_csv(synthetic_dataset(training=1, public=2, private=1), tmp_path / "images.csv")
    write_untrained(0.1, tmp_path / "w.pth")
    argv = ("--data", tmp_path / "images.csv", "--model_path", tmp_path / "w.pth")
    output = run("margin", *argv, "--margins", 1, 1.2)
    found, total = map(int, re.search(r"dlib detects (\d+) of (\d+) PublicTest", output).groups())
    assert 0 < found <= total == 14
    for name in ("FER2013's crop", "1 times the box", "1.2 times the box *"):
        (line,) = (line for line in output.splitlines() if line.startswith(name))
        share = float(line[len(name) :].split()[0]) / 100
        assert abs(share * found - round(share * found)) < 0.01  # of these images


def test_data_prints_all_steps():
    output = run("data", "--images", 50, "--factors", 1, 3, "--landmark_images", 7, "--rounds", 1)
    rows = [line for line in output.splitlines() if line.startswith(("CSV", "batches"))]
    assert len(rows) == 10
    assert {line.split()[-4] for line in rows} == {"50", "150"}
    assert "times the rate of one process" in output


def test_a_data_set_larger_than_memory():
    argv = ("--images", 70, "--batch_size", 4, "--steps", 1, "--rounds", 1, "--gpu_ids", "-1")
    output = run("large", *argv)
    assert "70 images do not fit into memory; decoding them once" in output
    ratios = re.findall(r"relative to the bare loop of its round: ([0-9.]+) \(", output)
    assert len(ratios) == 2
    assert all(float(ratio) > 0 for ratio in ratios)
