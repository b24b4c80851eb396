"""Exceptions of the simulator, one for each kind of mistake, with its place in the kernel."""

# ruff: noqa: N818 (each name describes the error)
from __future__ import annotations

Index = tuple[int, int, int]


class SimulatorError(RuntimeError):
    """A kernel made an error, or could not be run.

    Attributes
    ----------
    kernel : str or None
        Its name.
    file, line : str or None, int or None
        Its place in the source; None where unknown.
    block, thread : tuple of 3 int, or None
        ``blockIdx`` and ``threadIdx``; None for errors that come before the kernel runs.
    """

    def __init__(
        self,
        message: str,
        *,
        kernel: str | None = None,
        file: str | None = None,
        line: int | None = None,
        block: Index | None = None,
        thread: Index | None = None,
    ) -> None:
        super().__init__(message)
        self.kernel = kernel
        self.file = file
        self.line = line
        self.block = block
        self.thread = thread


class OutOfBounds(SimulatorError):
    """An access outside every array, or an index outside its own."""


class ReadOnlyWrite(OutOfBounds):
    """A write to an array that the kernel takes as a pointer to const."""


class Race(SimulatorError):
    """Two unordered accesses to one address by different threads, at least one of them a write."""


class Misaligned(SimulatorError):
    """An access at an address that is not a multiple of the alignment of its type."""


class SynchronisationError(SimulatorError):
    """Threads that wait for others that never arrive: divergent barriers, missing lanes, wrong masks."""


class UninitialisedRead(SimulatorError):
    """A read of uninitialised memory, or of memory whose asynchronous copy was not waited for."""


class UndefinedBehaviour(SimulatorError):
    """Overflow of a signed integer, a shift out of range, a division by zero."""


class SharedMemoryError(SimulatorError):
    """A request for more shared memory than the device has."""


class AddressSpaceError(SimulatorError):
    """An address in a memory space other than the instruction's."""


class Trap(SimulatorError):
    """The kernel stopped itself: ``__trap()``, a failed ``assert``; or the simulator ran out of memory."""


class LaunchError(SimulatorError, ValueError):
    """A launch that the device would refuse: too many threads or blocks, too much shared memory."""


class ArgumentMismatch(SimulatorError, TypeError):
    """Arguments that do not fit the kernel's parameters."""


class CompileError(SimulatorError):
    """The compiler rejected the kernel, or there is no compiler."""


class LoweringError(CompileError):
    """A construct of CUDA C++ that the simulator cannot run."""


# In the order of ErrorKind in runtime/machine.h, from 1.
BY_KIND: tuple[type[SimulatorError], ...] = (
    OutOfBounds,
    ReadOnlyWrite,
    Race,
    Misaligned,
    SynchronisationError,
    UninitialisedRead,
    UndefinedBehaviour,
    SharedMemoryError,
    AddressSpaceError,
    Trap,
)
