"""CuPy as a runtime: the CUDA backend's kernels on a GPU. The only file that imports CuPy, and only when it is used."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from importlib import import_module
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from gpucnn.backends.cuda.device import cublas, nvrtc
from gpucnn.backends.cuda.device.autotune_cache import AutotuneCache
from gpucnn.backends.cuda.device.background import Background
from gpucnn.backends.cuda.device.compiler import Binary, Compiler
from gpucnn.backends.cuda.device.libraries import cublas_version
from gpucnn.backends.cuda.device.runtime import Array, Device, Function
from gpucnn.backends.cuda.device.sources import Source
from gpucnn.backends.dtypes import accumulator
from gpucnn.installing import install_command

BUILDS = ("specialised", "background", "generic")
MIN_CUPY = (13, 0)
SHARED_BY_RIGHT = 48 * 1024  # bytes of shared memory that every block may have; for more a kernel has to ask

_NOTHING = nullcontext()
_NO_DRIVER = 0  # CuPy's driver version where there is no driver
_ERROR_NO_DEVICE = 100
_ERROR_INSUFFICIENT_DRIVER = 35


class CupyRuntime:
    """Arrays and launches of CuPy, on the current stream of the device that holds the arrays.

    Kernels are specialised for the sizes of each call and cached on disk, so that a process compiles only what no
    earlier one did. With ``GPUCNN_BUILDS=generic`` one build serves all sizes, with the same bits: for programs with
    too many sizes. With ``background`` it serves until the specialised one has been compiled in another thread.
    """

    name = "cuda"

    def __init__(self) -> None:
        self.builds = os.environ.get("GPUCNN_BUILDS", "specialised")
        if self.builds not in BUILDS:
            raise ValueError(f"GPUCNN_BUILDS is {self.builds!r}, expected {' or '.join(map(repr, BUILDS))}")
        self.specialises = self.builds != "generic"
        self.background = Background(self) if self.builds == "background" else None
        self.xp: Any = import_module("cupy")
        self._arguments = getattr(self.xp.cuda, "function", None)
        self.null = self._ready("CIntptr", 0, np.uint64(0))
        self.current_device: Callable[[], int] = self.xp.cuda.runtime.getDevice
        self._devices: dict[int, Device] = {}
        self._functions: dict[tuple[Source, int], CupyFunction] = {}
        self._autotune_caches: dict[int, AutotuneCache] = {}

    @cached_property
    def _nvrtc(self) -> nvrtc.Nvrtc:
        return nvrtc.load(_nvrtc_majors(self.xp))

    @cached_property
    def _cublas(self) -> cublas.Cublas:
        _load_cublas()
        return cublas.library((_cuda_major(self.xp),))

    @cached_property
    def compiler(self) -> Compiler:
        """The compiler, its library loaded when the first kernel is wanted."""
        return Compiler(self._nvrtc)

    def device(self, array: Array) -> Device:
        """The device that holds `array`."""
        index = array.data.device_id
        device = self._devices.get(index)
        if device is None:
            device = self._devices[index] = self._facts(index)
        return device

    def _facts(self, index: int) -> Device:
        facts = self.xp.cuda.runtime.getDeviceProperties(index)
        return Device(index, facts["name"].decode(), (facts["major"], facts["minor"]), facts["multiProcessorCount"])

    def using(self, device: Device) -> AbstractContextManager[Any]:
        """Within the block, new arrays and launches go to `device`."""
        if self.current_device() == device.index:
            return _NOTHING
        context: AbstractContextManager[Any] = self.xp.cuda.Device(device.index)
        return context

    def constant(self, host: Any, device: Device) -> Array:
        """A copy of `host` on `device`; synchronous, since it is made once and kept."""
        with self.using(device):
            array = self.xp.asarray(host)
            self.xp.cuda.get_current_stream().synchronize()
        return array

    def function(self, source: Source, device: Device) -> Function:
        """The kernel of `source` on `device`, compiled or from the cache.

        Raises
        ------
        CompilationError
            It does not compile, or NVRTC cannot target the device.
        """
        function = self._functions.get((source, device.index))
        if function is None:
            binary = self.compiler.compile(source, self._architecture(device))
            with self.using(device):
                function = CupyFunction(self.xp, self._kernel(binary, source), device.index)
            self._functions[source, device.index] = function
        return function

    def _architecture(self, device: Device) -> str:
        return nvrtc.architecture(device.compute_capability, self._nvrtc.supported)

    def prepare(self, source: Source, device: Device) -> bool:
        """Compile to the disk cache; return whether it was missing there. Thread-safe."""
        loaded = (source, device.index) in self._functions
        return not loaded and self.compiler.compile(source, self._architecture(device)).is_new

    def is_built(self, source: Source, device: Device) -> bool:
        """Whether the kernel of `source` is loaded on `device`, or its binary in the cache."""
        loaded = (source, device.index) in self._functions
        return loaded or self.compiler.find(source, self._architecture(device)) is not None

    def is_capturing(self) -> bool:
        """Whether CuPy's current stream is being captured in a graph."""
        capturing: bool = self.xp.cuda.get_current_stream().is_capturing()
        return capturing

    def product(self, factors: np.dtype[Any], result: np.dtype[Any], precision: str, device: Device) -> Function:
        """CuBLAS's products of `factors` with a `result` on `device`."""
        types = (cublas.data_type(factors.name), cublas.data_type(result.name))
        compute = cublas.compute_type(factors.name, precision)
        scales = np.array([1, 0], accumulator(factors))
        return cublas.CublasProduct(self._cublas, self.xp, device, (*types, compute), scales)

    def by_value(self, structure: np.ndarray[Any, Any]) -> Any:
        """The structure in the form that CuPy passes to kernels, so that launches need not convert it."""
        return self._ready("CNumpyArray", structure, structure)

    def _ready(self, kind: str, value: Any, other: Any) -> Any:
        """`value` as one of CuPy's argument objects, which launches take as they are; `other` where CuPy has none.

        CuPy converts `other` in each launch: in a microsecond, if it is a host array.
        """
        make = getattr(self._arguments, kind, None)
        return other if make is None else make(value)

    def here(self, function: Function, shared_bytes: int) -> Callable[..., None]:
        """CuPy's own function: `function` was launched with this much shared memory before."""
        bare: Callable[..., None] = function.bare if isinstance(function, CupyFunction) else function
        return bare

    def maker(
        self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any], zeros: bool
    ) -> Callable[[], Array]:
        """A factory of arrays in the memory of CuPy's current allocator."""
        if strides == tuple(prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape))):  # in C order
            return partial(self.xp.zeros if zeros else self.xp.ndarray, shape, dtype)
        return partial(self._strided, shape, strides, dtype, prod(shape) * dtype.itemsize, zeros)

    def _strided(
        self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any], nbytes: int, zeros: bool
    ) -> Array:
        memory = self.xp.cuda.alloc(nbytes)
        if zeros:
            memory.memset_async(0, nbytes)
        return self.xp.ndarray(shape, dtype, memory, strides)

    def autotune_cache(self, anew: bool = False) -> AutotuneCache:
        """The picks for the current device and this driver: as first read, or reread if `anew`."""
        index = self.current_device()
        if anew or index not in self._autotune_caches:
            self._autotune_caches[index] = AutotuneCache(self._facts(index), self.xp.cuda.runtime.driverGetVersion())
        return self._autotune_caches[index]

    def milliseconds(self, call: Callable[[], object], runs: int) -> float:
        """The median time of `call` on the device over `runs` runs on the current stream; synchronous."""
        cuda, times = self.xp.cuda, []
        for _ in range(runs):
            begin, end = cuda.Event(), cuda.Event()
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(float(cuda.get_elapsed_time(begin, end)))
        return median(times)

    def _kernel(self, binary: Binary, source: Source) -> Any:
        """CuPy's RawKernel, loaded on the current device."""
        if binary.path is not None:
            return self._loaded(binary.path, source)
        with tempfile.TemporaryDirectory(prefix="gpucnn-") as folder:
            path = Path(folder, binary.name)
            path.write_bytes(binary.image)
            return self._loaded(path, source)

    def _loaded(self, path: Path, source: Source) -> Any:
        try:
            return self.xp.RawModule(path=str(path)).get_function(source.kernel)
        except Exception as error:
            error.add_note(f"gpucnn: the driver did not load {source.name} from {path}")
            raise


class CupyFunction:
    """A kernel that was loaded on the current device, and is always launched on that device.

    Attributes
    ----------
    bare : callable
        CuPy's function, for where that device is the current one.
    """

    def __init__(self, cupy: Any, kernel: Any, index: int) -> None:
        self._cupy = cupy
        self._kernel = kernel
        self._index = index
        self._dynamic_shared = SHARED_BY_RIGHT - kernel.shared_size_bytes  # bytes that a launch may have
        self.bare = getattr(kernel, "kernel", kernel)  # without the search for the current device's one

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared_mem: int = 0
    ) -> None:
        """Launch on the current stream of the kernel's device, without waiting."""
        if self._cupy.cuda.runtime.getDevice() != self._index:
            with self._cupy.cuda.Device(self._index):
                self(grid, block, args, shared_mem)
            return
        if shared_mem > self._dynamic_shared:
            self._kernel.max_dynamic_shared_size_bytes = shared_mem
            self._dynamic_shared = shared_mem
        self.bare(grid, block, args, shared_mem=shared_mem)


def _cuda_major(cupy: Any) -> int:
    """The major version of CUDA that CuPy was built for."""
    version: int = cupy.cuda.runtime.runtimeGetVersion()
    return version // 1000


def _nvrtc_majors(cupy: Any) -> tuple[int, ...]:
    """CUDA's major versions whose binaries this machine's driver loads, CuPy's own first."""
    own = _cuda_major(cupy)
    driver = cupy.cuda.runtime.driverGetVersion() // 1000
    return (own, *(major for major in nvrtc.MAJORS if major != own and major <= driver))


# --- What there is ------------------------------------------------------------------------------------------------


def facts() -> dict[str, Any]:
    """The GPUs, the driver, CUDA and its compiler as plain values, where `why_unavailable` returns None."""
    runtime = CupyRuntime()
    cuda = runtime.xp.cuda.runtime
    devices = [runtime._facts(index) for index in range(cuda.getDeviceCount())]
    return {
        "devices": [
            f"{device.name} (compute capability {'.'.join(map(str, device.compute_capability))}, "
            f"{device.multiprocessors} multiprocessors)"
            for device in devices
        ],
        "driver": f"for CUDA {_version(cuda.driverGetVersion())}",
        "runtime": f"CUDA {_version(cuda.runtimeGetVersion())}",
        "nvrtc": ".".join(map(str, runtime._nvrtc.version)),
        "builds": runtime.builds,
        "cublas": cublas_version(_cuda_major(runtime.xp)),
    }


def _load_cublas() -> None:
    """Let CuPy load cuBLAS; it is an attribute of a package, and importing the module would not search for it."""
    from cupy_backends.cuda.libs import cublas as _  # noqa: F401


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


# --- Why there is none --------------------------------------------------------------------------------------------


def why_unavailable() -> str | None:
    """One sentence with the missing requirement for a GPU and its remedy; None where nothing is missing.

    CuPy is imported to find out.
    """
    try:
        cupy: Any = import_module("cupy")
        return _why_cupy_is_unfit(cupy) or _why_no_device(cupy) or _why_no_library(cupy)
    except Exception as error:  # a broken installation may fail in any way
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            return (
                f"CuPy is not installed: {install_command('cuda12')}; for a driver of CUDA 13, cuda13 instead of cuda12"
            )
        return f"CuPy is installed but does not work, {type(error).__name__}: {_in_one_line(error)}"


def _why_cupy_is_unfit(cupy: Any) -> str | None:
    version = tuple(int(part) for part in cupy.__version__.split(".")[:2] if part.isdigit())
    if version < MIN_CUPY:
        least = ".".join(map(str, MIN_CUPY))
        return f"CuPy {cupy.__version__} is too old, expected {least} or later: {install_command('cuda12')}"
    if cupy.cuda.runtime.is_hip:
        return "this CuPy is built for AMD's GPUs, expected one for NVIDIA's: cupy-cuda12x or cupy-cuda13x"
    return None


def _why_no_device(cupy: Any) -> str | None:
    runtime = cupy.cuda.runtime
    try:
        if runtime.getDeviceCount() > 0:
            return None
    except runtime.CUDARuntimeError as error:
        if error.status == _ERROR_INSUFFICIENT_DRIVER:
            return _why_no_driver(runtime)
        if error.status != _ERROR_NO_DEVICE:
            return f"CUDA does not start on this machine: {_in_one_line(error)}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"no GPU is visible: CUDA_VISIBLE_DEVICES is {visible!r}, expected the number of a GPU, or not to be set"
    return "the NVIDIA driver finds no GPU: nvidia-smi should list one, and a container needs to be given it"


def _why_no_driver(runtime: Any) -> str:
    needed = runtime.runtimeGetVersion() // 1000
    driver = runtime.driverGetVersion()
    if driver == _NO_DRIVER:
        return (
            f"there is no NVIDIA driver: install one for CUDA {needed}, or where there is one give the container its "
            "GPUs (docker run --gpus all)"
        )
    major = driver // 1000
    other = f", or install cupy-cuda{major}x in place of this CuPy" if major in nvrtc.MAJORS else ""
    return f"the NVIDIA driver is too old, it is for CUDA {major} and CuPy for CUDA {needed}: update it{other}"


def _why_no_library(cupy: Any) -> str | None:
    try:
        nvrtc.load(_nvrtc_majors(cupy))
        _load_cublas()
    except nvrtc.NvrtcNotFoundError as error:
        return str(error)
    except ImportError:
        return (
            f"CuPy does not load the library cuBLAS of CUDA {_cuda_major(cupy)}: pip install nvidia-cublas-cu12 for "
            "CUDA 12, nvidia-cublas for CUDA 13, or set CUDA_PATH"
        )
    return None


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
