"""Training the runs of a plan as processes, with their progress."""

import os
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import joblib
import pandas as pd

from tools.plan import Run
from utils.devices import listed_gpus
from utils.run_folder import ROOT, RunFolder
from utils.signals import Interrupted, record_signals

POLL_SECONDS = 1.0


class Scheduler:
    """Trains runs, each in a process of its own. The arguments are options of tools.experiments."""

    def __init__(
        self, data: str = "", gpu_ids: str = "", parallel: int = 1, ferplus_test: str = ""
    ) -> None:
        self._data, self._parallel, self._ferplus_test = data, parallel, ferplus_test
        self._devices = ([str(i) for i in listed_gpus(gpu_ids)] or [""]) * parallel

    def train_all(self, runs: Sequence[Run]) -> list[str]:
        """Train the runs, and return the names of those that failed.

        If this process is interrupted, theirs are terminated, and save their state.
        """
        waiting, idle, failed = deque(runs), list(self._devices), []
        running: dict[subprocess.Popen, tuple[Run, str, EpochProgress]] = {}
        try:
            while waiting or running:
                while waiting and idle:
                    run, device = waiting.popleft(), idle.pop()
                    progress = EpochProgress(run)
                    with record_signals() as signals:  # every new process is in `running`
                        running[self.start(run, device)] = run, device, progress
                    if signals:
                        raise Interrupted(signals[0], "interrupted")
                time.sleep(POLL_SECONDS)
                for process, (run, device, progress) in list(running.items()):
                    status = process.poll()
                    progress.update()
                    if status is not None:
                        del running[process]
                        idle.append(device)
                    if status:
                        failed.append(run.name)
                        text = last_log_line(run.log)
                        print(f"{run.name}: ended with status {status}: {text}", flush=True)
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
        return failed

    def start(self, run: Run, device: str) -> subprocess.Popen:
        """Start or resume a run on a GPU, "-1" (the CPU) or "" (the default)."""
        argv = self._arguments(run, device)
        print(f"{run.name}: train.py {shlex.join(argv)}", flush=True)
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "train.py"), *argv]
        with open(run.log, "a", encoding="utf-8") as file:
            # A new session, so that a terminal's Ctrl-C reaches it through this process only.
            return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)

    def _arguments(self, run: Run, device: str) -> list[str]:
        if (run.folder / "config.json").exists():
            argv = ["--resume", str(run.folder)]
        else:
            argv = [*run.argv, "--seed", str(run.seed), "--no_final_test", "--out", str(run.folder)]
        argv += ["--data", self._data] if self._data else []
        argv += ["--ferplus_test", self._ferplus_test] if self._ferplus_test else []
        is_given = "--threads" in {word.split("=")[0] for word in run.argv}
        if self._parallel > 1 and not is_given and "OMP_NUM_THREADS" not in os.environ:
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
