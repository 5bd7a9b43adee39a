"""SCN's modules, relabeling, the landmark loss, and the sum of the losses, as pure functions.

Self-Cure Network: Wang et al., "Suppressing Uncertainties for Large-Scale Facial
Expression Recognition", CVPR 2020, arXiv:2002.10392.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.fernet import Output
from utils.options import Options


def weighted_cross_entropy(
    logits: Tensor,
    importance: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Compute SCN's logit-weighted cross-entropy: the mean of -log softmax(importance * logits)[y].

    A small importance flattens the softmax and shrinks the image's gradient. The gradient on the
    importance raises it where z_y > sum_c p_c z_c (logits z, label y, p = softmax(importance * z)),
    and lowers it otherwise. With smoothed labels it also lowers the importance of confident,
    correct images.

    Args:
        logits: [N, C], unweighted.
        importance: [N, 1], in (0, 1).
        targets: Labels [N], or class probabilities [N, C].
        label_smoothing: Share of each label that is spread over all classes.
        weights: [N], factors on the losses of the images, whose mean is over N, or None.
    """
    logits = importance * logits
    loss = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    return (loss if weights is None else weights * loss).mean()


def rank_regularization(importance: Tensor, beta: float, margin_1: float) -> Tensor:
    """Compute SCN's rank regularization: max(0, margin_1 - (mean high - mean low)).

    The high group is the share `beta` of the batch with the largest importances, [N, 1] or [N].
    The loss keeps the importances from all becoming 1. It is 0 for fewer than 2 images.
    """
    importance = importance.flatten()
    if len(importance) < 2:
        return importance.sum() * 0.0
    high = high_group_size(len(importance), beta)
    ranked = importance.sort(descending=True).values
    return F.relu(margin_1 - (ranked[:high].mean() - ranked[high:].mean()))


def relabel_scn(
    logits: Tensor,
    labels: Tensor,
    margin_2: float,
    importance: Tensor | None = None,
    beta: float = 0.0,
) -> Tensor:
    """Relabel (SCN) where the largest probability exceeds the label's by more than `margin_2`.

    With `importance` and `beta` only the low-importance group is relabeled, as in the paper. The
    code of SCN's authors relabels every image.

    Args:
        logits: [N, C], unweighted.
        labels: int64 [N].
        margin_2: Difference of two probabilities, 0 to 1.
        importance: [N, 1] or [N], or None to relabel every image.
        beta: Share of the high group, whose labels stay.
    """
    probabilities = logits.softmax(1)
    best, predicted = probabilities.max(1)
    given = probabilities.gather(1, labels[:, None])[:, 0]
    moves = best - given > margin_2
    if importance is not None:
        order = importance.flatten().argsort(descending=True)
        # moves[...] = False would synchronize with the GPU.
        moves = moves.index_fill(0, order[: high_group_size(len(order), beta)], False)
    return torch.where(moves, predicted, labels)


def relabel_ema(probabilities: Tensor, given: Tensor, margin: float, max_share: float) -> Tensor:
    """Relabel: take the prediction where its probability exceeds the label's by more than `margin`.

    Of each class, at most the share `max_share` of the given labels moves, those with the largest
    difference first: a rare class would lose most of its labels otherwise.

    Args:
        probabilities: [N, C], mean predictions without augmentation.
        given: int64 [N], the labels of the data set.
        margin: Difference of two probabilities, 0 to 1.
        max_share: 0 to 1.
    """
    best, predicted = probabilities.max(1)
    difference = best - probabilities.gather(1, given[:, None])[:, 0]
    labels = given.clone()
    for c in range(probabilities.shape[1]):
        rows = torch.nonzero(given == c)[:, 0]
        order = difference[rows].argsort(descending=True, stable=True)
        first = rows[order[: int(max_share * len(rows) + 1e-9)]]
        moved = first[difference[first] > margin]
        labels[moved] = predicted[moved]
    return labels


def soft_labels(probabilities: Tensor, given: Tensor, margin: float) -> Tensor:
    """Return class probabilities [N, C]: a mixture of the given labels and the predictions.

    It is soft bootstrapping (Reed et al., 2015, arXiv:1412.6596) with mean predictions. The weight
    of the given label is margin / (1 + margin), so that another class is the largest exactly where
    its probability exceeds that of the given label by more than the margin.

    Args:
        probabilities: [N, C], mean predictions without augmentation.
        given: int64 [N], the labels of the data set.
        margin: Difference of two probabilities, 0 to 1.
    """
    one_hot = F.one_hot(given, probabilities.shape[1])
    return (margin * one_hot + probabilities) / (1 + margin)


def high_group_size(n: int, beta: float) -> int:
    """Return the size of the high-importance group of n images; both are non-empty if n > 1."""
    # int(0.7 * 90) is 62, because 0.7 * 90 is slightly less than 63.
    return min(max(int(n * beta + 1e-9), 1), max(n - 1, 0))


def landmark_loss(
    predicted: Tensor, landmarks: Tensor, num_with_landmarks: Tensor | None = None
) -> Tensor:
    """Compute the mean absolute error of the landmarks, over the images that have any.

    In normalized coordinates it has the same magnitude for every image size. It is
    divided by the number of images with landmarks, so it does not depend on the detection rate.

    Args:
        predicted: [N, 68, 2], normalized coordinates.
        landmarks: [N, 68, 2], NaN for an image without landmarks.
        num_with_landmarks: Images with landmarks in the whole batch / number of processes, so that
            the mean gradient of the processes is that of the batch. None: those in `landmarks`.
    """
    valid = ~landmarks.isnan().flatten(1).any(1)  # [N]
    target = torch.where(valid[:, None, None], landmarks, predicted.detach())
    error = (predicted - target).abs().flatten(1).mean(1)  # [N], 0 where not valid
    count = valid.sum().clamp(min=1) if num_with_landmarks is None else num_with_landmarks
    return error.sum() / count


def compute_losses(
    output: Output,
    targets: Tensor,
    landmarks: Tensor | None,
    options: Options,
    soft_targets: Tensor | None = None,
    shard_weight: float = 1.0,
    num_with_landmarks: Tensor | None = None,
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute the loss to minimize, and its terms, each without its coefficient.

    Args:
        output: Of this process's shard of a batch.
        targets: Labels [N], or class probabilities [N, C].
        landmarks: [N, 68, 2] in normalized coordinates, NaN where there are none; or None.
        options: The enabled losses and their weights.
        soft_targets: Class probabilities of the teachers [N, C], or None.
        shard_weight: Shard size / mean shard size, which corrects DDP's mean; 1 in a single
            process.
        num_with_landmarks: As for `landmark_loss`.
        class_weights: [C], weights of the expression loss; an image has that of its target, also
            for soft targets. Or None.

    Returns:
        Scalars by name: `loss`, and each term as `loss_<name>`.
    """
    logits, importance = output.logits, output.importance
    weights = None
    if class_weights is not None:
        weights = class_weights[targets] if targets.ndim == 1 else targets @ class_weights
    expression = shard_weight * weighted_cross_entropy(
        logits, importance, targets, options.label_smoothing, weights
    )
    losses = {"loss": expression, "loss_expression": expression}
    if soft_targets is not None:
        distillation = shard_weight * weighted_cross_entropy(
            logits, importance, soft_targets, weights=weights
        )
        losses["loss_distillation"] = distillation
        losses["loss"] = expression.lerp(distillation, options.teacher_weight)
    if options.rank_weight:
        rank = shard_weight * rank_regularization(importance, options.beta, options.margin_1)
        losses["loss_rank"] = rank
        losses["loss"] = losses["loss"] + options.rank_weight * rank
    if options.landmarks:
        distance = landmark_loss(output.landmarks, landmarks, num_with_landmarks)
        losses["loss_landmarks"] = distance
        losses["loss"] = losses["loss"] + options.landmark_weight * distance
    return losses


@torch.no_grad()
def relabel_batch(output: Output, labels: Tensor, options: Options) -> Tensor:
    """Return the labels [N] of a batch after SCN's relabeling, by the logits without dropout."""
    importance = output.importance if options.importance else None
    logits = output.logits_without_dropout
    return relabel_scn(logits, labels, options.margin_2, importance, options.beta)
