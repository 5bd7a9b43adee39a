"""The benchmark runs, and prints a row for everything that it measures."""

import sys

import pytest

from models.fernet import Architecture, FERNet
from tools import throughput


def test_throughput_prints_all_rows(monkeypatch, capsys):
    argv = ["--width", "0.1", "--batch_size", "7", "--steps", "2", "--rounds", "1"]
    argv += ["--gpu_ids", "-1", "--image_width", "32"]
    monkeypatch.setattr(sys, "argv", ["throughput", *argv])
    throughput.main()
    output = capsys.readouterr().out
    lines = {line[:12].strip(): line.split()[-2] for line in output.splitlines()[2:] if line}
    assert lines["bare loop"] == "100"
    assert int(lines["trainer"]) > 0
    assert "of a bf16 matrix product" in output


def test_the_number_of_operations_of_the_full_network():
    # 7.48 at 48 pixels: proportional to the area, except for the heads and the first layer.
    network = FERNet(Architecture(dropout=0.2)).train()
    assert throughput.flops_per_image(network, 32) == pytest.approx(3.32e9, rel=2e-3)
