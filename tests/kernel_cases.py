"""Calls of primitives that reach each branch of the kernels, to be compared with the NumPy backend.

They serve where the kernels themselves are in question: bugs planted in them, mutants, coverage, repeatability. A
primitive without cases here has its small calls of `benchmarks.primitives`: enough for a kernel without branches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from typing import Any

import numpy as np
from launches import Recorder
from strategies import arranged, dtype_of, numbers

from benchmarks import primitives
from benchmarks.primitives import Call, agree, calls
from gpucnn.backends.base import Backend, Epilogue
from gpucnn.backends.cuda import CudaBackend
from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import NumpyBackend
from gpucnn.geometry import ConvGeometry, GridGeometry, NormGeometry, PoolGeometry
from gpucnn.geometry.geometries import Channels, adaptive_geometry, conv_geometry, interpolation_geometry, pool_geometry
from gpucnn.numerics import PRECISIONS

Array = Any
RECORDER = Recorder(specialises=False)
DRY = CudaBackend(RECORDER)
"""A backend that only notes what it is to launch."""


@dataclass(frozen=True, eq=False)
class Case:
    """One call of a primitive."""

    name: str
    primitive: str
    arguments: tuple[Any, ...]
    algorithm: str | None = "direct"  # None: whichever is chosen by itself
    precision: str = "fp32"  # of float32

    def run(self, backend: Backend, put: Callable[[Array], Array] = lambda array: array) -> tuple[Array, ...]:
        """The results on `backend`, whose arrays `put` makes."""
        call = Call(self.name, self.primitive, lambda: self.arguments, self.algorithm, self.precision)
        return call.run(backend, put)

    @cached_property
    def kernels(self) -> frozenset[str]:
        """The files that it runs: those that a dry run launches."""
        RECORDER.launches.clear()
        self.run(DRY)
        firsts = (re.search(r'#line 1 "(\w+)\.cu"', launch.source.text) for launch in RECORDER.launches.values())
        return frozenset(first[1] for first in firsts if first)

    @cached_property
    def expected(self) -> tuple[Array, ...]:
        """What the NumPy backend gives, which has no implicit GEMM, and directly for Winograd's filtering."""
        others = {"implicit_gemm": None, "winograd": "direct"}
        case = replace(self, algorithm=others.get(self.algorithm, self.algorithm))
        return case.run(NumpyBackend())

    def agrees(self, results: tuple[Array, ...]) -> bool:
        """Whether `results` are the expected ones, up to rounding."""
        return not agree(results, self.expected)


# --- Arrays -------------------------------------------------------------------------------------------------------


def _array(shape: tuple[int, ...], dtype: str = "float32", order: str = "contiguous") -> Array:
    """Random numbers; of "tf32" as float32 that rounding to TF32 leaves as they are, of "fp32x3" as any float32."""
    if dtype == "tf32":
        return arranged(numbers(np.random.default_rng(shape), shape, "bfloat16").astype(np.float32), order)
    dtype = "float32" if dtype == "fp32x3" else dtype
    return arranged(numbers(np.random.default_rng(shape), shape, dtype), order)


# --- Convolution --------------------------------------------------------------------------------------------------


def _conv(
    channels: tuple[int, ...], sizes: tuple[int, ...], kernel: Any, stride: Any, padding: Any, dilation: Any = 1
) -> ConvGeometry:
    return conv_geometry("conv", sizes, Channels(*channels), kernel, stride, padding, dilation)


CONVOLUTIONS: dict[str, tuple[int, ConvGeometry]] = {  # batch and geometry
    "3-d, all different": (
        2, _conv((4, 6, 2), (5, 7, 6), (2, 3, 2), (2, 3, 1), ((1, 0), (2, 1), (0, 2)), (1, 2, 3))
    ),
    "several readers along each axis": (
        1, _conv((2, 3), (9, 5, 6), (3, 2, 3), (2, 1, 3), ((3, 3), (1, 0), (2, 1)), (3, 2, 1))
    ),
    "residues without taps": (2, _conv((3, 5), (9, 8), (3, 2), (4, 2), ((3, 2), (1, 4)), (2, 4))),
    "1x1 with a stride": (1, _conv((2, 3), (7, 8), 1, 3, 0)),
    "1-d, wide stride": (3, _conv((2, 4, 2), (4,), 2, 7, 3)),
    "dilation shares a factor with the stride": (1, _conv((1, 2), (23,), 4, 6, 5, 4)),
    "depthwise": (2, _conv((5, 10, 5), (6, 7), 3, 1, 1)),
    "windows that miss the input": (1, _conv((2, 2), (3, 4), 2, 2, 5, 2)),
    "long kernels of residues without taps": (1, _conv((1, 2), (23,), 5, 4, 3, 2)),
    "whole tiles": (2, _conv((3, 33), (8, 8), 3, 1, 1)),
    "a tile and one": (2, _conv((3, 33), (3, 11), 3, 1, 1)),
    "many positions": (3, _conv((2, 3), (21, 24), 3, 1, 1)),
}  # fmt: skip


def _convolutions() -> Iterator[Case]:
    for name, (n, geometry) in CONVOLUTIONS.items():
        for dtype, order in _varied(name == "3-d, all different"):
            yield from _convolution(f"{name}, {dtype}, {order}", n, geometry, dtype, order)
    for name in ("3-d, all different", "many positions", "whole tiles", "a tile and one", "1x1 with a stride"):
        n, geometry = CONVOLUTIONS[name]
        for order in ("contiguous", "channels_last"):
            yield from _convolution(f"{name}, float32, im2col, {order}", n, geometry, "float32", order, "im2col")
        yield from _convolution(f"{name}, complex64, im2col", n, geometry, "complex64", "contiguous", "im2col")
    sectors = _conv((12, 5), (6, 7), 3, 1, 1)  # more channels than one sector has
    yield from _convolution("sectors of channels, im2col", 2, sectors, "float32", "channels_last", "im2col")
    for sizes in ((6, 5), (75, 74)):  # a column that no window reads, and tiles of some rows
        unfold = _conv((8, 1), sizes, 2, 2 if sizes == (6, 5) else 1, 0)
        yield from _unfolding(f"of {sizes}, float32", _array((2, 8, 1, *sizes)), unfold, "float32")
    pixels = _conv((4, 6, 2), (4, 5), 1, 1, 0)
    yield from _convolution("1x1, im2col", 2, pixels, "float64", "contiguous", "im2col")


IMPLICIT_GEMM: dict[str, tuple[int, ConvGeometry]] = {
    "steps of channels": (2, _conv((72, 30), (5, 6), 3, 1, 1)),
    "blocks of channels": (2, _conv((64, 20), (5, 6), 3, 1, 1)),
    "four taps at once": (2, _conv((3, 16), (9, 8), (3, 2), 1, 1)),
    "two taps at once": (1, _conv((12, 16), (6, 7), 3, (2, 1), 1)),
    "groups": (2, _conv((40, 24, 2), (3, 5, 4), (2, 3, 1), (1, 2, 1), 1)),
    "residues without taps": (2, _conv((8, 16), (9, 8), (3, 2), (4, 2), ((3, 2), (1, 4)), (2, 4))),
    "windows that miss the input": (1, _conv((8, 8), (3, 4), 2, 2, 5, 2)),
    "residues": (2, _conv((40, 24), (6, 7), 3, 2, 1)),
    "blocks that begin before the image": (2, _conv((3, 20), (8, 9), 4, 2, 1)),
    "blocks of several strides": (1, _conv((3, 24), (5, 6, 9), 3, 1, ((1, 0), (0, 1), (2, 1)))),
    "blocks of groups": (2, _conv((6, 10, 2), (9, 16), (2, 5), (1, 4), (0, (2, 3)))),
    "blocks of outputs": (2, _conv((8, 6, 2), (5, 7), (3, 2), (2, 1), (1, (0, 2)))),
    "blocks both ways": (2, _conv((8, 8, 2), (9, 9), 3, 1, 1)),
    "blocks with gaps": (2, _conv((2, 8), (11,), 2, 5, 3)),
}  # fmt: skip
MANY_TILES: dict[str, tuple[int, ConvGeometry]] = {  # as many as a device has multiprocessors, or twice
    "tiles of 32 rows": (2, _conv((8, 31), (33790,), 1, 2, 0)),
    "tiles of 48 rows": (2, _conv((8, 47), (33790,), 1, 2, 0)),
    "tiles of 64 rows": (2, _conv((8, 63), (33790,), 1, 2, 0)),
    "tiles of 2 by 32 rows": (1, _conv((8, 63), (33790,), 1, 2, 0)),
    "tiles of 96 rows": (1, _conv((8, 95), (33790,), 1, 2, 0)),
    "tiles of 128 rows": (1, _conv((8, 127), (33790,), 1, 2, 0)),
}  # fmt: skip


def _implicit_gemm() -> Iterator[Case]:
    for name, (n, geometry) in IMPLICIT_GEMM.items():
        for dtype in ("float16", "bfloat16", "tf32", "fp32x3", "float32"):
            for order in ("contiguous", "channels_last", "offset"):
                title = f"implicit GEMM, {name}, {dtype}, {order}"
                yield from _directions(title, n, geometry, dtype, order, "implicit_gemm")
    for name, (n, geometry) in MANY_TILES.items():
        for dtype in ("float16", "tf32", "fp32x3", "float32"):
            title = f"implicit GEMM, {name}, {dtype}"
            forward, *_ = _directions(title, n, geometry, dtype, "contiguous", "implicit_gemm")
            few = _conv(geometry.channels, (1033,), 1, 2, 0)  # whose number a wgrad's tile does not depend on
            *_, weight = _directions(title, n, few, dtype, "contiguous", "implicit_gemm")
            yield from (forward, weight)


def _finished_products() -> Iterator[Case]:
    """With an epilogue, and with results of folds that are no numbers, which are computed anew."""
    n, geometry = IMPLICIT_GEMM["steps of channels"]
    for dtype, activation in (
        *(("float16", "relu"), ("bfloat16", "leaky_relu"), ("float32", "relu6"), ("tf32", "none")),
        *(("float16", "silu"), ("bfloat16", "hard_swish"), ("float32", "gelu")),
    ):
        for order in ("contiguous", "channels_last", "offset"):
            forward, *_ = _directions(f"steps of channels, {dtype}", n, geometry, dtype, order, "implicit_gemm")
            x, w, bias, _ = forward.arguments
            residual = _array((n, len(w), *geometry.output_size), dtype, order)
            name = f"{activation}, implicit GEMM, steps of channels, {dtype}, {order}"
            arguments = (x, w, bias, geometry, residual, activation, 0.3)
            yield Case(name, "convolve_activation", arguments, "implicit_gemm", forward.precision)
    n, geometry = IMPLICIT_GEMM["blocks that begin before the image"]
    forward, _, backward, *_ = _directions("no numbers", n, geometry, "float16", "contiguous", "implicit_gemm")
    for case, name in ((forward, "forward"), (backward, "backward input")):
        image, *others = case.arguments
        image = image.copy()
        image[0, 1, 0, 2, 2], image[1, 2, 0, 0, 3] = np.nan, np.inf
        named = f"{name}, implicit GEMM, no numbers, float16"
        yield Case(named, case.primitive, (image, *others), "implicit_gemm", case.precision)


WINOGRAD: dict[str, tuple[int, ConvGeometry]] = {
    "tiles beyond the last": (2, _conv((5, 20), (5, 8), 3, 1, 1)),
    "blocks of channels and of tiles": (1, _conv((36, 4), (3, 37), 3, 1, 1)),
    "uneven padding": (2, _conv((4, 3), (6, 5), 3, 1, ((2, 0), (0, 3)))),
    "no padding": (1, _conv((3, 2), (4, 3), 3, 1, 0)),
}  # fmt: skip


def _winograd() -> Iterator[Case]:
    for name, (n, geometry) in WINOGRAD.items():
        for order in ("contiguous", "channels_last", "offset"):
            cases = _directions(f"Winograd, {name}, float32, {order}", n, geometry, "float32", order, "winograd")
            yield from (case for case in cases if case.primitive != "convolve_backward_weight")
    n, geometry = WINOGRAD["uneven padding"]
    x, w = _array((n, 4, *geometry.input_size)).copy(), _array((3, 4, *geometry.kernel_size))
    x[0, 1, 0, 2, 2], x[1, 3, 0, 0, 4] = np.nan, np.inf
    yield Case("forward, Winograd, no numbers, float32", "convolve", (x, w, None, geometry), "winograd")


# --- Depthwise convolution ----------------------------------------------------------------------------------------

DEPTHWISE: dict[str, tuple[int, ConvGeometry]] = {
    "3-d, all different": (
        3, _conv((3, 6, 3), (5, 7, 6), (2, 3, 2), (2, 3, 1), ((1, 0), (2, 1), (0, 2)), (1, 2, 3))
    ),
    "several readers along each axis": (
        1, _conv((2, 2, 2), (9, 5, 6), (3, 2, 3), (2, 1, 3), ((3, 3), (1, 0), (2, 1)), (3, 2, 1))
    ),
    "residues without taps": (2, _conv((3, 3, 3), (9, 8), (3, 2), (4, 2), ((3, 2), (1, 4)), (2, 4))),
    "windows that miss the input": (1, _conv((2, 2, 2), (3, 4), 2, 2, 5, 2)),
    "small planes": (5, _conv((13, 13, 13), (7, 7), 3, 1, 1)),
    "aligned planes": (2, _conv((8, 8, 8), (8, 8), 5, 1, 2)),
    "channels of many lines": (2, _conv((40, 40, 40), (6, 5), 3, 2, 1)),
    "a long signal": (2, _conv((4, 4, 4), (5000,), 3, 1, 32, 32)),
    "a long signal, unaligned": (1, _conv((3, 6, 3), (4999,), 3, 2, 1)),
    "bands of rows": (1, _conv((2, 2, 2), (90, 96), 3, 1, 1)),
    "bands of rows, a multiplier": (1, _conv((2, 6, 2), (75, 95), 3, 1, 1)),
    "a large filter": (2, _conv((2, 2, 2), (13, 12), 11, 1, 5)),
    "a wide image": (1, _conv((2, 2, 2), (3, 3000), (2, 3), 1, 1)),
    "a deep image": (1, _conv((2, 2, 2), (34, 20, 20), 3, (1, 2, 1), 1)),
}  # fmt: skip


def _depthwise() -> Iterator[Case]:
    for name, (n, geometry) in DEPTHWISE.items():
        for dtype, order in _varied(name == "3-d, all different"):
            if dtype_of(dtype).kind in "fV":
                yield from _directions(f"depthwise, {name}, {dtype}, {order}", n, geometry, dtype, order, None)
    for dtype in ("float16", "bfloat16", "float64"):
        for name in ("aligned planes", "channels of many lines"):
            for order in ("contiguous", "channels_last"):
                n, geometry = DEPTHWISE[name]
                yield from _directions(f"depthwise, {name}, {dtype}, {order}", n, geometry, dtype, order, None)


def _varied(fully: bool) -> list[tuple[str, str]]:
    """Dtypes and memory orders: each dtype once, each order once."""
    if not fully:
        return [("float32", "contiguous"), ("float32", "channels_last")]
    dtypes = ("float64", "float16", "bfloat16", "complex64", "complex128", "int8", "uint8", "int64", "uint64", "int16")
    orders = ("contiguous", "channels_last", "strided", "reversed", "offset")
    return [("float32", order) for order in orders] + [(dtype, "contiguous") for dtype in dtypes]


def _wide_biases() -> Iterator[Case]:
    """Images of 16 bits with a bias of float32."""
    for name, algorithm, (n, geometry) in (
        ("direct", "direct", CONVOLUTIONS["3-d, all different"]),
        ("im2col", "im2col", CONVOLUTIONS["a tile and one"]),
        ("im2col of pixels", "im2col", (2, _conv((4, 6, 2), (4, 5), 1, 1, 0))),
        ("implicit GEMM", "implicit_gemm", IMPLICIT_GEMM["two taps at once"]),
        ("depthwise", None, DEPTHWISE["bands of rows, a multiplier"]),
    ):
        for dtype, order in (("float16", "contiguous"), ("bfloat16", "channels_last")):
            cases = _directions(
                f"{name}, a wide bias, {dtype}, {order}", n, geometry, dtype, order, algorithm, "float32"
            )
            yield from (case for case in cases if case.name.startswith(("forward, ", "transposed")))
    x, bias = _array((2, 33, 50), "float16"), _array((33,))
    yield Case("a wide bias, float16", "bias_activation", (x, bias, x, "leaky_relu", 0.3))


def _directions(
    name: str,
    n: int,
    geometry: ConvGeometry,
    dtype: str,
    order: str,
    algorithm: str | None,
    biases: str | None = None,
) -> Iterator[Case]:
    """Every direction of a convolution, those that take a bias with and without one."""
    c, oc, groups = geometry.channels
    x = _array((n, c, *geometry.input_size), dtype, order)
    y = _array((n, oc, *geometry.output_size), dtype, order)
    w = _array((oc, c // groups, *geometry.kernel_size), dtype, order)
    bias, bias_x = _array((2 * oc,), biases or dtype)[::2], _array((c,), biases or dtype)
    how = (algorithm, dtype if dtype in PRECISIONS else "fp32")
    yield Case(f"forward, {name}", "convolve", (x, w, bias, geometry), *how)
    yield Case(f"forward without bias, {name}", "convolve", (x, w, None, geometry), *how)
    yield Case(f"backward input, {name}", "convolve_backward_input", (y, w, None, geometry), *how)
    yield Case(f"transposed, {name}", "convolve_backward_input", (y, w, bias_x, geometry), *how)
    yield Case(f"backward weight, {name}", "convolve_backward_weight", (x, y, geometry), *how)


def _convolution(
    name: str, n: int, geometry: ConvGeometry, dtype: str, order: str, algorithm: str = "direct"
) -> Iterator[Case]:
    yield from _directions(name, n, geometry, dtype, order, algorithm)
    if algorithm == "direct" and (geometry.channels.groups == 1 or "all different" in name):
        x = _array((n, geometry.channels.inputs, *geometry.input_size), dtype, order)
        yield from _locally_connected(name, x, geometry, dtype, order)
        yield from _unfolding(name, x, geometry, dtype)


def _locally_connected(name: str, x: Array, geometry: ConvGeometry, dtype: str, order: str) -> Iterator[Case]:
    local = ConvGeometry(geometry.rank, Channels(geometry.channels.inputs, 3), geometry.axes)
    w = _array((3, *local.output_size, x.shape[1], *local.kernel_size), dtype)
    y = _array((x.shape[0], 3, *local.output_size), dtype, order)
    bias = _array((3, *local.output_size), dtype)
    yield Case(f"local, {name}", "locally_connect", (x, w, bias, local))
    yield Case(f"local input, {name}", "locally_connect_backward_input", (y, w, local))
    yield Case(f"local weight, {name}", "locally_connect_backward_weight", (x, y, local))


def _unfolding(name: str, x: Array, geometry: ConvGeometry, dtype: str) -> Iterator[Case]:
    unfold = ConvGeometry(geometry.rank, Channels(geometry.channels.inputs, 1), geometry.axes)
    yield Case(f"im2col, {name}", "im2col", (x, unfold))
    columns = numbers(np.random.default_rng(5), primitives.run(NumpyBackend(), "im2col", x, unfold)[0].shape, dtype)
    yield Case(f"col2im, {name}", "col2im", (columns, unfold))
    turned = np.ascontiguousarray(columns.swapaxes(1, 2)).swapaxes(1, 2)
    yield Case(f"col2im of a view, {name}", "col2im", (turned, unfold))


# --- Pooling and planes -------------------------------------------------------------------------------------------


def _pool(
    sizes: tuple[int, ...], divisor: Any, kernel: Any, stride: Any, padding: Any, dilation: Any = 1, ceil: bool = False
) -> PoolGeometry:
    return pool_geometry("pool", sizes, kernel, stride, padding, dilation, ceil, divisor)


POOLINGS: dict[str, tuple[tuple[int, ...], PoolGeometry]] = {  # spatial sizes of the input, geometry
    "3-d, all different": (
        (5, 7, 6), _pool((5, 7, 6), "padded", (2, 3, 2), (2, 3, 1), ((1, 0), (2, 1), (0, 1)), (1, 2, 1))
    ),
    "windows beyond the padding": ((1, 6, 8), _pool((1, 6, 8), "padded", (1, 3, 3), 2, (0, 1, 1), 1, True)),
    "several readers along each axis": (
        (9, 5, 6), _pool((9, 5, 6), "valid", (3, 2, 3), (2, 1, 1), ((3, 3), (1, 1), (1, 2)), (3, 2, 1))
    ),
    "ceil mode": ((1, 8, 7), _pool((8, 7), "valid", 3, 2, 1, ceil=True)),
    "dilation and stride share a factor": ((1, 1, 23), _pool((23,), "padded", 3, 4, 2, 6)),
    "windows in padding alone": ((1, 2, 3), _pool((2, 3), "valid", 2, 2, 4, 5)),
    "a divisor": ((1, 6, 5), _pool((6, 5), 3, 2, 1, 1)),
    "sums": ((1, 6, 5), _pool((6, 5), "none", 2, 3, 0)),
    "adaptive": ((4, 5, 7), adaptive_geometry("pool", (4, 5, 7), (3, 8, 4), "valid")),
    "global": ((1, 6, 5), adaptive_geometry("pool", (6, 5), 1, "valid")),
    "both kinds of axes": ((1, 6, 5), adaptive_geometry("pool", (6, 5), (3, 2), "valid")),
}  # fmt: skip

TILED: dict[str, tuple[tuple[int, ...], PoolGeometry]] = {  # planes of several tiles, windows that threads share
    "bands of rows": ((1, 90, 91), _pool((90, 91), "padded", 3, 2, 1)),
    "bands of slices": ((7, 32, 33), _pool((7, 32, 33), "valid", (3, 2, 3), 2, 1)),
    "parts of slices": ((5, 42, 43), _pool((5, 42, 43), "valid", (3, 3, 2), (2, 2, 3), 1)),
    "bands of columns": ((1, 1, 9007), _pool((9007,), "padded", 5, 3, 2, 2)),
    "bands without windows": ((1, 1, 15007), _pool((15007,), "padded", 2, 15001, 0)),
    "maxima of rows": ((1, 70, 37), _pool((70, 37), "padded", 9, 1, 4)),
    "maxima of rows, 3-d": ((5, 9, 8), _pool((5, 9, 8), "padded", 5, 1, 2)),
    "adaptive bands": ((1, 80, 83), adaptive_geometry("pool", (80, 83), (30, 40), "valid")),
    "windows of half a warp": ((1, 29, 31), adaptive_geometry("pool", (29, 31), (3, 2), "valid")),
    "windows of a warp": ((1, 40, 43), adaptive_geometry("pool", (40, 43), 1, "valid")),
    "a plane that is not staged": ((1, 130, 131), adaptive_geometry("pool", (130, 131), 1, "valid")),
}  # fmt: skip


def _poolings() -> Iterator[Case]:
    for name, (sizes, geometry) in POOLINGS.items():
        for dtype, order in _varied(name == "3-d, all different"):
            yield from _pooling(f"{name}, {dtype}, {order}", (2, 3, *sizes), geometry, dtype, order)
    for name, (sizes, geometry) in TILED.items():
        yield from _tiled(f"{name}, float32, contiguous", (1, 3, *sizes), geometry, "float32", "contiguous")
        yield from _tiled(f"{name}, float16, contiguous", (1, 2, *sizes), geometry, "float16", "contiguous")
        yield from _tiled(f"{name}, float32, channels_last", (1, 8, *sizes), geometry, "float32", "channels_last")
    small = _pool((9, 11), "valid", 3, 2, 1)  # so small that a block has several planes
    for dtype in ("float32", "float16", "int8"):
        yield from _tiled(f"planes together, {dtype}", (35, 33, 1, 9, 11), small, dtype, "contiguous")
    halves = _pool((3, 60, 62), "valid", 2, 2, 0)
    yield from _tiled("parts of slices, halves, float32", (2, 32, 3, 60, 62), halves, "float32", "channels_last")
    sizes, warp = TILED["windows of a warp"]
    rows, row = _pool((13, 19), "padded", 7, 1, 3), _pool((1, 23), "padded", 9, 1, ((4, 4), (0, 0)))
    parts, bands = _pool((2, 44, 41), "padded", 1, (1, 4, 5), 0), _pool((50, 50), "padded", 3, 2, 1)
    for name, shape, geometry, dtype, order in (
        ("windows of a warp, bfloat16", (2, 3, *sizes), warp, "bfloat16", "contiguous"),
        ("windows of a warp, complex64", (2, 3, *sizes), warp, "complex64", "contiguous"),
        ("long windows, float32", (2, 3, 1, 13, 19), rows, "float32", "contiguous"),
        ("long windows, float16", (2, 16, 1, 13, 19), rows, "float16", "channels_last"),
        ("one row, float32", (2, 3, 1, 1, 23), row, "float32", "contiguous"),
        ("out of window in parts, float32", (2, 8, 2, 44, 41), parts, "float32", "channels_last"),
        ("out of window in bands", (2, 3, 1, 50, 50), bands, "float64", "contiguous"),
    ):
        yield from _pooling(name, shape, geometry, dtype, order)


def _pooling(
    name: str, shape: tuple[int, ...], geometry: PoolGeometry, dtype: str, order: str, out_of_window: bool = True
) -> Iterator[Case]:
    x = _array(shape, dtype, order)
    y = _array((*shape[:2], *geometry.output_size), dtype, order)
    if x.dtype.kind != "c":
        tied = np.round(x) if x.dtype.kind == "f" else x
        tied = arranged(tied.astype(x.dtype), order)
        if x.dtype.kind == "f":
            tied[0, 0, 0, 0, :2] = np.nan
            tied[0, 1, :, : shape[3] // 2] = -np.inf
            tied[1:2, 1, -1, -1, -1] = np.inf
            tied[1:2, 2:3] = -np.inf
        _, indices = primitives.run(NumpyBackend(), "max_pool_with_indices", tied, geometry)
        yield Case(f"max, {name}", "max_pool", (tied, geometry))
        yield Case(f"max with indices, {name}", "max_pool_with_indices", (tied, geometry))
        yield Case(f"max backward, {name}", "max_pool_backward", (y, indices, geometry))
        if out_of_window:
            out = _out_of_window(indices, shape[2:])
            yield Case(f"out of window, {name}", "max_pool_backward", (y, out, geometry))
    if geometry.divisor == "none" or x.dtype.kind in "fcV":
        yield Case(f"average, {name}", "average_pool", (x, geometry))
        yield Case(f"average backward, {name}", "average_pool_backward", (y, geometry))


_tiled = partial(_pooling, out_of_window=False)  # those would take long in arrays of several tiles


def _out_of_window(indices: Array, size: tuple[int, ...]) -> Array:
    """Indices from anywhere, but for some planes that stay as the forward left them."""
    found = np.random.default_rng(4).integers(-1, np.prod(size), indices.shape)
    found[0] = indices[0]
    for axis in range(3):  # and some have one that is out of its window along one axis
        found[1, axis] = indices[1, axis]
        place = list(np.unravel_index(max(0, found[1, axis, 0, 0, 0]), size))
        place[axis] = size[axis] - 1
        found[1, axis, 0, 0, 0] = np.ravel_multi_index(place, size)
    return found


def _unpooling(name: str, shape: tuple[int, ...], geometry: PoolGeometry, dtype: str, order: str) -> Iterator[Case]:
    """Maxima put back to where they came from, and, in one of the planes, one of them far from there."""
    planes = _array(shape, dtype, order)
    _, indices = primitives.run(NumpyBackend(), "max_pool_with_indices", _array(shape, "float32", order), geometry)
    values = _array(indices.shape, dtype, order)
    yield Case(f"unpool, {name}", "unpool", (values, indices, shape[2:]))
    yield Case(f"gather, {name}", "gather", (planes, indices))
    indices = indices.copy()
    indices[0, 1, -1, -1, -1] = indices[0, 1, 0, 0, 0] = 0
    yield Case(f"unpool from anywhere, {name}", "unpool", (values, indices, shape[2:]))


def _planes() -> Iterator[Case]:
    rng = np.random.default_rng(3)
    size = (3, 4, 5)
    indices = rng.integers(-1, 60, (2, 3, 2, 3, 4))
    for dtype, order in _varied(True):
        values, planes = _array(indices.shape, dtype, order), _array((2, 3, *size), dtype, order)
        yield Case(f"unpool, {dtype}, {order}", "unpool", (values, indices, size))
        yield Case(f"gather, {dtype}, {order}", "gather", (planes, indices))
    for name in ("bands of rows", "bands of slices", "parts of slices", "bands of columns", "maxima of rows"):
        sizes, geometry = TILED[name]
        for order in ("contiguous", "channels_last"):
            yield from _unpooling(f"{name}, float32, {order}", (1, 8, *sizes), geometry, "float32", order)
    small = _pool((9, 11), "valid", 3, 2, 1)  # so small that a block has several planes
    for dtype in ("float32", "float16", "complex128", "int8"):
        yield from _unpooling(f"planes together, {dtype}", (35, 33, 1, 9, 11), small, dtype, "contiguous")
    halves = _pool((40, 44), "valid", 2, 2, 0)
    yield from _unpooling("parts of rows, float16", (2, 32, 1, 40, 44), halves, "float16", "channels_last")
    turned = arranged(indices, "channels_last")
    yield Case("unpool, turned indices", "unpool", (_array(indices.shape), turned, size))
    yield Case("gather, turned indices", "gather", (_array((2, 3, *size)), turned))


# --- Resampling ---------------------------------------------------------------------------------------------------


def _resamplings() -> Iterator[Case]:
    drawn = (
        ((3, 4, 5), (5, 7, 3), "linear", False),
        ((1, 6, 5), (1, 6, 9), "linear", True),
        ((2, 4, 5), (5, 2, 5), "nearest", False),
        ((1, 4, 7), (1, 9, 3), "nearest-exact", False),
        ((1, 8, 16), (1, 16, 32), "linear", False),
        ((1, 2, 40), (1, 200, 80), "linear", True),
        ((1, 5, 7), (1, 71, 129), "linear", False),
        ((2, 6, 5), (3, 9, 7), "cubic", False),
        ((1, 31, 40), (1, 7, 9), "antialiased cubic", False),
        ((4, 9, 70), (3, 9, 4), "antialiased linear", False),
    )
    for sizes, outs, mode, aligned in drawn:
        geometry = interpolation_geometry(sizes, outs, None, mode, aligned, "antialiased" in mode)
        for dtype, order in _varied(mode != "linear" or not aligned):
            if not mode.startswith("nearest") and dtype_of(dtype).kind in "iu":
                continue
            name = f"{mode}, {sizes} to {outs}, {dtype}, {order}"
            x, y = _array((2, 3, *sizes), dtype, order), _array((2, 3, *outs), dtype, order)
            yield Case(f"interpolate, {name}", "interpolate", (x, geometry))
            yield Case(f"interpolate backward, {name}", "interpolate_backward", (y, geometry))
    wide = interpolation_geometry((1, 1, 3), (1, 1, 9000), None, "linear", False)  # by single outputs, the way back
    yield Case("interpolate backward, float32, long", "interpolate_backward", (_array((1, 2, 1, 1, 9000)), wide))
    double, long = (interpolation_geometry((1, 5, 6), (1, 10, size), None, "linear", False) for size in (12, 300))
    for c, dtype in ((16, "float32"), (24, "float32"), (32, "float16"), (8, "float64"), (21, "float32")):
        for geometry, size in ((double, (1, 10, 12)), (long, (1, 10, 300))):  # slices of channels, and rows in parts
            x, y = (_array((2, c, *shape), dtype, "channels_last") for shape in ((1, 5, 6), size))
            name = f"{dtype}, {c} channels last, to {size[2]}"
            yield Case(f"interpolate, {name}", "interpolate", (x, geometry))
            yield Case(f"interpolate backward, {name}", "interpolate_backward", (y, geometry))


def _samplings() -> Iterator[Case]:
    for rank, size, out in ((2, (1, 5, 6), (1, 7, 5)), (2, (1, 1, 4), (1, 2, 3)), (3, (3, 2, 4), (2, 3, 2))):
        for mode, padding, aligned in product(
            ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection"), (False, True)
        ):
            if rank == 3 and mode == "bicubic":
                continue
            geometry = GridGeometry(rank, size, out, mode, padding, aligned)
            for order in ("contiguous", "channels_last"):
                name = f"{mode}, {padding}, {'aligned' if aligned else 'borders'}, {size}, float32, {order}"
                x, y = (_array((2, 11, *space), "float32", order) for space in (size, out))
                grid = 2 * _array((2, *out, rank))
                grid[0, 0, 0, 0] = np.nan, *(np.inf, -1e30)[: rank - 1]
                yield Case(f"sample, {name}", "grid_sample", (x, grid, geometry))
                yield Case(f"sample backward, {name}", "grid_sample_backward", (y, x, grid, geometry))


# --- Normalisation ------------------------------------------------------------------------------------------------


NORMS: dict[str, tuple[tuple[int, int, int, int], tuple[int, ...]]] = {  # [N, G, C, P] and the axes of a mean
    "batch": ((3, 4, 1, 35), (0, 2, 3)),
    "batch, far from 0": ((3, 4, 1, 35), (0, 2, 3)),
    "batch, large, far from 0": ((5, 2, 1, 2099), (0, 2, 3)),
    "batch, one value": ((1, 3, 1, 1), (0, 2, 3)),
    "batch, large": ((5, 2, 1, 2099), (0, 2, 3)),
    "batch, planes of whole sectors": ((5, 2, 1, 2104), (0, 2, 3)),
    "batch, small planes": ((5, 17, 1, 49), (0, 2, 3)),
    "batch, tiles of channels": ((2, 36, 1, 150), (0, 2, 3)),
    "batch, whole rows of channels": ((2, 12, 1, 150), (0, 2, 3)),
    "instance": ((2, 3, 1, 41), (2, 3)),
    "instance, aligned": ((3, 4, 1, 200), (2, 3)),
    "group": ((2, 3, 4, 17), (2, 3)),
    "group, aligned": ((2, 3, 4, 48), (2, 3)),
    "group, odd": ((3, 5, 3, 40), (2, 3)),
    "group, large": ((2, 2, 4, 1028), (2, 3)),
    "group, one pixel": ((3, 4, 5, 1), (2, 3)),
    "layer": ((7, 1, 33, 1), (2, 3)),
    "layer, aligned": ((70, 1, 96, 1), (2, 3)),
    "layer, rows of two warps": ((5, 1, 1044, 1), (2, 3)),
    "rows, large": ((1, 2, 3, 4001), (2, 3)),
    "wide rows": ((2, 1, 1500, 1), (2, 3)),
    "widest rows": ((3, 1, 3500, 1), (2, 3)),
}


def _norms() -> Iterator[Case]:
    for name, (shape, axes) in NORMS.items():
        geometry = NormGeometry(shape, axes)
        for dtype, order in _varied(name in ("batch", "group")):
            if dtype_of(dtype).kind in "iuc":
                continue
            yield from _norm(f"{name}, {dtype}, {order}", geometry, dtype, order)
    for dtype in ("float16", "bfloat16", "float64"):  # packs of other numbers of values
        for name, order in (
            ("batch, planes of whole sectors", "contiguous"),
            ("batch, tiles of channels", "channels_last"),
            ("group, aligned", "contiguous"),
            ("group, large", "channels_last"),
            ("layer, aligned", "contiguous"),
        ):
            yield from _norm(f"{name}, {dtype}, {order}", NormGeometry(*NORMS[name]), dtype, order)
    for name in ("layer", "layer, aligned", "widest rows", "rows, large"):
        shape = NORMS[name][0]
        geometry = NormGeometry((shape[0] * shape[1], 1, shape[2] * shape[3], 1), (2, 3), centred=False)
        for order in ("contiguous", "strided"):
            yield from _norm(f"RMS, {name}, float32, {order}", geometry, "float32", order)
    geometry = NormGeometry((3085, 2, 1, 65), (0, 2, 3))  # 258 parts: more than those whose pivots threads hold
    x = _array(geometry.shape, "float32") + np.arange(3085, dtype=np.float32)[:, None, None, None]
    huge = x * np.float32(1e25)  # squares of these overflow
    for name, values in (("many parts", x), ("many parts of huge values", huge)):
        yield Case(f"statistics, float32, {name}", "norm_statistics", (values, geometry, 1e-5))
    for name in ("batch", "layer, aligned"):
        geometry = NormGeometry(*NORMS[name])
        arguments = (_array(geometry.shape) * np.float32(1e25), None, None, geometry, 1e-5, None, "none", 0.0)
        yield Case(f"forward of huge values, {name}, float32", "norm_forward", arguments)


def _norm(name: str, geometry: NormGeometry, dtype: str, order: str) -> Iterator[Case]:
    shape = geometry.shape
    x = _array(shape, dtype) + dtype_of(dtype).type(300_000 if "far from 0" in name else 3)
    grad = arranged(numbers(np.random.default_rng(6), shape, dtype), order)  # other numbers: a linear grad_y gives 0
    x = arranged(x, order)
    mean, var, rstd = primitives.run(NumpyBackend(), "norm_statistics", x, geometry, 1e-5)
    affine = _array((1, shape[1], shape[2], 1), accumulator(x.dtype).name)
    yield Case(f"statistics, {name}", "norm_statistics", (x, geometry, 1e-5))
    alone = (None, "none", 0.0)
    for weight, bias in ((affine, -affine), (None, None), (affine, None), (None, affine)):
        given = (
            f"{'with' if weight is not None else 'without'} weight, {'with' if bias is not None else 'without'} bias"
        )
        yield Case(f"apply {given}, {name}", "norm_apply", (x, mean, var, weight, bias, 1e-5, *alone))
        yield Case(f"forward {given}, {name}", "norm_forward", (x, weight, bias, geometry, 1e-5, *alone))
    for residual, activation in ((grad, "relu"), (grad, "none"), (None, "leaky_relu")):
        given = f"{'with' if residual is not None else 'without'} residual, {activation}, {name}"
        finish = (residual, activation, 0.1)
        yield Case(f"apply {given}", "norm_apply", (x, mean, var, affine, -affine, 1e-5, *finish))
        yield Case(f"forward {given}", "norm_forward", (x, affine, -affine, geometry, 1e-5, *finish))
    for weight, bias, finish in (
        (affine, -affine, (grad, "relu", 0.0)),
        (None, affine, (None, "leaky_relu", 0.1)),
        (affine, None, (None, "relu", 0.0)),
    ):
        arguments = (grad, x, mean, rstd, weight, bias, *finish)
        yield Case(f"activation's gradient {finish[1]}, {name}", "norm_activation_backward", arguments)
    yield Case(f"affine, {name}", "norm_backward_affine", (grad, x, mean, rstd, geometry))
    for weight in (affine, None):
        named = f"{'with' if weight is not None else 'without'} weight, {name}"
        arguments = (grad, x, mean, rstd, weight, geometry)
        yield Case(f"backward {named}", "norm_backward_input", arguments)
        yield Case(f"all gradients {named}", "norm_backward", arguments)


# --- Packing ------------------------------------------------------------------------------------------------------

PACKED: dict[str, tuple[int, int, int]] = {  # N, C, P
    "whole tiles": (2, 64, 128),
    "tiles and one": (1, 65, 129),
    "few channels": (2, 3, 1500),
    "few positions": (2, 130, 49),
    "few of both": (3, 5, 7),
    "long rows that begin anywhere": (1, 9, 3001),
    "one channel": (2, 1, 40),
    "one position": (2, 40, 1),
    "narrow": (1, 16, 700),
}


def _packings() -> Iterator[Case]:
    for name, shape in PACKED.items():
        for dtype, order in _varied(name == "tiles and one"):
            x = _array(shape, dtype, order)
            others = ("float16", "bfloat16", "float64") if x.dtype.kind in "fV" and dtype != "int8" else ()
            for target in (dtype, *others):
                for last in (False, True):
                    named = f"{name}, {dtype}, {order} to {target}{', channels last' if last else ''}"
                    yield Case(f"pack, {named}", "copy", (x, dtype_of(target), last))


# --- Bias and activation ------------------------------------------------------------------------------------------

BIASED: dict[str, tuple[int, int, int]] = {  # N, C, P
    "whole packs": (2, 8, 16),
    "rows that begin anywhere": (3, 5, 49),
    "few channels": (3, 3, 85),
    "channels of several blocks": (2, 300, 3),
    "a row of several pieces": (2, 1, 9001),
    "single elements of a second block": (1, 3, 1801),
    "two positions": (2, 7, 2),
    "an element": (1, 1, 1),
    "many channels alone": (70, 21, 1),
    "short rows that fill sectors together": (9, 48, 7),
}


def _biases() -> Iterator[Case]:
    for name, shape in BIASED.items():
        for dtype, order in _varied(name == "rows that begin anywhere"):
            if dtype_of(dtype).kind in "iuc":
                continue
            x, y = _array(shape, dtype, order), _array(shape, dtype, order)
            x[0, 0, 0] = np.nan
            bias, residual = _array((2 * shape[1],), dtype)[::2], -_array(shape, dtype)
            for activation in ("none", "relu", "leaky_relu"):
                named = f"{activation}, {name}, {dtype}, {order}"
                for given, others in (
                    ("bias", (bias, None)),
                    ("residual", (None, residual)),
                    ("both", (bias, residual)),
                ):
                    arguments = (x, *others, activation, 0.3)
                    yield Case(f"{given}, {named}", "bias_activation", arguments)
                yield Case(f"backward, {named}", "bias_activation_backward", (y, x, None, activation, 0.3))
            for activation in Epilogue.SMOOTH if name == "rows that begin anywhere" else ():
                named = f"{activation}, {name}, {dtype}, {order}"
                yield Case(f"both, {named}", "bias_activation", (x, bias, residual, activation, 0.3))
            yield Case(f"sums, {name}, {dtype}, {order}", "channel_sums", (x,))


FAMILIES = (
    _convolutions, _implicit_gemm, _finished_products, _winograd, _depthwise, _wide_biases, _poolings, _planes,
    _resamplings, _samplings, _norms, _packings, _biases,
)  # fmt: skip
CASES = [case for family in FAMILIES for case in family()]
_LISTED = {case.primitive for case in CASES}
CASES += [
    Case(call.name, call.primitive, call.arguments(), call.algorithm)
    for call in calls("odd")
    if call.primitive not in _LISTED
]
