"""A set that lives on the device as uint8 (FER2013 is 83 MB), so that no batch is ever fetched."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.faces import Faces
from utils.frame import to_half_widths


class Resident(NamedTuple):
    """N faces on a device.

    Attributes:
        images: uint8 [N, C, W, W].
        labels: int64 [N].
        landmarks: float32 [N, 68, 2] in half widths, NaN where unknown; or None.
    """

    images: Tensor
    labels: Tensor
    landmarks: Tensor | None


def to_device(faces: Faces, device: torch.device) -> Resident:
    """Move square faces to the device, once."""
    landmarks = faces.landmarks
    if landmarks is not None:
        landmarks = torch.from_numpy(to_half_widths(landmarks, faces.images.shape[2])).to(device)
    return Resident(
        images_to_device(faces.images, device), torch.from_numpy(faces.labels).to(device), landmarks
    )


def images_to_device(images: np.ndarray, device: torch.device) -> Tensor:
    """Move uint8 images [N, H, W] or [N, H, W, 3] to the device as [N, C, H, W]."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
