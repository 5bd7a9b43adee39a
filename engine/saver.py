"""Writing checkpoints during a run: best.pth for use, last.pth for resuming."""

import time
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

from engine.state import TrainingState
from models.checkpoint import Checkpoint, save_checkpoint
from utils.options import Options

# Of a run's time, for saving. On a fast GPU one save takes as long as an epoch.
MAX_TIME_SHARE = 0.03


class CheckpointWriter:
    """Keeps the weights of the best epoch on PublicTest, and writes both files.

    Files are written after each epoch, or less often where that would take more than
    MAX_TIME_SHARE of the time. A killed run repeats what it did since.
    """

    def __init__(self, folder: Path, options: Options, class_names: tuple[str, ...]) -> None:
        self._folder, self._options, self._class_names = folder, options, class_names
        self._best: Checkpoint | None = None  # not yet written
        self._next_write = 0.0
        self._written: tuple[int, int] | None = None  # epoch and batch

    def end_epoch(self, state: TrainingState) -> None:
        """Keep the weights if the epoch is the best so far, and write if it is time."""
        scores = [row[f"public_{self._options.select}"] for row in state.history]
        if all(scores[-1] > earlier for earlier in scores[:-1]):
            self._best = deepcopy(self._checkpoint(state))
        if time.monotonic() >= self._next_write:
            self.write(state)

    def write(self, state: TrainingState) -> None:
        """Write best.pth if it changed, then last.pth.

        The order matters: a run that is killed between the two repeats the epoch from the old
        last.pth and writes the same best.pth again.
        """
        if self._written == (state.epoch, state.batches):
            return
        start = time.monotonic()
        if self._best:
            save_checkpoint(self._folder / "best.pth", self._best)
            self._best = None
        last = replace(self._checkpoint(state), training=state.state_dict())
        save_checkpoint(self._folder / "last.pth", last)
        self._written = state.epoch, state.batches
        end = time.monotonic()
        self._next_write = end + (end - start) / MAX_TIME_SHARE

    def _checkpoint(self, state: TrainingState) -> Checkpoint:
        return Checkpoint(
            architecture=state.network.architecture,
            net=state.ema.module.state_dict(),
            class_names=self._class_names,
            image_width=self._options.eval_image_width,
            epoch=state.epoch,
            options=asdict(self._options),
        )
