"""Fine-tuning: what is frozen when, and the accuracies for more and more labels."""

from __future__ import annotations

from typing import Any

import page
import style
from matplotlib.patches import FancyBboxPatch
from style import EMPTY, FILTER, GRADIENT, INPUT, OUTPUT


def stages() -> None:
    """The layers in the three stages of transfer."""
    figure, ax = style.canvas(20, 8.2)
    layers = ("conv", "conv", "linear", "head")
    stages = (
        ("trained on\nthe old task", (INPUT,) * 4, ("",) * 4),
        ("1. new head,\nthe rest frozen", (EMPTY,) * 3 + (FILTER,), ("frozen",) * 3 + ("lr 0.01",)),
        ("2. all learn,\nthe rest gently", (INPUT,) * 3 + (FILTER,), ("lr 0.001",) * 3 + ("lr 0.01",)),
    )
    for row, (title, colours, notes) in enumerate(stages):
        y = 0.6 + 2.5 * row
        style.text(ax, 0.4, y + 0.75, title, align="left")
        for index, (layer, colour, note) in enumerate(zip(layers, colours, notes, strict=True)):
            x = 5.4 + 3.7 * index
            ax.add_patch(
                FancyBboxPatch((x, y), 2.6, 1.5, "round,pad=0.05", facecolor=colour.light, edgecolor=colour.dark)
            )
            name = "new head" if layer == "head" and row else layer
            style.text(ax, x + 1.3, y + (0.5 if note else 0.75), name)
            style.text(ax, x + 1.3, y + 1.05, note, 9.5, colour.dark)
            if index:
                style.arrow(ax, (x - 1.0, y + 0.75), (x - 0.1, y + 0.75))
    style.save(figure, "fine-tuning")


def curves() -> None:
    """Accuracy by the number of labels."""
    measured: dict[str, Any] = page.names("guide/7-fine-tuning")["curves"]
    figure, ax = style.plt.subplots(figsize=(7.6, 3.4), layout="constrained")
    names = (("from scratch", EMPTY, "s--"), ("linear classifier on top", OUTPUT, "^-"), ("fine-tuned", GRADIENT, "o-"))
    for index, (name, colour, marks) in enumerate(names):
        ax.plot(
            list(measured), [100 * shares[index] for shares in measured.values()], marks, color=colour.dark, label=name
        )
    ax.set_xscale("log")
    ax.set_xticks(list(measured), [str(count) for count in measured])
    ax.minorticks_off()
    ax.set_xlabel("labelled pictures (logarithmic)")
    ax.set_ylabel("right answers, %")
    ax.legend(frameon=False, loc="lower right")
    style.save(figure, "fine-tuning-curves")


for draw in (stages, curves):
    draw()
