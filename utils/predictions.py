"""Predictions as NumPy arrays, independent of the library that computed them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Predictions(NamedTuple):
    """Predictions of N images."""

    probabilities: np.ndarray  # float32 [N, C]
    importance: np.ndarray  # float32 [N], SCN's; the mean over test-time augmentation or networks
    landmarks: np.ndarray | None  # float32 [N, 68, 2], pixels of the image
    # The decomposition of `models.explain`, where it was asked for.
    logits: np.ndarray | None = None  # float32 [N, C], weighted by the importance
    bias: np.ndarray | None = None  # float32 [N, C]
    maps: np.ndarray | None = None  # float32 [N, C, w, w]

    @classmethod
    def concatenate(cls, parts: Sequence[Predictions]) -> Predictions:
        """Return the predictions of several groups of images as those of one."""
        return cls(*(None if p[0] is None else np.concatenate(p) for p in zip(*parts)))

    @classmethod
    def average(cls, parts: Sequence[Predictions]) -> Predictions:
        """Return the mean predictions of several networks, landmarks of those that have them."""
        present = ([value for value in values if value is not None] for values in zip(*parts))
        return cls(*(np.mean(values, axis=0) if values else None for values in present))
