"""Dry run: collect the programs that calls would compile, without launching anything."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucnn.backends.cuda.device.runtime import Array, Device, Function, Runtime
from gpucnn.backends.cuda.device.sources import Source

if TYPE_CHECKING:
    from gpucnn.backends.cuda import CudaBackend
    from gpucnn.backends.cuda.launch.plans import Plan


class Collecting:
    """A listener whose calls launch nothing, and whose results hold anything.

    Attributes
    ----------
    sources : dict
        The programs of all launches so far, and the devices that they are for.
    """

    def __init__(self, runtime: Runtime, xp: Any = None) -> None:
        self.sources: dict[tuple[Source, int], Device] = {}
        self._runtime: Any = _CollectingRuntime(runtime, runtime.xp if xp is None else xp, self.sources)

    def backend(self, backend: CudaBackend) -> CudaBackend:
        """The backend whose launches are collected."""
        return type(backend)(self._runtime)

    def launched(self, plan: Plan, arrays: Sequence[Array | None]) -> None:
        """Nothing: its program is known when it is planned."""

    def constants(self, arrays: Sequence[Array]) -> None:
        """Nothing: they are on the device by now."""

    def computed(self) -> None:
        """Nothing: of this no program is needed."""


class _CollectingRuntime:
    """A runtime that writes down the programs that it is asked for."""

    def __init__(self, runtime: Runtime, xp: Any, sources: dict[tuple[Source, int], Device]) -> None:
        self._runtime, self._sources = runtime, sources
        self.name, self.specialises, self.null, self.xp = runtime.name, runtime.specialises, runtime.null, xp

    def device(self, array: Array) -> Device:
        return self._runtime.device(array)

    def using(self, device: Device) -> AbstractContextManager[Any]:
        return self._runtime.using(device)

    def constant(self, host: Any, device: Device) -> Array:
        return self._runtime.constant(host, device)

    def by_value(self, structure: np.ndarray[Any, Any]) -> Any:
        return self._runtime.by_value(structure)

    def product(self, dtype: np.dtype[Any], device: Device) -> Function:
        return _launch_nothing

    def function(self, source: Source, device: Device) -> Function:
        self._sources[source, device.index] = device
        return _launch_nothing


def _launch_nothing(
    grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared_mem: int = 0
) -> None: ...


class Hollow:
    """The simulator's functions, with new arrays that are not written to."""

    def __init__(self, namespace: Any) -> None:
        self._namespace = namespace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._namespace, name)

    def empty(self, shape: Any, dtype: Any = float) -> Array:
        """An array whose memory the system hands out where it is touched."""
        form = np.empty(shape, dtype)
        return self._namespace.Array(form, form.reshape(-1).view(np.uint8), None)

    def zeros(self, shape: Any, dtype: Any = float) -> Array:
        """As `empty`, of zeros."""
        form = np.zeros(shape, dtype)
        return self._namespace.Array(form, form.reshape(-1).view(np.uint8), None)
