"""Pooling: four windows, the way of the gradients, three ways back up, pooling and stride compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import page
import style
from matplotlib.axes import Axes
from style import FILTER, GRADIENT, INPUT, OUTPUT, Colour

PAGE: dict[str, Any] = page.names("guide/4-pooling")
WINDOWS = (INPUT, FILTER, OUTPUT, GRADIENT)
IMAGE = np.array([[1, 3, 2, 4], [6, 5, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]])  # the x of the first block


def windows(ax: Axes, image: np.ndarray, x: float, y: float, zeros: bool = True) -> None:
    """An image of 4 × 4 whose four windows have four colours, or of 2 × 2 in these colours."""
    step = len(image) // 2
    for row, line in enumerate(image):
        for column, value in enumerate(line):
            colour = WINDOWS[2 * (row // step) + column // step]
            pale = Colour("#ffffff", colour.dark) if zeros and value == 0 else colour
            style.cell(ax, x + column, y + row, style.shown(value), pale)


def pooling() -> None:
    """The forward pass."""
    figure, ax = style.canvas(17, 6)
    windows(ax, IMAGE, 0.8, 1.2, zeros=False)
    style.text(ax, 2.8, 0.6, "input")
    style.arrow(ax, (5.2, 3.2), (6.5, 3.2))
    windows(ax, PAGE["maxima"][0, 0], 7.2, 2.2, zeros=False)
    style.text(ax, 8.2, 1.6, "maximum")
    windows(ax, PAGE["averages"][0, 0], 12.4, 2.2, zeros=False)
    style.text(ax, 13.4, 1.6, "average")
    style.text(ax, 11, 5.2, "(1 + 3 + 6 + 5) / 4 = 3.75", 11, INPUT.dark)
    style.save(figure, "pooling")


def backward() -> None:
    """The backward pass."""
    figure, ax = style.canvas(17, 6.4)
    windows(ax, PAGE["grad"][0, 0], 0.8, 2.2)
    style.text(ax, 1.8, 1.6, "gradients\nthat come")
    style.arrow(ax, (3.3, 3.2), (4.8, 3.2))
    windows(ax, PAGE["grad_max"][0, 0], 5.6, 1.2)
    style.text(ax, 7.6, 0.6, "through the maximum")
    windows(ax, PAGE["grad_avg"][0, 0], 11.6, 1.2)
    style.text(ax, 13.6, 0.6, "through the average")
    style.text(ax, 7.6, 5.8, "all to the largest", 10)
    style.text(ax, 13.6, 5.8, "a quarter to each", 10)
    style.save(figure, "pooling-backward")


def unpooling() -> None:
    """The way back up."""
    figure, ax = style.canvas(21, 6)
    windows(ax, PAGE["small"][0, 0], 0.8, 2.2)
    style.text(ax, 1.8, 1.6, "pooled")
    style.arrow(ax, (3.2, 3.2), (4.4, 3.2))
    for x, name, key in (
        (5.2, "nearest neighbour", "nearest"),
        (10.6, "bed of nails", "nails"),
        (16, "max unpooling", "unpooled"),
    ):
        windows(ax, PAGE[key][0, 0], x, 1.2)
        style.text(ax, x + 2, 0.6, name)
    style.save(figure, "unpooling")


def compared() -> None:
    """Accuracy and work of the three networks."""
    results = PAGE["results"]
    work = [PAGE["work"](16, stride=1), PAGE["work"](16, stride=2), PAGE["work"](32, stride=2)]
    figure, (left, right) = style.plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained", sharey=True)
    bars = left.barh(list(results), [100 * share for share in results.values()], color=OUTPUT.dark, height=0.6)
    left.bar_label(bars, [f"{share:.1%}" for share in results.values()], padding=4)
    left.set_xlim(80, 101.5)
    left.set_xlabel("right answers, % (from 80)")
    bars = right.barh(list(results), work, color=FILTER.dark, height=0.6)
    right.bar_label(bars, [f"{count:,}" for count in work], padding=4)
    right.set_xlim(0, 110_000)
    right.set_xticks(range(0, 100_001, 25_000), [f"{count:,}" for count in range(0, 100_001, 25_000)])
    right.set_xlabel("multiplications a picture")
    left.invert_yaxis()
    style.save(figure, "pooling-or-stride")


for draw in (pooling, backward, unpooling, compared):
    draw()
