"""The estimated duration of a run, printed after its first batches."""

import math
import time

import torch

from utils.options import RECIPES, Options
from utils.progress import print_line

CPU_RECIPE_COST = 0.1  # time per epoch of the recipe cpu, relative to full, measured on 2 cores
WARM_UP, MEASURED = 3, 10  # batches: the first ones allocate memory and select kernels
BUSY = 0.7  # share of its cores' time below which a process competes with others


class ETA:
    """Times the first batches of a run, and prints its duration for `epochs` remaining epochs.

    On a CPU it names the shorter recipe, and warns if other processes use the cores. It
    synchronizes with a GPU at both ends of the measurement only.
    """

    def __init__(
        self, device: torch.device, options: Options, num_images: int, epochs: int
    ) -> None:
        self._device, self._options = device, options
        self._num_images, self._epochs = num_images, epochs
        self._batches, self._start, self._cpu = 0, 0.0, 0.0

    def update(self) -> None:
        """Count a finished batch."""
        self._batches += 1
        if self._batches == WARM_UP:
            self._start, self._cpu = self._now(), time.process_time()
        elif self._batches == WARM_UP + MEASURED:
            seconds, threads = self._now() - self._start, torch.get_num_threads()
            self._print_duration(seconds / MEASURED)
            cores = (time.process_time() - self._cpu) / seconds
            if self._device.type == "cpu" and cores < BUSY * threads:
                print_line(
                    f"warning: with --threads {threads} training gets the time of {cores:.1f} "
                    "cores, because other processes use the CPU. End them, or give fewer --threads"
                )

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _print_duration(self, seconds: float) -> None:
        options, epochs = self._options, self._epochs
        first = options.total_epoch - epochs + 1
        # A frozen backbone has no backward pass, which costs about as much as two forward passes.
        costs = [
            (1 if epoch <= options.freeze_epochs else 3) * options.image_width_at(epoch) ** 2
            for epoch in range(first, options.total_epoch + 1)
        ]
        batches = math.ceil(self._num_images / options.batch_size)
        total = seconds * batches * sum(costs) / costs[0]
        duration, speed = format_duration(total), options.batch_size / seconds
        print_line(f"time     about {duration} for {epochs} epochs, {speed:,.0f} images/s")
        short = RECIPES["cpu"]
        share = CPU_RECIPE_COST * short["total_epoch"] / options.total_epoch
        # The cost was measured against the full network. A resumed run keeps its recipe.
        is_full = (options.recipe, options.backbone, options.width) == ("full", "resnet18", 1)
        if self._device.type == "cpu" and is_full and first == 1 and share < 1:
            print_line(
                f"         --recipe cpu takes about {format_duration(total * share)}: width "
                f"{short['width']:g}, {short['total_epoch']} epochs"
            )


def format_duration(seconds: float) -> str:
    """Return seconds as text: "45 s", "12 min", "3.4 h", "2.1 days"."""
    for unit, size, limit in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < size * limit:
            value = seconds / size
            return f"{value:.1f} {unit}" if unit == "h" and value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
