"""SCN's three modules and the landmark loss, as pure functions.

Self-Cure Network: Wang et al., "Suppressing Uncertainties for Large-Scale Facial
Expression Recognition", CVPR 2020, arXiv:2002.10392.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def weighted_cross_entropy(
    logits: Tensor,
    importance: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    importance_smoothing: bool = True,
) -> Tensor:
    """Importance weighting (SCN's WCE-Loss): -mean log softmax(a * W x)[y].

    A small importance flattens the softmax, so the face pulls less on the weights. The gradient
    raises that of a face whose label is less probable than its target says: with smoothed labels
    it lowers the importance of the surest faces (EXPERIMENTS.md: what SCN's importances tell),
    unless smoothing moves the logits alone.

    Args:
        logits: [N, C], unweighted.
        importance: [N, 1] in (0, 1).
        labels: [N], or the classes' shares [N, C].
        label_smoothing: the share of each label that is spread over all classes.
        importance_smoothing: whether this share has a gradient on the importances, too. The loss
            is the same.

    Returns:
        The mean loss, a scalar.
    """
    if importance_smoothing:
        return F.cross_entropy(importance * logits, labels, label_smoothing=label_smoothing)
    given = F.cross_entropy(importance * logits, labels)
    spread = -(importance.detach() * logits).log_softmax(1).mean()
    return given.lerp(spread, label_smoothing)


def rank_regularization(importance: Tensor, beta: float, margin_1: float) -> Tensor:
    """Rank regularization (SCN's RR-Loss): max(0, margin_1 - (mean high a - mean low a)).

    It keeps the importances from all becoming 1. The high group is the `beta` share
    of the batch with the largest importances, the low group is the rest.

    Args:
        importance: [N, 1] or [N].
        beta: the share of the high group; both groups hold at least one face.
        margin_1: how far the groups' means should stand apart.

    Returns:
        The loss, a scalar; 0 for fewer than 2 faces, which make no two groups.
    """
    importance = importance.flatten()
    if len(importance) < 2:
        return importance.sum() * 0.0
    high = group_size(len(importance), beta)
    ranked = importance.sort(descending=True).values
    return F.relu(margin_1 - (ranked[:high].mean() - ranked[high:].mean()))


def relabel(
    logits: Tensor,
    labels: Tensor,
    margin_2: float,
    importance: Tensor | None = None,
    beta: float = 0.0,
) -> Tensor:
    """Relabeling (SCN's last module): take the predicted label where it wins by more than margin_2.

    A face moves when its largest probability exceeds that of its label by more than
    `margin_2`. With `importance` and `beta` only the low group may move, as in
    the paper; its authors' code lets every face move.

    Args:
        logits: [N, C] to judge by. Unweighted ones are the sounder judge: a
            small importance flattens the softmax, so that the margin would be
            reached on important faces before it is on uncertain ones.
        labels: [N].
        margin_2: a difference of probabilities, 0 to 1.
        importance: [N, 1] or [N], or None to let every face move.
        beta: the share of the high group, which keeps its labels.

    Returns:
        The new labels [N].
    """
    probabilities = logits.softmax(1)
    best, predicted = probabilities.max(1)
    given = probabilities.gather(1, labels[:, None])[:, 0]
    moves = best - given > margin_2
    if importance is not None:
        order = importance.flatten().argsort(descending=True)
        # Not moves[...] = False: a GPU's host would wait for that number.
        moves = moves.index_fill(0, order[: group_size(len(order), beta)], False)
    return torch.where(moves, predicted, labels)


def group_size(n: int, beta: float) -> int:
    """Return the size of the high-importance group of n faces: beta * n, both groups non-empty."""
    return min(max(int(n * beta + 1e-9), 1), max(n - 1, 0))  # 0.7 * 90 is a little less than 63


def landmark_loss(predicted: Tensor, landmarks: Tensor, known_num: Tensor | None = None) -> Tensor:
    """Mean absolute distance between coordinates, over the faces whose landmarks are known.

    In half widths of the face (as the network predicts them) it is of the
    cross-entropy's order, whatever the image's size; and dividing by the faces
    that have landmarks, not by all, it does not shrink with the detection rate.

    Args:
        predicted: [N, 68, 2].
        landmarks: [N, 68, 2], NaN for a face without landmarks.
        known_num: what to divide by, above 0, where it is not the number of these that have any.

    Returns:
        The loss, a scalar; 0 where no face has landmarks.
    """
    known = ~landmarks.isnan().flatten(1).any(1)  # [N]
    target = torch.where(known[:, None, None], landmarks, predicted.detach())
    distance = (predicted - target).abs().flatten(1).mean(1)  # [N], 0 where not known
    return distance.sum() / (known.sum().clamp(min=1) if known_num is None else known_num)
