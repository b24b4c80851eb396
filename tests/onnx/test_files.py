"""Files that are not trusted: each fault is a ModelError that says where it is, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx.checker", reason="onnx is not installed")

from building import initializer, model, node, value
from onnx import TensorProto, helper, numpy_helper

import gpucnn.onnx
from gpucnn.onnx import ModelError, UnsupportedError
from gpucnn.onnx.reader import DEEPEST


def net(**constants: Any) -> Any:
    return model([node("Add", ["x", "w"], ["y"])], {"x": [2]}, constants={"w": np.float32([1, 2]), **constants})


def refused(proto: Any, error: type[ModelError] = ModelError) -> str:
    content = proto if isinstance(proto, bytes) else proto.SerializeToString()
    with pytest.raises(error) as caught:
        gpucnn.onnx.load(content)
    return str(caught.value)


# --- Bytes that are no model ------------------------------------------------------------------------------------------


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    assert "is no ONNX model" in refused(b"no protocol buffer")
    assert "it has no graph" in refused(b"")
    whole = net().SerializeToString()
    for length in range(len(whole)):
        try:
            gpucnn.onnx.load(whole[:length])
        except ModelError:
            continue
    with pytest.raises(FileNotFoundError):
        gpucnn.onnx.load(tmp_path / "none.onnx")
    path = tmp_path / "some.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"^some\.onnx: is no ONNX model"):
        gpucnn.onnx.load(path)


def test_changed_bytes_give_a_model_or_a_model_error(rng: Any) -> None:
    whole = bytearray(net().SerializeToString())
    for _ in range(500):
        changed = bytearray(whole)
        for at in rng.integers(0, len(whole), 2):
            changed[at] = rng.integers(0, 256)
        try:
            loaded = gpucnn.onnx.load(bytes(changed))
            shapes = [(2,) if value.shape is None else value.shape for value in loaded.inputs]
            sizes = [[size if isinstance(size, int) and size < 99 else 2 for size in shape] for shape in shapes]
            pairs = zip(sizes, loaded.inputs, strict=True)
            loaded.run([np.zeros(size, value.dtype or np.float32) for size, value in pairs])
        except ModelError:
            continue


# --- Arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [[3], [1], [2, 2], [2**62], [2**40, 2**40], [-2], [1] * 65])
def test_a_size_that_does_not_fit_the_bytes_allocates_nothing(dims: list[int]) -> None:
    proto = net()
    del initializer(proto, "w").dims[:]
    initializer(proto, "w").dims.extend(dims)
    assert "tensor 'w'" in refused(proto)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int8, np.float16, np.bool_, np.complex64])
def test_numbers_one_by_one_are_the_array_of_their_bytes(dtype: Any, rng: Any) -> None:
    array = (rng.standard_normal((2, 3)) * 3).astype(dtype)
    by_bytes = numpy_helper.from_array(array, "w")
    stored = array.view(np.uint16) if dtype is np.float16 else array
    one_by_one = (
        helper.make_tensor("w", by_bytes.data_type, (2, 3), stored.ravel().tolist())
        if (dtype is not np.float16)
        else TensorProto(name="w", data_type=by_bytes.data_type, dims=(2, 3), int32_data=stored.ravel().tolist())
    )
    for tensor in (by_bytes, one_by_one):
        proto = model([node("Identity", ["w"], ["y"])], {})
        proto.graph.initializer.append(tensor)
        (y,) = gpucnn.onnx.load(proto.SerializeToString()).run([])
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, array)


def test_a_tensor_of_too_few_numbers_is_refused() -> None:
    proto = net()
    w = initializer(proto, "w")
    w.ClearField("raw_data")
    w.float_data.append(1)
    assert "tensor 'w': has 1 numbers, expected 2 for shape (2,)" in refused(proto)


@pytest.mark.parametrize(("number", "message"), [(8, "strings are not supported"), (0, "dtype 0"), (99, "dtype 99")])
def test_a_dtype_that_is_not_supported_is_named(number: int, message: str) -> None:
    proto = net()
    initializer(proto, "w").data_type = number
    assert message in refused(proto)


def test_a_bool_of_another_byte_is_refused() -> None:
    proto = net(b=np.array([True, False]))
    initializer(proto, "b").raw_data = b"\x01\x02"
    assert "expected bools" in refused(proto)


# --- External data ----------------------------------------------------------------------------------------------------


def external(folder: Path, **where: str) -> Path:
    """A model in `folder` whose array lies in another file."""
    proto = net()
    w = initializer(proto, "w")
    w.ClearField("raw_data")
    w.data_location = TensorProto.EXTERNAL
    for key, text in where.items():
        w.external_data.add(key=key, value=text)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data_beside_the_model_are_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(b"...." + np.float32([3, 4]).tobytes())
    path = external(tmp_path, location="data/w.bin", offset="4", length="8")
    assert gpucnn.onnx.load(path).run([np.float32([0, 1])])[0].tolist() == [3, 5]
    with pytest.raises(ModelError, match=r"in the file 'data/w.bin', expected a model given by its path"):
        gpucnn.onnx.load(path.read_bytes())


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"location": "../secret"}, "outside the folder of the model"),
        ({"location": "link"}, "outside the folder of the model"),
        ({"location": "inner/../../secret"}, "outside the folder"),
        ({"location": "/etc/hostname"}, "expected a file beside the model"),
        ({"location": ""}, "expected a file beside the model"),
        ({"location": "a\0b"}, "expected a file beside the model"),
        ({"location": "none"}, "there is no file 'none'"),
        ({"location": "inner"}, "there is no file 'inner'"),
        ({"location": "w.bin", "offset": "1"}, "8 bytes at 1 of 'w.bin', which has 8"),
        ({"location": "w.bin", "offset": "-8"}, "8 bytes at -8"),
        ({"location": "w.bin", "length": "4"}, "4 bytes at 0 of 'w.bin', which has 8, expected 8"),
        ({"location": "w.bin", "offset": "x"}, "is no number"),
    ],
)
def test_external_data_elsewhere_are_refused(tmp_path: Path, where: dict[str, str], message: str) -> None:
    folder = tmp_path / "models"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(8))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "w.bin").write_bytes(bytes(8))
    with pytest.raises(ModelError, match="tensor 'w'") as caught:
        gpucnn.onnx.load(external(folder, **where))
    assert message in str(caught.value)


# --- Graphs -----------------------------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    graph = helper.make_graph([node("Identity", ["x"], ["y0"])], "g0", [], [helper.make_empty_tensor_value_info("y0")])
    for at in range(1, depth + 1):
        inner = node("If", ["c"], [f"y{at}"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([inner], f"g{at}", [], [helper.make_empty_tensor_value_info(f"y{at}")])
    graph.input.append(value("x", [2]))
    graph.input.append(value("c", [], np.bool_))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def test_graphs_nest_to_a_bound() -> None:
    # each level is twice within the one around it: few levels, or the file doubles with each
    loaded = gpucnn.onnx.load(nested(4).SerializeToString())
    assert loaded.run([np.float32([1, 2]), True])[0].tolist() == [1, 2]
    chain = helper.make_graph([node("Identity", ["x"], ["y"])], "g", [], [helper.make_empty_tensor_value_info("y")])
    for _ in range(DEEPEST + 1):
        inner = helper.make_node("Loop", ["n"], ["y"], body=chain)
        chain = helper.make_graph([inner], "g", [], [helper.make_empty_tensor_value_info("y")])
    chain.input.append(value("x", [2]))
    chain.input.append(value("n", [], np.int64))
    proto = helper.make_model(chain, opset_imports=[helper.make_opsetid("", 21)])
    assert f"more than {DEEPEST} graphs deep" in refused(proto)


def test_names_are_defined_once_and_before_their_use() -> None:
    proto = net()
    proto.graph.node[0].input[0] = "y"
    assert "node Add 'Add to y': its input 'y' is not defined before it" in refused(proto)
    proto = net()
    proto.graph.node.append(node("Neg", ["x"], ["y"]))
    assert "its output 'y' has the name of another value" in refused(proto)
    proto = net()
    proto.graph.output[0].name = "z"
    assert "no node gives the output 'z'" in refused(proto)
    proto = net()
    proto.graph.input.append(proto.graph.input[0])
    assert "two inputs of one name" in refused(proto)


def test_all_that_is_not_supported_is_listed_at_load() -> None:
    proto = model(
        [
            node("StringNormalizer", ["x"], ["a"]),
            node("StringNormalizer", ["a"], ["b"]),
            helper.make_node("FusedMatMul", ["b", "b"], ["c"], domain="com.microsoft"),
            node("Relu", ["c"], ["d"], slope=2.0),
            node("Conv", ["d"], ["e"]),
            node("Softmax", ["e"], ["y"], axis="last"),
        ],
        {"x": [2]},
    )
    proto.opset_import.add(domain="com.microsoft", version=1)
    text = refused(proto, UnsupportedError)
    assert "StringNormalizer in 2 nodes" in text
    assert "com.microsoft.FusedMatMul in 1 node" in text
    assert "node Relu 'Relu to d': attribute 'slope' is not supported" in text
    assert "node Conv 'Conv to e': has 1 inputs, expected 2 to 3" in text
    assert "attribute 'axis' is of type str, expected int" in text


def test_operator_sets_of_the_future_and_the_optimisers_domain_are_refused() -> None:
    assert "operator set 999" in refused(model([node("Relu", ["x"], ["y"])], {"x": [2]}, opset=999), UnsupportedError)
    proto = model([helper.make_node("FusedConv", ["x", "x"], ["y"], domain="gpucnn")], {"x": [2]})
    proto.opset_import.add(domain="gpucnn", version=1)
    assert "gpucnn.FusedConv" in refused(proto, UnsupportedError)


def test_an_operator_that_came_later_is_named_with_its_version() -> None:
    proto = model([node("NonMaxSuppression", ["x", "x"], ["y"])], {"x": [2]}, opset=9)
    assert "NonMaxSuppression (version 9)" in refused(proto, UnsupportedError)


def test_a_node_of_more_outputs_than_its_operator_has_is_refused_in_the_run() -> None:
    w = np.ones((1, 1, 1, 1), np.float32)
    proto = model([node("Conv", ["x", "w"], ["y", "z"]), node("Relu", ["z"], ["r"])], {"x": [1, 1, 2, 2]}, ("y", "r"),
                  {"w": w})  # fmt: skip
    loaded = gpucnn.onnx.load(proto.SerializeToString())
    with pytest.raises(ModelError, match="has 2 outputs, expected at most 1"):
        loaded.run([np.zeros((1, 1, 2, 2), np.float32)])


def test_a_constant_that_would_be_huge_is_not_computed_at_load() -> None:
    nodes = [node("ConstantOfShape", ["shape"], ["a"]), node("Expand", ["x", "shape"], ["b"])]
    proto = model([*nodes, node("Add", ["a", "b"], ["y"])], {"x": [1]}, constants={"shape": np.int64([2**50])})
    loaded = gpucnn.onnx.load(proto.SerializeToString())
    with pytest.raises(ModelError, match="ConstantOfShape"):
        loaded.run([np.zeros(1, np.float32)])
    doubling = [node("Concat", [f"v{at}", f"v{at}"], [f"v{at + 1}"], axis=0) for at in range(60)]
    proto = model([*doubling, node("Shape", ["v60"], ["y"])], {}, constants={"v0": np.zeros(1024, np.float32)})
    gpucnn.onnx.load(proto.SerializeToString())
