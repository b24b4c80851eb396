"""Neighbouring nodes joined: norms, scales and shifts into filters, activations and shortcuts into convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np

from gpucnn.onnx.graph import Graph, Node
from gpucnn.onnx.operators.registry import OWN
from gpucnn.onnx.optimising.links import Links

Array = Any

MOST = 10_000  # nodes; each exchange passes over all of them
LONG = 64  # taps
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_WIDE = (np.float32, np.float64)  # dtypes in which a product of constants loses nothing that counts


def fuse(graph: Graph) -> None:
    """Join the nodes of a graph, and of graphs within it."""
    for node in graph.nodes:
        for inner in node.subgraphs():
            fuse(inner)
    if len(graph.nodes) > MOST:
        return
    links = Links(graph)
    for rule in (
        _without_identity,
        _hard_swish,
        _swish,
        _gelu,
        _into_filters,
        _with_shortcut,
        _activated,
        _framed,
        _chained,
    ):
        _everywhere(links, rule)


def _everywhere(links: Links, rule: Callable[[Links, Node], bool]) -> None:
    """Apply a rule to each node, again to those that it makes."""
    at = 0
    while at < len(links.graph.nodes):
        before = len(links.graph.nodes)
        if rule(links, links.graph.nodes[at]):
            at = max(at - (before - len(links.graph.nodes)), 0)
        else:
            at += 1


# --- Identities and activations of several nodes ----------------------------------------------------------------------


def _without_identity(links: Links, node: Node) -> bool:
    """A node that uses the copy of a value uses the value."""
    source = links.maker(node.inputs[0], "Identity") if node.inputs else None
    if source is None or node.domain or list(node.subgraphs()):
        return False
    name = source.inputs[0]
    links.exchange([node], replace(node, inputs=[name if used == node.inputs[0] else used for used in node.inputs]))
    return True


def _other(node: Node, name: str) -> str:
    """The other input of a node of two."""
    return node.inputs[1] if node.inputs[0] == name else node.inputs[0]


def _within(links: Links, node: Node) -> tuple[float, float] | None:
    """The bounds of a Clip node, where they are constants."""
    if "min" in node.attributes or "max" in node.attributes:
        low, high = node.attributes.get("min"), node.attributes.get("max")
    elif len(node.inputs) == 3:
        low, high = links.number(node.inputs[1]), links.number(node.inputs[2])
    else:
        return None
    return None if low is None or high is None else (low, high)


def _hard_swish(links: Links, node: Node) -> bool:
    """``x * clip(x + 3, 0, 6) / 6`` as one node, or x times its hard sigmoid."""
    if node.op not in ("Div", "Mul") or node.domain:
        return False
    return _hard_swish_of_sigmoid(links, node) or _hard_swish_written_out(links, node)


def _hard_swish_of_sigmoid(links: Links, node: Node) -> bool:
    for name in node.inputs if node.op == "Mul" else ():
        gate = links.maker(name, "HardSigmoid")
        if gate is None or gate.inputs[0] != _other(node, name) or links.only_user(gate) is not node:
            continue
        if _is_sixth(gate):
            links.exchange([gate, node], _chain(node, gate.inputs[0], ["hard_swish"], []))
            return True
    return False


def _is_sixth(node: Node) -> bool:
    """Whether a hard sigmoid is ``clip(x / 6 + 1 / 2, 0, 1)``."""
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    return bool(abs(alpha - 1 / 6) < 1e-6 and beta == 0.5)


def _hard_swish_written_out(links: Links, node: Node) -> bool:
    scale = links.number(node.inputs[1])
    if scale is None or abs((scale if node.op == "Div" else 1 / scale if scale else 0) - 6) > 1e-5:
        return False
    product = links.maker(node.inputs[0], "Mul")
    if product is None or links.only_user(product) is not node:
        return False
    for name in product.inputs:
        gate = links.maker(name, "Clip")
        if gate is None or links.only_user(gate) is not product or _within(links, gate) != (0, 6):
            continue
        shifted, x = links.maker(gate.inputs[0], "Add"), _other(product, name)
        if shifted is None or links.only_user(shifted) is not gate or x not in shifted.inputs:
            continue
        if links.number(_other(shifted, x)) == 3:
            links.exchange([shifted, gate, product, node], _chain(node, x, ["hard_swish"], []))
            return True
    return False


def _swish(links: Links, node: Node) -> bool:
    """``x * sigmoid(x)`` as one node."""
    for name in node.inputs if node.op == "Mul" and not node.domain else ():
        gate = links.maker(name, "Sigmoid")
        if gate is not None and gate.inputs[0] == _other(node, name) and links.only_user(gate) is node:
            links.exchange([gate, node], _made("Swish", node, [gate.inputs[0]]))
            return True
    return False


def _gelu(links: Links, node: Node) -> bool:
    """``x * (1 + erf(x / sqrt(2))) / 2`` as one node, in whichever order its factors are multiplied."""
    if node.op != "Mul" or node.domain:
        return False
    for factors, found in _products(links, node):
        shifted = next((links.maker(name, "Add") for name in factors if links.maker(name, "Add")), None)
        if len(factors) != 3 or shifted is None:
            continue
        inner = next((links.maker(name, "Erf") for name in shifted.inputs if links.maker(name, "Erf")), None)
        if inner is None or links.number(_other(shifted, inner.outputs[0])) != 1:
            continue
        scaled = links.maker(inner.inputs[0], "Div", "Mul")
        if scaled is None:
            continue
        x, number = scaled.inputs[0], links.number(scaled.inputs[1])
        factor = None if not number else (1 / number if scaled.op == "Div" else number)
        rest = sorted(name for name in factors if name != shifted.outputs[0])
        halves = [name for name in rest if links.number(name) == 0.5]
        chain = [scaled, inner, shifted, *found]
        alone = all(links.only_user(one) in chain for one in chain[:-1])
        if factor and abs(factor - 1 / sqrt(2)) < 1e-6 and len(halves) == 1 and x in rest and alone:
            links.exchange(chain, _made("Gelu", node, [x]))
            return True
    return False


def _products(links: Links, node: Node) -> list[tuple[list[str], list[Node]]]:
    """The factors of a product of three, by each of its two nodes that may come first."""
    found = []
    for name in node.inputs:
        first = links.maker(name, "Mul")
        if first is not None:
            found.append(([*first.inputs, _other(node, name)], [first, node]))
    return found


def _chain(last: Node, x: str, steps: list[str], numbers: list[float], rank: int = 0) -> Node:
    """The steps as a node that gives what `last` gave."""
    attributes = {"steps": steps, "numbers": numbers, "rank": rank}
    return Node("Chain", OWN, 1, last.name, [x], last.outputs, attributes)


def _made(op: str, last: Node, inputs: list[str]) -> Node:
    """A node that gives what `last` gave."""
    return Node(op, OWN, 1, last.name, inputs, last.outputs)


# --- Into the filters -------------------------------------------------------------------------------------------------


def _into_filters(links: Links, node: Node) -> bool:
    """A norm, a scale or a shift after a convolution whose filters are constant: as other filters and another bias."""
    if node.domain or node.op not in _CONVOLUTIONS:
        return False
    w = links.constant(node.inputs[1])
    b = links.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    after = links.only_user(node)
    grouped = node.op == "ConvTranspose" and node.attributes.get("group", 1) != 1
    if w is None or w.dtype not in _WIDE or w.ndim < 3 or after is None or after.domain or grouped:
        return False
    if b is None and len(node.inputs) > 2 and node.inputs[2]:
        return False
    axis = 1 if node.op == "ConvTranspose" else 0
    channels = (w.shape[axis],)
    change = _change(links, after, node.outputs[0], *channels, w.ndim)
    if change is None or any(array.shape != channels for array in (*change, *([] if b is None else [b]))):
        return False
    scale, shift = change
    along = [1] * w.ndim
    along[axis] = -1
    wide = w.astype(np.float64) * scale.reshape(along)
    bias = (0 if b is None else b.astype(np.float64)) * scale + shift
    names = [links.new_constant(array.astype(w.dtype), node.outputs[0]) for array in (wide, bias)]
    inputs = [node.inputs[0], *names]
    links.exchange([node, after], replace(node, inputs=inputs, outputs=after.outputs))
    return True


def _change(links: Links, node: Node, name: str, channels: int, rank: int) -> tuple[Array, Array] | None:
    """The factor and the sum for each channel that a node applies to a value."""
    zeros = np.zeros(channels)
    if node.op == "BatchNormalization":
        return _of_norm(links, node, name)
    if node.op not in ("Add", "Sub", "Mul", "Div") or node.inputs.count(name) != 1:
        return None
    if (node.op in ("Sub", "Div") and node.inputs[0] != name) or node.attributes:
        return None
    values = _by_channel(links.constant(_other(node, name)), channels, rank)
    if values is None:
        return None
    if node.op in ("Mul", "Div"):
        return (values if node.op == "Mul" else 1 / values), zeros
    return zeros + 1, values if node.op == "Add" else -values


def _by_channel(array: Array | None, channels: int, rank: int) -> Array | None:
    """A constant that meets images [N, C, *space] as one number for each channel."""
    if array is None or array.dtype.kind != "f":
        return None
    if array.size == 1 and array.ndim <= rank:
        return np.full(channels, float(array.ravel()[0]))
    if array.size == channels and array.ndim in (rank - 1, rank) and array.shape[array.ndim - rank + 1] == channels:
        return array.astype(np.float64).reshape(-1)
    return None


def _of_norm(links: Links, node: Node, name: str) -> tuple[Array, Array] | None:
    arrays = [links.constant(other) for other in node.inputs[1:5]]
    trains = node.attributes.get("training_mode", 0) or len(list(filter(None, node.outputs))) > 1
    if node.inputs[0] != name or any(array is None for array in arrays) or trains or "spatial" in node.attributes:
        return None
    scale, shift, mean, var = (np.asarray(array, np.float64) for array in arrays)
    if not scale.shape == shift.shape == mean.shape == var.shape or scale.ndim != 1:
        return None
    factor = scale / np.sqrt(var + node.attributes.get("epsilon", 1e-5))
    return factor, shift - mean * factor


# --- Into the convolution's last pass ---------------------------------------------------------------------------------


def _with_shortcut(links: Links, node: Node) -> bool:
    """The sum of a convolution and another value."""
    if node.op != "Add" or node.domain or node.inputs[0] == node.inputs[1]:
        return False
    for name in reversed(node.inputs):  # the branch of a residual block is mostly the one that ends last
        conv = links.maker(name, "Conv")
        if conv is None or links.only_user(conv) is not node:
            continue
        inputs = [*conv.inputs, *[""] * (3 - len(conv.inputs)), _other(node, name)]
        links.exchange([conv, node], _activating(conv, node, inputs, {"activation": "none"}))
        return True
    return False


def _activated(links: Links, node: Node) -> bool:
    """A convolution and the activation after it."""
    fused = node.op == "FusedConv" and node.domain == OWN and node.attributes["activation"] == "none"
    if not fused and not (node.op == "Conv" and not node.domain):
        return False
    after = links.only_user(node)
    activation = None if after is None or after.inputs[0] != node.outputs[0] else _activation(links, after)
    if after is None or activation is None:
        return False
    links.exchange([node, after], _activating(node, after, node.inputs, activation))
    return True


_ACTIVATIONS = {"Relu": "relu", "Sigmoid": "sigmoid", "HardSwish": "hard_swish", "LeakyRelu": "leaky_relu"}


def _activation(links: Links, node: Node) -> dict[str, Any] | None:
    """A node's activation as attributes of the convolution before it, if it is one that this computes."""
    given = node.attributes
    if node.domain not in ("", OWN):
        return None
    name: str | None = None
    if node.op in _ACTIVATIONS:
        name = _ACTIVATIONS[node.op]
    elif node.op == "Clip" and _within(links, node) == (0, 6):
        name = "relu6"
    elif node.op == "HardSigmoid" and _is_sixth(node):
        name = "hard_sigmoid"
    elif node.op == "Swish" and given.get("alpha", 1.0) == 1:
        name = "silu"
    elif node.op == "Gelu":
        name = "gelu_tanh" if given.get("approximate") == "tanh" else "gelu"
    elif node.op == "Chain" and given["steps"] == ["hard_swish"]:
        name = "hard_swish"
    if name is None:
        return None
    return {"activation": name, **({"slope": given.get("alpha", 0.01)} if name == "leaky_relu" else {})}


def _activating(conv: Node, last: Node, inputs: list[str], activation: dict[str, Any]) -> Node:
    return Node("FusedConv", OWN, 1, conv.name, inputs, last.outputs, {**conv.attributes, **activation})


# --- Short-time transforms -------------------------------------------------------------------------------------------


def _framed(links: Links, node: Node) -> bool:
    """Long filters for sections of a signal that overlap by half at most: few positions, but a product of matrices."""
    if node.op != "Conv" or node.domain or len(node.inputs) != 2:
        return False
    w, given = links.constant(node.inputs[1]), node.attributes
    if w is None or w.ndim != 3 or w.shape[1] != 1 or w.dtype not in _WIDE or w.shape[2] < LONG:
        return False
    strides = given.get("strides", [1])
    plain = given.get("group", 1) == 1 and given.get("dilations", [1]) == [1] and not any(given.get("pads", []))
    if not plain or given.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or not w.shape[2] <= 2 * strides[0]:
        return False
    links.exchange([node], replace(node, op="Frames", domain=OWN, version=1, attributes={"strides": strides}))
    return True


# --- Elementwise operations with numbers ------------------------------------------------------------------------------

_WITH_NUMBER = {"Add": "add", "Mul": "mul", "Sub": "add", "Div": "div"}


def _chained(links: Links, node: Node) -> bool:
    """Elementwise operations with numbers, the one on the result of the other alone."""
    second = _as_chain(links, node)
    if second is None:
        return False
    before = links.made.get(second.inputs[0])
    first = None if before is None or len(before.outputs) != 1 else _as_chain(links, before)
    if before is None or first is None or links.only_user(before) is not node:
        return False
    steps, numbers = (first.attributes[name] + second.attributes[name] for name in ("steps", "numbers"))
    rank = max(first.attributes["rank"], second.attributes["rank"])
    links.exchange([before, node], _chain(node, first.inputs[0], steps, numbers, rank))
    return True


def _as_chain(links: Links, node: Node) -> Node | None:
    """A node as a chain of one step; a chain is its own."""
    if node.op == "Chain" and node.domain == OWN:
        return node
    if node.domain or not node.inputs:
        return None
    x = node.inputs[0]
    if node.op == "HardSwish":
        return _chain(node, x, ["hard_swish"], [])
    if node.op == "HardSigmoid":
        return _chain(node, x, ["hard_sigmoid"], [node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)])
    if node.op not in _WITH_NUMBER or node.attributes or len(node.inputs) != 2:
        return None
    if node.op in ("Add", "Mul") and links.constant(x) is not None:
        x = node.inputs[1]
    array = links.constant(_other(node, x))
    if array is None or array.size != 1 or array.dtype.kind != "f" or node.inputs[0] == node.inputs[1]:
        return None
    if node.op in ("Sub", "Div") and x != node.inputs[0]:
        return None
    number = float(array.ravel()[0])
    return _chain(node, x, [_WITH_NUMBER[node.op]], [-number if node.op == "Sub" else number], array.ndim)
