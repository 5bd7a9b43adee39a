"""Augmentation of whole batches where they lie, pixels and landmarks by one transform.

Landmarks are in half widths from the face's centre here, as the network
predicts them: the frame of `affine_grid`, which moves the pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from data.landmarks import FLIP
from utils.devices import fused

GREY_NOISE = 25.0  # grey levels, the largest standard deviation
DARKEST = 2.5  # the largest exponent of the greys
COARSEST = 2.5  # the largest factor on JPEG's steps: quality 20

# How JPEG rounds the waves of its blocks of 8 x 8 greys: the steps of quality 50 (ITU-T T.81, K.1).
JPEG_STEPS = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    dtype=torch.float32,
).view(64, 1)


class Tables(NamedTuple):
    """What is the same for every batch, on a device.

    Attributes:
        flip: int64 [68], FLIP.
        waves: [64, 64], those of a JPEG block: the two-dimensional cosine transform.
        steps: [64, 1], JPEG_STEPS.
    """

    flip: Tensor
    waves: Tensor
    steps: Tensor


@cache
def tables(device: torch.device) -> Tables:
    """Return the tables on a device: copied there once, as a copy per batch would wait for it."""
    k = torch.arange(8.0)
    cosine = ((2 * k + 1) * k[:, None] * math.pi / 16).cos() / 2  # [wave, place]
    cosine[0] /= math.sqrt(2)
    waves = torch.kron(cosine, cosine)
    return Tables(*(table.to(device) for table in (torch.from_numpy(FLIP), waves, JPEG_STEPS)))


@dataclass(frozen=True)
class Augmentation:
    """How far each face may be changed; by default not at all.

    Every amount is drawn evenly up to the one given.

    Attributes:
        flip: the share of faces that are mirrored.
        rotation: degrees to either side.
        scale: a factor between 1 - scale and 1 + scale.
        shift: of the face's width, along x and y.
        light: contrast between 1 - light and 1 + light, brightness up to light / 2 of
            the grey range.
        erasing: the share of faces of which one rectangle is hidden.
        erased_area: the largest rectangle, a share of the face.
        degraded: the share of faces made coarse, as many noisy, as many dark or bright:
            each of the three by a draw of its own.
        jpeg: the share of faces that went through a JPEG file of low quality.
        size: width in pixels of the faces that come out; 0 leaves it.
    """

    flip: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    light: float = 0.0
    erasing: float = 0.0
    erased_area: float = 0.2
    degraded: float = 0.0
    jpeg: float = 0.0
    size: int = 0

    @property
    def undamaged(self) -> Augmentation:
        """The same movement and light, and nothing hidden, degraded or compressed."""
        return replace(self, erasing=0.0, degraded=0.0, jpeg=0.0)


def augment(
    images: Tensor,
    landmarks: Tensor | None,
    how: Augmentation,
    generator: torch.Generator,
    *,
    share: slice = slice(None),
    among: int | None = None,
    compile: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Change each face of a batch at random.

    Args:
        images: uint8 or float [N, C, H, W], 0 to 255.
        landmarks: [N, 68, 2] in half widths, NaN where unknown; or None.
        how: the amounts.
        generator: on the images' device; equal states give equal batches.
        share: the place of these faces in a batch of `among` faces of which other
            processes change the others: each face is changed as one process would.
        compile: in a few kernels of torch.compile's, instead of a hundred.

    Returns:
        float images [N, C, H, W], 0 to 255, and the landmarks moved alike. Where
        how.size is not 0, H and W are that; half widths stay what they are.
    """
    n, size = among or len(images), how.size
    shape = (n, images.shape[1], size, size) if size else (n, *images.shape[1:])
    where = {"device": images.device, "generator": generator}
    drawn = [torch.rand(13, n, **where)[:, share]]
    if how.degraded:
        drawn += [torch.rand(6, n, **where)[:, share], torch.randn(shape, **where)[share]]
    if how.jpeg:
        drawn += [torch.rand(2, n, **where)[:, share]]
    change = fused(_change) if compile else _change
    return change(images, landmarks, how, drawn, tables(images.device))


def _change(
    images: Tensor,
    landmarks: Tensor | None,
    how: Augmentation,
    drawn: Sequence[Tensor],
    known: Tables,
) -> tuple[Tensor, Tensor | None]:
    """Change each face as it was drawn for it, from 0 to 1."""
    movement, *damage = drawn
    mirror, angle, scale, x, y, contrast, brightness, *hidden = movement

    def even(draw: Tensor, limit: float) -> Tensor:
        return (2 * draw - 1) * limit

    mirrored = mirror < how.flip
    matrix = affine(
        even(angle, math.radians(how.rotation)),
        1 + even(scale, how.scale),
        even(x, 2 * how.shift),
        even(y, 2 * how.shift),
        mirrored,
    )
    images = warp(images.float(), matrix, how.size)
    images = _light(images, 1 + even(contrast, how.light), even(brightness, 127.5 * how.light))
    if how.degraded:
        amounts, noise, *damage = damage
        images = _degrade(images, how, noise, *(draw.view(-1, 1, 1, 1) for draw in amounts))
    if how.jpeg:
        blocky, rounding = (draw.view(-1, 1, 1, 1) for draw in damage[0])
        images = torch.where(blocky < how.jpeg, jpeg(images, COARSEST * rounding, known), images)
    images = _erase(images, how, *(draw.view(-1, 1, 1, 1) for draw in hidden))
    if landmarks is not None:
        landmarks = move_landmarks(landmarks, matrix, mirrored, known)
    return images, landmarks


def affine(angle: Tensor, scale: Tensor, x: Tensor, y: Tensor, mirrored: Tensor) -> Tensor:
    """Return one matrix per face that takes its points to their new place: [N, 2, 3].

    A face is mirrored first, then turned by `angle` (radians, clockwise as y points
    down), scaled, and shifted by x and y (half widths). All arguments are [N].
    """
    cos, sin = scale * angle.cos(), scale * angle.sin()
    sign = torch.where(mirrored, -1.0, 1.0)
    rows = (torch.stack((sign * cos, -sin, x), 1), torch.stack((sign * sin, cos, y), 1))
    return torch.stack(rows, 1)


def warp(images: Tensor, matrix: Tensor, size: int = 0) -> Tensor:
    """Move the pixels [N, C, H, W] of each face by its matrix [N, 2, 3]; the border is repeated.

    They come out as [N, C, size, size] where a size is given.
    """
    # grid_sample asks where pixels come from.
    back = _inverse(matrix)
    shape = [*images.shape[:2], size, size] if size else list(images.shape)
    grid = F.affine_grid(back, shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _inverse(matrix: Tensor) -> Tensor:
    """Return the affine maps [N, 2, 3] that undo these; by hand, for torch.linalg is slow here."""
    (a, b, x), (c, d, y) = matrix.permute(1, 2, 0)
    determinant = a * d - b * c
    rows = torch.stack((d, -b, b * y - d * x, -c, a, c * x - a * y), 1)
    return (rows / determinant[:, None]).unflatten(1, (2, 3))


def move_landmarks(
    landmarks: Tensor, matrix: Tensor, mirrored: Tensor, known: Tables | None = None
) -> Tensor:
    """Move landmarks [N, 68, 2] by [N, 2, 3]; on a mirrored face left and right change names."""
    known = known or tables(landmarks.device)
    moved = landmarks @ matrix[:, :, :2].mT + matrix[:, None, :, 2]
    swapped = moved[:, known.flip]
    return torch.where(mirrored[:, None, None], swapped, moved)


def _light(images: Tensor, contrast: Tensor, brightness: Tensor) -> Tensor:
    """Stretch each face's greys about its own mean, and shift them; [N] each."""
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * contrast.view(-1, 1, 1, 1) + mean + brightness.view(-1, 1, 1, 1)
    return images.clamp(0, 255)


def _degrade(images: Tensor, how: Augmentation, noise: Tensor, *drawn: Tensor) -> Tensor:
    """Make some faces coarse, some dark or bright, some noisy, as photographs are.

    They lose up to half of their pixels' width, the greys (of 0 to 1) are taken to a power of
    1 / DARKEST to DARKEST, and noise [N, C, H, W] of unit size is added at up to GREY_NOISE.

    Drawn from 0 to 1, [N, 1, 1, 1] each: whether and how much, for each of the three.
    """
    small, coarseness, noisy, deviation, dark, exponent = drawn
    height, width = images.shape[2:]
    coarse = F.interpolate(images, (height // 2, width // 2), mode="area")
    coarse = F.interpolate(coarse, (height, width), mode="bilinear")
    images = images + (coarse - images) * coarseness * (small < how.degraded)
    power = DARKEST ** ((2 * exponent - 1) * (dark < how.degraded))
    images = 255 * (images / 255).clamp(0, 1) ** power
    return (images + noise * (GREY_NOISE * deviation * (noisy < how.degraded))).clamp(0, 255)


def jpeg(images: Tensor, factor: Tensor, known: Tables | None = None) -> Tensor:
    """Return the images [N, C, H, W], 0 to 255, as JPEG would give them back.

    The borders are repeated until blocks of 8 x 8 fill them; colours are treated as greys, each by
    itself.

    Args:
        factor: [N, 1, 1, 1], on the steps of quality 50: 50 / quality below that, and
            2 - quality / 50 above.
        known: the tables of the images' device, where they are at hand.
    """
    _, waves, steps = known or tables(images.device)
    n, channels, height, width = images.shape
    padded = F.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = F.unfold(padded.flatten(0, 1)[:, None] - 128, 8, stride=8)  # [N C, 64, blocks]
    steps = (steps * factor.view(n, 1, 1)).round().clamp(1, 255).repeat_interleave(channels, 0)
    rounded = waves.T @ ((waves @ blocks / steps).round() * steps)
    back = F.fold(rounded, padded.shape[2:], 8, stride=8).view(padded.shape)
    return (back[..., :height, :width] + 128).clamp(0, 255)


def _erase(images: Tensor, how: Augmentation, *drawn: Tensor) -> Tensor:
    """Hide one rectangle of some faces behind an even grey (Zhong et al., 2020).

    Drawn from 0 to 1, [N, 1, 1, 1] each: whether, how large, how wide, where (x, y), which grey.
    """
    chance, area, aspect, x, y, grey = drawn
    height, width = images.shape[2:]
    area = (0.02 + (how.erased_area - 0.02) * area) * (chance < how.erasing)
    stretch = (aspect * 2 - 1).exp()  # sides from 1 : e to e : 1
    half_x, half_y = (area * stretch).sqrt() / 2, (area / stretch).sqrt() / 2
    columns = (torch.arange(width, device=images.device) + 0.5) / width
    rows = ((torch.arange(height, device=images.device) + 0.5) / height)[:, None]
    hidden = ((columns - x).abs() < half_x) & ((rows - y).abs() < half_y)
    return torch.where(hidden, grey * 255, images)
