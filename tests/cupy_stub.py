"""The least of CuPy that says why there is no GPU: versions, errors and the number of devices. It has no arrays."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class CUDARuntimeError(RuntimeError):
    """As CuPy's: an error of CUDA with its number."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


NO_DEVICE = CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")
INSUFFICIENT_DRIVER = CUDARuntimeError(35, "cudaErrorInsufficientDriver: CUDA driver version is insufficient")


class CupyStub(ModuleType):
    """The module, for a machine with `devices` GPUs, or where asking for them raises."""

    def __init__(
        self,
        devices: int | Exception = 1,
        version: str = "14.2.0",
        runtime: int = 12090,
        driver: int = 12090,
        is_hip: bool = False,
        has_cublas: bool = True,
    ) -> None:
        super().__init__("cupy")
        self.__version__ = version
        self.has_cublas = has_cublas

        def device_count() -> int:
            if isinstance(devices, Exception):
                raise devices
            return devices

        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                is_hip=is_hip,
                getDeviceCount=device_count,
                runtimeGetVersion=lambda: runtime,
                driverGetVersion=lambda: driver,
            )
        )

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this be what `import cupy` finds, and cuBLAS what CuPy's package of bindings has."""
        bindings: Any = ModuleType("cupy_backends.cuda.libs")
        bindings.__getattr__ = self._binding  # CuPy loads a library when its binding is asked for
        bindings.__path__ = []  # where the import system finds no module
        monkeypatch.setitem(sys.modules, "cupy", self)
        monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", bindings)
        monkeypatch.delitem(sys.modules, "cupy_backends.cuda.libs.cublas", raising=False)

    def _binding(self, name: str) -> Any:
        if name != "cublas":
            raise AttributeError(name)
        if not self.has_cublas:
            raise ImportError('Failure finding "libcublas.so.13 or libcublas.so.12"')
        return SimpleNamespace()
