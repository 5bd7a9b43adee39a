"""Distillation: trained networks whose opinion of a face another network learns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.network import Output
from models.start import load_weights
from utils.devices import autocast, compiled, takes_bf16
from utils.errors import WeightsError
from utils.options import Options, least_width


class Teachers:
    """An ensemble that teaches (Hinton, Vinyals and Dean, 2015, arXiv:1503.02531).

    They see what the student sees (Beyer et al., 2022, arXiv:2106.05237), but for the
    damage: where its view is noisy or compressed, theirs is not. Each face is judged by one of
    them, by turns, so that several cost no more than one; over the steps, which shuffle the
    faces, the student's loss is on average that of the mean of their opinions.

    Args:
        models: of the same classes, in evaluation mode; none where nobody teaches.
        bf16: compute in bfloat16.
        digests: of their weight files, by which a resumed run knows them.
    """

    def __init__(
        self,
        models: Sequence[Callable[[Tensor], Output]],
        bf16: bool = False,
        digests: Sequence[str] = (),
    ) -> None:
        self._models, self._bf16, self.digests = models, bf16, tuple(digests)

    def __len__(self) -> int:
        return len(self._models)

    @torch.no_grad()
    def opinion(self, images: Tensor, first: int = 0) -> Tensor:
        """Return the probabilities of the K classes, [N, K].

        Args:
            images: float [N, C, W, W], 0 to 255.
            first: the place of the first one in its batch, which settles who judges it.
        """
        n = len(self._models)
        starts = [(turn - first) % n for turn in range(n)]
        with autocast(images.device, self._bf16):
            opinions = [
                # A CUDA graph's output lasts until the next one: what is needed is taken at once.
                model(images[start::n]).weighted_logits.softmax(1)
                for model, start in zip(self._models, starts)
            ]
        joined = opinions[0].new_empty(len(images), opinions[0].shape[1])
        for start, opinion in zip(starts, opinions):
            joined[start::n] = opinion
        return joined


def load_teachers(
    options: Options, class_names: tuple[str, ...], channels: int, device: torch.device
) -> Teachers:
    """Read the networks that `options.teacher` names, if any.

    Raises:
        WeightsError: weights cannot be read, are for other classes, for faces of another width or
            for grey ones only, or cannot look at faces as small as --sizes asks for.
    """
    models, digests = [], []
    for path in options.teacher:
        checkpoint = load_weights(path, class_names, channels)
        if checkpoint.image_width != options.image_width:
            raise WeightsError(
                f"{path} looks at faces of {checkpoint.image_width} pixels, and the student at "
                f"{options.image_width}: the two must agree"
            )
        smallest = min(options.sizes or (options.image_width,))
        least = least_width(checkpoint.architecture.trunk)
        if smallest < least:
            raise WeightsError(
                f"{path}: its {checkpoint.architecture.trunk} cannot teach at {smallest} pixels; "
                f"begin --sizes at {least} or more"
            )
        print(f"teacher  {path} (epoch {checkpoint.epoch})")
        network = checkpoint.network().to(device)
        models.append(compiled(network) if options.compile else network)
        digests.append(hashlib.sha256(Path(path).read_bytes()).hexdigest())
    return Teachers(models, takes_bf16(options.amp, device), digests)
