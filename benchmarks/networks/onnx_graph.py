"""The ONNX graph of a network of gpucnn.nn in evaluation mode: a walk through its modules.

Batch norms stay separate nodes: ONNX Runtime folds them into the convolutions when it loads the graph, as
`gpucnn.nn.fused` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpucnn import nn
from gpucnn.nn.models import BasicBlock, Bottleneck, InvertedResidual


class Value(NamedTuple):
    """An array of the graph: its name, and the height and width of its images; none once they are flattened."""

    name: str
    size: tuple[int, ...]


def graph_of(model: nn.Module, input_shape: tuple[int, ...]) -> Any:
    """The graph from "input" [N, C, H, W] to "output", both float32, with the weights as constants.

    Raises
    ------
    TypeError
        A module is none that the walk knows.
    """
    import onnx

    walk = _Walk()
    last = walk.follow(model, Value("input", input_shape[2:]))
    walk.node("Identity", [last], last.size, output="output")
    floats = onnx.TensorProto.FLOAT
    return onnx.helper.make_graph(
        walk.nodes,
        type(model).__name__,
        [onnx.helper.make_tensor_value_info("input", floats, input_shape)],
        [onnx.helper.make_tensor_value_info("output", floats, None)],
        walk.constants,
    )


class _Walk:
    """Nodes and constants, in the order in which the network runs."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def follow(self, module: nn.Module, x: Value) -> Value:
        """Add the nodes of a module that is given `x`; its result."""
        match module:
            case nn.Sequential():
                return self.chain(module, x)
            case BasicBlock() | Bottleneck():
                (*through, relu), (*past, _) = module.branches()
                ends = [self.chain(through, x), self.chain(past, x)]
                return self.follow(relu, self.node("Add", ends, ends[0].size))
            case InvertedResidual():
                ends = [self.chain(way, x) for way in module.branches()]
                return self.node("Add", ends, x.size) if len(ends) > 1 else ends[0]
            case nn.Conv2d():
                return self.windowed("Conv", [x, *self.weights(module)], module, group=module.groups)
            case nn.MaxPool2d():
                return self.windowed("MaxPool", [x], module, ceil_mode=int(module.ceil_mode))
            case nn.BatchNorm2d():
                statistics = map(self.constant, (module.running_mean, module.running_var))
                inputs = [x, *self.weights(module), *statistics]
                return self.node("BatchNormalization", inputs, x.size, epsilon=module.eps)
            case nn.ReLU():
                return self.node("Relu", [x], x.size)
            case nn.ReLU6():
                bounds = [self.constant(np.array(bound, np.float32)) for bound in (0, 6)]
                return self.node("Clip", [x, *bounds], x.size)
            case nn.AdaptiveAvgPool2d():
                return self.adaptive_average(x, module.output_size)
            case nn.Flatten():
                return self.node("Flatten", [x], (), axis=module.start_dim)
            case nn.Linear():
                return self.node("Gemm", [x, *self.weights(module)], (), transB=1)
            case nn.Dropout():
                return x
        raise TypeError(f"graph_of: {type(module).__name__} is none of the modules that it knows")

    def chain(self, modules: Iterable[nn.Module], x: Value) -> Value:
        """One module after the other."""
        for module in modules:
            x = self.follow(module, x)
        return x

    def windowed(self, operator: str, inputs: list[Value], module: Any, **attributes: Any) -> Value:
        """A convolution or a pooling."""
        window: Any = module.window((1, 1, *inputs[0].size))
        starts, ends = zip(*window.padding, strict=True)
        axes = zip(inputs[0].size, window.kernel_size, window.stride, starts, ends, window.dilation, strict=True)
        out = tuple((i + low + high - d * (k - 1) - 1) // s + 1 for i, k, s, low, high, d in axes)
        return self.node(
            operator,
            inputs,
            out,
            kernel_shape=window.kernel_size,
            strides=window.stride,
            pads=[*starts, *ends],
            dilations=window.dilation,
            **attributes,
        )

    def adaptive_average(self, x: Value, output_size: tuple[int, int]) -> Value:
        """Nothing where the size is right already; sizes other than 1 are products with averaging matrices."""
        if x.size == output_size:
            return x
        if output_size == (1, 1):
            return self.node("GlobalAveragePool", [x], output_size)
        rows, columns = (averages(size, out) for size, out in zip(x.size, output_size, strict=True))
        y = self.node("MatMul", [self.constant(rows), x], (output_size[0], x.size[1]))
        return self.node("MatMul", [y, self.constant(columns.T)], output_size)

    def weights(self, module: Any) -> list[Value]:
        """Weight and bias as constants; the weight alone where there is no bias."""
        return [self.constant(each.data) for each in (module.weight, module.bias) if each is not None]

    def constant(self, array: Any) -> Value:
        """An array that the graph holds."""
        import onnx

        name = f"constant{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return Value(name, ())

    def node(
        self, operator: str, inputs: list[Value], size: tuple[int, ...], output: str = "", **attributes: Any
    ) -> Value:
        """A node whose only output is `output`, or has a new name."""
        from onnx.helper import make_node

        output = output or f"value{len(self.nodes)}"
        self.nodes.append(make_node(operator, [value.name for value in inputs], [output], **attributes))
        return Value(output, size)


def averages(size: int, out: int) -> NDArray[np.float32]:
    """The matrix [out, size] of adaptive average pooling along one axis."""
    matrix = np.zeros((out, size), np.float32)
    for o in range(out):
        first, end = o * size // out, -(-(o + 1) * size // out)  # [floor(o*size/out), ceil((o+1)*size/out))
        matrix[o, first:end] = 1 / (end - first)
    return matrix
