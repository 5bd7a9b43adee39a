"""The command line, recipes, learning rate, ETA, devices, and the run folder."""

import json
import platform
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import torch

from engine.eta import ETA, MEASURED, WARM_UP, format_duration
from engine.optim import build_optimizer, learning_rate
from predict import PredictOptions
from utils.cli import (
    RENAMED,
    CommandLine,
    format_command,
    options_from_json,
    parse,
    parse_train_options,
    resolve_options,
    resume_options,
)
from utils.devices import pick_device, set_threads
from utils.errors import OptionError, RunError
from utils.options import RECIPES, Options, with_recipe
from utils.run_folder import RunFolder
from utils.validation import validate_options

ROOT = Path(__file__).resolve().parents[1]


def resolve(*argv, is_synthetic=False):
    return resolve_options(parse_train_options(argv, "about"), is_synthetic)


def test_a_recipe_has_no_mirror_equivariance_for_other_networks():
    argv = ("--recipe", "ferplus", "--ferplus", "v.csv")
    for network in (
        ("--backbone", "vgg13"),
        ("--stem", "imagenet"),
        ("--init", "x.pth", "--width", "1"),
    ):
        options = resolve(*argv, *network)
        assert (options.mirror, options.downsample) == (False, "stride")
    assert resolve(*argv).mirror
    with pytest.raises(OptionError, match="--mirror is for resnet18, not vgg13"):
        resolve(*argv, "--backbone", "vgg13", "--mirror")


def test_every_option_has_help(capsys):
    with pytest.raises(SystemExit) as end:
        parse(Options, ["--help"], "about")
    assert end.value.code == 0
    text = capsys.readouterr().out
    for option in fields(Options):
        assert f"--{option.name}" in text
    words = " ".join(text.replace("\u2502", "").split())
    assert "--data PATH A data set (CSV" in words
    assert "--teacher [PATH ...] Weights" in words
    assert "--out PATH The run folder. Default: a new folder under model_save/. --" in words
    assert "STR" not in words
    assert "two hours on two cores), ferplus" in words  # a line of the source ends here
    assert "Random-erasing probability. (default: 0.5)" in words


@pytest.mark.parametrize(
    ("module", "program", "usage"),
    [
        (None, ROOT / "predict.py", "predict.py"),
        (SimpleNamespace(name="tools.x"), ROOT / "tools/x.py", "python -m tools.x"),
    ],
)
def test_help_names_scripts_and_modules_without_their_folder(
    monkeypatch, capsys, module, program, usage
):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", module)  # None for a script
    monkeypatch.setattr(sys, "argv", [str(program)])
    with pytest.raises(SystemExit):
        parse(PredictOptions, ["--help"], "about")
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {usage} [-h]")
    assert "(default: model_save/resnet18_ferplus.pth)" in " ".join(
        text.replace("\u2502", "").split()
    )
    assert str(ROOT) not in text


@pytest.mark.parametrize(
    "argv", [["--batch_size", "many"], ["--stem", "large"], ["--no_such"], ["--seed"]]
)
def test_invalid_command_line_exits_with_status_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        parse(Options, argv, "about")
    assert end.value.code == 2
    assert argv[0].strip("-") in capsys.readouterr().err


def test_switches_and_numbers():
    options = parse(Options, ["--no_landmarks", "--gpu_ids", "-1", "--beta", "0.5"], "about")
    assert (options.landmarks, options.gpu_ids, options.beta) == (False, "-1", 0.5)


@pytest.mark.parametrize("name", RENAMED)
def test_old_option_names_its_replacement(name):
    with pytest.raises(OptionError, match=f"{name} does not exist; use --"):
        parse_train_options([name.replace("_", "-").replace("--", "--", 1), "1"], "about")


def test_options_of_a_script_are_not_taken_for_old_names():
    @parse_target
    class Script:
        detail: int = 1

    assert parse(Script, ["--detail", "3"], "about").detail == 3


def parse_target(kind):
    from dataclasses import dataclass  # noqa: PLC0415

    return dataclass(frozen=True)(kind)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_valid_and_can_be_overridden(recipe):
    argv = ("--recipe", recipe)
    default = with_recipe(recipe)
    if recipe == "finetune":
        argv, default = (*argv, "--model_path", "w.pth"), replace(default, model_path=("w.pth",))
    if recipe == "ferplus":
        argv, default = (*argv, "--ferplus", "v.csv"), replace(default, ferplus="v.csv")
    assert validate_options(default) == default
    assert resolve(*argv) == default
    # An option with the full recipe's value is an override, too.
    assert resolve(*argv, "--width=1", "--total-epoch", "200") == replace(
        default, width=1.0, total_epoch=200
    )


def test_auto_recipe_depends_on_the_data_set():
    assert resolve().recipe == "full"
    assert resolve(is_synthetic=True) == with_recipe("sample")
    assert resolve("--recipe", "cpu", is_synthetic=True) == with_recipe("cpu")


def test_formatted_command_reproduces_the_options():
    argv = ["--recipe", "cpu", "--no_importance", "--image_width", "32", "48", "--seed", "3"]
    options = resolve(*argv)
    assert resolve(*format_command(options).split()) == options


@pytest.mark.parametrize(
    "invalid",
    [
        {"image_width": (16,)},
        {"image_width": ()},
        {"image_width": (24,)},
        {"image_width": (23, 48)},
        {"image_width": (24, 48), "backbone": "vgg11"},
        {"image_width": (48,) * 201},
        {"beta": 1.0},
        {"batch_size": 0},
        {"total_epoch": 0},
        {"start_lr": 0.0},
        {"margin_1": -0.1},
        {"start_lr": float("nan")},
        {"start_lr": float("inf")},
        {"affine": (float("inf"), 0.0, 0.0)},
        {"affine": (10.0, 0.1, 1.0)},
        {"affine": (10.0, 0.1)},
        {"class_names": ("a", "b", " a")},
        {"class_names": ("a", "")},
        {"label_noise": 0.1, "ferplus": "new.csv", "ferplus_target": "distribution"},
        {"seed": 2**63},
        {"seed": -1},
        {"threads": -1},
    ],
)
def test_invalid_option_is_named(invalid):
    with pytest.raises(OptionError, match=f"--{next(iter(invalid))}"):
        validate_options(replace(Options(), **invalid))


def test_negative_threads_are_refused_before_the_options_are_validated():
    with pytest.raises(OptionError, match="--threads -1 must be at least 0"):
        set_threads(-1)


def test_progressive_resizing_shares_the_epochs():
    options = validate_options(Options(image_width=(32, 40, 48), total_epoch=7))
    assert [options.image_width_at(epoch) for epoch in range(1, 8)] == [32, 32, 32, 40, 40, 48, 48]
    assert options.eval_image_width == 48
    assert Options(image_width=(64,)).image_width_at(3) == 64


def test_without_importance_nothing_is_ranked():
    options = validate_options(Options(importance=False))
    assert options.rank_weight == 0


@pytest.mark.parametrize(
    ("argv", "margin"),
    [("", 0.5), ("--relabel scn", 0.2), ("--relabel scn --margin_2 0.4", 0.4)],
)
def test_margin_of_each_relabeling_rule(argv, margin):
    options = resolve_options(parse_train_options(argv.split(), ""), is_synthetic=False)
    assert options.margin_2 == margin
    again = parse_train_options(format_command(options).split(), "")
    assert resolve_options(again, is_synthetic=False) == options


def test_resumed_run_keeps_its_options():
    saved = json.loads(json.dumps(asdict(replace(Options(), seed=7, class_names=("a", "b")))))

    def resume(*argv):
        return resume_options(saved, parse_train_options(["--resume", "RUN", *argv], "about"))

    options = resume("--threads", "1")
    assert (options.seed, options.class_names, options.threads) == (7, ("a", "b"), 1)
    assert options.resume == ""
    with pytest.raises(OptionError, match="--seed, --start_lr"):
        resume("--start_lr", "0.2", "--seed", "8")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (None, "has no options"),
        ({"trunk": "resnet18"}, "unknown options \\(trunk\\)"),
        ({"seed": "many"}, "damaged: --seed many"),
        ({"class_names": 3}, "damaged: --class_names 3"),
    ],
)
def test_damaged_or_old_config_is_refused(saved, message):
    with pytest.raises(OptionError, match=message):
        options_from_json(saved)


def test_given_options_are_distinguished_from_defaults():
    command = parse_train_options(["--relabel", "ema", "--beta=0.7"], "about")
    assert command == CommandLine(replace(Options(), relabel="ema"), frozenset({"relabel", "beta"}))


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (("--recipe", "sample", "--out", "ema"), "ema", 0.99),
        (("--recipe", "cpu", "--class_names", "width", "height"), "width", 0.25),
    ],
)
def test_a_value_is_not_taken_for_an_option(argv, name, value):
    assert getattr(resolve(*argv), name) == value


def test_learning_rate_by_hand():
    options = Options(total_epoch=10, warmup_epoch=2, start_lr=0.4)
    assert learning_rate(options, 0.1) == pytest.approx(0.2)  # half of the warm-up
    assert learning_rate(options, 0.2) == pytest.approx(0.4)
    assert learning_rate(options, 0.6) == pytest.approx(0.2)  # the middle of the cosine
    assert 0 < learning_rate(options, 0.9999) < 1e-6
    assert learning_rate(replace(options, warmup_epoch=20), 0.5) == pytest.approx(0.2)
    assert learning_rate(replace(options, warmup_epoch=0), 0.0) == 0.4


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_biases_and_batch_norm_have_no_weight_decay(name):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = build_optimizer(network, Options(optimizer=name))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert [decay[id(p)] for p in network.parameters()] == [Options().weight_decay, 0, 0, 0]


@pytest.mark.parametrize("gpu_ids", ["99", "one", "-2"])
def test_missing_device_is_refused(gpu_ids):
    with pytest.raises(OptionError, match=f"--gpu_ids {gpu_ids}"):
        pick_device(gpu_ids)
    assert pick_device("-1").type == "cpu"


def test_threads_follow_the_idle_cores(monkeypatch, capsys):
    used = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: used[-1] if used else 8)
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 8)
    for busy, expected in ((0.0, 8), (50.0, 4), (99.0, 1)):
        used.clear()
        monkeypatch.setattr(psutil, "cpu_percent", lambda seconds, busy=busy: busy)
        assert set_threads(0) == expected
        assert ("other processes" in capsys.readouterr().err) == (expected < 8)
    assert set_threads(3) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    used.clear()
    assert set_threads(0) == 8
    assert used == []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torchrun does
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    assert set_threads(0) == 4
    assert set_threads(1) == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept():
    program = (
        "import resource, torch; from utils.devices import pick_device; pick_device('-1')\n"
        "for i in range(6):\n"  # equal sizes would not always fit, because blocks are aligned
        "    before = resource.getrusage(0).ru_minflt\n"
        "    torch.zeros((1 << 26) - (i << 12)).add_(1)\n"  # 256 MB
        "    print(resource.getrusage(0).ru_minflt - before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert min(map(int, result.stdout.split())) < 1_000  # a new block has 65,536 pages


def test_run_folder_is_never_overwritten(tmp_path):
    run = RunFolder.create(str(tmp_path / "run"), "x")
    RunFolder.create(str(tmp_path / "run"), "x")  # still empty
    run.write_json("config.json", {"a": 1})
    with pytest.raises(RunError, match="--resume"):
        RunFolder.create(str(tmp_path / "run"), "x")
    assert RunFolder.reopen(str(tmp_path / "run")).read_json("config.json") == {"a": 1}
    with pytest.raises(RunError, match=r"config\.json"):
        RunFolder.reopen(str(tmp_path))
    (tmp_path / "run/config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json"):
        run.read_json("config.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        RunFolder.create(str(tmp_path / "file"), "x")


def test_tables_keep_numbers_exactly(tmp_path):
    run = RunFolder.create(str(tmp_path), "x")
    table = pd.DataFrame([{"a": 0.1 + 0.2, "b": None, "c": float("nan"), "d": 3}])
    run.write_csv("t.csv", table)
    assert (tmp_path / "t.csv").read_text() == "a,b,c,d\n0.30000000000000004,,,3\n"


@pytest.mark.parametrize(
    ("change", "epochs", "is_named"),
    [
        ({}, 200, True),
        ({}, 10, False),
        ({"width": 0.5}, 200, False),
        ({"backbone": "vgg11"}, 200, False),
    ],
)
def test_eta_names_the_shorter_recipe_of_the_full_network(change, epochs, is_named, capsys):
    eta = ETA(torch.device("cpu"), Options(recipe="full", **change), 1000, epochs)
    for _ in range(WARM_UP + MEASURED):
        eta.update()
    output = capsys.readouterr().out
    assert f"for {epochs} epochs, " in output
    assert ("--recipe cpu takes about" in output) == is_named


@pytest.mark.parametrize(("frozen", "hours"), [(0, 3), (2, 5)])
def test_eta_weights_the_epochs_with_a_frozen_backbone(monkeypatch, capsys, frozen, hours):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    options = Options(total_epoch=3, freeze_epochs=frozen, batch_size=100, image_width=(48,))
    eta = ETA(torch.device("cpu"), options, 3000, 3)  # 30 batches of 2 minutes: 1 hour per epoch
    for _ in range(WARM_UP + MEASURED):
        clock[0] += 120
        eta.update()
    assert f"about {hours}.0 h for 3 epochs" in capsys.readouterr().out


def test_eta_warns_once_if_other_processes_use_the_cpu(monkeypatch, capsys):
    clock = {"wall": 0.0, "cpu": 0.0}
    monkeypatch.setattr("time.perf_counter", lambda: clock["wall"])
    monkeypatch.setattr("time.process_time", lambda: clock["cpu"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for share, expected in ((1.9, 0), (0.5, 1)):  # cores' time per second
        eta = ETA(torch.device("cpu"), Options(), 1000, 1)
        for _ in range(300):
            clock["wall"] += 1
            clock["cpu"] += share
            eta.update()
        output = capsys.readouterr().out
        assert output.count("warning: with --threads 2 training gets the time of 0.5") == expected


def test_durations():
    assert [format_duration(s) for s in (3, 89, 600, 12_600, 500_000)] == (
        ["3 s", "89 s", "10 min", "3.5 h", "5.8 days"]
    )
