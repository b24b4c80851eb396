"""A device to check, GPU or simulator: its backends for both builds, arrays to it and back, and what was launched."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends import Backend
from gpucnn.backends.cuda import CudaBackend
from gpucnn.backends.cuda.device.runtime import Array, Device, Function, Runtime
from gpucnn.backends.cuda.device.sources import Source

BUILDS = ("specialised", "generic")
_NAME = re.compile(r"^(\w+)\[(\w+),(\w+),(\w+)(?:,[^\]]*)?\]$")


class NotRun(Exception):  # noqa: N818 - it says why, and is no error
    """A check cannot be made on this device; the message is the reason."""


class KernelBuild(NamedTuple):
    """One program: which kernel, for which arrays, with which index type, generic or built for the sizes."""

    kernel: str
    dtype: str
    index: str
    build: str

    @classmethod
    def of(cls, name: str) -> KernelBuild:
        """From a source's name, as ``conv_forward[float32,int32,generic]``."""
        match = _NAME.match(name)
        return cls(*match.groups()) if match else cls(name, "", "", "")


@dataclass
class Recorder:
    """The names of the programs launched since the last `drain`."""

    names: set[str] = field(default_factory=set)

    def drain(self) -> list[str]:
        names, self.names = sorted(self.names), set()
        return names


class RecordingRuntime:
    """A runtime that notes each launch, and uses the builds that it is told to."""

    def __init__(self, runtime: Runtime, specialises: bool, recorder: Recorder) -> None:
        self._runtime, self._recorder = runtime, recorder
        self.specialises = specialises

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def function(self, source: Source, device: Device) -> Function:
        function = self._runtime.function(source, device)

        def recorded(grid: Any, block: Any, args: Any, shared_mem: int = 0) -> None:
            self._recorder.names.add(source.name)
            function(grid, block, args, shared_mem)

        return recorded


@dataclass(frozen=True)
class Machine:
    """What checks run on. `backends` has one for each build; `put` keeps strides and raises NotRun for some dtypes."""

    kind: str  # "cuda" or "simulator"
    runtime: Runtime
    put: Callable[[Any], Array]
    get: Callable[[Array], Any]
    synchronise: Callable[[], None]
    free_bytes: Callable[[], int]
    recorder: Recorder
    backends: dict[str, Backend]


def machine(kind: str, guard: bool = False) -> Machine:
    """The GPU for ``"cuda"``, the simulator for ``"simulator"``; `guard` gives each GPU array memory of its own."""
    return _simulator() if kind == "simulator" else _gpu(guard)


def assembled(kind: str, runtime: Runtime, **functions: Any) -> Machine:
    recorder = Recorder()
    runtimes: dict[str, Any] = {build: RecordingRuntime(runtime, build == "specialised", recorder) for build in BUILDS}
    backends: dict[str, Backend] = {build: CudaBackend(each) for build, each in runtimes.items()}
    return Machine(kind, runtime, recorder=recorder, backends=backends, **functions)


def _simulator() -> Machine:
    from gpucnn import simulator
    from gpucnn.backends.cuda.device.simulator_runtime import SimulatorRuntime

    return assembled(
        "simulator",
        SimulatorRuntime(),
        put=simulator.asarray,
        get=simulator.asnumpy,
        synchronise=lambda: None,
        free_bytes=lambda: 0,
    )


def _gpu(guard: bool) -> Machine:
    from gpucnn.backends.cuda.device.cupy_runtime import CupyRuntime

    runtime = CupyRuntime()
    cupy = runtime.xp
    if guard:  # CuPy's pool would hide reads past an array's end
        cupy.cuda.set_allocator(None)

    def put(host: Any) -> Array:
        order = memory_order(host)
        try:
            array = cupy.asarray(np.ascontiguousarray(host.transpose(order)))
        except (TypeError, ValueError) as error:
            raise NotRun(f"CuPy {cupy.__version__} has no {host.dtype.name}: {error}") from None
        return array.transpose(np.argsort(order).tolist())

    def free_bytes() -> int:
        cupy.get_default_memory_pool().free_all_blocks()
        return int(cupy.cuda.runtime.memGetInfo()[0])

    return assembled(
        "cuda",
        runtime,
        put=put,
        get=lambda array: array.get(),
        synchronise=cupy.cuda.runtime.deviceSynchronize,
        free_bytes=free_bytes,
    )


def memory_order(array: Any) -> list[int]:
    """The axes of `array` from the outermost to the innermost in memory."""
    return sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
