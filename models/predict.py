"""Prediction of many images in batches, with or without test-time augmentation."""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.fernet import FERNet
from utils.coordinates import to_pixels
from utils.devices import autocast
from utils.predictions import Predictions
from utils.progress import progress_bar

# Test-time augmentation: (x, y) shifts in pixels at 48 x 48, each plain and mirrored.
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
    """Predict images.

    Args:
        network: In evaluation mode, on the images' device.
        images: uint8 [N, C, W, W].
        tta: Average the probabilities over `tta_copies`; the landmarks are those of the plain copy.
        bf16: Compute in bfloat16. Reported figures are computed in float32.
    """
    mirror, parts = not network.architecture.mirror, []
    for batch in progress_bar(images.split(batch_size), "predicting", disable=not progress):
        copies = tta_copies(batch.float(), mirror) if tta else [batch.float()]
        with autocast(images.device, bf16):
            outputs = [network(copy) for copy in copies]
        probabilities = torch.stack([o.weighted_logits.softmax(1) for o in outputs]).mean(0)
        importance = torch.stack([o.importance for o in outputs]).mean(0)[:, 0]
        parts.append((probabilities, importance, outputs[0].landmarks))
    columns = [None if part[0] is None else torch.cat(part) for part in zip(*parts)]
    probabilities, importance, landmarks = columns
    if landmarks is not None:
        landmarks = to_pixels(landmarks, images.shape[-1]).cpu().numpy()
    return Predictions(probabilities.cpu().numpy(), importance.cpu().numpy(), landmarks)


def num_copies(network: FERNet) -> int:
    """Return the number of copies over which test-time augmentation averages."""
    return len(SHIFTS) * (1 if network.architecture.mirror else 2)


def tta_copies(images: Tensor, mirror: bool = True) -> list[Tensor]:
    """Return ten copies of float images [N, C, W, W], the plain one first. Borders are repeated.

    Without `mirror` there are five: a mirror-equivariant network predicts the same for the others.
    """
    step = images.shape[-1] / 48
    offsets = [(round(x * step), round(y * step)) for x, y in SHIFTS]
    shifted = [F.pad(images, (x, -x, y, -y), mode="replicate") for x, y in offsets]
    return [copy for image in shifted for copy in (image, image.flip(-1))[: 1 + mirror]]
