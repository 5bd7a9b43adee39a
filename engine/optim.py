"""Optimizer, learning-rate schedule, and the exponential moving average (EMA) of the weights."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from utils.options import Options


def build_optimizer(network: nn.Module, options: Options) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum, or AdamW; biases and batch norm have no weight decay.

    The learning rate of the backbone is multiplied by `options.backbone_lr`.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, p in network.named_parameters():
        scale = options.backbone_lr if name.startswith(("backbone.", "part_layer.")) else 1.0
        groups.setdefault((scale, p.ndim > 1), []).append(p)
    groups = [
        {"params": params, "weight_decay": options.weight_decay * is_decayed, "lr_scale": scale}
        for (scale, is_decayed), params in sorted(groups.items(), key=lambda group: not group[0][1])
    ]
    if options.optimizer == "adam":
        return torch.optim.AdamW(groups, lr=options.start_lr, fused=True)
    sgd = torch.optim.SGD(groups, lr=options.start_lr, momentum=0.9, nesterov=True, fused=True)
    if options.freeze_epochs:  # fused SGD fails if only some parameters have a buffer
        for p in network.parameters():
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def learning_rate(options: Options, progress: float) -> float:
    """Return the learning rate: linear warm-up, then a cosine to 0 as `progress` reaches 1."""
    warmup = min(options.warmup_epoch / options.total_epoch, 1.0)
    if progress < warmup:
        return options.start_lr * progress / warmup
    return options.start_lr * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters, that of the backbone with its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


class EMA(AveragedModel):
    """The EMA of a network, in evaluation mode: w <- d w + (1 - d) w_now.

    The decay d starts low and rises to `decay`, so that a short run does not keep its random
    initialization. Batch-norm statistics are averaged, too. `update_parameters` is overridden
    because that of AveragedModel copies its counter to the GPU, which synchronizes at every step.

    Args:
        network: On its final device, in its final memory format.
        decay: 0.999 averages about 1,000 steps; 0 copies the network.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, use_buffers=True)
        self._decay, self._tensors = decay, ()
        self.module.eval().requires_grad_(False)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Average the current weights of the network; `model` is always the same network."""
        if not self._tensors:  # listing them takes longer than averaging them
            self._tensors = [
                [value for value in net.state_dict().values() if value.is_floating_point()]
                for net in (self.module, model)
            ]
        step = int(self.n_averaged)  # on the CPU
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(*self._tensors, 1 - decay)
        self.n_averaged += 1
