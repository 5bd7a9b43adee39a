"""Helpers of the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from data.dataset import UNLABELED, FaceDataset
from data.source import find_source, load_dataset
from inference.face import FaceCrops
from inference.predictor import FacePredictor
from inference.runtime import Runtime
from utils.errors import DataError


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


def public_test(data: str, runtime: Runtime, model_path: str) -> FaceDataset:
    """Load the labeled PublicTest images in grayscale, with the classes of the weights."""
    source = find_source(data)
    dataset = load_dataset(source, runtime.image_width, 1).subset("PublicTest")
    dataset = dataset.select(dataset.labels != UNLABELED)
    if not len(dataset) or dataset.class_names != runtime.class_names:
        raise DataError(
            f"{dataset.source} has no PublicTest images with the classes of {model_path}; "
            "give another --data"
        )
    print(f"data     {source.description}")
    return dataset


def predict_largest(predictor: FacePredictor, crops: Sequence[FaceCrops]) -> np.ndarray:
    """Return the probabilities [N, C] of the largest face of each image."""
    return np.stack([faces[0].probabilities for faces in predictor.predict(crops)])
