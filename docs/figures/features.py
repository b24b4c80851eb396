"""From templates to learned filters: templates, features by hand, learned filters, accuracies."""

from __future__ import annotations

from typing import Any

import numpy as np
import page
import style
from matplotlib.axes import Axes
from skimage.feature import hog
from style import EMPTY, FILTER, GRADIENT, INPUT, OUTPUT

import gpucnn.functional as F

PAGE: dict[str, Any] = page.names("guide/1-from-templates-to-filters")
DIGIT = int(np.flatnonzero(PAGE["test"].y == 3)[0])


def framed(ax: Axes) -> None:
    """A thin frame and no ticks: white pixels at the rim belong to the picture."""
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color=EMPTY.dark, linewidth=0.7)


def templates() -> None:
    """The weights of the linear classifier on pixels, one picture a class."""
    weights = PAGE["fit_linear"](PAGE["pixels"](PAGE["train"].x), PAGE["train"].y)[0].reshape(10, 8, 8)
    limit = np.abs(weights).max()
    figure, axes = style.plt.subplots(2, 5, figsize=(8, 3.6), layout="constrained")
    for label, ax in enumerate(axes.flat):
        image = ax.imshow(weights[label], cmap="RdBu", vmin=-limit, vmax=limit)
        ax.set_title(str(label))
        ax.set_axis_off()
    figure.colorbar(image, ax=axes, shrink=0.85, label="weight")
    style.save(figure, "templates")


def features() -> None:
    """What the histogram, HOG and the bag of words keep of one digit."""
    picture = PAGE["test"].x[DIGIT : DIGIT + 1]
    figure = style.plt.figure(figsize=(9.6, 7.2), layout="constrained")
    axes = figure.subplot_mosaic("AB\nCD\nCE", height_ratios=(4, 3, 1))
    axes["A"].imshow(picture[0, 0], cmap="gray_r", vmin=0, vmax=1)
    axes["A"].set_title("the digit")
    framed(axes["A"])

    counts = PAGE["histogram"](picture)[0]
    greys = [str(1 - (i + 0.5) / 16) for i in range(16)]
    axes["B"].bar(range(16), counts, color=greys, edgecolor=INPUT.dark, width=0.9)
    axes["B"].set_title("histogram: how many pixels of each shade")
    axes["B"].set_xlabel("shade, white to black")

    large = F.interpolate(picture, size=(16, 16), mode="bilinear")[0, 0]
    cells = {"orientations": 8, "pixels_per_cell": (4, 4), "cells_per_block": (1, 1)}
    values = hog(large, feature_vector=False, **cells)[:, :, 0, 0]  # [4, 4, 8]
    axes["C"].imshow(large, cmap="gray_r", vmin=0, vmax=2.5)
    for row in range(4):
        for column in range(4):
            for direction, strength in enumerate(values[row, column]):
                if strength < 0.3:
                    continue
                angle = np.pi * (direction + 0.5) / 8  # of the change; the edge is across it
                dx, dy = 1.9 * strength * np.sin(angle), -1.9 * strength * np.cos(angle)
                x, y = 4 * column + 1.5, 4 * row + 1.5
                axes["C"].plot([x - dx, x + dx], [y - dy, y + dy], color=GRADIENT.dark, linewidth=1.6)
    for line in (3.5, 7.5, 11.5):
        axes["C"].axhline(line, color=EMPTY.dark, linewidth=0.7)
        axes["C"].axvline(line, color=EMPTY.dark, linewidth=0.7)
    axes["C"].set_title("HOG: directions of edges in 4 × 4 cells")
    axes["C"].set_axis_off()

    words = PAGE["bag_of_words"](picture)[0]
    order = np.argsort(-words, kind="stable")[:10]
    axes["D"].bar(range(10), words[order], color=OUTPUT.dark, width=0.6)
    axes["D"].set_title("bag of words: its 10 most frequent patches")
    axes["D"].set_ylabel("count")
    axes["D"].set(xticks=[], yticks=range(int(words.max()) + 1), xlim=(-0.5, 9.5))
    strip = np.full((3, 40), np.nan)
    for place, word in enumerate(order):
        strip[:, 4 * place : 4 * place + 3] = PAGE["code_book"][word].reshape(3, 3)
    axes["E"].imshow(strip, cmap="gray_r", vmin=0, vmax=1)
    for place in range(10):
        axes["E"].add_patch(style.Rectangle((4 * place - 0.5, -0.5), 3, 3, fill=False, edgecolor=OUTPUT.dark))
    axes["E"].set(xlim=(-1, 39), ylim=(2.7, -0.7))
    axes["E"].set_axis_off()
    style.save(figure, "features")


def learned_filters() -> None:
    """The 16 filters of the first layer, and four of their answers."""
    network = PAGE["network"]
    filters = np.asarray(network[0].weight.data)[:, 0]
    picture = PAGE["test"].x[DIGIT : DIGIT + 1]
    answers = np.maximum(network[1](network[0](picture)), 0)[0]
    chosen = np.argsort(-answers.std(axis=(1, 2)))[:4]
    limit = np.abs(filters).max()
    figure = style.plt.figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1.3))
    left.suptitle("16 filters (blue +, red −)", fontsize=11)
    for index, ax in enumerate(left.subplots(4, 4).flat):
        ax.imshow(filters[index], cmap="RdBu", vmin=-limit, vmax=limit)
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set(
                visible=True,
                color=FILTER.dark if index in chosen else EMPTY.dark,
                linewidth=2.5 if index in chosen else 0.7,
            )
    right.suptitle("a digit, and where four filters answer", fontsize=11)
    axes = right.subplot_mosaic("AAbc\nAAde")
    axes["A"].imshow(picture[0, 0], cmap="gray_r")
    for name, index in zip("bcde", sorted(chosen), strict=True):
        axes[name].imshow(answers[index], cmap="Greens", vmin=0)
        axes[name].set_title(f"filter {index + 1}", fontsize=10)
    for ax in axes.values():
        framed(ax)
    style.save(figure, "learned-filters")


def accuracies() -> None:
    """Five bars."""
    shares = PAGE["accuracies"]
    colours = [OUTPUT.dark if name == "learned filters" else INPUT.dark for name in shares]
    figure, ax = style.plt.subplots(figsize=(7.6, 2.9), layout="constrained")
    bars = ax.barh(list(shares), [100 * share for share in shares.values()], color=colours, height=0.62)
    ax.bar_label(bars, [f"{share:.1%}" for share in shares.values()], padding=4)
    ax.axvline(10, color=EMPTY.dark, linestyle=":", linewidth=1.5)
    ax.text(11, -0.62, "guessing", fontsize=9, color=EMPTY.dark)
    ax.set_xlim(0, 112)
    ax.set_xticks(range(0, 101, 20))
    ax.invert_yaxis()
    ax.set_xlabel("right answers on the test pictures, %")
    style.save(figure, "accuracies")


for draw in (templates, features, learned_filters, accuracies):
    draw()
