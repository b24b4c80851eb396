"""Planned runs: their bits are those of a run step by step, and they give up where values change what is done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx.checker", reason="onnx is not installed")

from building import model, node, value
from onnx import helper

import gpucnn
import gpucnn.onnx
from gpucnn.backends import available
from gpucnn.onnx import planning

Host = np.ndarray[Any, Any]
RNG = np.random.default_rng(5)
SPOILED = 0xA5  # the bytes of memory that a run has to write before it reads


def array(*shape: int) -> Host:
    return RNG.standard_normal(shape).astype(np.float32)


def empty(name: str) -> Any:
    return helper.make_empty_tensor_value_info(name)


def branch(name: str, op: str, inputs: list[str]) -> Any:
    return helper.make_graph([node(op, inputs, [name])], name, [], [empty(name)])


BODY = helper.make_graph(
    [node("Mul", ["state", "factor"], ["next"]), node("ReduceSum", ["next"], ["sum"], keepdims=0),
     node("Less", ["sum", "bound"], ["again"])],
    "body", [value("turn", [], np.int64), value("going", [], np.bool_), value("state", None)],
    [empty("again"), empty("next")],
)  # fmt: skip

CHOOSING = helper.make_graph(
    [node("ReduceSum", ["state"], ["sum"], keepdims=0), node("Less", ["sum", "zero"], ["negative"]),
     node("If", ["negative"], ["next"], then_branch=branch("t", "Neg", ["state"]),
          else_branch=branch("e", "Identity", ["state"])),
     node("Identity", ["going"], ["again"])],
    "body", [value("turn", [], np.int64), value("going", [], np.bool_), value("state", None)],
    [empty("again"), empty("next")],
)  # fmt: skip

# nodes, shape of x, constants; each as a user's model has them
CASES: dict[str, tuple[list[Any], tuple[int, ...], dict[str, Any]]] = {
    "shapes": (
        [node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"]),
         node("Concat", ["n", "rest"], ["to"], axis=0), node("Reshape", ["x", "to"], ["r"]), node("Neg", ["r"], ["y"])],
        (3, 2, 4), {"zero": [0], "rest": [-1]},
    ),
    "views of views": (
        [node("Transpose", ["x"], ["t"], perm=[2, 0, 1]), node("Split", ["t"], ["a", "b"], axis=0, num_outputs=2),
         node("Squeeze", ["a", "one"], ["c"]), node("Reshape", ["b", "flat"], ["d"]), node("Identity", ["x"], ["i"]),
         node("Add", ["c", "i"], ["e"]), node("Add", ["e", "d"], ["y"])],
        (1, 1, 4), {"one": [1], "flat": [2, 1, 1]},
    ),
    "convolutions": (
        [node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4), node("Relu", ["c"], ["r"]),
         node("Conv", ["r", "v"], ["d"], pads=[1] * 4), node("Add", ["d", "x"], ["e"]), node("Relu", ["e"], ["f"]),
         node("MaxPool", ["f"], ["m"], kernel_shape=[2, 2]), node("GlobalAveragePool", ["m"], ["y"])],
        (2, 3, 9, 8), {"w": array(5, 3, 3, 3), "b": array(5), "v": array(3, 5, 3, 3)},
    ),
    "kernels of several launches": (
        [node("Conv", ["x", "w", "b"], ["c"], pads=[3, 1, 3, 1]), node("Relu", ["c"], ["y"])],
        (1, 12, 32, 31), {"w": array(12, 12, 7, 3), "b": array(12)},
    ),
    "a shortcut of another shape": (
        [node("GlobalAveragePool", ["x"], ["g"]), node("Conv", ["g", "w"], ["c"]), node("Add", ["c", "x"], ["a"]),
         node("Relu", ["a"], ["y"])],
        (2, 3, 5, 4), {"w": array(3, 3, 1, 1)},
    ),
    "one filter": (
        [node("Conv", ["x", "w", "b"], ["y"], strides=[2, 1], pads=[1, 0, 2, 1], dilations=[1, 2])],
        (2, 3, 9, 8), {"w": array(1, 3, 3, 3), "b": array(1)},
    ),
    "frames": ([node("Conv", ["x", "w"], ["y"], strides=[40])], (2, 1, 331), {"w": array(6, 1, 64)}),
    "lifetimes": (
        [node("Sigmoid", ["x"], ["a"]), node("Exp", ["a"], ["b"]), node("Mul", ["a", "b"], ["c"]),
         node("Sqrt", ["c"], ["d"]), node("MatMul", ["d", "w"], ["e"]), node("Pow", ["e", "two"], ["f"]),
         node("Div", ["f", "c"], ["g"]), node("HardSwish", ["g"], ["h"]), node("Concat", ["h", "a"], ["y"], axis=1)],
        (4, 4), {"w": array(4, 4), "two": np.float32(2)},
    ),
    "an index that is computed": (
        [node("ReduceSum", ["x", "one"], ["sums"], keepdims=0), node("ArgMax", ["sums"], ["at"], axis=0, keepdims=0),
         node("Gather", ["table", "at"], ["a"]), node("Gather", ["x", "at"], ["b"]), node("Add", ["a", "b"], ["y"])],
        (5, 3), {"table": array(5, 3), "one": [1]},
    ),
    "a number of results that is computed": (
        [node("Greater", ["x", "zero"], ["m"]), node("NonZero", ["m"], ["at"]), node("Shape", ["at"], ["s"]),
         node("Cast", ["s"], ["y"], to=1)],
        (7,), {"zero": np.float32(0)},
    ),
    "a branch by a value": (
        [node("ReduceSum", ["x"], ["sum"], keepdims=0), node("Greater", ["sum", "zero"], ["positive"]),
         node("If", ["positive"], ["y"], then_branch=branch("t", "Exp", ["x"]), else_branch=branch("e", "Neg", ["x"]))],
        (3,), {"zero": np.float32(0)},
    ),
    "a branch by a shape": (
        [node("Size", ["x"], ["n"]), node("Equal", ["n", "three"], ["is"]),
         node("If", ["is"], ["b"], then_branch=branch("t", "Add", ["x", "x"]), else_branch=branch("e", "Neg", ["x"])),
         node("Mul", ["b", "x"], ["y"])],
        (3,), {"three": np.int64(3)},
    ),
    "a loop that may not turn": (
        [node("ReduceSum", ["x"], ["total"], keepdims=0), node("Less", ["total", "bound"], ["first"]),
         node("Loop", ["three", "first", "x"], ["l"], body=BODY), node("Neg", ["l"], ["y"])],
        (2,), {"factor": np.float32(2), "bound": np.float32(0.3), "three": np.int64(3)},
    ),
    "a loop that may change nothing": (
        [node("Loop", ["three", "", "x"], ["l"], body=CHOOSING), node("Neg", ["l"], ["y"])],
        (2,), {"zero": np.float32(0), "three": np.int64(3)},
    ),
    "recurrence": (
        [node("LSTM", ["x", "w", "r", "b"], ["all", "h", "c"], hidden_size=2), node("Add", ["h", "c"], ["y"])],
        (4, 3, 5), {"w": array(1, 8, 5), "r": array(1, 8, 2), "b": array(1, 16)},
    ),
    "padding": (
        [node("Pad", ["x", "pads"], ["p"], mode="reflect"), node("Pad", ["p", "crop"], ["q"], mode="edge"),
         node("Pad", ["q", "pads"], ["y"])],
        (4, 6), {"pads": [1, 2, 0, 3], "crop": [-1, 2, 1, -2]},
    ),
}  # fmt: skip


def built(name: str) -> gpucnn.onnx.Model:
    nodes, shape, constants = CASES[name]
    return gpucnn.onnx.load(model(nodes, {"x": shape}, ("y",), constants).SerializeToString())


def plans(loaded: gpucnn.onnx.Model) -> list[Any]:
    return [plan for plan in loaded._planned._plans.values() if plan]


def step_by_step(loaded: gpucnn.onnx.Model, x: Host) -> Host:
    with np.errstate(all="ignore"):
        (y,) = loaded._program.run([x], None)
    return np.array(y)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that overwrites the memory of all plans that are made in the test."""
    blocks: list[Host] = []
    original = planning._Memory.block

    def recorded(self: Any, nbytes: int) -> Any:
        block = original(self, nbytes)
        blocks.append(block.memory)
        return block

    def spoiled() -> None:
        for block in blocks:
            block[...] = SPOILED

    monkeypatch.setattr(planning._Memory, "block", recorded)
    return spoiled


@pytest.fixture(params=["numpy", "compiled"])
def cpu(request: pytest.FixtureRequest) -> Iterator[str]:
    if available()[request.param] != "available":
        pytest.skip(available()[request.param])
    with gpucnn.backend(request.param):
        yield request.param


@pytest.mark.parametrize("name", CASES)
def test_the_bits_are_those_of_a_run_step_by_step(name: str, cpu: str, spoil: Callable[[], None]) -> None:
    loaded, shape = built(name), CASES[name][1]
    for turn in range(6):
        x = array(*shape)
        kept = x.copy()
        (y,) = loaded.run([x])
        spoil()
        right = step_by_step(loaded, x)
        assert (y.shape, y.dtype, y.tobytes()) == (right.shape, right.dtype, right.tobytes()), turn
        np.testing.assert_array_equal(x, kept)
        if turn:  # of a constant the first result is a view
            y[...] = 0  # the others are the caller's
    by_value = name in ("a number of results that is computed", "a branch by a value")
    assert by_value or len(plans(loaded)) == 1


def test_what_depends_on_shapes_alone_costs_nothing() -> None:
    loaded = built("shapes")
    for _ in range(2):
        loaded.run([array(3, 2, 4)])
    (plan,) = plans(loaded)
    assert len(plan.steps) == 1  # the negation


def test_kernels_are_launched_at_fixed_addresses() -> None:
    if available()["compiled"] != "available":
        pytest.skip(available()["compiled"])
    loaded = built("convolutions")
    with gpucnn.backend("compiled"):
        for _ in range(2):
            loaded.run([array(2, 3, 9, 8)])
    (plan,) = plans(loaded)
    assert {type(step) for step in plan.steps} == {planning._Launches}


def test_memory_is_shared_as_lifetimes_allow() -> None:
    chain = [node("Sin", [f"v{at}"], [f"v{at + 1}"]) for at in range(20)]
    loaded = gpucnn.onnx.load(model(chain, {"v0": [4096]}, ("v20",)).SerializeToString())
    for _ in range(2):
        loaded.run([array(4096)])
    (plan,) = plans(loaded)
    assert plan.nbytes == 3 * 4 * 4096  # the input, and two that take turns


def test_memory_of_launches_is_shared_too() -> None:
    if available()["compiled"] != "available":
        pytest.skip(available()["compiled"])
    chain = [node("Conv", [f"v{at}", "w"], [f"v{at + 1}"], pads=[1] * 4) for at in range(12)]
    net = model(chain, {"v0": [1, 16, 16, 16]}, ("v12",), {"w": array(16, 16, 3, 3)})
    loaded = gpucnn.onnx.load(net.SerializeToString())
    with gpucnn.backend("compiled"):
        for _ in range(2):
            loaded.run([array(1, 16, 16, 16)])
    (plan,) = plans(loaded)
    assert plan.nbytes <= 3 * 4 * 16 * 16 * 16


def test_a_number_of_results_that_changes_ends_the_plan() -> None:
    loaded = built("a number of results that is computed")
    for positive in (3, 3, 3, 1, 3):  # one result would fit the place of three
        x = np.where(np.arange(7) < positive, np.float32(1), np.float32(-1))
        assert loaded.run([x])[0].tolist() == [1, positive]
    assert not plans(loaded)


def test_each_form_and_backend_has_its_plan() -> None:
    loaded = gpucnn.onnx.load(model([node("Neg", ["x"], ["y"])], {"x": ["N", 2]}).SerializeToString())
    given = [array(3, 2), array(2, 2), array(2, 3).T]
    for _ in range(3):
        for x in given:
            np.testing.assert_array_equal(loaded.run([x])[0], -x)
    assert len(plans(loaded)) == 3
    with gpucnn.backend("numpy"), gpucnn.algorithm("direct"):
        for _ in range(2):
            loaded.run([given[0]])
    assert len(plans(loaded)) == 4


def test_a_branch_that_changes_ends_the_plan() -> None:
    loaded = built("a branch by a value")
    positive, negative = np.float32([1, 2, 3]), np.float32([-1, -2, -3])
    for x in (positive, positive, positive):
        np.testing.assert_array_equal(loaded.run([x])[0], np.exp(x))
    assert len(plans(loaded)) == 1
    for x in (negative, positive, negative):
        np.testing.assert_array_equal(loaded.run([x])[0], np.exp(x) if x is positive else -x)
    assert not plans(loaded)


def test_memory_and_forms_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = gpucnn.onnx.load(model([node("Neg", ["x"], ["y"])], {"x": ["N"]}).SerializeToString())
    monkeypatch.setattr(planning, "MOST_BYTES", 1000)
    monkeypatch.setattr(planning, "MOST_FORMS", 5)
    for size in (50, 60, 200, *range(1, 20)):
        for _ in range(3):
            x = array(size)
            np.testing.assert_array_equal(loaded.run([x])[0], -x)
            assert sum(plan.nbytes for plan in plans(loaded)) <= 1000
            assert len(loaded._planned._plans) + len(loaded._planned._unplanned) <= 5


def test_an_error_is_that_of_a_run_step_by_step() -> None:
    loaded = gpucnn.onnx.load(
        model([node("Cast", ["x"], ["at"], to=7), node("Gather", ["table", "at"], ["y"])], {"x": [1]}, ("y",),
              {"table": [5, 6, 7]}).SerializeToString()
    )  # fmt: skip
    for at in (1, 2, 0, 9, 1):
        if at < 3:
            assert loaded.run([np.float32([at])])[0].tolist() == [5 + at]
        else:
            with pytest.raises(gpucnn.onnx.ModelError, match=r"node Gather .*an index is 9, expected one of 3"):
                loaded.run([np.float32([at])])


def test_threads_share_a_model() -> None:
    loaded, failures = built("lifetimes"), []
    given = [array(4, 4) for _ in range(4)]
    right = [step_by_step(loaded, x) for x in given]

    def work(x: Host, y: Host) -> None:
        failures.extend(turn for turn in range(100) if not np.array_equal(loaded.run([x])[0], y, equal_nan=True))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(given, right, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
