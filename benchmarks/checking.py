"""Checks of results against float64 expectations that are independent of every provider.

Convolutions are checked at sampled positions, each a direct dot product in float64; the samples
hold every corner of the last axes. All other results are checked whole.

The tolerance belongs to one element: ``ROUNDING * eps * sum(|a| * |b|)`` over the products that
make it up. It grows with the reduction, allows another order of summation or a Winograd transform,
and is far below one missing or misplaced term. Maxima and copies must be exact. For float16 it is
the same, as sums are kept in float32, plus a few roundings to float16.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cases import Case
from benchmarks.data import Arrays, IndexArray, pool_maximum, random_state, windows
from benchmarks.layers import (
    ActivationLayer,
    ConvLayer,
    LayoutLayer,
    NormLayer,
    PoolLayer,
    ResampleLayer,
    Shape,
    UnfoldLayer,
)

Float64 = npt.NDArray[np.float64]
Sums = tuple[Float64, Float64]  # sum(a * b) and sum(|a| * |b|)

EPS = float(np.finfo(np.float32).eps)
HALF_EPS = float(np.finfo(np.float16).eps)
ROUNDING = 16
HALF_ROUNDING = 4
HALF_LEAST = 2.0**-24  # the spacing of float16's numbers near zero
NORM_EPS = 1e-5
MAX_PRODUCTS = 4_000_000  # of the samples of one case, at most
MAX_SAMPLES = 1024


@dataclass(frozen=True)
class Expectation:
    """The expected values of one array of a result, at `where` or, if that is None, everywhere.

    `magnitude` is that of the summands, which may be rounded to float16 on the way; None where the tolerance gives
    it. `channels_last` is the memory order that a result must have, where it is the point of the case.
    """

    name: str
    shape: Shape
    values: npt.NDArray[Any]
    tolerance: npt.NDArray[Any] | float
    where: tuple[IndexArray, ...] | None = None
    magnitude: npt.NDArray[Any] | None = None
    dtype: str = "float32"
    channels_last: bool | None = None

    def fault_of_values(self, got: npt.NDArray[Any]) -> str | None:
        """The fault of the values at the checked positions, or None."""
        excess = np.abs(got - self.values) - self.tolerance
        wrong = int(np.count_nonzero(~(excess <= 0)))
        if not wrong:
            return None
        worst = np.unravel_index(int(np.argmax(excess)), excess.shape)
        place = worst if self.where is None else [axis[worst] for axis in self.where]
        return (
            f"{self.name}{[int(i) for i in place]} is {got[worst]:.7g}, "
            f"expected {self.values[worst]:.7g} "
            f"± {np.broadcast_to(self.tolerance, excess.shape)[worst]:.1g} "
            f"({wrong} of {excess.size} checked values are off)"
        )


def expect(case: Case, arrays: Arrays) -> list[Expectation]:
    """The expectations of a correct result's arrays, in the order in which providers return them."""
    return [_in_dtype(case, expectation) for expectation in _expect_sums(case, arrays)]


def _in_dtype(case: Case, expectation: Expectation) -> Expectation:
    """An expectation of float32 sums, rounded to the dtype of the case; exact values stay exact."""
    dtype = case.parameter_dtype if expectation.name in ("grad_weight", "grad_bias") else case.dtypes[1]
    if isinstance(case.layer, ConvLayer):
        dtype = case.dtype
    if dtype == "float32" or np.all(expectation.tolerance == 0):
        return replace(expectation, dtype=dtype)
    magnitude: Any = expectation.magnitude
    if magnitude is None:
        magnitude = expectation.tolerance / (ROUNDING * EPS * math.sqrt(_terms(case)))
    size = np.abs(expectation.values) + magnitude
    tolerance = expectation.tolerance + HALF_ROUNDING * HALF_EPS * size + HALF_LEAST
    return replace(expectation, dtype=dtype, tolerance=tolerance)


def _terms(case: Case) -> int:
    """The number of products that a result of a convolution sums; 1 for other layers, whose sums are short."""
    layer = case.layer
    if not isinstance(layer, ConvLayer):
        return 1
    if case.operation == "backward_weight":
        return case.batch * math.prod(layer.size if layer.transposed else layer.out_size)
    return max(1, layer.flops("forward", 1) // (2 * math.prod(_result_shape(case)[1:])))


def _result_shape(case: Case) -> Shape:
    backward = case.operation == "backward_input"
    return case.layer.input_shape(1) if backward else case.layer.output_shape(1)


def _expect_sums(case: Case, arrays: Arrays) -> list[Expectation]:
    layer = case.layer
    if isinstance(layer, ConvLayer):
        return [_expect_convolution(case, layer, arrays)]
    if isinstance(layer, NormLayer):
        return _expect_norm(case, layer, arrays)
    if isinstance(layer, PoolLayer) and layer.kind == "max":
        return [_expect_max_pool(case, layer, arrays)]
    if isinstance(layer, UnfoldLayer):
        return [_expect_unfold(case, layer, arrays)]
    if isinstance(layer, ResampleLayer) and layer.kind == "unpool":
        scattered = _scatter(arrays["input"], arrays["indices"], layer.output)
        return [Expectation("output", scattered.shape, scattered, 0.0)]
    if isinstance(layer, PoolLayer | ResampleLayer):
        return [_expect_separable(case, layer, arrays)]
    if isinstance(layer, LayoutLayer):
        copied = arrays["input"].astype(case.dtypes[1])
        return [Expectation("output", copied.shape, copied, 0.0, channels_last=case.operation == "pack")]
    if isinstance(layer, ActivationLayer):
        return [_expect_activation(arrays)]
    raise TypeError(f"no expectation for {type(layer).__name__}")


def _expect_activation(arrays: Arrays) -> Expectation:
    x = arrays["input"].astype(np.float64)
    bias = arrays["bias"].astype(np.float64).reshape(-1, *(1,) * (x.ndim - 2))
    return Expectation("output", x.shape, np.maximum(x + bias, 0), EPS * (np.abs(x) + np.abs(bias)))


# Convolution, at sampled positions ----------------------------------------------------------------


@dataclass(frozen=True)
class _Geometry:
    """A convolution of `dense` [N, C, *] into `out` [N, OC, *], transposed layers turned round."""

    size: Shape
    out_size: Shape
    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    channels_per_group: int
    out_channels_per_group: int


def _expect_convolution(case: Case, layer: ConvLayer, arrays: Arrays) -> Expectation:
    """A transposed layer's forward is the backward-input of the convolution it is adjoint to."""
    batch, operation = case.batch, case.operation
    big, small = (layer.channels, layer.size), (layer.out_channels, layer.out_size)
    x: Any = arrays.get("input")
    gy: Any = arrays.get("grad_output")
    weight: Any = arrays.get("weight")
    direction = operation
    if layer.transposed:
        big, small, x, gy = small, big, gy, x
        direction = {"forward": "backward_input", "backward_input": "forward"}.get(operation, operation)
    geometry = _Geometry(
        size=big[1],
        out_size=small[1],
        kernel=layer.kernel,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        channels_per_group=big[0] // layer.groups,
        out_channels_per_group=small[0] // layer.groups,
    )
    taps = math.prod(layer.kernel)
    name, shape, reduction = {
        "forward": ("output", (batch, small[0], *small[1]), geometry.channels_per_group * taps),
        "backward_input": ("grad_input", (batch, big[0], *big[1]), geometry.out_channels_per_group * taps),
        "backward_weight": ("grad_weight", layer.weight_shape, batch * math.prod(small[1])),
    }[direction]
    where = _sample(case, shape, reduction)
    if direction == "forward":
        values, scale = _forward_at(x, weight, geometry, where)
    elif direction == "backward_input":
        values, scale = _backward_input_at(gy, weight, geometry, where)
    else:
        values, scale = _backward_weight_at(x, gy, geometry, where)
    if "bias" in arrays:
        bias = arrays["bias"][where[1]].astype(np.float64)
        values, scale = values + bias, scale + np.abs(bias)
    if layer.transposed and operation != "backward_weight":
        name = "output" if operation == "forward" else "grad_input"
    return Expectation(name, shape, values, ROUNDING * EPS * scale, where)


def _sample(case: Case, shape: Shape, reduction: int) -> tuple[IndexArray, ...]:
    """Positions in an array of `shape`: all of a small one, else its corners and random ones."""
    rng = random_state(case)
    corners = np.array(list(itertools.product((0, -1), repeat=len(shape) - 2))) % shape[2:]
    count = min(max(MAX_PRODUCTS // reduction, 48), MAX_SAMPLES)
    if math.prod(shape) <= count:
        return tuple(axis.ravel() for axis in np.indices(shape))
    axes = [rng.integers(extent, size=count + len(corners)) for extent in shape]
    for axis, at in zip(axes[2:], corners.T, strict=True):
        axis[: len(corners)] = at
    return tuple(axes)


def _forward_at(x: npt.NDArray[Any], w: npt.NDArray[Any], g: _Geometry, where: Sequence[IndexArray]) -> Sums:
    """Sum over c and taps: x[n, c, o * stride - padding + dilation * tap] * w[oc, c, tap]."""
    n, oc, *out = where
    c = np.arange(g.channels_per_group)
    total, scale = np.zeros((2, n.size))
    for tap in np.ndindex(*g.kernel):
        at = [o * s - p + d * t for o, s, p, d, t in zip(out, g.stride, g.padding, g.dilation, tap, strict=True)]
        inside = np.logical_and.reduce([(a >= 0) & (a < i) for a, i in zip(at, g.size, strict=True)])
        source = [a[inside, None] for a in at]
        first = oc[inside, None] // g.out_channels_per_group * g.channels_per_group
        a = x[(n[inside, None], first + c, *source)].astype(np.float64)
        products = a * w[(oc[inside, None], c, *tap)]
        total[inside] += products.sum(axis=1)
        scale[inside] += np.abs(products).sum(axis=1)
    return total, scale


def _backward_input_at(gy: npt.NDArray[Any], w: npt.NDArray[Any], g: _Geometry, where: Sequence[IndexArray]) -> Sums:
    """Sum over oc and taps: gy[n, oc, (i + padding - dilation * tap) / stride] * w[oc, c, tap]."""
    n, c, *position = where
    oc = np.arange(g.out_channels_per_group)
    total, scale = np.zeros((2, n.size))
    for tap in np.ndindex(*g.kernel):
        reach = [i + p - d * t for i, p, d, t in zip(position, g.padding, g.dilation, tap, strict=True)]
        inside = np.logical_and.reduce(
            [(r >= 0) & (r % s == 0) & (r // s < o) for r, s, o in zip(reach, g.stride, g.out_size, strict=True)]
        )
        source = [(r // s)[inside, None] for r, s in zip(reach, g.stride, strict=True)]
        group, within = np.divmod(c[inside, None], g.channels_per_group)
        outs = group * g.out_channels_per_group + oc
        a = gy[(n[inside, None], outs, *source)].astype(np.float64)
        products = a * w[(outs, within, *tap)]
        total[inside] += products.sum(axis=1)
        scale[inside] += np.abs(products).sum(axis=1)
    return total, scale


def _backward_weight_at(x: npt.NDArray[Any], gy: npt.NDArray[Any], g: _Geometry, where: Sequence[IndexArray]) -> Sums:
    """Sum over n and o: x[n, c, o * stride - padding + dilation * tap] * gy[n, oc, o]."""
    total, scale = np.zeros((2, where[0].size))
    for index, (oc, c, *tap) in enumerate(zip(*where, strict=True)):
        group = oc // g.out_channels_per_group
        read, written = [], []
        for t, i, o, s, p, d in zip(tap, g.size, g.out_size, g.stride, g.padding, g.dilation, strict=True):
            shift = d * t - p
            first = max(0, -(shift // s))  # the first and last output whose tap is inside
            last = min(o - 1, (i - 1 - shift) // s)
            written.append(slice(first, max(first, last + 1)))
            count = max(0, last + 1 - first)
            begin = first * s + shift if count else 0
            read.append(slice(begin, begin + s * (count - 1) + 1 if count else begin, s))
        a = x[(slice(None), group * g.channels_per_group + c, *read)].astype(np.float64)
        products = a * gy[(slice(None), oc, *written)]
        total[index], scale[index] = products.sum(), np.abs(products).sum()
    return total, scale


# Everything else, whole ---------------------------------------------------------------------------


def _expect_separable(case: Case, layer: PoolLayer | ResampleLayer, arrays: Arrays) -> Expectation:
    """Averages and interpolation act on each axis by a matrix; the backward by its transpose."""
    forward = case.operation == "forward"
    values = arrays["input" if forward else "grad_output"].astype(np.float64)
    scale = np.abs(values)
    contract = 1 if forward else 0  # the matrix's input axis, or its output axis
    for axis in range(2, values.ndim):
        weights, bounds = _axis_matrices(layer, axis - 2)
        values = np.moveaxis(np.tensordot(values, weights, axes=(axis, contract)), -1, axis)
        scale = np.moveaxis(np.tensordot(scale, bounds, axes=(axis, contract)), -1, axis)
    name = "output" if forward else "grad_input"
    return Expectation(name, values.shape, values, ROUNDING * EPS * scale)


def _axis_matrices(layer: PoolLayer | ResampleLayer, axis: int) -> tuple[Float64, Float64]:
    """[output, input] weights of one axis, and bounds on them that scale the tolerance."""
    inputs, outputs = layer.size[axis], layer.output_shape(1)[2 + axis]
    weights = np.zeros((outputs, inputs))
    slack = np.zeros_like(weights)
    for o in range(outputs):
        if layer.kind == "nearest":
            weights[o, o * inputs // outputs] = 1
        elif layer.kind == "bilinear":  # half-pixel centres, clamped at the border
            at = max((o + 0.5) * inputs / outputs - 0.5, 0.0)
            low, high = int(at), min(int(at) + 1, inputs - 1)
            weights[o, low] += 1 - (at - low)
            weights[o, high] += at - low
            slack[o, [low, high]] = at / 4  # float32 coordinates are rounded by eps * at
        elif layer.kind == "adaptive_avg":
            low, high = o * inputs // outputs, -(-(o + 1) * inputs // outputs)
            weights[o, low:high] = 1 / (high - low)
        else:  # average; padding counts in the divisor
            assert isinstance(layer, PoolLayer)
            low = o * layer.stride[axis] - layer.padding[axis]
            weights[o, max(low, 0) : low + layer.kernel[axis]] = 1 / layer.kernel[axis]
    return weights, weights + slack


def _expect_max_pool(case: Case, layer: PoolLayer, arrays: Arrays) -> Expectation:
    if case.operation == "forward":
        best, _ = pool_maximum(arrays["input"], layer)
        return Expectation("output", best.shape, best, 0.0)
    gradient, indices = arrays["grad_output"], arrays["indices"]
    values = _scatter(gradient, indices, layer.size)
    scale = _scatter(np.abs(gradient), indices, layer.size)
    return Expectation("grad_input", values.shape, values, ROUNDING * EPS * scale)


def _scatter(values: npt.NDArray[Any], indices: IndexArray, size: Shape) -> Float64:
    """Sum `values` into planes of `size` at their flat indices."""
    batch, channels = values.shape[:2]
    plane = math.prod(size)
    offsets = np.arange(batch * channels).reshape(batch, channels, *(1,) * len(size)) * plane
    flat = np.bincount(
        (indices + offsets).ravel(), weights=values.ravel().astype(np.float64), minlength=batch * channels * plane
    )
    return flat.astype(np.float64).reshape(batch, channels, *size)


def _expect_unfold(case: Case, layer: UnfoldLayer, arrays: Arrays) -> Expectation:
    """Rows of the columns: channel-major, then the kernel's taps row by row."""
    batch = case.batch
    borders = [(0, 0), (0, 0), *((p, p) for p in layer.padding)]
    split = (batch, layer.channels, math.prod(layer.kernel), *layer.out_size)
    if case.operation == "im2col":
        padded = np.pad(arrays["input"], borders)
        columns = np.stack([padded[window] for window in windows(layer)], axis=2)
        columns = columns.reshape(layer.output_shape(batch))
        return Expectation("columns", columns.shape, columns, 0.0)
    columns = arrays["columns"].astype(np.float64).reshape(split)
    padded_size = (i + 2 * p for i, p in zip(layer.size, layer.padding, strict=True))
    values, scale = np.zeros((2, batch, layer.channels, *padded_size))
    for tap, window in enumerate(windows(layer)):
        values[window] += columns[:, :, tap]
        scale[window] += np.abs(columns[:, :, tap])
    inside = (slice(p, p + i) for i, p in zip(layer.size, layer.padding, strict=True))
    inner: Any = (..., *inside)
    return Expectation("input", layer.input_shape(batch), values[inner], ROUNDING * EPS * scale[inner])


def _expect_norm(case: Case, layer: NormLayer, arrays: Arrays) -> list[Expectation]:
    """The normalised values xhat * weight + bias; the gradients of input, weight and bias."""
    x = arrays["input"].astype(np.float64)
    batch, spatial = case.batch, tuple(range(2, x.ndim))
    channel_axis = x.ndim - 1 if layer.kind == "layer" else 1
    per_channel = [-1 if axis == channel_axis else 1 for axis in range(x.ndim)]
    others = tuple(axis for axis in range(x.ndim) if axis != channel_axis)
    weight, bias = (arrays[name].reshape(per_channel) for name in ("weight", "bias"))

    grouped = x.shape
    axes = {"batch": others, "layer": (channel_axis,), "instance": spatial}.get(layer.kind, ())
    if layer.kind == "group":
        grouped = (batch, layer.groups, layer.channels // layer.groups, *layer.size)
        axes = tuple(range(2, len(grouped)))
    rows = x.reshape(grouped)
    mean, variance = rows.mean(axes, keepdims=True), rows.var(axes, keepdims=True)
    if case.operation == "inference":
        mean = arrays["running_mean"].astype(np.float64).reshape(per_channel)
        variance = arrays["running_var"].astype(np.float64).reshape(per_channel)
    rstd = 1 / np.sqrt(variance + NORM_EPS)
    xhat = (rows - mean) * rstd
    rounding = EPS * (ROUNDING + math.sqrt(rows.size / mean.size))

    if case.operation != "backward":
        y = xhat.reshape(x.shape) * weight + bias
        scale = (np.abs(rows) + np.abs(mean)) * rstd
        scale = scale.reshape(x.shape) * np.abs(weight) + np.abs(bias)
        return [Expectation("output", y.shape, y, rounding * scale, magnitude=scale)]

    gy = arrays["grad_output"].astype(np.float64)
    gxhat = (gy * weight).reshape(grouped)
    centred = gxhat - gxhat.mean(axes, keepdims=True)
    gx = rstd * (centred - xhat * (gxhat * xhat).mean(axes, keepdims=True))
    scale = rstd * (np.abs(gxhat) + np.abs(gxhat).mean(axes, keepdims=True) * (1 + np.abs(xhat)))
    products = gy * xhat.reshape(x.shape)
    scale = scale.reshape(x.shape)
    count = x.size / layer.channels
    rows_sum = EPS * (ROUNDING + math.sqrt(count))
    sums = {"grad_weight": products, "grad_bias": gy}
    return [
        Expectation("grad_input", x.shape, gx.reshape(x.shape), rounding * scale, magnitude=scale),
        *(
            Expectation(
                name,
                (layer.channels,),
                terms.sum(others),
                rows_sum * np.abs(terms).sum(others),
                magnitude=np.abs(terms).sum(others) / math.sqrt(count),
            )
            for name, terms in sums.items()
        ),
    ]
