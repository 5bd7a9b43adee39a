"""Sharpness-aware minimization (SAM): Foret et al., 2021, arXiv:2010.01412."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import get_total_norm


@contextmanager
@torch.no_grad()
def uphill(network: nn.Module, radius: float) -> Iterator[None]:
    """Put the weights where the loss is about largest nearby; the gradient is taken there.

    That is the paper's equation 2: w + radius * g / |g|, of the gradient g that the network holds
    now. A step with the gradient found there seeks flat valleys. Afterwards the weights are the
    same bits as before, and so are the batch-norm statistics, which belong to these weights.

    Args:
        network: after a backward pass.
        radius: the paper's rho, the distance in the space of all weights.
    """
    weights = [p for p in network.parameters() if p.grad is not None]
    gradients = [p.grad for p in weights]
    kept = [*(p.detach() for p in weights), *network.buffers()]
    before = [value.clone() for value in kept]
    # As a tensor: a number would make the host wait for a GPU.
    scale = radius / get_total_norm(gradients).clamp(min=1e-12)
    torch._foreach_add_(weights, torch._foreach_mul(gradients, scale))
    try:
        yield
    finally:  # whatever stops the run, these are its weights
        torch._foreach_copy_(kept, before)
