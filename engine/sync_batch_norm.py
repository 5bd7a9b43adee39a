"""Batch norm over the batch of all processes, so that several devices train as one does."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce  # its gradient is summed, too


def convert_sync_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Replace each BatchNorm2d by one whose statistics are those of all processes."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CpuSyncBatchNorm  # has the same parameters and buffers
    return network


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """SyncBatchNorm for CPUs, which torch.nn.SyncBatchNorm does not support."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        pixels = x.float()  # [N, C, H, W]
        sums = torch.cat((pixels.sum((0, 2, 3)), pixels.new_tensor([x.numel() / x.shape[1]])))
        total = all_reduce(sums)
        count = total[-1]
        mean = total[:-1] / count
        centered = pixels - mean[:, None, None]
        variance = all_reduce(centered.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
