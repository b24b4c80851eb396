"""Constant folding: nodes that depend on constants alone are computed once, when a model is loaded.

A model is not trusted: only operators are computed whose result is known to be small beforehand.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, MutableMapping
from math import prod
from typing import Any

import numpy as np

from gpucnn.onnx.graph import Graph, Node
from gpucnn.onnx.operators.arrays import ints
from gpucnn.onnx.operators.registry import find

Array = Any

LARGEST = 2**24  # elements of one result
BUDGET = 2**26  # and of all results of a graph


def _as_inputs(node: Node, arrays: list[Array]) -> int:
    return sum(array.size for array in arrays)


def _broadcast(node: Node, arrays: list[Array]) -> int:
    return prod(np.broadcast_shapes(*(array.shape for array in arrays)))


def _of_shape(node: Node, arrays: list[Array]) -> int:
    return prod(ints(arrays[-1]))


def _expanded(node: Node, arrays: list[Array]) -> int:
    return prod(np.broadcast_shapes(arrays[0].shape, tuple(ints(arrays[1]))))


def _repeated(node: Node, arrays: list[Array]) -> int:
    return int(arrays[0].size) * prod(ints(arrays[1]))


def _range(node: Node, arrays: list[Array]) -> int:
    start, limit, delta = (array.item() for array in arrays)
    return abs(int((limit - start) / delta)) + 1


def _gathered(node: Node, arrays: list[Array]) -> int:
    return int(arrays[0].size) * int(arrays[1].size)


Bound = Callable[[Node, list[Array]], int]
_BOUNDS: dict[str, Bound] = {
    **dict.fromkeys(
        ("Cast", "Concat", "DequantizeLinear", "Flatten", "GatherElements", "Identity", "ReduceMax", "ReduceMean",
         "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "ScatterElements", "Shape", "Size", "Slice", "Squeeze",
         "Transpose", "Unsqueeze"),
        _as_inputs,
    ),
    **dict.fromkeys(
        ("Abs", "Add", "And", "Ceil", "Clip", "Cos", "Div", "Equal", "Exp", "Floor", "Greater", "GreaterOrEqual",
         "Less", "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Round",
         "Sin", "Sqrt", "Sub", "Where"),
        _broadcast,
    ),
    "ConstantOfShape": _of_shape, "Expand": _expanded, "Gather": _gathered, "Range": _range, "Tile": _repeated,
}  # fmt: skip
"""Operators that are folded, each with a bound of the number of elements that it gives."""


def fold_constants(graph: Graph, outer: Mapping[str, Array] | None = None) -> None:
    """Compute the nodes of a graph, and of graphs within it, whose inputs are constants, of graphs around it too.

    Graphs within it get the constants that they read as their own.
    """
    own = {*(value.name for value in graph.inputs), *(name for node in graph.nodes for name in node.outputs)}
    seen = {name: array for name, array in (outer or {}).items() if name not in own}
    known: MutableMapping[str, Array] = ChainMap(graph.constants, seen)
    budget = BUDGET
    nodes = []
    for node in graph.nodes:
        for inner in node.subgraphs():
            inner.constants.update((name, known[name]) for name in inner.captured() if name in known)
            fold_constants(inner, known)
        results = _computed(node, known, budget)
        if results is None:
            nodes.append(node)
            continue
        budget -= sum(array.size for array in results.values())
        graph.constants.update(results)
    graph.nodes = nodes


def _computed(node: Node, known: Mapping[str, Array], budget: int) -> dict[str, Array] | None:
    """What a node gives, by name, where that is constant and small."""
    if node.domain or node.op not in _BOUNDS or not all(name in known for name in node.inputs if name):
        return None
    row = find(node.domain, node.op, node.version)
    if row is None or row.counts or len(node.outputs) != 1:
        return None
    arrays = [known[name] if name else None for name in node.inputs]
    try:
        with np.errstate(all="ignore"):
            if _BOUNDS[node.op](node, [array for array in arrays if array is not None]) > min(LARGEST, budget):
                return None
            result = row.function(*arrays, **node.attributes)
    except Exception:  # the run says what is wrong, if it comes to this node
        return None
    return {node.outputs[0]: np.asarray(result)}
