"""Hostile model files: mutated ONNX, safetensors and PyTorch files are read, or refused with a clear error.

    python tests/hostile.py --count 10000 --seed 0

Mutant `i` of a seed is always the same one; a finding prints the command that repeats it alone. Mutants are whole files
with bits flipped, parts cut out, doubled, moved or overwritten by extreme numbers, and models whose nodes, shapes,
constants, nesting and references are changed, or that are built to take all memory and time there is. Each is read, and
a model that is read is run, in a child process with a bound of memory and of time. It is a finding where another error
than the documented ones comes out, the memory or the time does not suffice, the process dies, a file is opened outside
of the folder of the model, or anything is written or started.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("onnx", "safetensors", "zip", "legacy")
SECONDS = 30  # for one file, on a busy machine
MEMORY = 2 << 30  # bytes beyond what the process has when it begins
MOST_ELEMENTS = 1 << 20  # of the inputs that a model is run on
EXTREMES = (0, 1, -1, 2, 3, 255, 2**15, 2**31 - 1, 2**31, -(2**31), 2**32, 2**40, 2**62, 2**63 - 1, -(2**63), 10**6)

Rng = np.random.Generator


class Finding(NamedTuple):
    """A mutant that is not read or refused as it should be."""

    number: int
    kind: str
    what: str


def one_of(rng: Rng, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


# --- Whole files ------------------------------------------------------------------------------------------------------


def whole_files() -> dict[str, list[bytes]]:
    """Intact files of each kind, small ones of all forms."""
    import safetensors.numpy

    arrays = {
        "conv.weight": np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3),
        "count": np.array(3),
        "half": np.ones(5, np.float16),
    }
    metadata = {"gpucnn_checkpoint": json.dumps({"a": {"$array": "count"}, "b": [1, {"c": None}]})}
    tensors = [safetensors.numpy.save(arrays), safetensors.numpy.save(arrays, metadata)]
    return {"onnx": list(_models()), "safetensors": tensors, "zip": [a_zip()], "legacy": [a_legacy_file()]}


class _Storage:
    """A storage of four floats, as PyTorch's pickles refer to it."""


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes storages and the calls that rebuild tensors, without PyTorch."""

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if isinstance(value, _Storage):
            self.write(b"(")
            for part in ("storage", b"ctorch\nFloatStorage\n", "0", "cpu", 4):
                self.write(part) if isinstance(part, bytes) else super().save(part)
            self.write(b"tQ")
        elif isinstance(value, np.ndarray):
            self.write(b"ctorch._utils\n_rebuild_tensor_v2\n(")
            for part in (_Storage(), 0, value.shape, tuple(size // 4 for size in value.strides), False, None):
                self.save(part)
            self.write(b"tR")
        else:
            super().save(value, save_persistent_id)


def _pickled(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, 2).dump(value)
    return file.getvalue()


_STATE = {"weight": np.zeros((2, 2), np.float32), "bias": np.zeros(4, np.float32), "notes": [1, 2.5, ("x", None)]}


def a_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", _pickled(_STATE))
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", bytes(16))
    return file.getvalue()


def a_legacy_file() -> bytes:
    facts = {"little_endian": True, "protocol_version": 1001}
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), *map(_pickled, (1001, facts, _STATE, ["0"]))]
    return b"".join([*parts, (4).to_bytes(8, "little"), bytes(16)])


def _models() -> Iterator[bytes]:
    """Networks that are exported, graphs within graphs, functions, and the standard's small models."""
    import onnx
    from onnx import helper

    from gpucnn import nn
    from gpucnn.nn import models
    from gpucnn.onnx import export

    networks: list[tuple[nn.Module, tuple[int, ...]]] = [
        (models.resnet18(3, width=2, rng=0), (3, 33, 33)),
        (models.UNet(2, width=2, depth=1, rng=0), (3, 8, 8)),
        (models.DCGANGenerator(4, width=2, image_size=8, rng=0), (4, 1, 1)),
        (nn.Sequential(nn.MaxPool2d(2), nn.GroupNorm(1, 2), nn.GELU(), nn.Upsample(scale_factor=2.0)), (2, 6, 6)),
        (nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4, rng=0), nn.Softmax(-1)), (5, 6)),
        (nn.Sequential(nn.LocallyConnected1d(2, 2, 6, 3, rng=0), nn.AdaptiveAvgPool1d(3), nn.LPPool1d(2, 2)), (2, 6)),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for network, shape in networks:
            export(network, f"{folder}/model.onnx", shape)
            yield Path(folder, "model.onnx").read_bytes()
    for nodes in _SCRIPTS:
        yield _script(nodes)
    yield with_functions(3)
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data"
    stored = sorted(folder.glob("*/*/model.onnx"), key=lambda path: (path.stat().st_size, path.name))
    for path in stored[:60]:
        yield path.read_bytes()
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "branch", [], [_floats("z")])
    choice = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    truth = helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True])
    yield _model([choice], [truth])


_SCRIPTS = (
    "y = Loop(5)",
    "s = Shape(x); y = ConstantOfShape(s)",
    "s = Shape(x); y = Expand(x, s)",
    "a, b = Split(x); y = Concat(a, b)",
    "q = QuantizeLinear(x); y = DequantizeLinear(q)",
)


def _floats(name: str, *shape: Any) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape or None)


def _model(nodes: list[Any], weights: Any = (), functions: Any = ()) -> bytes:
    """A model of nodes from x [2, 4] to y."""
    from onnx import helper

    graph = helper.make_graph(nodes, "graph", [_floats("x", 2, 4)], [_floats("y")], list(weights))
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("own", 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, functions=functions).SerializeToString()
    return data


def _numbers(name: str, *values: int) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array(values, np.int64), name)


def _script(source: str) -> bytes:
    """One of `_SCRIPTS` as a model."""
    from onnx import helper

    if source.startswith("y = Loop"):
        return turning(5)
    nodes, weights = [], []
    for line in source.split("; "):
        outputs, _, call = line.partition(" = ")
        op, _, inputs = call.rstrip(")").partition("(")
        names = inputs.split(", ")
        if op.endswith("Linear"):
            weights = [helper.make_tensor("scale", 1, [], [0.5])]
            names.append("scale")
        attributes = {"axis": 1} if op in ("Split", "Concat") else {}
        nodes.append(helper.make_node(op, names, outputs.split(", "), **attributes))
    return _model(nodes, weights)


def turning(turns: int) -> bytes:
    """Twice x, so many times."""
    from onnx import TensorProto, helper

    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "state"], ["next"]), helper.make_node("Identity", ["go"], ["again"])],
        "body",
        [info("turn", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), _floats("state")],
        [info("again", TensorProto.BOOL, []), _floats("next")],
    )
    weights = [_numbers("turns", turns), helper.make_tensor("yes", TensorProto.BOOL, [], [True])]
    return _model([helper.make_node("Loop", ["turns", "yes", "x"], ["y"], body=body)], weights)


def with_functions(depth: int, calls: int = 2) -> bytes:
    """A function that calls another twice, and so on, to the depth: 2 ** depth nodes where each is put in its place."""
    from onnx import helper

    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("own", 1)]
    functions = []
    for level in range(depth):
        names = ["x", *(f"t{at}" for at in range(1, calls)), "y"]
        called = ("Relu", "") if level == 0 else (f"F{level - 1}", "own")
        nodes = [
            helper.make_node(called[0], [one], [other], domain=called[1]) for one, other in itertools.pairwise(names)
        ]
        functions.append(helper.make_function("own", f"F{level}", ["x"], ["y"], nodes, opsets))
    return _model([helper.make_node(f"F{depth - 1}", ["x"], ["y"], domain="own")], (), functions)


# --- Bombs ------------------------------------------------------------------------------------------------------------


def bombs() -> list[bytes]:
    """Models that are built to take all memory or time, to nest, to go in circles, or to read other files."""
    from onnx import TensorProto, helper

    node = helper.make_node
    doubled = [node("Concat", [f"t{at}", f"t{at}"], [f"t{at + 1}"], axis=0) for at in range(40)]
    squared = [node("MatMul", [f"t{at}", f"t{at}"], [f"t{at + 1}"]) for at in range(40)]
    start = helper.make_tensor("t0", TensorProto.FLOAT, [4, 4], [1.0] * 16)
    last = [node("Identity", ["t40"], ["y"])]
    huge = [_numbers("shape", 2**20, 2**19)]
    one = helper.make_tensor("one", TensorProto.FLOAT, [1, 1], [1.0])
    circle = [node("Add", ["x", "b"], ["a"]), node("Add", ["a", "x"], ["b"]), node("Identity", ["a"], ["y"])]
    recursive = helper.make_function(
        "own", "F0", ["x"], ["y"], [node("F0", ["x"], ["y"], domain="own")], [helper.make_opsetid("own", 1)]
    )
    wide = [node("Pad", ["x", "pads"], ["y"])]
    return [
        _model([*doubled, *last], [start]),
        _model([*squared, *last], [start]),
        _model([node("ConstantOfShape", ["shape"], ["y"])], huge),
        _model([node("Expand", ["one", "shape"], ["t"]), node("Add", ["t", "t"], ["y"])], [*huge, one]),
        _model([node("Tile", ["x", "shape"], ["y"])], huge),
        _model([node("Range", ["a", "b", "c"], ["y"])], [_numbers("a", 0), _numbers("b", 2**62), _numbers("c", 1)]),
        _model(wide, [_numbers("pads", 2**20, 2**20, 2**20, 2**20)]),
        _model(wide, [_numbers("pads", -(2**40), 2**62, 2**62, 2**62)]),
        _model([node("Resize", ["x", "", "", "shape"], ["y"])], huge),
        _model([node("OneHot", ["i", "d", "v"], ["y"])], [_numbers("i", 1), _numbers("d", 2**40), _numbers("v", 0, 1)]),
        _model([node("EyeLike", ["t"], ["y"]), node("Expand", ["one", "shape"], ["t"])][::-1], [*huge, one]),
        _model([node("Einsum", ["x", "x", "x", "x"], ["y"], equation="ab,cd,ef,gh->abcdefgh")]),
        _model([node("Reshape", ["x", "shape"], ["y"])], huge),
        turning(2**62),
        _model(circle),
        _model([node("Add", ["y", "x"], ["y"])]),
        _model([node("F0", ["x"], ["y"], domain="own")], (), [recursive]),
        with_functions(40),
        with_functions(12, 12),
        *(_nested(depth) for depth in (10, 40, 400, 4000)),
        *(with_data_at(place) for place in _PLACES),
        *(_filled(dims) for dims in ([2**31, 2**31], [-1], [2**62] * 64, [0] * 65, [10**9])),
        _model([node("NonMaxSuppression", ["x", "x", "n"], ["y"])], [_numbers("n", 2**62)]),
        _model([node("Relu", ["x"], [f"r{at}"]) for at in range(100_000)] + [node("Identity", ["r7"], ["y"])]),
    ]


_PLACES = (
    "../canary", "/etc/passwd", "link", "folder/../../canary", "", ".", "folder", "no such file", "x\0y",
    "../" * 500 + "etc/passwd", "canary" * 1000, "/dev/zero", "/proc/self/mem",
)  # fmt: skip


def _nested(depth: int) -> bytes:
    """A branch in a branch in a branch, written by hand: the library for protocol buffers nests up to 100 only."""

    def field(number: int, content: bytes) -> bytes:
        return _varint(number << 3 | 2) + _varint(len(content)) + content

    graph = field(2, b"inner")
    for _ in range(depth):
        attribute = field(1, b"then_branch") + _varint(20 << 3) + _varint(5) + field(6, graph)
        graph = field(1, field(1, b"x") + field(2, b"y") + field(4, b"If") + field(5, attribute)) + field(2, b"graph")
    return _varint(1 << 3) + _varint(8) + field(7, graph) + field(8, _varint(2 << 3) + _varint(19))


def _varint(value: int) -> bytes:
    data = b""
    while value > 127:
        data, value = data + bytes([value & 127 | 128]), value >> 7
    return data + bytes([value])


def with_data_at(place: str) -> bytes:
    """A model whose weights are in another file."""
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", place), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    return _model([helper.make_node("Add", ["x", "w"], ["y"])], [weight])


def _filled(dims: list[int]) -> bytes:
    """A model whose weight claims a shape, and has four bytes."""
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"abcd")
    return _model([helper.make_node("Add", ["x", "w"], ["y"])], [weight])


# --- Mutants ----------------------------------------------------------------------------------------------------------


def mutant(files: dict[str, list[bytes]], traps: list[bytes], seed: int, number: int) -> tuple[str, bytes]:
    """The kind and the data of mutant `number`; the first are the bombs as they are."""
    if number < len(traps):
        return "onnx", traps[number]
    rng = np.random.default_rng([seed, number])
    kind = KINDS[0] if rng.random() < 0.55 else one_of(rng, KINDS[1:])
    data = one_of(rng, files[kind])
    if kind == "onnx" and rng.random() < 0.7:
        data = _changed(data if rng.random() < 0.9 else one_of(rng, traps), rng)
        return kind, data if rng.random() < 0.8 else _damaged(data, rng, files[kind])
    if kind == "zip" and rng.random() < 0.6:
        return kind, _repacked(data, rng)
    return kind, _damaged(data, rng, files[kind])


def _damaged(data: bytes, rng: Rng, others: list[bytes]) -> bytes:
    """Data with one to four changes of bytes."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        size = len(changed)
        if not size:
            break
        at, length = int(rng.integers(size)), int(rng.integers(1, 33))
        way = int(rng.integers(9))
        if way == 0:
            for place in rng.integers(size, size=length):
                changed[place] ^= 1 << int(rng.integers(8))
        elif way == 1:
            changed[at : at + length] = rng.bytes(min(length, size - at))
        elif way == 2:
            del changed[at:]
        elif way == 3:
            del changed[at : at + length]
        elif way == 4:
            changed[at:at] = changed[at : at + length] * int(rng.integers(1, 50))
        elif way == 5:
            changed[at : at + 8] = (one_of(rng, EXTREMES) % 2**64).to_bytes(8, "little")
        elif way == 6:
            changed[at : at + length] = bytes([one_of(rng, (0, 0xFF, 0x7F, 0x80))]) * min(length, size - at)
        elif way == 7:
            other = one_of(rng, others)
            changed[at:] = other[int(rng.integers(len(other))) :]
        else:
            changed[at : at + 1] = _varint(one_of(rng, EXTREMES) % 2**64)
    return bytes(changed)


def _repacked(data: bytes, rng: Rng) -> bytes:
    """A zip file whose pickle is damaged, and whose checksums are right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(file, "w") as other:
        for name in archive.namelist():
            part = archive.read(name)
            other.writestr(name, _damaged(part, rng, [part]) if name.endswith(".pkl") or rng.random() < 0.1 else part)
    return file.getvalue()


def _changed(data: bytes, rng: Rng) -> bytes:
    """A model with one to three changes of its nodes, values and constants."""
    import onnx

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception:  # a bomb that nests too deep
        return data
    for _ in range(int(rng.integers(1, 4))):
        one_of(rng, _CHANGES)(proto, rng)
    try:
        changed: bytes = proto.SerializeToString()
    except Exception:  # too large for a protocol buffer
        return data
    return changed


def _constants(proto: Any, rng: Rng) -> None:
    """Integers that are shapes, axes or positions, mostly."""
    from onnx import numpy_helper

    tensors = [tensor for tensor in proto.graph.initializer if tensor.data_type == 7]
    tensors += [item.t for node in proto.graph.node for item in node.attribute if item.t.data_type == 7]
    if tensors:
        tensor = one_of(rng, tensors)
        try:
            values = numpy_helper.to_array(tensor).copy()
        except Exception:  # one that another change broke
            return
        if values.size:
            values.ravel()[int(rng.integers(values.size))] = one_of(rng, EXTREMES)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _tensors(proto: Any, rng: Rng) -> None:
    if proto.graph.initializer:
        tensor = one_of(rng, proto.graph.initializer)
        way = int(rng.integers(4))
        if way == 0 and tensor.dims:
            tensor.dims[int(rng.integers(len(tensor.dims)))] = one_of(rng, EXTREMES)
        elif way == 1:
            tensor.dims.append(one_of(rng, EXTREMES))
        elif way == 2:
            tensor.data_type = int(rng.integers(0, 30))
        else:
            tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data) + 1))]


def _attributes(proto: Any, rng: Rng) -> None:
    items = [item for node in proto.graph.node for item in node.attribute]
    if items:
        item = one_of(rng, items)
        way = int(rng.integers(5))
        if way == 0:
            item.i = one_of(rng, EXTREMES)
        elif way == 1 and item.ints:
            item.ints[int(rng.integers(len(item.ints)))] = one_of(rng, EXTREMES)
        elif way == 2:
            item.ints.extend([one_of(rng, EXTREMES)] * int(rng.integers(1, 5)))
        elif way == 3:
            item.f = one_of(rng, (float("nan"), float("inf"), -1e38, 0.0, 1e300))
        else:
            item.type = int(rng.integers(0, 15))


def _nodes(proto: Any, rng: Rng) -> None:
    from gpucnn.onnx.operators.registry import supported

    if not proto.graph.node:
        return
    node, other = one_of(rng, proto.graph.node), one_of(rng, proto.graph.node)
    way = int(rng.integers(7))
    if way == 0:
        node.op_type = one_of(rng, sorted(supported()))
    elif way == 1 and node.input and other.output:
        node.input[int(rng.integers(len(node.input)))] = other.output[0]
    elif way == 2 and node.output and other.output:
        node.output[0] = other.output[0]
    elif way == 3:
        node.input.append(one_of(rng, ("", "x", *(tensor.name for tensor in proto.graph.initializer))))
    elif way == 4 and node.input:
        del node.input[int(rng.integers(len(node.input)))]
    elif way == 5:
        node.CopyFrom(other)
    else:
        node.domain = one_of(rng, ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "gpucnn", "own"))


def _values(proto: Any, rng: Rng) -> None:
    values = [*proto.graph.input, *proto.graph.output]
    if values:
        value = one_of(rng, values)
        tensor, way = value.type.tensor_type, int(rng.integers(4))
        if way == 0:
            tensor.elem_type = int(rng.integers(0, 30))
        elif way == 1:
            tensor.shape.dim.add().dim_value = one_of(rng, EXTREMES)
        elif way == 2 and tensor.shape.dim:
            one_of(rng, tensor.shape.dim).dim_value = one_of(rng, EXTREMES)
        else:
            value.name = one_of(rng, ("", "x", "y", "\ud7ff", "a" * 10**5))


def _others(proto: Any, rng: Rng) -> None:
    way = int(rng.integers(5))
    if way == 0 and proto.opset_import:
        one_of(rng, proto.opset_import).version = one_of(rng, (*EXTREMES, 7, 11, 13, 18, 22))
    elif way == 1:
        proto.graph.node.extend(reversed([*proto.graph.node]))
    elif way == 2:
        del proto.graph.output[:]
    elif way == 3:
        proto.graph.sparse_initializer.add().dims.extend([2**40])
    else:
        proto.metadata_props.add(key="x", value="y" * 10**5)


_CHANGES: list[Callable[[Any, Rng], None]] = [
    *(_constants, _constants, _tensors, _attributes, _attributes, _nodes, _nodes, _nodes, _values, _others)
]

# --- The child --------------------------------------------------------------------------------------------------------

_FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.remove", "os.rename", "os.mkdir",
    "subprocess.Popen", "socket.connect", "socket.bind", "pickle.find_class", "ctypes.dlopen", "exec.code", "shutil.",
)  # fmt: skip


def child(folder: Path, seed: int, first: int, count: int) -> None:
    """Read the mutants [first, first + count), and say what became of each."""
    files = {kind: [path.read_bytes() for path in sorted(folder.glob(f"whole/{kind}-*"))] for kind in KINDS}
    traps = [path.read_bytes() for path in sorted(folder.glob("whole/bomb-*"))]
    inside = folder / "inside"
    seen: list[str] = []
    _warm(files)
    watching = watch(inside, seen)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for number in range(first, first + count):
        kind, data = mutant(files, traps, seed, number)
        path = inside / "model"
        path.write_bytes(data)
        before = sorted(inside.iterdir())
        signal.alarm(SECONDS)  # which ends the process, wherever it is
        begin = time.perf_counter()
        watching[0] = True
        outcome = _judged(kind, path)
        watching[0] = False
        signal.alarm(0)
        if sorted(inside.iterdir()) != before:
            seen.append("files were made")
        if seen:
            outcome = f"did what it must not: {', '.join(seen)}"
            seen.clear()
        say = {"number": number, "kind": kind, "outcome": outcome, "seconds": round(time.perf_counter() - begin, 3)}
        print(json.dumps(say), flush=True)


def _warm(files: dict[str, list[bytes]]) -> None:
    """Import what is imported when it is first needed."""
    from onnx import inliner

    from gpucnn.onnx import load

    assert inliner
    for data in files["onnx"][:3]:
        model = load(data)
        model.run(_inputs(model))


def watch(inside: Path, seen: list[str]) -> list[bool]:
    """Note in `seen` what reading a file must not do, while the one flag that is returned is true."""
    watching = [False]
    allowed = (str(inside), str(ROOT), sys.prefix, sys.base_prefix, "/proc/self/statm", "/usr/lib", "/usr/share")

    def hook(event: str, arguments: Any) -> None:
        if not watching[0]:
            return
        if event == "open":
            path, mode = str(arguments[0]), str(arguments[1])
            written = any(letter in mode for letter in "wax+")
            if written or not os.path.abspath(path).startswith(allowed):
                seen.append(f"open {path[:200]} {mode}")
        elif event.startswith(_FORBIDDEN):
            seen.append(event)

    sys.addaudithook(hook)
    return watching


def _judged(kind: str, path: Path) -> str:
    """Whether a file is read, refused, or handled otherwise: "read", "refused", or what happened."""
    from gpucnn import nn
    from gpucnn.onnx import ModelError, load

    try:
        if kind == "onnx":
            try:
                model = load(path)
            except ModelError as error:
                return "refused" if str(error) and not _of_memory(error) else f"an unclear error: {error!r}"
            return _run(model)
        reads = (nn.read_weights, nn.load_checkpoint) if kind == "safetensors" else (nn.read_pytorch, nn.read_weights)
        for read in reads:
            try:
                read(path)
            except ValueError as error:
                if type(error) is not ValueError or not str(error).startswith(read.__name__):
                    return f"an unclear error: {error!r}"
    except BaseException as error:
        return f"another error: {type(error).__name__}: {str(error)[:300]}"
    return "read"


def _run(model: Any) -> str:
    """As `_judged`, of a model that is read."""
    from gpucnn.onnx import ModelError

    inputs = _inputs(model)
    if inputs is None:
        return "read"
    try:
        model.run(inputs)
    except ModelError as error:
        return "refused" if str(error) else "an error without a message"
    return "ran"


def _of_memory(error: BaseException) -> bool:
    return isinstance(error.__cause__, MemoryError) or "MemoryError" in str(error)


def _inputs(model: Any) -> dict[str, Any] | None:
    """Numbers for a model's inputs; None where they would be large, or of no known shape."""
    inputs, left = {}, MOST_ELEMENTS
    for value in model.inputs:
        if value.shape is None or value.dtype is None or len(value.shape) > 32:
            return None
        shape = [size if isinstance(size, int) else 2 for size in value.shape]
        left -= int(np.prod(shape, dtype=object))
        if left < 0:
            return None
        inputs[value.name] = np.ones(shape, value.dtype)
    return inputs


# --- The parent -------------------------------------------------------------------------------------------------------


def attack(count: int, seed: int = 0, first: int = 0, say: Callable[[str], None] | None = None) -> list[Finding]:
    """What is found among `count` mutants from the number `first` on; the bombs are the lowest numbers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _lay_out(folder)
        findings, at, outcomes = [], first, dict.fromkeys(("read", "ran", "refused"), 0)
        while at < first + count:
            command = [sys.executable, __file__, "--child", name, "--seed", str(seed), "--first", str(at)]
            command += ["--count", str(first + count - at)]
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    said = json.loads(line)
                    at = said["number"] + 1
                    if said["outcome"] in outcomes:
                        outcomes[said["outcome"]] += 1
                    else:
                        findings.append(Finding(said["number"], said["kind"], said["outcome"]))
                assert process.stderr is not None
                error = process.stderr.read()
            if process.returncode:
                ended = f"no answer in {SECONDS} s" if process.returncode == -signal.SIGALRM else error[-2000:]
                findings.append(Finding(at, "?", f"the process ended with {process.returncode}: {ended}"))
                at += 1
        if say is not None:
            say(f"{count} files: " + ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items()))
        return findings


def _lay_out(folder: Path) -> None:
    """The folder of the attack: whole files, the folder that models are read in, and a file outside of it."""
    (folder / "whole").mkdir()
    (folder / "inside" / "folder").mkdir(parents=True)
    (folder / "canary").write_bytes(bytes(16))
    (folder / "inside" / "link").symlink_to(folder / "canary")
    for kind, files in whole_files().items():
        for at, data in enumerate(files):
            (folder / "whole" / f"{kind}-{at:04}").write_bytes(data)
    for at, data in enumerate(bombs()):
        (folder / "whole" / f"bomb-{at:04}").write_bytes(data)


def _environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {
        "PYTHONPATH": paths,
        "GPUCNN_CPU": "numpy",
        "GPUCNN_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }


def main() -> int:
    """Attack, and print what is found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--count", type=int, default=10_000, help="files (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first one (%(default)s)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child, options.seed, options.first, options.count)
        return 0
    begin = time.perf_counter()
    findings = attack(options.count, options.seed, options.first, print)
    for finding in findings:
        print(f"\n{finding.kind}: {finding.what}")
        print(f"    python tests/hostile.py --seed {options.seed} --first {finding.number} --count 1")
    print(f"{len(findings)} findings in {time.perf_counter() - begin:.0f} s")
    return int(bool(findings))


if __name__ == "__main__":
    raise SystemExit(main())
