"""An interrupted or failed process leaves no empty run folder."""

import subprocess
import sys

import pytest

from utils.errors import RunError
from utils.run_folder import ROOT, RunFolder

CODE = """
import os, signal, sys
from utils.errors import run_main
from utils.run_folder import RunFolder

def main():
    with RunFolder.create(sys.argv[1], "x"):
        assert os.path.isdir(sys.argv[1])
        os.kill(os.getpid(), signal.Signals[sys.argv[2]])
        signal.pause()

run_main(main)
"""


@pytest.mark.parametrize(("signal", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_leaves_no_empty_folder(tmp_path, signal, status):
    command = [sys.executable, "-c", CODE, str(tmp_path / "run"), signal]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == status
    assert not (tmp_path / "run").exists()


def fail_in(run, *names):
    with run:
        for name in names:
            (run / name).write_text("")
        raise RunError("failed")


def test_an_error_leaves_no_empty_folder(tmp_path):
    with pytest.raises(RunError, match="failed"):
        fail_in(RunFolder.create(str(tmp_path / "run"), "x"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(RunError, match="failed"):
        fail_in(RunFolder.create("", "x", parent=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_kept(tmp_path):
    with pytest.raises(RunError, match="failed"):
        fail_in(RunFolder.create(str(tmp_path / "run"), "x"), "config.json")
    assert (tmp_path / "run/config.json").exists()


def test_a_folder_that_existed_is_kept(tmp_path):
    with pytest.raises(RunError, match="failed"):
        fail_in(RunFolder.create(str(tmp_path), "x"))
    assert tmp_path.is_dir()


def test_a_folder_is_kept_on_success(tmp_path):
    with RunFolder.create(str(tmp_path / "run"), "x"):
        pass
    assert (tmp_path / "run").is_dir()


def test_runs_of_the_same_second_have_different_folders(tmp_path):
    folders = {RunFolder.create("", "x", parent=tmp_path).path for _ in range(3)}
    assert len(folders) == 3
