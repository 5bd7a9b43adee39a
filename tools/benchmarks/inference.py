"""How fast a trained network reads faces: PyTorch, ONNX in 32 bits, ONNX in 8 bits, by turns.

    python -m tools.benchmarks.inference --model_path RUN/best.pth
    python -m tools.benchmarks.inference --width 1                     the whole ResNet-18, untrained

It exports the weights into a temporary folder. Then it reads videos of drawn faces as predict.py
does, from decoding them to writing the annotated ones. Detection has a line of its own: finding the
faces of a 640 x 360 frame, in as many threads as there are cores.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import joblib
import numpy as np
import tyro

import export
from data.dataset import EMOTIONS
from data.synthetic.generate import synthetic_dataset
from inference.detector import detect_faces
from inference.predictor import FacePredictor
from inference.records import Records
from inference.runtime import load_runtime
from inference.video import VideoWriter
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet
from predict import InferenceRunner, PredictOptions
from utils.errors import run_main
from utils.run_folder import PHOTO_WEIGHTS, RunFolder

VIDEOS = ((2, 2, (640, 360)), (3, 4, (960, 540)))  # rows and columns of faces, width and height


@dataclass(frozen=True)
class InferenceOptions:
    """Options of the benchmark."""

    model_path: str = str(PHOTO_WEIGHTS)
    """The weights."""
    width: float = 0.0
    """Instead of them an untrained ResNet-18 with this factor on its channels, which is as fast."""
    batch_sizes: tuple[int, ...] = (1, 8, 64)
    """Faces per call."""
    seconds: float = 2.0
    """Of each measurement."""
    rounds: int = 3
    """Measurements, by turns; their median and range are told."""
    video_seconds: float = 8.0
    """Of the videos, at 25 frames a second."""
    threads: int = 0
    """0 takes one per core."""


def main() -> None:
    options = tyro.cli(InferenceOptions, description=__doc__, use_underscores=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        paths = {"PyTorch": Path(options.model_path)}
        if options.width:
            paths["PyTorch"] = untrained(options.width, Path(folder) / "untrained.pth")
        checkpoint = load_checkpoint(paths["PyTorch"])
        channels = checkpoint.channels
        for name, model in (
            ("ONNX, 32 bits", export.export(checkpoint)),
            ("ONNX, 8 bits", export.quantized(checkpoint, synthetic_dataset(training=30))),
        ):
            paths[name] = Path(folder) / f"{len(paths)}.onnx"
            export.write(model, paths[name])
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
        print_rates(rates, options)
        print_videos({name: path for name, path in paths.items() if name != "PyTorch"}, options)
    frames = np.random.default_rng(0).integers(0, 256, (16, 360, 640, 3), np.uint8)
    with ThreadPoolExecutor(cores := joblib.cpu_count()) as pool:
        rate = 16 * calls_per_second(
            lambda: list(pool.map(lambda frame: detect_faces(frame, 640), frames)), options.seconds
        )
    print(f"detection: {rate:.0f} frames/s of 640 x 360 pixels in {cores} threads")


def untrained(width: float, path: Path) -> Path:
    """Write the weights of a new ResNet-18."""
    network = FERNet(Architecture(width=width)).eval()
    save_checkpoint(path, Checkpoint(network.architecture, network.state_dict(), EMOTIONS, 48))
    return path


def print_rates(rates: Mapping[tuple[str, int], list[float]], options: InferenceOptions) -> None:
    """Print the runtimes' faces a second, by name and batch size."""
    print("faces/s, median of", options.rounds, "(range), and how many times PyTorch's")
    print(f"{'':16}" + "".join(f"{f'batch of {size}':>32}" for size in options.batch_sizes))
    for name in dict.fromkeys(name for name, _ in rates):
        cells = []
        for size in options.batch_sizes:
            values, torch_rate = rates[name, size], statistics.median(rates["PyTorch", size])
            rate = statistics.median(values)
            cells.append(
                f"{rate:.0f} ({min(values):.0f} to {max(values):.0f}) x {rate / torch_rate:.1f}"
            )
        print(f"{name:16}" + "".join(f"{cell:>32}" for cell in cells))


def print_videos(paths: Mapping[str, Path], options: InferenceOptions) -> None:
    """Print how many frames a second predict.py reads and writes, by faces in each."""
    print(f"{'videos, frames/s':16}", end="")
    print(
        "".join(f"{f'{rows * columns} faces, {w} x {h}':>32}" for rows, columns, (w, h) in VIDEOS)
    )
    count = max(2, round(25 * options.video_seconds))
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        for name, path in paths.items():
            predictor = FacePredictor(path, threads=options.threads)
            cells = []
            for i, (rows, columns, size) in enumerate(VIDEOS):
                file = Path(folder) / f"{name}-{i}.mp4"
                write_video(file.with_stem("short"), rows, columns, size, 1)
                read_video(predictor, file.with_stem("short"))  # to warm up
                write_video(file, rows, columns, size, count)
                start = time.perf_counter()
                found = read_video(predictor, file)
                rate = count / (time.perf_counter() - start)
                cells.append(f"{rate:.1f} ({found} faces found)")
            print(f"{name:16}" + "".join(f"{cell:>32}" for cell in cells))


def read_video(predictor: FacePredictor, file: Path) -> int:
    """Read a video as predict.py does; return the number of faces that were found."""
    with tempfile.TemporaryDirectory() as out, Records.opened(Path(out), {}) as records:
        job = InferenceRunner(
            PredictOptions((str(file),)), predictor, RunFolder(Path(out)), records
        )
        job.video(file)
    return job.faces


def write_video(file: Path, rows: int, columns: int, size: tuple[int, int], frames: int) -> None:
    """Write a video in which drawn faces, one in each field of a grid, sway to and fro."""
    side, step = size[1] // rows, size[0] // columns
    with closing(VideoWriter(file, 25.0)) as writer:
        drawn = synthetic_dataset(training=2, public=0, private=0, seed=2).images[: rows * columns]
        faces = [cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC) for face in drawn]
        for i in range(frames):
            frame = np.full((size[1], size[0], 3), 90, np.uint8)
            for k, face in enumerate(faces):
                top = k // columns * side
                left = k % columns * step + round((step - side) / 2 * (1 + math.sin(i / 8 + k)))
                frame[top : top + side, left : left + side] = face[..., None]
            writer.write(frame)


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
