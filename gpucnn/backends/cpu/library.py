"""Calls of the compiled CPU kernels in ``kernels/cpu/*.cpp`` by ctypes, which release the interpreter's lock.

The host fills the structure ``Params`` of a kernel's file by name and passes arrays by name; threads of their own share
the work items of a launch (``kernels/cpu/threads.cpp``): to hand out items in Python took as long as small layers. The
items depend on sizes alone, so results do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Mapping, Sequence
from functools import cache, cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.cpu import builds
from gpucnn.backends.listening import this_thread
from gpucnn.backends.numpy import threads
from gpucnn.backends.numpy.memory import Array, empty_for_copy, scratch

_FIELDS = re.compile(r"^  (index_t|double) ([\w, ]+);", re.MULTILINE)

Value = int | float

VECTOR_BYTES = 64  # of the widest vector of any machine, for choices that are the same on all
# Most bytes of a buffer for all items of a call that a thread keeps: transformed filters, sums of filters.
SHARED_BYTES = 32 << 20


class Kernel:
    """One ``extern "C"`` function of a file in kernels/cpu/.

    It takes ``const Params*``, its arrays, a workspace of scalars for the calling thread, and a work item.
    """

    def __init__(self, file: str, function: str = "") -> None:
        self.file, self.name = file, function or file

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The names in its structure ``Params``, in their order."""
        return tuple(name for name, _ in _fields(self.file))

    @cached_property
    def format(self) -> str:
        """The layout of ``Params`` for `struct.pack`."""
        return "=" + "".join("q" if is_index else "d" for _, is_index in _fields(self.file))

    @cached_property
    def arrays(self) -> tuple[str, ...]:
        """The names of its array parameters, in their order, as its source declares them."""
        code = re.sub(r"//.*", "", builds.text(self.file))
        declared = re.search(rf"\b{self.name}\(const Params\* \w+,([^)]*)\)", code)
        if declared is None:
            raise LookupError(f"kernels/cpu/{self.file}.cpp declares no kernel {self.name}")
        return tuple(name for name in re.findall(r"\*(?: __restrict__)? (\w+)", declared[1]) if name != "workspace")

    def address(self, dtype: str) -> int:
        """The address of the function for arrays of `dtype`; compiled if it is not in the cache."""
        function = getattr(builds.library(self.file, dtype), self.name)
        return ctypes.cast(function, ctypes.c_void_p).value or 0


@cache
def _run() -> Any:
    """The function of threads.cpp that runs programs."""
    run = builds.library("threads", "float32").run
    run.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64]
    run.restype = ctypes.c_int64
    return run


Place = tuple[int, int]
"""The number of an array of a call, and bytes from its first element; or of a None, and an address."""


class Launch:
    """A kernel with all that it takes but its arrays; see `launch`. Made once for arrays of one layout, and kept.

    Attributes
    ----------
    arrays : tuple of str
        The names of the arrays that it takes.
    function, workspace, items : int
        Its address, bytes of workspace for a thread, and work items.
    params : ctypes array
        Its ``Params``.
    """

    __slots__ = ("_alone", "arrays", "function", "items", "params", "workspace")

    def __init__(
        self, kernel: Kernel, dtype: str, values: Mapping[str, Value], items: int = 1, workspace: int = 0
    ) -> None:
        self.arrays = kernel.arrays
        self.function, self.items = kernel.address(dtype), items
        self.workspace = workspace * np.dtype(dtype).itemsize
        params = struct.pack(kernel.format, *[values[name] for name in kernel.fields])
        self.params = ctypes.create_string_buffer(params, len(params))
        places = [(number, 0) for number in range(1, 1 + len(self.arrays))]
        self._alone = Launches([(self, places)], 1 + len(places))

    def __call__(self, **arrays: Array | None) -> None:
        """Run it on arrays by name, more than it takes if need be."""
        given = [arrays[name] for name in self.arrays]
        if (listener := this_thread.listener) is not None:
            listener.launched(self, given)
        self._alone([None, *given])


class Launches:
    """Launches one after the other, as one call of C++: what lies between two in Python took as long as small ones."""

    __slots__ = ("_code", "_kept", "_pack", "_run")

    def __init__(self, steps: Sequence[tuple[Launch, Sequence[Place]]], count: int, kept: Sequence[Array] = ()) -> None:
        """`steps` are launches with the places of what they take, in `count` arrays, or in `kept` by address."""
        words = [len(steps), object.__basicsize__, id(None)]
        for each, places in steps:
            words += (each.function, 1 + len(places), each.workspace, each.items)
            for place in ((0, ctypes.addressof(each.params)), *places):
                words += place
        self._code = struct.pack(f"={len(words)}q", *words)
        self._pack = struct.Struct(f"{count}P").pack
        self._kept = *kept, *[each.params for each, _ in steps]
        self._run = _run()

    def __call__(self, arrays: Sequence[Array | None]) -> None:
        """Run them on arrays, of which the first is None; C++ reads where the elements of each are."""
        lacking = self._run(self._code, self._pack(*map(id, arrays)), threads.get_num_threads())
        if lacking:
            raise MemoryError(f"{lacking} bytes of workspace for a thread")


def launch(
    kernel: Kernel,
    dtype: str,
    values: Mapping[str, Value],
    arrays: Mapping[str, Array | None],
    items: int = 1,
    workspace: int = 0,
) -> None:
    """Call `kernel` for each of `items` work items, on as many threads as `gpucnn.set_num_threads` allows.

    Parameters
    ----------
    kernel : Kernel
    dtype : str
        The build: "float32" or "float64".
    values : mapping
        The fields of ``Params`` by name. Others are ignored, so that kernels of one family can share what they are
        given; strides come from `strides`.
    arrays : mapping
        The kernel's arrays by name; None is a null pointer.
    items : int
        Work items; each call gets its number, in ``[0, items)``. They write to disjoint memory.
    workspace : int
        Scalars of `dtype` that a call may use, aligned to 64 bytes and uninitialised.
    """
    fields = tuple([values[name] for name in kernel.fields])
    _launch(kernel, dtype, fields, items, workspace)(**arrays)


@lru_cache(maxsize=1024)
def _launch(kernel: Kernel, dtype: str, fields: tuple[Value, ...], items: int, workspace: int) -> Launch:
    return Launch(kernel, dtype, dict(zip(kernel.fields, fields, strict=True)), items, workspace)


class Layout(NamedTuple):
    """The shape and strides of an array: what a launch of kernels depends on."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int


def layout(array: Array) -> Layout:
    """The layout of an array."""
    return Layout(array.shape, array.strides, array.itemsize)


def strides(name: str, array: Array | Layout | None, axes: str) -> dict[str, int]:
    """The strides of an array in elements, as fields ``name_axis``; 0 for an axis of one element, or without array."""
    if array is None:
        return dict.fromkeys([f"{name}_{axis}" for axis in axes], 0)
    steps = zip(axes, array.shape, array.strides, strict=True)
    return {f"{name}_{axis}": step // array.itemsize if size > 1 else 0 for axis, size, step in steps}


def address(array: Array) -> int:
    """Where the elements are: the field after the object's head, as every extension module reads it (PyArray_DATA).

    It takes a seventh of the time of ``array.ctypes.data``, which is 1 us.
    """
    return ctypes.c_size_t.from_address(id(array) + object.__basicsize__).value


@cache
def vector_bytes() -> int:
    """Bytes of a vector in the builds for this machine: ``VECTOR_BYTES`` of vectors.hpp."""
    function = builds.library("convolution", "float32").vector_bytes
    function.restype = ctypes.c_int64
    return int(function())


@cache
def _fields(file: str) -> list[tuple[str, bool]]:
    """The fields of a file's ``Params``, and whether each is an index."""
    body = re.search(r"^struct Params {\n(.*?)^};", builds.text(file), re.MULTILINE | re.DOTALL)
    if body is None:
        raise LookupError(f"kernels/cpu/{file}.cpp has no structure Params")
    return [(name.strip(), kind == "index_t") for kind, names in _FIELDS.findall(body[1]) for name in names.split(",")]


def shared_scratch(name: str, count: int, dtype: str) -> Array:
    """An uninitialised array [count] of this thread for all work items of a call, at the start of a cache line.

    Its pages stay mapped: those of a new array of filters took a quarter of the time of a 7 x 7 convolution.
    """
    return scratch(name, (count,), dtype, SHARED_BYTES)


def is_addressable(array: Array) -> bool:
    """Whether a kernel can read the elements in place: aligned, at whole steps."""
    flags = array.flags
    return bool(flags.aligned) and (flags.c_contiguous or _has_whole_steps(array.strides, array.itemsize))


@lru_cache(maxsize=1024)
def _has_whole_steps(strides: tuple[int, ...], itemsize: int) -> bool:
    return not any(step % itemsize for step in strides)


def addressable(array: Array) -> Array:
    """The array, or a copy that a kernel can read."""
    if is_addressable(array):
        return array
    copy = empty_for_copy(array)
    copy[...] = array
    return copy
