"""Small models, built with the package onnx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

OPSET = 21


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), name=f"{op} to {outputs[0]}", **attributes)


def value(name: str, shape: Sequence[int | str | None] | None, dtype: Any = np.float32) -> Any:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int | str | None]],
    outputs: Sequence[str] = ("y",),
    constants: Mapping[str, Any] | None = None,
    opset: int = OPSET,
    dtype: Any = np.float32,
) -> ModelProto:
    """A model of some nodes, with float32 inputs of the given shapes, and outputs of any type."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [value(name, shape, dtype) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def initializer(proto: ModelProto, name: str) -> TensorProto:
    """The constant of that name."""
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)
