"""Plans of experiments: variants and seeds to train and compare."""

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


KEYS = {"baseline", "seeds", "common", "variants"}
# Options of train.py that experiments.py sets itself.
RESERVED = {"--seed", "--data", "--out", "--resume", "--final_test"}


@dataclass(frozen=True)
class Run:
    """One training run of a plan.

    Attributes:
        variant: Name of the variant.
        seed: Random seed.
        argv: Options of train.py.
        folder: Run folder.
    """

    variant: str
    seed: int
    argv: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        """Name of the run: variant and seed."""
        return self.folder.name

    @property
    def is_finished(self) -> bool:
        """Whether the run has been trained and evaluated."""
        return (self.folder / "metrics.json").exists()


@dataclass(frozen=True)
class Plan:
    """The content of a plan file.

    Attributes:
        baseline: The variant that the others are compared with.
        seeds: Seeds of each variant.
        common: Options of train.py for all runs.
        variants: By name: options of train.py for its runs.
    """

    baseline: str
    seeds: tuple[int, ...]
    common: str
    variants: dict[str, str]

    def runs(self, out: Path) -> list[Run]:
        """Return the runs, in subfolders of `out`: all variants of a seed, then the next seed."""
        return [
            Run(
                variant,
                seed,
                tuple(shlex.split(f"{self.common} {text}")),
                out / f"{variant}-{seed}",
            )
            for seed in self.seeds
            for variant, text in self.variants.items()
        ]


def read_plan(
    path: Path,
    seeds: tuple[int, ...] = (),
    common: str | None = None,
    chosen: tuple[str, ...] = (),
) -> Plan:
    """Read and check a plan file.

    Args:
        path: A TOML file with the keys baseline, seeds, common and variants.
        seeds: Replace the plan's seeds.
        common: Replaces the plan's common options.
        chosen: Variants to keep. Without the plan's baseline, the first of them is the baseline.

    Raises:
        DataError: The file cannot be read, or a value is wrong.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); configs/ has examples"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not TOML: {error}") from error
    if unknown := content.keys() - KEYS:
        raise DataError(
            f"{path}: unknown key {', '.join(sorted(unknown))}; the keys of a plan are "
            f"{', '.join(sorted(KEYS))}"
        )
    variants = _variants(path, content)
    baseline = content.get("baseline")
    if not isinstance(baseline, str) or baseline not in variants:
        raise DataError(f"{path}: the baseline {baseline!r} is none of {', '.join(variants)}")
    if unknown_names := [name for name in chosen if name not in variants]:
        raise DataError(
            f"{path}: {unknown_names[0]!r} is none of its variants {', '.join(variants)}"
        )
    if chosen:
        variants = {name: text for name, text in variants.items() if name in chosen}
        baseline = baseline if baseline in chosen else chosen[0]
    in_file = content.get("seeds", [])
    seeds = seeds or tuple(in_file if isinstance(in_file, list) else ())
    if {type(seed) for seed in seeds} != {int} or len(set(seeds)) < len(seeds):
        raise DataError(f"{path}: seeds must be different whole numbers, such as [0, 1, 2]")
    common = content.get("common", "") if common is None else common
    if not _is_command_line(common):
        raise DataError(f"{path}: common = {common!r} must be a string of options of train.py")
    for text in (common, *variants.values()):
        if reserved := RESERVED & {word.split("=")[0] for word in shlex.split(text)}:
            raise DataError(
                f"{path}: {min(reserved)} in {text!r} is not allowed: seeds are a list of their "
                "own, and --data and --out are options of tools.experiments"
            )
    return Plan(baseline, seeds, common, variants)


def _variants(path: Path, content: dict[str, Any]) -> dict[str, str]:
    """Return the checked table of variants.

    Raises:
        DataError: It is missing, or a name or an option string is wrong.
    """
    variants = content.get("variants")
    if not isinstance(variants, dict) or not all(map(_is_command_line, variants.values())):
        raise DataError(
            f'{path} needs a table [variants] of strings with options of train.py: name = "--x 1"'
        )
    if wrong := [name for name in variants if not name.replace("_", "").isalnum()]:
        raise DataError(f"{path}: {wrong[0]!r} cannot be a folder name; use letters, digits and _")
    return variants


def _is_command_line(value: Any) -> bool:
    try:
        return isinstance(value, str) and shlex.split(value) is not None
    except ValueError:  # an unbalanced quotation mark
        return False
