"""Detection of a diverged training: values that are not finite, or importances that are 0."""

import math

import torch
from torch import Tensor

from engine.distributed import DistributedContext
from utils.errors import RunError

CHECK_EVERY = 50  # batches between two checks, each of which synchronizes with the GPU
COLLAPSED = 1e-3  # mean importance from which no run has recovered...
CONSECUTIVE = 20  # ...if it persists for so many batches
CONSECUTIVE_AT_END = 5  # ...or so many at the end of an epoch, before it is evaluated and saved


class DivergenceGuard:
    """Finds the first batch of an epoch with a non-finite value or collapsed importances.

    Where all importances are 0, the expression loss has no gradient and nothing raises them again.
    The result stays on the device: only every CHECK_EVERY-th batch synchronizes with the GPU. Each
    process checks its shard of the batches of an epoch, which is counted from 1.
    """

    def __init__(self, epoch: int, num_batches: int, context: DistributedContext) -> None:
        self._epoch, self._num_batches, self._context = epoch, num_batches, context
        self._names: tuple[str, ...] = ()
        self._first: Tensor | None = None  # [1 + K]: batch (-1: none), and its values
        self._collapsed: Tensor | int = 0  # consecutive batches with collapsed importances

    def update(self, batch: int, values: dict[str, Tensor]) -> None:
        """Check the scalars of a batch, counted from 0; report every CHECK_EVERY batches."""
        stacked = torch.stack([value.detach().float() for value in values.values()])
        row = torch.cat((torch.full_like(stacked[:1], batch), stacked))
        if self._first is None:
            self._names, self._first = tuple(values), torch.full_like(row, -1)
        fault = ~stacked.isfinite().all()
        if "importance_mean" in values:
            low = values["importance_mean"].detach() < COLLAPSED
            self._collapsed = (self._collapsed + 1) * low
            is_last = batch + 1 == self._num_batches
            allowed = min(CONSECUTIVE_AT_END, self._num_batches) if is_last else CONSECUTIVE
            fault |= self._collapsed >= allowed
        self._first = torch.where(fault & (self._first[0] < 0), row, self._first)
        if (batch + 1) % CHECK_EVERY == 0:
            self.raise_if_diverged()

    def raise_if_diverged(self) -> None:
        """Raise a RunError in all processes if a batch of any of them diverged."""
        if self._first is None:
            return
        rows = [row for row in self._context.gather(self._first.tolist()) if row[0] >= 0]
        if not rows:
            return
        batch, *values = min(rows, key=lambda row: row[0])
        listed = ", ".join(f"{name} = {v:.4g}" for name, v in zip(self._names, values))
        where = f"epoch {self._epoch}, batch {batch + 1:.0f}: {listed}"
        if not all(map(math.isfinite, values)):
            raise divergence_error(where)
        raise RunError(
            f"the importances collapsed to 0, so the expression loss has no gradient, in {where}. "
            "Set --clip to 1 or less, lower --start_lr, lengthen --warmup_epoch, or turn them off "
            "with --no_importance"
        )


def divergence_error(where: str) -> RunError:
    """Return the error for values that are not finite."""
    return RunError(
        f"training diverged in {where}. Lower --start_lr, lengthen --warmup_epoch, or set --clip "
        "to 1 or less"
    )
