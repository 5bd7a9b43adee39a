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
TOP, MIDDLE, BOTTOM = 43, 22, 9  # centers of the three rows
SEED, SAMPLE = 5, 5  # a surprised face
IMPORTANCES = np.array([0.95, 0.92, 0.9, 0.86, 0.83, 0.8, 0.77, 0.42, 0.34, 0.22])
HIGH = 7  # of these ten importances: beta = 0.7
Point = tuple[float, float]


@dataclass(frozen=True)
class DrawOptions:
    """Options of draw_method.py."""

    out: str = str(ROOT / "fig/method.png")
    """The PNG file to write."""
    dpi: int = 170
    """Resolution; the figure is 11 x 4.8 inches."""


def main() -> None:
    options = parse(DrawOptions, sys.argv[1:], __doc__)
    figure = draw_method()
    with atomic_write(options.out) as partial:
        figure.savefig(partial, format="png", dpi=options.dpi, facecolor="white")
    print(options.out)


def draw_method() -> Figure:
    """Draw the backbone, the heads, SCN's modules and the losses."""
    figure = Figure(figsize=(WIDTH / 10, HEIGHT / 10))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.set_axis_off()
    dataset = synthetic_dataset(training=1, public=1, private=1, seed=SEED)
    image, landmarks = dataset.images[SAMPLE], dataset.landmarks[SAMPLE]
    _draw_backbone(axes, image)
    _draw_expression(axes)
    _draw_importance(axes)
    _draw_landmarks(axes, image, landmarks)
    _draw_pooling(axes)
    _draw_sum(axes)
    _draw_legend(axes)
    return figure


def _draw_backbone(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, cmap="gray", extent=(1, 10, 22.5, 31.5), vmin=0, vmax=255, aspect="auto")
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    _text(axes, 5.5, 33, "48 × 48 image")
    _arrow(axes, (10.2, 27), (12.8, 27))
    for x, half, channels in ((13, 7.5, 64), (16.4, 6.1, 128), (19.8, 4.7, 256), (23.2, 3.3, 512)):
        corners = [(x, 27 - half), (x, 27 + half), (x + 2.7, 27 + half - 1)]
        corners.append((x + 2.7, 27 - half + 1))
        axes.add_patch(Polygon(corners, fc=FILL[GRAY], ec=GRAY, lw=1.2))
        _text(axes, x + 1.35, 27, str(channels), rotation=90)
    _text(axes, 19.5, 36.2, "Backbone (ResNet-18)", weight="bold")
    _arrow(axes, (26, 27), (28.2, 27))
    _box(axes, (28.4, 21.5), (3.6, 11), "features", GRAY, rotation=90)
    _line(axes, (32, 27), (34, 27))
    _line(axes, (34, BOTTOM), (34, TOP))
    for y in (TOP, MIDDLE, BOTTOM):
        _arrow(axes, (34, y), (36.3, y))


def _draw_expression(axes: Axes) -> None:
    _box(axes, (36.5, TOP - 3), (10.5, 6), "Classifier", BLUE)
    _arrow(axes, (47, TOP), (52.6, TOP))
    _text(axes, 49.7, TOP + 1.6, "logits")
    axes.add_patch(Circle((54, TOP), 1.4, fc="white", ec=INK, lw=1.2))
    _text(axes, 54, TOP, "×", fontsize=12)
    _arrow(axes, (55.4, TOP), (78.8, TOP))
    _text(axes, 66, TOP + 1.6, "importance-weighted logits")
    _box(axes, (79, TOP - 3), (15, 6), "Weighted\ncross-entropy", BLUE)
    _box(axes, (81.5, 29), (10, 5), "label", GRAY)
    _arrow(axes, (86.5, 34), (86.5, TOP - 3.2))


def _draw_importance(axes: Axes) -> None:
    _box(axes, (36.5, MIDDLE - 3), (10.5, 6), "Importance\nhead", ORANGE)
    _line(axes, (47, MIDDLE), (54, MIDDLE), ORANGE)
    _arrow(axes, (54, MIDDLE), (54, TOP - 1.5), ORANGE)
    _arrow(axes, (54, MIDDLE), (59.3, MIDDLE), ORANGE)
    _text(axes, 50.3, MIDDLE + 1.7, r"$\alpha \in (0, 1)$", ORANGE)
    axes.add_patch(Rectangle((59.5, 16), 17, 10.2, fc="white", ec=GRAY, lw=1))
    for i, importance in enumerate(IMPORTANCES):
        color = ORANGE if i < HIGH else "#f3c09a"
        axes.add_patch(Rectangle((60.6 + 1.5 * i, 16.3), 1.1, 7 * importance, fc=color, ec="none"))
    high, low = (16.3 + 7 * part.mean() for part in np.split(IMPORTANCES, [HIGH]))
    _line(axes, (60.4, high), (75.9, high), GRAY)
    _line(axes, (71, low), (75.9, low), GRAY)
    margin = {"arrowstyle": "<|-|>", "mutation_scale": 7, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch((73.5, low), (73.5, high), color=INK, lw=1, **margin))
    _text(axes, 65.8, 24.8, "high group", ORANGE, fontsize=8)
    _text(axes, 73.2, 24.8, "low group", ORANGE, fontsize=8)
    _text(axes, 68, 14.6, r"$\alpha$ of the batch, sorted", fontsize=8, color="#555555")
    _arrow(axes, (76.5, MIDDLE), (78.8, MIDDLE), ORANGE)
    _box(axes, (79, MIDDLE - 3), (15, 6), "Rank\nregularization", ORANGE)
    _box(axes, (64.5, 29), (10.5, 5), "Relabeling", ORANGE, dashed=True)
    _arrow(axes, (73.2, 26.2), (73.2, 28.8), ORANGE, dashed=True)
    _line(axes, (49.7, TOP), (49.7, 31.5), ORANGE, dashed=True)
    _arrow(axes, (49.7, 31.5), (64.3, 31.5), ORANGE, dashed=True)
    _arrow(axes, (75, 31.5), (81.3, 31.5), ORANGE, dashed=True)


def _draw_landmarks(axes: Axes, image: np.ndarray, landmarks: np.ndarray) -> None:
    _box(axes, (36.5, BOTTOM - 3), (10.5, 6), "Landmark\nhead", GREEN)
    _text(axes, 50.8, BOTTOM + 1.6, "offsets")
    _arrow(axes, (47, BOTTOM), (54.3, BOTTOM), GREEN)
    left, bottom, side = 54.5, BOTTOM - 4.5, 9
    extent = (left, left + side, bottom, bottom + side)
    axes.imshow(image, cmap="gray", extent=extent, vmin=-60, vmax=255, aspect="auto")
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    scale = side / len(image)
    x, y = left + (landmarks[:, 0] + 0.5) * scale, bottom + side - (landmarks[:, 1] + 0.5) * scale
    axes.scatter(x, y, s=7, color="#7ed957", edgecolors=INK, linewidths=0.3, zorder=3)
    _text(axes, left + side / 2, 3, "mean face + offsets", fontsize=8, color="#555555")
    _arrow(axes, (left + side, BOTTOM), (78.8, BOTTOM), GREEN)
    _text(axes, 72, BOTTOM + 1.6, "68 landmarks")
    _box(axes, (79, BOTTOM - 3), (15, 6), "Landmark loss (L1)", GREEN)
    _text(axes, 86.5, 4.3, "target: dlib's landmarks", fontsize=8, color="#555555")


def _draw_pooling(axes: Axes) -> None:
    """Draw the option --landmark_pool: landmarks and an early feature map to the features."""
    _box(axes, (15, 6.5), (13, 5), "Pooling at\nlandmarks", GREEN, dashed=True)
    _arrow(axes, (21.1, 22.6), (21.1, 11.7), GREEN, dashed=True)
    _line(axes, (28, BOTTOM), (30.2, BOTTOM), GREEN, dashed=True)
    _arrow(axes, (30.2, BOTTOM), (30.2, 21.3), GREEN, dashed=True)
    _line(axes, (66.5, BOTTOM), (66.5, 1.2), GREEN, dashed=True)
    _line(axes, (66.5, 1.2), (21.1, 1.2), GREEN, dashed=True)
    _arrow(axes, (21.1, 1.2), (21.1, 6.3), GREEN, dashed=True)


def _draw_sum(axes: Axes) -> None:
    for y in (TOP, MIDDLE, BOTTOM):
        _line(axes, (94, y), (101, y))
    _line(axes, (101, BOTTOM), (101, TOP))
    _arrow(axes, (101, 27), (103.3, 27))
    axes.add_patch(Circle((105, 27), 1.7, fc="white", ec=INK, lw=1.2))
    _text(axes, 105, 27, "+", fontsize=13)
    _text(axes, 105, 23.8, "loss", weight="bold")
    _text(axes, 97.5, MIDDLE + 1.6, r"$\lambda_\mathrm{rank}$")
    _text(axes, 97.5, BOTTOM + 1.6, r"$\lambda_\mathrm{landmarks}$")


def _draw_legend(axes: Axes) -> None:
    entries = ((BLUE, "expression"), (ORANGE, "SCN's modules"), (GREEN, "landmark task"))
    for i, (color, label) in enumerate(entries):
        _box(axes, (1, 44.8 - 2.4 * i), (2.4, 1.5), "", color)
        _text(axes, 4.2, 45.4 - 2.4 * i, label, ha="left")
    _line(axes, (16, 45.5), (18.6, 45.5), dashed=True)
    _text(axes, 19.4, 45.4, "optional", ha="left")


def _box(
    axes: Axes,
    corner: Point,
    size: Point,
    label: str,
    color: str,
    *,
    dashed: bool = False,
    rotation: float = 0,
) -> None:
    style = "round,pad=0,rounding_size=0.8"
    look = {"fc": FILL[color], "ec": color, "lw": 1.4, "ls": (0, (4, 2)) if dashed else "-"}
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=style, **look))
    center = corner[0] + size[0] / 2, corner[1] + size[1] / 2
    _text(axes, *center, label, fontsize=9.5, rotation=rotation)


def _line(axes: Axes, start: Point, end: Point, color: str = INK, *, dashed: bool = False) -> None:
    style = (0, (4, 2)) if dashed else "-"
    axes.plot(*zip(start, end), color=color, lw=1.3, ls=style, solid_capstyle="round")


def _arrow(axes: Axes, start: Point, end: Point, color: str = INK, *, dashed: bool = False) -> None:
    _line(axes, start, end, color, dashed=dashed)
    head = {"arrowstyle": "-|>", "mutation_scale": 12, "shrinkA": 0, "shrinkB": 0, "lw": 0}
    length = np.hypot(end[0] - start[0], end[1] - start[1])
    near = [e - (e - s) / length for s, e in zip(start, end)]
    axes.add_patch(FancyArrowPatch(near, end, color=color, **head))


def _text(axes: Axes, x: float, y: float, text: str, color: str = INK, **more: object) -> None:
    look = {"ha": "center", "va": "center", "linespacing": 1.15, "fontsize": 9} | more
    axes.text(x, y, text, color=color, **look)


if __name__ == "__main__":
    run_main(main)
