"""Metrics: accuracy, recall, calibration, quality of relabeling, landmark error.

Labels are int [N], probabilities [N, C], predicted classes int [N]. `human_labels` are the majority
of FER+'s annotators, int [N], negative for images without one, which do not count.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from utils.statistics import wilson

ECE_BINS = 15


def score(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> dict[str, object]:
    """Compute the classification metrics of N >= 1 labeled images.

    Returns:
        n; accuracy; balanced_accuracy (mean recall of the classes that occur); macro_f1 (mean over
        these classes); ece; auroc_confidence (`correctness_auroc` of the largest probability); and
        recall by class, None for a class that does not occur.
    """
    predicted = probabilities.argmax(1)
    present = np.unique(labels)
    recalls = recall_score(labels, predicted, labels=present, average=None)
    recall = {class_names[i]: float(value) for i, value in zip(present, recalls)}
    return {
        "n": len(labels),
        "accuracy": accuracy(labels, probabilities),
        "balanced_accuracy": float(recalls.mean()),
        "macro_f1": float(f1_score(labels, predicted, labels=present, average="macro")),
        "ece": expected_calibration_error(labels, probabilities),
        "auroc_confidence": correctness_auroc(probabilities.max(1), predicted == labels),
        "recall": dict.fromkeys(class_names) | recall,
    }


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Return the share of correct predictions, 0 to 1; None if there are no images."""
    return float((probabilities.argmax(1) == labels).mean()) if len(labels) else None


def human_agreement(
    human_labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]
) -> dict[str, object]:
    """Compute the share of predictions that equal the majority of FER+'s annotators.

    Returns:
        human_agreement (0 to 1), human_agreement_n (the number of images that count),
        human_agreement_interval (95 % Wilson interval), and human_agreement_by_class, the share by
        the annotators' class. None where no image counts.
    """
    agrees = {
        name: (predicted == human_labels)[human_labels == i] for i, name in enumerate(class_names)
    }
    hits = np.concatenate(list(agrees.values()))
    n = len(hits)
    return {
        "human_agreement": float(hits.mean()) if n else None,
        "human_agreement_n": n,
        "human_agreement_interval": wilson(int(hits.sum()), n) if n else None,
        "human_agreement_by_class": {
            name: float(part.mean()) if len(part) else None for name, part in agrees.items()
        },
    }


def correctness_auroc(value: np.ndarray, correct: np.ndarray) -> float | None:
    """Return the area under the ROC curve of detecting correct predictions by a value.

    It is the probability that a correct prediction has a greater value than a wrong one; 0.5 is
    chance (Hendrycks and Gimpel, 2017, arXiv:1610.02136). It is None if all values [N] are equal,
    or all predictions are correct or wrong.
    """
    if correct.all() or not correct.any() or np.ptp(value) == 0:
        return None
    return float(roc_auc_score(correct, value))


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the expected calibration error (Guo et al., 2017, arXiv:1706.04599).

    It is the mean absolute difference of confidence and accuracy over bins, weighted by the number
    of images in each. Bins are equal intervals (low, high] of the largest probability.
    """
    rows = reliability(labels, probabilities)
    return sum(count * abs(share - confidence) for confidence, share, count in rows) / len(labels)


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[tuple[float, float, int]]:
    """Return mean confidence, accuracy and number of images of each bin that is not empty."""
    confidence = probabilities.max(1).astype(np.float64)
    correct = probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, ECE_BINS + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, ECE_BINS - 1)
    return [
        (float(confidence[mask].mean()), float(correct[mask].mean()), int(mask.sum()))
        for mask in (index == i for i in np.unique(index))
    ]


def relabel_scores(
    clean: np.ndarray, noisy: np.ndarray, final: np.ndarray
) -> dict[str, int | float | None]:
    """Compute the quality of relabeling.

    Args:
        clean: The labels that are assumed to be correct.
        noisy: The labels at the start of the training.
        final: The labels at its end.

    Returns:
        noisy (number of incorrect labels at the start); relabeled (number of changed labels);
        relabel_precision (share of the changed labels that became correct); relabel_harm (share of
        the changed labels that were correct before); relabel_recall (share of the incorrect labels
        that became correct). A share of nothing is None.
    """

    def share(part: np.ndarray, whole: np.ndarray) -> float | None:
        return float(part.sum() / whole.sum()) if whole.any() else None

    wrong, changed = noisy != clean, final != noisy
    corrected = wrong & (final == clean)
    return {
        "noisy": int(wrong.sum()),
        "relabeled": int(changed.sum()),
        "relabel_precision": share(corrected, changed),
        "relabel_harm": share(changed & ~wrong, changed),
        "relabel_recall": share(corrected, wrong),
    }


def human_relabels(
    human_labels: np.ndarray, given: np.ndarray, final: np.ndarray, class_names: Sequence[str]
) -> dict[str, object]:
    """Compute which label FER+'s majority agrees with, the given or the final one, if they differ.

    Returns:
        human_relabel_n (relabeled images with a majority), and the shares of these whose majority
        is the new label (human_relabel_new), the old one (_old), or neither; None if there is no
        such image. human_relabel_by_class has the same for the images of each given label.
    """
    moved = (given != final) & (human_labels >= 0)

    def shares(mask: np.ndarray) -> dict[str, int | float | None]:
        n = int(mask.sum())
        new, old = (int((human_labels == labels)[mask].sum()) for labels in (final, given))
        counts = {"new": new, "old": old, "neither": n - new - old}
        return {"n": n} | {name: count / n if n else None for name, count in counts.items()}

    by_class = {name: shares(moved & (given == i)) for i, name in enumerate(class_names)}
    result = {f"human_relabel_{name}": value for name, value in shares(moved).items()}
    return result | {"human_relabel_by_class": by_class}


def landmark_error(predicted: np.ndarray, landmarks: np.ndarray) -> float | None:
    """Return the mean distance of predicted and true landmarks [N, 68, 2], in pixels.

    Images whose true landmarks are NaN do not count; None if none is left.
    """
    has_landmarks = ~np.isnan(landmarks).any(axis=(1, 2))
    if not has_landmarks.any():
        return None
    offsets = predicted[has_landmarks] - landmarks[has_landmarks]
    return float(np.linalg.norm(offsets, axis=-1).mean())
