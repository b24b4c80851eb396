"""Convolution as matrix multiplication: windows as columns, and what they cost in memory."""

from __future__ import annotations

import numpy as np
import style
from style import FILTER, GRADIENT, INPUT, OUTPUT, Colour

import gpucnn.functional as F
from gpucnn.geometry import im2col_shapes

WINDOWS = (INPUT, GRADIENT, Colour("#e8e0f5", "#6a45a8"), Colour("#dff1f3", "#1d7f8c"))


def im2col() -> None:
    """A 3 × 3 image and its four windows of 2 × 2."""
    image = np.arange(1.0, 10.0).reshape(3, 3)
    columns = F.im2col(image[None, None], 2)[0]
    row = np.array([[1.0, 0, 0, 2]])
    figure, ax = style.canvas(19, 9.6)
    style.text(ax, 2.1, 0.6, "image")
    style.cells(ax, image, 0.6, 1.2, Colour("#ffffff", "#555555"))
    for index, colour in enumerate(WINDOWS):  # a frame each, a little apart
        inset = 0.06 + 0.06 * index
        style.frame(ax, 0.6 + index % 2 + inset, 1.2 + index // 2 + inset, 2 - 2 * inset, 2 - 2 * inset, colour, 2.2)
    style.arrow(ax, (4.1, 2.7), (8.6, 2.7))
    style.text(ax, 6.35, 2.2, "im2col")
    style.text(ax, 11.5, 0.6, "X: one window per column")
    for index, colour in enumerate(WINDOWS):
        style.cells(ax, columns[:, index : index + 1], 9.5 + index, 1.2, colour)
    style.text(ax, 2.1, 4.9, "filter")
    style.cells(ax, row.reshape(2, 2), 1.1, 5.4, FILTER)
    style.text(ax, 6.4, 5.6, "W: one filter per row")
    style.cells(ax, row, 4.4, 6.1, FILTER)
    style.text(ax, 9.25, 6.6, "× X  =", 12)
    product = row @ columns
    for index, colour in enumerate(WINDOWS):
        style.cells(ax, product[:, index : index + 1], 10.1 + index, 6.1, colour)
    style.text(ax, 12.1, 5.6, "WX: one number per place")
    style.arrow(ax, (14.4, 6.6), (15.7, 6.6))
    style.cells(ax, product.reshape(2, 2), 16, 5.9, OUTPUT)
    style.text(ax, 17, 5.3, "activation")
    style.text(ax, 9.5, 8.7, "1·1 + 0·2 + 0·4 + 2·5 = 11", 12, INPUT.dark)
    style.save(figure, "im2col")


def memory() -> None:
    """The arrays of AlexNet's first layer, for one image."""
    shapes = im2col_shapes(3, 96, 227, 11, stride=4)
    numbers = {
        "image, 3 × 227 × 227": 3 * 227 * 227,
        "filters W, 96 × 363": np.prod(shapes.filters),
        "columns X, 363 × 3025": np.prod(shapes.columns),
        "activation WX, 96 × 3025": np.prod(shapes.product),
    }
    megabytes = [int(count) * 4 / 1e6 for count in numbers.values()]
    figure, ax = style.plt.subplots(figsize=(7.6, 2.7), layout="constrained")
    bars = ax.barh(list(numbers), megabytes, color=[c.dark for c in (INPUT, FILTER, GRADIENT, OUTPUT)], height=0.6)
    ax.bar_label(bars, [f"{size:.2f} MB" for size in megabytes], padding=4)
    ax.set_xlim(0, 5.2)
    ax.invert_yaxis()
    ax.set_xlabel("megabytes in float32, one image")
    style.save(figure, "im2col-memory")


for draw in (im2col, memory):
    draw()
