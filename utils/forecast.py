"""How long a run will take, told after its first batches."""

from __future__ import annotations

import math
import time

import torch
from tqdm import tqdm

from utils.options import RECIPES, Options

CPU_RECIPE_COST = 0.3  # of a face at half the width against the full one, measured on 2 cores
WARM_UP, MEASURED = 3, 10  # batches: the first ones pay for memory and for choosing kernels


class Forecast:
    """Times the first batches of a run, and says once what all of it will take.

    On a CPU it names the recipe that would be shorter.

    Args:
        device: waited for at the two ends of the measurement, and only there.
        options: of the run.
        n: Training faces.
        epochs: that are to come.
    """

    def __init__(self, device: torch.device, options: Options, n: int, epochs: int) -> None:
        self._device, self._options, self._n, self._epochs = device, options, n, epochs
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

    def _say(self, seconds: float) -> None:
        options, epochs = self._options, self._epochs
        first = options.total_epoch - epochs + 1
        areas = [options.width_in(epoch) ** 2 for epoch in range(first, options.total_epoch + 1)]
        whole = seconds * math.ceil(self._n / options.batch_size) * sum(areas) / areas[0]
        speed = options.batch_size / seconds
        tqdm.write(f"time     about {duration(whole)} for {epochs} epochs at {speed:,.0f} faces/s")
        short = RECIPES["cpu"]
        cheaper = CPU_RECIPE_COST * short["total_epoch"] / options.total_epoch
        # Measured against the full network; and a run that goes on keeps its recipe.
        plain = (options.recipe, options.trunk, options.width) == ("full", "resnet18", 1)
        if self._device.type == "cpu" and plain and first == 1 and cheaper < 1:
            tqdm.write(
                f"         --recipe cpu takes about {duration(whole * cheaper)}: a network of half "
                f"the width, {short['total_epoch']} epochs"
            )


def duration(seconds: float) -> str:
    """Return seconds in words: "45 s", "12 min", "3.4 h", "2.1 days"."""
    for unit, size, limit in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < size * limit:
            value = seconds / size
            return f"{value:.1f} {unit}" if unit == "h" and value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
