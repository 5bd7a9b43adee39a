"""From a command line, or the options that a run saved, to options that are fit to follow."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from utils.errors import OptionError
from utils.options import Options, least_width, with_recipe

T = TypeVar("T")

# What may differ when a run goes on: where things stand, not what is trained.
FREE_ON_RESUME = {
    "resume",
    "out",
    "data",
    "ferplus",
    "gpu_ids",
    "store",
    "compile",
    "jobs",
    "final_test",
}

_IN_RANGE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "image_width": (lambda v: 32 <= v <= 224, "32 to 224"),
    "width": (lambda v: 0 < v <= 8, "above 0, up to 8"),
    "dropout": (lambda v: 0 <= v < 1, "0 or more, below 1"),
    "beta": (lambda v: 0 < v < 1, "between 0 and 1"),
    "margin_2": (lambda v: 0 <= v <= 1, "0 to 1"),
    "total_epoch": (lambda v: v >= 1, "at least 1"),
    "cycles": (lambda v: v >= 1, "at least 1"),
    "relabel_epoch": (lambda v: v >= 1, "at least 1"),
    "batch_size": (lambda v: v >= 1, "at least 1"),
    "start_lr": (lambda v: v > 0, "above 0"),
    "label_smoothing": (lambda v: 0 <= v < 1, "0 or more, below 1"),
    "label_noise": (lambda v: 0 <= v < 1, "0 or more, below 1"),
    "ema": (lambda v: 0 <= v < 1, "0 or more, below 1"),
    "scale": (lambda v: 0 <= v < 1, "0 or more, below 1"),
    "flip": (lambda v: 0 <= v <= 1, "0 to 1"),
    "erasing": (lambda v: 0 <= v <= 1, "0 to 1"),
    "degraded": (lambda v: 0 <= v <= 1, "0 to 1"),
    "jpeg": (lambda v: 0 <= v <= 1, "0 to 1"),
    "mixup": (lambda v: 0 <= v <= 1, "0 to 1"),
    "cutmix": (lambda v: 0 <= v <= 1, "0 to 1"),
    "teacher_weight": (lambda v: 0 <= v <= 1, "0 to 1"),
    "erased_area": (lambda v: 0.02 <= v <= 1, "0.02 to 1"),
    "seed": (lambda v: 0 <= v < 2**63, "0 or more, below 2 to the 63rd"),
} | {
    name: (lambda v: v >= 0, "0 or more")
    for name in (
        *("rank_weight", "margin_1", "landmark_weight", "warmup_epoch", "weight_decay"),
        *("rotation", "shift", "light", "sam", "clip", "jobs"),
    )
}


def parse(kind: type[T], argv: Sequence[str], description: str, default: T | None = None) -> T:
    """Read a command line into a frozen dataclass whose docstrings are the help.

    An unknown option or a wrong value ends the process with a message and status 2.
    """
    extra = {} if default is None else {"default": default}
    return tyro.cli(kind, args=list(argv), description=description, use_underscores=True, **extra)


def parse_run(argv: Sequence[str], description: str, recipe: str) -> Options:
    """Read train.py's command line over the defaults of its recipe; `recipe` is what auto means."""
    named = parse(Options, argv, description).recipe
    recipe = recipe if named == "auto" else named
    return check(replace(parse(Options, argv, description, with_recipe(recipe)), recipe=recipe))


def check(options: Options) -> Options:
    """Return the options as they will be followed, or raise an OptionError.

    Rank regularization and the low-importance group mean nothing without
    importances, so they are off where these are, and so is pooling at landmarks that
    nobody predicts; shares of votes are no labels that could be moved.
    """
    wrong = [
        f"--{name} {getattr(options, name):g} (must be {text})"
        for name, (fine, text) in _IN_RANGE.items()
        if not (fine(value := getattr(options, name)) and math.isfinite(value))
    ]
    if wrong:
        raise OptionError(f"out of range: {', '.join(wrong)}")
    if options.mixup + options.cutmix > 1:
        raise OptionError(
            f"--mixup {options.mixup:g} and --cutmix {options.cutmix:g} are shares of the same "
            "faces: together at most 1"
        )
    if options.mixup + options.cutmix and not options.mixes_in(1):
        raise OptionError(
            "--mixup and --cutmix rest in the last tenth of the epochs, which are all of "
            f"--total_epoch {options.total_epoch}"
        )
    sizes = options.sizes
    least = least_width(options.trunk)
    if sizes and (sizes[-1] != options.image_width or not all(least <= s <= 224 for s in sizes)):
        raise OptionError(
            f"--sizes {' '.join(map(str, sizes))}: give widths of {least} to 224 pixels, the last "
            f"one the --image_width, {options.image_width}, at which the network is evaluated"
        )
    if options.total_epoch % options.cycles:
        raise OptionError(
            f"--cycles {options.cycles} do not divide {options.total_epoch} epochs evenly; give "
            f"--total_epoch {-(-options.total_epoch // options.cycles) * options.cycles}"
        )
    stages = options.cycles * max(len(sizes), 1)
    if stages > options.total_epoch:
        raise OptionError(
            f"--cycles {options.cycles} and --sizes ask for {stages} stages of "
            f"{options.total_epoch} epochs"
        )
    if options.cycles > 1 and options.warmup_epoch * options.cycles >= options.total_epoch:
        raise OptionError(
            f"--cycles {options.cycles} of {options.total_epoch} epochs leave no room for "
            f"--warmup_epoch {options.warmup_epoch:g}"
        )
    check_class_names(options.class_names, options.ferplus)
    if options.ferplus_target == "distribution":
        if not options.ferplus:
            raise OptionError("--ferplus_target distribution needs the votes: --ferplus PATH")
        if options.label_noise:
            raise OptionError(
                "--label_noise changes labels, and shares of votes are learnt instead"
            )
        options = replace(options, relabel=False)
    if not options.landmarks:
        options = replace(options, landmark_pool=False)
    if not options.importance:
        options = replace(options, rank=False, relabel_group="all")
    return options


def check_class_names(class_names: Sequence[str], ferplus: str) -> None:
    """Raise an OptionError where two classes have one name, one has none, or FER+ names them."""
    names = [name.strip() for name in class_names]
    if "" in names or len(set(names)) < len(names):
        raise OptionError(f"--class_names {shlex.join(class_names)}: each needs a name of its own")
    if ferplus and class_names:
        raise OptionError("--ferplus has classes of its own; leave out --class_names")


def resumed(saved: dict[str, Any], argv: Sequence[str], description: str) -> Options:
    """Return the options of a run that goes on: the saved ones, and where things stand now.

    Raises:
        OptionError: the saved options are damaged, or the command line names one that
            would change the training.
    """
    before = from_json(saved)
    now = parse(Options, argv, description, before)
    changed = [name for name in differing(before, now) if name != "--teacher"]
    if changed:  # a teacher may have moved, and is known by its content
        raise OptionError(
            f"a run that goes on keeps its options, and {', '.join(changed)} would change it; "
            "start a new run (from its weights, where it has any: --model_path RUN/last.pth)"
        )
    return check(now)


def differing(one: Options, other: Options) -> list[str]:
    """Name the options in which two runs differ, but for where things stand."""
    names = sorted({f.name for f in fields(Options)} - FREE_ON_RESUME)
    return [f"--{name}" for name in names if getattr(one, name) != getattr(other, name)]


def command_line(options: Options) -> str:
    """Return what to type for the same training: the recipe, and what differs from it."""
    recipe = with_recipe(options.recipe)
    words = [f"--recipe {options.recipe}"]
    for name in (f.name for f in fields(Options) if f.name not in FREE_ON_RESUME):
        value = getattr(options, name)
        if value == getattr(recipe, name):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        else:
            several = value if isinstance(value, tuple) else (value,)
            words.append(" ".join([f"--{name}", *map(str, several)]))
    return " ".join(words)


def from_json(saved: Any) -> Options:
    """Return the options that a config.json holds; one that it lacks has its default."""
    if not isinstance(saved, dict):
        raise OptionError("config.json holds no options; start a new run")
    before = {}
    for name, kind in get_type_hints(Options).items():
        value = saved.get(name, getattr(Options(), name))
        if get_origin(kind) is tuple:
            if name == "model_path" and isinstance(value, str):  # of an old run
                value = (value,) * bool(value)
            value = tuple(value) if isinstance(value, list) else value
            fine = isinstance(value, tuple) and {type(v) for v in value} <= {get_args(kind)[0]}
        elif get_origin(kind) is Literal:
            fine = value in get_args(kind)
        else:
            fine = type(value) is kind or (kind is float and type(value) is int)
        if not fine:
            raise OptionError(f"config.json is damaged: {name} = {value!r}; mend it")
        before[name] = value
    return Options(**before)
