"""The command line, the recipes, and the run folder."""

import json
import platform
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from engine.eta import ETA, MEASURED, WARM_UP, format_duration
from engine.optim import build_optimizer, learning_rate
from utils.cli import parse, resume_options, validate_options
from utils.devices import pick_device
from utils.errors import OptionError, RunError
from utils.options import RECIPES, Options, with_recipe
from utils.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]


def test_every_option_has_help(capsys):
    with pytest.raises(SystemExit) as end:
        parse(Options, ["--help"], "about")
    assert end.value.code == 0
    text = capsys.readouterr().out
    for option in fields(Options):
        assert f"--{option.name}" in text


@pytest.mark.parametrize(
    "argv", [["--batch_size", "many"], ["--trunk", "vgg12"], ["--no_such"], ["--seed"]]
)
def test_a_wrong_command_line_ends_with_status_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        parse(Options, argv, "about")
    assert end.value.code == 2
    assert argv[0].strip("-") in capsys.readouterr().err


def test_switches_and_numbers():
    options = parse(Options, ["--no_landmarks", "--gpu_ids", "-1", "--beta", "0.5"], "about")
    assert (options.landmarks, options.gpu_ids, options.beta) == (False, "-1", 0.5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_sound_and_can_be_overridden(recipe):
    default = with_recipe(recipe)
    assert validate_options(default) == default
    mine = parse(Options, ["--total_epoch", "3"], "about", default)
    assert mine == replace(default, total_epoch=3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_width": 16},
        {"beta": 1.0},
        {"batch_size": 0},
        {"total_epoch": 0},
        {"start_lr": 0.0},
        {"margin_1": -0.1},
        {"start_lr": float("nan")},
        {"rotation": float("inf")},
        {"class_names": ("a", "b", " a")},
        {"class_names": ("a", "")},
        {"sizes": (32, 40)},
        {"sizes": (23, 48)},
        {"sizes": (24, 48), "trunk": "vgg11"},
        {"mixup": 1.5},
        {"mixup": 0.5, "total_epoch": 1},  # the last tenth of which does not mix
        {"label_noise": 0.1, "ferplus": "new.csv", "ferplus_target": "distribution"},
        {"cutmix": -0.1},
        {"sizes": (48,) * 201},
        {"cycles": 0},
        {"seed": 2**63},
        {"seed": -1},
        {"cycles": 101, "sizes": (32, 48)},
        {"cycles": 40},  # of as many epochs as the warm-up has
        {"cycles": 3},  # which does not divide 200
    ],
)
def test_options_out_of_range_are_named(wrong):
    with pytest.raises(OptionError, match=f"--{next(iter(wrong))}"):
        validate_options(replace(Options(), **wrong))


def test_sizes_share_the_epochs():
    options = validate_options(Options(sizes=(32, 40, 48), total_epoch=7))
    assert [options.width_in(epoch) for epoch in range(1, 8)] == [32, 32, 32, 40, 40, 48, 48]
    assert Options(image_width=64).width_in(3) == 64


def test_every_cycle_goes_through_the_sizes():
    options = validate_options(Options(sizes=(32, 48), total_epoch=10, cycles=2, warmup_epoch=1))
    widths = [options.width_in(epoch) for epoch in range(1, 11)]
    assert widths == [32, 32, 32, 48, 48] * 2


def test_without_importances_nothing_is_ranked():
    options = validate_options(Options(importance=False))
    assert not options.rank
    assert options.relabel_group == "all"


def test_a_resumed_run_keeps_its_options():
    saved = json.loads(json.dumps(asdict(replace(Options(), seed=7, class_names=("a", "b")))))
    options = resume_options(saved, ["--resume", "RUN", "--jobs", "1"], "about")
    assert (options.seed, options.class_names, options.jobs) == (7, ("a", "b"), 1)
    for old, now in (("", ()), ("w.pth", ("w.pth",))):  # before there could be several
        assert (
            resume_options(saved | {"model_path": old}, ["--resume", "RUN"], "about").model_path
            == now
        )
    with pytest.raises(OptionError, match="--seed, --start_lr"):
        resume_options(saved, ["--start_lr", "0.2", "--seed", "8"], "about")


def test_learning_rate_by_hand():
    options = Options(total_epoch=10, warmup_epoch=2, start_lr=0.4)
    assert learning_rate(options, 0.1) == pytest.approx(0.2)  # half-way up
    assert learning_rate(options, 0.2) == pytest.approx(0.4)
    assert learning_rate(options, 0.6) == pytest.approx(0.2)  # the middle of the cosine
    assert 0 < learning_rate(options, 0.9999) < 1e-6
    assert learning_rate(replace(options, warmup_epoch=20), 0.5) == pytest.approx(0.2)
    assert learning_rate(replace(options, warmup_epoch=0), 0.0) == 0.4


def test_learning_rate_starts_again_in_each_cycle():
    options = Options(total_epoch=10, warmup_epoch=1, start_lr=0.4, cycles=2)
    assert learning_rate(options, 0.05) == pytest.approx(0.2)  # half-way up
    assert learning_rate(options, 0.1) == pytest.approx(0.4)
    assert learning_rate(options, 0.3) == pytest.approx(0.2)  # the middle of the first cosine
    assert 0 < learning_rate(options, 0.4999) < 1e-6
    assert learning_rate(options, 0.5) == 0.4  # without a second warm-up
    assert learning_rate(options, 0.75) == pytest.approx(0.2)
    assert 0 < learning_rate(options, 0.9999) < 1e-6


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_biases_and_batch_norm_do_not_decay(name):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = build_optimizer(network, Options(optimizer=name))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert [decay[id(p)] for p in network.parameters()] == [Options().weight_decay, 0, 0, 0]


@pytest.mark.parametrize("gpu_ids", ["99", "one", "-2"])
def test_impossible_devices_are_refused(gpu_ids):
    with pytest.raises(OptionError, match=f"--gpu_ids {gpu_ids}"):
        pick_device(gpu_ids)
    assert pick_device("-1").type == "cpu"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own way with memory")
def test_large_blocks_are_used_again():
    program = (
        "import resource, torch; from utils.devices import pick_device; pick_device('-1')\n"
        "for i in range(6):\n"  # a block as large would not always fit, for its start is aligned
        "    before = resource.getrusage(0).ru_minflt\n"
        "    torch.zeros((1 << 26) - (i << 12)).add_(1)\n"  # 256 MB
        "    print(resource.getrusage(0).ru_minflt - before)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert min(map(int, ran.stdout.split())) < 1_000  # new, it has 65,536 pages


def test_a_run_folder_is_never_overwritten(tmp_path):
    run = RunFolder.create(str(tmp_path / "run"), "x")
    RunFolder.create(str(tmp_path / "run"), "x")  # still empty
    run.write_json("config.json", {"a": 1})
    with pytest.raises(RunError, match="--resume"):
        RunFolder.create(str(tmp_path / "run"), "x")
    assert RunFolder.reopen(str(tmp_path / "run")).read_json("config.json") == {"a": 1}
    with pytest.raises(RunError, match="holds no run"):
        RunFolder.reopen(str(tmp_path))
    (tmp_path / "run/config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json"):
        run.read_json("config.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        RunFolder.create(str(tmp_path / "file"), "x")


def test_tables_keep_numbers_exactly(tmp_path):
    run = RunFolder.create(str(tmp_path), "x")
    table = pd.DataFrame([{"a": 0.1 + 0.2, "b": None, "c": float("nan"), "d": 3}])
    run.write_csv("t.csv", table)
    assert (tmp_path / "t.csv").read_text() == "a,b,c,d\n0.30000000000000004,,,3\n"


@pytest.mark.parametrize(
    ("change", "epochs", "named"),
    [
        ({}, 200, True),
        ({}, 10, False),
        ({"width": 0.5}, 200, False),
        ({"trunk": "vgg11"}, 200, False),
    ],
)
def test_a_shorter_recipe_is_named_for_what_it_was_measured_against(change, epochs, named, capsys):
    forecast = ETA(torch.device("cpu"), Options(recipe="full", **change), 1000, epochs)
    for _ in range(WARM_UP + MEASURED):
        forecast.batch()
    told = capsys.readouterr().out
    assert f"for {epochs} epochs at" in told
    assert ("--recipe cpu takes about" in told) == named


def test_durations():
    assert [format_duration(s) for s in (3, 89, 600, 12_600, 500_000)] == (
        ["3 s", "89 s", "10 min", "3.5 h", "5.8 days"]
    )
