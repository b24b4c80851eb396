"""A module that behaves as CuPy does beneath the CUDA backend's runtime, and computes nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from gpucnn.backends.cuda.device.nvrtc import Compiled


class CUDARuntimeError(RuntimeError):
    """As CuPy's: an error of CUDA with its number."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


NO_DEVICE = CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")
INSUFFICIENT_DRIVER = CUDARuntimeError(35, "cudaErrorInsufficientDriver: CUDA driver version is insufficient")


def elf(payload: bytes = b"code") -> bytes:
    """The least that is an ELF file: a header, `payload`, and a table of one section."""
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    header[0x28:0x30] = (64 + len(payload)).to_bytes(8, "little")
    header[0x3A:0x3C] = (64).to_bytes(2, "little")
    header[0x3C:0x3E] = (1).to_bytes(2, "little")
    return bytes(header) + payload + bytes(64)


class FakeNvrtc:
    """A compiler whose binaries hold what they were compiled from."""

    version = (12, 9)
    supported = (80, 86, 90)

    def compile(self, text: str, name: str, options: Sequence[str]) -> Compiled:
        content = f"{text}{options}".encode()
        return Compiled(b".version " + content if "-arch=compute_90" in options else elf(content), "")


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


class FakeMemory:
    """Where an array begins, and on which device."""

    __slots__ = ("cupy", "device_id", "ptr")

    def __init__(self, cupy: FakeCupy, ptr: int, device_id: int) -> None:
        self.cupy, self.ptr, self.device_id = cupy, ptr, device_id

    def memset_async(self, value: int, nbytes: int) -> None:
        self.cupy.computed.append("memset")
        self.cupy.stream.append(("memset", value, nbytes))


class FakeArray:
    """An array as a device holds it: its form and its address, and no values."""

    __slots__ = ("_host", "data", "dtype", "itemsize", "nbytes", "ndim", "shape", "size", "strides")
    cupy: FakeCupy

    def __init__(self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None) -> None:
        host: np.ndarray[Any, Any] = np.ndarray(shape, dtype)
        if strides is not None:
            host = np.lib.stride_tricks.as_strided(host, shape, strides)
        self._hold(host, self.cupy.alloc(host.nbytes) if memptr is None else memptr)

    def _hold(self, host: np.ndarray[Any, Any], data: FakeMemory) -> None:
        self._host, self.data = host, data
        self.shape, self.strides, self.dtype = host.shape, host.strides, host.dtype
        self.ndim, self.size, self.itemsize, self.nbytes = host.ndim, host.size, host.itemsize, host.nbytes

    def _view(self, host: np.ndarray[Any, Any]) -> FakeArray:
        offset = host.__array_interface__["data"][0] - self._host.__array_interface__["data"][0]
        view = object.__new__(type(self))
        view._hold(host, FakeMemory(self.cupy, self.data.ptr + offset, self.data.device_id))
        return view

    @property
    def device(self) -> FakeDevice:
        return FakeDevice(self.cupy, self.data.device_id)

    @property
    def flags(self) -> Any:
        return SimpleNamespace(c_contiguous=self._host.flags.c_contiguous)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.cupy.computed.append("copy")

    def __dlpack__(self) -> None:
        raise NotImplementedError

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.data.device_id

    def __getitem__(self, index: Any) -> FakeArray:
        return self._view(self._host[index])

    def reshape(self, *shape: Any) -> FakeArray:
        host = self._host.reshape(*shape)
        return self._view(host) if np.may_share_memory(host, self._host) else self._computed("reshape", host)

    def swapaxes(self, one: int, other: int) -> FakeArray:
        return self._view(self._host.swapaxes(one, other))

    def transpose(self, *axes: Any) -> FakeArray:
        return self._view(self._host.transpose(*axes))

    def copy(self) -> FakeArray:
        return self._computed("copy", self._host)

    def astype(self, dtype: Any, copy: bool = True) -> FakeArray:
        return self if not copy and self.dtype == dtype else self._computed("astype", self._host.astype(dtype))

    def _computed(self, what: str, host: np.ndarray[Any, Any]) -> FakeArray:
        self.cupy.computed.append(what)
        return type(self)(host.shape, host.dtype)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AssertionError(f"a call asked an array for {name}")


class FakeEvent:
    """An event whose time is its place in the stream; done when it was waited for."""

    def __init__(self, cupy: FakeCupy) -> None:
        self.cupy, self.place, self.done = cupy, 0, False

    def record(self) -> None:
        self.place = len(self.cupy.stream)
        self.cupy.stream.append("event")

    def synchronize(self) -> None:
        self.done = True


class FakeLibraries(ModuleType):
    """CuPy's package of bindings: only what is asked of it as an attribute has its library loaded, and imports."""

    def __init__(self, cupy: FakeCupy) -> None:
        super().__init__("cupy_backends.cuda.libs")
        self.__path__: list[str] = []  # where the import system finds no module
        self._cupy = cupy

    def __getattr__(self, name: str) -> Any:
        if name != "cublas":
            raise AttributeError(name)
        if not self._cupy.has_cublas:
            raise ImportError('Failure finding "libcublas.so.13 or libcublas.so.12"')
        return self._cupy.cublas


class FakeCupy(ModuleType):
    """The module, for a machine with `devices` GPUs, or where asking for them raises."""

    def __init__(
        self,
        devices: int | Exception = 1,
        version: str = "14.2.0",
        runtime: int = 12090,
        driver: int = 12090,
        is_hip: bool = False,
        has_cublas: bool = True,
        l2_bytes: int = 1 << 20,
        stream: int = 0,
    ) -> None:
        super().__init__("cupy")
        self.__version__ = version
        self.current = 0
        self.broken = False
        self.kernels: list[FakeKernel] = []
        self.waited: list[int] = []
        self.ndarray: Any = type("ndarray", (FakeArray,), {"__module__": "cupy", "__slots__": (), "cupy": self})
        self.capturing = False  # whether a stream is: then nothing may wait, copy from the host or load
        self.computed: list[str] = []  # what was done beside launches
        self.stream: list[Any] = []  # events, kernels of a text, and what sets memory
        self.freed = 0
        self.allocated = 0
        self._end = 1 << 40
        self.products: list[tuple[Any, ...]] = []  # the arguments of cuBLAS's calls
        self.has_cublas = has_cublas
        self.cublas = SimpleNamespace(gemmStridedBatchedEx=lambda *arguments: self.products.append(arguments))

        def freed() -> None:
            self.freed += 1

        def device_count() -> int:
            if isinstance(devices, Exception):
                raise devices
            return devices

        def allowed(function: Any) -> Any:
            def called(*args: Any, **named: Any) -> Any:
                assert not self.capturing, "a stream cannot capture this"
                return function(*args, **named)

            return called

        self.RawKernel = lambda source, name: lambda *launch: self.stream.append((name, *launch))
        self.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=freed)
        self.RawModule = allowed(lambda *, path: FakeModule(self, path))
        self.asarray = allowed(lambda host: self.ndarray(host.shape, host.dtype))
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                is_hip=is_hip,
                getDeviceCount=device_count,
                getDevice=lambda: self.current,
                runtimeGetVersion=lambda: runtime,
                driverGetVersion=lambda: driver,
                getDeviceProperties=allowed(lambda index: {
                    "name": f"GPU {index}".encode(), "major": 8, "minor": 6 * index, "multiProcessorCount": 100,
                    "l2CacheSize": l2_bytes, "totalGlobalMem": 1 << 34,
                }),
                memGetInfo=lambda: (1 << 33, 1 << 34),
            ),
            Event=lambda: FakeEvent(self),
            get_elapsed_time=lambda first, last: 1e3 * (last.place - first.place),
            Device=lambda index: FakeDevice(self, index),
            alloc=self.alloc,
            get_cublas_handle=lambda: 1000 + self.current,
            get_current_stream=lambda: SimpleNamespace(
                ptr=stream, synchronize=allowed(lambda: self.waited.append(self.current))
            ),
        )  # fmt: skip

    def install(self, monkeypatch: Any) -> None:
        """Let this be what `import cupy` finds."""
        monkeypatch.setitem(sys.modules, "cupy", self)
        monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", FakeLibraries(self))
        monkeypatch.delitem(sys.modules, "cupy_backends.cuda.libs.cublas", raising=False)

    def queued(self) -> int:
        """How many launches and products there were."""
        return sum(len(kernel.launches) for kernel in self.kernels) + len(self.products)

    def empty(self, shape: Any, dtype: Any = float, order: str = "C") -> FakeArray:
        return self.ndarray(shape, dtype)

    def zeros(self, shape: Any, dtype: Any = float) -> FakeArray:
        self.computed.append("zeros")
        return self.empty(shape, dtype)

    def empty_like(self, prototype: FakeArray) -> FakeArray:
        host = np.empty_like(prototype._host)
        return self.ndarray(host.shape, host.dtype, self.alloc(host.nbytes), host.strides)

    def moveaxis(self, array: FakeArray, source: int, destination: int) -> FakeArray:
        return array._view(np.moveaxis(array._host, source, destination))

    def alloc(self, nbytes: int) -> FakeMemory:
        self.allocated += 1
        address, self._end = self._end, self._end + -(-nbytes // 512) * 512
        return FakeMemory(self, address, self.current)
