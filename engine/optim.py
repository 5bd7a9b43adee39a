"""Optimizer, learning-rate schedule, and the exponential moving average (EMA) of the weights."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from utils.devices import use_bf16
from utils.options import Options

# Factors on the learning rate and weight decay of Muon's groups, and its momentum.
MUON_LR, MUON_DECAY, MUON_MOMENTUM = 0.2, 40, 0.95


class Muon(torch.optim.SGD):
    """SGD whose updates of convolution weights are orthogonal matrices.

    A weight [O, I, H, W] is a matrix [O, H W I]. Its update is the Nesterov momentum of its
    gradient, with all singular values replaced by about 1: a direction in which the gradients are
    small changes as much as one in which they are large. If O > H W I, the update is multiplied by
    sqrt(O / (H W I)). Groups with "orthogonal" have this update, and their "momentum" must be 0;
    SGD updates the others.

    Source: K. Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024,
    https://kellerjordan.github.io/posts/muon. torch.optim.Muon takes matrices only.

    Args:
        groups: Parameter groups of convolution weights in channels-last format, and others.
        bf16: Whether to compute the orthogonal matrices in bfloat16.
    """

    def __init__(self, groups: list[dict[str, Any]], bf16: bool, **arguments: Any) -> None:
        super().__init__(groups, **arguments)
        self._bf16 = bf16

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the weights, and replace the gradients of the convolutions by their updates."""
        for group in self.param_groups:
            for p in group["params"] if group.get("orthogonal") else ():
                if p.grad is not None:
                    p.grad = self._orthogonal_update(p)
        super().step(closure)

    def _orthogonal_update(self, p: nn.Parameter) -> Tensor:
        """Return the update [O, I, H, W] of a weight of this shape."""
        state = self.state[p]
        if "average" not in state:
            state["average"] = torch.zeros_like(p)
        average = state["average"].lerp_(p.grad, 1 - MUON_MOMENTUM)
        momentum = p.grad.lerp(average, MUON_MOMENTUM).permute(0, 2, 3, 1)  # contiguous
        matrix = momentum.flatten(1)
        update = orthogonalize(matrix.bfloat16() if self._bf16 else matrix).to(p.dtype)
        scale = max(1, len(matrix) / matrix.shape[1]) ** 0.5
        return (scale * update).view(momentum.shape).permute(0, 3, 1, 2)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Replace the singular values of a matrix [M, N] by values of about 1 (0.7 to 1.2).

    Five Newton-Schulz iterations with Muon's coefficients. Singular values below a thousandth of
    the largest end lower.
    """
    matrix = matrix / matrix.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = matrix @ matrix.T
        matrix = 3.4445 * matrix + (2.0315 * gram @ gram - 4.775 * gram) @ matrix
    return matrix


def build_optimizer(network: nn.Module, options: Options) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum, Muon or AdamW; biases and batch norm have no weight decay.

    The learning rate of the backbone is multiplied by `options.backbone_lr`.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, p in network.named_parameters():
        scale = options.backbone_lr if name.startswith(("backbone.", "part_layer.")) else 1.0
        decay = options.weight_decay if p.ndim > 1 else 0.0
        is_orthogonal = options.optimizer == "muon" and p.ndim == 4
        if is_orthogonal:
            scale, decay = scale * MUON_LR, decay * MUON_DECAY
        groups.setdefault((scale, decay, is_orthogonal), []).append(p)
    groups = [
        {"params": params, "weight_decay": decay, "lr_scale": scale}
        | ({"orthogonal": True, "momentum": 0.0, "nesterov": False} if is_orthogonal else {})
        for (scale, decay, is_orthogonal), params in sorted(
            groups.items(), key=lambda group: -group[0][1]
        )
    ]
    if options.optimizer == "adam":
        return torch.optim.AdamW(groups, lr=options.start_lr, fused=True)
    arguments = {"lr": options.start_lr, "momentum": 0.9, "nesterov": True, "fused": True}
    if options.optimizer == "muon":
        sgd = Muon(groups, bf16=use_bf16(options.amp, groups[0]["params"][0].device), **arguments)
    else:
        sgd = torch.optim.SGD(groups, **arguments)
    if options.freeze_epochs:  # fused SGD fails if only some parameters have a buffer
        for p in network.parameters():
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def learning_rate(options: Options, progress: float) -> float:
    """Return the learning rate: linear warm-up, then a cosine to 0.

    `progress` is the finished share of the training, 0 to 1.
    """
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
