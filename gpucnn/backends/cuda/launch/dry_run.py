"""Dry run: the programs that calls would compile, collected without launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpucnn.backends.cuda.device.runtime import Array, Device, Plan, Runtime
from gpucnn.backends.cuda.device.sources import Source


class DryRun:
    """A listener whose calls launch nothing; their results are uninitialised.

    Attributes
    ----------
    xp : module
        Creates arrays for the calls: the runtime's own, but the simulator's take no memory until they are written to.
    sources : dict
        The programs of all launches so far, and the devices that they are for.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.sources: dict[tuple[Source, int], Device] = {}
        self.xp: Any = _Untouched(runtime.xp) if runtime.name == "simulator" else runtime.xp

    def new(self, make: Callable[..., Array], shape: tuple[int, ...], dtype: Any, zeros: bool) -> Array:
        """A new array."""
        return self.xp.zeros(shape, dtype) if zeros else self.xp.empty(shape, dtype)

    def launched(self, plan: Plan, arrays: Sequence[Array | None]) -> bool:
        """Collect the programs of a launch, the generic one that may serve first included, without launching it."""
        for each in (plan, plan.generic):
            if each is not None and each.source is not None:
                self.sources[each.source, each.device.index] = each.device
        return False

    def constants(self, arrays: Sequence[Array]) -> None:
        """Do nothing: they are already on the device."""

    def computed(self) -> None:
        """Do nothing: it needs no program."""


class _Untouched:
    """The simulator's functions, with new arrays left untouched."""

    def __init__(self, namespace: Any) -> None:
        self._namespace = namespace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._namespace, name)

    def zeros(self, shape: Any, dtype: Any = float) -> Array:
        """An array of zeros, whose memory is committed on first touch."""
        form = np.zeros(shape, dtype)
        return self._namespace.Array(form, form.reshape(-1).view(np.uint8), None)

    empty = zeros
