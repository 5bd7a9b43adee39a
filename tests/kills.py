"""Ends a training run at random moments and goes on with it, again and again.

What is left in the end must be what an undisturbed run leaves, to the bit:

    python -m tests.kills --kills 20

A drawn CSV is trained on, without a cache, so that the landmarks are sought anew in each run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from data.dataset import FaceDataset
from data.synthetic.generate import synthetic_dataset

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 12
SHORT = ("--gpu_ids", "-1", "--width", "0.1", "--image_width", "32", "--batch_size", "16")
RELABELED = ("--total_epoch", str(EPOCHS), "--relabel_epoch", "2", "--margin_2", "0.01")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # by turns


def main(kills: int = 20, seed: int = 0) -> None:
    """Run the harness.

    Args:
        kills: how often a run is ended.
        seed: of the moments.
    """
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        tally = Harness(Path(folder), random.Random(seed)).play(kills, say=print)
    print(f"\n{sum(tally.values())} ends: {', '.join(f'{n} {what}' for what, n in tally.items())}")
    print("every run that was gone on with left what the undisturbed one did, to the bit")


def write_csv(faces: FaceDataset, path: Path) -> Path:
    """Write faces as a fer2013.csv."""
    with open(path, "w") as file:
        file.write("emotion,pixels,Usage\n")
        for image, label, split in zip(faces.images, faces.labels, faces.split):
            file.write(f"{label},{' '.join(map(str, image.flat))},{split}\n")
    return path


@dataclass
class Harness:
    """Starts train.py in `folder`, and ends it at moments that `chance` draws."""

    folder: Path
    chance: random.Random

    def play(self, kills: int, say=lambda text: None) -> Counter:
        """End runs `kills` times; return how often in which stage.

        Raises:
            AssertionError: a run left something else than the undisturbed one.
        """
        self.csv = write_csv(
            synthetic_dataset(training=40, public=10, private=10), self.folder / "faces.csv"
        )
        start = time.monotonic()
        whole, output = self._start("whole")
        assert whole.wait() == 0, output.read_text()
        lasted = time.monotonic() - start
        say(f"undisturbed: {lasted:.0f} s")
        tally: Counter = Counter()
        run = 0
        while sum(tally.values()) < kills:
            process, output = self._start(f"run{run}")
            number = SIGNALS[sum(tally.values()) % len(SIGNALS)]
            try:
                process.wait(self.chance.uniform(0.2, 0.95) * lasted)
            except subprocess.TimeoutExpired:
                stage = self._stage(f"run{run}", output)
                process.send_signal(number)
                status = process.wait()
                assert status in {-number, 128 + number, 0}, (status, output.read_text())
                tally[stage] += 1
                say(f"{signal.Signals(number).name} while {stage}: status {status}")
            if process.returncode == 0:
                self._compare(f"run{run}")
                run += 1
        process, output = self._start(f"run{run}")
        assert process.wait() == 0, output.read_text()
        self._compare(f"run{run}")
        return tally

    def _start(self, name: str) -> tuple[subprocess.Popen, Path]:
        """Start a run, or go on with it."""
        out, output = self.folder / name, self.folder / f"{name}.txt"
        argv = ["--resume", out]
        if not (out / "config.json").exists():
            argv = ["--data", self.csv, "--out", out, *SHORT, *RELABELED]
        environment = os.environ | {"FER_CACHE": str(self.folder / f"{name}-cache")}
        with open(output, "w") as file:
            process = subprocess.Popen(
                [sys.executable, ROOT / "train.py", *map(str, argv)],
                stdout=file,
                stderr=file,
                env=environment | {"PYTHONUNBUFFERED": "1"},
            )
        return process, output

    def _stage(self, name: str, output: Path) -> str:
        text = output.read_text()
        if list((self.folder / name).glob(".*.part")):
            return "writing"
        if "data " not in text:
            return "starting"
        if "run  " not in text:
            return "seeking landmarks"
        return "evaluating" if f"epoch {EPOCHS}/{EPOCHS}" in text else "training"

    def _compare(self, name: str) -> None:
        one, other = self.folder / "whole", self.folder / name
        assert_same_run(one, other)
        left = {path.name for path in other.iterdir()} - {path.name for path in one.iterdir()}
        assert not left, left


def assert_same_run(one: Path, other: Path) -> None:
    """Compare all that two run folders tell, but for the time."""
    for name in ("metrics.csv", "relabels.csv", "metrics.json", "predictions.csv"):
        assert (one / name).read_text() == (other / name).read_text(), name
    for name in ("last.pth", "best.pth"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (one, other))
        for content in (first, second):
            content["options"].pop("out")
        assert same(first, second), name


def same(a, b) -> bool:
    """Tell whether two nests of dicts, lists, tensors and values are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


if __name__ == "__main__":
    tyro.cli(main)
