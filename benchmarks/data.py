"""A case's arrays: random, float32, the same for every provider and in every run."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cases import Case
from benchmarks.layers import (
    ConvLayer,
    NormLayer,
    PoolLayer,
    ResampleLayer,
    Shape,
    UnfoldLayer,
)

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]


def random_state(case: Case) -> np.random.Generator:
    """A generator seeded by the case's name, so that a filtered run sees the same data."""
    return np.random.default_rng(zlib.crc32(case.id.encode()))


def make_arrays(case: Case) -> Arrays:
    """The operands of `case` by name; `indices` are flat within the plane, as in PyTorch."""
    layer, batch, operation = case.layer, case.batch, case.operation
    rng = random_state(case)
    input_shape, output_shape = layer.input_shape(batch), layer.output_shape(batch)

    def normal(shape: Shape) -> FloatArray:
        return rng.standard_normal(shape, dtype=np.float32)

    arrays: Arrays = {}
    if operation == "col2im":
        return {"columns": normal(output_shape)}
    if operation != "backward_input" and not (operation == "backward" and isinstance(layer, ResampleLayer)):
        arrays["input"] = normal(input_shape)
    if operation.startswith("backward"):
        arrays["grad_output"] = normal(output_shape)

    if isinstance(layer, ConvLayer):
        if operation != "backward_weight":
            fan_in = math.prod(layer.weight_shape[1:])
            arrays["weight"] = normal(layer.weight_shape) / np.float32(math.sqrt(fan_in))
        if layer.bias and operation == "forward":
            arrays["bias"] = normal((layer.out_channels,))
    elif isinstance(layer, PoolLayer):
        if layer.kind == "max" and operation == "backward":
            arrays["indices"] = pool_maximum(arrays["input"], layer)[1]
    elif isinstance(layer, NormLayer):
        arrays["weight"] = 1 + normal((layer.channels,)) / 4
        arrays["bias"] = normal((layer.channels,))
        if layer.kind == "batch":
            arrays["running_mean"] = normal((layer.channels,)) / 4
            arrays["running_var"] = 1 + np.abs(normal((layer.channels,)))
    elif isinstance(layer, ResampleLayer) and layer.kind == "unpool":
        arrays["indices"] = _unpool_indices(layer, batch, rng)
    return arrays


def windows(layer: PoolLayer | UnfoldLayer) -> Iterator[tuple[Any, ...]]:
    """For each tap of the kernel, row-major, the index of the padded input that it reads."""
    for tap in np.ndindex(*layer.kernel):
        axes = zip(tap, layer.stride, layer.out_size, strict=True)
        yield (..., *(slice(t, t + s * (o - 1) + 1, s) for t, s, o in axes))


def pool_maximum(x: FloatArray, layer: PoolLayer) -> tuple[FloatArray, IndexArray]:
    """The maximum of each window and its flat index in the plane; the first one wins a tie."""
    borders = [(0, 0), (0, 0), *((p, p) for p in layer.padding)]
    padded = np.pad(x, borders, constant_values=-np.inf)
    plane = np.arange(math.prod(layer.size), dtype=np.int64).reshape(layer.size)
    plane = np.pad(plane, borders[2:], constant_values=-1)
    best = np.full(layer.output_shape(x.shape[0]), -np.inf, dtype=np.float32)
    indices = np.full(best.shape, -1, dtype=np.int64)
    for window in windows(layer):
        tap = padded[window]
        larger = tap > best
        np.copyto(best, tap, where=larger)
        np.copyto(indices, np.broadcast_to(plane[window], best.shape), where=larger)
    return best, indices


def _unpool_indices(layer: ResampleLayer, batch: int, rng: np.random.Generator) -> IndexArray:
    """One position at random within each block of the output, as pooling would have left it."""
    blocks = tuple(o // i for o, i in zip(layer.output, layer.size, strict=True))
    indices = np.zeros(layer.input_shape(batch), dtype=np.int64)
    for axis, block in enumerate(blocks):
        start = np.arange(layer.size[axis]) * block  # the block's first row or column
        start = start.reshape([-1 if a == axis else 1 for a in range(layer.rank)])
        indices = indices * layer.output[axis] + start + rng.integers(block, size=indices.shape)
    return indices
