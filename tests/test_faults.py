"""Signals, random kills, and divergence during a training run."""

import errno
import os
import random
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from kills import KillTest, assert_same_run

import train
from data.synthetic.generate import synthetic_dataset
from engine import trainer
from engine.distributed import DistributedContext
from engine.divergence import CONSECUTIVE, CONSECUTIVE_AT_END, DivergenceGuard
from models.checkpoint import load_checkpoint
from models.fernet import Architecture, FERNet
from models.losses import rank_regularization, relabel_scn, weighted_cross_entropy
from utils import metrics
from utils.errors import OptionError, RunError, run_main
from utils.signals import Interrupted, record_signals

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    *("--threads", "1"),
    *("--gpu_ids", "-1", "--width", "0.1", "--image_width", "32", "--batch_size", "16"),
    *("--no_landmarks", "--total_epoch", "3"),
    *("--relabel", "ema", "--relabel_epoch", "1", "--margin_2", "0.01", "--relabel_cap", "1"),
)


def run(*argv, on_loss=None):
    """Call train.main with a command line.

    Args:
        argv: The command line.
        on_loss: Called with the number of each batch, its losses, and the network's output. It may
            return other losses.
    """
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", ["train.py", *map(str, argv)])
        if on_loss:
            compute, numbers = trainer.compute_losses, iter(range(1_000_000))

            def computed(output, *rest, **more):
                losses = compute(output, *rest, **more)
                return on_loss(next(numbers), losses, output) or losses

            context.setattr(trainer, "compute_losses", computed)
        train.main()


def kill_at(batch, number=signal.SIGTERM):
    """Return an `on_loss` that sends a signal in a batch, counted from 0."""

    def kill(i, losses, output):
        if i == batch:
            os.kill(os.getpid(), number)

    return kill


def interrupt_and_resume(*argv, batch, then=()):
    """Train until a SIGTERM in a batch, counted from 0; resume with the options `then`."""
    with pytest.raises(Interrupted):
        run(*argv, on_loss=kill_at(batch))
    run("--resume", argv[argv.index("--out") + 1], *then)


def start_train(*argv, **options):
    """Run train.py in a process of its own."""
    command = [sys.executable, str(ROOT / "train.py"), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "batch", [0, 5, 7, 11]
)  # the first, within an epoch, last of an epoch, last
def test_interrupted_run_saves_finished_batches_and_resumes(
    reference, faces_csv, tmp_path, number, batch
):
    argv = ("--data", faces_csv, "--out", tmp_path / "r", *TINY)
    message = r"checkpoint saved. Resume with: bash train.sh --resume"
    with pytest.raises(Interrupted, match=message) as interrupt:
        run(*argv, on_loss=kill_at(batch, number))
    assert interrupt.value.number == number
    saved = load_checkpoint(tmp_path / "r/last.pth")
    assert (saved.epoch, saved.training["batches"]) == divmod(batch + 1, 4)
    run("--resume", tmp_path / "r")
    assert_same_run(reference, tmp_path / "r")


def test_second_signal_interrupts_at_once():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # torchrun may have left its own
    with record_signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals == [signal.SIGTERM]
        with pytest.raises(Interrupted, match="without saving"):
            os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):  # the handler is restored
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_closing_terminal_interrupts_except_under_nohup():
    def close():
        os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as status:
            run_main(close)
        assert status.value.code == 129
        with record_signals() as signals:
            close()
        assert signals == [signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        run_main(close)
        with record_signals() as signals:
            close()
        assert signals == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_exit_codes(capsys):
    def status(main):
        with pytest.raises(SystemExit) as exit_:
            run_main(main)
        return exit_.value.code, capsys.readouterr().err

    def status_of(error):
        def main():
            raise error

        return status(main)

    assert status_of(KeyboardInterrupt()) == (130, "\ninterrupted\n")
    assert status_of(Interrupted(signal.SIGTERM, "saved")) == (143, "\nsaved\n")
    assert status_of(OptionError("--x is 0")) == (2, "error: --x is 0\n")
    assert status_of(RunError("no room")) == (1, "error: no room\n")
    for full in (MemoryError(), torch.OutOfMemoryError("Tried 3 GiB\nmore")):
        assert re.fullmatch(r"error: out of memory \(.*\); .*--batch_size.*\n", status_of(full)[1])
    code, message = status(lambda: torch.empty(1 << 45))
    assert code == 1
    assert re.match(r"error: out of memory \(.*can't allocate memory.*--batch_size", message)
    network = FERNet(Architecture(stem="imagenet", width=0.25)).train()
    code, message = status(lambda: network(torch.zeros(1, 1, 32, 32)))
    assert code == 1
    assert re.match("error: .*needs more than one image here; .*--batch_size", message)
    code, message = status_of(OSError(errno.ENOSPC, "No space left on device"))
    assert code == 1
    assert re.fullmatch("error: .*: No space left on device; .*\n", message)
    code, message = status_of(PermissionError(errno.EACCES, "Permission denied", "faces/a.png"))
    assert code == 1
    assert message.startswith("error: faces/a.png: Permission denied; correct the path")
    with pytest.raises(RuntimeError, match="another"):
        status_of(RuntimeError("another"))
    with pytest.raises(PermissionError):
        status_of(PermissionError(errno.EACCES, "Permission denied"))


def test_a_signal_at_any_time_has_a_message(capsys):
    class TerminatedError(RunError):
        def __str__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            return "never shown"

    def fail():
        raise TerminatedError

    for main in (fail, partial(os.kill, os.getpid(), signal.SIGTERM)):
        with pytest.raises(SystemExit, match="143"):
            run_main(main)
        assert capsys.readouterr().err == "\nterminated\n"


def test_closed_pipe_ends_without_traceback():
    command = f"{sys.executable} {ROOT / 'predict.py'} --help | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout in ("141\n", "0\n")  # 0 if the pipe took everything before `true` ended
    assert "Traceback" not in result.stderr
    assert "Broken" not in result.stderr


def test_runs_killed_at_random_moments_are_equal_to_the_bit(tmp_path):
    tally = KillTest(tmp_path, random.Random(1), images=12).run(2)
    assert sum(tally.values()) == 2


# Divergence


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_divergence_error_names_batch_and_value(faces_csv, tmp_path, fault):
    def corrupt(i, losses, output):
        if i == 6:  # the third batch of the second epoch
            if fault == "loss":
                losses["loss_rank"] = losses["loss_rank"] + torch.inf
            else:  # the value is 0, and its gradient 0 * inf
                losses["loss"] = losses["loss"] + (0 * output.logits.sum()).abs().sqrt() * 0

    named = {"loss": "loss_rank = inf", "gradient": "gradient_norm = nan"}[fault]
    with pytest.raises(RunError, match=f"diverged in epoch 2, batch 3: .*{named}.*Lower --start"):
        run("--data", faces_csv, "--out", tmp_path / "r", *TINY, on_loss=corrupt)
    saved = load_checkpoint(tmp_path / "r/last.pth")
    assert (saved.epoch, saved.training["batches"]) == (1, 0)
    assert all(value.isfinite().all() for value in saved.net.values())


def test_collapsed_importances_end_the_run(faces_csv, reference, tmp_path):
    collapsed = torch.load(reference / "best.pth", weights_only=True)
    collapsed["net"]["attention.bias"] -= 200
    torch.save(collapsed, tmp_path / "collapsed.pth")
    argv = ("--data", faces_csv, "--model_path", tmp_path / "collapsed.pth", *TINY)
    argv += ("--total_epoch", 1, "--batch_size", 2)
    with pytest.raises(RunError, match=r"importances collapsed to 0.* epoch 1, batch 20: .*--clip"):
        run(*argv, "--out", tmp_path / "r")
    run(*argv, "--out", tmp_path / "s", "--no_importance")


def test_few_collapsed_batches_are_allowed():
    guard = DivergenceGuard(1, 200, DistributedContext())
    for batch in range(200):
        is_low = batch % CONSECUTIVE > 0 and batch < 196
        guard.update(batch, {"importance_mean": torch.tensor(1e-9 if is_low else 0.3)})
    guard.raise_if_diverged()


@pytest.mark.parametrize("num_batches", [1, 3, CONSECUTIVE_AT_END, 70])
@pytest.mark.parametrize("missing", [0, 1])
def test_epoch_that_ends_collapsed_is_not_saved(num_batches, missing):
    guard = DivergenceGuard(3, num_batches, DistributedContext())
    for batch in range(num_batches):
        is_low = batch >= max(0, num_batches - CONSECUTIVE_AT_END) + missing
        guard.update(batch, {"importance_mean": torch.tensor(1e-9 if is_low else 0.3)})
    if missing:
        guard.raise_if_diverged()
    else:
        with pytest.raises(RunError, match=rf"epoch 3, batch {num_batches}: .*--clip to 1"):
            guard.raise_if_diverged()


# Degenerate batches


@pytest.mark.parametrize("backbone", ["resnet18", "vgg11"])
@pytest.mark.parametrize("size", [1, 2])  # smaller than the 1 / 0.7 images that two groups need
def test_tiny_batches_are_finite(faces_csv, tmp_path, backbone, size):
    argv = ("--data", faces_csv, "--out", tmp_path / "r", *TINY, "--total_epoch", 1)
    argv += ("--backbone", backbone, "--image_width", 48)
    run(*argv, "--batch_size", size, "--start_lr", 1e-4)
    saved = load_checkpoint(tmp_path / "r/last.pth")
    assert all(value.isfinite().all() for value in saved.net.values())


def test_batches_without_landmarks_are_finite(tmp_path):
    dataset = synthetic_dataset(training=7, public=3, private=3)
    dataset.landmarks[1:] = np.nan  # one image has landmarks, so most batches have none
    for name, split in (("train", "Training"), ("validation", "PublicTest")):
        rows = np.flatnonzero(dataset.split == split)
        for row in rows:
            image = tmp_path / f"{row}.pgm"
            image.write_bytes(b"P5 48 48 255\n" + dataset.images[row].tobytes())
            if not np.isnan(dataset.landmarks[row]).any():
                text = " ".join(map(str, dataset.landmarks[row].ravel()))
                image.with_suffix(".txt").write_text(text)
        (tmp_path / f"{name}_images.txt").write_text("\n".join(f"{row}.pgm" for row in rows))
        (tmp_path / f"{name}_labels.txt").write_text("\n".join(map(str, dataset.labels[rows])))
    argv = [option for option in TINY if option != "--no_landmarks"]
    run("--data", tmp_path, "--out", tmp_path / "r", *argv)
    saved = load_checkpoint(tmp_path / "r/last.pth")
    assert all(value.isfinite().all() for value in saved.net.values())


def test_equal_importances_are_finite():
    equal = torch.full((10, 1), 0.5, requires_grad=True)
    loss = rank_regularization(equal, 0.7, 0.15)
    loss.backward()
    assert loss.item() == pytest.approx(0.15)
    assert equal.grad.isfinite().all()
    logits, labels = torch.randn(10, 7), torch.arange(10) % 7
    relabeled = relabel_scn(logits, labels, 0.2, equal.detach(), 0.7)
    assert (relabeled != labels).sum() <= 3  # the low group has three images
    assert weighted_cross_entropy(logits, equal, labels).isfinite()


def test_scores_of_a_class_without_images_are_finite():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.full((4, 3), 1 / 3, np.float32)
    probabilities[:, 2] += 0.1
    scores = metrics.score(labels, probabilities, ("a", "b", "c"))
    assert scores["accuracy"] == 0
    assert all(np.isfinite(scores[name]) for name in ("balanced_accuracy", "macro_f1", "ece"))
