"""Fine-tuning: weights with other classes, a frozen backbone, imbalance, and use of the result."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from kills import assert_same_run
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from test_faults import interrupt_and_resume, run

import export
import hubconf
from data.dataset import EMOTIONS, UNLABELED, match_classes
from data.synthetic.generate import synthetic_dataset
from engine import trainer
from engine.build import balanced_class_weights
from engine.distill import SharedClasses, Teachers
from engine.optim import build_optimizer, set_learning_rate
from inference.demo_page import UploadHandler
from inference.predictor import FacePredictor
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet, Output
from models.losses import compute_losses, weighted_cross_entropy
from tools import report
from utils.cli import parse_train_options, resolve_options
from utils.errors import OptionError, WeightsError
from utils.options import Options, with_recipe

CLASSES = ("happy", "sad", "bored")  # two of FER2013's, the first in another spelling
FOLDERS = {"happy": "Joy", "sad": "sad", "neutral": "bored"}
WEIGHTS = Architecture(width=0.125, landmark_pool=True, dropout=0.2)
TINY = ("--threads", "1", "--gpu_ids", "-1", "--total_epoch", "3", "--batch_size", "8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with weights w.pth for FER2013's classes, and images of three classes."""
    folder = tmp_path_factory.mktemp("finetune")
    torch.manual_seed(0)
    net = FERNet(WEIGHTS).state_dict()
    net["pixel_mean"].fill_(110)
    net["mean_face"].normal_(0, 0.3)
    save_checkpoint(folder / "w.pth", Checkpoint(WEIGHTS, net, EMOTIONS, 40, epoch=9))
    dataset = synthetic_dataset(training=8, public=2, private=2)
    names = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
    for i, (image, label) in enumerate(zip(dataset.images, dataset.labels)):
        if name := FOLDERS.get(EMOTIONS[label]):
            path = folder / "my_faces" / names[dataset.split[i]] / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder


def argv_of(folder, out, *more):
    argv = ("--data", folder / "my_faces", "--model_path", folder / "w.pth", *TINY)
    return (*argv, "--no_landmarks", "--out", out, *more)


@pytest.fixture(scope="module")
def tuned(folder):
    """Return the folder of a run whose first two epochs train the heads only."""
    run(*argv_of(folder, folder / "tuned"))
    return folder / "tuned"


# Classes, and options of the weights


def test_classes_are_matched_in_any_spelling():
    assert match_classes(("sad", "Happiness", "bored"), EMOTIONS) == {0: 4, 1: 3}
    assert match_classes(EMOTIONS, ("Bored", "joy")) == {3: 1}
    assert match_classes(("bored", "joy", "happy"), ("happy", "joy", "Bored")) == {0: 2, 1: 1, 2: 0}
    assert match_classes(("a",), ("b",)) == {}


def resolve(*argv, initial):
    return resolve_options(parse_train_options(["--model_path", "w.pth", *argv], ""), True, initial)


def test_options_come_from_the_weights():
    weights = Architecture("vgg11", 0.5, 3, landmarks=False, importance=False)
    checkpoint = Checkpoint(weights, {}, EMOTIONS, 64, options={"channels": 3})
    initial = checkpoint.initial_options()
    options = resolve(initial=initial)
    assert options.recipe == "finetune"
    assert (options.backbone, options.width, options.channels) == ("vgg11", 0.5, 3)
    assert (options.image_width, options.landmarks, options.importance) == ((64,), False, False)
    assert options.rank_weight == 0
    recipe = with_recipe("finetune")
    assert (options.freeze_epochs, options.start_lr) == (recipe.freeze_epochs, recipe.start_lr)
    assert resolve("--landmarks", "--image_width", "48", initial=initial).landmarks
    release = resolve("--recipe", "release", initial=initial)
    assert (release.width, release.landmark_pool) == (0.5, False)
    assert release.image_width == (32, 40, 48)  # the recipe has widths of its own


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--width", "0.25"), "--width 0.25: w.pth has width 0.5"),
        (("--backbone", "vgg11"), "--backbone vgg11: w.pth has backbone resnet18"),
        (("--channels", "3"), "--channels 3: w.pth has channels 1"),
        (("--no_landmark_pool",), "--no_landmark_pool: w.pth has landmark_pool True"),
    ],
)
def test_option_that_contradicts_the_weights_is_an_error(argv, message):
    checkpoint = Checkpoint(Architecture(width=0.5, landmark_pool=True), {}, EMOTIONS, 48)
    initial = checkpoint.initial_options()
    with pytest.raises(OptionError, match=f"^{message}, which cannot be changed; leave out"):
        resolve(*argv, initial=initial)
    assert resolve("--width", "0.5", "--landmark_pool", initial=initial).width == 0.5  # the same


def test_freezing_needs_initial_weights():
    command = parse_train_options(["--freeze_epochs", "2"], "")
    assert resolve_options(command, False).freeze_epochs == 0


# Training


def test_kept_and_new_weights_are_printed(folder, tmp_path, capsys):
    run(*argv_of(folder, tmp_path / "r", "--total_epoch", 1, "--start_lr", 1e-12, "--ema", 0))
    output = capsys.readouterr().out
    assert "classes  happy, sad, bored\n" in output
    assert (
        f"weights  {folder}/w.pth (epoch 9)\n         kept: backbone, pooling at landmarks, "
        in output
    )
    assert "importance head, landmark head, classes happy, sad; new: classes bored\n" in output
    assert re.search(r"PublicTest \d+\.\d\d %, balanced \d+\.\d\d % \(best", output)
    before, after = load_checkpoint(folder / "w.pth").net, load_checkpoint(tmp_path / "r/best.pth")
    assert (after.class_names, after.image_width) == (CLASSES, 40)
    rows = [EMOTIONS.index(name) for name in CLASSES[:2]]
    for name in ("classifier.weight", "classifier.bias"):
        torch.testing.assert_close(after.net[name][:2], before[name][rows])
    for name in ("pixel_mean", "mean_face", "landmark_head.weight", "backbone.conv1.weight"):
        assert torch.equal(after.net[name], before[name]), name


def test_frozen_epochs_train_the_heads_only(folder, tuned, tmp_path):
    before = load_checkpoint(folder / "w.pth").net
    argv = ("--freeze_epochs", 2, "--ema", 0)
    run(*argv_of(folder, tmp_path / "frozen", *argv, "--total_epoch", 2))
    frozen = load_checkpoint(tmp_path / "frozen/last.pth").net
    changed = {name for name, value in before.items() if not torch.equal(value, frozen[name])}
    assert changed == {
        f"{head}.{x}" for head in ("classifier", "attention") for x in ("weight", "bias")
    }
    run(*argv_of(folder, tmp_path / "thawed", *argv))
    thawed = load_checkpoint(tmp_path / "thawed/last.pth").net
    for name in (
        "backbone.layer1.0.conv1.weight",
        "backbone.bn1.running_mean",
        "part_layer.weight",
    ):
        assert not torch.equal(before[name], thawed[name]), name
    assert torch.equal(before["landmark_head.weight"], thawed["landmark_head.weight"])
    assert json.loads((tuned / "config.json").read_text())["options"]["recipe"] == "finetune"


@pytest.mark.parametrize("batch", [1, 2, 7])  # within and at the end of the first epoch; thawed
def test_interrupted_fine_tuning_is_resumed_to_the_bit(folder, tuned, tmp_path, batch):
    interrupt_and_resume(*argv_of(folder, tmp_path / "r"), batch=batch)
    assert_same_run(tuned, tmp_path / "r")


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_learning_rate_and_decay_of_the_backbone(scale):
    network = FERNet(WEIGHTS)
    optimizer = build_optimizer(network, Options(backbone_lr=scale, optimizer="adam"))
    assert len(optimizer.param_groups) == (4 if scale < 1 else 2)
    set_learning_rate(optimizer, 0.5)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, p in network.named_parameters():
        is_backbone = not name.startswith(("classifier", "attention", "landmark_head"))
        assert groups[id(p)]["lr"] == (0.5 * scale if is_backbone else 0.5), name
        assert groups[id(p)]["weight_decay"] == (Options().weight_decay if p.ndim > 1 else 0), name


def test_missing_weights_leave_no_folder(folder, tmp_path):
    argv = ("--data", folder / "my_faces", "--model_path", tmp_path / "none.pth", *TINY)
    with pytest.raises(WeightsError, match=r"none\.pth: no such weight file"):
        run(*argv, "--out", tmp_path / "r")
    assert not (tmp_path / "r").exists()


# Few images, and imbalance


def test_images_per_class():
    dataset = synthetic_dataset(training=5, public=2, private=1)
    dataset.labels[0] = UNLABELED
    small = dataset.with_images_per_class(3, seed=1)
    assert np.bincount(small.labels[small.training_rows]).tolist() == [3] * 7
    tests = dataset.split != "Training"
    assert (small.labels == dataset.labels)[tests].all()
    assert set(small.training_rows) < set(dataset.training_rows)
    assert np.array_equal(small.labels, dataset.with_images_per_class(3, 1).labels)
    assert not np.array_equal(small.labels, dataset.with_images_per_class(3, 2).labels)
    assert small.describe().splitlines()[0].endswith(f"trains on {len(small.training_rows)}")
    assert dataset.describe().splitlines()[0].endswith("trains on 34")
    dataset.labels[0] = 0
    assert "trains on" not in dataset.describe()
    dataset.labels[0] = UNLABELED
    assert dataset.with_images_per_class(0, 1) is dataset
    assert dataset.with_images_per_class(99, 1).labels.tolist() == dataset.labels.tolist()


def test_balanced_class_weights():
    dataset = synthetic_dataset(training=4, public=1, private=1)
    dataset.labels[dataset.training_rows[:5]] = 6
    weights = balanced_class_weights(dataset)
    labels = dataset.labels[dataset.training_rows]
    expected = compute_class_weight("balanced", classes=np.arange(7), y=labels)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1)


def test_class_weights_by_hand():
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    output = Output(logits, torch.ones(2, 1), None, logits)
    options = Options(landmarks=False, rank_weight=0)
    class_weights = torch.tensor([3.0, 0.5])
    losses = compute_losses(
        output, torch.tensor([0, 1]), None, options, class_weights=class_weights
    )
    log = logits.log_softmax(1)
    smoothed = [0.95 * log[0, 0] + 0.05 * log[0, 1], 0.05 * log[1, 0] + 0.95 * log[1, 1]]
    expected = -(3 * smoothed[0] + 0.5 * smoothed[1]) / 2
    torch.testing.assert_close(losses["loss"], expected)
    # Probabilities: the weight of an image is their mean of the classes' weights.
    targets = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    losses = compute_losses(output, targets, None, options, class_weights=class_weights)
    plain = weighted_cross_entropy(logits[:1], torch.ones(1, 1), targets[:1], 0.1)
    expected = (1.75 * plain - 0.5 * smoothed[1]) / 2
    torch.testing.assert_close(losses["loss"], expected)


def test_class_weights_and_balanced_selection_of_a_run(folder, tmp_path, monkeypatch, capsys):
    scores = iter([(0.5, 0.2), (0.9, 0.3), (0.6, 0.8)])
    evaluate_epoch, weights = trainer.evaluate_epoch, []

    def evaluated(state, *rest):
        weights.append(state.class_weights.tolist())
        result = evaluate_epoch(state, *rest)
        return result | dict(zip(("public_accuracy", "public_balanced_accuracy"), next(scores)))

    monkeypatch.setattr(trainer, "evaluate_epoch", evaluated)
    data = shutil.copytree(folder / "my_faces", tmp_path / "data")
    for path in sorted((data / "train/bored").iterdir())[2:]:
        path.unlink()
    argv = argv_of(folder, tmp_path / "r", "--select", "balanced_accuracy")
    run(*argv, "--data", data, "--class_weights", "balanced")
    assert load_checkpoint(tmp_path / "r/best.pth").epoch == 3
    assert weights == [pytest.approx([18 / 24, 18 / 24, 18 / 6])] * 3
    assert "PublicTest 60.00 %, balanced 80.00 % (best 80.00 in 3)" in capsys.readouterr().out


# Teachers


def test_teacher_with_other_classes_by_hand():
    shared = SharedClasses(torch.tensor([0, 2]), torch.tensor([3, 1]), 3)
    logits = torch.tensor([[9.0, 1.0, 9.0, 3.0]]).log()  # 3 : 1 over the shared classes
    for target, expected in (
        (torch.tensor([0]), [0.75, 0, 0.25]),
        (torch.tensor([2]), [0.75, 0, 0.25]),
        (torch.tensor([1]), [0, 1, 0]),  # the teacher does not have this class
        (torch.tensor([[0.1, 0.6, 0.3]]), [0.3, 0.6, 0.1]),
    ):
        torch.testing.assert_close(
            shared.soft_targets(logits, target)[0], torch.tensor(expected).float()
        )

    def model(images):
        rows = logits.expand(len(images), -1)
        return Output(rows, torch.ones(len(images), 1), None, rows)

    predicted = Teachers([model], shared=[shared]).predict(
        torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])
    )
    torch.testing.assert_close(predicted, torch.tensor([[0.75, 0, 0.25], [0, 1, 0]]))


def test_teacher_of_the_shared_classes_trains_a_student(folder, tuned, tmp_path, capsys):
    argv = argv_of(folder, tmp_path / "r", "--teacher", folder / "w.pth", tuned / "best.pth")
    run(*argv, "--total_epoch", 1)
    output = capsys.readouterr().out
    assert f"teacher  {folder}/w.pth (epoch 9), for the classes happy, sad\n" in output
    assert re.search(rf"teacher  {tuned}/best.pth \(epoch \d\)\n", output)
    assert "distillation" in output


# Use of the result


def test_library_accepts_other_classes(folder, tuned):
    path = next((folder / "my_faces/test/sad").iterdir())
    predictor = hubconf.face_predictor(tuned / "best.pth", cropped=True, gpu_ids="-1")
    face = predictor(np.array(Image.open(path)))[0]
    assert face.expression in CLASSES
    assert face.probabilities.shape == (3,)
    network = hubconf.resnet18_fer(weights=tuned / "best.pth")
    assert network.class_names == CLASSES
    assert network(torch.zeros(2, 1, 40, 40)).logits.shape == (2, 3)
    _, page = UploadHandler(predictor)({"path": str(path)}, cropped=True)
    assert all(name in page for name in CLASSES)


def test_onnx_model_has_other_classes(folder, tuned, tmp_path, monkeypatch):
    argv = ["export.py", "--model_path", tuned / "best.pth", "--out", tmp_path / "m.onnx"]
    monkeypatch.setattr("sys.argv", list(map(str, [*argv, "--data", folder / "my_faces"])))
    export.main()
    image = np.array(Image.open(next((folder / "my_faces/test/Joy").iterdir())))
    options = {"cropped": True, "gpu_ids": "-1"}
    ours, theirs = (
        FacePredictor(path, **options)(image)[0]
        for path in (tuned / "best.pth", tmp_path / "m.onnx")
    )
    assert theirs.expression == ours.expression
    np.testing.assert_allclose(theirs.probabilities, ours.probabilities, atol=1e-4)


def test_report_and_predictions_have_other_classes(folder, tuned, tmp_path, monkeypatch):
    with open(tuned / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-3:] == list(CLASSES)
    assert {row["label"] for row in rows} == set(CLASSES)
    argv = ["report", tuned, "--data", folder / "my_faces", "--out", tmp_path / "report.html"]
    monkeypatch.setattr("sys.argv", list(map(str, argv)))
    report.main()
    assert "bored" in (tmp_path / "report.html").read_text()


def test_weights_of_other_classes_are_not_merged(folder, tuned, tmp_path):
    argv = ("--data", folder / "my_faces", "--model_path", folder / "w.pth", tuned / "best.pth")
    with pytest.raises(WeightsError, match="cannot be merged: they differ in more than width"):
        run(*argv, *TINY, "--out", tmp_path / "r")
