"""Calls of every primitive of the backend contract: layers that fill a GPU, and the same at small and odd sizes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

import gpucnn
from benchmarks import primitives
from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import NumpyBackend
from gpucnn.geometry import ConvGeometry, InterpolationGeometry, NormGeometry, PoolGeometry
from gpucnn.geometry.geometries import (
    Channels,
    adaptive_geometry,
    conv_geometry,
    interpolation_geometry,
    pool_geometry,
)

Scale = Literal["layers", "odd"]
Arguments = tuple[Any, ...]

FLOATS = ("float32", "float16", "bfloat16", "float64")
# Of one element, relative to the largest one: a sum's error scales with its terms. Integers are exact.
TOLERANCES = {"float16": 4e-3, "bfloat16": 3e-2, "float64": 1e-11, "complex128": 1e-11, "complex64": 1e-5}


@dataclass(frozen=True, eq=False)
class Call:
    """A call of one primitive; `arguments` makes its host arrays, the same each time.

    `algorithm` is that of a convolution; None is the one chosen by itself.
    """

    name: str
    primitive: str
    dtype: str
    arguments: Callable[[], Arguments]
    algorithm: str | None = "direct"

    def within(self) -> AbstractContextManager[None]:
        """The block in which its algorithm is used."""
        return nullcontext() if self.algorithm is None else gpucnn.algorithm(self.algorithm)


def calls(scale: Scale) -> Iterator[Call]:
    """Every primitive: the first layer of each kind in all dtypes, the others in float32."""
    yield from _convolutions(scale)
    yield from _local(scale)
    yield from _poolings(scale)
    yield from _planes(scale)
    yield from _resamplings(scale)
    yield from _norms(scale)
    yield from _elementwise(scale)


def dtype_of(name: str) -> np.dtype[Any]:
    """The dtype of this name, bfloat16 included."""
    if name == "bfloat16":
        from ml_dtypes import bfloat16

        return np.dtype(bfloat16)
    return np.dtype(name)


def agree(results: Arguments, expected: Arguments) -> str:
    """The differences of the results from the expected ones beyond rounding; empty where there are none."""
    for number, (result, other) in enumerate(zip(results, expected, strict=True)):
        said = _difference(result, other)
        if said:
            return f"result {number}: {said}" if len(results) > 1 else said
    return ""


def _difference(result: Any, expected: Any) -> str:
    if (result.shape, result.dtype) != (expected.shape, expected.dtype):
        return f"{result.dtype} {result.shape}, expected {expected.dtype} {expected.shape}"
    if result.dtype.kind in "iu":
        wrong = result != expected
        return f"{np.count_nonzero(wrong)} of {wrong.size} integers are wrong" if wrong.any() else ""
    wide = np.complex128 if result.dtype.kind == "c" else np.float64
    tolerance = TOLERANCES.get(result.dtype.name, 1e-5)
    error = np.abs(result.astype(wide) - expected.astype(wide))
    scale = max(1e-30, float(np.abs(expected.astype(wide)).max(initial=0)))
    worst = float(error.max(initial=0)) / scale
    return "" if worst <= tolerance else f"off by {worst:.1e} of the largest, expected at most {tolerance:.0e}"


# --- Host arrays --------------------------------------------------------------------------------------------------


def numbers(shape: tuple[int, ...], dtype: str, order: str = "first", seed: object = 0) -> Any:
    """Random numbers of about unit size, channels `order` in memory; small integers for integers."""
    rng = np.random.default_rng(zlib.crc32(repr((shape, seed)).encode()))
    kind = dtype_of(dtype)
    if kind.kind in "iu":
        values = rng.integers(0 if kind.kind == "u" else -4, 5, shape).astype(kind)
    elif kind.kind == "c":
        values = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(kind)
    else:
        values = rng.standard_normal(shape, np.float64 if kind == np.float64 else np.float32).astype(kind)
    return values if order == "first" else np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)


# --- Convolution and unfolding --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Conv:
    """A layer: batch, channels, spatial sizes and windows."""

    name: str
    n: int
    channels: Channels
    size: tuple[int, ...]
    kernel: Any
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1

    @property
    def geometry(self) -> ConvGeometry:
        settings = (self.channels, self.kernel, self.stride, self.padding, self.dilation)
        return conv_geometry(f"conv{len(self.size)}d", self.size, *settings)


_ALL_DIFFERENT = ((1, 0), (2, 1), (0, 2))
_LAYERS: dict[Scale, tuple[_Conv, ...]] = {
    "layers": (
        _Conv("3x3", 4, Channels(64, 64), (56, 56), 3, 1, 1),
        _Conv("7x7 stride 2", 4, Channels(3, 64), (224, 224), 7, 2, 3),
        _Conv("1x1", 4, Channels(256, 64), (56, 56), 1),
        _Conv("1x1 stride 2", 4, Channels(64, 128), (56, 56), 1, 2),
        _Conv("depthwise 3x3", 4, Channels(96, 96, 96), (56, 56), 3, 1, 1),
        _Conv("grouped, dilated", 4, Channels(64, 128, 4), (56, 56), 3, 1, 2, 2),
        _Conv("3-d", 2, Channels(16, 32), (16, 28, 28), 3, (1, 2, 2), 1),
        _Conv("1-d", 16, Channels(64, 64), (4000,), 9, 2, 4),
    ),
    "odd": (
        _Conv("3-d, all different", 2, Channels(4, 6, 2), (5, 7, 6), (2, 3, 2), (2, 3, 1), _ALL_DIFFERENT, (1, 2, 3)),
        _Conv("residues without taps", 2, Channels(3, 5), (9, 8), (3, 2), (4, 2), ((3, 2), (1, 4)), (2, 4)),
        _Conv("many positions", 3, Channels(2, 3), (21, 24), 3, 1, 1),
        _Conv("depthwise", 3, Channels(5, 10, 5), (9, 7), 3, 2, 1),
    ),
}  # fmt: skip
_OTHER_DTYPES = ("float16", "bfloat16", "float64", "complex64", "int8")
_HOST_PRODUCTS = 1 << 28  # multiply-adds that NumPy does in a second without BLAS


def _convolutions(scale: Scale) -> Iterator[Call]:
    first, *others = _LAYERS[scale]
    yield from _conv_calls(first, "float32")
    yield from _conv_calls(first, "float32", order="last")
    for dtype in _OTHER_DTYPES:
        yield from _conv_calls(_lighter(first, dtype), dtype)
    for layer in others:
        yield from _conv_calls(layer, "float32")
    for layer, dtype in ((first, "float32"), (first, "float64"), (others[1], "float32")):
        yield from _conv_calls(layer, dtype, algorithm="im2col")
    yield from _conv_calls(first, "float32", order="last", algorithm="im2col")
    for layer in others:
        if layer.channels.groups == layer.channels.inputs > 1:
            for order in ("first", "last"):
                yield from _conv_calls(layer, "float32", order, None)
    for layer in (first, others[0]):
        yield from _unfold_calls(layer, "float32")
    yield from _unfold_calls(first, "int16")


def _lighter(layer: _Conv, dtype: str) -> _Conv:
    """The layer with fewer images, for a dtype that NumPy multiplies slowly."""
    geometry = layer.geometry
    products = int(np.prod(geometry.output_size)) * geometry.taps * layer.channels.inputs * layer.channels.outputs
    n = layer.n if dtype != "int8" else max(1, min(layer.n, _HOST_PRODUCTS // products))
    return _Conv(layer.name, n, layer.channels, layer.size, layer.kernel, layer.stride, layer.padding, layer.dilation)


def _conv_calls(layer: _Conv, dtype: str, order: str = "first", algorithm: str | None = "direct") -> Iterator[Call]:
    geometry, (c, oc, groups) = layer.geometry, layer.channels

    def x() -> Any:
        return numbers((layer.n, c, *geometry.input_size), dtype, order)

    def y() -> Any:
        return numbers((layer.n, oc, *geometry.output_size), dtype, order, "y")

    def w() -> Any:
        return numbers((oc, c // groups, *geometry.kernel_size), dtype, seed="w")

    name = f"{layer.name}, {dtype}, channels {order}, {algorithm or 'as chosen'}"
    made: dict[str, tuple[str, Callable[[], Arguments]]] = {
        "convolution": ("convolve", lambda: (x(), w(), numbers((oc,), dtype), geometry)),
        "backward input": ("convolve_backward_input", lambda: (y(), w(), numbers((c,), dtype), geometry)),
        "backward weight": ("convolve_backward_weight", lambda: (x(), y(), geometry)),
    }
    for title, (primitive, arguments) in made.items():
        yield Call(f"{title} {name}", primitive, dtype, arguments, algorithm)


def _unfold_calls(layer: _Conv, dtype: str) -> Iterator[Call]:
    geometry = ConvGeometry(len(layer.size), Channels(layer.channels.inputs, 1), layer.geometry.axes)
    n, c = layer.n, layer.channels.inputs
    columns = (n, c * geometry.taps, int(np.prod(geometry.output_size)))
    name = f"{layer.name}, {dtype}"
    yield Call(f"im2col {name}", "im2col", dtype, lambda: (numbers((n, c, *geometry.input_size), dtype), geometry))
    yield Call(f"col2im {name}", "col2im", dtype, lambda: (numbers(columns, dtype), geometry))


def _local(scale: Scale) -> Iterator[Call]:
    n, channels, size = (16, Channels(8, 16), (32, 32)) if scale == "layers" else (2, Channels(2, 3), (7, 6))
    geometry = conv_geometry("locally_connected2d", size, channels, 3, 2, 0, 1)
    c, oc, _ = channels
    local = (oc, *geometry.output_size, c, *geometry.kernel_size)

    def made(dtype: str) -> dict[str, Callable[[], Arguments]]:
        x, y = (n, c, *geometry.input_size), (n, oc, *geometry.output_size)
        return {
            "locally_connect": lambda: (
                numbers(x, dtype), numbers(local, dtype), numbers((oc, *geometry.output_size), dtype), geometry
            ),
            "locally_connect_backward_input": lambda: (numbers(y, dtype), numbers(local, dtype), geometry),
            "locally_connect_backward_weight": lambda: (numbers(x, dtype), numbers(y, dtype), geometry),
        }  # fmt: skip

    for dtype in ("float32", "float16"):
        for primitive, arguments in made(dtype).items():
            yield Call(f"{primitive} 3x3 stride 2, {dtype}", primitive, dtype, arguments)


# --- Pooling and planes -------------------------------------------------------------------------------------------


def _pool_layers(scale: Scale) -> list[tuple[str, int, int, PoolGeometry]]:
    """Name, batch, channels and geometry."""
    if scale == "odd":
        settings = ((2, 3, 2), (2, 3, 1), ((1, 0), (2, 1), (0, 1)), (1, 2, 1), False, "padded")
        return [
            ("3-d, all different", 2, 3, pool_geometry("max_pool3d", (5, 7, 6), *settings)),
            ("ceil mode", 2, 3, pool_geometry("max_pool2d", (8, 7), 3, 2, 1, 1, True, "valid")),
            ("adaptive", 2, 3, adaptive_geometry("adaptive_max_pool2d", (6, 5), (4, 2), "valid")),
        ]
    return [
        ("3x3 stride 2", 4, 64, pool_geometry("max_pool2d", (112, 112), 3, 2, 1, 1, False, "padded")),
        ("2x2", 4, 64, pool_geometry("max_pool2d", (112, 112), 2, 2, 0, 1, False, "padded")),
        ("adaptive 7x7", 16, 256, adaptive_geometry("adaptive_max_pool2d", (16, 16), 7, "valid")),
        ("global", 32, 2048, adaptive_geometry("adaptive_max_pool2d", (7, 7), 1, "valid")),
    ]


def _poolings(scale: Scale) -> Iterator[Call]:
    first, *others = _pool_layers(scale)
    for order in ("first", "last"):
        yield from _pool_calls(*first, "float32", order)
    for dtype in (*FLOATS[1:], "int8"):
        yield from _pool_calls(*first, dtype, "first")
    for layer in others:
        yield from _pool_calls(*layer, "float32", "first")


def _pool_calls(name: str, n: int, c: int, geometry: PoolGeometry, dtype: str, order: str) -> Iterator[Call]:
    named = f"{name}, {dtype}, channels {order}"

    def x() -> Any:
        values = numbers((n, c, *geometry.input_size), dtype, order)
        return np.round(values).astype(values.dtype) if values.dtype.kind != "i" else values  # so that maxima tie

    def y() -> Any:
        return numbers((n, c, *geometry.output_size), dtype, order, "y")

    def indices() -> Any:
        return primitives.run(NumpyBackend(), "max_pool_with_indices", x(), geometry)[1]

    made: dict[str, Callable[[], Arguments]] = {
        "max_pool": lambda: (x(), geometry),
        "max_pool_with_indices": lambda: (x(), geometry),
        "max_pool_backward": lambda: (y(), indices(), geometry),
    }
    if dtype_of(dtype).kind != "i":
        made |= {"average_pool": lambda: (x(), geometry), "average_pool_backward": lambda: (y(), geometry)}
    for primitive, arguments in made.items():
        yield Call(f"{primitive} {named}", primitive, dtype, arguments)


def _planes(scale: Scale) -> Iterator[Call]:
    shape, size = ((4, 64, 1, 56, 56), (1, 112, 112)) if scale == "layers" else ((2, 3, 2, 3, 4), (3, 4, 5))
    rng = np.random.default_rng(3)
    # twice the same place now and then: the last one stays
    indices = rng.integers(-1, int(np.prod(size)), shape)
    for dtype in ("float32", "float16", "int8"):

        def unpool(dtype: str = dtype) -> Arguments:
            return numbers(shape, dtype), indices, size

        def gather(dtype: str = dtype) -> Arguments:
            return numbers((*shape[:2], *size), dtype), indices

        yield Call(f"unpool {dtype}", "unpool", dtype, unpool)
        yield Call(f"gather {dtype}", "gather", dtype, gather)


# --- Resampling ---------------------------------------------------------------------------------------------------


def _resamplings(scale: Scale) -> Iterator[Call]:
    if scale == "odd":
        n, c, drawn = 2, 3, (("linear", (3, 4, 5), (5, 7, 3)), ("nearest", (2, 4, 5), (5, 2, 5)))
    else:
        n, c, drawn = 4, 64, (("linear", (56, 56), (112, 112)), ("nearest", (56, 56), (112, 112)))
    for mode, size, out in drawn:
        geometry = interpolation_geometry(size, out, None, mode, False)
        for dtype in FLOATS:
            yield from _resample_calls(f"{mode}, {dtype}", n, c, geometry, dtype)
        yield from _resample_calls(f"{mode}, float32, channels last", n, c, geometry, "float32", "last")
    if scale == "odd":  # more inputs of an output than shared memory holds
        geometry = interpolation_geometry((3,), (9000,), None, "linear", False)
        yield from _resample_calls("linear, float32, 9000 long", 1, 1, geometry, "float32")


def _resample_calls(
    name: str, n: int, c: int, geometry: InterpolationGeometry, dtype: str, order: str = "first"
) -> Iterator[Call]:
    x, y = (n, c, *geometry.input_size), (n, c, *geometry.output_size)
    made = {"interpolate": x, "interpolate_backward": y}
    for primitive, shape in made.items():
        yield Call(
            f"{primitive} {name}",
            primitive,
            dtype,
            lambda shape=shape: (numbers(shape, dtype, order), geometry),  # type: ignore[misc]
        )


# --- Normalisation ------------------------------------------------------------------------------------------------


def _norms(scale: Scale) -> Iterator[Call]:
    shapes: dict[str, tuple[tuple[int, int, int, int], tuple[int, ...]]] = {
        "batch": ((4, 64, 1, 56 * 56), (0, 2, 3)),
        "instance": ((4, 64, 1, 56 * 56), (2, 3)),
        "group": ((4, 32, 4, 56 * 56), (2, 3)),
        "layer": ((4096, 1, 768, 1), (2, 3)),
    }
    if scale == "odd":
        shapes = {
            "batch": ((5, 2, 1, 2100), (0, 2, 3)),
            "group": ((2, 3, 4, 17), (2, 3)),
            "layer": ((7, 1, 33, 1), (2, 3)),
        }
    for name, (shape, axes) in shapes.items():
        geometry = NormGeometry(shape, axes)
        for dtype in FLOATS:
            yield from _norm_calls(f"{name}, {dtype}", geometry, dtype, "first")
    batch = NormGeometry(*shapes["batch"])
    yield from _norm_calls("batch, float32, channels last", batch, "float32", "last")


def _norm_calls(name: str, geometry: NormGeometry, dtype: str, order: str) -> Iterator[Call]:
    shape = geometry.shape

    def given() -> tuple[Any, ...]:
        """X, grad_y, mean, variance, rstd and weight."""
        x, grad = numbers(shape, dtype, order), numbers(shape, dtype, order, "y")
        statistics = primitives.run(NumpyBackend(), "norm_statistics", x, geometry, 1e-5)
        return x, grad, *statistics, numbers((1, shape[1], shape[2], 1), accumulator(x.dtype).name)

    def arguments(primitive: str) -> Arguments:
        x, grad, mean, var, rstd, weight = given()
        apart = np.copysign(grad.dtype.type(40), x)  # so that rounding gives no number another sign
        return {
            "norm_statistics": (x, geometry, 1e-5),
            "norm_apply": (x, mean, var, weight, -weight, 1e-5, grad, "relu", 0.0),
            "norm_forward": (x, weight, -weight, geometry, 1e-5, None, "none", 0.0),
            "norm_activation_backward": (grad, x, mean, rstd, weight, -weight, apart, "leaky_relu", 0.01),
            "norm_backward_affine": (grad, x, mean, rstd, geometry),
            "norm_backward_input": (grad, x, mean, rstd, weight, geometry),
            "norm_backward": (grad, x, mean, rstd, weight, geometry),
        }[primitive]

    for primitive in (
        "norm_statistics",
        "norm_apply",
        "norm_forward",
        "norm_activation_backward",
        "norm_backward_affine",
        "norm_backward_input",
        "norm_backward",
    ):
        yield Call(f"{primitive} {name}", primitive, dtype, lambda primitive=primitive: arguments(primitive))  # type: ignore[misc]


# --- Element by element -------------------------------------------------------------------------------------------


def _elementwise(scale: Scale) -> Iterator[Call]:
    shape = (3, 5, 7) if scale == "odd" else (8, 64, 56, 56)
    rows = (3, 5, 7) if scale == "odd" else (8, 64, 56 * 56)
    for dtype in FLOATS:
        yield Call(f"masked {dtype}", "masked", dtype, lambda dtype=dtype: _masked(shape, dtype))  # type: ignore[misc]
        for last in (False, True):
            yield Call(
                f"packed {dtype}, {last}", "copy", dtype, lambda dtype=dtype, last=last: _packed(rows, dtype, last)
            )  # type: ignore[misc]
        yield Call(f"channel sums {dtype}", "channel_sums", dtype, lambda dtype=dtype: (numbers(rows, dtype),))  # type: ignore[misc]
        for activation in ("none", "relu", "leaky_relu"):
            yield from _biases(rows, dtype, activation)


def _biases(shape: tuple[int, ...], dtype: str, activation: str) -> Iterator[Call]:
    def forward() -> Arguments:
        bias = numbers(shape[1:2], dtype, seed="b")
        return numbers(shape, dtype), bias, numbers(shape, dtype, seed="r"), activation, 0.25

    def backward() -> Arguments:
        return numbers(shape, dtype), numbers(shape, dtype, seed="y"), activation, 0.25

    yield Call(f"{activation} with bias {dtype}", "bias_activation", dtype, forward)
    yield Call(f"{activation} with bias backward {dtype}", "bias_activation_backward", dtype, backward)


def _packed(shape: tuple[int, ...], dtype: str, channels_last: bool) -> Arguments:
    return numbers(shape, dtype), np.dtype(np.float32), channels_last


def _masked(shape: tuple[int, ...], dtype: str) -> Arguments:
    values = numbers(shape, dtype)
    return values, values > 0
