"""When and what a run writes: best.pth for use, last.pth to go on from."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path

from models.checkpoint import Checkpoint, save_checkpoint
from models.state import State
from utils.options import Options

SHARE = 0.03  # of the time may go into saving, which takes as long as an epoch on a fast GPU


class Saver:
    """Keeps the weights of the best epoch, and writes both files as often as it pays.

    A run that is killed repeats what it did since: an epoch, or where epochs are short some
    30 times as long as saving takes.

    Args:
        folder: of the run.
        options: of the run.
        class_names: in the order of the logits.
    """

    def __init__(self, folder: Path, options: Options, class_names: tuple[str, ...]) -> None:
        self._folder, self._options, self._class_names = folder, options, class_names
        self._best: Checkpoint | None = None  # where it is not written yet
        self._due = 0.0
        self._written: tuple[int, int] | None = None  # epoch and batch

    def epoch(self, state: State) -> None:
        """Note an epoch that has ended, and write where it is time."""
        accuracies = [row["public_accuracy"] for row in state.history]
        if all(accuracies[-1] > earlier for earlier in accuracies[:-1]):
            best = self._checkpoint(state)
            net = {name: value.clone() for name, value in best.net.items()}
            self._best = replace(best, net=net)
        if time.monotonic() >= self._due:
            self.write(state)

    def write(self, state: State) -> None:
        """Write best.pth where there is a better one, then last.pth; nothing where both stand.

        A resumed run starts from last.pth, so it comes second: a run killed between
        the two repeats the epoch, and writes the same best.pth again.

        Raises:
            RunError: the disk is full or the folder cannot be written.
        """
        if self._written == (state.epoch, state.batches):
            return
        start = time.monotonic()
        if self._best:
            save_checkpoint(self._folder / "best.pth", self._best)
            self._best = None
        last = replace(self._checkpoint(state), training=state.for_resume())
        save_checkpoint(self._folder / "last.pth", last)
        self._written = state.epoch, state.batches
        end = time.monotonic()
        self._due = end + (end - start) / SHARE

    def _checkpoint(self, state: State) -> Checkpoint:
        row = state.history[-1] if state.history else {}
        return Checkpoint(
            architecture=state.network.architecture,
            net=state.ema.network.state_dict(),
            class_names=self._class_names,
            image_width=self._options.image_width,
            epoch=state.epoch,
            options=asdict(self._options),
            scores={name[7:]: row[name] for name in row if name.startswith("public_")},
        )
