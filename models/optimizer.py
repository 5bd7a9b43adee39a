"""The optimizer, and its learning rate over a run."""

from __future__ import annotations

import math

import torch
from torch import nn

from utils.options import Options


def make_optimizer(network: nn.Module, options: Options) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum, or AdamW; biases and batch norm do not decay."""
    groups = [
        {
            "params": [p for p in network.parameters() if p.ndim > 1],
            "weight_decay": options.weight_decay,
        },
        {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if options.optimizer == "adam":
        return torch.optim.AdamW(groups, lr=options.start_lr, fused=True)
    return torch.optim.SGD(groups, lr=options.start_lr, momentum=0.9, nesterov=True, fused=True)


def learning_rate(options: Options, done: float) -> float:
    """Return the rate when the share `done`, from 0 to below 1, of the run is over.

    It rises evenly over `warmup_epoch`, then falls along a cosine to 0 at the
    very end, after the last step; where there are `cycles`, at the end of each, to start the
    next at its full height (SGDR: Loshchilov & Hutter, 2017).
    """
    cycle, place = divmod(done * options.cycles, 1)
    warm = min(options.warmup_epoch * options.cycles / options.total_epoch, 1.0)
    if cycle > 0:
        warm = 0.0
    if place < warm:
        return options.start_lr * place / warm
    return options.start_lr * 0.5 * (1 + math.cos(math.pi * (place - warm) / (1 - warm)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter this rate from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
