"""The layers that are measured: shapes, floating-point operations and the least bytes they can move.

Everything here is exact integer arithmetic on frozen dataclasses; nothing imports an array library.
Arrays are float32, or float16 in some cases for a GPU, and in the order N, C, spatial.

Two counts describe a case's cost:

- ``flops``: two per multiply-add of the direct algorithm, padding taps included, as the literature
  counts them. Pooling, normalisation and data movement are limited by memory: their count is 0.
- ``least_bytes``: every operand read once and every result written once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

FLOAT_BYTES = 4
HALF_BYTES = 2
INDEX_BYTES = 8

Tier = Literal["quick", "default", "full"]
Device = Literal["cpu", "gpu"]
Shape = tuple[int, ...]

DTYPE_BYTES = {"float32": FLOAT_BYTES, "float16": HALF_BYTES}
TIERS: tuple[Tier, ...] = ("quick", "default", "full")


def per_axis(value: int | Shape, rank: int) -> Shape:
    """``3 → (3, 3)`` for rank 2; a tuple of the right length is returned as it is."""
    if isinstance(value, int):
        return (value,) * rank
    if len(value) != rank:
        raise ValueError(f"expected {rank} values, one per axis, got {value}")
    return value


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of a published network; subclasses define its computation.

    `tier` is the smallest run that includes the layer: quick, default or full.
    """

    computation: ClassVar[str]  # the name of the method by which a provider takes the layer

    network: str
    name: str
    channels: int  # of the input
    size: Shape  # spatial, of the input
    cpu_batch: int = 1
    gpu_batch: int = 32
    tier: Tier = "default"
    devices: tuple[Device, ...] = ("cpu", "gpu")  # on which it is measured

    @property
    def rank(self) -> int:
        return len(self.size)

    @property
    def family(self) -> str:
        raise NotImplementedError

    @property
    def operations(self) -> tuple[str, ...]:
        return ("forward", "backward")

    def batch(self, device: Device) -> int:
        return self.cpu_batch if device == "cpu" else self.gpu_batch

    def input_shape(self, batch: int) -> Shape:
        return (batch, self.channels, *self.size)

    def output_shape(self, batch: int) -> Shape:
        return self.input_shape(batch)

    def flops(self, operation: str, batch: int) -> int:
        return 0

    def least_bytes(self, operation: str, batch: int, itemsize: int = FLOAT_BYTES) -> int:
        """Input and output once each; overridden where an operation touches more."""
        return itemsize * (math.prod(self.input_shape(batch)) + math.prod(self.output_shape(batch)))


@dataclass(frozen=True, kw_only=True)
class WindowedLayer(Layer):
    """A layer that reads windows of its input."""

    kernel: Shape = ()
    stride: Shape = ()
    padding: Shape = ()

    @property
    def window(self) -> dict[str, Shape]:
        """The arguments of a function for windows without dilation, as gpucnn and PyTorch name them."""
        return {"kernel_size": self.kernel, "stride": self.stride, "padding": self.padding}

    @property
    def spacing(self) -> Shape:
        """The dilation: the distance between the taps of a window."""
        return (1,) * self.rank

    @property
    def untransposed(self) -> WindowedLayer:
        """The layer whose windows this one computes with: of a transposed convolution the one it is adjoint to."""
        return self

    @property
    def out_size(self) -> Shape:
        axes = zip(self.size, self.kernel, self.stride, self.padding, self.spacing, strict=True)
        return tuple((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in axes)

    def output_shape(self, batch: int) -> Shape:
        return (batch, self.channels, *self.out_size)


@dataclass(frozen=True, kw_only=True)
class ConvLayer(WindowedLayer):
    """A convolution of rank 1 to 3, or the transposed convolution with the same parameters."""

    out_channels: int
    dilation: Shape
    groups: int = 1
    bias: bool = False
    transposed: bool = False

    computation = "convolution"
    operations = ("forward", "backward_input", "backward_weight")

    @property
    def family(self) -> str:
        if self.transposed:
            return "transposed convolution"
        if self.groups == self.channels > 1:
            return "depthwise convolution"
        if self.groups > 1:
            return "grouped convolution"
        if self.rank != 2:
            return "1-d and 3-d convolution"
        if math.prod(self.kernel) == 1:
            return "1x1 convolution"
        if max(self.dilation) > 1:
            return "dilated convolution"
        return "dense convolution"

    @property
    def spacing(self) -> Shape:
        return self.dilation

    @property
    def untransposed(self) -> ConvLayer:
        if not self.transposed:
            return self
        channels, size = self.out_channels, self.out_size
        return replace(self, channels=channels, size=size, out_channels=self.channels, transposed=False)

    @property
    def out_size(self) -> Shape:
        if not self.transposed:
            return super().out_size
        axes = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((i - 1) * s - 2 * p + d * (k - 1) + 1 for i, k, s, p, d in axes)

    def output_shape(self, batch: int) -> Shape:
        return (batch, self.out_channels, *self.out_size)

    @property
    def weight_shape(self) -> Shape:
        """[OC, C/G, *K], or [C, OC/G, *K] when transposed."""
        if self.transposed:
            return (self.channels, self.out_channels // self.groups, *self.kernel)
        return (self.out_channels, self.channels // self.groups, *self.kernel)

    def flops(self, operation: str, batch: int) -> int:
        """The three directions do the same multiply-adds, each weight once per dense position.

        The dense positions are those of the smaller side: the output, or the input when transposed.
        """
        return 2 * batch * math.prod(self.untransposed.out_size) * math.prod(self.weight_shape)

    def least_bytes(self, operation: str, batch: int, itemsize: int = FLOAT_BYTES) -> int:
        """Input, weight and output: each direction reads two of them and writes the third."""
        with_bias = self.bias and operation == "forward"
        weights = math.prod(self.weight_shape) + (self.out_channels if with_bias else 0)
        return super().least_bytes(operation, batch, itemsize) + itemsize * weights


@dataclass(frozen=True, kw_only=True)
class PoolLayer(WindowedLayer):
    """Maximum or average pooling; `output` makes it adaptive average pooling."""

    kind: Literal["max", "avg", "adaptive_avg"]
    output: Shape = ()

    computation = family = "pooling"

    @property
    def out_size(self) -> Shape:
        return self.output if self.kind == "adaptive_avg" else super().out_size

    def least_bytes(self, operation: str, batch: int, itemsize: int = FLOAT_BYTES) -> int:
        """The backward of maximum pooling reads the indices that the forward left."""
        moved = super().least_bytes(operation, batch, itemsize)
        if self.kind == "max" and operation == "backward":
            moved += INDEX_BYTES * math.prod(self.output_shape(batch))
        return moved


@dataclass(frozen=True, kw_only=True)
class NormLayer(Layer):
    """Batch, group or instance normalisation over [N, C, *size]; layer norm over [N, *size, C]."""

    kind: Literal["batch", "layer", "group", "instance"]
    groups: int = 1  # of group normalisation

    computation = family = "normalization"

    @property
    def operations(self) -> tuple[str, ...]:
        return ("training", "inference", "backward") if self.kind == "batch" else super().operations

    def input_shape(self, batch: int) -> Shape:
        return (batch, *self.size, self.channels) if self.kind == "layer" else super().input_shape(batch)

    def least_bytes(self, operation: str, batch: int, itemsize: int = FLOAT_BYTES) -> int:
        """Forward: x read, y written. Backward: x and grad_output read, grad_input written."""
        arrays = 3 if operation == "backward" else 2
        return itemsize * arrays * math.prod(self.input_shape(batch))


@dataclass(frozen=True, kw_only=True)
class UnfoldLayer(WindowedLayer):
    """im2col and col2im, its adjoint, of the windows of a convolution."""

    computation = family = "unfolding"
    operations = ("im2col", "col2im")

    def output_shape(self, batch: int) -> Shape:
        return (batch, self.channels * math.prod(self.kernel), math.prod(self.out_size))


@dataclass(frozen=True, kw_only=True)
class ResampleLayer(Layer):
    """Nearest or bilinear interpolation, or max unpooling, to a larger size."""

    kind: Literal["nearest", "bilinear", "unpool"]
    output: Shape

    computation = family = "resampling"

    @property
    def operations(self) -> tuple[str, ...]:
        return ("forward",) if self.kind == "unpool" else super().operations

    @property
    def block(self) -> Shape:
        """The size of the block of the output that belongs to an element of the input, where sizes divide."""
        return tuple(o // i for o, i in zip(self.output, self.size, strict=True))

    def output_shape(self, batch: int) -> Shape:
        return (batch, self.channels, *self.output)

    def least_bytes(self, operation: str, batch: int, itemsize: int = FLOAT_BYTES) -> int:
        """Unpooling reads indices too."""
        moved = super().least_bytes(operation, batch, itemsize)
        if self.kind == "unpool":
            moved += INDEX_BYTES * math.prod(self.input_shape(batch))
        return moved


@dataclass(frozen=True, kw_only=True)
class LayoutLayer(Layer):
    """A copy between the memory orders N, C, spatial ("first") and N, spatial, C ("last"), with or without a cast.

    A cast goes from float32 to float16 on the way to channels-last, and back on the way from it.
    """

    cast: bool = False
    devices: tuple[Device, ...] = ("gpu",)

    computation = family = "layout"
    operations = ("pack", "unpack")

    def least_bytes(self, operation: str, batch: int, itemsize: int = FLOAT_BYTES) -> int:
        both = FLOAT_BYTES + HALF_BYTES if self.cast else 2 * itemsize
        return both * math.prod(self.input_shape(batch))


@dataclass(frozen=True, kw_only=True)
class ActivationLayer(Layer):
    """The epilogue of a convolution: relu(x + bias), one bias a channel."""

    devices: tuple[Device, ...] = ("gpu",)

    computation, family = "activation", "bias and activation"
    operations = ("forward",)
