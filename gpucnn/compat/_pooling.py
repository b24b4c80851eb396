"""Pooling whose output size is the caller's, for cuDNN's and Chainer's names."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import gpucnn.functional as F
from gpucnn.compat._arrays import Array
from gpucnn.compat._windows import Pairs, covering
from gpucnn.geometry.arguments import integers

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Windows:
    """The windows of a pooling over images of `sizes`; of `outs` along each axis the first `used` meet the image."""

    sizes: Ints
    outs: Ints
    used: Ints
    kernel: Ints
    stride: Ints
    pads: Pairs

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.sizes)

    def operation(self, name: str) -> Any:
        """The operation of this rank, such as that of ``"max_pool{}d"``."""
        return getattr(F, name.format(self.rank))

    def met(self, output: Array) -> Array:
        """The part of an array [N, C, *outs] that belongs to windows which meet the image."""
        return output if self.used == self.outs else output[(..., *map(slice, self.used))]

    def pool(self, name: str, image: Array, output: Array, **options: Any) -> None:
        """Write the pooling called `name` to output [N, C, *outs]; of padding alone a maximum is -inf, an average 0."""
        if self.used != self.outs:
            output[...] = -inf if name == "max_pool{}d" else 0
        self.operation(name)(image, self.kernel, self.stride, self.pads, **options, out=self.met(output))

    def spread(self, grad: Array, image: Array) -> Array:
        """The sum over the windows that contain each position of `image`, whose values are not read."""
        pooled = self.kernel, self.stride, self.pads
        return self.operation("sum_pool{}d_backward")(self.met(grad), image, *pooled)[0]


def windows(op: str, name: str, sizes: Ints, outs: Ints, ksize: Any, stride: Any, pad: Any) -> Windows:
    """Check a pooling of images of `sizes` to an array called `name`, of the size `outs`.

    Raises
    ------
    TypeError, ValueError
        A parameter is not an integer or out of range, the padding is as large as the window, or `outs` does not fit.
    """
    rank = len(sizes)
    kernel = integers(op, "ksize", ksize, rank, 1)
    steps = kernel if stride is None else integers(op, "stride", stride, rank, 1)
    low = integers(op, "pad", pad, rank, 0)
    if any(p >= k for p, k in zip(low, kernel, strict=True)):
        raise ValueError(f"{op}: pad is {low}, expected less than the window, {kernel}")
    covering(op, name, sizes, outs, kernel, steps, low, (1,) * rank)
    # with an overhang, the last window may start past the image: it reads nothing but padding
    starts = tuple(-(-(size + p) // s) for size, p, s in zip(sizes, low, steps, strict=True))
    used = tuple(map(min, outs, starts))
    pads = covering(op, name, sizes, used, kernel, steps, low, (1,) * rank)
    return Windows(sizes, outs, used, kernel, steps, pads)
