"""Helpers of the benchmarks."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

try:
    import resource
except ImportError:  # Windows
    resource = None


def peak_memory() -> float:
    """Return the peak memory of this process in GB; NaN on Windows."""
    if resource is None:
        return float("nan")
    unit = 1e9 if sys.platform == "darwin" else 1e6  # bytes on macOS, else kB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    synchronize: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Time functions in alternation, after one round to warm up.

    Args:
        functions: By name.
        rounds: Measurements of each function.
        synchronize: Waits for the device.

    Returns:
        By name: seconds per call in each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(rounds + 1):
        for name, function in functions.items():
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def calls_per_second(function: Callable[[], object], seconds: float) -> float:
    """Return how often a function can be called per second, after one call to warm up."""
    function()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        function()
        count += 1
    return count / (time.perf_counter() - start)


def median_and_range(values: Sequence[float], digits: int = 0) -> str:
    """Return values as text: "12 (11 to 13)"."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
