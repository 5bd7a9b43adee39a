"""An exponential moving average of a network's weights: what is evaluated and kept."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn


class EMA:
    """A copy of a network whose weights follow it slowly: w <- d w + (1 - d) w_now.

    The decay d starts low and rises to `decay`, so that a short run does not
    drag its random start along. The batch-norm statistics are averaged too.

    Args:
        network: to follow.
        decay: 0.999 remembers about 1,000 steps; 0 copies the network.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take one step towards `network`; `step` counts from 0 over the whole run."""
        decay = min(self.decay, (1 + step) / (10 + step))
        old = self.network.state_dict().values()
        new = network.state_dict().values()
        averaged = [(o, n) for o, n in zip(old, new) if o.is_floating_point()]
        torch._foreach_lerp_([o for o, _ in averaged], [n for _, n in averaged], 1 - decay)
