"""What a batch teaches under a run's options: the losses, and the relabels."""

from __future__ import annotations

import torch
from torch import Tensor

from models.fernet import Output
from models.losses import landmark_loss, rank_regularization, relabel, weighted_cross_entropy
from utils.options import Options


def compute_losses(
    output: Output,
    targets: Tensor,
    landmarks: Tensor | None,
    options: Options,
    *,
    soft_targets: Tensor | None = None,
    weight: float = 1.0,
    num_with_landmarks: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the loss that is minimised, and the parts that it is the weighted sum of.

    Args:
        output: of this process's share of a batch, as are the targets and landmarks.
        targets: labels [N], or shares of the classes [N, K].
        landmarks: [N, 68, 2] in half widths, NaN where unknown; or None.
        options: of the run: which losses, and their weights.
        opinion: of teachers, shares of the classes [N, K]; or None.
        weight: of the share, 1 on average over the processes; the mean of their losses is
            then the loss of the batch.
        known_num: the batch's faces with landmarks, per process; by default those in the share.
    """
    expression = weight * weighted_cross_entropy(
        output.logits,
        output.importance,
        targets,
        options.label_smoothing,
        options.importance_smoothing,
    )
    losses = {"loss": expression, "loss_expression": expression}
    if soft_targets is not None:  # smooth as it is
        smooth = options.importance_smoothing
        importance = output.importance if smooth else output.importance.detach()
        taught = weight * weighted_cross_entropy(output.logits, importance, soft_targets)
        losses["loss_teacher"] = taught
        losses["loss"] = expression.lerp(taught, options.teacher_weight)
    if options.rank:
        rank = weight * rank_regularization(output.importance, options.beta, options.margin_1)
        losses["loss_rank"] = rank
        losses["loss"] = losses["loss"] + options.rank_weight * rank
    if options.landmarks:
        points = landmark_loss(output.landmarks, landmarks, num_with_landmarks)
        losses["loss_landmarks"] = points
        losses["loss"] = losses["loss"] + options.landmark_weight * points
    return losses


@torch.no_grad()
def relabel_batch(
    output: Output, labels: Tensor, options: Options, own: Tensor | None = None
) -> Tensor:
    """Return the batch's labels after relabeling; dropout has no say in it.

    Args:
        output: of these faces.
        labels: int64 [N], as they are.
        options: margin_2, and who is judged by what.
        own: [N], 1 for a face that was shown unmixed; one that was mixed keeps its label.
    """
    logits = output.clean_logits
    if options.relabel_logits == "weighted":
        logits = output.importance * logits
    importance = output.importance if options.relabel_group == "low" else None
    relabeled = relabel(logits, labels, options.margin_2, importance, options.beta)
    return relabeled if own is None else torch.where(own == 1, relabeled, labels)
