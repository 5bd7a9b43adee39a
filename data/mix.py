"""Mixing: a face shown with a share of another one, and taught that share of its label.

mixup (Zhang et al., 2018, arXiv:1710.09412) lays one over the other; CutMix (Yun et al., 2019,
arXiv:1905.04899) puts a square of the other in its place.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mix(
    images: Tensor,
    mixup: float,
    cutmix: float,
    generator: torch.Generator,
    *,
    share: slice = slice(None),
    among: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Mix some faces of a batch with the one before them; the batch's order is random.

    How much a face keeps is drawn evenly from 0.5 to 1. It stays the greater part, so
    that its landmarks stay true.

    Args:
        images: float [N, C, H, W].
        mixup: the share of faces that are laid over another.
        cutmix: the share of faces, others than these, with a square of another.
        generator: on the images' device.
        share: the place of these faces in a batch of `among` faces of which other
            processes mix the others, each among its own.

    Returns:
        The images, and how much of each is its own: [N], from 0.5 to 1.
    """
    drawn = torch.rand(4, among or len(images), device=images.device, generator=generator)
    kind, rest, x, y = (draw.view(-1, 1, 1, 1) for draw in drawn[:, share])
    rest = rest / 2
    height, width = images.shape[2:]
    columns = torch.arange(width, device=images.device)
    rows = torch.arange(height, device=images.device)[:, None]
    wide, high = (rest.sqrt() * width).floor(), (rest.sqrt() * height).floor()  # whole pixels
    left, top = (x * (width - wide + 1)).floor(), (y * (height - high + 1)).floor()
    inside = (columns >= left) & (columns < left + wide) & (rows >= top) & (rows < top + high)
    cut = (kind >= mixup) & (kind < mixup + cutmix)
    other = torch.where(kind < mixup, rest, (inside & cut).to(images.dtype))  # [N, 1, H, W]
    return images.lerp(images.roll(1, 0), other), 1 - other.mean((1, 2, 3))


def mix_shares(shares: Tensor, own: Tensor, classes: int) -> Tensor:
    """Return what mixed faces are of each class, [N, C].

    Args:
        shares: labels [N], or shares of the classes [N, C], of the faces before they were mixed.
        own: [N], as mix returns it.
        classes: C.
    """
    if shares.ndim == 1:
        shares = torch.eye(classes, device=own.device, dtype=own.dtype)[shares]
    return shares.lerp(shares.roll(1, 0), (1 - own)[:, None])
