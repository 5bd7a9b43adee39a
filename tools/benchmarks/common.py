"""Helpers of the benchmarks."""

import statistics
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from data.dataset import FaceDataset
from data.in_memory import InMemoryDataset
from data.loader import BatchLoader
from engine.build import build_state, wrap_model
from engine.distill import Teachers
from engine.distributed import DistributedContext
from engine.optim import build_optimizer
from engine.trainer import train_one_epoch
from models.fernet import FERNet
from utils.devices import autocast, use_bf16
from utils.options import Options


def seconds_per_call(function: Callable[[], object], device: torch.device) -> float:
    """Time one call of a function, including its work on the device."""
    torch.get_device_module(device).synchronize(device)
    start = time.perf_counter()
    function()
    torch.get_device_module(device).synchronize(device)
    return time.perf_counter() - start


def calls_per_second(function: Callable[[], object], seconds: float) -> float:
    """Return how often a function can be called per second, after one call to warm up."""
    function()
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        function()
        count += 1
    return count / elapsed


def median_and_range(values: Sequence[float], digits: int = 0) -> str:
    """Return values as text: "12 (11 to 13)"."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


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
