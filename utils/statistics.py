"""Runs of several variants, compared in pairs, and what chance may do to their differences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import binomtest

DRAWS = 10_000  # of the bootstrap


def compare(right: Mapping[str, Mapping[int, np.ndarray]], baseline: str) -> pd.DataFrame:
    """Compare variants with a baseline on the same faces.

    Args:
        right: by variant and seed: bool [N], the faces that were read right.
        baseline: one of the variants.

    Returns:
        A row per variant, shares in per cent: variant, seeds, mean, std (over seeds; empty for
        one), and against the baseline over the seeds that both have: pairs, difference, low and
        high (95 % bootstrap interval), better and worse (faces, summed over the pairs), mcnemar
        (the exact test's p of each pair, in the order of the seeds).
    """
    rows = []
    for name, runs in right.items():
        accuracies = np.array([100 * each.mean() for each in runs.values()])
        row = {"variant": name, "seeds": len(runs), "mean": accuracies.mean()}
        row["std"] = accuracies.std(ddof=1) if len(runs) > 1 else np.nan
        both = sorted(runs.keys() & right[baseline].keys())
        if name != baseline and both:
            ours = np.stack([runs[seed] for seed in both])
            theirs = np.stack([right[baseline][seed] for seed in both])
            row["pairs"] = len(both)
            row["difference"] = 100 * (ours.mean() - theirs.mean())
            row["low"], row["high"] = bootstrap(ours, theirs)
            tests = [mcnemar(a, b) for a, b in zip(ours, theirs)]
            better, worse, p = (np.array(column) for column in zip(*tests))
            row |= {"better": better.sum(), "worse": worse.sum()}
            row["mcnemar"] = " ".join(f"{each:.3g}" for each in p)
        rows.append(row)
    return pd.DataFrame(rows)


def wilson(right: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval (Wilson) of the share `right` of n faces."""
    bounds = binomtest(right, n).proportion_ci(method="wilson")
    return bounds.low, bounds.high


def bootstrap(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a paired difference in per cent, over seeds and faces.

    Seeds and faces are drawn again with replacement, each pair staying together: the
    interval says what other seeds and other faces of the same kind might give. With
    three seeds it is rather too narrow than too wide.

    Args:
        ours: bool [S, N], the faces that each of S runs read right.
        theirs: bool [S, N], of the runs that they are paired with.
    """
    rng = np.random.default_rng(0)
    gain = ours.astype(np.float32) - theirs
    seeds, n = gain.shape
    means = np.empty(DRAWS)
    for i in range(DRAWS):
        faces = gain[rng.integers(0, seeds, seeds)].mean(0)
        means[i] = faces[rng.integers(0, n, n)].mean()
    low, high = np.percentile(100 * means, (2.5, 97.5))
    return float(low), float(high)


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, int, float]:
    """Return how many faces only the one and only the other read right, and McNemar's p.

    The exact test: were both equally good, each of those faces would fall to either side
    by a coin's toss (McNemar, 1947).
    """
    better, worse = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    p = binomtest(better, better + worse).pvalue if better + worse else 1.0
    return better, worse, float(p)
