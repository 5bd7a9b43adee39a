"""How fast a trained network reads faces: PyTorch, ONNX in 32 bits, ONNX in 8 bits, by turns.

python -m benchmarks.inference --model_path RUN/best.pth

It exports the weights into a temporary folder. Detection has a line of its own: what finding the
faces of a 640 x 360 frame takes, in as many threads as there are cores.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import tyro

import export
from data.detect import find_faces
from data.sample import synthetic_faces
from models.checkpoint import load_checkpoint
from models.runtime import load_runtime
from utils.errors import run_main
from utils.run import RUNS


@dataclass(frozen=True)
class InferenceOptions:
    """Options of the benchmark."""

    model_path: str = str(RUNS / "resnet18.pth")
    """The weights."""
    batch_sizes: tuple[int, ...] = (1, 8, 64)
    """Faces per call."""
    seconds: float = 2.0
    """Of each measurement."""
    rounds: int = 3
    """Measurements, by turns; their median and range are told."""
    threads: int = 0
    """0 takes one per core."""


def main() -> None:
    options = tyro.cli(InferenceOptions, description=__doc__, use_underscores=True)
    checkpoint = load_checkpoint(options.model_path)
    channels = checkpoint.architecture.channels
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        paths = {"PyTorch": Path(options.model_path)}
        model = export.export(checkpoint)
        for name, each in (
            ("ONNX, 32 bits", model),
            ("ONNX, 8 bits", export.quantized(model, synthetic_faces(training=30), channels)),
        ):
            paths[name] = Path(folder) / f"{len(paths)}.onnx"
            export.write(each, paths[name])
        runtimes = {name: load_runtime(p, "-1", options.threads) for name, p in paths.items()}
        rates: dict[tuple[str, int], list[float]] = {}
        for _ in range(options.rounds):
            for size in options.batch_sizes:
                width = checkpoint.image_width
                pixels = np.random.default_rng(0).integers(0, 256, (size, channels, width, width))
                pixels = pixels.astype(np.uint8)
                for name, runtime in runtimes.items():
                    rate = size * calls_per_second(lambda: runtime(pixels), options.seconds)  # noqa: B023
                    rates.setdefault((name, size), []).append(rate)
    print("faces/s, median of", options.rounds, "(range), and how many times PyTorch's")
    print(f"{'':16}" + "".join(f"{f'batch of {size}':>32}" for size in options.batch_sizes))
    for name in runtimes:
        cells = []
        for size in options.batch_sizes:
            values, torch_rate = rates[name, size], statistics.median(rates["PyTorch", size])
            rate = statistics.median(values)
            cells.append(
                f"{rate:.0f} ({min(values):.0f} to {max(values):.0f}) x {rate / torch_rate:.1f}"
            )
        print(f"{name:16}" + "".join(f"{cell:>32}" for cell in cells))
    frames = np.random.default_rng(0).integers(0, 256, (16, 360, 640, 3), np.uint8)
    with ThreadPoolExecutor(cores := joblib.cpu_count()) as pool:
        rate = 16 * calls_per_second(
            lambda: list(pool.map(lambda frame: find_faces(frame, 640), frames)), options.seconds
        )
    print(f"detection: {rate:.0f} frames/s of 640 x 360 pixels in {cores} threads")


def calls_per_second(call: Callable[[], object], seconds: float) -> float:
    """Return how often a call can be made, after one to warm up."""
    call()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        call()
        count += 1
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    run_main(main)
