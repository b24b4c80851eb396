"""Receptive fields, parameters, multiply-adds and matrix shapes of a layer or a stack of layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any, NamedTuple

from gpucnn.geometry.arguments import Padding, Size, boolean, integer, integers, is_sequence, padding_form, rank_of
from gpucnn.geometry.axes import extent
from gpucnn.geometry.sizes import window_arguments, window_axes


@dataclass(frozen=True)
class Window:
    """The window of one convolution or pooling layer, as `receptive_field` reads it.

    Parameters
    ----------
    kernel_size, stride, dilation : int or sequence of int
        One value per spatial axis, or one for all of them.
    padding : int, sequence of int, sequence of (low, high) pairs or "valid"
        ``"same"`` depends on the input's size: resolve it with `same_padding` first.
    """

    kernel_size: Size
    stride: Size = 1
    padding: Padding = 0
    dilation: Size = 1


@dataclass(frozen=True)
class TransposedWindow:
    """The window of one layer that enlarges images, as `receptive_field` reads it: that of the reverse convolution.

    Parameters
    ----------
    kernel_size, stride, dilation : int or sequence of int
        Of a transposed convolution or an unpooling: how far each input reaches, and the step between inputs.
    padding : int, sequence of int, sequence of (low, high) pairs or "valid"
        The amount cut off the ends of the output.
    """

    kernel_size: Size
    stride: Size = 1
    padding: Padding = 0
    dilation: Size = 1


class ReceptiveField(NamedTuple):
    """The receptive field of one output of a stack of layers; ints and Fractions, or tuples with one per axis.

    Output o sees inputs ``[o * stride + start, o * stride + start + size)``, centred on ``o * stride + centre``;
    negative positions and those past the input are padding. Where a layer enlarges images, outputs by turns see more
    or less: `size` is the most, and `start` belongs to the first output that sees so much.
    """

    size: Any
    stride: Any
    start: Any
    centre: Any


def receptive_field(layers: Iterable[Window | TransposedWindow | Size | tuple[Any, ...]]) -> ReceptiveField:
    """Receptive field of one output of a stack of layers: its size, stride and position.

    Parameters
    ----------
    layers : iterable of Window or TransposedWindow
        From the input to the output. An int F stands for ``Window(F)``.

    Returns
    -------
    ReceptiveField
        `size`, `stride` (inputs between neighbouring outputs' fields; a Fraction below 1 where there are more outputs
        than inputs), `start` (first input that output 0 sees) and `centre` (of output 0's field; a Fraction, since an
        even field is centred between two inputs).

    Raises
    ------
    TypeError, ValueError
        A parameter is not an integer or out of range, or layers differ in rank.

    Notes
    -----
    With the layers numbered from the input, ``size = 1 + sum_l D_l (F_l - 1) * prod_{i < l} S_i``. K layers with
    stride 1 see ``1 + K (F - 1)``. It is counted from the output: positions [a, b] of a layer's output see
    ``[a S - P, b S - P + D (F - 1)]`` of its input, and of a transposed layer's those i with
    ``a + P - D (F - 1) <= i S <= b + P``.

    References
    ----------
    A. Araujo, W. Norris, J. Sim, *Computing receptive fields of convolutional neural networks*, Distill, 2019.

    Examples
    --------
    >>> receptive_field([3, 3, 3]).size
    7
    >>> receptive_field([Window(7, stride=2, padding=3), Window(3, stride=2, padding=1)])
    ReceptiveField(size=11, stride=4, start=-5, centre=Fraction(0, 1))
    >>> receptive_field([Window(2, stride=2), TransposedWindow(2, stride=2), 3]).size
    4
    """
    op = "receptive_field"
    windows = [layer if isinstance(layer, Window | TransposedWindow) else Window(layer) for layer in layers]
    given = [value for w in windows for value in (w.kernel_size, w.stride, w.padding, w.dilation)]
    rank = rank_of(op, *given)
    stacks: list[list[_Layer]] = [[] for _ in range(rank)]
    for window in windows:
        kernel = integers(op, "kernel_size", window.kernel_size, rank, 1)
        steps = integers(op, "stride", window.stride, rank, 1)
        gaps = integers(op, "dilation", window.dilation, rank, 1)
        pads = padding_form(op, window.padding, rank)
        if isinstance(pads, str):
            raise ValueError(f"{op}: padding is {pads!r}, expected numbers; same_padding gives them for an input size")
        enlarges = isinstance(window, TransposedWindow)
        for axis, stack in enumerate(stacks):
            stack.append(_Layer(extent(kernel[axis], gaps[axis]), steps[axis], pads[axis][0], enlarges))
    parts: list[Any] = [tuple(part) for part in zip(*map(_field, stacks), strict=True)]
    if not any(is_sequence(value) for value in given):
        parts = [part[0] for part in parts]
    return ReceptiveField(*parts)


class _Layer(NamedTuple):
    """A window along one axis."""

    extent: int
    stride: int
    low: int
    enlarges: bool


def _field(layers: list[_Layer]) -> tuple[int, int | Fraction, int | Fraction, Fraction]:
    """Size, stride, start and centre along one axis."""
    shrinking = prod(layer.stride for layer in layers if not layer.enlarges)
    period = prod(layer.stride for layer in layers if layer.enlarges)  # after which the fields of outputs repeat
    stride = Fraction(shrinking, period)
    size, output, first = 0, 0, 0
    for o in _candidates(layers, period):
        low, high = _seen(o, layers)
        if high - low + 1 > size:
            size, output, first = high - low + 1, o, low
    start = first - output * stride
    return size, _whole(stride), _whole(start), Fraction(size - 1, 2) + start


def _candidates(layers: list[_Layer], period: int) -> Sequence[int]:
    """Outputs that include the first with the largest field.

    Until a window with a stride comes, counted from the output, output o sees ``ceil((o + first) / steps)`` to
    ``floor((o + last) / steps)``: ``[o + first, o + last]`` holds the most multiples of `steps` where one is near its
    start. An output that sees the most there also sees the most of all earlier layers, if none enlarges.
    """
    first, last, steps = 0, 0, 1
    rest = list(layers)
    while rest and (rest[-1].enlarges or rest[-1].stride == 1):
        layer = rest.pop()
        if layer.enlarges:
            first += steps * (layer.low - layer.extent + 1)
            last += steps * layer.low
            steps *= layer.stride
        else:
            first -= steps * layer.low
            last += steps * (layer.extent - 1 - layer.low)
    if any(layer.enlarges for layer in rest):
        return range(period)
    return [max(0, -first % steps - (last - first) % steps)]


def _seen(o: int, layers: list[_Layer]) -> tuple[int, int]:
    """First and last input that output o sees; the last is less than the first where it sees none."""
    low = high = o
    for layer in reversed(layers):
        if layer.enlarges:
            low = -((layer.extent - 1 - low - layer.low) // layer.stride)  # rounded up
            high = (high + layer.low) // layer.stride
        else:
            low = low * layer.stride - layer.low
            high = high * layer.stride - layer.low + layer.extent - 1
    return low, high


def _whole(number: Fraction) -> int | Fraction:
    return int(number) if number.denominator == 1 else number


def _channels(op: str, in_channels: int, out_channels: int, groups: int) -> tuple[int, int, int]:
    inputs = integer(op, "in_channels", in_channels, 1)
    outputs = integer(op, "out_channels", out_channels, 1)
    parts = integer(op, "groups", groups, 1)
    for name, count in (("in_channels", inputs), ("out_channels", outputs)):
        if count % parts:
            raise ValueError(f"{op}: {name} is {count}, expected a multiple of groups = {parts}")
    return inputs, outputs, parts


def conv_parameters(
    in_channels: int, out_channels: int, kernel_size: Size, groups: int = 1, bias: bool = True, rank: int = 2
) -> int:
    """Parameters of a convolution, whose filters are shared by all positions: F * F * D in each filter.

    Parameters
    ----------
    in_channels, out_channels, groups : int
        As of the layer.
    kernel_size : int or sequence of int
        An int stands for `rank` equal ones.
    bias : bool
        Count one bias per filter.
    rank : int
        Spatial axes where `kernel_size` is an int.

    Returns
    -------
    int

    Raises
    ------
    TypeError, ValueError
        A parameter is not an integer or out of range, or the groups do not divide the channels.

    Examples
    --------
    >>> conv_parameters(3, 96, 11)
    34944
    """
    op = "conv_parameters"
    inputs, outputs, parts = _channels(op, in_channels, out_channels, groups)
    axes = rank_of(op, kernel_size, default=integer(op, "rank", rank, 1))
    kernel = integers(op, "kernel_size", kernel_size, axes, 1)
    return outputs * (inputs // parts * prod(kernel) + boolean(op, "bias", bias))


def locally_connected_parameters(
    in_channels: int, out_channels: int, kernel_size: Size, output_size: Size, bias: bool = True, rank: int = 2
) -> int:
    """Parameters of a locally connected layer, with a separate filter at each position: F * F * W * W * D a filter.

    Parameters
    ----------
    in_channels, out_channels : int
        As of the layer.
    kernel_size, output_size : int or sequence of int
        An int stands for `rank` equal ones.
    bias : bool
        Count one bias per filter and position.
    rank : int
        Spatial axes where both sizes are ints.

    Returns
    -------
    int

    Raises
    ------
    TypeError, ValueError
        A parameter is not an integer or out of range.

    Examples
    --------
    >>> locally_connected_parameters(3, 96, 11, 55)
    105705600
    """
    op = "locally_connected_parameters"
    inputs, outputs, _ = _channels(op, in_channels, out_channels, 1)
    axes = rank_of(op, kernel_size, output_size, default=integer(op, "rank", rank, 1))
    kernel = integers(op, "kernel_size", kernel_size, axes, 1)
    positions = prod(integers(op, "output_size", output_size, axes, 1))
    return outputs * positions * (inputs * prod(kernel) + boolean(op, "bias", bias))


def conv_multiply_adds(
    in_channels: int,
    out_channels: int,
    input_size: Size,
    kernel_size: Size,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    rank: int = 2,
) -> int:
    """Multiply-adds of a convolution over one image, taps on padding counted.

    Parameters
    ----------
    in_channels, out_channels, groups : int
        As of the layer.
    input_size, kernel_size, stride, padding, dilation
        As in `conv_output_size`; ints stand for `rank` equal ones.
    rank : int
        Spatial axes where all sizes are ints.

    Returns
    -------
    int

    Raises
    ------
    TypeError, ValueError
        As `conv_output_size`, or the groups do not divide the channels.

    Examples
    --------
    >>> conv_multiply_adds(3, 96, 227, 11, stride=4)
    105415200
    """
    op = "conv_multiply_adds"
    inputs, outputs, parts = _channels(op, in_channels, out_channels, groups)
    kernel, positions = _windows(op, input_size, kernel_size, stride, padding, dilation, rank)
    return outputs * positions * (inputs // parts) * kernel


class Im2colShapes(NamedTuple):
    """(rows, columns) of the matrices of a convolution by im2col, for one image and one group."""

    columns: tuple[int, int]
    filters: tuple[int, int]
    product: tuple[int, int]


def im2col_shapes(
    in_channels: int,
    out_channels: int,
    input_size: Size,
    kernel_size: Size,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    rank: int = 2,
) -> Im2colShapes:
    """Shapes of the matrices with which im2col writes a convolution as ``filters @ columns``.

    Parameters
    ----------
    in_channels, out_channels, groups : int
        As of the layer.
    input_size, kernel_size, stride, padding, dilation
        As in `conv_output_size`; ints stand for `rank` equal ones.
    rank : int
        Spatial axes where all sizes are ints.

    Returns
    -------
    Im2colShapes
        Of one image and one group.

    Raises
    ------
    TypeError, ValueError
        As `conv_output_size`, or the groups do not divide the channels.

    Examples
    --------
    >>> im2col_shapes(3, 96, 227, 11, stride=4)
    Im2colShapes(columns=(363, 3025), filters=(96, 363), product=(96, 3025))
    """
    op = "im2col_shapes"
    inputs, outputs, parts = _channels(op, in_channels, out_channels, groups)
    kernel, positions = _windows(op, input_size, kernel_size, stride, padding, dilation, rank)
    depth, filters = inputs // parts * kernel, outputs // parts
    return Im2colShapes((depth, positions), (filters, depth), (filters, positions))


def _windows(
    op: str, input_size: Size, kernel_size: Size, stride: Size, padding: Padding, dilation: Size, rank: int
) -> tuple[int, int]:
    """Taps of the window and positions that it takes."""
    default = integer(op, "rank", rank, 1)
    axes = window_axes(op, *window_arguments(op, input_size, kernel_size, stride, padding, dilation, default))
    return prod(axis.kernel for axis in axes), prod(axis.out for axis in axes)
