"""Control of the simulated driver that this process has loaded."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from gpucnn.simulator.errors import SimulatorError

SONAME = "libcuda.so.1"
FOREVER = 2**64 - 1
KINDS = ("device", "managed", "pinned", "registered")


class NotSimulated(RuntimeError):  # noqa: N818 (describes the error)
    """The process has not loaded the simulated driver."""


@dataclass(frozen=True)
class Allocation:
    """Memory that a program asked CUDA for and has not freed.

    Attributes
    ----------
    serial : int
        Counts the allocations of the process.
    address, nbytes : int
        Where it is, and the size that was asked for.
    device : int
        That it was allocated on, or from.
    kind : "device", "managed", "pinned" or "registered"
        Registered memory belongs to the program: cuMemHostRegister made it known.
    """

    serial: int
    address: int
    nbytes: int
    device: int
    kind: str


@dataclass
class Injection:
    """A failure that was asked for.

    Attributes
    ----------
    injected : int
        The number of calls that failed by it; known when the block is left.
    """

    injected: int = 0


class _CallCount(ctypes.Structure):
    _fields_ = (("function", ctypes.c_char_p), ("calls", ctypes.c_uint64))


class _Live(ctypes.Structure):
    _fields_ = (
        ("serial", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("device", ctypes.c_int32),
        ("kind", ctypes.c_int32),
    )


# ---- The library -----------------------------------------------------------------------------------------------------


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(SONAME, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        raise NotSimulated(
            f"no {SONAME} is loaded in this process: import cupy first, in an environment that "
            "python -m gpucnn.simulator.cupy made"
        ) from None
    if not hasattr(library, "cudasim_begin_call"):
        raise NotSimulated(
            f"the {SONAME} of this process is a real CUDA driver: gpucnn.simulator.cuda controls the simulated one of "
            "an environment that python -m gpucnn.simulator.cupy made"
        )
    library.cudasim_inject.restype = ctypes.c_uint64
    library.cudasim_inject.argtypes = (ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_char_p)
    library.cudasim_withdraw.restype = ctypes.c_uint64
    library.cudasim_withdraw.argtypes = (ctypes.c_uint64,)
    library.cudasim_exports.argtypes = (ctypes.c_char_p,)
    library.cudasim_last_detail.restype = ctypes.c_char_p
    for name in ("cudasim_calls", "cudasim_live_allocations"):
        getattr(library, name).restype = ctypes.c_size_t
        getattr(library, name).argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    for name in ("marker", "memory_limit", "stream_seed"):
        getattr(library, f"cudasim_{name}").restype = ctypes.c_uint64
    for name in ("memory_limit", "stream_seed"):
        getattr(library, f"cudasim_set_{name}").argtypes = (ctypes.c_uint64,)
    return library


def is_loaded() -> bool:
    """Whether this process has loaded the simulated driver."""
    try:
        _library()
    except NotSimulated:
        return False
    return True


def reset() -> None:
    """Forget counts, injected failures and the last failure; memory limit and stream order become the environment's.

    Memory stays as it is: whoever holds it may use it again.
    """
    _library().cudasim_reset()


def checks_kernels() -> bool:
    """Whether kernels are compiled and run with checks: GPUCNN_CUDA_CHECK."""
    return bool(_library().cudasim_checks())


# ---- Failures --------------------------------------------------------------------------------------------------------


@contextmanager
def failing(
    function: str, call: int = 1, *, error: str = "CUDA_ERROR_OUT_OF_MEMORY", times: int | None = 1
) -> Iterator[Injection]:
    """Within the block, let calls of a function fail; a call that fails does nothing else.

    Parameters
    ----------
    function : str
        The documented name, without a version: "cuMemAlloc", "cublasSgemm". Of functions that only pass on to another
        one, such as cudaMalloc, name that one.
    call : int
        The first call that fails, counted from 1 at the beginning of the block.
    error : str
        The error's name, with or without its prefix CUDA_ERROR and in either case. Libraries above the driver turn it
        into one of theirs.
    times : int or None
        The number of calls that fail, one after the other; None for all that follow.

    Yields
    ------
    Injection
        Whose `injected` tells, after the block, how many calls failed.

    Examples
    --------
    >>> with failing("cuMemAlloc", call=3, error="out_of_memory") as failure:  # doctest: +SKIP
    ...     step()
    >>> assert failure.injected == 1  # doctest: +SKIP
    """
    is_of_driver = function.startswith("cu") and function[2:3].isupper()
    if is_of_driver and not _library().cudasim_exports(function.encode()):
        raise ValueError(f"the simulated driver has no function {function}")
    if not function:
        raise ValueError("function must not be empty; failing_at counts the calls of all functions")
    with _injection(function, call, error, times) as injection:
        yield injection


@contextmanager
def failing_at(call: int, *, error: str = "CUDA_ERROR_UNKNOWN", times: int | None = 1) -> Iterator[Injection]:
    """Within the block, let one call of CUDA fail, counted over all functions; see `failing`.

    Calls that give something back (cuMemFree, cuStreamDestroy, cublasDestroy and the like) are not counted and do not
    fail: if they did nothing, what they leave behind would be no fault of the program's. Nor do those that ask for
    devices and contexts or choose one (cuDeviceGet..., cuCtxGet..., cuCtxSetCurrent): the runtime makes some of them
    before each call of the program's. By their names, in `failing`, all can fail.

    Examples
    --------
    Every call of a step fails once:

    >>> for call in itertools.count(1):  # doctest: +SKIP
    ...     with failing_at(call) as failure, contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):
    ...         step()
    ...     if not failure.injected:
    ...         break  # the step makes fewer calls
    """
    with _injection("", call, error, times) as injection:
        yield injection


@contextmanager
def _injection(function: str, call: int, error: str, times: int | None) -> Iterator[Injection]:
    if call < 1:
        raise ValueError(f"call must be 1 or greater, got {call}")
    if times is not None and times < 1:
        raise ValueError(f"times must be 1 or greater, or None, got {times}")
    library = _library()
    last = FOREVER if times is None else call + times - 1
    number = library.cudasim_inject(function.encode(), call, last, error.encode())
    if not number:
        raise ValueError(f"there is no CUDA error {error!r}")
    injection = Injection()
    try:
        yield injection
    finally:
        injection.injected = library.cudasim_withdraw(number)


def last_failure() -> str:
    """A description of the last failure of a call by this thread; "" if there was none."""
    text: bytes = _library().cudasim_last_detail()
    return text.decode(errors="replace")


def calls() -> dict[str, int]:
    """The number of calls of each function of the simulated libraries, since the process began or `reset`."""
    library = _library()
    room = library.cudasim_calls(None, 0) + 64  # for functions that another thread calls first meanwhile
    counts = (_CallCount * room)()
    filled = min(room, library.cudasim_calls(counts, room))
    return {count.function.decode(): count.calls for count in counts[:filled]}


# ---- Memory ----------------------------------------------------------------------------------------------------------


def live_allocations(since: int = 0) -> list[Allocation]:
    """The memory that has been allocated from CUDA and not freed, by address.

    Parameters
    ----------
    since : int
        A `marker`: only allocations that came after it.

    Notes
    -----
    Memory that CuPy's pool keeps for later use is allocated, as far as CUDA knows: free it before
    (``cupy.get_default_memory_pool().free_all_blocks()``), or count with ``cupy.cuda.set_allocator(None)``.
    """
    library = _library()
    room = library.cudasim_live_allocations(None, 0) + 64
    found = (_Live * room)()
    filled = min(room, library.cudasim_live_allocations(found, room))
    return [
        Allocation(live.serial, live.address, live.bytes, live.device, KINDS[live.kind])
        for live in found[:filled]
        if live.serial > since
    ]


def marker() -> int:
    """The serial number of the latest allocation, for `live_allocations`."""
    number: int = _library().cudasim_marker()
    return number


def check_memory() -> None:
    """Raise a SimulatorError if memory was written where nothing should write.

    That is next to an allocation, or in one that was freed lately. Allocations are also checked when they are freed and
    after each launch.
    """
    if _library().cudasim_check_memory():
        raise SimulatorError(last_failure())


@contextmanager
def memory_limit(nbytes: int) -> Iterator[None]:
    """Within the block, each device has so much memory; what is allocated already counts."""
    if nbytes < 1:
        raise ValueError(f"nbytes must be 1 or greater, got {nbytes}")
    library = _library()
    before = library.cudasim_memory_limit()
    library.cudasim_set_memory_limit(nbytes)
    try:
        yield
    finally:
        library.cudasim_set_memory_limit(before)


@contextmanager
def stream_order(seed: int) -> Iterator[None]:
    """Within the block, work of streams that nothing orders runs in an order by this seed, as late as may be.

    Parameters
    ----------
    seed : int
        0 to run work when it is issued. See GPUCNN_CUDA_STREAM_SEED, which is the default.

    Raises
    ------
    SimulatorError
        At the end of the block, if work that was still pending failed.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    library = _library()
    before = library.cudasim_stream_seed()
    library.cudasim_set_stream_seed(seed)
    try:
        yield
    except BaseException:
        library.cudasim_set_stream_seed(before)
        raise
    if library.cudasim_set_stream_seed(before):
        raise SimulatorError(last_failure())
