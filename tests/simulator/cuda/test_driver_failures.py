"""Failures of the simulated driver: their texts, those that a test injects, counts, the log, leaks at exit."""

from __future__ import annotations

import ctypes
import re
import threading

import pytest
from driver_calls import INVALID_VALUE, LAUNCH_FAILED, OUT_OF_MEMORY, UNKNOWN, Calls, run

from gpucnn.simulator import cuda
from gpucnn.simulator.cuda import control

# ---- Names and texts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "name", "text"),
    [
        (0, b"CUDA_SUCCESS", b"no error"),
        (1, b"CUDA_ERROR_INVALID_VALUE", b"invalid argument"),
        (2, b"CUDA_ERROR_OUT_OF_MEMORY", b"out of memory"),
        (700, b"CUDA_ERROR_ILLEGAL_ADDRESS", b"an illegal memory access was encountered"),
        (719, b"CUDA_ERROR_LAUNCH_FAILED", b"unspecified launch failure"),
        (916, b"CUDA_ERROR_KEY_ROTATION", b"key rotation failed"),
        (999, b"CUDA_ERROR_UNKNOWN", b"unknown error"),
    ],
)
def test_names_and_texts_of_errors(cu: Calls, error: int, name: bytes, text: bytes) -> None:
    result = ctypes.c_char_p()
    cu("cuGetErrorName", error, ctypes.byref(result))
    assert result.value == name
    cu("cuGetErrorString", error, ctypes.byref(result))
    assert result.value == text


def test_what_is_no_error(cu: Calls) -> None:
    for name in ("cuGetErrorName", "cuGetErrorString"):
        result = ctypes.c_char_p(b"before")
        assert cu.status(name, 12345, ctypes.byref(result)) == INVALID_VALUE
        assert result.value is None
        assert cu.status(name, 1, None) == INVALID_VALUE


def test_the_detail_of_a_failure(cu: Calls) -> None:
    assert cu.status("cuMemFree_v2", 4096) == INVALID_VALUE
    assert cu.text(INVALID_VALUE) == "invalid argument: 0x1000 was not allocated"
    assert cu.text(OUT_OF_MEMORY) == "out of memory"  # not what failed
    assert cuda.last_failure() == "0x1000 was not allocated"
    cu("cuCtxSynchronize")
    assert cu.text(INVALID_VALUE) == "invalid argument"
    assert cuda.last_failure() == ""


def test_a_library_sets_the_detail(cu: Calls) -> None:
    cu.library.cudasim_set_detail(b"cublasSgemm: lda must be at least 4")
    assert cu.text(LAUNCH_FAILED) == "unspecified launch failure: cublasSgemm: lda must be at least 4"
    assert cu.text(0) == "no error"
    cu.library.cudasim_set_detail(None)
    assert cu.text(LAUNCH_FAILED) == "unspecified launch failure"


def test_each_thread_has_a_last_failure(cu: Calls) -> None:
    cu.status("cuMemFree_v2", 4096)
    seen = []
    thread = threading.Thread(target=lambda: seen.append((cuda.last_failure(), cu.text(INVALID_VALUE))))
    thread.start()
    thread.join()
    assert seen == [("", "invalid argument")]
    assert cuda.last_failure() == "0x1000 was not allocated"


# ---- Failures of one function ----------------------------------------------------------------------------------------


def try_to_allocate(cu: Calls, times: int) -> list[int]:
    pointer = ctypes.c_uint64()
    return [cu.status("cuMemAlloc_v2", ctypes.byref(pointer), 16) for _ in range(times)]


def test_one_call_of_a_function_fails(cu: Calls) -> None:
    cu.allocate(4)
    with cuda.failing("cuMemAlloc", call=3) as failure:
        assert try_to_allocate(cu, 5) == [0, 0, OUT_OF_MEMORY, 0, 0]
    assert failure.injected == 1
    assert try_to_allocate(cu, 3) == [0, 0, 0]
    assert len(cuda.live_allocations()) == 8


def test_the_failure_says_that_it_was_injected(cu: Calls) -> None:
    with cuda.failing("cuMemAlloc"):
        try_to_allocate(cu, 1)
        assert cu.text(OUT_OF_MEMORY) == "out of memory: injected failure of cuMemAlloc, number 1 of its calls"
    with cuda.failing_at(2):
        cu("cuCtxSynchronize")
        assert cu.failure("cuCtxSynchronize") == (
            UNKNOWN,
            "injected failure of cuCtxSynchronize, number 2 of all calls",
        )


@pytest.mark.parametrize("error", ["CUDA_ERROR_LAUNCH_FAILED", "launch_failed", "LAUNCH_FAILED", "719"])
def test_the_error_is_chosen(cu: Calls, error: str) -> None:
    with cuda.failing("cuMemAlloc", error=error):
        assert try_to_allocate(cu, 1) == [LAUNCH_FAILED]


def test_several_calls_fail(cu: Calls) -> None:
    with cuda.failing("cuMemAlloc", call=2, times=2) as failure:
        assert try_to_allocate(cu, 5) == [0, 2, 2, 0, 0]
    assert failure.injected == 2
    with cuda.failing("cuMemAlloc", call=2, times=None) as failure:
        assert try_to_allocate(cu, 5) == [0, 2, 2, 2, 2]
    assert failure.injected == 4


def test_injections_within_one_another(cu: Calls) -> None:
    with cuda.failing("cuMemAlloc", call=3) as outer:
        with cuda.failing("cuMemAlloc", call=2, error="unknown") as inner:
            assert try_to_allocate(cu, 2) == [0, UNKNOWN]
        assert try_to_allocate(cu, 2) == [OUT_OF_MEMORY, 0]
    assert (outer.injected, inner.injected) == (1, 1)


def test_an_exception_ends_the_injection(cu: Calls) -> None:
    with pytest.raises(KeyError), cuda.failing("cuMemAlloc", call=2):
        raise KeyError
    assert try_to_allocate(cu, 3) == [0, 0, 0]


def test_a_call_that_fails_does_nothing(cu: Calls) -> None:
    pointer = cu.allocate(4)
    cu.write(pointer, b"data")
    with cuda.failing("cuMemsetD8"):
        assert cu.status("cuMemsetD8_v2", pointer, 0, 4) == OUT_OF_MEMORY
    with cuda.failing("cuMemcpyHtoD"):
        assert cu.status("cuMemcpyHtoD_v2", pointer, b"else", 4) == OUT_OF_MEMORY
    with cuda.failing("cuCtxPopCurrent"):
        assert cu.status("cuCtxPopCurrent_v2", None) == OUT_OF_MEMORY
    assert cu.read(pointer, 4) == b"data"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"function": "cuMemAloc"}, "the simulated driver has no function cuMemAloc"),
        ({"function": ""}, "function must not be empty; failing_at counts the calls of all functions"),
        ({"function": "cuMemAlloc", "call": 0}, "call must be 1 or greater, got 0"),
        ({"function": "cuMemAlloc", "times": 0}, "times must be 1 or greater, or None, got 0"),
        ({"function": "cuMemAlloc", "error": "oops"}, "there is no CUDA error 'oops'"),
        ({"function": "cuMemAlloc", "error": "success"}, "there is no CUDA error 'success'"),
    ],
)
def test_injections_that_make_no_sense(cu: Calls, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"), cuda.failing(**arguments):  # type: ignore[arg-type]
        pass


# ---- Failures of any function ----------------------------------------------------------------------------------------


def step(cu: Calls) -> bytes:
    """A program of five calls that are counted, which gives back what it took however it ends."""
    a = ctypes.c_uint64()
    b = ctypes.c_uint64()
    try:
        assert cu.status("cuMemAlloc_v2", ctypes.byref(a), 4) == 0
        assert cu.status("cuMemAlloc_v2", ctypes.byref(b), 4) == 0
        assert cu.status("cuMemcpyHtoD_v2", a.value, b"data", 4) == 0
        assert cu.status("cuMemcpyDtoD_v2", b.value, a.value, 4) == 0
        data = ctypes.create_string_buffer(4)
        assert cu.status("cuMemcpyDtoH_v2", data, b.value, 4) == 0
        return data.raw
    finally:
        for pointer in (a, b):
            assert cu.status("cuMemFree_v2", pointer.value) == 0


def test_every_call_of_a_program_fails_once(cu: Calls) -> None:
    failed = 0
    while True:
        before = cuda.marker()
        with cuda.failing_at(failed + 1) as failure:
            try:
                assert step(cu) == b"data"
            except AssertionError:
                assert failure.injected == 0  # known when the block is left
        if not failure.injected:
            break
        failed += 1
        assert cuda.live_allocations(since=before) == []
    assert failed == 5
    assert step(cu) == b"data"


@pytest.mark.parametrize(
    "name", ["cuMemFree_v2", "cuMemFreeHost", "cuMemFreeAsync", "cuStreamDestroy_v2", "cuMemHostUnregister"]
)
def test_calls_that_give_back_are_not_among_any(cu: Calls, name: str) -> None:
    stream = (0,) if name == "cuMemFreeAsync" else ()
    with cuda.failing_at(1, times=None) as failure:
        assert cu.status(name, 4096, *stream) != UNKNOWN
        assert cu.status("cuCtxSynchronize") == UNKNOWN
    assert failure.injected == 1
    documented = name.removesuffix("_v2")
    with cuda.failing(documented, error="unknown"):
        assert cu.status(name, 4096, *stream) == UNKNOWN


def test_calls_that_choose_a_device_are_not_among_any(cu: Calls) -> None:
    with cuda.failing_at(1, times=None) as failure:
        context = cu.number("cuCtxGetCurrent")
        cu("cuCtxSetCurrent", context)
        assert cu.number("cuDeviceGetCount", kind=ctypes.c_int32) == 2
        assert cu.number("cuDeviceGetAttribute", 10, 0, kind=ctypes.c_int32) == 32
    assert failure.injected == 0
    with cuda.failing("cuCtxGetCurrent", error="unknown"):
        assert cu.status("cuCtxGetCurrent", ctypes.byref(ctypes.c_uint64())) == UNKNOWN


def test_questions_about_errors_are_not_calls(cu: Calls) -> None:
    with cuda.failing_at(1, times=None) as failure:
        assert cu.text(1) == "invalid argument"
    assert failure.injected == 0


# ---- From the environment --------------------------------------------------------------------------------------------

ALLOCATE = (
    "cuda.cuInit(0); c = ctypes.c_void_p(); cuda.cuDevicePrimaryCtxRetain(ctypes.byref(c), 0)\n"
    "cuda.cuCtxSetCurrent(c); p = ctypes.c_void_p()\n"
    "print(*(cuda.cuMemAlloc_v2(ctypes.byref(p), 4) for _ in range(4)))\n"
)


@pytest.mark.parametrize(
    ("value", "results"),
    [
        ("cuMemAlloc:3=out_of_memory", "0 0 2 0"),
        ("cuMemAlloc:1=launch_failed,cuMemAlloc:4", "719 0 0 999"),
        ("any:4=CUDA_ERROR_OUT_OF_MEMORY", "0 2 0 0"),
        ("cuMemAlloc_v2:2=2", "0 2 0 0"),
        ("", "0 0 0 0"),
    ],
)
def test_failures_by_the_environment(cu: Calls, value: str, results: str) -> None:
    assert run(ALLOCATE, GPUCNN_CUDA_FAIL=value).stdout == results + "\n"


@pytest.mark.parametrize("value", ["cuMemAlloc", ":3", "cuMemAlloc:0", "cuMemAlloc:x", "cuMemAlloc:1=oops", "a:1,,b:2"])
def test_an_environment_that_makes_no_sense(cu: Calls, value: str) -> None:
    done = run(ALLOCATE, GPUCNN_CUDA_FAIL=value)
    assert done.returncode == -6
    assert done.stderr == (
        "simulated CUDA: GPUCNN_CUDA_FAIL must be FUNCTION:CALL or FUNCTION:CALL=ERROR, several with commas between "
        f"them, where FUNCTION may be any, for instance cuMemAlloc:3=out_of_memory; got '{value}'\n"
    )


def test_the_log_of_failures_and_of_calls(cu: Calls) -> None:
    code = "cuda.cuInit(0); cuda.cuInit(7)"
    failure = "simulated CUDA: CUDA_ERROR_INVALID_VALUE: the flags must be 0, got 7\n"
    call = "simulated CUDA: cuInit\n"
    assert [run(code, GPUCNN_CUDA_LOG=level).stderr for level in "012"] == ["", failure, call + call + failure]


def test_leaks_at_exit(cu: Calls) -> None:
    code = ALLOCATE + "q = ctypes.c_void_p(); cuda.cuMemAlloc_v2(ctypes.byref(q), ctypes.c_size_t(1000))\n"
    assert run(code, GPUCNN_CUDA_LEAKS="1").stderr == (
        "simulated CUDA: 5 allocations of 1016 bytes in all are left at exit; what a memory pool of the program keeps "
        "is among them\n  4 of 4 bytes\n  1 of 1000 bytes\n"
    )
    assert run("cuda.cuInit(0)", GPUCNN_CUDA_LEAKS="1").stderr == "simulated CUDA: no memory is left at exit\n"
    assert run(code).stderr == ""


# ---- Counts, memory, settings ----------------------------------------------------------------------------------------


def test_calls_are_counted_by_their_documented_names(cu: Calls) -> None:
    cuda.reset()
    try_to_allocate(cu, 3)
    cu.status("cuMemFree_v2", 4096)
    assert cuda.calls() == {"cuMemAlloc": 3, "cuMemFree": 1}
    cu.library.cudasim_begin_call(b"cublasSgemm_v2")
    cu.library.cudasim_begin_call(b"cuMemcpyHtoD_v2_ptds")
    assert cuda.calls() == {"cuMemAlloc": 3, "cuMemFree": 1, "cublasSgemm": 1, "cuMemcpyHtoD": 1}
    cuda.reset()
    assert cuda.calls() == {}


def test_other_libraries_fail_by_their_own_functions(cu: Calls) -> None:
    with cuda.failing("cublasSgemm", call=2, error="launch_failed"):
        results = [cu.library.cudasim_begin_call(b"cublasSgemm_v2") for _ in range(3)]
    assert results == [0, LAUNCH_FAILED, 0]


def test_live_allocations(cu: Calls) -> None:
    a = cu.allocate(100)
    before = cuda.marker()
    b = cu.number("cuMemAllocManaged", 200, 1)
    c = cu.number("cuMemAllocHost_v2", 300)
    cu("cuCtxPushCurrent_v2", cu.number("cuDevicePrimaryCtxRetain", 1))
    d = cu.number("cuMemAllocAsync", 400, 0)
    found = {live.address: live for live in cuda.live_allocations()}
    assert {address: (live.nbytes, live.kind, live.device) for address, live in found.items()} == {
        a: (100, "device", 0),
        b: (200, "managed", 0),
        c: (300, "pinned", 0),
        d: (400, "device", 1),
    }
    assert [found[each].serial - before for each in (a, b, c, d)] == [0, 1, 2, 3]
    assert {live.address for live in cuda.live_allocations(since=before)} == {b, c, d}
    cu("cuMemFree_v2", b)
    assert {live.address for live in cuda.live_allocations(since=before)} == {c, d}
    cu("cuDevicePrimaryCtxRelease_v2", 1)


def test_the_memory_limit_is_set_for_a_while(cu: Calls) -> None:
    cu.allocate(1000)
    with cuda.memory_limit(2048):
        assert cu.number("cuDeviceTotalMem_v2", 0) == 2048
        cu.allocate(1024)
        assert try_to_allocate(cu, 1) == [OUT_OF_MEMORY]
    assert try_to_allocate(cu, 1) == [0]
    with pytest.raises(ValueError, match="nbytes must be 1 or greater, got 0"), cuda.memory_limit(0):
        pass


def test_the_order_of_streams_is_set_for_a_while(cu: Calls) -> None:
    cu.library.cudasim_stream_seed.restype = ctypes.c_uint64
    with cuda.stream_order(2**64 - 1):
        assert cu.library.cudasim_stream_seed() == 2**64 - 1
    with pytest.raises(KeyError), cuda.stream_order(3):
        raise KeyError
    assert cu.library.cudasim_stream_seed() == 0
    with pytest.raises(ValueError, match="seed must be in"), cuda.stream_order(-1):
        pass


def test_a_reset_leaves_memory(cu: Calls) -> None:
    pointer = cu.allocate(4)
    cu.status("cuMemFree_v2", 4096)
    cu.library.cudasim_set_memory_limit(ctypes.c_uint64(4096))
    with cuda.failing("cuMemAlloc", times=None) as failure:
        cuda.reset()
        assert try_to_allocate(cu, 1) == [0]
    assert failure.injected == 0
    assert cuda.last_failure() == ""
    assert cu.number("cuDeviceTotalMem_v2", 0) == 64 << 20
    assert pointer in {live.address for live in cuda.live_allocations()}


def test_checks_are_on(cu: Calls) -> None:
    assert cuda.checks_kernels()
    assert cuda.is_loaded()


# ---- Without the simulated driver ------------------------------------------------------------------------------------


@pytest.fixture
def clear_library() -> None:
    control._library.cache_clear()


def test_no_driver_is_loaded(clear_library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SONAME", "libcuda-of-nobody.so.1")
    assert not cuda.is_loaded()
    with pytest.raises(cuda.NotSimulated) as caught:
        cuda.calls()
    assert str(caught.value) == (
        "no libcuda-of-nobody.so.1 is loaded in this process: import cupy first, in an environment that "
        "python -m gpucnn.simulator.cupy made"
    )


def test_another_driver_is_loaded(clear_library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SONAME", "libc.so.6")
    assert not cuda.is_loaded()
    with pytest.raises(cuda.NotSimulated, match=r"the libc\.so\.6 of this process is a real CUDA driver"):
        cuda.reset()
