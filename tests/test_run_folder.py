"""The run folder: full disks, read-only folders, locks, several runs at once."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from kills import SMALL, assert_same_run
from test_faults import ROOT, TINY, kill_at, run, start_train

import train
from engine.logger import TrainingLogger
from utils.errors import OptionError, ProjectError, RunError
from utils.files import atomic_write
from utils.options import Options
from utils.run_folder import LOCK, RunFolder
from utils.signals import Interrupted


def test_full_disk_leaves_the_last_checkpoint(reference, faces_csv, tmp_path):
    with pytest.raises(Interrupted):
        run("--data", faces_csv, "--out", tmp_path / "r", *TINY, on_loss=kill_at(5))
    before = (tmp_path / "r/last.pth").read_bytes()
    most = len(before) // 4  # bytes of a file: tables can be written, and weights cannot
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most))
    result = start_train("--resume", tmp_path / "r", preexec_fn=limit)
    assert result.returncode == 1
    assert "could not be written (File too large); free disk space" in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "r/last.pth").read_bytes() == before
    assert not list((tmp_path / "r").glob(".*.part"))
    run("--resume", tmp_path / "r")
    assert_same_run(reference, tmp_path / "r")


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")

    def refuse(*args, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)  # root may write to read-only folders
    read_only = pytest.raises(RunError, match=r"a could not be written \(Read-only file system\)")
    with read_only, atomic_write(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "old"


def test_a_run_stores_absolute_paths_of_its_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"data": "a.csv", "ferplus": "", "ferplus_test": "votes.csv", "seed": 3}
    RunFolder(tmp_path).write_config(options, "2.9", is_new=True)
    stored = RunFolder(tmp_path).read_json("config.json")["options"]
    paths = {"data": f"{tmp_path}/a.csv", "ferplus_test": f"{tmp_path}/votes.csv"}
    assert stored == options | paths
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    RunFolder(tmp_path).write_config(options | {"data": "~/a.csv"}, "2.9", is_new=True)
    stored = RunFolder(tmp_path).read_json("config.json")["options"]
    assert stored["data"] == f"{tmp_path}/home/a.csv"
    RunFolder(tmp_path).write_config(options | {"data": "sample"}, "2.9", is_new=True)
    assert RunFolder(tmp_path).read_json("config.json")["options"]["data"] == "sample"


def test_a_file_as_run_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunError, match=r"notes\.txt is a file; give a folder"):
        RunFolder.check_out(tmp_path / "notes.txt")


def test_second_run_in_a_folder_is_refused(reference, faces_csv):
    before = {path: path.stat().st_mtime_ns for path in reference.iterdir()}
    with RunFolder(reference):
        result = start_train("--resume", reference)
        assert result.returncode == 1
        assert f"error: another process works in {reference}" in result.stderr
    with pytest.raises(ProjectError, match=f"{reference} .*--out.*--resume {reference}"):
        run("--data", faces_csv, "--out", reference, *TINY)
    after = {path: path.stat().st_mtime_ns for path in reference.iterdir()}
    lock = reference / LOCK  # filelock before 3.13 opens it for writing
    assert after | {lock: 0} == before | {lock: 0}


def test_folder_without_locks_gives_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(*_args, **_options):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with RunFolder(tmp_path) as folder:
        assert folder.path == tmp_path
    assert "file system without locks" in capsys.readouterr().err
    monkeypatch.setattr("utils.run_folder.WITHOUT_LOCKS", ())
    with pytest.raises(RunError, match="cannot be written"), RunFolder(tmp_path):
        pass


def test_resumed_run_is_locked_before_it_is_read(reference, tmp_path, monkeypatch):
    shutil.copytree(reference, tmp_path / "r")

    def load(path):
        with pytest.raises(RunError, match="another process works"), RunFolder(tmp_path / "r"):
            pass
        raise RunError("checked")

    monkeypatch.setattr(train, "load_checkpoint", load)
    with pytest.raises(RunError, match="checked"):
        run("--resume", tmp_path / "r")


def test_tensorboard_on_a_full_disk_gives_a_warning(tmp_path, monkeypatch, capsys):
    logger = TrainingLogger(RunFolder(tmp_path), ("a", "b"), Options(total_epoch=1), 0)

    def refuse(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(logger._board, "flush", refuse)
    row = {"epoch": 1, "loss": 1.0, "train_accuracy": 0.5, "relabeled": 0}
    row |= {"public_accuracy": 0.5, "public_balanced_accuracy": 0.25}
    logger.log_epoch([row], [], 1.0)
    output = capsys.readouterr()
    assert "TensorBoard log is incomplete (No space left" in output.err
    assert "PublicTest 50.00 %, balanced 25.00 % (best 50.00 in 1)" in output.out
    assert (tmp_path / "metrics.csv").exists()


def test_files_of_a_desktop_do_not_make_a_folder_occupied(tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"")
    assert RunFolder.create(str(tmp_path), "x").path == tmp_path


def test_partial_files_of_a_killed_process_are_removed(reference):
    (reference / ".last.pth.x.part").write_text("half")
    with RunFolder(reference):
        assert not (reference / ".last.pth.x.part").exists()


def test_runs_started_in_one_second_have_different_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.run_folder.RUNS", tmp_path)
    assert len({RunFolder.create("", "x").path for _ in range(5)}) == 5


def test_runs_started_at_once_share_the_cache(faces_csv, tmp_path):
    argv = [sys.executable, ROOT / "train.py", "--data", faces_csv, *SMALL, "--total_epoch", "1"]
    processes = [
        subprocess.Popen(
            [*argv, "--out", tmp_path / str(i)],
            env=os.environ | {"FER_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        for i in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    for i in (1, 2):
        assert_same_run(tmp_path / "0", tmp_path / str(i))
    assert not list((tmp_path / "cache").rglob(".*.part"))


def test_damaged_config_is_an_error(reference, tmp_path):
    saved = json.loads((reference / "config.json").read_text())["options"]
    for wrong in (
        *({"options": saved | change} for change in ({"width": "x"}, {"backbone": "vgg12"})),
        *({"options": saved | change} for change in ({"relabel": "x"}, {"class_names": [1]})),
        *({"options": saved | {"batch_size": 0}}, {"options": []}, {}, []),
    ):
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(ProjectError, match=r"config\.json|--batch_size"):
            run("--resume", tmp_path)


def test_config_of_an_earlier_version_is_an_error(reference, tmp_path):
    """An unknown option must not be dropped: the run would continue as another one."""
    config = json.loads((reference / "config.json").read_text())
    config["options"]["trunk"] = config["options"].pop("backbone")
    config["options"] |= {"sam": 0.05, "rank": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(OptionError, match=r"unknown options \(rank, sam, trunk\).*new run"):
        run("--resume", tmp_path)


def test_run_with_other_landmarks_resumes_with_a_warning(
    faces_csv,
    reference,
    tmp_path,
    capsys,
):
    shutil.copytree(reference, tmp_path / "r")
    saved = torch.load(reference / "last.pth", weights_only=True)
    assert saved["training"]["target_digest"]
    saved["training"]["target_digest"] = "another"
    torch.save(saved, tmp_path / "r/last.pth")
    run("--resume", tmp_path / "r", "--data", faces_csv)
    assert "warning: the landmarks or votes differ" in capsys.readouterr().err
    run("--resume", tmp_path / "r", "--data", faces_csv)  # last.pth has the new digest
    assert "warning: the landmarks" not in capsys.readouterr().err
