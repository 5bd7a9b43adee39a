"""Optimizer, learning-rate schedule, and the exponential moving average (EMA) of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from utils.options import Options


def build_optimizer(network: nn.Module, options: Options) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum, or AdamW; biases and batch norm have no weight decay."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if options.optimizer == "adam":
        return torch.optim.AdamW(groups, lr=options.start_lr, fused=True)
    return torch.optim.SGD(groups, lr=options.start_lr, momentum=0.9, nesterov=True, fused=True)


def learning_rate(options: Options, progress: float) -> float:
    """Return the learning rate: linear warm-up, then a cosine to 0 as `progress` reaches 1."""
    warmup = min(options.warmup_epoch / options.total_epoch, 1.0)
    if progress < warmup:
        return options.start_lr * progress / warmup
    return options.start_lr * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def build_ema(network: nn.Module, decay: float) -> AveragedModel:
    """Return the EMA of a network, in evaluation mode: w <- d w + (1 - d) w_now.

    The decay d starts low and rises to `decay`, so that a short run does not keep its random
    initialization. Batch-norm statistics are averaged, too.

    Args:
        network: On its final device, in its final memory format.
        decay: 0.999 averages about 1,000 steps; 0 copies the network.
    """

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], _: Tensor) -> None:
        # AveragedModel's count lies on the CPU; the argument is a copy on the GPU, which would
        # have to be waited for.
        step = int(ema.n_averaged)
        d = min(decay, (1 + step) / (10 + step))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - d)
        else:  # batch norm's counters
            torch._foreach_copy_(averaged, current)

    ema = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    ema.module.eval().requires_grad_(False)
    return ema
