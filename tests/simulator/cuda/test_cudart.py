"""The simulated CUDA runtime through ctypes: what it adds to the driver, and that it reaches the driver."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driver_calls import CUDA_VERSION, REASON, Calls

from gpucnn.simulator import cuda
from gpucnn.simulator.cuda import libraries

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, INVALID_CHANNELS, INVALID_DIRECTION = 0, 1, 2, 20, 21
INVALID_DEVICE, INVALID_HANDLE, NOT_READY, PEER_NOT_ENABLED, NOT_SUPPORTED = 101, 400, 600, 705, 801
HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT = range(5)
UNREGISTERED, HOST, DEVICE, MANAGED = range(4)
FLOAT = 2
NON_BLOCKING = 1

# Names that libcudart exports: what runtime.pyx of CuPy 13 and 14 calls.
ENTRY_POINTS = """
    cudaDeviceCanAccessPeer cudaDeviceDisablePeerAccess cudaDeviceEnablePeerAccess cudaDeviceGetAttribute
    cudaDeviceGetByPCIBusId cudaDeviceGetDefaultMemPool cudaDeviceGetLimit cudaDeviceGetMemPool cudaDeviceGetPCIBusId
    cudaDeviceSetLimit cudaDeviceSetMemPool cudaDeviceSynchronize cudaDriverGetVersion cudaEventCreate
    cudaEventCreateWithFlags cudaEventDestroy cudaEventElapsedTime cudaEventQuery cudaEventRecord cudaEventSynchronize
    cudaFree cudaFreeArray cudaFreeAsync cudaFreeHost cudaGetChannelDesc cudaGetDevice cudaGetDeviceCount
    cudaGetErrorName cudaGetErrorString cudaGetLastError cudaGraphDebugDotPrint cudaGraphDestroy cudaGraphExecDestroy
    cudaGraphInstantiate cudaGraphLaunch cudaGraphUpload cudaHostAlloc cudaHostRegister cudaHostUnregister
    cudaIpcCloseMemHandle cudaIpcGetEventHandle cudaIpcGetMemHandle cudaIpcOpenEventHandle cudaIpcOpenMemHandle
    cudaLaunchHostFunc cudaMalloc cudaMalloc3DArray cudaMallocArray cudaMallocAsync cudaMallocFromPoolAsync
    cudaMallocManaged cudaMemAdvise cudaMemGetInfo cudaMemPoolCreate cudaMemPoolDestroy cudaMemPoolGetAttribute
    cudaMemPoolSetAttribute cudaMemPoolTrimTo cudaMemPrefetchAsync cudaMemcpy cudaMemcpy2D cudaMemcpy2DAsync
    cudaMemcpy2DFromArray cudaMemcpy2DFromArrayAsync cudaMemcpy2DToArray cudaMemcpy2DToArrayAsync cudaMemcpy3D
    cudaMemcpy3DAsync cudaMemcpyAsync cudaMemcpyPeer cudaMemcpyPeerAsync cudaMemset cudaMemsetAsync
    cudaPeekAtLastError cudaPointerGetAttributes cudaProfilerStart cudaProfilerStop cudaRuntimeGetVersion cudaSetDevice
    cudaStreamAddCallback cudaStreamBeginCapture cudaStreamCreate cudaStreamCreateWithFlags
    cudaStreamCreateWithPriority cudaStreamDestroy cudaStreamEndCapture cudaStreamGetFlags cudaStreamGetPriority
    cudaStreamIsCapturing cudaStreamQuery cudaStreamSynchronize cudaStreamWaitEvent
"""
NOT_SIMULATED = """
    cudaCreateSurfaceObject cudaCreateTextureObject cudaDestroySurfaceObject cudaDestroyTextureObject
    cudaGetTextureObjectResourceDesc cudaGetTextureObjectTextureDesc cudaIpcCloseMemHandle
    cudaIpcGetEventHandle cudaIpcGetMemHandle
"""


class Location(ctypes.Structure):
    """cudaMemLocation."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class PointerAttributes(ctypes.Structure):
    """cudaPointerAttributes; CUDA 13 has more at its end."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("device", ctypes.c_int),
        ("device_pointer", ctypes.c_void_p),
        ("host_pointer", ctypes.c_void_p),
        ("reserved", ctypes.c_long * 8),
    )


class ChannelFormat(ctypes.Structure):
    """cudaChannelFormatDesc."""

    _fields_ = (*((name, ctypes.c_int) for name in "xyzw"), ("kind", ctypes.c_int))


class Extent(ctypes.Structure):
    """cudaExtent, and cudaPos with its names."""

    _fields_ = (("width", ctypes.c_size_t), ("height", ctypes.c_size_t), ("depth", ctypes.c_size_t))


class Pitched(ctypes.Structure):
    """cudaPitchedPtr."""

    _fields_ = (
        ("pointer", ctypes.c_void_p),
        ("pitch", ctypes.c_size_t),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    )


class Copy3D(ctypes.Structure):
    """cudaMemcpy3DParms."""

    _fields_ = (
        ("source_array", ctypes.c_void_p),
        ("source_position", Extent),
        ("source", Pitched),
        ("destination_array", ctypes.c_void_p),
        ("destination_position", Extent),
        ("destination", Pitched),
        ("extent", Extent),
        ("kind", ctypes.c_int),
    )


class Runtime(Calls):
    """The simulated runtime."""

    def text(self, status: int) -> str:
        return self.string("cudaGetErrorString", status)

    def string(self, function: str, status: int) -> str:
        entry = getattr(self.library, function)
        entry.restype = ctypes.c_char_p
        found: bytes = entry(status)
        return found.decode()

    def number_after(self, function: str, handle: int) -> int:
        """The number that a function gives through its second argument."""
        result = ctypes.c_int()
        self(function, handle, ctypes.byref(result))
        return result.value

    def malloc(self, nbytes: int) -> int:
        return self.number("cudaMalloc", nbytes)

    def upload(self, array: np.ndarray[Any, Any]) -> int:
        pointer = self.malloc(array.nbytes)
        self("cudaMemcpy", pointer, array.ctypes.data, array.nbytes, HOST_TO_DEVICE)
        return pointer

    def download(self, pointer: int, like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        array = np.empty_like(like)
        self("cudaMemcpy", array.ctypes.data, pointer, array.nbytes, DEVICE_TO_HOST)
        return array


def library_path() -> Path | None:
    """The file of the simulated runtime: built from NVIDIA's headers, or the environment's; None without either."""
    headers = os.environ.get("GPUCNN_CUDA_HEADERS")
    if headers:
        job = libraries._Job(libraries.HERE, Path(headers), CUDA_VERSION, print)
        built: dict[str, Path] = {}
        for library in libraries.LIBRARIES[:2]:
            objects = [job.compile(library, source) for source in libraries.sources_of(library)]
            built[library.name] = job.link(library, library.sonames[12], objects, list(built.values()))
        return built["cudart"]
    package = importlib.util.find_spec("gpucnn_cuda")
    if package is None or package.origin is None:
        return None
    found = sorted(Path(package.origin).parent.rglob("libcudart.so.*"))
    return found[0] if found else None


@pytest.fixture(scope="session")
def loaded(small_driver: Calls) -> Runtime:
    """The library, over the driver that the process has loaded first."""
    path = library_path()
    if path is None:
        pytest.skip(REASON)
    if importlib.util.find_spec("gpucnn_cuda"):
        importlib.import_module("cupy")
    return Runtime(path)


@pytest.fixture
def cudart(loaded: Runtime) -> Iterator[Runtime]:
    """The runtime on device 0, without a last error. The test must leave no memory behind."""
    before = cuda.marker()
    loaded("cudaSetDevice", 0)
    loaded.library.cudaGetLastError()
    yield loaded
    loaded("cudaDeviceSynchronize")
    assert cuda.live_allocations(since=before) == []


# ---- Names -----------------------------------------------------------------------------------------------------------


def test_every_entry_point_of_cupy_is_exported(loaded: Runtime) -> None:
    names = {*ENTRY_POINTS.split(), *NOT_SIMULATED.split()}
    assert [name for name in names if not hasattr(loaded.library, name)] == []


def test_nothing_else_is_exported(loaded: Runtime) -> None:
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", loaded.library._name], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1].partition("@")[0] for line in listed.splitlines()}
    others = {"cudaGetDeviceProperties", "cudaGetDeviceProperties_v2", "cudaIpcOpenEventHandle", "cudaIpcOpenMemHandle"}
    known = {*ENTRY_POINTS.split(), *NOT_SIMULATED.split(), *others}
    assert {name for name in names if name.startswith("cu")} - known == set()


# ---- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (0, "cudaSuccess"),
        (1, "cudaErrorInvalidValue"),
        (2, "cudaErrorMemoryAllocation"),
        (9, "cudaErrorInvalidConfiguration"),
        (98, "cudaErrorInvalidDeviceFunction"),
        (400, "cudaErrorInvalidResourceHandle"),
        (719, "cudaErrorLaunchFailure"),
        (801, "cudaErrorNotSupported"),
        (999, "cudaErrorUnknown"),
        (12345, "unrecognized error code"),
    ],
)
def test_names_of_errors(cudart: Runtime, status: int, name: str) -> None:
    assert cudart.string("cudaGetErrorName", status) == name


def test_texts_of_errors(cudart: Runtime) -> None:
    cudart.status("cudaGetDeviceCount", ctypes.byref(ctypes.c_int()))  # the detail of earlier failures is forgotten
    assert cudart.text(2) == "out of memory"  # one that the driver has
    assert cudart.text(9) == "the launch asks for more threads or memory than the device has"
    assert cudart.text(12345) == "unrecognized error code"


def test_the_last_error_stays_until_it_is_read(cudart: Runtime) -> None:
    assert cudart.status("cudaSetDevice", 1000) == INVALID_DEVICE
    cudart("cudaSetDevice", 0)
    assert cudart.status("cudaPeekAtLastError") == INVALID_DEVICE
    assert cudart.status("cudaGetLastError") == INVALID_DEVICE
    assert cudart.status("cudaGetLastError") == SUCCESS


def test_each_thread_has_its_last_error(cudart: Runtime) -> None:
    found: list[int] = []
    assert cudart.status("cudaSetDevice", 1000) == INVALID_DEVICE
    thread = threading.Thread(target=lambda: found.append(cudart.status("cudaGetLastError")))
    thread.start()
    thread.join()
    assert found == [SUCCESS]
    assert cudart.status("cudaGetLastError") == INVALID_DEVICE


def test_the_text_of_a_failure_has_its_detail(cudart: Runtime) -> None:
    pointer = cudart.malloc(64)
    status = cudart.status("cudaMemset", pointer, 0, 65)
    assert status == INVALID_VALUE
    assert cudart.text(status).startswith("invalid argument: ")
    cudart("cudaFree", pointer)


def test_injected_failures(cudart: Runtime) -> None:
    with cuda.failing("cuMemAlloc", error="out_of_memory") as failure:
        assert cudart.status("cudaMalloc", ctypes.byref(ctypes.c_void_p()), 64) == OUT_OF_MEMORY
    assert failure.injected == 1
    assert cudart.status("cudaGetLastError") == OUT_OF_MEMORY
    with cuda.failing("cudaRuntimeGetVersion", error="not_ready"):  # one that calls nothing of the driver
        assert cudart.status("cudaRuntimeGetVersion", ctypes.byref(ctypes.c_int())) == NOT_READY
    assert cudart.status("cudaGetLastError") == SUCCESS  # "not ready" is no error


# ---- Devices ---------------------------------------------------------------------------------------------------------


def test_versions(cudart: Runtime) -> None:
    runtime = cudart.number("cudaRuntimeGetVersion", kind=ctypes.c_int)
    assert runtime == cudart.number("cudaDriverGetVersion", kind=ctypes.c_int)
    assert runtime // 1000 in libraries.MAJORS


def test_devices_are_numbered(cudart: Runtime) -> None:
    count = cudart.number("cudaGetDeviceCount", kind=ctypes.c_int)
    for device in range(count):
        cudart("cudaSetDevice", device)
        assert cudart.number("cudaGetDevice", kind=ctypes.c_int) == device
    for wrong in (count, 2**32 - 1):
        assert cudart.status("cudaSetDevice", wrong) == INVALID_DEVICE
        assert cudart.number("cudaGetDevice", kind=ctypes.c_int) == count - 1


def test_a_new_thread_starts_with_device_0(cudart: Runtime) -> None:
    count = cudart.number("cudaGetDeviceCount", kind=ctypes.c_int)
    cudart("cudaSetDevice", count - 1)
    found: list[int] = []

    def run() -> None:
        found.append(cudart.number("cudaGetDevice", kind=ctypes.c_int))
        pointer = cudart.malloc(8)  # makes the context current
        found.append(cudart.number("cudaGetDevice", kind=ctypes.c_int))
        cudart("cudaFree", pointer)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [0, 0]
    assert cudart.number("cudaGetDevice", kind=ctypes.c_int) == count - 1


def test_the_context_is_the_primary_one(cudart: Runtime) -> None:
    driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    current, primary = ctypes.c_void_p(), ctypes.c_void_p()
    assert driver.cuCtxGetCurrent(ctypes.byref(current)) == SUCCESS
    assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(primary), 0) == SUCCESS
    assert driver.cuDevicePrimaryCtxRelease_v2(0) == SUCCESS
    assert current.value == primary.value


def test_properties(cudart: Runtime) -> None:
    structure = ctypes.create_string_buffer(b"\xaa" * 2048, 2048)
    name = "cudaGetDeviceProperties" + ("_v2" if hasattr(cudart.library, "cudaGetDeviceProperties_v2") else "")
    cudart(name, structure, 0)
    total = cudart_total_memory(cudart)
    assert "simulated" in structure.value.decode()
    assert int.from_bytes(structure.raw[288:296], "little") == total  # totalGlobalMem
    warp_size = 10  # of the attributes
    assert int.from_bytes(structure.raw[308:312], "little") == cudart.number("cudaDeviceGetAttribute", warp_size, 0)
    assert structure.raw.endswith(b"\xaa" * 512)
    assert cudart.status(name, structure, 1000) == INVALID_DEVICE


def cudart_total_memory(cudart: Runtime) -> int:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cudart("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    return total.value


def test_pci_bus_ids(cudart: Runtime) -> None:
    text = ctypes.create_string_buffer(13)
    cudart("cudaDeviceGetPCIBusId", text, 13, 0)
    assert re.fullmatch(rb"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.0", text.value)
    assert cudart.number("cudaDeviceGetByPCIBusId", text, kind=ctypes.c_int) == 0


def test_limits(cudart: Runtime) -> None:
    stack_size = 0
    before = cudart.number("cudaDeviceGetLimit", stack_size)
    cudart("cudaDeviceSetLimit", stack_size, 2 * before)
    assert cudart.number("cudaDeviceGetLimit", stack_size) == 2 * before
    cudart("cudaDeviceSetLimit", stack_size, before)


def test_peer_access(cudart: Runtime) -> None:
    if cudart.number("cudaGetDeviceCount", kind=ctypes.c_int) < 2:
        pytest.skip("one simulated device: set GPUCNN_CUDA_DEVICES=2")
    assert cudart.number("cudaDeviceCanAccessPeer", 0, 1, kind=ctypes.c_int) == 1
    cudart("cudaDeviceEnablePeerAccess", 1, 0)
    cudart("cudaDeviceDisablePeerAccess", 1)
    assert cudart.status("cudaDeviceDisablePeerAccess", 1) == PEER_NOT_ENABLED
    assert cudart.status("cudaDeviceEnablePeerAccess", 1, 1) == INVALID_VALUE


def test_profilers_can_be_started(cudart: Runtime) -> None:
    cudart("cudaProfilerStart")
    cudart("cudaProfilerStop")


# ---- Memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("malloc", "free"), [("cudaMalloc", "cudaFree"), ("cudaHostAlloc", "cudaFreeHost")], ids=["device", "pinned"]
)
def test_memory_of_no_bytes_is_a_null_pointer(cudart: Runtime, malloc: str, free: str) -> None:
    pointer = ctypes.c_void_p(1)
    cudart(malloc, ctypes.byref(pointer), 0, 0)
    assert pointer.value is None
    cudart(free, None)


def test_copies_of_every_kind(cudart: Runtime) -> None:
    source = np.arange(100, dtype=np.float32)
    first, second = cudart.malloc(400), cudart.malloc(400)
    on_host = np.zeros_like(source)
    result = np.zeros_like(source)
    cudart("cudaMemcpy", on_host.ctypes.data, source.ctypes.data, 400, HOST_TO_HOST)
    cudart("cudaMemcpy", first, on_host.ctypes.data, 400, HOST_TO_DEVICE)
    cudart("cudaMemcpy", second, first, 400, DEVICE_TO_DEVICE)
    cudart("cudaMemcpy", result.ctypes.data, second, 400, DEVICE_TO_HOST)
    np.testing.assert_array_equal(result, source)
    cudart("cudaMemset", first, 0, 400)
    cudart("cudaMemcpy", first, second, 400, DEFAULT)
    np.testing.assert_array_equal(cudart.download(first, source), source)
    for pointer in (first, second):
        cudart("cudaFree", pointer)


def test_copies_in_stream_order(cudart: Runtime) -> None:
    source = np.arange(64, dtype=np.int32)
    stream = cudart.number("cudaStreamCreateWithFlags", NON_BLOCKING)
    first, second, result = cudart.malloc(256), cudart.malloc(256), np.zeros_like(source)
    with cuda.stream_order(1):
        cudart("cudaMemsetAsync", first, 0, 256, stream)
        cudart("cudaMemcpyAsync", first, source.ctypes.data, 256, HOST_TO_DEVICE, stream)
        cudart("cudaMemcpyAsync", second, first, 256, DEVICE_TO_DEVICE, stream)
        cudart("cudaMemcpyAsync", result.ctypes.data, second, 256, DEFAULT, stream)
        cudart("cudaStreamSynchronize", stream)
    np.testing.assert_array_equal(result, source)
    cudart("cudaStreamDestroy", stream)
    for pointer in (first, second):
        cudart("cudaFree", pointer)


@pytest.mark.parametrize("function", ["cudaMemcpy", "cudaMemcpyAsync"])
def test_a_direction_that_there_is_not(cudart: Runtime, function: str) -> None:
    pointer = cudart.malloc(16)
    assert cudart.status(function, pointer, pointer, 16, 5, 0) == INVALID_DIRECTION
    cudart("cudaFree", pointer)


@pytest.mark.parametrize("kind", [HOST_TO_DEVICE, DEVICE_TO_DEVICE])
def test_a_direction_that_is_not_that_of_the_pointers(cudart: Runtime, kind: int) -> None:
    source, target = np.zeros(4, np.float32), np.zeros(4, np.float32)
    assert cudart.status("cudaMemcpy", target.ctypes.data, source.ctypes.data, 16, kind) == INVALID_VALUE


def test_copies_between_devices(cudart: Runtime) -> None:
    if cudart.number("cudaGetDeviceCount", kind=ctypes.c_int) < 2:
        pytest.skip("one simulated device: set GPUCNN_CUDA_DEVICES=2")
    source = np.arange(8, dtype=np.float64)
    first = cudart.upload(source)
    cudart("cudaSetDevice", 1)
    second = cudart.malloc(64)
    cudart("cudaMemcpyPeer", second, 1, first, 0, 64)
    np.testing.assert_array_equal(cudart.download(second, source), source)
    cudart("cudaMemset", second, 0, 64)
    cudart("cudaMemcpyPeerAsync", second, 1, first, 0, 64, None)
    np.testing.assert_array_equal(cudart.download(second, source), source)
    assert cudart.status("cudaMemcpyPeer", second, 1, first, 1000, 64) == INVALID_DEVICE
    for pointer in (first, second):
        cudart("cudaFree", pointer)


@pytest.mark.parametrize("is_async", [False, True])
def test_copies_of_rows(cudart: Runtime, is_async: bool) -> None:
    source = np.arange(60, dtype=np.uint8).reshape(6, 10)
    pointer = cudart.malloc(6 * 16)
    cudart("cudaMemset", pointer, 0, 6 * 16)
    result = np.full((6, 12), 9, np.uint8)
    name, stream = ("cudaMemcpy2DAsync", [0]) if is_async else ("cudaMemcpy2D", [])
    cudart(name, pointer, 16, source.ctypes.data, 10, 7, 6, HOST_TO_DEVICE, *stream)
    cudart(name, result.ctypes.data, 12, pointer, 16, 8, 6, DEVICE_TO_HOST, *stream)
    cudart("cudaDeviceSynchronize")
    np.testing.assert_array_equal(result[:, :7], source[:, :7])
    assert (result[:, 7] == 0).all()
    assert (result[:, 8:] == 9).all()
    assert cudart.status(name, pointer, 16, source.ctypes.data, 10, 7, 6, 7, *stream) == INVALID_DIRECTION
    cudart("cudaFree", pointer)


def attributes_of(cudart: Runtime, pointer: int) -> tuple[int, int, int | None, int | None]:
    found = PointerAttributes()
    cudart("cudaPointerGetAttributes", ctypes.byref(found), pointer)
    return found.type, found.device, found.device_pointer, found.host_pointer


def test_pointers_of_each_kind(cudart: Runtime) -> None:
    device, managed = cudart.malloc(64), cudart.number("cudaMallocManaged", 64, 1)
    pinned = cudart.number("cudaHostAlloc", 64, 0)
    plain = np.zeros(1024)
    assert attributes_of(cudart, device + 8) == (DEVICE, 0, device + 8, None)
    assert attributes_of(cudart, managed) == (MANAGED, 0, managed, managed)
    assert attributes_of(cudart, pinned) == (HOST, 0, pinned, pinned)
    assert attributes_of(cudart, plain.ctypes.data) == (UNREGISTERED, -2, None, None)
    cudart("cudaHostRegister", plain.ctypes.data, plain.nbytes, 0)
    assert attributes_of(cudart, plain.ctypes.data)[0] == HOST
    cudart("cudaHostUnregister", plain.ctypes.data)
    assert attributes_of(cudart, plain.ctypes.data)[0] == UNREGISTERED
    assert cudart.status("cudaGetLastError") == SUCCESS
    cudart("cudaFree", device)
    cudart("cudaFree", managed)
    cudart("cudaFreeHost", pinned)


def test_memory_of_pools(cudart: Runtime) -> None:
    pool = cudart.number("cudaDeviceGetDefaultMemPool", 0)
    assert cudart.number("cudaDeviceGetMemPool", 0) == pool
    release_threshold = 4
    value = ctypes.c_uint64(1 << 20)
    cudart("cudaMemPoolSetAttribute", pool, release_threshold, ctypes.byref(value))
    value.value = 0
    cudart("cudaMemPoolGetAttribute", pool, release_threshold, ctypes.byref(value))
    assert value.value == 1 << 20
    first = cudart.number("cudaMallocAsync", 128, None)
    second = cudart.number("cudaMallocFromPoolAsync", 128, pool, None)
    assert attributes_of(cudart, first)[0] == DEVICE
    for pointer in (first, second):
        cudart("cudaFreeAsync", pointer, None)
    cudart("cudaStreamSynchronize", None)
    cudart("cudaMemPoolTrimTo", pool, 0)
    value.value = 0
    cudart("cudaMemPoolSetAttribute", pool, release_threshold, ctypes.byref(value))


def test_advice_and_prefetching_of_managed_memory(cudart: Runtime) -> None:
    """CUDA 13 takes a location in the place of a device."""
    is_new = cudart.number("cudaRuntimeGetVersion", kind=ctypes.c_int) >= 13000
    pointer = cudart.number("cudaMallocManaged", 4096, 1)
    on_device, read_mostly = 1, 1
    place = (Location(on_device, 0),) if is_new else (0,)
    cudart("cudaMemAdvise", pointer, 4096, read_mostly, *place)
    cudart("cudaMemPrefetchAsync", pointer, 4096, *place, *([0] if is_new else []), None)
    cudart("cudaDeviceSynchronize")
    cudart("cudaFree", pointer)


class PoolProperties(ctypes.Structure):
    """cudaMemPoolProps."""

    _fields_ = (
        ("allocation_type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location_type", ctypes.c_int),
        ("location_id", ctypes.c_int),
        ("security", ctypes.c_void_p),
        ("max_size", ctypes.c_size_t),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 54),
    )


def test_a_pool_of_ones_own(cudart: Runtime) -> None:
    pinned_memory, on_device = 1, 1
    properties = PoolProperties(allocation_type=pinned_memory, location_type=on_device, location_id=0)
    before = cudart.number("cudaDeviceGetMemPool", 0)
    pool = cudart.number("cudaMemPoolCreate", ctypes.byref(properties))
    cudart("cudaDeviceSetMemPool", 0, pool)
    assert cudart.number("cudaDeviceGetMemPool", 0) == pool
    cudart("cudaDeviceSetMemPool", 0, before)
    cudart("cudaMemPoolDestroy", pool)


# ---- Streams, events, graphs -----------------------------------------------------------------------------------------


def test_streams(cudart: Runtime) -> None:
    stream = cudart.number("cudaStreamCreateWithPriority", NON_BLOCKING, 2**32 - 1)
    assert cudart.number_after("cudaStreamGetFlags", stream) == NON_BLOCKING
    assert cudart.number_after("cudaStreamGetPriority", stream) == -1
    cudart("cudaStreamDestroy", stream)
    assert cudart.status("cudaStreamSynchronize", stream) in (INVALID_HANDLE, 709)
    plain = cudart.number("cudaStreamCreate")
    assert cudart.number_after("cudaStreamGetFlags", plain) == 0
    cudart("cudaStreamDestroy", plain)


def test_work_that_is_pending_is_not_ready(cudart: Runtime) -> None:
    stream, event = cudart.number("cudaStreamCreateWithFlags", NON_BLOCKING), cudart.number("cudaEventCreate")
    pointer = cudart.malloc(64)
    with cuda.stream_order(1):
        cudart("cudaMemsetAsync", pointer, 0, 64, stream)
        cudart("cudaEventRecord", event, stream)
        assert cudart.status("cudaEventQuery", event) == NOT_READY
        assert cudart.status("cudaGetLastError") == SUCCESS
        cudart("cudaEventSynchronize", event)
        assert cudart.status("cudaEventQuery", event) == SUCCESS
        assert cudart.status("cudaStreamQuery", stream) == SUCCESS
    cudart("cudaEventDestroy", event)
    cudart("cudaStreamDestroy", stream)
    cudart("cudaFree", pointer)


def test_host_functions_and_callbacks(cudart: Runtime) -> None:
    found: list[tuple[int, ...]] = []
    function = ctypes.CFUNCTYPE(None, ctypes.c_size_t)(lambda data: found.append((data,)))
    callback = ctypes.CFUNCTYPE(None, ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t)(
        lambda stream, status, data: found.append((stream, status, data))
    )
    stream = cudart.number("cudaStreamCreate")
    cudart("cudaLaunchHostFunc", stream, function, 7)
    cudart("cudaStreamAddCallback", stream, callback, 8, 0)
    cudart("cudaStreamSynchronize", stream)
    assert found == [(7,), (stream, SUCCESS, 8)]
    cudart("cudaStreamDestroy", stream)


def test_a_captured_copy_runs_when_its_graph_is_launched(cudart: Runtime, tmp_path: Path) -> None:
    source = np.arange(16, dtype=np.int64)
    first, second = cudart.upload(source), cudart.upload(np.zeros_like(source))
    stream = cudart.number("cudaStreamCreateWithFlags", NON_BLOCKING)
    relaxed = 2
    cudart("cudaStreamBeginCapture", stream, relaxed)
    cudart("cudaMemcpyAsync", second, first, 128, DEVICE_TO_DEVICE, stream)
    active = 1
    assert cudart.number_after("cudaStreamIsCapturing", stream) == active
    graph = ctypes.c_void_p()
    cudart("cudaStreamEndCapture", stream, ctypes.byref(graph))
    assert (cudart.download(second, source) == 0).all()
    cudart("cudaGraphDebugDotPrint", graph, str(tmp_path / "graph.dot").encode(), 0)
    assert (tmp_path / "graph.dot").read_text(encoding="utf-8").startswith("digraph")
    executable = cudart.number("cudaGraphInstantiate", graph, 0)
    cudart("cudaGraphUpload", executable, stream)
    cudart("cudaGraphLaunch", executable, stream)
    cudart("cudaStreamSynchronize", stream)
    np.testing.assert_array_equal(cudart.download(second, source), source)
    cudart("cudaGraphExecDestroy", executable)
    cudart("cudaGraphDestroy", graph)
    cudart("cudaStreamDestroy", stream)
    for pointer in (first, second):
        cudart("cudaFree", pointer)


def test_events_measure_time(cudart: Runtime) -> None:
    start, end = cudart.number("cudaEventCreate"), cudart.number("cudaEventCreateWithFlags", 0)
    cudart("cudaEventRecord", start, None)
    cudart("cudaEventRecord", end, None)
    milliseconds = ctypes.c_float(-1)
    cudart("cudaEventElapsedTime", ctypes.byref(milliseconds), start, end)
    assert milliseconds.value >= 0
    for event in (start, end):
        cudart("cudaEventDestroy", event)


# ---- Arrays ----------------------------------------------------------------------------------------------------------


def float_array(cudart: Runtime, width: int, height: int) -> int:
    return cudart.number("cudaMallocArray", ctypes.byref(ChannelFormat(32, 0, 0, 0, FLOAT)), width, height, 0)


@pytest.mark.parametrize("is_async", [False, True])
def test_arrays_of_two_dimensions(cudart: Runtime, is_async: bool) -> None:
    array = float_array(cudart, 8, 4)
    source = np.arange(32, dtype=np.float32).reshape(4, 8)
    result = np.zeros((2, 3), np.float32)
    to, back = ("cudaMemcpy2DToArray", "cudaMemcpy2DFromArray")
    suffix, stream = ("Async", [0]) if is_async else ("", [])
    cudart(to + suffix, array, 0, 0, source.ctypes.data, 32, 32, 4, HOST_TO_DEVICE, *stream)
    cudart(back + suffix, result.ctypes.data, 12, array, 8, 1, 12, 2, DEVICE_TO_HOST, *stream)
    cudart("cudaDeviceSynchronize")
    np.testing.assert_array_equal(result, source[1:3, 2:5])
    for x, y, width, height in ((0, 0, 33, 1), (4, 0, 32, 1), (0, 0, 4, 5), (0, 4, 4, 1)):
        arguments = (array, x, y, source.ctypes.data, 64, width, height, HOST_TO_DEVICE, *stream)
        assert cudart.status(to + suffix, *arguments) == INVALID_VALUE
    cudart("cudaFreeArray", array)
    assert cudart.status("cudaFreeArray", array) == INVALID_HANDLE


def test_arrays_of_three_dimensions(cudart: Runtime) -> None:
    format_ = ChannelFormat(16, 16, 0, 0, 0)
    array = ctypes.c_void_p()
    made = cudart.library.cudaMalloc3DArray(ctypes.byref(array), ctypes.byref(format_), Extent(5, 4, 3), 0)
    assert made == SUCCESS
    source = np.arange(120, dtype=np.int16).reshape(3, 4, 5, 2)
    result = np.zeros((2, 2, 3, 2), np.int16)
    copy = Copy3D(kind=HOST_TO_DEVICE, extent=Extent(5, 4, 3), destination_array=array)
    copy.source = Pitched(source.ctypes.data, 20, 5, 4)
    cudart("cudaMemcpy3D", ctypes.byref(copy))
    copy = Copy3D(kind=DEVICE_TO_HOST, extent=Extent(3, 2, 2), source_array=array, source_position=Extent(1, 2, 1))
    copy.destination = Pitched(result.ctypes.data, 12, 3, 2)
    cudart("cudaMemcpy3DAsync", ctypes.byref(copy), None)
    cudart("cudaDeviceSynchronize")
    np.testing.assert_array_equal(result, source[1:3, 2:4, 1:4])
    copy.extent = Extent(5, 2, 2)  # from position 1 on
    assert cudart.status("cudaMemcpy3D", ctypes.byref(copy)) == INVALID_VALUE
    found = ChannelFormat()
    cudart("cudaGetChannelDesc", ctypes.byref(found), array)
    assert [found.x, found.y, found.z, found.w, found.kind] == [16, 16, 0, 0, 0]
    cudart("cudaFreeArray", array)


@pytest.mark.parametrize("bits", [(8, 16, 0, 0), (7, 0, 0, 0), (32, 0, 32, 0), (0, 0, 0, 0)])
def test_formats_that_there_are_not(cudart: Runtime, bits: tuple[int, ...]) -> None:
    format_ = ChannelFormat(*bits, FLOAT)
    made = ctypes.c_void_p()
    status = cudart.status("cudaMallocArray", ctypes.byref(made), ctypes.byref(format_), 8, 4, 0)
    assert status == INVALID_CHANNELS


# ---- What is not simulated -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOT_SIMULATED.split())
def test_what_is_not_simulated_says_so(cudart: Runtime, name: str) -> None:
    assert cudart.status(name, None, None, None, None) == NOT_SUPPORTED
    assert cudart.text(NOT_SUPPORTED).startswith(f"operation not supported: {name} is not simulated: ")
    assert cudart.status("cudaGetLastError") == NOT_SUPPORTED
