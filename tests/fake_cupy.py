"""A module that behaves as CuPy does beneath the CUDA backend's runtime, and computes nothing."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


class CUDARuntimeError(RuntimeError):
    """As CuPy's: an error of CUDA with its number."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


NO_DEVICE = CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")
INSUFFICIENT_DRIVER = CUDARuntimeError(35, "cudaErrorInsufficientDriver: CUDA driver version is insufficient")


class FakeKernel:
    """A RawKernel, which writes down its launches."""

    def __init__(self, module: FakeModule, name: str) -> None:
        self.module, self.name = module, name
        self.loaded_on = module.cupy.current
        self.image = Path(module.path).read_bytes()
        self.shared_size_bytes = 1024
        self.settings: list[int] = []
        self.launches: list[tuple[Any, ...]] = []

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        self.launches.append((self.module.cupy.current, grid, block, args, shared_mem))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "max_dynamic_shared_size_bytes":
            self.settings.append(value)
        else:
            super().__setattr__(name, value)


class FakeModule:
    """A RawModule of a file."""

    def __init__(self, cupy: FakeCupy, path: str) -> None:
        self.cupy, self.path = cupy, path

    def get_function(self, name: str) -> FakeKernel:
        if self.cupy.broken:
            raise RuntimeError("CUDA_ERROR_INVALID_IMAGE")
        kernel = FakeKernel(self, name)
        self.cupy.kernels.append(kernel)
        return kernel


class FakeDevice:
    """A device as a context in which it is the current one."""

    def __init__(self, cupy: FakeCupy, index: int) -> None:
        self.cupy, self.id = cupy, index

    def __enter__(self) -> None:
        self.before, self.cupy.current = self.cupy.current, self.id

    def __exit__(self, *_: object) -> None:
        self.cupy.current = self.before


class FakeCupy(ModuleType):
    """The module, for a machine with `devices` GPUs, or where asking for them raises."""

    def __init__(
        self,
        devices: int | Exception = 1,
        version: str = "14.2.0",
        runtime: int = 12090,
        driver: int = 12090,
        is_hip: bool = False,
    ) -> None:
        super().__init__("cupy")
        self.__version__ = version
        self.current = 0
        self.broken = False
        self.kernels: list[FakeKernel] = []
        self.waited: list[int] = []

        def device_count() -> int:
            if isinstance(devices, Exception):
                raise devices
            return devices

        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                is_hip=is_hip,
                getDeviceCount=device_count,
                getDevice=lambda: self.current,
                runtimeGetVersion=lambda: runtime,
                driverGetVersion=lambda: driver,
                getDeviceProperties=lambda index: {
                    "name": f"GPU {index}".encode(), "major": 8, "minor": 6 * index, "multiProcessorCount": 100
                },
            ),
            Device=lambda index: FakeDevice(self, index),
            get_current_stream=lambda: SimpleNamespace(synchronize=lambda: self.waited.append(self.current)),
        )  # fmt: skip

    def asarray(self, host: Any) -> tuple[Any, int]:
        return host, self.current

    def RawModule(self, *, path: str) -> FakeModule:  # noqa: N802
        return FakeModule(self, path)
