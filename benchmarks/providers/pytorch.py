"""PyTorch, in its default memory order and in channels_last.

Nothing here requires a gradient, so forwards record no graph. The backwards of convolution call
`aten.convolution_backward` for the one gradient requested; those of the other operations
run a recorded graph again, with the indices and statistics that its forward saved.
"""

from __future__ import annotations

from functools import partial
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
    Shape,
    UnfoldLayer,
)
from benchmarks.providers.base import Call, Provider, channels_last_unfit


class PyTorch(Provider):
    name = "PyTorch"
    requires = ("torch",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import torch

        self.torch: Any = torch
        self.functional: Any = torch.nn.functional
        torch.set_num_threads(threads)

    def version(self) -> str:
        return str(self.torch.__version__)

    def tensor(self, array: Any) -> Any:
        """A tensor of the elements of `array`."""
        return self.torch.from_numpy(array)

    def in_order(self, tensor: Any) -> Any:
        """The tensor in this provider's memory order."""
        return tensor

    def array(self, value: Any) -> Any:
        return value.numpy()

    def zeros(self, shape: Shape, like: Any) -> Any:
        """A tensor of which only the shape, dtype and memory order matter."""
        return self.in_order(self.torch.zeros(shape, dtype=like.dtype, device=like.device))

    def prepare(self, case: Case, arrays: Arrays) -> Call:
        tensors = {name: self.in_order(self.tensor(array)) for name, array in arrays.items()}
        if case.operation == "backward":
            return self._backward(case, tensors)
        return self._forward(case, tensors)

    def _forward(self, case: Case, tensors: dict[str, Any]) -> Call:
        return super().prepare(case, tensors)

    def convolution(self, case: Case, layer: ConvLayer, tensors: dict[str, Any]) -> Call:
        output_padding = (0,) * layer.rank
        geometry = (layer.stride, layer.padding, layer.dilation, layer.transposed, output_padding, layer.groups)
        x, weight, gradient = (tensors.get(name) for name in ("input", "weight", "grad_output"))
        if case.operation == "forward":
            return partial(self.torch.convolution, x, weight, tensors.get("bias"), *geometry)
        # The operand that a gradient does not depend on still gives its shape.
        if x is None:
            x = self.zeros(layer.input_shape(case.batch), gradient)
        if weight is None:
            weight = self.zeros(layer.weight_shape, gradient)
        mask = [case.operation == "backward_input", case.operation == "backward_weight", False]
        return partial(self.torch.ops.aten.convolution_backward, gradient, x, weight, None, *geometry, mask)

    def _backward(self, case: Case, tensors: dict[str, Any]) -> Call:
        """Run the graph of one forward backwards, any number of times."""
        if "input" not in tensors:
            tensors["input"] = self.zeros(case.layer.input_shape(case.batch), tensors["grad_output"])
        wanted = [tensors[name].requires_grad_() for name in ("input", "weight", "bias") if name in tensors]
        output = self._forward(case, tensors)()
        return partial(self.torch.autograd.grad, output, wanted, tensors["grad_output"], retain_graph=True)

    def pooling(self, case: Case, layer: PoolLayer, tensors: dict[str, Any]) -> Call:
        pool, x = getattr(self.functional, f"{layer.kind}_pool{layer.rank}d"), tensors["input"]
        return partial(pool, x, layer.output) if layer.kind == "adaptive_avg" else partial(pool, x, **layer.window)

    def unfolding(self, case: Case, layer: UnfoldLayer, tensors: dict[str, Any]) -> Call:
        if case.operation == "im2col":
            return partial(self.functional.unfold, tensors["input"], **layer.window)
        return partial(self.functional.fold, tensors["columns"], layer.size, **layer.window)

    def resampling(self, case: Case, layer: ResampleLayer, tensors: dict[str, Any]) -> Call:
        x = tensors["input"]
        if layer.kind == "unpool":
            return partial(self.functional.max_unpool2d, x, tensors["indices"], layer.block)
        return partial(self.functional.interpolate, x, size=layer.output, mode=layer.kind)

    def layout(self, case: Case, layer: LayoutLayer, tensors: dict[str, Any]) -> Call:
        kept, wanted = self.torch.contiguous_format, self.torch.channels_last
        if case.operation == "unpack":
            kept, wanted = wanted, kept
        x = tensors["input"].contiguous(memory_format=kept)
        if layer.cast:
            return lambda: x.to(dtype=getattr(self.torch, case.dtypes[1]), memory_format=wanted)
        return lambda: x.contiguous(memory_format=wanted)

    def activation(self, case: Case, layer: ActivationLayer, tensors: dict[str, Any]) -> Call:
        x, bias = tensors["input"], tensors["bias"].reshape(-1, *(1,) * layer.rank)
        return lambda: self.torch.relu_(x + bias)

    def normalization(self, case: Case, layer: NormLayer, tensors: dict[str, Any]) -> Call:
        f, x = self.functional, tensors["input"]
        affine: dict[str, Any] = {"weight": tensors["weight"], "bias": tensors["bias"], "eps": NORM_EPS}
        if layer.kind == "batch":
            running = [tensors[name].clone() for name in ("running_mean", "running_var")]
            training = case.operation != "inference"
            return partial(f.batch_norm, x, *running, training=training, **affine)
        if layer.kind == "layer":
            return partial(f.layer_norm, x, (layer.channels,), **affine)
        if layer.kind == "group":
            return partial(f.group_norm, x, layer.groups, **affine)
        return partial(f.instance_norm, x, **affine)


class PyTorchChannelsLast(PyTorch):
    name = "PyTorch channels_last"

    def refuses(self, case: Case) -> str | None:
        instance_norm = isinstance(case.layer, NormLayer) and case.layer.kind == "instance"
        if instance_norm and case.operation == "backward" and case.batch == 1:
            return "PyTorch 2.13 gives a wrong gradient here: batch of one, channels_last gradient"
        unfit = "channels_last is for two and three spatial axes" if case.layer.rank == 1 else None
        return channels_last_unfit(case) or unfit or super().refuses(case)

    def in_order(self, tensor: Any) -> Any:
        return in_channels_last(tensor, self.torch)


def in_channels_last(tensor: Any, torch: Any) -> Any:
    """A tensor of images or filters of rank 2 or 3 with its second axis innermost in memory; others as they are."""
    orders = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=orders[tensor.ndim]) if tensor.ndim in orders else tensor
