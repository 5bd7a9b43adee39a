"""Batch norm over the batch of all processes, so that several devices train as one does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


def convert_sync_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Replace each BatchNorm2d by one whose statistics are those of all processes."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                new = CpuSyncBatchNorm(child.num_features, child.eps, child.momentum)
                new.weight, new.bias = child.weight, child.bias
                for key, buffer in child.named_buffers():
                    setattr(new, key, buffer)
                setattr(parent, name, new)
    return network


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """SyncBatchNorm for CPUs, which torch.nn.SyncBatchNorm does not support."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        pixels = x.float()  # [N, C, H, W]
        sums = torch.cat((pixels.sum((0, 2, 3)), pixels.new_tensor([x.numel() / x.shape[1]])))
        total = _AllReduceSum.apply(sums)
        count = total[-1]
        mean = total[:-1] / count
        centered = pixels - mean[:, None, None]
        variance = _AllReduceSum.apply(centered.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _AllReduceSum(torch.autograd.Function):
    """Sum over all processes. Each process's loss depends on it, so its gradient is summed, too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
