"""Weights and whole training runs in safetensors files, written so that a kill at any moment leaves an intact one.

Weights are read from PyTorch's .pth files too.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.installing import optional
from gpucnn.nn._chain import expect_module
from gpucnn.nn._loading import Host, to_host
from gpucnn.nn.module import LoadResult, Module
from gpucnn.nn.pytorch_files import is_pytorch, parsed

__all__ = ["load_checkpoint", "load_weights", "read_weights", "save_checkpoint", "save_weights"]

File = str | os.PathLike[str]

CHECKPOINT = "gpucnn_checkpoint"  # the key of the metadata that holds everything but the arrays
ARRAY = "$array"  # replaces an array in it, with its name in the file
PAIRS = "$dict"  # replaces a dict that JSON cannot hold as it is, with its pairs of key and value

# Names of dtypes in a file. bfloat16, which NumPy lacks, is read as float32: its upper half is the very number.
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
_NAMES = {*_DTYPES.values(), "bfloat16"}

# --- Weights ------------------------------------------------------------------------------------------------------


def save_weights(model: Module, path: File) -> None:
    """Write a model's state to a safetensors file, under PyTorch's names.

    Parameters
    ----------
    model : Module
        Its parameters and buffers are written, in their dtypes.
    path : str or path
        The file. It is replaced in one step: whoever reads it meanwhile has the old one or the new one, whole.

    Raises
    ------
    ModuleNotFoundError
        The package safetensors is not installed.
    TypeError
        safetensors does not have a dtype.

    See Also
    --------
    load_weights

    Notes
    -----
    PyTorch reads it by ``model.load_state_dict(safetensors.torch.load_file(path))``. While being written, it is next to
    `path` with the ending ``.partial``; a kill can leave that file, and the next write replaces it.

    Examples
    --------
    >>> import tempfile
    >>> from gpucnn import nn
    >>> layer = nn.Module()
    >>> layer.weight = nn.Parameter(np.ones((2, 3), np.float32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_weights(layer, f"{folder}/layer.safetensors")
    ...     print(read_weights(f"{folder}/layer.safetensors"))
    {'weight': array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)}
    """
    expect_module("save_weights", model)
    _write("save_weights", path, {name: to_host(array) for name, array in model.state_dict().items()}, {"format": "pt"})


def load_weights(model: Module, path: File, strict: bool = True) -> LoadResult:
    """Copy the weights in a file, such as a PyTorch network's, into a model's parameters and buffers.

    Parameters
    ----------
    model : Module
        The model to load into, in its dtypes and on its device.
    path : str or path
        A safetensors file, or a state dict in a .pth file, as for `read_weights`.
    strict : bool
        Whether a missing or unexpected name is an error.

    Returns
    -------
    LoadResult
        The names missing and unexpected.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    KeyError
        `strict`, and names are missing or unexpected; nothing was changed.
    ModuleNotFoundError
        It is a safetensors file, and the package safetensors is not installed.
    ValueError
        It is not an intact file of these, or a shape is another one; nothing was changed.

    See Also
    --------
    read_weights : to leave out or rename some before `Module.load_state_dict`
    """
    expect_module("load_weights", model)
    return model.load_state_dict(_weights("load_weights", path), strict)


def read_weights(path: File) -> dict[str, Host]:
    """The arrays of a file of weights by name.

    Parameters
    ----------
    path : str or path
        A safetensors file, or a state dict that ``torch.save`` wrote (.pth, .pt), of which nothing is run.

    Returns
    -------
    dict of str to numpy array
        bfloat16, which NumPy lacks, as float32 of the same values.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ModuleNotFoundError
        It is a safetensors file, and the package safetensors is not installed.
    ValueError
        It is not an intact file of these, has a dtype that NumPy lacks, or holds more than a state dict.

    See Also
    --------
    read_pytorch : for a file of ``torch.save`` that holds more
    """
    return _weights("read_weights", path)


def _weights(op: str, path: File) -> dict[str, Host]:
    """The arrays of a file of either kind."""
    data = Path(path).read_bytes()
    if not is_pytorch(data):
        return _parsed(op, path, data)[0]
    value = parsed(op, path, data)
    if not isinstance(value, dict):
        raise ValueError(f"{op}: {os.fspath(path)} holds a {type(value).__name__}, expected a state dict")
    for name, array in value.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(
                f"{op}: {os.fspath(path)} holds a {type(array).__name__} as {name!r:.100}, expected a state dict of "
                "arrays; nn.read_pytorch(path) reads all of it, for Module.load_state_dict"
            )
    return {str(name): array for name, array in value.items()}


# --- Checkpoints --------------------------------------------------------------------------------------------------


def save_checkpoint(path: File, state: Mapping[str, Any]) -> None:
    """Write state dicts, or anything made of them, to one file.

    Parameters
    ----------
    path : str or path
        The file. It is replaced in one step: a kill at any moment leaves the old one or the new one, whole.
    state : dict
        Of dicts, lists, numbers, strings, None, and arrays of any backend, nested as they may be. The keys of dicts are
        strings, numbers, bools or None.

    Raises
    ------
    ModuleNotFoundError
        The package safetensors is not installed.
    TypeError
        It is not a dict, or holds something else.

    See Also
    --------
    load_checkpoint

    Notes
    -----
    It is a safetensors file: the arrays under names such as ``model/conv1.weight``, and all else as JSON in its
    metadata. Numbers come back bit for bit.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint(f"{folder}/run.safetensors", {"epoch": 3, "means": [np.zeros(2)]})
    ...     print(load_checkpoint(f"{folder}/run.safetensors"))
    {'epoch': 3, 'means': [array([0., 0.])]}
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"save_checkpoint: state is a {type(state).__name__}, expected a dict")
    arrays: dict[str, Host] = {}
    text = json.dumps(_without_arrays(state, "", arrays))
    _write("save_checkpoint", path, arrays, {CHECKPOINT: text})


def load_checkpoint(path: File) -> dict[str, Any]:
    """The value that `save_checkpoint` wrote, its arrays as NumPy's.

    Parameters
    ----------
    path : str or path
        The file.

    Returns
    -------
    dict
        As it was given, but tuples are lists, NumPy's numbers are Python's, and bfloat16 is float32 of the same values.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ModuleNotFoundError
        The package safetensors is not installed.
    ValueError
        It is not an intact safetensors file, or one that holds no checkpoint.
    """
    arrays, metadata = _read("load_checkpoint", path)
    if CHECKPOINT not in metadata:
        raise ValueError(f"load_checkpoint: {os.fspath(path)} holds weights, expected a file of save_checkpoint")
    try:
        state = _with_arrays(json.loads(metadata[CHECKPOINT]), arrays)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"load_checkpoint: {os.fspath(path)} holds a damaged checkpoint: {error!r}") from None
    if not isinstance(state, dict):
        raise ValueError(f"load_checkpoint: {os.fspath(path)} holds a {type(state).__name__}, expected a dict")
    return state


def _without_arrays(value: Any, name: str, arrays: dict[str, Host]) -> Any:
    """`value` for JSON, its arrays moved to `arrays`."""
    if isinstance(value, np.generic) and value.dtype.kind != "V":  # a bfloat16 is an array without axes
        value = value.item()
    if isinstance(value, Mapping):
        items = {key: _without_arrays(item, f"{name}/{key}", arrays) for key, item in value.items()}
        if all(isinstance(key, str) for key in items) and not {ARRAY, PAIRS} & set(items):
            return items
        return {PAIRS: [[_key(key, name), item] for key, item in items.items()]}
    if isinstance(value, list | tuple):
        return [_without_arrays(item, f"{name}/{index}", arrays) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if not hasattr(value, "dtype"):
        raise TypeError(
            f"save_checkpoint: {name.removeprefix('/')} is of type {type(value).__name__}, expected dicts, lists, "
            "numbers, strings, None and arrays"
        )
    own = name.removeprefix("/")
    while own in arrays:  # keys with a slash can make one name of two paths
        own += "'"
    arrays[own] = to_host(value)
    return {ARRAY: own}


def _key(key: Any, name: str) -> str | float | None:
    """A key of the dict `name` for JSON."""
    plain = key.item() if isinstance(key, np.generic) else key
    if not (plain is None or isinstance(plain, bool | int | float | str)):
        raise TypeError(
            f"save_checkpoint: {name.removeprefix('/') or 'state'} has the key {key!r}, "
            "expected strings, numbers, bools or None"
        )
    return plain


def _with_arrays(value: Any, arrays: Mapping[str, Host]) -> Any:
    if isinstance(value, dict):
        if set(value) == {ARRAY}:
            return arrays[value[ARRAY]]
        pairs = value[PAIRS] if set(value) == {PAIRS} else value.items()
        return {key: _with_arrays(item, arrays) for key, item in pairs}
    return [_with_arrays(item, arrays) for item in value] if isinstance(value, list) else value


# --- Files --------------------------------------------------------------------------------------------------------


def _safetensors(op: str) -> Any:
    optional(op, "safetensors.numpy", "train")
    return import_module("safetensors")


def _write(op: str, path: File, arrays: Mapping[str, Host], metadata: dict[str, str]) -> None:
    """Write next to `path`, wait until the file is on the disk, then rename it to `path`."""
    for name, array in arrays.items():
        if array.dtype.name not in _NAMES:
            raise TypeError(f"{op}: {name} has dtype {array.dtype}, expected one of {', '.join(sorted(_NAMES))}")
    library = _safetensors(op)
    target = Path(path)
    partial = target.with_name(f"{target.name}.partial")
    with partial.open("wb") as file:
        mode = os.fstat(file.fileno()).st_mode  # of any new file; safetensors lets none but the owner read its own
    library.numpy.save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, partial, metadata)
    partial.chmod(stat.S_IMODE(mode))
    with partial.open("r+b") as file:
        os.fsync(file.fileno())
    os.replace(partial, target)
    if os.name == "posix":  # the new name is on the disk when its folder is
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _read(op: str, path: File) -> tuple[dict[str, Host], dict[str, str]]:
    """The arrays and the metadata of a file."""
    return _parsed(op, path, Path(path).read_bytes())


def _parsed(op: str, path: File, data: bytes) -> tuple[dict[str, Host], dict[str, str]]:
    """The arrays and the metadata of a safetensors file's data."""
    library = _safetensors(op)
    try:
        entries = library.deserialize(data)
    except library.SafetensorError as error:
        raise ValueError(f"{op}: {os.fspath(path)} is no whole safetensors file: {error}") from None
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    arrays = {name: _array(op, name, entry) for name, entry in entries}
    return arrays, header.get("__metadata__") or {}


def _array(op: str, name: str, entry: Mapping[str, Any]) -> Host:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if dtype == "BF16":
        halves = np.frombuffer(entry["data"], "<u2").astype(np.uint32)
        return (halves << 16).view(np.float32).reshape(shape)
    if dtype not in _DTYPES:
        raise ValueError(f"{op}: {name} has dtype {dtype}, expected one of {', '.join([*_DTYPES, 'BF16'])}")
    raw = np.frombuffer(entry["data"], np.dtype(_DTYPES[dtype]).newbyteorder("<"))
    return raw.astype(_DTYPES[dtype], copy=False).reshape(shape)
