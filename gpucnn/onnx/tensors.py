"""Arrays as a model file holds them: raw bytes, lists of numbers, or a part of another file beside it."""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.installing import optional
from gpucnn.onnx.errors import ModelError, UnsupportedError

__all__ = ["Folder", "dtype_of", "read_tensor"]

Array = Any

_NUMPY = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128",
}  # fmt: skip
_EXTENDED = {
    16: "bfloat16", 17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4",
    22: "int4", 23: "float4_e2m1fn", 25: "uint2", 26: "int2",
}  # fmt: skip
"""Dtypes by TensorProto's numbers: NumPy's, and those of ml_dtypes."""
_BITS = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}  # of dtypes of which several share a byte
_STRING = 8
_FIELDS = {"float32": "float_data", "complex64": "float_data", "float64": "double_data", "complex128": "double_data",
           "int64": "int64_data", "uint32": "uint64_data", "uint64": "uint64_data"}  # fmt: skip
_EXTERNAL = 1
MOST_DIMENSIONS = 64  # NumPy's limit


class Folder:
    """The folder of a model's file: what is read from its files is read once, however many arrays share it."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._parts: dict[tuple[Path, int, int], bytes] = {}

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """Bytes of a file."""
        if (path, offset, length) not in self._parts:
            with path.open("rb") as file:
                file.seek(offset)
                self._parts[path, offset, length] = file.read(length)
        return self._parts[path, offset, length]


def dtype_of(number: int) -> np.dtype[Any]:
    """The dtype that a model file gives by number.

    Raises
    ------
    ModelError
        There is none of that number, or it is that of strings.
    """
    if number in _NUMPY:
        return np.dtype(_NUMPY[number])
    if number in _EXTENDED:
        types = optional("gpucnn.onnx", "ml_dtypes", "onnx")
        if hasattr(types, _EXTENDED[number]):
            dtype: np.dtype[Any] = np.dtype(getattr(types, _EXTENDED[number]))
            return dtype
    raise UnsupportedError("strings are not supported" if number == _STRING else f"dtype {number} is not supported")


def read_tensor(tensor: Any, folder: Folder | None) -> Array:
    """The array of a TensorProto.

    Parameters
    ----------
    tensor : onnx.TensorProto
    folder : Folder, optional
        That of the model's file, which external data may not leave.

    Raises
    ------
    ModelError
        Its shape does not fit its bytes, its dtype is not supported, or its data lie elsewhere.
    """
    name = f"tensor {tensor.name!r}"
    try:
        dtype = dtype_of(tensor.data_type)
    except ModelError as error:
        raise type(error)(f"{name}: {error}") from None
    shape = tuple(tensor.dims)
    if min(shape, default=0) < 0 or len(shape) > MOST_DIMENSIONS:
        raise ModelError(f"{name}: shape is {shape}, expected up to {MOST_DIMENSIONS} sizes of at least 0")
    count = prod(shape)
    expected = -(-count * _BITS.get(tensor.data_type, 8 * dtype.itemsize) // 8)
    if tensor.HasField("segment"):
        raise ModelError(f"{name}: is a segment of a larger one, which is not supported")
    if tensor.data_location == _EXTERNAL:
        raw = _external(name, tensor, folder, expected)
    elif tensor.HasField("raw_data"):
        raw = tensor.raw_data
    else:
        return _from_fields(name, tensor, dtype, shape)
    if len(raw) != expected:
        raise ModelError(f"{name}: has {len(raw)} bytes, expected {expected} for shape {shape} of {dtype.name}")
    if tensor.data_type in _BITS:
        return _unpacked(np.frombuffer(raw, np.uint8), _BITS[tensor.data_type], count).view(dtype).reshape(shape)
    array = np.frombuffer(raw, dtype.newbyteorder("<") if dtype.kind != "V" else dtype, count)
    if dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise ModelError(f"{name}: holds bytes other than 0 and 1, expected bools")
    return array.astype(dtype, copy=sys.byteorder == "big").reshape(shape)


def _from_fields(name: str, tensor: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """The array of numbers that the protocol buffer holds one by one."""
    values = getattr(tensor, _FIELDS.get(dtype.name, "int32_data"))
    parts = 2 if dtype.kind == "c" else 1
    bits = _BITS.get(tensor.data_type)
    count = prod(shape)
    expected = -(-count * bits // 8) if bits else count * parts
    if len(values) != expected:
        raise ModelError(f"{name}: has {len(values)} numbers, expected {expected} for shape {shape}")
    if dtype.kind == "c":
        pairs = np.array(values, np.float32 if dtype.itemsize == 8 else np.float64)
        return pairs.view(dtype).reshape(shape)
    if bits:
        return _unpacked(np.array(values, np.int64).astype(np.uint8), bits, count).view(dtype).reshape(shape)
    if tensor.data_type == 10 or tensor.data_type in _EXTENDED:  # the bits of small floats, as integers
        return np.array(values, np.int64).astype(f"u{dtype.itemsize}").view(dtype).reshape(shape)
    wide = np.array(values, np.float64 if dtype.kind == "f" else np.uint64 if dtype.kind == "u" else np.int64)
    return wide.astype(dtype).reshape(shape)


def _unpacked(packed: Any, bits: int, count: int) -> Any:
    """One byte for each of `count` numbers of fewer bits, the low ones first, signed where the dtype reads it so."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[:, None] >> shifts) & np.uint8(2**bits - 1)).ravel()[:count]


def _external(name: str, tensor: Any, folder: Folder | None, expected: int) -> bytes:
    """The bytes of a tensor in another file."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    location = where.get("location", "")
    if folder is None:
        raise ModelError(f"{name}: its data are in the file {location!r}, expected a model given by its path")
    root = folder.path
    is_text = isinstance(location, str)  # of bytes that are no text protobuf gives bytes
    if not is_text or not location or "\0" in location or Path(location).is_absolute():
        raise ModelError(f"{name}: its data are at {location!r}, expected a file beside the model")
    try:
        path = (root / location).resolve()  # what links lead to, too
        is_file = path.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
        raise ModelError(f"{name}: its data are at {location[:80]!r}, which is no file: {error.args[-1]}") from None
    if not path.is_relative_to(root):
        raise ModelError(f"{name}: its data are at {location!r}, outside the folder of the model")
    if not is_file:
        raise ModelError(f"{name}: there is no file {location!r} beside the model")
    try:
        offset, length = int(where.get("offset", 0)), int(where.get("length", expected))
    except ValueError:
        raise ModelError(f"{name}: offset or length of its data is no number: {where}") from None
    size = path.stat().st_size
    if length != expected or not 0 <= offset <= size - length:
        raise ModelError(
            f"{name}: its data are {length} bytes at {offset} of {location!r}, which has {size}, expected {expected}"
        )
    return folder.read(path, offset, length)
