"""Landmark neighbors: alignment, the mixed targets, and a run with them."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import train
from data.dataset import UNLABELED
from data.neighbors import FIRST, NUM_NEIGHBORS, align, mix_with_neighbors
from data.synthetic.generate import synthetic_dataset
from inference.align import fit_similarity, transform
from utils.options import Options
from utils.validation import validate_options


def moved(points, scale, degrees, shift):
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (scale * points @ rotation.T + shift).astype(np.float32)


def test_aligned_landmarks_do_not_depend_on_position_size_and_rotation():
    rng = np.random.default_rng(0)
    shapes = rng.normal(size=(1, 51, 2)) + 0.1 * rng.normal(size=(30, 51, 2))
    others = np.stack([moved(s, 1 + i / 30, i - 15, (i, -i)) for i, s in enumerate(shapes)])
    aligned = align(others)
    np.testing.assert_allclose(aligned.mean(1), 0, atol=1e-4)
    target = aligned.mean(0)  # all are a little smaller than fitted to it: the last mean's size
    fitted = np.stack([transform(fit_similarity(shape, target), shape) for shape in shapes])
    size = np.linalg.norm(aligned) / np.linalg.norm(fitted)
    np.testing.assert_allclose(aligned, size * fitted, atol=0.01)
    assert size == pytest.approx(1, abs=0.02)


@pytest.fixture(scope="module")
def faces():
    """Return 150 Training images: 75 of each of two expressions, in other positions and sizes."""
    dataset = synthetic_dataset(training=75, public=1, private=1)
    dataset = dataset.select(np.isin(dataset.labels, (3, 5)))  # happy, surprise
    landmarks = [
        moved(points, 1 + i % 5 / 10, i % 7 - 3, (i % 3, 0))
        for i, points in enumerate(dataset.landmarks)
    ]
    return replace(dataset, landmarks=np.stack(landmarks))


def test_targets_are_mixed_with_the_mean_of_the_nearest_images(faces):
    labels = faces.labels.copy()
    rows = np.flatnonzero(faces.split == "Training")
    labels[rows[0]], labels[rows[1]] = 8 - labels[rows[0]], UNLABELED  # one is wrong
    landmarks = faces.landmarks.copy()
    landmarks[rows[2]] = np.nan
    dataset = replace(faces, labels=labels, landmarks=landmarks)
    mixed = mix_with_neighbors(dataset, None, 0.4)
    given = (labels[:, None] == np.arange(7)).astype(np.float32)

    others = ~np.isin(np.arange(len(labels)), rows)
    others[rows[1:3]] = True
    np.testing.assert_array_equal(mixed[others], given[others])
    used = np.delete(rows, [1, 2])
    shapes = align(landmarks[used, FIRST:]).reshape(len(used), -1).astype(float)
    for i in (0, 1, 80):
        distances = np.square(shapes - shapes[i]).sum(1)
        distances[i] = np.inf
        nearest = used[distances.argsort()[:NUM_NEIGHBORS]]
        expected = 0.6 * given[used[i]] + 0.4 * given[nearest].mean(0)
        np.testing.assert_allclose(mixed[used[i]], expected, atol=1e-6)
    np.testing.assert_allclose(mixed[used].sum(1), 1, atol=1e-6)
    assert mix_with_neighbors(dataset, None, 1.0)[rows[0]].argmax() == faces.labels[rows[0]]


def test_targets_may_be_distributions(faces):
    rng = np.random.default_rng(0)
    given = rng.dirichlet(np.ones(7), len(faces)).astype(np.float32)
    mixed = mix_with_neighbors(faces, given, 0.5)
    training = faces.split == "Training"
    np.testing.assert_array_equal(mixed[~training], given[~training])
    assert mixed[training].std() < 0.8 * given[training].std()
    assert mix_with_neighbors(faces, given, 0.0) is given


def test_a_single_image_has_no_neighbor(faces):
    one = faces.select(np.flatnonzero(faces.split == "Training")[:1])
    np.testing.assert_array_equal(
        mix_with_neighbors(one, None, 0.5)[0], one.labels[0] == np.arange(7)
    )


def test_targets_leave_nothing_to_relabel_and_need_landmarks():
    options = validate_options(Options(neighbor_weight=0.5, relabel=True))
    assert not options.relabel
    assert validate_options(Options(neighbor_weight=0.5, landmarks=False)).neighbor_weight == 0


def test_a_run_trains_on_the_mixed_targets(tmp_path, monkeypatch):
    seen = []
    losses = train.train.__globals__["compute_losses"]

    def record(output, targets, *more, **named):
        seen.append(targets)
        return losses(output, targets, *more, **named)

    monkeypatch.setitem(train.train.__globals__, "compute_losses", record)
    argv = ["--data", "sample", "--neighbor_weight", "0.5", "--total_epoch", "1"]
    argv += ["--width", "0.1", "--image_width", "32", "--gpu_ids", "-1"]
    monkeypatch.setattr(sys, "argv", ["train.py", *argv, "--out", str(tmp_path / "run")])
    train.main()
    targets = torch.cat(seen)
    assert targets.ndim == 2
    torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
    largest = targets.max(1).values
    assert (largest >= 0.5 - 1e-5).all()
    assert (largest < 0.99).any()
    assert json.loads((tmp_path / "run/metrics.json").read_text())["PublicTest"]["n"] == 280
