"""What it costs to bring the faces to the network: reading, the cache, the stores, landmarks.

    python -m tools.benchmarks.data                  FER2013's size and ten times that: 3 GB of disk
    python -m tools.benchmarks.data --factors 1      FER2013's size alone

Each measurement has a process of its own, so that the peak memory is its own too. The
CSV holds random pixels; landmarks are sought in the synthetic sample.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import joblib
import numpy as np
import torch
import tyro

from data.dataset import FaceDataset
from data.in_memory import InMemoryDataset
from data.landmarks import add_landmarks
from data.source import find_source, load_dataset
from data.synthetic.generate import synthetic_dataset
from tools.benchmarks.memory import peak_memory
from utils.errors import run_main

BATCH = 128


@dataclass(frozen=True)
class DataOptions:
    """Options of the benchmark."""

    faces: int = 35_887
    """Faces of the smallest set: FER2013's number."""
    factors: tuple[int, ...] = (1, 10)
    """Sets of so many times as many."""
    plot_landmarks: int = 12_000
    """Faces in which landmarks are sought, by one process and by one per core."""
    rounds: int = 3
    """Of the landmarks, by turns; the ratio is that of the medians."""


def main() -> None:
    options = tyro.cli(DataOptions, description=__doc__, use_underscores=True)
    print(f"{'':38}{'faces':>10}{'seconds':>10}{'us a face':>11}{'peak GB':>9}")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        for factor in options.factors:
            n = options.faces * factor
            csv, cache = Path(folder) / f"{n}.csv", Path(folder) / "cache"
            write_csv(csv, n)
            show("first read of the CSV", n, parse, csv, cache)
            show("read again, from the cache", n, parse, csv, cache)
            for kind in ("device", "host", "disk"):
                show(f"an epoch's batches, --store {kind}", n, stream, csv, cache, kind)
            csv.unlink()
    n, cores = options.plot_landmarks, joblib.cpu_count()
    seconds: dict[int, list[float]] = {1: [], cores: []}
    for _ in range(options.rounds):
        for jobs, all_rounds in seconds.items():
            name = f"landmarks, {jobs} process{'es' * (jobs > 1)}"
            all_rounds.append(show(name, n, seek, n, jobs))
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[cores])
    print(f"\nlandmarks: {ratio / cores:.2f} x {cores} cores x one process's rate")


def show(name: str, n: int, function: Callable[..., float], *args: object) -> float:
    """Call a function in a process of its own; print and return the seconds that it tells."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        seconds, peak = pool.submit(_measured, function, *args).result()
    print(f"{name:38}{n:>10,}{seconds:>10.2f}{1e6 * seconds / n:>11.1f}{peak:>9.2f}", flush=True)
    return seconds


def write_csv(path: Path, n: int) -> None:
    """Write a fer2013.csv of n random faces."""
    rng = np.random.default_rng(0)
    numbers = np.array([str(i) for i in range(256)])
    rows = [" ".join(numbers[rng.integers(0, 256, 48 * 48)]) for _ in range(min(n, 1000))]
    with open(path, "w", encoding="ascii") as file:
        file.write("emotion,pixels,Usage\n")
        for i in range(n):
            split = "Training" if i % 10 < 8 else "PublicTest" if i % 10 == 8 else "PrivateTest"
            file.write(f"{i % 7},{rows[i % len(rows)]},{split}\n")


def parse(csv: Path, cache: Path) -> float:
    """Read the set."""
    start = time.perf_counter()
    faces = load_dataset(find_source(str(csv)), cache=cache)
    assert len(faces)
    return time.perf_counter() - start


def stream(csv: Path, cache: Path, kind: str) -> float:
    """Bring every face to the CPU once, in batches of random faces."""
    faces: FaceDataset = load_dataset(find_source(str(csv)), cache=cache)
    store = InMemoryDataset(faces, np.arange(len(faces)), torch.device("cpu"), kind)
    batches = torch.randperm(len(faces)).split(BATCH)
    start = time.perf_counter()
    assert sum(len(images) for images, _ in store.stream(batches)) == len(faces)
    return time.perf_counter() - start


def seek(n: int, jobs: int) -> float:
    """Find landmarks without a cache."""
    drawn = synthetic_dataset(training=70, public=1, private=1)
    faces = replace(drawn, landmarks=None).select(np.arange(n) % len(drawn))
    with tempfile.TemporaryDirectory() as cache:
        add_landmarks(faces.select(np.arange(1)), Path(cache), jobs, progress=False)  # warm up
        start = time.perf_counter()
        add_landmarks(faces, Path(cache), jobs, progress=False)
        return time.perf_counter() - start


def _measured(function: Callable[..., float], *args: object) -> tuple[float, float]:
    return function(*args), peak_memory()


if __name__ == "__main__":
    run_main(main)
