"""What a training run tells while it goes on: tables, TensorBoard, a line per epoch, curves."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
from torch.utils.tensorboard import SummaryWriter

from utils.figures import learning_curves
from utils.forecast import duration
from utils.run import RunFolder

Row = Mapping[str, Any]


class RunLog:
    """Writes into a run folder. The tables are rewritten whole from what the checkpoint holds,
    so that a run killed between two files mends itself when it goes on.

    Args:
        run: the folder.
        class_names: of the labels in relabels.csv.
        total_epoch: of the run.
        epoch: how many are finished; what TensorBoard has beyond them is dropped.
    """

    def __init__(
        self, run: RunFolder, class_names: Sequence[str], total_epoch: int, epoch: int
    ) -> None:
        self._run, self._class_names, self._total = run, class_names, total_epoch
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=epoch + 1)

    def epoch(
        self, history: Sequence[Row], relabels: Sequence[tuple[int, int, int, int]], seconds: float
    ) -> None:
        """Tell of the epoch that is the last of `history`."""
        self._write_tables(history, relabels)
        with self._losable():
            for name, value in {**history[-1], "seconds": seconds}.items():
                if name != "epoch" and value is not None:  # public_accuracy -> public/accuracy
                    tag = name.replace("_", "/", 1)
                    self._board.add_scalar(tag, value, history[-1]["epoch"])
            self._board.flush()
        print(self._line(history, seconds), flush=True)

    def close(
        self, history: Sequence[Row], relabels: Sequence[tuple[int, int, int, int]], title: str
    ) -> None:
        """Draw the learning curves, and mend the tables of a run killed before it wrote them."""
        with self._losable():
            self._board.close()
        self._write_tables(history, relabels)
        self._run.write_figure("learning_curves.png", learning_curves(history, title))

    @contextmanager
    def _losable(self) -> Iterator[None]:
        """Warn where the disk takes no more of TensorBoard: metrics.csv has all that it shows."""
        try:
            yield
        except OSError as error:
            told = f"warning: TensorBoard's file of the run is not whole ({error.strerror})"
            print(told, file=sys.stderr)

    def _write_tables(
        self, history: Sequence[Row], relabels: Sequence[tuple[int, int, int, int]]
    ) -> None:
        self._run.write_csv("metrics.csv", pd.DataFrame(history))
        moves = pd.DataFrame(relabels, columns=("row", "from", "to", "epoch"))
        names = dict(enumerate(self._class_names))
        for column in ("from", "to"):
            moves[column] = moves[column].map(names)
        self._run.write_csv("relabels.csv", moves)

    def _line(self, history: Sequence[Row], seconds: float) -> str:
        row = history[-1]
        best = max(history, key=lambda r: r["public_accuracy"])
        parts = [f"{name[5:]} {row[name]:.3f}" for name in row if name.startswith("loss_")]
        text = f"epoch {row['epoch']:>{len(str(self._total))}}/{self._total}"
        text += f"  loss {row['loss']:.3f} ({', '.join(parts)})"
        text += f"  Training {100 * row['train_accuracy']:.1f} %"
        text += f"  PublicTest {100 * row['public_accuracy']:.2f} %"
        text += f" (best {100 * best['public_accuracy']:.2f} in {best['epoch']})"
        if row["relabeled"]:
            text += f"  relabeled {row['relabeled']}"
        return f"{text}  {duration(seconds)}"
