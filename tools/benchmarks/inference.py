"""Measure the inference throughput of PyTorch, ONNX in float32, and ONNX in int8.

    python -m tools.benchmarks.inference --model_path RUN/best.pth
    python -m tools.benchmarks.inference --width 1      a full-width ResNet-18, not trained

The weights are exported by export.py. Then predict.py processes videos of synthetic faces, from
decoding to the annotated video; its start-up time is subtracted. Face detection alone is measured
on frames of 640 x 360 pixels, with a thread per core.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import cv2
import joblib
import numpy as np
import pandas as pd

from data.dataset import EMOTIONS
from data.synthetic.generate import synthetic_dataset
from inference.detector import detect_faces
from inference.runtime import load_runtime
from models.checkpoint import Checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet
from tools.benchmarks.common import calls_per_second, median_and_range
from utils.cli import parse
from utils.errors import RunError, run_main
from utils.run_folder import PHOTO_WEIGHTS, ROOT

FPS = 25
VIDEOS = ((2, 2, (640, 360)), (3, 4, (960, 540)))  # rows and columns of faces; width and height


@dataclass(frozen=True)
class InferenceOptions:
    """Options of the benchmark."""

    model_path: str = str(PHOTO_WEIGHTS)
    """The weights."""
    width: float = 0.0
    """Use a ResNet-18 with this factor on its channels instead, not trained, which is as fast."""
    batch_sizes: tuple[int, ...] = (1, 8, 64)
    """Images per call."""
    seconds: float = 2.0
    """Duration of each measurement."""
    rounds: int = 3
    """Measurements of each, in alternation; the median and the range are printed."""
    video_seconds: float = 8.0
    """Duration of the videos."""
    threads: int = 0
    """CPU threads; 0 is one per core."""


def main() -> None:
    options = parse(InferenceOptions, sys.argv[1:], __doc__)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        weights = Path(options.model_path)
        if options.width:
            weights = write_untrained(options.width, folder / "untrained.pth")
        onnx = folder / "model.onnx"
        argv = ("--model_path", weights, "--out", onnx, "--int8", "--data", "sample")
        run_script("export.py", *argv)
        exported = {"ONNX, float32": onnx, "ONNX, int8": onnx.with_suffix(".int8.onnx")}
        print_rates({"PyTorch": weights, **exported}, options)
        print_videos(exported, options, folder)
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


def run_script(name: str, *argv: object) -> None:
    """Run a script of the repository."""
    command = [sys.executable, str(ROOT / name), *map(str, argv)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RunError(f"{name} failed:\n{result.stderr}")


def print_rates(paths: Mapping[str, Path], options: InferenceOptions) -> None:
    """Print images per second by runtime and batch size, and the ratio to PyTorch."""
    runtimes = {name: load_runtime(path, "-1", options.threads) for name, path in paths.items()}
    rng, width = np.random.default_rng(0), runtimes["PyTorch"].image_width
    rates: dict[tuple[str, int], list[float]] = {}
    for _, size in product(range(options.rounds), options.batch_sizes):
        shape = (size, runtimes["PyTorch"].channels, width, width)
        pixels = rng.integers(0, 256, shape, np.uint8)
        for name, runtime in runtimes.items():
            rate = size * calls_per_second(partial(runtime, pixels), options.seconds)
            rates.setdefault((name, size), []).append(rate)
    print(f"images/s, median of {options.rounds} (range), and ratio to PyTorch")
    print_row("", [f"batch size {size}" for size in options.batch_sizes])
    medians = {key: statistics.median(values) for key, values in rates.items()}
    for name in runtimes:
        ratios = [medians[name, size] / medians["PyTorch", size] for size in options.batch_sizes]
        texts = [median_and_range(rates[name, size]) for size in options.batch_sizes]
        print_row(name, [f"{text} x {ratio:.1f}" for text, ratio in zip(texts, ratios)])


def print_videos(paths: Mapping[str, Path], options: InferenceOptions, folder: Path) -> None:
    """Print frames per second of predict.py, by runtime and number of faces."""
    print_row("videos, frames/s", [f"{r * c} faces, {w} x {h}" for r, c, (w, h) in VIDEOS])
    num_frames = max(2, round(FPS * options.video_seconds))
    videos = [folder / f"{i}.mp4" for i in range(len(VIDEOS))]
    for video, layout in zip(videos, VIDEOS):
        write_video(video, *layout, num_frames)
    write_video(folder / "start_up.mp4", *VIDEOS[0], 1)
    for name, path in paths.items():
        start_up, _ = predict_video(folder / "start_up.mp4", path, options.threads)
        results = [predict_video(video, path, options.threads) for video in videos]
        rates = [(num_frames - 1) / max(seconds - start_up, 1e-3) for seconds, _ in results]
        counts = [num_faces for _, num_faces in results]
        print_row(name, [f"{rate:.1f} ({n} faces found)" for rate, n in zip(rates, counts)])


def print_row(name: str, cells: Sequence[str]) -> None:
    print(f"{name:16}" + "".join(f"{cell:>32}" for cell in cells), flush=True)


def predict_video(video: Path, model_path: Path, threads: int) -> tuple[float, int]:
    """Run predict.py on a video; return the seconds, and the number of faces in all frames."""
    with tempfile.TemporaryDirectory() as out:
        argv = ("--model_path", model_path, "--threads", threads, "--gpu_ids", "-1", "--out", out)
        start = time.perf_counter()
        run_script("predict.py", video, *argv)
        seconds = time.perf_counter() - start
        return seconds, len(pd.read_csv(Path(out) / "predictions.csv"))


def write_video(file: Path, rows: int, columns: int, size: tuple[int, int], frames: int) -> None:
    """Write a video of a grid of synthetic faces that move sideways; `size` is width and height."""
    side, step = size[1] // rows, size[0] // columns
    images = synthetic_dataset(training=2, public=0, private=0, seed=2).images[: rows * columns]
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), FPS, size)
    if not writer.isOpened():
        raise RunError(f"OpenCV cannot write {file}; install opencv-python-headless from a wheel")
    for i in range(frames):
        frame = np.full((size[1], size[0], 3), 90, np.uint8)
        for k, image in enumerate(images):
            top = k // columns * side
            left = k % columns * step + round((step - side) / 2 * (1 + math.sin(i / 8 + k)))
            face = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
            frame[top : top + side, left : left + side] = face[..., None]
        writer.write(frame)
    writer.release()


if __name__ == "__main__":
    run_main(main)
