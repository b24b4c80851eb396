"""The runtime protocol beneath the CUDA backend, which runs unchanged on CuPy and on the simulator."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gpucnn.backends.cuda.device.background import Background
from gpucnn.backends.cuda.device.sources import Source

Array = Any

MAX_BYTES = 16  # that one thread reads or writes by one access
ALIGNMENTS = (16, 1, 2, 1, 4, 1, 2, 1, 8, 1, 2, 1, 4, 1, 2, 1)
"""Alignment in bytes, at most that of one access, by an address modulo 16."""


@dataclass(frozen=True)
class Device:
    """Properties of one device that choices depend on."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int


class Function(Protocol):
    """A compiled kernel on one device."""

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared_mem: int = 0
    ) -> None:
        """Launch on the current stream, without waiting.

        `args` are arrays of the runtime (a pointer to their first element), the runtime's `null`, and structures as
        returned by its `by_value`.
        """


class Runtime(Protocol):
    """Arrays, compilation and launches of one kind of device.

    With `specialises`, kernels are built for the sizes of each call, which costs a compilation per layer and makes it
    faster; otherwise one generic build serves all. With a `background`, which compiles for calls to come, it serves
    until then.
    """

    name: str
    specialises: bool
    background: Background | None
    xp: Any  # the NumPy-like module of its arrays
    null: Any  # an argument that is a null pointer

    def __hash__(self) -> int:
        """Hash of the runtime, by which its compiled kernels are cached."""

    def device(self, array: Array) -> Device:
        """The device that holds `array`."""

    def using(self, device: Device) -> AbstractContextManager[Any]:
        """Within the block, new arrays and launches go to `device`."""

    def constant(self, host: Any, device: Device) -> Array:
        """A copy of a host array on `device`, complete on return, so that all streams may read it."""

    def function(self, source: Source, device: Device) -> Function:
        """The kernel of `source`, compiled for `device` or from the cache."""

    def product(self, factors: np.dtype[Any], result: np.dtype[Any], precision: str, device: Device) -> Function:
        """Matrix products by their dtypes: launched over A, B, C and a tuple of `gemm.Gemm`, it computes these.

        On the current stream, ignoring the grid and the block. 16-bit floats are summed in float32, which may be the
        dtype of their result. `precision` is that of float32 factors, as in `gpucnn.precision`.
        """

    def by_value(self, structure: np.ndarray[Any, Any]) -> Any:
        """An argument for a structure, given as a host array of no dimensions whose dtype is of kind "V"."""

    # --- Recorded calls (`gpucnn.backends.cuda.launch.replays`) and ahead-of-time compilation -------------------------

    def prepare(self, source: Source, device: Device) -> bool:
        """Compile `source` for `device` and return whether it was not compiled before. Thread-safe.

        Raises
        ------
        CompilationError
            It does not compile.
        """

    def current_device(self) -> int:
        """The index of the device that new arrays and launches go to."""

    def here(self, function: Function, shared_bytes: int) -> Callable[..., None]:
        """`function` for launches with up to `shared_bytes` of dynamic shared memory while its device is current."""

    def maker(
        self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any], zeros: bool
    ) -> Callable[[], Array]:
        """A factory of a new dense array on the current device, zeroed or uninitialised."""


@dataclass
class Plan:
    """A launch without its array addresses; its program is compiled at the first launch, or in the background.

    Meanwhile `generic` is launched, whose program serves all sizes.
    """

    source: Source | None  # None where the function needs no compilation
    device: Device
    grid: tuple[int, ...]
    block: tuple[int, ...]
    parameters: Any
    shared_bytes: int
    function: Function | None = None
    generic: Plan | None = None
