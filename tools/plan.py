"""A plan: the variants and seeds that experiments.py trains and compares."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import DataError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


# Options of train.py that experiments.py gives itself; --gpu_ids, where it is asked for.
TAKEN = {"--seed", "--data", "--out", "--resume", "--final_test"}


@dataclass(frozen=True)
class Plan:
    """What a plan file says.

    Attributes:
        baseline: the variant that the others are compared with.
        seeds: of each variant.
        common: train.py's options of all cells.
        variants: by name: train.py's options of its cells.
    """

    baseline: str
    seeds: tuple[int, ...]
    common: str
    variants: dict[str, str]


def read_plan(
    path: Path,
    seeds: tuple[int, ...] = (),
    common: str | None = None,
    chosen: tuple[str, ...] = (),
) -> Plan:
    """Read a plan; other seeds and common options may be given, and some of its variants chosen.

    Of these the first is the baseline, unless the plan's own is among them.

    Raises:
        DataError: it cannot be read, or says something else than a plan should.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); plans/ holds some") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not TOML: {error}") from error
    if unknown := content.keys() - {"baseline", "seeds", "common", "variants"}:
        raise DataError(f"{path}: {', '.join(sorted(unknown))} is nothing that a plan can say")
    variants = content.get("variants")
    if not isinstance(variants, dict) or not all(map(_is_command_line, variants.values())):
        raise DataError(f"{path} needs a table [variants], whose values are options of train.py")
    if wrong := [name for name in variants if not name.replace("_", "").isalnum()]:
        raise DataError(f"{path}: {wrong[0]!r} cannot name a folder; take letters, digits and _")
    baseline = content.get("baseline")
    if not isinstance(baseline, str) or baseline not in variants:
        raise DataError(f"{path}: the baseline {baseline!r} is none of {', '.join(variants)}")
    if unknown := [name for name in chosen if name not in variants]:
        raise DataError(f"{path}: {unknown[0]!r} is none of its variants {', '.join(variants)}")
    if chosen:
        variants = {name: text for name, text in variants.items() if name in chosen}
        baseline = baseline if baseline in chosen else chosen[0]
    quoted = content.get("seeds", [])
    seeds = seeds or tuple(quoted if isinstance(quoted, list) else ())
    if {type(seed) for seed in seeds} != {int} or len(set(seeds)) < len(seeds):
        raise DataError(f"{path}: seeds must be whole numbers, each one once, such as [0, 1, 2]")
    common = content.get("common", "") if common is None else common
    if not _is_command_line(common):
        raise DataError(f"{path}: common = {common!r} is not a text with options of train.py")
    for text in (common, *variants.values()):
        if taken := TAKEN & {word.split("=")[0] for word in shlex.split(text)}:
            raise DataError(
                f"{path}: {min(taken)} in {text!r} would be overridden: a plan lists its seeds, "
                "and --data and --out are options of experiments.py"
            )
    return Plan(baseline, seeds, common, variants)


def _is_command_line(value: Any) -> bool:
    try:
        return isinstance(value, str) and shlex.split(value) is not None
    except ValueError:  # a quotation without an end
        return False
