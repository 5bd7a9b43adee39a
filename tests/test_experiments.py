"""tools.experiments on tiny plans, and its statistics compared with values computed by hand."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pandas as pd
import pytest

import test
import train
from data.synthetic.generate import synthetic_dataset
from engine.build import load_initial_weights
from tools import comparison, experiments, scheduler
from tools.plan import Plan, Run, read_plan
from utils.cli import parse_train_options, resolve_options
from utils.errors import DataError, OptionError, RunError, run_main
from utils.metrics import relabel_scores
from utils.run_folder import ROOT
from utils.statistics import bootstrap, compare, mcnemar

TINY = "--gpu_ids -1 --width 0.1 --image_width 32 --batch_size 16 --total_epoch 2"


def write_plan(path, **content):
    lines = [
        f"{name} = {json.dumps(value)}" for name, value in content.items() if name != "variants"
    ]
    lines += ["[variants]", *(f"{k} = {json.dumps(v)}" for k, v in content["variants"].items())]
    path.write_text("\n".join(lines))
    return path


def run(*argv):
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", ["tools.experiments", *map(str, argv)])
        experiments.main()


class Ended:
    """A process that has ended."""

    def __init__(self, status):
        self.returncode = status

    def wait(self, timeout=None):
        return self.returncode

    def terminate(self):
        pass


@pytest.fixture
def in_process(monkeypatch):
    """Let train.py and test.py run in this process; importing PyTorch takes longer than they do."""

    def execute(command, stdout, **_options):
        script = {"train.py": train, "test.py": test}[Path(command[1]).name]
        file = io.StringIO() if stdout == subprocess.DEVNULL else stdout
        status = 0
        with monkeypatch.context() as context, redirect_stdout(file), redirect_stderr(file):
            context.setattr(sys, "argv", command[1:])
            try:
                run_main(script.main)
            except SystemExit as end:
                status = end.code
        return Ended(status)

    names = {"DEVNULL": subprocess.DEVNULL, "TimeoutExpired": subprocess.TimeoutExpired}
    started = SimpleNamespace(Popen=execute, run=execute, **names)
    monkeypatch.setattr(scheduler, "subprocess", started)
    monkeypatch.setattr(experiments, "subprocess", started)
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)


@pytest.mark.usefixtures("in_process")
def test_a_plan_from_the_first_run_to_private_test(faces_csv, tmp_path, capsys, monkeypatch):
    plan = write_plan(
        tmp_path / "p.toml",
        baseline="off",
        seeds=[0, 1],
        common=TINY,
        variants={
            "off": "--no_landmarks",
            "on": "--no_landmarks --rank_weight 0 --label_noise 0.2",
        },
    )
    argv = (plan, "--data", faces_csv, "--out", tmp_path / "o")
    start = scheduler.Scheduler.start

    def interrupted(self, run, device):
        if run.name == "off-1":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
            return Ended(143)
        return start(self, run, device)

    with monkeypatch.context() as context:
        context.setattr(scheduler.Scheduler, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(*argv)
    finished = (tmp_path / "o/on-0/metrics.json").stat().st_mtime_ns
    (tmp_path / "o/on-1").mkdir()  # an empty folder, as of a killed run
    capsys.readouterr()
    run(*argv)
    output = capsys.readouterr().out
    assert "4 runs" in output
    assert "of which 2 are finished" in output
    assert (tmp_path / "o/on-0/metrics.json").stat().st_mtime_ns == finished
    assert not (tmp_path / "o/comparison_private.csv").exists()
    assert list(json.loads((tmp_path / "o/on-1/metrics.json").read_text())) == [
        *("PublicTest", "Training")
    ]
    table = pd.read_csv(tmp_path / "o/comparison.csv").set_index("variant")
    for variant in ("off", "on"):
        scores = [
            json.loads((tmp_path / f"o/{variant}-{seed}/metrics.json").read_text())
            for seed in (0, 1)
        ]
        accuracies = [100 * values["PublicTest"]["accuracy"] for values in scores]
        assert table.loc[variant, "mean"] == pytest.approx(np.mean(accuracies), abs=1e-3)
        assert table.loc[variant, "std"] == pytest.approx(np.std(accuracies, ddof=1), abs=1e-3)
    difference = table.loc["on", "mean"] - table.loc["off", "mean"]
    assert table.loc["on", "difference"] == pytest.approx(difference, abs=1e-3)
    assert table.loc["on", "low"] <= difference <= table.loc["on", "high"]
    assert "ece" in table
    assert table.loc["on", "relabel_recall"] == 0  # relabeling is off
    with pytest.raises(OptionError, match="--tta applies to PrivateTest only"):
        run(*argv, "--tta")
    capsys.readouterr()
    run(*argv, "--private")
    assert "note" not in capsys.readouterr().out
    private = pd.read_csv(tmp_path / "o/comparison_private.csv").set_index("variant")
    predictions = pd.read_csv(tmp_path / "o/on-1/private/predictions.csv")
    assert set(predictions["split"]) == {"PrivateTest"}
    assert private.loc["on", "seeds"] == 2
    moved = shutil.copy(faces_csv, tmp_path / "moved.csv")
    run(plan, "--data", moved, "--out", tmp_path / "o")
    output = capsys.readouterr().out
    assert f"on-1 is finished; its --data was {faces_csv}" in output
    assert "several commits" not in output
    config = json.loads((tmp_path / "o/on-1/config.json").read_text())
    (tmp_path / "o/on-1/config.json").write_text(json.dumps(config | {"commit": "0"}))
    run(plan, "--data", faces_csv, "--out", tmp_path / "o")
    assert "these runs are of several commits: 0, " in capsys.readouterr().out


def test_epochs_are_printed_when_they_end(tmp_path, capsys, monkeypatch):
    run = Run("on", 0, (), tmp_path / "on-0")
    run.log.write_text("epoch  1/3  loss 2.0 (of an earlier start)\n")
    position = run.log.stat().st_size

    class Process:
        texts = iter(
            ["\repoch 2/3: 50%|### |\nepoch  2/3  loss 1.0  5 s\n", "", "figures are in r\n\n"]
        )

        def wait(self, timeout):
            with open(run.log, "a") as log:
                log.write(next(self.texts))
            printed.append(capsys.readouterr().out)
            if len(printed) < 3:
                raise subprocess.TimeoutExpired("train.py", timeout)
            return 0

    printed = []
    assert scheduler.follow(run, Process(), position) == 0
    assert printed == ["", "on-0: epoch  2/3  loss 1.0  5 s\n", ""]
    assert capsys.readouterr().out == "on-0: ended with status 0: figures are in r\n"


def write_results(folder, labels, predicted, **columns):
    """Write predictions and metrics as of a run on PrivateTest."""
    folder.mkdir(parents=True)
    rows = {"split": "PrivateTest", "label": labels, "predicted": predicted, **columns}
    pd.DataFrame(rows).to_csv(folder / "predictions.csv", index=False)
    (folder / "metrics.json").write_text(json.dumps({"PrivateTest": {}}))


def test_each_kind_of_evaluation_has_its_own_table(tmp_path):
    runs = [Run(name, 0, (), tmp_path / name) for name in "ab"]
    plan = Plan(baseline="a", seeds=(0,), common="", variants={"a": "", "b": ""})
    labels = ["happy", "sad", "sad", ""]  # the last image is unlabeled: neither correct nor wrong
    write_results(tmp_path / "a/private", labels, ["happy", "sad", "happy", "sad"])
    write_results(tmp_path / "b/private", labels, ["happy", "happy", "happy", "sad"])
    for name in "ab":
        write_results(tmp_path / name / "private_tta", labels, ["happy", "sad", "sad", "sad"])
        (tmp_path / name / "metrics.json").write_text("{}")
    means = {}
    for folder in ("private", "private_tta"):
        path = tmp_path / f"{folder}.csv"
        comparison.write_comparison(runs, plan, "PrivateTest", path, folder)
        means[folder] = pd.read_csv(path)["mean"].tolist()
    assert means["private"] == pytest.approx([66.6667, 33.3333])
    assert means["private_tta"] == [100, 100]
    write_results(tmp_path / "d/private", ["happy", "sad", "happy", ""], ["happy"] * 4)
    others = [runs[0], Run("d", 0, (), tmp_path / "d")]
    path = tmp_path / "x.csv"
    with pytest.raises(
        RunError, match=r"d/private has predictions for other images .* than\s.*a/private"
    ):
        comparison.write_comparison(others, plan, "PrivateTest", path, "private")
    assert not path.exists()
    write_results(tmp_path / "c/private", [""], ["sad"])
    runs = [Run("c", 0, (), tmp_path / "c")]
    with pytest.raises(RunError, match="no labeled images of PrivateTest"):
        comparison.write_comparison(runs, plan, "PrivateTest", path, "private")
    (tmp_path / "a/private/metrics.json").write_text("{")
    with pytest.raises(RunError, match=r"a/private.metrics\.json"):
        comparison.write_comparison(others[:1], plan, "PrivateTest", path, "private")


def test_human_agreement_is_compared_apart_from_accuracy(tmp_path, capsys):
    runs = [Run(name, 0, (), tmp_path / name) for name in "ab"]
    plan = Plan(baseline="a", seeds=(0,), common="", variants={"a": "", "b": ""})
    labels, human = ["happy", "sad", "sad", "sad"], ["happy", "happy", "sad", ""]
    for name, predicted in (("a", ["happy", "sad", "sad", "sad"]), ("b", ["happy"] * 4)):
        write_results(tmp_path / name, labels, predicted, human_label=human)
    comparison.write_comparison(runs, plan, "PrivateTest", tmp_path / "c.csv")
    table = pd.read_csv(tmp_path / "c.csv").set_index("variant")
    assert table["mean"].tolist() == [100, 25]
    prefix = "human_agreement_"
    assert table[f"{prefix}mean"].tolist() == pytest.approx([66.6667, 66.6667])
    assert table.loc["b", [f"{prefix}{name}" for name in ("difference", "pairs")]].tolist() == [
        0,
        1,
    ]
    assert table.loc["b", f"{prefix}low"] < 0 < table.loc["b", f"{prefix}high"]
    output = capsys.readouterr().out
    assert "mean and std in %" in output
    assert "66.6667" in output  # as in the file
    assert "human_agreement_mean" in output


def test_ferplus_test_is_passed_on(tmp_path):
    run = Run("a", 0, ("--recipe", "cpu"), tmp_path / "a-0")
    argv = scheduler.Scheduler(ferplus_test="votes.csv")._arguments(run, "")
    assert argv[-2:] == ["--ferplus_test", "votes.csv"]
    with pytest.raises(DataError, match="--ferplus_test in .* tools.experiments sets it"):
        read_plan(
            write_plan(
                tmp_path / "p.toml", baseline="a", seeds=[0], variants={"a": "--ferplus_test v"}
            )
        )


def test_private_test_is_evaluated_on_the_labels_of_the_training(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(
        "tools.experiments.subprocess.run",
        lambda command, **_: commands.append(command) or subprocess.CompletedProcess(command, 0),
    )
    options = {"options": {"data": "d.csv", "ferplus": "votes.csv", "ferplus_test": ""}}
    (tmp_path / "config.json").write_text(json.dumps(options))
    run = Run("a", 0, (), tmp_path)
    options = experiments.ExperimentOptions("p.toml", tta=True)
    experiments.evaluate_private(run, options, "private_tta")
    assert commands[0][commands[0].index("--data") + 1] == "d.csv"
    assert commands[0][commands[0].index("--ferplus") + 1] == "votes.csv"
    assert commands[0][commands[0].index("--splits") + 1] == "PrivateTest"
    assert commands[0][commands[0].index("--out") + 1] == str(tmp_path / "private_tta")
    assert "--ferplus_test" not in commands[0]
    (tmp_path / "config.json").write_text(json.dumps({"options": {"ferplus_test": "votes.csv"}}))
    experiments.evaluate_private(run, experiments.ExperimentOptions("p.toml"), "private")
    assert commands[1][commands[1].index("--ferplus_test") + 1] == "votes.csv"


def test_a_run_that_starts_during_an_interrupt_is_terminated_too(tmp_path, monkeypatch):
    processes = []

    def start(self, run, device):
        time.sleep(0.2)  # the main thread waits
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)  # the other processes are being terminated
        processes.append(subprocess.Popen(["sleep", "60"]))
        return processes[-1]

    monkeypatch.setattr(scheduler.Scheduler, "start", start)
    monkeypatch.setattr(scheduler, "follow", lambda run, process, position: process.wait())
    with pytest.raises(KeyboardInterrupt):
        scheduler.Scheduler().train_all([Run(name, 0, (), tmp_path / name) for name in "ab"])
    assert [process.returncode for process in processes] == [-signal.SIGTERM]


def test_the_last_log_line_in_any_encoding(tmp_path, capsys):
    run = Run("a", 0, (), tmp_path / "a-0")
    run.log.write_bytes(b"one\nerror: caf\xe9\n \n")
    assert scheduler.follow(run, Ended(1), 0) == 1
    assert capsys.readouterr().out == "a-0: ended with status 1: error: caf\ufffd\n"


@pytest.mark.usefixtures("in_process")
def test_a_failed_run_is_named_and_the_others_are_trained(faces_csv, tmp_path, capsys):
    variants = {"bad": "--no_landmarks --class_names a b", "good": "--no_landmarks"}
    plan = write_plan(
        tmp_path / "p.toml", baseline="good", seeds=[0], common=TINY, variants=variants
    )
    argv = (plan, "--data", faces_csv, "--out", tmp_path / "o")
    with pytest.raises(RunError, match=r"bad-0 did not finish; see .*o/\*\.log"):
        run(*argv)
    output = capsys.readouterr().out
    assert re.search(r"bad-0: ended with status 1: error: .*faces\.csv", output)
    assert re.search(r"good-0: epoch 2/2  loss .* \(best \d+\.\d\d in \d\)", output)
    assert "good-0: ended with status 0: figures, predictions and weights are in" in output
    assert (tmp_path / "o/good-0/metrics.json").exists()
    with pytest.raises(RunError, match="PrivateTest is compared when all runs are finished"):
        run(*argv, "--private")
    assert not (tmp_path / "o/good-0/private").exists()
    (tmp_path / "o/good-0/metrics.json").unlink()
    variants = {"good": "--no_landmarks"}
    content = {"baseline": "good", "seeds": [0], "variants": variants}
    good = write_plan(tmp_path / "good.toml", common=TINY, **content)
    changed = write_plan(tmp_path / "p.toml", common=f"{TINY} --margin_1 0.3", **content)
    with pytest.raises(RunError, match="differs from the plan in --margin_1"):
        run(changed, "--data", faces_csv, "--out", tmp_path / "o")
    run(good, "--data", faces_csv, "--out", tmp_path / "o")
    with pytest.raises(RunError, match="differs from the plan in --margin_1"):  # though finished
        run(changed, "--data", faces_csv, "--out", tmp_path / "o")


@pytest.mark.parametrize(
    ("number", "send", "status"),
    [(signal.SIGTERM, os.kill, 143), (signal.SIGINT, os.killpg, 130)],  # as a terminal's Ctrl-C
)
def test_an_interrupted_run_is_resumed(faces_csv, tmp_path, request, number, send, status):
    plan = write_plan(
        tmp_path / "p.toml",
        baseline="a",
        seeds=[0],
        common=TINY.replace("--total_epoch 2", "--total_epoch 30"),
        variants={"a": "--no_landmarks", "b": "--no_landmarks"},
    )
    argv = [str(x) for x in (plan, "--data", faces_csv, "--out", tmp_path / "o")]
    command = [sys.executable, "-m", "tools.experiments", *argv]
    process = subprocess.Popen(command, start_new_session=True, cwd=ROOT)
    while not (tmp_path / "o/a-0/last.pth").exists() and process.poll() is None:
        time.sleep(0.05)
    send(process.pid, number)
    assert process.wait(timeout=60) == status
    assert "Interrupted: checkpoint saved" in (tmp_path / "o/a-0.log").read_text()
    assert not (tmp_path / "o/b-0").exists()
    request.getfixturevalue("in_process")
    run(*argv)
    assert len(pd.read_csv(tmp_path / "o/a-0/metrics.csv")) == 30


def test_devices_are_shared(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(scheduler, "follow", lambda run, process, position: process.wait())
    monkeypatch.setattr(
        scheduler.Scheduler, "start", lambda self, run, device: used.append(device) or Ended(0)
    )
    plan = write_plan(
        tmp_path / "p.toml", baseline="a", seeds=[0, 1, 2], common="", variants={"a": "", "b": ""}
    )
    with pytest.raises(RunError, match="no run of the baseline a"):
        run(plan, "--gpu_ids", "0,2", "--out", tmp_path / "o")
    assert set(used) <= {"0", "2"}
    assert len(used) == 6


def test_parallel_runs_share_the_cores(faces_csv, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    processes, start = [], scheduler.Scheduler.start

    def start_together(self, run, device):
        assert all(process.poll() is None for process in processes)
        processes.append(start(self, run, device))
        return processes[-1]

    monkeypatch.setattr(scheduler.Scheduler, "start", start_together)
    plan = write_plan(
        tmp_path / "p.toml",
        baseline="a",
        seeds=[0],
        common=TINY.replace("--total_epoch 2", "--total_epoch 1"),
        variants={"a": "--no_landmarks", "b": "--no_landmarks"},
    )
    run(plan, "--data", faces_csv, "--out", tmp_path / "o", "--parallel", 2)
    assert len(pd.read_csv(tmp_path / "o/comparison.csv")) == 2
    for name in "ab":
        threads = max(1, joblib.cpu_count() // 2)
        assert f"{threads} thread" in (tmp_path / f"o/{name}-0.log").read_text()
    with pytest.raises(OptionError, match="--parallel 0: must be"):
        run(plan, "--parallel", 0)


def test_the_old_name_of_an_option_is_reported(tmp_path):
    with pytest.raises(OptionError, match="--at_once does not exist; use --parallel"):
        run(tmp_path / "p.toml", "--at_once", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("baseline = 1 2", "not TOML"),
        ("baseline = 'a'", "variants: Field required; configs/ has examples"),
        ("baseline = 'a'\nvariants = 'a'", "variants: Input should be a valid dict"),
        ("baseline = 'a'\n[variants]\na = 1", "variants: a: Input should be a valid string"),
        ("baseline = 'c'\nseeds = [0]\n[variants]\na = ''", "'c' is none of a"),
        ("baseline = 'a'\nseeds = [0, 0]\n[variants]\na = ''", "seeds must be different"),
        ("baseline = 'a'\n[variants]\na = ''", "seeds: Field required"),
        ("baseline = 'a'\nseeds = []\n[variants]\na = ''", "seeds must be different"),
        (
            "baseline = 'a'\nseeds = [[0, 1]]\n[variants]\na = ''",
            "seeds: 0: Input should be a valid",
        ),
        ("baseline = 'a'\nseeds = [true]\n[variants]\na = ''", "seeds: 0: Input should be a valid"),
        ("baseline = 'a'\nseeds = 3\n[variants]\na = ''", "seeds: Input should be a valid"),
        (
            "baseline = ['a']\nseeds = [0]\n[variants]\na = ''",
            "baseline: Input should be a valid string",
        ),
        ("baseline = 'a'\nseeds = [0]\n[variants]\na = '\"'", "variants: a: No closing quotation"),
        (
            "baseline = 'a'\ncommon = 5\nseeds = [0]\n[variants]\na = ''",
            "common: Input should be a valid string",
        ),
        ("baseline = 'a'\nseed = [0]\n[variants]\na = ''", "seed: Extra inputs are not"),
        ("baseline = '../a'\nseeds = [0]\n[variants]\n'../a' = ''", "cannot be a folder name"),
        ("baseline = 'a'\nseeds = [0]\n[variants]\na = '--seed=3'", "--seed in '--seed=3' is not"),
        ("baseline = 'a'\ncommon = '--data x'\nseeds = [0]\n[variants]\na = ''", "--data in "),
        ("baseline = 'a'\nseeds = [0]\n[variants]\na = '--final_test'", "is not allowed"),
    ],
)
def test_errors_of_a_plan(tmp_path, text, message):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(DataError, match=message):
        run(tmp_path / "p.toml")


@pytest.mark.parametrize(
    ("options", "message", "output"),
    [
        ("--nothing", "train.py rejects --nothing of the variant odd", "--nothing"),
        ("--beta x", "train.py rejects --beta x of the variant odd", "--beta"),
        ("--beta 7", "variant odd: --beta 7", ""),
        ("--light 0.1", "variant odd: --light does not exist; use --color_jitter", ""),
    ],
)
def test_options_are_checked_before_the_first_run(tmp_path, capsys, options, message, output):
    variants = {"good": "", "odd": options}
    plan = write_plan(tmp_path / "p.toml", baseline="good", seeds=[0], variants=variants)
    with pytest.raises(OptionError, match=message):
        run(plan, "--out", tmp_path / "o")
    assert output in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(("data", "recipe"), [("sample", "sample"), ("data/fer2013.csv", "full")])
def test_a_plan_is_checked_with_the_recipe_of_its_data(tmp_path, data, recipe):
    options = resolve_options(parse_train_options(["--seed", "0"], ""), recipe == "sample")
    assert options.recipe == recipe
    (tmp_path / "config.json").write_text(json.dumps({"options": asdict(options)}))
    experiments.check_run(Run("a", 0, (), tmp_path), data)
    with pytest.raises(RunError, match="differs from the plan in .*--recipe"):
        experiments.check_run(Run("a", 0, ("--recipe", "cpu"), tmp_path), data)


def test_variants_of_a_plan_can_be_selected(tmp_path):
    variants = {"a": "", "b": "--rank_weight 0", "c": "--relabel none"}
    path = write_plan(tmp_path / "p.toml", baseline="b", seeds=[0], variants=variants)
    plan = read_plan(path, chosen=("c", "b"))
    assert (plan.baseline, list(plan.variants)) == ("b", ["b", "c"])
    plan = read_plan(path, chosen=("c", "a"))  # without the plan's baseline
    assert (plan.baseline, list(plan.variants)) == ("c", ["a", "c"])
    with pytest.raises(DataError, match="'d' is none of its variants a, b, c"):
        run(path, "--variants", "a", "d")


def test_a_plan_that_does_not_exist(tmp_path):
    with pytest.raises(DataError, match="configs/ has examples"):
        run(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_the_plans_of_the_repository_are_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)  # of the initial weights
    plan = read_plan(path)
    for text in plan.variants.values():
        command = parse_train_options(shlex.split(f"{plan.common} {text}"), "")
        paths = [path for path in command.options.model_path if "resnet18_half" not in path]
        initial = load_initial_weights(paths)  # without earlier weights
        weights = initial.initial_options() if initial else {}
        options = resolve_options(command, is_synthetic=False, initial=weights)
        assert options.relabel_epoch <= options.total_epoch or options.relabel == "none"


def test_published_values_have_a_source():
    table = pd.read_csv(ROOT / "configs/published.csv", dtype={"seed": str})
    assert table[["experiment", "variant", "metric", "source"]].notna().all(axis=None)
    assert (table["value"].notna() | (table["low"].notna() & table["high"].notna())).all()
    keys = ["experiment", "variant", "seed", "split", "metric", "source"]
    assert not table.duplicated(keys).any()


# Statistics


def test_mcnemar_by_hand():
    variant = np.array([True] * 8 + [False] * 2 + [True] * 5 + [False] * 5)
    reference = np.array([False] * 8 + [True] * 2 + [True] * 5 + [False] * 5)
    # Twice the chance of 2 or fewer heads in 10 tosses: 2 (1 + 10 + 45) / 1024.
    assert mcnemar(variant, reference) == (8, 2, pytest.approx(112 / 1024))
    assert mcnemar(variant, variant) == (0, 0, 1.0)


def test_the_bootstrap_covers_images_and_seeds():
    rng = np.random.default_rng(1)
    reference = rng.random((1, 2500)) < 0.6
    variant = reference ^ (rng.random((1, 2500)) < 0.1)
    low, high = bootstrap(variant, reference)
    gain = 100 * (variant.astype(float) - reference)[0]
    half = 1.96 * gain.std() / np.sqrt(2500)  # one pair: only the images vary
    assert low == pytest.approx(gain.mean() - half, abs=0.1)
    assert high == pytest.approx(gain.mean() + half, abs=0.1)
    assert bootstrap(reference, reference) == (0, 0)
    # Several different pairs: the interval also covers the seeds.
    several = np.concatenate([variant, reference, reference ^ True])
    low, high = bootstrap(several, np.repeat(reference, 3, 0))
    assert high - low > 4 * half


def test_runs_are_paired_by_seed():
    correct = {
        "base": {0: np.array([1, 0, 0, 0], bool), 1: np.array([1, 1, 0, 0], bool)},
        "new": {1: np.array([1, 1, 1, 0], bool), 2: np.array([0, 0, 0, 0], bool)},
    }
    table = compare(correct, "base").set_index("variant")
    assert table.loc["base", ["seeds", "mean"]].tolist() == [2, 37.5]
    assert table.loc["new", ["seeds", "mean", "pairs", "difference"]].tolist() == [2, 37.5, 1, 25]
    assert table.loc["new", ["better", "worse", "mcnemar"]].tolist() == [1, 0, "1"]
    assert np.isnan(table.loc["base", "difference"])


def test_label_noise_changes_the_given_share():
    dataset = synthetic_dataset(training=20, public=3, private=3)
    noisy = dataset.with_label_noise(0.3, seed=1)
    changed = noisy.labels != dataset.labels
    assert changed.sum() == round(0.3 * 140)
    assert set(dataset.split[changed]) == {"Training"}
    assert set(noisy.labels) == set(range(7))
    assert (dataset.with_label_noise(0.3, seed=1).labels == noisy.labels).all()
    assert (dataset.with_label_noise(0.3, seed=2).labels != noisy.labels).any()
    assert (dataset.with_label_noise(0, seed=1).labels == dataset.labels).all()


def test_relabel_scores_by_hand():
    clean, noisy = np.array([0, 1, 2, 3, 4]), np.array([0, 2, 3, 3, 5])
    final = np.array([1, 1, 4, 3, 5])  # harmed, corrected, changed to wrong, unchanged, still wrong
    assert relabel_scores(clean, noisy, final) == {
        **{"noisy": 3, "relabeled": 3},
        **{"relabel_precision": pytest.approx(1 / 3), "relabel_recall": pytest.approx(1 / 3)},
        "relabel_harm": pytest.approx(1 / 3),
    }
    assert relabel_scores(clean, clean, clean)["relabel_precision"] is None
