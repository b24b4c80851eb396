"""A device to check, GPU or simulator: its backends for both builds, copies to it and back, a record of launches."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.gpu.device import CupyDevice, Device, SimulatedDevice
from gpucnn.backends import Backend
from gpucnn.backends.cuda import CudaBackend
from gpucnn.backends.cuda.device.runtime import Array, Function, Runtime
from gpucnn.backends.cuda.device.runtime import Device as DeviceFacts
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
    """A runtime that records each launch, and uses the given builds."""

    def __init__(self, runtime: Runtime, specialises: bool, recorder: Recorder) -> None:
        self._runtime, self._recorder = runtime, recorder
        self.specialises, self.background = specialises, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def function(self, source: Source, device: DeviceFacts) -> Function:
        function = self._runtime.function(source, device)

        def recorded(grid: Any, block: Any, args: Any, shared_mem: int = 0) -> None:
            self._recorder.names.add(source.name)
            function(grid, block, args, shared_mem)

        return recorded


@dataclass(frozen=True)
class Machine:
    """A device to check; `backends` has one for each build."""

    kind: str  # "cuda" or "simulator"
    runtime: Any
    device: Device
    recorder: Recorder
    backends: dict[str, Backend]

    def put(self, host: Any) -> Array:
        """A copy of a host array on the device, with its strides; raises NotRun for a dtype that CuPy lacks."""
        try:
            return self.device.asarray(host)
        except (TypeError, ValueError) as error:
            raise NotRun(f"CuPy {self.runtime.xp.__version__} has no {host.dtype.name}: {error}") from None

    def get(self, array: Array) -> Any:
        """A copy of a device array on the host."""
        return self.device.asnumpy(array)

    def synchronise(self) -> None:
        """Wait for the device; raises where it was lost."""
        self.device.synchronize()

    def free_bytes(self) -> int:
        """Bytes of available memory."""
        self.device.release()
        return self.device.free_bytes()


def assembled(kind: str, runtime: Any, device: Device) -> Machine:
    """A machine with backends for both builds."""
    recorder = Recorder()
    runtimes: dict[str, Any] = {build: RecordingRuntime(runtime, build == "specialised", recorder) for build in BUILDS}
    return Machine(kind, runtime, device, recorder, {build: CudaBackend(each) for build, each in runtimes.items()})


def machine(kind: str, guard: bool = False) -> Machine:
    """The GPU for ``"cuda"``, the simulator for ``"simulator"``; `guard` keeps GPU arrays out of a common pool."""
    from gpucnn.backends.cuda.device.cupy_runtime import CupyRuntime
    from gpucnn.backends.cuda.device.simulator_runtime import SimulatorRuntime

    if kind == "simulator":
        return assembled(kind, SimulatorRuntime(), SimulatedDevice())
    runtime = CupyRuntime()
    if guard:  # CuPy's pool would hide reads past an array's end
        runtime.xp.cuda.set_allocator(None)
    return assembled(kind, runtime, CupyDevice())
