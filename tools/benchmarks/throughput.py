"""Measure the training throughput: the trainer, a bare loop, and a DataLoader baseline.

    python -m tools.benchmarks.throughput             width 1; some minutes on a CPU
    python -m tools.benchmarks.throughput --compile   on a GPU
    python -m tools.benchmarks.throughput --width 0.5 --batch_size 32

The four are measured in alternation: a bare loop (forward, backward and optimizer step on one fixed
batch, in the trainer's number format), the trainer with all modules (SCN, landmarks, augmentation,
EMA, metrics), the trainer with progressive resizing, and the DataLoader baseline. The baseline runs
in a process of its own, with the C library's default memory settings.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
import tyro
from torch.nn import functional as F

from data.dataset import EMOTIONS, LANDMARK_NUM, FaceDataset
from data.in_memory import InMemoryDataset
from data.loader import BatchLoader
from engine.build import wrap_model
from engine.distill import Teachers
from engine.distributed import DistributedContext
from engine.optim import EMA, build_optimizer
from engine.state import TrainingState
from engine.trainer import train_one_epoch
from models.fernet import Architecture, FERNet, describe
from tools.benchmarks.baseline import Baseline
from tools.benchmarks.common import measure, median_and_range
from tools.benchmarks.limits import print_limits, synchronize
from utils.cli import validate_options
from utils.devices import autocast, describe_device, pick_device, report_compile_errors, use_bf16
from utils.errors import run_main
from utils.options import Options

BARE, TRAINER, BASELINE = "bare loop", "trainer", "DataLoader baseline"


@dataclass(frozen=True)
class ThroughputOptions:
    """Options of the benchmark."""

    width: float = 1.0
    """A factor on the ResNet-18's channels."""
    image_width: tuple[int, ...] = (32, 40, 48)
    """As for train.py: several widths are progressive resizing; the last one is measured alone,
    too."""
    batch_size: int = 128
    """Images per step."""
    steps: int = 3
    """Steps per measurement; at least 100 on a GPU."""
    rounds: int = 3
    """Measurements of each, in alternation; the median and the range are printed."""
    compile: bool = False
    """As for train.py, also for the bare loop."""
    amp: Literal["auto", "bf16", "fp32"] = "auto"
    """As for train.py. fp32 is the number format of the DataLoader baseline."""
    workers: int = 2
    """Processes of the DataLoader baseline."""
    gpu_ids: str = ""
    """As for train.py."""


def main() -> None:
    options = tyro.cli(ThroughputOptions, description=__doc__, use_underscores=True)
    device = pick_device(options.gpu_ids)
    widths, last = options.image_width, options.image_width[-1]
    print(f"PyTorch {torch.__version__} on {describe_device(device)}")
    print(f"{describe(build_network(options))}; {last} px, batch size {options.batch_size}")
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        ProcessPoolExecutor(1, get_context("spawn")) as process,
        report_compile_errors(),
    ):
        functions: dict[str, Callable[[], None]] = {
            BARE: bare_loop(options, device),
            TRAINER: trainer(options, device, (last,)),
            BASELINE: lambda: process.submit(run_baseline, options, device, folder).result(),
        }
        for width in set(widths) - {last}:
            functions[f"{TRAINER}, {width} px"] = trainer(options, device, (width, last))
        seconds = measure(functions, options.rounds, lambda: synchronize(device))
    num_images = options.batch_size * options.steps
    rates = {name: [num_images / s for s in times] for name, times in seconds.items()}
    if len(widths) > 1:  # each width is used for an equal share of the epochs
        by_width = {width: rates.pop(f"{TRAINER}, {width} px") for width in set(widths) - {last}}
        by_width[last] = rates[TRAINER]
        rates[f"{TRAINER}, --image_width {' '.join(map(str, widths))}"] = [
            statistics.harmonic_mean(values) for values in zip(*(by_width[w] for w in widths))
        ]
    print_table(rates)
    network = build_network(options).to(device)
    print_limits(network, last, device, statistics.median(rates[TRAINER]))


def build_network(options: ThroughputOptions) -> FERNet:
    """Return the network of all measurements."""
    torch.manual_seed(0)
    return FERNet(Architecture(width=options.width, dropout=0.2)).train()


def training_options(options: ThroughputOptions, widths: tuple[int, ...]) -> Options:
    """Return the options of a training with all modules."""
    return validate_options(
        Options(
            batch_size=options.batch_size,
            image_width=widths,
            compile=options.compile,
            amp=options.amp,
            relabel_epoch=1,
            total_epoch=1000,
        )
    )


def bare_loop(options: ThroughputOptions, device: torch.device) -> Callable[[], None]:
    """Return a function that trains on one fixed batch: the network's computation only."""
    network = build_network(options).to(device, memory_format=torch.channels_last)
    width = options.image_width[-1]
    training = training_options(options, (width,))
    optimizer = build_optimizer(network, training)
    model = wrap_model(network, training, DistributedContext())
    bf16 = use_bf16(training.amp, device)
    images = torch.rand(options.batch_size, 1, width, width, device=device) * 255
    labels = torch.arange(options.batch_size, device=device) % len(EMOTIONS)

    def run() -> None:
        for _ in range(options.steps):
            with autocast(device, bf16):
                output = model(images)
            loss = F.cross_entropy(output.weighted_logits, labels)
            loss = loss + output.landmarks.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def trainer(
    options: ThroughputOptions, device: torch.device, widths: tuple[int, ...]
) -> Callable[[], None]:
    """Return a function that trains an epoch of `options.steps` batches at the first width."""
    training = training_options(options, widths)
    network = build_network(options).to(device, memory_format=torch.channels_last)
    dataset = random_dataset(options)
    images = InMemoryDataset(dataset, np.arange(len(dataset)), device)
    state = TrainingState(
        network=network,
        ema=EMA(network, training.ema),
        optimizer=build_optimizer(network, training),
        labels=images.labels,
    )
    context, teachers = DistributedContext(), Teachers()
    model = wrap_model(network, training, context)
    eta = SimpleNamespace(update=lambda: None)  # prints nothing

    def run() -> None:
        loader = BatchLoader(images, training, state.epoch + 1, equal_lengths=training.compile)
        train_one_epoch(state, model, loader, training, teachers, context, eta, [])

    return run


def run_baseline(options: ThroughputOptions, device: torch.device, folder: str) -> None:
    """Train an epoch with the DataLoader baseline."""
    build_baseline(options, device, folder).train_one_epoch()
    synchronize(device)


@cache
def build_baseline(options: ThroughputOptions, device: torch.device, folder: str) -> Baseline:
    """Return the baseline, which a process builds once."""
    network, dataset = build_network(options), random_dataset(options)
    sizes = options.batch_size, options.workers
    return Baseline(network, dataset, *sizes, device, Path(folder))


def random_dataset(options: ThroughputOptions) -> FaceDataset:
    """Return random images for one measurement; the time does not depend on their content."""
    rng, width = np.random.default_rng(0), options.image_width[-1]
    n = options.batch_size * options.steps
    return FaceDataset(
        images=rng.integers(0, 256, (n, width, width), np.uint8),
        labels=np.arange(n) % len(EMOTIONS),
        split=np.full(n, "Training"),
        class_names=EMOTIONS,
        landmarks=rng.uniform(0, width, (n, LANDMARK_NUM, 2)).astype(np.float32),
    )


def print_table(rates: dict[str, list[float]]) -> None:
    """Print images per second, and the ratios to the bare loop and the DataLoader baseline."""
    bare, baseline = (statistics.median(rates[name]) for name in (BARE, BASELINE))
    print(f"\n{'':40}{'images/s (range)':>28}{'of bare':>10}{'x baseline':>12}")
    for name, values in rates.items():
        rate = statistics.median(values)
        shares = f"{100 * rate / bare:>8.0f} %{rate / baseline:>12.1f}"
        print(f"{name:40}{median_and_range(values, 1):>28}{shares}")


if __name__ == "__main__":
    run_main(main)
