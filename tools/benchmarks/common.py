"""Helpers of the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

from data.dataset import UNLABELED, FaceDataset
from data.ferplus import with_ferplus_labels
from data.in_memory import InMemoryDataset
from data.loader import BatchLoader
from data.source import find_source, load_dataset
from engine.build import build_state, wrap_model
from engine.distill import Teachers
from engine.distributed import DistributedContext
from engine.optim import build_optimizer
from engine.trainer import train_one_epoch
from inference.face import FaceCrops
from inference.predictor import FacePredictor
from inference.runtime import Runtime
from models.fernet import FERNet
from utils.devices import autocast, use_bf16
from utils.errors import DataError
from utils.options import Options
from utils.run_folder import FERPLUS_WEIGHTS
from utils.statistics import bootstrap_mean


@dataclass(frozen=True)
class FaceOptions:
    """Options of the benchmarks that predict the faces of PublicTest."""

    data: str = ""
    """The data set, as for train.py."""
    ferplus: str = ""
    """FER+'s fer2013new.csv, for weights with FER+'s classes."""
    model_path: str = str(FERPLUS_WEIGHTS)
    """The weights."""


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


def mean_and_interval(values: np.ndarray, digits: int, sign: str = "") -> str:
    """Return the mean and its 95 % bootstrap interval as text: "0.12 (0.11 to 0.13)"."""
    mean, low, high = (f"{x:{sign}.{digits}f}" for x in (values.mean(), *bootstrap_mean(values)))
    return f"{mean} ({low} to {high})"


def public_test(options: FaceOptions, runtime: Runtime, number: int | None = None) -> FaceDataset:
    """Load the labeled PublicTest images in grayscale, with the classes of the weights.

    `number` of them are chosen at random; None is all of them, in their order.
    """
    source = find_source(options.data)
    dataset = load_dataset(source, runtime.image_width, 1)
    if options.ferplus:
        dataset = with_ferplus_labels(dataset, options.ferplus)
    dataset = dataset.select((dataset.split == "PublicTest") & (dataset.labels != UNLABELED))
    if not len(dataset) or dataset.class_names != runtime.class_names:
        raise DataError(
            f"{dataset.source} has no PublicTest images with the classes of {options.model_path}; "
            "give another --data, or --ferplus for FER+'s classes"
        )
    print(f"data     {source.description}")
    if number is None:
        return dataset
    return dataset.select(np.random.default_rng(0).permutation(len(dataset))[:number])


def predict_largest(predictor: FacePredictor, crops: Sequence[FaceCrops], views: int) -> np.ndarray:
    """Return the probabilities [N, C] of the largest face of each image."""
    predictor.views = views
    return np.stack([faces[0].probabilities for faces in predictor.predict(crops)])


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
