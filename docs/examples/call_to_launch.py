"""Draws the way of one call from `conv2d` to a running kernel: docs/images/call-to-launch.png."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

PICTURE = Path(__file__).resolve().parents[1] / "images" / "call-to-launch.png"
WIDTH, HEIGHT = 4.6, 1.0
PURE, ACTS, DEVICE = "#e8f1fb", "#fdf1e0", "#e6f4e8"

# name: (column, row, colour, title, what it does)
STEPS = {
    "functional": (1.1, 0, PURE, "functional.conv2d(x, w, stride=2)", "dtypes, shapes → ConvGeometry, checked once"),
    "dispatch": (1.1, 1, PURE, "backends.receive(x, w)", "by the arrays' type; nothing is copied"),
    "numpy": (0, 2, DEVICE, "NumpyBackend.convolve", "NumPy arrays: computed on the CPU"),
    "cuda": (2.1, 2, ACTS, "CudaBackend.convolve", "CuPy's or simulated arrays: y is allocated"),
    "select": (2.1, 3, PURE, "select.algorithm", "direct, or im2col and a matrix product"),
    "launch": (2.1, 4, ACTS, "launching.launch", "ConvParams, 32- or 64-bit indices, grid"),
    "source": (2.1, 5, PURE, "sources.source", "types + headers + conv_forward.cu: one text"),
    "cupy": (1.15, 6, ACTS, "CupyRuntime.function", "NVRTC → cubin, kept on disk"),
    "simulator": (3.05, 6, ACTS, "SimulatorRuntime.function", "g++ → shared object, kept on disk"),
    "gpu": (1.15, 7, DEVICE, "GPU", "CuPy's current stream, no waiting"),
    "fibers": (3.05, 7, DEVICE, "CPU", "a fiber a thread, each access checked"),
}
ARROWS = (
    ("functional", "dispatch"), ("dispatch", "numpy"), ("dispatch", "cuda"), ("cuda", "select"), ("select", "launch"),
    ("launch", "source"), ("source", "cupy"), ("source", "simulator"), ("cupy", "gpu"), ("simulator", "fibers"),
)  # fmt: skip


def corner(name: str) -> tuple[float, float]:
    """The lower left corner of a step's box."""
    column, row = STEPS[name][:2]
    return column * 2.6, -row * 1.55


def draw(ax: Axes) -> None:
    """Every step as a box, and the way from each to the next."""
    for name, (_, _, colour, title, text) in STEPS.items():
        x, y = corner(name)
        ax.add_patch(FancyBboxPatch((x, y), WIDTH, HEIGHT, "round,pad=0.04", facecolor=colour, edgecolor="#555555"))
        ax.text(x + WIDTH / 2, y + 0.68, title, ha="center", va="center", family="monospace", fontsize=9)
        ax.text(x + WIDTH / 2, y + 0.28, text, ha="center", va="center", fontsize=8, color="#444444")
    for start, end in ARROWS:
        (x0, y0), (x1, y1) = corner(start), corner(end)
        tail, head = (x0 + WIDTH / 2, y0 - 0.05), (x1 + WIDTH / 2, y1 + HEIGHT + 0.06)
        ax.annotate("", head, tail, arrowprops={"arrowstyle": "-|>", "color": "#555555"})
    for index, (colour, meaning) in enumerate(((PURE, "pure"), (ACTS, "acts"), (DEVICE, "computes"))):
        ax.add_patch(
            FancyBboxPatch((0, -5.0 - 0.5 * index), 0.35, 0.25, "round,pad=0.03", facecolor=colour, edgecolor="#555555")
        )
        ax.text(0.55, -4.88 - 0.5 * index, meaning, va="center", fontsize=8)
    ax.set_xlim(-0.2, 12.8)
    ax.set_ylim(-11.1, 1.2)
    ax.set_aspect("equal")
    ax.axis("off")


def main() -> None:
    """Write the picture."""
    figure, ax = plt.subplots(figsize=(8.4, 8.9), layout="tight")
    draw(ax)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
