"""Convolution of an image that is spread over ranks by rows: each has a slab of it, and sees its neighbours' rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import gpucnn.functional as F
from gpucnn.backends import backend_of
from gpucnn.distributed.communicator import Array, Communicator
from gpucnn.geometry import Padding, Size, same_padding
from gpucnn.geometry.arguments import SAME, Pairs, integers, padding_form

__all__ = ["conv2d", "conv2d_backward"]


def conv2d(
    input: Array,
    weight: Array,
    communicator: Communicator,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Array:
    """Convolution of images of which each rank has a slab of rows, by `gpucnn.functional.conv2d`.

    Parameters
    ----------
    input : array [N, C, rows, W]
        This rank's rows. All slabs, one below the other in the order of the ranks, are the images; there can be any
        number of rows in each, or none.
    weight : array [OC, C / groups, KH, KW]
        The filters, the same on all ranks.
    communicator : Communicator
        The ranks.
    bias, stride, padding, dilation, groups
        As for `gpucnn.functional.conv2d`, of the whole images.

    Returns
    -------
    array [N, OC, rows, OW]
        This rank's rows of the result: those whose windows have their middle in its slab. So a convolution that keeps
        the size of images, by an odd kernel, a stride of 1 and as much padding on both sides, keeps that of slabs.

    Raises
    ------
    TypeError, ValueError
        As `gpucnn.functional.conv2d`; or `input` has other than four axes.

    See Also
    --------
    conv2d_backward

    Notes
    -----
    A rank receives the rows of others that its windows reach, and no more; padding is at the images' ends only.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from gpucnn.distributed import local
    >>> image = np.arange(5.0).reshape(1, 1, 5, 1)
    >>> slabs = [image[:, :, :2], image[:, :, 2:]]
    >>> ones = np.ones((1, 1, 3, 1))
    >>> with ThreadPoolExecutor(2) as threads:
    ...     for y in threads.map(lambda ranks: conv2d(slabs[ranks.rank], ones, ranks, padding=(1, 0)), local(2)):
    ...         print(y.ravel())
    [1. 3.]
    [6. 9. 7.]
    """
    split = _Split("conv2d", input, weight, communicator, stride, padding, dilation)
    window = split.gathered(input)
    if not split.outputs:
        return backend_of(input).xp.zeros(split.result_shape(input, weight), input.dtype)
    return F.conv2d(window, weight, bias, stride, split.padding, dilation, groups)


def conv2d_backward(
    grad_output: Array,
    input: Array,
    weight: Array,
    communicator: Communicator,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    needs: Sequence[bool] = (True, True, True),
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of `conv2d`.

    Parameters
    ----------
    grad_output : array [N, OC, rows, OW]
        Gradient of the loss with respect to this rank's rows of the result.
    input, weight, communicator, bias, stride, padding, dilation, groups
        As they were given to `conv2d`.
    needs : sequence of 3 bools
        Which gradients to compute, the same on all ranks; the others are None.

    Returns
    -------
    tuple of (array or None)
        The gradient of this rank's rows of the input; those of weight and bias (None where absent) of the whole images,
        with the same bits on all ranks.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`, or a shape does not fit.

    Notes
    -----
    Sums over ranks are added in the order of the ranks.
    """
    split = _Split("conv2d_backward", input, weight, communicator, stride, padding, dilation)
    expected = split.result_shape(input, weight)
    if tuple(grad_output.shape) != expected:
        raise ValueError(f"conv2d_backward: grad_output has shape {tuple(grad_output.shape)}, expected {expected}")
    window, xp = split.gathered(input), backend_of(input).xp
    if split.outputs:
        arguments = (grad_output, window, weight, bias, stride, split.padding, dilation, groups)
        grad_window, *grads = F.conv2d_backward(*arguments, needs=needs)
    else:
        grad_window = window if needs[0] else None
        others = zip((weight, bias), needs[1:], strict=True)
        grads = [xp.zeros_like(array) if array is not None and needed else None for array, needed in others]
    grad_input = None if grad_window is None else split.returned(grad_window, input)
    of_weight, of_bias = (None if grad is None else communicator.all_reduce(grad) for grad in grads)
    return grad_input, of_weight, of_bias


class _Split:
    """Which rows of the images and of the result each rank has, and which rows its windows read.

    Rows are numbered from the top of the images; those of the padding are below 0, or past the last one.
    """

    def __init__(
        self,
        op: str,
        x: Array,
        weight: Array,
        communicator: Communicator,
        stride: Size,
        padding: Padding,
        dilation: Size,
    ) -> None:
        for name, array in (("input", x), ("weight", weight)):
            if array.ndim != 4:
                raise ValueError(f"{op}: {name} has {array.ndim} dimensions, expected 4")
        self._communicator, self.rank = communicator, communicator.rank
        heights = communicator.all_gather(np.array([x.shape[2]]))[:, 0]
        self._bounds = [0, *np.cumsum(heights).tolist()]
        kernel = tuple(weight.shape[2:])
        self._step, self._spread = integers(op, "stride", stride, 2, 1), integers(op, "dilation", dilation, 2, 1)
        sizes = (self._bounds[-1], x.shape[3])
        form = padding_form(op, padding, 2)
        pads: Pairs = form if not isinstance(form, str) else same_padding(
            sizes, kernel, self._step, self._spread, lower=form == SAME[1]
        )  # fmt: skip
        self.padding = ((0, 0), pads[1])  # of a window's rows, among which those of the padding are
        self._low = pads[0][0]
        self._reach = [step * (taps - 1) + 1 for step, taps in zip(self._spread, kernel, strict=True)]
        rows, self._width = (
            (size + sum(pad) - reach) // step + 1
            for size, pad, reach, step in zip(sizes, pads, self._reach, self._step, strict=True)
        )
        if rows < 1 or self._width < 1:
            raise ValueError(f"{op}: images of {sizes} are smaller than the window {tuple(self._reach)} with padding")
        middle = (self._reach[0] - 1) // 2
        inner = (-((middle - self._low - bound) // self._step[0]) for bound in self._bounds[1:-1])  # rounded up
        self._starts = [0, *(min(rows, max(0, start)) for start in inner), rows]

    @property
    def outputs(self) -> int:
        """The number of rows of the result that this rank has."""
        return int(self._starts[self.rank + 1] - self._starts[self.rank])

    def result_shape(self, x: Array, weight: Array) -> tuple[int, ...]:
        """The shape of this rank's part of the result."""
        return x.shape[0], weight.shape[0], self.outputs, self._width

    def _read(self, rank: int) -> range:
        """The rows that the windows of a rank read, those of the padding included."""
        first, last = self._starts[rank], self._starts[rank + 1] - 1
        if last < first:
            return range(0)
        return range(first * self._step[0] - self._low, last * self._step[0] - self._low + self._reach[0])

    def _shared(self, reader: int, owner: int) -> range:
        """The rows of `owner` that `reader` reads."""
        rows = self._read(reader)
        start, stop = max(rows.start, self._bounds[owner]), min(rows.stop, self._bounds[owner + 1])
        return range(start, max(start, stop))

    def _of_slab(self, array: Array, reader: int) -> Array:
        """The rows of this rank's slab that `reader` reads."""
        rows, first = self._shared(reader, self.rank), self._bounds[self.rank]
        return array[:, :, rows.start - first : rows.stop - first]

    def _of_window(self, array: Array, owner: int) -> Array:
        """The rows of what this rank's windows read that are in the slab of `owner`."""
        rows, first = self._shared(self.rank, owner), self._read(self.rank).start
        return array[:, :, rows.start - first : rows.stop - first]

    def gathered(self, x: Array) -> Array:
        """All rows that this rank's windows read, with zeros for the padding."""
        window = backend_of(x).xp.zeros((*x.shape[:2], len(self._read(self.rank)), x.shape[3]), x.dtype)
        peers = [peer for peer in range(self._communicator.size) if peer != self.rank]
        sends = {peer: self._of_slab(x, peer) for peer in peers if self._shared(peer, self.rank)}
        receives = {peer: self._of_window(window, peer) for peer in peers if self._shared(self.rank, peer)}
        self._communicator.exchange(sends, receives)
        if self._shared(self.rank, self.rank):
            self._of_window(window, self.rank)[...] = self._of_slab(x, self.rank)
        return window

    def returned(self, grad: Array, x: Array) -> Array:
        """The gradient of this rank's slab, given that of all rows that its windows read; others' parts are sent."""
        xp = backend_of(x).xp
        peers = [peer for peer in range(self._communicator.size) if peer != self.rank]
        sends = {peer: self._of_window(grad, peer) for peer in peers if self._shared(self.rank, peer)}
        readers = [reader for reader in range(self._communicator.size) if self._shared(reader, self.rank)]
        parts = {reader: xp.empty(self._of_slab(x, reader).shape, x.dtype) for reader in readers}
        self._communicator.exchange(sends, {reader: part for reader, part in parts.items() if reader != self.rank})
        if self.rank in parts:
            parts[self.rank] = self._of_window(grad, self.rank)
        total = xp.zeros(x.shape, x.dtype)
        for reader in readers:
            self._of_slab(total, reader)[...] += parts[reader]
        return total
