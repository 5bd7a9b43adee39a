"""Distillation: whose opinion of which face, in which view, and what it does to the loss."""

import csv
import math
from dataclasses import fields, replace

import pytest
import torch
from kills import assert_same_run, write_csv
from test_faults import TINY, run, stop_and_go_on

from data.dataset import EMOTIONS
from data.synthetic.generate import synthetic_dataset
from data.transforms import Augmentation, augment
from engine.distill import Teachers, load_teachers
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet, Output
from models.losses import compute_losses
from utils.errors import OptionError, RunError, WeightsError
from utils.options import Options


def says(*probabilities, importance=1.0):
    """Return a model that says the same of every face."""
    logits = torch.tensor(probabilities).log() / importance

    def model(images):
        rows = logits.expand(len(images), -1)
        return Output(rows, torch.full((len(images), 1), importance), None, rows)

    return model


@pytest.mark.parametrize("first", [0, 1, 2, 5])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_each_face_is_judged_by_one_teacher_by_turns(first, n):
    shares = torch.eye(3) * 0.7 + 0.1
    teachers = Teachers([says(*row.tolist()) for row in shares])
    soft_targets = teachers.soft_targets(torch.zeros(n, 1, 48, 48), first)
    turns = [(first + i) % 3 for i in range(n)]
    torch.testing.assert_close(soft_targets, shares[turns])


def test_the_opinion_is_the_weighted_one_and_has_no_gradient():
    network = FERNet(Architecture(width=0.1, dropout=0.5)).eval()
    images = torch.rand(3, 1, 48, 48) * 255
    soft_targets = Teachers([network]).soft_targets(images)
    assert not soft_targets.requires_grad
    torch.testing.assert_close(soft_targets, network(images).weighted_logits.softmax(1))


def losses_of(logits, soft_targets, **options):
    """Of one face of class 0 with importance 1, smoothing off unless given."""
    rows = torch.tensor([logits])
    output = Output(rows, torch.ones(1, 1), None, rows)
    options = Options(landmarks=False, rank=False, **{"label_smoothing": 0.0} | options)
    return compute_losses(
        output, torch.tensor([0]), None, options, soft_targets=torch.tensor([soft_targets])
    )


def test_the_loss_by_hand():
    # The network says 0.8 and 0.2 where its teacher says 0.6 and 0.4.
    logits = [math.log(0.8), math.log(0.2)]
    losses = losses_of(logits, [0.6, 0.4], teacher_weight=0.75)
    label = -math.log(0.8)
    taught = -0.6 * math.log(0.8) - 0.4 * math.log(0.2)
    assert losses["loss_expression"].item() == pytest.approx(label)
    assert losses["loss_teacher"].item() == pytest.approx(taught)
    assert losses["loss"].item() == pytest.approx(0.25 * label + 0.75 * taught)
    # Smoothing is of the label alone.
    smooth = losses_of(logits, [0.6, 0.4], teacher_weight=0.75, label_smoothing=0.2)
    assert smooth["loss_teacher"].item() == pytest.approx(taught)
    assert smooth["loss_expression"].item() == pytest.approx(
        -0.9 * math.log(0.8) - 0.1 * math.log(0.2)
    )


def test_an_opinion_may_leave_the_importance_alone():
    rows = torch.tensor([[0.3, -1.2]])
    gradients = []
    for options in (
        Options(landmarks=False, rank=False, label_smoothing=0, teacher_weight=0),
        Options(landmarks=False, rank=False, label_smoothing=0, importance_smoothing=False),
    ):
        importance = torch.tensor([[0.5]], requires_grad=True)
        output = Output(rows, importance, None, rows)
        soft_targets = torch.tensor([[0.2, 0.8]])
        compute_losses(output, torch.tensor([0]), None, options, soft_targets=soft_targets)[
            "loss"
        ].backward()
        gradients.append(importance.grad)
    torch.testing.assert_close(gradients[1], (1 - options.teacher_weight) * gradients[0])


def test_turns_teach_the_mean_opinion():
    logits = [0.3, -1.2]
    one, other = [0.9, 0.1], [0.2, 0.8]
    by_turns = (losses_of(logits, one)["loss"] + losses_of(logits, other)["loss"]) / 2
    torch.testing.assert_close(by_turns, losses_of(logits, [0.55, 0.45])["loss"])


def test_teachers_see_the_same_movement_without_the_damage():
    how = Augmentation(0.5, 15, 0.2, 0.1, 0.3, 0.5, degraded=0.5, jpeg=0.5)
    images = torch.rand(16, 1, 48, 48) * 255
    landmarks = torch.rand(16, 68, 2) - 0.5

    def augmented(how):
        return augment(images, landmarks, how, torch.Generator().manual_seed(3))

    (damaged, moved), (seen, moved_too) = augmented(how), augmented(how.weak)
    assert torch.equal(moved, moved_too)
    assert not torch.equal(damaged, seen)
    still = replace(how, erasing=0.0, degraded=0.0, jpeg=0.0)
    assert torch.equal(augmented(still)[0], seen)


def test_each_change_of_a_face_is_told_apart():
    names = {field.name for field in fields(Augmentation)}
    seen = Augmentation(**dict.fromkeys(names, 0.5)).weak
    spoils = {name for name in names if getattr(seen, name) != 0.5}
    assert spoils == {"erasing", "degraded", "jpeg"}
    assert names - spoils == {"flip", "rotation", "scale", "shift", "light", "erased_area", "size"}


# train.py itself


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught")
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


def test_a_network_learns_from_teachers_and_goes_on_to_the_same_bits(folder, capsys):
    argv = argv_of(folder, folder / "0.pth", folder / "1.pth")
    argv += ("--teacher_weight", 0.9, "--degraded", 0.5, "--jpeg", 0.5)
    run(*argv, "--out", folder / "whole")
    assert capsys.readouterr().out.count("teacher  ") == 2
    with open(folder / "whole/metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            value = {name: float(number) for name, number in row.items()}
            mixed = 0.1 * value["loss_expression"] + 0.9 * value["loss_teacher"]
            assert value["loss"] == pytest.approx(mixed + value["loss_rank"], rel=1e-5)

    stop_and_go_on(*argv, "--out", folder / "stopped", batch=5)  # within the second epoch
    assert_same_run(folder / "whole", folder / "stopped")


def test_a_resumed_run_knows_its_teachers_wherever_they_are(folder, tmp_path):
    first, second = (write_teacher(tmp_path / f"{seed}.pth", seed) for seed in range(2))
    run(*argv_of(folder, first, second), "--out", tmp_path / "whole")
    argv = (*argv_of(folder, first, second), "--out", tmp_path / "stopped")
    with pytest.raises(RunError, match="the teachers are not those that this run began with"):
        stop_and_go_on(*argv, batch=5, then=("--teacher", second, first))
    moved = [path.rename(tmp_path / f"moved_{path.name}") for path in (first, second)]
    with pytest.raises(WeightsError, match="no weight file"):
        run("--resume", tmp_path / "stopped")
    run("--resume", tmp_path / "stopped", "--teacher", *moved)
    for name in ("metrics.csv", "predictions.csv"):
        assert (tmp_path / "stopped" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_a_confident_teacher_is_followed(folder):
    """Whose opinion alone counts, against all labels: the network says what it says."""
    path = write_teacher(folder / "happy.pth", importance=False)
    checkpoint = load_checkpoint(path)
    checkpoint.net["classifier.weight"].zero_()
    checkpoint.net["classifier.bias"].copy_(torch.tensor([0.0, 0, 0, 20, 0, 0, 0]))
    save_checkpoint(path, checkpoint)
    argv = (*argv_of(folder, path), "--teacher_weight", 1, "--ema", 0, "--no_relabel")
    run(*argv, "--total_epoch", 10, "--out", folder / "happy")
    network = load_checkpoint(folder / "happy/last.pth").network()
    images = torch.from_numpy(synthetic_dataset(training=7, public=3, private=3).images)[:, None]
    assert (network(images).weighted_logits.argmax(1) == EMOTIONS.index("happy")).all()


def test_unfit_teachers_are_refused_before_there_is_a_run(folder, tmp_path):
    other = write_teacher(tmp_path / "two.pth", names=("glad", "sad"))
    wide = write_teacher(tmp_path / "wide.pth", image_width=48)
    (tmp_path / "text.pth").write_text("no weights")
    for argv, error, words in (
        ((tmp_path / "none.pth",), WeightsError, "no weight file .*none.pth"),
        ((folder / "0.pth", tmp_path / "text.pth"), WeightsError, "text.pth is damaged"),
        ((other,), WeightsError, "two.pth knows the classes glad, sad, and the faces have angry"),
        ((folder / "0.pth", wide), WeightsError, "wide.pth looks at faces of 48 pixels"),
        ((folder / "0.pth", "--sizes", "24", "32"), WeightsError, "cannot teach at 24 pixels"),
        ((folder / "0.pth", "--teacher_weight", "1.5"), OptionError, "--teacher_weight 1.5"),
    ):
        with pytest.raises(error, match=words):
            run(*argv_of(folder, *argv), "--out", tmp_path / "run")
        assert not (tmp_path / "run").exists()
    grey = Options(teacher=(str(folder / "0.pth"),))
    with pytest.raises(WeightsError, match=r"0.pth takes grey faces and these are in colour"):
        load_teachers(grey, EMOTIONS, channels=3, device=torch.device("cpu"))
