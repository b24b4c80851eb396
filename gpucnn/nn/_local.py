"""Layers on a part of an image: what a span of their output reads of their input, and their result for that span alone.

A span is ``[start, stop)`` along one spatial axis, in positions of the whole image. What a layer reads ends at the
image's borders; only there does it pad. So a part has the values that the whole has at its positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf, prod
from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.backends import backend_of
from gpucnn.geometry import Axis, InterpolationAxis
from gpucnn.geometry.geometries import interpolation_geometry
from gpucnn.geometry.sizes import pool_axes, transposed_axes, window_axes
from gpucnn.nn._fusion import through
from gpucnn.nn._joining import added, concatenated
from gpucnn.nn._tracing import Sketch
from gpucnn.nn.activation import (
    Dropout,
    Flatten,
    Softmax,
)
from gpucnn.nn.convolution import ConvNd, ConvTransposeNd, LocallyConnectedNd
from gpucnn.nn.linear import Linear
from gpucnn.nn.models.unet import PadTo
from gpucnn.nn.module import Array, Module
from gpucnn.nn.normalization import BatchNormNd, GroupNorm, InstanceNormNd, LayerNorm, RMSNorm
from gpucnn.nn.pooling import (
    AdaptiveAvgPoolNd,
    AdaptiveMaxPoolNd,
    AvgPoolNd,
    BedOfNailsNd,
    LPPoolNd,
    MaxPoolNd,
    MaxUnpoolNd,
    SumPoolNd,
    Upsample,
)
from gpucnn.nn.sliding import POINTWISE

Span = tuple[int, int]
Spans = Sequence[Span]  # one per spatial axis
Shape = tuple[int, ...]


FEW_CHANNELS = (
    8  # of a group, which compiled kernels compute from columns of whole images (`gpucnn.backends.cpu.folding`)
)


def within(start: int, stop: int, size: int) -> Span:
    """The positions of an axis among ``[start, stop)``, or else the nearest one: no part is empty."""
    first = min(max(start, 0), size - 1)
    return first, max(min(stop, size), first + 1)


class Local:
    """A layer that reads at each position what its input has at that position; the base of the others.

    Parameters
    ----------
    shape, dtype
        Of the whole result, [N, C, *space].
    compute : callable
        It makes a part of the result of the same parts of its inputs.
    """

    copies = 0  # of a part's result that are made beside it
    columns = 0  # values of workspace for each position of an image
    of_input = False  # whether these are positions of the input, or of the result

    def __init__(self, shape: Shape, dtype: Any, compute: Callable[..., Array]) -> None:
        self.shape, self.dtype, self.compute = shape, np.dtype(dtype), compute

    def reads(self, axis: int, span: Span) -> Span:
        """The span of its inputs that a span of its result reads along a spatial axis; at least one position."""
        return span

    def part(self, arrays: Sequence[Array], given: Spans, spans: Spans) -> Array:
        """The result for `spans` of the spans `given` of its inputs, which are those that it reads."""
        return self.compute(*arrays)


class Pointwise(Local):
    """Modules one after the other, each of which computes position by position."""

    def __init__(self, modules: Sequence[Module], shape: Shape, dtype: Any) -> None:
        super().__init__(shape, dtype, lambda x: through(modules, x))
        self.modules = modules


class Whole(Local):
    """A module that reads all positions, of an input that has been reduced to one."""

    reason = "it takes inputs of one size, and no global pooling comes before it"

    def __init__(self, module: Module, x: Sketch, shape: Shape) -> None:
        super().__init__(shape, x.dtype, module)


class Pooled(Local):
    """A pooling of all positions into one, by parts, whose statistics [N, C] are kept in float64."""

    reason = "its result for the whole image meets other results for the image, which takes two passes"

    def __init__(self, module: Any, x: Sketch) -> None:
        super().__init__((*x.shape[:2], *(1,) * module.rank), x.dtype, module)
        self.positions = prod(x.shape[2:])
        self.is_mean = isinstance(module, AdaptiveAvgPoolNd)
        self.first = 0.0 if self.is_mean else -inf  # the statistic of no positions

    def with_part(self, total: Array, x: Array) -> Array:
        """A statistic with that of a part."""
        space = tuple(range(2, x.ndim))
        if self.is_mean:
            return total + x.sum(axis=space, dtype=total.dtype)
        return backend_of(x).xp.maximum(total, x.max(axis=space))

    def finished(self, total: Array) -> Array:
        """The pooled image [N, C, 1, …] of the statistic of all parts."""
        values = (total / self.positions if self.is_mean else total).astype(self.dtype)
        return values.reshape(self.shape)


class Cropped(Local):
    """A slice along channels and spatial axes."""

    def __init__(self, x: Sketch, keys: Sequence[slice]) -> None:
        ranges = [range(size)[key] for size, key in zip(x.shape, keys, strict=True)]
        super().__init__(tuple(map(len, ranges)), x.dtype, lambda x: x)
        self.channels, self.ranges = keys[1], ranges[2:]

    def reads(self, axis: int, span: Span) -> Span:
        places = self.ranges[axis][slice(*span)]
        return places[0], places[-1] + 1

    def part(self, arrays: Sequence[Array], given: Spans, spans: Spans) -> Array:
        return arrays[0][(slice(None), self.channels, *(slice(None, None, each.step) for each in self.ranges))]


class PaddedTo(Local):
    """Zeros at the end of each spatial axis, up to a size."""

    copies = 1

    def __init__(self, x: Sketch, size: Shape) -> None:
        super().__init__((*x.shape[:2], *size), x.dtype, lambda x: x)
        self.space = x.shape[2:]

    def reads(self, axis: int, span: Span) -> Span:
        return within(*span, self.space[axis])

    def part(self, arrays: Sequence[Array], given: Spans, spans: Spans) -> Array:
        x, pads = _framed(arrays[0], given, spans)
        return F.pad(x, [size for pair in reversed(pads) for size in pair])


class Windowed(Local):
    """A convolution or a pool: each output reads a window."""

    def __init__(
        self, x: Sketch, axes: Sequence[Axis], channels: int, dtype: Any, compute: Callable[..., Array]
    ) -> None:
        super().__init__((x.shape[0], channels, *(axis.out for axis in axes)), dtype, compute)
        self.axes = axes

    def window(self, axis: int, span: Span) -> Span:
        """The span of the windows of `span`, which may reach over the borders."""
        sampling = self.axes[axis].forward
        return span[0] * sampling.step + sampling.least, (span[1] - 1) * sampling.step + sampling.most + 1

    def reads(self, axis: int, span: Span) -> Span:
        return within(*self.window(axis, span), self.axes[axis].size)

    def windows(self, spans: Spans) -> list[Span]:
        """The spans of the windows along all axes."""
        return [self.window(axis, span) for axis, span in enumerate(spans)]


class Convolution(Windowed):
    """A convolution, with zeros around the image or positions of the image repeated."""

    def __init__(self, layer: Any, x: Sketch) -> None:
        _expect_image(layer, x, layer.in_channels)
        name, space = type(layer).__name__, x.shape[2:]
        pairs = layer._pairs(space)
        axes = window_axes(name, space, layer.kernel_size, layer.stride, pairs, layer.dilation)
        super().__init__(x, axes, layer.out_channels, _multiplied(layer, x), layer.function)
        self.layer, self.columns = layer, _columns(layer)
        self.sources = [None if layer.padding_mode == "zeros" else _sources(axis, layer.padding_mode) for axis in axes]

    def reads(self, axis: int, span: Span) -> Span:
        sources = self.sources[axis]
        if sources is None:
            return super().reads(axis, span)
        places = self._places(axis, sources, span)
        return int(places.min()), int(places.max()) + 1

    def _places(self, axis: int, sources: Any, span: Span) -> Any:
        """The positions that the windows of `span` read, those in the padding too."""
        start, stop = self.window(axis, span)
        return sources[start + self.axes[axis].low : stop + self.axes[axis].low]

    def part(self, arrays: Sequence[Array], given: Spans, spans: Spans) -> Array:
        x = arrays[0]
        pads: Any = [(0, 0)] * len(spans)
        if self.layer.padding_mode == "zeros":
            x, pads = _framed(x, given, self.windows(spans))
        else:
            for axis, sources in enumerate(self.sources):
                x = _taken(x, 2 + axis, self._places(axis, sources, spans[axis]) - given[axis][0])
        return self.compute(*self.layer._operands(x)[1:], **(self.layer._options() | {"padding": pads}))


class Pool(Windowed):
    """A pool whose window steps over the image."""

    def __init__(self, layer: Any, x: Sketch) -> None:
        _expect_image(layer, x, x.shape[1])
        name, space, pairs = type(layer).__name__, x.shape[2:], layer._pairs(x.shape[2:])
        axes = pool_axes(name, space, layer.kernel_size, layer.stride, pairs, layer.dilation, layer.ceil_mode)
        super().__init__(x, axes, x.shape[1], x.dtype, layer.function)
        self.layer = layer

    def part(self, arrays: Sequence[Array], given: Spans, spans: Spans) -> Array:
        pads, overhangs = [], False
        for axis, (first, last), (start, stop) in zip(self.axes, given, self.windows(spans), strict=True):
            beyond = max(0, stop - last)
            pads.append((max(0, first - start), min(axis.high, beyond)))
            overhangs |= beyond > axis.high  # the last window of a pool that rounds up: averages leave that part out
        return self.compute(arrays[0], **(self.layer.options() | {"padding": pads, "ceil_mode": overhangs}))


class Blocks(Windowed):
    """A pool to a size that divides the image's, by a function of the image and that size."""

    def __init__(self, x: Sketch, sizes: Shape, pool: Callable[..., Array]) -> None:
        pairs = zip(x.shape[2:], sizes, strict=True)
        axes = [Axis(size, size // out, size // out, out=out) for size, out in pairs]
        super().__init__(x, axes, x.shape[1], x.dtype, pool)

    def part(self, arrays: Sequence[Array], given: Spans, spans: Spans) -> Array:
        return self.compute(arrays[0], tuple(stop - start for start, stop in spans))


class Transposed(Local):
    """A transposed convolution: each input adds a window to the output."""

    copies = 1  # of the result, with the ends that are cut off
    of_input = True

    def __init__(self, layer: Any, x: Sketch, extra: Shape) -> None:
        _expect_image(layer, x, layer.in_channels)
        name, sizes = type(layer).__name__, x.shape[2:]
        pairs = layer.window(x.shape).padding
        form = layer.padding if layer.padding in ("same", "same_lower") else pairs
        self.axes = transposed_axes(name, sizes, layer.kernel_size, layer.stride, form, extra, layer.dilation)
        shape = (x.shape[0], layer.out_channels, *(axis.size for axis in self.axes))
        super().__init__(shape, _multiplied(layer, x), layer.function)
        self.layer, self.columns = layer, _columns(layer)

    def reads(self, axis: int, span: Span) -> Span:
        each = self.axes[axis]
        start, last = span[0] + each.low, span[1] - 1 + each.low  # of the output before its ends are cut off
        reach = (each.kernel - 1) * each.dilation
        first = min(-((reach - start) // each.stride), start // each.stride)
        return within(first, last // each.stride + 1, each.out)

    def part(self, arrays: Sequence[Array], given: Spans, spans: Spans) -> Array:
        cuts, extra = [], []
        for axis, (first, last), (start, stop) in zip(self.axes, given, spans, strict=True):
            begin = start + axis.low - first * axis.stride
            length = (last - first - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1
            cuts.append(slice(begin, begin + stop - start))
            extra.append(max(0, cuts[-1].stop - length))
        options = self.layer._options(tuple(extra)) | {"padding": 0}
        return self.compute(*self.layer._operands(arrays[0])[1:], **options)[(..., *cuts)]


class Nails(Local):
    """Each value at its block's first corner, zeros elsewhere."""

    copies = 1

    def __init__(self, layer: Any, x: Sketch) -> None:
        _expect_image(layer, x, x.shape[1])
        space = (size * factor for size, factor in zip(x.shape[2:], layer.scale_factor, strict=True))
        super().__init__((*x.shape[:2], *space), x.dtype, layer)
        self.factors = layer.scale_factor

    def reads(self, axis: int, span: Span) -> Span:
        factor = self.factors[axis]
        return span[0] // factor, (span[1] - 1) // factor + 1

    def part(self, arrays: Sequence[Array], given: Spans, spans: Spans) -> Array:
        begins = [start - first * f for (start, _), (first, _), f in zip(spans, given, self.factors, strict=True)]
        cuts = [slice(begin, begin + stop - start) for begin, (start, stop) in zip(begins, spans, strict=True)]
        return self.compute(arrays[0])[(..., *cuts)]


class Copied(Local):
    """A resampling that copies the nearest inputs."""

    copies = 1

    def __init__(self, x: Sketch, axes: Sequence[InterpolationAxis]) -> None:
        super().__init__((*x.shape[:2], *(axis.out for axis in axes)), x.dtype, lambda x: x)
        self.sources = [F.resample(np.arange(axis.size)[None, None], [axis])[0, 0] for axis in axes]

    def reads(self, axis: int, span: Span) -> Span:
        places = self.sources[axis][slice(*span)]  # which do not go back
        return int(places[0]), int(places[-1]) + 1

    def part(self, arrays: Sequence[Array], given: Spans, spans: Spans) -> Array:
        x = arrays[0]
        for axis, (sources, (first, _), span) in enumerate(zip(self.sources, given, spans, strict=True)):
            x = _taken(x, 2 + axis, sources[slice(*span)] - first)
        return x


class Blended(Local):
    """A resampling that blends the inputs around each position."""

    copies = 2  # between its passes along the axes

    def __init__(self, x: Sketch, axes: Sequence[InterpolationAxis]) -> None:
        super().__init__((*x.shape[:2], *(axis.out for axis in axes)), x.dtype, F.resample)
        self.axes = axes

    def reads(self, axis: int, span: Span) -> Span:
        each: Any = self.axes[axis]
        if each.is_identity:
            return span
        first, last = each.positions(span[0]), each.positions(span[1] - 1)
        reach = each.filter.radius + 1  # one more than is read, as positions are rounded
        return within(int(np.floor(first)) - reach, int(np.floor(last)) + reach + 2, each.size)

    def part(self, arrays: Sequence[Array], given: Spans, spans: Spans) -> Array:
        axes = []
        for axis, (first, last), (start, stop) in zip(self.axes, given, spans, strict=True):
            if axis.is_identity:
                axes.append(InterpolationAxis(last - first, stop - start))
                continue
            begin = axis.first + start * axis.scale - first
            axes.append(InterpolationAxis(last - first, stop - start, axis.scale, begin, axis.filter))
        return self.compute(arrays[0], axes)


# --- Parts of arrays ----------------------------------------------------------------------------------------------


def _framed(x: Array, given: Spans, spans: Spans) -> tuple[Array, list[Span]]:
    """X, the part `given` of an image, and the zeros before and after it that make it the part `spans`."""
    pads = []
    for dim, ((first, last), (start, stop)) in enumerate(zip(given, spans, strict=True), 2):
        if stop <= first or last <= start:  # all of it is in the padding
            x = backend_of(x).xp.zeros((*x.shape[:dim], stop - start, *x.shape[dim + 1 :]), x.dtype)
            first, last = start, stop
        pads.append((first - start, stop - last))
    return x, pads


def _columns(layer: Any) -> int:
    """Values for each position of a convolution to few channels, where compiled kernels may multiply, then fold."""
    taps, channels = prod(layer.kernel_size), layer.out_channels // layer.groups
    is_few = taps > 1 and channels <= FEW_CHANNELS
    if isinstance(layer, ConvNd):
        is_few = is_few and layer.in_channels // layer.groups >= channels**2
    return layer.out_channels * taps if is_few else 0


def _taken(x: Array, dim: int, places: Any) -> Array:
    """X at places along an axis: a view where they follow each other."""
    first, count = int(places[0]), len(places)
    if np.array_equal(places, np.arange(first, first + count)):
        return x[(slice(None),) * dim + (slice(first, first + count),)]
    return x[(slice(None),) * dim + (backend_of(x).xp.asarray(places),)]


def _sources(axis: Axis, mode: str) -> Any:
    """The position of the image that each position of the padded one has the value of."""
    return F.pad(np.arange(axis.size)[None, None], (axis.low, axis.high), mode)[0, 0]


# --- Which layers are local ---------------------------------------------------------------------------------------

REASONS: tuple[tuple[tuple[type[Module], ...], str], ...] = (
    ((LayerNorm, RMSNorm, GroupNorm, InstanceNormNd), "it normalises by statistics of all positions"),
    ((LocallyConnectedNd,), "it has weights of its own for each position"),
    ((MaxUnpoolNd,), "the indices of maxima are those of a whole image"),
)


def local(module: Any, x: Any, inputs: Sequence[Any], options: dict[str, Any]) -> Local | str | None:
    """A module with a known forward as a local layer of x; the reason where it is none, None where it is not known."""
    kind = next((kind for kind in type(module).__mro__ if "forward" in vars(kind)), None)
    if kind is None or not kind.__module__.startswith("gpucnn.nn."):
        return None
    reason = next((reason for kinds, reason in REASONS if isinstance(module, kinds)), None)
    if reason is not None:
        return reason
    if isinstance(module, PadTo):
        return PaddedTo(x, tuple(inputs[0] if inputs else options["size"]))
    if isinstance(module, ConvTransposeNd):
        size = inputs[0] if inputs else options.get("output_size")
        return Transposed(module, x, module.output_padding if size is None else module._extra(x, size))
    if inputs or options:
        return None
    if isinstance(module, BatchNormNd) and (module.training or module.running_mean is None):
        return "it normalises by statistics of the batch; model.eval() makes it take the running ones, if it has them"
    if isinstance(module, Dropout) and module.training and module.p:
        return "it drops values at random; model.eval() turns it off"
    if isinstance(module, Softmax) and module.dim % x.ndim != 1:
        return f"its dim is {module.dim}, expected 1, the channels"
    if isinstance(module, POINTWISE):
        return Pointwise([module], x.shape, x.dtype)
    if isinstance(module, ConvNd):
        return Convolution(module, x)
    if isinstance(module, (MaxPoolNd, AvgPoolNd, SumPoolNd, LPPoolNd)):
        return "it returns indices beside its result" if getattr(module, "return_indices", False) else Pool(module, x)
    if isinstance(module, (AdaptiveAvgPoolNd, AdaptiveMaxPoolNd)):
        return _adaptive(module, x)
    if isinstance(module, BedOfNailsNd):
        return Nails(module, x)
    if isinstance(module, Upsample):
        return _upsampled(module, x)
    if isinstance(module, Flatten):
        return Whole(module, x, _flattened(module, x.shape))
    if isinstance(module, Linear):
        return Whole(module, x, (*x.shape[:-1], module.weight.shape[0]))
    return None


def _flattened(layer: Any, shape: Shape) -> Shape:
    """The shape that `Flatten` makes of one."""
    first, last = (dim % len(shape) for dim in (layer.start_dim, layer.end_dim))
    return (*shape[:first], prod(shape[first : last + 1]), *shape[last + 1 :])


def _adaptive(layer: Any, x: Sketch) -> Local | str:
    """An adaptive pool, to one position or in blocks."""
    if getattr(layer, "return_indices", False):
        return "it returns indices beside its result"
    _expect_image(layer, x, x.shape[1])
    sizes = tuple(size if out is None else out for size, out in zip(x.shape[2:], layer.output_size, strict=True))
    if set(sizes) == {1}:
        return Pooled(layer, x) if x.dtype.kind == "f" else f"it pools all positions of dtype {x.dtype}"
    return _blocks(x, sizes, layer.function)


def _blocks(x: Sketch, sizes: Shape, pool: Callable[..., Array]) -> Local | str:
    if any(size % out for size, out in zip(x.shape[2:], sizes, strict=True)):
        return f"its windows differ in size, as {sizes} does not divide the image's {x.shape[2:]}"
    return Blocks(x, sizes, pool)


def _upsampled(layer: Any, x: Sketch) -> Local | str:
    """An `Upsample` of x, with the coordinates of the whole image."""
    space = x.shape[2:]
    small = np.empty((0, 1, *space))  # without a value: its size alone counts
    sizes = F.interpolate(small, **layer._options()).shape[2:]
    if layer.mode == "area":
        return _blocks(x, sizes, partial(F.interpolate, mode="area"))
    factors = layer.scale_factor
    if factors is not None and layer.recompute_scale_factor:
        factors = None
    elif factors is not None:
        factors = tuple(map(float, factors)) if isinstance(factors, tuple) else (float(factors),) * len(space)
    geometry = interpolation_geometry(space, sizes, factors, layer.mode, bool(layer.align_corners))
    axes = geometry.axes[3 - geometry.rank :]
    return Copied(x, axes) if layer.mode.startswith("nearest") else Blended(x, axes)


def _multiplied(layer: Any, x: Sketch) -> Any:
    """The dtype of a layer's product with x."""
    operands = layer._operands(np.empty(0, x.dtype))
    if operands.x.dtype != operands.weight.dtype:
        name = type(layer).__name__
        raise TypeError(f"{name}: input has dtype {x.dtype}, expected that of the weight, {operands.weight.dtype}")
    return operands.x.dtype


def _expect_image(layer: Any, x: Sketch, channels: int) -> None:
    """Raise ValueError unless x has the axes of a batch of images, and that many channels."""
    name = type(layer).__name__
    if x.ndim != layer.rank + 2:
        raise ValueError(f"{name}: input has {x.ndim} dimensions, expected {layer.rank + 2}")
    if x.shape[1] != channels:
        raise ValueError(f"{name}: input has {x.shape[1]} channels, expected {channels}")


def function(name: Any, arguments: Sequence[Any], options: dict[str, Any]) -> Local | str:
    """A function of NumPy of sketches as a local layer of them, in their order; the reason where it is none."""
    if isinstance(name, np.ufunc) and not options:
        return _elementwise(name, arguments)
    if name is np.concatenate:
        arrays, axis = arguments[0], options.get("axis", arguments[1] if len(arguments) > 1 else 0)
        return _concatenated(list(arrays), axis)
    return f"it calls {getattr(name, '__name__', name)}, which is not followed"


def _elementwise(ufunc: np.ufunc, arguments: Sequence[Any]) -> Local | str:
    sketches = [each for each in arguments if isinstance(each, Sketch)]
    others = [each for each in arguments if not isinstance(each, Sketch | int | float)]
    if len({each.shape for each in sketches}) > 1 or others or ufunc.nout != 1:
        return f"it calls {ufunc.__name__} with other than arrays of one shape and numbers"
    examples = [np.empty(0, each.dtype) if isinstance(each, Sketch) else each for each in arguments]

    def compute(*arrays: Array) -> Array:
        if ufunc is np.add and len(arrays) == 2:
            return added(*arrays)
        values = iter(arrays)
        return ufunc(*(next(values) if isinstance(each, Sketch) else each for each in arguments))

    return Local(sketches[0].shape, ufunc(*examples).dtype, compute)


def _concatenated(arrays: Sequence[Any], axis: int) -> Local | str:
    if not all(isinstance(each, Sketch) for each in arrays):
        return "it concatenates with an array that no module made"
    first = arrays[0]
    if axis % first.ndim != 1 or len({(*each.shape[:1], *each.shape[2:]) for each in arrays}) > 1:
        shapes = [each.shape for each in arrays]
        return f"it concatenates shapes {shapes} along axis {axis}, expected one size but for the channels, axis 1"
    shape = (first.shape[0], sum(each.shape[1] for each in arrays), *first.shape[2:])
    return Local(shape, np.result_type(*(each.dtype for each in arrays)), lambda *parts: concatenated(parts, 1))


def sliced(x: Sketch, key: Any) -> Local | str:
    """``x[key]`` as a local layer; the reason where it is none."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if ... in keys:
        at = keys.index(...)
        keys[at : at + 1] = [slice(None)] * (x.ndim - len(keys) + 1)
    keys += [slice(None)] * (x.ndim - len(keys))
    if not all(isinstance(each, slice) and (each.step is None or each.step > 0) for each in keys):
        return "it indexes by something else than slices that go forwards"
    cropped = Cropped(x, keys)
    if keys[0] != slice(None) or 0 in cropped.shape:
        return "it slices the batch axis, or leaves nothing"
    return cropped
