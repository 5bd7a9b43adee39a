"""train.py and test.py on a tiny data set: every step, and the files that they write."""

import csv
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from kills import write_csv
from test_network import original, save_original

import test
import train
from data.corruptions import CORRUPTIONS, corrupt
from data.dataset import EMOTIONS
from data.source import find_source, load_dataset
from data.synthetic.generate import synthetic_dataset
from data.transforms import Augmentation
from engine.evaluate import predict_ensemble
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet
from utils.errors import ProjectError, run_main

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    *("--threads", "1", "--gpu_ids", "-1", "--width", "0.125", "--batch_size", "16"),
    *("--total_epoch", "2", "--relabel", "ema"),
)


def run(script, *argv, patch=None):
    """Call a script's main with a command line."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", [script.__file__, *map(str, argv)])
        if patch:
            patch(context)
        script.main()


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(faces_csv, tmp_path_factory, save_figure):
    """Return the folder of a run with dlib's landmarks and with relabeling from the first epoch."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    argv = (*TINY, "--relabel_epoch", 1, "--margin_2", 0, "--relabel_cap", 1)
    argv += ("--rank_weight", 3, "--landmark_weight", 0.5)

    def draw(context):
        context.setattr("utils.figures.save_figure", save_figure)

    run(train, "--data", faces_csv, "--out", folder, *argv, patch=draw)
    return folder


def test_run_folder_is_complete(trained):
    names = {path.name for path in trained.iterdir()} - {".lock"}
    assert names == {
        *("config.json", "metrics.csv", "relabels.csv", "tensorboard"),
        *("last.pth", "best.pth", "metrics.json", "predictions.csv"),
        *("learning_curves.png", "confusion_matrix.png", "landmarks.png", "importance.png"),
        *("reliability.png", "importance_by_class.png", "relabels.png"),
    }
    assert all(path.stat().st_size > 5000 for path in trained.glob("*.png"))
    assert list((trained / "tensorboard").iterdir())
    config = json.loads((trained / "config.json").read_text())
    options, commit = config["options"], config["commit"].removesuffix("-dirty")
    assert options["batch_size"] == 16
    assert options["recipe"] == "full"
    head = ["git", "-C", str(Path(train.__file__).parent), "rev-parse", "HEAD"]
    head = subprocess.run(head, capture_output=True, text=True, check=False).stdout
    assert head.startswith(commit)
    assert len(commit) >= 7 or not head  # there is none in an archive of the sources
    rows = table(trained / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    parts = [float(rows[0][f"loss_{name}"]) for name in ("expression", "rank", "landmarks")]
    by_hand = parts[0] + options["rank_weight"] * parts[1] + options["landmark_weight"] * parts[2]
    assert float(rows[0]["loss"]) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("script", [train, test])
def test_help_shows_the_examples(script, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        run(script, "--help")
    examples = [line for line in script.__doc__.splitlines() if "python " in line]
    assert len(examples) >= 3
    lines = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert {" ".join(line.split()) for line in examples} <= lines


def test_scores_and_predictions_agree(trained):
    scores = json.loads((trained / "metrics.json").read_text())
    rows = table(trained / "predictions.csv")
    assert list(rows[0]) == ["index", "split", "label", "predicted", "importance", *EMOTIONS]
    for split in ("PublicTest", "PrivateTest"):
        part = [row for row in rows if row["split"] == split]
        assert scores[split]["n"] == len(part) == 21
        correct = [row["label"] == row["predicted"] for row in part]
        assert scores[split]["accuracy"] == pytest.approx(np.mean(correct))
        assert scores[split]["landmark_error"] > 0
    for row in rows:
        probabilities = [float(row[name]) for name in EMOTIONS]
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)
        assert row["predicted"] == EMOTIONS[int(np.argmax(probabilities))]


def test_relabels_are_recorded(trained, faces_csv):
    moves = table(trained / "relabels.csv")
    assert moves  # the margin is 0
    assert len(moves) == sum(int(row["relabeled"]) for row in table(trained / "metrics.csv"))
    given = [EMOTIONS[int(row["emotion"])] for row in table(faces_csv)]
    labels = list(given)
    for move in moves:  # in the order of the epochs
        assert labels[int(move["row"])] == move["from"] != move["to"]
        labels[int(move["row"])] = move["to"]
    saved = torch.load(trained / "last.pth", weights_only=True)["training"]["labels"]
    training = [i for i, row in enumerate(table(faces_csv)) if row["Usage"] == "Training"]
    assert [EMOTIONS[i] for i in saved] == [labels[i] for i in training]


def test_best_is_the_best_on_public_test(trained):
    accuracies = [float(row["public_accuracy"]) for row in table(trained / "metrics.csv")]
    best = torch.load(trained / "best.pth", weights_only=True)
    assert best["epoch"] == 1 + int(np.argmax(accuracies))
    assert best["training"] == {}


def test_evaluation_equals_that_of_the_run(trained, faces_csv, tmp_path):
    run(test, "--model_path", trained / "best.pth", "--data", faces_csv, "--out", tmp_path / "e")
    assert (tmp_path / "e/metrics.json").read_text() == (trained / "metrics.json").read_text()
    assert (tmp_path / "e/predictions.csv").read_text() == (trained / "predictions.csv").read_text()
    argv = ("--tta", "--batch_size", 5, "--splits", "PrivateTest", "PrivateTest")
    weights = ("--model_path", trained / "best.pth")
    run(test, *weights, "--data", faces_csv, "--out", tmp_path / "tta", *argv)
    scores = json.loads((tmp_path / "tta/metrics.json").read_text())
    assert list(scores) == ["PrivateTest"]
    rows, plain = table(tmp_path / "tta/predictions.csv"), table(trained / "predictions.csv")
    assert [row["index"] for row in rows] == [row["index"] for row in plain[21:]]  # once each
    assert [row["happy"] for row in rows] != [row["happy"] for row in plain[21:]]


def test_pooling_at_landmarks_is_trained_and_saved(trained, faces_csv, tmp_path):
    argv = (*TINY, "--data", faces_csv, "--landmark_pool", "--total_epoch", 1)
    run(train, *argv, "--out", tmp_path / "run")
    network = load_checkpoint(tmp_path / "run/best.pth").network()
    assert network.part_layer.weight.any()
    run(
        test,
        "--model_path",
        tmp_path / "run/best.pth",
        "--data",
        faces_csv,
        "--out",
        tmp_path / "e",
    )
    ours, theirs = (tmp_path / name / "predictions.csv" for name in ("run", "e"))
    assert ours.read_text() == theirs.read_text()
    run(train, *argv, "--no_landmarks", "--out", tmp_path / "without")
    assert load_checkpoint(tmp_path / "without/best.pth").network().part_layer is None


def test_ensemble_is_the_mean_of_its_networks(trained, faces_csv, tmp_path):
    save_original(original("resnet18"), tmp_path / "other.pth")
    weights = (trained / "best.pth", tmp_path / "other.pth")
    argv = ("--data", faces_csv, "--splits", "PrivateTest", "--gpu_ids", "-1")
    run(test, "--model_path", weights[1], *argv, "--out", tmp_path / "one")
    run(test, "--model_path", *weights, *argv, "--out", tmp_path / "both")
    folders = (trained, tmp_path / "one", tmp_path / "both")
    first, second, both = (table(folder / "predictions.csv") for folder in folders)
    for name in (*EMOTIONS, "importance"):
        a, b, mean = ([float(row[name]) for row in t] for t in (first[21:], second, both))
        np.testing.assert_allclose(mean, (np.array(a) + b) / 2, atol=2e-6)
    wide = torch.load(trained / "best.pth", weights_only=True) | {"image_width": 64}
    torch.save(wide, tmp_path / "wide.pth")
    with pytest.raises(ProjectError, match="cannot be an ensemble: image_width is 64 and 48"):
        run(test, "--model_path", weights[0], tmp_path / "wide.pth", *argv)
    network = FERNet(Architecture(width=0.1, channels=3))
    rgb = Checkpoint(network.architecture, network.state_dict(), EMOTIONS, 48)
    save_checkpoint(tmp_path / "rgb.pth", rgb)
    with pytest.raises(ProjectError, match="cannot be an ensemble: channels is 3 and 1"):
        run(test, "--model_path", weights[0], tmp_path / "rgb.pth", *argv)
    for wrong, message in (
        (("--model_path",), "give at least one --model_path"),
        (("--model_path", weights[0], weights[0]), "the same weights twice"),
        (("--model_path", weights[0], "--splits"), "one of --splits"),
        (("--model_path", weights[0], "--batch_size", 0), "--batch_size 0: must be"),
    ):
        with pytest.raises(ProjectError, match=message):
            run(test, *argv, *wrong)


def test_accuracy_drop_of_corruptions(trained, faces_csv, tmp_path, capsys):
    argv = ("--data", faces_csv, "--gpu_ids", "-1", "--out", tmp_path / "c", "--corruptions")
    run(test, "--model_path", trained / "best.pth", *argv)
    rows = table(tmp_path / "c/corruptions.csv")
    assert [row["corruption"] for row in rows] == ["none", *CORRUPTIONS]
    scores = json.loads((tmp_path / "c/metrics.json").read_text())
    for split in ("PublicTest", "PrivateTest"):
        clean = 100 * scores[split]["accuracy"]
        assert float(rows[0][split]) == pytest.approx(clean)
        for row in rows:
            assert float(row[f"{split} drop"]) == pytest.approx(clean - float(row[split]))
    assert "JPEG quality 30" in capsys.readouterr().out
    dataset = load_dataset(find_source(str(faces_csv))).subset("PrivateTest")
    network = load_checkpoint(trained / "best.pth").network()
    corrupted = corrupt(dataset.images, "gamma 2.2")
    predictions = predict_ensemble([network], corrupted, 64, tta=False)
    accuracy = (predictions.probabilities.argmax(1) == dataset.labels).mean()
    assert float(rows[5]["PrivateTest"]) == pytest.approx(100 * accuracy)


def test_original_weights_are_evaluated(faces_csv, tmp_path):
    save_original(original("resnet18"), tmp_path / "resnet18.pth")
    argv = ("--data", faces_csv, "--out", tmp_path / "e", "--splits", "PrivateTest")
    run(test, "--model_path", tmp_path / "resnet18.pth", *argv)
    scores = json.loads((tmp_path / "e/metrics.json").read_text())
    assert scores["PrivateTest"]["n"] == 21


def test_numeric_labels_count_in_the_order_of_the_classes(tmp_path, capsys):
    dataset = synthetic_dataset(training=7, public=3, private=3)
    argv = ("--data", write_csv(dataset, tmp_path / "faces.csv"), *TINY, "--no_landmarks")
    reversed_order = dataset.with_class_order(EMOTIONS[::-1])
    own = write_csv(reversed_order, tmp_path / "own.csv")
    run(train, *argv, "--data", own, "--class_names", *EMOTIONS[::-1], "--out", tmp_path / "r")
    assert f"classes  {', '.join(EMOTIONS[::-1])}\n" in capsys.readouterr().out
    scores = {}
    given = {"own": (own,), "faces": (tmp_path / "faces.csv", "--class_names", *EMOTIONS)}
    few = dataset.select((dataset.split == "PublicTest") & (dataset.labels < 2))
    given["few"] = (write_csv(few, tmp_path / "few.csv"), "--class_names", "angry", "disgust")
    for name, data in given.items():
        out = ("--splits", "PublicTest", "--out", tmp_path / name, "--no_landmarks")
        run(test, "--model_path", tmp_path / "r/best.pth", *out, "--data", *data)
        has_note = "numeric labels count in this order" in capsys.readouterr().out
        assert has_note == (name == "own")
        scores[name] = json.loads((tmp_path / name / "metrics.json").read_text())["PublicTest"]
    assert scores["own"] == scores["faces"]
    recall = scores["own"]["recall"]
    assert scores["few"]["accuracy"] == pytest.approx((recall["angry"] + recall["disgust"]) / 2)
    argv = ("--data", tmp_path / "few.csv", "--model_path", tmp_path / "r/best.pth")
    with pytest.raises(ProjectError, match="names must differ"):
        run(test, *argv, "--class_names", "a", "a")
    with pytest.raises(ProjectError, match="must be equal"):
        run(test, *argv, "--class_names", "x", "y")
    with pytest.raises(ProjectError, match="--ferplus defines the classes"):
        run(test, *argv, "--class_names", "angry", "--ferplus", "new.csv")


def test_training_starts_from_weights(trained, faces_csv, tmp_path, capsys):
    argv = ("--data", faces_csv, *TINY, "--total_epoch", 1)
    argv += ("--model_path", trained / "best.pth", "--out", tmp_path / "r")
    with pytest.raises(
        ProjectError, match=r"--width 0.25: .*best.pth has width 0.125, which cannot"
    ):
        run(train, *argv, "--width", 0.25)
    run(train, *argv)  # the error left no folder
    assert "weights" in capsys.readouterr().out


def test_training_starts_from_merged_networks(faces_csv, tmp_path, capsys):
    pair = [tmp_path / "a.pth", tmp_path / "b.pth"]
    for path in pair:
        narrow = FERNet(Architecture(width=0.25, landmarks=False))
        network = Checkpoint(narrow.architecture, narrow.state_dict(), EMOTIONS, 48)
        save_checkpoint(path, network)
    argv = ("--data", faces_csv, *TINY, "--no_landmarks", "--total_epoch", 1)
    argv += ("--model_path", *pair, "--start_lr", 1e-9, "--out", tmp_path / "r")
    with pytest.raises(ProjectError, match=r"--width 0.25: .*a\.pth .*b\.pth has width 0.5,"):
        run(train, *argv, "--width", 0.25)
    run(train, *argv, "--width", 0.5, "--freeze_epochs", 0)
    assert "b.pth (merged)" in capsys.readouterr().out
    wide = load_checkpoint(tmp_path / "r/best.pth").network()
    for place, path in zip((slice(16), slice(16, 32)), pair):
        theirs = load_checkpoint(path).net["backbone.layer1.0.conv1.weight"]
        ours = wide.backbone.layer1[0].conv1.weight[place, place]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    run(train, "--resume", tmp_path / "r")  # its options have both files


@pytest.mark.parametrize(
    ("switches", "absent"),
    [
        (("--no_importance",), {"loss_rank"}),
        (("--rank_weight", 0), {"loss_rank"}),
        (
            (
                "--relabel",
                "none",
                "--backbone",
                "vgg11",
                "--optimizer",
                "adam",
                "--start_lr",
                0.001,
            ),
            set(),
        ),
        (("--relabel", "scn"), set()),
        (("--image_width", 24, 48, "--landmark_pool"), set()),
        (("--no_landmarks", "--image_width", 32), {"loss_landmarks", "public_landmark_error"}),
    ],
)
def test_every_module_is_optional(faces_csv, tmp_path, monkeypatch, switches, absent):
    if "--no_landmarks" in switches:
        monkeypatch.setitem(sys.modules, "dlib", None)  # not needed
    argv = (*TINY, "--relabel_epoch", 1, "--margin_2", 0.01, "--relabel_cap", 1, *switches)
    run(train, "--data", faces_csv, "--out", tmp_path / "r", *argv)
    row = table(tmp_path / "r/metrics.csv")[0]
    names = {"loss", "loss_expression", "loss_rank", "loss_landmarks", "public_landmark_error"}
    assert names - row.keys() == absent
    assert (int(row["relabeled"]) == 0) == ("none" in switches)
    has_figure = (tmp_path / "r/landmarks.png").exists()
    assert has_figure == ("--no_landmarks" not in switches)


def test_network_fits_the_training_images(faces_csv, tmp_path):
    def turn_off_flip(context):
        context.setattr("data.loader.Augmentation", lambda **s: Augmentation(**s | {"flip": 0.0}))

    # Without augmentation a small network fits 49 images.
    still = ("--affine", 0, 0, 0, "--color_jitter", 0, "--erasing", 0)
    adam = ("--optimizer", "adam", "--start_lr", 0.002, "--warmup_epoch", 2)
    argv = (*TINY, "--width", 0.25, "--total_epoch", 30, "--dropout", 0, "--ema", 0.5, *adam)
    run(train, "--data", faces_csv, "--out", tmp_path / "r", *argv, *still, patch=turn_off_flip)
    rows = table(tmp_path / "r/metrics.csv")
    assert float(rows[-1]["train_accuracy"]) > 0.9
    assert float(rows[-1]["loss_landmarks"]) < 0.7 * float(rows[0]["loss_landmarks"])


def test_divergence_is_an_error_and_is_not_saved(faces_csv, tmp_path):
    argv = (*TINY, "--no_landmarks", "--start_lr", 1e30, "--warmup_epoch", 0)
    with pytest.raises(
        ProjectError, match=r"diverged in epoch 1, batch [12]: .*loss = nan.*Lower --start_lr"
    ):
        run(train, "--data", faces_csv, "--out", tmp_path / "r", *argv)
    assert not (tmp_path / "r/last.pth").exists()


def test_unlabeled_images_are_predicted_without_scores(trained, faces_csv, tmp_path):
    pixels = [row["pixels"] for row in table(faces_csv)][:5]
    (tmp_path / "test.csv").write_text("pixels\n" + "\n".join(pixels) + "\n")
    argv = ("--data", tmp_path / "test.csv", "--out", tmp_path / "e", "--no_landmarks")
    run(test, "--model_path", trained / "best.pth", *argv)
    assert json.loads((tmp_path / "e/metrics.json").read_text()) == (
        {"PrivateTest": {"n": 0, "unlabeled": 5}}
    )
    assert len(table(tmp_path / "e/predictions.csv")) == 5


@pytest.mark.parametrize(
    ("script", "argv", "message", "status"),
    [
        (test, ["--model_path", "none.pth"], ["none.pth", "bash train.sh"], 1),
        (train, ["--data", "nowhere.csv"], ["nowhere.csv"], 1),
        (train, ["--data", "sample", "--batch_size", "0"], ["--batch_size 0", "1"], 2),
        (train, ["--data", "sample", "--gpu_ids", "99"], ["--gpu_ids 99", "-1"], 2),
        (train, ["--lr", "0.1"], ["--lr does not exist; use --start_lr"], 2),
        (train, ["--resume", "nowhere"], ["nowhere", "config.json"], 1),
    ],
)
def test_errors_are_one_line(script, argv, message, status, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run_main(partial(run, script, *argv))
    text = capsys.readouterr().err
    assert end.value.code == status
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert all(word in text for word in message)
