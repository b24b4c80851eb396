"""Elementwise primitives in C++."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import prod

import numpy as np

from gpucnn.backends.base import Epilogue
from gpucnn.backends.cpu.library import Kernel, Value, launch, strides
from gpucnn.backends.dtypes import name_of
from gpucnn.backends.listening import note_computed
from gpucnn.backends.numpy import elementwise as plain
from gpucnn.backends.numpy import pool
from gpucnn.backends.numpy.memory import Array

_COPY = Kernel("copy")
_MASKED = Kernel("masked")
_BIAS_ACTIVATION = Kernel("bias_activation")
_BIAS_ACTIVATION_BACKWARD = Kernel("bias_activation_backward")
_TOTAL = Kernel("bias_activation_backward", "bias_activation_backward_total")
ACTIVATIONS = {"none": 0, "relu": 1, "leaky_relu": 2, "relu6": 3}

Ints = tuple[int, ...]

# Of a copy into another memory order: rows of y, and elements of each, that are written at once.
COPY_ROWS, COPY_COLUMNS = 64, 4096

ROW_ELEMENTS = 512  # of several pixels in a row: of 3 channels, 8 x 224 x 224, bias and ReLU took 10 ms row by row


def copy(x: Array, y: Array) -> None:
    """Write x to y, in y's dtype."""
    values = _copy_values(y.shape, y.strides, x.strides, y.itemsize) if x.dtype == y.dtype else None
    if values is None:
        note_computed()
        plain.copy(x, y)
    else:
        launch(_COPY, name_of(x.dtype), values, {"x": x, "y": y}, int(values["items"]))


@lru_cache(maxsize=1024)
def _copy_values(shape: Ints, y_strides: Ints, x_strides: Ints, itemsize: int) -> dict[str, Value] | None:
    """The kernel's fields for a copy from x to y; None for arrays of too many axes."""
    axes = _merged_axes(shape, itemsize, y_strides, x_strides)
    if len(axes) > 4:
        return None
    axes = [(1, 0, 0)] * (4 - len(axes)) + axes
    in_x = [step for _, _, step in axes[:3]]
    rows = in_x.index(1) if 1 in in_x else 2  # the axis that is contiguous in x is the last but one
    axes.insert(2, axes.pop(rows))
    values: dict[str, Value] = {"r_block": COPY_ROWS, "c_block": COPY_COLUMNS, "items": work_items(prod(shape))}
    for name, (size, y_step, x_step) in zip("abrc", axes, strict=True):
        values |= {name: size, f"x_{name}": x_step, f"y_{name}": y_step}
    return values


def masked(values: Array, mask: Array, y: Array) -> None:
    """Y = values where the mask is True, and 0 elsewhere, whatever the values are there."""
    if not _are_alike(y.shape, y.itemsize, y.strides, values.strides, mask.strides):
        note_computed()
        plain.masked(values, mask, y)
        return
    items = work_items(y.size)
    arrays = {"values": values, "mask": mask, "y": y}
    launch(_MASKED, name_of(y.dtype), {"count": y.size, "items": items}, arrays, items)


@lru_cache(maxsize=1024)
def _are_alike(shape: Ints, itemsize: int, y_strides: Ints, strides_of_values: Ints, strides_of_mask: Ints) -> bool:
    """Whether arrays and a mask of bytes are dense, in one order."""
    of_mask = tuple(step * itemsize for step in strides_of_mask)
    axes = _merged_axes(shape, itemsize, y_strides, strides_of_values, of_mask)
    return not axes or (len(axes) == 1 and axes[0][1:] == (1, 1, 1))


@lru_cache(maxsize=1024)
def _merged_axes(sizes: Ints, itemsize: int, *strides_in_bytes: Ints) -> list[Ints]:
    """The axes of arrays of one shape, outermost first in the first one: sizes, and a stride in elements for each.

    Axes that follow each other in all arrays are one; those of one element are left out.
    """
    steps = [tuple(step // itemsize for step in steps) for steps in strides_in_bytes]
    axes: list[Ints] = []
    for axis in sorted((axis for axis, size in enumerate(sizes) if size != 1), key=lambda axis: -abs(steps[0][axis])):
        here = tuple(step[axis] for step in steps)
        if axes and all(outer == sizes[axis] * inner for outer, inner in zip(axes[-1][1:], here, strict=True)):
            axes[-1] = (axes[-1][0] * sizes[axis], *here)
        else:
            axes.append((sizes[axis], *here))
    return axes


def bias_activation(x: Array, bias: Array | None, y: Array, epilogue: Epilogue) -> None:
    """Y = epilogue of ``x + bias`` for x [N, C, P] and bias [C], rounded once."""
    if not x.size:
        return
    rows, repeats = _rows_of({"x": x, "y": y, "residual": epilogue.residual})
    bias_axis = "i" if repeats else "r"
    if bias is not None and repeats > 1:
        bias = np.broadcast_to(bias, (repeats, len(bias))).reshape(-1)
    items = work_items(x.size)
    values = {
        **rows,
        **{"bias_r": 0, "bias_i": 0, **strides("bias", bias, bias_axis)},
        **_activation(epilogue),
        "smooth": epilogue.smooth,
        "items": items,
    }
    arrays = {"x": x, "bias": bias, "residual": epilogue.residual, "y": y}
    launch(_BIAS_ACTIVATION, name_of(x.dtype), values, arrays, items)


def bias_activation_backward(
    grad_y: Array, y: Array, grad_x: Array, grad_bias: Array | None, epilogue: Epilogue
) -> None:
    """grad_x [N, C, P], by the signs of y [N, C, P], and the gradient of the bias [C]: its sum over N and P."""
    _backward(grad_y, y, grad_x, grad_bias, epilogue)


def channel_sums(x: Array, sums: Array) -> None:
    """The sums [C] of x [N, C, *] over all but its channels."""
    planes = x if x.ndim == 3 else x.reshape(*x.shape[:2], prod(x.shape[2:]))
    _backward(planes, planes, None, sums, Epilogue())


def _backward(grad_y: Array, y: Array, grad_x: Array | None, sums: Array | None, epilogue: Epilogue) -> None:
    """Write grad_x and sums, those that are given."""
    arrays = {"grad_y": grad_y, "y": y, "grad_x": grad_x}
    rows, repeats = _rows_of(arrays)
    n, c, _ = grad_y.shape
    items = work_items(grad_y.size)
    row = repeats * c
    parts, dtype = items * repeats or n, name_of(grad_y.dtype)
    arrays |= {"partial": None if sums is None else pool.empty((parts, c), grad_y.dtype), "sums": sums}
    values = {**rows, **_activation(epilogue), "by_row": not row, "items": items}
    values |= {"parts": parts, "channels": c, **strides("sums", sums, "c")}
    launch(_BIAS_ACTIVATION_BACKWARD, dtype, values, arrays, items, row)
    if sums is not None:
        launch(_TOTAL, dtype, values, arrays)


def _rows_of(arrays: Mapping[str, Array | None]) -> tuple[dict[str, int], int]:
    """The sizes and strides of arrays [N, C, P] as the kernels' [N, R, I], and the number of pixels in a row.

    That is 0 where rows are those of one channel. They are of all channels where those are innermost in the first
    array, and of several pixels where all arrays are dense, so that rows are long.
    """
    first = next(iter(arrays.values()))
    assert first is not None
    given = tuple((name, None if array is None else array.strides) for name, array in arrays.items())
    return _rows(first.shape, first.itemsize, given)


@lru_cache(maxsize=1024)
def _rows(shape: Ints, itemsize: int, given: tuple[tuple[str, Ints | None], ...]) -> tuple[dict[str, int], int]:
    n, c, p = shape
    steps = {
        name: [0, 0, 0]
        if found is None
        else [step // itemsize if size > 1 else 0 for size, step in zip(shape, found, strict=True)]
        for name, found in given
    }
    first, absent = steps[given[0][0]], [name for name, found in given if found is None]
    repeats, sizes = 0, (n, c, p)
    if first[1] == 1 and first[2] != 1:
        repeats, sizes = 1, (n, p, c)
        steps = {name: [step[0], step[2], step[1]] for name, step in steps.items()}
        dense = [c * p if n > 1 else 0, c if p > 1 else 0, 1]
        if all(step == dense for name, step in steps.items() if name not in absent):
            repeats = _divisor(n * p, ROW_ELEMENTS // c)
            sizes = (1, n * p // repeats, repeats * c)
            steps = {name: [0, 0, 0] if name in absent else [0, repeats * c, 1] for name in steps}
    values = dict(zip("nri", sizes, strict=True))
    for name, step in steps.items():
        values |= {f"{name}_{axis}": each for axis, each in zip("nri", step, strict=True)}
    return values, repeats


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` up to `most`; 1 if there is none."""
    return next((divisor for divisor in range(most, 1, -1) if number % divisor == 0), 1)


def _activation(epilogue: Epilogue) -> dict[str, Value]:
    """The fields of all activations but smooth ones."""
    return {"activation": ACTIVATIONS.get(epilogue.activation, 0), "negative_slope": epilogue.negative_slope}


def work_items(elements: int) -> int:
    """Items of work for a pass over so many elements: a thread takes some 50 us to wake up, which 128 Ki take too."""
    return max(1, min(64, elements >> 17))
