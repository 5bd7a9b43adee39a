"""The training state: all that changes during a run, and its state dict for last.pth."""

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.optim.swa_utils import AveragedModel

from engine.distributed import DistributedContext
from models.checkpoint import Checkpoint
from models.fernet import FERNet
from utils.errors import RunError


@dataclass
class TrainingState:
    """All that changes during a run, and the digests of what must not change.

    There is no random state: each batch is seeded by the run's seed, the epoch and its number.
    This makes resuming exact to the bit; torch.random's state would not survive an interrupted
    epoch.
    """

    network: FERNet
    ema: AveragedModel  # evaluated and saved
    optimizer: torch.optim.Optimizer
    labels: Tensor  # int64 [N], changed in place by relabeling; InMemoryDataset has the given ones
    data_digest: str = ""  # of the images, labels and splits
    target_digest: str = ""  # of the landmarks and votes
    teacher_digests: tuple[str, ...] = ()  # of the teachers' weight files
    class_weights: Tensor | None = None  # float [C], of the expression loss
    epoch: int = 0  # finished epochs
    history: list[dict[str, Any]] = field(default_factory=list)  # rows of metrics.csv
    relabels: list[tuple[int, int, int, int]] = field(default_factory=list)  # of relabels.csv
    batches: int = 0  # finished batches of an interrupted epoch
    # Sums over these batches of each metric times the number of images, scalars.
    sums: dict[str, Tensor] = field(default_factory=dict)
    labels_before: Tensor | None = None  # labels at the start of the epoch
    predictions: Tensor | None = None  # float32 [N, C], mean over epochs, for relabeling
    equal_lengths: bool = False  # whether the epoch's batches have equal lengths, for --compile

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def begin_epoch(self, equal_lengths: bool) -> int:
        """Start an epoch, or continue an interrupted one; return its number, counted from 1."""
        if not self.batches:
            self.labels_before, self.sums = self.labels.clone(), {}
            self.equal_lengths = equal_lengths
        return self.epoch + 1

    def end_step(self, values: dict[str, Tensor], num_images: float) -> None:
        """Count a finished batch, and add its scalars to the sums without a GPU synchronization."""
        stacked = torch.stack([value.detach() for value in values.values()]).double() * num_images
        if self.sums:  # one kernel for all
            torch._foreach_add_([self.sums[name] for name in values], stacked.unbind())
        else:
            self.sums = dict(zip(values, stacked.unbind()))
        self.batches += 1

    def all_reduce(self, context: DistributedContext) -> None:
        """Combine the sums and the relabeled labels of all processes."""
        if context.world_size > 1:
            if self.sums:
                totals = torch.stack(list(self.sums.values()))
                dist.all_reduce(totals)
                self.sums = dict(zip(self.sums, totals.unbind()))
            moved = torch.where(self.labels != self.labels_before, self.labels, -1)
            dist.all_reduce(moved, dist.ReduceOp.MAX)
            self.labels.copy_(torch.where(moved >= 0, moved, self.labels_before))

    def end_epoch(self, num_batches: int, num_images: int) -> dict[str, float] | None:
        """Return the means over the epoch, or None if not all of its batches are finished."""
        if self.batches < num_batches:
            return None
        self.epoch, self.batches = self.epoch + 1, 0
        return {name: float(total) / num_images for name, total in self.sums.items()}

    def record_relabels(self, rows: np.ndarray) -> int:
        """Record the labels that changed in the last epoch; return their number.

        `rows` are the rows of the Training images in the data set, int [N].
        """
        before, after = self.labels_before.cpu().numpy(), self.labels.cpu().numpy()
        moved = before != after
        moves = zip(rows[moved].tolist(), before[moved].tolist(), after[moved].tolist())
        self.relabels += [(row, old, new, self.epoch) for row, old, new in moves]
        return int(moved.sum())

    def state_dict(self) -> dict[str, Any]:
        """Return what last.pth contains besides the averaged weights."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "n_averaged": int(self.ema.n_averaged),
            "labels": self.labels,
            "history": self.history,
            "relabels": self.relabels,
            "batches": self.batches,
            "sums": self.sums if self.batches else {},
            "labels_before": self.labels_before if self.batches else None,
            "predictions": self.predictions,
            "equal_lengths": self.equal_lengths,
            "data_digest": self.data_digest,
            "target_digest": self.target_digest,
            "teachers": list(self.teacher_digests),
        }

    def load_state_dict(self, checkpoint: Checkpoint, context: DistributedContext) -> None:
        """Load a last.pth, whose sums are those of all processes.

        Raises:
            RunError: The file cannot be resumed, or data or teachers differ from the run's.
        """
        saved = checkpoint.training
        if not saved:
            raise RunError("these weights have no training state; resume from a run's last.pth")
        if saved.get("data_digest") != self.data_digest:
            raise RunError("the data set differs from the run's; give the run's own with --data")
        if saved.get("target_digest") != self.target_digest:
            print("warning: the landmarks or votes differ from the run's", file=sys.stderr)
        if saved.get("teachers") != list(self.teacher_digests):
            raise RunError("the teachers differ from the run's; give its own, in their order")
        try:
            self.network.load_state_dict(saved["network"])
            self.ema.module.load_state_dict(checkpoint.net)
            self.ema.n_averaged.fill_(int(saved["n_averaged"]))
            self.optimizer.load_state_dict(saved["optimizer"])
            self.labels.copy_(_check_labels(saved["labels"], self.labels))
            self.history = [dict(row) for row in saved["history"]]
            self.relabels = [(int(i), int(a), int(b), int(e)) for i, a, b, e in saved["relabels"]]
            self.batches = int(saved["batches"])
            sums = saved["sums"].items()  # only the main process keeps them, and the others add
            self.sums = {name: value.to(self.device) * context.is_main for name, value in sums}
            if self.batches:
                before = _check_labels(saved["labels_before"], self.labels)
                self.labels_before = before.to(self.device)
                self.equal_lengths = bool(saved["equal_lengths"])
            if (predictions := saved.get("predictions")) is not None:
                if predictions.shape != (len(self.labels), self.network.architecture.classes):
                    raise ValueError(f"expected predictions of {len(self.labels)} images")
                self.predictions = predictions.float().to(self.device)
        except Exception as error:  # a damaged file raises many types
            raise RunError(f"last.pth does not fit its run ({error}); start a new run") from error
        self.epoch = checkpoint.epoch


def _check_labels(saved: Tensor, labels: Tensor) -> Tensor:
    """Return saved labels; raise ValueError where copying them would broadcast or cast."""
    if saved.shape != labels.shape or saved.dtype != labels.dtype:
        raise ValueError(f"expected {len(labels)} labels")
    return saved
