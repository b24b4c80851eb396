"""Memory of the simulated driver: allocation, guard bytes, freed memory, copies, fills, pointers and pools."""

from __future__ import annotations

import ctypes
import struct
import threading
from typing import Any

import pytest
from driver_calls import (
    ALREADY_REGISTERED,
    ARRAY,
    DEVICE,
    HOST,
    ILLEGAL_ADDRESS,
    INVALID_CONTEXT,
    INVALID_DEVICE,
    INVALID_VALUE,
    LAUNCH_FAILED,
    NOT_FOUND,
    NOT_REGISTERED,
    NOT_SUPPORTED,
    OUT_OF_MEMORY,
    STREAM_CAPTURE_INVALIDATED,
    STREAM_CAPTURE_UNSUPPORTED,
    UNIFIED,
    Calls,
    Copy2D,
    Copy3D,
    Location,
    PoolProperties,
    run,
)

from gpucnn.simulator import SimulatorError, cuda

MIB = 1 << 20
NON_BLOCKING = 1


def serial(cu: Calls, pointer: int) -> int:
    """The number of an allocation in messages."""
    return cu.attribute(pointer, 7)


# ---- Allocation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [1, 511, 512, 513, 100_000])
def test_new_memory_is_aligned_and_reads_as_nan(cu: Calls, nbytes: int) -> None:
    pointer = cu.allocate(nbytes)
    assert pointer % 512 == 0
    assert cu.read(pointer, nbytes) == b"\xff" * nbytes
    cu("cuMemFree_v2", pointer)


def test_next_to_memory_every_float_is_nan(cu: Calls) -> None:
    pointer = cu.allocate(24)
    for around in (ctypes.string_at(pointer - 512, 512), ctypes.string_at(pointer + 24, 512)):
        for kind in "efd":
            assert all(value != value for value in struct.unpack(f"{512 // struct.calcsize(kind)}{kind}", around))
    cu("cuMemFree_v2", pointer)


def test_allocation_refuses_nothing(cu: Calls) -> None:
    pointer = ctypes.c_uint64(5)
    assert cu.status("cuMemAlloc_v2", ctypes.byref(pointer), 0) == INVALID_VALUE
    assert cu.status("cuMemAlloc_v2", None, 16) == INVALID_VALUE
    assert pointer.value == 5


def test_allocation_needs_a_context(cu: Calls) -> None:
    cu("cuCtxPopCurrent_v2", None)
    pointer = ctypes.c_uint64()
    assert cu.failure("cuMemAlloc_v2", ctypes.byref(pointer), 16) == (
        INVALID_CONTEXT,
        "this thread has no current context",
    )


def memory_info(cu: Calls) -> tuple[int, int]:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cu("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def test_memory_info_counts_what_is_allocated(cu: Calls) -> None:
    assert memory_info(cu) == (64 * MIB, 64 * MIB)
    pointer = cu.allocate(MIB + 1)
    assert memory_info(cu) == (63 * MIB - 512, 64 * MIB)
    cu("cuMemFree_v2", pointer)
    assert memory_info(cu) == (64 * MIB, 64 * MIB)


def test_out_of_memory_at_the_limit_of_each_device(cu: Calls) -> None:
    cu.allocate(60 * MIB)
    pointer = ctypes.c_uint64(5)
    assert cu.failure("cuMemAlloc_v2", ctypes.byref(pointer), 4 * MIB + 1) == (
        OUT_OF_MEMORY,
        f"{4 * MIB + 1} bytes were asked for, {60 * MIB} of the {64 * MIB} bytes of device 0 are in use "
        "(GPUCNN_CUDA_MEMORY)",
    )
    assert pointer.value == 5
    cu.allocate(4 * MIB)
    cu("cuCtxPushCurrent_v2", cu.number("cuDevicePrimaryCtxRetain", 1))
    cu.allocate(64 * MIB)
    cu("cuDevicePrimaryCtxRelease_v2", 1)
    assert memory_info(cu) == (0, 64 * MIB)


def test_far_too_much_memory(cu: Calls) -> None:
    pointer = ctypes.c_uint64()
    assert cu.status("cuMemAlloc_v2", ctypes.byref(pointer), 2**64 - 1) == OUT_OF_MEMORY
    assert cu.status("cuMemAllocHost_v2", ctypes.byref(pointer), 2**63) == OUT_OF_MEMORY
    pitch = ctypes.c_size_t()
    arguments = (ctypes.byref(pointer), ctypes.byref(pitch))
    assert cu.status("cuMemAllocPitch_v2", *arguments, 2**40, 2**30, 4) == OUT_OF_MEMORY
    assert cu.status("cuMemAllocPitch_v2", *arguments, 2**64 - 1, 1, 4) == OUT_OF_MEMORY


def test_pitched_memory(cu: Calls) -> None:
    pointer, pitch = ctypes.c_uint64(), ctypes.c_size_t()
    cu("cuMemAllocPitch_v2", ctypes.byref(pointer), ctypes.byref(pitch), 700, 3, 4)
    assert pitch.value == 1024
    assert cu.attribute(pointer.value, 12) == 3 * 1024
    assert cu.status("cuMemAllocPitch_v2", ctypes.byref(pointer), ctypes.byref(pitch), 700, 3, 5) == INVALID_VALUE
    assert cu.status("cuMemAllocPitch_v2", ctypes.byref(pointer), None, 700, 3, 4) == INVALID_VALUE


def test_address_range(cu: Calls) -> None:
    pointer = cu.allocate(100)
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    cu("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), pointer + 99)
    assert (base.value, size.value) == (pointer, 100)
    cu("cuMemGetAddressRange_v2", None, None, pointer)
    assert cu.status("cuMemGetAddressRange_v2", None, None, pointer + 100) == NOT_FOUND
    assert cu.status("cuMemGetAddressRange_v2", None, None, 4096) == NOT_FOUND


# ---- Freeing ---------------------------------------------------------------------------------------------------------


def test_free_of_null_does_nothing(cu: Calls) -> None:
    cu("cuMemFree_v2", 0)
    cu("cuMemFreeHost", None)


def test_free_of_what_cannot_be_freed(cu: Calls) -> None:
    pointer = cu.allocate(100)
    name = f"allocation {serial(cu, pointer)} of 100 bytes"
    assert cu.failure("cuMemFree_v2", pointer + 8) == (
        INVALID_VALUE,
        f"{pointer + 8:#x} is byte 8 of {name}: only its start can be freed",
    )
    assert cu.failure("cuMemFree_v2", 4096) == (INVALID_VALUE, "0x1000 was not allocated")
    assert cu.failure("cuMemFreeHost", pointer) == (INVALID_VALUE, f"{name} is not freed by cuMemFreeHost")
    cu("cuMemFree_v2", pointer)
    assert cu.failure("cuMemFree_v2", pointer) == (INVALID_VALUE, f"{name} is freed a second time")
    assert cu.failure("cuMemFreeAsync", pointer, 0) == (INVALID_VALUE, f"{name} is freed a second time")


def test_pinned_memory_is_freed_by_its_own_function(cu: Calls) -> None:
    pointer = cu.number("cuMemHostAlloc", 100, 0)
    name = f"pinned allocation {serial(cu, pointer)} of 100 bytes"
    assert cu.failure("cuMemFree_v2", pointer) == (INVALID_VALUE, f"{name} is not freed by cuMemFree")
    cu("cuMemFreeHost", pointer)
    assert cu.failure("cuMemFreeHost", pointer) == (INVALID_VALUE, f"{name} is freed a second time")


def test_a_failed_free_leaves_the_memory(cu: Calls) -> None:
    pointer = cu.allocate(100)
    cu.write(pointer, b"abc")
    with cuda.failing("cuMemFree"):
        assert cu.status("cuMemFree_v2", pointer) == OUT_OF_MEMORY
    assert cu.read(pointer, 3) == b"abc"
    cu("cuMemFree_v2", pointer)


# ---- Guard bytes and freed memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "count", "distance"), [(100, 1, 0), (103, 5, 3), (600, 20, 500)])
def test_a_write_past_the_end_is_found_when_memory_is_freed(cu: Calls, offset: int, count: int, distance: int) -> None:
    pointer = cu.allocate(100)
    name = f"allocation {serial(cu, pointer)} of 100 bytes"
    ctypes.memset(pointer + offset, 0, count)
    assert cu.failure("cuMemFree_v2", pointer) == (
        ILLEGAL_ADDRESS,
        f"{count} bytes were written {distance} bytes past the end of {name}; found after it was freed",
    )
    assert cuda.live_allocations() == []


def test_a_write_before_the_start_is_found_by_a_check(cu: Calls) -> None:
    pointer = cu.allocate(100)
    name = f"allocation {serial(cu, pointer)} of 100 bytes"
    ctypes.memset(pointer - 4, 7, 4)
    text = f"4 bytes were written 4 bytes before the start of {name}; found after a check that the program asked for"
    with pytest.raises(SimulatorError) as caught:
        cuda.check_memory()
    assert str(caught.value) == text
    cuda.check_memory()  # it is reported once
    cu("cuMemFree_v2", pointer)


def test_guards_of_pinned_memory(cu: Calls) -> None:
    pointer = cu.number("cuMemAllocHost_v2", 10)
    ctypes.memset(pointer + 10, 1, 2)
    status, text = cu.failure("cuMemFreeHost", pointer)
    assert status == ILLEGAL_ADDRESS
    assert text.startswith("2 bytes were written 0 bytes past the end of pinned allocation ")


def test_memory_in_use_may_be_written_in_full(cu: Calls) -> None:
    pointer = cu.allocate(100)
    ctypes.memset(pointer, 7, 100)
    cuda.check_memory()
    cu("cuMemFree_v2", pointer)


def test_freed_memory_reads_as_nan_and_is_named(cu: Calls) -> None:
    pointer = cu.allocate(100)
    name = f"allocation {serial(cu, pointer)} of 100 bytes"
    cu.write(pointer, b"x" * 100)
    cu("cuMemFree_v2", pointer)
    assert ctypes.string_at(pointer, 100) == b"\xff" * 100
    data = ctypes.create_string_buffer(8)
    assert cu.failure("cuMemcpyDtoH_v2", data, pointer + 4, 8) == (
        INVALID_VALUE,
        f"cuMemcpyDtoH: the source at byte 4 of {name} uses memory that has been freed",
    )
    assert cu.failure("cudasim_check_range", b"cublasSgemm: matrix A", pointer, 8, False) == (
        ILLEGAL_ADDRESS,
        f"cublasSgemm: matrix A at byte 0 of {name} uses memory that has been freed",
    )


def test_a_write_to_freed_memory_is_found_by_a_check(cu: Calls) -> None:
    pointer = cu.allocate(100)
    name = f"allocation {serial(cu, pointer)} of 100 bytes"
    cu("cuMemFree_v2", pointer)
    ctypes.memset(pointer + 40, 0, 8)
    with pytest.raises(SimulatorError) as caught:
        cuda.check_memory()
    assert str(caught.value) == (
        f"8 bytes were written at byte 40 of {name} after it had been freed; "
        "found after a check that the program asked for"
    )
    cuda.check_memory()


def test_freed_memory_is_kept_for_a_while_and_checked_when_it_goes(cu: Calls) -> None:
    first = cu.allocate(60 * MIB)
    name = f"allocation {serial(cu, first)} of {60 * MIB} bytes"
    cu("cuMemFree_v2", first)
    ctypes.memset(first + 16, 0, 1)
    for _ in range(3):
        cu("cuMemFree_v2", cu.allocate(60 * MIB))
    assert cu.failure("cuMemsetD8_v2", first, 0, 1)[1].endswith("uses memory that has been freed")
    assert cu.failure("cuMemFree_v2", cu.allocate(60 * MIB)) == (
        ILLEGAL_ADDRESS,
        f"1 bytes were written at byte 16 of {name} after it had been freed; found after the memory was given back",
    )
    assert cuda.live_allocations() == []


def test_threads_allocate_and_free_at_the_same_time(cu: Calls) -> None:
    context = cu.number("cuCtxGetCurrent")
    failures: list[int] = []

    def work(value: int) -> None:
        cu("cuCtxSetCurrent", context)
        for _ in range(50):
            pointer = cu.allocate(64)
            cu("cuMemsetD8_v2", pointer, value, 64)
            if cu.read(pointer, 64) != bytes([value]) * 64 or cu.status("cuMemFree_v2", pointer):
                failures.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert cuda.live_allocations() == []
    cuda.check_memory()


# ---- Kinds of memory -------------------------------------------------------------------------------------------------


def test_managed_memory(cu: Calls) -> None:
    pointer = cu.number("cuMemAllocManaged", 64, 1)
    assert cu.attribute(pointer, 8, ctypes.c_uint32) == 1
    assert cu.attribute(pointer, 4) == pointer  # the host uses it, too
    ctypes.memset(pointer, 3, 64)
    assert cu.read(pointer, 64) == b"\x03" * 64
    assert memory_info(cu)[0] == 64 * MIB - 512
    cu("cuMemFree_v2", pointer)
    assert cu.status("cuMemAllocManaged", ctypes.byref(ctypes.c_uint64()), 64, 0) == INVALID_VALUE


def test_pinned_memory(cu: Calls) -> None:
    pointer = cu.number("cuMemHostAlloc", 64, 1)
    assert pointer % 512 == 0
    assert memory_info(cu)[0] == 64 * MIB
    assert cu.number("cuMemHostGetDevicePointer_v2", pointer + 4, 0) == pointer + 4
    assert cu.number("cuMemHostGetFlags", pointer, kind=ctypes.c_uint32) == 3  # portable and mapped
    assert cu.status("cuMemHostAlloc", ctypes.byref(ctypes.c_uint64()), 64, 8) == INVALID_VALUE
    device = cu.allocate(64)
    assert cu.status("cuMemHostGetFlags", ctypes.byref(ctypes.c_uint32()), device) == INVALID_VALUE
    assert cu.status("cuMemHostGetDevicePointer_v2", ctypes.byref(ctypes.c_uint64()), device, 0) == INVALID_VALUE
    cu("cuMemFreeHost", pointer)


def test_registered_memory(cu: Calls) -> None:
    data = ctypes.create_string_buffer(b"0123456789")
    address = ctypes.addressof(data)
    cu("cuMemHostRegister_v2", address, 10, 0)
    assert cu.attribute(address, 2, ctypes.c_uint32) == HOST
    assert [live.kind for live in cuda.live_allocations()] == ["registered"]
    assert cu.status("cuMemHostRegister_v2", address + 5, 2, 0) == ALREADY_REGISTERED
    assert cu.status("cuMemHostRegister_v2", address - 5, 6, 0) == ALREADY_REGISTERED
    assert cu.status("cuMemHostUnregister", address + 1) == NOT_REGISTERED
    device = cu.allocate(20)
    assert cu.failure("cuMemcpyHtoD_v2", device, data, 11) == (
        INVALID_VALUE,
        "cuMemcpyHtoD: the source of 11 bytes at byte 0 of registered memory of 10 bytes is out of bounds",
    )
    cu("cuMemcpyHtoD_v2", device, data, 10)
    cu("cuMemHostUnregister", address)
    assert cu.read(device, 10) == b"0123456789"
    assert data.raw == b"0123456789\0"
    assert cu.status("cuMemHostUnregister", address) == NOT_REGISTERED
    assert cu.status("cuMemHostRegister_v2", address, 0, 0) == INVALID_VALUE
    assert cu.status("cuMemHostRegister_v2", address, 4, 0x40) == INVALID_VALUE


@pytest.mark.parametrize("newer", [False, True])
def test_advice_and_prefetches_check_their_arguments(cu: Calls, newer: bool) -> None:
    managed, device = cu.number("cuMemAllocManaged", 64, 1), cu.allocate(64)

    def status(name: str, pointer: int, nbytes: int, where: int, *rest: int, after: tuple[int, ...] = ()) -> int:
        if not newer:
            return cu.status(name, pointer, nbytes, *rest, where, *after)
        return cu.status(f"{name}_v2", pointer, nbytes, *rest, Location(1, where), *after)

    set_preferred, stream = 3, 0
    flags = (0, stream) if newer else (stream,)
    assert status("cuMemPrefetchAsync", managed, 64, 1, after=flags) == 0
    assert status("cuMemPrefetchAsync", managed, 65, 1, after=flags) == INVALID_VALUE
    assert status("cuMemPrefetchAsync", device, 64, 1, after=flags) == INVALID_VALUE
    assert status("cuMemPrefetchAsync", managed, 64, 2, after=flags) == INVALID_DEVICE
    assert status("cuMemAdvise", managed, 64, 1, set_preferred) == 0
    assert status("cuMemAdvise", managed, 0, 1, set_preferred) == INVALID_VALUE
    assert status("cuMemAdvise", managed, 64, 2, set_preferred) == INVALID_DEVICE
    assert status("cuMemAdvise", managed, 64, 1, 9) == INVALID_VALUE


# ---- Pointers --------------------------------------------------------------------------------------------------------


def test_attributes_of_device_memory(cu: Calls) -> None:
    context = cu.number("cuDevicePrimaryCtxRetain", 1)
    cu("cuCtxPushCurrent_v2", context)
    pointer = cu.allocate(100)
    assert cu.attribute(pointer, 1) == context
    assert cu.attribute(pointer, 2, ctypes.c_uint32) == DEVICE
    assert cu.attribute(pointer + 8, 3) == pointer + 8
    assert cu.attribute(pointer, 4) == 0  # not for the host
    assert cu.attribute(pointer, 7) == cu.attribute(pointer + 50, 7)
    assert cu.attribute(pointer, 8, ctypes.c_uint32) == 0
    assert cu.attribute(pointer, 9, ctypes.c_int32) == 1
    assert cu.attribute(pointer + 8, 11) == pointer
    assert cu.attribute(pointer + 8, 12) == 100
    assert cu.attribute(pointer, 17) == 0
    cu("cuDevicePrimaryCtxRelease_v2", 1)


def test_attributes_of_unknown_memory(cu: Calls) -> None:
    result = ctypes.c_uint64(5)
    pointer = cu.allocate(100)
    for unknown in (4096, pointer + 100, pointer - 1):
        assert cu.status("cuPointerGetAttribute", ctypes.byref(result), 2, unknown) == INVALID_VALUE
    assert cu.status("cuPointerGetAttribute", ctypes.byref(result), 5, pointer) == NOT_SUPPORTED
    assert cu.failure("cuPointerGetAttribute", ctypes.byref(result), 99, pointer) == (
        NOT_SUPPORTED,
        "pointer attribute 99 is not simulated",
    )
    assert result.value == 5


def attributes(cu: Calls, pointer: int, names: list[int]) -> list[int]:
    values = (ctypes.c_uint64 * len(names))()
    places = (ctypes.c_void_p * len(names))(*(ctypes.addressof(values) + 8 * i for i in range(len(names))))
    cu("cuPointerGetAttributes", len(names), (ctypes.c_int * len(names))(*names), places, pointer)
    return list(values)


def test_several_attributes_at_once_are_null_for_unknown_memory(cu: Calls) -> None:
    pointer = cu.allocate(100)
    assert attributes(cu, pointer + 4, [2, 9, 11, 12]) == [DEVICE, 0, pointer, 100]
    assert attributes(cu, 4096, [2, 3, 4, 9, 11, 12]) == [0, 0, 0, 2**32 - 2, 0, 0]
    cu("cuMemFree_v2", pointer)
    assert attributes(cu, pointer, [2, 12]) == [0, 0]


def test_sync_memops_can_be_set(cu: Calls) -> None:
    pointer, on = cu.allocate(100), ctypes.c_uint32(1)
    cu("cuPointerSetAttribute", ctypes.byref(on), 6, pointer)
    assert cu.status("cuPointerSetAttribute", ctypes.byref(on), 2, pointer) == INVALID_VALUE
    assert cu.status("cuPointerSetAttribute", ctypes.byref(on), 6, 4096) == INVALID_VALUE


# ---- Copies ----------------------------------------------------------------------------------------------------------


def test_copies_between_host_and_device(cu: Calls) -> None:
    a, b = cu.allocate(8), cu.allocate(8)
    cu.write(a, b"01234567")
    cu("cuMemcpyDtoD_v2", b + 4, a, 4)
    cu("cuMemcpy", b, a + 4, 4)
    assert cu.read(b, 8) == b"45670123"
    cu("cuMemcpyDtoD_v2", a + 2, a, 6)  # of memory with itself
    assert cu.read(a, 8) == b"01012345"
    data = ctypes.create_string_buffer(4)
    cu("cuMemcpy", data, a, 4)
    assert data.raw == b"0101"
    cu("cuMemcpyHtoDAsync_v2", a, b"abcd", 4, 0)
    cu("cuMemcpyDtoDAsync_v2", b, a, 4, 0)
    cu("cuMemcpyDtoHAsync_v2", data, b, 4, 0)
    assert data.raw == b"abcd"
    cu("cuMemcpyAsync", data, a + 4, 4, 0)
    assert data.raw == b"2345"


def test_copies_of_nothing(cu: Calls) -> None:
    cu("cuMemcpyHtoD_v2", 0, None, 0)
    cu("cuMemcpyDtoDAsync_v2", 0, 0, 0, 0)
    cu("cuMemsetD32_v2", 0, 1, 0)


def test_copies_out_of_bounds(cu: Calls) -> None:
    a, b = cu.allocate(100), cu.allocate(200)
    name = f"allocation {serial(cu, a)} of 100 bytes"
    assert cu.failure("cuMemcpyDtoD_v2", a, b, 101) == (
        INVALID_VALUE,
        f"cuMemcpyDtoD: the destination of 101 bytes at byte 0 of {name} is out of bounds",
    )
    assert cu.failure("cuMemcpyDtoDAsync_v2", b, a + 60, 41, 0) == (
        INVALID_VALUE,
        f"cuMemcpyDtoDAsync: the source of 41 bytes at byte 60 of {name} is out of bounds",
    )
    assert cu.failure("cuMemcpyHtoD_v2", a - 4, b"x" * 8, 8) == (
        INVALID_VALUE,
        f"cuMemcpyHtoD: the destination of 8 bytes at byte -4 of {name} is out of bounds",
    )
    assert cu.failure("cuMemcpyHtoD_v2", 4096, b"x", 1) == (
        INVALID_VALUE,
        "cuMemcpyHtoD: the destination at 0x1000 is no memory that CUDA knows",
    )
    assert cu.failure("cuMemcpyDtoD_v2", 0, a, 1) == (
        INVALID_VALUE,
        "cuMemcpyDtoD: the destination is a null pointer",
    )
    assert cu.read(a, 100) == b"\xff" * 100


def test_the_host_side_of_a_copy_is_host_memory(cu: Calls) -> None:
    a, b = cu.allocate(100), cu.allocate(100)
    name = f"allocation {serial(cu, b)} of 100 bytes"
    assert cu.failure("cuMemcpyHtoD_v2", a, b, 4) == (
        INVALID_VALUE,
        f"cuMemcpyHtoD: the source must be host memory, and is {name}",
    )
    assert cu.status("cuMemcpyDtoH_v2", b, a, 4) == INVALID_VALUE
    pinned, managed = cu.number("cuMemAllocHost_v2", 4), cu.number("cuMemAllocManaged", 4, 1)
    cu("cuMemcpyDtoH_v2", pinned, a, 4)
    cu("cuMemcpyDtoH_v2", managed, a, 4)
    cu("cuMemcpyHtoD_v2", a, managed, 4)
    cu("cuMemFreeHost", pinned)


def test_peer_copies(cu: Calls) -> None:
    contexts = [cu.number("cuDevicePrimaryCtxRetain", device) for device in (0, 1)]
    a = cu.allocate(8)
    cu("cuCtxPushCurrent_v2", contexts[1])
    b = cu.allocate(8)
    cu.write(b, b"01234567")
    cu("cuMemcpyPeer", a, contexts[0], b, contexts[1], 8)
    cu("cuMemcpyPeerAsync", a, contexts[0], b + 4, contexts[1], 4, 0)
    assert cu.read(a, 8) == b"45674567"
    name = f"allocation {serial(cu, a)} of 8 bytes"
    assert cu.failure("cuMemcpyPeer", a, contexts[1], b, contexts[1], 8) == (
        INVALID_VALUE,
        f"the destination is {name} of device 0, not of device 1",
    )
    assert cu.status("cuMemcpyPeer", a, contexts[0], b, contexts[0], 8) == INVALID_VALUE
    assert cu.status("cuMemcpyPeer", a, None, b, contexts[1], 8) == INVALID_CONTEXT
    for device in (0, 1):
        cu("cuDevicePrimaryCtxRelease_v2", device)


def letters(count: int) -> bytes:
    return bytes(range(65, 65 + count))


@pytest.mark.parametrize("name", ["cuMemcpy2D_v2", "cuMemcpy2DUnaligned_v2", "cuMemcpy2DAsync_v2"])
def test_copies_of_rows(cu: Calls, name: str) -> None:
    source = ctypes.create_string_buffer(letters(24), 24)
    target = cu.allocate(40)
    cu("cuMemsetD8_v2", target, ord("."), 40)
    stream = (0,) if name.startswith("cuMemcpy2DAsync") else ()
    copy = Copy2D(srcMemoryType=HOST, srcHost=ctypes.addressof(source), srcPitch=6, srcXInBytes=1, srcY=1)
    copy.dstMemoryType, copy.dstDevice, copy.dstPitch, copy.dstXInBytes, copy.dstY = DEVICE, target, 10, 2, 1
    copy.WidthInBytes, copy.Height = 3, 3
    cu(name, ctypes.byref(copy), *stream)
    assert cu.read(target, 40) == b"..........  HIJ.....  NOP.....  TUV.....".replace(b" ", b".")
    back = ctypes.create_string_buffer(9)
    copy = Copy2D(srcMemoryType=UNIFIED, srcDevice=target + 12, srcPitch=10, dstMemoryType=HOST)
    copy.dstHost, copy.WidthInBytes, copy.Height = ctypes.addressof(back), 3, 3
    cu(name, ctypes.byref(copy), *stream)
    assert back.raw == b"HIJNOPTUV"


def test_copies_of_rows_are_checked(cu: Calls) -> None:
    a, b = cu.allocate(64), cu.allocate(60)
    copy = Copy2D(srcMemoryType=DEVICE, srcDevice=a, srcPitch=16, dstMemoryType=DEVICE, dstDevice=b, dstPitch=16)
    copy.WidthInBytes, copy.Height = 12, 4
    cu("cuMemcpy2D_v2", ctypes.byref(copy))  # 3 * 16 + 12 bytes
    copy.WidthInBytes = 13
    assert cu.failure("cuMemcpy2D_v2", ctypes.byref(copy))[1].startswith(
        "cuMemcpy2D: the destination of 61 bytes at byte 0 of allocation "
    )
    copy.WidthInBytes, copy.Height = 17, 2
    assert cu.failure("cuMemcpy2D_v2", ctypes.byref(copy)) == (
        INVALID_VALUE,
        "cuMemcpy2D: rows of 17 bytes from byte 0 on do not fit a pitch of 16 bytes",
    )
    copy.srcMemoryType = ARRAY
    assert cu.failure("cuMemcpy2D_v2", ctypes.byref(copy)) == (
        NOT_SUPPORTED,
        "cuMemcpy2D: arrays are not simulated",
    )
    copy.srcMemoryType = 7
    assert cu.failure("cuMemcpy2D_v2", ctypes.byref(copy)) == (
        INVALID_VALUE,
        "cuMemcpy2D: there is no memory type 7",
    )
    assert cu.status("cuMemcpy2D_v2", None) == INVALID_VALUE


@pytest.mark.parametrize("name", ["cuMemcpy3D_v2", "cuMemcpy3DAsync_v2", "cuMemcpy3DPeer", "cuMemcpy3DPeerAsync"])
def test_copies_of_boxes(cu: Calls, name: str) -> None:
    source = ctypes.create_string_buffer(letters(24), 24)  # 2 slices of 3 rows of 4
    target = cu.allocate(8)
    context = cu.number("cuDevicePrimaryCtxRetain", 0)
    copy = Copy3D(srcMemoryType=HOST, srcHost=ctypes.addressof(source), srcPitch=4, srcHeight=3, srcXInBytes=2, srcY=1)
    copy.dstMemoryType, copy.dstDevice, copy.dstPitch, copy.dstHeight = DEVICE, target, 2, 2
    copy.dstContext = context if "Peer" in name else 0
    copy.WidthInBytes, copy.Height, copy.Depth = 2, 2, 2
    stream = (0,) if "Async" in name else ()
    cu(name, ctypes.byref(copy), *stream)
    assert cu.read(target, 8) == b"GHKLSTWX"
    copy.dstZ = 1
    assert cu.status(name, ctypes.byref(copy), *stream) == INVALID_VALUE
    copy.dstZ, copy.srcLOD = 0, 1
    assert cu.failure(name, ctypes.byref(copy), *stream)[1].endswith("LOD must be 0")
    assert cu.status(name, None, *stream) == INVALID_VALUE
    cu("cuDevicePrimaryCtxRelease_v2", 0)


def test_boxes_of_peers_belong_to_their_contexts(cu: Calls) -> None:
    contexts = [cu.number("cuDevicePrimaryCtxRetain", device) for device in (0, 1)]
    a, b = cu.allocate(8), cu.allocate(8)
    copy = Copy3D(srcMemoryType=DEVICE, srcDevice=a, srcContext=contexts[0], WidthInBytes=8, Height=1, Depth=1)
    copy.dstMemoryType, copy.dstDevice, copy.dstContext = DEVICE, b, contexts[1]
    assert cu.failure("cuMemcpy3DPeer", ctypes.byref(copy))[1].endswith("of device 0, not of device 1")
    copy.dstContext = contexts[0]
    cu("cuMemcpy3DPeer", ctypes.byref(copy))
    for device in (0, 1):
        cu("cuDevicePrimaryCtxRelease_v2", device)


# ---- Order -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stream(cu: Calls) -> Any:
    made = cu.number("cuStreamCreate", NON_BLOCKING)
    yield made
    cu("cuStreamDestroy_v2", made)


def test_pageable_memory_is_read_at_the_call_and_pinned_memory_later(cu: Calls, stream: int) -> None:
    a, b = cu.allocate(4), cu.allocate(4)
    pinned = cu.number("cuMemAllocHost_v2", 4)
    pageable = ctypes.create_string_buffer(b"old!", 4)
    ctypes.memmove(pinned, b"old!", 4)
    with cuda.stream_order(1):
        cu("cuMemcpyHtoDAsync_v2", a, pageable, 4, stream)
        cu("cuMemcpyHtoDAsync_v2", b, pinned, 4, stream)
        pageable.raw = b"new!"
        ctypes.memmove(pinned, b"new!", 4)
        cu("cuStreamSynchronize", stream)
    assert (cu.read(a, 4), cu.read(b, 4)) == (b"old!", b"new!")
    cu("cuMemFreeHost", pinned)


def test_pageable_memory_is_written_before_the_call_returns(cu: Calls, stream: int) -> None:
    a, pinned = cu.allocate(4), cu.number("cuMemAllocHost_v2", 4)
    data = ctypes.create_string_buffer(4)
    with cuda.stream_order(1):
        cu("cuMemsetD8Async", a, 7, 4, stream)
        cu("cuMemcpyDtoHAsync_v2", pinned, a, 4, stream)
        assert ctypes.string_at(pinned, 4) == b"\xff" * 4
        cu("cuMemcpyDtoHAsync_v2", data, a, 4, stream)
        assert data.raw == b"\x07" * 4
    assert ctypes.string_at(pinned, 4) == b"\x07" * 4
    cu("cuMemFreeHost", pinned)


def test_free_waits_for_the_device(cu: Calls, stream: int) -> None:
    a, b = cu.allocate(4), cu.allocate(4)
    cu.write(a, b"data")
    with cuda.stream_order(1):
        cu("cuMemcpyDtoDAsync_v2", b, a, 4, stream)
        cu("cuMemFree_v2", a)
    assert cu.read(b, 4) == b"data"


@pytest.mark.parametrize("call", ["cuMemFree_v2", "cuMemFreeHost", "cuMemcpyDtoH_v2", "cuMemAllocAsync", "seed"])
def test_waiting_leaves_the_lock_to_other_threads(cu: Calls, call: str) -> None:
    blocking = cu.number("cuStreamCreate", 0)
    results: list[int] = []

    def ask() -> None:
        results.append(cu.status("cuDeviceGetCount", ctypes.byref(ctypes.c_int())))

    def wait_for_a_thread_that_calls_cuda(_: int) -> None:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(timeout=60)

    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(wait_for_a_thread_that_calls_cuda)
    device, pinned = cu.allocate(4), cu.number("cuMemAllocHost_v2", 4)
    with cuda.stream_order(1):
        cu("cuLaunchHostFunc", blocking, function, None)
        assert results == []
        if call == "cuMemAllocAsync":
            with cuda.memory_limit(1024):
                assert cu.status(call, ctypes.byref(ctypes.c_uint64()), 2048, 0) == OUT_OF_MEMORY
        elif call == "cuMemcpyDtoH_v2":
            cu.read(device, 4)
        elif call != "seed":
            cu(call, pinned if call == "cuMemFreeHost" else device)
        assert results == ([] if call == "seed" else [0])
    assert results == [0]
    cu("cuStreamDestroy_v2", blocking)


# ---- Capture ---------------------------------------------------------------------------------------------------------

GLOBAL, RELAXED = 0, 2


def test_memory_is_not_allocated_or_freed_while_a_stream_is_captured(cu: Calls, stream: int) -> None:
    pointer = cu.allocate(4)
    cu("cuStreamBeginCapture_v2", stream, GLOBAL)
    assert cu.failure("cuMemAlloc_v2", ctypes.byref(ctypes.c_uint64()), 4) == (
        STREAM_CAPTURE_UNSUPPORTED,
        "cuMemAlloc must not be called while a stream is being captured; the capture is now invalid",
    )
    for name, arguments in [("cuMemFree_v2", (pointer,)), ("cuMemFreeHost", (4096,)), ("cuCtxSynchronize", ())]:
        assert cu.status(name, *arguments) == STREAM_CAPTURE_UNSUPPORTED
    graph = ctypes.c_uint64()
    assert cu.status("cuStreamEndCapture", stream, ctypes.byref(graph)) == STREAM_CAPTURE_INVALIDATED
    assert [live.address for live in cuda.live_allocations()] == [pointer]


def test_a_relaxed_capture_lets_memory_be_allocated_and_freed(cu: Calls, stream: int) -> None:
    cu("cuStreamBeginCapture_v2", stream, RELAXED)
    cu("cuMemFree_v2", cu.allocate(4))
    assert cu.failure("cuMemAllocAsync", ctypes.byref(ctypes.c_uint64()), 4, stream) == (
        NOT_SUPPORTED,
        "memory nodes of graphs are not simulated: allocate before the capture",
    )
    graph = ctypes.c_uint64()
    cu("cuStreamEndCapture", stream, ctypes.byref(graph))
    cu("cuGraphDestroy", graph.value)


def test_a_captured_copy_reads_the_host_when_the_graph_runs(cu: Calls, stream: int) -> None:
    pointer, data = cu.allocate(4), ctypes.create_string_buffer(b"old!", 4)
    back = ctypes.create_string_buffer(4)
    cu("cuStreamBeginCapture_v2", stream, RELAXED)
    cu("cuMemcpyHtoDAsync_v2", pointer, data, 4, stream)
    cu("cuMemcpyDtoHAsync_v2", back, pointer, 4, stream)
    graph = ctypes.c_uint64()
    cu("cuStreamEndCapture", stream, ctypes.byref(graph))
    assert back.raw == bytes(4)
    ready = cu.number("cuGraphInstantiateWithFlags", graph.value, 0)
    for value in (b"new!", b"more"):
        data.raw = value
        cu("cuGraphLaunch", ready, stream)
        cu("cuStreamSynchronize", stream)
        assert back.raw == value
    cu("cuMemFree_v2", pointer)
    assert cu.status("cuGraphLaunch", ready, stream) == ILLEGAL_ADDRESS  # the memory that it copies to is gone
    cu("cuGraphExecDestroy", ready)
    cu("cuGraphDestroy", graph.value)


# ---- Fills -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("bits", "value"), [(8, 0xAB), (16, 0xABCD), (32, 0xABCDEF01)])
def test_fills(cu: Calls, bits: int, value: int, asynchronous: bool) -> None:
    size = bits // 8
    pointer = cu.allocate(5 * size)
    name, stream = (f"cuMemsetD{bits}Async", (0,)) if asynchronous else (f"cuMemsetD{bits}_v2", ())
    cu(name, pointer + size, value, 3, *stream)
    element = value.to_bytes(size, "little")
    assert cu.read(pointer, 5 * size) == b"\xff" * size + 3 * element + b"\xff" * size
    assert cu.failure(name, pointer + size, value, 5, *stream)[1].endswith("is out of bounds")
    if size > 1:
        assert cu.failure(name, pointer + 1, value, 1, *stream)[1].endswith(f"must be multiples of {size} bytes")


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("bits", "value"), [(8, 0xAB), (16, 0xABCD), (32, 0xABCDEF01)])
def test_fills_of_rows(cu: Calls, bits: int, value: int, asynchronous: bool) -> None:
    size, pitch = bits // 8, 12
    pointer = cu.allocate(2 * pitch + 8)
    name, stream = (f"cuMemsetD2D{bits}Async", (0,)) if asynchronous else (f"cuMemsetD2D{bits}_v2", ())
    width = 8 // size
    cu(name, pointer, pitch, value, width, 3, *stream)
    row = value.to_bytes(size, "little") * width
    assert cu.read(pointer, 2 * pitch + 8) == (row + b"\xff" * 4) * 2 + row
    assert cu.failure(name, pointer, pitch, value, width, 4, *stream)[1].endswith("is out of bounds")
    assert cu.failure(name, pointer, 4, value, width, 2, *stream)[1].endswith("do not fit a pitch of 4 bytes")


# ---- What was written ------------------------------------------------------------------------------------------------


def first_unwritten(cu: Calls, pointer: int, nbytes: int) -> str:
    """What a library's read of the memory says; "" if all was written."""
    if cu.status("cudasim_check_range", b"read", pointer, nbytes, False) == 0:
        return ""
    status, text = cu.failure("cudasim_check_range", b"read", pointer, nbytes, False)
    assert status == LAUNCH_FAILED
    return text.partition(" of ")[0]


def test_reads_of_memory_that_was_never_written(cu: Calls) -> None:
    a, b = cu.allocate(16), cu.allocate(16)
    assert first_unwritten(cu, a, 16) == "read: byte 0"
    cu.write(a, b"01234567")
    assert first_unwritten(cu, a, 8) == ""
    assert first_unwritten(cu, a, 9) == "read: byte 8"
    cu("cuMemcpyDtoD_v2", b + 2, a, 16 - 2)  # what is not written is copied as such
    assert first_unwritten(cu, b + 2, 8) == ""
    assert first_unwritten(cu, b, 16) == "read: byte 0"
    assert first_unwritten(cu, b + 2, 14) == "read: byte 10"
    cu("cuMemsetD16_v2", b + 10, 1, 2)
    assert first_unwritten(cu, b + 2, 14) == "read: byte 14"
    cu("cudasim_check_range", b"write", b, 16, True)
    assert first_unwritten(cu, b, 16) == ""
    cu("cudasim_check_range", b"nothing", 0, 0, False)
    cu.read(a, 16)  # not an error: copies to the host carry anything


def test_ranges_of_libraries(cu: Calls) -> None:
    pointer = cu.allocate(16)
    name = f"allocation {serial(cu, pointer)} of 16 bytes"
    assert cu.failure("cudasim_check_range", b"cublasSgemm: matrix C", pointer + 8, 12, True) == (
        ILLEGAL_ADDRESS,
        f"cublasSgemm: matrix C of 12 bytes at byte 8 of {name} is out of bounds",
    )
    assert cu.failure("cudasim_check_range", b"x", 4096, 12, True) == (
        ILLEGAL_ADDRESS,
        "x at 0x1000 is no memory that CUDA knows",
    )
    pinned = cu.number("cuMemAllocHost_v2", 4)
    cu("cudasim_check_range", b"x", pinned, 4, False)
    cu("cuMemFreeHost", pinned)


def test_without_checks_nothing_is_unwritten() -> None:
    code = (
        "cuda.cuInit(0); c = ctypes.c_void_p(); cuda.cuDevicePrimaryCtxRetain(ctypes.byref(c), 0)\n"
        "cuda.cuCtxSetCurrent(c); p = ctypes.c_void_p(); cuda.cuMemAlloc_v2(ctypes.byref(p), 4)\n"
        "print(cuda.cudasim_checks(), cuda.cudasim_check_range(b'x', p, ctypes.c_size_t(4), False))\n"
    )
    assert [run(code, GPUCNN_CUDA_CHECK=check).stdout for check in "10"] == ["1 719\n", "0 0\n"]


# ---- Pools -----------------------------------------------------------------------------------------------------------

REUSE_FOLLOWS_EVENTS, RELEASE_THRESHOLD = 1, 4
RESERVED, RESERVED_HIGH, USED, USED_HIGH = 5, 6, 7, 8


def pool_value(cu: Calls, pool: int, attribute: int) -> int:
    value = ctypes.c_uint64()
    cu("cuMemPoolGetAttribute", pool, attribute, ctypes.byref(value))
    return value.value


def test_memory_of_the_default_pool(cu: Calls) -> None:
    pool = cu.number("cuDeviceGetDefaultMemPool", 0)
    assert cu.number("cuDeviceGetMemPool", 0) == pool
    pointer = cu.number("cuMemAllocAsync", 100, 0)
    assert cu.attribute(pointer, 17) == pool
    assert cu.attribute(pointer, 9, ctypes.c_int32) == 0
    assert [pool_value(cu, pool, each) for each in (RESERVED, USED)] == [100, 100]
    assert pool_value(cu, pool, USED_HIGH) >= 100
    cu("cuMemFreeAsync", pointer, 0)
    assert pool_value(cu, pool, USED) == 0
    zero = ctypes.c_uint64(0)
    cu("cuMemPoolSetAttribute", pool, USED_HIGH, ctypes.byref(zero))
    cu("cuMemPoolSetAttribute", pool, RESERVED_HIGH, ctypes.byref(zero))
    assert [pool_value(cu, pool, each) for each in (USED_HIGH, RESERVED_HIGH)] == [0, 0]


def test_attributes_of_a_pool(cu: Calls) -> None:
    pool = cu.number("cuDeviceGetDefaultMemPool", 1)
    value = ctypes.c_int32()
    cu("cuMemPoolGetAttribute", pool, REUSE_FOLLOWS_EVENTS, ctypes.byref(value))
    assert value.value == 1
    value.value = 0
    cu("cuMemPoolSetAttribute", pool, REUSE_FOLLOWS_EVENTS, ctypes.byref(value))
    assert pool_value(cu, pool, REUSE_FOLLOWS_EVENTS) == 0
    value.value = 1
    cu("cuMemPoolSetAttribute", pool, REUSE_FOLLOWS_EVENTS, ctypes.byref(value))
    assert pool_value(cu, pool, RELEASE_THRESHOLD) == 0
    cu("cuMemPoolSetAttribute", pool, RELEASE_THRESHOLD, ctypes.byref(ctypes.c_uint64(MIB)))
    assert pool_value(cu, pool, RELEASE_THRESHOLD) == MIB
    for attribute in (USED, USED_HIGH, 99):
        assert cu.status("cuMemPoolSetAttribute", pool, attribute, ctypes.byref(ctypes.c_uint64(1))) == 1
    assert cu.status("cuMemPoolGetAttribute", pool, 99, ctypes.byref(value)) == INVALID_VALUE
    cu("cuMemPoolTrimTo", pool, 0)


def test_a_pool_of_the_program(cu: Calls) -> None:
    properties = PoolProperties(allocType=1, locationType=1, locationId=0, maxSize=1000)
    pool = cu.number("cuMemPoolCreate", ctypes.byref(properties))
    pointer = cu.number("cuMemAllocFromPoolAsync", 600, pool, 0)
    result = ctypes.c_uint64()
    assert cu.failure("cuMemAllocFromPoolAsync", ctypes.byref(result), 401, pool, 0) == (
        OUT_OF_MEMORY,
        "401 bytes were asked for, 600 of the pool's 1000 bytes are in use",
    )
    cu("cuDeviceSetMemPool", 0, pool)
    assert cu.attribute(cu.number("cuMemAllocAsync", 400, 0), 17) == pool
    assert cu.status("cuDeviceSetMemPool", 1, pool) == INVALID_VALUE
    cu("cuMemPoolDestroy", pool)
    assert cu.number("cuDeviceGetMemPool", 0) == cu.number("cuDeviceGetDefaultMemPool", 0)
    for name, arguments in [("cuMemPoolTrimTo", (0,)), ("cuMemPoolDestroy", ())]:
        assert cu.failure(name, pool, *arguments)[1].endswith("is not a memory pool, or was destroyed")
    assert cu.status("cuMemAllocFromPoolAsync", ctypes.byref(result), 1, pool, 0) == INVALID_VALUE
    cu("cuMemFreeAsync", pointer, 0)  # outlives its pool


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"allocType": 0}, INVALID_VALUE),
        ({"locationType": 2}, NOT_SUPPORTED),
        ({"handleTypes": 1}, NOT_SUPPORTED),
        ({"locationId": 2}, INVALID_DEVICE),
    ],
)
def test_pools_that_cannot_be_made(cu: Calls, change: dict[str, int], status: int) -> None:
    properties = PoolProperties(**{"allocType": 1, "locationType": 1, "locationId": 0, **change})
    assert cu.status("cuMemPoolCreate", ctypes.byref(ctypes.c_uint64()), ctypes.byref(properties)) == status


def test_a_default_pool_cannot_be_destroyed(cu: Calls) -> None:
    pool = cu.number("cuDeviceGetDefaultMemPool", 0)
    assert cu.status("cuMemPoolDestroy", pool) == INVALID_VALUE
    assert cu.status("cuMemPoolDestroy", 4096) == INVALID_VALUE
    assert cu.status("cuDeviceGetDefaultMemPool", ctypes.byref(ctypes.c_uint64()), 2) == INVALID_DEVICE


def test_memory_is_freed_when_its_stream_comes_to_it(cu: Calls, stream: int) -> None:
    with cuda.stream_order(1):
        pointer = cu.number("cuMemAllocAsync", 100, stream)
        name = f"allocation {serial(cu, pointer)} of 100 bytes"
        cu("cuMemFreeAsync", pointer, stream)
        assert [live.nbytes for live in cuda.live_allocations()] == [100]
        assert cu.failure("cuMemFreeAsync", pointer, stream) == (INVALID_VALUE, f"{name} is freed a second time")
        assert cu.failure("cuMemFree_v2", pointer) == (INVALID_VALUE, f"{name} is freed a second time")
        cu("cuStreamSynchronize", stream)
        assert cuda.live_allocations() == []


def test_use_after_a_free_in_another_stream(cu: Calls, stream: int) -> None:
    pointer, b = cu.number("cuMemAllocAsync", 100, stream), cu.allocate(100)
    name = f"allocation {serial(cu, pointer)} of 100 bytes"
    cu("cuMemFreeAsync", pointer, stream)
    assert cu.failure("cuMemcpyDtoDAsync_v2", b, pointer, 100, 0) == (
        INVALID_VALUE,
        f"cuMemcpyDtoDAsync: the source at byte 0 of {name} uses memory that has been freed",
    )


def test_pending_frees_make_room(cu: Calls, stream: int) -> None:
    with cuda.stream_order(1):
        cu("cuMemFreeAsync", cu.number("cuMemAllocAsync", 60 * MIB, stream), stream)
        cu("cuMemFreeAsync", cu.number("cuMemAllocAsync", 60 * MIB, stream), stream)
    assert cuda.live_allocations() == []


def test_memory_of_cumemalloc_may_be_freed_in_a_stream(cu: Calls) -> None:
    cu("cuMemFreeAsync", cu.allocate(100), 0)
    assert cuda.live_allocations() == []
    pinned = cu.number("cuMemAllocHost_v2", 4)
    assert cu.status("cuMemFreeAsync", pinned, 0) == INVALID_VALUE
    cu("cuMemFreeHost", pinned)
