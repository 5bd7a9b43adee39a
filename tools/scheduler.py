"""Training the runs of a plan as processes, with their progress."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import joblib
import pandas as pd

from tools.plan import Run
from utils.devices import listed_gpus
from utils.run_folder import ROOT, RunFolder


class Scheduler:
    """Trains runs; when this process is interrupted, they are terminated and save their state.

    Args:
        data: The option --data of train.py; "" for its default.
        ferplus_test: The option --ferplus_test of train.py; "" for none.
        gpu_ids: The option --gpu_ids. Each GPU trains different runs.
        parallel: Runs at a time per device.
    """

    def __init__(
        self, data: str = "", gpu_ids: str = "", parallel: int = 1, ferplus_test: str = ""
    ) -> None:
        self._data, self._parallel, self._ferplus_test = data, parallel, ferplus_test
        self._devices = ([str(i) for i in listed_gpus(gpu_ids)] or [""]) * parallel
        self._processes: set[subprocess.Popen] = set()
        self._is_stopped = threading.Event()

    def train_all(self, runs: list[Run]) -> list[str]:
        """Train the runs, and return the names of those that failed."""
        idle = list(self._devices)  # as many as threads, so one is idle when a thread starts a run

        def train_on_idle_device(run: Run) -> bool:
            device = idle.pop()
            try:
                return not self._is_stopped.is_set() and self.train(run, device)
            except BaseException:
                self._is_stopped.set()
                raise
            finally:
                idle.append(device)

        with ThreadPoolExecutor(len(self._devices)) as pool:
            try:
                is_finished = list(pool.map(train_on_idle_device, runs))
            finally:
                self.stop()
        return [run.name for run, finished in zip(runs, is_finished) if not finished]

    def stop(self) -> None:
        """Terminate all processes, and start no more."""
        self._is_stopped.set()
        for process in list(self._processes):
            process.terminate()

    def train(self, run: Run, device: str) -> bool:
        """Start or resume a run on a GPU, "-1" (the CPU) or "" (the default); return success."""
        argv = self._arguments(run, device)
        print(f"{run.name}: train.py {shlex.join(argv)}", flush=True)
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        log = run.folder.parent / f"{run.name}.log"
        progress = EpochProgress(run)
        command = [sys.executable, str(ROOT / "train.py"), *argv]
        with open(log, "a", encoding="utf-8") as file:
            # A new session, so that a terminal's Ctrl-C reaches it through this process only.
            process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        self._processes.add(process)
        if self._is_stopped.is_set():  # `stop` may have missed the new process
            process.terminate()
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            progress.update()
        self._processes.discard(process)
        if status := process.returncode:
            print(f"{run.name}: ended with status {status}: {last_log_line(log)}", flush=True)
        return status == 0

    def _arguments(self, run: Run, device: str) -> list[str]:
        if (run.folder / "config.json").exists():
            argv = ["--resume", str(run.folder)]
        else:
            argv = [*run.argv, "--seed", str(run.seed), "--no_final_test", "--out", str(run.folder)]
        argv += ["--data", self._data] if self._data else []
        argv += ["--ferplus_test", self._ferplus_test] if self._ferplus_test else []
        has_threads = "--threads" in run.argv or "OMP_NUM_THREADS" in os.environ
        if self._parallel > 1 and not has_threads:
            argv += ["--threads", str(max(1, joblib.cpu_count() // self._parallel))]
        return argv + (["--gpu_ids", device] if device else [])


class EpochProgress:
    """Prints a line whenever an epoch of a run ends, except for those that have ended already."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._epoch = len(self._history())

    def update(self) -> None:
        """Print the last epoch, if it is new: its number and the best accuracy on PublicTest."""
        history = self._history()
        if len(history) <= self._epoch:
            return
        self._epoch = len(history)
        options = RunFolder(self._run.folder).read_json("config.json")["options"]
        total, select = options["total_epoch"], options.get("select", "accuracy")
        best = history.loc[history[f"public_{select}"].idxmax()]
        print(
            f"{self._run.name}: epoch {history['epoch'].iloc[-1]}/{total}, best PublicTest "
            f"accuracy {100 * best['public_accuracy']:.2f} % (epoch {best['epoch']:.0f})",
            flush=True,
        )

    def _history(self) -> pd.DataFrame:
        try:
            return pd.read_csv(self._run.folder / "metrics.csv")
        except (OSError, ValueError):  # no epoch has ended
            return pd.DataFrame()


def last_log_line(log: Path) -> str:
    """Return the last line of a log that is not empty."""
    text = log.read_text(encoding="utf-8", errors="replace")  # libraries may write other encodings
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
