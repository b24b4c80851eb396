"""A case's arrays: random, the same for every provider and in every run."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cases import Case
from benchmarks.layers import ActivationLayer, ConvLayer, NormLayer, PoolLayer, ResampleLayer, Shape, UnfoldLayer

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]

PIECE = 1 << 20  # elements that one thread draws at a time


def random_state(case: Case) -> np.random.Generator:
    """A generator seeded by the case's name, so that a filtered run sees the same data."""
    return np.random.default_rng(zlib.crc32(case.id.encode()))


def make_arrays(case: Case) -> Arrays:
    """The operands of `case` by name; `indices` are flat within the plane, as in PyTorch."""
    arrays = make_operands(case)
    if needs_pool_indices(case):
        assert isinstance(case.layer, PoolLayer)
        arrays["indices"] = pool_maximum(arrays["input"], case.layer)[1]
    return arrays


def needs_pool_indices(case: Case) -> bool:
    """Whether the case is the backward of maximum pooling, which takes the indices of the maxima."""
    return isinstance(case.layer, PoolLayer) and case.layer.kind == "max" and case.operation == "backward"


def form(case: Case) -> dict[str, tuple[Shape, np.dtype[Any]]]:
    """The shapes and dtypes of the operands; a batch of one is drawn to find them."""
    one = make_operands(replace(case, batch=1))
    per_image = ("input", "grad_output", "columns", "indices")
    return {
        name: ((case.batch, *array.shape[1:]) if name in per_image else array.shape, array.dtype)
        for name, array in one.items()
    }


def make_operands(case: Case) -> Arrays:
    """As `make_arrays`, without the indices that the forward of maximum pooling leaves."""
    layer, batch, operation = case.layer, case.batch, case.operation
    rng = random_state(case)
    input_shape, output_shape = layer.input_shape(batch), layer.output_shape(batch)
    given, parameters = case.dtypes[0], case.parameter_dtype

    arrays: Arrays = {}
    if operation == "col2im":
        return {"columns": normal(rng, output_shape, given)}
    if operation != "backward_input" and not (operation == "backward" and isinstance(layer, ResampleLayer)):
        arrays["input"] = normal(rng, input_shape, given)
    if operation.startswith("backward"):
        arrays["grad_output"] = normal(rng, output_shape, given)

    def per_channel(channels: int) -> npt.NDArray[Any]:
        return normal(rng, (channels,), "float32")

    if isinstance(layer, ConvLayer):
        if operation != "backward_weight":
            fan_in = math.prod(layer.weight_shape[1:])
            weight = normal(rng, layer.weight_shape, "float32") / np.float32(math.sqrt(fan_in))
            arrays["weight"] = weight.astype(given)
        if layer.bias and operation == "forward":
            arrays["bias"] = per_channel(layer.out_channels).astype(given)
    elif isinstance(layer, NormLayer):
        arrays["weight"] = (1 + per_channel(layer.channels) / 4).astype(parameters)
        arrays["bias"] = per_channel(layer.channels).astype(parameters)
        if layer.kind == "batch":
            arrays["running_mean"] = per_channel(layer.channels) / 4
            arrays["running_var"] = 1 + np.abs(per_channel(layer.channels))
    elif isinstance(layer, ResampleLayer) and layer.kind == "unpool":
        arrays["indices"] = _unpool_indices(layer, batch, rng)
    elif isinstance(layer, ActivationLayer):
        arrays["bias"] = per_channel(layer.channels).astype(parameters)
    return arrays


def normal(rng: np.random.Generator, shape: Shape, dtype: str) -> npt.NDArray[Any]:
    """Standard normal numbers; large arrays are drawn in pieces on threads, the same ones for any number of threads."""
    count = math.prod(shape)
    if count <= PIECE:
        return rng.standard_normal(shape, np.float32).astype(dtype, copy=False)
    flat = np.empty(count, dtype)
    starts = range(0, count, PIECE)

    def draw(start: int, generator: np.random.Generator) -> None:
        piece = flat[start : start + PIECE]
        piece[...] = generator.standard_normal(piece.size, np.float32)

    with ThreadPoolExecutor() as pool:
        list(pool.map(draw, starts, rng.spawn(len(starts))))
    return flat.reshape(shape)


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
