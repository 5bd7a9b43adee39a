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
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import joblib
import numpy as np
import pandas as pd
import tyro

from data.dataset import EMOTIONS
from data.synthetic.generate import synthetic_dataset
from inference.detector import detect_faces
from inference.runtime import load_runtime
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet
from tools.benchmarks.common import calls_per_second, median_and_range
from utils.errors import RunError, run_main
from utils.run_folder import PHOTO_WEIGHTS, ROOT

FPS = 25
VIDEOS = ((2, 2, (640, 360)), (3, 4, (960, 540)))  # rows and columns of faces; width and height
PYTORCH = "PyTorch"


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
    options = tyro.cli(InferenceOptions, description=__doc__, use_underscores=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        weights = Path(options.model_path)
        if options.width:
            weights = write_untrained(options.width, folder / "untrained.pth")
        onnx = folder / "model.onnx"
        run_script(
            "export.py", "--model_path", weights, "--out", onnx, "--int8", "--data", "sample"
        )
        exported = {"ONNX, float32": onnx, "ONNX, int8": onnx.with_suffix(".int8.onnx")}
        print_rates({PYTORCH: weights, **exported}, options)
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
    """Run a script of the repository.

    Raises:
        RunError: It failed.
    """
    command = [sys.executable, str(ROOT / name), *map(str, argv)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RunError(f"{name} failed:\n{result.stderr}")


def print_rates(paths: Mapping[str, Path], options: InferenceOptions) -> None:
    """Print images per second by runtime and batch size, and the ratio to PyTorch."""
    checkpoint = load_checkpoint(paths[PYTORCH])
    width, rng = checkpoint.image_width, np.random.default_rng(0)
    runtimes = {name: load_runtime(p, "-1", options.threads) for name, p in paths.items()}
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.rounds):
        for size in options.batch_sizes:
            shape = (size, checkpoint.channels, width, width)
            pixels = rng.integers(0, 256, shape, np.uint8)
            for name, runtime in runtimes.items():
                rate = size * calls_per_second(lambda: runtime(pixels), options.seconds)  # noqa: B023
                rates.setdefault((name, size), []).append(rate)
    print(f"images/s, median of {options.rounds} (range), and ratio to PyTorch")
    print(f"{'':16}" + "".join(f"{f'batch size {size}':>32}" for size in options.batch_sizes))
    for name in runtimes:
        print(f"{name:16}", end="")
        for size in options.batch_sizes:
            values, baseline = rates[name, size], statistics.median(rates[PYTORCH, size])
            ratio = statistics.median(values) / baseline
            print(f"{f'{median_and_range(values)} x {ratio:.1f}':>32}", end="")
        print(flush=True)


def print_videos(paths: Mapping[str, Path], options: InferenceOptions, folder: Path) -> None:
    """Print frames per second of predict.py, by runtime and number of faces."""
    headers = [f"{rows * columns} faces, {w} x {h}" for rows, columns, (w, h) in VIDEOS]
    print(f"{'videos, frames/s':16}" + "".join(f"{header:>32}" for header in headers))
    num_frames = max(2, round(FPS * options.video_seconds))
    start_up = folder / "start_up.mp4"
    write_video(start_up, *VIDEOS[0], 1)
    for name, path in paths.items():
        print(f"{name:16}", end="")
        offset, _ = predict_video(start_up, path, options.threads)
        for rows, columns, size in VIDEOS:
            video = folder / f"{rows}x{columns}.mp4"
            write_video(video, rows, columns, size, num_frames)
            seconds, num_faces = predict_video(video, path, options.threads)
            rate = (num_frames - 1) / max(seconds - offset, 1e-3)
            print(f"{f'{rate:.1f} ({num_faces} faces found)':>32}", end="")
        print(flush=True)


def predict_video(video: Path, model_path: Path, threads: int) -> tuple[float, int]:
    """Run predict.py on a video; return the seconds, and the number of faces in all frames."""
    with tempfile.TemporaryDirectory() as out:
        argv = ("--model_path", model_path, "--threads", threads, "--gpu_ids", "-1", "--out", out)
        start = time.perf_counter()
        run_script("predict.py", video, *argv)
        seconds = time.perf_counter() - start
        return seconds, len(pd.read_csv(Path(out) / "predictions.csv"))


def write_video(file: Path, rows: int, columns: int, size: tuple[int, int], frames: int) -> None:
    """Write a video of a grid of synthetic faces that move sideways.

    Args:
        file: The MP4 file.
        rows: Rows of faces.
        columns: Columns of faces.
        size: Width and height in pixels.
        frames: Number of frames.
    """
    side, step = size[1] // rows, size[0] // columns
    images = synthetic_dataset(training=2, public=0, private=0, seed=2).images[: rows * columns]
    faces = [cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC) for face in images]
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), FPS, size)
    if not writer.isOpened():
        raise RunError(f"OpenCV cannot write {file}; install opencv-python-headless from a wheel")
    for i in range(frames):
        frame = np.full((size[1], size[0], 3), 90, np.uint8)
        for k, face in enumerate(faces):
            top = k // columns * side
            left = k % columns * step + round((step - side) / 2 * (1 + math.sin(i / 8 + k)))
            frame[top : top + side, left : left + side] = face[..., None]
        writer.write(frame)
    writer.release()


if __name__ == "__main__":
    run_main(main)
