"""Files of ``torch.save``, read without PyTorch and without running anything in them."""

from __future__ import annotations

import math
import os
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpucnn.nn._pickled import PickleError, unpickled

__all__ = ["read_pytorch"]

Host = np.ndarray[Any, Any]

ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of the number that such a file begins with
_VERSION = 1001
# What a damaged file provokes: PickleError, those that zipfile documents, and those that it leaves to the reader
_DAMAGES = (
    ValueError,
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    struct.error,
)
_LONGEST = 1 << 40  # of an axis

# Names of storages; bfloat16, which NumPy lacks, is read as float32
_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}  # fmt: skip


class _Kind(NamedTuple):
    """A type of storages: the dtype of their numbers, and the bytes of one."""

    dtype: str
    itemsize: int


class _Storage(NamedTuple):
    """A row of numbers in a file: its key, their type, and how many there are."""

    key: str
    kind: _Kind
    numel: int


def is_pytorch(data: bytes) -> bool:
    """Whether data are those of a file of ``torch.save``."""
    return data.startswith((ZIP, LEGACY))


def read_pytorch(path: str | os.PathLike[str]) -> Any:
    """The value that ``torch.save`` wrote to a .pth or .pt file, its tensors as NumPy arrays.

    Parameters
    ----------
    path : str or path
        The file, of the format since PyTorch 1.6 (zip) or of the one before.

    Returns
    -------
    dict, list, tuple, str, number, bool, None or numpy array
        bfloat16, which NumPy lacks, as float32 of the same values. Arrays of tensors that share memory share theirs.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is none, is damaged, or holds something else than dicts, lists, tuples, strings, numbers and tensors, such as
        a whole module. Its code is not run in any case.

    See Also
    --------
    load_weights, read_weights : for a state dict, which these read from such files too

    Notes
    -----
    A pickle may name any function to call. Here it can name ordered dicts, tensors and their storages, and each tensor
    must lie within its storage, and each storage within the file. PyTorch is not needed.
    """
    return parsed("read_pytorch", path, Path(path).read_bytes())


def parsed(op: str, path: str | os.PathLike[str], data: bytes) -> Any:
    """The value of a file's data."""
    try:
        if data.startswith(ZIP):
            return _from_zip(data)
        if data.startswith(LEGACY):
            return _from_legacy(data)
        raise PickleError("it begins like neither of its formats")
    except _DAMAGES as error:
        raise ValueError(f"{op}: {os.fspath(path)} is no readable file of torch.save: {error}") from None


# --- The two formats --------------------------------------------------------------------------------------------------


def _from_zip(data: bytes) -> Any:
    """A zip file of ``data.pkl`` and of a file for each storage, none of them compressed."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise PickleError("a part of it is compressed, which torch.save never does")
        if sum(member.file_size for member in members.values()) > len(data):
            raise PickleError("its parts are larger than itself")
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise PickleError(f"it has {len(pickles)} parts named data.pkl, expected 1")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise PickleError("it is of a machine with big-endian numbers")

        def stored(storage: _Storage) -> bytes:
            name = f"{folder}data/{storage.key}"
            if name not in members:
                raise PickleError(f"it has no part {name[:100]}")
            return archive.read(name)

        return _with_arrays(BytesIO(archive.read(pickles[0])), stored)


def _from_legacy(data: bytes) -> Any:
    """Pickles of a number, a version, facts about the machine, the value and the storages' keys; then the storages."""
    file = BytesIO(data)
    _, version, machine = (unpickled(file, {}, {}, None) for _ in range(3))
    if version != _VERSION or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise PickleError("it is of another version, or of a machine with big-endian numbers")
    begin = file.tell()
    storages: dict[str, _Storage] = {}
    _with_arrays(file, None, storages)
    parts: dict[str, bytes] = {}
    for key in _keys(unpickled(file, {}, {}, None)):
        size = int.from_bytes(file.read(8), "little")
        storage = storages.get(key)
        if storage is None or key in parts or storage.numel != size:
            raise PickleError("its storages are not those that its tensors name")
        parts[key] = file.read(size * storage.kind.itemsize)
    if parts.keys() != storages.keys():
        raise PickleError("a storage is missing")
    file.seek(begin)
    return _with_arrays(file, lambda storage: parts[storage.key])


def _keys(value: Any) -> Iterable[str]:
    if not isinstance(value, list) or not all(isinstance(key, str) for key in value):
        raise PickleError("it has no list of its storages")
    return value


# --- Tensors ----------------------------------------------------------------------------------------------------------


def _with_arrays(
    file: BytesIO, stored: Callable[[_Storage], bytes] | None, seen: dict[str, _Storage] | None = None
) -> Any:
    """The value of a pickle of ``torch.save``, with arrays of the bytes that `stored` gives for each storage.

    Where that is None, arrays are None, and the storages are put into `seen`.
    """
    arrays: dict[str, tuple[_Storage, Host | None]] = {}

    def storage(identity: Any) -> Host | None:
        found = _storage(identity)
        if found.key not in arrays:
            arrays[found.key] = found, None if stored is None else _numbers(found, stored(found))
        if arrays[found.key][0] != found:
            raise PickleError("two tensors name one storage with other types")
        return arrays[found.key][1]

    functions: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": lambda pairs=(): _pairs(pairs),
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": lambda data, *others: data,
        "torch.Size": lambda sizes=(): _sizes(sizes),
    }
    constants = {f"torch.{name}Storage": _Kind(dtype, _itemsize(dtype)) for name, dtype in _STORAGES.items()}
    value = unpickled(file, functions, constants, storage)
    if seen is not None:
        seen.update({key: found for key, (found, _) in arrays.items()})
    return value


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _pairs(pairs: Any) -> dict[Any, Any]:
    if len(pairs):
        raise PickleError("it makes an ordered dict of pairs, expected one that is filled afterwards")
    return {}


def _storage(identity: Any) -> _Storage:
    """The storage that a persistent id names: ("storage", its type, key, device, number of elements, None)."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise PickleError("it refers to something else than a storage")
    _, kind, key, _, numel, *view = identity
    if not isinstance(kind, _Kind) or not isinstance(key, str) or view not in ([], [None]):
        raise PickleError("it has a storage of a form that is not read")
    return _Storage(key, kind, _size(numel))


def _numbers(storage: _Storage, data: bytes) -> Host:
    """The numbers of a storage, which may be changed."""
    dtype, itemsize = storage.kind
    if len(data) != storage.numel * itemsize:
        raise PickleError(f"a storage of {storage.numel} {dtype} has {len(data)} bytes")
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    numbers: Host = np.frombuffer(bytearray(data), np.dtype(dtype).newbyteorder("<"))
    return numbers.astype(dtype, copy=sys.byteorder != "little")


def _tensor(storage: Host | None, offset: Any, size: Any, stride: Any, *others: Any) -> Host | None:
    """A tensor: a view of its storage."""
    first, sizes, strides = _size(offset), _sizes(size), _sizes(stride)
    if len(sizes) != len(strides) or len(sizes) > 32:
        raise PickleError("a tensor has as many strides as axes, and at most 32 of them")
    if storage is None:
        return None
    if not isinstance(storage, np.ndarray):
        raise PickleError("a tensor has no storage")
    count = math.prod(sizes)
    last = first + sum((length - 1) * step for length, step in zip(sizes, strides, strict=True))
    if count > storage.size or first > storage.size or (count and last >= storage.size):
        raise PickleError(f"a tensor of shape {sizes} is larger than its storage of {storage.size}")
    steps = [step * storage.itemsize for step in strides] if count else None
    return np.ndarray(sizes, storage.dtype, storage[first:].data, strides=steps)


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > 64:
        raise PickleError("a shape is no tuple of numbers")
    return tuple(map(_size, values))


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LONGEST:
        raise PickleError("a size is no number, or out of range")
    return value
