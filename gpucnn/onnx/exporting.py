"""Networks written as ONNX files: run once on an example, module by module, each recorded as the nodes of its rule."""

from __future__ import annotations

import copy
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import __version__
from gpucnn.backends import backend
from gpucnn.geometry.arguments import integers
from gpucnn.installing import optional
from gpucnn.nn._loading import to_host
from gpucnn.nn._tracing import Traced, plain, traced, watched
from gpucnn.nn.keeping import evaluation
from gpucnn.onnx._rules import RULES, Run

OPSET, IR_VERSION = 19, 9  # the first opset with dilated average pooling and circular padding; runtimes since 2023

Module = Any  # `gpucnn.nn.module`, whose modules have their export as a method, imports this file
Host = np.ndarray[Any, Any]


def export(model: Module, path: str | os.PathLike[str], example: Any) -> None:
    """Write a network, as it computes in evaluation mode, to an ONNX file.

    Parameters
    ----------
    model : Module
        A layer of `gpucnn.nn`, a network of `gpucnn.nn.models`, or a module made of such.
    path : str or path
        The file.
    example : sequence of int, or array
        Shape of one input without the batch axis, such as (3, 224, 224), or an input with it, which sets the dtype.

    Raises
    ------
    ModuleNotFoundError
        The package onnx is not installed.
    TypeError
        A module cannot be exported; the message has its name in the model and the reason.
    ValueError
        The shape is none, or the network does not take it.

    Notes
    -----
    The model is run once, on the example: its spatial sizes are those of the file, and only the batch is of any size
    (``"batch"``). Weights have the names of `Module.state_dict`, nodes begin with their module's name; the input is
    called ``input``, and the output ``output`` (``output_0``, ``output_1`` where there are several). Between modules it
    follows sums, products, concatenations, slices and other functions of NumPy; not those of `gpucnn.functional`.
    The operator set is version 19.

    Examples
    --------
    >>> import tempfile
    >>> from gpucnn import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export(model, f"{folder}/model.onnx", (3, 32, 32))
    ...     Path(folder, "model.onnx").stat().st_size > 8 * 3 * 9 * 4
    True
    """
    onnx = optional("to_onnx", "onnx", "onnx")
    if isinstance(model, type) or not hasattr(model, "named_modules"):
        raise TypeError(f"to_onnx: model is of type {type(model).__name__}, expected a Module")
    graph = Graph(onnx, copy.deepcopy(model).to("cpu"))
    proto = graph.run(_input(graph.model, example))
    onnx.checker.check_model(proto, full_check=True)
    Path(path).write_bytes(proto.SerializeToString())


def _input(model: Module, example: Any) -> Host:
    """The example with a batch axis, in the dtype of the network where it is only a shape."""
    if hasattr(example, "dtype"):
        array = to_host(example)
        if not array.ndim:
            raise ValueError("to_onnx: example has no axes, expected a batch axis first")
        return array
    sizes = tuple(example) if isinstance(example, Sequence) else (example,)
    shape = integers("to_onnx", "example", sizes, len(sizes), 1)
    dtype = next((parameter.data.dtype for parameter in model.parameters()), np.dtype(np.float32))
    return np.random.default_rng(0).random((2, *shape)).astype(dtype)  # two images: 1 could be any axis


class Graph:
    """The nodes and weights of a network, recorded while it runs: the tracer of its arrays."""

    def __init__(self, onnx: Any, model: Module) -> None:
        self.onnx, self.model = onnx, model
        self.names = {module: name for name, module in reversed(list(model.named_modules()))}
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}
        self.taken: set[str] = {"input", "output"}
        self.within: list[Module] = []  # the modules that run, the innermost last
        self.indices: dict[Module, str] = {}  # of the maxima of pools, for the unpooling made from them
        self.alive: list[Any] = []  # arrays that are recorded, so that none takes the place of another
        self.batch = 0

    # --- The run ------------------------------------------------------------------------------------------------------

    def run(self, x: Host) -> Any:
        """The network's ONNX model."""
        self.batch = len(x)
        with evaluation(self.model), watched(self.model, self.watching), backend("numpy"):
            result = self.model(traced(x, self, "input"))
        results = result if isinstance(result, tuple) else (result,)
        names = ["output"] if len(results) == 1 else [f"output_{number}" for number in range(len(results))]
        for name, array in zip(names, results, strict=True):
            self.nodes.append(self.onnx.helper.make_node("Identity", [self.tensor(array)], [name], name))
        self._without_copies(names)
        described = [("input", x), *zip(names, map(plain, results), strict=True)]
        values = [self._described(name, array) for name, array in described]
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, type(self.model).__name__, values[:1], values[1:], self.weights.values())
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="gpucnn",
            producer_version=__version__,
        )

    def _without_copies(self, outputs: Sequence[str]) -> None:
        """Let the node that makes a result give it the output's name, where nothing else reads it."""
        for name in outputs:
            copied = next(node for node in self.nodes if name in node.output)
            source = copied.input[0]
            maker = next((node for node in self.nodes if source in node.output), None)
            if maker is None or sum(source in node.input for node in self.nodes) > 1:
                continue
            maker.output[list(maker.output).index(source)] = name
            self.nodes.remove(copied)

    def _described(self, name: str, array: Host) -> Any:
        """The type and shape of an input or output."""
        helper = self.onnx.helper
        if array.shape[:1] != (self.batch,):
            return helper.make_tensor_value_info(name, self._dtype(array), [None] * array.ndim)
        return helper.make_tensor_value_info(name, self._dtype(array), ["batch", *array.shape[1:]])

    def _dtype(self, array: Host) -> int:
        return int(self.onnx.helper.np_dtype_to_tensor_dtype(array.dtype))

    def watching(self, module: Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The forward of a module, recorded as its rule says; of one without a rule its parts are."""
        rule = next((RULES[kind.__name__] for kind in type(module).__mro__ if self._is_ruled(kind, module)), None)

        def recorded(*inputs: Any, **options: Any) -> Any:
            self.within.append(module)
            if rule is None:
                result = forward(*inputs, **options)
                self._expect_traced(result)
            else:
                result = self._by_rule(rule, module, forward, inputs, options)
            self.within.pop()
            return result

        return recorded

    def _is_ruled(self, kind: type, module: Module) -> bool:
        """Whether a class has a rule, and the module the forward that it is about."""
        if kind.__name__ not in RULES or not kind.__module__.startswith("gpucnn.nn."):
            return False
        return bool(type(module).forward is kind.forward)  # type: ignore[attr-defined]

    def _by_rule(
        self, rule: Any, module: Module, forward: Callable[..., Any], inputs: Sequence[Any], options: Mapping[str, Any]
    ) -> Any:
        for value in (*inputs, *options.values()):
            if isinstance(value, Traced):
                self.tensor(value)
        result = forward(*map(plain, inputs), **{name: plain(value) for name, value in options.items()})
        results = result if isinstance(result, tuple) else (result,)
        made = rule(Run(self, module, self.names[module], inputs, dict(options), results))
        names = made if isinstance(made, tuple) else (made,)
        arrays = tuple(self.made(array, name) for array, name in zip(results, names, strict=True))
        return arrays if isinstance(result, tuple) else arrays[0]

    def made(self, array: Any, name: str) -> Traced:
        """An array as the tensor that nodes make."""
        self.alive.append(array)
        return traced(array, self, name)

    def _expect_traced(self, result: Any) -> None:
        for array in result if isinstance(result, tuple) else (result,):
            self.tensor(array)

    # --- Nodes --------------------------------------------------------------------------------------------------------

    def refuse(self, reason: str) -> TypeError:
        """The error that the module which runs cannot be exported."""
        module = self.within[-1] if self.within else self.model
        name = self.names[module]
        return TypeError(f"to_onnx: {name or 'the model'}, a {type(module).__name__}, cannot be exported: {reason}")

    def tensor(self, value: Any, like: Any = None) -> str:
        """The name of a traced array, or of a number or another array as a weight, in the dtype of `like`."""
        if isinstance(value, Traced):
            if value.name is None:
                raise self.refuse("it computes in a way that is not followed, expected modules and NumPy's functions")
            return value.name
        if like is None:
            made_of = "an array that no module made" if hasattr(value, "dtype") else f"a {type(value).__name__}"
            raise self.refuse(f"it gives {made_of}, expected modules' results and NumPy's functions of them")
        return self.weight(np.asarray(value, like.dtype), "constant")

    def weight(self, array: Host, name: str) -> str:
        """The name of a new weight: `name`, or one after it that is free."""
        name = self.free(name)
        self.weights[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        return name

    def state(self, name: str, array: Any) -> str:
        """The name of a parameter or buffer, which is that of the state."""
        if name not in self.weights:
            self.weights[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
            self.taken.add(name)
        return name

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> Any:
        """Add a node, named after the module that runs; the names of its results."""
        name = self.free(f"{self.names[self.within[-1]]}.{op}".removeprefix(".") if self.within else op)
        results = [name, *(self.free(f"{name}.{number}") for number in range(1, outputs))]
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        self.nodes.append(self.onnx.helper.make_node(op, inputs, results, name, **attributes))
        return results[0] if outputs == 1 else tuple(results)

    def free(self, name: str) -> str:
        """`name`, or with a number after it where it is taken."""
        chosen, number = name, 1
        while chosen in self.taken:
            chosen, number = f"{name}_{number}", number + 1
        self.taken.add(chosen)
        return chosen

    # --- NumPy's functions of traced arrays ---------------------------------------------------------------------------

    def computed(self, function: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """What a function of NumPy makes of traced arrays, recorded."""
        result = function(*map(plain, arguments), **{name: plain(value) for name, value in options.items()})
        operation = _FUNCTIONS.get(function)
        if operation is None:
            raise self.refuse(f"it calls {getattr(function, '__name__', function)}, which is not followed")
        if isinstance(operation, str):
            if set(options) - {"dtype"}:
                raise self.refuse(f"it calls {function.__name__} with {', '.join(options)}, which is not followed")
            return self.made(result, self.node(operation, [self.tensor(each, result) for each in arguments]))
        return self.made(result, operation(self, result, *arguments, **options))

    def shape(self, sizes: Sequence[int]) -> str:
        """A shape as a weight; 0 stands for the size that the axis has, -1 for what is left."""
        return self.weight(np.array(sizes, np.int64), "shape")

    def reshaped(self, result: Host, x: Any, shape: Any) -> str:
        """The node of ``x.reshape(shape)``, where the batch axis stays."""
        if x.shape[0] != self.batch or result.shape[:1] != (self.batch,):
            raise self.refuse(f"it reshapes {tuple(x.shape)} to {tuple(result.shape)}, expected the batch axis to stay")
        return str(self.node("Reshape", [self.tensor(x), self.shape([0, *result.shape[1:]])]))

    def transposed(self, result: Host, x: Any, axes: Any = None) -> str:
        """The node of ``x.transpose(axes)``."""
        order = range(x.ndim)[::-1] if axes is None else [axis % x.ndim for axis in axes]
        return str(self.node("Transpose", [self.tensor(x)], perm=list(order)))

    def concatenated(self, result: Host, arrays: Sequence[Any], axis: int = 0) -> str:
        """The node of ``numpy.concatenate``."""
        return str(self.node("Concat", [self.tensor(each, result) for each in arrays], axis=axis))

    def sliced(self, result: Host, x: Any, key: Any) -> str:
        """The nodes of ``x[key]``, for slices and positions along axes that stay or go."""
        keys = list(key) if isinstance(key, tuple) else [key]
        if any(not isinstance(each, slice | int | type(...)) for each in keys):
            raise self.refuse("it indexes by something else than slices and ints")
        if ... in keys:
            at = keys.index(...)
            keys[at : at + 1] = [slice(None)] * (x.ndim - len(keys) + 1)
        cuts, gone = [], []  # (start, end, axis, step) of each axis that is cut
        for axis, each in enumerate(keys):
            if each == slice(None):
                continue
            if isinstance(each, int):
                gone.append(axis)
                each = slice(each, each + 1 or None)
            first, last, step = each.indices(x.shape[axis])
            if step < 0 or axis == 0:
                raise self.refuse("it slices the batch axis, or backwards")
            cuts.append((first, last, axis, step))
        name = self.tensor(x)
        if cuts:
            name = self.node("Slice", [name, *map(self.shape, zip(*cuts, strict=True))])
        return str(self.node("Squeeze", [name, self.shape(gone)])) if gone else name

    def reduced(self, op: str) -> Callable[..., str]:
        """What makes the node of a mean or sum."""

        def node(result: Host, x: Any, axis: Any = None, *, keepdims: bool = False) -> str:
            axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
            inputs = [self.tensor(x), self.shape([each % x.ndim for each in axes])]
            return str(self.node(op, inputs, keepdims=int(keepdims)))

        return node


_FUNCTIONS: dict[Any, Any] = {
    np.add: "Add", np.subtract: "Sub", np.multiply: "Mul", np.divide: "Div", np.negative: "Neg", np.absolute: "Abs",
    np.maximum: "Max", np.minimum: "Min", np.exp: "Exp", np.log: "Log", np.sqrt: "Sqrt", np.tanh: "Tanh",
    np.power: "Pow", np.concatenate: Graph.concatenated, np.reshape: Graph.reshaped, np.transpose: Graph.transposed,
    operator.getitem: Graph.sliced,
    np.mean: lambda graph, *arguments, **options: graph.reduced("ReduceMean")(*arguments, **options),
    np.sum: lambda graph, *arguments, **options: graph.reduced("ReduceSum")(*arguments, **options),
}  # fmt: skip
