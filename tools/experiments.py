"""Train every variant of a plan with every seed, and compare them.

    python -m tools.experiments configs/landmarks.toml --data data/fer2013.csv
    python -m tools.experiments configs/scn.toml --gpu_ids 0,1,2,3    one run at a time on each GPU
    python -m tools.experiments configs/scn.toml --parallel 2         two at a time on a device

Each run is a run of train.py in OUT/VARIANT-SEED. Finished runs are skipped and interrupted ones
are resumed, so the command can be repeated at any time. PrivateTest is evaluated with --private
only: use it once, after all choices have been made on PublicTest.
"""

import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from engine.build import load_initial_weights
from tools.comparison import write_comparison
from tools.plan import Run, read_plan
from tools.scheduler import Scheduler
from utils import cli
from utils.errors import OptionError, RunError, WeightsError, run_main
from utils.options import Count
from utils.run_folder import ROOT, RUNS, RunFolder


@dataclass(frozen=True)
class ExperimentOptions:
    """Options of tools.experiments."""

    plan: Annotated[str, tyro.conf.Positional]
    """A plan file such as configs/landmarks.toml: baseline, seeds, common options, variants."""
    data: str = ""
    """The data set, as for train.py."""
    ferplus_test: str = ""
    """FER+'s fer2013new.csv: compare human agreement, too."""
    out: str = ""
    """The folder of all runs. Default: a folder under model_save/ with the plan's name."""
    seeds: tuple[int, ...] = ()
    """Replace the plan's seeds."""
    variants: tuple[str, ...] = ()
    """Train only these variants. Without the plan's baseline, the first one is the baseline."""
    common: str | None = None
    """Replaces the plan's common options; give it with an equals sign: --common="--recipe cpu"."""
    gpu_ids: str = ""
    """GPUs such as 0,1, each of which trains different runs; -1 is the CPU."""
    parallel: Count = 1
    """Runs at a time per device; on a CPU they share the cores. Use it for small networks."""
    private: bool = False
    """Compare on PrivateTest, too, when all runs are finished."""
    tta: bool = False
    """With --private: use test-time augmentation."""


def main() -> None:
    options = cli.parse(ExperimentOptions, sys.argv[1:], __doc__)
    if options.tta and not options.private:
        raise OptionError("--tta applies to PrivateTest only; give --private, too")
    plan = read_plan(Path(options.plan), options.seeds, options.common, options.variants)
    out = Path(options.out) if options.out else RUNS / Path(options.plan).stem
    runs = plan.runs(out)
    num_finished = sum(run.is_finished for run in runs)
    print(f"{len(runs)} runs in {out}, of which {num_finished} are finished", flush=True)
    for run in runs:
        check_run(run, options.data, options.ferplus_test)
    scheduler = Scheduler(options.data, options.gpu_ids, options.parallel, options.ferplus_test)
    failed = scheduler.train_all([run for run in runs if not run.is_finished])
    finished = [run for run in runs if run.is_finished]
    if not any(run.variant == plan.baseline for run in finished):
        raise RunError(f"no run of the baseline {plan.baseline} is finished; see {out}/*.log")
    configs = [RunFolder(run.folder).read_json("config.json") for run in finished]
    if len(commits := {str(config.get("commit")) for config in configs}) > 1:
        print(f"note     these runs are of several commits: {', '.join(sorted(commits))}")
    write_comparison(finished, plan, "PublicTest", out / "comparison.csv")
    if options.private:
        if failed or len(finished) < len(runs):
            raise RunError("PrivateTest is compared when all runs are finished; start again")
        folder = "private_tta" if options.tta else "private"
        for run in runs:
            evaluate_private(run, options, folder)
        write_comparison(runs, plan, "PrivateTest", out / f"comparison_{folder}.csv", folder)
    if failed:
        raise RunError(f"{', '.join(failed)} did not finish; see {out}/*.log, and start again")


def check_run(run: Run, data: str = "", ferplus_test: str = "") -> None:
    """Check the options of a run, and that its folder holds no other run.

    Prints a note if the run is finished and had other data, or no `ferplus_test`.

    Raises:
        OptionError: train.py would reject the options.
        RunError: The folder holds a run with other options.
    """
    saved = None
    if (run.folder / "config.json").exists():
        config = RunFolder(run.folder).read_json("config.json")
        saved = cli.options_from_json(config.get("options"))
    # For auto, the recipe depends on the data set, which is not read here.
    is_synthetic = saved.recipe == "sample" if saved else data == "sample"
    try:
        command = cli.parse_train_options([*run.argv, "--seed", str(run.seed)], "")
        initial = load_initial_weights(command.options.model_path)
        weights = initial.initial_options() if initial else {}
        planned = cli.resolve_options(command, is_synthetic, weights)
    except SystemExit:  # the parser has printed the reason
        text = shlex.join(run.argv)
        raise OptionError(f"train.py rejects {text} of the variant {run.variant}") from None
    except (OptionError, WeightsError) as error:
        raise OptionError(f"variant {run.variant}: {error}") from error
    if not saved:
        return
    if changed := cli.changed_options(saved, planned):
        raise RunError(
            f"{run.folder} holds a run that differs from the plan in {', '.join(changed)}; remove "
            "that folder, or choose another --out"
        )
    is_other_path = data and Path(saved.data).resolve() != Path(data).resolve()
    if run.is_finished and is_other_path:
        print(f"note     {run.folder} is finished; its --data was {saved.data or 'not given'}")
    if ferplus_test and run.is_finished and not saved.ferplus_test:
        print(f"note     {run.folder} is finished, without --ferplus_test")


def evaluate_private(run: Run, options: ExperimentOptions, subfolder: str) -> None:
    """Evaluate a run on PrivateTest with test.py into a subfolder, unless that has been done."""
    folder = run.folder / subfolder
    if (folder / "metrics.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    saved = RunFolder(run.folder).read_json("config.json")["options"]
    given = {
        "--data": options.data or saved.get("data"),
        "--ferplus": saved.get("ferplus"),
        "--ferplus_test": options.ferplus_test or saved.get("ferplus_test"),
        "--gpu_ids": options.gpu_ids.split(",")[0],
    }
    argv = ["--model_path", str(run.folder / "best.pth"), "--splits", "PrivateTest"]
    argv += ["--out", str(folder), *(["--tta"] if options.tta else [])]
    argv += [word for option in given.items() if option[1] for word in option]
    print(f"{run.name}: test.py {shlex.join(argv)}", flush=True)
    command = [sys.executable, str(ROOT / "test.py"), *argv]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise RunError(f"{run.folder / 'best.pth'} could not be evaluated; see above")


if __name__ == "__main__":
    run_main(main)
