"""Fully connected as convolution: crops of a large image, and the cells of the map that answer them."""

from __future__ import annotations

import numpy as np
import style
from matplotlib.patches import Rectangle
from sklearn.datasets import load_digits
from style import FILTER, GRADIENT, INPUT, OUTPUT

import gpucnn.functional as F


def sliding() -> None:
    """A 20 × 24 image with digits in it, three crops of 12 × 12, and the 5 × 7 map."""
    digits = load_digits().images
    image = np.zeros((20, 24))
    image[2:10, 2:10], image[10:18, 13:21], image[1:9, 15:23] = digits[0], digits[3], digits[7]
    figure, ax = style.canvas(19, 8.8)
    scale = 0.36
    left, top = 0.8, 1.1
    for row in range(20):
        for column in range(24):
            shade = str(1 - 0.75 * image[row, column] / 16)
            corner = (left + column * scale, top + row * scale)
            ax.add_patch(Rectangle(corner, scale, scale, facecolor=shade, edgecolor="#e4e4e4", linewidth=0.4))
    style.text(ax, left + 12 * scale, 0.55, "image, 20 × 24")
    style.text(ax, 14.9, 0.55, "map, 5 × 7, for each class")
    style.cells(ax, [[""] * 7] * 5, 11.4, 2.2)
    crops = ((0, 0, FILTER), (1, 2, GRADIENT), (4, 6, OUTPUT))
    for i, j, colour in crops:
        style.frame(ax, left + 2 * j * scale, top + 2 * i * scale, 12 * scale, 12 * scale, colour)
        style.cell(ax, 11.4 + j, 2.2 + i, f"{i},{j}", colour)
        style.frame(ax, 11.4 + j, 2.2 + i, 1, 1, colour, 2)
    style.text(ax, 14.9, 7.9, "one step in the map\n= two pixels in the image", 10, INPUT.dark)
    style.save(figure, "sliding")


def matrix() -> None:
    """Which of the nine weights stands where in the matrix of a 3 × 3 convolution over 6 × 6 pixels."""
    kernel = np.arange(1.0, 10.0, dtype=np.float32).reshape(1, 1, 3, 3)
    pixels = np.eye(36, dtype=np.float32).reshape(36, 1, 6, 6)
    table = F.conv2d(pixels, kernel).reshape(36, 16).T  # [outputs, inputs]
    figure, ax = style.plt.subplots(figsize=(9, 4.5), layout="constrained")
    shown = np.where(table == 0, np.nan, table)
    ax.pcolormesh(shown, cmap="viridis", edgecolors="#dddddd", linewidth=0.5)
    for row, column in np.argwhere(table):
        value = int(table[row, column])
        colour = "white" if value < 6 else style.INK
        ax.text(column + 0.5, row + 0.5, f"w{value}", ha="center", va="center", fontsize=7, color=colour)
    ax.invert_yaxis()
    ax.set_aspect("equal")
    ax.set(xticks=np.arange(0.5, 36, 6), xticklabels=[f"row {i}" for i in range(6)], yticks=[])
    ax.set_xlabel("36 inputs, row after row")
    ax.set_ylabel("16 outputs")
    style.save(figure, "convolution-matrix")


for draw in (sliding, matrix):
    draw()
