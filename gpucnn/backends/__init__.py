"""Where operations run: one backend for each kind of array, found by the arrays' type.

Nothing is imported here that the caller did not bring: a kind of array is told by the module of its type.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from gpucnn import __version__
from gpucnn.backends.base import Backend

__all__ = ["Backend", "available", "backend_of", "receive"]

_CPU = (1, 3)  # DLPack's kDLCPU and kDLCUDAHost: memory that NumPy can read


@cache
def _numpy_backend() -> Backend:
    from gpucnn.backends.numpy import NumpyBackend

    return NumpyBackend()


def available() -> dict[str, str]:
    """Each backend's name and "available", or one sentence that says why it is not.

    Examples
    --------
    >>> available()["numpy"]
    'available'
    """
    return {
        "numpy": "available",
        "cuda": f"not available: gpucnn {__version__} has no CUDA kernels yet, it computes on the CPU",
    }


def kind_of(array: Any) -> str:
    """The library that an array belongs to: ``"numpy"``, ``"cupy"``, ``"torch"``, …"""
    if isinstance(array, np.ndarray):
        return "numpy"
    roots = [ancestor.__module__.partition(".")[0] for ancestor in type(array).__mro__]
    # of a subclass's ancestors the one whose library takes arrays in, as a library of arrays does
    return next((root for root in roots if hasattr(sys.modules.get(root), "from_dlpack")), roots[0])


def backend_of(*arrays: Any) -> Backend:
    """The backend that computes on `arrays`.

    Parameters
    ----------
    arrays : array or None
        Arrays of one kind; None stands for one that was left out.

    Returns
    -------
    Backend

    Raises
    ------
    TypeError
        An argument is no array, arrays are of two kinds, or no backend computes on their kind.

    Examples
    --------
    >>> backend_of(np.ones(3)).name
    'numpy'
    """
    return receive("backend_of", {f"array {i}": array for i, array in enumerate(arrays)})[0]


def receive(op: str, arrays: Mapping[str, Any]) -> tuple[Backend, list[Any], Callable[[Any], Any]]:
    """The backend for named arrays, the arrays as that backend's own, and the way back for its results.

    Arrays of other libraries are taken through DLPack, without a copy, and results return as the same kind.

    Raises
    ------
    TypeError
        As `backend_of`, naming `op` and the argument.
    """
    if all(type(array) is np.ndarray or array is None for array in arrays.values()):
        return _numpy_backend(), list(arrays.values()), _unchanged
    given = {name: array for name, array in arrays.items() if array is not None}
    kinds: dict[str, str] = {}
    for name, array in given.items():
        _require_array(op, name, array)
        kinds.setdefault(kind_of(array), name)
    if len(kinds) > 1:
        named = " and ".join(f"{name} of {kind}" for kind, name in kinds.items())
        raise TypeError(f"{op}: got arrays of two libraries, {named}; expected one, nothing is copied between them")
    (kind,) = kinds
    natives = [None if array is None else _as_numpy(op, name, array) for name, array in arrays.items()]
    return _numpy_backend(), natives, _unchanged if kind == "numpy" else _returner(op, kind, next(iter(given.values())))


def _unchanged(result: Any) -> Any:
    return result


def _require_array(op: str, name: str, array: Any) -> None:
    typename = f"{type(array).__module__}.{type(array).__qualname__}".removeprefix("builtins.")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{op}: {name} is a masked array, whose mask would be lost; expected array.filled(value)")
    shares = all(hasattr(array, attribute) for attribute in ("__dlpack__", "__dlpack_device__", "ndim"))
    if not isinstance(array, np.ndarray) and (not shares or isinstance(array, type)):
        raise TypeError(f"{op}: {name} is of type {typename}, expected an array")


def _as_numpy(op: str, name: str, array: Any) -> np.ndarray[Any, Any]:
    if isinstance(array, np.ndarray):
        return np.asarray(array)
    is_negated = getattr(array, "is_neg", None)
    if is_negated is not None and is_negated():  # PyTorch would share the memory without the minus that it still owes
        raise TypeError(f"{op}: {name} of {kind_of(array)} is a negated view, expected tensor.resolve_neg()")
    try:
        device, _ = array.__dlpack_device__()
        if device in _CPU:
            return np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"{op}: {name} of {kind_of(array)} has dtype {getattr(array, 'dtype', 'unknown')}, "
            f"expected an array that DLPack can share: {error}"
        ) from None
    raise TypeError(
        f"{op}: {name} of {kind_of(array)} is on another device, "
        "expected CPU memory: this version of gpucnn computes on the CPU only"
    )


def _returner(op: str, kind: str, example: Any) -> Callable[[Any], Any]:
    """What turns a NumPy result, or a tuple of them, into arrays of the library that `example` came from."""
    namespace = getattr(example, "__array_namespace__", lambda: sys.modules.get(kind))()
    from_dlpack = getattr(namespace, "from_dlpack", None)
    if from_dlpack is None:
        raise TypeError(f"{op}: got arrays of {kind}, expected a library with from_dlpack to return results by")

    def give_back(result: Any) -> Any:
        if isinstance(result, tuple):
            return tuple(give_back(item) for item in result)
        return from_dlpack(result) if isinstance(result, np.ndarray) else result

    return give_back
