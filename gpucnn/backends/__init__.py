"""Backends, one for each kind of array, found by the arrays' type.

Array libraries are not imported here unless the caller uses them: a kind of array is identified by the module of its
type. CuPy is imported for other libraries' arrays in GPU memory, and by `available`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import numpy as np

from gpucnn.backends import bfloat16
from gpucnn.backends.base import Backend, Epilogue
from gpucnn.backends.deferring import LIBRARIES, DeferredArraysError
from gpucnn.backends.replaying import REPLAYERS

__all__ = ["Backend", "Epilogue", "available", "backend", "backend_named", "backend_of", "cpu_state", "receive"]

_NUMPY_ONLY = frozenset({np.ndarray, type(None)})
_NATIVE: dict[type, Backend] = {}
"""The backends of CuPy's and the simulator's own arrays, once first used."""

_CPU = (1, 3)  # DLPack's kDLCPU and kDLCUDAHost: memory that NumPy can read
_CUDA = (2, 13)  # kDLCUDA and kDLCUDAManaged


_chosen: ContextVar[Backend | None] = ContextVar("gpucnn_cpu_backend", default=None)
CPU_CHOICES = ("auto", "compiled", "numpy")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Within the block, compute on NumPy arrays by one of the two CPU backends.

    Parameters
    ----------
    name : "compiled" or "numpy"
        Kernels in C++ for floating-point arrays, which the first use of a machine compiles; or NumPy alone.

    Raises
    ------
    ValueError
        There is no such CPU backend.
    RuntimeError
        The kernels cannot be compiled here; the message says why, and what to do.

    Notes
    -----
    Without a block the environment variable ``GPUCNN_CPU`` decides, once a process. Both compute the same; roundings
    differ.

    Examples
    --------
    >>> with backend("numpy"):
    ...     backend_of(np.ones(3)).name
    'numpy'
    """
    if name not in ("compiled", "numpy"):
        raise ValueError(f"backend: name is {name!r}, expected 'compiled' or 'numpy'")
    token = _chosen.set(backend_named(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen() -> str | None:
    """The name of the CPU backend of the open `backend` block, None outside of any."""
    backend = _chosen.get()
    return None if backend is None else backend.name


def _cpu_backend() -> Backend:
    """The backend of NumPy arrays: that of the open `backend` block, else the process's."""
    return _chosen.get() or _cpu_backend_of_process()


@cache
def _cpu_backend_of_process() -> Backend:
    """The backend that ``GPUCNN_CPU`` chooses, decided once: "numpy", "compiled", or "auto": compiled if that can be.

    Raises
    ------
    ValueError
        The variable is none of these.
    RuntimeError
        It is "compiled", and the kernels cannot be compiled here.
    """
    choice = _cpu_choice()
    if choice != "auto":
        return backend_named(choice)
    try:
        return backend_named("compiled")
    except RuntimeError as error:
        warnings.warn(
            f"gpucnn: NumPy computes on the CPU, slower than compiled kernels would: {error}. GPUCNN_CPU=numpy chooses "
            "NumPy without this warning",
            RuntimeWarning,
            stacklevel=2,
        )
        return backend_named("numpy")


def _cpu_choice() -> str:
    choice = os.environ.get("GPUCNN_CPU", "").strip() or "auto"
    if choice not in CPU_CHOICES:
        raise ValueError(f"GPUCNN_CPU is {choice!r}, expected one of {CPU_CHOICES}")
    return choice


def cpu_state() -> dict[str, str]:
    """The backend that computes on NumPy arrays in this process, why, and its builds; nothing is compiled for it.

    Raises
    ------
    ValueError
        ``GPUCNN_CPU`` is neither empty nor one of its values.
    """
    from gpucnn.backends.cpu import builds

    choice = _cpu_choice()
    if choice == "numpy":
        return {"backend": "numpy", "because": "GPUCNN_CPU is numpy"}
    reason = builds.why_unavailable()
    if reason:
        return {"backend": "numpy" if choice == "auto" else f"none, as GPUCNN_CPU is {choice}", "because": reason}
    because = "GPUCNN_CPU is compiled" if choice == "compiled" else "its kernels can be used here"
    return {"backend": "compiled", "because": because, **builds.state()}


@cache
def _numpy_backend() -> Backend:
    from gpucnn.backends.numpy import NumpyBackend

    return NumpyBackend()


@cache
def _compiled_backend() -> Backend:
    from gpucnn.backends.cpu import CompiledBackend, builds
    from gpucnn.backends.cpu.replays import CompiledReplays

    builds.load_all(dtypes=builds.FIRST)

    def serves() -> bool:
        return isinstance(_chosen.get() or _cpu_backend_of_process(), CompiledBackend)

    REPLAYERS[np.ndarray] = CompiledReplays(serves)
    return CompiledBackend()


@cache
def _simulator_backend() -> Backend:
    from gpucnn.backends.cuda.device.simulator_runtime import SimulatorRuntime

    return _with_replays(SimulatorRuntime())


@cache
def _cupy_backend() -> Backend:
    from gpucnn.backends.cuda.device.cupy_runtime import CupyRuntime, why_unavailable

    reason = why_unavailable()
    if reason:
        raise RuntimeError(reason)
    return _with_replays(CupyRuntime())


def _with_replays(runtime: Any) -> Backend:
    """The CUDA backend over `runtime`, with replays of recorded calls on its arrays."""
    from gpucnn.backends.cuda import CudaBackend
    from gpucnn.backends.cuda.launch.replays import DeviceReplays

    backend = _NATIVE[runtime.xp.ndarray] = CudaBackend(runtime)
    REPLAYERS[runtime.xp.ndarray] = DeviceReplays(runtime)
    return backend


def available() -> dict[str, str]:
    """Each backend's name and "available", or one sentence that says why it is not.

    Examples
    --------
    >>> available()["numpy"]
    'available'
    """
    from gpucnn import simulator
    from gpucnn.backends.cpu import builds
    from gpucnn.backends.cuda.device.cupy_runtime import why_unavailable

    states = {
        "numpy": "available",
        "compiled": builds.why_unavailable() or "available",
        "cuda": why_unavailable() or "available",
        "simulator": simulator.available(),
    }
    return {name: state if state == "available" else f"not available: {state}" for name, state in states.items()}


def backend_named(name: str) -> Backend:
    """The backend of one of the names that `available` lists.

    Raises
    ------
    ValueError
        There is no such backend.
    RuntimeError
        It cannot be used here; the message is a sentence that says why, and what to do.

    Examples
    --------
    >>> backend_named("numpy").name
    'numpy'
    """
    makers = {
        "numpy": _numpy_backend,
        "compiled": _compiled_backend,
        "cuda": _cupy_backend,
        "simulator": _simulator_backend,
    }
    if name not in makers:
        raise ValueError(f"backend_named: name is {name!r}, expected one of {tuple(makers)}")
    if name == "simulator":
        from gpucnn import simulator

        if simulator.available() != "available":
            raise RuntimeError(simulator.available())
    return makers[name]()


def kind_of(array: Any) -> str:
    """The library that an array belongs to: ``"numpy"``, ``"cupy"``, ``"simulator"``, ``"torch"``, …"""
    if isinstance(array, np.ndarray):
        return "numpy"
    if _is_simulated(array):
        return "simulator"
    roots = [ancestor.__module__.partition(".")[0] for ancestor in type(array).__mro__]
    # of a subclass's ancestors the one whose library takes arrays in, as a library of arrays does
    root = next((root for root in roots if hasattr(sys.modules.get(root), "from_dlpack")), roots[0])
    return "jax" if root == "jaxlib" else root


def _is_simulated(array: Any) -> bool:
    arrays = sys.modules.get("gpucnn.simulator.arrays")  # there as soon as there is such an array
    return arrays is not None and isinstance(array, arrays.Array)


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
    >>> backend_of(np.ones(3)).host
    True
    """
    return receive("backend_of", {f"array {i}": array for i, array in enumerate(arrays)})[0]


def receive(op: str, arrays: Mapping[str, Any]) -> tuple[Backend, list[Any], Callable[[Any], Any]]:
    """The backend for named arrays, the arrays as that backend's own, and the way back for its results.

    Arrays of other libraries are taken through DLPack, without a copy, and results return as the same kind.

    Raises
    ------
    DeferredArraysError
        An array is computed later.
    TypeError
        As `backend_of`, naming `op` and the argument.
    """
    if _NUMPY_ONLY.issuperset(map(type, arrays.values())):
        return _cpu_backend(), list(arrays.values()), _unchanged
    native = _native_backend(arrays)
    if native is not None:
        return native, list(arrays.values()), _unchanged
    given = {name: array for name, array in arrays.items() if array is not None}
    for name, array in given.items():
        if kind_of(array) in LIBRARIES:
            raise DeferredArraysError(op, kind_of(array), name)
    kinds: dict[str, str] = {}
    for name, array in given.items():
        _require_array(op, name, array)
        kinds.setdefault(kind_of(array), name)
    if len(kinds) > 1:
        named = " and ".join(f"{name} of {kind}" for kind, name in kinds.items())
        raise TypeError(
            f"{op}: got arrays of two libraries, {named}; expected one, nothing is copied between them{_bridge(kinds)}"
        )
    (kind,) = kinds
    if kind == "numpy":
        return _cpu_backend(), [None if array is None else np.asarray(array) for array in arrays.values()], _unchanged
    if kind == "simulator":
        return _simulator_backend(), list(arrays.values()), _unchanged
    if kind == "cupy":
        backend = _cuda_backend(op, *next(iter(given.items())))
        _expect_one_device(op, {name: array.device.id for name, array in given.items()})
        return backend, list(arrays.values()), _unchanged
    return _receive_shared(op, kind, arrays, given)


def _bridge(kinds: Mapping[str, str]) -> str:
    """The end of a message about arrays of two libraries: the expression that converts one; by kind a name."""
    own = next((kind for kind in ("numpy", "cupy") if kind in kinds), None)
    other = next((name for kind, name in kinds.items() if kind not in ("numpy", "cupy", "simulator")), None)
    return f"; {own}.from_dlpack({other}) is one of {own} over the same memory" if own and other else ""


def _native_backend(arrays: Mapping[str, Any]) -> Backend | None:
    """The backend of arrays that are all of one native type and on one device, where a cheap check shows it."""
    backend, devices = None, set()
    for array in arrays.values():
        if array is not None:
            found = _NATIVE.get(type(array))
            if found is None or found is not (backend or found):
                return None
            backend = found
            devices.add(array.data.device_id)
    return backend if len(devices) == 1 else None


def _receive_shared(
    op: str, kind: str, arrays: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[Backend, list[Any], Callable[[Any], Any]]:
    """As `receive`, for the arrays of another library, whose memory is NumPy's or CuPy's too."""
    devices = {name: _device_of(op, kind, name, array) for name, array in given.items()}
    first = next(iter(given))
    if devices[first] is None:
        backend, from_dlpack, native = _cpu_backend(), _from_dlpack, np.ndarray
    else:
        backend = _cuda_backend(op, first, given[first])
        from_dlpack, native = backend.xp.from_dlpack, backend.xp.ndarray
    _expect_one_device(op, devices)
    natives = [None if array is None else _shared(op, kind, name, array, from_dlpack) for name, array in arrays.items()]
    return backend, natives, _returner(op, kind, given[first], native)


def _from_dlpack(array: Any) -> Any:
    """NumPy's array over the memory of another library's."""
    is_bfloat16 = str(getattr(array, "dtype", "")).endswith("bfloat16")
    return bfloat16.taken(array) if is_bfloat16 else np.from_dlpack(array)


def _unchanged(result: Any) -> Any:
    return result


def _require_array(op: str, name: str, array: Any) -> None:
    typename = f"{type(array).__module__}.{type(array).__qualname__}".removeprefix("builtins.")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{op}: {name} is a masked array, whose mask would be lost; expected array.filled(value)")
    if isinstance(array, np.ndarray) or _is_simulated(array):
        return
    if typename.endswith("Tracer") and kind_of(array) == "jax":
        raise TypeError(
            f"{op}: {name} is traced by JAX and has no values yet, expected an array; the operations of gpucnn.jax are "
            "those for functions under jit, grad and vmap"
        )
    shares = all(hasattr(array, attribute) for attribute in ("__dlpack__", "__dlpack_device__", "ndim"))
    if not shares or isinstance(array, type):
        raise TypeError(f"{op}: {name} is of type {typename}, expected an array")


def _expect_one_device(op: str, devices: Mapping[str, int | None]) -> None:
    """Raise TypeError unless all arrays are on one device; None is the CPU."""
    if len(set(devices.values())) > 1:
        places = ", ".join(
            f"{name} {'in CPU memory' if device is None else f'on GPU {device}'}" for name, device in devices.items()
        )
        raise TypeError(f"{op}: got {places}; expected arrays on one device, nothing is copied between them")


def _device_of(op: str, kind: str, name: str, array: Any) -> int | None:
    """The GPU that an array of another library is on, or None for memory of the CPU."""
    if getattr(array, "requires_grad", False):
        raise TypeError(
            f"{op}: {name} of {kind} requires grad, expected tensor.detach(), as autograd does not see what is "
            "computed here; the operations of gpucnn.torch are those that it follows"
        )
    is_negated = getattr(array, "is_neg", None)
    if is_negated is not None and is_negated():  # PyTorch would share the memory without the pending negation
        raise TypeError(f"{op}: {name} of {kind} is a negated view, expected tensor.resolve_neg()")
    with _sharing(op, kind, name, array):
        device, index = array.__dlpack_device__()
    if device in _CPU:
        return None
    if device in _CUDA:
        return int(index)
    raise TypeError(f"{op}: {name} of {kind} is on another device, expected memory of the CPU or of an NVIDIA GPU")


def _shared(op: str, kind: str, name: str, array: Any, from_dlpack: Callable[[Any], Any]) -> Any:
    """The same memory as a native array; on a GPU, ordered after pending writes."""
    with _sharing(op, kind, name, array):
        return from_dlpack(array)


@contextmanager
def _sharing(op: str, kind: str, name: str, array: Any) -> Iterator[None]:
    try:
        yield
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"{op}: {name} of {kind} has dtype {getattr(array, 'dtype', 'unknown')}, "
            f"expected an array that DLPack can share: {error}"
        ) from None


def _cuda_backend(op: str, name: str, array: Any) -> Backend:
    """The backend for a GPU's memory."""
    try:
        return _cupy_backend()
    except RuntimeError as error:
        raise RuntimeError(f"{op}: {name} of {kind_of(array)} is in a GPU's memory, out of reach: {error}") from None


def _is_aligned_for_xla(array: Any) -> bool:
    """Whether JAX takes the memory as it is.

    Other memory it copies, and if that came by DLPack, in a thread that JAX 0.10.2 now and then waits for in vain when
    the process ends.
    """
    return bool(array.ctypes.data % 64 == 0)


def _returner(op: str, kind: str, example: Any, native: type) -> Callable[[Any], Any]:
    """Converter of native results, or a tuple of them, to arrays of the library of `example`."""
    namespace: Any = getattr(example, "__array_namespace__", lambda: sys.modules.get(kind))()
    from_dlpack = getattr(namespace, "from_dlpack", None)
    if from_dlpack is None:
        raise TypeError(f"{op}: got arrays of {kind}, expected a library with from_dlpack to return results by")

    def give_back(result: Any) -> Any:
        if isinstance(result, tuple):
            return tuple(give_back(item) for item in result)
        if not isinstance(result, native):
            return result
        if isinstance(result, np.ndarray):
            if kind == "jax" and not (result.flags.writeable and _is_aligned_for_xla(result)):
                return namespace.asarray(result)
            if result.dtype == bfloat16.dtype():
                return from_dlpack(bfloat16.given(result))
        return from_dlpack(result)

    return give_back
