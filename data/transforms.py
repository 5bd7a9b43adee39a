"""Augmentation of whole batches on their device, of pixels and landmarks by one transform.

Landmarks are in normalized coordinates, as `affine_grid` defines them. Not torchvision's
transforms: those draw one transform per call, so that a batch would be a loop over its images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from data.degrade import MAX_JPEG_SCALE, degrade, jpeg, jpeg_tables
from utils.coordinates import FLIP
from utils.devices import compile_function

MIN_ERASED, MAX_ERASED = 0.02, 0.2  # area of an erased rectangle, as shares of the image


@dataclass(frozen=True)
class Augmentation:
    """Augmentation strengths, by default none. Amounts are uniform unless noted."""

    flip: float = 0.0  # probability of a horizontal flip
    degrees: float = 0.0  # maximum rotation
    translation: float = 0.0  # maximum in x and y, as a share of the width
    scale: float = 0.0  # the scale is from 1 - scale to 1 + scale
    color_jitter: float = 0.0  # contrast 1 +- color_jitter, brightness +- half of it
    erasing: float = 0.0  # random-erasing probability; the aspect ratio is log-uniform
    degraded: float = 0.0  # probability of each of low resolution, noise, and a log-uniform gamma
    jpeg: float = 0.0  # probability of JPEG compression; the table's scale is uniform
    width: int = 0  # of the output in pixels; 0 keeps the input's

    @property
    def mild(self) -> Augmentation:
        """Half of the geometry and color jitter, without erasing."""
        names = ("degrees", "translation", "scale", "color_jitter")
        return replace(self, erasing=0.0, **{name: getattr(self, name) / 2 for name in names})

    @property
    def weak(self) -> Augmentation:
        """The same geometry and color jitter, without erasing, degradation or JPEG."""
        return replace(self, erasing=0.0, degraded=0.0, jpeg=0.0)


@cache
def flip_index(device: torch.device) -> Tensor:
    """Return FLIP on a device, copied once: a copy per batch would synchronize with the GPU."""
    return torch.from_numpy(FLIP).to(device)


def augment(
    images: Tensor,
    landmarks: Tensor | None,
    augmentation: Augmentation,
    generator: torch.Generator,
    *,
    shard: slice = slice(None),
    whole: int | None = None,
    compile: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Augment a batch, each image by its own transform.

    Args:
        images: uint8 or float [N, C, H, W], 0 to 255.
        landmarks: [N, 68, 2], normalized coordinates, NaN where there are none; or None.
        augmentation: The strengths.
        generator: On the images' device; equal states give equal batches.
        shard: Position of these images in a batch of `whole` images, whose others are elsewhere.
        whole: See `shard`; by default N.
        compile: Use torch.compile.

    Returns:
        float images [N, C, H, W], 0 to 255, of `augmentation.width`, and the landmarks.
    """
    n, width = whole or len(images), augmentation.width
    shape = (n, images.shape[1], width, width) if width else (n, *images.shape[1:])
    where = {"device": images.device, "generator": generator}
    draws = [torch.rand(13, n, **where)[:, shard]]
    if augmentation.degraded:
        draws += [torch.rand(6, n, **where)[:, shard], torch.randn(shape, **where)[shard]]
    if augmentation.jpeg:
        draws += [torch.rand(2, n, **where)[:, shard]]
    apply = compile_function(_apply) if compile else _apply
    tables = flip_index(images.device), *jpeg_tables(images.device)
    return apply(images, landmarks, augmentation, draws, tables)


def _apply(
    images: Tensor,
    landmarks: Tensor | None,
    augmentation: Augmentation,
    draws: Sequence[Tensor],
    tables: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor | None]:
    """Apply the transforms that the draws in [0, 1) define."""
    geometry, *rest = draws
    flipped = geometry[0] < augmentation.flip
    signed = 2 * geometry[1:7] - 1
    angle, scale, x, y = signed[:4]
    matrix = affine(
        angle * math.radians(augmentation.degrees),
        1 + scale * augmentation.scale,
        x * (2 * augmentation.translation),
        y * (2 * augmentation.translation),
        flipped,
    )
    images = warp(images.float(), matrix, augmentation.width)
    contrast, brightness = signed[4:].view(2, -1, 1, 1, 1)
    contrast = 1 + contrast * augmentation.color_jitter
    brightness = brightness * (127.5 * augmentation.color_jitter)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = ((images - mean) * contrast + mean + brightness).clamp(0, 255)
    if augmentation.degraded:
        amounts, noise, *rest = rest
        amounts = [draw.view(-1, 1, 1, 1) for draw in amounts]
        images = degrade(images, augmentation.degraded, noise, amounts)
    if augmentation.jpeg:
        chance, coarseness = (draw.view(-1, 1, 1, 1) for draw in rest[0])
        compressed = jpeg(images, MAX_JPEG_SCALE * coarseness, tables[1:])
        images = torch.where(chance < augmentation.jpeg, compressed, images)
    images = _erase(images, augmentation, *(draw.view(-1, 1, 1, 1) for draw in geometry[7:]))
    if landmarks is not None:
        landmarks = transform_landmarks(landmarks, matrix, flipped, tables[0])
    return images, landmarks


def affine(angle: Tensor, scale: Tensor, x: Tensor, y: Tensor, flipped: Tensor) -> Tensor:
    """Return the affine maps [N, 2, 3] from old to new coordinates.

    An image is flipped first, then rotated by `angle` (radians, clockwise, as y points down),
    scaled, and translated by x and y (normalized coordinates). All arguments are [N].
    """
    cos, sin = scale * angle.cos(), scale * angle.sin()
    sign = torch.where(flipped, -1.0, 1.0)
    rows = (torch.stack((sign * cos, -sin, x), 1), torch.stack((sign * sin, cos, y), 1))
    return torch.stack(rows, 1)


def warp(images: Tensor, matrix: Tensor, width: int = 0) -> Tensor:
    """Warp images [N, C, H, W] by affine maps [N, 2, 3] to a width; the border is repeated."""
    # grid_sample needs the inverse maps. The closed form is faster than torch.linalg.inv.
    (a, b, x), (c, d, y) = matrix.permute(1, 2, 0)
    rows = torch.stack((d, -b, b * y - d * x, -c, a, c * x - a * y), 1)
    inverse = (rows / (a * d - b * c)[:, None]).unflatten(1, (2, 3))
    shape = [*images.shape[:2], width, width] if width else list(images.shape)
    grid = F.affine_grid(inverse, shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def transform_landmarks(
    landmarks: Tensor, matrix: Tensor, flipped: Tensor, flip: Tensor | None = None
) -> Tensor:
    """Transform normalized landmarks [N, 68, 2] by the maps of `affine`; a flip swaps their sides.

    `flipped` is bool [N], and `flip` FLIP on the landmarks' device.
    """
    flip = flip_index(landmarks.device) if flip is None else flip
    moved = landmarks @ matrix[:, :, :2].mT + matrix[:, None, :, 2]
    return torch.where(flipped[:, None, None], moved[:, flip], moved)


def _erase(images: Tensor, augmentation: Augmentation, *draws: Tensor) -> Tensor:
    """Replace one rectangle of some images by a uniform gray (Zhong et al., AAAI 2020)."""
    chance, area, aspect, x, y, gray = draws
    height, width = images.shape[2:]
    area = (MIN_ERASED + (MAX_ERASED - MIN_ERASED) * area) * (chance < augmentation.erasing)
    stretch = (aspect * 2 - 1).exp()  # sides from 1 : e to e : 1
    half_x, half_y = (area * stretch).sqrt() / 2, (area / stretch).sqrt() / 2
    columns = (torch.arange(width, device=images.device) + 0.5) / width
    rows = ((torch.arange(height, device=images.device) + 0.5) / height)[:, None]
    inside = ((columns - x).abs() < half_x) & ((rows - y).abs() < half_y)
    return torch.where(inside, gray * 255, images)
