"""train.py and test.py themselves, on a tiny set: every step, and what they leave behind."""

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from kills import assert_same_run, write_csv
from test_network import original, save_original

import test
import train
from data.corruptions import CORRUPTIONS, corrupt
from data.dataset import EMOTIONS
from data.source import find_source, load_dataset
from data.synthetic.generate import synthetic_dataset
from models import saving
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet
from utils.errors import ProjectError

ROOT = Path(__file__).resolve().parents[1]
TINY = ("--gpu_ids", "-1", "--width", "0.125", "--batch_size", "16", "--total_epoch", "2")


@pytest.fixture(scope="module")
def faces_csv(tmp_path_factory):
    faces = synthetic_dataset(training=7, public=3, private=3)
    return write_csv(faces, tmp_path_factory.mktemp("data") / "faces.csv")


def run(script, *argv, patch=None):
    """Call a script's main in this process, as if typed."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", [script.__file__, *map(str, argv)])
        if patch:
            patch(context)
        script.main()


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(faces_csv, tmp_path_factory):
    """Return the folder of one whole run, with landmarks by dlib and relabeling from the start."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    argv = (*TINY, "--relabel_epoch", 1, "--margin_2", 0)
    argv += ("--rank_weight", 3, "--landmark_weight", 0.5, "--erased_area", 0.3)
    run(train, "--data", faces_csv, "--out", folder, *argv)
    return folder


def test_a_run_leaves_all_that_it_names(trained):
    names = {path.name for path in trained.iterdir()} - {".lock"}
    assert names == {
        *("config.json", "metrics.csv", "relabels.csv", "tensorboard"),
        *("last.pth", "best.pth", "metrics.json", "predictions.csv"),
        *("learning_curves.png", "confusion_matrix.png", "landmarks.png", "importance.png"),
        *("reliability.png", "importance_by_class.png", "relabels.png"),
    }
    assert list((trained / "tensorboard").iterdir())
    config = json.loads((trained / "config.json").read_text())
    options, commit = config["options"], config["commit"].removesuffix("-dirty")
    assert options["batch_size"] == 16
    assert options["recipe"] == "full"
    head = ["git", "-C", str(Path(train.__file__).parent), "rev-parse", "HEAD"]
    head = subprocess.run(head, capture_output=True, text=True, check=False).stdout
    assert head.startswith(git_commit)
    assert len(git_commit) >= 7 or not head  # as in an archive of the sources
    rows = table(trained / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    parts = [float(rows[0][f"loss_{name}"]) for name in ("expression", "rank", "landmarks")]
    by_hand = parts[0] + options["rank_weight"] * parts[1] + options["landmark_weight"] * parts[2]
    assert float(rows[0]["loss"]) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("script", [train, test])
def test_help_has_a_line_for_each_example(script, monkeypatch, capsys):
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
    assert list(rows[0]) == ["index", "usage", "label", "predicted", "importance", *EMOTIONS]
    for split in ("PublicTest", "PrivateTest"):
        mine = [row for row in rows if row["usage"] == split]
        assert scores[split]["n"] == len(mine) == 21
        right = [row["label"] == row["predicted"] for row in mine]
        assert scores[split]["accuracy"] == pytest.approx(np.mean(right))
        assert scores[split]["landmark_error"] > 0
    for row in rows:
        shares = [float(row[name]) for name in EMOTIONS]
        assert sum(shares) == pytest.approx(1, abs=1e-4)
        assert row["predicted"] == EMOTIONS[int(np.argmax(shares))]


def test_relabels_are_recorded(trained, faces_csv):
    moves = table(trained / "relabels.csv")
    assert moves  # a margin of 0 is soon exceeded
    assert len(moves) == sum(int(row["relabeled"]) for row in table(trained / "metrics.csv"))
    given = [EMOTIONS[int(row["emotion"])] for row in table(faces_csv)]
    labels = list(given)
    for move in moves:  # in order of epochs, each from where the one before led
        assert labels[int(move["row"])] == move["from"] != move["to"]
        labels[int(move["row"])] = move["to"]
    saved = torch.load(trained / "last.pth", weights_only=True)["training"]["labels"]
    training = [i for i, row in enumerate(table(faces_csv)) if row["Usage"] == "Training"]
    assert [EMOTIONS[i] for i in saved] == [labels[i] for i in training]


def test_best_is_the_best_on_public_test(trained):
    accuracies = [float(row["public_accuracy"]) for row in table(trained / "metrics.csv")]
    best = torch.load(trained / "best.pth", weights_only=True)
    assert best["epoch"] == 1 + int(np.argmax(accuracies))
    assert best["scores"]["accuracy"] == max(accuracies)
    assert best["training"] == {}


def test_evaluation_repeats_the_run_s_own(trained, faces_csv, tmp_path):
    run(test, "--model_path", trained / "best.pth", "--data", faces_csv, "--out", tmp_path / "e")
    assert (tmp_path / "e/metrics.json").read_text() == (trained / "metrics.json").read_text()
    assert (tmp_path / "e/predictions.csv").read_text() == (trained / "predictions.csv").read_text()
    argv = ("--tta", "--batch_size", 5, "--usages", "PrivateTest", "PrivateTest")
    weights = ("--model_path", trained / "best.pth")
    run(test, *weights, "--data", faces_csv, "--out", tmp_path / "tta", *argv)
    scores = json.loads((tmp_path / "tta/metrics.json").read_text())
    assert list(scores) == ["PrivateTest"]
    rows, plain = table(tmp_path / "tta/predictions.csv"), table(trained / "predictions.csv")
    assert [row["index"] for row in rows] == [row["index"] for row in plain[21:]]  # each once
    assert [row["happy"] for row in rows] != [row["happy"] for row in plain[21:]]


def test_pooling_at_landmarks_is_trained_and_kept(trained, faces_csv, tmp_path):
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
    # From weights without it the layer starts afresh; without landmarks there is nothing to pool.
    more = ("--model_path", trained / "best.pth", "--out", tmp_path / "more")
    run(train, *argv, *more)
    assert load_checkpoint(tmp_path / "more/best.pth").architecture.landmark_pool
    run(train, *argv, "--no_landmarks", "--out", tmp_path / "without")
    assert load_checkpoint(tmp_path / "without/best.pth").network().part_layer is None


def test_an_ensemble_is_the_mean_of_its_networks(trained, faces_csv, tmp_path):
    save_original(original("resnet18"), tmp_path / "other.pth")
    weights = (trained / "best.pth", tmp_path / "other.pth")
    argv = ("--data", faces_csv, "--usages", "PrivateTest", "--gpu_ids", "-1")
    run(test, "--model_path", weights[1], *argv, "--out", tmp_path / "one")
    run(test, "--model_path", *weights, *argv, "--out", tmp_path / "both")
    constant_tables = (trained, tmp_path / "one", tmp_path / "both")
    first, second, both = (table(folder / "predictions.csv") for folder in constant_tables)
    for name in (*EMOTIONS, "importance"):
        a, b, mean = ([float(row[name]) for row in t] for t in (first[21:], second, both))
        np.testing.assert_allclose(mean, (np.array(a) + b) / 2, atol=2e-6)
    wide = torch.load(trained / "best.pth", weights_only=True) | {"image_width": 64}
    torch.save(wide, tmp_path / "wide.pth")
    with pytest.raises(ProjectError, match="make no ensemble: their image_width differ, 64 and 48"):
        run(test, "--model_path", weights[0], tmp_path / "wide.pth", *argv)
    colour = FERNet(Architecture(width=0.1, channels=3))
    colour = Checkpoint(colour.architecture, colour.state_dict(), EMOTIONS, 48)
    save_checkpoint(tmp_path / "colour.pth", colour)
    with pytest.raises(ProjectError, match="their channels differ, 3 and 1"):
        run(test, "--model_path", weights[0], tmp_path / "colour.pth", *argv)
    for wrong, words in (
        (("--model_path",), "names no weights"),
        (("--model_path", weights[0], weights[0]), "the same weights twice"),
        (("--model_path", weights[0], "--usages"), "no faces"),
        (("--model_path", weights[0], "--batch_size", 0), "at least 1"),
    ):
        with pytest.raises(ProjectError, match=words):
            run(test, *argv, *wrong)


def test_accuracy_on_corrupted_faces(trained, faces_csv, tmp_path, capsys):
    argv = ("--data", faces_csv, "--gpu_ids", "-1", "--out", tmp_path / "c", "--corruptions")
    run(test, "--model_path", trained / "best.pth", *argv)
    rows = table(tmp_path / "c/corruptions.csv")
    assert [row["corruption"] for row in rows] == ["none", *CORRUPTIONS]
    scores = json.loads((tmp_path / "c/metrics.json").read_text())
    for split in ("PublicTest", "PrivateTest"):
        clean = 100 * scores[split]["accuracy"]
        assert float(rows[0][split]) == pytest.approx(clean)
        for row in rows:
            assert float(row[f"{split} lost"]) == pytest.approx(clean - float(row[split]))
    assert "JPEG quality 30" in capsys.readouterr().out
    faces = load_dataset(find_source(str(faces_csv))).subset("PrivateTest")
    network = load_checkpoint(trained / "best.pth").network()
    seen = test.look([network], corrupt(faces.images, "gamma 2.2"), 64, tta=False)
    right = (seen.probabilities.argmax(1) == faces.labels).mean()
    assert float(rows[5]["PrivateTest"]) == pytest.approx(100 * right)


def test_original_weights_are_evaluated(faces_csv, tmp_path):
    save_original(original("resnet18"), tmp_path / "resnet18.pth")
    argv = ("--data", faces_csv, "--out", tmp_path / "e", "--usages", "PrivateTest")
    run(test, "--model_path", tmp_path / "resnet18.pth", *argv)
    scores = json.loads((tmp_path / "e/metrics.json").read_text())
    assert scores["PrivateTest"]["n"] == 21


def test_numbers_for_classes_in_another_order(tmp_path, capsys):
    faces = synthetic_dataset(training=7, public=3, private=3)
    argv = ("--data", write_csv(faces, tmp_path / "faces.csv"), *TINY, "--no_landmarks")
    backwards = faces.with_class_order(EMOTIONS[::-1])
    own = write_csv(backwards, tmp_path / "own.csv")
    run(train, *argv, "--data", own, "--class_names", *EMOTIONS[::-1], "--out", tmp_path / "r")
    assert f"classes  {', '.join(EMOTIONS[::-1])}\n" in capsys.readouterr().out
    scores = {}
    given = {"own": (own,), "faces": (tmp_path / "faces.csv", "--class_names", *EMOTIONS)}
    few = faces.select((faces.split == "PublicTest") & (faces.labels < 2))
    given["few"] = (write_csv(few, tmp_path / "few.csv"), "--class_names", "angry", "disgust")
    for name, data in given.items():
        out = ("--usages", "PublicTest", "--out", tmp_path / name, "--no_landmarks")
        run(test, "--model_path", tmp_path / "r/best.pth", *out, "--data", *data)
        told = "numbers in the data count in this order" in capsys.readouterr().out
        assert told == (name == "own")
        scores[name] = json.loads((tmp_path / name / "metrics.json").read_text())["PublicTest"]
    assert scores["own"] == scores["faces"]
    recall = scores["own"]["recall"]
    assert scores["few"]["accuracy"] == pytest.approx((recall["angry"] + recall["disgust"]) / 2)
    argv = ("--data", tmp_path / "few.csv", "--model_path", tmp_path / "r/best.pth")
    with pytest.raises(ProjectError, match="a name of its own"):
        run(test, *argv, "--class_names", "a", "a")
    with pytest.raises(ProjectError, match="must agree"):
        run(test, *argv, "--class_names", "x", "y")
    with pytest.raises(ProjectError, match="--ferplus has classes of its own"):
        run(test, *argv, "--class_names", "angry", "--ferplus", "new.csv")


def test_training_goes_on_from_weights(trained, faces_csv, tmp_path, capsys):
    argv = ("--data", faces_csv, *TINY, "--total_epoch", 1)
    argv += ("--model_path", trained / "best.pth", "--out", tmp_path / "r")
    with pytest.raises(ProjectError, match="width is 0.125 there and 0.25 here"):
        run(train, *argv, "--width", 0.25)
    run(train, *argv)  # under the same name, as the mistake left nothing there
    assert "weights" in capsys.readouterr().out


def test_training_goes_on_from_networks_side_by_side(faces_csv, tmp_path, capsys):
    pair = [tmp_path / "a.pth", tmp_path / "b.pth"]
    for path in pair:
        narrow = FERNet(Architecture(width=0.25, landmark_num=0))
        network = Checkpoint(narrow.architecture, narrow.state_dict(), EMOTIONS, 48)
        save_checkpoint(path, network)
    argv = ("--data", faces_csv, *TINY, "--no_landmarks", "--total_epoch", 1)
    argv += ("--model_path", *pair, "--start_lr", 1e-9, "--out", tmp_path / "r")
    with pytest.raises(
        ProjectError, match=r"a\.pth side by side with .*b\.pth .* width is 0.5 there and 0.25 he"
    ):
        run(train, *argv, "--width", 0.25)
    run(train, *argv, "--width", 0.5)
    assert "b.pth (epoch 0), side by side with the others" in capsys.readouterr().out
    wide = load_checkpoint(tmp_path / "r/best.pth").network()
    for place, path in zip((slice(16), slice(16, 32)), pair):
        theirs = load_checkpoint(path).net["trunk.layer1.0.conv1.weight"]
        ours = wide.backbone.layer1[0].conv1.weight[place, place]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    run(train, "--resume", tmp_path / "r")  # whose options name both


RESUMED = ("--no_landmarks", "--total_epoch", 3, "--relabel_epoch", 2, "--margin_2", 0.01)


@pytest.fixture(scope="module")
def whole(faces_csv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(train, "--data", faces_csv, "--out", folder, *TINY, *RESUMED)
    return folder


@pytest.mark.parametrize("where", ["after last.pth", "before last.pth", "before any", "at the end"])
def test_a_stopped_run_goes_on_to_the_same_bits(whole, faces_csv, tmp_path, where):
    def stop(context):
        save, calls = saving.save_checkpoint, []

        def stopping(path, checkpoint):
            calls.append(path.name)
            second = path.name == "last.pth" and calls.count("last.pth") == 2
            if where == "before any" or (where == "before last.pth" and second):
                raise KeyboardInterrupt
            save(path, checkpoint)
            if where == "after last.pth" and second:
                raise KeyboardInterrupt
            if where == "at the end" and calls.count("last.pth") == 3:
                raise KeyboardInterrupt

        context.setattr(saving, "save_checkpoint", stopping)
        context.setattr(saving, "SHARE", math.inf)  # it pays after each epoch

    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(train, "--data", faces_csv, "--out", folder, *TINY, *RESUMED, patch=stop)
    run(train, "--resume", folder)
    assert_same_run(whole, folder)


def test_a_killed_run_goes_on_to_the_same_bits(whole, faces_csv, tmp_path):
    folder = tmp_path / "killed"
    argv = [*TINY, *RESUMED, "--data", faces_csv, "--out", folder]
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *map(str, argv)], stdout=subprocess.DEVNULL
    )
    while not (folder / "last.pth").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(train, "--resume", folder)
    assert_same_run(whole, folder)


def test_a_finished_run_resumed_says_the_same_again(whole, capsys):
    before = (whole / "metrics.csv").read_text()
    run(train, "--resume", whole)
    assert ": all epochs are done\n" in capsys.readouterr().out
    assert (whole / "metrics.csv").read_text() == before


def test_a_run_that_goes_on_with_other_code_says_so(whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "r")
    began = json.loads((folder / "config.json").read_text())
    run(
        train,
        "--resume",
        folder,
        patch=lambda context: context.setattr(train, "commit", lambda: "f00"),
    )
    assert (
        f"note     begun with commit {began['commit']}, goes on with f00\n"
        in capsys.readouterr().out
    )
    config = json.loads((folder / "config.json").read_text())
    assert config["commit"] == began["commit"]
    assert config["goes_on_with"] == {"torch": began["torch"], "commit": "f00"}


def test_a_run_is_not_resumed_on_other_faces(whole, tmp_path):
    config = (whole / "config.json").read_text()
    other = write_csv(
        synthetic_dataset(training=7, public=3, private=3, seed=1), tmp_path / "o.csv"
    )
    with pytest.raises(ProjectError, match="faces are not those"):
        run(train, "--resume", whole, "--data", other)
    with pytest.raises(ProjectError, match="--start_lr"):
        run(train, "--resume", whole, "--start_lr", 0.3)
    with pytest.raises(ProjectError, match="holds no run"):
        run(train, "--resume", tmp_path)
    with pytest.raises(ProjectError, match="stays in its folder"):
        run(train, "--resume", whole, "--out", tmp_path / "new")
    assert (whole / "config.json").read_text() == config  # which still names the right ones


def test_seeds(whole, faces_csv, tmp_path):
    for seed in (0, 1):
        argv = ("--seed", seed, "--out", tmp_path / str(seed))
        run(train, "--data", faces_csv, *TINY, *RESUMED, *argv)
    assert_same_run(whole, tmp_path / "0")
    assert (tmp_path / "1/metrics.csv").read_text() != (whole / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("switches", "absent"),
    [
        (("--no_importance",), {"loss_rank"}),
        (("--no_rank",), {"loss_rank"}),
        (("--no_relabel", "--trunk", "vgg11", "--optimizer", "adam", "--start_lr", 0.001), set()),
        (("--relabel_group", "all", "--relabel_logits", "weighted"), set()),
        (("--sizes", 24, 48, "--landmark_pool"), set()),
        (("--no_landmarks", "--image_width", 32), {"loss_landmarks", "public_landmark_error"}),
    ],
)
def test_every_module_can_be_switched_off(faces_csv, tmp_path, monkeypatch, switches, absent):
    if "--no_landmarks" in switches:
        monkeypatch.setitem(sys.modules, "dlib", None)  # it must not be needed
    argv = (*TINY, "--relabel_epoch", 1, "--margin_2", 0.01, *switches)
    run(train, "--data", faces_csv, "--out", tmp_path / "r", *argv)
    row = table(tmp_path / "r/metrics.csv")[0]
    known = {"loss", "loss_expression", "loss_rank", "loss_landmarks", "public_landmark_error"}
    assert known - row.keys() == absent
    moved = int(row["relabeled"])
    assert moved == 0 if "--no_relabel" in switches else moved > 0
    has_points = (tmp_path / "r/landmarks.png").exists()
    assert has_points == ("--no_landmarks" not in switches)


@pytest.mark.parametrize(("epoch", "told"), [(1, False), (3, True)])
def test_what_a_run_is_too_short_for_is_told(faces_csv, tmp_path, capsys, epoch, told):
    argv = ("--data", faces_csv, "--out", tmp_path / "r", *TINY, "--no_landmarks")
    argv += ("--total_epoch", 2, "--relabel_epoch", epoch, "--warmup_epoch", epoch - 1)
    run(train, *argv)
    lines = capsys.readouterr().out
    assert ("relabel  never" in lines) == ("rate     never falls" in lines) == told


def test_the_network_learns(faces_csv, tmp_path):
    # Without augmentation a small network must come to know 49 faces by heart.
    still = ("--flip", 0, "--rotation", 0, "--scale", 0, "--shift", 0, "--light", 0, "--erasing", 0)
    adam = ("--optimizer", "adam", "--start_lr", 0.002, "--warmup_epoch", 2)
    argv = (*TINY, "--width", 0.25, "--total_epoch", 30, "--dropout", 0, "--ema", 0.5, *adam)
    run(train, "--data", faces_csv, "--out", tmp_path / "r", *argv, *still)
    rows = table(tmp_path / "r/metrics.csv")
    assert float(rows[-1]["train_accuracy"]) > 0.9
    assert float(rows[-1]["loss_landmarks"]) < 0.7 * float(rows[0]["loss_landmarks"])


def test_divergence_is_named_and_the_last_checkpoint_stands(faces_csv, tmp_path):
    argv = (*TINY, "--no_landmarks", "--start_lr", 1e30, "--warmup_epoch", 0)
    with pytest.raises(
        ProjectError, match=r"diverged in epoch 1, batch [12]: .*loss = nan.*Lower --start_lr"
    ):
        run(train, "--data", faces_csv, "--out", tmp_path / "r", *argv)
    assert not (tmp_path / "r/last.pth").exists()


def test_unlabelled_faces_are_predicted_without_scores(trained, faces_csv, tmp_path):
    pixels = [row["pixels"] for row in table(faces_csv)][:5]
    (tmp_path / "test.csv").write_text("pixels\n" + "\n".join(pixels) + "\n")
    argv = ("--data", tmp_path / "test.csv", "--out", tmp_path / "e", "--no_landmarks")
    run(test, "--model_path", trained / "best.pth", *argv)
    assert json.loads((tmp_path / "e/metrics.json").read_text()) == (
        {"PrivateTest": {"n": 0, "unlabelled": 5}}
    )
    assert len(table(tmp_path / "e/predictions.csv")) == 5


@pytest.mark.parametrize(
    ("script", "argv", "words"),
    [
        ("test.py", ["--model_path", "none.pth"], ["none.pth", "bash train.sh"]),
        ("train.py", ["--data", "nowhere.csv"], ["nowhere.csv"]),
        ("train.py", ["--data", "sample", "--batch_size", "0"], ["--batch_size 0", "at least 1"]),
        ("train.py", ["--data", "sample", "--gpu_ids", "99"], ["--gpu_ids 99", "-1"]),
        ("train.py", ["--resume", "nowhere"], ["nowhere", "no run"]),
    ],
)
def test_mistakes_end_with_one_sentence(script, argv, words, tmp_path):
    result = subprocess.run(
        [sys.executable, ROOT / script, *argv],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words)
