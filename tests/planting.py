"""Kernels with something changed in them: the sources are read as they stand but for one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from gpucnn.backends.cuda import CudaBackend
from gpucnn.backends.cuda.device import sources
from gpucnn.backends.cuda.device.simulator_runtime import SimulatorRuntime


@contextmanager
def planted(file: str, text: str) -> Iterator[CudaBackend]:
    """A CUDA backend on the simulator for which kernels/`file` reads `text`."""
    original = sources._text

    def changed(name: str) -> str:
        return text if name == file else original(name)

    with mock.patch.object(sources, "_text", changed):
        yield CudaBackend(SimulatorRuntime())


def replaced(file: str, old: str, new: str) -> str:
    """The text of kernels/`file` with `old`, which must stand in it once, as `new`."""
    text = sources._text(file)
    assert text.count(old) == 1, f"{file} has {old!r} {text.count(old)} times"
    return text.replace(old, new)
