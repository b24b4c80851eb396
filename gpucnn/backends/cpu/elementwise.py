"""Elementwise primitives in C++."""

from __future__ import annotations

from gpucnn.backends.base import Epilogue
from gpucnn.backends.cpu.library import Kernel, launch, strides
from gpucnn.backends.numpy.memory import Array

_BIAS_ACTIVATION = Kernel("bias_activation")
ACTIVATIONS = {"none": 0, "relu": 1, "leaky_relu": 2}


def bias_activation(x: Array, bias: Array | None, y: Array, epilogue: Epilogue) -> None:
    """Y = epilogue of ``x + bias`` for x [N, C, P] and bias [C], rounded once."""
    n, c, p = x.shape
    items = work_items(x.size)
    values = {
        **{"n": n, "c": c, "p": p, "items": items},
        **strides("x", x, "ncp"),
        **strides("y", y, "ncp"),
        **strides("residual", epilogue.residual, "ncp"),
        **strides("bias", bias, "c"),
        **{"activation": ACTIVATIONS[epilogue.activation], "negative_slope": epilogue.negative_slope},
    }
    arrays = {"x": x, "bias": bias, "residual": epilogue.residual, "y": y}
    launch(_BIAS_ACTIVATION, x.dtype.name, values, arrays, items)


def work_items(elements: int) -> int:
    """Items of work for a pass over so many elements: a thread takes some 50 us to wake up, which 32 Ki take too."""
    return max(1, min(64, elements >> 15))
