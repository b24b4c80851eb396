"""Special convolutions: dilated windows, the transposed convolution of two numbers, groups."""

from __future__ import annotations

import numpy as np
import style
from style import EMPTY, FILTER, INPUT, OUTPUT

import gpucnn.functional as F


def dilation() -> None:
    """The nine pixels that a 3 × 3 filter reads."""
    figure, ax = style.canvas(31, 11.2, unit=0.3)
    for left, step in ((0.5, 1), (10.8, 2), (21.1, 4)):
        style.cells(ax, [[""] * 9] * 9, left, 1.6, EMPTY)
        for row in range(4 - step, 5 + step, step):
            for column in range(4 - step, 5 + step, step):
                style.cell(ax, left + column, 1.6 + row, "", FILTER)
        span = 2 * step + 1
        style.text(ax, left + 4.5, 0.8, f"dilation {step}: spans {span} × {span}")
    style.save(figure, "dilation")


def transposed() -> None:
    """Inputs 2 and 3, filter (1, 2, 3), stride 2: each step of it."""
    inputs, weights = np.array([2.0, 3.0]), np.array([1.0, 2.0, 3.0])
    result = F.conv_transpose1d(inputs[None, None], weights[None, None], stride=2)[0, 0]
    figure, ax = style.canvas(17, 9.2)
    style.text(ax, 0.5, 1.1, "inputs", align="left")
    style.cells(ax, inputs, 4.5, 0.6, INPUT)
    style.text(ax, 9.4, 1.1, "filter", align="left")
    style.cells(ax, weights, 11, 0.6, FILTER)
    for row, (value, name) in enumerate(zip(inputs, ("first", "second"), strict=True)):
        y = 2.8 + 1.7 * row
        style.text(ax, 0.5, y + 0.5, f"{value:g} × filter", align="left")
        style.cells(ax, [""] * 5, 4.5, y, EMPTY)
        style.cells(ax, value * weights, 4.5 + 2 * row, y, INPUT)
        where = "from place 0" if row == 0 else "from place 2: the stride"
        style.text(ax, 10.2, y + 0.5, f"the {name} input, {where}", align="left", font=10)
    ax.plot([4.3, 9.7], [6.15, 6.15], color=style.INK, linewidth=1.2)
    style.text(ax, 0.5, 7.0, "sum: the output", align="left")
    style.cells(ax, result, 4.5, 6.5, OUTPUT)
    style.frame(ax, 6.5, 2.7, 1, 4.9, FILTER, 2)
    style.text(ax, 7, 8.3, "here they overlap: 6 + 3 = 9", colour=FILTER.dark)
    style.save(figure, "transposed")


def groups() -> None:
    """Four channels to four channels in one, two and four groups."""
    figure, ax = style.canvas(18, 6.3)
    names = {1: "ordinary\n16 links", 2: "two groups\n8 links", 4: "depthwise\n4 links"}
    for left, (count, name) in zip((1.2, 7.2, 13.2), names.items(), strict=True):
        size = 4 // count
        for i in range(4):
            for o in range(4):
                if i // size == o // size:
                    ax.plot([left + 0.8, left + 3], [1.95 + i * 1.1, 1.95 + o * 1.1], color=FILTER.dark, linewidth=1.4)
        for i in range(4):
            style.cell(ax, left, 1.55 + i * 1.1, "", INPUT, size=0.8)
            style.cell(ax, left + 3, 1.55 + i * 1.1, "", OUTPUT, size=0.8)
        style.text(ax, left + 1.9, 0.75, name)
    style.text(ax, 0.55, 3.6, "in")
    style.text(ax, 17.5, 3.6, "out")
    style.save(figure, "groups")


for draw in (dilation, transposed, groups):
    draw()
