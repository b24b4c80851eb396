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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cases import Case
from benchmarks.data import Arrays, IndexArray, pool_maximum, random_state, windows
from benchmarks.layers import (
    ActivationLayer,
    ConvLayer,
    Layer,
    LayoutLayer,
    NormLayer,
    PoolLayer,
    ResampleLayer,
    Shape,
    UnfoldLayer,
)

Float64 = npt.NDArray[np.float64]
Sums = Float64  # [2, ...]: sum(a * b) and sum(|a| * |b|)

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
    expectations = EXPECT[type(case.layer)](case, case.layer, arrays)
    return [_in_dtype(case, expectation) for expectation in expectations]


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
        return case.batch * math.prod(layer.untransposed.out_size)
    result = layer.input_shape(1) if case.operation == "backward_input" else layer.output_shape(1)
    return max(1, layer.flops("forward", 1) // (2 * math.prod(result)))


def _expect_layout(case: Case, layer: LayoutLayer, arrays: Arrays) -> list[Expectation]:
    copied = arrays["input"].astype(case.dtypes[1])
    return [Expectation("output", copied.shape, copied, 0.0, channels_last=case.operation == "pack")]


def _expect_activation(case: Case, layer: ActivationLayer, arrays: Arrays) -> list[Expectation]:
    x = arrays["input"].astype(np.float64)
    bias = arrays["bias"].astype(np.float64).reshape(-1, *(1,) * (x.ndim - 2))
    return [Expectation("output", x.shape, np.maximum(x + bias, 0), EPS * (np.abs(x) + np.abs(bias)))]


# Convolution, at sampled positions ----------------------------------------------------------------


def _expect_convolution(case: Case, layer: ConvLayer, arrays: Arrays) -> list[Expectation]:
    """A transposed layer's forward is the backward-input of the convolution it is adjoint to."""
    conv, direction = layer.untransposed, case.operation
    x, gy, weight = (arrays.get(name) for name in ("input", "grad_output", "weight"))
    if layer.transposed:
        x, gy = gy, x
        direction = {"forward": "backward_input", "backward_input": "forward"}.get(direction, direction)
    taps = math.prod(conv.kernel)
    shape, reduction, sums_at = {
        "forward": (
            conv.output_shape(case.batch),
            conv.channels // conv.groups * taps,
            partial(_forward_at, x, weight, conv),
        ),
        "backward_input": (
            conv.input_shape(case.batch),
            conv.out_channels // conv.groups * taps,
            partial(_backward_input_at, gy, weight, conv),
        ),
        "backward_weight": (
            conv.weight_shape,
            case.batch * math.prod(conv.out_size),
            partial(_backward_weight_at, x, gy, conv),
        ),
    }[direction]
    where = _sample(case, shape, reduction)
    values, scale = sums_at(where)
    if "bias" in arrays:
        bias = arrays["bias"][where[1]].astype(np.float64)
        values, scale = values + bias, scale + np.abs(bias)
    name = {"forward": "output", "backward_input": "grad_input", "backward_weight": "grad_weight"}[case.operation]
    return [Expectation(name, shape, values, ROUNDING * EPS * scale, where)]


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


def _forward_at(x: Any, w: Any, conv: ConvLayer, where: Sequence[IndexArray]) -> Sums:
    """Sum over c and taps: x[n, c, o * stride - padding + dilation * tap] * w[oc, c, tap]."""
    n, oc, *out = where
    c = np.arange(conv.channels // conv.groups)
    sums = np.zeros((2, n.size))
    for tap in np.ndindex(*conv.kernel):
        axes = zip(out, conv.stride, conv.padding, conv.dilation, tap, strict=True)
        at = [o * s - p + d * t for o, s, p, d, t in axes]
        inside = np.logical_and.reduce([(a >= 0) & (a < i) for a, i in zip(at, conv.size, strict=True)])
        first = oc[inside, None] // (conv.out_channels // conv.groups) * len(c)
        a = x[(n[inside, None], first + c, *(axis[inside, None] for axis in at))].astype(np.float64)
        products = a * w[(oc[inside, None], c, *tap)]
        sums[:, inside] += products.sum(axis=1), np.abs(products).sum(axis=1)
    return sums


def _backward_input_at(gy: Any, w: Any, conv: ConvLayer, where: Sequence[IndexArray]) -> Sums:
    """Sum over oc and taps: gy[n, oc, (i + padding - dilation * tap) / stride] * w[oc, c, tap]."""
    n, c, *position = where
    oc = np.arange(conv.out_channels // conv.groups)
    group, within = np.divmod(c, conv.channels // conv.groups)
    sums = np.zeros((2, n.size))
    for tap in np.ndindex(*conv.kernel):
        axes = zip(position, conv.padding, conv.dilation, tap, strict=True)
        reach = [i + p - d * t for i, p, d, t in axes]
        bounds = zip(reach, conv.stride, conv.out_size, strict=True)
        inside = np.logical_and.reduce([(r >= 0) & (r % s == 0) & (r // s < o) for r, s, o in bounds])
        source = [(r // s)[inside, None] for r, s in zip(reach, conv.stride, strict=True)]
        outs = group[inside, None] * len(oc) + oc
        a = gy[(n[inside, None], outs, *source)].astype(np.float64)
        products = a * w[(outs, within[inside, None], *tap)]
        sums[:, inside] += products.sum(axis=1), np.abs(products).sum(axis=1)
    return sums


def _backward_weight_at(x: Any, gy: Any, conv: ConvLayer, where: Sequence[IndexArray]) -> Sums:
    """Sum over n and o: x[n, c, o * stride - padding + dilation * tap] * gy[n, oc, o]."""
    sums = np.zeros((2, where[0].size))
    out_size = conv.out_size
    for index, (oc, c, *tap) in enumerate(zip(*where, strict=True)):
        group = oc // (conv.out_channels // conv.groups)
        read, written = [], []
        for t, i, o, s, p, d in zip(tap, conv.size, out_size, conv.stride, conv.padding, conv.dilation, strict=True):
            shift = d * t - p
            first = max(0, -(shift // s))  # the first and last output whose tap is inside
            last = min(o - 1, (i - 1 - shift) // s)
            written.append(slice(first, max(first, last + 1)))
            count = max(0, last + 1 - first)
            begin = first * s + shift if count else 0
            read.append(slice(begin, begin + s * (count - 1) + 1 if count else begin, s))
        a = x[(slice(None), group * (conv.channels // conv.groups) + c, *read)].astype(np.float64)
        products = a * gy[(slice(None), oc, *written)]
        sums[:, index] = products.sum(), np.abs(products).sum()
    return sums


# Everything else, whole ---------------------------------------------------------------------------


def _expect_separable(case: Case, layer: PoolLayer | ResampleLayer, arrays: Arrays) -> list[Expectation]:
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
    return [Expectation(name, values.shape, values, ROUNDING * EPS * scale)]


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


def _expect_resample(case: Case, layer: ResampleLayer, arrays: Arrays) -> list[Expectation]:
    if layer.kind != "unpool":
        return _expect_separable(case, layer, arrays)
    scattered = _scatter(arrays["input"], arrays["indices"], layer.output)
    return [Expectation("output", scattered.shape, scattered, 0.0)]


def _expect_pool(case: Case, layer: PoolLayer, arrays: Arrays) -> list[Expectation]:
    if layer.kind != "max":
        return _expect_separable(case, layer, arrays)
    if case.operation == "forward":
        best, _ = pool_maximum(arrays["input"], layer)
        return [Expectation("output", best.shape, best, 0.0)]
    gradient, indices = arrays["grad_output"], arrays["indices"]
    values = _scatter(gradient, indices, layer.size)
    scale = _scatter(np.abs(gradient), indices, layer.size)
    return [Expectation("grad_input", values.shape, values, ROUNDING * EPS * scale)]


def _scatter(values: npt.NDArray[Any], indices: IndexArray, size: Shape) -> Float64:
    """Sum `values` into planes of `size` at their flat indices."""
    batch, channels = values.shape[:2]
    plane = math.prod(size)
    offsets = np.arange(batch * channels).reshape(batch, channels, *(1,) * len(size)) * plane
    weights = values.ravel().astype(np.float64)
    flat = np.bincount((indices + offsets).ravel(), weights, batch * channels * plane)
    return flat.astype(np.float64).reshape(batch, channels, *size)


def _expect_unfold(case: Case, layer: UnfoldLayer, arrays: Arrays) -> list[Expectation]:
    """Rows of the columns: channel-major, then the kernel's taps row by row."""
    batch = case.batch
    if case.operation == "im2col":
        padded = np.pad(arrays["input"], [(0, 0), (0, 0), *((p, p) for p in layer.padding)])
        columns = np.stack([padded[window] for window in windows(layer)], axis=2)
        columns = columns.reshape(layer.output_shape(batch))
        return [Expectation("columns", columns.shape, columns, 0.0)]
    split = (batch, layer.channels, math.prod(layer.kernel), *layer.out_size)
    columns = arrays["columns"].astype(np.float64).reshape(split)
    padded_size = (i + 2 * p for i, p in zip(layer.size, layer.padding, strict=True))
    values, scale = np.zeros((2, batch, layer.channels, *padded_size))
    for tap, window in enumerate(windows(layer)):
        values[window] += columns[:, :, tap]
        scale[window] += np.abs(columns[:, :, tap])
    inside = (slice(p, p + i) for i, p in zip(layer.size, layer.padding, strict=True))
    inner: Any = (..., *inside)
    return [Expectation("input", layer.input_shape(batch), values[inner], ROUNDING * EPS * scale[inner])]


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
    scale = scale.reshape(x.shape)
    grad_input = Expectation("grad_input", x.shape, gx.reshape(x.shape), rounding * scale, magnitude=scale)
    return [grad_input, *_norm_sums({"grad_weight": gy * xhat.reshape(x.shape), "grad_bias": gy}, others)]


def _norm_sums(terms: dict[str, Float64], axes: tuple[int, ...]) -> list[Expectation]:
    """The gradients of weight and bias: sums over all but the channels."""
    expectations = []
    for name, each in terms.items():
        values, scale = each.sum(axes), np.abs(each).sum(axes)
        root = math.sqrt(each.size / values.size)
        tolerance = EPS * (ROUNDING + root) * scale
        expectations.append(Expectation(name, values.shape, values, tolerance, magnitude=scale / root))
    return expectations


# Each is given the case, its layer and the arrays; results are float32 sums, before `_in_dtype`.
EXPECT: dict[type[Layer], Callable[[Case, Any, Arrays], list[Expectation]]] = {
    ConvLayer: _expect_convolution,
    PoolLayer: _expect_pool,
    NormLayer: _expect_norm,
    UnfoldLayer: _expect_unfold,
    ResampleLayer: _expect_resample,
    LayoutLayer: _expect_layout,
    ActivationLayer: _expect_activation,
}
