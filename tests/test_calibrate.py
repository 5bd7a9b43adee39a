"""Calibration: the temperature, and the confidence below which predictions are unsure."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from data.synthetic.generate import synthetic_dataset
from engine import calibrate
from engine.calibrate import fit_temperature, fit_unsure_below
from models.checkpoint import Checkpoint
from models.fernet import Architecture, FERNet
from models.predict import predict
from utils import metrics


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_overconfident_logits_is_found(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 7)) * 2
    draws = rng.random((len(logits), 1))
    labels = (softmax(logits, axis=1).cumsum(1) < draws).sum(1)  # distributed as the softmax
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.03)


def test_unsure_below_by_hand():
    confidence = np.array([0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert fit_unsure_below(confidence, np.array([0, 0, 1, 0, 1, 1])) == pytest.approx(0.4)
    assert fit_unsure_below(confidence, np.array([0, 0, 0, 0, 1, 1])) == pytest.approx(0.6)
    assert fit_unsure_below(confidence, np.ones(6)) == 0
    assert fit_unsure_below(confidence, np.zeros(6)) == 1


def test_calibration_keeps_the_classes_and_is_stored(monkeypatch):
    dataset = synthetic_dataset(training=1, public=20, private=1)
    torch.manual_seed(0)
    network = FERNet(Architecture(width=0.25, landmarks=False)).eval()
    network.classifier.weight.data *= 30  # overconfident
    checkpoint = Checkpoint(network.architecture, network.state_dict(), dataset.class_names, 48)
    calibrated = calibrate.calibrate(checkpoint, dataset, torch.device("cpu"))
    assert calibrated.temperature > 1.5
    assert calibrate.calibrate(calibrated, dataset, torch.device("cpu")) == calibrated
    public = dataset.subset("PublicTest")
    images = torch.from_numpy(public.images)[:, None]
    before, after = (
        predict(item.network(), images).probabilities for item in (checkpoint, calibrated)
    )
    assert (before.argmax(1) == after.argmax(1)).all()
    errors = [metrics.expected_calibration_error(public.labels, p) for p in (before, after)]
    assert errors[1] < errors[0] / 2
    monkeypatch.setattr(calibrate, "MIN_IMAGES", len(public) + 1)
    few = calibrate.calibrate(calibrated, dataset, torch.device("cpu"))
    assert (few.temperature, few.unsure_below) == (1, 0)
