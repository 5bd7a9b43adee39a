"""MixUp and CutMix of a batch, with soft labels.

MixUp (Zhang et al., 2018, arXiv:1710.09412) blends two images; CutMix (Yun et al., 2019,
arXiv:1905.04899) pastes a square of one into the other. torchvision's transforms may give the other
image the larger share, so that the landmarks would belong to the wrong image.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

PROBABILITY = 0.5  # that an image is mixed


def mix(
    images: Tensor,
    kind: str,
    generator: torch.Generator,
    *,
    shard: slice = slice(None),
    whole: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Mix each image of a batch, with probability 0.5, with the previous image.

    The share of the image itself is uniform in [0.5, 1].

    Args:
        images: float [N, C, H, W].
        kind: "mixup" or "cutmix".
        generator: On the images' device.
        shard: Position of these images in a batch of `whole` images, whose others are elsewhere.
        whole: See `shard`; by default N.

    Returns:
        The mixed images, and `lam` [N], the weight of each image in its mixture: 1 if it is not
        mixed, else at least 0.5, so that its landmarks stay valid.
    """
    draws = torch.rand(4, whole or len(images), device=images.device, generator=generator)
    chosen, ratio, x, y = (draw.view(-1, 1, 1, 1) for draw in draws[:, shard])
    chosen, ratio = chosen < PROBABILITY, ratio / 2
    if kind == "mixup":
        other = torch.where(chosen, ratio, 0.0)  # [N, 1, 1, 1], weight of the previous image
    else:
        height, width = images.shape[2:]
        columns = torch.arange(width, device=images.device)
        rows = torch.arange(height, device=images.device)[:, None]
        w, h = (ratio.sqrt() * width).floor(), (ratio.sqrt() * height).floor()
        left, top = (x * (width - w + 1)).floor(), (y * (height - h + 1)).floor()
        inside = (columns >= left) & (columns < left + w) & (rows >= top) & (rows < top + h)
        other = (inside & chosen).to(images.dtype)  # [N, 1, H, W]
    return images.lerp(images.roll(1, 0), other), 1 - other.mean((1, 2, 3))


def mix_targets(
    targets: Tensor, soft_targets: Tensor | None, lam: Tensor, num_classes: int
) -> tuple[Tensor, Tensor | None]:
    """Mix targets as `mix` mixed the images.

    Args:
        targets: Labels [N], or class probabilities [N, C].
        soft_targets: Class probabilities of teachers [N, C], or None.
        lam: [N], as `mix` returns it.
        num_classes: C.

    Returns:
        Both as class probabilities [N, C].
    """
    if targets.ndim == 1:
        targets = F.one_hot(targets, num_classes).to(lam.dtype)
    other = (1 - lam)[:, None]
    if soft_targets is not None:
        soft_targets = soft_targets.lerp(soft_targets.roll(1, 0), other)
    return targets.lerp(targets.roll(1, 0), other), soft_targets
