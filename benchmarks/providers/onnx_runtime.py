"""ONNX Runtime: a model of one node, prepared once and run with bound input and output.

Weights are initialisers, so that the runtime may repack them while it loads; all graph
optimisations are on. It has no gradients, but its ConvTranspose is a convolution's backward-input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.checking import NORM_EPS
from benchmarks.data import Arrays
from benchmarks.layers import ConvLayer, NormLayer, PoolLayer, ResampleLayer, UnfoldLayer, WindowedLayer
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

    def _run(
        self, operator: str, fed: Arrays, constants: Arrays, attributes: dict[str, Any], inputs: Sequence[str] = ()
    ) -> Call:
        """A run of one node on the arrays `fed`; `inputs` are its inputs' names, where not all have an array."""
        graph = _graph(operator, fed, constants, attributes, inputs or (*fed, *constants))
        return bind(make_session(graph, self.threads), fed)

    def convolution(self, case: Case, layer: ConvLayer, arrays: Arrays) -> Call:
        """Forward and backward-input; each is a Conv or a ConvTranspose over the same weight."""
        forward = case.operation == "forward"
        adjoint = layer.transposed == forward
        constants = {name: arrays[name] for name in arrays if name in ("weight", "bias")}
        attributes = {**_window(layer), "dilations": layer.dilation, "group": layer.groups}
        if adjoint and not forward:  # the rows at the end that the strided windows did not reach
            reached = replace(layer, size=layer.out_size, transposed=True).out_size
            attributes["output_padding"] = [i - r for i, r in zip(layer.size, reached, strict=True)]
        source = "input" if forward else "grad_output"
        return self._run("ConvTranspose" if adjoint else "Conv", {source: arrays[source]}, constants, attributes)

    def normalization(self, case: Case, layer: NormLayer, arrays: Arrays) -> Call:
        operator, attributes = {
            "batch": ("BatchNormalization", {}),
            "layer": ("LayerNormalization", {"axis": -1}),
            "group": ("GroupNormalization", {"num_groups": layer.groups}),
            "instance": ("InstanceNormalization", {}),
        }[layer.kind]
        constants = {name: array for name, array in arrays.items() if name != "input"}
        return self._run(operator, {"input": arrays["input"]}, constants, {"epsilon": NORM_EPS, **attributes})

    def resampling(self, case: Case, layer: ResampleLayer, arrays: Arrays) -> Call:
        if layer.kind == "unpool":  # its indices count through the whole tensor, ours through a plane
            shape = layer.output_shape(case.batch)
            planes = np.arange(shape[0] * shape[1]).reshape(shape[0], shape[1], 1, 1)
            indices = arrays["indices"] + planes * layer.output[0] * layer.output[1]
            window = {"kernel_shape": layer.block, "strides": layer.block}
            return self._run("MaxUnpool", {"input": arrays["input"], "indices": indices}, {}, window)
        modes = {
            "nearest": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
            "bilinear": {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
        }
        sizes = np.array(layer.output_shape(case.batch), dtype=np.int64)
        return self._run("Resize", arrays, {"sizes": sizes}, modes[layer.kind], ("input", "", "", "sizes"))

    def pooling(self, case: Case, layer: PoolLayer, arrays: Arrays) -> Call:
        if layer.kind == "adaptive_avg":
            return self._run("GlobalAveragePool", arrays, {}, {})
        if layer.kind == "avg":
            return self._run("AveragePool", arrays, {}, {**_window(layer), "count_include_pad": 1})
        return self._run("MaxPool", arrays, {}, _window(layer))

    def unfolding(self, case: Case, layer: UnfoldLayer, arrays: Arrays) -> Call:
        constants = {"size": np.array(layer.size), "block": np.array(layer.kernel)}
        window = _window(layer)
        del window["kernel_shape"]  # that is the block
        return self._run("Col2Im", arrays, constants, window)

    def results(self, returned: Any) -> list[Any]:
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


def _graph(operator: str, fed: Arrays, constants: Arrays, attributes: dict[str, Any], inputs: Sequence[str]) -> Any:
    """A graph of one node."""
    import onnx

    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    types = {np.dtype(np.float32): floats, np.dtype(np.int64): onnx.TensorProto.INT64}
    return helper.make_graph(
        [helper.make_node(operator, list(inputs), ["output"], **attributes)],
        "layer",
        [helper.make_tensor_value_info(name, types[array.dtype], array.shape) for name, array in fed.items()],
        [helper.make_tensor_value_info("output", floats, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )


def _window(layer: WindowedLayer) -> dict[str, Any]:
    """Attributes; ONNX lists the low pads of all axes, then the high ones."""
    return {"kernel_shape": layer.kernel, "strides": layer.stride, "pads": [*layer.padding, *layer.padding]}
