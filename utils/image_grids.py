"""Figures that show images in grids. Each function returns a Matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from utils.plots import BLUE, RED, escape_math


def plot_landmarks(
    images: np.ndarray,
    landmarks: Mapping[str, np.ndarray | None],
    captions: Sequence[str],
    title: str,
) -> Figure:
    """Draw faces with their landmarks, in rows of seven.

    Args:
        images: [N, W, W] or [N, W, W, 3].
        landmarks: "true" (drawn blue) and "predicted" (red): [N, 68, 2] in pixels, NaN
            or None where there are none.
        captions: N texts.
        title: of the figure.
    """
    columns = min(7, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.6 * columns, 2.0 * rows + 0.5), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).flat
    for i, axes in enumerate(all_axes):
        axes.axis("off")
        if i >= len(images):
            continue
        _face(axes, images[i], captions[i])
        for (name, points), color in zip(landmarks.items(), (BLUE, RED)):
            if points is not None:
                style = {"s": 8, "color": color, "linewidths": 0.3, "edgecolors": "white"}
                axes.scatter(*points[i].T, label=name, **style)
    handles, names = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, markerscale=3, frameon=False)
    figure.suptitle(escape_math(title))
    return figure


def plot_grid(rows: Sequence[tuple[str, np.ndarray, Sequence[str]]]) -> Figure:
    """Draw one row of captioned faces (title, images, captions) below the other."""
    columns = max(len(images) for _, images, _ in rows)
    figure = Figure(figsize=(1.1 * columns, 2.1 * len(rows)), layout="constrained")
    parts = figure.subfigures(len(rows), 1, squeeze=False).flat
    for part, (title, images, captions) in zip(parts, rows):
        part.suptitle(escape_math(title), fontsize=10)
        for i, axes in enumerate(part.subplots(1, columns, squeeze=False).flat):
            axes.axis("off")
            if i < len(images):
                _face(axes, images[i], captions[i])
    return figure


def plot_relabeled(
    relabels: Sequence[tuple[int, int, int, int]],
    images: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> Figure:
    """Draw up to 36 faces that were relabeled, from which label to which, evenly out of all.

    Args:
        relabels: one or more, each the face's row, from, to, epoch.
        images: [N, W, W] or [N, W, W, 3] of the whole set.
        class_names: of the labels.
        title: of the figure.
    """
    columns = 12
    count = min(3 * columns, len(relabels))
    some = [relabels[i] for i in np.linspace(0, len(relabels) - 1, count).astype(int)]
    rows = []
    for i in range(0, count, columns):
        part = some[i : i + columns]
        captions = [f"{class_names[a]}\n> {class_names[b]}" for _, a, b, _ in part]
        epochs = sorted({epoch for *_, epoch in part})
        when = f"epoch {epochs[0]}" + (f" to {epochs[-1]}" if len(epochs) > 1 else "")
        named = f"relabeled in {when}" if i else f"{title}: relabeled in {when}"
        rows.append((named, images[[row for row, *_ in part]], captions))
    return plot_grid(rows)


def plot_disagreements(
    images: np.ndarray, labels: Sequence[str], readings: Mapping[str, Sequence[str]], title: str
) -> Figure:
    """Draw the same faces as several runs read them, a row each: framed blue if right, else red.

    Args:
        images: [N, W, W] or [N, W, W, 3].
        labels: N class names.
        readings: by run: N class names.
        title: of the figure.
    """
    size = (0.6 + 1.1 * len(images), 0.5 + 1.45 * len(readings))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(readings), len(images), squeeze=False)
    for i, (row, (name, read)) in enumerate(zip(grid, readings.items())):
        for axes, image, label, text in zip(row, images, labels, read):
            color = BLUE if text == label else RED
            _face(axes, image, "" if i else label)
            axes.axis("on")
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(escape_math(text), fontsize=8, color=color, labelpad=2)
            for spine in axes.spines.values():
                spine.set(color=color, linewidth=3)
        row[0].set_ylabel(escape_math(name), fontsize=8)
    explained = "above: the label; below: what the run reads, blue if right, red if wrong"
    figure.suptitle(f"{escape_math(title)}\n{explained}", fontsize=10)
    return figure


def _face(axes, image: np.ndarray, caption: str) -> None:
    height, width = image.shape[:2]
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.set_title(escape_math(caption), fontsize=7)
    axes.axis("off")
