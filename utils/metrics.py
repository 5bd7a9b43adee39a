"""The figures that are reported: accuracy and its kin, calibration, landmark error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score, recall_score, roc_auc_score

ECE_BINS = 15


def score(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> dict[str, object]:
    """Score predictions of N >= 1 labelled faces.

    Args:
        labels: int [N].
        probabilities: [N, C].
        class_names: C names.

    Returns:
        n; accuracy; balanced_accuracy (the mean recall of the classes that
        occur); macro_f1 (the mean over these classes); ece; auroc_confidence, what
        `tells_right` says of the best probability; and recall by class, None for a
        class that does not occur.
    """
    predicted = probabilities.argmax(1)
    present = np.unique(labels)
    recalls = recall_score(labels, predicted, labels=present, average=None)
    recall = dict.fromkeys(class_names)
    recall.update((class_names[i], float(r)) for i, r in zip(present, recalls))
    return {
        "n": len(labels),
        "accuracy": accuracy(labels, probabilities),
        "balanced_accuracy": float(recalls.mean()),
        "macro_f1": float(f1_score(labels, predicted, labels=present, average="macro")),
        "ece": expected_calibration_error(labels, probabilities),
        "auroc_confidence": correctness_auroc(probabilities.max(1), predicted == labels),
        "recall": recall,
    }


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Return the share of faces whose most probable class is their label; None of no face."""
    return float((probabilities.argmax(1) == labels).mean()) if len(labels) else None


def correctness_auroc(value: np.ndarray, right: np.ndarray) -> float | None:
    """How often a right prediction has a greater value than a wrong one: 1 always, 0.5 by chance.

    That is the area under the ROC curve of finding the right ones by it (Hendrycks and Gimpel,
    "A Baseline for Detecting Misclassified and Out-of-Distribution Examples", 2017).

    Args:
        value: [N].
        right: bool [N].

    Returns:
        The area, 0 to 1; None where all values are the same, or all predictions right or wrong.
    """
    if right.all() or not right.any() or np.ptp(value) == 0:
        return None
    return float(roc_auc_score(right, value))


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS
) -> float:
    """How far confidence and accuracy stand apart: the mean gap over bins, by their faces.

    Faces fall into `bins` equal intervals (low, high] of their best probability
    (Guo et al., "On Calibration of Modern Neural Networks", 2017).
    """
    rows = reliability(labels, probabilities, bins)
    return sum(count * abs(right - sure) for sure, right, count in rows) / len(labels)


def reliability(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS
) -> list[tuple[float, float, int]]:
    """Return the mean confidence, the accuracy and the number of the faces of each bin with any."""
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    return [
        (float(confidence[mine].mean()), float(right[mine].mean()), int(mine.sum()))
        for mine in (place == i for i in range(bins))
        if mine.any()
    ]


def relabel_scores(
    clean: np.ndarray, noisy: np.ndarray, final: np.ndarray
) -> dict[str, int | float | None]:
    """Tell what relabeling made of labels some of which are wrong.

    Args:
        clean, noisy, final: int [N]: the labels held to be true, those trained on, and what
            they became.

    Returns:
        noisy and relabeled (numbers of faces); relabel_precision, the share of the relabeled
        that came to their true label, relabel_harm, the share of them that had it before, and
        relabel_recall, the share of the noisy that came to it; None of no face.
    """
    wrong, moved = noisy != clean, final != noisy
    healed = wrong & (final == clean)
    return {
        "noisy": int(wrong.sum()),
        "relabeled": int(moved.sum()),
        "relabel_precision": float(healed.sum() / moved.sum()) if moved.any() else None,
        "relabel_harm": float((moved & ~wrong).sum() / moved.sum()) if moved.any() else None,
        "relabel_recall": float(healed.sum() / wrong.sum()) if wrong.any() else None,
    }


def landmark_error(predicted: np.ndarray, landmarks: np.ndarray) -> float | None:
    """Return the mean distance of points in pixels over the faces whose landmarks are known.

    Args:
        predicted, landmarks: [N, 68, 2]; NaN in `landmarks` where there are none.

    Returns:
        The distance, or None where no face has landmarks.
    """
    known = ~np.isnan(landmarks).any(axis=(1, 2))
    if not known.any():
        return None
    return float(np.linalg.norm(predicted[known] - landmarks[known], axis=-1).mean())


def confusion(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return counts [C, C]: rows are true classes, columns predicted ones."""
    return confusion_matrix(labels, probabilities.argmax(1), labels=range(probabilities.shape[1]))
