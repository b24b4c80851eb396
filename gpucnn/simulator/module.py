"""A CUDA source, compiled for the CPU, and its kernels as functions that Python calls."""

from __future__ import annotations

import ctypes
import re
import struct
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.simulator import compilation, coverage, profiling, settings, toolchain
from gpucnn.simulator.arrays import Array
from gpucnn.simulator.errors import BY_KIND, ArgumentMismatch, LaunchError, SimulatorError

MAX_THREADS = 1024
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 2**16 - 1, 2**16 - 1)
DEFAULT_SHARED = 48 << 10
MAX_SHARED = 227 << 10

# The NumPy scalars that a parameter of each kind takes, by the kind of their dtype; the sizes must agree as well.
_TAKES = {"i": "iu", "u": "iu", "f": "f", "b": "b", "s": "Vcf"}
_KIND_NAMES = {"i": "signed integer", "u": "unsigned integer", "f": "float", "b": "bool", "s": "struct"}
_SLOT = 16  # arguments begin at multiples of it

_running = threading.Lock()  # the runtime simulates one machine at a time


# --- The runtime's structures, as in include/interface.h and runtime/launch.h -----------------------------------------


class _Parameter(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_int), ("kind", ctypes.c_char))


class _Entry(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("call", ctypes.c_void_p),
        ("max_threads", ctypes.c_int),
        ("parameter_count", ctypes.c_int),
        ("parameters", _Parameter * 64),
    )


class _ErrorReport(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("line", ctypes.c_int32),
        ("address", ctypes.c_uint64),
        ("thread", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("file", ctypes.c_char * 256),
        ("message", ctypes.c_char * 1024),
    )


_LAUNCH = struct.Struct("=9Q3I3I4iIi")
_BUFFER = struct.Struct("=5Q3i4x")


class _Runtime:
    """The runtime library's functions."""

    def __init__(self, path: Path) -> None:
        library = toolchain.load(path)
        self.path = path
        self.launch = library.gpucnn_launch
        self.launch.argtypes = (ctypes.c_char_p,)
        self.error = library.gpucnn_error
        self.error.restype = ctypes.POINTER(_ErrorReport)
        self.image = library.gpucnn_image
        self.image.argtypes = (ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_uint64))

    def image_of(self, address: int | None) -> tuple[int, int]:
        """The addresses of the library that holds `address`."""
        low, high = ctypes.c_uint64(), ctypes.c_uint64()
        self.image(address, ctypes.byref(low), ctypes.byref(high))
        return low.value, high.value


_runtimes: dict[str, _Runtime] = {}


def _runtime(path: Path) -> _Runtime:
    """The runtime, loaded once: kernels ask for it by name, which is a hash of its sources and flags."""
    if path.name not in _runtimes:
        _runtimes[path.name] = _Runtime(path)
    return _runtimes[path.name]


# --- Compiling ----------------------------------------------------------------------------------------------------


class Module:
    """A CUDA C++ source.

    Parameters
    ----------
    text : str
        The whole program; errors name its places by ``#line`` directives.
    name : str
        Its name in messages, and the file name of the text before the first ``#line``.
    """

    def __init__(self, text: str, name: str = "kernel.cu") -> None:
        self.text = text
        self.name = name
        self._built: dict[tuple[str, str], _Built] = {}

    def function(self, kernel: str) -> Function:
        """The kernel of this name, compiled for the settings in force."""
        self.built(settings.current()).entry(kernel)
        return Function(self, kernel)

    def built(self, wanted: settings.Settings) -> _Built:
        """The source compiled and loaded for these settings."""
        key = (wanted.mode, wanted.context_switch)
        if key not in self._built:
            self._built[key] = _Built(self, *key)
        return self._built[key]


class _Built:
    """A loaded module."""

    def __init__(self, module: Module, mode: str, context_switch: str) -> None:
        self.name = module.name
        self.text = module.text
        self.runtime = _runtime(toolchain.runtime(context_switch))
        if mode == "coverage":
            self.path = coverage.build(module.text, module.name, self.runtime.path)
        else:
            self.path = compilation.build(module.text, module.name, mode, self.runtime.path)
        library = toolchain.load(self.path)
        count = ctypes.c_int.in_dll(library, "gpucnn_entry_count").value
        entries = (_Entry * count).in_dll(library, "gpucnn_entries")
        self.entries = {entry.name.decode(): _Kernel(self, entry) for entry in entries}

    def entry(self, kernel: str) -> _Kernel:
        """The kernel of this name."""
        if kernel not in self.entries:
            there = ", ".join(self.entries) or "none"
            raise SimulatorError(f"{self.name} has no kernel {kernel!r}, it has {there}", kernel=kernel)
        return self.entries[kernel]


# --- Launching ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slot:
    """A parameter, and the offset of its value in the argument block."""

    index: int
    kind: str
    bytes: int
    offset: int


class _Kernel:
    """A compiled kernel, and memory for the values of its arguments."""

    def __init__(self, built: _Built, entry: _Entry) -> None:
        self.built = built
        self.name: str = entry.name.decode()
        self.address = ctypes.addressof(entry)
        self.image = built.runtime.image_of(entry.call)
        self.max_threads: int = entry.max_threads
        self.slots: list[_Slot] = []
        size = 0
        for index in range(entry.parameter_count):
            parameter = entry.parameters[index]
            self.slots.append(_Slot(index, parameter.kind.decode(), parameter.bytes, size))
            size += -(-parameter.bytes // _SLOT) * _SLOT
        self._memory = ctypes.create_string_buffer(size + _SLOT)
        start = -(-ctypes.addressof(self._memory) // _SLOT) * _SLOT
        self.values = memoryview(self._memory).cast("B")[start - ctypes.addressof(self._memory) :]
        self.pointers = (ctypes.c_uint64 * max(1, len(self.slots)))(*(start + slot.offset for slot in self.slots))


class Function:
    """A kernel that can be launched.

    Attributes
    ----------
    max_dynamic_shared_size_bytes : int
        The most dynamic shared memory that a launch may ask for: 48 KB, which may be raised up to 227 KB.
    """

    def __init__(self, module: Module, name: str) -> None:
        self.name = name
        self._module = module
        self._max_shared = DEFAULT_SHARED

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """The most dynamic shared memory that a launch may ask for."""
        return self._max_shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if not 0 <= size <= MAX_SHARED:
            raise LaunchError(
                f"{self.name}: max_dynamic_shared_size_bytes must be in [0, {MAX_SHARED}], got {size}", kernel=self.name
            )
        self._max_shared = size

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0) -> None:
        """Run the kernel.

        Parameters
        ----------
        grid, block : sequence of 1 to 3 int
            Numbers of blocks and of threads per block.
        args : sequence
            Arrays of the simulator (a pointer to their first element), None (a null pointer), NumPy scalars, and
            structs as NumPy arrays without axes whose dtype has fields or is ``V<bytes>``.
        shared_mem : int
            Bytes of dynamic shared memory.
        """
        wanted = settings.current()
        kernel = self._module.built(wanted).entry(self.name)
        blocks, threads = _extent(grid), _extent(block)
        self._check_launch(kernel, blocks, threads, shared_mem)
        runtime = kernel.built.runtime
        with _running:
            buffers = self._set_arguments(kernel, args)
            request = _LAUNCH.pack(
                kernel.address,
                ctypes.addressof(kernel.pointers),
                _address(buffers),
                shared_mem,
                *kernel.image,
                wanted.seed,
                0,
                0,
                *blocks,
                *threads,
                len(buffers) // _BUFFER.size,
                wanted.mode in ("check", "profile"),
                wanted.mode == "profile",
                settings.ORDERS.index(wanted.order),
                wanted.yield_every,
                0,
            )
            if runtime.launch(request):
                raise _exception(kernel, runtime.error().contents, args)
            if wanted.mode == "profile":
                profiling.note(kernel.name, kernel.built, blocks, threads, args)

    def _check_launch(self, kernel: _Kernel, grid: tuple[int, ...], block: tuple[int, ...], shared_mem: int) -> None:
        def refuse(what: str) -> LaunchError:
            return LaunchError(f"{self.name}: {what}", kernel=self.name)

        if len(grid) != 3 or len(block) != 3:
            raise refuse(f"grid and block have 1 to 3 numbers, got {grid} and {block}")
        for name, sizes, limits in (("grid", grid, MAX_GRID), ("block", block, MAX_BLOCK)):
            if any(not 1 <= size <= limit for size, limit in zip(sizes, limits, strict=True)):
                raise refuse(f"{name} must be from (1, 1, 1) to {limits}, got {sizes}")
        threads = block[0] * block[1] * block[2]
        limit = kernel.max_threads or MAX_THREADS
        if threads > min(limit, MAX_THREADS):
            reason = f"__launch_bounds__ allows {limit}" if limit < MAX_THREADS else f"the limit is {MAX_THREADS}"
            raise refuse(f"{threads} threads in a block of {block}, {reason}")
        if not 0 <= shared_mem <= self._max_shared:
            raise refuse(
                f"{shared_mem} bytes of dynamic shared memory, the limit is {self._max_shared}; "
                f"max_dynamic_shared_size_bytes can be set to {MAX_SHARED} at most"
            )

    def _set_arguments(self, kernel: _Kernel, args: Sequence[Any]) -> bytes:
        """Put the arguments' values into the kernel's block; the array arguments as packed buffers."""
        if len(args) != len(kernel.slots):
            raise ArgumentMismatch(
                f"{self.name} takes {len(kernel.slots)} arguments, got {len(args)}", kernel=self.name
            )
        buffers = []
        for slot, arg in zip(kernel.slots, args, strict=True):
            if slot.kind in "pc":
                pointer = self._pointer(slot, arg)
                if arg is not None:
                    buffers.append(_buffer(arg, pointer, slot))
                value = pointer.to_bytes(8, sys.byteorder)
            else:
                value = self._value(slot, arg)
            kernel.values[slot.offset : slot.offset + slot.bytes] = value
        return b"".join(buffers)

    def _pointer(self, slot: _Slot, arg: Any) -> int:
        if arg is None:
            return 0
        if isinstance(arg, Array):
            return int(arg._host.__array_interface__["data"][0])
        raise self._mismatch(slot, arg, "an array of the simulator or None")

    def _value(self, slot: _Slot, arg: Any) -> bytes:
        is_struct = isinstance(arg, np.ndarray) and arg.ndim == 0 and arg.dtype.kind == "V"
        if not (is_struct or isinstance(arg, np.generic)):
            raise self._mismatch(slot, arg, "a NumPy scalar" if slot.kind != "s" else "a NumPy array without axes")
        if arg.dtype.itemsize != slot.bytes or arg.dtype.kind not in _TAKES[slot.kind]:
            raise self._mismatch(slot, arg, f"a {_KIND_NAMES[slot.kind]} of {slot.bytes} bytes")
        value: bytes = arg.tobytes()
        return value

    def _mismatch(self, slot: _Slot, arg: Any, expected: str) -> ArgumentMismatch:
        return ArgumentMismatch(
            f"{self.name}: argument {slot.index} is {_describe(arg)}, expected {expected}", kernel=self.name
        )


def _extent(sizes: Sequence[int]) -> tuple[int, ...]:
    return (*map(int, sizes), 1, 1, 1)[: max(3, len(sizes))]


def _address(data: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


def _buffer(array: Array, pointer: int, slot: _Slot) -> bytes:
    """The extent of an array argument for the checks: the bytes from its lowest to its highest element."""
    host = array._host
    low, size = pointer, host.nbytes
    if size and not host.flags.c_contiguous:
        steps = [(length - 1) * step for length, step in zip(host.shape, host.strides, strict=True)]
        low += sum(step for step in steps if step < 0)
        size = host.itemsize + sum(map(abs, steps))
    grain = host.itemsize // 2 if host.dtype.kind == "c" else host.itemsize
    return _BUFFER.pack(low, size, 0, 0, 0, grain, slot.index, slot.kind == "c")


# --- Errors -------------------------------------------------------------------------------------------------------


def _describe(arg: Any) -> str:
    if isinstance(arg, Array):
        return f"an array of {arg.dtype}{list(arg.shape)}"
    if isinstance(arg, np.ndarray | np.generic):
        what = "a NumPy array" if isinstance(arg, np.ndarray) else "a NumPy scalar"
        return f"{what} of dtype {arg.dtype}, {arg.dtype.itemsize} bytes an element"
    return f"a {type(arg).__name__}"


def _exception(kernel: _Kernel, report: _ErrorReport, args: Sequence[Any]) -> SimulatorError:
    file, line = report.file.decode() or None, report.line or None
    if report.address:
        file, line = profiling.source_lines(kernel.built.path, [report.address]).get(report.address, (None, None))
    block: Any = tuple(report.block)
    thread: Any = tuple(report.thread)

    def described(match: re.Match[str]) -> str:
        array = args[int(match.group(1))]
        return f"{match.group(0)} ({array.dtype}{list(array.shape)})"

    text = re.sub(r"argument (\d+)", described, report.message.decode(errors="replace"))
    at = f"{file}:{line}: " if file else ""
    message = f"{at}{text} [{kernel.name}, block {block}, thread {thread}]"
    kind: type[SimulatorError] = BY_KIND[report.kind - 1]
    return kind(message, kernel=kernel.name, file=file, line=line, block=block, thread=thread)
