"""Distillation: the predictions of trained networks as soft targets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.dataset import FaceDataset
from engine.build import load_compatible_weights
from models.fernet import Output
from utils.devices import autocast, compile_module, use_bf16
from utils.errors import WeightsError
from utils.options import Options, min_image_width


class Teachers:
    """An ensemble of teachers (Hinton, Vinyals and Dean, 2015, arXiv:1503.02531).

    They get the same augmented views as the student (Beyer et al., 2022, arXiv:2106.05237), but
    with weak augmentation only: no erasing, degradation or JPEG. Each image is predicted by one
    teacher, in rotation, so that several teachers cost no more than one. In expectation this is
    distillation of their mean prediction, because the cross-entropy is linear in the target. A
    resumed run checks the digests of their weight files.
    """

    def __init__(
        self,
        models: Sequence[Callable[[Tensor], Output]] = (),
        bf16: bool = False,
        digests: Sequence[str] = (),
    ) -> None:
        self._models, self._bf16, self.digests = models, bf16, tuple(digests)

    def __len__(self) -> int:
        return len(self._models)

    @torch.no_grad()
    def predict(self, images: Tensor, start: int = 0) -> Tensor:
        """Predict class probabilities [N, C] of float images [N, channels, W, W], 0 to 255.

        `start` is the place of the first image in the whole batch, which determines its teacher.
        """
        n = len(self._models)
        probabilities: Tensor | None = None
        for i, model in enumerate(self._models):
            rows = slice((i - start) % n, None, n)
            with autocast(images.device, self._bf16):
                part = model(images[rows]).weighted_logits.softmax(1)
            if probabilities is None:
                probabilities = part.new_empty(len(images), part.shape[1])
            probabilities[rows] = part
        return probabilities


def load_teachers(options: Options, dataset: FaceDataset, device: torch.device) -> Teachers:
    """Load the networks of `options.teacher`, if any.

    Raises:
        WeightsError: Weights cannot be read, or do not fit the data set or the run's image widths.
    """
    models, digests = [], []
    for path in options.teacher:
        checkpoint = load_compatible_weights(path, dataset)
        if checkpoint.image_width != options.eval_width:
            raise WeightsError(
                f"{path} was trained at {checkpoint.image_width} pixels, and the student is at "
                f"{options.eval_width}; they must be equal"
            )
        backbone, smallest = checkpoint.architecture.backbone, min(options.image_width)
        if smallest < (least := min_image_width(backbone)):
            raise WeightsError(
                f"{path}: its {backbone} accepts no images of {smallest} pixels; let --image_width "
                f"begin at {least} or more"
            )
        print(f"teacher  {path} (epoch {checkpoint.epoch})")
        network = checkpoint.network().to(device)
        models.append(compile_module(network) if options.compile else network)
        digests.append(hashlib.sha256(Path(path).read_bytes()).hexdigest())
    return Teachers(models, use_bf16(options.amp, device), digests)
