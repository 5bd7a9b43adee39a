"""tools.release: rounded weights with the metrics of their card, and a command to train them."""

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from kills import write_csv
from votes import HEADER, write_votes

import test
import train
from data.ferplus import CLASSES, COLUMNS
from data.synthetic.generate import synthetic_dataset
from models.checkpoint import load_checkpoint, save_checkpoint
from tools import release
from utils.cli import (
    changed_options,
    format_command,
    options_from_json,
    parse_train_options,
    resolve_options,
)
from utils.errors import DataError, OptionError, RunError, WeightsError
from utils.options import Options


def run(script, *argv):
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", [script.__file__, *map(str, argv)])
        script.main()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    dataset = synthetic_dataset(training=7, public=3, private=3)
    write_csv(dataset, folder / "images.csv")
    argv = "--gpu_ids=-1 --width 0.125 --batch_size 16 --total_epoch 1 --no_final_test"
    argv += " --per_class 6"
    run(
        train,
        "--data",
        folder / "images.csv",
        *argv.split(),
        "--rank_weight",
        0,
        "--out",
        folder / "run",
    )
    argv = ("--data", folder / "images.csv", "--gpu_ids", "-1")
    argv += ("--note", "Trained in seconds.")
    run(release, folder / "run", *argv, "--out", folder / "resnet18.pth")
    return folder


def test_the_weights_have_the_metrics_of_the_card(trained, tmp_path):
    weights = trained / "resnet18.pth"
    card = (trained / "resnet18.md").read_text()
    assert load_checkpoint(weights).card == card
    assert "evaluated for this card.\nTrained in seconds.\n" in card
    argv = ("--model_path", weights, "--data", trained / "images.csv", "--gpu_ids", "-1")
    run(test, *argv, "--out", tmp_path / "clean", "--corruptions")
    run(test, *argv, "--out", tmp_path / "tta", "--tta")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines()]
    table = {row[0]: row for row in rows if row}
    for folder, suffix in (("clean", ""), ("tta", ", TTA")):
        for split, s in json.loads((tmp_path / folder / "metrics.json").read_text()).items():
            row = table[f"{split}{suffix}"]
            assert row[1] == str(s["n"])
            shares = (s["accuracy"], s["accuracy_without_duplicates"], s["balanced_accuracy"])
            assert [row[2], row[4], row[5]] == [f"{100 * share:.2f}" for share in shares]
            assert row[6:] == [f"{s['ece']:.3f}", f"{s['landmark_error']:.2f}"]
            assert float(row[3].split(" to ")[0]) < 100 * s["accuracy"]
    assert table["happy"][1] == "3"
    assert sum(int(table[name][3]) for name in load_checkpoint(weights).class_names) == 21
    corruptions = (tmp_path / "clean/corruptions.csv").read_text().splitlines()
    assert corruptions[0] == "corruption,PublicTest,PublicTest drop,PrivateTest,PrivateTest drop"
    assert table["clean"][2] == "0.00"
    noise = next(line for line in corruptions if line.startswith("noise")).split(",")
    assert table["noise of 15 gray levels"][1:] == [f"{float(value):.2f}" for value in noise[1:]]


def test_rounded_weights_are_half_as_large_with_similar_outputs(trained):
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


def test_a_network_for_the_labels_of_ferplus(trained, tmp_path):
    dataset = synthetic_dataset(training=7, public=3, private=3)
    labels = np.where(np.arange(len(dataset)) % 9 == 0, CLASSES.index("contempt"), dataset.labels)
    columns = HEADER.split(",")[2:]
    votes = 10 * np.eye(10, dtype=int)[[columns.index(COLUMNS[label]) for label in labels]]
    write_votes(tmp_path / "votes.csv", dataset, votes)
    data = ("--data", trained / "images.csv", "--gpu_ids", "-1")
    argv = "--width 0.125 --batch_size 16 --total_epoch 1 --no_final_test --no_landmarks"
    argv = (*argv.split(), "--rank_weight", 0, "--ferplus", tmp_path / "votes.csv")
    run(train, *data, *argv, "--out", tmp_path / "run")
    out = ("--out", tmp_path / "w.pth")
    with pytest.raises(OptionError, match="trained on FER\\+'s labels; give --ferplus"):
        run(release, tmp_path / "run", *data, *out)
    run(release, tmp_path / "run", *data, "--ferplus", tmp_path / "votes.csv", *out)
    card = (tmp_path / "w.md").read_text()
    assert "--ferplus data/fer2013new.csv" in card
    assert "on the 49 Training images of FER2013 with a label of FER+" in " ".join(card.split())
    weights = ("--model_path", tmp_path / "w.pth", "--splits", "PrivateTest", "--no_landmarks")
    run(test, *weights, *data, "--ferplus", tmp_path / "votes.csv", "--out", tmp_path / "test")
    scores = json.loads((tmp_path / "test/metrics.json").read_text())["PrivateTest"]
    counts = re.findall(r"^\| (?:\w+) \| (\d+) \| [\d.]+ \| (\d+) \|", card, re.M)
    assert len(counts) == len(CLASSES)
    assert [sum(int(row[i]) for row in counts) for i in (0, 1)] == [scores["n"]] * 2
    assert f"| PrivateTest | {scores['n']} | {100 * scores['accuracy']:.2f} |" in card
    predictions = pd.read_csv(tmp_path / "test/predictions.csv")
    shared = predictions[predictions.label != "contempt"]
    agreement = 100 * (shared.label == shared.predicted).mean()
    assert f"| {len(shared)} | {agreement:.2f} |" in card


def test_the_card_has_the_human_agreement(trained, tmp_path):
    dataset = synthetic_dataset(training=7, public=3, private=3)
    columns = HEADER.split(",")[2:]
    votes = 10 * np.eye(10, dtype=int)[[columns.index(COLUMNS[c]) for c in dataset.labels]]
    path = write_votes(tmp_path / "votes.csv", dataset, votes)
    argv = ("--data", trained / "images.csv", "--gpu_ids", "-1", "--ferplus", path)
    run(release, trained / "run", *argv, "--out", tmp_path / "w.pth")
    card = (tmp_path / "w.md").read_text()
    accuracy = re.search(r"\| PrivateTest \| 21 \| ([\d.]+) \|", card)[1]
    assert f"| 21 | {accuracy} |" in card  # the annotators agree with the labels


@pytest.mark.usefixtures("small_sample")
def test_scores_on_synthetic_images_have_a_note_for_released_weights(trained, tmp_path, capsys):
    argv = ("--data", "sample", "--no_landmarks", "--gpu_ids", "-1", "--splits", "PrivateTest")
    for weights, has_note in (("resnet18.pth", True), ("run/best.pth", False)):
        run(test, "--model_path", trained / weights, *argv, "--out", tmp_path / weights)
        assert ("scores on synthetic images only" in capsys.readouterr().out) == has_note


def test_scores_on_held_out_images_have_a_note_for_released_weights(trained, tmp_path, capsys):
    dataset = synthetic_dataset(training=20, public=0, private=3)
    write_csv(dataset, tmp_path / "images.csv")
    for weights, has_note in (("resnet18.pth", True), ("run/best.pth", False)):
        argv = ("--model_path", trained / weights, "--data", tmp_path / "images.csv")
        run(test, *argv, "--no_landmarks", "--gpu_ids", "-1", "--out", tmp_path / weights)
        assert ("PublicTest was held out from Training" in capsys.readouterr().out) == has_note


def test_the_command_of_the_card_gives_the_same_training(trained):
    card = (trained / "resnet18.md").read_text()
    argv = shlex.split(re.search(r"python train.py (.*)", card)[1])
    saved = options_from_json(json.loads((trained / "run/config.json").read_text())["options"])
    again = resolve_options(parse_train_options(argv, ""), is_synthetic=False)
    assert changed_options(saved, again) == []
    assert changed_options(saved, replace(again, ferplus="votes.csv")) == ["--ferplus"]


def test_a_formatted_command_parses_to_the_same_options():
    def parsed(text):
        return resolve_options(parse_train_options(shlex.split(text), ""), is_synthetic=False)

    options = parsed("--recipe cpu --image_width 32 48 --no_landmarks --seed 3")
    command = format_command(options)
    assert command == "--recipe cpu --seed 3 --image_width 32 48 --no_landmarks"
    assert parsed(command) == options
    assert format_command(parsed("")) == "--recipe full"


def test_errors(trained, tmp_path):
    data = ("--data", trained / "images.csv", "--gpu_ids", "-1")
    with pytest.raises(RunError, match="holds no run"):
        run(release, tmp_path, *data, "--out", tmp_path / "w.pth")
    with pytest.raises(OptionError, match=r"give a \.pth file"):
        run(release, trained / "run", *data, "--out", tmp_path / "w")
    (tmp_path / "started").mkdir()
    (tmp_path / "started/config.json").write_text((trained / "run/config.json").read_text())
    with pytest.raises(WeightsError, match="no such weight file"):
        run(release, tmp_path / "started", *data, "--out", tmp_path / "w.pth")
    run_folder = shutil.copytree(trained / "run", tmp_path / "run")
    few = synthetic_dataset(training=7, public=3, private=3)
    few = few.select((few.split != "PrivateTest") | (few.labels != 3))
    write_csv(few, tmp_path / "few.csv")
    argv = ("--data", tmp_path / "few.csv", "--gpu_ids", "-1", "--out", tmp_path / "w.pth")
    with pytest.raises(DataError, match="no PrivateTest images of happy"):
        run(release, run_folder, *argv)
    write_csv(synthetic_dataset(training=20, public=0, private=3), tmp_path / "few.csv")
    with pytest.raises(DataError, match="held out.* FER2013's own PublicTest"):
        run(release, run_folder, *argv)
    other = synthetic_dataset(training=7, public=3, private=3)
    other.labels[[0, 1]] = other.labels[[1, 0]]
    write_csv(other, tmp_path / "few.csv")
    with pytest.raises(DataError, match="other images or labels than those that .*run was trained"):
        run(release, run_folder, *argv)
    with pytest.raises(OptionError, match="not for the synthetic data set; give --data"):
        run(release, run_folder, "--data", "sample", "--out", tmp_path / "w.pth")
    before = (trained / "resnet18.pth").read_bytes()
    with pytest.raises(OptionError, match="exists; remove it, or choose another --out"):
        run(release, trained / "run", *data, "--out", trained / "resnet18.pth")
    assert (trained / "resnet18.pth").read_bytes() == before
    own = replace(load_checkpoint(run_folder / "best.pth"), class_names=tuple("abcdefg"))
    save_checkpoint(run_folder / "best.pth", own)
    with pytest.raises(WeightsError, match="the model card is for angry, disgust"):
        run(release, run_folder, *data, "--out", tmp_path / "w.pth")
    shutil.copy(trained / "run/best.pth", run_folder / "best.pth")
    with pytest.raises(OptionError, match="--batch_size 0"):
        run(release, run_folder, *data, "--out", tmp_path / "w.pth", "--batch_size", 0)
    config = json.loads((run_folder / "config.json").read_text())
    config["options"]["total_epoch"] = 2
    (run_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"epoch 1 of 2; finish it with: bash train.sh --resume"):
        run(release, run_folder, *data, "--out", tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()


@pytest.mark.parametrize("teacher", [(), ("a.pth", "b.pth")])
@pytest.mark.parametrize("initial", [(), ("other.pth",), ("a.pth", "b.pth")])
def test_a_card_describes_the_training(initial, teacher):
    score = {"n": 3, "accuracy": 0.5, "accuracy_without_duplicates": None, "duplicates": 0}
    score |= {"balanced_accuracy": 0.5, "ece": 0.1, "landmark_error": None}
    score |= {"auroc_confidence": 0.75, "auroc_importance": None if initial else 0.25}
    scores = {"PublicTest": score, "PrivateTest": score}
    by_class = [
        {"name": name, "n": 1, "recall": 0.5, "predicted": 1, "precision": None} for name in "ab"
    ]
    switches = {"landmarks": not initial, "importance": not initial, "ema": 0.0 if initial else 0.9}
    card = release.write_card(
        {"clean": scores, "tta": scores, "num_copies": 5 if initial else 10, "corruptions": []}
        | {"by_class": by_class},
        name="w.pth",
        network="net",
        dataset=synthetic_dataset(training=1, public=1, private=1),
        epoch=1,
        command="--recipe full",
        options=replace(Options(), model_path=initial, teacher=teacher, **switches),
        channels=3 if initial else 1,
        note="",
    )
    assert ("From scratch" in card) == (not initial)
    assert ("Initialized with the weights of another run" in card) == (len(initial) == 1)
    merged = "Initialized with the weights of 2 runs, merged block-diagonally"
    assert (merged in card) == (len(initial) == 2)
    assert ("no pretrained weights" in card.replace("\n", " ")) == (not (initial or teacher))
    distilled = "with distillation from 2 trained networks, on the 7 Training images"
    assert (distilled in card) == bool(teacher)
    assert ("(trained on 300-W) detects" in card) == ("68 landmarks" in card) == (not initial)
    importance = "68 landmarks, and SCN's importance, by which the logits are multiplied"
    assert (importance in " ".join(card.split())) == (not initial)
    assert ("exponential moving average of epoch 1" in card) == (not initial)
    number = "5" if initial else "10"
    assert f"mean prediction of {number} copies" in " ".join(card.split())
    assert ("each with and without a horizontal flip" in card) == (not initial)
    assert ("a color image" in card) == bool(initial)
    assert ("75.00 % by the predicted probability, 25.00 %" in card) == (not initial)
    command = " --model_path INITIAL_WEIGHTS" if initial else ""
    command += " --teacher TEACHER_WEIGHTS" if teacher else ""
    assert f"\n    python train.py --recipe full{command}\n" in card
