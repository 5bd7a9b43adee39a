"""A training that is lost: numbers that are none any more, or importances that are 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from utils.errors import RunError
from utils.group import Group

EVERY = 50  # batches between two looks, each of which waits for a GPU
COLLAPSED = 1e-3  # a mean importance from which none was seen to come back...
IN_A_ROW = 20  # ...where it is no single small batch's
AT_THE_END = 5  # as many where an epoch ends with them (or is no more), lest they be what is kept


class Faults:
    """Notes the first batch of an epoch whose measures are not all finite, or that is lost.

    Lost are importances that have all gone to 0: they take the gradient of the expressions with
    them, and then nothing raises them again.

    The note stays on the device, so that no batch waits for it.

    Args:
        epoch: the current one, counted from 1.
        batch_num: how many batches it has.
        group: the processes that train together, each of which looks at its own share.
    """

    def __init__(self, epoch: int, batch_num: int, group: Group) -> None:
        self._epoch, self._batch_num, self._group = epoch, batch_num, group
        self._names: tuple[str, ...] = ()
        self._first: Tensor | None = None  # [1 + K]: the batch (-1: none yet), and its measures
        self._low: Tensor | int = 0  # batches in a row without importances

    def note(self, batch: int, measures: dict[str, Tensor]) -> None:
        """Look at the measures (scalars) of a batch, counted from 0.

        Raises:
            RunError: now and then, where this or an earlier batch was at fault.
        """
        values = torch.stack([value.detach().float() for value in measures.values()])
        now = torch.cat((torch.full_like(values[:1], batch), values))
        if self._first is None:
            self._names, self._first = tuple(measures), torch.full_like(now, -1)
        fault = ~values.isfinite().all()
        if "importance_mean" in measures:
            self._low = (self._low + 1) * (measures["importance_mean"].detach() < COLLAPSED)
            at_the_end = batch + 1 == self._batch_num
            allowed = min(AT_THE_END, self._batch_num) if at_the_end else IN_A_ROW
            fault |= self._low >= allowed
        self._first = torch.where(fault & (self._first[0] < 0), now, self._first)
        if (batch + 1) % EVERY == 0:
            self.stop_if_any()

    def stop_if_any(self) -> None:
        """Raise a RunError with batch and measures where a batch was at fault, in all processes.

        Importances may be gone in one process's share alone. The others are told, lest they wait
        for it in vain.
        """
        if self._first is None:
            return
        firsts = [first for first in self._group.gather(self._first.tolist()) if first[0] >= 0]
        if not firsts:
            return
        batch, *values = min(firsts, key=lambda first: first[0])
        told = ", ".join(f"{name} = {v:.4g}" for name, v in zip(self._names, values))
        where = f"epoch {self._epoch}, batch {batch + 1:.0f}: {told}"
        raise diverged(where) if not all(map(math.isfinite, values)) else collapsed(where)


def diverged(where: str) -> RunError:
    """Return the error that ends a run whose numbers are none any more."""
    return RunError(
        f"the training diverged in {where}. The last checkpoint stands. "
        "Lower --start_lr, lengthen --warmup_epoch, or set --clip to 1 or less"
    )


def collapsed(where: str) -> RunError:
    """Return the error that ends a run whose importances are 0."""
    return RunError(
        f"the importances have gone to 0, and with them the gradient of the expressions, in "
        f"{where}. The last checkpoint stands. Set --clip to 1 or less, lower --start_lr, lengthen "
        "--warmup_epoch, or leave them out with --no_importance"
    )
