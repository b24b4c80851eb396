"""ONNX Runtime: a model of one node, prepared once and run with bound input and output.

Weights are initialisers, so that the runtime may repack them while it loads; all graph
optimisations are on. It has no gradients, but its ConvTranspose is a convolution's backward-input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cases import Case
from benchmarks.checking import NORM_EPS
from benchmarks.data import Arrays
from benchmarks.layers import ConvLayer, NormLayer, PoolLayer, ResampleLayer, Shape, UnfoldLayer
from benchmarks.providers.base import Call, Provider

OPSET = 21
IR_VERSION = 10


class OnnxRuntime(Provider):
    name = "ONNX Runtime"
    requires = ("onnxruntime", "onnx")

    def version(self) -> str:
        import onnxruntime  # type: ignore[import-untyped]

        return str(onnxruntime.__version__)

    def refuses(self, case: Case) -> str | None:
        layer, operation = case.layer, case.operation
        if operation == "backward_weight":
            return "no weight gradient"
        if operation == "backward" or (operation == "backward_input" and layer.rank == 3):
            return "no gradients"
        if operation == "training":
            return "batch norm for inference only"
        if operation == "im2col":
            return "no im2col operator"
        if isinstance(layer, PoolLayer) and layer.kind == "adaptive_avg" and set(layer.output) != {1}:
            return "adaptive pooling to one value only"
        return None

    def prepare(self, case: Case, arrays: Arrays) -> Call:
        node, fed, constants = _describe(case, arrays)
        return bind(make_session(_graph(node, fed, constants), self.threads), fed)

    def results(self, returned: Any) -> list[npt.NDArray[Any]]:
        return list(returned.copy_outputs_to_cpu())


def make_session(graph: Any, threads: int) -> Any:
    """The runtime's session of an ONNX graph, with all optimisations, confined to `threads` threads."""
    import onnx
    import onnxruntime

    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Its threads may spin within a run, not afterwards, when another provider is measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def bind(session: Any, fed: Arrays) -> Call:
    """A run of the session on the arrays of `fed`, which returns the value of its "output"."""
    binding = session.io_binding()
    for name, array in fed.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(array))
    binding.bind_output("output", "cpu")

    def call() -> Any:
        session.run_with_iobinding(binding)
        return binding

    return call


def _graph(node: Any, fed: Arrays, constants: Arrays) -> Any:
    """A graph of one node."""
    import onnx

    types = {np.dtype(np.float32): onnx.TensorProto.FLOAT, np.dtype(np.int64): onnx.TensorProto.INT64}
    return onnx.helper.make_graph(
        [node],
        "layer",
        [onnx.helper.make_tensor_value_info(name, types[array.dtype], array.shape) for name, array in fed.items()],
        [onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )


def _describe(case: Case, arrays: Arrays) -> tuple[Any, Arrays, Arrays]:
    """The node, the arrays that each run is fed, and those that the model holds."""
    from onnx.helper import make_node

    layer = case.layer
    if isinstance(layer, ConvLayer):
        return _describe_convolution(case, layer, arrays)
    if isinstance(layer, NormLayer):
        return _describe_norm(layer, arrays)
    if isinstance(layer, UnfoldLayer):
        constants = {"size": np.array(layer.size), "block": np.array(layer.kernel)}
        node = make_node(
            "Col2Im", ["columns", "size", "block"], ["output"], pads=_both_sides(layer.padding), strides=layer.stride
        )
        return node, arrays, constants
    if isinstance(layer, PoolLayer):
        if layer.kind == "adaptive_avg":
            return make_node("GlobalAveragePool", ["input"], ["output"]), arrays, {}
        counting: dict[str, Any] = {"count_include_pad": 1} if layer.kind == "avg" else {}
        node = make_node(
            "MaxPool" if layer.kind == "max" else "AveragePool",
            ["input"],
            ["output"],
            kernel_shape=layer.kernel,
            strides=layer.stride,
            pads=_both_sides(layer.padding),
            **counting,
        )
        return node, arrays, {}
    if isinstance(layer, ResampleLayer):
        return _describe_resample(case, layer, arrays)
    raise TypeError(f"ONNX Runtime does not know {type(layer).__name__}")


def _describe_convolution(case: Case, layer: ConvLayer, arrays: Arrays) -> tuple[Any, Arrays, Arrays]:
    """Forward and backward-input; each is a Conv or a ConvTranspose over the same weight."""
    from onnx.helper import make_node

    forward = case.operation == "forward"
    adjoint = layer.transposed == forward
    constants = {name: arrays[name] for name in arrays if name in ("weight", "bias")}
    attributes: dict[str, Any] = {
        "kernel_shape": layer.kernel,
        "strides": layer.stride,
        "pads": _both_sides(layer.padding),
        "dilations": layer.dilation,
        "group": layer.groups,
    }
    if adjoint and not forward:  # the rows at the end that the strided windows did not reach
        axes = zip(layer.size, layer.out_size, layer.kernel, layer.stride, layer.padding, layer.dilation, strict=True)
        attributes["output_padding"] = [i - ((o - 1) * s - 2 * p + d * (k - 1) + 1) for i, o, k, s, p, d in axes]
    source = "input" if forward else "grad_output"
    node = make_node("ConvTranspose" if adjoint else "Conv", [source, *constants], ["output"], **attributes)
    return node, {source: arrays[source]}, constants


def _describe_norm(layer: NormLayer, arrays: Arrays) -> tuple[Any, Arrays, Arrays]:
    from onnx.helper import make_node

    names = ["weight", "bias"]
    if layer.kind == "batch":
        names += ["running_mean", "running_var"]
    operators: dict[str, tuple[str, dict[str, Any]]] = {
        "batch": ("BatchNormalization", {}),
        "layer": ("LayerNormalization", {"axis": -1}),
        "group": ("GroupNormalization", {"num_groups": layer.groups}),
        "instance": ("InstanceNormalization", {}),
    }
    operator, attributes = operators[layer.kind]
    node = make_node(operator, ["input", *names], ["output"], epsilon=NORM_EPS, **attributes)
    return node, {"input": arrays["input"]}, {name: arrays[name] for name in names}


def _describe_resample(case: Case, layer: ResampleLayer, arrays: Arrays) -> tuple[Any, Arrays, Arrays]:
    from onnx.helper import make_node

    if layer.kind == "unpool":  # its indices count through the whole tensor, ours through a plane
        shape: Shape = layer.output_shape(case.batch)
        planes = np.arange(shape[0] * shape[1]).reshape(shape[0], shape[1], 1, 1)
        indices = arrays["indices"] + planes * layer.output[0] * layer.output[1]
        block = [o // i for o, i in zip(layer.output, layer.size, strict=True)]
        node = make_node("MaxUnpool", ["input", "indices"], ["output"], kernel_shape=block, strides=block)
        return node, {"input": arrays["input"], "indices": indices}, {}
    modes = {
        "nearest": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        "bilinear": {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    }
    sizes = np.array(layer.output_shape(case.batch), dtype=np.int64)
    node = make_node("Resize", ["input", "", "", "sizes"], ["output"], **modes[layer.kind])
    return node, arrays, {"sizes": sizes}


def _both_sides(padding: Shape) -> list[int]:
    """ONNX lists the low pads of all axes, then the high ones."""
    return [*padding, *padding]
