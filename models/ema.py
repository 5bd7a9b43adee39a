"""An exponential moving average of a network's weights: what is evaluated and kept."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn


class EMA:
    """A copy of a network whose weights follow it slowly: w <- d w + (1 - d) w_now.

    The decay d starts low and rises to `decay`, so that a short run does not
    drag its random start along. The batch-norm statistics are averaged too.
    From the first update on neither network may be moved to another device or format.

    Args:
        network: to follow.
        decay: 0.999 remembers about 1,000 steps; 0 copies the network.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = deepcopy(network).eval().requires_grad_(False)
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None  # averaged ones, and new

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take one step towards `network`, always the same; `step` counts over the whole run."""
        decay = min(self.decay, (1 + step) / (10 + step))
        if self._pairs is None:  # they stay where they are, and listing them takes a while
            averaged, new = (
                [value for value in each.state_dict().values() if value.is_floating_point()]
                for each in (self.network, network)
            )
            self._pairs = averaged, new
        torch._foreach_lerp_(*self._pairs, 1 - decay)
