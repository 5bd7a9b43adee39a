"""Draw fig/finetune.png: the accuracy by the number of images per class, from a comparison table.

    python -m tools.draw_finetune
    python -m tools.draw_finetune model_save/finetune/comparison.csv --out curve.png

The default table is that of the repository, configs/finetune.results.csv.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import pandas as pd
import tyro

from utils.cli import parse
from utils.errors import DataError, run_main
from utils.figures import BLUE, GRAY, figure_style, new_figure, save_figure
from utils.files import atomic_write
from utils.run_folder import ROOT

LABELS = {"finetune": ("fine-tuned", BLUE), "scratch": ("from scratch", GRAY)}


@dataclass(frozen=True)
class CurveOptions:
    """Options of tools.draw_finetune."""

    table: Annotated[str, tyro.conf.Positional] = str(ROOT / "configs/finetune.results.csv")
    """comparison.csv of configs/finetune.toml."""
    out: str = str(ROOT / "fig/finetune.png")
    """The figure."""


@figure_style()
def main() -> None:
    options = parse(CurveOptions, sys.argv[1:], __doc__)
    try:
        columns = ["variant", "mean", "std", "balanced_accuracy"]
        table = pd.read_csv(options.table, usecols=columns)
        table[["kind", "n"]] = table["variant"].str.extract(r"^([a-z]+)_(\d+)$")
        table["n"] = table["n"].astype(int)
        table["balanced"] = 100 * table["balanced_accuracy"].astype(float)
        table = table.sort_values("n")
    except (OSError, KeyError, ValueError) as error:
        fault = f"{options.table} is no comparison of configs/finetune.toml ({error})"
        raise DataError(f"{fault}; write one with tools.experiments") from error
    figure = new_figure(8, 3.2)
    left, right = panels = figure.subplots(1, 2, sharey=True)
    for kind, (label, color) in LABELS.items():
        rows = table[table["kind"] == kind]
        style = {"color": color, "label": label, "marker": "o"}
        left.errorbar(rows["n"], rows["mean"], yerr=rows["std"].fillna(0), capsize=3, **style)
        right.plot(rows["n"], rows["balanced"], **style)
    ticks = sorted(table["n"].unique())
    for axes, name in zip(panels, ("accuracy", "balanced accuracy")):
        axes.set(xscale="log", xlabel="Training images per class", ylabel=f"PublicTest {name} (%)")
        axes.set_ylim(0, 100)
        axes.set_xticks(ticks, ticks)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend(frameon=False, loc="lower right")
    with atomic_write(options.out) as partial:
        save_figure(figure, partial)
    print(f"{options.out}: {len(table)} variants of {options.table}")


if __name__ == "__main__":
    run_main(main)
