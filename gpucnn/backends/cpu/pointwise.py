"""1 x 1 convolution in C++: of images in C order, and to few filters of images with channels innermost."""

from __future__ import annotations

from collections.abc import Callable

from gpucnn.backends.cpu.elementwise import copy
from gpucnn.backends.cpu.finishing import Finish
from gpucnn.backends.cpu.library import Kernel, Launch, Layout, Value, shared_scratch, strides, vector_bytes
from gpucnn.backends.cpu.tiling import MIN_ITEMS
from gpucnn.backends.numpy.memory import Array

_POINTWISE = Kernel("pointwise")
_DOTS = Kernel("pointwise", "pointwise_dots")

DOTS_POSITIONS = 64  # least of a work item


def plan(x: Layout, w: Layout, y: Layout, bias: Layout | None, dtype: str, finish: Finish) -> Callable[..., None]:
    """The function of x [N, G * C, 1, 1, P], w [G, M, C, 1, 1, 1], y [N, G * M, 1, 1, P], bias [G, M] and residual.

    Bias and residual may be None; the residual has the strides of y.
    """
    batch, positions = x.shape[0], x.shape[-1]
    groups, filters, _ = w.shape[:3]
    lanes = vector_bytes() // x.itemsize
    panels = -(-positions // (4 * lanes))
    parts = min(panels, max(1, MIN_ITEMS // (groups * batch)))
    values = _values(x, w, y, bias, parts, finish)
    workspace = 32768 + filters * 4 * lanes + 4 * (filters + 16) + lanes
    launch = Launch(_POINTWISE, dtype, values, batch * groups * parts, workspace)

    def contract(x: Array, w: Array, y: Array, bias: Array | None, residual: Array | None) -> None:
        if not w.flags.c_contiguous:
            rows = shared_scratch("filters", w.size, dtype).reshape(w.shape)
            copy(w, rows)
            w = rows
        launch(x=x, w=w, y=y, bias=bias, residual=residual)

    return contract


def plan_dots(x: Layout, w: Layout, y: Layout, bias: Layout | None, dtype: str, finish: Finish) -> Callable[..., None]:
    """As `plan`, for at most 4 filters of a group and x whose channels are innermost; y has any strides."""
    batch, positions = x.shape[0], x.shape[-1]
    groups, filters, channels = w.shape[:3]
    lanes = vector_bytes() // x.itemsize
    parts = max(1, min(positions // DOTS_POSITIONS, MIN_ITEMS // (groups * batch)))
    values = _values(x, w, y, bias, parts, finish)
    launch = Launch(_DOTS, dtype, values, batch * groups * parts, filters * (channels + lanes))

    def contract(x: Array, w: Array, y: Array, bias: Array | None, residual: Array | None) -> None:
        launch(x=x, w=w, y=y, bias=bias, residual=residual)

    return contract


def _values(x: Layout, w: Layout, y: Layout, bias: Layout | None, parts: int, finish: Finish) -> dict[str, Value]:
    groups, filters, channels = w.shape[:3]
    return {
        **{"n": x.shape[0], "groups": groups, "channels": channels, "filters": filters},
        **{"positions": x.shape[-1], "parts": parts},
        **strides("x", x, "ncdhw"),
        **strides("y", y, "ncdhw"),
        **strides("w", w, "gmcdhw"),
        **strides("bias", bias, "gm"),
        **finish._asdict(),
    }
