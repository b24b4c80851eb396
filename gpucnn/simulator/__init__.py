"""Runs the CUDA kernels on a CPU, with checks: a third kind of array, with a stand-in for CuPy beneath it.

A debugging tool, never chosen by itself: hand arrays of `asarray` to any public operation, and its kernels are compiled
with the system's C++ compiler and run thread by thread. Accesses out of bounds, races, divergent barriers and the like
raise a `SimulatorError` with the kernel's file and line, the block and the thread.

Its parts, in the order in which a launch passes through them:

- `arrays`, `namespace`: the arrays, and NumPy's functions over them.
- `module`: kernels as functions; arguments are checked against parameters, errors become exceptions.
- `compilation`, `lowering`, `toolchain`: CUDA C++ becomes C++, and that a shared library in the cache.
- ``include/``: the headers that a kernel is compiled with. ``cuda_shim.h`` defines CUDA's names; ``ptx.h`` has a
  function for each PTX instruction that inline assembly may use, so a new instruction is a new function there.
- ``runtime/``: the library that a kernel runs on, compiled once. ``scheduler.cpp`` runs a fiber for each thread,
  ``collectives.cpp`` the operations of a warp, ``shared_memory.cpp`` shared memory and cp.async;
  ``instrumentation.cpp`` takes the calls that the compiler inserts at each access (``-fsanitize=thread``) and hands
  them to ``memory_checks.cpp``.
- `coverage`: the lines of the kernels that ran.
- `profiling`: their memory traffic, line by line; ``profile.cpp`` counts it.

It cannot show: speed; how the hardware rounds within ``mma`` and the approximate functions, which are exact here;
weak memory order beyond barriers, ``__syncwarp``, fences and atomics; races hidden by partial masks, as any
``__syncwarp`` orders its whole warp; an access beyond one argument that lands in another. A kernel that waits for
another block, or forever, hangs; one that recurses too deep ends the process; a float out of an integer's range
converts as the CPU does it. In ``fast`` mode nothing is checked, and an out-of-bounds access really happens.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpucnn.simulator.errors import (
    AddressSpaceError,
    ArgumentMismatch,
    CompileError,
    LaunchError,
    LoweringError,
    Misaligned,
    OutOfBounds,
    Race,
    ReadOnlyWrite,
    SharedMemoryError,
    SimulatorError,
    SynchronisationError,
    Trap,
    UndefinedBehaviour,
    UninitialisedRead,
)
from gpucnn.simulator.settings import Settings, options

if TYPE_CHECKING:
    from gpucnn.simulator.arrays import Array, asarray, asnumpy
    from gpucnn.simulator.module import Function, Module
    from gpucnn.simulator.profiles import Profile
    from gpucnn.simulator.profiling import profile

__all__ = [
    "AddressSpaceError", "ArgumentMismatch", "Array", "CompileError", "Function", "LaunchError", "LoweringError",
    "Misaligned", "Module", "OutOfBounds", "Profile", "Race", "ReadOnlyWrite", "Settings", "SharedMemoryError",
    "SimulatorError", "SynchronisationError", "Trap", "UndefinedBehaviour", "UninitialisedRead", "asarray", "asnumpy",
    "available", "options", "profile",
]  # fmt: skip

_LAZY = {
    "Array": "gpucnn.simulator.arrays",
    "asarray": "gpucnn.simulator.arrays",
    "asnumpy": "gpucnn.simulator.arrays",
    "Function": "gpucnn.simulator.module",
    "Module": "gpucnn.simulator.module",
    "Profile": "gpucnn.simulator.profiles",
    "profile": "gpucnn.simulator.profiling",
}


def available() -> str:
    """Whether kernels can be run here: "available", or a sentence that says what is missing and what to do."""
    from gpucnn.simulator import toolchain

    return toolchain.availability()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
