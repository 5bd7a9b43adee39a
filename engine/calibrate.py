"""Calibration of trained weights on PublicTest: their temperature, and when they are unsure."""

from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.isotonic import IsotonicRegression

from data.dataset import UNLABELED, FaceDataset
from data.in_memory import images_to_device
from models.checkpoint import Checkpoint
from models.predict import predict

MIN_IMAGES = 100  # with fewer, the fit would be noise
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.2, 5.0


def calibrate(checkpoint: Checkpoint, dataset: FaceDataset, device: torch.device) -> Checkpoint:
    """Return the checkpoint with `temperature` and `unsure_below` of its PublicTest predictions.

    With fewer than MIN_IMAGES labeled images, the predictions stay as they are.
    """
    checkpoint = replace(checkpoint, temperature=1.0, unsure_below=0.0)
    public = dataset.subset("PublicTest")
    public = public.select(public.labels != UNLABELED)
    if len(public) < MIN_IMAGES:
        return checkpoint
    network = checkpoint.network().to(device)
    images = images_to_device(public.images, device)
    # Up to a constant per image, these are the logits.
    logits = np.log(np.maximum(predict(network, images).probabilities.astype(float), 1e-30))
    temperature = fit_temperature(logits, public.labels)
    probabilities = softmax(logits / temperature, axis=1)
    correct = probabilities.argmax(1) == public.labels
    threshold = fit_unsure_below(probabilities.max(1), correct)
    return replace(checkpoint, temperature=temperature, unsure_below=threshold)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the smallest cross-entropy (Guo et al., ICML 2017).

    The softmax of logits [N, C] / temperature has the probabilities. It does not change the
    predicted class.
    """
    rows = np.arange(len(labels))

    def loss(temperature: float) -> float:
        return -log_softmax(logits / temperature, axis=1)[rows, labels].mean()

    bounds = MIN_TEMPERATURE, MAX_TEMPERATURE
    return float(minimize_scalar(loss, bounds=bounds, method="bounded").x)


def fit_unsure_below(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the confidence from which on at least half of the predictions are right.

    The share of right predictions [N] as a function of the confidence [N] is estimated by isotonic
    regression. Returns 0 if at least half are right at every confidence, and 1 if at none.
    """
    fit = IsotonicRegression(out_of_bounds="clip").fit(confidence, correct)
    is_right = fit.y_thresholds_ >= 0.5
    if is_right.all():
        return 0.0
    return float(fit.X_thresholds_[is_right.argmax()]) if is_right.any() else 1.0
