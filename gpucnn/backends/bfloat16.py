"""bfloat16 through NumPy's DLPack, which knows no such dtype: shared as 16-bit integers, under the other dtype's name.

The dtype of an array that is handed over stands in the structure that DLPack's capsule points to, and is only a label:
it is changed there, on the way in and on the way out. NumPy 2.5 can be taught the dtype, older ones cannot.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

Array = Any

_UNSIGNED, _BFLOAT = 1, 4  # DLPack's codes of kinds of dtypes: kDLUInt and kDLBfloat


class _Tensor(ctypes.Structure):
    """The beginning of DLPack's DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
    )


class _Versioned(ctypes.Structure):
    """The beginning of DLPack's DLManagedTensorVersioned; in the older structure the tensor comes first."""

    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_name_of = ctypes.pythonapi.PyCapsule_GetName
_name_of.restype, _name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class _Relabelled:
    """An array whose elements of 16 bits another library shall take for those of another kind."""

    def __init__(self, array: Array, code: int) -> None:
        self.array, self.code = array, code

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **named: Any) -> Any:
        capsule = self.array.__dlpack__(**named)
        name = _name_of(capsule)
        structure, address = _Versioned if name == b"dltensor_versioned" else _Tensor, _pointer_of(capsule, name)
        shared = structure.from_address(address)
        (shared.tensor if structure is _Versioned else shared).code = self.code
        return capsule


@cache
def dtype() -> np.dtype[Any] | None:
    """NumPy's bfloat16, which is that of ml_dtypes; None where that is not installed."""
    try:
        found: np.dtype[Any] = np.dtype(import_module("ml_dtypes").bfloat16)
    except ModuleNotFoundError:
        return None
    return found


def taken(array: Array) -> np.ndarray[Any, Any]:
    """NumPy's array over the memory of another library's bfloat16 array.

    Raises
    ------
    TypeError
        ml_dtypes is missing.
    """
    if dtype() is None:
        raise TypeError("bfloat16 needs the package ml_dtypes, or cast it to float32")
    return np.from_dlpack(_Relabelled(array, _UNSIGNED)).view(dtype())


def given(array: np.ndarray[Any, Any]) -> Any:
    """A bfloat16 array of NumPy's in a form that another library's `from_dlpack` takes without a copy."""
    return _Relabelled(array.view(np.uint16), _BFLOAT)
