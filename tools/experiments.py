"""Run every variant of a plan with every seed, and compare them.

    python experiments.py plans/landmarks.toml --data fer2013.csv --out model_save/landmarks
    python experiments.py plans/scn.toml --gpu_ids 0,1,2,3         one run at a time on each GPU
    python experiments.py plans/scn.toml --at_once 2               two at a time share the device

A cell is a run of train.py in OUT/VARIANT-SEED. Finished ones are skipped and stopped ones resumed,
so the same command can be given again at any time. Nothing looks at PrivateTest before --private:
give that once, when all choices on PublicTest are made.
"""

from __future__ import annotations

import os
import queue
import shlex
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import joblib
import numpy as np
import pandas as pd
import tyro

from tools.plan import Plan, read_plan
from utils.cli import changed_options, options_from_json, parse, parse_train_options
from utils.devices import listed_gpus
from utils.errors import OptionError, RunError, run_main
from utils.files import atomic_write
from utils.run_folder import ROOT, RUNS, RunFolder
from utils.statistics import compare

MEANS = ("landmark_error", "ece", "auroc_confidence", "auroc_importance")
MEANS += ("relabel_precision", "relabel_recall")


@dataclass(frozen=True)
class ExperimentOptions:
    """Options of experiments.py."""

    plan: Annotated[str, tyro.conf.Positional]
    """A file such as plans/landmarks.toml: baseline, seeds, common options, variants."""
    data: str = ""
    """The faces, as of train.py."""
    out: str = ""
    """The folder of all cells; by default model_save/ with the plan's name."""
    seeds: tuple[int, ...] = ()
    """Other seeds than the plan's."""
    variants: tuple[str, ...] = ()
    """Some of the plan's variants; without the plan's baseline the first one takes its place."""
    common: str | None = None
    """Other common options than the plan's, with an equals sign: --common="--recipe full"."""
    gpu_ids: str = ""
    """GPUs such as 0,1, each of which trains a cell at a time; -1 is the CPU."""
    at_once: int = 1
    """Cells that each device trains at a time; a CPU's share its cores. Small networks fill a
    device better so: on two cores, two of half the width are 1.3 times as fast as one by one."""
    private: bool = False
    """Compare on PrivateTest too, once all cells are done."""
    tta: bool = False
    """With --private: average ten views."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        variant: its name.
        seed: of the run.
        argv: train.py's options.
        folder: of the run.
    """

    variant: str
    seed: int
    argv: tuple[str, ...]
    folder: Path

    @property
    def is_done(self) -> bool:
        return (self.folder / "metrics.json").exists()


def main() -> None:
    options = parse(ExperimentOptions, sys.argv[1:], __doc__)
    if options.at_once < 1:
        raise OptionError("--at_once must be at least 1")
    if options.tta and not options.private:
        raise OptionError("--tta is for PrivateTest: give --private too, once all is chosen")
    plan = read_plan(Path(options.plan), options.seeds, options.common, options.variants)
    out = Path(options.out) if options.out else RUNS / Path(options.plan).stem
    cells = [
        Run(variant, seed, tuple(shlex.split(f"{plan.common} {text}")), out / f"{variant}-{seed}")
        for seed in plan.seeds  # all variants of a seed first: pairs are there early
        for variant, text in plan.variants.items()
    ]
    done = sum(cell.is_done for cell in cells)
    print(f"{len(cells)} cells in {out}, of which {done} are done", flush=True)
    for cell in cells:
        validate_options(cell, options.data)
    failed = run_all([cell for cell in cells if not cell.is_done], options)
    finished = [cell for cell in cells if cell.is_done]
    if not any(cell.variant == plan.baseline for cell in finished):
        raise RunError(f"no run of the baseline {plan.baseline} is done; see {out}/*.log")
    configs = [RunFolder(cell.folder).read_json("config.json") for cell in finished]
    if len(commits := {str(config.get("commit")) for config in configs}) > 1:
        print(f"note     these cells are of several commits: {', '.join(sorted(commits))}")
    report(finished, plan, "PublicTest", out / "comparison.csv")
    if options.private:
        if failed or len(finished) < len(cells):
            raise RunError("PrivateTest waits until every cell is done; start again")
        for cell in cells:
            evaluate(cell, options)
        name = private_name(options)
        report(cells, plan, "PrivateTest", out / f"comparison_{name}.csv", name)
    if failed:
        raise RunError(f"{', '.join(failed)} did not finish; see {out}/*.log, and start again")


def run_all(cells: list[Run], options: ExperimentOptions) -> list[str]:
    """Train the cells, --at_once on each device; return the names of those that failed.

    Where this process is told to end, so are the runs: each saves what it did.
    """
    devices: queue.SimpleQueue[str] = queue.SimpleQueue()
    ids = [str(i) for i in listed_gpus(options.gpu_ids)] or [""]
    ids *= options.at_once
    for device in ids:
        devices.put(device)
    running: set[subprocess.Popen] = set()
    stopped = threading.Event()

    def run(cell: Run) -> str:
        device = devices.get()
        try:
            fine = not stopped.is_set() and train(cell, device, options, running, stopped)
            return "" if fine else cell.folder.name
        except BaseException:
            stopped.set()
            raise
        finally:
            devices.put(device)

    pool = ThreadPoolExecutor(len(ids))
    try:
        return [name for name in pool.map(run, cells) if name]
    finally:
        stopped.set()
        for process in list(running):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def train(
    cell: Run,
    device: str,
    options: ExperimentOptions,
    running: set[subprocess.Popen],
    stopped: threading.Event,
) -> bool:
    """Train one cell, or go on with it; return whether it came to its end."""
    where = ["--gpu_ids", device] if device else []
    if (cell.folder / "config.json").exists():
        argv = ["--resume", str(cell.folder)]
    else:
        argv = [*cell.argv, "--seed", str(cell.seed), "--no_final_test", "--out", str(cell.folder)]
    argv += ["--data", options.data] if options.data else []
    print(f"{cell.folder.name}: train.py {shlex.join([*argv, *where])}", flush=True)
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    log = cell.folder.parent / f"{cell.folder.name}.log"
    with open(log, "a", encoding="utf-8") as file:
        command = [sys.executable, str(ROOT / "train.py"), *argv, *where]
        # Processes that each take all cores would wait for one another.
        threads = str(max(1, joblib.cpu_count() // options.at_once))
        shared = {"OMP_NUM_THREADS": threads} if options.at_once > 1 else {}
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            env=shared | os.environ,
            start_new_session=True,  # a terminal's Ctrl-C is for this process, which passes it on
        )
        running.add(process)
        if stopped.is_set():  # since this cell was begun; whoever set it may have missed it
            process.terminate()
        status = process.wait()
        running.discard(process)
    if status:
        print(f"{cell.folder.name}: ended with status {status}: {last_log_line(log)}", flush=True)
    return status == 0


def last_log_line(log: Path) -> str:
    """Return the last line of a log that is not empty."""
    text = log.read_text(encoding="utf-8", errors="replace")  # libraries may write otherwise
    told = [line for line in text.splitlines() if line.strip()]
    return told[-1].strip() if told else ""


def validate_options(cell: Run, data: str = "") -> None:
    """Raise an error where a cell's options are refused, or its folder holds another plan's run.

    Of a run that is done it tells where its faces stood, if not at `data`: they may have moved.

    Raises:
        OptionError, RunError: as said.
    """
    before = None
    if (cell.folder / "config.json").exists():
        saved = RunFolder.reopen(str(cell.folder)).read_json("config.json")
        before = options_from_json(saved.get("options"))
    try:
        argv = [*cell.argv, "--seed", str(cell.seed)]
        # What auto comes to is known of the sample alone, before the faces are looked for.
        recipe = before.recipe if before else "sample" if data == "sample" else "full"
        wanted = parse_train_options(argv, "", recipe)
    except SystemExit:  # it has told what is wrong
        raise OptionError(f"train.py refuses {shlex.join(cell.argv)} of {cell.variant}") from None
    except OptionError as error:
        raise OptionError(f"{cell.variant}: {error}") from error
    if before and (changed := changed_options(before, wanted)):
        raise RunError(
            f"{cell.folder} holds a run that differs from the plan in {', '.join(changed)}; "
            "remove that folder, or name another --out"
        )
    if before and cell.is_done and data and not same_place(before.data, data):
        print(f"note     {cell.folder} is done, with faces from {before.data or 'where they lay'}")


def same_place(one: str, other: str) -> bool:
    """Tell whether two --data are one."""
    return one == other or Path(one).resolve() == Path(other).resolve()


def private_name(options: ExperimentOptions) -> str:
    """Name a cell's folder of what test.py says of PrivateTest."""
    return "private_tta" if options.tta else "private"


def evaluate(cell: Run, options: ExperimentOptions) -> None:
    """Let test.py look at PrivateTest, once."""
    folder = cell.folder / private_name(options)
    if (folder / "metrics.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    argv = ["--model_path", str(cell.folder / "best.pth"), "--usages", "PrivateTest"]
    argv += ["--out", str(folder), *(["--data", options.data] if options.data else [])]
    trained_with = options_from_json(RunFolder(cell.folder).read_json("config.json").get("options"))
    argv += ["--ferplus", trained_with.ferplus] if trained_with.ferplus else []
    argv += ["--tta"] if options.tta else []
    argv += ["--gpu_ids", options.gpu_ids.split(",")[0]] if options.gpu_ids else []
    print(f"{cell.folder.name}: test.py {shlex.join(argv)}", flush=True)
    command = [sys.executable, str(ROOT / "test.py"), *argv]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise RunError(f"{cell.folder / 'best.pth'} could not be evaluated; see above")


def report(cells: list[Run], plan: Plan, split: str, path: Path, inner: str = "") -> None:
    """Write and print the comparison on a usage, by what lies in each cell's folder `inner`.

    Raises:
        RunError: the usage has no labels, or others in one cell than in the next.
    """
    labels = None
    right: dict[str, dict[int, np.ndarray]] = {}
    extra: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        folder = cell.folder / inner
        text = {"label": str, "predicted": str}  # classes may have numbers for names
        table = pd.read_csv(folder / "predictions.csv", keep_default_na=False, dtype=text)
        table = table[(table["usage"] == split) & (table["label"] != "")]
        if table.empty:
            raise RunError(f"{folder} has no labelled faces of {split}, so nothing to compare")
        labels = table["label"].tolist() if labels is None else labels
        if labels != table["label"].tolist():
            raise RunError(
                f"{folder} was judged by other faces than {cells[0].folder / inner}, and in pairs "
                "they must be the same: give all cells one --data, and a new --out"
            )
        hits = (table["label"] == table["predicted"]).to_numpy()
        right.setdefault(cell.variant, {})[cell.seed] = hits
        scores = RunFolder(folder).read_json("metrics.json")
        training = RunFolder(cell.folder).read_json("metrics.json").get("Training", {})
        extra.setdefault(cell.variant, []).append(scores[split] | training)
    comparison = compare(right, plan.baseline)
    for name in MEANS:
        values = {
            variant: [row[name] for row in rows if row.get(name) is not None]
            for variant, rows in extra.items()
        }
        if any(values.values()):
            means = {v: np.mean(each) if each else np.nan for v, each in values.items()}
            comparison[name] = comparison["variant"].map(means)
    with atomic_write(path) as partial:
        comparison.round(4).to_csv(partial, index=False, lineterminator="\n")
    print(f"\n{split}, against {plan.baseline}; per cent, see {path}")
    print(comparison.round(3).to_string(index=False, na_rep="-"), flush=True)


if __name__ == "__main__":
    run_main(main)
