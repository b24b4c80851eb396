"""Models on arrays: names and orders, kinds, dtypes and shapes, and what errors say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend

pytest.importorskip("onnx.checker", reason="onnx is not installed")

from building import model, node, value
from onnx import helper

import gpucnn.onnx
from gpucnn.onnx import ModelError

W = np.arange(18, dtype=np.float32).reshape(2, 1, 3, 3) / 9
NET = model(
    [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("Shape", ["r"], ["s"]),
        node("Slice", ["s", "start", "end"], ["batch"]),
        node("Concat", ["batch", "rest"], ["flat"], axis=0),
        node("Reshape", ["r", "flat"], ["y"]),
        node("ReduceMean", ["y", "last"], ["m"], keepdims=0),
    ],
    {"x": ["N", 1, "H", "W"]},
    ("y", "m", "s"),
    {"w": W, "b": np.float32([1, -40]), "start": [0], "end": [1], "rest": [-1], "last": [1]},
)


def expected(x: Any) -> Any:
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    sums = np.einsum("nchwij,ocij->nohw", windows, W.astype(np.float64)) + np.array([1, -40]).reshape(1, 2, 1, 1)
    return np.maximum(sums, 0).reshape(len(x), -1)


@pytest.mark.parametrize("optimize", [True, False])
def test_arrays_in_and_arrays_of_the_same_kind_out(backend: ArrayBackend, rng: Any, optimize: bool) -> None:
    loaded = gpucnn.onnx.load(NET.SerializeToString(), optimize=optimize)
    for shape in ((2, 1, 5, 4), (1, 1, 3, 3)):
        x = rng.standard_normal(shape).astype(np.float32)
        given = backend.asarray(x)
        y, m, s = loaded.run([given])
        assert type(y) is type(given)
        np.testing.assert_allclose(backend.asnumpy(y), expected(x), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(backend.asnumpy(m), expected(x).mean(1), rtol=1e-5, atol=1e-5)
        assert isinstance(s, np.ndarray), "what describes shapes stays on the host"
        assert s.tolist() == [shape[0], 2, *shape[2:]]


def test_constants_are_moved_to_a_device_once(backend: ArrayBackend, monkeypatch: Any) -> None:
    if backend.primitives.host:
        pytest.skip("constants are where they are used")
    loaded = gpucnn.onnx.load(NET.SerializeToString())
    x = backend.asarray(np.ones((1, 1, 4, 4), np.float32))
    loaded.run([x])
    (device,) = loaded._devices.values()
    before = {key: moved for key, (_, moved) in device._moved.items()}
    assert len(before) == 2  # the filters and the bias
    loaded.run([x])
    assert {key: moved for key, (_, moved) in device._moved.items()} == before


def test_a_dict_gives_a_dict_and_a_sequence_a_list() -> None:
    loaded = gpucnn.onnx.load(NET.SerializeToString())
    x = np.ones((1, 1, 4, 4), np.float32)
    by_name, in_order = loaded.run({"x": x}), loaded.run([x])
    assert list(by_name) == ["y", "m", "s"]
    assert isinstance(in_order, list)
    assert all(np.array_equal(one, other) for one, other in zip(by_name.values(), in_order, strict=True))
    assert list(loaded.run({"x": x}, ["m"])) == ["m"]
    assert [array.shape for array in loaded.run([x], ["s", "y"])] == [(4,), (1, 32)]


def test_inputs_and_outputs_are_described() -> None:
    loaded = gpucnn.onnx.load(NET.SerializeToString())
    (x,) = loaded.inputs
    assert (x.name, x.dtype, x.shape) == ("x", np.float32, ("N", 1, "H", "W"))
    assert [output.name for output in loaded.outputs] == ["y", "m", "s"]
    text = str(gpucnn.onnx.load(NET.SerializeToString(), optimize=False))
    assert "x: float32 [N, 1, H, W]" in text
    assert "Conv" in text
    assert "7" in text  # nodes


def test_numbers_are_taken_as_the_models_dtype() -> None:
    proto = model([node("Mul", ["x", "factor"], ["y"])], {"x": [3]})
    proto.graph.input.append(value("factor", []))
    loaded = gpucnn.onnx.load(proto.SerializeToString())
    assert loaded.run({"x": np.float32([1, 2, 3]), "factor": 2})["y"].tolist() == [2, 4, 6]
    assert loaded.run([[1, 2, 3], 0.5])[0].dtype == np.float32


def test_numbers_go_with_arrays_of_a_device(backend: ArrayBackend) -> None:
    proto = model([node("Mul", ["x", "factor"], ["y"])], {"x": [3]})
    proto.graph.input.append(value("factor", []))
    y = gpucnn.onnx.load(proto.SerializeToString()).run([backend.asarray(np.float32([1, 2, 3])), np.float32(2)])[0]
    assert backend.asnumpy(y).tolist() == [2, 4, 6]


@pytest.mark.parametrize(
    ("inputs", "outputs", "error", "message"),
    [
        ({}, None, ValueError, r"got the inputs \[\], expected \['x'\]"),
        ({"x": np.ones((1, 1, 4, 4), np.float32), "z": 1}, None, ValueError, "got the inputs"),
        ([], None, ValueError, "got 0 inputs, expected 1"),
        ({"x": np.ones((1, 1, 4, 4))}, None, TypeError, "'x' has dtype float64, expected float32"),
        (
            {"x": np.ones((1, 2, 4, 4), np.float32)},
            None,
            ValueError,
            r"shape \(1, 2, 4, 4\), expected x: float32 \[N, 1",
        ),
        ({"x": np.ones((1, 4, 4), np.float32)}, None, ValueError, r"shape \(1, 4, 4\)"),
        ({"x": np.ones((1, 1, 4, 4), np.float32)}, ["z"], ValueError, "no output 'z'"),
        (np.ones((1, 1, 4, 4), np.float32), None, TypeError, "ndarray, expected a dict or a sequence"),
        ({"x": "text"}, None, TypeError, "x is of type str, expected an array"),
    ],
)
def test_what_does_not_fit_is_named(inputs: Any, outputs: Any, error: type[Exception], message: str) -> None:
    loaded = gpucnn.onnx.load(NET.SerializeToString())
    with pytest.raises(error, match=message):
        loaded.run(inputs, outputs)


def test_an_error_of_the_run_names_the_node_and_its_arrays() -> None:
    proto = model([node("MatMul", ["x", "w"], ["y"])], {"x": ["N", "C"]}, constants={"w": np.ones((3, 2), np.float32)})
    loaded = gpucnn.onnx.load(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"model: node MatMul 'MatMul to y': .*float32 \(1, 4\), float32 \(3, 2\)"):
        loaded.run([np.ones((1, 4), np.float32)])


def test_floating_point_errors_are_results_and_warn_of_nothing() -> None:
    proto = model([node("Div", ["x", "zero"], ["q"]), node("Log", ["q"], ["y"])], {"x": [2]},
                  constants={"zero": np.float32(0)})  # fmt: skip
    (y,) = gpucnn.onnx.load(proto.SerializeToString()).run([np.float32([1, -1])])
    assert y[0] == np.inf
    assert np.isnan(y[1])


def test_branches_and_loops_read_the_values_around_them() -> None:
    then = helper.make_graph([node("Add", ["x", "one"], ["a"])], "then", [], [helper.make_empty_tensor_value_info("a")])
    other = helper.make_graph([node("Neg", ["x"], ["n"])], "else", [], [helper.make_empty_tensor_value_info("n")])
    body = helper.make_graph(
        [
            node("Mul", ["state", "x"], ["next"]),
            node("Identity", ["going"], ["again"]),
            node("Identity", ["turn"], ["t"]),
        ],
        "body",
        [value("turn", [], np.int64), value("going", [], np.bool_), value("state", None)],
        [helper.make_empty_tensor_value_info(name) for name in ("again", "next", "t")],
    )
    proto = model(
        [
            node("ReduceSum", ["x"], ["sum"], keepdims=0),
            node("Greater", ["sum", "zero"], ["positive"]),
            node("If", ["positive"], ["b"], then_branch=then, else_branch=other),
            node("Loop", ["three", "", "x"], ["y", "turns"], body=body),
        ],
        {"x": [2]},
        ("b", "y", "turns"),
        {"one": np.float32(1), "zero": np.float32(0), "three": np.int64(3)},
    )
    loaded = gpucnn.onnx.load(proto.SerializeToString())
    b, y, turns = loaded.run([np.float32([2, 3])])
    assert (b.tolist(), y.tolist(), turns.tolist()) == ([3, 4], [16, 81], [0, 1, 2])
    assert loaded.run([np.float32([-2, 1])], ["b"])[0].tolist() == [2, -1]


def test_values_are_let_go_after_their_last_use(monkeypatch: Any) -> None:
    """A long chain holds two large arrays at a time, not all of them."""
    import gc
    import weakref

    from gpucnn.onnx.operators import elementwise  # noqa: F401
    from gpucnn.onnx.operators.registry import _TABLE

    seen: list[Any] = []
    rows = _TABLE["", "Neg"]
    alive = []

    def watched(x: Any) -> Any:
        y = -x
        seen.append(weakref.ref(y))
        gc.collect()
        alive.append(sum(ref() is not None for ref in seen))
        return y

    from dataclasses import replace

    monkeypatch.setitem(_TABLE, ("", "Neg"), [replace(rows[0], function=watched)])
    chain = [node("Neg", [f"v{at}"], [f"v{at + 1}"]) for at in range(6)]
    gpucnn.onnx.load(model(chain, {"v0": [4]}, ("v6",)).SerializeToString()).run([np.ones(4, np.float32)])
    assert max(alive) == 2
