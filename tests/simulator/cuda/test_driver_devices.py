"""Devices and contexts of the simulated driver: the four cards, peer access, the stack of contexts, settings."""

from __future__ import annotations

import ctypes
import re
import threading

import pytest
from driver_calls import (
    CONTEXT_IS_DESTROYED,
    CUDA_VERSION,
    INVALID_CONTEXT,
    INVALID_DEVICE,
    INVALID_VALUE,
    NO_DEVICE,
    NOT_INITIALIZED,
    NOT_SUPPORTED,
    PEER_ACCESS_ALREADY_ENABLED,
    PEER_ACCESS_NOT_ENABLED,
    UNSUPPORTED_LIMIT,
    Calls,
    exported_names,
    library_path,
    run,
)

from gpucnn.simulator import cuda
from gpucnn.simulator.cuda import libraries

INT = ctypes.c_int32
NUMBERS = {
    "SHARED_PER_BLOCK": 8,
    "CLOCK": 13,
    "MULTIPROCESSORS": 16,
    "MEMORY_CLOCK": 36,
    "BUS_WIDTH": 37,
    "L2": 38,
    "THREADS": 39,
    "MAJOR": 75,
    "MINOR": 76,
    "SHARED": 81,
    "REGISTERS": 82,
    "DOUBLE_RATIO": 87,
    "SHARED_OPTIN": 97,
    "BLOCKS": 106,
    "SHARED_RESERVED": 111,
}
# By the data sheets and by the compute capabilities' table of the CUDA C++ Programming Guide.
CARDS = {
    "t4": ("Tesla T4", 49152, 1590000, 40, 5001000, 256, 4 << 20, 1024, 7, 5, 65536, 65536, 32, 65536, 16, 0),
    "a100": (
        *("NVIDIA A100-SXM4-40GB", 49152, 1410000, 108, 1215000, 5120, 40 << 20, 2048, 8, 0),
        *(167936, 65536, 2, 166912, 32, 1024),
    ),
    "h100": (
        *("NVIDIA H100 80GB HBM3", 49152, 1980000, 132, 2619000, 5120, 50 << 20, 2048, 9, 0),
        *(233472, 65536, 2, 232448, 32, 1024),
    ),
    "rtx4090": (
        *("NVIDIA GeForce RTX 4090", 49152, 2520000, 128, 10501000, 384, 72 << 20, 1536, 8, 9),
        *(102400, 65536, 64, 101376, 24, 1024),
    ),
}

# ---- Devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("card", CARDS)
def test_cards(cu: Calls, card: str) -> None:
    code = (
        "cuda.cuInit(0); name = ctypes.create_string_buffer(64); cuda.cuDeviceGetName(name, 64, 0)\n"
        f"numbers = {list(NUMBERS.values())}; value = ctypes.c_int(); print(name.value.decode())\n"
        "for each in numbers:\n"
        "    assert cuda.cuDeviceGetAttribute(ctypes.byref(value), each, 0) == 0\n"
        "    print(value.value)\n"
    )
    name, *numbers = run(code, GPUCNN_CUDA_DEVICE=card).stdout.splitlines()
    expected_name, *expected = CARDS[card]
    assert name == f"{expected_name} (simulated)"
    assert dict(zip(NUMBERS, map(int, numbers), strict=True)) == dict(zip(NUMBERS, expected, strict=True))


@pytest.mark.parametrize(
    ("attribute", "value"),
    [(1, 1024), (2, 1024), (4, 64), (5, 2147483647), (6, 65535), (9, 65536), (10, 32), (12, 65536), (41, 1)]
    + [(78, 1), (83, 1), (89, 1), (95, 1), (115, 1), (120, 0), (21, 0), (108, 0), (50, 0), (34, 0), (33, 2)],
)
def test_attributes_that_all_cards_share(cu: Calls, attribute: int, value: int) -> None:
    assert cu.number("cuDeviceGetAttribute", attribute, 1, kind=INT) == value


def test_attributes_that_are_none(cu: Calls) -> None:
    value = INT()
    for attribute in (0, -1, 4096):
        assert cu.status("cuDeviceGetAttribute", ctypes.byref(value), attribute, 0) == INVALID_VALUE
    assert cu.status("cuDeviceGetAttribute", ctypes.byref(value), 1, 2) == INVALID_DEVICE
    assert cu.status("cuDeviceGetAttribute", None, 1, 0) == INVALID_VALUE


def test_devices(cu: Calls) -> None:
    assert cu.number("cuDriverGetVersion", kind=INT) // 1000 in (12, 13)
    assert cu.number("cuDeviceGetCount", kind=INT) == 2
    assert cu.number("cuDeviceGet", 1, kind=INT) == 1
    assert cu.failure("cuDeviceGet", ctypes.byref(INT()), 2) == (
        INVALID_DEVICE,
        "there is no device 2, only 2 of them",
    )
    assert cu.status("cuDeviceGet", ctypes.byref(INT()), -1) == INVALID_DEVICE
    assert cu.number("cuDeviceTotalMem_v2", 1) == 64 << 20
    assert cu.status("cuInit", 1) == INVALID_VALUE
    for name in ("cuDeviceGetCount", "cuDriverGetVersion"):
        assert cu.status(name, None) == INVALID_VALUE


def test_names_of_devices_are_cut(cu: Calls) -> None:
    name = ctypes.create_string_buffer(7)
    cu("cuDeviceGetName", name, 7, 0)
    assert name.value == b"NVIDIA"
    assert cu.status("cuDeviceGetName", name, 0, 0) == INVALID_VALUE
    assert cu.status("cuDeviceGetLuid", name, None, 0) == NOT_SUPPORTED


@pytest.mark.parametrize("version", ["", "_v2"])
def test_devices_have_different_uuids(cu: Calls, version: str) -> None:
    uuid = ctypes.create_string_buffer(16)
    for device in (0, 1):
        cu(f"cuDeviceGetUuid{version}", uuid, device)
        assert uuid.raw == f"gpucnn-cudasim-{device}".encode()
    assert cu.status(f"cuDeviceGetUuid{version}", uuid, 2) == INVALID_DEVICE


def test_pci_bus_ids(cu: Calls) -> None:
    text = ctypes.create_string_buffer(16)
    for device, expected in enumerate([b"0000:01:00.0", b"0000:02:00.0"]):
        cu("cuDeviceGetPCIBusId", text, 16, device)
        assert text.value == expected
        for accepted in (expected, expected[:-2], expected[5:]):
            assert cu.number("cuDeviceGetByPCIBusId", accepted, kind=INT) == device
    for absent in (b"0000:03:00.0", b"0001:01:00.0", b"0000:01:00.1"):
        assert cu.status("cuDeviceGetByPCIBusId", ctypes.byref(INT()), absent) == INVALID_DEVICE
    assert cu.failure("cuDeviceGetByPCIBusId", ctypes.byref(INT()), b"card") == (
        INVALID_VALUE,
        "'card' is not a PCI bus id",
    )


def test_nothing_works_before_cuinit() -> None:
    code = (
        "p = ctypes.c_void_p(); n = ctypes.c_int()\n"
        "print(cuda.cuDeviceGetCount(ctypes.byref(n)), cuda.cuDeviceGet(ctypes.byref(n), 0),\n"
        "      cuda.cuDevicePrimaryCtxRetain(ctypes.byref(p), 0), cuda.cuCtxGetCurrent(ctypes.byref(p)),\n"
        "      cuda.cuMemAlloc_v2(ctypes.byref(p), 4), cuda.cuMemcpyHtoD_v2(p, p, 4), cuda.cuCtxSynchronize(),\n"
        "      cuda.cuDriverGetVersion(ctypes.byref(n)))\n"
    )
    assert run(code).stdout.split() == [str(NOT_INITIALIZED)] * 7 + ["0"]


def test_a_machine_without_devices() -> None:
    assert run("print(cuda.cuInit(0))", GPUCNN_CUDA_DEVICES="0").stdout == f"{NO_DEVICE}\n"


def test_the_version_is_that_of_the_headers() -> None:
    if library_path() is None:
        pytest.skip("there is no driver to ask")
    code = "n = ctypes.c_int(); cuda.cuDriverGetVersion(ctypes.byref(n)); print(n.value)"
    major, minor = (int(part) for part in CUDA_VERSION.split("."))
    if run(code).stdout != f"{13000 + minor * 10}\n":  # an environment may have CUDA 13
        assert run(code).stdout == f"{major * 1000 + minor * 10}\n"


def test_contexts_cannot_be_bound_to_multiprocessors(cu: Calls) -> None:
    assert cu.number("cuDeviceGetExecAffinitySupport", 0, 0, kind=INT) == 0
    assert cu.status("cuDeviceGetExecAffinitySupport", ctypes.byref(INT()), 0, 2) == INVALID_DEVICE


# ---- Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("DEVICES", "9", "a number from 0 to 8"),
        ("DEVICES", "two", "a number from 0 to 8"),
        ("DEVICE", "H100", "t4, a100, h100 or rtx4090"),
        ("MEMORY", "1T", "a number of bytes with or without K, M or G after it, for instance 512M"),
        ("MEMORY", "0", "a number of bytes with or without K, M or G after it, for instance 512M"),
        ("MEMORY", "-1", "a number of bytes with or without K, M or G after it, for instance 512M"),
        ("MEMORY", "9999999999G", "a number of bytes with or without K, M or G after it, for instance 512M"),
        ("CHECK", "yes", "0 or 1"),
        ("STREAM_SEED", "x", "a number, 0 or greater"),
        ("LOG", "3", "0, 1 or 2"),
        ("LEAKS", "2", "0 or 1"),
        ("STICKY", "on", "0 or 1"),
        ("STREAM_RACES", "2", "0 or 1"),
    ],
)
def test_a_setting_that_makes_no_sense_ends_the_program(cu: Calls, variable: str, value: str, allowed: str) -> None:
    done = run("cuda.cuInit(0); print('alive')", **{f"GPUCNN_CUDA_{variable}": value})
    assert done.stderr == f"simulated CUDA: GPUCNN_CUDA_{variable} must be {allowed}, got '{value}'\n"
    assert (done.returncode, done.stdout) == (-6, "")


@pytest.mark.parametrize(
    ("value", "nbytes"), [("512", 512), ("2K", 2048), ("3M", 3 << 20), ("5G", 5 << 30), ("", 8 << 30)]
)
def test_the_size_of_memory(cu: Calls, value: str, nbytes: int) -> None:
    code = (
        "cuda.cuInit(0); n = ctypes.c_size_t(); cuda.cuDeviceTotalMem_v2(ctypes.byref(n), 0); print(n.value)\n"
        "cuda.cudasim_memory_limit.restype = ctypes.c_uint64; print(cuda.cudasim_memory_limit())\n"
    )
    assert run(code, GPUCNN_CUDA_MEMORY=value).stdout == f"{nbytes}\n{nbytes}\n"


# ---- Peers -----------------------------------------------------------------------------------------------------------


def test_which_devices_are_peers(cu: Calls) -> None:
    assert cu.number("cuDeviceCanAccessPeer", 0, 1, kind=INT) == 1
    assert cu.number("cuDeviceCanAccessPeer", 1, 1, kind=INT) == 0
    assert cu.status("cuDeviceCanAccessPeer", ctypes.byref(INT()), 0, 2) == INVALID_DEVICE
    values = [cu.number("cuDeviceGetP2PAttribute", attribute, 0, 1, kind=INT) for attribute in (1, 2, 3, 4)]
    assert values == [0, 1, 1, 0]
    assert cu.status("cuDeviceGetP2PAttribute", ctypes.byref(INT()), 2, 0, 0) == INVALID_DEVICE
    assert cu.status("cuDeviceGetP2PAttribute", ctypes.byref(INT()), 9, 0, 1) == INVALID_VALUE


def test_peer_access_is_enabled_once_and_disabled_once(cu: Calls) -> None:
    contexts = [cu.number("cuDevicePrimaryCtxRetain", device) for device in (0, 1)]
    assert cu.status("cuCtxDisablePeerAccess", contexts[1]) == PEER_ACCESS_NOT_ENABLED
    assert cu.status("cuCtxEnablePeerAccess", contexts[1], 1) == INVALID_VALUE
    assert cu.status("cuCtxEnablePeerAccess", contexts[0], 0) == INVALID_DEVICE
    assert cu.status("cuCtxEnablePeerAccess", None, 0) == INVALID_CONTEXT
    cu("cuCtxEnablePeerAccess", contexts[1], 0)
    assert cu.failure("cuCtxEnablePeerAccess", contexts[1], 0) == (
        PEER_ACCESS_ALREADY_ENABLED,
        "device 0 has access to device 1",
    )
    cu("cuCtxPushCurrent_v2", contexts[1])
    assert cu.status("cuCtxDisablePeerAccess", contexts[0]) == PEER_ACCESS_NOT_ENABLED  # the other way round
    cu("cuCtxPopCurrent_v2", None)
    cu("cuCtxDisablePeerAccess", contexts[1])
    assert cu.failure("cuCtxDisablePeerAccess", contexts[1]) == (
        PEER_ACCESS_NOT_ENABLED,
        "device 0 has no access to device 1",
    )
    for device in (0, 1):
        cu("cuDevicePrimaryCtxRelease_v2", device)


def test_a_reset_ends_peer_access(cu: Calls) -> None:
    peer = cu.number("cuDevicePrimaryCtxRetain", 1)
    cu("cuCtxEnablePeerAccess", peer, 0)
    cu("cuDevicePrimaryCtxReset_v2", 1)
    cu("cuCtxEnablePeerAccess", peer, 0)
    cu("cuDevicePrimaryCtxReset_v2", 0)
    cu("cuCtxEnablePeerAccess", peer, 0)
    cu("cuDevicePrimaryCtxRelease_v2", 1)


# ---- The stack of contexts -------------------------------------------------------------------------------------------


def current(cu: Calls) -> int:
    return cu.number("cuCtxGetCurrent")


def test_the_stack_of_contexts(cu: Calls) -> None:
    first, second = current(cu), cu.number("cuDevicePrimaryCtxRetain", 1)
    assert cu.number("cuCtxGetDevice", kind=INT) == 0
    cu("cuCtxPushCurrent_v2", second)
    assert (current(cu), cu.number("cuCtxGetDevice", kind=INT)) == (second, 1)
    assert cu.number("cuCtxPopCurrent_v2") == second
    assert current(cu) == first
    cu("cuCtxSetCurrent", second)  # in the place of the first
    assert cu.number("cuCtxPopCurrent_v2") == second
    assert current(cu) == 0
    assert cu.failure("cuCtxPopCurrent_v2", None) == (INVALID_CONTEXT, "this thread has no current context")
    assert cu.status("cuCtxGetDevice", ctypes.byref(INT())) == INVALID_CONTEXT
    cu("cuCtxSetCurrent", None)
    cu("cuCtxSetCurrent", first)
    cu("cuCtxSetCurrent", None)
    assert current(cu) == 0
    cu("cuDevicePrimaryCtxRelease_v2", 1)


def test_what_is_no_context(cu: Calls) -> None:
    for name in ("cuCtxSetCurrent", "cuCtxPushCurrent_v2", "cuCtxDestroy_v2"):
        assert cu.failure(name, 4096) == (INVALID_CONTEXT, "0x1000 is not a context")
    assert cu.status("cuCtxPushCurrent_v2", None) == INVALID_CONTEXT
    assert cu.status("cuCtxGetCurrent", None) == INVALID_VALUE


def test_each_thread_has_a_stack(cu: Calls) -> None:
    first = current(cu)
    seen = []

    def look() -> None:
        seen.append(current(cu))
        cu("cuCtxSetCurrent", first)
        seen.append(current(cu))

    for _ in range(2):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == [0, first, 0, first]
    assert current(cu) == first


# ---- Primary contexts ------------------------------------------------------------------------------------------------


def state(cu: Calls, device: int) -> tuple[int, int]:
    flags, active = ctypes.c_uint32(), INT()
    cu("cuDevicePrimaryCtxGetState", device, ctypes.byref(flags), ctypes.byref(active))
    return flags.value, active.value


def test_primary_contexts_exist_while_they_are_retained(cu: Calls) -> None:
    cu("cuDevicePrimaryCtxRelease_v2", 1)  # the fixture's
    assert state(cu, 1) == (0, 0)
    assert cu.failure("cuDevicePrimaryCtxRelease_v2", 1) == (
        INVALID_CONTEXT,
        "the primary context of device 1 is released more often than retained",
    )
    cu("cuDevicePrimaryCtxSetFlags_v2", 1, 4)
    context = cu.number("cuDevicePrimaryCtxRetain", 1)
    assert cu.number("cuDevicePrimaryCtxRetain", 1) == context
    assert state(cu, 1) == (4, 1)
    cu("cuDevicePrimaryCtxRelease_v2", 1)
    assert state(cu, 1) == (4, 1)
    cu("cuCtxPushCurrent_v2", context)
    assert cu.number("cuCtxGetFlags", kind=ctypes.c_uint32) == 4
    cu("cuDevicePrimaryCtxRelease_v2", 1)
    assert cu.failure("cuCtxSynchronize") == (CONTEXT_IS_DESTROYED, "the context of device 1 was destroyed")
    assert cu.status("cuMemAlloc_v2", ctypes.byref(ctypes.c_uint64()), 4) == CONTEXT_IS_DESTROYED
    assert cu.number("cuDevicePrimaryCtxRetain", 1) == context
    cu("cuCtxSynchronize")
    assert cu.status("cuDevicePrimaryCtxSetFlags_v2", 1, 0x100) == INVALID_VALUE
    cu("cuDevicePrimaryCtxSetFlags_v2", 1, 0)


def test_the_last_release_frees_the_memory_of_the_device(cu: Calls) -> None:
    kept = cu.allocate(4)
    cu("cuCtxPushCurrent_v2", cu.number("cuDevicePrimaryCtxRetain", 1))
    cu.allocate(8)
    cu.number("cuMemAllocHost_v2", 16)
    cu.number("cuMemAllocAsync", 32, 0)
    assert sorted(live.nbytes for live in cuda.live_allocations()) == [4, 8, 16, 32]
    for _ in range(2):
        cu("cuDevicePrimaryCtxRelease_v2", 1)
    assert [live.address for live in cuda.live_allocations()] == [kept]
    cu("cuDevicePrimaryCtxRetain", ctypes.byref(ctypes.c_uint64()), 1)


def test_a_reset_frees_memory_and_restores_settings(cu: Calls) -> None:
    cu.allocate(4)
    cu("cuCtxSetFlags", 2)
    cu("cuCtxSetLimit", 0, 4096)
    cu("cuCtxSetCacheConfig", 1)
    cu("cuDevicePrimaryCtxReset_v2", 0)
    assert cuda.live_allocations() == []
    assert state(cu, 0) == (0, 1)
    assert cu.number("cuCtxGetLimit", 0) == 1024
    assert cu.number("cuCtxGetCacheConfig", kind=INT) == 0
    cu.allocate(4)
    assert cu.status("cuDevicePrimaryCtxReset_v2", 2) == INVALID_DEVICE


# ---- Contexts that a program creates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cuCtxCreate_v2", "cuCtxCreate_v4"])
def test_created_contexts(cu: Calls, name: str) -> None:
    primary = current(cu)
    arguments = (None, 4, 1) if name.endswith("4") else (4, 1)
    made = cu.number(name, *arguments)
    assert (current(cu), cu.number("cuCtxGetDevice", kind=INT)) == (made, 1)
    assert cu.number("cuCtxGetFlags", kind=ctypes.c_uint32) == 4
    result = ctypes.c_uint64()
    cu("cuCtxGetId", made, ctypes.byref(result))
    assert result.value > 2  # those of the primary contexts
    pointer = cu.allocate(4)
    assert cu.attribute(pointer, 1) == made
    cu("cuCtxDestroy_v2", made)
    assert current(cu) == primary
    assert cuda.live_allocations() == []
    for use in ("cuCtxPushCurrent_v2", "cuCtxSetCurrent", "cuCtxDestroy_v2"):
        assert cu.failure(use, made) == (CONTEXT_IS_DESTROYED, "the context of device 1 was destroyed")


def test_contexts_that_cannot_be_created_or_destroyed(cu: Calls) -> None:
    result = ctypes.c_uint64()
    assert cu.status("cuCtxCreate_v2", ctypes.byref(result), 0x100, 0) == INVALID_VALUE
    assert cu.status("cuCtxCreate_v2", ctypes.byref(result), 0, 2) == INVALID_DEVICE
    assert cu.status("cuCtxCreate_v4", ctypes.byref(result), ctypes.byref(result), 0, 0) == NOT_SUPPORTED
    assert cu.failure("cuCtxDestroy_v2", current(cu)) == (
        INVALID_CONTEXT,
        "a primary context is released, not destroyed",
    )


# ---- Settings of a context -------------------------------------------------------------------------------------------


def test_limits(cu: Calls) -> None:
    assert [cu.number("cuCtxGetLimit", limit) for limit in range(7)] == [1024, 1 << 20, 8 << 20, 2, 2048, 64, 0]
    cu("cuCtxSetLimit", 2, 1 << 30)
    assert cu.number("cuCtxGetLimit", 2) == 1 << 30
    assert cu.status("cuCtxSetLimit", 5, 129) == INVALID_VALUE
    assert cu.failure("cuCtxSetLimit", 6, 1) == (INVALID_VALUE, "limit 6 is at most 0 on this device, got 1")
    assert cu.failure("cuCtxGetLimit", ctypes.byref(ctypes.c_uint64()), 7) == (
        UNSUPPORTED_LIMIT,
        "limit 7 is not simulated",
    )
    cu("cuCtxResetPersistingL2Cache")


def test_cache_configuration_and_flags(cu: Calls) -> None:
    cu("cuCtxSetCacheConfig", 3)
    assert cu.number("cuCtxGetCacheConfig", kind=INT) == 3
    assert cu.status("cuCtxSetCacheConfig", 4) == INVALID_VALUE
    cu("cuCtxSetFlags", 1)
    assert cu.number("cuCtxGetFlags", kind=ctypes.c_uint32) == 1
    assert cu.status("cuCtxSetFlags", 0x100) == INVALID_VALUE


def test_api_version(cu: Calls) -> None:
    version = ctypes.c_uint32()
    cu("cuCtxGetApiVersion", current(cu), ctypes.byref(version))
    assert version.value == 3020


def test_the_profiler_may_be_switched(cu: Calls) -> None:
    cu("cuProfilerStart")
    cu("cuProfilerStop")


# ---- Entry points ----------------------------------------------------------------------------------------------------


def test_the_list_of_entry_points_is_what_the_library_exports(cu: Calls) -> None:
    path = library_path()
    assert path is not None
    text = (libraries.HERE / "driver" / "entry_points.inc").read_text(encoding="utf-8")
    listed = re.findall(r"^ENTRY\((\w+)\)$", text, re.MULTILINE)
    assert listed == sorted(set(listed))
    assert set(listed) == exported_names(path)
    assert "cuGetExportTable" not in listed


def address(cu: Calls, name: str) -> tuple[int, int | None, int]:
    """What cuGetProcAddress gives: the error, the address, and what it says of the symbol."""
    found, symbol = ctypes.c_void_p(), INT(7)
    status = cu.status("cuGetProcAddress_v2", name.encode(), ctypes.byref(found), 12000, 0, ctypes.byref(symbol))
    return status, found.value, symbol.value


def test_addresses_of_entry_points(cu: Calls) -> None:
    def of(name: str) -> int | None:
        return ctypes.cast(getattr(cu.library, name), ctypes.c_void_p).value

    assert address(cu, "cuInit") == (0, of("cuInit"), 0)
    assert address(cu, "cuMemAlloc") == (0, of("cuMemAlloc_v2"), 0)
    assert address(cu, "cuCtxCreate") == (0, of("cuCtxCreate_v4"), 0)
    assert address(cu, "cuMemFree_v2") == (0, of("cuMemFree_v2"), 0)
    assert address(cu, "cuMulticastCreate") == (500, None, 1)
    assert cu.text(500).endswith(": cuMulticastCreate is not simulated")
    found = ctypes.c_void_p()
    assert cu.status("cuGetProcAddress", b"cuInit", ctypes.byref(found), 11000, 0) == 0
    assert found.value == of("cuInit")
    assert cu.status("cuGetProcAddress", b"cuInit", None, 11000, 0) == INVALID_VALUE
    assert cu.status("cuGetProcAddress", b"cuInit", ctypes.byref(found), 11000, 8) == INVALID_VALUE


def test_whoever_asks_for_a_proof_of_origin_ends_the_program() -> None:
    code = "p = ctypes.c_void_p(); cuda.cuGetProcAddress_v2(b'cuGetExportTable', ctypes.byref(p), 12000, 0, None)"
    done = run(code)
    assert done.returncode == -6
    assert "asks the driver for cuGetExportTable, which is not simulated" in done.stderr
