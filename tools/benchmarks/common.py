"""Helpers of the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


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
