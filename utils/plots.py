"""Plots of a run. Each function returns a Matplotlib figure, for `figures.save_figure`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from utils.figures import BLUE, GRAY, GREEN, RED, escape_math, figure_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASS_COLORS = {
    **{"angry": "#c0392b", "disgust": "#6b8e23", "fear": "#7d5ba6", "happy": "#f2c14e"},
    **{"sad": "#3b75af", "surprise": "#ef8a62", "neutral": "#b8b8b8"},
}
MIN_LOSS = 1e-4  # lower end of the logarithmic axis


@figure_style()
def plot_learning_curves(
    history: Sequence[Mapping[str, float]], title: str, select: str = "public_accuracy"
) -> Figure:
    """Plot losses and accuracies over the epochs, and mark the best epoch by the metric `select`.

    A loss below MIN_LOSS has no place on the logarithmic axis. Epochs with such a value are left
    out, and so are points that would be isolated between them. `history` has the rows of
    metrics.csv; a loss may be missing in some.
    """
    table = pd.DataFrame(history).set_index("epoch").astype(float)
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    losses = [name for name in table if name.startswith("loss_")]
    for name, color in zip(losses, cycle((BLUE, GREEN, RED, GRAY))):
        values = _without_isolated_points(table[name].to_numpy())
        if np.isfinite(values).any():
            label = name.removeprefix("loss_")
            left.plot(table.index, values, color=color, label=label, marker=".")
    left.set(xlabel="Epoch", ylabel="Loss terms", yscale="log")
    training, public = 100 * table["train_accuracy"], 100 * table["public_accuracy"]
    right.plot(training, color=GRAY, label="Training (augmented)", marker=".")
    right.plot(public, color=BLUE, label="PublicTest", marker=".")
    best = table[select].idxmax()
    label = f"Best: {public[best]:.2f} % (epoch {best:.0f})"
    right.scatter(best, public[best], color=RED, zorder=3, label=label)
    right.set(xlabel="Epoch", ylabel="Accuracy (%)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(escape_math(title))
    return figure


@figure_style()
def plot_confusion_matrix(counts: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Plot a confusion matrix [C, C] of counts; rows are true classes.

    Cells are colored by their share of the row; "-" marks a class without images.
    """
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    size = 1.6 + 0.75 * len(class_names)
    figure = new_figure(size, 0.92 * size)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        text = f"{100 * share:.0f} %\n{counts[row, column]}" if totals[row] else "-"
        color = "white" if share > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    names = [escape_math(name) for name in class_names]
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="Predicted class", ylabel="True class", title=escape_math(title))
    return figure


@figure_style()
def plot_reliability(bins: Sequence[tuple[float, float, int]], error: float, title: str) -> Figure:
    """Plot a reliability diagram: accuracy over confidence, and a histogram of the confidence.

    `bins` has the mean confidence, accuracy and number of images of each bin, `error` is the
    expected calibration error.
    """
    confidence, accuracy, count = (np.array(column) for column in zip(*bins))
    figure = new_figure(5, 5.6)
    top, bottom = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    top.plot([0, 100], [0, 100], color=GRAY, lw=1, ls="--", label="Perfect calibration")
    label = f"Network (ECE {error:.3f})"
    top.plot(100 * confidence, 100 * accuracy, color=BLUE, marker="o", label=label)
    top.set(ylabel="Accuracy (%)", ylim=(0, 100), xlim=(0, 100))
    top.grid(alpha=0.3)
    top.legend(frameon=False, loc="upper left")
    bottom.bar(100 * confidence, count, width=5, color=BLUE)
    bottom.set(xlabel="Confidence (%)", ylabel="Images")
    figure.suptitle(escape_math(title))
    return figure


@figure_style()
def plot_importance_by_class(importance: Mapping[str, np.ndarray], title: str) -> Figure:
    """Plot a histogram of the images' importance for each class, on a common axis."""
    figure = new_figure(7, 1.2 + 0.8 * len(importance))
    panels = figure.subplots(len(importance), 1, squeeze=False, sharex=True)[:, 0]
    values = np.concatenate(list(importance.values()))
    edges = np.linspace(values.min(), max(values.max(), values.min() + 1e-3), 31)
    for axes, (name, column) in zip(panels, importance.items()):
        axes.hist(column, edges, color=CLASS_COLORS.get(name, BLUE))
        line = axes.axvline(np.mean(column), color="black", lw=1, label="Mean of the class")
        axes.set_ylabel(escape_math(name), rotation=0, ha="right", va="center")
        axes.set_yticks([])
        text = f"mean {np.mean(column):.2f}\nn = {len(column):,}"
        axes.text(1.01, 0.5, text, transform=axes.transAxes, va="center", fontsize=8)
    panels[-1].set(xlabel="Importance")
    figure.legend(handles=[line], loc="outside lower right", frameon=False)
    figure.supylabel("Images per class", fontsize="medium")
    figure.suptitle(escape_math(title))
    return figure


@figure_style()
def plot_explanations(
    faces: Sequence[tuple[str, Sequence[np.ndarray], Mapping[str, float]]],
) -> Figure:
    """Plot explained faces, a row for each: its images, and the contributions to the logit.

    A face has a title, images [H, W, 3], and signed contributions by name of a facial part.
    """
    figure = new_figure(9, 2.9 * len(faces))
    rows = figure.subplots(len(faces), 3, squeeze=False, width_ratios=(1, 1, 1.1))
    for (*panels, bars), (title, images, contributions) in zip(rows, faces):
        for axes, image in zip(panels, images):
            axes.imshow(image)
            axes.axis("off")
        plot_contributions(bars, contributions)
        bars.set_title(escape_math(title), fontsize="medium")
    rows[-1][-1].set_xlabel("Contribution to the logit")
    return figure


def plot_contributions(axes: Any, contributions: Mapping[str, float]) -> None:
    """Draw signed contributions as bars, with their values."""
    values = np.array([*contributions.values()])
    colors = [RED if value > 0 else BLUE for value in values]
    bars = axes.barh([escape_math(name) for name in contributions], values, color=colors)
    axes.bar_label(bars, [f"{value:+.2f}" for value in values], padding=3, fontsize=8)
    axes.axvline(0, color="black", lw=0.8)
    axes.margins(x=0.25)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


@figure_style()
def plot_expressions_over_time(
    tracks: Mapping[str, tuple[np.ndarray, np.ndarray]], class_names: Sequence[str], title: str
) -> Figure:
    """Plot the class probabilities of the faces of a video over time, a panel for each face.

    `tracks` has by name of the face: edges of T time steps in seconds [T + 1], and probabilities
    [T, C], NaN where the face was not detected.
    """
    from matplotlib import colormaps  # noqa: PLC0415
    from matplotlib.patches import Patch  # noqa: PLC0415

    figure = new_figure(9, 1.0 + 1.8 * len(tracks))
    others = cycle(colormaps["tab20"].colors)
    colors = [CLASS_COLORS.get(name) or next(others) for name in class_names]
    panels = figure.subplots(len(tracks), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, (edges, probabilities)) in zip(panels, tracks.items()):
        tops = np.pad(100 * np.cumsum(probabilities, axis=1), ((0, 0), (1, 0)))
        # Both ends of each step, so that a step next to a gap is drawn, too.
        ends, tops = np.repeat(edges, 2)[1:-1], np.repeat(tops, 2, axis=0)
        for i, color in enumerate(colors):
            axes.fill_between(ends, tops[:, i], tops[:, i + 1], color=color, lw=0)
        axes.set(title=escape_math(name), ylabel="Probability (%)", ylim=(0, 100))
        axes.margins(x=0)
    panels[-1].set(xlabel="Time (s)")
    handles = [Patch(color=c, label=escape_math(name)) for name, c in zip(class_names, colors)]
    columns = min(len(handles), 8)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(escape_math(title))
    return figure


def _without_isolated_points(values: np.ndarray) -> np.ndarray:
    """Return losses [N] with NaN below MIN_LOSS, and for points without a neighbor, if N > 1."""
    is_drawn = values >= MIN_LOSS  # False for NaN
    if len(values) > 1:
        padded = np.pad(is_drawn, 1)
        is_drawn = is_drawn & (padded[:-2] | padded[2:])
    return np.where(is_drawn, values, np.nan)
