"""Kill a training run at random moments, resume it, and compare it with an uninterrupted run.

Both runs must leave the same files, to the bit:

    python -m tests.kills --kills 20

The data set is synthetic. Each run has its own cache, so it computes its landmarks.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from data.dataset import FaceDataset
from data.synthetic.generate import synthetic_dataset

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 12
SMALL = (
    "--threads",
    "1",
    "--gpu_ids",
    "-1",
    "--width",
    "0.1",
    "--image_width",
    "32",
    "--batch_size",
    "16",
)
RELABELED = (
    *("--total_epoch", str(EPOCHS)),
    *("--relabel", "ema", "--relabel_epoch", "2", "--margin_2", "0.01", "--relabel_cap", "1"),
)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # in rotation


def main(kills: int = 20, seed: int = 0) -> None:
    """Run the test.

    Args:
        kills: Number of kills.
        seed: Of the moments.
    """
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        tally = KillTest(Path(folder), random.Random(seed)).run(kills, log=print)
    print(
        f"\n{sum(tally.values())} kills: {', '.join(f'{n} {stage}' for stage, n in tally.items())}"
    )
    print("every resumed run is equal to the uninterrupted one, to the bit")


def write_csv(dataset: FaceDataset, path: Path) -> Path:
    """Write a data set in the format of fer2013.csv."""
    with open(path, "w") as file:
        file.write("emotion,pixels,Usage\n")
        for image, label, split in zip(dataset.images, dataset.labels, dataset.split):
            file.write(f"{label},{' '.join(map(str, image.flat))},{split}\n")
    return path


@dataclass
class KillTest:
    """Starts train.py in subfolders of `folder`, and kills it at random moments."""

    folder: Path
    rng: random.Random
    images: int = 40  # of each class for training

    def run(self, kills: int, log: Callable[[str], None] = lambda text: None) -> Counter:
        """Kill runs; return how many kills happened in which stage.

        Raises:
            AssertionError: A resumed run differs from the uninterrupted one.
        """
        few = self.images // 4
        dataset = synthetic_dataset(training=self.images, public=few, private=few)
        self.csv = write_csv(dataset, self.folder / "faces.csv")
        start = time.monotonic()
        process, output = self._start("reference")
        assert process.wait() == 0, output.read_text()
        duration = time.monotonic() - start
        log(f"uninterrupted: {duration:.0f} s")
        tally: Counter = Counter()
        run = 0
        while sum(tally.values()) < kills:
            process, output = self._start(f"run{run}")
            number = SIGNALS[sum(tally.values()) % len(SIGNALS)]
            try:
                process.wait(self.rng.uniform(0.2, 0.95) * duration)
            except subprocess.TimeoutExpired:
                stage = self._stage(f"run{run}", output)
                process.send_signal(number)
                status = process.wait()
                assert status in {-number, 128 + number, 0}, (status, output.read_text())
                tally[stage] += 1
                log(f"{signal.Signals(number).name} during {stage}: status {status}")
            if process.returncode == 0:
                self._compare(f"run{run}")
                run += 1
        process, output = self._start(f"run{run}")
        assert process.wait() == 0, output.read_text()
        self._compare(f"run{run}")
        return tally

    def _start(self, name: str) -> tuple[subprocess.Popen, Path]:
        """Start a run, or resume it."""
        out, output = self.folder / name, self.folder / f"{name}.txt"
        argv = ["--resume", out]
        if not (out / "config.json").exists():
            argv = ["--data", self.csv, "--out", out, *SMALL, *RELABELED]
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
            return "start"
        if "run  " not in text:
            return "landmarks"
        return "evaluation" if f"epoch {EPOCHS}/{EPOCHS}" in text else "training"

    def _compare(self, name: str) -> None:
        reference, other = self.folder / "reference", self.folder / name
        assert_same_run(reference, other)
        extra = {path.name for path in other.iterdir()} - {p.name for p in reference.iterdir()}
        assert not extra, extra


def assert_same_run(one: Path, other: Path) -> None:
    """Compare the files of two run folders, except those that contain durations."""
    for name in ("metrics.csv", "relabels.csv", "metrics.json", "predictions.csv"):
        assert (one / name).read_text() == (other / name).read_text(), name
    for name in ("last.pth", "best.pth"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (one, other))
        for content in (first, second):
            content["options"].pop("out")
        assert is_same(first, second), name


def is_same(a: Any, b: Any) -> bool:
    """Return whether two nests of dicts, lists, tensors and values are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(is_same, a, b))
    return a == b


if __name__ == "__main__":
    tyro.cli(main)
