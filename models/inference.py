"""What a trained network says of many faces, in batches, with or without test-time augmentation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from models.network import FERNet
from models.predictions import Predictions
from utils.devices import autocast
from utils.frame import to_pixels

# Test-time augmentation: as shifted by (x, y) pixels of a 48-pixel face, each plain and mirrored.
SHIFTS = ((0, 0), (-2, 0), (2, 0), (0, -2), (0, 2))


@torch.inference_mode()
def predict(
    network: FERNet,
    images: Tensor,
    batch_size: int = 256,
    tta: bool = False,
    *,
    bf16: bool = False,
    progress: bool = True,
) -> Predictions:
    """Look at every face once, or at its ten views.

    Args:
        network: in evaluation mode, on the images' device.
        images: uint8 [N, C, W, W].
        batch_size: faces per step; it bounds the memory.
        tta: average the probabilities over five shifts, each plain and mirrored.
        bf16: compute in bfloat16; figures to report are computed without it.
        progress: show a bar on a terminal.
    """
    if not len(images):
        classes, points = network.architecture.classes, network.architecture.landmark_num
        empty = np.zeros((0, points, 2), np.float32) if points else None
        return Predictions(np.zeros((0, classes), np.float32), np.zeros(0, np.float32), empty)
    hide = None if progress else True  # None: where no terminal shows it
    batches = tqdm(images.split(batch_size), "predicting", unit="batch", leave=False, disable=hide)
    parts = [_look(network, batch.float(), tta, bf16) for batch in batches]
    probabilities, importance, landmarks = zip(*parts)
    joined = None
    if landmarks[0] is not None:
        joined = to_pixels(torch.cat(landmarks), images.shape[-1]).cpu().numpy()
    return Predictions(
        torch.cat(probabilities).cpu().numpy(), torch.cat(importance).cpu().numpy(), joined
    )


def views(images: Tensor) -> list[Tensor]:
    """Return the ten views of [N, C, W, W] float images, the plain one first.

    The border is repeated where a shift leaves the face.
    """
    step = images.shape[-1] / 48
    shifted = [_shift(images, round(x * step), round(y * step)) for x, y in SHIFTS]
    return [view for image in shifted for view in (image, image.flip(-1))]


def _look(
    network: FERNet, images: Tensor, tta: bool, bf16: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    with autocast(images.device, bf16):
        outputs = [network(view) for view in (views(images) if tta else [images])]
    probabilities = torch.stack([output.weighted_logits.softmax(1) for output in outputs]).mean(0)
    importance = torch.stack([output.importance for output in outputs]).mean(0)[:, 0]
    return probabilities, importance, outputs[0].landmarks


def _shift(images: Tensor, x: int, y: int) -> Tensor:
    reach = max(abs(x), abs(y))
    if not reach:
        return images
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    height, width = images.shape[-2:]
    return padded[..., reach - y : reach - y + height, reach - x : reach - x + width]
