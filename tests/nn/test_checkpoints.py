"""Weights and checkpoints in files: there and back, from and to PyTorch, whole at any moment."""

from __future__ import annotations

import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from array_backends import ArrayBackend
from refusals import refused
from runs import bits

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


# --- Weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_weights_come_back_bit_for_bit(tmp_path: Path, backend: ArrayBackend, dtype: Any) -> None:
    model, other = (Scale(dtype, seed).map_arrays(backend.asarray) for seed in (1, 2))
    nn.save_weights(model, tmp_path / "weights.safetensors")
    assert nn.load_weights(other, str(tmp_path / "weights.safetensors")) == ([], [])
    assert bits(other, backend.asnumpy) == bits(Scale(dtype, 1))
    assert other.weight.data.dtype == dtype
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


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


def test_a_file_may_have_other_names(tmp_path: Path) -> None:
    model = Scale()
    safetensors.save_file({"weight": np.ones((3, 4)), "other": np.zeros(1)}, tmp_path / "x")
    missing, unexpected = nn.load_weights(model, tmp_path / "x", strict=False)
    assert (set(missing), unexpected) == (set(model.state_dict()) - {"weight"}, ["other"])
    assert (model.weight.data == 1).all()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"empty": None}, KeyError, "…missing empty, unexpected none…"),
        ({"other": np.zeros(1)}, KeyError, "…missing none, unexpected other…"),
        ({"running": np.zeros(8, np.float32)}, ValueError, "…running has shape (8,), expected (7,)"),
        (
            {"running": np.zeros(7, np.complex64)},
            TypeError,
            "…has dtype complex64, expected one that float32 can take…",
        ),
        ({"running": np.array(["x"] * 7)}, TypeError, "…running has dtype <U1, expected one that float32 can take…"),
        ({"running": np.array([object()] * 7)}, TypeError, "…running has dtype object, expected one that float32 can…"),
        ({"running": [[1], [1, 2]]}, TypeError, "…running is a list, expected an array of numbers…"),
    ],
)
def test_weights_are_loaded_whole_or_not_at_all(
    tmp_path: Path, backend: ArrayBackend, wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = Scale().map_arrays(backend.asarray)
    state = {name: value for name, value in {**Scale(seed=1).state_dict(), **wrong}.items() if value is not None}
    refused(error, (message, lambda: model.load_state_dict(state)))
    if all(isinstance(value, np.ndarray) and value.dtype.kind in "fic" for value in state.values()):
        safetensors.save_file({name: np.array(value, order="C") for name, value in state.items()}, tmp_path / "x")
        refused(error, (message, lambda: nn.load_weights(model, tmp_path / "x")))
    assert bits(model, backend.asnumpy) == bits(Scale())


def test_what_cannot_be_loaded_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = Scale()
    model.running.flags.writeable = False
    read_only = "…running is read-only in what is loaded into…"
    refused(ValueError, (read_only, lambda: model.load_state_dict(Scale(seed=1).state_dict())))
    path = "…state is a str, expected a dict of arrays; nn.load_weights(model, path)…"
    refused(TypeError, (path, lambda: model.load_state_dict(str(tmp_path))))
    assert bits(model) == bits(Scale())


def test_weights_of_tensors_are_taken(torch: Any) -> None:
    layer = nn.Linear(3, 2)
    theirs = torch.nn.Linear(3, 2)
    layer.load_state_dict(theirs.state_dict())
    np.testing.assert_array_equal(layer.weight.data, theirs.weight.detach().numpy())
    message = "…weight is a Parameter, expected an array of numbers: …requires grad…"
    refused(TypeError, (message, lambda: layer.load_state_dict(dict(theirs.named_parameters()))))


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
    nn.save_checkpoint(tmp_path / "run", {"$array": np.ones(2), 1: np.zeros(3), "1": ml_dtypes.bfloat16(1.5)})
    loaded = nn.load_checkpoint(tmp_path / "run")
    assert {key: np.asarray(value, float).tolist() for key, value in loaded.items()} == {
        "$array": [1, 1], 1: [0, 0, 0], "1": 1.5,
    }  # fmt: skip


def test_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    def saving(state: Any) -> Any:
        return lambda: nn.save_checkpoint(tmp_path / "run", state)

    refused(
        TypeError,
        ("save_checkpoint: a/0 is of type set, expected dicts, lists, numbers…", saving({"a": [{1}]})),
        ("save_checkpoint: z has dtype complex128, expected one of…", saving({"z": np.zeros(1, complex)})),
        ("save_checkpoint: a has the key (1, 2), expected strings, numbers, bools…", saving({"a": {(1, 2): 3}})),
        ("save_checkpoint: a is of type complex, expected dicts, lists, numbers…", saving({"a": np.complex64(1j)})),
        ("save_checkpoint: state is a list, expected a dict…", saving([1])),
    )
    assert not list(tmp_path.iterdir())


# --- Files --------------------------------------------------------------------------------------------------------


def test_a_truncated_file_says_so_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "run"
    nn.save_checkpoint(path, {"a": np.arange(5.0), "b": 1})
    whole = path.read_bytes()
    for content in (whole + b"\0", *(whole[:length] for length in range(len(whole)))):
        path.write_bytes(content)
        refused(ValueError, ("load_checkpoint: …run is no whole safetensors file…", lambda: nn.load_checkpoint(path)))


def test_foreign_files_say_so(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    header = b'{"x":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    unknown = len(header).to_bytes(8, "little") + header + b"\0"
    for content, message, load in (
        (b"no weights", "read_weights: …foreign is no whole safetensors file…", nn.read_weights),
        (b"no weights", "load_weights: …foreign is no whole …", partial(nn.load_weights, Scale())),
        (unknown, "read_weights: x has dtype F8_E4M3, expected one of F64…", nn.read_weights),
        (
            safetensors.save({}, {"gpucnn_checkpoint": "[1]"}),
            "…foreign holds a list, expected a dict…",
            nn.load_checkpoint,
        ),
        (safetensors.save({}), "…foreign holds weights, expected a file of save_checkpoint…", nn.load_checkpoint),
        *(
            (
                safetensors.save({}, {"gpucnn_checkpoint": text}),
                "…foreign holds a damaged checkpoint: …",
                nn.load_checkpoint,
            )
            for text in ("{", '{"a": {"$array": "x"}}', '{"$dict": [1]}', '{"$dict": [[[], 2]]}', "[" * 10**5)
        ),
    ):
        path.write_bytes(content)
        refused(ValueError, (message, lambda load=load: load(path)))
    with pytest.raises(FileNotFoundError, match="missing"):
        nn.load_checkpoint(tmp_path / "missing")


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
    refused(ModuleNotFoundError, (message, lambda: nn.save_weights(Scale(), tmp_path / "x")))
