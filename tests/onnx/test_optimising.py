"""Optimised graphs: fewer nodes, the same results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend

pytest.importorskip("onnx.checker", reason="onnx is not installed")

from building import model, node, value
from onnx import helper

import gpucnn.onnx

RNG = np.random.default_rng(7)


def array(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


CONV = {"w": array(4, 3, 3, 3), "b": array(4)}
NORM = {"s": array(4), "t": array(4), "m": array(4), "v": np.abs(array(4)) + 0.5}
IMAGES = {"x": ["N", 3, "H", "W"]}
SHAPE = (2, 3, 6, 5)


def conv(out: str = "c", *more: str, **attributes: Any) -> Any:
    return node("Conv", ["x", "w", *more], [out], pads=[1, 1, 1, 1], **attributes)


def hard_swish_written_out(x: str, out: str, last: str = "Div") -> list[Any]:
    return [
        node("Add", [x, "three"], ["shifted"]),
        node("Clip", ["shifted", "zero", "six"], ["gate"]),
        node("Mul", [x, "gate"], ["product"]),
        node(last, ["product", "six" if last == "Div" else "sixth"], [out]),
    ]


VALUES = {"zero": 0, "one": 1, "two": 2, "three": 3, "six": 6, "sixth": 1 / 6, "half": 0.5, "root": 2**0.5}
NUMBERS = {name: np.float32(number) for name, number in VALUES.items()}

JOINED = {
    "batch norm": ([conv(), node("BatchNormalization", ["c", "s", "t", "m", "v"], ["y"])], ["Conv"]),
    "batch norm after a bias": (
        [conv("c", "b"), node("BatchNormalization", ["c", "s", "t", "m", "v"], ["y"], epsilon=0.1)], ["Conv"]),
    "scale and shift": (
        [conv("c", "b"), node("Mul", ["c", "channel"], ["d"]), node("Add", ["image", "d"], ["y"])], ["Conv"]),
    "numbers": (
        [conv(), node("Div", ["c", "two"], ["d"]), node("Sub", ["d", "three"], ["y"])], ["Conv"]),
    "transposed": (
        [node("ConvTranspose", ["x", "u"], ["c"], strides=[2, 2]), node("BatchNormalization",
         ["c", "s", "t", "m", "v"], ["y"])], ["ConvTranspose"]),
    "relu": ([conv("c", "b"), node("Relu", ["c"], ["y"])], ["FusedConv"]),
    "leaky relu": ([conv(), node("LeakyRelu", ["c"], ["y"], alpha=0.3)], ["FusedConv"]),
    "relu6": ([conv(), node("Clip", ["c", "zero", "six"], ["y"])], ["FusedConv"]),
    "sigmoid": ([conv("c", "b"), node("Sigmoid", ["c"], ["y"])], ["FusedConv"]),
    "hard sigmoid": ([conv(), node("HardSigmoid", ["c"], ["y"], alpha=1 / 6, beta=0.5)], ["FusedConv"]),
    "silu": ([conv(), node("Sigmoid", ["c"], ["g"]), node("Mul", ["g", "c"], ["y"])], ["FusedConv"]),
    "hard swish after a convolution": ([conv(), node("HardSwish", ["c"], ["y"])], ["FusedConv"]),
    "hard swish in two nodes after a convolution": (
        [conv(), node("HardSigmoid", ["c"], ["h"], alpha=1 / 6), node("Mul", ["c", "h"], ["y"])], ["FusedConv"]),
    "hard swish in four nodes after a convolution": (
        [conv("x0"), *hard_swish_written_out("x0", "y")], ["FusedConv"]),
    "gelu after a convolution": ([conv(), node("Gelu", ["c"], ["y"])], ["FusedConv"]),
    "gelu by a tangent": ([conv(), node("Gelu", ["c"], ["y"], approximate="tanh")], ["FusedConv"]),
    "one filter": (
        [node("Conv", ["x", "single", "shift"], ["c"], pads=[0, 1, 2, 0]), node("Sigmoid", ["c"], ["y"])],
        ["FusedConv"]),
    "one filter and a shortcut": (
        [node("Conv", ["x", "single"], ["c"], pads=[1, 0, 1, 1]), node("Add", ["x", "c"], ["a"]),
         node("LeakyRelu", ["a"], ["y"])], ["FusedConv"]),
    "residual block": (
        [conv("c", "b"), conv("d"), node("BatchNormalization", ["d", "s", "t", "m", "v"], ["n"]),
         node("Add", ["c", "n"], ["a"]), node("Relu", ["a"], ["y"])], ["Conv", "FusedConv"]),
    "a shortcut that is broadcast": (
        [conv("c", "b"), node("GlobalAveragePool", ["c"], ["g"]), conv("d"), node("Add", ["g", "d"], ["a"]),
         node("Relu", ["a"], ["y"])], ["Conv", "GlobalAveragePool", "FusedConv"]),
    "hard swish": (hard_swish_written_out("x", "y"), ["Chain"]),
    "hard swish by a factor": (hard_swish_written_out("x", "y", "Mul"), ["Chain"]),
    "hard swish by its sigmoid": (
        [node("HardSigmoid", ["x"], ["h"], alpha=1 / 6, beta=0.5), node("Mul", ["h", "x"], ["y"])], ["Chain"]),
    "swish": ([node("Sigmoid", ["x"], ["g"]), node("Mul", ["x", "g"], ["y"])], ["Swish"]),
    "gelu": (
        [node("Div", ["x", "root"], ["d"]), node("Erf", ["d"], ["e"]), node("Add", ["e", "one"], ["a"]),
         node("Mul", ["x", "a"], ["p"]), node("Mul", ["p", "half"], ["y"])], ["Gelu"]),
    "short-time transform": (
        [node("Reshape", ["x", "signals"], ["r"]), node("Conv", ["r", "filters"], ["y"], strides=[40])],
        ["Reshape", "Frames"]),
    "gelu of another order": (
        [node("Div", ["x", "root"], ["d"]), node("Erf", ["d"], ["e"]), node("Add", ["one", "e"], ["a"]),
         node("Mul", ["half", "x"], ["p"]), node("Mul", ["p", "a"], ["y"])], ["Gelu"]),
    "numbers in a chain": (
        [node("Mul", ["x", "two"], ["a"]), node("Add", ["wide", "a"], ["k"]), node("HardSigmoid", ["k"], ["c"]),
         node("HardSwish", ["c"], ["d"]), node("Sub", ["d", "half"], ["e"]), node("Div", ["e", "six"], ["y"])],
        ["Chain"]),
    "identities": (
        [node("Identity", ["x"], ["i"]), node("Identity", ["i"], ["j"]), node("Neg", ["j"], ["y"])], ["Neg"]),
    "constants": (
        [node("Shape", ["w"], ["s4"]), node("Gather", ["s4", "first"], ["four"]), node("Cast", ["four"], ["f"], to=1),
         node("Mul", ["x", "f"], ["y"])], ["Mul"]),
}  # fmt: skip
KEPT = {
    "a value that another node uses": (
        [conv(), node("Relu", ["c"], ["r"]), node("Add", ["r", "c"], ["y"])], ["Conv", "Relu", "Add"]),
    "a scale of each place": ([conv(), node("Mul", ["c", "places"], ["y"])], ["Conv", "Mul"]),
    "a scale that is no constant": (
        [conv(), node("GlobalMaxPool", ["c"], ["g"]), node("Mul", ["g", "c"], ["y"])],
        ["Conv", "GlobalMaxPool", "Mul"]),
    "a number over a convolution": ([conv(), node("Div", ["two", "c"], ["y"])], ["Conv", "Div"]),
    "bounds of another activation": ([conv(), node("Clip", ["c", "zero", "two"], ["y"])], ["Conv", "Clip"]),
    "hard sigmoid of another slope": ([conv(), node("HardSigmoid", ["c"], ["y"])], ["Conv", "HardSigmoid"]),
    "a gate of another slope": (
        [node("HardSigmoid", ["x"], ["h"]), node("Mul", ["h", "x"], ["y"])], ["HardSigmoid", "Mul"]),
    "a gate of another value": (
        [node("Neg", ["x"], ["n"]), node("Sigmoid", ["n"], ["g"]), node("Mul", ["x", "g"], ["y"])],
        ["Neg", "Sigmoid", "Mul"]),
    "a chain that another node uses": (
        [node("Mul", ["x", "two"], ["a"]), node("Add", ["a", "three"], ["k"]), node("Add", ["a", "k"], ["y"])],
        ["Mul", "Add", "Add"]),
    "integers": (
        [node("Cast", ["x"], ["i"], to=7), node("Mul", ["i", "five"], ["a"]), node("Add", ["a", "five"], ["y"])],
        ["Cast", "Mul", "Add"]),
    "a sum of one value with itself": ([conv(), node("Add", ["c", "c"], ["y"])], ["Conv", "Add"]),
}  # fmt: skip


def built(nodes: list[Any], outputs: tuple[str, ...] = ("y",)) -> Any:
    constants = {
        **CONV, **NORM, **NUMBERS, "u": array(3, 4, 2, 2), "channel": array(1, 4, 1, 1), "image": array(4, 1, 1),
        "places": array(6, 5), "first": np.int64(0), "five": np.int64(5),
        "wide": np.full((1, 1, 1, 1, 1), 0.25, np.float32), "signals": np.int64([1, 1, -1]), "filters": array(6, 1, 64),
        "single": array(1, 3, 3, 2), "shift": array(1),
    }  # fmt: skip
    return model(nodes, IMAGES, outputs, constants)


def operators(loaded: Any) -> list[str]:
    return [item.op for item in loaded._graph.nodes]


@pytest.mark.parametrize("case", [*JOINED, *KEPT])
def test_the_same_results_from_fewer_nodes(backend: ArrayBackend, case: str) -> None:
    nodes, left = (JOINED | KEPT)[case]
    content = built(nodes).SerializeToString()
    plain, optimised = gpucnn.onnx.load(content, optimize=False), gpucnn.onnx.load(content)
    assert operators(plain) == [item.op_type for item in nodes]
    assert operators(optimised) == left
    x = backend.asarray((3 * RNG.standard_normal(SHAPE)).astype(np.float32))
    (one,), (other,) = plain.run([x]), optimised.run([x])
    np.testing.assert_allclose(backend.asnumpy(other), backend.asnumpy(one), rtol=1e-5, atol=2e-5)


def test_outputs_of_the_model_are_not_joined_away() -> None:
    nodes = [conv(), node("Relu", ["c"], ["y"]), node("Identity", ["y"], ["z"])]
    content = built(nodes, ("c", "y", "z")).SerializeToString()
    plain, optimised = gpucnn.onnx.load(content, optimize=False), gpucnn.onnx.load(content)
    x = array(*SHAPE)
    for one, other in zip(plain.run([x]), optimised.run([x]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_no_output_needs_is_left_out() -> None:
    nodes = [
        conv("c", "b"),
        node("Neg", ["x"], ["unused"]),
        node("Abs", ["unused"], ["too"]),
        node("Tanh", ["c"], ["y"]),
    ]
    loaded = gpucnn.onnx.load(built(nodes).SerializeToString())
    assert operators(loaded) == ["Conv", "Tanh"]
    assert set(loaded._graph.constants) == {"w", "b"}


def test_branches_are_optimised_and_keep_what_they_capture() -> None:
    outputs = [helper.make_empty_tensor_value_info("inner")]
    then = helper.make_graph(
        [conv("d"), node("Relu", ["d"], ["r"]), node("Add", ["r", "c"], ["inner"])], "then", [], outputs
    )
    other = helper.make_graph([node("Identity", ["c"], ["inner"])], "else", [], outputs)
    choice = node("If", ["go"], ["i"], then_branch=then, else_branch=other)
    proto = built([conv("c", "b"), node("Relu", ["c"], ["r0"]), choice, node("Add", ["i", "r0"], ["y"])])
    proto.graph.input.append(value("go", [], np.bool_))
    plain, optimised = (gpucnn.onnx.load(proto.SerializeToString(), optimize=how) for how in (False, True))
    x = array(*SHAPE)
    for go in (True, False):
        np.testing.assert_allclose(optimised.run([x, go])[0], plain.run([x, go])[0], rtol=1e-5, atol=1e-5)


def test_a_branch_may_reuse_a_name_of_the_graph_around_it() -> None:
    """The inner `four` is a value of the branch, not the constant of that name around it."""
    outputs = [helper.make_empty_tensor_value_info("inner")]
    then = helper.make_graph([node("Neg", ["x"], ["four"]), node("Neg", ["four"], ["inner"])], "then", [], outputs)
    other = helper.make_graph([node("Identity", ["four"], ["inner"])], "else", [], outputs)
    nodes = [node("If", ["go"], ["y"], then_branch=then, else_branch=other)]
    proto = model(nodes, {"x": [2]}, constants={"four": np.float32([4, 4])})
    proto.graph.input.append(value("go", [], np.bool_))
    loaded = gpucnn.onnx.load(proto.SerializeToString())
    assert loaded.run([np.float32([1, 2]), True])[0].tolist() == [1, 2]
    assert loaded.run([np.float32([1, 2]), False])[0].tolist() == [4, 4]
