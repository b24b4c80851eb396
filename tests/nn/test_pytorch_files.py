"""Files of torch.save, read without PyTorch: values and tensors as they were, and nothing in them is run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from refusals import refused, saying

from gpucnn import nn
from gpucnn.nn import _pickled

Host = np.ndarray[Any, Any]
FORMATS = {"zip": True, "legacy": False}

# --- What PyTorch writes ----------------------------------------------------------------------------------------------


@pytest.fixture(params=FORMATS)
def saved(request: pytest.FixtureRequest, torch: Any, tmp_path: Path) -> Callable[[Any], Path]:
    """A function that saves a value by PyTorch in one of its formats."""

    def save(value: Any) -> Path:
        torch.save(value, tmp_path / "file.pt", _use_new_zipfile_serialization=FORMATS[request.param])
        return tmp_path / "file.pt"

    return save


DTYPES = {
    "float64": np.float64, "float32": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32,
    "int16": np.int16, "int8": np.int8, "uint8": np.uint8, "bool": np.bool_, "complex64": np.complex64,
    "complex128": np.complex128,
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_every_dtype(torch: Any, saved: Callable[[Any], Path], dtype: str) -> None:
    tensor = (torch.arange(-4, 8).reshape(3, 4) * 1.5).to(getattr(torch, dtype))
    read = nn.read_weights(saved({"x": tensor}))["x"]
    assert read.dtype == DTYPES[dtype]
    np.testing.assert_array_equal(read, tensor.numpy())


def test_every_bfloat16_is_read_as_it_is(torch: Any, saved: Callable[[Any], Path]) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).reshape(256, 256)
    read = nn.read_weights(saved({"x": every}))["x"]
    assert read.dtype == np.float32
    expected = every.view(torch.int16).numpy().view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(read.view(np.uint32), expected.view(np.uint32))


def test_tensors_of_every_form(torch: Any, saved: Callable[[Any], Path]) -> None:
    whole = torch.arange(24.0).reshape(2, 3, 4)
    forms = {
        "transposed": whole.permute(2, 0, 1),
        "offset": whole[1:, 1:, ::2],
        "diagonal": whole[0].diagonal(),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 3),
        "of an empty axis": whole[:, 3:],
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    read = nn.read_weights(saved(forms))
    assert list(read) == list(forms)
    for name, tensor in forms.items():
        assert read[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(read[name], tensor.detach().numpy())
    assert np.shares_memory(read["transposed"], read["offset"])  # as the tensors did
    read["transposed"][...] = 0  # arrays can be changed
    assert not read["offset"].any()


def test_all_of_a_checkpoint(torch: Any, saved: Callable[[Any], Path]) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    value = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "plain": [1, -(2**40), 2**80, 2.5, True, None, "ü", (1, (2,)), (), {3: 4, None: 5}],
        "size": torch.Size([2, 3]),
    }
    read = nn.read_pytorch(saved(value))
    assert (read["plain"], read["size"]) == (value["plain"], (2, 3))
    assert read["optimizer"]["param_groups"] == value["optimizer"]["param_groups"]
    for index, state in value["optimizer"]["state"].items():
        for name, tensor in state.items():
            np.testing.assert_array_equal(read["optimizer"]["state"][index][name], tensor.numpy())
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert ours.load_state_dict(read["model"]) == ([], [])
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name], tensor.numpy())


def test_weights_are_loaded_from_either_kind_of_file(torch: Any, saved: Callable[[Any], Path]) -> None:
    theirs, ours = torch.nn.Linear(3, 2), nn.Linear(3, 2)
    assert nn.load_weights(ours, saved(theirs.state_dict())) == ([], [])
    np.testing.assert_array_equal(ours.weight.data, theirs.weight.detach().numpy())


def test_what_is_no_state_dict_is_said(torch: Any, saved: Callable[[Any], Path]) -> None:
    path = saved({"model": {"x": torch.ones(2)}, "epoch": 3})
    refused(
        ValueError,
        (
            "read_weights: …file.pt holds a dict as 'model', expected a state dict…read_pytorch…",
            lambda: nn.read_weights(path),
        ),
    )
    path = saved([torch.ones(2)])
    refused(ValueError, ("read_weights: …holds a list, expected a state dict", lambda: nn.read_weights(path)))


def test_a_whole_module_is_not_run(torch: Any, saved: Callable[[Any], Path]) -> None:
    path = saved(torch.nn.Linear(3, 2))
    names = "…it names torch.nn.modules.linear.Linear, which is none of the types that are read; nothing was run"
    refused(ValueError, (f"read_pytorch: …file.pt{names}", lambda: nn.read_pytorch(path)))


# --- Files that PyTorch would not write -------------------------------------------------------------------------------


class Storage:
    """A storage, whose persistent id is what it was made with."""

    def __init__(self, *identity: Any) -> None:
        self.identity = identity


class Named:
    """A global of that name."""

    def __init__(self, name: str) -> None:
        self.name = name


class Call:
    """A call of a global."""

    def __init__(self, name: str, *arguments: Any) -> None:
        self.name, self.arguments = name, arguments


class Writer(pickle._Pickler):  # type: ignore[name-defined]
    """Pickles with names and calls of what need not exist here."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Named):
            module, _, name = obj.name.rpartition(".")
            self.write(b"c" + module.encode() + b"\n" + name.encode() + b"\n")
        elif isinstance(obj, Call):
            self.save(Named(obj.name))
            self.save(obj.arguments)
            self.write(b"R")
        elif isinstance(obj, Storage):
            self.save(obj.identity)
            self.write(b"Q")
        else:
            super().save(obj, save_persistent_id)


def pickled(value: Any) -> bytes:
    file = io.BytesIO()
    Writer(file, 2).dump(value)
    return file.getvalue()


def tensor(numel: Any = 4, offset: Any = 0, size: Any = (4,), stride: Any = (1,), key: Any = "0") -> Call:
    storage = Storage("storage", Named("torch.FloatStorage"), key, "cpu", numel)
    return Call("torch._utils._rebuild_tensor_v2", storage, offset, size, stride, False, None)


def zipped(path: Path, value: Any, storages: dict[str, bytes] | None = None, **options: Any) -> Path:
    data = value if isinstance(value, bytes) else pickled(value)
    with zipfile.ZipFile(path / "file.pt", "w", **options) as archive:
        archive.writestr("archive/data.pkl", data)
        for key, numbers in (storages if storages is not None else {"0": bytes(16)}).items():
            archive.writestr(f"archive/data/{key}", numbers)
    return path / "file.pt"


def legacy(path: Path, value: Any, storages: list[tuple[str, int, bytes]], keys: Any = None) -> Path:
    facts = {"protocol_version": 1001, "little_endian": True}
    listed = [key for key, _, _ in storages] if keys is None else keys
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), *map(pickled, (1001, facts, value, listed))]
    parts += [struct.pack("<q", numel) + data for _, numel, data in storages]
    (path / "file.pt").write_bytes(b"".join(parts))
    return path / "file.pt"


def test_written_by_hand(tmp_path: Path) -> None:
    numbers = np.arange(4, dtype="<f4")
    path = zipped(tmp_path, {"x": tensor()}, {"0": numbers.tobytes()})
    np.testing.assert_array_equal(nn.read_weights(path)["x"], numbers)
    path = legacy(tmp_path, {"x": tensor()}, [("0", 4, numbers.tobytes())])
    np.testing.assert_array_equal(nn.read_weights(path)["x"], numbers)


TOO_LARGE = "a tensor of shape …is larger than its storage of 4"
WRONG: dict[str, tuple[str, Any]] = {
    "code": ("it names posix.system, which is none of the types…nothing was run", Call("posix.system", "exit 3")),
    "a builtin": ("it names builtins.eval, which…", Call("builtins.eval", "1")),
    "a function of PyTorch": ("it names torch.load, which…", Call("torch.load", "x")),
    "a call of a storage": ("it calls what is no function", Call("torch.FloatStorage", 3)),
    "past the end": (TOO_LARGE, tensor(size=(5,))),
    "an offset past the end": (TOO_LARGE, tensor(offset=1)),
    "an offset of an empty one": (TOO_LARGE, tensor(offset=5, size=(0,))),
    "a stride past the end": (TOO_LARGE, tensor(stride=(2,))),
    "repeated numbers": (TOO_LARGE, tensor(size=(1 << 39, 1 << 39), stride=(0, 0))),
    "a negative stride": ("a size is no number, or out of range", tensor(stride=(-1,))),
    "a negative offset": ("a size is no number, or out of range", tensor(offset=-1)),
    "a size of 2**70": ("a size is no number, or out of range", tensor(size=(2**70,))),
    "a size of text": ("a size is no number, or out of range", tensor(size=("4",))),
    "strides of another length": ("a tensor has as many strides as axes…", tensor(stride=())),
    "sixty axes": ("a tensor has as many strides as axes, and at most 32…", tensor(size=(1,) * 60, stride=(1,) * 60)),
    "sizes that are none": ("a shape is no tuple of numbers", tensor(size=4)),
    "a larger storage": ("a storage of 1000000000000 float32 has 16 bytes", tensor(numel=10**12)),
    "a missing storage": ("it has no part archive/data/1", tensor(key="1")),
    "a path": ("it has no part archive/data/../../secret", tensor(key="../../secret")),
    "a key that is none": ("it has a storage of a form that is not read", tensor(key=0)),
    "a type that is none": (
        "it has a storage of a form that is not read",
        Storage("storage", ("object", 8), "0", "cpu", 2),
    ),
    "another reference": ("it refers to something else than a storage", Storage("module", 1)),
    "one storage of two types": (
        "two tensors name one storage with other types",
        [tensor(), Storage("storage", Named("torch.IntStorage"), "0", "cpu", 4)],
    ),
    "no storage": ("a tensor has no storage", Call("torch._utils._rebuild_tensor_v2", "x", 0, (1,), (1,), False, None)),
    "too few arguments": ("it is damaged: …argument…", Call("torch._utils._rebuild_tensor_v2")),
    "pairs of a dict": ("it makes an ordered dict of pairs…", Call("collections.OrderedDict", [("a", 1)])),
    "a set": ("it names __builtin__.set, which…", {1}),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_said(name: str, tmp_path: Path) -> None:
    message, value = WRONG[name]
    path = zipped(tmp_path, value)
    refused(
        ValueError,
        (f"read_pytorch: …file.pt is no readable file of torch.save: {message}", lambda: nn.read_pytorch(path)),
    )


def nested(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


PICKLES: dict[str, tuple[str, bytes]] = {
    "no end": ("it is damaged: …", b"\x80\x02]"),
    "an unknown opcode": ("it is damaged: …", b"\x80\x02\xff."),
    "an empty stack": ("it is damaged: its stack is empty", b"\x80\x02\x85."),
    "below a mark": ("it is damaged: its stack is empty", b"\x80\x02](\x85."),
    "two values": ("it is damaged: it does not end with one value", b"\x80\x02]]."),
    "no mark": ("it is damaged: …", b"\x80\x02]e."),
    "no memo": ("it is damaged: …", b"\x80\x02h\x05."),
    "odd pairs": ("it is damaged: …", b"\x80\x02}(K\x01u."),
    "an item of a number": ("it is damaged: it changes a int like a list", b"\x80\x02K\x01K\x02a."),
    "a key that is a tuple": ("a key of a dict is no string or number", b"\x80\x02})K\x01s."),
    "a class": ("it holds NEWOBJ, which plain values do not need", b"\x80\x02])\x81."),
    "an instance": ("it holds INST, which…", b"(ios\nsystem\n."),
    "an extension": ("it holds EXT1, which…", b"\x80\x02\x82\x01."),
    "attributes of a number": ("it is damaged: it changes a int like a dict", b"\x80\x02K\x01}b."),
    "a long string": ("it is damaged: …", b"\x80\x04\x8d" + b"\xff" * 7 + b"\x00x."),
}


@pytest.mark.parametrize("name", PICKLES)
def test_damaged_pickles_are_said(name: str, tmp_path: Path) -> None:
    message, data = PICKLES[name]
    path = zipped(tmp_path, data)
    refused(ValueError, (f"…is no readable file of torch.save: {message}", lambda: nn.read_pytorch(path)))


def test_a_deep_pickle_is_read_or_refused_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(nn.read_pytorch(zipped(tmp_path, nested(100_000))), list)
    monkeypatch.setattr(_pickled, "MOST_STEPS", 1000)
    refused(ValueError, ("…it has more than 1000 steps", lambda: nn.read_pytorch(zipped(tmp_path, nested(1000)))))


def test_a_memo_of_a_far_place_takes_no_memory(tmp_path: Path) -> None:
    assert nn.read_pytorch(zipped(tmp_path, b"\x80\x02]r\xff\xff\xff\xff.")) == []


def test_archives_that_do_not_fit(tmp_path: Path) -> None:
    def refuse(message: str, path: Path) -> None:
        refused(ValueError, (f"…is no readable file of torch.save: {message}", lambda: nn.read_pytorch(path)))

    refuse("a part of it is compressed…", zipped(tmp_path, {}, {"0": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(tmp_path / "file.pt", "w") as archive:
        archive.writestr("archive/other", b"")
    refuse("it has 0 parts named data.pkl, expected 1", tmp_path / "file.pt")
    with zipfile.ZipFile(tmp_path / "file.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickled({}))
        archive.writestr("archive/byteorder", b"big")
    refuse("it is of a machine with big-endian numbers", tmp_path / "file.pt")
    whole = zipped(tmp_path, {"x": tensor()}).read_bytes()
    for length in range(4, len(whole)):
        (tmp_path / "file.pt").write_bytes(whole[:length])
        refuse("…", tmp_path / "file.pt")
    (tmp_path / "file.pt").write_bytes(b"text")
    refuse("it begins like neither of its formats", tmp_path / "file.pt")


def test_legacy_files_that_do_not_fit(tmp_path: Path) -> None:
    numbers = bytes(16)
    for message, storages, keys in (
        ("a storage is missing", [], None),
        ("its storages are not those that its tensors name", [("0", 5, bytes(20))], None),
        ("its storages are not those that its tensors name", [("1", 4, numbers)], None),
        ("its storages are not those that its tensors name", [("0", 4, numbers), ("0", 4, numbers)], None),
        ("a storage of 4 float32 has 15 bytes", [("0", 4, numbers[:-1])], None),
        ("it has no list of its storages", [("0", 4, numbers)], "0"),
    ):
        path = legacy(tmp_path, {"x": tensor()}, storages, keys)
        with pytest.raises(ValueError, match=saying(f"read_pytorch: …{message}")):
            nn.read_pytorch(path)


def test_pytorch_is_not_imported(tmp_path: Path) -> None:
    path = zipped(tmp_path, {"x": tensor()})
    code = f"import sys; from gpucnn import nn; nn.read_weights({str(path)!r}); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert ran.stdout == "False\n"
