"""Degradation of whole batches: low resolution, noise, gamma curves, and JPEG compression.

JPEG is computed as tensors, on the device. torchvision's `jpeg` encodes one CPU image at a time.
"""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_NOISE = 25.0  # gray levels, standard deviation
MAX_GAMMA = 2.5  # and its inverse
MAX_JPEG_SCALE = 2.5  # of the quantization table: quality 20

# Quantization table of quality 50 (ITU-T T.81, table K.1).
_QUANTIZATION = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]


@cache
def jpeg_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the 8 x 8 cosine transform [64, 64] and the quantization table [64, 1]."""
    k = torch.arange(8.0)
    cosine = ((2 * k + 1) * k[:, None] * math.pi / 16).cos() / 2  # [frequency, pixel]
    cosine[0] /= math.sqrt(2)
    quantization = torch.tensor(_QUANTIZATION, dtype=torch.float32).view(64, 1)
    return torch.kron(cosine, cosine).to(device), quantization.to(device)


def degrade(images: Tensor, probability: float, noise: Tensor, draws: Sequence[Tensor]) -> Tensor:
    """Blend some images with their half-resolution copy, apply gamma to some, noise to some.

    Each has this probability. The noise [N, C, H, W] is standard normal. The draws in [0, 1) are
    chance and amount of low resolution, noise and gamma, [N, 1, 1, 1] each.
    """
    small, coarseness, noisy, deviation, curved, exponent = draws
    height, width = images.shape[2:]
    coarse = F.interpolate(images, (height // 2, width // 2), mode="area")
    coarse = F.interpolate(coarse, (height, width), mode="bilinear")
    images = images + (coarse - images) * coarseness * (small < probability)
    gamma = MAX_GAMMA ** ((2 * exponent - 1) * (curved < probability))
    images = 255 * (images / 255).clamp(0, 1) ** gamma
    return (images + noise * (MAX_NOISE * deviation * (noisy < probability))).clamp(0, 255)


def jpeg(images: Tensor, scale: Tensor, tables: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Return images [N, C, H, W] as JPEG would restore them, each channel by itself.

    `scale` [N, 1, 1, 1] is a factor on the table of quality 50: 50 / quality below that, and
    2 - quality / 50 above.
    """
    cosine, quantization = tables or jpeg_tables(images.device)
    n, channels, height, width = images.shape
    padded = F.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = F.unfold(padded.flatten(0, 1)[:, None] - 128, 8, stride=8)  # [N C, 64, blocks]
    steps = (quantization * scale.view(n, 1, 1)).round().clamp(1, 255)
    steps = steps.repeat_interleave(channels, 0)
    quantized = cosine.T @ ((cosine @ blocks / steps).round() * steps)
    restored = F.fold(quantized, padded.shape[2:], 8, stride=8).view(padded.shape)
    return (restored[..., :height, :width] + 128).clamp(0, 255)
