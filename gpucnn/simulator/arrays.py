"""The simulator's device array: NumPy's memory behind CuPy's interface.

Operations that a device would not allow are refused here too: implicit copies to the host, arithmetic with host
arrays. Uninitialised memory is filled with NaN, and so are the gaps that a strided array leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

Host = np.ndarray[Any, Any]

ALIGNMENT = 256  # bytes, that of cudaMalloc
DTYPES = frozenset({
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
})  # fmt: skip

# --- Memory -------------------------------------------------------------------------------------------------------


def allocate(nbytes: int) -> Host:
    """Aligned uninitialised bytes: 0xff, a NaN in every floating-point format."""
    raw = np.full(nbytes + ALIGNMENT, 0xFF, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes]


def strided(memory: Host, shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...], offset: int) -> Array:
    """An array over `memory` whose first element is `offset` bytes into it."""
    host: Host = np.ndarray(shape, dtype, memory, offset, strides)
    return Array(host, memory, None)


def placed(host: Host, offset: int = 0) -> Array:
    """A copy of `host` with its strides, its lowest byte `offset` bytes into new memory; NaN where it leaves gaps."""
    dtype = host.dtype
    if dtype.name not in DTYPES:
        raise TypeError(f"a device has no arrays of dtype {dtype}, expected one of {', '.join(sorted(DTYPES))}")
    whole = not any(step % max(1, dtype.itemsize) for step in host.strides)
    if not (host.size and whole and host.flags.aligned):
        host = np.array(host, order="C", subok=False)  # no device has elements between others or off their alignment
    reaches = [(size - 1) * step for size, step in zip(host.shape, host.strides, strict=True)] if host.size else []
    below, above = -sum(min(0, reach) for reach in reaches), sum(max(0, reach) for reach in reaches)
    memory = allocate(offset + below + above + (dtype.itemsize if host.size else 0))
    array = strided(memory, host.shape, dtype, host.strides, offset + below)
    if dtype == np.bool_:
        memory[...] = 1  # a bool holds nothing else
    array._host[...] = host
    return array


def _root(host: Any) -> Any:
    """The array whose memory `host` reads."""
    while isinstance(host.base, np.ndarray):
        host = host.base
    return host


def asarray(values: Any, dtype: Any = None) -> Array:
    """Copy an array to the simulated device.

    Parameters
    ----------
    values : array_like
        A NumPy array, a number or a nested list; an `Array` is returned as it is.
    dtype : dtype, optional
        Another one for the copy.

    Returns
    -------
    Array
        With the strides of `values`: channels-last, reversed, strided and broadcast views stay what they are, and the
        place of a view in the memory that it was cut from, modulo 256 bytes, stays too.

    Examples
    --------
    >>> asarray(np.zeros((4, 6))[::2, ::-1]).strides
    (96, -8)
    """
    if isinstance(values, Array):
        return values if dtype is None else values.astype(dtype, copy=False)
    host = np.asarray(values, dtype)
    if not host.size:
        return placed(host)
    lowest = host.ctypes.data + sum(
        min(0, (size - 1) * step) for size, step in zip(host.shape, host.strides, strict=True)
    )
    offset = (lowest - _root(host).ctypes.data) % ALIGNMENT
    return placed(host, 0 if offset % max(1, host.itemsize) else offset)


def asnumpy(array: Any) -> Host:
    """Copy an array of the simulator to a NumPy array whose axes have the same order in memory.

    Examples
    --------
    >>> asnumpy(asarray([1, 2]) + 1)
    array([2, 3])
    """
    return array._host.copy(order="K") if isinstance(array, Array) else np.asarray(array)


# --- Computing ----------------------------------------------------------------------------------------------------


_KEEP_ORDER = frozenset({
    *(np.ndarray.astype, np.ndarray.copy, np.copy, np.empty_like, np.full_like, np.ones_like, np.zeros_like),
})  # fmt: skip
"""Functions that keep the memory order of their argument; all others return C order in CuPy."""

_WITHOUT_BFLOAT16 = frozenset({np.clip, np.ndarray.clip, np.where})
"""Functions that CuPy computes and returns in float32 when given bfloat16."""


def compute(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`function` of NumPy over the arrays' values: views of their memory, or results in new memory.

    These are as CuPy's: in C order whatever the order of the arguments, and of some functions float32 for bfloat16.

    Raises
    ------
    TypeError
        An argument is a NumPy array with axes: nothing is copied to a device implicitly.
    """
    sources: list[Array] = []
    host_args, host_kwargs = _unwrapped(args, sources), _unwrapped(kwargs, sources)
    with np.errstate(all="ignore"):  # a device does not warn
        result = function(*host_args, **host_kwargs)
    if function in _WITHOUT_BFLOAT16 and getattr(result, "dtype", np.dtype(bool)).name == "bfloat16":
        result = result.astype(np.float32)
    return _wrapped(result, sources, "K" if function in _KEEP_ORDER else "C")


def _unwrapped(value: Any, sources: list[Array]) -> Any:
    if isinstance(value, Array):
        sources.append(value)
        return value._host
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(
            f"got a NumPy array of shape {value.shape} beside an array of the simulator, "
            "expected gpucnn.simulator.asarray(array)"
        )
    if type(value) in (list, tuple):
        return type(value)(_unwrapped(item, sources) for item in value)
    if type(value) is dict:
        return {key: _unwrapped(item, sources) for key, item in value.items()}
    return value


def _wrapped(result: Any, sources: list[Array], order: Literal["C", "K"]) -> Any:
    if type(result) in (list, tuple):
        return type(result)(_wrapped(item, sources, order) for item in result)
    if isinstance(result, np.generic):
        return placed(np.asarray(result))
    if not isinstance(result, np.ndarray):
        return result
    root = _root(result)
    for source in sources:
        if result is source._host:
            return source
        if root is _root(source._memory):
            return Array(result, source._memory, source if source.base is None else source.base)
    return placed(np.asarray(result, order=order))


def _method(name: str) -> Any:
    """The method of NumPy's arrays."""
    function = getattr(np.ndarray, name)

    def method(self: Array, *args: Any, **kwargs: Any) -> Any:
        return compute(function, self, *args, **kwargs)

    method.__name__, method.__doc__ = name, f"As `numpy.ndarray.{name}`; what it returns is on the device."
    return method


def _operand(value: Any) -> bool:
    """Whether an operator takes `value`; a list, which NumPy's would take, is for the caller to convert."""
    return isinstance(value, Array | np.ndarray | np.generic | bool | int | float | complex)


# --- The array ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """The one simulated device."""

    id: int = 0


@dataclass(frozen=True)
class Memory:
    """An allocation: its first byte's address and its bytes."""

    ptr: int
    size: int


@dataclass(frozen=True)
class MemoryPointer:
    """The address of an array's first element, its allocation and its device."""

    ptr: int
    mem: Memory
    device_id: int = 0


@dataclass(frozen=True)
class Flags:
    """The memory-order flags of an array; as in CuPy, none is read-only."""

    c_contiguous: bool
    f_contiguous: bool
    owndata: bool


class Array(NDArrayOperatorsMixin):
    """An array on the simulated device; `asarray` makes one and `asnumpy` gives its values back.

    It has the attributes, methods and operators of `cupy.ndarray` that arrays usually need. Reductions and single
    elements are arrays without axes. NumPy's functions take it and return it; ``numpy.asarray`` does not.
    """

    __slots__ = ("_base", "_host", "_memory")

    def __init__(self, host: Host, memory: Host, base: Array | None) -> None:
        self._host = host  # the elements
        self._memory = memory  # the bytes of the whole allocation that they are in
        self._base = base

    shape = property(lambda self: self._host.shape, doc="Lengths of the axes.")
    strides = property(lambda self: self._host.strides, doc="Bytes from one element to the next, of each axis.")
    dtype = property(lambda self: self._host.dtype, doc="NumPy's dtype of the elements.")
    ndim = property(lambda self: self._host.ndim, doc="Number of axes.")
    size = property(lambda self: self._host.size, doc="Number of elements.")
    itemsize = property(lambda self: self._host.itemsize, doc="Bytes of an element.")
    nbytes = property(lambda self: self._host.nbytes, doc="Bytes of all elements.")

    @property
    def base(self) -> Array | None:
        """The array that this one is a view of."""
        return self._base

    @property
    def data(self) -> MemoryPointer:
        """The address of the first element, and its allocation."""
        memory = Memory(self._memory.ctypes.data, self._memory.nbytes)
        return MemoryPointer(self._host.ctypes.data if self.size else memory.ptr, memory)

    @property
    def device(self) -> Device:
        """The simulated device."""
        return Device()

    @property
    def flags(self) -> Flags:
        """Whether the elements are contiguous in C or Fortran order, and whether the array owns its memory."""
        flags = self._host.flags
        return Flags(flags.c_contiguous, flags.f_contiguous, self._base is None)

    @property
    def T(self) -> Array:  # noqa: N802
        """The axes in reverse."""
        return self.transpose()  # type: ignore[no-any-return]

    @property
    def real(self) -> Any:
        """The real part, a view."""
        return compute(lambda host: host.real, self)

    @property
    def imag(self) -> Any:
        """The imaginary part, a view where the array is complex."""
        return compute(lambda host: host.imag, self)

    # --- To the host ----------------------------------------------------------------------------------------------

    def get(self) -> Host:
        """The values as a NumPy array; see `asnumpy`."""
        return asnumpy(self)

    def set(self, values: Host) -> None:
        """Copy a NumPy array of this shape into this one."""
        if values.shape != self.shape:
            raise ValueError(f"set: values has shape {values.shape}, expected {self.shape}")
        self._host[...] = values

    def item(self, *at: int) -> Any:
        """One element as a Python number."""
        return self._host.item(*at)

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        return self._host.tolist()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Host:
        raise TypeError("an array of the simulator is no NumPy array, use gpucnn.simulator.asnumpy(array)")

    def __bool__(self) -> bool:
        return bool(self._host)

    def __int__(self) -> int:
        return int(self._host)

    def __float__(self) -> float:
        return float(self._host)

    def __complex__(self) -> complex:
        return complex(self._host)

    def __index__(self) -> int:
        return self._host.__index__()

    def __repr__(self) -> str:
        return repr(self._host)

    def __str__(self) -> str:
        return str(self._host)

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.ndim == 0 else self._host, spec)

    # --- Through NumPy's functions --------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if not all(map(_operand, inputs)):
            return NotImplemented
        if isinstance(kwargs.get("out"), tuple) and len(kwargs["out"]) == 1:
            kwargs["out"] = kwargs["out"][0]
        return compute(getattr(ufunc, method), *inputs, **kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return compute(func, *args, **kwargs)

    # --- Elements -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[Array]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: Any) -> Array:
        result: Array = compute(np.ndarray.__getitem__, self, _whole(key))
        return result

    def __setitem__(self, key: Any, value: Any) -> None:
        compute(np.ndarray.__setitem__, self, _whole(key), value)

    def fill(self, value: Any) -> None:
        """Set every element."""
        self[...] = value

    # --- Methods; the operators are ufuncs ------------------------------------------------------------------------

    all, any, max, min, sum, prod, mean, var, std = map(
        _method, ("all", "any", "max", "min", "sum", "prod", "mean", "var", "std")
    )
    argmax, argmin, argsort, cumsum, nonzero = map(_method, ("argmax", "argmin", "argsort", "cumsum", "nonzero"))
    astype, copy, view, flatten, ravel, reshape = map(
        _method, ("astype", "copy", "view", "flatten", "ravel", "reshape")
    )
    squeeze, swapaxes, transpose, diagonal = map(_method, ("squeeze", "swapaxes", "transpose", "diagonal"))
    clip, conj, conjugate, dot, repeat, round, take = map(
        _method, ("clip", "conj", "conjugate", "dot", "repeat", "round", "take")
    )

    def __eq__(self, other: Any) -> Any:
        return super().__eq__(other) if _operand(other) else NotImplemented

    def __ne__(self, other: Any) -> Any:
        return super().__ne__(other) if _operand(other) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


def _whole(key: Any) -> tuple[Any, ...]:
    """`key` with an ellipsis, so that a single element is a view without axes rather than a number."""
    keys = key if isinstance(key, tuple) else (key,)
    return keys if any(item is Ellipsis for item in keys) else (*keys, ...)
