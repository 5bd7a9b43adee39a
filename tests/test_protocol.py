"""The protocol of the experiments: what chooses an epoch, what teachers get, what is reported.

Each test has controlled inputs, so that it fails if the rule in its name is broken.
"""

import csv
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import dlib
import numpy as np
import pandas as pd
import pytest
import torch
from kills import write_csv
from test_faults import TINY, run
from torch import nn

from data import landmarks
from data.dataset import FaceDataset
from data.in_memory import InMemoryDataset
from data.landmarks import add_landmarks
from data.loader import BatchLoader
from data.synthetic.generate import synthetic_dataset
from engine import relabel
from engine.build import build_state
from engine.distill import Teachers
from engine.distributed import DistributedContext
from engine.eta import ETA
from engine.optim import EMA, build_optimizer
from engine.state import TrainingState
from engine.trainer import train_one_epoch
from inference.detector import detect_faces
from models.checkpoint import load_checkpoint
from models.fernet import Architecture, FERNet, Output
from models.losses import relabel_batch
from models.predict import predict
from tools.report import compare_runs
from utils.options import Options
from utils.predictions import Predictions

CPU = torch.device("cpu")
NUM_IMAGES = 7  # of PublicTest and of PrivateTest
# Correct predictions per epoch. The sum over both splits is largest in epoch 3, and smallest in 2.
PUBLIC, PRIVATE = (1, 5, 3, 5), (3, 0, 7, 0)
BEST_EPOCH = 2  # the first of the two that are best on PublicTest


# Choice of the epoch


class Run(NamedTuple):
    """A run of four epochs with controlled accuracies.

    Attributes:
        folder: The run folder.
        dataset: Its data set; the pixels of the three splits have different means.
        evaluated: State dicts of the networks that were evaluated after each epoch.
    """

    folder: object
    dataset: FaceDataset
    evaluated: list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def controlled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("protocol")
    dataset = synthetic_dataset(training=3, public=1, private=1).resized(32)
    brightness = np.select([dataset.split == s for s in ("Training", "PublicTest")], [0.3, 0.6], 1)
    images = (dataset.images * brightness[:, None, None]).astype(np.uint8)
    dataset = replace(dataset, images=images)
    row_of_image = {image.tobytes(): row for row, image in enumerate(images)}
    evaluated = []

    def controlled_predict(network, images, **_options):
        epoch = len(evaluated)
        evaluated.append({name: value.clone() for name, value in network.state_dict().items()})
        rows = [row_of_image[image.tobytes()] for image in images.numpy()]
        predicted = dataset.labels[rows]
        for split, correct in (("PublicTest", PUBLIC[epoch]), ("PrivateTest", PRIVATE[epoch])):
            wrong = np.flatnonzero(dataset.split[rows] == split)[correct:]
            predicted[wrong] = (predicted[wrong] + 1) % 7
        probabilities = np.full((len(rows), 7), 0.1, np.float32)
        probabilities[np.arange(len(rows)), predicted] = 0.4
        return Predictions(probabilities, np.ones(len(rows), np.float32), None)

    argv = ("--data", write_csv(dataset, folder / "faces.csv"), "--out", folder / "run", *TINY)
    with pytest.MonkeyPatch.context() as context:
        context.setattr("engine.trainer.predict", controlled_predict)
        run(*argv, "--total_epoch", 4, "--ema", 0.9)
    return Run(folder / "run", dataset, evaluated)


def test_each_epoch_is_evaluated_on_public_test_only(controlled):
    with open(controlled.folder / "metrics.csv", newline="") as file:
        accuracies = [float(row["public_accuracy"]) for row in csv.DictReader(file)]
    assert accuracies == pytest.approx([correct / NUM_IMAGES for correct in PUBLIC])


def test_best_epoch_is_the_first_of_the_most_accurate_on_public_test(controlled):
    best = load_checkpoint(controlled.folder / "best.pth")
    assert best.epoch == BEST_EPOCH
    for name, value in controlled.evaluated[BEST_EPOCH - 1].items():
        assert torch.equal(best.net[name], value), name


def test_the_ema_is_evaluated_and_saved(controlled):
    last = load_checkpoint(controlled.folder / "last.pth")
    raw, name = last.training["network"], "classifier.weight"
    assert not torch.equal(last.net[name], raw[name])
    assert torch.equal(controlled.evaluated[-1][name], last.net[name])


def test_normalization_is_that_of_the_training_split(controlled):
    training = controlled.dataset.subset("Training").images
    net = load_checkpoint(controlled.folder / "best.pth").net
    assert net["pixel_mean"].item() == pytest.approx(training.mean(), rel=1e-5)
    assert net["pixel_std"].item() == pytest.approx(training.std(), rel=1e-5)


def test_private_test_is_not_evaluated_without_the_final_test(controlled, tmp_path):
    data = controlled.folder.parent / "faces.csv"
    run("--data", data, "--out", tmp_path / "r", *TINY, "--total_epoch", 1, "--no_final_test")
    with open(tmp_path / "r/predictions.csv", newline="") as file:
        assert {row["split"] for row in csv.DictReader(file)} == {"PublicTest"}


# Distillation


def test_teachers_get_weakly_augmented_images():
    dataset = synthetic_dataset(training=2, public=1, private=1)
    weak = Options(batch_size=7, total_epoch=2, amp="fp32", erasing=0.0)
    strong = replace(weak, erasing=1.0, degraded=0.9, jpeg=0.9)
    images = InMemoryDataset(dataset, dataset.training_rows, CPU)
    torch.manual_seed(0)
    network = FERNet(Architecture(width=0.1))
    optimizer = build_optimizer(network, strong)
    state = TrainingState(network, EMA(network, 0.9), optimizer, images.labels)
    seen, teacher = [], FERNet(Architecture(width=0.1)).eval()

    def recording_teacher(x):
        seen.append(x.clone())
        return teacher(x)

    train_one_epoch(
        state,
        network,
        BatchLoader(images, strong, 1, teacher_images=True),
        strong,
        Teachers([recording_teacher]),
        DistributedContext(),
        ETA(CPU, strong, len(images), 1),
        [],
    )
    expected = [batch.images for batch in BatchLoader(images, weak, 1).stream()]
    assert len(seen) == len(expected) == 2
    for one, other in zip(seen, expected):
        torch.testing.assert_close(one, other)


# Relabeling, of two images with label 0

LABELS = torch.tensor([0, 0])
RELABEL = Options(**{"relabel": "scn", "margin_2": 0.2, "beta": 0.5, "importance": False})


def output_of(clean, importance, dropped=None):
    """Return an output with these probabilities as its logits without dropout.

    Args:
        clean: Probabilities of the logits without dropout.
        importance: One per image.
        dropped: Probabilities of the logits with dropout; by default the same.
    """
    clean = torch.tensor(clean).log()
    logits = clean if dropped is None else torch.tensor(dropped).log()
    return Output(logits, torch.tensor(importance)[:, None], None, clean)


def test_relabeling_is_judged_without_dropout():
    output = output_of([[0.9, 0.1], [0.1, 0.9]], [1.0, 1.0], [[0.1, 0.9], [0.9, 0.1]])
    assert relabel_batch(output, LABELS, RELABEL).tolist() == [0, 1]


@pytest.mark.parametrize("importance", [[0.1, 0.9], [0.9, 0.1]])
def test_low_group_relabeling_keeps_important_images(importance):
    output = output_of([[0.1, 0.9], [0.1, 0.9]], importance)
    low = replace(RELABEL, importance=True)
    expected = [int(value < 0.5) for value in importance]
    assert relabel_batch(output, LABELS, low).tolist() == expected
    assert relabel_batch(output, LABELS, RELABEL).tolist() == [1, 1]


def test_relabeling_changes_the_labels_of_a_batch():
    """The step applies relabel_batch to the images of the batch, from --relabel_epoch on."""
    dataset = synthetic_dataset(training=2, public=1, private=1)
    images = InMemoryDataset(dataset, dataset.training_rows, CPU)
    network = FERNet(Architecture(width=0.1))
    for epoch, is_relabeled in ((1, False), (2, True)):
        options = replace(RELABEL, margin_2=0.0, relabel_epoch=2, batch_size=7, total_epoch=2)
        optimizer = build_optimizer(network, options)
        ema, before = EMA(network, 0.9), images.labels.clone()
        state = TrainingState(network, ema, optimizer, images.labels.clone(), epoch=epoch - 1)
        rest = (DistributedContext(), ETA(CPU, options, len(images), 1), [])
        loader = BatchLoader(images, options, epoch)
        train_one_epoch(state, network, loader, options, Teachers(), *rest)
        assert (not torch.equal(state.labels, before)) == is_relabeled


def relabel_epochs(dataset, options, *probabilities):
    """Call the end of the epochs 1, 2, ... with given probabilities; return state and labels."""
    images = InMemoryDataset(dataset, dataset.training_rows, CPU)
    network = FERNet(Architecture(width=0.1))
    state = build_state(network, images, dataset, options, DistributedContext())
    labels = []
    for rows in probabilities:
        state.epoch += 1
        prediction = Predictions(np.array(rows, np.float32), np.zeros(len(rows)), None)
        with pytest.MonkeyPatch.context() as context:
            context.setattr(relabel, "predict", lambda *_, result=prediction, **__: result)
            relabel.update_labels(state, images, options, DistributedContext())
        labels.append(state.labels.tolist())
    assert images.labels.tolist() == dataset.labels[:2].tolist()  # the given ones stay
    relabel.set_soft_targets(state, images, options)
    return state, images, labels


TWO = FaceDataset(np.zeros((2, 48, 48), np.uint8), np.array([0, 1]), np.array(["Training"] * 2))
MEAN = Options(relabel="ema", relabel_epoch=2, margin_2=0.3, relabel_cap=1.0)
ONE, OTHER = [[0.2, 0.8, *[0] * 5]] * 2, [[0.6, 0.4, *[0] * 5]] * 2


def test_labels_follow_the_mean_predictions_and_may_move_back():
    # The mean of class 1 minus class 0: 0.6; 0.6 and so on for three epochs; then (2 / 3 and 1 / 3)
    # 0.6 -> 0.333 -> 0.156; the label of image 0 moves while it is above 0.3.
    state, images, labels = relabel_epochs(TWO, MEAN, ONE, ONE, ONE, OTHER, OTHER)
    assert labels == [[0, 1], [1, 1], [1, 1], [1, 1], [0, 1]]
    p = 0.4 + 0.4 * (2 / 3) ** 2
    np.testing.assert_allclose(state.predictions[:, 1], p, atol=1e-6)
    assert images.targets is None


def test_the_mean_is_that_of_three_epochs():
    early = replace(MEAN, relabel_epoch=4)  # the first prediction is that of epoch 2
    state, _, labels = relabel_epochs(TWO, early, ONE, OTHER, OTHER, ONE)
    np.testing.assert_allclose(state.predictions[:, 1], (0.4 + 0.4 + 0.8) / 3, atol=1e-6)
    assert labels == [[0, 1]] * 4  # 0.533 - 0.467 is less than the margin


def test_soft_labels_are_the_targets_of_the_next_epoch():
    soft = replace(MEAN, relabel="soft")
    _, images, labels = relabel_epochs(TWO, soft, ONE)
    assert images.targets is None  # before relabel_epoch
    _, images, labels = relabel_epochs(TWO, soft, ONE, ONE)
    assert labels == [[0, 1], [1, 1]]
    expected = [[0.5 / 1.3, 0.8 / 1.3], [0.2 / 1.3, 1.1 / 1.3]]
    np.testing.assert_allclose(images.targets[:, :2], expected, atol=1e-6)
    assert next(iter(BatchLoader(images, soft, 3).stream())).targets.shape == (2, 7)
    scn = replace(MEAN, relabel="scn")
    state, _, labels = relabel_epochs(TWO, scn, ONE, ONE)  # it relabels in training only
    assert (labels, state.predictions) == ([[0, 1]] * 2, None)


def test_processes_predict_their_shards(monkeypatch):
    dataset = synthetic_dataset(training=1, public=1, private=1)
    images = InMemoryDataset(dataset, dataset.training_rows, CPU)
    context = DistributedContext()
    state = build_state(FERNet(Architecture(width=0.1)), images, dataset, MEAN, context)
    state.ema.module.eval()
    whole = relabel.predict_training(state, images, MEAN, context)
    assert whole.shape == (7, 7)
    monkeypatch.setattr(relabel, "CHUNK", 2)
    parts = []
    monkeypatch.setattr(context, "gather", lambda part: parts.append(part) or [part])
    context.world_size = 2
    for context.rank in range(2):
        relabel.predict_training(state, images, MEAN, context)
    assert [len(part) for part in parts] == [3, 4]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)


# Test-time augmentation


class Views(nn.Module):
    """A network with given logits [10, C] for the views of an image; landmarks are their number."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.view = logits, 0
        self.architecture = Architecture(classes=logits.shape[1])

    def forward(self, images):
        logits = self.logits[self.view].expand(len(images), -1)
        importance = torch.ones(len(images), 1)
        landmarks = torch.full((len(images), 68, 2), float(self.view))
        self.view += 1
        return Output(logits, importance, landmarks, logits)


IMAGE = torch.zeros(1, 1, 48, 48, dtype=torch.uint8)


def test_tta_averages_probabilities():
    # One view is certain of class 0, nine prefer class 1 slightly: the mean logits prefer class 0,
    # the mean probabilities class 1.
    logits = torch.tensor([[20.0, 0.0]] + 9 * [[0.0, 1.0]])
    probabilities = predict(Views(logits), IMAGE, tta=True).probabilities[0]
    by_hand = (1 + 9 / (1 + math.e)) / 10
    np.testing.assert_allclose(probabilities, [by_hand, 1 - by_hand], atol=1e-6)
    assert probabilities.argmax() == 1


def test_tta_landmarks_are_those_of_the_plain_view():
    landmarks = predict(Views(torch.zeros(10, 2)), IMAGE, tta=True).landmarks
    center = 48 / 2 - 0.5  # normalized coordinate 0 in pixels
    np.testing.assert_allclose(landmarks, center)


# Reports


def test_report_counts_as_better_what_only_the_second_run_predicts_correctly():
    label = ["happy"] * 10
    first = ["happy"] * 4 + ["sad"] * 6  # correct: 0 to 3
    second = ["sad"] * 3 + ["happy"] * 6 + ["sad"]  # correct: 3 to 8
    index, split = range(10), ["PublicTest"] * 10
    one, other = (
        {
            "name": name,
            "path": name,
            "predictions": pd.DataFrame(
                {"index": index, "split": split, "usage": split, "label": label, "predicted": p}
            ),
        }
        for name, p in (("first", first), ("second", second))
    )
    (pair,) = compare_runs(one, other)
    assert (pair["better"], pair["worse"]) == (5, 3)
    assert pair["difference"] == pytest.approx(20)  # percentage points, second minus first


# Photographs with several faces

BOXES = [
    dlib.rectangle(10, 10, 39, 39),
    dlib.rectangle(40, 40, 139, 139),
    dlib.rectangle(0, 0, 9, 9),
]
LARGEST = (40, 40, 140, 140)


class Detector:
    """A dlib detector that finds BOXES in every image."""

    def __call__(self, image, *_args):
        return BOXES

    def run(self, image, *_args):
        return BOXES, [1.0, 0.5, 2.0], [0, 0, 0]


@pytest.fixture
def three_faces(monkeypatch):
    monkeypatch.setattr(dlib, "get_frontal_face_detector", Detector)
    landmarks._load_dlib.cache_clear()
    yield
    landmarks._load_dlib.cache_clear()


@pytest.mark.usefixtures("three_faces")
def test_first_detected_face_is_the_largest():
    image = np.zeros((200, 200), np.uint8)
    with ThreadPoolExecutor(1) as thread:  # a detector belongs to its thread
        faces = thread.submit(detect_faces, image, 200).result()
    np.testing.assert_allclose(faces.boxes[0], LARGEST)
    np.testing.assert_allclose(faces.scores, [0.5, 1.0, 2.0])
    widths = faces.boxes[:, 2] - faces.boxes[:, 0]
    assert (np.diff(widths) < 0).all()


@pytest.mark.usefixtures("three_faces")
def test_landmarks_are_those_of_the_largest_face(monkeypatch, tmp_path):
    class Shape(NamedTuple):
        box: dlib.rectangle

        def parts(self):
            return [self.box.center()] * 68

    monkeypatch.setattr(dlib, "shape_predictor", lambda path: lambda image, box: Shape(box))
    images, labels = np.zeros((1, 200, 200), np.uint8), np.zeros(1, np.int64)
    dataset = FaceDataset(images, labels, np.array(["Training"]))
    points = add_landmarks(dataset, tmp_path, jobs=1).landmarks
    center = sum(LARGEST[::2]) / 2
    np.testing.assert_allclose(points, center, atol=1)
