"""1 x 1 convolution of images in C order in C++."""

from __future__ import annotations

import numpy as np

from gpucnn.backends.cpu.library import Kernel, launch, strides, vector_bytes
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import Sampling

MIN_POSITIONS = 112  # of an image: of 49 positions a quarter of the lanes would have nothing to do
MIN_ITEMS = 16  # work items below which an image's positions are cut in parts too

_POINTWISE = Kernel("pointwise")


def computes(x: Array, y: Array, samplings: tuple[Sampling, Sampling, Sampling]) -> bool:
    """Whether these are images of one row, [N, C, 1, 1, P], whose positions are contiguous, at the positions of y."""
    depth, height, width = samplings
    is_row = depth.targets == height.targets == depth.sources == height.sources == 1
    contiguous = x.strides[-1] == y.strides[-1] == x.itemsize
    return bool(is_row and width.is_identity and contiguous and width.targets >= MIN_POSITIONS)


def contract(x: Array, w: Array, y: Array, bias: Array | None) -> None:
    """As `convolution.contract`: x [N, G * C, 1, 1, P], w [G, M, C, 1, 1, 1], y [N, G * M, 1, 1, P]."""
    groups, filters, channels = w.shape[:3]
    positions = x.shape[-1]
    lanes = vector_bytes() // x.itemsize
    panels = -(-positions // (4 * lanes))
    parts = min(panels, max(1, MIN_ITEMS // (groups * len(x))))
    values = {
        **{"n": len(x), "groups": groups, "channels": channels, "filters": filters},
        **{"positions": positions, "parts": parts},
        **strides("x", x[:, :, 0, 0, 0], "nc"),
        **strides("y", y[:, :, 0, 0, 0], "nc"),
        **strides("bias", bias, "gm"),
    }
    weight = np.ascontiguousarray(w[..., 0, 0, 0])
    arrays = {"x": x, "w": weight, "bias": bias, "y": y}
    workspace = 8192 + filters * 4 * lanes + 2 * (filters + 16) + lanes
    launch(_POINTWISE, x.dtype.name, values, arrays, len(x) * groups * parts, workspace)
