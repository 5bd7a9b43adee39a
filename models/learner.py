"""What a step learns from its batch: the gradient, its measures, and the relabels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from models.network import FERNet, Output
from models.objective import compute_losses, relabel_batch
from models.start import model_of
from utils.cuda_graph import Repeated
from utils.devices import autocast, fused, takes_bf16
from utils.group import Group
from utils.options import Options


class Learned(NamedTuple):
    """What a step learnt, beside the gradient that the network holds.

    Attributes:
        measures: scalars: the losses, the accuracy, the mean importance, and the length of the
            gradient before it was clipped.
        labels: int64 [N], of the faces after relabeling.
    """

    measures: dict[str, Tensor]
    labels: Tensor


def learn(
    model: Callable[[Tensor], Output],
    parameters: Sequence[nn.Parameter],
    options: Options,
    *,
    images: Tensor,
    targets: Tensor,
    labels: Tensor,
    landmarks: Tensor | None,
    own: Tensor | None,
    opinion: Tensor | None,
    known_num: Tensor,
    weight: float,
    relabels: bool,
) -> Learned:
    """Leave the gradient of a batch, or of this process's share of it, in the parameters.

    Args:
        model: the network, as it is called.
        parameters: its own.
        options: of the run.
        images: float [N, C, W, W], 0 to 255.
        targets: labels [N], or shares of the classes [N, K].
        labels: int64 [N].
        landmarks: [N, 68, 2] in half widths, NaN where unknown; or None.
        own: as of Batch.
        opinion, known_num, weight: as of compute_losses.
        relabels: whether labels may change.
    """
    for parameter in parameters:
        parameter.grad = None  # not zeros: a CUDA graph then makes it at a place of its own
    with autocast(images.device, takes_bf16(options.amp, images.device)):
        output = model(images)
    compute = fused(compute_losses) if options.compile else compute_losses
    shared = {"opinion": opinion, "weight": weight, "known_num": known_num}
    losses = compute(output, targets, landmarks, options, **shared)
    losses["loss"].backward()
    norm = clip_grad_norm_(parameters, options.clip or math.inf)
    right = output.clean_logits.argmax(1) == labels
    measures = {
        "train_accuracy": weight * right.float().mean(),
        "importance_mean": weight * output.importance.mean(),
        "gradient_norm": norm,
    }
    relabeled = relabel_batch(output, labels, options, own) if relabels else labels
    return Learned({name: each.detach() for name, each in (losses | measures).items()}, relabeled)


def learner_of(
    network: FERNet, options: Options, group: Group
) -> Callable[..., Callable[[], Learned]]:
    """Return what takes a batch, as `learn` does, and returns what learns from it when called.

    With --compile a GPU does that as one CUDA graph, unless several processes share the batch.
    """
    graphed = options.compile and group.size == 1 and network.pixel_mean.is_cuda
    model = model_of(network, options, group, graphed=graphed)
    learns = partial(learn, model, list(network.parameters()), options)
    return Repeated(learns, network).ready if graphed else lambda **batch: partial(learns, **batch)
