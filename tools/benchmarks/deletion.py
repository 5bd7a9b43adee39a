"""Deletion metric of the explanations: remove cells of the map, most important first.

    python -m tools.benchmarks.deletion --data data/fer2013.csv --ferplus data/fer2013new.csv

Each step replaces cells of the image, 8 x 8 of its 48 x 48 pixels, by the image's mean. The
deletion AUC is the mean probability of the class predicted for the whole image, over all steps. A
smaller one with the highest cells first means that the map finds the pixels on which the prediction
depends (RISE, Petsiuk et al., BMVC 2018, arXiv:1806.07421).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from inference.align import stack_crops
from inference.runtime import Runtime, load_runtime
from tools.benchmarks.common import FaceOptions, mean_and_interval, public_test
from utils.cli import parse
from utils.errors import run_main


@dataclass(frozen=True)
class DeletionOptions(FaceOptions):
    """Options of the benchmark."""

    images: int = 1000
    """Images, drawn at random from PublicTest."""
    steps: int = 12
    """Steps until all cells are removed."""


def main() -> None:
    options = parse(DeletionOptions, sys.argv[1:], __doc__)
    runtime = load_runtime(options.model_path, "-1")
    dataset = public_test(options, runtime)
    rng = np.random.default_rng(0)
    images = dataset.images[rng.permutation(len(dataset))[: options.images]]
    pixels = stack_crops(images, runtime.image_width, runtime.channels)
    predictions = runtime.predict(pixels, explain=True)
    predicted = predictions.probabilities.argmax(1)
    maps = predictions.maps[np.arange(len(images)), predicted]
    cells = maps.reshape(len(maps), -1)
    orders = {
        "highest first": (-cells).argsort(1),
        "random": rng.permuted(np.tile(np.arange(cells.shape[1]), (len(cells), 1)), axis=1),
        "lowest first": cells.argsort(1),
    }
    areas = {}
    print(f"n = {len(images):,}; deletion AUC of the predicted class")
    for name, order in orders.items():
        curve = deletion_curve(runtime, pixels, predicted, order, options.steps)
        areas[name] = curve.mean(0)
        print(f"{name:16}   {mean_and_interval(areas[name], 3)}", flush=True)
    for name in ("random", "lowest first"):
        difference = areas["highest first"] - areas[name]
        print(f"highest first minus {name}: {mean_and_interval(difference, 3, '+')}")


def deletion_curve(
    runtime: Runtime, pixels: np.ndarray, classes: np.ndarray, order: np.ndarray, steps: int
) -> np.ndarray:
    """Return the probability of each image's class after each step, [steps + 1, N].

    The images are uint8 [N, C, W, W], and the cells of a square map are removed in the order
    [N, cells].
    """
    side = round(np.sqrt(order.shape[1]))
    widths = np.diff(np.linspace(0, pixels.shape[-1], side + 1).round().astype(int))  # of the cells
    means = pixels.mean((2, 3), keepdims=True).round().astype(np.uint8)
    rank = order.argsort(1).reshape(-1, 1, side, side)
    rank = rank.repeat(widths, 2).repeat(widths, 3)  # of each pixel's cell, [N, 1, W, W]
    curve = []
    for number in np.linspace(0, order.shape[1], steps + 1).round():
        changed = np.where(rank < number, means, pixels)
        curve.append(runtime.predict(changed).probabilities[np.arange(len(classes)), classes])
    return np.stack(curve)


if __name__ == "__main__":
    run_main(main)
