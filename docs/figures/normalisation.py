"""Normalisation: the four norms as blocks, and the graph of one of them."""

from __future__ import annotations

import style
from matplotlib.axes import Axes
from matplotlib.patches import Polygon
from style import EMPTY, FILTER, GRADIENT, INPUT, OUTPUT, Colour

N, C, SPACE = 4, 4, 4
Shared = frozenset[tuple[int, int]]  # pairs (image, channel)

NORMS: dict[str, tuple[Shared, Colour]] = {
    "batch norm\none channel,\nall images": (frozenset((n, 0) for n in range(N)), INPUT),
    "layer norm\none image,\nall channels": (frozenset((0, c) for c in range(C)), FILTER),
    "instance norm\none channel\nof one image": (frozenset({(0, 0)}), OUTPUT),
    "group norm\nsome channels\nof one image": (frozenset({(0, 0), (0, 1)}), GRADIENT),
}


def block(ax: Axes, left: float, top: float, shared: Shared, colour: Colour) -> None:
    """Channels to the right, space downwards, images into the depth; seen are image 0, the top, the right."""
    size, shift = 0.85, 0.42

    def face(corners: list[tuple[float, float]], inside: bool) -> None:
        fill = colour.dark if inside else "white"
        ax.add_patch(Polygon(corners, facecolor=fill, alpha=0.75 if inside else 1, edgecolor="none"))
        ax.add_patch(Polygon(corners, fill=False, edgecolor="#555555", linewidth=0.8))

    def point(c: float, s: float, n: float) -> tuple[float, float]:
        return left + c * size + n * shift, top + s * size - n * shift

    for c in range(C):
        for s in range(SPACE):
            face([point(c, s, 0), point(c + 1, s, 0), point(c + 1, s + 1, 0), point(c, s + 1, 0)], (0, c) in shared)
        for n in range(N):
            face([point(c, 0, n), point(c + 1, 0, n), point(c + 1, 0, n + 1), point(c, 0, n + 1)], (n, c) in shared)
    for n in range(N):
        for s in range(SPACE):
            face([point(C, s, n), point(C, s, n + 1), point(C, s + 1, n + 1), point(C, s + 1, n)], (n, C - 1) in shared)


def norms() -> None:
    """Four blocks of images × channels × places."""
    figure, ax = style.canvas(25.5, 9.4, unit=0.4)
    for left, (name, (shared, colour)) in zip((1.2, 7.4, 13.6, 19.8), NORMS.items(), strict=True):
        block(ax, left, 4.1, shared, colour)
        style.text(ax, left + 2.4, 1.15, name, 10.5, colour.dark)
    style.text(ax, 2.9, 8.1, "C channels →", 10, EMPTY.dark)
    ax.text(0.65, 5.9, "places (H × W) →", rotation=270, ha="center", va="center", fontsize=10, color=EMPTY.dark)
    ax.text(6.1, 7.1, "N images →", rotation=45, ha="center", va="center", fontsize=10, color=EMPTY.dark)
    style.text(ax, 15.5, 8.8, "The front is the first image. White: numbers that share other means.", 10)
    style.save(figure, "norms")


def graph() -> None:
    """The five steps from x to x̂."""
    figure, ax = style.canvas(20, 6.2)
    places = {"x": (0.8, 3.6), "μ": (3.8, 1.2), "c": (6.8, 3.6), "v": (10.0, 1.2), "r": (13.2, 1.2), "x̂": (17.2, 3.6)}
    links = (("x", "μ"), ("x", "c"), ("μ", "c"), ("c", "v"), ("v", "r"), ("r", "x̂"), ("c", "x̂"))
    steps = {
        "μ": "1.  mean(x)", "c": "2.  x − μ", "v": "3.  mean(c²)", "r": "4.  (v + ε)^(−½)", "x̂": "5.  c · r",
    }  # fmt: skip
    for start, end in links:
        (x0, y0), (x1, y1) = places[start], places[end]
        a = (x0 + 1.05, y0 + 0.5 + 0.25 * (y1 > y0) - 0.25 * (y1 < y0))
        b = (x1 - 0.05, y1 + 0.5 - 0.2 * (y1 > y0) + 0.2 * (y1 < y0))
        style.arrow(ax, a, b)
    for name, (x, y) in places.items():
        style.cell(ax, x, y, name, {"x": INPUT, "x̂": OUTPUT}.get(name, FILTER), font=13)
        if name in steps:
            below = name in ("c", "x̂")
            style.text(ax, x + 0.5, y + (1.5 if below else -0.5), steps[name], 10.5)
    style.text(ax, 1.3, 5.4, "goes two ways", 10, GRADIENT.dark)
    style.text(ax, 7.3, 5.75, "goes two ways", 10, GRADIENT.dark)
    style.save(figure, "norm-graph")


for draw in (norms, graph):
    draw()
