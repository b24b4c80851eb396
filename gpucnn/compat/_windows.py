"""Padding that gives a number of windows, which CuPy's callers and Chainer's ``cover_all`` choose."""

from __future__ import annotations

from collections.abc import Sequence

Ints = Sequence[int]
Pairs = tuple[tuple[int, int], ...]


def outsize(size: int, kernel: int, stride: int, pad: int, cover_all: bool = False, dilation: int = 1) -> int:
    """How many windows fit on an axis; with `cover_all` one more, which overhangs, where they leave a rest."""
    span = size + 2 * pad - (dilation * (kernel - 1) + 1)
    return (span + (stride - 1 if cover_all else 0)) // stride + 1


def transposed_outsize(
    size: int, kernel: int, stride: int, pad: int, cover_all: bool = False, dilation: int = 1
) -> int:
    """The least size of an axis on which `outsize` gives `size`."""
    return stride * (size - 1) + dilation * (kernel - 1) + 1 - 2 * pad - (stride - 1 if cover_all else 0)


def covering(
    op: str, name: str, sizes: Ints, outs: Ints, kernel: Ints, stride: Ints, pad: Ints, dilation: Ints
) -> Pairs:
    """(low, high) of each axis under which there are `outs` windows: `pad` at both ends, and more where one overhangs.

    Raises
    ------
    ValueError
        A window does not fit into the padded axis, or `outs`, the size of the array called `name`, is neither the
        number of windows that fit nor that to cover all.
    """
    pairs = []
    for axis, (size, out, k, s, p, d) in enumerate(zip(sizes, outs, kernel, stride, pad, dilation, strict=True)):
        fit, cover = outsize(size, k, s, p, False, d), outsize(size, k, s, p, True, d)
        window, padded = d * (k - 1) + 1, size + 2 * p
        if cover < 1:
            raise ValueError(
                f"{op}: window of axis {axis} spans {window}, "
                f"expected at most the padded input, {p} + {size} + {p} = {padded}"
            )
        if out not in (fit, cover) or out < 1:
            expected = f"{fit}" if fit == cover else f"{fit} or, with a window that overhangs, {cover}"
            raise ValueError(f"{op}: {name} has size {out} along spatial axis {axis}, expected {expected}")
        pairs.append((p, p + max(0, (out - 1) * s + window - padded)))
    return tuple(pairs)


def unread(sizes: Ints, pads: Pairs, outs: Ints, kernel: Ints, stride: Ints, dilation: Ints) -> tuple[int, ...]:
    """Positions at the high end of each axis, padded by `pads`, that no window reads: a transposed output's padding."""
    axes = zip(sizes, pads, outs, kernel, stride, dilation, strict=True)
    return tuple(size + low + high - (out - 1) * s - (d * (k - 1) + 1) for size, (low, high), out, k, s, d in axes)
