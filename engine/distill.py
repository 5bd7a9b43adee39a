"""Distillation: the predictions of trained networks as soft targets."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from data.dataset import FaceDataset, match_classes
from models.checkpoint import Checkpoint, load_checkpoint
from models.fernet import Output
from utils.devices import autocast, compile_module, use_bf16
from utils.errors import WeightsError
from utils.options import Options, min_image_width


class SharedClasses(NamedTuple):
    """The S classes that a teacher shares with its student of C classes."""

    student: Tensor  # int64 [S], their indices in the student's classes
    teacher: Tensor  # int64 [S], their indices in the teacher's
    num_classes: int  # C

    def soft_targets(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return soft targets [N, C] from a teacher's logits, over the shared classes only.

        What the targets, labels [N] or probabilities [N, C], give to the shared classes together is
        distributed as the teacher predicts. What they give to other classes stays.
        """
        if targets.ndim == 1:
            targets = F.one_hot(targets, self.num_classes).float()
        total = targets[:, self.student].sum(1, keepdim=True)
        return targets.index_copy(1, self.student, total * logits[:, self.teacher].softmax(1))


class Teachers:
    """An ensemble of teachers (Hinton, Vinyals and Dean, 2015, arXiv:1503.02531).

    They get the same augmented views as the student (Beyer et al., 2022, arXiv:2106.05237), but
    with weak augmentation only: no erasing, degradation or JPEG. Each image is predicted by one
    teacher, in rotation, so that several teachers cost no more than one. In expectation this is
    distillation of their mean prediction, because the cross-entropy is linear in the target. A
    resumed run checks the digests of their weight files.

    Args:
        models: The teachers.
        bf16: Whether they compute in bfloat16.
        digests: Of their weight files.
        shared: The classes of each teacher, None for those of the student; default: all None.
    """

    def __init__(
        self,
        models: Sequence[Callable[[Tensor], Output]] = (),
        bf16: bool = False,
        digests: Sequence[str] = (),
        shared: Sequence[SharedClasses | None] = (),
    ) -> None:
        self._models, self._bf16, self.digests = models, bf16, tuple(digests)
        self._shared = shared or [None] * len(models)

    def __len__(self) -> int:
        return len(self._models)

    @torch.no_grad()
    def predict(self, images: Tensor | None, targets: Tensor, start: int = 0) -> Tensor | None:
        """Predict soft targets [N, C] for float images [N, channels, W, W], 0 to 255.

        Without teachers there are no images, and the result is None. `targets` are labels [N] or
        class probabilities [N, C]; see `SharedClasses`. `start` is the place of the first image in
        the whole batch, which determines its teacher.
        """
        n = len(self._models)
        probabilities: Tensor | None = None
        for i, (model, shared) in enumerate(zip(self._models, self._shared)):
            rows = slice((i - start) % n, None, n)
            with autocast(images.device, self._bf16):
                logits = model(images[rows]).weighted_logits
            part = shared.soft_targets(logits, targets[rows]) if shared else logits.softmax(1)
            if probabilities is None:
                probabilities = part.new_empty(len(images), part.shape[1])
            probabilities[rows] = part
        return probabilities


def load_teachers(options: Options, dataset: FaceDataset, device: torch.device) -> Teachers:
    """Load the networks of `options.teacher`, if any.

    Raises:
        WeightsError: Weights cannot be read, or do not fit the data set or the run's image widths.
    """
    models, digests, shared = [], [], []
    for path in options.teacher:
        checkpoint = load_checkpoint(path)
        classes = match_classes(dataset.class_names, checkpoint.class_names)
        _check_teacher(path, checkpoint, options, dataset, len(classes))
        names = [dataset.class_names[i] for i in classes]
        is_partial = len(classes) < len(dataset.class_names)
        only = f", for the classes {', '.join(names)}" if is_partial else ""
        print(f"teacher  {path} (epoch {checkpoint.epoch}){only}")
        network = checkpoint.network().to(device)
        models.append(compile_module(network) if options.compile else network)
        digests.append(hashlib.sha256(Path(path).read_bytes()).hexdigest())
        pair = (
            torch.tensor(list(indices), device=device) for indices in (classes, classes.values())
        )
        is_same = checkpoint.class_names == dataset.class_names
        shared.append(None if is_same else SharedClasses(*pair, len(dataset.class_names)))
    return Teachers(models, use_bf16(options.amp, device), digests, shared)


def _check_teacher(
    path: str, checkpoint: Checkpoint, options: Options, dataset: FaceDataset, num_shared: int
) -> None:
    """Raise a WeightsError if a teacher cannot predict the images or the classes of the run."""
    if num_shared < 2:
        raise WeightsError(
            f"{path} has the classes {', '.join(checkpoint.class_names)}, and the data set has "
            f"{', '.join(dataset.class_names)}; a teacher needs two of them"
        )
    if checkpoint.architecture.channels < dataset.channels:
        raise WeightsError(f"{path} expects grayscale images; read them with --channels 1")
    if checkpoint.image_width != options.eval_image_width:
        raise WeightsError(
            f"{path} was trained at {checkpoint.image_width} pixels, and the student is at "
            f"{options.eval_image_width}; they must be equal"
        )
    backbone, smallest = checkpoint.architecture.backbone, min(options.image_width)
    if smallest < (least := min_image_width(backbone)):
        raise WeightsError(
            f"{path}: its {backbone} accepts no images of {smallest} pixels; let --image_width "
            f"begin at {least} or more"
        )
