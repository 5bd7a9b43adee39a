"""The benchmarks run, and print a row for everything that they measure."""

import re
import sys

import pytest

from models.fernet import Architecture, FERNet
from tools.benchmarks import inference, throughput


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
