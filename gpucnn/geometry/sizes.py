"""Output sizes and ``"same"`` padding, for callers and for the geometries alike."""

from __future__ import annotations

from typing import Any

from gpucnn.geometry.arguments import (
    LARGEST,
    SAME,
    Padding,
    Pairs,
    Size,
    boolean,
    integers,
    is_sequence,
    padding_form,
    rank_of,
    window_sizes,
)
from gpucnn.geometry.axes import Axis, extent


def _same_pair(size: int, kernel: int, stride: int, dilation: int, *, lower: bool) -> tuple[int, int]:
    out = -(-size // stride)
    total = max(0, (out - 1) * stride + extent(kernel, dilation) - size)
    small, large = total // 2, total - total // 2
    return (large, small) if lower else (small, large)


def _resolved(form: str | Pairs, *axes: tuple[int, ...]) -> Pairs:
    if isinstance(form, str):
        return tuple(_same_pair(*axis, lower=form == "same_lower") for axis in zip(*axes, strict=True))
    return form


def _windows_that_fit(size: int, kernel: int, stride: int, dilation: int, low: int, high: int, ceil_mode: bool) -> int:
    """Output size along one axis; less than 1 where no window fits."""
    span = size + low + high - extent(kernel, dilation)
    out = span // stride + 1
    # ceil_mode admits one more window, which overhangs, if it starts on the input or its low padding
    overhangs = span % stride != 0 and out * stride < size + low
    return out + 1 if ceil_mode and overhangs else out


def window_axes(
    op: str,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: str | Pairs,
    dilation: tuple[int, ...],
    ceil_mode: bool = False,
) -> tuple[Axis, ...]:
    """The axes of windows that slide over inputs of `sizes`.

    Raises
    ------
    ValueError
        A window does not fit once into the padded input.
    """
    axes = []
    pairs = _resolved(padding, sizes, kernel, stride, dilation)
    for index, (size, k, s, d, (low, high)) in enumerate(zip(sizes, kernel, stride, dilation, pairs, strict=True)):
        out = _windows_that_fit(size, k, s, d, low, high, ceil_mode)
        if out < 1:
            raise ValueError(
                f"{op}: window of axis {index} spans dilation * (kernel - 1) + 1 = {extent(k, d)}, "
                f"expected at most the padded input, {low} + {size} + {high} = {size + low + high}"
            )
        axes.append(Axis(size, k, s, d, low, high, out))
    return tuple(axes)


def pool_axes(
    op: str,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: str | Pairs,
    dilation: tuple[int, ...],
    ceil_mode: bool,
) -> tuple[Axis, ...]:
    """As `window_axes`, for pooling.

    Raises
    ------
    ValueError
        As `window_axes`, or the padding is as large as the window.
    """
    axes = window_axes(op, sizes, kernel, stride, padding, dilation, ceil_mode)
    for index, axis in enumerate(axes):
        window = extent(axis.kernel, axis.dilation)
        if max(axis.low, axis.high) >= window:
            raise ValueError(
                f"{op}: padding of axis {index} is ({axis.low}, {axis.high}), "
                f"expected less than the window, dilation * (kernel - 1) + 1 = {window}"
            )
    return axes


def transposed_axes(
    op: str,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: str | Pairs,
    output_padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[Axis, ...]:
    """The axes of the convolution whose backward reads inputs of `sizes`, so has `sizes` as its outputs."""
    if padding in SAME:
        if any(output_padding):
            raise ValueError(f"{op}: output_padding is {output_padding}, expected 0 with padding {padding!r}")
        results = tuple(size * step for size, step in zip(sizes, stride, strict=True))
        return window_axes(op, results, kernel, stride, padding, dilation)
    axes = []
    columns = zip(sizes, kernel, stride, dilation, output_padding, padding, strict=True)
    for index, (size, k, s, d, extra, (low, high)) in enumerate(columns):
        if extra >= max(s, d):
            raise ValueError(
                f"{op}: output_padding of axis {index} is {extra}, expected less than stride {s} or dilation {d}"
            )
        result = (size - 1) * s - low - high + extent(k, d) + extra
        if result < 1:
            raise ValueError(
                f"{op}: output of axis {index} has size {result}, expected at least 1; "
                f"padding ({low}, {high}) cuts all of it"
            )
        axes.append(Axis(result, k, s, d, low, high, size))
    return tuple(axes)


def unpooled_size(
    sizes: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], padding: str | Pairs
) -> tuple[int, ...]:
    """The default size of unpooling; less than 1 where the padding cuts off all of it."""
    if padding in SAME:
        return tuple(size * step for size, step in zip(sizes, stride, strict=True))
    columns = zip(sizes, kernel, stride, padding, strict=True)
    return tuple((size - 1) * s - low - high + k for size, k, s, (low, high) in columns)  # type: ignore[operator]


def expect_output(op: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """`sizes` of an output, or ValueError where one is less than 1."""
    for index, size in enumerate(sizes):
        if size < 1:
            raise ValueError(f"{op}: output of axis {index} has size {size}, expected at least 1")
    return sizes


def expect_largest(op: str, name: str, sizes: tuple[int, ...]) -> None:
    """Raise ValueError where an axis of an output is longer than a kernel can take."""
    for index, size in enumerate(sizes):
        if size > LARGEST:
            raise ValueError(f"{op}: {name} makes axis {index} {size} long, expected at most {LARGEST}")


def _in_form_of(given: tuple[Any, ...], values: tuple[Any, ...]) -> Any:
    """One value if all arguments are single values, else a tuple with one per axis."""
    return values if any(is_sequence(value) for value in given) else values[0]


def same_padding(
    input_size: Size, kernel_size: Size, stride: Size = 1, dilation: Size = 1, *, lower: bool = False
) -> Any:
    """Padding with which a window of any stride gives ``ceil(input / stride)`` outputs.

    Parameters
    ----------
    input_size, kernel_size, stride, dilation : int or sequence of int
        One value per spatial axis, or one for all of them.
    lower : bool
        Put the odd one at the low end (``"same_lower"``, ONNX ``SAME_LOWER``), not at the high end (``"same"``).

    Returns
    -------
    tuple
        ``(low, high)`` if all that was given are single values, else one such pair per axis.

    Raises
    ------
    TypeError, ValueError
        A parameter is not an integer, or out of range.

    Notes
    -----
    ``total = max(0, (ceil(input / stride) - 1) * stride + dilation * (kernel - 1) + 1 - input)``, as in TensorFlow.
    PyTorch knows ``"same"`` with stride 1 only, where both agree.

    Examples
    --------
    >>> same_padding(224, 3, stride=2)
    (0, 1)
    >>> same_padding((5, 8), 3)
    ((1, 1), (1, 1))
    """
    op = "same_padding"
    given = input_size, kernel_size, stride, dilation
    rank = rank_of(op, *given)
    sizes = integers(op, "input_size", input_size, rank, 1)
    kernel, steps, gaps = window_sizes(op, rank, kernel_size, stride, dilation)
    return _in_form_of(
        given, _resolved("same_lower" if boolean(op, "lower", lower) else "same", sizes, kernel, steps, gaps)
    )


def conv_output_size(
    input_size: Size, kernel_size: Size, stride: Size = 1, padding: Padding = 0, dilation: Size = 1
) -> Any:
    """Output size of a convolution: ``(W - F + 2 P) / S + 1``, rounded down, where a dilated F is ``D (F - 1) + 1``.

    Parameters
    ----------
    input_size, kernel_size, stride, dilation : int or sequence of int
        One value per spatial axis, or one for all of them.
    padding : int, sequence of int, sequence of (low, high) pairs, "valid", "same" or "same_lower"
        Zeros around the input.

    Returns
    -------
    int or tuple of int
        An int if all that was given are single values.

    Raises
    ------
    TypeError, ValueError
        A parameter is not an integer or out of range, or the window does not fit once.

    Examples
    --------
    >>> conv_output_size(227, 11, stride=4)
    55
    >>> conv_output_size((32, 32), 3, padding="same", stride=2)
    (16, 16)
    """
    op = "conv_output_size"
    given = input_size, kernel_size, stride, padding, dilation
    axes = window_axes(op, *window_arguments(op, *given))
    return _in_form_of(given, tuple(axis.out for axis in axes))


def pool_output_size(
    input_size: Size,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Any:
    """Output size of a pooling layer; `stride` is the window where it is not given.

    Parameters
    ----------
    input_size, kernel_size, stride, dilation : int or sequence of int
        One value per spatial axis, or one for all of them.
    padding : int, sequence of int, sequence of (low, high) pairs, "valid", "same" or "same_lower"
        Positions around the input that no value is read from.
    ceil_mode : bool
        Round up: one more window that overhangs the high end, unless it would start past input and low padding.
        Also a first window may overhang, by less than a stride.

    Returns
    -------
    int or tuple of int
        An int if all that was given are single values.

    Raises
    ------
    TypeError, ValueError
        A parameter is not an integer or out of range, the window does not fit once, or the padding is as large as it.

    Examples
    --------
    >>> pool_output_size(112, 3, stride=2, padding=1)
    56
    >>> pool_output_size(6, 3, stride=2, ceil_mode=True)
    3
    """
    op = "pool_output_size"
    given = input_size, kernel_size, kernel_size if stride is None else stride, padding, dilation
    axes = pool_axes(op, *window_arguments(op, *given), boolean(op, "ceil_mode", ceil_mode))
    return _in_form_of(given, tuple(axis.out for axis in axes))


def window_arguments(
    op: str, input_size: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, default_rank: int = 1
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], str | Pairs, tuple[int, ...]]:
    """The arguments in the form and order in which `window_axes` takes them."""
    rank = rank_of(op, input_size, kernel_size, stride, padding, dilation, default=default_rank)
    sizes = integers(op, "input_size", input_size, rank, 1)
    kernel, steps, gaps = window_sizes(op, rank, kernel_size, stride, dilation)
    return sizes, kernel, steps, padding_form(op, padding, rank), gaps


def conv_transpose_output_size(
    input_size: Size,
    kernel_size: Size,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
) -> Any:
    """Output size of a transposed convolution: ``(W - 1) S - 2 P + D (F - 1) + output_padding + 1``.

    Parameters
    ----------
    input_size, kernel_size, stride, output_padding, dilation : int or sequence of int
        One value per spatial axis, or one for all of them; `output_padding` is smaller than `stride` or `dilation`.
    padding : int, sequence of int, sequence of (low, high) pairs, "valid", "same" or "same_lower"
        The amount cut off the output. ``"same"`` and ``"same_lower"`` give ``input * stride``.

    Returns
    -------
    int or tuple of int
        An int if all that was given are single values.

    Raises
    ------
    TypeError, ValueError
        A parameter is not an integer or out of range, or the padding cuts the whole output.

    Examples
    --------
    >>> conv_transpose_output_size(4, 4, stride=2, padding=1)
    8
    >>> conv_transpose_output_size((5, 7), 3, stride=2, padding="same")
    (10, 14)
    """
    op = "conv_transpose_output_size"
    given = input_size, kernel_size, stride, padding, output_padding, dilation
    rank = rank_of(op, *given)
    sizes = integers(op, "input_size", input_size, rank, 1)
    kernel, steps, gaps = window_sizes(op, rank, kernel_size, stride, dilation)
    extra = integers(op, "output_padding", output_padding, rank, 0)
    axes = transposed_axes(op, sizes, kernel, steps, padding_form(op, padding, rank), extra, gaps)
    return _in_form_of(given, tuple(axis.size for axis in axes))


def max_unpool_output_size(
    input_size: Size, kernel_size: Size, stride: Size | None = None, padding: Padding = 0
) -> Any:
    """Default output size of unpooling: ``(W - 1) S - 2 P + F``.

    Parameters
    ----------
    input_size, kernel_size, stride : int or sequence of int
        One value per spatial axis, or one for all of them; `stride` is the window where it is not given.
    padding : int, sequence of int, sequence of (low, high) pairs, "valid", "same" or "same_lower"
        As it was given to the pooling. ``"same"`` and ``"same_lower"`` give ``input * stride``.

    Returns
    -------
    int or tuple of int
        An int if all that was given are single values.

    Raises
    ------
    TypeError, ValueError
        A parameter is not an integer or out of range, or the padding cuts the whole output.

    Examples
    --------
    >>> max_unpool_output_size(56, 2)
    112
    """
    op = "max_unpool_output_size"
    given = input_size, kernel_size, stride, padding
    rank = rank_of(op, *given)
    sizes = integers(op, "input_size", input_size, rank, 1)
    kernel, steps, _ = window_sizes(op, rank, kernel_size, kernel_size if stride is None else stride, 1)
    results = unpooled_size(sizes, kernel, steps, padding_form(op, padding, rank))
    return _in_form_of(given, expect_output(op, results))
