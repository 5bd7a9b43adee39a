"""Distillation: which teacher predicts which image, in which view, and the loss."""

import csv
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from kills import assert_same_run, write_csv
from test_faults import TINY, interrupt_and_resume, run

from data.dataset import EMOTIONS
from data.synthetic.generate import synthetic_dataset
from data.transforms import Augmentation, augment
from engine.distill import Teachers, load_teachers
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet, Output
from models.losses import compute_losses
from utils.errors import OptionError, RunError, WeightsError
from utils.options import Options


def constant_model(*probabilities, importance=1.0):
    """Return a model with the same prediction for every image."""
    logits = torch.tensor(probabilities).log() / importance

    def model(images):
        rows = logits.expand(len(images), -1)
        return Output(rows, torch.full((len(images), 1), importance), None, rows)

    return model


@pytest.mark.parametrize("start", [0, 1, 2, 5])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_each_image_is_predicted_by_one_teacher_in_rotation(start, n):
    probabilities = torch.eye(3) * 0.7 + 0.1
    teachers = Teachers([constant_model(*row.tolist()) for row in probabilities])
    soft_targets = teachers.predict(
        torch.zeros(n, 1, 48, 48), torch.zeros(n, dtype=torch.int64), start
    )
    expected = [(start + i) % 3 for i in range(n)]
    torch.testing.assert_close(soft_targets, probabilities[expected])


def test_soft_targets_are_weighted_and_have_no_gradient():
    network = FERNet(Architecture(width=0.1, dropout=0.5)).eval()
    images = torch.rand(3, 1, 48, 48) * 255
    soft_targets = Teachers([network]).predict(images, torch.zeros(3, dtype=torch.int64))
    assert not soft_targets.requires_grad
    torch.testing.assert_close(soft_targets, network(images).weighted_logits.softmax(1))


def losses_of(logits, soft_targets, **options):
    """Return the losses of one image of class 0 with importance 1, by default unsmoothed."""
    rows = torch.tensor([logits])
    output = Output(rows, torch.ones(1, 1), None, rows)
    options = Options(landmarks=False, rank_weight=0, **{"label_smoothing": 0.0} | options)
    return compute_losses(
        output, torch.tensor([0]), None, options, soft_targets=torch.tensor([soft_targets])
    )


def test_distillation_loss_by_hand():
    # The network predicts 0.8 and 0.2, the teacher 0.6 and 0.4.
    logits = [math.log(0.8), math.log(0.2)]
    losses = losses_of(logits, [0.6, 0.4], teacher_weight=0.75)
    label = -math.log(0.8)
    distillation = -0.6 * math.log(0.8) - 0.4 * math.log(0.2)
    assert losses["loss_expression"].item() == pytest.approx(label)
    assert losses["loss_distillation"].item() == pytest.approx(distillation)
    assert losses["loss"].item() == pytest.approx(0.25 * label + 0.75 * distillation)
    # Only the label is smoothed.
    smooth = losses_of(logits, [0.6, 0.4], teacher_weight=0.75, label_smoothing=0.2)
    assert smooth["loss_distillation"].item() == pytest.approx(distillation)
    assert smooth["loss_expression"].item() == pytest.approx(
        -0.9 * math.log(0.8) - 0.1 * math.log(0.2)
    )


def test_rotation_has_the_expected_loss_of_the_mean_prediction():
    logits = [0.3, -1.2]
    one, other = [0.9, 0.1], [0.2, 0.8]
    rotation = (losses_of(logits, one)["loss"] + losses_of(logits, other)["loss"]) / 2
    torch.testing.assert_close(rotation, losses_of(logits, [0.55, 0.45])["loss"])


def test_weak_augmentation_has_the_same_geometry():
    strong = Augmentation(0.5, 15, 0.1, 0.2, 0.3, 0.5, degraded=0.5, jpeg=0.5)
    images = torch.rand(16, 1, 48, 48) * 255
    landmarks = torch.rand(16, 68, 2) - 0.5

    def augmented(augmentation):
        return augment(images, landmarks, augmentation, torch.Generator().manual_seed(3))

    (strong_images, moved), (weak_images, also_moved) = augmented(strong), augmented(strong.weak)
    assert torch.equal(moved, also_moved)
    assert not torch.equal(strong_images, weak_images)
    clean = replace(strong, erasing=0.0, degraded=0.0, jpeg=0.0)
    assert torch.equal(augmented(clean)[0], weak_images)


def test_every_augmentation_is_weak_or_strong():
    names = {field.name for field in fields(Augmentation)}
    weak = Augmentation(**dict.fromkeys(names, 0.5)).weak
    strong_only = {name for name in names if getattr(weak, name) != 0.5}
    assert strong_only == {"erasing", "degraded", "jpeg"}
    kept = {"flip", "degrees", "translation", "scale", "color_jitter", "width"}
    assert names - strong_only == kept


# train.py


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill")
    write_csv(synthetic_dataset(training=7, public=3, private=3), folder / "faces.csv")
    for seed in range(2):
        write_teacher(folder / f"{seed}.pth", seed)
    return folder


def write_teacher(path, seed=0, names=EMOTIONS, image_width=32, **more):
    torch.manual_seed(seed)
    architecture = Architecture(backbone="vgg11", width=0.125, classes=len(names), **more)
    network = FERNet(architecture)
    torch.nn.init.normal_(network.classifier.weight)
    save_checkpoint(path, Checkpoint(architecture, network.state_dict(), names, image_width))
    return path


def argv_of(folder, *teachers):
    return ("--data", folder / "faces.csv", *TINY, "--no_final_test", "--teacher", *teachers)


def test_distillation_is_resumed_to_the_bit(folder, capsys):
    argv = argv_of(folder, folder / "0.pth", folder / "1.pth")
    argv += ("--teacher_weight", 0.9, "--degraded", 0.5, "--jpeg", 0.5)
    run(*argv, "--out", folder / "reference")
    assert capsys.readouterr().out.count("teacher  ") == 2
    with open(folder / "reference/metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            value = {name: float(number) for name, number in row.items()}
            mixed = 0.1 * value["loss_expression"] + 0.9 * value["loss_distillation"]
            assert value["loss"] == pytest.approx(mixed + value["loss_rank"], rel=1e-5)

    interrupt_and_resume(*argv, "--out", folder / "resumed", batch=5)  # within the second epoch
    assert_same_run(folder / "reference", folder / "resumed")


def test_resumed_run_checks_teachers_by_content(folder, tmp_path):
    first, second = (write_teacher(tmp_path / f"{seed}.pth", seed) for seed in range(2))
    run(*argv_of(folder, first, second), "--out", tmp_path / "reference")
    argv = (*argv_of(folder, first, second), "--out", tmp_path / "resumed")
    with pytest.raises(RunError, match="the teachers differ from the run's"):
        interrupt_and_resume(*argv, batch=5, then=("--teacher", second, first))
    moved = [path.rename(tmp_path / f"moved_{path.name}") for path in (first, second)]
    with pytest.raises(WeightsError, match="no such weight file"):
        run("--resume", tmp_path / "resumed")
    run("--resume", tmp_path / "resumed", "--teacher", *moved)
    for name in ("metrics.csv", "predictions.csv"):
        reference = (tmp_path / "reference" / name).read_text()
        assert (tmp_path / "resumed" / name).read_text() == reference


def test_student_reproduces_a_confident_teacher(folder):
    """With --teacher_weight 1 only the teacher counts, against all labels."""
    path = write_teacher(folder / "happy.pth", importance=False)
    checkpoint = load_checkpoint(path)
    checkpoint.net["classifier.weight"].zero_()
    checkpoint.net["classifier.bias"].copy_(torch.tensor([0.0, 0, 0, 20, 0, 0, 0]))
    save_checkpoint(path, checkpoint)
    argv = (*argv_of(folder, path), "--teacher_weight", 1, "--ema", 0, "--relabel", "none")
    run(*argv, "--total_epoch", 10, "--out", folder / "happy")
    network = load_checkpoint(folder / "happy/last.pth").network()
    images = torch.from_numpy(synthetic_dataset(training=7, public=3, private=3).images)[:, None]
    assert (network(images).weighted_logits.argmax(1) == EMOTIONS.index("happy")).all()


def test_incompatible_teachers_are_refused_before_a_folder_is_made(folder, tmp_path):
    other = write_teacher(tmp_path / "two.pth", names=("glad", "sad"))
    wide = write_teacher(tmp_path / "wide.pth", image_width=48)
    (tmp_path / "text.pth").write_text("no weights")
    for argv, error, message in (
        ((tmp_path / "none.pth",), WeightsError, "none.pth: no such weight file"),
        ((folder / "0.pth", tmp_path / "text.pth"), WeightsError, "text.pth is damaged"),
        (
            (other,),
            WeightsError,
            "two.pth has the classes glad, sad, and the .* angry, .*; a teacher needs two of them",
        ),
        ((folder / "0.pth", wide), WeightsError, "wide.pth was trained at 48 pixels"),
        (
            (folder / "0.pth", "--image_width", "24", "32"),
            WeightsError,
            "vgg11 accepts no images of 24 pixels",
        ),
        ((folder / "0.pth", "--teacher_weight", "1.5"), OptionError, "--teacher_weight 1.5"),
    ):
        with pytest.raises(error, match=message):
            run(*argv_of(folder, *argv), "--out", tmp_path / "run")
        assert not (tmp_path / "run").exists()
    dataset = synthetic_dataset(training=1, public=1, private=1)
    grayscale = Options(teacher=(str(folder / "0.pth"),))
    rgb = replace(dataset, images=np.repeat(dataset.images[..., None], 3, axis=3))
    with pytest.raises(WeightsError, match=r"0.pth expects grayscale images"):
        load_teachers(grayscale, rgb, torch.device("cpu"))
