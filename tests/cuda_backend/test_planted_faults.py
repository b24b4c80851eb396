"""Faults of the host's side, planted into the CUDA backend one at a time: over simulated CUDA each one is noticed.

A fault is an edit of one of the backend's functions or a change of what it calls. Each comes with a check, which passes
on the backend as it is and must fail, for the reason that is written with it, once the fault is there.
"""

from __future__ import annotations

import gc
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any
from unittest import mock

import numpy as np
import pytest
from simulated_cuda import REASON, is_installed

if not is_installed():
    pytest.skip(REASON, allow_module_level=True)

import cupy

import gpucnn.functional as F
from gpucnn import backends, numerics
from gpucnn.backends import cuda as cuda_backend
from gpucnn.backends import replaying
from gpucnn.backends.base import Epilogue
from gpucnn.backends.cuda import CudaBackend
from gpucnn.backends.cuda.convolution import gemm, im2col, split_k
from gpucnn.backends.cuda.device import compiler, cublas, cupy_runtime, sources
from gpucnn.backends.cuda.launch import plans, replays
from gpucnn.backends.cuda.pooling import pooling
from gpucnn.backends.cuda.resampling import resampling
from gpucnn.functional._call import Call
from gpucnn.simulator import cuda

Check = Callable[[], None]
Fault = Callable[[], AbstractContextManager[Any]]
SEEDS = range(1, 9)
"""Orders of work in streams; one that shows the fault is enough."""


# --- Planting ---------------------------------------------------------------------------------------------------------


@contextmanager
def edited(owner: Any, name: str, old: str, new: str, used: dict[str, Any]) -> Iterator[None]:
    """`owner.name` with `old`, which must stand in its source once, as `new`, which may refer to names in `used`."""
    function = inspect.unwrap(getattr(owner, name))
    text = textwrap.dedent(inspect.getsource(function))
    assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
    made: dict[str, Any] = {}
    seen = {**function.__globals__, **used} if used else function.__globals__
    exec(compile(text.replace(old, new), inspect.getfile(function), "exec"), seen, made)
    with mock.patch.object(owner, name, made[name]):
        yield


def edit(owner: Any, name: str, old: str, new: str, **used: Any) -> Fault:
    return lambda: edited(owner, name, old, new, used)


def instead(owner: Any, name: str, make: Callable[[Any], Any]) -> Fault:
    """`owner.name` replaced by what `make` makes of it."""
    return lambda: mock.patch.object(owner, name, make(getattr(owner, name)))


@contextmanager
def new_backend(*, specialises: bool = False) -> Iterator[CudaBackend]:
    """The backend over CuPy as a new process has it: nothing is planned, recorded or loaded yet."""
    kind = cupy.ndarray
    handles = mock.patch.object(cublas, "_handles", cublas._Handles())
    with handles, mock.patch.dict(backends._NATIVE), mock.patch.dict(replaying.REPLAYERS):
        runtime = cupy_runtime.CupyRuntime()
        runtime.specialises = specialises
        backends._with_replays(runtime)
        yield backends._NATIVE[kind]


def free_memory() -> None:
    """Give CuPy's free memory back: new memory holds NaNs, never the right values of an earlier check."""
    with suppress(Exception):  # of failed work that was still pending
        cupy.cuda.Device(0).synchronize()
    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """CuPy's own pool, whatever the suite's allocator, and nothing left of one check for the next one."""
    with cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc):
        yield
        KEPT.clear()
        resampling._tables.cache_clear()
        free_memory()
        cuda.reset()


# --- Arrays -----------------------------------------------------------------------------------------------------------


def numbers(*shape: int, seed: int = 0, dtype: str = "f4") -> np.ndarray[Any, Any]:
    """Small integers, of which all results here are exact."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def given(*arrays: np.ndarray[Any, Any]) -> list[Any]:
    return [cupy.asarray(array) for array in arrays]


def same(found: Any, expected: np.ndarray[Any, Any]) -> None:
    """Whether an array of the device has exactly these values."""
    np.testing.assert_array_equal(cupy.asnumpy(found), expected, "wrong value")


IMAGES = numbers(2, 3, 7, 9, seed=1)
FILTERS = numbers(4, 3, 3, 3, seed=2)
BIAS = numbers(4, seed=3)
GRAD = numbers(2, 4, 7, 9, seed=4)
CHANNEL_BIAS = numbers(3, seed=5)
ODD = numbers(2, 3, 5, 7, seed=6)  # planes of a size that no vector width divides


def convolve(algorithm: str, x: Any, w: Any, b: Any = None, **options: Any) -> Any:
    with numerics.algorithm(algorithm):
        return F.conv2d(x, w, b, padding=1, **options)


CONVOLVED = convolve("direct", IMAGES, FILTERS, BIAS)
WITH_BIAS = F.bias_activation(IMAGES, CHANNEL_BIAS)


# --- Checks -----------------------------------------------------------------------------------------------------------


def adds_bias() -> None:
    x, b = given(IMAGES, CHANNEL_BIAS)
    same(F.bias_activation(x, b), WITH_BIAS)


def convolves_directly() -> None:
    same(convolve("direct", *given(IMAGES, FILTERS, BIAS)), CONVOLVED)


def convolves_by_products() -> None:
    for _ in range(3):  # planned, recorded, replayed
        same(convolve("im2col", *given(IMAGES, FILTERS, BIAS)), CONVOLVED)


def multiplies_grouped_views() -> None:
    """Grouped pointwise convolutions read views of their arrays: starts, steps and leads all count."""
    x, w = numbers(3, 4, 5, 5, seed=7), numbers(6, 2, 1, 1, seed=8)
    expected = F.conv2d(x, w, groups=2)
    at_x, at_w = given(x, w)
    wide = cupy.asarray(numbers(3, 8, 5, 5, seed=9))
    wide[:, 2:6] = at_x
    with numerics.algorithm("im2col"):
        same(F.conv2d(wide[:, 2:6], at_w, groups=2), expected)


def multiplies_exactly() -> None:
    """Numbers of 13 bits, which TF32 has not."""
    x, w = np.full((1, 32, 4, 4), 4097, "f4"), np.ones((16, 32, 1, 1), "f4")
    with numerics.algorithm("im2col"):
        same(F.conv2d(*given(x, w)), F.conv2d(x, w))


def gives_gradients() -> None:
    for algorithm in ("direct", "im2col"):
        with numerics.algorithm(algorithm):
            expected = F.conv2d_backward(GRAD, IMAGES, FILTERS, BIAS, padding=1)
            for _ in range(2):  # recorded, replayed
                found = F.conv2d_backward(*given(GRAD, IMAGES, FILTERS, BIAS), padding=1)
                for each, right in zip(found, expected, strict=True):
                    same(each, right)


def pools_backward() -> None:
    y, indices = F.max_pool2d(IMAGES, 2, return_indices=True)
    grad = numbers(*y.shape, seed=11)
    at_grad, at_x, at_indices = given(grad, IMAGES, indices)
    expected = F.max_pool2d_backward(grad, IMAGES, 2, indices=indices)[0]
    same(F.max_pool2d_backward(at_grad, at_x, 2, indices=at_indices)[0], expected)


def calls_of_other_forms() -> None:
    """Recorded calls, and then others that differ in one thing each: shape, strides, dtype, alignment, plain values."""
    x, b = given(IMAGES, CHANNEL_BIAS)
    for _ in range(2):
        same(F.bias_activation(x, b), WITH_BIAS)
    turned = np.ascontiguousarray(IMAGES.transpose(0, 1, 3, 2))
    same(F.bias_activation(cupy.asarray(turned).transpose(0, 1, 3, 2), b), WITH_BIAS)
    same(F.bias_activation(x[:1], b), WITH_BIAS[:1])
    other = numbers(2, 3, 9, 7, seed=12)
    same(F.bias_activation(cupy.asarray(other), b), F.bias_activation(other, CHANNEL_BIAS))
    for dtype in ("f4", "f4", "i4"):
        same(F.sum_pool2d(x.astype(dtype), 2), F.sum_pool2d(IMAGES.astype(dtype), 2))
    half = IMAGES.astype("f2")
    expected = F.bias_activation(half, CHANNEL_BIAS.astype("f2"))
    same(F.bias_activation(*given(half, CHANNEL_BIAS.astype("f2"))), expected)
    for slope in (0.5, 0.5, 0.25):
        same(F.leaky_relu(x, slope), F.leaky_relu(IMAGES, slope))


def reads_where_views_begin() -> None:
    """Arrays that start one element into their memory: a vector of 16 bytes may not be read there."""
    x = numbers(2, 4, 8, 8, seed=13)
    b, room = cupy.asarray(numbers(4, seed=14)), cupy.zeros(x.size + 1, "f4")
    view = room[1:].reshape(x.shape)
    view[...] = cupy.asarray(x)
    same(F.bias_activation(view, b), F.bias_activation(x, cupy.asnumpy(b)))


def allocates_what_it_uses() -> None:
    """Without CuPy's pool, which rounds sizes up, an array of an element too few has no room for the last one."""
    with cupy.cuda.using_allocator(None):
        gives_gradients()
        convolves_by_products()


def drops_out_as_stored() -> None:
    """Gradients of 16 bits with channels last: neither the dtype nor the memory order may change on the way."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    mask = np.random.default_rng(16).random(IMAGES.shape) < 0.5
    for dtype in (np.dtype(bfloat16), np.dtype("f4")):
        grad = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1)).astype(dtype).transpose(0, 3, 1, 2)
        at_grad = cupy.asarray(grad.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        (found,) = F.dropout_backward(at_grad, at_grad, 0.5, mask=cupy.asarray(mask))
        assert found.dtype == dtype, "wrong dtype"
        assert found.strides == grad.strides, "wrong memory order"
        same(found.astype("f4"), np.where(mask, IMAGES, 0) * 2)


def keeps_channels_last() -> None:
    x = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1))
    for _ in range(2):
        y, expected = (F.max_pool2d(each.transpose(0, 3, 1, 2), 2) for each in (cupy.asarray(x), x))
        same(y, expected)
        assert y.strides == expected.strides, "wrong memory order"


def refuses_overlapping_out() -> None:
    """Recorded with arrays apart, and called again with `out` over a part of the input."""
    room = cupy.asarray(numbers(400, seed=17))
    x, out = room[:378].reshape(IMAGES.shape), cupy.empty(IMAGES.shape, "f4")
    b = cupy.asarray(CHANNEL_BIAS)
    for _ in range(2):
        F.bias_activation(x, b, out=out)
    same(out, F.bias_activation(cupy.asnumpy(x), CHANNEL_BIAS))
    with pytest.raises(ValueError, match=r"share|overlap|memory"):
        F.bias_activation(x, b, out=room[20:398].reshape(IMAGES.shape))


def leaves_no_memory() -> None:
    """What the calls of a layer allocated is free again when its results are."""
    convolves_by_products()
    pool = cupy.get_default_memory_pool()
    kept = given(IMAGES, FILTERS, BIAS)
    gc.collect()
    before = pool.used_bytes()
    for _ in range(2):
        convolve("im2col", *kept)
    gc.collect()
    assert pool.used_bytes() == before, "leaked memory"


def runs_on_the_current_stream() -> None:
    for seed in SEEDS:
        with cuda.stream_order(seed), cupy.cuda.Stream(non_blocking=True):
            for _ in range(3):
                adds_bias()


def waits_for_what_other_streams_copy() -> None:
    """Tables are copied to the device by the first call, on one stream, and read by the next one on another stream."""
    x, wanted = numbers(1, 2, 5, 5, seed=18), {"size": (9, 9), "mode": "bilinear", "align_corners": True}
    on_device = cupy.asarray(x)
    cupy.cuda.Stream.null.synchronize()
    for seed in SEEDS:
        with new_backend(), cuda.stream_order(seed):
            first, second, busy = (cupy.cuda.Stream(non_blocking=True) for _ in range(3))
            with busy:  # CuPy asks its events of copies in their order; this one keeps it from the later ones
                for _ in range(50):
                    on_device.copy()
                cupy.asarray(x)
            with first:
                F.interpolate(on_device, **wanted)
            with second:
                same(F.interpolate(on_device, **wanted), F.interpolate(x, **wanted))
            for stream in (first, busy):
                stream.synchronize()


def keeps_scratch_in_its_stream() -> None:
    """While a convolution runs on one stream, another one fills all memory that is free for it."""
    for seed in SEEDS:
        with new_backend(), cuda.stream_order(seed):
            stream = cupy.cuda.Stream(non_blocking=True)
            with stream:
                y = convolve("im2col", *given(IMAGES, FILTERS, BIAS))
            taken = [cupy.empty(size, "u1") for size in (32768, 16384, 8192, 4096, 2048, 1024) for _ in range(2)]
            for each in taken:
                each.data.memset_async(0x55, each.nbytes)
            cupy.cuda.Device().synchronize()  # the two streams' work in any order
            with stream:
                same(y, CONVOLVED)


@contextmanager
def reporting_races() -> Iterator[None]:
    """Work of two streams that uses the same memory is an error unless something orders it."""
    with mock.patch.dict(os.environ, {"GPUCNN_CUDA_STREAM_RACES": "1"}):
        cuda.reset()
        yield
    cuda.reset()


def multiplies_on_two_streams() -> None:
    arrays = given(IMAGES, FILTERS, BIAS)
    cupy.cuda.Device().synchronize()
    with reporting_races(), new_backend():
        streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
        results = []
        for stream in streams:
            with stream:
                results.append(convolve("im2col", *arrays))
        for stream, result in zip(streams, results, strict=True):
            with stream:
                same(result, CONVOLVED)


def can_be_captured() -> None:
    """After a call that warms up, the launches go into a graph, whose replay computes with new values."""
    with cupy.cuda.Stream(non_blocking=True) as stream:
        x, b, w = given(IMAGES, CHANNEL_BIAS, FILTERS)
        y, out = cupy.empty_like(x), cupy.empty(GRAD.shape, "f4")
        for _ in range(2):
            F.bias_activation(x, b, out=y)
            convolve("direct", y, w, out=out)
            F.max_pool2d(out, 2)
        stream.begin_capture(cupy.cuda.runtime.streamCaptureModeGlobal)
        F.bias_activation(x, b, out=y)
        convolve("direct", y, w, out=out)
        pooled = F.max_pool2d(out, 2)
        graph = stream.end_capture()
        new = numbers(*IMAGES.shape, seed=19)
        x.set(new)
        graph.launch(stream)
        expected = convolve("direct", F.bias_activation(new, CHANNEL_BIAS), FILTERS)
        same(out, expected)
        same(pooled, F.max_pool2d(expected, 2))


def works_on_both_devices() -> None:
    for index in (0, 1, 0, 1):
        with cupy.cuda.Device(index):
            arrays = given(IMAGES, FILTERS, BIAS)
        for algorithm in ("direct", "im2col"):
            y = convolve(algorithm, *arrays)  # device 0 is the current one
            assert y.device.id == index, "wrong device"
            with cupy.cuda.Device(index):
                same(y, CONVOLVED)


def compiles_each_program() -> None:
    """Sizes and macros are part of a program's text: of two programs each one is compiled."""
    with new_backend(specialises=True) as backend:
        for x in (IMAGES, numbers(2, 5, 7, 9, seed=20)):
            bias = numbers(x.shape[1], seed=21)
            y = cupy.empty(x.shape, "f4").reshape(*x.shape[:2], -1)
            planes = cupy.asarray(x).reshape(y.shape)
            backend.bias_activation(planes, cupy.asarray(bias), y, Epilogue())
            same(y.reshape(x.shape), F.bias_activation(x, bias, activation="none"))


PROGRAMS = count()
SHARED = """
extern "C" __global__ void NAME(const float* x, float* y, long long n) {
  extern __shared__ float staged[];
  for (int i = threadIdx.x; i < n; i += blockDim.x) staged[i] = x[i];
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = staged[n - 1 - i];
}
"""


def opts_in_to_shared_memory() -> None:
    """64 KiB of it, which a kernel has to ask for."""
    with new_backend() as backend:
        x = np.arange(16384, dtype="f4")
        at_x, y = cupy.asarray(x), cupy.empty(x.shape, "f4")
        device = backend.runtime.device(at_x)
        name = f"reversed_{next(PROGRAMS)}"  # each with an attribute of its own
        kernel = backend.runtime.function(sources.Source(name, name, SHARED.replace("NAME", name)), device)
        kernel((1,), (128,), (at_x, y, np.int64(x.size)), shared_mem=65536)
        same(y, x[::-1])


# --- Faults -----------------------------------------------------------------------------------------------------------


def on_null_stream(launch: Any) -> Any:
    def launched(self: Any, *arguments: Any, **named: Any) -> None:
        with cupy.cuda.Stream.null:
            launch(self, *arguments, **named)

    return launched


def then_synchronize(launch: Any) -> Any:
    def launched(self: Any, *arguments: Any, **named: Any) -> None:
        launch(self, *arguments, **named)
        cupy.cuda.get_current_stream().synchronize()

    return launched


def from_null_stream(make: Any) -> Any:
    def made(*arguments: Any, **named: Any) -> Any:
        with cupy.cuda.Stream.null:
            return make(*arguments, **named)

    return made


def one_less(make: Any) -> Any:
    """An array whose memory is an element too small."""

    def made(runtime: Any, shape: Any, dtype: Any, like: Any = None) -> Any:
        array = make(runtime, shape, dtype, like)
        memory = cupy.cuda.alloc(max(array.itemsize, array.nbytes - array.itemsize))
        return cupy.ndarray(array.shape, array.dtype, memory, array.strides)

    return made


def of_the_whole_memory(layout: Any) -> Any:
    """Arrays without the offset of their view."""

    def enqueued(runtime: Any, plan: Any, arrays: Any) -> None:
        layout(runtime, plan, [array if array is None else from_its_start(array) for array in arrays])

    return enqueued


def from_its_start(array: Any) -> Any:
    return cupy.ndarray(array.shape, array.dtype, cupy.cuda.MemoryPointer(array.data.mem, 0), array.strides)


def past_the_pool(launch: Any) -> Any:
    """Memory by cudaMalloc for each launch."""
    kept = []

    def launched(self: Any, *arguments: Any, **named: Any) -> None:
        kept.append(cupy.cuda.memory.Memory(64))
        launch(self, *arguments, **named)

    return launched


def remembering(call: Any) -> Any:
    """Replays that keep each result."""
    kept: list[Any] = []

    def called(self: Any, *arguments: Any, **named: Any) -> Any:
        kept.append(call(self, *arguments, **named))
        return kept[-1]

    return called


def in_c_order(empty: Any) -> Any:
    return lambda runtime, shape, dtype, like=None: empty(runtime, shape, dtype)


def replays_other_values() -> None:
    """Recorded for some arrays and called with others; the first result must stay as it is."""
    b = cupy.asarray(CHANNEL_BIAS)
    first = cupy.asarray(IMAGES)
    results = [F.bias_activation(first, b) for _ in range(2)]
    other = numbers(*IMAGES.shape, seed=22)
    same(F.bias_activation(cupy.asarray(other), b), F.bias_activation(other, CHANNEL_BIAS))
    for each in results:
        same(each, WITH_BIAS)


def kept_by_kernel(plan: Any) -> Any:
    """Keeps plans by their kernel and dtype alone."""
    kept: dict[Any, Any] = {}

    def planned(runtime: Any, device: Any, kernel: Any, dtype: Any, *rest: Any) -> Any:
        key = (runtime, kernel, dtype)
        if key not in kept:
            kept[key] = plan(runtime, device, kernel, dtype, *rest)
        return kept[key]

    return planned


KEPT: dict[int, Any] = {}


def kept_arrays(makers: list[Any]) -> list[Any]:
    return [KEPT.setdefault(id(make), make()) for make in makers]


@contextmanager
def every(*faults: Fault) -> Iterator[None]:
    with ExitStack() as stack:
        for fault in faults:
            stack.enter_context(fault())
        yield


Function, Runtime, Product = cupy_runtime.CupyFunction, cupy_runtime.CupyRuntime, cublas.CublasProduct
HERE = edit(Runtime, "here", "isinstance(function, CupyFunction)", "False")  # replays launch through CupyFunction, too
WRONG = "wrong value"
UNWRITTEN = "nothing has written|never written"


@dataclass(frozen=True)
class Planted:
    """A fault, the check that must notice it, and what the failure says."""

    fault: Fault
    check: Check
    says: str
    needs_two_devices: bool = False


FAULTS = {
    # streams
    "launch on the null stream": Planted(
        lambda: every(HERE, instead(Function, "__call__", on_null_stream)), runs_on_the_current_stream, WRONG
    ),
    "products on the null stream": Planted(
        instead(Product, "__call__", on_null_stream), keeps_scratch_in_its_stream, f"{WRONG}|{UNWRITTEN}"
    ),
    "tables read before they are copied": Planted(
        edit(Runtime, "constant", "self.xp.cuda.get_current_stream().synchronize()", "pass"),
        waits_for_what_other_streams_copy,
        UNWRITTEN,
    ),
    "scratch from another stream's memory": Planted(
        instead(im2col, "empty", from_null_stream), keeps_scratch_in_its_stream, f"{WRONG}|{UNWRITTEN}"
    ),
    "scratch given away before it was read": Planted(
        edit(replays.Recording, "_makers", "end < first", "end <= first"),
        gives_gradients,
        "EXECUTION_FAILED|" + WRONG,
    ),
    # capture
    "synchronization in a launch": Planted(
        lambda: every(HERE, instead(Function, "__call__", then_synchronize)),
        can_be_captured,
        "capture is now invalid|CAPTURE_INVALIDATED",
    ),
    "allocation by the driver in a launch": Planted(
        lambda: every(HERE, instead(Function, "__call__", past_the_pool)),
        can_be_captured,
        "capture is now invalid|CAPTURE_INVALIDATED",
    ),
    # devices
    "kernel of another device": Planted(
        edit(
            Runtime,
            "function",
            "self._functions.get((source, device.index))",
            "next((kept for (known, _), kept in self._functions.items() if known == source), None)",
        ),
        works_on_both_devices,
        "",
        True,
    ),
    "arrays on another device": Planted(
        instead(Runtime, "using", lambda using: lambda self, device: cupy_runtime._NOTHING),
        works_on_both_devices,
        "",
        True,
    ),
    "replay on another device": Planted(
        edit(replays.Recording, "replay", "current_device() != index", "False"), works_on_both_devices, "", True
    ),
    # plans and replays that are out of date
    "recorded call for other shapes": Planted(edit(replays, "_forms", "array.shape, ", ""), calls_of_other_forms, ""),
    "recorded call for other strides": Planted(
        edit(replays, "_forms", "array.strides, ", ""), calls_of_other_forms, WRONG
    ),
    "recorded call for other dtypes": Planted(edit(replays, "_forms", "array.dtype, ", ""), calls_of_other_forms, ""),
    "recorded call for other plain values": Planted(
        edit(
            replaying.Replays,
            "_key",
            "key += (kind, value)\n        elif kind is tuple and (INTS",
            "pass\n        elif kind is tuple and (INTS",
        ),
        calls_of_other_forms,
        WRONG,
    ),
    "plan for other layouts": Planted(
        edit(plans, "_plan", "@lru_cache(maxsize=4096)", "@kept_by_kernel", kept_by_kernel=kept_by_kernel),
        calls_of_other_forms,
        "",
    ),
    "recorded arrays instead of the call's": Planted(
        edit(replays.Recording, "replay", "pool = (null, None, *arrays,", "pool = (null, None, *self._given,"),
        replays_other_values,
        WRONG,
    ),
    "recorded result given again": Planted(
        edit(
            replays.Recording, "replay", "*[make() for make in makers]", "*kept_arrays(makers)", kept_arrays=kept_arrays
        ),
        replays_other_values,
        WRONG,
    ),
    # CuPy
    "where for a mask of bfloat16": Planted(
        edit(Call, "stored_like", "stored_like(self.xp, values, like)", "self.xp.where(values != 0, values, like)"),
        drops_out_as_stored,
        "wrong dtype",
    ),
    "gradient in C order": Planted(
        edit(
            Call, "stored_like", "stored_like(self.xp, values, like)", "self.xp.ascontiguousarray(values, like.dtype)"
        ),
        drops_out_as_stored,
        "wrong memory order",
    ),
    "new array in C order": Planted(
        instead(cuda_backend, "empty", in_c_order), keeps_channels_last, "wrong memory order"
    ),
    # cuBLAS
    "leading dimension": Planted(
        edit(gemm, "_plan", "leads = [rows or columns for rows", "leads = [(rows or columns) + 1 for rows"),
        convolves_by_products,
        "EXECUTION_FAILED|" + WRONG,
    ),
    "transposition": Planted(
        edit(gemm, "_plan", "int(not rows)", "int(bool(rows))"), convolves_by_products, f"out of bounds|{UNWRITTEN}"
    ),
    "step between matrices": Planted(
        edit(gemm, "_plan", "0 if x.shape[axis] == 1 else x.strides[axis] // x.itemsize", "x.shape[-1] * x.shape[-2]"),
        multiplies_grouped_views,
        "EXECUTION_FAILED|" + WRONG,
    ),
    "start of a batch": Planted(
        edit(gemm, "_plan", "start * x.itemsize for", "start for"), multiplies_grouped_views, WRONG
    ),
    "product added to what there was": Planted(
        edit(Product, "__init__", "self._one + one.itemsize", "self._one"),
        allocates_what_it_uses,
        "EXECUTION_FAILED|" + WRONG,
    ),
    "bias that is not added to": Planted(edit(gemm, "_plan", "int(add)", "0"), convolves_by_products, WRONG),
    "handle that stays on its first stream": Planted(
        edit(cublas._Handle, "on", "stream != self._stream", "self._stream is None"),
        multiplies_on_two_streams,
        f"{WRONG}|{UNWRITTEN}|nothing orders",
    ),
    "one workspace for all streams": Planted(
        edit(cublas._Handle, "_workspace", "if stream not in", "stream = 0\n    if stream not in"),
        multiplies_on_two_streams,
        "workspace.*nothing orders",
    ),
    "workspace that nothing keeps": Planted(
        edit(cublas._Handle, "_workspace", "return self._workspaces[stream]", "return self._workspaces.pop(stream)"),
        allocates_what_it_uses,
        "workspace",
    ),
    "products by TF32": Planted(
        edit(cublas, "compute_type", "else _COMPUTE_32F", "else 77"), multiplies_exactly, WRONG
    ),
    # arguments
    "order of fields": Planted(
        edit(
            sources.Structure,
            "packed",
            "values[name] for name, _, _ in kept",
            "values[name] for name, _, _ in kept[::-1]",
        ),
        adds_bias,
        "",
    ),
    "size of indices": Planted(
        edit(sources.Structure, "packed", "np.int64 if wide else np.int32", "np.int32 if wide else np.int64"),
        adds_bias,
        "",
    ),
    "order of arrays": Planted(
        edit(
            plans,
            "enqueue",
            "null if array is None else array for array in arrays]",
            "null if array is None else array for array in [*arrays[1::-1], *arrays[2:]]]",
        ),
        adds_bias,
        "",
    ),
    "offset of a view": Planted(instead(plans, "enqueue", of_the_whole_memory), reads_where_views_begin, ""),
    "alignment of a view": Planted(
        instead(plans, "layout", lambda layout: lambda array: layout(array)._replace(alignment=16)),
        reads_where_views_begin,
        "aligned",
    ),
    # launches
    "half of the shared memory": Planted(
        edit(plans, "_plan", "packed, done.shared_bytes)", "packed, done.shared_bytes // 2)"), adds_bias, "shared"
    ),
    "no opt-in to shared memory": Planted(
        edit(Function, "__call__", "self._kernel.max_dynamic_shared_size_bytes = shared_mem", "pass"),
        opts_in_to_shared_memory,
        "INVALID_VALUE",
    ),
    "grid rounded down": Planted(
        edit(plans, "_plan", "-(-done.threads // block)", "done.threads // block"), convolves_directly, WRONG
    ),
    "workspace an element too small": Planted(
        instead(im2col, "empty", one_less), allocates_what_it_uses, "EXECUTION_FAILED|LAUNCH_FAILED|ILLEGAL_ADDRESS"
    ),
    "flags that are not zeroed": Planted(
        instead(pooling, "zeros", lambda zeros: plans.empty), pools_backward, UNWRITTEN
    ),
    "parts that are not summed": Planted(
        instead(split_k, "launch", lambda launch: lambda *arguments, **named: None),
        gives_gradients,
        WRONG,
    ),
    # the rest of the host's side
    "compiled program by its name alone": Planted(
        edit(compiler.Compiler, "_name", "source.text)", "source.name)"),
        compiles_each_program,
        "",
    ),
    "out over an input": Planted(
        edit(replaying.Apart, "__call__", "if not between or between in self._seen else NotImplemented", ""),
        refuses_overlapping_out,
        "DID NOT RAISE|RACE|race|LAUNCH_FAILED",
    ),
    "results that are kept": Planted(
        instead(replaying.Replays, "__call__", remembering), leaves_no_memory, "leaked memory"
    ),
}


def failure_of(check: Check) -> str | None:
    """What the check's failure says; None if it passes."""
    try:
        check()
    except (Exception, pytest.fail.Exception) as error:
        return f"{type(error).__name__}: {error} {cuda.last_failure()}"
    return None


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_caught(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    planted = FAULTS[name]
    if planted.needs_two_devices and cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one simulated device: set GPUCNN_CUDA_DEVICES=2")
    with new_backend():
        planted.check()
    free_memory()
    with planted.fault(), new_backend():
        said = failure_of(planted.check)
    assert said is not None, "not caught"
    assert re.search(planted.says, said + capfd.readouterr().err), said
