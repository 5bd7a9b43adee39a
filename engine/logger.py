"""The log of a training run: tables, TensorBoard, a printed line per epoch, learning curves."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
from torch.utils.tensorboard import SummaryWriter

from engine.eta import format_duration
from utils.options import Options
from utils.plots import plot_learning_curves
from utils.run_folder import RunFolder

Row = Mapping[str, Any]
Relabels = Sequence[tuple[int, int, int, int]]


class TrainingLogger:
    """Writes the log into a run folder.

    The tables are rewritten from the training state after each epoch, so a run that is killed
    between two files restores them when it is resumed. TensorBoard drops what it has beyond the
    finished epochs.
    """

    def __init__(
        self, run: RunFolder, class_names: Sequence[str], options: Options, epoch: int
    ) -> None:
        self._run, self._class_names = run, class_names
        self._total, self._select = options.total_epoch, f"public_{options.select}"
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=epoch + 1)

    def log_epoch(self, history: Sequence[Row], relabels: Relabels, seconds: float) -> None:
        """Log the last epoch of `history`."""
        self._write_tables(history, relabels)
        with self._warn_if_disk_full():
            for name, value in {**history[-1], "seconds": seconds}.items():
                if name != "epoch" and value is not None:  # public_accuracy -> public/accuracy
                    tag = name.replace("_", "/", 1)
                    self._board.add_scalar(tag, value, history[-1]["epoch"])
            self._board.flush()
        print(self._line(history, seconds), flush=True)

    def close(self, history: Sequence[Row], relabels: Relabels, title: str) -> None:
        """Write the tables, in case the run was killed between two files, and the curves."""
        with self._warn_if_disk_full():
            self._board.close()
        self._write_tables(history, relabels)
        self._run.write_figure(
            "learning_curves.png", plot_learning_curves(history, title, self._select)
        )

    @contextmanager
    def _warn_if_disk_full(self) -> Iterator[None]:
        """Turn TensorBoard's OSError into a warning: metrics.csv has the same values."""
        try:
            yield
        except OSError as error:
            print(f"warning: TensorBoard log is incomplete ({error.strerror})", file=sys.stderr)

    def _write_tables(self, history: Sequence[Row], relabels: Relabels) -> None:
        self._run.write_csv("metrics.csv", pd.DataFrame(history))
        name = self._class_names
        moves = [(row, name[old], name[new], epoch) for row, old, new, epoch in relabels]
        table = pd.DataFrame(moves, columns=("row", "from", "to", "epoch"))
        self._run.write_csv("relabels.csv", table)

    def _line(self, history: Sequence[Row], seconds: float) -> str:
        row = history[-1]
        best = max(history, key=lambda r: r[self._select])
        losses = {n.removeprefix("loss_"): v for n, v in row.items() if n.startswith("loss_")}
        parts = [f"{name} {value:.3f}" for name, value in losses.items()]
        text = f"epoch {row['epoch']:>{len(str(self._total))}}/{self._total}"
        text += f"  loss {row['loss']:.3f} ({', '.join(parts)})"
        text += f"  Training {100 * row['train_accuracy']:.1f} %"
        text += f"  PublicTest {100 * row['public_accuracy']:.2f} %"
        text += f", balanced {100 * row['public_balanced_accuracy']:.2f} %"
        text += f" (best {100 * best[self._select]:.2f} in {best['epoch']})"
        text += f"  relabeled {row['relabeled']}" if row["relabeled"] else ""
        return f"{text}  {format_duration(seconds)}"
