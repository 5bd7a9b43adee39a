"""Creating and saving Matplotlib figures.

Matplotlib is imported within the functions, because scripts without figures start faster so.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, RED, GREEN, GRAY = "#2166ac", "#d6604d", "#4d9221", "#777777"
# Class names may be in any script, and Matplotlib's own font has no East Asian ones.
EAST_ASIAN_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic", "PingFang SC", "Hiragino Sans GB"),
)


@contextmanager
def figure_style() -> Iterator[None]:
    """Set the fonts in the block, in which a figure is drawn or saved; also a decorator."""
    # A notebook sets MPLBACKEND for all processes that it starts. Without its package, Matplotlib
    # cannot be imported.
    if "inline" in os.environ.get("MPLBACKEND", "") and find_spec("matplotlib_inline") is None:
        del os.environ["MPLBACKEND"]
    from matplotlib import rc_context  # noqa: PLC0415

    with rc_context({"font.family": _installed_fonts()}):
        yield


@cache
def _installed_fonts() -> list[str]:
    """Return the font families of all figures: Matplotlib's own, and installed East Asian ones."""
    from matplotlib.font_manager import fontManager  # noqa: PLC0415

    # It warns of font weights that are not installed.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    names = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in EAST_ASIAN_FONTS if name in names)]


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; width and height in inches."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    return Figure(figsize=(width, height), layout="constrained")


@figure_style()
def save_figure(figure: Figure, file: Path | BinaryIO) -> None:
    """Write a figure as PNG."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a character in no font is drawn as a box
        figure.savefig(file, format="png", dpi=120, bbox_inches="tight")


def to_png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    file = BytesIO()
    save_figure(figure, file)
    return file.getvalue()


def escape_math(text: str) -> str:
    """Return a text whose dollar signs do not start Matplotlib's math mode."""
    return text.replace("$", r"\$")
