"""Batch norm over the batch of all processes, so that many devices train as one does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


def synchronized(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network with its batch norms replaced by ones that ask all processes."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, GroupBatchNorm.of(child))
    return network


class GroupBatchNorm(nn.BatchNorm2d):
    """nn.SyncBatchNorm for the CPU, where PyTorch's own refuses to work."""

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> GroupBatchNorm:
        """Return one with another's weights and statistics."""
        new = cls(norm.num_features, norm.eps, norm.momentum)
        new.weight, new.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            setattr(new, name, buffer)
        return new

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        pixels = x.float()
        sums = torch.cat((pixels.sum((0, 2, 3)), pixels.new_tensor([x.numel() / x.shape[1]])))
        total = _Sum.apply(sums)
        count = total[-1]
        mean = total[:-1] / count
        centred = pixels - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes. As each one's loss depends on it, so is its gradient one."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
