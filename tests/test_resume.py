"""Resuming train.py: to the bit after any interruption, and only as the same run."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time

import pytest
from kills import assert_same_run, write_csv
from test_faults import ROOT, TINY
from test_scripts import run

import train
from data.synthetic.generate import synthetic_dataset
from engine import saver
from utils.errors import ProjectError


@pytest.mark.parametrize("where", ["after last.pth", "before last.pth", "before any", "at the end"])
def test_interrupted_saving_is_resumed_to_the_bit(reference, faces_csv, tmp_path, where):
    def stop(context):
        save, calls = saver.save_checkpoint, []

        def interrupted(path, checkpoint):
            calls.append(path.name)
            second = path.name == "last.pth" and calls.count("last.pth") == 2
            if where == "before any" or (where == "before last.pth" and second):
                raise KeyboardInterrupt
            save(path, checkpoint)
            if where == "after last.pth" and second:
                raise KeyboardInterrupt
            if where == "at the end" and calls.count("last.pth") == 3:
                raise KeyboardInterrupt

        context.setattr(saver, "save_checkpoint", interrupted)
        context.setattr(saver, "MAX_TIME_SHARE", math.inf)  # save after each epoch

    folder = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        run(train, "--data", faces_csv, "--out", folder, *TINY, patch=stop)
    run(train, "--resume", folder)
    assert_same_run(reference, folder)


def test_killed_run_is_resumed_to_the_bit(reference, faces_csv, tmp_path):
    folder = tmp_path / "killed"
    argv = [*TINY, "--data", faces_csv, "--out", folder]
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *map(str, argv)], stdout=subprocess.DEVNULL
    )
    while not (folder / "last.pth").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(train, "--resume", folder)
    assert_same_run(reference, folder)


def test_finished_run_can_be_resumed(reference, capsys):
    before = (reference / "metrics.csv").read_text()
    run(train, "--resume", reference)
    assert "epoch 3 of 3 finished\n" in capsys.readouterr().out
    assert (reference / "metrics.csv").read_text() == before


def test_resuming_with_another_version_is_recorded(reference, tmp_path, capsys):
    folder = shutil.copytree(reference, tmp_path / "r")
    began = json.loads((folder / "config.json").read_text())
    run(
        train,
        "--resume",
        folder,
        patch=lambda context: context.setattr("utils.run_folder.git_commit", lambda: "f00"),
    )
    assert (
        f"Resumed with commit f00 (the run began with {began['commit']})\n"
        in capsys.readouterr().out
    )
    config = json.loads((folder / "config.json").read_text())
    assert config["commit"] == began["commit"]
    assert config["resumed_with"] == {"torch": began["torch"], "commit": "f00"}


def test_run_is_not_resumed_with_other_data_or_options(reference, tmp_path):
    config = (reference / "config.json").read_text()
    other = write_csv(
        synthetic_dataset(training=7, public=3, private=3, seed=1), tmp_path / "o.csv"
    )
    with pytest.raises(ProjectError, match="the data set differs from the run's"):
        run(train, "--resume", reference, "--data", other)
    with pytest.raises(ProjectError, match="--start_lr"):
        run(train, "--resume", reference, "--start_lr", 0.3)
    with pytest.raises(ProjectError, match="config.json"):
        run(train, "--resume", tmp_path)
    with pytest.raises(ProjectError, match="stays in its folder"):
        run(train, "--resume", reference, "--out", tmp_path / "new")
    assert (reference / "config.json").read_text() == config  # it has the first data set


def test_equal_seeds_give_equal_runs(reference, faces_csv, tmp_path):
    for seed in (0, 1):
        argv = ("--seed", seed, "--out", tmp_path / str(seed))
        run(train, "--data", faces_csv, *TINY, *argv)
    assert_same_run(reference, tmp_path / "0")
    assert (tmp_path / "1/metrics.csv").read_text() != (reference / "metrics.csv").read_text()
