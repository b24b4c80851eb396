"""Backward by hand: the full convolution with the turned filter, and the zeros that a stride becomes."""

from __future__ import annotations

import numpy as np
import style
from style import EMPTY, FILTER, GRADIENT, INPUT, OUTPUT

import gpucnn.functional as F

W = np.array([2.0, -1.0, 1.0])


def full_convolution() -> None:
    """The turned filter at its five places over dy with two zeros on each side."""
    dy = np.array([1.0, 0.0, 2.0])
    dx = F.conv1d(dy[None, None], W[None, None, ::-1].copy(), padding=2)[0, 0]
    figure, ax = style.canvas(18, 9.4)
    left = 4.2
    style.text(ax, 0.4, 1.1, "dY, padded with 2", align="left")
    style.cells(ax, [0, 0], left, 0.6, EMPTY)
    style.cells(ax, dy, left + 2, 0.6, GRADIENT)
    style.cells(ax, [0, 0], left + 5, 0.6, EMPTY)
    style.text(ax, 0.4, 2.7, "turned filter", align="left")
    padded = np.concatenate([[0, 0], dy, [0, 0]])
    for i in range(5):
        y = 2.2 + 1.35 * i
        style.cells(ax, W[::-1], left + i, y, FILTER)
        factors = [f"({style.shown(value)})" if value < 0 else style.shown(value) for value in W[::-1]]
        terms = " + ".join(f"{padded[i + k]:g}·{factor}" for k, factor in enumerate(factors))
        style.text(ax, left + 7.6, y + 0.5, f"dx{'₀₁₂₃₄'[i]} =  {terms}  =", align="left")
        style.cell(ax, 16.6, y, style.shown(dx[i]), INPUT)
    style.save(figure, "full-convolution")


def stride_dilation() -> None:
    """Forward with stride 2, and dY with a zero where a window was left out."""
    figure, ax = style.canvas(19, 6.4)
    style.text(ax, 3.3, 0.6, "forward, stride 2")
    style.cells(ax, [f"x{i}" for i in "₀₁₂₃₄"], 0.8, 4.6)
    for o, name, colour in ((0, "y₀", OUTPUT), (2, "y₁", OUTPUT), (1, "left out", EMPTY)):
        x = 1.8 + o
        style.cell(ax, x, 1.7, name if o != 1 else "", colour)
        for k in range(3):
            kind = "-" if o != 1 else ":"
            ax.plot([x + 0.5, 1.3 + o + k], [2.7, 4.6], kind, color=colour.dark, linewidth=1.6)
    style.text(ax, 3.3, 1.3, "left out", 9, EMPTY.dark)
    style.arrow(ax, (6.6, 3.2), (8.2, 3.2))
    style.text(ax, 13.2, 0.6, "backward: a dilation of 2")
    style.text(ax, 9, 2.2, "dY", align="left")
    style.cells(ax, ["dy₀", "dy₁"], 12.2, 1.7, GRADIENT, font=10)
    style.text(ax, 9, 5.1, "dY, spread", align="left")
    style.cells(ax, ["dy₀"], 11.7, 4.6, GRADIENT, font=10)
    style.cells(ax, [0], 12.7, 4.6, EMPTY)
    style.cells(ax, ["dy₁"], 13.7, 4.6, GRADIENT, font=10)
    style.arrow(ax, (12.6, 2.8), (12.25, 4.5))
    style.arrow(ax, (13.8, 2.8), (14.15, 4.5))
    style.text(ax, 15.1, 5.1, "S − 1 zeros between", 10, EMPTY.dark, "left")
    style.save(figure, "stride-dilation")


for draw in (full_convolution, stride_dilation):
    draw()
