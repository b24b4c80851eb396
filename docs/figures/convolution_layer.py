"""The convolution layer: one window, a depth column, strides, the receptive field, and how many parameters."""

from __future__ import annotations

import numpy as np
import style
from matplotlib.axes import Axes
from matplotlib.patches import Polygon
from style import EMPTY, FILTER, GRADIENT, INPUT, OUTPUT, Colour

import gpucnn.functional as F
from gpucnn.geometry import conv_parameters, locally_connected_parameters


def window() -> None:
    """A 5 × 5 image, a 3 × 3 filter, and the first output."""
    image = np.array([[0, 0, 1, 1, 0], [0, 1, 2, 1, 0], [1, 2, 3, 2, 1], [0, 1, 2, 1, 0], [0, 0, 1, 0, 0]], float)
    weights = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], float)
    activation = F.conv2d(image[None, None], weights[None, None], np.array([0.5]))[0, 0]
    figure, ax = style.canvas(18, 7.2)
    style.cells(ax, image, 0.6, 1.2)
    style.frame(ax, 0.6, 1.2, 3, 3, FILTER)
    style.text(ax, 3.1, 0.6, "image, with the window")
    style.text(ax, 6.3, 2.7, "·", 22)
    style.cells(ax, weights, 7, 1.2, FILTER)
    style.text(ax, 8.5, 0.6, "filter")
    style.text(ax, 11.2, 2.7, "+ 0.5  =", 13)
    style.cells(ax, activation, 12.9, 1.2, OUTPUT)
    style.frame(ax, 12.9, 1.2, 1, 1, FILTER)
    style.text(ax, 14.4, 0.6, "activation")
    products = (
        "0·1 + 0·0 + 1·(−1)\n+ 0·2 + 1·0 + 2·(−2)\n+ 1·1 + 2·0 + 3·(−1)   =   −7,   and with the bias 0.5:   −6.5"
    )
    style.text(ax, 7, 5.5, products, 11, FILTER.dark, "left")
    style.save(figure, "window")


def block(ax: Axes, x: float, y: float, width: float, height: float, depth: float, colour: Colour) -> None:
    """A box seen from the front, with its depth going up to the right."""
    shift = depth * 0.5
    front = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    top = [(x, y), (x + shift, y - shift), (x + width + shift, y - shift), (x + width, y)]
    side = [
        (x + width, y),
        (x + width + shift, y - shift),
        (x + width + shift, y + height - shift),
        (x + width, y + height),
    ]
    for corners in (front, top, side):
        ax.add_patch(Polygon(corners, facecolor=colour.light, edgecolor=colour.dark, linewidth=1.2, alpha=0.92))


def depth_column() -> None:
    """A window through three channels, and the column of sixteen answers."""
    figure, ax = style.canvas(18, 9)
    block(ax, 1, 2.6, 5, 5, 1.2, INPUT)
    block(ax, 2.2, 3.4, 1.5, 1.5, 1.2, FILTER)
    style.text(ax, 3.8, 8.1, "image: 3 channels of 32 × 32")
    style.text(ax, 2.95, 4.2, "3·5·5", 10, FILTER.dark)
    block(ax, 10.2, 3.3, 3.8, 3.8, 5, OUTPUT)
    block(ax, 11.2, 4.0, 0.5, 0.5, 5, GRADIENT)
    style.text(ax, 13.2, 8.1, "activation: 16 channels of 28 × 28")
    style.arrow(ax, (4.5, 4.0), (11.1, 4.25), FILTER.dark, 2)
    style.text(ax, 8.05, 3.1, "75 numbers →\n16 numbers", 11, FILTER.dark)
    style.text(ax, 11, 0.9, "depth column", 11, GRADIENT.dark)
    style.arrow(ax, (12.5, 1.0), (14.1, 1.75), GRADIENT.dark)
    style.save(figure, "depth-column")


def stride() -> None:
    """Which inputs each output reads, with stride 1 and 2."""
    figure, ax = style.canvas(18, 5.4)
    for left, step in ((0.8, 1), (10, 2)):
        outputs = (7 - 3) // step + 1
        first = left + 1  # above the centre of the first window
        style.cells(ax, [""] * 7, left, 3.9)
        for o in range(outputs):
            x = first + o * step
            style.cell(ax, x, 1.2, f"y{'₀₁₂₃₄'[o]}", OUTPUT)
            for k in range(3):
                colour = (FILTER.dark, OUTPUT.dark, INPUT.dark)[o % 3]
                ax.plot([left + o * step + k + 0.5, x + 0.5], [3.9, 2.2], color=colour, linewidth=1.4)
        for i in range(7):
            style.text(ax, left + i + 0.5, 4.4, f"x{'₀₁₂₃₄₅₆'[i]}")
        style.text(ax, left + 3.5, 0.6, f"stride {step}: {outputs} outputs")
    style.save(figure, "stride")


def receptive_field() -> None:
    """Three layers of three."""
    figure, ax = style.canvas(17, 8.4)
    names = ("pixels", "first layer", "second layer", "third layer")
    for layer in range(4):
        y = 6.9 - 2.1 * layer
        seen = 3 - layer  # places on each side of the middle
        for i in range(9):
            inside = abs(i - 4) <= seen
            style.cell(ax, 0.5 + i, y, "", (INPUT if layer == 0 else OUTPUT) if inside else EMPTY)
        if layer:
            for edge in (-1, 1):
                x = 5 + edge * (seen + 0.5)
                ax.plot([x, x + edge], [y + 1, y + 2.1], color=FILTER.dark, linewidth=2)
        count = 2 * seen + 1
        style.text(
            ax,
            10,
            y + 0.5,
            f"{names[layer]}: {count} seen" if layer < 3 else f"{names[layer]}: one number",
            align="left",
        )
    style.text(ax, 14.0, 3.9, "each layer\nadds F − 1 = 2", colour=FILTER.dark, align="left", font=10)
    style.save(figure, "receptive-field")


def parameters() -> None:
    """Shared, unshared, fully connected."""
    counts = {
        "convolution\n(shared weights)": conv_parameters(3, 10, 5),
        "locally connected\n(unshared)": locally_connected_parameters(3, 10, 5, 28),
        "fully connected": (32 * 32 * 3) * (28 * 28 * 10) + 28 * 28 * 10,
    }
    figure, ax = style.plt.subplots(figsize=(7.6, 2.7), layout="constrained")
    bars = ax.barh(list(counts), list(counts.values()), color=[c.dark for c in (OUTPUT, FILTER, INPUT)], height=0.6)
    ax.bar_label(bars, [f"{count:,}" for count in counts.values()], padding=4)
    ax.set_xscale("log")
    ax.set_xlim(100, 1e9)
    ax.invert_yaxis()
    ax.set_xlabel("parameters (logarithmic)")
    style.save(figure, "parameters")


for draw in (window, depth_column, stride, receptive_field, parameters):
    draw()
