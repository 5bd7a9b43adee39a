"""A loss or gradient that is no number any more: where it happened first, and what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.errors import RunError

EVERY = 50  # batches between two looks, each of which waits for a GPU


class Faults:
    """Notes the first batch of an epoch whose measures are not all finite.

    The note stays on the device, so that no batch waits for it.

    Args:
        epoch: the current one, counted from 1.
    """

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._names: tuple[str, ...] = ()
        self._first: Tensor | None = None  # [1 + K]: the batch (-1: none yet), and its measures

    def note(self, batch: int, measures: dict[str, Tensor]) -> None:
        """Look at the measures (scalars) of a batch, counted from 0.

        Raises:
            RunError: now and then, where this or an earlier batch was at fault.
        """
        values = torch.stack([value.detach().float() for value in measures.values()])
        now = torch.cat((torch.full_like(values[:1], batch), values))
        if self._first is None:
            self._names, self._first = tuple(measures), torch.full_like(now, -1)
        fault = ~values.isfinite().all() & (self._first[0] < 0)
        self._first = torch.where(fault, now, self._first)
        if (batch + 1) % EVERY == 0:
            self.stop_if_any()

    def stop_if_any(self) -> None:
        """Raise a RunError with batch and measures where a batch was at fault."""
        if self._first is None:
            return
        batch, *values = self._first.tolist()
        if batch >= 0:
            measures = zip(self._names, values)
            told = ", ".join(f"{name} = {value:.4g}" for name, value in measures)
            raise diverged(f"epoch {self._epoch}, batch {batch + 1:.0f}: {told}")


def diverged(where: str) -> RunError:
    """Return the error that ends a run whose numbers are none any more."""
    return RunError(
        f"the training diverged in {where}. The last checkpoint stands. "
        "Lower --start_lr, or lengthen --warmup_epoch"
    )
