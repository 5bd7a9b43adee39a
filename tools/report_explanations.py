"""Plot the mean explanation of each class: activation map and contributions of facial parts.

    python -m tools.report_explanations --data data/fer2013.csv --out fig/explanations.png

The images of PublicTest are grouped by their predicted class, which is explained. The outline is
the mean face of the training images, so the figure shows nobody.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from data.dataset import FaceDataset
from data.source import find_source, load_dataset
from inference.align import stack_crops
from inference.explain import split_by_part
from inference.runtime import Runtime, load_runtime
from utils.cli import parse
from utils.errors import DataError, run_main
from utils.figures import escape_math, figure_style, new_figure, save_figure, to_png
from utils.files import atomic_write
from utils.plots import plot_contributions
from utils.run_folder import FERPLUS_WEIGHTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUTLINES = ((0, 17), (17, 22), (22, 27), (27, 31), (31, 36), (36, 42), (42, 48), (48, 60), (60, 68))
CLOSED = {36, 42, 48, 60}  # first landmarks of closed outlines


@dataclass(frozen=True)
class ExplanationOptions:
    """Options of tools.report_explanations."""

    data: str = ""
    """The data set, as for train.py."""
    model_path: str = str(FERPLUS_WEIGHTS)
    """The weights, .pth or .onnx."""
    out: str = "explanations.png"
    """The figure to write."""


def main() -> None:
    options = parse(ExplanationOptions, sys.argv[1:], __doc__)
    runtime = load_runtime(options.model_path, "-1")
    source = find_source(options.data)
    images = load_dataset(source, runtime.image_width, runtime.channels).subset("PublicTest")
    figure = plot_mean_explanations(runtime, images)
    with atomic_write(options.out) as partial:
        save_figure(figure, partial)
    print(f"{options.out}: {len(images):,} PublicTest images of {source.description}")


def explanation_figure(weights: Path, dataset: FaceDataset) -> bytes:
    """Return the figure of a weight file as PNG; empty if there is none, or nothing to show."""
    images = dataset.subset("PublicTest")
    if not weights.is_file() or not len(images):
        return b""
    runtime = load_runtime(weights, "-1")
    if runtime.mean_face is None or runtime.channels != images.channels:
        return b""
    return to_png(plot_mean_explanations(runtime, images.resized(runtime.image_width)))


@figure_style()
def plot_mean_explanations(runtime: Runtime, dataset: FaceDataset) -> Figure:
    """Plot the mean map and mean contributions of each predicted class."""
    if runtime.mean_face is None:
        raise DataError("the weights have no landmark head, so there are no facial parts")
    if not len(dataset):
        raise DataError(f"{dataset.source} has no PublicTest images; give another --data")
    width, names = runtime.image_width, runtime.class_names
    predictions = runtime.predict(
        stack_crops(dataset.images, width, runtime.channels), explain=True
    )
    predicted = predictions.probabilities.argmax(1)
    maps, bias = (
        values[np.arange(len(predicted)), predicted]
        for values in (predictions.maps, predictions.bias)
    )
    parts = [split_by_part(*face, width) for face in zip(maps, predictions.landmarks)]
    means = pd.DataFrame(parts).assign(bias=bias).groupby(predicted).mean()
    means = means.reindex(range(len(names)), fill_value=0.0)
    counts = np.bincount(predicted, minlength=len(names))
    heats = [maps[predicted == k].sum(0) / max(n, 1) for k, n in enumerate(counts)]
    limit = np.abs(heats).max()
    low, high = means.min(axis=None), means.max(axis=None)
    figure = new_figure(1.75 * len(names), 4.2)
    map_row, bar_row = figure.subplots(2, len(names), height_ratios=(1, 1.1))
    extent = (-0.5, width - 0.5, width - 0.5, -0.5)
    style = {"vmin": -limit, "vmax": limit, "extent": extent, "interpolation": "bicubic"}
    for k, (axes, bar_axes) in enumerate(zip(map_row, bar_row)):
        image = axes.imshow(heats[k], "RdBu_r", **style)
        for first, last in OUTLINES:
            points = [*range(first, last), *([first] if first in CLOSED else [])]
            axes.plot(*runtime.mean_face[points].T, color="black", lw=1)
        axes.set(title=f"{escape_math(names[k])}\n(n = {counts[k]:,})", xticks=[], yticks=[])
        axes.set(xlim=extent[:2], ylim=extent[2:])
        plot_contributions(bar_axes, means.loc[k].to_dict())
        bar_axes.set_xlim(low - 0.4 * (high - low), high + 0.4 * (high - low))
        if k > 0:
            bar_axes.set_yticks([])
    figure.colorbar(image, ax=map_row, label="Map (red raises the logit)", pad=0.01)
    figure.supxlabel("Mean contribution to the logit of the predicted class", fontsize="medium")
    return figure


if __name__ == "__main__":
    run_main(main)
