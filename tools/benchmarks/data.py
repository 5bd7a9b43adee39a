"""Measure data loading: reading a CSV, the cache, storages of the images, and landmarks.

    python -m tools.benchmarks.data                FER2013's size and ten times that: 3 GB of disk
    python -m tools.benchmarks.data --factors 1    FER2013's size only

Each measurement runs in a process of its own, whose peak memory is printed. The CSV has random
pixels; landmarks are computed for synthetic images.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import joblib
import numpy as np
import torch

from data.in_memory import InMemoryDataset, Storage
from data.landmarks import add_landmarks
from data.source import find_source, load_dataset
from data.synthetic.generate import synthetic_dataset
from tools.benchmarks.common import peak_memory
from utils.cli import parse
from utils.errors import run_main


@dataclass(frozen=True)
class DataOptions:
    """Options of the benchmark."""

    images: int = 35_887
    """Images of the data set; the default is FER2013's number."""
    factors: tuple[int, ...] = (1, 10)
    """Multiples of that number to measure."""
    landmark_images: int = 12_000
    """Images for the landmarks, which are computed by one process and by one per core."""
    rounds: int = 3
    """Measurements of the landmarks, in alternation; the ratio is that of the medians."""


def main() -> None:
    options = parse(DataOptions, sys.argv[1:], __doc__)
    print(f"{'':38}{'images':>10}{'seconds':>10}{'us/image':>11}{'peak GB':>9}")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        for factor in options.factors:
            n = options.images * factor
            csv, cache = Path(folder) / f"{n}.csv", Path(folder) / "cache"
            write_csv(csv, n)
            print_row("CSV, without a cache", n, load, csv, cache)
            print_row("CSV, from the cache", n, load, csv, cache)
            for storage in ("device", "cpu", "mmap"):
                print_row(f"batches of an epoch, {storage}", n, stream, csv, cache, storage)
            csv.unlink()
    n, cores = options.landmark_images, joblib.cpu_count()
    seconds: dict[int, list[float]] = {1: [], cores: []}
    for _ in range(options.rounds):
        for jobs, measured in seconds.items():
            measured.append(print_row(f"landmarks, processes: {jobs}", n, find_landmarks, n, jobs))
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[cores])
    print(f"\nlandmarks: {ratio:.2f} times the rate of one process, on {cores} cores")


def print_row(name: str, n: int, function: Callable[..., float], *args: object) -> float:
    """Call a function in a new process; print and return the seconds that it returns."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        seconds, peak = pool.submit(with_peak_memory, function, *args).result()
    print(f"{name:38}{n:>10,}{seconds:>10.2f}{1e6 * seconds / n:>11.1f}{peak:>9.2f}", flush=True)
    return seconds


def write_csv(path: Path, n: int) -> None:
    """Write n random images as a fer2013.csv."""
    numbers = np.random.default_rng(0).integers(0, 256, (min(n, 1000), 48 * 48)).astype(str)
    rows = [" ".join(row) for row in numbers]
    splits = [*["Training"] * 8, "PublicTest", "PrivateTest"]
    with open(path, "w", encoding="ascii") as file:
        file.write("emotion,pixels,Usage\n")
        for i in range(n):
            file.write(f"{i % 7},{rows[i % len(rows)]},{splits[i % 10]}\n")


def load(csv: Path, cache: Path) -> float:
    """Load the data set; return the seconds."""
    start = time.perf_counter()
    load_dataset(find_source(str(csv)), cache=cache)
    return time.perf_counter() - start


def stream(csv: Path, cache: Path, storage: Storage) -> float:
    """Copy all images to the CPU device once, in random batches; return the seconds."""
    dataset = load_dataset(find_source(str(csv)), cache=cache)
    images = InMemoryDataset(dataset, np.arange(len(dataset)), torch.device("cpu"), storage=storage)
    batches = torch.randperm(len(dataset)).split(128)
    start = time.perf_counter()
    assert sum(len(pixels) for pixels, _ in images.stream(batches)) == len(dataset)
    return time.perf_counter() - start


def find_landmarks(n: int, jobs: int) -> float:
    """Compute the landmarks of n images without a cache; return the seconds."""
    synthetic = synthetic_dataset(training=70, public=1, private=1)
    dataset = replace(synthetic, landmarks=None).select(np.arange(n) % len(synthetic))
    with tempfile.TemporaryDirectory() as cache:
        add_landmarks(dataset.select(np.arange(1)), Path(cache), jobs, progress=False)  # warm up
        start = time.perf_counter()
        add_landmarks(dataset, Path(cache), jobs, progress=False)
        return time.perf_counter() - start


def with_peak_memory(function: Callable[..., float], *args: object) -> tuple[float, float]:
    return function(*args), peak_memory()


if __name__ == "__main__":
    run_main(main)
