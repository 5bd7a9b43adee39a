"""The benchmarks run, and print a row for everything that they measure."""

import re
import sys

import numpy as np
import pytest
from kills import write_csv

from data.synthetic.generate import synthetic_dataset
from inference.runtime import Runtime
from models.fernet import Architecture, FERNet
from tools.benchmarks import (
    deletion,
    detectors,
    false_detections,
    inference,
    margin,
    prediction,
    stability,
    throughput,
)
from tools.benchmarks.deletion import deletion_curve
from tools.benchmarks.inference import write_untrained
from utils.errors import ProjectError
from utils.predictions import Predictions


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
        *("--gpu_ids", "-1", "--image_width", 32),
    )
    lines = {line[:12].strip(): line.split()[-2] for line in output.splitlines()[2:] if line}
    assert lines["bare loop"] == "100"
    assert int(lines["trainer"]) > 0
    assert "of a bf16 matrix product" in output


def test_the_number_of_operations_of_the_full_network():
    # 7.48 at 48 pixels: proportional to the area, except for the heads and the first layer.
    network = FERNet(Architecture(dropout=0.2)).train()
    assert throughput.flops_per_image(network, 32) == pytest.approx(3.32e9, rel=2e-3)


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
    output = run(margin, *argv, "--margins", 1, 1.2, "--views", 1)
    found, total = map(int, re.search(r"dlib detects (\d+) of (\d+) PublicTest", output).groups())
    assert 0 < found <= total == 14
    for name in ("FER2013's crop", "1 times the box", "1.2 times the box *", "--views 1"):
        (line,) = (line for line in output.splitlines() if line.startswith(name))
        share = float(line[len(name) :].split()[0]) / 100
        assert abs(share * found - round(share * found)) < 0.01  # of these images


def test_stability_and_deletion_print_intervals(tmp_path, run):
    write_csv(synthetic_dataset(training=1, public=1, private=1), tmp_path / "images.csv")
    write_untrained(0.1, tmp_path / "w.pth")
    argv = ("--data", tmp_path / "images.csv", "--model_path", tmp_path / "w.pth")
    output = run(stability, *argv, "--images", 2, "--views", 0, 1)
    number = re.search(r"([12]) of 2 faces are detected in all 14 variants", output)
    rows = [line.split() for line in output.splitlines() if re.match(r" +[01] +[0-9.]+ \(", line)]
    assert number
    assert [row[0] for row in rows] == ["0", "1"]
    for _, mean, low, _, high, *_ in rows:
        assert 0 <= float(low[1:]) <= float(mean) <= float(high[:-1]) <= 100
    assert "45 (n = " in output
    assert len(re.findall(r"  views [01]: (?: \w+ \d+ %,?){5}\n", output)) == 2
    output = run(deletion, *argv, "--images", 5, "--steps", 3)
    assert re.search(r"highest first +[0-9.]+ \([0-9.]+ to [0-9.]+\)", output)
    assert "highest first minus random: " in output


def test_false_detections_print_shares_of_faces_and_others(tmp_path, run):
    write_csv(synthetic_dataset(training=1, public=1, private=1), tmp_path / "images.csv")
    write_untrained(0.1, tmp_path / "w.pth")  # its landmarks follow the crop exactly
    argv = ("--data", tmp_path / "images.csv", "--model_path", tmp_path / "w.pth")
    argv += ("--images", 3, "--scales", 0.5, "--rotations", 0, "--thresholds", 0, 0.025)
    rows = [line.split() for line in run(false_detections, *argv).splitlines()[2:]]
    assert [" ".join(row[:4]) for row in rows] == [
        *["false detections left out,"] * 2,
        "faces kept, rotated by",
    ]
    assert int(rows[0][7]) > 0
    assert rows[1][7] == "0"  # none has the default score


def test_detectors_print_shares_and_times(tmp_path, run):
    write_csv(synthetic_dataset(training=1, public=1, private=1), tmp_path / "images.csv")
    write_untrained(0.1, tmp_path / "w.pth")
    argv = ("--data", tmp_path / "images.csv", "--model_path", tmp_path / "w.pth", "--images", 4)
    output = run(detectors, *argv, "--detectors", "dlib")
    pattern = r"^ +(.+?) +4 +([0-9.]+) \(.+?\) +([0-9.]+) \(.+?\) +([0-9.]+)$"
    rows = {name: list(map(float, x)) for name, *x in re.findall(pattern, output, re.MULTILINE)}
    assert len(rows) == 9
    assert rows["upright"][0] == 100
    assert rows["rotated by 90 degrees"][0] == 0  # dlib detects upright faces only
    assert all(found >= kept and time > 0 for found, kept, time in rows.values())
    # Every detection counts with an overlap of 0, and none with more than 1.
    assert detectors.face_box().tolist() == [48, 48, 240, 240]  # the middle 192 of 288 pixels
    output = run(detectors, *argv, "--min_iou", 1.01)
    assert {x[1] for x in re.findall(pattern, output, re.MULTILINE)} == {"0.0"}


def test_deletion_by_hand():
    # The probability of class 0 is the mean of the first column of 2 x 2 cells.
    class ColumnRuntime(Runtime):
        def __call__(self, pixels, explain=False):
            share = pixels[..., :2].mean((1, 2, 3)) / 200
            return Predictions(np.stack([share, 1 - share], 1), None, None)

    pixels = np.zeros((1, 1, 4, 4), np.uint8)
    pixels[..., :2] = 200  # the mean of the image is 100
    for order, expected in (
        ([0, 2, 1, 3], [1, 0.75, 0.5, 0.5, 0.5]),
        ([1, 3, 0, 2], [1, 1, 1, 0.75, 0.5]),
    ):
        curve = deletion_curve(ColumnRuntime(), pixels, np.array([0]), np.array([order]), 4)
        np.testing.assert_allclose(curve[:, 0], expected)


def test_prediction_prints_the_times_of_options(run, tmp_path):
    write_untrained(0.1, tmp_path / "w.pth")
    argv = ("--photographs", 1, "--frames", 1, "--rounds", 1, "--variants=--views 2 --explain")
    output = run(prediction, "--model_path", tmp_path / "w.pth", *argv)
    rows = [line for line in output.splitlines() if line.startswith("--views 2 --explain  ")]
    assert [row.count(" to ") for row in rows] == [2, 2]
    with pytest.raises(ProjectError, match=r"predict.py failed: error: .*no\.pth"):
        run(prediction, "--model_path", tmp_path / "no.pth")
