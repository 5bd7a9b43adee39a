"""The state of a run, and its way to last.pth and back."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.checkpoint import Checkpoint
from models.ema import EMA
from models.network import FERNet
from utils.errors import RunError
from utils.group import Group


@dataclass
class State:
    """All that changes while a run goes on, and by what it is known.

    There is no random state among it: each batch seeds its own from the run's seed,
    its epoch and its number, so that it can be repeated without those before it.

    Attributes:
        network: that is trained.
        ema: its average, which is evaluated and kept.
        optimizer: of the network.
        labels: int64 [N] of the Training faces as they stand after relabeling.
        data_digest: of the set of faces, by which a resumed run knows them.
        target_digest: of their landmarks and votes, likewise.
        taught_by: the digests of its teachers' weights, likewise.
        epoch: how many are finished.
        history: the rows of metrics.csv.
        relabels: the rows of relabels.csv: row, from, to, epoch.
        batches: how many of the next epoch are done, where a run was stopped within it.
        sums: over these, of each measure times the faces of its batch: scalars.
        labels_before: `labels` when that epoch began.
        even: whether that epoch's batches are all of one length, which --compile chose then.
    """

    network: FERNet
    ema: EMA
    optimizer: torch.optim.Optimizer
    labels: Tensor
    data_digest: str = ""
    target_digest: str = ""
    taught_by: tuple[str, ...] = ()
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    relabels: list[tuple[int, int, int, int]] = field(default_factory=list)
    batches: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    labels_before: Tensor | None = None
    even: bool = False

    def add(self, measures: dict[str, Tensor], faces: float) -> None:
        """Add a batch's measures to the sums, each times so many faces; no GPU is waited for."""
        values = torch.stack([value.detach() for value in measures.values()]).double() * faces
        if self.sums:  # all in one kernel: on a GPU each costs more to start than to run
            torch._foreach_add_([self.sums[name] for name in measures], values.unbind())
        else:
            self.sums = dict(zip(measures, values.unbind()))

    def meet(self, group: Group) -> None:
        """Take up what the other processes summed and relabeled, each among its own faces."""
        if group.size > 1:
            self.sums = group.sum(self.sums)
            moved = torch.where(self.labels != self.labels_before, self.labels, -1)
            moved = group.largest(moved)
            self.labels.copy_(torch.where(moved >= 0, moved, self.labels_before))

    def note_relabels(self, rows: np.ndarray) -> int:
        """Note what the epoch that has just ended relabeled; return how many faces.

        Args:
            rows: int [N], the faces' rows in their set.
        """
        before = self.labels_before
        moved = (before != self.labels).nonzero()[:, 0]
        old, new = before[moved].tolist(), self.labels[moved].tolist()
        moves = zip(rows[moved.cpu().numpy()].tolist(), old, new)
        self.relabels += [(row, a, b, self.epoch) for row, a, b in moves]
        return len(old)

    def for_resume(self) -> dict[str, Any]:
        """Return what last.pth holds besides the averaged weights."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "labels": self.labels,
            "history": self.history,
            "relabels": self.relabels,
            "batches": self.batches,
            "sums": self.sums if self.batches else {},
            "labels_before": self.labels_before if self.batches else None,
            "even": self.even,
            "data_digest": self.data_digest,
            "target_digest": self.target_digest,
            "teachers": list(self.taught_by),
        }

    def restore(self, checkpoint: Checkpoint, group: Group) -> None:
        """Take up the state that a last.pth holds; its sums are those of all processes.

        Raises:
            RunError: the file cannot be resumed, or the faces or the teachers are not those of
                the run.
        """
        saved = checkpoint.training
        if not saved:
            raise RunError("these weights can be used but not resumed; a run's last.pth can")
        if saved.get("data_digest") != self.data_digest:
            raise RunError(
                "the faces are not those that this run began with; name these with --data"
            )
        if saved.get("target_digest", self.target_digest) != self.target_digest:  # likewise
            told = (
                "warning: the landmarks or the votes are not quite those that this run began with"
            )
            print(told, file=sys.stderr)
        named = list(self.taught_by)
        if saved.get("teachers", named) != named:  # older files do not know them
            raise RunError(
                "the teachers are not those that this run began with, in their order; name these "
                "with --teacher"
            )
        device = self.labels.device
        try:
            self.network.load_state_dict(saved["network"])
            self.ema.network.load_state_dict(checkpoint.net)
            self.optimizer.load_state_dict(saved["optimizer"])
            self.labels.copy_(_same_kind(saved["labels"], self.labels))
            self.history = [dict(row) for row in saved["history"]]
            self.relabels = [(int(i), int(a), int(b), int(e)) for i, a, b, e in saved["relabels"]]
            self.batches = int(saved["batches"])
            sums = {name: value.to(device) for name, value in saved["sums"].items()}
            self.sums = {name: value * group.is_main for name, value in sums.items()}
            if self.batches:
                before = _same_kind(saved["labels_before"], self.labels)
                self.labels_before = before.to(device)
                self.even = bool(saved.get("even", checkpoint.options.get("compile")))
        except Exception as error:  # strange contents fail in a dozen ways
            raise RunError(f"last.pth does not fit its run ({error}); start a new run") from error
        self.epoch = checkpoint.epoch


def _same_kind(saved: Tensor, labels: Tensor) -> Tensor:
    """Return saved labels, or raise ValueError where copying them would stretch or change them."""
    if saved.shape != labels.shape or saved.dtype != labels.dtype:
        raise ValueError(f"{len(labels)} labels are wanted")
    return saved
