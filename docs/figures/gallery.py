"""The gallery: learned filters, activation maps, the prediction map over a large picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import page
import style
from style import FILTER, GRADIENT

PAGE: dict[str, Any] = page.names("gallery")
FILTERS = np.asarray(PAGE["network"][0].weight.data)[:, 0]
LIMIT = np.abs(FILTERS).max()


def filters() -> None:
    """All filters of the first layer."""
    figure, axes = style.plt.subplots(2, 8, figsize=(9, 2.5), layout="constrained")
    for weights, ax in zip(FILTERS, axes.flat, strict=True):
        ax.imshow(weights, cmap="RdBu", vmin=-LIMIT, vmax=LIMIT)
        ax.set_axis_off()
    style.save(figure, "gallery-filters")


def activations() -> None:
    """Four answers of the first layer."""
    first = PAGE["sliding"]
    values = PAGE["picture"][None]
    for layer in list(first.children())[:3]:
        values = layer(values)
    order = np.argsort(-values[0].std(axis=(1, 2)))[:4]
    figure = style.plt.figure(figsize=(9.6, 5.6), layout="constrained")
    axes = figure.subplot_mosaic("PP\nab\ncd", height_ratios=(1.5, 1, 1))
    axes["P"].imshow(PAGE["picture"][0], cmap="gray_r")
    axes["P"].set_title("the picture")
    for name, index in zip("abcd", order, strict=True):
        axes[name].imshow(values[0, index], cmap="Greens", vmin=0)
        corner = axes[name].inset_axes((-0.27, 0.3, 0.24, 0.4))
        corner.imshow(FILTERS[index], cmap="RdBu", vmin=-LIMIT, vmax=LIMIT)
        corner.set(xticks=[], yticks=[])
        for spine in corner.spines.values():
            spine.set(visible=True, color=FILTER.dark)
    for ax in axes.values():
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set(visible=True, color="#bbbbbb", linewidth=0.7)
    style.save(figure, "gallery-activations")


def prediction_map() -> None:
    """What was read, and how sure the network is."""
    figure, (above, below) = style.plt.subplots(2, 1, figsize=(8, 9.2), layout="constrained", sharex=True, sharey=True)
    above.imshow(PAGE["picture"][0], cmap="gray_r")
    above.set_title("the picture, and what the network reads")
    for i, j, digit in PAGE["found"]:
        above.add_patch(style.Rectangle((j - 0.5, i - 0.5), 12, 12, fill=False, edgecolor=GRADIENT.dark, linewidth=1.2))
        above.text(j + 12.3, i + 1.5, str(digit), color=GRADIENT.dark, fontsize=15, fontweight="bold", va="center")
    height, width = PAGE["sure"].shape
    extent = (5.5, 5.5 + width, 5.5 + height, 5.5)  # each prediction at the middle of its window
    image = below.imshow(PAGE["sure"], cmap="Purples", vmin=0, vmax=1, extent=extent)
    below.set_title("how sure it is that a digit is in the middle")
    below.set(xlim=(-0.5, 79.5), ylim=(47.5, -0.5))
    figure.colorbar(image, ax=below, shrink=0.8, label="1 − chance of “none”")
    for ax in (above, below):
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set(visible=True, color="#bbbbbb", linewidth=0.7)
    style.save(figure, "gallery-map")


for draw in (filters, activations, prediction_map):
    draw()
