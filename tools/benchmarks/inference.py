"""Measure the inference throughput of PyTorch, ONNX in float32, and ONNX in int8.

    python -m tools.benchmarks.inference --model_path RUN/best.pth
    python -m tools.benchmarks.inference --width 1      a full-width ResNet-18, not trained

The weights are exported as by export.py. Face detection is measured on frames of 640 x 360 pixels,
with a thread per core.
"""

import statistics
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import joblib
import numpy as np

from inference.detector import detect_faces
from inference.onnx_export import quantize, to_onnx
from inference.runtime import load_runtime
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet
from tools.benchmarks.common import calls_per_second, median_and_range
from utils.classes import EMOTIONS
from utils.cli import parse
from utils.errors import run_main
from utils.run_folder import FERPLUS_WEIGHTS


@dataclass(frozen=True)
class InferenceOptions:
    """Options of the benchmark."""

    model_path: str = str(FERPLUS_WEIGHTS)
    """The weights."""
    width: float = 0.0
    """Use a ResNet-18 with this factor on its channels instead, not trained, which is as fast."""
    batch_sizes: tuple[int, ...] = (1, 8, 64)
    """Images per call."""
    seconds: float = 2.0
    """Duration of each measurement."""
    rounds: int = 3
    """Measurements of each, in alternation; the median and the range are printed."""
    threads: int = 0
    """CPU threads; 0 is one per core."""


def main() -> None:
    options = parse(InferenceOptions, sys.argv[1:], __doc__)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        folder = Path(temporary)
        weights = Path(options.model_path)
        if options.width:
            weights = write_untrained(options.width, folder / "untrained.pth")
        checkpoint = load_checkpoint(weights)
        model = to_onnx(checkpoint)
        shape = (64, checkpoint.channels, checkpoint.image_width, checkpoint.image_width)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        paths = {"PyTorch": weights}
        for name, exported in (("ONNX, float32", model), ("ONNX, int8", quantize(model, pixels))):
            paths[name] = folder / f"{name}.onnx"
            paths[name].write_bytes(exported.SerializeToString())
        print_rates(paths, options)
    frames = np.random.default_rng(0).integers(0, 256, (16, 360, 640, 3), np.uint8)
    with ThreadPoolExecutor(cores := joblib.cpu_count()) as pool:
        rate = len(frames) * calls_per_second(
            lambda: list(pool.map(lambda frame: detect_faces(frame, 640), frames)), options.seconds
        )
    print(f"detection: {rate:.0f} frames/s of 640 x 360 pixels with {cores} threads")


def write_untrained(width: float, path: Path) -> Path:
    """Write the weights of a new ResNet-18, and return the path."""
    network = FERNet(Architecture(width=width)).eval()
    save_checkpoint(path, Checkpoint(network.architecture, network.state_dict(), EMOTIONS, 48))
    return path


def print_rates(paths: Mapping[str, Path], options: InferenceOptions) -> None:
    """Print images per second by runtime and batch size, and the ratio to PyTorch."""
    threads = options.threads or joblib.cpu_count()  # the same for PyTorch and ONNX Runtime
    runtimes = {name: load_runtime(path, "-1", threads) for name, path in paths.items()}
    rng, width = np.random.default_rng(0), runtimes["PyTorch"].image_width
    rates: dict[tuple[str, int], list[float]] = {}
    for _, size in product(range(options.rounds), options.batch_sizes):
        shape = (size, runtimes["PyTorch"].channels, width, width)
        pixels = rng.integers(0, 256, shape, np.uint8)
        for name, runtime in runtimes.items():
            rate = size * calls_per_second(partial(runtime, pixels), options.seconds)
            rates.setdefault((name, size), []).append(rate)
    print(f"images/s, median of {options.rounds} (range), and ratio to PyTorch")
    print(" " * 16 + "".join(f"{'batch size':>28} {size:<3}" for size in options.batch_sizes))
    medians = {key: statistics.median(values) for key, values in rates.items()}
    for name in runtimes:
        ratios = [medians[name, size] / medians["PyTorch", size] for size in options.batch_sizes]
        texts = [median_and_range(rates[name, size]) for size in options.batch_sizes]
        cells = [f"{text} x {ratio:.1f}" for text, ratio in zip(texts, ratios)]
        print(f"{name:16}" + "".join(f"{cell:>32}" for cell in cells))


if __name__ == "__main__":
    run_main(main)
