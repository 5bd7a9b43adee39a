"""How long a run will take, told after its first batches."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

WARM_UP, MEASURED = 3, 10  # batches: the first ones pay for memory and for choosing kernels


class Forecast:
    """Times the first batches of a run and says once what the rest will take.

    Args:
        device: waited for at the two ends of the measurement, and only there.
        say: gets the seconds per batch.
    """

    def __init__(self, device: torch.device, say: Callable[[float], None]) -> None:
        self._device, self._say = device, say
        self._batches, self._start = 0, time.perf_counter()

    def batch(self) -> None:
        """Count a finished batch."""
        self._batches += 1
        if self._batches == WARM_UP:
            self._start = self._now()
        elif self._batches == WARM_UP + MEASURED:
            self._say((self._now() - self._start) / MEASURED)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def duration(seconds: float) -> str:
    """Return seconds in words: "45 s", "12 min", "3.4 h", "2.1 days"."""
    for unit, size, limit in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < size * limit:
            value = seconds / size
            return f"{value:.1f} {unit}" if unit == "h" and value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
