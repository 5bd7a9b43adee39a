"""What trained networks say of faces, whichever library runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Predictions(NamedTuple):
    """Of N faces, as NumPy arrays.

    Attributes:
        probabilities: float32 [N, C].
        importance: float32 [N], SCN's: what the logits are multiplied by; of several views or
            networks the mean.
        landmarks: float32 [N, 68, 2] in pixels, of the face as it stands; or None.
    """

    probabilities: np.ndarray
    importance: np.ndarray
    landmarks: np.ndarray | None

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        """Return the predictions of several lots of faces as of one."""
        return cls(*(None if some[0] is None else np.concatenate(some) for some in zip(*parts)))

    @classmethod
    def averaged(cls, parts: Sequence[Predictions]) -> Predictions:
        """Return the mean of what several networks say of the same faces; of landmarks, of those
        that have them."""
        known = ([each for each in some if each is not None] for some in zip(*parts))
        return cls(*(np.mean(some, axis=0) if some else None for some in known))
