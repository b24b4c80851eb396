"""Reading a model file into a graph, with checks of all that the run relies on.

A file is taken as hostile: sizes are compared before anything is allocated by them, data lie in the file or beside it,
graphs nest to a bound, and every name is defined before it is used. Nothing in a file is executed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.installing import optional
from gpucnn.onnx import operators as operators
from gpucnn.onnx.errors import ModelError, UnsupportedError
from gpucnn.onnx.graph import Dimension, Graph, Node, Value
from gpucnn.onnx.operators.registry import NEWEST, OWN, find
from gpucnn.onnx.tensors import Folder, dtype_of, read_tensor

__all__ = ["Description", "parse", "read"]

_ROUNDS = 4  # of writing out: what an operator is defined by may be defined by others
DEEPEST = 16  # graphs within graphs
DEEPEST_CALLS, MOST_NODES = 64, 1 << 20  # functions within functions, and what they make of a graph
_DEFAULT = ("", "ai.onnx")  # two names of the domain of the standard's operators
_FIELDS = {1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 6: "floats", 7: "ints", 8: "strings"}  # by AttributeProto's type


@dataclass
class Description:
    """What a file says of itself."""

    source: str
    producer: str
    opsets: dict[str, int]
    metadata: dict[str, str]


@dataclass
class _Reader:
    """The state of one reading: where the file lies, its operator sets, and what was found wrong with its nodes."""

    folder: Folder | None
    opsets: dict[str, int]
    problems: list[str] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)

    # --- Graphs -----------------------------------------------------------------------------------------------------

    def graph(self, proto: Any, outer: frozenset[str]) -> Graph:
        """A graph within graphs that define the names `outer`."""
        if proto.sparse_initializer:
            raise UnsupportedError(f"graph {proto.name!r}: has sparse tensors, which are not supported")
        constants = {tensor.name: read_tensor(tensor, self.folder) for tensor in proto.initializer}
        inputs = [_value(value) for value in proto.input if value.name not in constants]
        known = set(outer) | set(constants) | {""}
        defined = set(constants) | {value.name for value in inputs}
        if len(defined) < len(constants) + len(inputs):
            raise ModelError(f"graph {proto.name!r}: has two inputs of one name")
        known |= defined
        nodes = []
        for node_proto in proto.node:
            node = self.node(node_proto, known)
            names = [name for name in node.outputs if name]
            twice = next((name for name in names if name in defined or names.count(name) > 1), None)
            if twice is not None:
                raise ModelError(f"node {node}: its output {twice!r} has the name of another value")
            known.update(names)
            defined.update(names)
            if node.op == "Constant" and not node.domain:
                constants[node.outputs[0]] = _constant(node)
            else:
                nodes.append(node)
        outputs = [_value(value) for value in proto.output]
        missing = next((value.name for value in outputs if value.name not in known or not value.name), None)
        if missing is not None:
            raise ModelError(f"graph {proto.name!r}: no node gives the output {missing!r}")
        return Graph(proto.name, inputs, outputs, nodes, constants)

    # --- Nodes ------------------------------------------------------------------------------------------------------

    def node(self, proto: Any, known: set[str]) -> Node:
        """A node, whose inputs are among the names that are `known`; what is not supported is noted."""
        domain = "" if proto.domain in _DEFAULT else proto.domain
        version = self.opsets.get(domain, 0)
        node = Node(proto.op_type, domain, version, proto.name, list(proto.input), list(proto.output))
        absent = next((name for name in node.inputs if name not in known), None)
        if absent is not None:
            raise ModelError(f"node {node}: its input {absent!r} is not defined before it")
        if not node.outputs:
            raise ModelError(f"node {node}: has no output")
        row = None if domain == OWN else find(domain, node.op, version)
        is_constant = node.op == "Constant" and not domain
        if row is None and not is_constant:
            named = f"{domain}.{node.op}" if domain else node.op
            self.unknown[f"{named} (version {version})" if find(domain, node.op, NEWEST) else named] += 1
            return node  # its attributes may be what is not known, so that they are not read
        node.attributes = self.attributes(node, proto.attribute, known)
        if row is not None:
            while node.inputs and not node.inputs[-1]:
                node.inputs.pop()
            self.problems += [f"node {node}: {problem}" for problem in row.problems(node.attributes, len(node.inputs))]
            blank = next((at for at, name in enumerate(node.inputs[: row.least]) if not name), None)
            if blank is not None:
                self.problems.append(f"node {node}: input {blank} is left out")
        return node

    def attributes(self, node: Node, protos: Iterable[Any], known: set[str]) -> dict[str, Any]:
        """The attributes of a node as plain values."""
        values: dict[str, Any] = {}
        for proto in protos:
            name = proto.name
            if name in values:
                raise ModelError(f"node {node}: has the attribute {name!r} twice")
            if proto.ref_attr_name or proto.type not in _FIELDS:
                raise UnsupportedError(
                    f"node {node}: attribute {name!r} is of type {proto.type}, which is not supported"
                )
            value = getattr(proto, _FIELDS[proto.type])
            if proto.type == 3:
                value = _text(node, name, value)
            elif proto.type == 4:
                value = read_tensor(value, self.folder)
            elif proto.type == 5:
                value = self.graph(value, frozenset(known))
            elif proto.type == 8:
                value = [_text(node, name, item) for item in value]
            elif proto.type in (6, 7):
                value = list(value)
            values[name] = value
        return values


def _text(node: Node, name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ModelError(f"node {node}: attribute {name!r} is no text: {value[:40]!r}") from None


def _constant(node: Node) -> Any:
    """The array of a Constant node."""
    if len(node.attributes) != 1:
        raise ModelError(f"node {node}: has the attributes {list(node.attributes)}, expected one")
    ((name, value),) = node.attributes.items()
    if name == "value" and isinstance(value, np.ndarray):
        return value
    if name in ("value_int", "value_ints"):
        return np.array(value, np.int64)
    if name in ("value_float", "value_floats"):
        return np.array(value, np.float32)
    raise UnsupportedError(f"node {node}: attribute {name!r} is not supported")


def _value(proto: Any) -> Value:
    """An input or output, as far as the file describes it."""
    if not proto.type.HasField("tensor_type"):
        kind = proto.type.WhichOneof("value")
        if kind is not None:
            raise UnsupportedError(f"value {proto.name!r}: is of type {kind}, expected a tensor")
        return Value(proto.name, None, None)
    tensor = proto.type.tensor_type
    dtype = None
    if tensor.elem_type:
        try:
            dtype = dtype_of(tensor.elem_type)
        except ModelError as error:
            raise type(error)(f"value {proto.name!r}: {error}") from None
    shape = tuple(_dimension(item) for item in tensor.shape.dim) if tensor.HasField("shape") else None
    return Value(proto.name, dtype, shape)


def _dimension(proto: Any) -> Dimension:
    if proto.HasField("dim_value"):
        return proto.dim_value if proto.dim_value >= 0 else None  # some exporters write -1 for any size
    return proto.dim_param or None


# --- Files ----------------------------------------------------------------------------------------------------------


def parse(source: Any) -> tuple[Any, Path | None, str]:
    """The protocol buffer of a model, the folder of its file, and how messages name it.

    Parameters
    ----------
    source : path, bytes or onnx.ModelProto

    Raises
    ------
    ModelError
        The bytes are no model.
    """
    onnx = optional("gpucnn.onnx", "onnx", "onnx")
    if isinstance(source, onnx.ModelProto):
        return source, None, "model"
    if isinstance(source, bytes | bytearray | memoryview):
        content, folder, name = bytes(source), None, "model"
    else:
        path = Path(source)
        content, folder, name = path.read_bytes(), path.parent, path.name
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception as error:  # protobuf's own, whose class depends on how it was built
        raise ModelError(f"{name}: is no ONNX model: {error}") from None
    return proto, folder, name


def read(source: Any) -> tuple[Graph, Description]:
    """A model's graph, all of whose nodes can run, and what the file says of itself.

    Raises
    ------
    ModelError
        The file is damaged, or the model uses what is not supported: everything unsupported is listed.
    """
    proto, folder, name = parse(source)
    try:
        if not proto.HasField("graph"):
            raise ModelError("is no ONNX model, it has no graph")
        _expect_text(proto.graph, 0)
        opsets = _opsets(proto)
        reader = _Reader(None if folder is None else Folder(folder), opsets)
        proto = _written_out(_without_functions(proto), opsets)
        graph = reader.graph(proto.graph, frozenset())
        _refuse(reader)
    except ModelError as error:
        raise type(error)(f"{name}: {error}") from None
    metadata = {_printable(entry.key): entry.value for entry in proto.metadata_props if isinstance(entry.value, str)}
    producer = _printable(proto.producer_name, proto.producer_version)
    return graph, Description(name, producer, reader.opsets, metadata)


def _printable(*texts: Any) -> str:
    return " ".join(text for text in texts if isinstance(text, str) and text.isprintable()).strip()


def _expect_text(graph: Any, depth: int) -> None:
    """Raise ModelError unless all names of a graph are text: of some bytes protobuf makes none."""
    if depth > DEEPEST:
        raise ModelError(f"graph {graph.name!r}: is more than {DEEPEST} graphs deep")
    values = [*graph.input, *graph.output]
    names = [graph.name, *(value.name for value in values), *(tensor.name for tensor in graph.initializer)]
    names += [size.dim_param for value in values for size in value.type.tensor_type.shape.dim]
    for node in graph.node:
        names += [node.op_type, node.domain, node.name, *node.input, *node.output]
        for attribute in node.attribute:
            names += [attribute.name, attribute.t.name]
            if attribute.type == 5:
                _expect_text(attribute.g, depth + 1)
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None:
        raise ModelError(f"has a name that is no text: {wrong!r}")


def _opsets(proto: Any) -> dict[str, int]:
    if not all(isinstance(item.domain, str) for item in proto.opset_import):
        raise ModelError("has a domain whose name is no text")
    opsets = {"" if item.domain in _DEFAULT else item.domain: item.version for item in proto.opset_import} or {"": 1}
    if opsets.get("", 1) > NEWEST:
        raise UnsupportedError(f"uses operator set {opsets['']}, expected at most {NEWEST}")
    return opsets


def _without_functions(proto: Any) -> Any:
    """The model with the nodes of its functions in the place of their calls."""
    if not proto.functions:
        return proto
    functions = {(function.domain, function.name): function.node for function in proto.functions}
    if _written_size(proto.graph.node, functions, {}, 0) > MOST_NODES:
        raise ModelError(f"has more than {MOST_NODES} nodes with those of its functions in the place of their calls")
    inliner = optional("gpucnn.onnx", "onnx.inliner", "onnx")
    try:
        return inliner.inline_local_functions(proto)
    except Exception as error:  # of the C++ behind it, whose class is not documented
        raise ModelError(f"its functions cannot be put in the place of their calls: {error}") from None


def _written_size(nodes: Any, functions: dict[Any, Any], known: dict[Any, int], depth: int) -> int:
    """The number of nodes with those of functions in the place of their calls, which may double at each level."""
    if depth > DEEPEST_CALLS:
        raise ModelError(f"its functions call each other more than {DEEPEST_CALLS} deep, or in a circle")
    total = 0
    for node in nodes:
        name = node.domain, node.op_type
        if name in functions and name not in known:
            known[name] = _written_size(functions[name], functions, known, depth + 1)
        total += known.get(name, 1)
        inner = (attribute.g.node for attribute in node.attribute if attribute.type == 5)
        total += sum(_written_size(each, functions, known, depth + 1) for each in inner)
    return total


def _written_out(proto: Any, opsets: dict[str, int]) -> Any:
    """The model with nodes that the table lacks written out in others, where the standard defines them by such."""
    inliner = optional("gpucnn.onnx", "onnx.inliner", "onnx")
    for _ in range(_ROUNDS):
        names = {name for name in _missing(proto.graph, opsets) if _has_body(*name, opsets)}
        if not names or not hasattr(inliner, "inline_selected_functions"):
            break
        ids = sorted({(written, op) for domain, op in names for written in (_DEFAULT if not domain else (domain,))})
        try:
            proto = inliner.inline_selected_functions(proto, ids, inline_schema_functions=True)
        except Exception:  # types of its inputs are not known, or this version of onnx writes none out: unsupported
            break
    return proto


def _missing(graph: Any, opsets: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Domains and names of operators that the table lacks."""
    for node in graph.node:
        domain = "" if node.domain in _DEFAULT else node.domain
        if find(domain, node.op_type, opsets.get(domain, 0)) is None:
            yield domain, node.op_type
        for attribute in node.attribute:
            if attribute.type == 5:
                yield from _missing(attribute.g, opsets)


def _has_body(domain: str, name: str, opsets: dict[str, int]) -> bool:
    """Whether the standard defines an operator by a function of others."""
    definitions = optional("gpucnn.onnx", "onnx.defs", "onnx")
    version = opsets.get(domain, 0)
    if domain == OWN or not 0 < version < 2**31 or not definitions.has(name, version, domain):
        return False
    schema = definitions.get_schema(name, version, domain)
    return bool(schema.has_function or schema.has_context_dependent_function)


def _refuse(reader: _Reader) -> None:
    """Raise ModelError with all that is not supported."""
    found = [f"{name} in {number} node{'s' * (number > 1)}" for name, number in sorted(reader.unknown.items())]
    messages = [f"operators that are not supported: {', '.join(found)}"] if found else []
    messages += reader.problems[:20]
    if len(reader.problems) > 20:
        messages.append(f"and {len(reader.problems) - 20} more")
    if messages:
        raise UnsupportedError("; ".join(messages))
