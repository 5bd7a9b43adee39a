"""The benchmarks run, and print a row for everything that they measure."""

import re
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from kills import write_csv

from data.synthetic.generate import synthetic_dataset
from models.fernet import Architecture, FERNet
from tools.benchmarks import inference, margin, throughput
from tools.benchmarks.baseline import JpegDataset
from tools.benchmarks.inference import write_untrained
from utils.coordinates import to_pixels


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs a benchmark, and returns its output."""

    def output_of(module, *argv):
        monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, argv)])
        module.main()
        return capsys.readouterr().out

    return output_of


def test_throughput_prints_all_rows(run):
    output = run(
        *(throughput, "--width", 0.1, "--batch_size", 7, "--steps", 2, "--rounds", 1),
        *("--workers", 0, "--gpu_ids", "-1", "--image_width", 32),
    )
    lines = {line[:20].strip(): line.split()[-1] for line in output.splitlines() if line}
    for name in ("bare loop", "trainer"):
        assert float(lines[name]) > 0
    assert float(lines["DataLoader baseline"]) == 1.0
    assert "of a bf16 matrix product" in output


def test_the_number_of_operations_of_the_full_network():
    # 7.48 at 48 pixels: proportional to the area, except for the heads and the first layer.
    network = FERNet(Architecture(dropout=0.2)).train()
    assert throughput.flops_per_image(network, 32) == pytest.approx(3.32e9, rel=2e-3)


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


def test_inference_prints_all_runtimes(run):
    output = run(
        *(inference, "--width", 0.1, "--seconds", 0.02, "--rounds", 1, "--batch_sizes", 1, 3)
    )
    for name in ("PyTorch", "ONNX, float32", "ONNX, int8"):
        (rates,) = (line for line in output.splitlines() if line.startswith(name))
        assert rates.count(" x ") == 2
    assert re.search(r"detection: \d+ frames/s", output)


def test_margins_are_compared_on_the_same_images(run, tmp_path):
    write_csv(synthetic_dataset(training=1, public=2, private=1), tmp_path / "images.csv")
    write_untrained(0.1, tmp_path / "w.pth")
    argv = ("--data", tmp_path / "images.csv", "--model_path", tmp_path / "w.pth")
    output = run(margin, *argv, "--margins", 1, 1.2)
    found, total = map(int, re.search(r"dlib detects (\d+) of (\d+) PublicTest", output).groups())
    assert 0 < found <= total == 14
    for name in ("FER2013's crop", "1 times the box", "1.2 times the box *"):
        (line,) = (line for line in output.splitlines() if line.startswith(name))
        share = float(line[len(name) :].split()[0]) / 100
        assert abs(share * found - round(share * found)) < 0.01  # of these images
