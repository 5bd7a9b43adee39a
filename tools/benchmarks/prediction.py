"""Measure the time of predict.py per photograph and per frame of a video, by its options.

    python -m tools.benchmarks.prediction --model_path model.onnx

The photograph is scikit-image's astronaut, with one face, and the video moves over it. The time of
a small input is subtracted from that of a large one, so loading the weights is not included.
"""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from skimage.data import astronaut

from inference.video_writer import VideoWriter
from tools.benchmarks.common import median_and_range
from utils.cli import parse
from utils.errors import ProjectError, run_main
from utils.run_folder import FERPLUS_WEIGHTS, ROOT

SIZE = 360, 480  # height and width of the video
VARIANTS = ("--views 0", "--views 1", "--views 4", "--views 1 --no_draw", "--views 1 --explain")
SMALL = 2  # images or frames of the small input


@dataclass(frozen=True)
class PredictionOptions:
    """Options of the benchmark."""

    model_path: str = str(FERPLUS_WEIGHTS)
    """The weights."""
    variants: str = "; ".join(VARIANTS)
    """Options of predict.py for each row; give them with an equals sign: --variants="--views 2"."""
    photographs: int = 40
    """Photographs of the large input."""
    frames: int = 200
    """Frames of the large input."""
    rounds: int = 3
    """Measurements of each, in alternation; the median and the range are printed."""
    threads: int = 1
    """CPU threads of the network."""


def main() -> None:
    options = parse(PredictionOptions, sys.argv[1:], __doc__)
    image, shared = astronaut(), ["--model_path", options.model_path, "--gpu_ids", "-1"]
    shared += ["--threads", str(options.threads), "--max_shift", "inf"]
    variants = [text.strip() for text in options.variants.split(";")]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        folder = Path(temporary)
        for unit, count in (("photograph", options.photographs), ("frame", options.frames)):
            paths = [folder / f"{unit}_{n}" for n in (SMALL, SMALL + count)]
            for path, n in zip(paths, (SMALL, SMALL + count)):
                inputs = write_photographs if unit == "photograph" else write_video
                inputs(path, image, n)
            print(f"{f'ms per {unit}':40}{'wall clock':>22}{'CPU':>22}")
            measured = [
                [per_item(paths, count, [*shared, *shlex.split(text)]) for text in variants]
                for _ in range(options.rounds)
            ]
            for variant, *rounds in zip(variants, *measured):
                texts = [median_and_range(values, 1) for values in zip(*rounds)]
                print(f"{variant:40}{texts[0]:>22}{texts[1]:>22}", flush=True)


def write_photographs(folder: Path, image: np.ndarray, count: int) -> None:
    """Write copies of a photograph, uint8 [H, W, 3] in RGB."""
    folder.mkdir()
    for i in range(count):
        cv2.imwrite(str(folder / f"{i}.png"), image[..., ::-1])


def write_video(folder: Path, image: np.ndarray, count: int) -> None:
    """Write a video that moves over a photograph, uint8 [H, W, 3] in RGB."""
    folder.mkdir()
    height, width = SIZE
    with closing(VideoWriter(folder / "video.mp4", 25, (width, height))) as writer:
        for i in range(count):
            x = round((image.shape[1] - width) * (1 + np.sin(i / 10)) / 2)
            writer.write(np.ascontiguousarray(image[:height, x : x + width]))


def per_item(paths: Sequence[Path], count: int, argv: Sequence[str]) -> tuple[float, float]:
    """Return the milliseconds of wall clock and of CPU time by which a large input takes longer."""
    (clock, cpu), (large_clock, large_cpu) = (seconds_of(path, argv) for path in paths)
    return 1000 * (large_clock - clock) / count, 1000 * (large_cpu - cpu) / count


def seconds_of(path: Path, argv: Sequence[str]) -> tuple[float, float]:
    """Return the wall-clock and the CPU time of predict.py in seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as out:
        command = [sys.executable, ROOT / "predict.py", *argv, "--out", Path(out) / "out", path]
        process = subprocess.run(command, check=False, capture_output=True, text=True)
    if process.returncode:
        raise ProjectError(f"predict.py failed: {process.stderr.strip()}")
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return clock, cpu


if __name__ == "__main__":
    run_main(main)
