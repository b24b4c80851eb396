"""gpucnn through its public functions, on NumPy arrays and on a GPU's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from typing import Any, ClassVar, TypeVar

from benchmarks.cases import Case
from benchmarks.checking import NORM_EPS
from benchmarks.data import Arrays
from benchmarks.layers import ActivationLayer, ConvLayer, LayoutLayer, NormLayer, PoolLayer, ResampleLayer, UnfoldLayer
from benchmarks.providers.base import Call, Provider, channels_last, channels_last_unfit

Result = TypeVar("Result")


class Gpucnn(Provider):
    """The calls, whatever the arrays."""

    requires = ("gpucnn",)
    ours = True

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import gpucnn.functional

        self.functional: Any = gpucnn.functional
        self.copies: dict[str, Any] = {"last": gpucnn.channels_last, "first": gpucnn.channels_first}

    def version(self) -> str:
        try:
            return version("gpucnn")
        except PackageNotFoundError:  # run from a checkout
            return "checkout"

    def convolution(self, case: Case, layer: ConvLayer, arrays: Arrays) -> Call:
        f, rank, operation = self.functional, layer.rank, case.operation
        geometry: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        options = {**geometry, "groups": layer.groups}
        x, weight, gradient = (arrays.get(name) for name in ("input", "weight", "grad_output"))
        if operation == "forward":
            name = f"conv_transpose{rank}d" if layer.transposed else f"conv{rank}d"
            return partial(getattr(f, name), x, weight, arrays.get("bias"), **options)
        if operation == "backward_weight":
            image, gradient = (gradient, x) if layer.transposed else (x, gradient)
            return partial(getattr(f, f"conv{rank}d_weight"), image, layer.weight_shape, gradient, **options)
        if layer.transposed:  # the gradient of the adjoint is a convolution
            return partial(getattr(f, f"conv{rank}d"), gradient, weight, None, **options)
        return partial(getattr(f, f"conv{rank}d_input"), layer.input_shape(case.batch), weight, gradient, **options)

    def pooling(self, case: Case, layer: PoolLayer, arrays: Arrays) -> Call:
        if layer.kind == "adaptive_avg":
            options: dict[str, Any] = {"output_size": layer.output}
        else:
            options = dict(layer.window)
        name = f"{layer.kind}_pool{layer.rank}d"
        forward = partial(getattr(self.functional, name), arrays["input"], **options)
        if case.operation == "forward":
            return forward
        if layer.kind == "max":  # as given, or as the forward returns them
            options["indices"] = arrays["indices"] if "indices" in arrays else forward(return_indices=True)[1]
        backward = getattr(self.functional, f"{name}_backward")
        return partial(backward, arrays["grad_output"], arrays["input"], **options)

    def normalization(self, case: Case, layer: NormLayer, arrays: Arrays) -> Call:
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

    def unfolding(self, case: Case, layer: UnfoldLayer, arrays: Arrays) -> Call:
        if case.operation == "im2col":
            return partial(self.functional.im2col, arrays["input"], **layer.window)
        return partial(self.functional.col2im, arrays["columns"], layer.size, **layer.window)

    def layout(self, case: Case, layer: LayoutLayer, arrays: Arrays) -> Call:
        dtype = case.dtypes[1] if layer.cast else None
        if case.operation == "pack":
            return partial(self.copies["last"], arrays["input"], dtype)
        return partial(self.copies["first"], channels_last(arrays["input"]), dtype)

    def activation(self, case: Case, layer: ActivationLayer, arrays: Arrays) -> Call:
        return partial(self.functional.bias_activation, arrays["input"], arrays["bias"])

    def resampling(self, case: Case, layer: ResampleLayer, arrays: Arrays) -> Call:
        f = self.functional
        if layer.kind == "unpool":
            return partial(f.max_unpool2d, arrays["input"], arrays["indices"], layer.block)
        options: dict[str, Any] = {"size": layer.output, "mode": layer.kind}
        if case.operation == "forward":
            return partial(f.interpolate, arrays["input"], **options)
        # Only the shape of the input matters to a linear map's gradient.
        like = arrays["grad_output"][..., : layer.size[0], : layer.size[1]]
        return partial(f.interpolate_backward, arrays["grad_output"], like, **options)


class ChannelsLast(Gpucnn):
    """The same with channels-last images; weights keep their usual memory order."""

    def refuses(self, case: Case) -> str | None:
        return channels_last_unfit(case) or super().refuses(case)

    def prepare(self, case: Case, arrays: Arrays) -> Call:
        images = ("input", "grad_output", "indices")
        turned = {name: channels_last(array) if name in images else array for name, array in arrays.items()}
        return super().prepare(case, turned)


class GpucnnCpu(Gpucnn):
    """One of the CPU backends, whichever the process would choose; its kernels are compiled when it is made."""

    backend: ClassVar[str]

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        from gpucnn.backends import backend, backend_named

        backend_named(self.backend)
        self._computing_by: Any = backend

    def within(self, function: Callable[[], Result]) -> Result:
        with self._computing_by(self.backend):
            return function()


class GpucnnNumpy(GpucnnCpu):
    name = "gpucnn NumPy"
    backend = "numpy"


class GpucnnCompiled(GpucnnCpu):
    name = "gpucnn compiled"
    backend = "compiled"

    @classmethod
    def why_absent(cls) -> str | None:
        reason = super().why_absent()
        if reason is None:
            from gpucnn.backends.cpu.builds import why_unavailable

            reason = why_unavailable() or None
        return reason


class GpucnnCompiledChannelsLast(ChannelsLast, GpucnnCompiled):
    name = "gpucnn compiled channels_last"


class GpucnnGpu(Gpucnn):
    """Arrays of a GPU, or of the simulator in its place, in the order N, C, spatial."""

    name = "gpucnn"
    device = "gpu"

    def hot(self, call: Call, results: list[Any]) -> Call:
        function = getattr(call, "func", None)
        takes_out = function is not None and "out" in signature(function).parameters
        return partial(call, out=results[0]) if takes_out else call


class GpucnnGpuChannelsLast(ChannelsLast, GpucnnGpu):
    name = "gpucnn channels_last"
