"""tools.experiments.py on a tiny plan, and its statistics against values worked out by hand."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from kills import write_csv

from data.synthetic.generate import synthetic_dataset
from tools import experiments
from utils.errors import DataError, OptionError, RunError
from utils.metrics import relabel_scores
from utils.statistics import bootstrap, compare, mcnemar

ROOT = Path(__file__).resolve().parents[1]
TINY = "--gpu_ids -1 --width 0.1 --image_width 32 --batch_size 16 --total_epoch 2"


@pytest.fixture(scope="module")
def faces_csv(tmp_path_factory):
    faces = synthetic_dataset(training=7, public=3, private=3)
    return write_csv(faces, tmp_path_factory.mktemp("data") / "faces.csv")


def write_plan(path, **content):
    lines = [
        f"{name} = {json.dumps(value)}" for name, value in content.items() if name != "variants"
    ]
    lines += ["[variants]", *(f"{k} = {json.dumps(v)}" for k, v in content["variants"].items())]
    path.write_text("\n".join(lines))
    return path


def run(*argv):
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", ["tools.experiments.py", *map(str, argv)])
        experiments.main()


def test_a_plan_from_its_first_cell_to_private_test(faces_csv, tmp_path, capsys, monkeypatch):
    plan = write_plan(
        tmp_path / "p.toml",
        baseline="off",
        seeds=[0, 1],
        common=TINY,
        variants={"off": "--no_landmarks", "on": "--no_landmarks --no_rank --label_noise 0.2"},
    )
    argv = (plan, "--data", faces_csv, "--out", tmp_path / "o")
    train = experiments.train

    def interrupted(cell, *rest):
        if cell.folder.name == "off-1":
            raise KeyboardInterrupt
        return train(cell, *rest)

    with monkeypatch.context() as context:
        context.setattr(experiments, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(*argv)
    finished = (tmp_path / "o/on-0/metrics.json").stat().st_mtime_ns
    (tmp_path / "o/on-1").mkdir()  # of a run that was killed before it began
    capsys.readouterr()
    run(*argv)
    told = capsys.readouterr().out
    assert "4 cells" in told
    assert "of which 2 are done" in told
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
        accuracies = [100 * each["PublicTest"]["accuracy"] for each in scores]
        assert table.loc[variant, "mean"] == pytest.approx(np.mean(accuracies), abs=1e-3)
        assert table.loc[variant, "std"] == pytest.approx(np.std(accuracies, ddof=1), abs=1e-3)
    difference = table.loc["on", "mean"] - table.loc["off", "mean"]
    assert table.loc["on", "difference"] == pytest.approx(difference, abs=1e-3)
    assert table.loc["on", "low"] <= difference <= table.loc["on", "high"]
    assert "ece" in table
    assert table.loc["on", "relabel_recall"] == 0  # nothing is relabeled before epoch 100
    with pytest.raises(OptionError, match="--tta is for PrivateTest"):
        run(*argv, "--tta")
    capsys.readouterr()
    run(*argv, "--private")
    assert "note" not in capsys.readouterr().out
    private = pd.read_csv(tmp_path / "o/comparison_private.csv").set_index("variant")
    predictions = pd.read_csv(tmp_path / "o/on-1/private/predictions.csv")
    assert set(predictions["usage"]) == {"PrivateTest"}
    assert private.loc["on", "seeds"] == 2
    moved = shutil.copy(faces_csv, tmp_path / "moved.csv")
    run(plan, "--data", moved, "--out", tmp_path / "o")
    told = capsys.readouterr().out
    assert f"on-1 is done, with faces from {faces_csv}" in told
    assert "several commits" not in told
    config = json.loads((tmp_path / "o/on-1/config.json").read_text())
    (tmp_path / "o/on-1/config.json").write_text(json.dumps(config | {"commit": "0"}))
    run(plan, "--data", faces_csv, "--out", tmp_path / "o")
    assert "these cells are of several commits: 0, " in capsys.readouterr().out


def written(folder, labels, predicted):
    """Leave what a run leaves of PrivateTest faces."""
    folder.mkdir(parents=True)
    rows = {"usage": "PrivateTest", "label": labels, "predicted": predicted}
    pd.DataFrame(rows).to_csv(folder / "predictions.csv", index=False)
    (folder / "metrics.json").write_text(json.dumps({"PrivateTest": {}}))


def test_each_way_of_looking_has_a_table_of_its_own(tmp_path):
    cells = [experiments.Run(name, 0, (), tmp_path / name) for name in "ab"]
    plan = experiments.Plan(baseline="a", seeds=(0,), common="", variants={"a": "", "b": ""})
    labels = ["happy", "sad", "sad", ""]  # the last is unlabelled: neither right nor wrong
    written(tmp_path / "a/private", labels, ["happy", "sad", "happy", "sad"])
    written(tmp_path / "b/private", labels, ["happy", "happy", "happy", "sad"])
    for name in "ab":
        written(tmp_path / name / "private_tta", labels, ["happy", "sad", "sad", "sad"])
        (tmp_path / name / "metrics.json").write_text("{}")
    means = {}
    for inner in ("private", "private_tta"):
        experiments.report(cells, plan, "PrivateTest", tmp_path / f"{inner}.csv", inner)
        means[inner] = pd.read_csv(tmp_path / f"{inner}.csv")["mean"].tolist()
    assert means["private"] == pytest.approx([66.6667, 33.3333])
    assert means["private_tta"] == [100, 100]
    written(tmp_path / "d/private", ["happy", "sad", "happy", ""], ["happy"] * 4)
    others = [cells[0], experiments.Run("d", 0, (), tmp_path / "d")]
    with pytest.raises(RunError, match=r"d/private was judged by other faces than .*a/private"):
        experiments.report(others, plan, "PrivateTest", tmp_path / "x.csv", "private")
    assert not (tmp_path / "x.csv").exists()
    written(tmp_path / "c/private", [""], ["sad"])
    cells = [experiments.Run("c", 0, (), tmp_path / "c")]
    with pytest.raises(RunError, match="no labelled faces of PrivateTest"):
        experiments.report(cells, plan, "PrivateTest", tmp_path / "c.csv", "private")
    (tmp_path / "a/private/metrics.json").write_text("{")
    with pytest.raises(RunError, match=r"a/private.metrics\.json"):
        experiments.report(others[:1], plan, "PrivateTest", tmp_path / "x.csv", "private")


def test_private_test_is_judged_by_the_labels_that_were_learnt(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(
        "tools.experiments.subprocess.run",
        lambda command, **_: commands.append(command) or subprocess.CompletedProcess(command, 0),
    )
    cell = experiments.Run("a", 0, (), tmp_path)
    options = {"options": {"ferplus": "votes.csv"}}
    (tmp_path / "config.json").write_text(json.dumps(options))
    experiments.evaluate(cell, experiments.ExperimentOptions("p.toml", tta=True))
    assert commands[0][commands[0].index("--ferplus") + 1] == "votes.csv"
    assert commands[0][commands[0].index("--out") + 1] == str(tmp_path / "private_tta")


def test_a_run_that_begins_while_all_are_stopped_is_stopped_too(tmp_path):
    stopped = threading.Event()
    stopped.set()
    cell = experiments.Run("a", 0, ("--data", "sample"), tmp_path / "a-0")
    options = experiments.ExperimentOptions("p.toml")
    assert not experiments.train(cell, "", options, set(), stopped)
    assert not (tmp_path / "a-0/metrics.json").exists()


def test_last_words_of_any_encoding(tmp_path):
    log = tmp_path / "a.log"
    log.write_bytes(b"one\nerror: caf\xe9\n \n")
    assert experiments.last_log_line(log) == "error: caf\ufffd"


def test_a_cell_that_fails_is_named_and_the_others_go_on(faces_csv, tmp_path, capsys):
    variants = {"bad": "--no_landmarks --model_path none.pth", "good": "--no_landmarks"}
    plan = write_plan(
        tmp_path / "p.toml", baseline="good", seeds=[0], common=TINY, variants=variants
    )
    argv = (plan, "--data", faces_csv, "--out", tmp_path / "o")
    with pytest.raises(RunError, match=r"bad-0 did not finish; see .*o/\*\.log"):
        run(*argv)
    told = capsys.readouterr().out
    assert re.search(r"bad-0: ended with status 1: error: .*none\.pth", told)
    assert (tmp_path / "o/good-0/metrics.json").exists()
    with pytest.raises(RunError, match="PrivateTest waits"):
        run(*argv, "--private")
    assert not (tmp_path / "o/good-0/private").exists()
    (tmp_path / "o/good-0/metrics.json").unlink()
    write_plan(
        tmp_path / "good.toml",
        baseline="good",
        seeds=[0],
        common=TINY,
        variants={"good": "--no_landmarks"},
    )
    changed = write_plan(
        tmp_path / "p.toml",
        baseline="good",
        seeds=[0],
        common=f"{TINY} --margin_1 0.3",
        variants={"good": "--no_landmarks"},
    )
    with pytest.raises(RunError, match="differs from the plan in --margin_1"):
        run(changed, "--data", faces_csv, "--out", tmp_path / "o")
    run(plan.with_name("good.toml"), "--data", faces_csv, "--out", tmp_path / "o")
    with pytest.raises(RunError, match="differs from the plan in --margin_1"):  # though it is done
        run(changed, "--data", faces_csv, "--out", tmp_path / "o")


@pytest.mark.parametrize(
    ("number", "send", "status"),
    [(signal.SIGTERM, os.kill, 143), (signal.SIGINT, os.killpg, 130)],  # as a terminal's Ctrl-C
)
def test_a_run_in_progress_is_stopped_and_gone_on_with(faces_csv, tmp_path, number, send, status):
    common = TINY.replace("--total_epoch 2", "--total_epoch 30")
    plan = write_plan(
        tmp_path / "p.toml",
        baseline="a",
        seeds=[0],
        common=common,
        variants={"a": "--no_landmarks", "b": "--no_landmarks"},
    )
    argv = [str(x) for x in (plan, "--data", faces_csv, "--out", tmp_path / "o")]
    command = [sys.executable, ROOT / "tools.experiments.py", *argv]
    process = subprocess.Popen(command, start_new_session=True)
    while not (tmp_path / "o/a-0/last.pth").exists() and process.poll() is None:
        time.sleep(0.05)
    send(process.pid, number)
    assert process.wait(timeout=60) == status
    assert "nothing is lost" in (tmp_path / "o/a-0.log").read_text()
    assert not (tmp_path / "o/b-0").exists()
    run(*argv)
    assert len(pd.read_csv(tmp_path / "o/a-0/metrics.csv")) == 30


def test_devices_are_shared_out(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(experiments, "train", lambda cell, device, *_: used.append(device) or True)
    plan = write_plan(
        tmp_path / "p.toml", baseline="a", seeds=[0, 1, 2], common="", variants={"a": "", "b": ""}
    )
    with pytest.raises(RunError, match="no run of the baseline a"):
        run(plan, "--gpu_ids", "0,2", "--out", tmp_path / "o")
    assert set(used) <= {"0", "2"}
    assert len(used) == 6


def test_cells_that_run_at_once_share_the_cores(faces_csv, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    meet, train = threading.Barrier(2, timeout=60), experiments.train

    def met(*arguments):
        meet.wait()  # which one cell alone could not pass
        return train(*arguments)

    monkeypatch.setattr(experiments, "train", met)
    plan = write_plan(
        tmp_path / "p.toml",
        baseline="a",
        seeds=[0],
        common=TINY.replace("--total_epoch 2", "--total_epoch 1"),
        variants={"a": "--no_landmarks", "b": "--no_landmarks"},
    )
    run(plan, "--data", faces_csv, "--out", tmp_path / "o", "--at_once", 2)
    assert len(pd.read_csv(tmp_path / "o/comparison.csv")) == 2
    for name in "ab":
        threads = max(1, joblib.cpu_count() // 2)
        assert f"{threads} threads" in (tmp_path / f"o/{name}-0.log").read_text()
    with pytest.raises(OptionError, match="--at_once must be"):
        run(plan, "--at_once", 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("baseline = 1 2", "not TOML"),
        ("baseline = 'a'", "needs a table"),
        ("baseline = 'c'\nseeds = [0]\n[variants]\na = ''", "'c' is none of a"),
        ("baseline = 'a'\nseeds = [0, 0]\n[variants]\na = ''", "each one once"),
        ("baseline = 'a'\n[variants]\na = ''", "seeds must be"),
        ("baseline = 'a'\nseeds = [[0, 1]]\n[variants]\na = ''", "seeds must be"),
        ("baseline = 'a'\nseeds = 3\n[variants]\na = ''", "seeds must be"),
        ("baseline = ['a']\nseeds = [0]\n[variants]\na = ''", r"\['a'\] is none of a"),
        ("baseline = 'a'\nseeds = [0]\n[variants]\na = '\"'", "options of train.py"),
        ("baseline = 'a'\ncommon = 5\nseeds = [0]\n[variants]\na = ''", "common = 5 is not a text"),
        ("baseline = 'a'\nseed = [0]\n[variants]\na = ''", "seed is nothing"),
        ("baseline = '../a'\nseeds = [0]\n[variants]\n'../a' = ''", "cannot name a folder"),
        ("baseline = 'a'\nseeds = [0]\n[variants]\na = '--seed=3'", "--seed in '--seed=3' would"),
        ("baseline = 'a'\ncommon = '--data x'\nseeds = [0]\n[variants]\na = ''", "--data in "),
        ("baseline = 'a'\nseeds = [0]\n[variants]\na = '--final_test'", "would be overridden"),
    ],
)
def test_faults_of_a_plan_are_named(tmp_path, text, words):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(DataError, match=words):
        run(tmp_path / "p.toml")


@pytest.mark.parametrize(
    ("options", "words", "told"),
    [
        ("--nothing", "train.py refuses --nothing of odd", "--nothing"),
        ("--beta x", "train.py refuses --beta x of odd", "--beta"),
        ("--beta 7", "odd: out of range: --beta 7", ""),
    ],
)
def test_a_cell_s_options_are_checked_before_the_first_one_runs(
    tmp_path, capsys, options, words, told
):
    variants = {"good": "", "odd": options}
    plan = write_plan(tmp_path / "p.toml", baseline="good", seeds=[0], variants=variants)
    with pytest.raises(OptionError, match=words):
        run(plan, "--out", tmp_path / "o")
    assert told in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_plan_on_the_sample_is_checked_by_its_recipe(tmp_path):
    cell = experiments.Run("a", 0, ("--cycles", "16", "--warmup_epoch", "0"), tmp_path / "a-0")
    experiments.check(cell, "sample")  # of 16 epochs
    with pytest.raises(OptionError, match="do not divide 200 epochs"):
        experiments.check(cell, "")


def test_some_variants_of_a_plan_alone(tmp_path):
    variants = {"a": "", "b": "--no_rank", "c": "--no_relabel"}
    path = write_plan(tmp_path / "p.toml", baseline="b", seeds=[0], variants=variants)
    plan = experiments.read_plan(path, chosen=("c", "b"))
    assert (plan.baseline, list(plan.variants)) == ("b", ["b", "c"])
    plan = experiments.read_plan(path, chosen=("c", "a"))  # without the plan's own baseline
    assert (plan.baseline, list(plan.variants)) == ("c", ["a", "c"])
    with pytest.raises(DataError, match="'d' is none of its variants a, b, c"):
        run(path, "--variants", "a", "d")


def test_a_plan_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="plans/ holds some"):
        run(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "plans").glob("*.toml")), ids=lambda p: p.stem)
def test_the_plans_that_come_with_it_are_sound(path, tmp_path):
    plan = experiments.read_plan(path)
    for text in plan.variants.values():
        argv = experiments.shlex.split(f"{plan.common} {text}")
        run_options = experiments.parse_train_options(argv, "", "full")
        assert (
            run_options.relabel_epoch <= run_options.total_epoch
            or "relabel" not in path.read_text()
        )


# Statistics


def test_mcnemar_by_hand():
    ours = np.array([True] * 8 + [False] * 2 + [True] * 5 + [False] * 5)
    theirs = np.array([False] * 8 + [True] * 2 + [True] * 5 + [False] * 5)
    # Twice the chance of 2 or fewer heads in 10 tosses: 2 (1 + 10 + 45) / 1024.
    assert mcnemar(ours, theirs) == (8, 2, pytest.approx(112 / 1024))
    assert mcnemar(ours, ours) == (0, 0, 1.0)


def test_the_bootstrap_knows_the_spread():
    rng = np.random.default_rng(1)
    theirs = rng.random((1, 2500)) < 0.6
    ours = theirs ^ (rng.random((1, 2500)) < 0.1)
    low, high = bootstrap(ours, theirs)
    gain = 100 * (ours.astype(float) - theirs)[0]
    half = 1.96 * gain.std() / np.sqrt(2500)  # of one run, only faces vary
    assert low == pytest.approx(gain.mean() - half, abs=0.1)
    assert high == pytest.approx(gain.mean() + half, abs=0.1)
    assert bootstrap(theirs, theirs) == (0, 0)
    # Of runs that differ, the interval is wider than the faces alone make it.
    several = np.concatenate([ours, theirs, theirs ^ True])
    low, high = bootstrap(several, np.repeat(theirs, 3, 0))
    assert high - low > 4 * half


def test_pairs_are_made_by_seed():
    right = {
        "base": {0: np.array([1, 0, 0, 0], bool), 1: np.array([1, 1, 0, 0], bool)},
        "new": {1: np.array([1, 1, 1, 0], bool), 2: np.array([0, 0, 0, 0], bool)},
    }
    table = compare(right, "base").set_index("variant")
    assert table.loc["base", ["seeds", "mean"]].tolist() == [2, 37.5]
    assert table.loc["new", ["seeds", "mean", "pairs", "difference"]].tolist() == [2, 37.5, 1, 25]
    assert table.loc["new", ["better", "worse", "mcnemar"]].tolist() == [1, 0, "1"]
    assert np.isnan(table.loc["base", "difference"])


def test_noise_is_as_much_as_was_asked_for():
    faces = synthetic_dataset(training=20, public=3, private=3)
    noisy = faces.with_label_noise(0.3, seed=1)
    changed = noisy.labels != faces.labels
    assert changed.sum() == round(0.3 * 140)
    assert set(faces.split[changed]) == {"Training"}
    assert set(noisy.labels) == set(range(7))
    assert (faces.with_label_noise(0.3, seed=1).labels == noisy.labels).all()
    assert (faces.with_label_noise(0.3, seed=2).labels != noisy.labels).any()
    assert (faces.with_label_noise(0, seed=1).labels == faces.labels).all()


def test_what_relabeling_found_by_hand():
    clean, noisy = np.array([0, 1, 2, 3, 4]), np.array([0, 2, 3, 3, 5])
    final = np.array([1, 1, 4, 3, 5])  # spoilt, healed, moved wrongly, left, left wrong
    assert relabel_scores(clean, noisy, final) == {
        **{"noisy": 3, "relabeled": 3},
        **{"relabel_precision": pytest.approx(1 / 3), "relabel_recall": pytest.approx(1 / 3)},
        "relabel_harm": pytest.approx(1 / 3),
    }
    assert relabel_scores(clean, clean, clean)["relabel_precision"] is None
