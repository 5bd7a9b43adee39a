"""Figures that show images in a grid. Each function returns a Matplotlib figure.

Images are [N, W, W] or [N, W, W, 3].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.figures import BLUE, RED, escape_math, figure_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 7  # of plot_landmarks
RELABELED_COLUMNS = 12


@figure_style()
def plot_landmarks(
    images: np.ndarray,
    landmarks: Mapping[str, np.ndarray | None],
    captions: Sequence[str],
    title: str,
) -> Figure:
    """Show images with up to two sets of landmarks, the first in blue and the second in red.

    Landmarks are [N, 68, 2] in pixels, NaN where there are none; or None.
    """
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    figure = new_figure(1.6 * columns, 2.0 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(images) :]:
        axes.axis("off")
    for i, (axes, image, caption) in enumerate(zip(grid, images, captions)):
        _show(axes, image, caption)
        for (name, points), color in zip(landmarks.items(), (BLUE, RED)):
            if points is not None:
                style = {"s": 8, "color": color, "linewidths": 0.3, "edgecolors": "white"}
                axes.scatter(*points[i].T, label=name, **style)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, markerscale=3, frameon=False)
    figure.suptitle(escape_math(title))
    return figure


@figure_style()
def plot_grid(rows: Sequence[tuple[str, np.ndarray, Sequence[str]]]) -> Figure:
    """Show rows of images, each row as (title, images, captions)."""
    columns = max(len(images) for _, images, _ in rows)
    figure = new_figure(1.1 * columns, 2.1 * len(rows))
    parts = figure.subfigures(len(rows), 1, squeeze=False).flat
    for part, (title, images, captions) in zip(parts, rows):
        part.suptitle(escape_math(title), fontsize=10)
        for i, axes in enumerate(part.subplots(1, columns, squeeze=False).flat):
            axes.axis("off")
            if i < len(images):
                _show(axes, images[i], captions[i])
    return figure


def plot_relabeled(
    relabels: Sequence[tuple[int, int, int, int]],
    images: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> Figure:
    """Show up to 36 relabeled images, at equal distances in the list, with old and new label.

    `relabels` has at least one of (row of the image, old label, new label, epoch), by epoch, and
    `images` is the whole data set.
    """
    count = min(3 * RELABELED_COLUMNS, len(relabels))
    shown = [relabels[i] for i in np.linspace(0, len(relabels) - 1, count).astype(int)]
    rows = []
    for i in range(0, count, RELABELED_COLUMNS):
        part = shown[i : i + RELABELED_COLUMNS]
        captions = [f"{class_names[old]}\n→ {class_names[new]}" for _, old, new, _ in part]
        first, last = part[0][3], part[-1][3]
        epochs = f"epoch {first}" if first == last else f"epochs {first} to {last}"
        row_title = f"relabeled in {epochs}" if i else f"{title}: relabeled in {epochs}"
        rows.append((row_title, images[[row for row, *_ in part]], captions))
    return plot_grid(rows)


@figure_style()
def plot_disagreements(
    images: np.ndarray, labels: Sequence[str], predictions: Mapping[str, Sequence[str]], title: str
) -> Figure:
    """Show the predictions of several runs for the same images, a row per run.

    The frame is blue for a correct prediction and red for a wrong one. Labels and predictions, the
    latter by name of the run, are class names.
    """
    figure = new_figure(0.6 + 1.1 * len(images), 0.5 + 1.45 * len(predictions))
    grid = figure.subplots(len(predictions), len(images), squeeze=False)
    for i, (row, (name, predicted)) in enumerate(zip(grid, predictions.items())):
        for axes, image, label, text in zip(row, images, labels, predicted):
            color = BLUE if text == label else RED
            _show(axes, image, "" if i else label)
            axes.axis("on")
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(escape_math(text), fontsize=8, color=color, labelpad=2)
            for spine in axes.spines.values():
                spine.set(color=color, linewidth=3)
        row[0].set_ylabel(escape_math(name), fontsize=8)
    legend = "above: label; below: prediction, blue if correct, red if wrong"
    figure.suptitle(f"{escape_math(title)}\n{legend}", fontsize=10)
    return figure


def _show(axes: Any, image: np.ndarray, caption: str) -> None:
    height, width = image.shape[:2]
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.set_title(escape_math(caption), fontsize=7)
    axes.axis("off")
