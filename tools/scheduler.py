"""Training the runs of a plan as processes, one at a time per device."""

import os
import shlex
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import joblib

from tools.plan import Run
from utils.devices import listed_gpus
from utils.run_folder import ROOT

POLL_SECONDS = 5


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
        idle, running, is_stopped = deque(self._devices), [], threading.Event()

        def train(run: Run) -> int:
            device, earlier = idle.pop(), run.log.stat().st_size if run.log.exists() else 0
            running.append(process := self.start(run, device))
            if is_stopped.is_set():  # `running` may have been terminated before the start
                process.terminate()
            status = follow(run, process, earlier)
            idle.append(device)
            return status

        with ThreadPoolExecutor(len(self._devices)) as pool:
            try:
                statuses = list(pool.map(train, runs))
            except BaseException:
                is_stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                for process in running:
                    process.terminate()
                raise
        return [run.name for run, status in zip(runs, statuses) if status]

    def start(self, run: Run, device: str) -> subprocess.Popen:
        """Start or resume a run on a GPU, "-1" (the CPU) or "" (the default)."""
        argv = self._arguments(run, device)
        print(f"{run.name}: train.py {shlex.join(argv)}; its output: {run.log}", flush=True)
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


def follow(run: Run, process: subprocess.Popen, position: int) -> int:
    """Print each epoch of a run from this position of its log on; return the exit status."""
    status, line = None, ""
    with open(run.log, encoding="utf-8", errors="replace") as log:  # libraries write to it, too
        log.seek(position)
        while status is None:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(POLL_SECONDS)
            for text in filter(str.strip, log):
                line = text.strip()
                if line.startswith("epoch") and " loss " in line:  # not a progress bar
                    print(f"{run.name}: {line}", flush=True)
    print(f"{run.name}: ended with status {status}: {line}", flush=True)
    return status
