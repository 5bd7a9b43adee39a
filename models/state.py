"""The state of a run, and its way to last.pth and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.checkpoint import Checkpoint
from models.ema import EMA
from models.network import FERNet
from utils.errors import RunError


@dataclass
class State:
    """All that changes while a run goes on.

    There is no random state among it: each epoch seeds its own from the run's
    seed and its number, so that an epoch can be repeated without those before it.

    Attributes:
        network: that is trained.
        ema: its average, which is evaluated and kept.
        optimizer: of the network.
        labels: int64 [N] of the Training faces as they stand after relabeling.
        epoch: how many are finished.
        history: the rows of metrics.csv.
        relabels: the rows of relabels.csv: row, from, to, epoch.
    """

    network: FERNet
    ema: EMA
    optimizer: torch.optim.Optimizer
    labels: Tensor
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    relabels: list[tuple[int, int, int, int]] = field(default_factory=list)

    def note_relabels(self, before: Tensor, rows: np.ndarray) -> int:
        """Note what the current epoch relabeled; return how many faces.

        Args:
            before: int64 [N], the labels when the epoch began.
            rows: int [N], the faces' rows in their set.
        """
        moved = (before != self.labels).nonzero()[:, 0]
        old, new = before[moved].tolist(), self.labels[moved].tolist()
        moves = zip(rows[moved.cpu().numpy()].tolist(), old, new)
        self.relabels += [(row, a, b, self.epoch) for row, a, b in moves]
        return len(old)

    def for_resume(self, data_digest: str) -> dict[str, Any]:
        """Return what last.pth holds besides the averaged weights."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "labels": self.labels,
            "history": self.history,
            "relabels": self.relabels,
            "data_digest": data_digest,
        }

    def restore(self, checkpoint: Checkpoint, data_digest: str) -> None:
        """Take up the state that a last.pth holds.

        Raises:
            RunError: the file cannot be resumed, or the faces are not those of the run.
        """
        saved = checkpoint.training
        if not saved:
            raise RunError("these weights can be used but not resumed; a run's last.pth can")
        if saved["data_digest"] != data_digest:
            raise RunError(
                "the faces are not those that this run began with; name these with --data"
            )
        try:
            self.network.load_state_dict(saved["network"])
            self.ema.network.load_state_dict(checkpoint.net)
            self.optimizer.load_state_dict(saved["optimizer"])
            self.labels.copy_(saved["labels"])
            self.history = list(saved["history"])
            self.relabels = [tuple(row) for row in saved["relabels"]]
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise RunError(f"last.pth does not fit its run ({error}); start a new run") from error
        self.epoch = checkpoint.epoch
