"""Pooling layers, and layers that make images larger: unpooling and upsampling."""

from __future__ import annotations

from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.backends import receive
from gpucnn.backends.layout import is_channels_last
from gpucnn.functional._call import choice
from gpucnn.geometry import Padding, Size, TransposedWindow, Window
from gpucnn.geometry.arguments import boolean, is_sequence, number, plain
from gpucnn.geometry.axes import extent
from gpucnn.nn._family import Enlarging, Ranked, Sliding, shown
from gpucnn.nn._joining import in_order
from gpucnn.nn.module import Array, Module

__all__ = [
    "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d", "AvgPool1d", "AvgPool2d", "AvgPool3d", "BedOfNails1d", "BedOfNails2d", "BedOfNails3d",
    "LPPool1d", "LPPool2d", "LPPool3d", "MaxPool1d", "MaxPool2d", "MaxPool3d", "MaxUnpool1d", "MaxUnpool2d",
    "MaxUnpool3d", "SumPool1d", "SumPool2d", "SumPool3d", "Upsample",
]  # fmt: skip


class PlainNd(Ranked):
    """A layer that is one operation of its input, with `options` as its other arguments."""

    def options(self) -> dict[str, Any]:
        """The arguments of the operation by name."""
        raise NotImplementedError

    def forward(self, x: Array) -> Array:
        """Array [N, C, *space] or [C, *space] to array [N, C, *out] or [C, *out]."""
        y = self.function(x, **self.options())
        self.keep(x)
        return y

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the input."""
        (x,) = self.kept()
        (grad,) = self.gradient(grad_output, x, **self.options(), needs=(self.needs_input_grad,))
        return self._in_order(grad, x)

    def _in_order(self, grad: Array, x: Array) -> Array:
        """The gradient of x in x's memory order."""
        _, (image,), _ = receive(type(self).__name__, {"input": x})
        return in_order(grad, image.ndim == self.rank + 2 and is_channels_last(image))

    def extra_repr(self) -> str:
        """The arguments."""
        return shown(**self.options())


class WindowedNd(PlainNd, Sliding):
    """A pooling layer whose window steps over the image."""

    def _set_pool(
        self, kernel_size: Size, stride: Size | None, padding: Padding, dilation: Size, ceil_mode: bool
    ) -> None:
        self._set_window(kernel_size, kernel_size if stride is None else stride, padding, dilation)
        self.ceil_mode = boolean(type(self).__name__, "ceil_mode", ceil_mode)

    def options(self) -> dict[str, Any]:
        """The window."""
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "ceil_mode": self.ceil_mode,
        }


# --- Max pooling and its unpooling --------------------------------------------------------------------------------


class MaximaNd(PlainNd):
    """A max pooling layer: its backward, and the caller if asked for, get the indices of the maxima."""

    return_indices: bool
    _keeps_indices = False  # whatever else is kept, for the layer that undoes this one

    def forward(self, x: Array) -> Any:
        """Array [N, C, *space] or [C, *space] to array [N, C, *out] or [C, *out], and indices if these are returned."""
        if not (self.keeps or self._keeps_indices or self.return_indices):
            self.forget()
            return self.function(x, **self.options())
        y, indices = self.function(x, **self.options(), return_indices=True)
        self.keep(x, indices)
        if self._keeps_indices:
            self._for_unpooling = indices, self._space(x.shape)
        return (y, indices) if self.return_indices else y

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the input: each output's goes to its maximum."""
        x, indices = self.kept()
        needs = (self.needs_input_grad,)
        (grad,) = self.gradient(grad_output, x, **self.options(), indices=indices, needs=needs)
        return self._in_order(grad, x)


class MaxPoolNd(MaximaNd, WindowedNd, op="max_pool{n}d"):
    """{n}-d max pooling, as ``torch.nn.MaxPool{n}d``.

    Parameters
    ----------
    kernel_size, stride, dilation : int or sequence of {n} int
        Size of the window, its step (the window itself where it is None), and the step of its taps.
    padding : int, sequence of {n} int or (low, high) pairs, "valid", "same" or "same_lower"
        Positions around the image, whose values are never read.
    return_indices : bool
        Let forward return ``(y, indices)``, for `MaxUnpool{n}d`; backward takes the gradient of y.
    ceil_mode : bool
        Round the output size up.

    Examples
    --------
    >>> MaxPool{n}d(2)(np.ones((1, 3, {4}))).shape
    (1, 3, {2})
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        self._set_pool(kernel_size, stride, padding, dilation, ceil_mode)
        self.return_indices = boolean(type(self).__name__, "return_indices", return_indices)

    def take_for_unpooling(self, by: str) -> tuple[Array, tuple[int, ...]]:
        """The indices of the last forward's maxima, and the size of its images; once for each forward."""
        taken: tuple[Array, tuple[int, ...]] | None = vars(self).pop("_for_unpooling", None)
        if taken is None:
            raise RuntimeError(f"{by}: its {type(self).__name__} has no forward whose maxima to put back")
        return taken


class MaxUnpoolNd(PlainNd, Enlarging, op="max_unpool{n}d"):
    """{n}-d max unpooling: put each value back where the maximum was, zeros elsewhere; ``torch.nn.MaxUnpool{n}d``.

    Parameters
    ----------
    kernel_size : MaxPool{n}d, or int or sequence of {n} int
        The pooling layer to undo, whose window and last indices are then taken, or its window.
    stride : int or sequence of {n} int, optional
        As of the pooling; the window itself where it is None.
    padding : int, sequence of {n} int or (low, high) pairs, "valid", "same" or "same_lower"
        As of the pooling.

    Notes
    -----
    A layer made from its pooling layer takes the indices of that one's last forward, once, so that a network can be
    written as a chain; ``forward(x, indices, output_size)`` is PyTorch's way.

    Examples
    --------
    >>> pool = MaxPool{n}d(2)
    >>> unpool = MaxUnpool{n}d(pool)
    >>> x = np.arange({4**n}.0).reshape(1, 1, {4})
    >>> up = unpool(pool(x))
    >>> up.shape, int((up != 0).sum())
    ((1, 1, {4}), {2**n})
    """

    _pool: tuple[MaxPoolNd, ...] = ()  # in a tuple, since it is no part of this layer

    def __init__(self, kernel_size: MaxPoolNd | Size, stride: Size | None = None, padding: Padding = 0) -> None:
        name = type(self).__name__
        if isinstance(kernel_size, MaxPoolNd):
            pool = kernel_size
            if pool.rank != self.rank:
                raise ValueError(f"{name}: got {type(pool).__name__}, expected MaxPool{self.rank}d")
            if stride is not None or padding != 0:
                raise ValueError(f"{name}: got a pooling layer with stride or padding, expected that layer alone")
            self._pool = (pool,)
            pool._keeps_indices = True
            spans = zip(pool.kernel_size, pool.dilation, strict=True)
            kernel_size, stride, padding = tuple(extent(k, d) for k, d in spans), pool.stride, pool.padding
        self._set_window(kernel_size, kernel_size if stride is None else stride, padding)

    def forward(self, x: Array, indices: Array | None = None, output_size: Any = None) -> Array:
        """Array [N, C, *space] or [C, *space] to array [N, C, *out] or [C, *out].

        Parameters
        ----------
        x : array [N, C, *space] or [C, *space]
        indices : array of int64 in the shape of `x`, optional
            Position of each value in its flattened output plane; those of its pooling layer where it was made from one.
        output_size : int or sequence of int, optional
            Spatial size of the output, or its whole shape.

        Raises
        ------
        TypeError
            There are neither indices nor a pooling layer.
        RuntimeError
            The pooling layer had no forward since its indices were last taken.
        """
        name = type(self).__name__
        if indices is None:
            if not self._pool:
                raise TypeError(f"{name}: indices is None, expected an array, or a layer made from its pooling layer")
            indices, size = self._pool[0].take_for_unpooling(name)
            output_size = size if output_size is None else output_size
        y = self.function(x, indices, **self.options(), output_size=output_size)
        self.keep(x, indices, output_size)
        return y

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the values, from where they were put."""
        x, indices, output_size = self.kept()
        needs = (self.needs_input_grad, False)
        return self.gradient(grad_output, x, indices, **self.options(), output_size=output_size, needs=needs)[0]

    def options(self) -> dict[str, Any]:
        """The window."""
        return {"kernel_size": self.kernel_size, "stride": self.stride, "padding": self.padding}


# --- Averages, sums and powers ------------------------------------------------------------------------------------


class AvgPoolNd(WindowedNd, op="avg_pool{n}d"):
    """{n}-d average pooling, as ``torch.nn.AvgPool{n}d``.

    Parameters
    ----------
    kernel_size, stride : int or sequence of {n} int
        Size of the window, and its step (the window itself where it is None).
    padding : int, sequence of {n} int or (low, high) pairs, "valid", "same" or "same_lower"
        Zeros around the image.
    ceil_mode : bool
        Round the output size up.
    count_include_pad : bool
        Divide by the taps on image and padding; else by those on the image.
    divisor_override : number, optional
        Divide by this instead.
    dilation : int or sequence of {n} int
        Step of the window's taps; PyTorch has none.

    Examples
    --------
    >>> y = AvgPool{n}d(2)(np.ones((1, 3, {4})))
    >>> y.shape, np.unique(y)
    ((1, 3, {2}), array([1.]))
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: float | None = None,
        dilation: Size = 1,
    ) -> None:
        name = type(self).__name__
        self._set_pool(kernel_size, stride, padding, dilation, ceil_mode)
        self.count_include_pad = boolean(name, "count_include_pad", count_include_pad)
        self.divisor_override = None
        if divisor_override is not None:
            self.divisor_override = number(name, "divisor_override", divisor_override)
            if not self.divisor_override:
                raise ValueError(f"{name}: divisor_override is 0, expected another number")

    def options(self) -> dict[str, Any]:
        """The window and the divisor."""
        return super().options() | {
            "count_include_pad": self.count_include_pad,
            "divisor_override": self.divisor_override,
        }


class SumPoolNd(WindowedNd, op="sum_pool{n}d"):
    """{n}-d sum pooling; PyTorch has no such layer.

    Parameters
    ----------
    kernel_size, stride, dilation : int or sequence of {n} int
        Size of the window, its step (the window itself where it is None), and the step of its taps.
    padding : int, sequence of {n} int or (low, high) pairs, "valid", "same" or "same_lower"
        Zeros around the image.
    ceil_mode : bool
        Round the output size up.

    Examples
    --------
    >>> y = SumPool{n}d(2)(np.ones((1, 3, {4})))
    >>> y.shape, np.unique(y)
    ((1, 3, {2}), array([{2**n}.]))
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        dilation: Size = 1,
    ) -> None:
        self._set_pool(kernel_size, stride, padding, dilation, ceil_mode)


class LPPoolNd(WindowedNd, op="lp_pool{n}d"):
    """{n}-d power-average pooling, ``(sum of x**p) ** (1 / p)``, as ``torch.nn.LPPool{n}d``.

    Parameters
    ----------
    norm_type : float
        The power p, more than 0.
    kernel_size, stride : int or sequence of {n} int
        Size of the window, and its step (the window itself where it is None).
    ceil_mode : bool
        Round the output size up.
    padding : int, sequence of {n} int or (low, high) pairs, "valid", "same" or "same_lower"
        Zeros around the image; PyTorch has none.
    dilation : int or sequence of {n} int
        Step of the window's taps; PyTorch has none.

    Examples
    --------
    >>> y = LPPool{n}d(1, 2)(np.ones((1, 3, {4})))
    >>> y.shape, np.unique(y)
    ((1, 3, {2}), array([{2**n}.]))
    """

    def __init__(
        self,
        norm_type: float,
        kernel_size: Size,
        stride: Size | None = None,
        ceil_mode: bool = False,
        padding: Padding = 0,
        dilation: Size = 1,
    ) -> None:
        self.norm_type = number(type(self).__name__, "norm_type", norm_type)
        if self.norm_type <= 0:
            raise ValueError(f"{type(self).__name__}: norm_type is {norm_type}, expected more than 0")
        self._set_pool(kernel_size, stride, padding, dilation, ceil_mode)

    def options(self) -> dict[str, Any]:
        """The power and the window."""
        return {"norm_type": self.norm_type} | super().options()


# --- Adaptive pooling ---------------------------------------------------------------------------------------------


class AdaptiveNd(PlainNd):
    """A pooling layer with a given number of windows."""

    output_size: Any

    def __init__(self, output_size: Any) -> None:
        given = tuple(output_size) if is_sequence(output_size) else (output_size,) * self.rank
        sizes = self._sizes("output_size", tuple(1 if size is None else size for size in given))
        self.output_size = tuple(None if size is None else read for size, read in zip(given, sizes, strict=True))

    def options(self) -> dict[str, Any]:
        """The size of the output."""
        return {"output_size": self.output_size}

    def window(self, input_shape: tuple[int, ...]) -> Window | None:
        """The window, where all are of one size."""
        sizes = zip(self._space(input_shape), self.output_size, strict=True)
        pairs = [(size, size if out is None else out) for size, out in sizes]
        if any(size % out for size, out in pairs):
            return None
        steps = tuple(size // out for size, out in pairs)
        return Window(steps, steps)


class AdaptiveMaxPoolNd(MaximaNd, AdaptiveNd, op="adaptive_max_pool{n}d"):
    """{n}-d max pooling to a given size, as ``torch.nn.AdaptiveMaxPool{n}d``.

    Parameters
    ----------
    output_size : int, None, or sequence of {n} of them
        Size of the output; None keeps an axis as it is.
    return_indices : bool
        Let forward return ``(y, indices)``; backward takes the gradient of y.

    Examples
    --------
    >>> AdaptiveMaxPool{n}d(3)(np.ones((1, 3, {7}))).shape
    (1, 3, {3})
    """

    def __init__(self, output_size: Any, return_indices: bool = False) -> None:
        super().__init__(output_size)
        self.return_indices = boolean(type(self).__name__, "return_indices", return_indices)


class AdaptiveAvgPoolNd(AdaptiveNd, op="adaptive_avg_pool{n}d"):
    """{n}-d average pooling to a given size, as ``torch.nn.AdaptiveAvgPool{n}d``.

    Parameters
    ----------
    output_size : int, None, or sequence of {n} of them
        Size of the output; None keeps an axis as it is.

    Examples
    --------
    >>> AdaptiveAvgPool{n}d(1)(np.ones((1, 3, {7}))).shape
    (1, 3, {1})
    """


# --- Larger images ------------------------------------------------------------------------------------------------


class BedOfNailsNd(PlainNd, op="bed_of_nails{n}d"):
    """{n}-d unpooling by a bed of nails: each value at its block's first corner; PyTorch has no such layer.

    Parameters
    ----------
    scale_factor : int or sequence of {n} int
        Size of the block that each value becomes.

    Raises
    ------
    TypeError, ValueError
        It is no integer, or less than 1.

    Examples
    --------
    >>> y = BedOfNails{n}d(2)(np.ones((1, 1, {2})))
    >>> y.shape, float(y.sum())
    ((1, 1, {4}), {2**n}.0)
    """

    def __init__(self, scale_factor: Size) -> None:
        self.scale_factor = self._sizes("scale_factor", scale_factor)

    def options(self) -> dict[str, Any]:
        """The size of the blocks."""
        return {"scale_factor": self.scale_factor}

    def window(self, input_shape: tuple[int, ...]) -> TransposedWindow:
        """One position of each block."""
        return TransposedWindow(1, self.scale_factor)


class Upsample(Module):
    """Resample images to another size, as ``torch.nn.Upsample``.

    Parameters
    ----------
    size : int or sequence of int, optional
        Spatial size of the output.
    scale_factor : float or sequence of float, optional
        Or the factor to it. Just one of the two is given.
    mode : str
        ``"nearest"``, ``"nearest-exact"``, by rank ``"linear"``, ``"bilinear"``, ``"trilinear"`` or ``"cubic"``,
        ``"bicubic"``, ``"tricubic"``, or ``"area"``.
    align_corners : bool, optional
        For the linear and cubic modes: the grids' first and last samples coincide, not their borders.
    recompute_scale_factor : bool, optional
        Whether the rounded size, and not the given `scale_factor`, sets the coordinates.

    Raises
    ------
    ValueError
        Not just one of `size` and `scale_factor` is given, or there is no such mode.

    See Also
    --------
    gpucnn.functional.interpolate

    Examples
    --------
    >>> Upsample(scale_factor=2)(np.ones((1, 3, 4, 4))).shape
    (1, 3, 8, 8)
    """

    def __init__(
        self,
        size: Any = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
    ) -> None:
        if (size is None) == (scale_factor is None):
            raise ValueError(f"Upsample: got size {size} and scale_factor {scale_factor}, expected just one of them")
        modes = ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "cubic", "bicubic", "tricubic", "area")
        self.mode = choice("Upsample", "mode", mode, modes)
        self.size, self.scale_factor = (
            tuple(map(plain, given)) if is_sequence(given) else plain(given) for given in (size, scale_factor)
        )
        self.align_corners, self.recompute_scale_factor = plain(align_corners), plain(recompute_scale_factor)

    def forward(self, x: Array) -> Array:
        """Array [N, C, *space] to array [N, C, *out]."""
        y = F.interpolate(x, **self._options())
        self.keep(x)
        return y

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the input."""
        (x,) = self.kept()
        return F.interpolate_backward(grad_output, x, **self._options(), needs=(self.needs_input_grad,))[0]

    def _options(self) -> dict[str, Any]:
        options = {"size": self.size, "scale_factor": self.scale_factor, "mode": self.mode}
        return options | {
            "align_corners": self.align_corners, "recompute_scale_factor": self.recompute_scale_factor,
        }  # fmt: skip

    def window(self, input_shape: tuple[int, ...]) -> TransposedWindow | None:
        """The block of each input, or where a filter reads it; None where the factor is not an integer."""
        space = input_shape[2:]
        sizes = F.interpolate(np.empty((0, 1, *space)), self.size, self.scale_factor, self.mode).shape[2:]
        if self.align_corners or self.mode == "area" or any(out % size for out, size in zip(sizes, space, strict=True)):
            return None
        steps = tuple(out // size for out, size in zip(sizes, space, strict=True))
        if self.mode.startswith("nearest"):
            return TransposedWindow(steps, steps)
        inputs = 4 if self.mode.endswith("cubic") else 2  # that each output reads
        kernel = tuple(inputs * step - step % 2 for step in steps)
        return TransposedWindow(kernel, steps, tuple((inputs - 1) * step // 2 for step in steps))

    def extra_repr(self) -> str:
        """The arguments that were given."""
        return shown(**{name: value for name, value in self._options().items() if value is not None})


# --- The members of the families --------------------------------------------------------------------------------------


# fmt: off
class MaxPool1d(MaxPoolNd, rank=1): ...
class MaxPool2d(MaxPoolNd, rank=2): ...
class MaxPool3d(MaxPoolNd, rank=3): ...
class MaxUnpool1d(MaxUnpoolNd, rank=1): ...
class MaxUnpool2d(MaxUnpoolNd, rank=2): ...
class MaxUnpool3d(MaxUnpoolNd, rank=3): ...
class AvgPool1d(AvgPoolNd, rank=1): ...
class AvgPool2d(AvgPoolNd, rank=2): ...
class AvgPool3d(AvgPoolNd, rank=3): ...
class SumPool1d(SumPoolNd, rank=1): ...
class SumPool2d(SumPoolNd, rank=2): ...
class SumPool3d(SumPoolNd, rank=3): ...
class LPPool1d(LPPoolNd, rank=1): ...
class LPPool2d(LPPoolNd, rank=2): ...
class LPPool3d(LPPoolNd, rank=3): ...
class AdaptiveMaxPool1d(AdaptiveMaxPoolNd, rank=1): ...
class AdaptiveMaxPool2d(AdaptiveMaxPoolNd, rank=2): ...
class AdaptiveMaxPool3d(AdaptiveMaxPoolNd, rank=3): ...
class AdaptiveAvgPool1d(AdaptiveAvgPoolNd, rank=1): ...
class AdaptiveAvgPool2d(AdaptiveAvgPoolNd, rank=2): ...
class AdaptiveAvgPool3d(AdaptiveAvgPoolNd, rank=3): ...
class BedOfNails1d(BedOfNailsNd, rank=1): ...
class BedOfNails2d(BedOfNailsNd, rank=2): ...
class BedOfNails3d(BedOfNailsNd, rank=3): ...
