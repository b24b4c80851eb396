"""gpucnn through its public functions, on NumPy arrays."""

from __future__ import annotations

from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.cases import Case
from benchmarks.checking import NORM_EPS
from benchmarks.data import Arrays
from benchmarks.layers import ConvLayer, NormLayer, PoolLayer, ResampleLayer, UnfoldLayer
from benchmarks.providers.base import Call, Provider


class GpucnnNumpy(Provider):
    name = "gpucnn NumPy"
    requires = ("gpucnn",)
    ours = True

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import gpucnn.functional

        self.functional: Any = gpucnn.functional

    def version(self) -> str:
        try:
            return version("gpucnn")
        except PackageNotFoundError:  # run from a checkout
            return "checkout"

    def prepare(self, case: Case, arrays: Arrays) -> Call:
        layer = case.layer
        if isinstance(layer, ConvLayer):
            return self._convolution(case, layer, arrays)
        if isinstance(layer, PoolLayer):
            return self._pooling(case, layer, arrays)
        if isinstance(layer, NormLayer):
            return self._normalization(case, layer, arrays)
        if isinstance(layer, UnfoldLayer):
            window: dict[str, Any] = {"kernel_size": layer.kernel, "padding": layer.padding, "stride": layer.stride}
            if case.operation == "im2col":
                return partial(self.functional.im2col, arrays["input"], **window)
            return partial(self.functional.col2im, arrays["columns"], layer.size, **window)
        if isinstance(layer, ResampleLayer):
            return self._resampling(case, layer, arrays)
        raise TypeError(f"{self.name} does not know {type(layer).__name__}")

    def _convolution(self, case: Case, layer: ConvLayer, arrays: Arrays) -> Call:
        f, rank, operation = self.functional, layer.rank, case.operation
        options: dict[str, Any] = {
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "groups": layer.groups,
        }
        x, weight = arrays.get("input"), arrays.get("weight")
        gradient, bias = arrays.get("grad_output"), arrays.get("bias")
        if operation == "forward":
            name = f"conv_transpose{rank}d" if layer.transposed else f"conv{rank}d"
            return partial(getattr(f, name), x, weight, bias, **options)
        if layer.transposed:  # the gradients of the adjoint are a convolution and its adjoint
            if operation == "backward_input":
                return partial(getattr(f, f"conv{rank}d"), gradient, weight, None, **options)
            backward_weight = getattr(f, f"conv{rank}d_weight")
            return partial(backward_weight, gradient, layer.weight_shape, x, **options)
        if operation == "backward_input":
            backward_input = getattr(f, f"conv{rank}d_input")
            return partial(backward_input, layer.input_shape(case.batch), weight, gradient, **options)
        backward_weight = getattr(f, f"conv{rank}d_weight")
        return partial(backward_weight, x, layer.weight_shape, gradient, **options)

    def _pooling(self, case: Case, layer: PoolLayer, arrays: Arrays) -> Call:
        if layer.kind == "adaptive_avg":
            name, options = f"adaptive_avg_pool{layer.rank}d", {"output_size": layer.output}
        else:
            name = f"{layer.kind}_pool{layer.rank}d"
            options = {"kernel_size": layer.kernel, "stride": layer.stride, "padding": layer.padding}
        if case.operation == "forward":
            return partial(getattr(self.functional, name), arrays["input"], **options)
        backward = getattr(self.functional, f"{name}_backward")
        handed: dict[str, Any] = {"indices": arrays["indices"]} if layer.kind == "max" else {}
        return partial(backward, arrays["grad_output"], arrays["input"], **options, **handed)

    def _normalization(self, case: Case, layer: NormLayer, arrays: Arrays) -> Call:
        """A backward is handed the statistics of its forward, as a network would."""
        options: dict[str, Any] = {"weight": arrays["weight"], "bias": arrays["bias"], "eps": NORM_EPS}
        if layer.kind == "batch":
            options |= {
                "running_mean": arrays["running_mean"].copy(),
                "running_var": arrays["running_var"].copy(),
                "training": case.operation != "inference",
            }
        elif layer.kind == "layer":
            options |= {"normalized_shape": (layer.channels,)}
        elif layer.kind == "group":
            options |= {"num_groups": layer.groups}
        forward = getattr(self.functional, f"{layer.kind}_norm")
        if case.operation != "backward":
            return partial(forward, arrays["input"], **options)
        _, mean, rstd = forward(arrays["input"], **options, return_statistics=True)
        backward = getattr(self.functional, f"{layer.kind}_norm_backward")
        return partial(backward, arrays["grad_output"], arrays["input"], **options, mean=mean, rstd=rstd)

    def _resampling(self, case: Case, layer: ResampleLayer, arrays: Arrays) -> Call:
        f = self.functional
        if layer.kind == "unpool":
            block = tuple(o // i for o, i in zip(layer.output, layer.size, strict=True))
            return partial(f.max_unpool2d, arrays["input"], arrays["indices"], block)
        options: dict[str, Any] = {"size": layer.output, "mode": layer.kind}
        if case.operation == "forward":
            return partial(f.interpolate, arrays["input"], **options)
        # Only the shape of the input matters to a linear map's gradient.
        like = arrays["grad_output"][..., : layer.size[0], : layer.size[1]]
        return partial(f.interpolate_backward, arrays["grad_output"], like, **options)
