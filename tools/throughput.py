"""Measure the training throughput: the trainer, and a bare loop.

    python -m tools.throughput             width 1; some minutes on a CPU
    python -m tools.throughput --compile   on a GPU
    python -m tools.throughput --width 0.5 --batch_size 32

They are measured in alternation: a bare loop (forward, backward and optimizer step on one fixed
batch, in the trainer's precision), and the trainer with all modules.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from data.dataset import FaceDataset
from data.in_memory import InMemoryDataset
from data.loader import BatchLoader
from engine.build import build_state, wrap_model
from engine.distill import Teachers
from engine.distributed import DistributedContext
from engine.optim import build_optimizer
from engine.trainer import train_one_epoch
from models.fernet import Architecture, FERNet, describe
from utils.classes import EMOTIONS
from utils.cli import parse
from utils.coordinates import NUM_LANDMARKS
from utils.devices import (
    autocast,
    describe_device,
    pick_device,
    report_compile_errors,
    use_bf16,
)
from utils.errors import run_main
from utils.options import Options
from utils.validation import validate_options


@dataclass(frozen=True)
class ThroughputOptions:
    """Options of the benchmark."""

    width: float = 1.0
    """A factor on the ResNet-18's channels."""
    image_width: int = 48
    """Width of the images in pixels."""
    batch_size: int = 128
    """Images per step."""
    steps: int = 3
    """Steps per measurement; at least 100 on a GPU."""
    rounds: int = 3
    """Measurements of each, in alternation; the median and the range are printed."""
    compile: bool = False
    """As for train.py, also for the bare loop."""
    amp: Literal["auto", "bf16", "fp32"] = "auto"
    """As for train.py."""
    gpu_ids: str = ""
    """As for train.py."""


def main() -> None:
    options = parse(ThroughputOptions, sys.argv[1:], __doc__)
    device = pick_device(options.gpu_ids)
    network = new_network(options).to(device)
    print(f"PyTorch {torch.__version__} on {describe_device(device)}")
    print(f"{describe(network)}; {options.image_width} px, batch size {options.batch_size}")
    shared = {name: getattr(options, name) for name in ("batch_size", "compile", "amp")}
    shared |= {"image_width": (options.image_width,), "relabel_epoch": 1, "total_epoch": 1000}
    training, dataset = validate_options(Options(**shared)), random_dataset(options)
    images = InMemoryDataset(dataset, np.arange(len(dataset)), device)
    with report_compile_errors():
        functions = {
            "bare loop": bare_loop(new_network(options), training, options.steps, device),
            "trainer": trainer(new_network(options), training, dataset, images),
        }
        rates: dict[str, list[float]] = {name: [] for name in functions}
        for i in range(options.rounds + 1):  # the first one to warm up
            for name, function in functions.items():
                rate = options.batch_size * options.steps / seconds_per_call(function, device)
                if i > 0:
                    rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"\n{'':12}{'images/s (range)':>28}{'of bare':>10}")
    for name, rate in medians.items():
        text = f"{rate:,.1f} ({min(rates[name]):,.1f} to {max(rates[name]):,.1f})"
        print(f"{name:12}{text:>28}{100 * rate / medians['bare loop']:>8.0f} %")
    operations, limit = flops_per_image(network, options.image_width), matmul_rate(device)
    reached = medians["trainer"] * operations
    print(
        f"\n{operations / 1e9:.2f} GFLOP per image; the trainer computes {reached / 1e12:.3g} "
        f"TFLOP/s, {100 * reached / limit:.0f} % of a bf16 matrix product ({limit / 1e12:.3g})"
    )


def seconds_per_call(function: Callable[[], object], device: torch.device) -> float:
    """Time one call of a function, including its work on the device."""
    torch.get_device_module(device).synchronize(device)
    start = time.perf_counter()
    function()
    torch.get_device_module(device).synchronize(device)
    return time.perf_counter() - start


def bare_loop(
    network: FERNet, options: Options, steps: int, device: torch.device
) -> Callable[[], None]:
    """Return a function that trains on one fixed batch: the network's computation only."""
    network = network.train().to(device, memory_format=torch.channels_last)
    model = wrap_model(network, options, DistributedContext())
    optimizer = build_optimizer(network, options)
    n, width, a = options.batch_size, options.eval_image_width, network.architecture
    images = torch.rand(n, a.channels, width, width, device=device) * 255
    labels = torch.arange(n, device=device) % a.classes

    def run() -> None:
        for _ in range(steps):
            with autocast(device, use_bf16(options.amp, device)):
                output = model(images)
            loss = F.cross_entropy(output.weighted_logits, labels)
            if output.landmarks is not None:
                loss = loss + output.landmarks.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def trainer(
    network: FERNet, options: Options, dataset: FaceDataset, images: InMemoryDataset
) -> Callable[[], None]:
    """Return a function that trains an epoch, with all modules of the training."""
    context, teachers = DistributedContext(), Teachers()
    state = build_state(network, images, dataset, options, context)
    model = wrap_model(state.network, options, context)
    eta = SimpleNamespace(update=lambda: None)  # prints nothing

    def run() -> None:
        loader = BatchLoader(images, options, state.epoch + 1, equal_lengths=options.compile)
        train_one_epoch(state, model, loader, options, teachers, context, eta, [])

    return run


def flops_per_image(network: FERNet, width: int) -> float:
    """Return the floating-point operations of a training step per image."""
    images = torch.rand(2, 1, width, width, device=network.pixel_mean.device)
    with FlopCounterMode(display=False) as counter:
        output = network(images)
        (output.weighted_logits.sum() + output.landmarks.sum()).backward()
    return counter.get_total_flops() / len(images)


def matmul_rate(device: torch.device) -> float:
    """Return the operations/s of a large bf16 matrix product."""
    n = 4096 if device.type == "cuda" else 2048
    matrix = torch.randn(n, n, device=device).bfloat16()
    return 2 * n**3 / min(seconds_per_call(lambda: matrix @ matrix, device) for _ in range(5))


def new_network(options: ThroughputOptions) -> FERNet:
    torch.manual_seed(0)
    return FERNet(Architecture(width=options.width, dropout=0.2)).train()


def random_dataset(options: ThroughputOptions) -> FaceDataset:
    """Return random images for one measurement; the time does not depend on their content."""
    rng, width = np.random.default_rng(0), options.image_width
    n = options.batch_size * options.steps
    return FaceDataset(
        images=rng.integers(0, 256, (n, width, width), np.uint8),
        labels=np.arange(n) % len(EMOTIONS),
        split=np.full(n, "Training"),
        class_names=EMOTIONS,
        landmarks=rng.uniform(0, width, (n, NUM_LANDMARKS, 2)).astype(np.float32),
    )


if __name__ == "__main__":
    run_main(main)
