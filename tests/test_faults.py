"""What happens to a long run: signals, a full disk, a second run, numbers that are none."""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from kills import Harness, assert_same_run, write_csv

import train
from data.synthetic.generate import synthetic_dataset
from engine.distributed import DistributedContext
from engine.divergence import AT_THE_END, IN_A_ROW, DivergenceGuard
from engine.logger import TrainingLogger
from models import learner
from models.checkpoint import load_checkpoint
from models.losses import rank_regularization, relabel, weighted_cross_entropy
from utils import metrics
from utils.errors import ProjectError, RunError, run_main
from utils.files import atomic_write
from utils.run_folder import LOCK, RunFolder
from utils.signals import Interrupted, record_signals

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    *("--gpu_ids", "-1", "--width", "0.1", "--image_width", "32", "--batch_size", "16"),
    *("--no_landmarks", "--total_epoch", "3", "--relabel_epoch", "1", "--margin_2", "0.01"),
)


@pytest.fixture(scope="module")
def faces_csv(tmp_path_factory):
    faces = synthetic_dataset(training=7, public=3, private=3)
    return write_csv(faces, tmp_path_factory.mktemp("data") / "faces.csv")


@pytest.fixture(scope="module")
def whole(faces_csv, tmp_path_factory):
    """Return the folder of an undisturbed run: 3 epochs of 4 batches."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run("--data", faces_csv, "--out", folder, *TINY)
    return folder


def run(*argv, on_loss=None):
    """Call train.main as if typed; `on_loss` gets the number of each batch and its losses."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", ["train.py", *map(str, argv)])
        if on_loss:
            compute, count = learner.compute_losses, iter(range(1_000_000))

            def computed(output, *rest, **more):
                losses = compute(output, *rest, **more)
                return on_loss(next(count), losses, output) or losses

            context.setattr(learner, "compute_losses", computed)
        train.main()


def stop_and_go_on(*argv, batch, then=()):
    """Train until a SIGTERM in the `batch`-th forward pass, from 0, and on with options `then`."""

    def kill(i, losses, output):
        if i == batch:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(*argv, on_loss=kill)
    run("--resume", argv[argv.index("--out") + 1], *then)


def started(*argv, **options):
    """Run train.py in a process of its own."""
    command = [sys.executable, str(ROOT / "train.py"), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("batch", [0, 5, 7, 11])  # the first of all, within, and the last of epochs
def test_a_signal_saves_the_batches_that_are_done(whole, faces_csv, tmp_path, number, batch):
    def kill(i, losses, output):
        if i == batch:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=r"nothing is lost: bash train.sh --resume") as stopped:
        run("--data", faces_csv, "--out", tmp_path / "r", *TINY, on_loss=kill)
    assert stopped.value.number == number
    saved = load_checkpoint(tmp_path / "r/last.pth")
    assert (saved.epoch, saved.training["batches"]) == divmod(batch + 1, 4)
    run("--resume", tmp_path / "r")
    assert_same_run(whole, tmp_path / "r")


def test_a_second_signal_does_not_wait():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # torchrun's may have been left here
    with record_signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals == [signal.SIGTERM]
        with pytest.raises(Interrupted, match="at once"):
            os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):  # afterwards it is as it was
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_terminal_that_closes_ends_what_ran_in_it_but_for_nohup():
    def closing():
        os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as status:
            run_main(closing)
        assert status.value.code == 129
        with record_signals() as signals:
            closing()
        assert signals == [signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        run_main(closing)
        with record_signals() as signals:
            closing()
        assert signals == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_exit_codes(capsys):
    def ends(error):
        def main():
            raise error

        with pytest.raises(SystemExit) as status:
            run_main(main)
        return status.value.code

    assert ends(KeyboardInterrupt()) == 130
    assert ends(Interrupted(signal.SIGTERM, "saved")) == 143
    assert capsys.readouterr().err == "\ninterrupted\n\nsaved\n"
    assert ends(RunError("no room")) == "error: no room"  # which Python prints, and exits with 1
    for full in (MemoryError(), torch.OutOfMemoryError("Tried 3 GiB\nmore")):
        assert re.fullmatch(r"error: out of memory \(.*\); take a smaller .*", ends(full))
    with pytest.raises(SystemExit, match=r"out of memory \(.*can't allocate memory.*smaller"):
        run_main(lambda: torch.empty(1 << 45))
    with pytest.raises(RuntimeError, match="another"):
        ends(RuntimeError("another"))
    assert ends(OSError(errno.ENOSPC, "No space left on device")) == (
        "error: the disk that takes the output: No space left on device; free some space, and "
        "start again"
    )
    with pytest.raises(PermissionError):
        ends(PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(SystemExit, match="143"):
        run_main(partial(os.kill, os.getpid(), signal.SIGTERM))


def test_a_reader_that_ends_first():
    command = f"{sys.executable} {ROOT / 'train.py'} --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout in ("141\n", "0\n")  # 0 where the pipe took all before `true` ended
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


def test_runs_that_are_ended_at_random_moments(tmp_path):
    tally = Harness(tmp_path, random.Random(1)).play(2)
    assert sum(tally.values()) == 2


# The disk, and the folder


def stopped_within(folder, faces_csv, batch):
    """Leave a run that was stopped after so many batches."""

    def kill(i, losses, output):
        if i == batch - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run("--data", faces_csv, "--out", folder, *TINY, on_loss=kill)


def test_a_full_disk_leaves_the_last_checkpoint(whole, faces_csv, tmp_path):
    stopped_within(tmp_path / "r", faces_csv, 6)
    before = (tmp_path / "r/last.pth").read_bytes()
    most = len(before) // 4  # bytes of any file: so tables can be written, and weights cannot
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most))
    result = started("--resume", tmp_path / "r", preexec_fn=limit)
    assert result.returncode == 1
    assert "could not be written (File too large); free disk space" in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "r/last.pth").read_bytes() == before
    assert not list((tmp_path / "r").glob(".*.part"))
    run("--resume", tmp_path / "r")
    assert_same_run(whole, tmp_path / "r")


def test_a_read_only_folder_leaves_the_file(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")

    def refuse(*args, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refuse)  # root may write where others may not
    read_only = pytest.raises(RunError, match=r"a could not be written \(Read-only file system\)")
    with read_only, atomic_write(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "old"


def test_the_second_run_in_a_folder_is_refused(whole, faces_csv):
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    with RunFolder(whole):
        result = started("--resume", whole)
        assert result.returncode == 1
        assert f"error: another process works in {whole}" in result.stderr
    with pytest.raises(ProjectError, match="holds files already, and they are not overwritten"):
        run("--data", faces_csv, "--out", whole, *TINY)
    after = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    lock = whole / LOCK  # which filelock before 3.13 opens for writing
    assert after | {lock: 0} == before | {lock: 0}


def test_a_folder_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(*_args, **_options):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with RunFolder(tmp_path) as run:
        assert run.path == tmp_path
    assert "file system without locks" in capsys.readouterr().err
    monkeypatch.setattr("utils.run_folder.WITHOUT_LOCKS", ())
    with pytest.raises(RunError, match="cannot be written"), RunFolder(tmp_path):
        pass


def test_a_run_that_goes_on_is_locked_before_it_is_read(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "r")

    def loaded(path):
        with pytest.raises(RunError, match="another process works"), RunFolder(tmp_path / "r"):
            pass
        raise RunError("looked")

    monkeypatch.setattr(train, "load_checkpoint", loaded)
    with pytest.raises(RunError, match="looked"):
        run("--resume", tmp_path / "r")


def test_tensorboard_may_lose_what_the_disk_does_not_take(tmp_path, monkeypatch, capsys):
    log = TrainingLogger(RunFolder(tmp_path), ("a", "b"), 1, 0)

    def refuse(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log._board, "flush", refuse)
    row = {"epoch": 1, "loss": 1.0, "train_accuracy": 0.5, "public_accuracy": 0.5, "relabeled": 0}
    log.epoch([row], [], 1.0)
    told = capsys.readouterr()
    assert "TensorBoard's file of the run is not whole (No space left" in told.err
    assert "PublicTest 50.00 %" in told.out
    assert (tmp_path / "metrics.csv").exists()


def test_what_looking_at_a_folder_leaves_there_is_nothing(tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"")
    assert RunFolder.create(str(tmp_path), "x").path == tmp_path


def test_partial_files_of_a_killed_process_are_removed(whole):
    (whole / ".last.pth.x.part").write_text("half")
    with RunFolder(whole):
        assert not (whole / ".last.pth.x.part").exists()


def test_runs_that_start_in_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.run_folder.RUNS", tmp_path)
    assert len({RunFolder.create("", "x").path for _ in range(5)}) == 5


def test_trainings_that_start_at_once_share_the_caches(tmp_path):
    csv = write_csv(synthetic_dataset(training=30, public=10, private=10), tmp_path / "faces.csv")
    argv = ["--gpu_ids", "-1", "--width", "0.1", "--image_width", "32", "--total_epoch", "1"]
    processes = [
        subprocess.Popen(
            [sys.executable, ROOT / "train.py", "--data", csv, "--out", tmp_path / str(i), *argv],
            env=os.environ | {"FER_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        for i in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    for i in (1, 2):
        assert_same_run(tmp_path / "0", tmp_path / str(i))
    assert not list((tmp_path / "cache").rglob(".*.part"))


def test_a_damaged_config_is_named(whole, tmp_path):
    saved = json.loads((whole / "config.json").read_text())["options"]
    for wrong in (
        *({"options": saved | change} for change in ({"width": "x"}, {"trunk": "vgg12"})),
        *({"options": saved | change} for change in ({"relabel": 1}, {"class_names": [1]})),
        *({"options": saved | {"batch_size": 0}}, {"options": []}, {}, []),
    ):
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(ProjectError):
            run("--resume", tmp_path)


def test_a_run_whose_landmarks_have_changed_goes_on_with_a_warning(
    faces_csv, whole, tmp_path, capsys
):
    shutil.copytree(whole, tmp_path / "r")
    saved = torch.load(whole / "last.pth", weights_only=True)
    assert saved["training"]["target_digest"]
    saved["training"]["target_digest"] = "another"
    torch.save(saved, tmp_path / "r/last.pth")
    run("--resume", tmp_path / "r", "--data", faces_csv)
    assert "warning: the landmarks or the votes are not" in capsys.readouterr().err
    run("--resume", tmp_path / "r", "--data", faces_csv)  # which are its own by now
    assert "warning: the landmarks" not in capsys.readouterr().err


# Numbers


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_the_batch_and_the_measure_that_is_no_number_are_named(faces_csv, tmp_path, fault):
    def spoil(i, losses, output):
        if i == 6:  # the third batch of the second epoch
            if fault == "loss":
                losses["loss_rank"] = losses["loss_rank"] + torch.inf
            else:  # 0 by itself, and its gradient is 0 * inf
                losses["loss"] = losses["loss"] + (0 * output.logits.sum()).abs().sqrt() * 0

    named = {"loss": "loss_rank = inf", "gradient": "gradient_norm = nan"}[fault]
    with pytest.raises(RunError, match=f"diverged in epoch 2, batch 3: .*{named}.*Lower --start"):
        run("--data", faces_csv, "--out", tmp_path / "r", *TINY, on_loss=spoil)
    saved = load_checkpoint(tmp_path / "r/last.pth")
    assert (saved.epoch, saved.training["batches"]) == (1, 0)
    assert all(value.isfinite().all() for value in saved.net.values())


def test_a_run_whose_importances_are_gone_stops(faces_csv, whole, tmp_path):
    gone = torch.load(whole / "best.pth", weights_only=True)
    gone["net"]["attention.bias"] -= 200
    torch.save(gone, tmp_path / "gone.pth")
    argv = ("--data", faces_csv, "--model_path", tmp_path / "gone.pth", *TINY)
    argv += ("--total_epoch", 1, "--batch_size", 2)
    with pytest.raises(RunError, match=r"importances have gone to 0.* epoch 1, batch 20: .*--clip"):
        run(*argv, "--out", tmp_path / "r")
    run(*argv, "--out", tmp_path / "s", "--no_importance")


def test_a_few_batches_without_importances_stop_nothing():
    faults = DivergenceGuard(1, 200, DistributedContext())
    for batch in range(200):
        low = batch % IN_A_ROW > 0  # but once in so many batches
        faults.note(batch, {"importance_mean": torch.tensor(1e-9 if low and batch < 196 else 0.3)})
    faults.raise_if_diverged()


@pytest.mark.parametrize("batch_num", [1, 3, AT_THE_END, 70])
@pytest.mark.parametrize("missing", [0, 1])
def test_an_epoch_that_ends_without_importances_is_not_kept(batch_num, missing):
    faults = DivergenceGuard(3, batch_num, DistributedContext())
    for batch in range(batch_num):
        low = batch >= max(0, batch_num - AT_THE_END) + missing
        faults.note(batch, {"importance_mean": torch.tensor(1e-9 if low else 0.3)})
    if missing:
        faults.raise_if_diverged()
    else:
        with pytest.raises(RunError, match=rf"epoch 3, batch {batch_num}: .*--clip to 1"):
            faults.raise_if_diverged()


@pytest.mark.parametrize("trunk", ["resnet18", "vgg11"])
@pytest.mark.parametrize("size", [1, 2])  # less than the 1 / 0.7 that both groups would need
def test_tiny_batches(faces_csv, tmp_path, backbone, size):
    argv = ("--data", faces_csv, "--out", tmp_path / "r", *TINY, "--total_epoch", 1)
    run(*argv, "--batch_size", size, "--trunk", backbone, "--image_width", 48, "--start_lr", 1e-4)
    saved = load_checkpoint(tmp_path / "r/last.pth")
    assert all(value.isfinite().all() for value in saved.net.values())


def test_batches_without_landmarks(tmp_path):
    faces = synthetic_dataset(training=7, public=3, private=3)
    faces.landmarks[1:] = np.nan  # one face of all has some, so most batches have none
    lists = [("train", "Training"), ("validation", "PublicTest")]
    for split, split in lists:
        rows = np.flatnonzero(faces.split == split)
        for row in rows:
            train_image = tmp_path / f"{row}.pgm"
            train_image.write_bytes(b"P5 48 48 255\n" + faces.images[row].tobytes())
            if not np.isnan(faces.landmarks[row]).any():
                text = " ".join(map(str, faces.landmarks[row].ravel()))
                train_image.with_suffix(".txt").write_text(text)
        (tmp_path / f"{split}_images.txt").write_text("\n".join(f"{row}.pgm" for row in rows))
        (tmp_path / f"{split}_labels.txt").write_text("\n".join(map(str, faces.labels[rows])))
    argv = [option for option in TINY if option != "--no_landmarks"]
    run("--data", tmp_path, "--out", tmp_path / "r", *argv)
    saved = load_checkpoint(tmp_path / "r/last.pth")
    assert all(value.isfinite().all() for value in saved.net.values())


def test_equal_importances():
    equal = torch.full((10, 1), 0.5, requires_grad=True)
    loss = rank_regularization(equal, 0.7, 0.15)
    loss.backward()
    assert loss.item() == pytest.approx(0.15)
    assert equal.grad.isfinite().all()
    logits, labels = torch.randn(10, 7), torch.arange(10) % 7
    moved = relabel(logits, labels, 0.2, equal.detach(), 0.7)
    assert (moved != labels).sum() <= 3  # the low group has three faces, whichever they are
    assert weighted_cross_entropy(logits, equal, labels).isfinite()


def test_a_class_without_a_face_is_scored():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.full((4, 3), 1 / 3, np.float32)
    probabilities[:, 2] += 0.1
    scores = metrics.score(labels, probabilities, ("a", "b", "c"))
    assert scores["accuracy"] == 0
    assert all(np.isfinite(scores[name]) for name in ("balanced_accuracy", "macro_f1", "ece"))
