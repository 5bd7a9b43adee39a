"""Optimizer, learning-rate schedule, and the exponential moving average (EMA) of the weights."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from utils.devices import use_bf16
from utils.options import Options


MUON_LR = 0.2  # learning rate of the matrices, relative to that of SGD
MUON_DECAY = 40  # the same for weight decay: 0.02 at the defaults


class Muon(torch.optim.SGD):
    """SGD whose updates of convolution weights are orthogonal matrices.

    A weight [O, I, H, W] is a matrix [O, I H W]. Its update is the Nesterov momentum of the
    gradient, with all singular values replaced by about 1. So weak directions of the gradient
    change the weights as much as strong ones. Groups with "dtype" are updated like this, the
    others by SGD.

    Source: K. Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024,
    https://kellerjordan.github.io/posts/muon
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            if "dtype" in group:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad = self._orthogonal_update(p, group["dtype"])
        super().step(closure)

    def _orthogonal_update(self, p: nn.Parameter, dtype: torch.dtype) -> torch.Tensor:
        state = self.state[p]
        if "average" not in state:
            state["average"] = torch.zeros_like(p)
        average = state["average"].lerp_(p.grad, 0.05)
        matrix = p.grad.lerp(average, 0.95).permute(0, 2, 3, 1).flatten(1)  # a view: channels last
        rows, columns = matrix.shape
        update = orthogonalize(matrix.to(dtype)) * max(1, rows / columns) ** 0.5
        shape = (rows, *p.shape[2:], p.shape[1])
        return update.to(p.dtype).view(shape).permute(0, 3, 1, 2)


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Replace the singular values of a matrix by values near 1, in 5 Newton-Schulz iterations.

    The coefficients are those of Muon: all singular values above 0.01 of the Frobenius norm end
    between 0.68 and 1.14.
    """
    x = matrix / matrix.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def build_optimizer(network: nn.Module, options: Options) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum, Muon or AdamW; biases and batch norm have no weight decay.

    The learning rate of the backbone is multiplied by `options.backbone_lr`.
    """
    is_muon = options.optimizer == "muon"
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, p in network.named_parameters():
        scale = options.backbone_lr if name.startswith(("backbone.", "part_layer.")) else 1.0
        groups.setdefault((scale, p.ndim > 1, is_muon and p.ndim == 4), []).append(p)
    dtype = torch.bfloat16 if use_bf16(options.amp, p.device) else torch.float32
    muon = {"momentum": 0.0, "nesterov": False, "dtype": dtype}  # its momentum is in `Muon`
    groups = [
        {
            "params": params,
            "weight_decay": options.weight_decay * is_decayed * (MUON_DECAY if is_matrix else 1),
            "lr_scale": scale * (MUON_LR if is_matrix else 1),
        }
        | (muon if is_matrix else {})
        for (scale, is_decayed, is_matrix), params in sorted(
            groups.items(), key=lambda group: not group[0][1]
        )
    ]
    if options.optimizer == "adam":
        return torch.optim.AdamW(groups, lr=options.start_lr, fused=True)
    optimizer = Muon if is_muon else torch.optim.SGD
    sgd = optimizer(groups, lr=options.start_lr, momentum=0.9, nesterov=True, fused=True)
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
