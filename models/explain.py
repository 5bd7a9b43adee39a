"""Class activation maps: an exact decomposition of the logits over the cells of the feature map.

The network is linear after its last feature map f, so (Zhou et al., CVPR 2016)

    weighted logit of class c = bias[c] + mean over the cells of map[c],

with map[c] = importance * w[c] . f(cell). No backward pass is needed.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.fernet import GROUP_SIZES, FERNet, sample_at_landmarks
from utils.coordinates import to_pixels
from utils.predictions import Predictions


def explain(network: FERNet, images: Tensor) -> tuple[Tensor | None, ...]:
    """Predict images [N, C, W, W] as `FERNet.forward` does, and decompose their logits.

    Returns the values of `Predictions` as tensors; the landmarks may be None. The weighted logits
    [N, C] are bias [N, C] + maps.mean((2, 3)), with maps [N, C, w, w].
    """
    middle, cells = network.forward_backbone(images)
    output = network.forward_heads(middle, cells)
    weight = network.classifier.weight
    if network.architecture.mirror:
        cells = linear_cells(cells)
    maps = torch.einsum("cf,nfhw->nchw", weight, cells)
    width = maps.shape[-1]
    if network.architecture.pool == "corner":  # the other cells have no weight
        maps = F.pad(maps[..., :4, :4] * (width**2 / 4**2), (0, width - 4, 0, width - 4))
    if network.part_layer is not None:
        maps = maps + _landmark_maps(network, middle, output.landmarks, width)
    bias = output.importance * network.classifier.bias
    maps = output.importance[:, :, None, None] * maps
    logits, landmarks = output.weighted_logits, output.landmarks
    if landmarks is not None:
        landmarks = to_pixels(landmarks, images.shape[-1])
    return logits.softmax(1), output.importance[:, 0], landmarks, logits, bias, maps


@torch.inference_mode()
def predict_explained(network: FERNet, images: Tensor) -> Predictions:
    """Predict images uint8 [N, C, W, W], and decompose their logits."""
    values = explain(network, images)
    return Predictions(*(None if value is None else value.cpu().numpy() for value in values))


def linear_cells(cells: Tensor) -> Tensor:
    """Return cells whose mean is [a + b, |a - b|] of the mean of `cells`, whose halves are a and b.

    A mirror-equivariant backbone has this pair of features. |a - b| = s (a - b), where s is the
    sign of the pooled difference, for each image and channel, so it is a mean over cells, too.
    """
    a, b = cells.chunk(2, 1)
    sign = (a - b).mean((2, 3), keepdim=True).sign()
    return torch.cat([a + b, sign * (a - b)], 1)


def _landmark_maps(network: FERNet, middle: Tensor, landmarks: Tensor, width: int) -> Tensor:
    """Return maps [N, C, w, w] of the features pooled at the landmarks.

    The contribution of each landmark is distributed bilinearly over the cells around it.
    """
    weight = network.classifier.weight @ network.part_layer.weight
    weights = weight.unflatten(1, (len(GROUP_SIZES), -1))  # [C, parts, mid_channels]
    sampled = sample_at_landmarks(middle, landmarks).split(GROUP_SIZES, 2)
    terms = [
        torch.einsum("cm,nml->ncl", weights[:, i] / n, part)
        for i, (n, part) in enumerate(zip(GROUP_SIZES, sampled))
    ]
    contributions = torch.cat(terms, 2)  # [N, C, 68]
    position = ((landmarks + 1) * (width / 2) - 0.5).clamp(0, width - 1)  # in cells
    cells = torch.arange(width, device=position.device, dtype=position.dtype)
    x, y = (1 - (position[..., None] - cells).abs()).clamp(min=0).unbind(2)  # [N, 68, w] each
    return width**2 * torch.einsum("ncl,nly,nlx->ncyx", contributions, y, x)
