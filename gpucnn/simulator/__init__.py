"""Runs the CUDA kernels on a CPU, with checks: a third kind of array, and what stands in for CuPy beneath it.

A debugging tool, never chosen by itself: hand arrays of `asarray` to any public operation, and its kernels are compiled
with the system's C++ compiler and run thread by thread. Accesses out of bounds, races, divergent barriers and the like
raise a `SimulatorError` with the kernel's file and line, the block and the thread.
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

__all__ = [
    "AddressSpaceError",
    "ArgumentMismatch",
    "Array",
    "CompileError",
    "Function",
    "LaunchError",
    "LoweringError",
    "Misaligned",
    "Module",
    "OutOfBounds",
    "Race",
    "ReadOnlyWrite",
    "Settings",
    "SharedMemoryError",
    "SimulatorError",
    "SynchronisationError",
    "Trap",
    "UndefinedBehaviour",
    "UninitialisedRead",
    "asarray",
    "asnumpy",
    "available",
    "options",
]

_LAZY = {
    "Array": "gpucnn.simulator.arrays",
    "asarray": "gpucnn.simulator.arrays",
    "asnumpy": "gpucnn.simulator.arrays",
    "Function": "gpucnn.simulator.module",
    "Module": "gpucnn.simulator.module",
}


def available() -> str:
    """Whether kernels can be run here: "available", or a sentence that says what is missing and what to do."""
    from gpucnn.simulator import toolchain

    return toolchain.availability()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
