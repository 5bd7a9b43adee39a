"""Validation of the options: their types, ranges and combinations."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from utils.errors import OptionError
from utils.options import Options, min_image_width

T = TypeVar("T")


def validate_options(options: Options) -> Options:
    """Return the options as they are used.

    Rank regularization needs importances, pooling at landmarks needs landmarks, relabeling needs
    labels, and freezing needs initial weights: each is off without what it needs.

    Raises:
        OptionError: A value is out of range, or options contradict each other.
    """
    validate_types(asdict(options))
    _check_architecture(options)
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
    check_label_options(options.class_names, options.ferplus, options.ferplus_test)
    if options.ferplus_target != "majority":
        if not options.ferplus:
            name = "recipe" if options.recipe == "ferplus" else "ferplus_target"
            value = getattr(options, name)
            raise OptionError(f"--{name} {value} needs the votes: --ferplus PATH")
        if options.label_noise:
            raise OptionError(
                "--label_noise changes labels, and --ferplus_target uses votes, too; "
                "leave one of them out"
            )
        options = replace(options, relabel="none")
    if not options.landmarks:
        options = replace(options, landmark_pool=False)
    if not options.importance:
        options = replace(options, rank_weight=0.0)
    if not (options.model_path or options.init):
        options = replace(options, freeze_epochs=0)
    return options


def _check_architecture(options: Options) -> None:
    """Raise an OptionError if backbone, width, stem and initial weights contradict each other."""
    is_timm = options.backbone.startswith("timm:")
    changes = {"--mirror": options.mirror, "--downsample pool": options.downsample == "pool"}
    changes["--stem imagenet"] = options.stem == "imagenet"
    changed = [name for name, is_on in changes.items() if is_on]
    if changed and options.backbone != "resnet18":
        raise OptionError(f"{changed[0]} is for resnet18, not {options.backbone}")
    if options.mirror and options.stem == "imagenet":
        raise OptionError("--mirror needs --stem small: a convolution of stride 2 is not symmetric")
    if options.init and (options.mirror or options.downsample == "pool"):
        raise OptionError("--init needs --downsample stride and no --mirror, as in its weights")
    if options.width != 1 and (is_timm or options.init):
        kind = f"--backbone {options.backbone}" if is_timm else f"--init {options.init}"
        raise OptionError(f"{kind} needs --width 1, not {options.width:g}")
    if options.init and options.model_path:
        raise OptionError("--init and --model_path both give initial weights; leave out one")


def print_notes(options: Options) -> None:
    """Print which options have no effect."""
    if options.relabel != "none" and options.relabel_epoch > options.total_epoch:
        print(f"note     no relabeling: --relabel_epoch {options.relabel_epoch} is never reached")
    if options.warmup_epoch >= options.total_epoch:
        print(f"note     the learning rate never falls: --warmup_epoch {options.warmup_epoch:g}")


def check_label_options(class_names: Sequence[str], ferplus: str, ferplus_test: str) -> None:
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


def validate_types(
    values: dict[str, Any], kind: type[T] = Options, before: str = "", after: str = ""
) -> T:
    """Return the options of plain values; `before` and `after` are texts of the error message.

    Raises:
        OptionError: A value has a wrong type, or is out of range.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        faults = [
            f"--{fault['loc'][0]} {fault['input']}: "
            + fault["msg"].replace("Input should", "must").removeprefix("Value error, ")
            for fault in error.errors()
        ]
        raise OptionError(f"{before}{'; '.join(faults)}{after}") from None
