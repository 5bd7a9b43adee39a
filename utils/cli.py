"""The command line: parsing, recipes, validation, and the options of a saved run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import tyro
from pydantic import TypeAdapter, ValidationError

from utils.errors import OptionError
from utils.help import with_help
from utils.options import Options, min_image_width, with_recipe

T = TypeVar("T")
# Options that may differ when a run is resumed: they change where it runs, not what it trains.
FREE_ON_RESUME = {"resume", "out", "data", "ferplus", "ferplus_test", "gpu_ids", "threads"}
FREE_ON_RESUME |= {"compile", "final_test"}
# Names of earlier versions and of other projects, and what replaces them.
RENAMED = {
    "--epochs": "--total_epoch",
    "--lr": "--start_lr",
    "--trunk": "--backbone",
    "--sizes": "--image_width (several values are progressive resizing)",
    **dict.fromkeys(("--rotation", "--scale", "--shift"), "--affine DEGREES TRANSLATION SCALE"),
    "--light": "--color_jitter",
    "--mixup": "--mix mixup",
    "--cutmix": "--mix cutmix",
    "--rank": "--rank_weight",
    "--no_rank": "--rank_weight 0",
    "--jobs": "--threads",
    "--usages": "--splits",
    "--detail": "--detection_size",
    "--at_once": "--parallel",
    "--picture": "--figure",
}
REMOVED = {
    "--relabel_group": "--relabel_rule scn relabels the low-importance group, as in the paper",
    "--relabel_logits": "--relabel_rule scn uses the unweighted logits, as in the paper",
    "--sam": "it made the importances collapse (docs/experiments.md)",
    "--cycles": "no recipe uses it",
    "--landmark_num": "it is always 68",
    "--store": "the fastest memory with enough room is chosen automatically",
    "--flip": "it is always 0.5",
    "--erased_area": "it is always up to 0.2 of the image",
}


@dataclass(frozen=True)
class CommandLine:
    """Parsed options of train.py, and the names of those that the user gave."""

    options: Options
    given: frozenset[str]

    def over(self, defaults: Options) -> Options:
        """Return defaults with the given options on top."""
        return replace(defaults, **{name: getattr(self.options, name) for name in self.given})


def parse(kind: type[T], argv: Sequence[str], description: str) -> T:
    """Parse a command line into a dataclass whose docstrings are the help.

    An unknown option or a wrong type ends the process with a message and status 2.

    Raises:
        OptionError: An option has another name now, or was removed.
    """
    names = {field.name for field in fields(kind)}
    for word in (word.split("=")[0].replace("-", "_").replace("__", "--", 1) for word in argv):
        if word.removeprefix("--").removeprefix("no_") in names:
            continue
        if word in RENAMED:
            raise OptionError(f"{word} does not exist; use {RENAMED[word]}")
        if word in REMOVED:
            raise OptionError(f"{word} has been removed: {REMOVED[word]}")
    main = sys.modules["__main__"].__spec__  # None, unless this is `python -m`
    program = f"python -m {main.name}" if main else Path(sys.argv[0]).name
    # tyro puts a second empty line before an indented one.
    description = description.replace("\n\n    ", "\n    ")
    values = tyro.cli(
        with_help(kind),
        prog=program,
        description=description,
        args=list(argv),
        use_underscores=True,
    )
    return kind(**vars(values))


def parse_train_options(argv: Sequence[str], description: str) -> CommandLine:
    """Parse train.py's command line, once."""
    options = parse(Options, argv, description)
    words = {word.split("=")[0].replace("-", "_").removeprefix("__") for word in argv}
    names = {field.name for field in fields(Options)}
    given = {word if word in names else word.removeprefix("no_") for word in words}
    return CommandLine(options, frozenset(given & names))


def resolve_options(command: CommandLine, is_synthetic: bool) -> Options:
    """Return the options of a new run: the recipe's, and the given ones on top.

    The recipe `auto` depends on whether the data set is the synthetic one.
    """
    recipe = command.options.recipe
    if recipe == "auto":
        recipe = "sample" if is_synthetic else "full"
    defaults = with_recipe(recipe)
    if command.options.relabel_rule == "scn":
        defaults = replace(defaults, margin_2=0.2)  # SCN's
    options = validate_options(replace(command.over(defaults), recipe=recipe))
    for name in sorted(command.given - {"recipe"}):
        if getattr(options, name) != getattr(command.options, name):
            print(f"note     --{name} has no effect with these options")
    return options


def validate_options(options: Options) -> Options:
    """Return the options as they are used.

    Rank regularization needs importances, pooling at landmarks needs landmarks, and relabeling
    needs labels: each is off without what it needs.

    Raises:
        OptionError: A value is out of range, or options contradict each other.
    """
    _validate_types(asdict(options))
    _check_backbone(options)
    widths, epochs = options.image_width, options.total_epoch
    least = min_image_width(options.backbone)
    if not widths or min(widths) < least or widths[-1] < 32 or len(widths) > epochs:
        raise OptionError(
            f"--image_width {' '.join(map(str, widths))}: each must be {least} to 224 pixels, "
            f"the last one at least 32, and there must be no more widths than epochs ({epochs})"
        )
    if options.mirror:
        if any(width % 8 for width in widths):
            raise OptionError(
                f"--image_width {' '.join(map(str, widths))}: --mirror needs multiples of 8"
            )
        options = replace(options, downsample="pool", landmark_pool=False)
    if options.mix != "none" and not options.mixes_at(1):
        raise OptionError(
            f"--mix {options.mix} is off in the last tenth of the epochs, which are all of "
            f"--total_epoch {epochs}; give more epochs"
        )
    check_ferplus(options.class_names, options.ferplus, options.ferplus_test)
    if options.ferplus_target != "majority":
        if not options.ferplus:
            raise OptionError("--ferplus_target needs the votes: --ferplus PATH")
        if options.label_noise:
            raise OptionError(
                "--label_noise changes labels, and --ferplus_target uses votes, too; "
                "leave one of them out"
            )
        options = replace(options, relabel=False)
    if not options.landmarks:
        options = replace(options, landmark_pool=False)
    if not options.importance:
        options = replace(options, rank_weight=0.0)
    return options


def _check_backbone(options: Options) -> None:
    """Raise an OptionError if backbone, width, stem and initial weights contradict each other."""
    is_timm = options.backbone.startswith("timm:")
    changes = {"--mirror": options.mirror, "--downsample pool": options.downsample == "pool"}
    changes["--stem imagenet"] = options.stem == "imagenet"
    changed = [name for name, is_on in changes.items() if is_on]
    if changed and options.backbone != "resnet18":
        raise OptionError(f"{changed[0]} is for resnet18, not {options.backbone}")
    if options.mirror and options.stem == "imagenet":
        raise OptionError("--mirror needs --stem small: a convolution of stride 2 is not symmetric")
    if options.init and options.downsample == "pool":
        raise OptionError("--init needs --downsample stride, as the initial weights have it")
    if options.width != 1 and (is_timm or options.init):
        kind = f"--backbone {options.backbone}" if is_timm else f"--init {options.init}"
        raise OptionError(f"{kind} needs --width 1, not {options.width:g}")
    if options.init and options.model_path:
        raise OptionError("--init and --model_path both give initial weights; leave out one")


def print_notes(options: Options) -> None:
    """Print which options have no effect."""
    if options.relabel and options.relabel_epoch > options.total_epoch:
        print(f"note     no relabeling: --relabel_epoch {options.relabel_epoch} is never reached")
    if options.ferplus_target != "majority":
        print("note     no relabeling: the targets are distributions of votes, not labels")
    if options.warmup_epoch >= options.total_epoch:
        print(f"note     the learning rate never falls: --warmup_epoch {options.warmup_epoch:g}")


def check_ferplus(class_names: Sequence[str], ferplus: str, ferplus_test: str) -> None:
    """Check the names of the classes, and the options for FER+.

    Raises:
        OptionError: A name is empty or repeated, or options contradict each other.
    """
    names = [name.strip() for name in class_names]
    if "" in names or len(set(names)) < len(names):
        raise OptionError(f"--class_names {shlex.join(class_names)}: names must differ, not empty")
    if ferplus and class_names:
        raise OptionError("--ferplus defines the classes; leave out --class_names")
    if ferplus and ferplus_test:
        raise OptionError(
            "--ferplus_test compares predictions on FER2013's labels with FER+'s; with --ferplus "
            "the labels are FER+'s, and the accuracy is that agreement. Leave one of them out"
        )


def resume_options(saved: Any, command: CommandLine) -> Options:
    """Return the options of a resumed run: the saved ones, and the given ones that may differ.

    Raises:
        OptionError: The saved options are damaged, or a given one would change the training.
    """
    before = options_from_json(saved)
    options = replace(command.over(before), resume="")
    # A teacher may have moved; it is checked by its content.
    changed = [name for name in changed_options(before, options) if name != "--teacher"]
    if changed:
        raise OptionError(
            f"a resumed run keeps its options, and {', '.join(changed)} would change it; start a "
            "new run (from its weights, if there are any: --model_path RUN/last.pth)"
        )
    return validate_options(options)


def changed_options(one: Options, other: Options) -> list[str]:
    """Return the options that change the training and differ between two runs."""
    names = sorted({field.name for field in fields(Options)} - FREE_ON_RESUME)
    return [f"--{name}" for name in names if getattr(one, name) != getattr(other, name)]


def format_command(options: Options) -> str:
    """Return the command-line options of a training: its recipe, and what differs from it."""
    recipe = with_recipe(options.recipe)
    words = [f"--recipe {options.recipe}"]
    for name in (field.name for field in fields(Options) if field.name not in FREE_ON_RESUME):
        value = getattr(options, name)
        if value == getattr(recipe, name):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words.append(" ".join([f"--{name}", *map(str, values)]))
    return " ".join(words)


def options_from_json(saved: Any) -> Options:
    """Return the options in a config.json; a missing one has its default.

    Raises:
        OptionError: They are damaged, or of another version of this project.
    """
    if not isinstance(saved, dict):
        raise OptionError("config.json has no options; start a new run")
    if unknown := saved.keys() - {field.name for field in fields(Options)}:
        raise OptionError(
            f"config.json has unknown options ({', '.join(sorted(unknown))}), so another version "
            "of this project wrote it; use that version, or start a new run"
        )
    return _validate_types(saved, "config.json is damaged: ", "; correct it, or start a new run")


def _validate_types(values: dict[str, Any], before: str = "", after: str = "") -> Options:
    try:
        return TypeAdapter(Options).validate_python(values)
    except ValidationError as error:
        faults = [
            f"--{fault['loc'][0]} {fault['input']}: "
            + fault["msg"].replace("Input should", "must").removeprefix("Value error, ")
            for fault in error.errors()
        ]
        raise OptionError(f"{before}{'; '.join(faults)}{after}") from None
