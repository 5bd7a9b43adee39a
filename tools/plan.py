"""Plans of experiments: variants and seeds to train and compare."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, StrictInt, ValidationError, model_validator

from utils.errors import DataError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Options of train.py that tools.experiments sets itself.
RESERVED = {"--seed", "--data", "--out", "--resume", "--final_test", "--ferplus_test"}


@dataclass(frozen=True)
class Run:
    """One training run of a plan."""

    variant: str
    seed: int
    argv: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        """Variant and seed."""
        return self.folder.name

    @property
    def log(self) -> Path:
        """The log of train.py, next to the folder."""
        return self.folder.with_name(f"{self.name}.log")

    @property
    def is_finished(self) -> bool:
        """Whether the run has been trained and evaluated."""
        return (self.folder / "metrics.json").exists()


def _check_options(text: str) -> str:
    if reserved := RESERVED & {word.split("=")[0] for word in shlex.split(text)}:
        raise ValueError(f"{min(reserved)} in {text!r} is not allowed; tools.experiments sets it")
    return text


OptionText = Annotated[str, AfterValidator(_check_options)]


class Plan(BaseModel, extra="forbid"):
    """The content of a plan file."""

    baseline: str  # the variant that the others are compared with
    seeds: tuple[StrictInt, ...]  # of each variant
    common: OptionText = ""  # options of train.py for all runs
    variants: dict[str, OptionText]  # by name: more options of train.py

    @model_validator(mode="after")
    def check(self) -> Plan:
        """Check what the types do not say."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must be different whole numbers, such as [0, 1, 2]")
        if self.baseline not in self.variants:
            variants = ", ".join(self.variants)
            raise ValueError(f"the baseline {self.baseline!r} is none of {variants}")
        for name in self.variants:
            if not name.replace("_", "").isalnum():
                raise ValueError(f"{name!r} cannot be a folder name; use letters, digits and _")
        return self

    def runs(self, out: Path) -> list[Run]:
        """Return the runs, in subfolders of `out`: all variants of a seed, then the next seed."""
        return [
            Run(name, seed, tuple(shlex.split(f"{self.common} {text}")), out / f"{name}-{seed}")
            for seed in self.seeds
            for name, text in self.variants.items()
        ]


def read_plan(
    path: Path, seeds: tuple[int, ...] = (), common: str | None = None, chosen: tuple[str, ...] = ()
) -> Plan:
    """Read a plan from a TOML file, and check it; raise a DataError if it is invalid.

    `seeds` and `common` replace those of the plan. Of the variants, `chosen` are kept; without the
    plan's baseline, the first of them is the baseline.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        replaced = {"seeds": seeds or None, "common": common}
        plan = Plan(**content | {k: v for k, v in replaced.items() if v is not None})
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; configs/ has examples") from error
    except ValidationError as error:
        faults = [": ".join([*map(str, e["loc"]), e["msg"]]) for e in error.errors()]
        text = "; ".join(faults).replace("Value error, ", "")
        raise DataError(f"{path}: {text}; configs/ has examples") from None
    except ValueError as error:
        raise DataError(f"{path} is not TOML: {error}") from error
    if unknown := [name for name in chosen if name not in plan.variants]:
        variants = ", ".join(plan.variants)
        raise DataError(f"{path}: {unknown[0]!r} is none of its variants {variants}")
    if not chosen:
        return plan
    variants = {name: text for name, text in plan.variants.items() if name in chosen}
    baseline = plan.baseline if plan.baseline in chosen else chosen[0]
    return plan.model_copy(update={"variants": variants, "baseline": baseline})
