"""The Python lines behind CuPy's allocations, for reports of the arrays that a program left."""

from __future__ import annotations

import gc
import sys
import threading
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from gpucnn.simulator import cuda

MAX_LINES = 4  # of a traceback
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
UNKNOWN = ("not by an array of CuPy's on the main thread",)


@dataclass(frozen=True)
class Left:
    """Memory that is still allocated.

    Attributes
    ----------
    nbytes : int
        Its size, as CuPy asked for it.
    device : int
        That it is allocated on.
    lines : tuple of str
        The lines of Python that asked for it, innermost first.
    """

    nbytes: int
    device: int
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.nbytes} bytes on device {self.device}, allocated {', called '.join(self.lines)}"


@dataclass(frozen=True)
class _Made:
    """An allocation of CuPy's: its number in this process, and what is known of it."""

    number: int
    nbytes: int
    device: int
    lines: tuple[str, ...]
    is_kept_by_cupy: bool


class Allocations:
    """Records CuPy's allocations between `start` and `stop`.

    Parameters
    ----------
    allocator : "exact" or "pool"
        CuPy's allocator meanwhile. "exact" asks CUDA for each array, so that bounds are exact to the byte; "pool" is
        CuPy's default, which rounds sizes up to 512 bytes and uses freed memory again.
    traced : bool
        Whether to remember who allocated what, for `left`; it costs some tenth of a millisecond an array.
    """

    def __init__(self, allocator: str, traced: bool = True) -> None:
        self.allocator = allocator
        self._traced = traced
        self.cupy: Any = import_module("cupy")
        self._made: dict[int, _Made] = {}  # by address
        self._count = 0
        self._lock = threading.Lock()
        self._hook = self._make_hook() if allocator == "pool" and traced else None

    def start(self) -> None:
        """Take the place of CuPy's allocator, or watch its pool."""
        if self._hook:
            self._hook.__enter__()
        elif self.allocator == "exact":
            self.cupy.cuda.set_allocator(self._allocate)

    def stop(self) -> None:
        """Give CuPy its default allocator back."""
        if self._hook:
            self._hook.__exit__(None, None, None)
        else:
            self.cupy.cuda.set_allocator(self.cupy.get_default_memory_pool().malloc)

    def marker(self) -> tuple[int, int]:
        """A point in time, for `left`."""
        return cuda.marker(), self._count

    def left(self, since: tuple[int, int]) -> list[Left]:
        """What was allocated after a marker and is still there, once garbage is collected and pools are empty."""
        self.free_pools()
        serial, number = since
        found = []
        listed: set[int] = set()
        if self._hook:  # a new array may lie in a block that the pool had before
            for address, made in sorted(self._made.items()):
                if made.number > number:
                    listed.add(address)
                    found += [made]
        for live in cuda.live_allocations(since=serial):
            inside = range(live.address, live.address + max(live.nbytes, 1))
            if any(address in inside for address in listed):
                continue
            known = self._made.get(live.address)
            found.append(known or _Made(0, live.nbytes, live.device, UNKNOWN, live.kind == "registered"))
        return [Left(made.nbytes, made.device, made.lines) for made in found if not made.is_kept_by_cupy]

    def free_pools(self) -> None:
        """Collect garbage, and give the memory back to CUDA that CuPy's pools keep."""
        gc.collect()
        if self.cupy.cuda.is_available():
            for device in range(self.cupy.cuda.runtime.getDeviceCount()):
                with self.cupy.cuda.Device(device):
                    self.cupy.get_default_memory_pool().free_all_blocks()
        self.cupy.get_default_pinned_memory_pool().free_all_blocks()

    def _allocate(self, nbytes: int) -> Any:
        """As ``cupy.cuda.set_allocator(None)`` allocates, with the error of CuPy's pool where memory is short."""
        cuda_of_cupy = self.cupy.cuda
        try:
            memory = cuda_of_cupy.Memory(nbytes)
        except cuda_of_cupy.runtime.CUDARuntimeError as error:
            if error.status != OUT_OF_MEMORY:
                raise
            gc.collect()
            try:
                memory = cuda_of_cupy.Memory(nbytes)
            except cuda_of_cupy.runtime.CUDARuntimeError:
                free, total = cuda_of_cupy.runtime.memGetInfo()
                raise cuda_of_cupy.memory.OutOfMemoryError(nbytes, total - free) from error
        if self._traced:
            self._record(memory.ptr, nbytes, memory.device_id)
        return cuda_of_cupy.MemoryPointer(memory, 0)

    def _record(self, address: int, nbytes: int, device: int) -> None:
        lines, is_kept = _lines_of_program(sys._getframe(1))
        with self._lock:
            self._count += 1
            self._made[address] = _Made(self._count, nbytes, device, lines, is_kept)

    def _make_hook(self) -> Any:
        record, made = self._record, self._made

        class Hook(self.cupy.cuda.MemoryHook):  # type: ignore[misc, name-defined]
            """Watches the pools of the thread that it was entered in."""

            name = "gpucnn.simulator.cupy.allocations"

            def malloc_postprocess(self, **of: Any) -> None:
                record(of["mem_ptr"], of["size"], of["device_id"])

            def free_postprocess(self, **of: Any) -> None:
                made.pop(of["mem_ptr"], None)

        return Hook()


def _lines_of_program(frame: FrameType | None) -> tuple[tuple[str, ...], bool]:
    """The innermost lines that belong to no library, and whether CuPy keeps what it allocates for itself."""
    lines: list[str] = []
    outermost: list[str] = []
    is_kept = False
    here = Path.cwd()
    while frame is not None and len(lines) < MAX_LINES:
        path = Path(frame.f_code.co_filename)
        shown = path.relative_to(here) if path.is_relative_to(here) else path
        text = f"at {shown}:{frame.f_lineno} in {frame.f_code.co_name}"
        is_kept = is_kept or (path.name == "_generator.py" and frame.f_code.co_name == "get_random_state")
        if not outermost and path != Path(__file__):
            outermost = [text]
        if _is_of_program(path):
            lines.append(text)
        elif lines:
            break  # pytest and whatever else called the program
        frame = frame.f_back
    return tuple(lines or outermost), is_kept


def _is_of_program(path: Path) -> bool:
    return path.is_absolute() and path != Path(__file__) and not {"site-packages", "<frozen"} & set(path.parts)
