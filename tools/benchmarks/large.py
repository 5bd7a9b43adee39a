"""Measure the training on a data set that is larger than memory: decoding, and the throughput.

    python -m tools.benchmarks.large     20,000 images: 0.5 GB of JPEG files, 3 GB of cache

Random JPEG files in RGB are decoded into a memory-mapped file, as if they did not fit into memory.
A bare loop (forward, backward and optimizer step on one fixed batch) and the trainer alternate. The
trainer's images are a random part of the file, which is removed from the system's cache before.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import torch

from data import mapped
from data.dataset import FaceDataset
from data.in_memory import InMemoryDataset
from data.source import find_source, load_dataset
from engine.build import build_network
from tools.benchmarks.common import bare_loop, median_and_range, seconds_per_call, trainer
from utils.classes import EMOTIONS
from utils.cli import parse
from utils.devices import pick_device
from utils.errors import run_main
from utils.options import Options
from utils.validation import validate_options


@dataclass(frozen=True)
class LargeOptions:
    """Options of the benchmark."""

    images: int = 20_000
    """Number of JPEG files."""
    batch_size: int = 128
    """Images per step."""
    steps: int = 2
    """Steps per measurement."""
    rounds: int = 5
    """Measurements of each, in alternation; the median and the range are printed."""
    gpu_ids: str = ""
    """As for train.py."""

    @property
    def training(self) -> Options:
        """Return the options of the training: ResNet-18 with torchvision's stem at 224 pixels."""
        shared = {"stem": "imagenet", "image_width": (224,), "channels": 3, "landmarks": False}
        return validate_options(Options(batch_size=self.batch_size, total_epoch=1000, **shared))


def main() -> None:
    options = parse(LargeOptions, sys.argv[1:], __doc__)
    device = pick_device(options.gpu_ids)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        write_jpegs(folder / "set", options.images)
        start = time.perf_counter()
        source, cache = find_source(str(folder / "set")), folder / "cache"
        with patch.multiple(mapped, MAX_MEMORY_SHARE=0.0, CACHE_DIR=cache):  # nothing fits
            dataset = load_dataset(source, 224, 3, cache=cache)
        rate = len(dataset) / (time.perf_counter() - start)
        print(f"decoded and loaded: {rate:.0f} images/s", flush=True)
        (file,) = cache.glob("images/*.npy")
        n, rates, training = options.batch_size * options.steps, [], options.training
        part = random_part(dataset, n, device)
        functions = (
            bare_loop(build_network(training, dataset), training, options.steps, device),
            trainer(build_network(training, dataset), training, dataset, part),
        )
        for i in range(options.rounds + 1):  # the first one to warm up
            drop_from_cache(file)
            rates.append([n / np.array(seconds(function, device)) for function in functions])
            (bare, _), (trained, _) = rates[-1]
            print(f"round {i}: bare loop {bare:.2f}, trainer {trained:.2f} images/s", flush=True)
    rates = np.transpose(rates[1:])  # [wall and CPU, 2 functions, rounds]
    for unit, (bare, trained) in zip(("images/s", "images per CPU second"), rates):
        texts = median_and_range(bare, 2), median_and_range(trained, 2)
        print(f"{unit}: bare loop {texts[0]}, trainer {texts[1]}")
        ratio = median_and_range(trained / bare, 3)
        print(f"  trainer relative to the bare loop of its round: {ratio}")


def seconds(function: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Return the time of a call, and the CPU time of all threads."""
    start = time.process_time()
    return seconds_per_call(function, device), time.process_time() - start


def write_jpegs(root: Path, n: int) -> None:
    """Write n random images of 224 pixels, in a folder per class."""
    rng = np.random.default_rng(0)
    for split, share in (("train", 0.9), ("validation", 0.1)):
        for label in EMOTIONS:
            (root / split / label).mkdir(parents=True)
        for i in range(round(n * share)):
            coarse = rng.integers(0, 256, (14, 14, 3), np.uint8)
            image = cv2.resize(coarse, (224, 224), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(root / split / EMOTIONS[i % len(EMOTIONS)] / f"{i}.jpg"), image)


def random_part(
    dataset: FaceDataset, n: int, device: torch.device
) -> Callable[[], InMemoryDataset]:
    """Return a function that chooses n other random Training images each time."""
    rng = np.random.default_rng(0)

    def choose() -> InMemoryDataset:
        rows = rng.choice(dataset.training_rows, n, replace=False)
        return InMemoryDataset(dataset, rows, device, storage="mmap")

    return choose


def drop_from_cache(file: Path) -> None:
    """Let the next accesses to a file read from the disk, where the system can do it."""
    if hasattr(os, "posix_fadvise"):
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    run_main(main)
