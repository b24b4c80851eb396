"""Weights and checkpoints in files: there and back, from and to PyTorch, whole at any moment."""

from __future__ import annotations

import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from array_backends import ArrayBackend

from gpucnn import nn
from gpucnn.installing import install_command

safetensors = pytest.importorskip("safetensors.numpy")


class Scale(nn.Module):
    """One parameter of each form."""

    buffer_names = ("running", "count")

    def __init__(self, dtype: Any = np.float32, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.weight = nn.Parameter(rng.standard_normal((3, 4)).astype(dtype))
        self.strided = nn.Parameter(rng.standard_normal((6, 8)).astype(dtype)[::2, ::-1])
        self.transposed = nn.Parameter(rng.standard_normal((2, 5, 3)).astype(dtype).transpose(2, 0, 1))
        self.running = rng.standard_normal(7).astype(dtype)
        self.count = np.array(seed)
        self.empty = nn.Parameter(np.zeros((0, 2), dtype))


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: np.asarray(array).tobytes() for name, array in model.state_dict().items()}


# --- Weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_weights_come_back_bit_for_bit(tmp_path: Path, dtype: Any) -> None:
    model, other = Scale(dtype, 1), Scale(dtype, 2)
    nn.save_weights(model, tmp_path / "weights.safetensors")
    assert bits(other) != bits(model)
    assert nn.load_weights(other, tmp_path / "weights.safetensors") == ([], [])
    assert bits(other) == bits(model)
    assert other.weight.data.dtype == dtype
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_weights_of_every_backend(tmp_path: Path, backend: ArrayBackend) -> None:
    model, other = Scale().map_arrays(backend.asarray), Scale(seed=3).map_arrays(backend.asarray)
    nn.save_weights(model, str(tmp_path / "weights"))
    nn.load_weights(other, str(tmp_path / "weights"))
    assert {name: backend.asnumpy(array).tobytes() for name, array in other.state_dict().items()} == bits(Scale())


def test_pytorch_reads_what_is_written(torch: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = Scale(ml_dtypes.bfloat16)
    nn.save_weights(model, tmp_path / "weights")
    loaded = load_file(tmp_path / "weights")
    assert sorted(loaded) == sorted(model.state_dict())
    assert loaded["weight"].dtype == torch.bfloat16
    assert loaded["count"].shape == ()
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(loaded[name].double().numpy(), array.astype(float))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_a_pytorch_network_is_loaded_by_key(torch: Any, tmp_path: Path, dtype: str) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    theirs = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(getattr(torch, dtype))
    theirs[1].running_mean += 0.25
    save_file(theirs.state_dict(), tmp_path / "theirs")
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert nn.load_weights(ours, tmp_path / "theirs") == ([], [])
    for name, tensor in theirs.state_dict().items():
        expected = tensor.double().numpy()
        np.testing.assert_array_equal(np.asarray(ours.state_dict()[name], float), expected.astype(np.float32))


def test_every_bfloat16_is_read_as_it_is(tmp_path: Path) -> None:
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16).reshape(256, 256)
    safetensors.save_file({"x": every}, tmp_path / "x")
    read = nn.read_weights(tmp_path / "x")["x"]
    assert read.dtype == np.float32
    assert read.view(np.uint32).tobytes() == every.astype(np.float32).view(np.uint32).tobytes()


def test_names_are_compared(tmp_path: Path) -> None:
    model = Scale()
    weights = {**nn.Module.state_dict(model), "other": np.zeros(1)}
    weights.pop("weight")
    safetensors.save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, tmp_path / "x")
    with pytest.raises(KeyError, match="missing weight, unexpected other"):
        nn.load_weights(model, tmp_path / "x")
    weights["count"] = np.zeros((), int)  # ascontiguousarray made it [1]
    nn.save_checkpoint(tmp_path / "x", weights)
    with pytest.raises(ValueError, match=r"weight has shape \(1,\), expected \(3, 4\)"):
        nn.load_weights(model, _saved(tmp_path, weight=np.zeros(1)), strict=False)
    assert nn.load_weights(model, _saved(tmp_path, weight=np.ones((3, 4))), strict=False).unexpected_keys == []
    assert (model.weight.data == 1).all()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"empty": None}, KeyError, "missing empty, unexpected none"),
        ({"other": np.zeros(1)}, KeyError, "missing none, unexpected other"),
        ({"running": np.zeros(8)}, ValueError, r"running has shape \(8,\), expected \(7,\)"),
        (
            {"running": np.zeros(7, complex)},
            TypeError,
            "running has dtype complex128, expected one that float32 can take",
        ),
        ({"running": np.array(["x"] * 7)}, TypeError, "running has dtype <U1, expected one that float32 can take"),
        ({"running": np.array([object()] * 7)}, TypeError, "running has dtype object, expected one that float32 can"),
        ({"running": [[1], [1, 2]]}, TypeError, "running is a list, expected an array of numbers"),
    ],
)
def test_weights_are_loaded_whole_or_not_at_all(
    backend: ArrayBackend, wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = Scale().map_arrays(backend.asarray)
    state = {name: value for name, value in {**Scale(seed=1).state_dict(), **wrong}.items() if value is not None}
    with pytest.raises(error, match=message):
        model.load_state_dict(state)
    assert {name: backend.asnumpy(array).tobytes() for name, array in model.state_dict().items()} == bits(Scale())


def test_a_read_only_weight_leaves_the_others_as_they_were() -> None:
    model = Scale()
    model.running.flags.writeable = False
    with pytest.raises(ValueError, match="running is read-only in what is loaded into"):
        model.load_state_dict(Scale(seed=1).state_dict())
    assert bits(model) == bits(Scale())


def test_a_file_that_does_not_fit_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model, arrays = Scale(), {name: np.array(array, order="C") for name, array in Scale(seed=1).state_dict().items()}
    with pytest.raises(ValueError, match="running has shape"):
        nn.load_weights(model, _saved(tmp_path, **{**arrays, "running": np.zeros(2)}))
    with pytest.raises(TypeError, match="running has dtype complex64"):
        nn.load_weights(model, _saved(tmp_path, **{**arrays, "running": np.zeros(7, np.complex64)}))
    with pytest.raises(TypeError, match=r"state is a str, expected a dict of arrays; nn.load_weights\(model, path\)"):
        model.load_state_dict(str(tmp_path))  # type: ignore[arg-type]
    assert bits(model) == bits(Scale())


def test_weights_of_tensors_are_taken(torch: Any) -> None:
    layer = nn.Linear(3, 2)
    theirs = torch.nn.Linear(3, 2)
    layer.load_state_dict(theirs.state_dict())
    np.testing.assert_array_equal(layer.weight.data, theirs.weight.detach().numpy())
    with pytest.raises(TypeError, match=r"weight is a Parameter, expected an array of numbers: .*requires grad"):
        layer.load_state_dict(dict(theirs.named_parameters()))


def _saved(folder: Path, **arrays: Any) -> Path:
    safetensors.save_file(arrays, folder / "arrays")
    return folder / "arrays"


# --- Checkpoints --------------------------------------------------------------------------------------------------


def test_a_state_comes_back(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.MT19937(1))  # its state holds an array
    state = {
        "numbers": [1, -2.5, math.inf, True, None, 2**100, 0.1 + 0.2, np.float32(0.1), np.int64(7)],
        "text": "a ∈ b",
        "generator": rng.bit_generator.state,
        "optimizer": {"state": {0: {"step": 3, "exp_avg": np.arange(6.0).reshape(2, 3)[:, ::-1]}}},
        "a": {"b/c": np.zeros(2)},
        "a/b": {"c": np.ones(2, np.uint8)},
        "scalar": np.array(5),
        "empty": {},
        "none": np.zeros((0, 3), bool),
    }
    nn.save_checkpoint(tmp_path / "run", state)
    loaded = nn.load_checkpoint(tmp_path / "run")
    assert loaded["numbers"] == [1, -2.5, math.inf, True, None, 2**100, 0.1 + 0.2, float(np.float32(0.1)), 7]
    assert loaded["text"] == "a ∈ b"
    assert loaded["empty"] == {}
    np.testing.assert_array_equal(loaded["optimizer"]["state"][0]["exp_avg"], [[2, 1, 0], [5, 4, 3]])
    np.testing.assert_array_equal(loaded["a"]["b/c"], [0, 0])
    np.testing.assert_array_equal(loaded["a/b"]["c"], [1, 1])
    assert loaded["a/b"]["c"].dtype == np.uint8
    assert loaded["scalar"].shape == ()
    assert loaded["none"].shape == (0, 3)
    other = np.random.Generator(np.random.MT19937(2))
    other.bit_generator.state = loaded["generator"]
    assert other.random() == rng.random()


@pytest.mark.parametrize("bits_of", [np.random.PCG64, np.random.PCG64DXSM, np.random.SFC64, np.random.Philox])
def test_generators_go_on(tmp_path: Path, bits_of: Any) -> None:
    rng = np.random.Generator(bits_of(1))
    rng.integers(3, dtype=np.int32)  # leaves half a draw behind
    nn.save_checkpoint(tmp_path / "run", {"rng": rng.bit_generator.state})
    expected = rng.integers(2**31, size=9, dtype=np.int32).tolist()
    other = np.random.Generator(bits_of(2))
    other.bit_generator.state = nn.load_checkpoint(tmp_path / "run")["rng"]
    assert other.integers(2**31, size=9, dtype=np.int32).tolist() == expected


@pytest.mark.parametrize(
    "state",
    [
        {"a": {"$array": "x"}},
        {"a": {"$dict": [["x", 1]]}, "$array": 1},
        {"a": {"$array": {"$array": {"$dict": {}}}}},
        {1: "a", "1": "b"},
        {None: 1, True: 2, 2.5: 3, -4: {5: 6}, "null": 7, "true": 8},
        {"state": {0: {"step": 3}, 1: {}}},
        {},
    ],
    ids=str,
)
def test_every_dict_comes_back(tmp_path: Path, state: dict[Any, Any]) -> None:
    nn.save_checkpoint(tmp_path / "run", state)
    loaded = nn.load_checkpoint(tmp_path / "run")
    assert loaded == state
    assert [type(key) for key in loaded] == [type(key) for key in state]


def test_arrays_within_such_dicts_come_back(tmp_path: Path) -> None:
    nn.save_checkpoint(tmp_path / "run", {"$array": np.ones(2), 1: np.zeros(3), "1": np.full(1, 7.0)})
    loaded = nn.load_checkpoint(tmp_path / "run")
    assert {key: value.tolist() for key, value in loaded.items()} == {"$array": [1, 1], 1: [0, 0, 0], "1": [7]}


def test_a_single_bfloat16_comes_back_as_its_value(tmp_path: Path) -> None:
    nn.save_checkpoint(tmp_path / "run", {"x": ml_dtypes.bfloat16(1.5)})
    assert float(nn.load_checkpoint(tmp_path / "run")["x"]) == 1.5


def test_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="save_checkpoint: a/0 is of type set, expected dicts, lists, numbers"):
        nn.save_checkpoint(tmp_path / "run", {"a": [{1}]})
    with pytest.raises(TypeError, match="save_checkpoint: z has dtype complex128, expected one of"):
        nn.save_checkpoint(tmp_path / "run", {"z": np.zeros(1, complex)})
    with pytest.raises(TypeError, match=r"save_checkpoint: a has the key \(1, 2\), expected strings, numbers, bools"):
        nn.save_checkpoint(tmp_path / "run", {"a": {(1, 2): 3}})
    with pytest.raises(TypeError, match="save_checkpoint: a is of type complex, expected dicts, lists, numbers"):
        nn.save_checkpoint(tmp_path / "run", {"a": np.complex64(1j)})
    with pytest.raises(TypeError, match="save_checkpoint: state is a list, expected a dict"):
        nn.save_checkpoint(tmp_path / "run", [1])  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


# --- Files --------------------------------------------------------------------------------------------------------


def test_a_truncated_file_says_so_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "run"
    nn.save_checkpoint(path, {"a": np.arange(5.0), "b": 1})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="run is no whole safetensors file"):
            nn.load_checkpoint(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="run is no whole safetensors file"):
        nn.load_checkpoint(path)


def test_foreign_files_say_so(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(b"PK\x03\x04 a zip file, as torch.save writes it")
    with pytest.raises(ValueError, match=r"read_weights: .*foreign is no whole safetensors file"):
        nn.read_weights(path)
    with pytest.raises(ValueError, match=r"load_weights: .*foreign is no whole safetensors file"):
        nn.load_weights(Scale(), path)
    nn.save_weights(Scale(), path)
    with pytest.raises(
        ValueError, match=r"load_checkpoint: .*foreign holds weights, expected a file of save_checkpoint"
    ):
        nn.load_checkpoint(path)
    safetensors.save_file({}, path, {"gpucnn_checkpoint": "[1]"})
    with pytest.raises(ValueError, match="foreign holds a list, expected a dict"):
        nn.load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        nn.load_checkpoint(tmp_path / "missing")


def test_a_dtype_that_numpy_lacks_is_named(tmp_path: Path) -> None:
    header = b'{"x":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(ValueError, match="read_weights: x has dtype F8_E4M3, expected one of F64"):
        nn.read_weights(tmp_path / "x")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_the_old_file_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "run"
    nn.save_checkpoint(path, {"a": 1})

    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(OSError, match="the disk is full"):
            nn.save_checkpoint(path, {"a": 2})
    assert nn.load_checkpoint(path) == {"a": 1}
    (tmp_path / "run.partial").write_bytes(b"half")  # as a kill leaves it
    nn.save_checkpoint(path, {"a": 3})
    assert nn.load_checkpoint(path) == {"a": 3}
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_a_file_is_on_the_disk_before_it_is_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append("fsync"), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths)))
    nn.save_checkpoint(tmp_path / "run", {})
    assert done == ["fsync", "replace", "fsync"] if os.name == "posix" else ["fsync", "replace"]


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has a umask")
def test_others_may_read_what_the_umask_lets_them_read(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    nn.save_weights(Scale(), tmp_path / "weights")
    nn.save_checkpoint(tmp_path / "run", {"a": np.ones(2)})
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {plain.stat().st_mode}


def test_without_safetensors_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    message = f"save_weights: safetensors is not installed: {install_command('train')}"
    with pytest.raises(ModuleNotFoundError, match=f"^{re.escape(message)}$"):
        nn.save_weights(Scale(), tmp_path / "x")
