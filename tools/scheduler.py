"""Training the runs of a plan as processes, with their progress."""

from __future__ import annotations

import os
import queue
import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import joblib
import pandas as pd

from tools.plan import Run
from utils.devices import listed_gpus
from utils.errors import RunError
from utils.run_folder import ROOT, RunFolder

POLL_SECONDS = 1


@dataclass
class Scheduler:
    """Trains runs, `parallel` at a time on each device.

    When this process is interrupted, it terminates its runs, which save their state.

    Attributes:
        data: The option --data of train.py; "" for its default.
        gpu_ids: The option --gpu_ids. Each GPU trains different runs.
        parallel: Runs at a time per device.
    """

    data: str = ""
    gpu_ids: str = ""
    parallel: int = 1
    _processes: set[subprocess.Popen] = field(default_factory=set)
    _is_stopped: threading.Event = field(default_factory=threading.Event)

    def train_all(self, runs: list[Run]) -> list[str]:
        """Train the runs, and return the names of those that failed."""
        devices: queue.SimpleQueue[str] = queue.SimpleQueue()
        ids = [str(i) for i in listed_gpus(self.gpu_ids)] or [""]
        ids *= self.parallel
        for device in ids:
            devices.put(device)

        def train_on_next_device(run: Run) -> str:
            device = devices.get()
            try:
                is_finished = not self._is_stopped.is_set() and self.train(run, device)
                return "" if is_finished else run.name
            except BaseException:
                self._is_stopped.set()
                raise
            finally:
                devices.put(device)

        pool = ThreadPoolExecutor(len(ids))
        try:
            return [name for name in pool.map(train_on_next_device, runs) if name]
        finally:
            self.stop()
            pool.shutdown(wait=True, cancel_futures=True)

    def stop(self) -> None:
        """Terminate all processes, and start no more."""
        self._is_stopped.set()
        for process in list(self._processes):
            process.terminate()

    def train(self, run: Run, device: str) -> bool:
        """Start or resume a run; return whether it finished.

        Args:
            run: The run.
            device: Number of the GPU, "-1" for the CPU, or "" for train.py's default.
        """
        argv = self._arguments(run, device)
        print(f"{run.name}: train.py {shlex.join(argv)}", flush=True)
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        log = run.folder.parent / f"{run.name}.log"
        progress = EpochProgress(run)
        with open(log, "a", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *argv],
                stdout=file,
                stderr=file,
                start_new_session=True,  # a terminal's Ctrl-C reaches it through this process only
            )
            self._processes.add(process)
            if self._is_stopped.is_set():  # `stop` may have missed the new process
                process.terminate()
            while (status := _wait(process)) is None:
                progress.update()
            progress.update()
            self._processes.discard(process)
        if status:
            print(f"{run.name}: ended with status {status}: {last_log_line(log)}", flush=True)
        return status == 0

    def _arguments(self, run: Run, device: str) -> list[str]:
        if (run.folder / "config.json").exists():
            argv = ["--resume", str(run.folder)]
        else:
            argv = [*run.argv, "--seed", str(run.seed), "--no_final_test", "--out", str(run.folder)]
        argv += ["--data", self.data] if self.data else []
        is_threads_set = "--threads" in run.argv or "OMP_NUM_THREADS" in os.environ
        if self.parallel > 1 and not is_threads_set:
            argv += ["--threads", str(max(1, joblib.cpu_count() // self.parallel))]
        return argv + (["--gpu_ids", device] if device else [])


class EpochProgress:
    """Prints a line whenever an epoch of a run ends.

    Args:
        run: The run. Epochs that it has finished already are not printed.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._epoch = len(self._history())

    def update(self) -> None:
        """Print the last epoch, if it is new: its number and the best accuracy on PublicTest."""
        history = self._history()
        if len(history) <= self._epoch:
            return
        self._epoch = len(history)
        best = history["public_accuracy"].idxmax()
        print(
            f"{self._run.name}: epoch {history['epoch'].iloc[-1]}/{self._total_epoch()}, best "
            f"PublicTest accuracy {100 * history['public_accuracy'][best]:.2f} % "
            f"(epoch {history['epoch'][best]})",
            flush=True,
        )

    def _history(self) -> pd.DataFrame:
        try:
            return pd.read_csv(self._run.folder / "metrics.csv")
        except (OSError, ValueError):  # no epoch has ended
            return pd.DataFrame()

    def _total_epoch(self) -> int | str:
        try:
            options = RunFolder(self._run.folder).read_json("config.json").get("options", {})
        except RunError:
            return "?"
        return options.get("total_epoch", "?")


def last_log_line(log: Path) -> str:
    """Return the last line of a log that is not empty."""
    text = log.read_text(encoding="utf-8", errors="replace")  # libraries may write other encodings
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _wait(process: subprocess.Popen) -> int | None:
    """Return the exit status, or None if the process runs for another second."""
    try:
        return process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return None
