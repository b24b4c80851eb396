"""Calls of every primitive: the new arrays for its results, and arguments that tests and GPU checks call it with."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from itertools import islice
from math import prod
from typing import Any, Literal

import numpy as np

import gpucnn
from gpucnn.backends.base import Backend, Epilogue
from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.layout import empty_rows_like
from gpucnn.backends.numpy import NumpyBackend
from gpucnn.geometry import ConvGeometry, GridGeometry, InterpolationGeometry, NormGeometry, PoolGeometry
from gpucnn.geometry.geometries import Channels, adaptive_geometry, conv_geometry, interpolation_geometry, pool_geometry

Array = Any
Arguments = tuple[Any, ...]
Results = tuple[Array, ...]
Named = dict[str, Array | None]  # arguments of a primitive by its parameters

# --- The arrays that results go to --------------------------------------------------------------------------------


def run(backend: Backend, primitive: str, *arguments: Any) -> Results:
    """Call a primitive, or one of `VARIANTS`, with new arrays for its results, which are returned.

    `arguments` are the others in their order; those of an epilogue are its three fields. What comes after them is for
    `RESULTS` alone.
    """
    results, given = RESULTS[primitive](backend, *arguments), iter(arguments)
    name = VARIANTS.get(primitive, primitive)
    taken = [results[each] if each in results else _next(given, each) for each in _parameters(name)]
    getattr(backend, name)(*taken)
    return tuple(array for array in results.values() if array is not None)


@cache
def _parameters(primitive: str) -> tuple[str, ...]:
    return tuple(signature(getattr(Backend, primitive)).parameters)[1:]


def _next(given: Iterator[Any], parameter: str) -> Any:
    return Epilogue(*islice(given, 3)) if parameter == "epilogue" else next(given)


def _like(name: str) -> Callable[..., Named]:
    """A result in the shape and dtype of the first array."""
    return lambda backend, x, *others: {name: backend.empty_like(tuple(x.shape), x.dtype, x)}


def _image(backend: Backend, like: Array, size: tuple[int, ...], channels: int | None = None) -> Array:
    return backend.empty_like((like.shape[0], channels or like.shape[1], *size), like.dtype, like)


def _output(backend: Backend, x: Array, *others: Any) -> Named:
    """Y of windows over x, whose geometry comes last."""
    geometry = others[-1]
    channels = geometry.channels.outputs if isinstance(geometry, ConvGeometry) else None
    return {"y": _image(backend, x, geometry.output_size, channels)}


def _input_gradient(backend: Backend, grad_y: Array, *others: Any) -> Named:
    """grad_x of windows, whose geometry comes last."""
    geometry = others[-1]
    channels = geometry.channels.inputs if isinstance(geometry, ConvGeometry) else None
    return {"grad_x": _image(backend, grad_y, geometry.input_size, channels)}


def _weight_gradient(backend: Backend, x: Array, grad_y: Array, geometry: ConvGeometry) -> Named:
    inputs, outputs, groups = geometry.channels
    return {"grad_w": backend.empty((outputs, inputs // groups, *geometry.kernel_size), x.dtype, on=x)}


def _local_weight_gradient(backend: Backend, x: Array, grad_y: Array, geometry: ConvGeometry) -> Named:
    inputs, outputs, _ = geometry.channels
    return {"grad_w": backend.empty((outputs, *geometry.output_size, inputs, *geometry.kernel_size), x.dtype, on=x)}


def _columns(backend: Backend, x: Array, geometry: ConvGeometry) -> Named:
    shape = (x.shape[0], x.shape[1] * geometry.taps, prod(geometry.output_size))
    return {"columns": backend.empty(shape, x.dtype, on=x)}


def _folded(backend: Backend, columns: Array, geometry: ConvGeometry) -> Named:
    shape = (len(columns), geometry.channels.inputs, *geometry.input_size)
    return {"x": backend.empty(shape, columns.dtype, on=columns)}


def _output_and_indices(backend: Backend, x: Array, geometry: PoolGeometry) -> Named:
    shape = (*x.shape[:2], *geometry.output_size)
    return _output(backend, x, geometry) | {"indices": backend.empty_like(shape, np.int64, x)}


def _statistics(backend: Backend, x: Array, geometry: NormGeometry) -> Named:
    kept = tuple(1 if axis in geometry.axes else size for axis, size in enumerate(x.shape))
    return {name: backend.empty(kept, accumulator(x.dtype), on=x) for name in ("mean", "var", "rstd")}


def _affine(backend: Backend, x: Array) -> Named:
    shape = (1, *x.shape[1:3], 1)
    return {name: backend.empty(shape, accumulator(x.dtype), on=x) for name in ("grad_weight", "grad_bias")}


def _copy(backend: Backend, x: Array, dtype: Any, channels_last: bool) -> Named:
    n, c, p = x.shape
    if channels_last:
        return {"y": backend.empty((n, p, c), dtype, on=x).swapaxes(1, 2)}
    return {"y": backend.empty((n, c, p), dtype, on=x)}


def _per_channel(backend: Backend, x: Array, name: str) -> Named:
    return {name: backend.empty(tuple(x.shape[1:2]), x.dtype, on=x)}


RESULTS: dict[str, Callable[..., Named]] = {
    "convolve": _output,
    "convolve_activation": lambda backend, x, w, bias, geometry, *others: _output(backend, x, geometry),
    "convolve_backward_input": _input_gradient,
    "convolve_backward_weight": _weight_gradient,
    "linear": lambda backend, x, w, bias: {"y": backend.empty((len(x), len(w)), x.dtype, on=x)},
    "linear_backward_input": lambda backend, grad_y, w: {
        "grad_x": backend.empty((len(grad_y), w.shape[1]), w.dtype, on=w)
    },
    "linear_backward_weight": lambda backend, x, grad_y: {
        "grad_w": backend.empty((grad_y.shape[1], x.shape[1]), x.dtype, on=x)
    },
    "locally_connect": _output,
    "locally_connect_backward_input": _input_gradient,
    "locally_connect_backward_weight": _local_weight_gradient,
    "im2col": _columns,
    "col2im": _folded,
    "max_pool": lambda backend, x, geometry: _output(backend, x, geometry) | {"indices": None},
    "max_pool_with_indices": _output_and_indices,
    "max_pool_backward": _input_gradient,
    "unpool": lambda backend, values, indices, size: {"planes": _image(backend, values, size)},
    "gather": lambda backend, planes, indices: {"values": _image(backend, planes, indices.shape[2:])},
    "average_pool": _output,
    "average_pool_backward": _input_gradient,
    "interpolate": _output,
    "interpolate_backward": _input_gradient,
    "grid_sample": _output,
    "grid_sample_backward": lambda backend, grad_y, x, grid, geometry: {
        "grad_x": _image(backend, grad_y, geometry.input_size),
        "grad_grid": backend.empty(tuple(grid.shape), grid.dtype, on=grid),
    },
    "norm_statistics": lambda backend, x, geometry, eps: _statistics(backend, x, geometry),
    "norm_apply": lambda backend, x, *others: {"y": empty_rows_like(backend, x)},
    "norm_forward": lambda backend, x, weight, bias, geometry, *others: (
        {"y": empty_rows_like(backend, x)} | _statistics(backend, x, geometry)
    ),
    "norm_activation_backward": lambda backend, grad_y, x, *others: {"grad": empty_rows_like(backend, x)},
    "norm_backward": lambda backend, grad_y, x, *others: (
        {"grad_x": empty_rows_like(backend, x)} | _affine(backend, x)
    ),
    "norm_backward_input": lambda backend, grad_y, x, *others: {
        "grad_x": empty_rows_like(backend, x), "grad_weight": None, "grad_bias": None
    },
    "norm_backward_affine": lambda backend, grad_y, x, *others: (
        {"weight": None, "grad_x": None} | _affine(backend, x)
    ),
    "moving_average": lambda backend, found, *others: {"average": backend.xp.ones(found.shape[1], found.dtype)},
    "masked": lambda backend, values, mask: {"y": backend.xp.empty_like(values)},
    "copy": _copy,
    "bias_activation": _like("y"),
    "bias_activation_backward": lambda backend, grad_y, *others: (
        _like("grad_x")(backend, grad_y) | _per_channel(backend, grad_y, "grad_bias")
    ),
    "channel_sums": lambda backend, x: _per_channel(backend, x, "sums"),
}  # fmt: skip
"""By the name of a primitive or a variant: the new arrays for its results, by its parameters, from its arguments.

None stands for a result, or another array, that is left out.
"""

VARIANTS = {
    "max_pool_with_indices": "max_pool",
    "norm_backward_affine": "norm_backward",
    "norm_backward_input": "norm_backward",
}
"""Calls that are a primitive without some of its results, or with all of them."""

# --- Calls ----------------------------------------------------------------------------------------------------------

Scale = Literal["layers", "odd"]

FLOATS = ("float32", "float16", "bfloat16", "float64")
# Of one element, relative to the largest one: a sum's error scales with its terms. Integers are exact.
TOLERANCES = {"float16": 4e-3, "bfloat16": 3e-2, "float64": 1e-11, "complex128": 1e-11, "complex64": 1e-5}


def _as_it_is(array: Array) -> Array:
    return array


@dataclass(frozen=True, eq=False)
class Call:
    """A call of one primitive; `arguments` makes its host arrays, the same each time.

    `algorithm` is that of a convolution, None the one chosen by itself, and `precision` that of float32.
    """

    name: str
    primitive: str
    arguments: Callable[[], Arguments]
    algorithm: str | None = "direct"
    precision: str = "fp32"

    def run(self, backend: Backend, put: Callable[[Array], Array] = _as_it_is) -> Results:
        """The results on `backend`, whose arrays `put` makes of the host's."""
        return self.of(backend, placed(self.arguments(), put))

    def of(self, backend: Backend, arguments: Arguments) -> Results:
        """The results of arrays that are on `backend` already."""
        chosen = nullcontext() if self.algorithm is None else gpucnn.algorithm(self.algorithm)
        with chosen, gpucnn.precision(self.precision):
            return run(backend, self.primitive, *arguments)


def placed(arguments: Arguments, put: Callable[[Array], Array]) -> Arguments:
    """The arguments with arrays that `put` makes of the host's."""
    return tuple(put(value) if isinstance(value, np.ndarray) else value for value in arguments)


def _calls(
    name: str, made: dict[str, Callable[[], Arguments]], algorithm: str | None = "direct", precision: str = "fp32"
) -> Iterator[Call]:
    """A call of each of some primitives; its name begins with the primitive's."""
    for primitive, arguments in made.items():
        yield Call(f"{primitive} {name}", primitive, arguments, algorithm, precision)


def calls(scale: Scale) -> Iterator[Call]:
    """Every primitive: the first layer of each kind in all dtypes, the others in float32."""
    yield from _convolutions(scale)
    yield from _linear(scale)
    yield from _local(scale)
    yield from _poolings(scale)
    yield from _planes(scale)
    yield from _resamplings(scale)
    yield from _samplings(scale)
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
    tolerance = TOLERANCES.get(result.dtype.name, 1e-5)
    wide = np.complex128 if result.dtype.kind == "c" else np.float64
    result, expected = result.astype(wide), expected.astype(wide)
    finite = np.isfinite(expected)
    if not np.array_equal(result[~finite], expected[~finite], equal_nan=True):
        return "other infinities or NaN"
    error = np.abs(result[finite] - expected[finite])
    worst = float(error.max(initial=0) / np.abs(expected[finite]).max(initial=1e-30))
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


def _linear(scale: Scale) -> Iterator[Call]:
    """Fully connected layers, in all dtypes."""
    n, inputs, outputs = (64, 1024, 256) if scale == "layers" else (3, 37, 17)
    for dtype in ("float32", *_OTHER_DTYPES):
        x, w, grad = (numbers(shape, dtype) for shape in ((n, inputs), (outputs, inputs), (n, outputs)))
        made: dict[str, Callable[[], Arguments]] = {
            "linear": partial(_tuple, x, w, numbers((outputs,), dtype)),
            "linear_backward_input": partial(_tuple, grad, w),
            "linear_backward_weight": partial(_tuple, x, grad),
        }
        yield from _calls(dtype, made, None)


def _tuple(*arguments: Any) -> Arguments:
    return arguments


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
        is_depthwise = layer.channels.groups == layer.channels.inputs > 1
        for order in ("first", "last") if is_depthwise else ():
            yield from _conv_calls(layer, "float32", order, None)
    for layer in (first, *others):  # on tensor cores, where there are such
        for dtype, order in (("float16", "first"), ("bfloat16", "last")):
            yield from _conv_calls(layer, dtype, order, None)
    for layer in (first, *others):
        for precision in ("fp32", "tf32", "fp32x3") if layer.channels.groups == 1 else ():
            yield from _conv_calls(layer, "float32", "first", None, precision)
    for layer in (first, *others):
        sizes = {(axis.kernel, axis.stride, axis.dilation) for axis in layer.geometry.axes[1:]}
        if layer.channels.groups == 1 and sizes == {(3, 1, 1)} and layer.geometry.rank == 2:
            calls = _conv_calls(layer, "float32", "first", "winograd")
            yield from (call for call in calls if call.primitive != "convolve_backward_weight")
    for layer in (first, others[0]):
        yield from _unfold_calls(layer, "float32")
    yield from _unfold_calls(first, "int16")


def _lighter(layer: _Conv, dtype: str) -> _Conv:
    """The layer with fewer images, for a dtype that NumPy multiplies slowly."""
    geometry = layer.geometry
    products = int(np.prod(geometry.output_size)) * geometry.taps * layer.channels.inputs * layer.channels.outputs
    n = layer.n if dtype != "int8" else max(1, min(layer.n, _HOST_PRODUCTS // products))
    return _Conv(layer.name, n, layer.channels, layer.size, layer.kernel, layer.stride, layer.padding, layer.dilation)


def _conv_calls(
    layer: _Conv, dtype: str, order: str = "first", algorithm: str | None = "direct", precision: str = "fp32"
) -> Iterator[Call]:
    geometry, (c, oc, groups) = layer.geometry, layer.channels

    def exact(x: Any) -> Any:
        """Numbers that rounding to TF32 leaves as they are, where that is done."""
        return (x.view(np.uint32) & 0xFFFFE000).view(np.float32) if precision == "tf32" else x

    def x() -> Any:
        return exact(numbers((layer.n, c, *geometry.input_size), dtype, order))

    def y() -> Any:
        return exact(numbers((layer.n, oc, *geometry.output_size), dtype, order, "y"))

    def w() -> Any:
        return exact(numbers((oc, c // groups, *geometry.kernel_size), dtype, seed="w"))

    made: dict[str, Callable[[], Arguments]] = {
        "convolve": lambda: (x(), w(), numbers((oc,), dtype), geometry),
        "convolve_backward_input": lambda: (y(), w(), numbers((c,), dtype), geometry),
        "convolve_backward_weight": lambda: (x(), y(), geometry),
    }
    name = f"{layer.name}, {dtype if precision == 'fp32' else precision}, channels {order}, {algorithm or 'as chosen'}"
    yield from _calls(name, made, algorithm, precision)


def _unfold_calls(layer: _Conv, dtype: str) -> Iterator[Call]:
    geometry = ConvGeometry(len(layer.size), Channels(layer.channels.inputs, 1), layer.geometry.axes)
    n, c = layer.n, layer.channels.inputs
    columns = (n, c * geometry.taps, prod(geometry.output_size))
    made: dict[str, Callable[[], Arguments]] = {
        "im2col": lambda: (numbers((n, c, *geometry.input_size), dtype), geometry),
        "col2im": lambda: (numbers(columns, dtype), geometry),
    }
    yield from _calls(f"{layer.name}, {dtype}", made)


def _local(scale: Scale) -> Iterator[Call]:
    n, channels, size = (16, Channels(8, 16), (32, 32)) if scale == "layers" else (2, Channels(2, 3), (7, 6))
    geometry = conv_geometry("locally_connected2d", size, channels, 3, 2, 0, 1)
    c, oc, _ = channels
    local = (oc, *geometry.output_size, c, *geometry.kernel_size)

    x, y = (n, c, *geometry.input_size), (n, oc, *geometry.output_size)

    def made(dtype: str) -> dict[str, Callable[[], Arguments]]:
        return {
            "locally_connect": lambda: (numbers(x, dtype), numbers(local, dtype), numbers(y[1:], dtype), geometry),
            "locally_connect_backward_input": lambda: (numbers(y, dtype), numbers(local, dtype), geometry),
            "locally_connect_backward_weight": lambda: (numbers(x, dtype), numbers(y, dtype), geometry),
        }

    for dtype in ("float32", "float16"):
        yield from _calls(f"3x3 stride 2, {dtype}", made(dtype))


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
        return run(NumpyBackend(), "max_pool_with_indices", x(), geometry)[1]

    made: dict[str, Callable[[], Arguments]] = {
        "max_pool": lambda: (x(), geometry),
        "max_pool_with_indices": lambda: (x(), geometry),
        "max_pool_backward": lambda: (y(), indices(), geometry),
    }
    if dtype_of(dtype).kind != "i":
        made |= {"average_pool": lambda: (x(), geometry), "average_pool_backward": lambda: (y(), geometry)}
    yield from _calls(named, made)


def _planes(scale: Scale) -> Iterator[Call]:
    shape, size = ((4, 64, 1, 56, 56), (1, 112, 112)) if scale == "layers" else ((2, 3, 2, 3, 4), (3, 4, 5))
    rng = np.random.default_rng(3)
    # twice the same place now and then: the last one stays
    indices = rng.integers(-1, int(np.prod(size)), shape)

    def made(dtype: str) -> dict[str, Callable[[], Arguments]]:
        return {
            "unpool": lambda: (numbers(shape, dtype), indices, size),
            "gather": lambda: (numbers((*shape[:2], *size), dtype), indices),
        }

    for dtype in ("float32", "float16", "int8"):
        yield from _calls(dtype, made(dtype))


# --- Resampling ---------------------------------------------------------------------------------------------------


def _resamplings(scale: Scale) -> Iterator[Call]:
    if scale == "odd":
        n, c, drawn = (
            2,
            3,
            (("linear", (3, 4, 5), (5, 7, 3)), ("nearest", (2, 4, 5), (5, 2, 5)), ("cubic", (1, 5, 6), (1, 9, 4))),
        )
    else:
        n, c, drawn = 4, 64, [(mode, (56, 56), (112, 112)) for mode in ("linear", "nearest", "cubic")]
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
    made: dict[str, Callable[[], Arguments]] = {
        "interpolate": lambda: (numbers((n, c, *geometry.input_size), dtype, order), geometry),
        "interpolate_backward": lambda: (numbers((n, c, *geometry.output_size), dtype, order), geometry),
    }
    yield from _calls(name, made)


def _samplings(scale: Scale) -> Iterator[Call]:
    """Samples at the positions of a grid, within the image and around it."""
    if scale == "odd":
        drawn = (
            (GridGeometry(3, (3, 4, 5), (2, 3, 4), "bilinear", "zeros", False), 2, 11),
            (GridGeometry(2, (1, 5, 6), (1, 7, 5), "bicubic", "reflection", True), 2, 3),
            (GridGeometry(2, (1, 5, 1), (1, 3, 4), "nearest", "border", False), 2, 3),
        )
    else:
        drawn = ((GridGeometry(2, (1, 56, 56), (1, 56, 56), "bilinear", "zeros", False), 4, 64),)
    for geometry, n, c in drawn:
        for dtype in FLOATS:
            yield from _sampling_calls(f"{geometry.mode}, {dtype}", n, c, geometry, dtype)
        yield from _sampling_calls(f"{geometry.mode}, float32, channels last", n, c, geometry, "float32", "last")


def _sampling_calls(
    name: str, n: int, c: int, geometry: GridGeometry, dtype: str, order: str = "first"
) -> Iterator[Call]:
    def x() -> Any:
        return numbers((n, c, *geometry.input_size), dtype, order)

    def grid() -> Any:
        return numbers((n, *geometry.output_size, geometry.rank), dtype)

    made: dict[str, Callable[[], Arguments]] = {
        "grid_sample": lambda: (x(), grid(), geometry),
        "grid_sample_backward": lambda: (
            numbers((n, c, *geometry.output_size), dtype, order, "y"), x(), grid(), geometry
        ),
    }  # fmt: skip
    yield from _calls(name, made)


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
    rms = NormGeometry(*shapes["layer"], centred=False)
    yield from _norm_calls("RMS, float32", rms, "float32", "first")
    batch = NormGeometry(*shapes["batch"])
    yield from _norm_calls("batch, float32, channels last", batch, "float32", "last")


def _norm_calls(name: str, geometry: NormGeometry, dtype: str, order: str) -> Iterator[Call]:
    shape = geometry.shape

    def x() -> Any:
        return numbers(shape, dtype, order)

    def grad() -> Any:
        return numbers(shape, dtype, order, "y")

    def apart() -> Any:  # so that rounding gives no number another sign
        return np.copysign(dtype_of(dtype).type(40), x())

    def weight() -> Any:
        return numbers((1, shape[1], shape[2], 1), accumulator(dtype_of(dtype)).name)

    def statistics(*which: int) -> Arguments:
        """The mean (0), variance (1) or rstd (2) of x."""
        found = run(NumpyBackend(), "norm_statistics", x(), geometry, 1e-5)
        return tuple(found[index] for index in which)

    made: dict[str, Callable[[], Arguments]] = {
        "norm_statistics": lambda: (x(), geometry, 1e-5),
        "norm_apply": lambda: (x(), *statistics(0, 1), weight(), -weight(), 1e-5, grad(), "relu", 0.0),
        "norm_forward": lambda: (x(), weight(), -weight(), geometry, 1e-5, None, "none", 0.0),
        "norm_activation_backward": lambda: (
            grad(), x(), *statistics(0, 2), weight(), -weight(), apart(), "leaky_relu", 0.01
        ),
        "norm_backward_affine": lambda: (grad(), x(), *statistics(0, 2), geometry),
        "norm_backward_input": lambda: (grad(), x(), *statistics(0, 2), weight(), geometry),
        "norm_backward": lambda: (grad(), x(), *statistics(0, 2), weight(), geometry),
        "moving_average": lambda: (*statistics(1), 1.25, 0.1),
    }  # fmt: skip
    yield from _calls(name, made)


# --- Element by element -------------------------------------------------------------------------------------------


def _elementwise(scale: Scale) -> Iterator[Call]:
    shape = (3, 5, 7) if scale == "odd" else (8, 64, 56 * 56)
    for dtype in FLOATS:
        yield from _elementwise_calls(shape, dtype)
        for last in (False, True):
            yield from _copy_calls(shape, dtype, last)
        for activation in ("none", "relu", "leaky_relu"):
            yield from _bias_calls(shape, dtype, activation)


def _elementwise_calls(shape: tuple[int, ...], dtype: str) -> Iterator[Call]:
    def x(seed: object = 0) -> Any:
        return numbers(shape, dtype, seed=seed)

    yield from _calls(dtype, {"masked": lambda: (x(), x() > 0), "channel_sums": lambda: (x(),)})


def _copy_calls(shape: tuple[int, ...], dtype: str, last: bool) -> Iterator[Call]:
    name = f"{dtype}, channels {'last' if last else 'first'}"
    yield from _calls(name, {"copy": lambda: (numbers(shape, dtype), np.dtype(np.float32), last)})


def _bias_calls(shape: tuple[int, ...], dtype: str, activation: str) -> Iterator[Call]:
    def x(seed: object = 0) -> Any:
        return numbers(shape, dtype, seed=seed)

    made: dict[str, Callable[[], Arguments]] = {
        "bias_activation": lambda: (x(), numbers(shape[1:2], dtype, seed="b"), x("r"), activation, 0.25),
        "bias_activation_backward": lambda: (x(), x("y"), None, activation, 0.25),
    }
    yield from _calls(f"{activation}, {dtype}", made)
