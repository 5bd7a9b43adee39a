"""Situations of a new user: resuming, threads on a busy machine, the order of test.py's output."""

import inspect
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from kills import write_csv
from test_distill import write_teacher
from test_faults import TINY, kill_at, run

import test
import train
from data.landmarks import add_landmarks
from data.synthetic.generate import synthetic_dataset
from engine import eta, trainer
from engine.eta import ETA, MEASURED, WARM_UP
from utils.devices import set_threads
from utils.options import Options
from utils.signals import Interrupted

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
CPU = torch.device("cpu")


@pytest.fixture
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Reading the code


def test_the_training_step_is_three_calls_below_main(tmp_path):
    """loss.backward() is in the loop that the stack shows: main, run, train, train_one_epoch."""
    csv = write_csv(synthetic_dataset(training=3, public=1, private=1), tmp_path / "faces.csv")
    names = []

    def stop(i, losses, output):
        frames = [frame for frame in inspect.stack() if Path(frame.filename).parent != TESTS]
        names.extend(frame.function for frame in frames if ROOT in Path(frame.filename).parents)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("--data", csv, "--out", tmp_path / "r", *TINY, on_loss=stop)
    names = names[: names.index("main") + 1]  # pytest has functions of these names, too
    names = [name for name in names if name in vars(train) or name in vars(trainer)]
    assert names == ["train_one_epoch", "train", "run", "main"]


# Resuming


@pytest.mark.usefixtures("small_sample")
def test_printed_resume_command_works_after_another_data_set_appeared(tmp_path, monkeypatch):
    """The run stores the data set that was chosen automatically."""
    monkeypatch.setattr("data.source.DATA_DIR", tmp_path / "data")
    (tmp_path / "data").mkdir()
    argv = (*TINY, "--image_width", 36, "--out", tmp_path / "a run")  # 36: a cache of its own
    with pytest.raises(Interrupted) as interrupt:
        run(*argv, on_loss=kill_at(5))
    config = json.loads((tmp_path / "a run/config.json").read_text())
    assert config["options"]["data"] == "sample"
    assert config["options"]["recipe"] == "sample"
    write_csv(synthetic_dataset(training=4, public=2, private=2), tmp_path / "data/fer2013.csv")
    command = re.search(r"Resume with: (bash train\.sh .*)", str(interrupt.value)).group(1)
    words = shlex.split(command)
    assert words[:2] == ["bash", "train.sh"]
    run(*words[2:])
    assert json.loads((tmp_path / "a run/config.json").read_text()) == config
    assert (tmp_path / "a run/metrics.json").exists()


# Threads


@pytest.mark.usefixtures("restore_threads")
def test_threads_option_of_train_is_applied_and_saved(tmp_path):
    csv = write_csv(synthetic_dataset(training=3, public=1, private=1), tmp_path / "faces.csv")
    threads = []
    argv = ("--data", csv, "--out", tmp_path / "r", *TINY, "--total_epoch", 1, "--threads", 2)
    run(*argv, on_loss=lambda *_: threads.append(torch.get_num_threads()))
    assert set(threads) == {2}
    assert json.loads((tmp_path / "r/config.json").read_text())["options"]["threads"] == 2


@pytest.mark.usefixtures("restore_threads")
def test_default_is_one_thread_per_idle_core(monkeypatch):
    torch.set_num_threads(4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("utils.devices.idle_cores", lambda: 3)
    assert set_threads(0) == torch.get_num_threads() == 3
    assert set_threads(2) == torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr("utils.devices.idle_cores", lambda: 1)
    assert set_threads(0) == torch.get_num_threads() == 2


@pytest.mark.parametrize(("cores", "warns"), [(0.4, True), (1.9, False)])
@pytest.mark.usefixtures("restore_threads")
def test_busy_machine_gives_a_warning(monkeypatch, capsys, cores, warns):
    clock = [0.0]
    monkeypatch.setattr(eta.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(eta.time, "process_time", lambda: clock[0] * cores)
    torch.set_num_threads(2)
    estimate = ETA(CPU, Options(batch_size=10), num_images=1000, epochs=200)
    for _ in range(WARM_UP + MEASURED):
        clock[0] += 0.5
        estimate.update()
    output = capsys.readouterr()
    assert "time     about 2.8 h for 200 epochs, 20 images/s" in output.out
    assert ("other processes use the CPU" in output.out + output.err) == warns


# test.py


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("usage")
    write_csv(synthetic_dataset(training=3, public=2, private=1), folder / "faces.csv")
    write_teacher(folder / "weights.pth")
    return folder


def run_test(folder, *argv):
    weights = ("--model_path", folder / "weights.pth", "--data", folder / "faces.csv")
    words = map(str, ("test.py", *weights, "--gpu_ids", "-1", "--threads", "1", *argv))
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", list(words))
        test.main()


@pytest.mark.parametrize("split", ["PublicTest", "PrivateTest"])
def test_landmarks_are_computed_for_the_evaluated_splits_only(
    folder, tmp_path, monkeypatch, capsys, split
):
    calls = []

    def recorded(dataset, *rest, **options):
        calls.append((set(dataset.split.tolist()), len(dataset), capsys.readouterr().out))
        return add_landmarks(dataset, *rest, **options)

    monkeypatch.setattr(test, "add_landmarks", recorded)
    run_test(folder, "--splits", split, "--out", tmp_path / "r")
    ((splits, n, printed),) = calls
    assert splits == {split}
    assert n == {"PublicTest": 14, "PrivateTest": 7}[split]
    assert re.search(rf"{split} .* %", printed)  # the accuracy comes first
    scores = json.loads((tmp_path / "r/metrics.json").read_text())
    assert scores[split]["landmark_error"] > 0


def test_accuracy_is_printed_before_the_corruptions(folder, tmp_path, monkeypatch, capsys):
    def interrupted(*_args, **_options):
        assert re.search(r"PublicTest .* %.*\nPrivateTest .* %", capsys.readouterr().out)
        raise KeyboardInterrupt

    monkeypatch.setattr(test, "evaluate_corruptions", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_test(folder, "--no_landmarks", "--corruptions", "--out", tmp_path / "r")
    assert (tmp_path / "r/metrics.json").exists()  # the results so far are kept


def test_killed_evaluation_leaves_no_empty_folder(folder, tmp_path, monkeypatch):
    """SIGKILL gives no chance to clean up, so the folder must not exist during the prediction."""
    folders = []

    def interrupted(*_args, **_options):
        folders.extend(path for path in tmp_path.rglob("*") if path.is_dir())
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.evaluate.predict", interrupted)
    monkeypatch.setattr("utils.run_folder.RUNS", tmp_path / "model_save")
    for argv in ((), ("--out", tmp_path / "r")):
        with pytest.raises(KeyboardInterrupt):
            run_test(folder, "--no_landmarks", *argv)
    assert folders == []
    assert os.listdir(tmp_path) == []
