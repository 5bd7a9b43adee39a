"""The figures of a run. Each function returns a Matplotlib figure; the run folder writes it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.patches import Patch

BLUE, RED, GREEN, GREY = "#2166ac", "#d6604d", "#4d9221", "#777777"
EXPRESSIONS = {
    "angry": "#c0392b",
    "disgust": "#6b8e23",
    "fear": "#7d5ba6",
    "happy": "#f2c14e",
    "sad": "#3b75af",
    "surprise": "#ef8a62",
    "neutral": "#b8b8b8",
}
LEAST = 1e-4  # losses below it are not drawn
# A class may have a name in any script: Matplotlib's own font lacks those of East Asia.
_EAST_ASIAN = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic", "PingFang SC", "Hiragino Sans GB"),
)
_installed = {font.name for font in fontManager.ttflist}
rcParams["font.family"] = ["DejaVu Sans", *filter(_installed.__contains__, _EAST_ASIAN)]
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # of weights that one lacks


def plot_learning_curves(history: Sequence[Mapping[str, float]], title: str) -> Figure:
    """Draw the losses and accuracies over the epochs of a run's metrics.csv."""
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    # Some may be of some epochs only.
    names = dict.fromkeys(name for row in history for name in row)
    losses = [name for name in names if name.startswith("loss_")]
    for name, color in zip(losses, cycle((BLUE, GREEN, RED, GREY))):
        values = _column(history, name)
        values[values < LEAST] = np.nan  # a rank loss of 0 has no place on a log axis
        left.plot(epochs, values, color=color, label=name[5:], marker=".")
    left.set(xlabel="epoch", ylabel="loss (unweighted)", yscale="log")
    for name, color, label in (
        ("train_accuracy", GREY, "Training, augmented"),
        ("public_accuracy", BLUE, "PublicTest"),
    ):
        right.plot(epochs, 100 * _column(history, name), color=color, label=label, marker=".")
    best = int(_column(history, "public_accuracy").argmax())
    accuracy = 100 * history[best]["public_accuracy"]
    right.scatter([epochs[best]], [accuracy], color=RED, zorder=3, label=f"best: {accuracy:.2f} %")
    right.set(xlabel="epoch", ylabel="accuracy, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(escape_math(title))
    return figure


def plot_confusion_matrix(counts: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Draw counts [C, C] as shares of each true class, a row; "-" where it has no faces."""
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    size = 1.6 + 0.75 * len(class_names)
    figure = Figure(figsize=(size, size * 0.92), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        axes.text(
            column,
            row,
            f"{100 * share:.0f} %\n{counts[row, column]}" if totals[row] else "-",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share > 0.5 else "black",
        )
    names = [escape_math(name) for name in class_names]
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="label (a row is 100 %)", title=escape_math(title))
    return figure


def plot_reliability(bins: Sequence[tuple[float, float, int]], error: float, title: str) -> Figure:
    """Draw how often a network is right when it is so sure: on the diagonal it is honest.

    Args:
        bins: confidence and accuracy, the means of the faces of each bin, and their number.
        error: the expected calibration error.
        title: of the figure.
    """
    confidence, accuracy, count = (np.array(column) for column in zip(*bins))
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    top, below = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    top.plot([0, 100], [0, 100], color=GREY, lw=1, ls="--", label="as sure as right")
    top.plot(100 * confidence, 100 * accuracy, color=BLUE, marker="o", label=f"ECE {error:.3f}")
    top.set(ylabel="accuracy, %", ylim=(0, 100), xlim=(0, 100))
    top.grid(alpha=0.3)
    top.legend(frameon=False)
    below.bar(100 * confidence, count, width=100 / 20, color=BLUE)
    below.set(xlabel="confidence, %", ylabel="faces")
    figure.suptitle(escape_math(title))
    return figure


def plot_importance_by_class(importance: Mapping[str, np.ndarray], title: str) -> Figure:
    """Draw a histogram of the importances of each class, one below the other, on one axis."""
    figure = Figure(figsize=(7, 0.8 + 0.8 * len(importance)), layout="constrained")
    all_axes = figure.subplots(len(importance), 1, squeeze=False, sharex=True)[:, 0]
    values = np.concatenate([np.ravel(each) for each in importance.values()])
    edges = np.linspace(values.min(), max(values.max(), values.min() + 1e-3), 31)
    for axes, (name, each) in zip(all_axes, importance.items()):
        axes.hist(each, edges, color=EXPRESSIONS.get(name, BLUE))
        axes.axvline(np.mean(each), color="black", lw=1)
        axes.set_ylabel(escape_math(name), rotation=0, ha="right", va="center")
        axes.set_yticks([])
        axes.annotate(
            f"mean {np.mean(each):.2f}\n{len(each):,} faces",
            (1.01, 0.5),
            xycoords="axes fraction",
            va="center",
            fontsize=8,
        )
    all_axes[-1].set(xlabel="importance (the line: the class's mean)")
    figure.suptitle(escape_math(title))
    return figure


def plot_expressions_over_time(
    tracks: Mapping[str, tuple[np.ndarray, np.ndarray]], class_names: Sequence[str], title: str
) -> Figure:
    """Draw the probabilities of the faces of a video, stacked, a panel for each face.

    Args:
        tracks: by name: when, in seconds [T + 1] (the edges of T steps), and probabilities
            [T, C], NaN where the face was not seen.
        class_names: C names.
        title: of the figure.
    """
    figure = Figure(figsize=(9, 1.0 + 1.8 * len(tracks)), layout="constrained")
    others = cycle(colormaps["tab20"].colors)
    colors = [EXPRESSIONS.get(name) or next(others) for name in class_names]
    all_axes = figure.subplots(len(tracks), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, (edges, shares)) in zip(all_axes, tracks.items()):
        tops = 100 * np.cumsum(shares, axis=1)
        tops = np.concatenate((np.zeros((len(tops), 1)), tops), 1)
        # Each step has its two ends, also where the face was not seen before or after it.
        ends, tops = np.repeat(edges, 2)[1:-1], np.repeat(tops, 2, axis=0)
        for i, color in enumerate(colors):
            axes.fill_between(ends, tops[:, i], tops[:, i + 1], color=color, lw=0)
        axes.set(ylabel=f"{name}, %", ylim=(0, 100))
        axes.margins(x=0)
    all_axes[-1].set(xlabel="seconds")
    handles = [
        Patch(color=color, label=escape_math(name)) for name, color in zip(class_names, colors)
    ]
    columns = min(len(handles), 8)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(escape_math(title))
    return figure


def _column(history: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
    values = [row.get(name) for row in history]
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def escape_math(text: str) -> str:
    """Return a text in which a dollar is a dollar: Matplotlib reads mathematics between two."""
    return text.replace("$", r"\$")
