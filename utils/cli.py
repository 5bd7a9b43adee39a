"""The command line: parsing, recipes, validation, and the options of a saved run."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import docstring_parser
import tyro

from utils.errors import OptionError
from utils.options import RECIPES, Options, with_recipe
from utils.validation import validate_options, validate_types

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
# The names of texts; the other options of type str are paths.
METAVARS = {"gpu_ids": "IDS", "common": "OPTIONS", "note": "TEXT"}
METAVARS |= dict.fromkeys(("backbone", "class_names", "variants"), "NAME")
# Options that may differ when a run is resumed: they change where it runs, not what it trains.
FREE_ON_RESUME = {"resume", "out", "data", "ferplus", "ferplus_test", "gpu_ids", "threads"}
FREE_ON_RESUME |= {"compile", "final_test"}
# Options that initial weights determine.
FIXED_BY_WEIGHTS = {"backbone", "width", "downsample", "mirror", "stem", "channels"}
FIXED_BY_WEIGHTS |= {"landmark_pool"}
# Names of earlier versions and of other projects, and what replaces them.
RENAMED = {
    "--epochs": "--total_epoch",
    "--lr": "--start_lr",
    "--trunk": "--backbone",
    "--sizes": "--image_width (several values are progressive resizing)",
    **dict.fromkeys(("--rotation", "--scale", "--shift"), "--affine DEGREES TRANSLATION SCALE"),
    "--light": "--color_jitter",
    "--rank": "--rank_weight",
    "--no_rank": "--rank_weight 0",
    "--jobs": "--threads",
    "--usages": "--splits",
    "--detail": "--detection_size",
    "--at_once": "--parallel",
    "--picture": "--figure",
    "--relabel_rule": "--relabel",
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
        OptionError: A value is out of range, or an option has another name now.
    """
    names = {field.name for field in fields(kind)}
    for word in (word.split("=")[0].replace("-", "_").replace("__", "--", 1) for word in argv):
        if word.removeprefix("--").removeprefix("no_") in names:
            continue
        if word in RENAMED:
            raise OptionError(f"{word} does not exist; use {RENAMED[word]}")
    main = sys.modules["__main__"].__spec__  # None, unless this is `python -m`
    program = f"python -m {main.name}" if main else Path(sys.argv[0]).name
    # tyro puts a second empty line before an indented one.
    texts = {"prog": program, "description": description.replace("\n\n    ", "\n    ")}
    values = tyro.cli(with_help(kind), args=list(argv), use_underscores=True, **texts)
    return validate_types(vars(values), kind)


def with_help(kind: type) -> type:
    """Return a dataclass with the fields of another one, annotated with what --help prints."""
    params = docstring_parser.parse_from_object(kind).params
    texts = {param.arg_name: " ".join((param.description or "").split()) for param in params}
    types, annotations = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    annotated = []
    for option in fields(kind):
        metavar, name = None, METAVARS.get(option.name, "PATH")
        if types[option.name] == tuple[str, ...]:
            metavar = f"[{name} ...]"
        elif types[option.name] in (str, str | None):
            metavar = name
        argument = tyro.conf.arg(
            help=texts.get(option.name), metavar=metavar, help_behavior_hint=_default_hint
        )
        annotation = Annotated[annotations[option.name], argument]
        annotated.append((option.name, annotation, field(default=option.default)))
    return make_dataclass(kind.__name__, annotated)


def _default_hint(default: str) -> str:
    """Return a default as --help prints it: nothing for an empty one, relative paths."""
    is_empty = default in ("", "''", "None")
    return "" if is_empty else f"(default: {default.replace(f'{ROOT}{os.sep}', '')})"


def parse_train_options(argv: Sequence[str], description: str) -> CommandLine:
    """Parse train.py's command line, once."""
    options = parse(Options, argv, description)
    words = [word for word in argv if word.startswith("--")]  # a value may equal an option's name
    words = {word[2:].split("=")[0].replace("-", "_") for word in words}
    names = {field.name for field in fields(Options)}
    given = {word if word in names else word.removeprefix("no_") for word in words}
    return CommandLine(options, frozenset(given & names))


def resolve_options(
    command: CommandLine, is_synthetic: bool, initial: Mapping[str, Any] | None = None
) -> Options:
    """Return the options of a new run: the recipe's, and the given ones on top.

    The recipe `auto` depends on whether the data set is the synthetic one. `initial` has the
    options of the initial weights, which precede those of the recipe, except for its image widths.

    Raises:
        OptionError: A value is out of range, or options contradict each other or the weights.
    """
    recipe, initial = command.options.recipe, dict(initial or {})
    if recipe == "auto":
        is_finetuned = bool(command.options.model_path)
        recipe = "finetune" if is_finetuned else "sample" if is_synthetic else "full"
    for name in sorted(FIXED_BY_WEIGHTS & command.given):
        value = getattr(command.options, name)
        if value != initial.get(name, value):
            weights, theirs = " ".join(command.options.model_path), initial[name]
            fault = f"{_format_option(name, value)}: {weights} has {name} {theirs}"
            raise OptionError(f"{fault}, which cannot be changed; leave out this option")
    if "image_width" in RECIPES[recipe]:
        initial.pop("image_width", None)
    defaults = replace(with_recipe(recipe), **initial)
    if command.options.relabel == "scn":
        defaults = replace(defaults, margin_2=0.2)  # SCN's
    options = replace(command.over(defaults), recipe=recipe)
    is_plain = options.backbone != "resnet18" or options.stem != "small" or options.init
    if is_plain and not initial:  # a recipe's --mirror is for the small ResNet-18 only
        plain = {"mirror": False, "downsample": "stride"}
        options = replace(options, **{k: v for k, v in plain.items() if k not in command.given})
    options = validate_options(options)
    for name in sorted(command.given - {"recipe"}):
        if getattr(options, name) != getattr(command.options, name):
            print(f"note     --{name} has no effect with these options")
    return options


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
    names = sorted(vars(one).keys() - FREE_ON_RESUME)
    changed = [f"--{name}" for name in names if getattr(one, name) != getattr(other, name)]
    return changed + ["--ferplus"] * (bool(one.ferplus) != bool(other.ferplus))  # may have moved


def format_command(options: Options) -> str:
    """Return the command-line options of a training: its recipe, and what differs from it."""
    recipe = with_recipe(options.recipe)
    words = [f"--recipe {options.recipe}"]
    for name, value in vars(options).items():
        if name not in FREE_ON_RESUME and value != getattr(recipe, name):
            words.append(_format_option(name, value))
    return " ".join(words)


def _format_option(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    values = value if isinstance(value, tuple) else (value,)
    return " ".join([f"--{name}", *map(str, values)])


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
    texts = "config.json is damaged: ", "; correct it, or start a new run"
    return validate_types(saved, Options, *texts)
