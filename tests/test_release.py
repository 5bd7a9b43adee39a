"""tools.release.py: small weights that give what their card says, and a command that trains them."""

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from kills import write_csv

import test
import train
from data.synthetic.generate import synthetic_dataset
from models.checkpoint import load_checkpoint, save_checkpoint
from tools import release
from utils.cli import format_command, parse_train_options
from utils.errors import DataError, OptionError, RunError, WeightsError
from utils.options import Options


def run(script, *argv):
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", [script.__file__, *map(str, argv)])
        script.main()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    faces = synthetic_dataset(training=7, public=3, private=3)
    write_csv(faces, folder / "faces.csv")
    argv = "--gpu_ids=-1 --width 0.125 --batch_size 16 --total_epoch 1 --no_final_test --no_rank"
    run(train, "--data", folder / "faces.csv", *argv.split(), "--out", folder / "run")
    argv = ("--data", folder / "faces.csv", "--gpu_ids", "-1")
    argv += ("--note", "Seconds of one core.")
    run(release, folder / "run", *argv, "--out", folder / "resnet18.pth")
    return folder


def test_the_weights_give_what_the_card_says(trained, tmp_path):
    weights = trained / "resnet18.pth"
    card = (trained / "resnet18.md").read_text()
    assert load_checkpoint(weights).card == card
    assert "looked at for this table.\nSeconds of one core.\n" in card
    argv = ("--model_path", weights, "--data", trained / "faces.csv", "--gpu_ids", "-1")
    run(test, *argv, "--out", tmp_path / "plain", "--corruptions")
    run(test, *argv, "--out", tmp_path / "views", "--tta")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines()]
    told = {row[0]: row for row in rows if row}
    for folder, more in (("plain", ""), ("views", ", 10 views")):
        for split, s in json.loads((tmp_path / folder / "metrics.json").read_text()).items():
            row = told[f"{split}{more}"]
            assert row[1] == str(s["n"])
            shares = (s["accuracy"], s["accuracy_without_duplicates"], s["balanced_accuracy"])
            assert [row[2], row[4], row[5]] == [f"{100 * share:.2f}" for share in shares]
            assert row[6:] == [f"{s['ece']:.3f}", f"{s['landmark_error']:.2f}"]
            assert float(row[3].split(" to ")[0]) < 100 * s["accuracy"]
    assert told["happy"][1] == "3"
    assert sum(int(told[name][3]) for name in load_checkpoint(weights).class_names) == 21
    evaluate_corruptions = (tmp_path / "plain/corruptions.csv").read_text().splitlines()
    noise = next(line for line in evaluate_corruptions if line.startswith("noise")).split(",")
    assert told["noise 15"][1:] == [f"{float(value):.2f}" for value in noise[1:]]


def test_the_weights_are_half_as_large_and_nearly_the_same(trained):
    small, whole = (load_checkpoint(trained / name) for name in ("resnet18.pth", "run/best.pth"))
    assert (trained / "resnet18.pth").stat().st_size < 0.65 * (
        (trained / "run/best.pth").stat().st_size
    )
    pixels = torch.rand(4, 1, 48, 48) * 255
    with torch.inference_mode():
        for a, b in zip(small.network()(pixels), whole.network()(pixels)):
            torch.testing.assert_close(a, b, atol=5e-3, rtol=5e-3)
    assert small.training == {}
    assert str(trained) not in str(small.options)


def test_drawn_faces_do_not_judge_released_weights(trained, tmp_path, capsys):
    argv = ("--data", "sample", "--no_landmarks", "--gpu_ids", "-1", "--usages", "PrivateTest")
    for weights, told in (("resnet18.pth", True), ("run/best.pth", False)):
        run(test, "--model_path", trained / weights, *argv, "--out", tmp_path / weights)
        assert ("the model card has those that count" in capsys.readouterr().out) == told


def test_held_out_faces_do_not_judge_released_weights(trained, tmp_path, capsys):
    faces = synthetic_dataset(training=20, public=0, private=3)
    write_csv(faces, tmp_path / "faces.csv")
    for weights, told in (("resnet18.pth", True), ("run/best.pth", False)):
        argv = ("--model_path", trained / weights, "--data", tmp_path / "faces.csv")
        run(test, *argv, "--no_landmarks", "--gpu_ids", "-1", "--out", tmp_path / weights)
        assert ("which these weights have learnt if" in capsys.readouterr().out) == told


def test_the_card_s_command_gives_the_same_training(trained):
    card = (trained / "resnet18.md").read_text()
    argv = shlex.split(re.search(r"python train.py (.*)", card)[1])
    options = json.loads((trained / "run/config.json").read_text())["options"]
    again = parse_train_options(argv, "", "sample")
    for name in ("width", "batch_size", "total_epoch", "rank", "seed", "recipe", "sizes"):
        assert getattr(again, name) == (tuple(v) if isinstance(v := options[name], list) else v)


def test_a_command_line_is_read_back():
    options = parse_train_options(
        shlex.split("--recipe cpu --sizes 32 48 --no_landmarks --seed 3"), "", ""
    )
    words = format_command(options)
    assert words == "--recipe cpu --seed 3 --no_landmarks --sizes 32 48"
    assert parse_train_options(shlex.split(words), "", "full") == options
    assert format_command(parse_train_options([], "", "full")) == "--recipe full"


def test_mistakes(trained, tmp_path):
    data = ("--data", trained / "faces.csv", "--gpu_ids", "-1")
    with pytest.raises(RunError, match="holds no run"):
        run(release, tmp_path, *data, "--out", tmp_path / "w.pth")
    with pytest.raises(OptionError, match=r"name a \.pth file"):
        run(release, trained / "run", *data, "--out", tmp_path / "w")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/config.json").write_text((trained / "run/config.json").read_text())
    with pytest.raises(WeightsError, match="no weight file"):
        run(release, tmp_path / "begun", *data, "--out", tmp_path / "w.pth")
    run_folder = shutil.copytree(trained / "run", tmp_path / "run")
    few = synthetic_dataset(training=7, public=3, private=3)
    few = few.select((few.split != "PrivateTest") | (few.labels != 3))
    write_csv(few, tmp_path / "few.csv")
    argv = ("--data", tmp_path / "few.csv", "--gpu_ids", "-1", "--out", tmp_path / "w.pth")
    with pytest.raises(DataError, match="no PrivateTest faces of happy"):
        run(release, run_folder, *argv)
    write_csv(synthetic_dataset(training=20, public=0, private=3), tmp_path / "few.csv")
    with pytest.raises(DataError, match="held out as PublicTest.* its own PublicTest"):
        run(release, run_folder, *argv)
    other = synthetic_dataset(training=7, public=3, private=3)
    other.labels[[0, 1]] = other.labels[[1, 0]]
    write_csv(other, tmp_path / "few.csv")
    with pytest.raises(DataError, match="other faces than .*run learnt and chose its epoch by"):
        run(release, run_folder, *argv)
    with pytest.raises(OptionError, match="these are drawn faces"):
        run(release, run_folder, "--data", "sample", "--out", tmp_path / "w.pth")
    before = (trained / "resnet18.pth").read_bytes()
    with pytest.raises(OptionError, match="exists; remove it, or name another --out"):
        run(release, trained / "run", *data, "--out", trained / "resnet18.pth")
    assert (trained / "resnet18.pth").read_bytes() == before
    own = replace(load_checkpoint(run_folder / "best.pth"), class_names=tuple("abcdefg"))
    save_checkpoint(run_folder / "best.pth", own)
    with pytest.raises(WeightsError, match="the card tells of FER2013"):
        run(release, run_folder, *data, "--out", tmp_path / "w.pth")
    shutil.copy(trained / "run/best.pth", run_folder / "best.pth")
    with pytest.raises(OptionError, match="--batch_size 0"):
        run(release, run_folder, *data, "--out", tmp_path / "w.pth", "--batch_size", 0)
    config = json.loads((run_folder / "config.json").read_text())
    config["options"]["total_epoch"] = 2
    (run_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"epoch 1 of 2; let it end: bash train.sh --resume"):
        run(release, run_folder, *data, "--out", tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()


@pytest.mark.parametrize("teacher", [(), ("a.pth", "b.pth")])
@pytest.mark.parametrize("started", [(), ("other.pth",), ("a.pth", "b.pth")])
def test_a_card_tells_of_its_training(started, teacher):
    score = {"n": 3, "accuracy": 0.5, "accuracy_without_duplicates": None, "duplicates": 0}
    score |= {"balanced_accuracy": 0.5, "ece": 0.1, "landmark_error": None}
    score |= {"auroc_confidence": 0.75, "auroc_importance": None if started else 0.25}
    scores = {"PublicTest": score, "PrivateTest": score}
    by_class = [
        {"name": name, "n": 1, "recall": 0.5, "predicted": 1, "precision": None} for name in "ab"
    ]
    switches = {"landmarks": not started, "importance": not started, "ema": 0.0 if started else 0.9}
    card = release.write_card(
        {"plain": scores, "views": scores, "corruptions": [], "by_class": by_class},
        network="net",
        faces=synthetic_dataset(training=1, public=1, private=1),
        epoch=1,
        command="--recipe full",
        options=replace(Options(), model_path=started, teacher=teacher, **switches),
        channels=3 if started else 1,
        note="",
    )
    assert ("From scratch" in card) == (not started)
    assert ("From the weights of another run" in card) == (len(started) == 1)
    assert ("From the weights of 2 runs, side by side in one network" in card) == (
        len(started) == 2
    )
    assert ("no other network's weights" in card.replace("\n", " ")) == (not (started or teacher))
    assert ("and from the opinions of 2 trained networks, on the 7 Tr" in card) == bool(teacher)
    assert ("landmarks that dlib finds" in card) == ("68 landmarks" in card) == (not started)
    assert ("an importance, and 68 landmarks" in card) == (not started)
    assert ("averaged over steps" in card) == (not started)
    assert ("one colour face" in card) == bool(started)
    assert ("in\n  75.00 % of all pairs" in card) == (not started)
    start = " --model_path THOSE_WEIGHTS" if started else ""
    start += " --teacher THOSE_NETWORKS" if teacher else ""
    assert f"\n    python train.py --recipe full{start}\n" in card
