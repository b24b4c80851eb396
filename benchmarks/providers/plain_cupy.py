"""Layers as a CuPy user writes them without a library for them: peers that need no PyTorch.

`PlainCupy` gathers windows by `as_strided`, multiplies matrices and adds taps back one by one. `CupyxScipy` calls
cupyx.scipy where one channel at a time suffices. Both take any array module, so that tests run them on NumPy and SciPy.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import product
from typing import Any

from benchmarks.cases import Case
from benchmarks.checking import NORM_EPS
from benchmarks.data import Arrays
from benchmarks.layers import (
    ActivationLayer,
    ConvLayer,
    LayoutLayer,
    NormLayer,
    PoolLayer,
    ResampleLayer,
    UnfoldLayer,
    WindowedLayer,
)  # fmt: skip
from benchmarks.providers.base import Call, Provider, channels_last

Array = Any

MAX_OF_MEMORY = 0.25  # of the device's, that a copy of all windows may take; what follows needs as much again


class _OnCupy(Provider):
    """The base of both: CuPy's arrays in and out, float32 alone."""

    requires = ("cupy",)
    device = "gpu"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.xp: Any = self._module()

    def _module(self) -> Any:
        import cupy

        return cupy

    def version(self) -> str:
        return str(self.xp.__version__)

    def refuses(self, case: Case) -> str | None:
        return None if case.dtype == "float32" else "float32 only"


class PlainCupy(_OnCupy):
    """Every layer by `as_strided`, `matmul` and elementwise functions."""

    name = "plain CuPy"

    def refuses(self, case: Case) -> str | None:
        layer = case.layer
        if isinstance(layer, ConvLayer | PoolLayer):
            conv = layer.untransposed
            windows = 4 * case.batch * conv.channels * math.prod(conv.kernel) * math.prod(conv.out_size)
            if windows > MAX_OF_MEMORY * self._memory_bytes():
                return f"a copy of its windows takes {windows / 2**30:.0f} GiB"
        if isinstance(layer, ResampleLayer) and layer.kind == "bilinear":
            return "no interpolation without cupyx.scipy"
        if isinstance(layer, PoolLayer) and layer.output and any(_uneven(layer)):
            return "bins of several sizes"
        return super().refuses(case)

    def _memory_bytes(self) -> int:
        return int(self.xp.cuda.runtime.memGetInfo()[1])

    # Windows --------------------------------------------------------------------------------------

    def _windows(self, x: Array, layer: WindowedLayer, fill: float = 0.0) -> Array:
        """A view [N, C, *K, *OUT] of the padded input [N, C, *IN]."""
        borders = [(0, 0), (0, 0), *((p, p) for p in layer.padding)]
        padded = self.xp.pad(x, borders, constant_values=fill) if any(layer.padding) else x
        first, second, *inner = padded.strides
        taps = (step * d for step, d in zip(inner, layer.spacing, strict=True))
        outputs = (step * s for step, s in zip(inner, layer.stride, strict=True))
        shape = (*x.shape[:2], *layer.kernel, *layer.out_size)
        return self.xp.lib.stride_tricks.as_strided(padded, shape, (first, second, *taps, *outputs))

    def _add_taps(self, taps: Array, layer: WindowedLayer) -> Array:
        """The adjoint of `_windows`: each tap of [N, C, *K, *OUT] is added where it was read."""
        padded = [i + 2 * p for i, p in zip(layer.size, layer.padding, strict=True)]
        total = self.xp.zeros((*taps.shape[:2], *padded), taps.dtype)
        for tap in product(*map(range, layer.kernel)):
            axes = zip(tap, layer.spacing, layer.stride, layer.out_size, strict=True)
            total[(..., *(slice(t * d, t * d + s * (o - 1) + 1, s) for t, d, s, o in axes))] += taps[
                (slice(None), slice(None), *tap)
            ]
        return total[(..., *(slice(p, p + i) for p, i in zip(layer.padding, layer.size, strict=True)))]

    # Convolution: the transposed one is the adjoint of the convolution with the same weight -------------

    def convolution(self, case: Case, layer: ConvLayer, arrays: Arrays) -> Call:
        conv = layer.untransposed
        x, gradient, weight = (arrays.get(name) for name in ("input", "grad_output", "weight"))
        if case.operation == "backward_weight":
            wide, narrow = (gradient, x) if layer.transposed else (x, gradient)
            return partial(self._to_weight, conv, wide, narrow)
        forward = case.operation == "forward"
        multiply = self._to_narrow if layer.transposed != forward else self._to_wide
        given = x if forward else gradient
        if "bias" not in arrays:
            return partial(multiply, conv, given, weight)
        bias = arrays["bias"].reshape(-1, *(1,) * layer.rank)
        return lambda: multiply(conv, given, weight) + bias

    def _to_narrow(self, layer: ConvLayer, wide: Array, weight: Array) -> Array:
        """[N, C, *IN] -> [N, OC, *OUT]: columns, and a matrix product for each image and group."""
        y = self.xp.matmul(self._matrices(layer, weight), self._columns(layer, wide))
        return y.reshape(wide.shape[0], weight.shape[0], *layer.out_size)

    def _to_wide(self, layer: ConvLayer, narrow: Array, weight: Array) -> Array:
        """[N, OC, *OUT] -> [N, C, *IN]."""
        values = narrow.reshape(narrow.shape[0], layer.groups, -1, math.prod(layer.out_size))
        columns = self.xp.matmul(self._matrices(layer, weight).swapaxes(-1, -2), values)
        channels = layer.groups * weight.shape[1]
        return self._add_taps(columns.reshape(narrow.shape[0], channels, *layer.kernel, *layer.out_size), layer)

    def _to_weight(self, layer: ConvLayer, wide: Array, narrow: Array) -> Array:
        values = narrow.reshape(narrow.shape[0], layer.groups, -1, math.prod(layer.out_size))
        products = self.xp.matmul(values, self._columns(layer, wide).swapaxes(-1, -2))
        return products.sum(0).reshape(layer.weight_shape)

    def _columns(self, layer: ConvLayer, wide: Array) -> Array:
        """[N, G, C / G * K, OUT], a copy."""
        return self._windows(wide, layer).reshape(wide.shape[0], layer.groups, -1, math.prod(layer.out_size))

    def _matrices(self, layer: ConvLayer, weight: Array) -> Array:
        """[G, OC / G, C / G * K]."""
        return weight.reshape(layer.groups, weight.shape[0] // layer.groups, -1)

    # The rest -------------------------------------------------------------------------------------

    def unfolding(self, case: Case, layer: UnfoldLayer, arrays: Arrays) -> Call:
        if case.operation == "im2col":
            return lambda: self._windows(arrays["input"], layer).reshape(layer.output_shape(case.batch))
        taps = arrays["columns"].reshape(case.batch, layer.channels, *layer.kernel, *layer.out_size)
        return partial(self._add_taps, taps, layer)

    def pooling(self, case: Case, layer: PoolLayer, arrays: Arrays) -> Call:
        x, forward = arrays["input"], case.operation == "forward"
        if layer.kind == "adaptive_avg":
            layer = _even_bins(layer)
        taps = tuple(range(2, 2 + layer.rank))
        if layer.kind != "max":
            count = math.prod(layer.kernel)
            if forward:
                return lambda: self._windows(x, layer).mean(taps)
            return lambda: self._add_taps(self._each_tap(arrays["grad_output"] / count, layer), layer)
        if forward:
            return lambda: self._windows(x, layer, -math.inf).max(taps)
        windows = self._windows(x, layer, -math.inf)
        flat = windows.reshape(*x.shape[:2], -1, *layer.out_size).argmax(2)  # as a forward would keep it
        places = self.xp.arange(math.prod(layer.kernel)).reshape(*layer.kernel, *(1,) * layer.rank)
        chosen = flat.reshape(*x.shape[:2], *(1,) * layer.rank, *layer.out_size) == places
        return lambda: self._add_taps(self._each_tap(arrays["grad_output"], layer) * chosen, layer)

    def _each_tap(self, values: Array, layer: PoolLayer) -> Array:
        """[N, C, *OUT] for every tap, as a view [N, C, *K, *OUT]."""
        spread = values.reshape(*values.shape[:2], *(1,) * layer.rank, *layer.out_size)
        return self.xp.broadcast_to(spread, (*values.shape[:2], *layer.kernel, *layer.out_size))

    def normalization(self, case: Case, layer: NormLayer, arrays: Arrays) -> Call:
        return partial(self._norm_backward if case.operation == "backward" else self._norm, case, layer, arrays)

    def _statistics(self, case: Case, layer: NormLayer, arrays: Arrays) -> tuple[Array, Any, tuple[int, ...]]:
        """The normalised input in rows, 1 / deviation, and the axes of a row."""
        x = arrays["input"]
        axes = {
            "batch": (0, *range(2, x.ndim)), "layer": (x.ndim - 1,), "instance": tuple(range(2, x.ndim)),
            "group": tuple(range(2, x.ndim + 1)),
        }[layer.kind]  # fmt: skip
        if layer.kind == "group":
            x = x.reshape(x.shape[0], layer.groups, -1, *x.shape[2:])
        if case.operation == "inference":
            mean, variance = (self._per_channel(arrays[name], layer) for name in ("running_mean", "running_var"))
        else:
            mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        rstd = 1 / self.xp.sqrt(variance + NORM_EPS)
        return (x - mean) * rstd, rstd, axes

    def _per_channel(self, values: Array, layer: NormLayer) -> Array:
        return values if layer.kind == "layer" else values.reshape(-1, *(1,) * layer.rank)

    def _norm(self, case: Case, layer: NormLayer, arrays: Arrays) -> Array:
        scaled, _, _ = self._statistics(case, layer, arrays)
        weight, bias = (self._per_channel(arrays[name], layer) for name in ("weight", "bias"))
        return scaled.reshape(arrays["input"].shape) * weight + bias

    def _norm_backward(self, case: Case, layer: NormLayer, arrays: Arrays) -> tuple[Array, Array, Array]:
        gradient = arrays["grad_output"]
        scaled, rstd, axes = self._statistics(case, layer, arrays)
        rows = (gradient * self._per_channel(arrays["weight"], layer)).reshape(scaled.shape)
        slope = (rows * scaled).mean(axes, keepdims=True)
        to_input = (rows - rows.mean(axes, keepdims=True) - scaled * slope) * rstd
        channel = gradient.ndim - 1 if layer.kind == "layer" else 1
        others = tuple(axis for axis in range(gradient.ndim) if axis != channel)
        products = gradient * scaled.reshape(gradient.shape)
        return to_input.reshape(gradient.shape), products.sum(others), gradient.sum(others)

    def resampling(self, case: Case, layer: ResampleLayer, arrays: Arrays) -> Call:
        block = layer.block
        if layer.kind == "unpool":
            x, flat = arrays["input"], (*arrays["input"].shape[:2], -1)

            def unpool() -> Array:
                planes = self.xp.zeros((*x.shape[:2], math.prod(layer.output)), x.dtype)
                self.xp.put_along_axis(planes, arrays["indices"].reshape(flat), x.reshape(flat), 2)
                return planes.reshape(layer.output_shape(case.batch))

            return unpool
        if case.operation == "forward":
            return lambda: self.xp.repeat(self.xp.repeat(arrays["input"], block[0], 2), block[1], 3)
        blocks = arrays["grad_output"].reshape(
            case.batch, layer.channels, layer.size[0], block[0], layer.size[1], block[1]
        )
        return lambda: blocks.sum((3, 5))

    def layout(self, case: Case, layer: LayoutLayer, arrays: Arrays) -> Call:
        x = arrays["input"]
        if case.operation == "unpack":
            return partial(channels_last(x).astype, case.dtypes[1], order="C")
        last, first = (0, *range(2, x.ndim), 1), (0, x.ndim - 1, *range(1, x.ndim - 1))
        return lambda: x.transpose(last).astype(case.dtypes[1], order="C").transpose(first)

    def activation(self, case: Case, layer: ActivationLayer, arrays: Arrays) -> Call:
        bias = arrays["bias"].reshape(-1, *(1,) * layer.rank)
        return lambda: self.xp.maximum(arrays["input"] + bias, 0)


class CupyxScipy(_OnCupy):
    """cupyx.scipy.ndimage where one channel at a time suffices: correlation, filters for pooling, zoom."""

    name = "cupyx.scipy"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.ndimage: Any = self._ndimage()

    def _ndimage(self) -> Any:
        import cupyx.scipy.ndimage

        return cupyx.scipy.ndimage

    def refuses(self, case: Case) -> str | None:
        layer, operation = case.layer, case.operation
        depthwise = isinstance(layer, ConvLayer) and layer.family == "depthwise convolution"
        pooling = isinstance(layer, PoolLayer) and layer.kind != "adaptive_avg"
        bilinear = isinstance(layer, ResampleLayer) and layer.kind == "bilinear"
        if not (depthwise or pooling or bilinear):
            return "ndimage computes within single channels only"
        if operation != "forward" and not (depthwise and operation == "backward_input"):
            return "no gradients"
        return super().refuses(case)

    def convolution(self, case: Case, layer: ConvLayer, arrays: Arrays) -> Call:
        filters = _spread(self.xp, arrays["weight"], layer.dilation)
        if case.operation == "forward":
            return lambda: self._correlated(arrays["input"], filters)[_kept(layer, filters.shape[2:])]
        flipped = filters[(..., *(slice(None, None, -1),) * layer.rank)]
        return lambda: self._correlated(_spread(self.xp, arrays["grad_output"], layer.stride, layer.size), flipped)

    def pooling(self, case: Case, layer: PoolLayer, arrays: Arrays) -> Call:
        kept = _kept(layer, layer.kernel)
        window: dict[str, Any] = {"size": (1, 1, *layer.kernel), "mode": "constant"}
        if layer.kind == "max":
            return lambda: self.ndimage.maximum_filter(arrays["input"], cval=-math.inf, **window)[kept]
        return lambda: self.ndimage.uniform_filter(arrays["input"], cval=0.0, **window)[kept]

    def resampling(self, case: Case, layer: ResampleLayer, arrays: Arrays) -> Call:
        factors = (1, 1, *(o / i for o, i in zip(layer.output, layer.size, strict=True)))
        return lambda: self.ndimage.zoom(arrays["input"], factors, order=1, mode="nearest", grid_mode=True)

    def _correlated(self, images: Array, filters: Array) -> Array:
        """Each channel of [N, C, *IN] with its filter of [C, 1, *K], at every position, zeros around."""
        result = self.xp.empty_like(images)
        for channel, weight in enumerate(filters):
            self.ndimage.correlate(images[:, channel], weight, result[:, channel], mode="constant")
        return result


def _kept(layer: ConvLayer | PoolLayer, window: tuple[int, ...]) -> tuple[Any, ...]:
    """The positions of a filter centred on each input that are those of the layer's windows."""
    axes = zip(window, layer.padding, layer.stride, layer.out_size, strict=True)
    return (..., *(slice(k // 2 - p, k // 2 - p + s * (o - 1) + 1, s) for k, p, s, o in axes))


def _spread(xp: Any, values: Array, steps: tuple[int, ...], size: tuple[int, ...] = ()) -> Array:
    """`values` with ``step - 1`` zeros between neighbours along each spatial axis, and zeros up to `size` behind."""
    if set(steps) == {1}:
        return values
    size = size or tuple(s * (i - 1) + 1 for s, i in zip(steps, values.shape[2:], strict=True))
    spread = xp.zeros((*values.shape[:2], *size), values.dtype)
    spread[(..., *(slice(0, s * (i - 1) + 1, s) for s, i in zip(steps, values.shape[2:], strict=True)))] = values
    return spread


def _uneven(layer: PoolLayer) -> list[int]:
    return [i % o for i, o in zip(layer.size, layer.output, strict=True)]


def _even_bins(layer: PoolLayer) -> PoolLayer:
    """Adaptive pooling whose bins are all of one size, as the average pooling that it is."""
    bins = tuple(i // o for i, o in zip(layer.size, layer.output, strict=True))
    return PoolLayer(
        network=layer.network, name=layer.name, channels=layer.channels, size=layer.size, kind="avg",
        kernel=bins, stride=bins, padding=(0,) * layer.rank,
    )  # fmt: skip
