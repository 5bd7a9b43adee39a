"""Landmark neighbors: the images with the most similar landmarks, whose labels correct wrong ones.

A simple form of the neighborhood aggregation of LA-Net (Wu and Cui, ICCV 2023, arXiv:2307.09023).
"""

import numpy as np
import torch

from data.dataset import FaceDataset

NUM_NEIGHBORS = 50
FIRST = 17  # landmark; the jaw line before it depends more on pose and identity than on expression
CHUNK = 1024  # images whose distances to all others are in memory at a time


def mix_with_neighbors(
    dataset: FaceDataset, targets: np.ndarray | None, weight: float
) -> np.ndarray | None:
    """Return class probabilities [N, C]: targets, mixed with the mean of those of the neighbors.

    Labeled Training images with landmarks have NUM_NEIGHBORS neighbors among themselves. The other
    images keep their targets.

    Args:
        dataset: With landmarks, if the weight is not 0.
        targets: float32 [N, C], or None for the labels.
        weight: Of the neighbors' mean, 0 to 1; 0 returns `targets`.
    """
    if not weight:
        return targets
    if targets is None:
        classes = np.arange(len(dataset.class_names))
        targets = (dataset.labels[:, None] == classes).astype(np.float32)
    rows = dataset.training_rows
    rows = rows[dataset.has_landmarks[rows]]
    mixed, own = targets.copy(), torch.from_numpy(targets[rows])
    shapes = torch.from_numpy(align(dataset.landmarks[rows, FIRST:])).flatten(1)
    for chunk in torch.arange(len(rows)).split(CHUNK):
        distances = torch.cdist(shapes[chunk], shapes)
        distances[torch.arange(len(chunk)), chunk] = torch.inf  # no image is its own neighbor
        neighbors = distances.topk(min(NUM_NEIGHBORS, len(rows) - 1), largest=False).indices
        mean = own[neighbors].mean(1) if neighbors.shape[1] else own[chunk]
        mixed[rows[chunk]] = own[chunk].lerp(mean, weight)
    return mixed


def align(landmarks: np.ndarray) -> np.ndarray:
    """Return landmarks [N, L, 2] moved to a common position, size and rotation (Procrustes).

    With x + iy as complex numbers, a factor scales and rotates, and the one that moves `points` to
    `mean` with the least squared distance is <points, mean> / <points, points>.
    """
    points = np.ascontiguousarray(landmarks, np.float32).view(np.complex64)[..., 0]
    points = points - points.mean(1, keepdims=True)
    mean = points.mean(0)
    for _ in range(2):  # the mean shape hardly changes after the first time
        factors = (points.conj() @ mean) / np.square(np.abs(points)).sum(1)
        aligned = factors[:, None] * points
        mean = aligned.mean(0)
    return aligned[..., None].view(np.float32)
