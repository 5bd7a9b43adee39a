"""Paired comparison of variants, and confidence intervals."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import binomtest

NUM_RESAMPLES = 10_000


def compare(correct: Mapping[str, Mapping[int, np.ndarray]], baseline: str) -> pd.DataFrame:
    """Compare variants with a baseline on the same images.

    Args:
        correct: By variant and seed, bool [N]: whether each prediction is correct.
        baseline: One of the variants.

    Returns:
        A row per variant. Columns: variant; seeds (their number); mean and std of the accuracy in
        percent (std is NaN for one seed). For the seeds that the baseline has, too: pairs (their
        number); difference, low and high (mean difference and its 95 % bootstrap interval, in
        percentage points); better and worse (images that only the variant, or only the baseline,
        predicts correctly, summed over the pairs); mcnemar (p-values of the exact test, one per
        pair, in the order of the seeds).
    """
    rows = []
    for name, runs in correct.items():
        accuracies = pd.Series([100 * hits.mean() for hits in runs.values()])
        row = {"variant": name, "seeds": len(runs)}
        row |= {"mean": accuracies.mean(), "std": accuracies.std()}
        common = sorted(runs.keys() & correct[baseline].keys())
        if name != baseline and common:
            variant = np.stack([runs[seed] for seed in common])
            reference = np.stack([correct[baseline][seed] for seed in common])
            row["pairs"] = len(common)
            row["difference"] = 100 * (variant.mean() - reference.mean())
            row["low"], row["high"] = bootstrap(variant, reference)
            better, worse, p = zip(*(mcnemar(a, b) for a, b in zip(variant, reference)))
            row |= {"better": sum(better), "worse": sum(worse)}
            row["mcnemar"] = " ".join(f"{value:.3g}" for value in p)
        rows.append(row)
    return pd.DataFrame(rows)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a proportion, 0 to 1."""
    return binomtest(successes, n).proportion_ci(method="wilson")


def bootstrap(variant: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a paired accuracy difference, in percentage points.

    Seeds and images are resampled with replacement, and pairs stay together. The interval covers
    the variation over seeds and over images; with few seeds it is too narrow rather than too wide.
    The arguments are bool [S, N]: whether each of S runs predicts each image correctly.
    """
    rng = np.random.default_rng(0)
    gain = variant.astype(np.float32) - reference
    num_seeds, n = gain.shape
    means = np.empty(NUM_RESAMPLES)
    for i in range(NUM_RESAMPLES):
        images = gain[rng.integers(0, num_seeds, num_seeds)].mean(0)
        means[i] = images[rng.integers(0, n, n)].mean()
    low, high = np.percentile(100 * means, (2.5, 97.5))
    return float(low), float(high)


def mcnemar(variant: np.ndarray, reference: np.ndarray) -> tuple[int, int, float]:
    """Compute McNemar's exact test (McNemar, 1947) of two paired classifiers.

    Returns the number of images that only the first predicts correctly, the number that only the
    second does, and the two-sided p-value. The arguments are bool [N]: correct predictions.
    """
    better = int((variant & ~reference).sum())
    worse = int((reference & ~variant).sum())
    p = binomtest(better, better + worse).pvalue if better + worse else 1.0
    return better, worse, float(p)
