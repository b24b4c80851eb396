"""Convolution layers: shared filters, their transposes, and separate filters for each position."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.geometry import Padding, Size
from gpucnn.geometry.arguments import integer, integers, is_sequence, padding_form
from gpucnn.geometry.sizes import window_axes
from gpucnn.nn._family import Enlarging, Operands, Sliding, Weighted, Windowed, shown
from gpucnn.nn.module import Array, Parameter

__all__ = [
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "LocallyConnected1d",
    "LocallyConnected2d", "LocallyConnected3d",
]  # fmt: skip

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class Filters(Weighted, Windowed):
    """The base of the layers below: channels, a window that steps, a weight and perhaps a bias."""

    weight: Parameter

    def _set_filters(self, in_channels: int, out_channels: int, *window: Any) -> None:
        name = type(self).__name__
        self.in_channels = integer(name, "in_channels", in_channels, 1)
        self.out_channels = integer(name, "out_channels", out_channels, 1)
        self._set_window(*window)

    def _set_groups(self, groups: int) -> None:
        name = type(self).__name__
        self.groups = integer(name, "groups", groups, 1)
        for channels in ("in_channels", "out_channels"):
            if getattr(self, channels) % self.groups:
                raise ValueError(
                    f"{name}: {channels} is {getattr(self, channels)}, expected a multiple of groups = {self.groups}"
                )

    def _forward(self, x: Array, **options: Any) -> tuple[Array, Operands]:
        """The operation's result, and what `_backward` takes."""
        operands = self._operands(x)
        return self.function(*operands[1:], **options), operands

    def _backward(self, grad_output: Array, operands: Operands, **options: Any) -> Array:
        """The gradient of x; those of the parameters are accumulated."""
        return self._multiplied_backward(self.gradient, grad_output, operands, **options)

    def extra_repr(self) -> str:
        """Channels, the window, and the arguments that differ from the defaults."""
        parts = [str(self.in_channels), str(self.out_channels)]
        parts.append(shown(kernel_size=self.kernel_size, stride=self.stride))
        usual = {"padding": (0,) * self.rank, "dilation": (1,) * self.rank, "groups": 1, "padding_mode": "zeros"}
        usual |= {"output_padding": (0,) * self.rank}
        for name, value in usual.items():
            if getattr(self, name, value) != value:
                parts.append(shown(**{name: getattr(self, name)}))
        return ", ".join(parts + ([] if self.bias is not None else ["bias=False"]))


class ConvNd(Filters, Sliding, op="conv{n}d"):
    """{n}-d convolution, as ``torch.nn.Conv{n}d``.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the images before and after.
    kernel_size : int or sequence of {n} int
        Size of the filters.
    stride, dilation : int or sequence of {n} int
        Step of the window, and step of its taps.
    padding : int, sequence of {n} int or (low, high) pairs, "valid", "same" or "same_lower"
        The padding around the image; ``"same"`` gives ceil(input / stride) outputs.
    groups : int
        Divide the channels into groups, convolved separately; ``groups = in_channels`` is a depthwise convolution.
    bias : bool
        Add one number to each output channel.
    padding_mode : "zeros", "reflect", "replicate" or "circular"
        The values of the padding.
    dtype : dtype
        Of the parameters.
    rng : numpy.random.Generator, int or None
        The source of the initial parameters: a generator, a seed, or fresh.

    Attributes
    ----------
    weight : Parameter [OC, C / groups, {kernel}]
        At first uniform in ±1 / sqrt(fan in), that is Kaiming's with a = sqrt(5), as in PyTorch.
    bias : Parameter [OC] or None
        As `weight`.

    Examples
    --------
    >>> layer = Conv{n}d(3, 8, 3, stride=2, padding=1)
    >>> layer(np.ones((1, 3, {8}), np.float32)).shape
    (1, 8, {4})
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        self._set_filters(in_channels, out_channels, kernel_size, stride, padding, dilation)
        self._set_groups(groups)
        if padding_mode not in PADDING_MODES:
            raise ValueError(
                f"{type(self).__name__}: padding_mode is {padding_mode!r}, expected one of {PADDING_MODES}"
            )
        self.padding_mode = padding_mode
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        self._draw(shape, (self.out_channels,), bias, dtype, rng)

    def _options(self) -> dict[str, Any]:
        padding = self.padding if self.padding_mode == "zeros" else 0
        return {"stride": self.stride, "padding": padding, "dilation": self.dilation, "groups": self.groups}

    def _pad(self, space: tuple[int, ...]) -> list[int]:
        """The padding as `gpucnn.functional.pad` takes it, the last axis first."""
        return [size for pair in reversed(self._pairs(space)) for size in pair]

    takes_smooth = True  # activations, in `finished`

    def forward(self, x: Array) -> Array:
        """Array [N, C, *space] or [C, *space] to array [N, OC, *out] or [OC, *out]."""
        return self._finished(self.function, x)

    def finished(self, x: Array, residual: Array | None = None, activation: str = "none") -> Array:
        """``activation(forward(x) + residual)`` in one pass; what is kept is for the backward of the convolution."""
        function = getattr(F, f"conv{self.rank}d_activation")
        return self._finished(function, x, residual=residual, activation=activation)

    def _finished(self, function: Any, x: Array, **finish: Any) -> Array:
        padded = None
        if self.padding_mode != "zeros":
            self._expect_image(x)
            padded = F.pad(x, self._pad(self._space(x.shape)), self.padding_mode)
        operands = self._operands(x if padded is None else padded)
        y = function(*operands[1:], **self._options(), **finish)
        self.keep(operands, None if padded is None else x)
        return y

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the input; those of weight and bias are accumulated."""
        operands, x = self.kept()
        grad = self._backward(grad_output, operands, **self._options())
        if x is None or grad is None:
            return grad
        return F.pad_backward(grad, x, self._pad(self._space(x.shape)), self.padding_mode)[0]

    def multiply_adds(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
        """One for each weight, at each output position."""
        return self.weight.size * prod(self._space(output_shape))


class ConvTransposeNd(Filters, Enlarging, op="conv_transpose{n}d"):
    """{n}-d transposed convolution, as ``torch.nn.ConvTranspose{n}d``.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the images before and after.
    kernel_size : int or sequence of {n} int
        Size of the filters.
    stride, dilation : int or sequence of {n} int
        Step of the filters in the output, and step of their taps.
    padding : int, sequence of {n} int or (low, high) pairs, "valid", "same" or "same_lower"
        The amount cut off the ends of the output; ``"same"`` gives input * stride outputs.
    output_padding : int or sequence of {n} int
        Size added at the output's high end; less than `stride` or `dilation`.
    groups : int
        Divide the channels into groups that are convolved separately.
    bias : bool
        Add one number to each output channel.
    dtype : dtype
        Of the parameters.
    rng : numpy.random.Generator, int or None
        The source of the initial parameters: a generator, a seed, or fresh.

    Attributes
    ----------
    weight : Parameter [C, OC / groups, {kernel}]
        At first uniform in ±1 / sqrt(OC / groups * taps), as in PyTorch.
    bias : Parameter [OC] or None
        As `weight`.

    Notes
    -----
    PyTorch's ``padding_mode`` knows only "zeros" here, and is left out.

    Examples
    --------
    >>> layer = ConvTranspose{n}d(8, 3, 4, stride=2, padding=1)
    >>> layer(np.ones((1, 8, {4}), np.float32)).shape
    (1, 3, {8})
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        *,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        self._set_filters(in_channels, out_channels, kernel_size, stride, padding, dilation)
        self._set_groups(groups)
        self.output_padding = self._sizes("output_padding", output_padding, 0)
        shape = (self.in_channels, self.out_channels // self.groups, *self.kernel_size)
        self._draw(shape, (self.out_channels,), bias, dtype, rng)

    def _options(self, extra: tuple[int, ...]) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "output_padding": extra,
            "groups": self.groups,
            "dilation": self.dilation,
        }

    def forward(self, x: Array, output_size: Any = None) -> Array:
        """Array [N, C, *space] or [C, *space] to array [N, OC, *out] or [OC, *out].

        `output_size`, an int, a spatial size or a whole shape, takes the place of `output_padding`: of the sizes that
        a convolution with this stride makes one of, it says which.
        """
        extra = self.output_padding if output_size is None else self._extra(x, output_size)
        y, operands = self._forward(x, **self._options(extra))
        self.keep(operands, extra)
        return y

    def _extra(self, x: Array, output_size: Any) -> tuple[int, ...]:
        """The output padding that gives that size."""
        name = type(self).__name__
        self._expect_image(x)
        if is_sequence(output_size) and len(output_size) == x.ndim:
            output_size = tuple(output_size)[-self.rank :]
        sizes = integers(name, "output_size", output_size, self.rank, 1)
        form = padding_form(name, self.padding, self.rank)
        if isinstance(form, str):
            raise ValueError(f"{name}: output_size is {output_size}, expected None with padding {form!r}")
        extras = []
        for axis, (size, length) in enumerate(zip(sizes, self._space(x.shape), strict=True)):
            step, gap = self.stride[axis], self.dilation[axis]
            least = (length - 1) * step - sum(form[axis]) + gap * (self.kernel_size[axis] - 1) + 1
            most = least + max(step, gap) - 1
            if not least <= size <= most:
                raise ValueError(f"{name}: output_size of axis {axis} is {size}, expected {least} to {most}")
            extras.append(size - least)
        return tuple(extras)

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the input; those of weight and bias are accumulated."""
        operands, extra = self.kept()
        return self._backward(grad_output, operands, **self._options(extra))

    def multiply_adds(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
        """One for each weight, at each input position."""
        return self.weight.size * prod(self._space(input_shape))


class LocallyConnectedNd(Filters, Sliding, op="locally_connected{n}d"):
    """{n}-d locally connected layer: a convolution whose filters are not shared between positions.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the images before and after.
    input_size : int or sequence of {n} int
        Spatial size ({space}) of the images, which sets the number of positions.
    kernel_size : int or sequence of {n} int
        Size of the filters.
    stride, dilation : int or sequence of {n} int
        Step of the window, and step of its taps.
    padding : int, sequence of {n} int or (low, high) pairs, "valid", "same" or "same_lower"
        Zeros around the image.
    bias : bool
        Add one number to each output.
    dtype : dtype
        Of the parameters.
    rng : numpy.random.Generator, int or None
        The source of the initial parameters: a generator, a seed, or fresh.

    Attributes
    ----------
    weight : Parameter [OC, {out}, C, {kernel}]
        At first uniform in ±1 / sqrt(C * taps).
    bias : Parameter [OC, {out}] or None
        As `weight`.

    Raises
    ------
    TypeError, ValueError
        A parameter is of another type or out of range, or the window does not fit.

    Notes
    -----
    PyTorch has no such layer.

    Examples
    --------
    >>> layer = LocallyConnected{n}d(1, 2, input_size=5, kernel_size=3)
    >>> layer.weight.shape
    (2, {3}, 1, {3})
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: Size,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        bias: bool = True,
        *,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        name = type(self).__name__
        self._set_filters(in_channels, out_channels, kernel_size, stride, padding, dilation)
        self.input_size = self._sizes("input_size", input_size)
        padding_pairs = padding_form(name, padding, self.rank)
        axes = window_axes(name, self.input_size, self.kernel_size, self.stride, padding_pairs, self.dilation)
        self.output_size = tuple(axis.out for axis in axes)
        outputs = (self.out_channels, *self.output_size)
        inputs = (self.in_channels, *self.kernel_size)  # that each output reads
        self._draw((*outputs, *inputs), outputs, bias, dtype, rng, fan_in=prod(inputs))

    def _options(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def forward(self, x: Array) -> Array:
        """Array [N, C, *input_size] or [C, *input_size] to array [N, OC, *out] or [OC, *out]."""
        self._expect_image(x)
        if self._space(x.shape) != self.input_size:
            raise ValueError(
                f"{type(self).__name__}: input has spatial size {self._space(x.shape)}, expected {self.input_size}"
            )
        y, operands = self._forward(x, **self._options())
        self.keep(operands)
        return y

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the input; those of weight and bias are accumulated."""
        (operands,) = self.kept()
        return self._backward(grad_output, operands, **self._options())

    def multiply_adds(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
        """One for each weight."""
        return self.weight.size

    def extra_repr(self) -> str:
        """The arguments of the other layers, and the size of the images."""
        return f"{super().extra_repr()}, {shown(input_size=self.input_size)}"


# --- The members of the families --------------------------------------------------------------------------------------


# fmt: off
class Conv1d(ConvNd, rank=1): ...
class Conv2d(ConvNd, rank=2): ...
class Conv3d(ConvNd, rank=3): ...
class ConvTranspose1d(ConvTransposeNd, rank=1): ...
class ConvTranspose2d(ConvTransposeNd, rank=2): ...
class ConvTranspose3d(ConvTransposeNd, rank=3): ...
class LocallyConnected1d(LocallyConnectedNd, rank=1): ...
class LocallyConnected2d(LocallyConnectedNd, rank=2): ...
class LocallyConnected3d(LocallyConnectedNd, rank=3): ...
