"""Draw the diagram of the method, fig/method.png.

    python -m tools.draw_method
    python -m tools.draw_method --out method.png --dpi 300

The face is one of the synthetic data set.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from data.synthetic.generate import synthetic_dataset
from utils.cli import parse
from utils.errors import run_main
from utils.files import atomic_write
from utils.run_folder import ROOT

WIDTH, HEIGHT = 110, 48  # of the drawing; 10 units are an inch
BLUE, ORANGE, GREEN, GRAY, INK = "#2166ac", "#c05a12", "#3f7d20", "#8a8a8a", "#222222"
FILL = {BLUE: "#e3edf7", ORANGE: "#fdecdd", GREEN: "#e7f3df", GRAY: "#f3f3f3"}
SOLID, DASHED = "-", (0, (4, 2))  # dashed: optional
TOP, MIDDLE, BOTTOM = ROWS = 43, 22, 9  # centers of the three rows
IMPORTANCES = np.array([0.95, 0.92, 0.9, 0.86, 0.83, 0.8, 0.77, 0.42, 0.34, 0.22])
HIGH = 7  # of these ten importances: beta = 0.7
BOXES = (  # left, center, width, height, label, color, line style
    (36.5, TOP, 10.5, 6, "Classifier", BLUE, SOLID),
    (36.5, MIDDLE, 10.5, 6, "Importance\nhead", ORANGE, SOLID),
    (36.5, BOTTOM, 10.5, 6, "Landmark\nhead", GREEN, SOLID),
    (79, TOP, 15, 6, "Weighted\ncross-entropy", BLUE, SOLID),
    (79, MIDDLE, 15, 6, "Rank\nregularization", ORANGE, SOLID),
    (79, BOTTOM, 15, 6, "Landmark loss (L1)", GREEN, SOLID),
    (81.5, 31.5, 10, 5, "label", GRAY, SOLID),
    (64.5, 31.5, 10.5, 5, "Relabeling", ORANGE, DASHED),
    (15, BOTTOM, 13, 5, "Pooling at\nlandmarks", GREEN, DASHED),
)
ARROWS = (  # color, line style, points
    (INK, SOLID, (10.2, 27), (12.8, 27)),
    (INK, SOLID, (26, 27), (28.2, 27)),
    *((INK, SOLID, (34, y), (36.3, y)) for y in ROWS),
    (INK, SOLID, (47, TOP), (52.6, TOP)),
    (INK, SOLID, (55.4, TOP), (78.8, TOP)),
    (INK, SOLID, (86.5, 34), (86.5, TOP - 3.2)),
    (ORANGE, SOLID, (47, MIDDLE), (54, MIDDLE), (54, TOP - 1.5)),
    (ORANGE, SOLID, (54, MIDDLE), (59.3, MIDDLE)),
    (ORANGE, SOLID, (76.5, MIDDLE), (78.8, MIDDLE)),
    (ORANGE, DASHED, (73.2, 26.2), (73.2, 28.8)),
    (ORANGE, DASHED, (49.7, TOP), (49.7, 31.5), (64.3, 31.5)),
    (ORANGE, DASHED, (75, 31.5), (81.3, 31.5)),
    (GREEN, SOLID, (47, BOTTOM), (54.3, BOTTOM)),
    (GREEN, SOLID, (63.5, BOTTOM), (78.8, BOTTOM)),
    (GREEN, DASHED, (21.1, 22.6), (21.1, 11.7)),  # an early feature map
    (GREEN, DASHED, (28, BOTTOM), (30.2, BOTTOM), (30.2, 21.3)),
    (GREEN, DASHED, (66.5, BOTTOM), (66.5, 1.2), (21.1, 1.2), (21.1, 6.3)),
    (INK, SOLID, (101, 27), (103.3, 27)),
)
LINES = (  # color, line style, points
    (INK, SOLID, (32, 27), (34, 27)),
    (INK, SOLID, (34, BOTTOM), (34, TOP)),
    *((INK, SOLID, (94, y), (101, y)) for y in ROWS),
    (INK, SOLID, (101, BOTTOM), (101, TOP)),
    (INK, DASHED, (16, 45.5), (18.6, 45.5)),  # the legend
)
NOTE = {"fontsize": 8, "color": "#555555"}
TEXTS = (  # x, y, text, style
    (5.5, 33, "48 × 48 image", {}),
    (19.5, 36.2, "Backbone (ResNet-18)", {"weight": "bold"}),
    (49.7, TOP + 1.6, "logits", {}),
    (66, TOP + 1.6, "importance-weighted logits", {}),
    (50.3, MIDDLE + 1.7, r"$\alpha \in (0, 1)$", {"color": ORANGE}),
    (65.8, 24.8, "high group", NOTE | {"color": ORANGE}),
    (73.2, 24.8, "low group", NOTE | {"color": ORANGE}),
    (68, 14.6, r"$\alpha$ of the batch, sorted", NOTE),
    (50.8, BOTTOM + 1.6, "offsets", {}),
    (59, 3, "mean face + offsets", NOTE),
    (72, BOTTOM + 1.6, "68 landmarks", {}),
    (86.5, 4.3, "target: dlib's landmarks", NOTE),
    (97.5, MIDDLE + 1.6, r"$\lambda_\mathrm{rank}$", {}),
    (97.5, BOTTOM + 1.6, r"$\lambda_\mathrm{landmarks}$", {}),
    (105, 23.8, "loss", {"weight": "bold"}),
    (19.4, 45.4, "optional", {"ha": "left"}),
)


@dataclass(frozen=True)
class DrawOptions:
    """Options of tools.draw_method."""

    out: str = str(ROOT / "fig/method.png")
    """The PNG file to write."""
    dpi: int = 170
    """Resolution; the figure is 11 x 4.8 inches."""


def main() -> None:
    options = parse(DrawOptions, sys.argv[1:], __doc__)
    figure = Figure(figsize=(WIDTH / 10, HEIGHT / 10))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    draw_images(axes)
    draw_features(axes)
    draw_importances(axes)
    for box in BOXES:
        draw_box(axes, box)
    for line in LINES:
        draw_line(axes, *line)
    for arrow in ARROWS:
        draw_arrow(axes, *arrow)
    for x, y, text, style in TEXTS:
        draw_text(axes, x, y, text, **style)
    for x, y, radius, sign, fontsize in ((54, TOP, 1.4, "×", 12), (105, 27, 1.7, "+", 13)):
        axes.add_patch(Circle((x, y), radius, fc="white", ec=INK, lw=1.2))
        draw_text(axes, x, y, sign, fontsize=fontsize)
    legend = ((BLUE, "expression"), (ORANGE, "SCN's modules"), (GREEN, "landmark task"))
    for i, (color, label) in enumerate(legend):
        draw_box(axes, (1, 45.55 - 2.4 * i, 2.4, 1.5, "", color, SOLID))
        draw_text(axes, 4.2, 45.4 - 2.4 * i, label, ha="left")
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    with atomic_write(options.out) as partial:
        figure.savefig(partial, format="png", dpi=options.dpi, facecolor="white")
    print(options.out)


def draw_images(axes: Axes) -> None:
    """Draw the input image, and its landmarks on a paler copy."""
    dataset = synthetic_dataset(training=1, public=1, private=1, seed=5)
    image, landmarks = dataset.images[5], dataset.landmarks[5]  # a surprised face
    for left, bottom, black in ((1, 22.5, 0), (54.5, 4.5, -60)):
        extent = (left, left + 9, bottom, bottom + 9)
        axes.imshow(image, cmap="gray", extent=extent, vmin=black, vmax=255, aspect="auto")
    x, y = ((landmarks + 0.5) * 9 / len(image)).T
    style = {"color": "#7ed957", "edgecolors": INK, "linewidths": 0.3, "zorder": 3}
    axes.scatter(54.5 + x, 13.5 - y, s=7, **style)


def draw_features(axes: Axes) -> None:
    """Draw the stages of the backbone with their channels, and the features."""
    for x, half, channels in ((13, 7.5, 64), (16.4, 6.1, 128), (19.8, 4.7, 256), (23.2, 3.3, 512)):
        left, right = [(x, 27 - half), (x, 27 + half)], [(x + 2.7, 26 + half), (x + 2.7, 28 - half)]
        axes.add_patch(Polygon(left + right, fc=FILL[GRAY], ec=GRAY, lw=1.2))
        draw_text(axes, x + 1.35, 27, str(channels), rotation=90)
    draw_box(axes, (28.4, 27, 3.6, 11, "features", GRAY, SOLID), rotation=90)


def draw_importances(axes: Axes) -> None:
    """Draw the sorted importances of a batch, and the margin between the means of two groups."""
    axes.add_patch(Rectangle((59.5, 16), 17, 10.2, fc="white", ec=GRAY, lw=1))
    colors = [ORANGE] * HIGH + ["#f3c09a"] * (len(IMPORTANCES) - HIGH)
    left = 60.6 + 1.5 * np.arange(len(IMPORTANCES))
    axes.bar(left, 7 * IMPORTANCES, width=1.1, bottom=16.3, align="edge", color=colors)
    high, low = (16.3 + 7 * group.mean() for group in np.split(IMPORTANCES, [HIGH]))
    draw_line(axes, GRAY, SOLID, (60.4, high), (75.9, high))
    draw_line(axes, GRAY, SOLID, (71, low), (75.9, low))
    margin = {"arrowstyle": "<|-|>", "mutation_scale": 7, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch((73.5, low), (73.5, high), color=INK, lw=1, **margin))


def draw_box(axes: Axes, box: tuple, rotation: int = 0) -> None:
    left, center, width, height, label, color, line = box
    corner, style = (left, center - height / 2), "round,pad=0,rounding_size=0.8"
    look = {"boxstyle": style, "fc": FILL[color], "ec": color, "lw": 1.4, "ls": line}
    axes.add_patch(FancyBboxPatch(corner, width, height, **look))
    draw_text(axes, left + width / 2, center, label, fontsize=9.5, rotation=rotation)


def draw_line(axes: Axes, color: str, line: object, *points: tuple[float, float]) -> None:
    for start, end in zip(points, points[1:]):
        axes.plot(*zip(start, end), color=color, lw=1.3, ls=line, solid_capstyle="round")


def draw_arrow(axes: Axes, color: str, line: object, *points: tuple[float, float]) -> None:
    draw_line(axes, color, line, *points)
    start, end = np.array(points[-2:])
    near = end - (end - start) / np.linalg.norm(end - start)
    head = {"arrowstyle": "-|>", "mutation_scale": 12, "shrinkA": 0, "shrinkB": 0, "lw": 0}
    axes.add_patch(FancyArrowPatch(near, end, color=color, **head))


def draw_text(axes: Axes, x: float, y: float, text: str, **style: object) -> None:
    look = {"ha": "center", "va": "center", "linespacing": 1.15, "fontsize": 9, "color": INK}
    axes.text(x, y, text, **look | style)


if __name__ == "__main__":
    run_main(main)
