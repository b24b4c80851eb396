"""The simulated cuFFT against numpy.fft: lengths, types, layouts, through CuPy and as other programs call it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from simulated_cuda import REASON, is_installed

if not is_installed():
    pytest.skip(REASON, allow_module_level=True)

import cupy
from cupy.cuda import cufft as binding

from gpucnn.simulator import cuda

Array = np.ndarray[Any, Any]
SUCCESS, INVALID_PLAN, INVALID_TYPE, INVALID_VALUE, EXEC_FAILED = 0, 1, 3, 4, 6
INVALID_SIZE, NO_WORKSPACE, NOT_SUPPORTED = 8, 13, 16
C2C, R2C, C2R, Z2Z, D2Z, Z2D = 0x29, 0x2A, 0x2C, 0x69, 0x6A, 0x6C
FORWARD, INVERSE = -1, 1
EXECUTE = {
    C2C: "cufftExecC2C",
    R2C: "cufftExecR2C",
    C2R: "cufftExecC2R",
    Z2Z: "cufftExecZ2Z",
    D2Z: "cufftExecD2Z",
    Z2D: "cufftExecZ2D",
}
DOUBLES = (Z2Z, D2Z, Z2D)


class Fft:
    """The library by ctypes. Host and device arrays go as their addresses."""

    def __init__(self) -> None:
        binding.getVersion()  # the library is loaded
        major = cupy.cuda.runtime.runtimeGetVersion() // 1000
        self.library = ctypes.CDLL(f"libcufft.so.{major - 1}")

    def status(self, name: str, *arguments: Any) -> int:
        """What an entry point returns."""
        status: int = getattr(self.library, name)(*map(_address, arguments))
        return status

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call an entry point, which must succeed."""
        assert self.status(name, *arguments) == SUCCESS, name

    def plan(self, name: str, *arguments: Any) -> int:
        """The handle of a plan that a function makes."""
        handle = ctypes.c_int()
        self(name, ctypes.byref(handle), *arguments)
        return handle.value

    def execute(self, kind: int, plan: int, source: cupy.ndarray, result: cupy.ndarray, direction: int) -> None:
        """Execute a plan and destroy it."""
        self(EXECUTE[kind], plan, source, result, *([direction] if kind in (C2C, Z2Z) else []))
        self("cufftDestroy", plan)


def _address(argument: Any) -> Any:
    if isinstance(argument, cupy.ndarray):
        return ctypes.c_void_p(argument.data.ptr)
    if isinstance(argument, (list, tuple)):
        return (ctypes.c_int * len(argument))(*argument)
    return argument


@pytest.fixture(scope="module")
def fft() -> Fft:
    return Fft()


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.fixture
def exact_allocations() -> Iterator[None]:
    """Arrays are allocations of exactly their size, so that each byte next to one is out of bounds."""
    cupy.cuda.set_allocator(None)
    yield
    cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)


def numbers(random: np.random.Generator, kind: int, shape: tuple[int, ...], *, is_real: bool) -> Array:
    """Random numbers of the precision of a type of transform."""
    values = random.standard_normal(shape)
    if not is_real:
        values = values + 1j * random.standard_normal(shape)
    real = np.float64 if kind in DOUBLES else np.float32
    return values.astype(real if is_real else np.result_type(real, np.complex64))


def reference(kind: int, source: Array, lengths: tuple[int, ...], direction: int) -> Array:
    """The transform over the last dimensions by NumPy, in double precision and without a factor."""
    axes = tuple(range(-len(lengths), 0))
    wide = source.astype(np.result_type(source, np.float64))
    if kind in (R2C, D2Z):
        return np.fft.rfftn(wide, axes=axes)
    if kind in (C2R, Z2D):
        return np.fft.irfftn(wide, s=lengths, axes=axes, norm="forward")
    transform = np.fft.fftn if direction == FORWARD else np.fft.ifftn
    return transform(wide, axes=axes, norm="backward" if direction == FORWARD else "forward")


def assert_close(found: Array, expected: Array) -> None:
    """Compare within some rounding errors of the largest number."""
    epsilon = np.finfo(found.dtype).eps
    np.testing.assert_allclose(found, expected, rtol=0, atol=8 * epsilon * max(1, np.abs(expected).max()))


# ---- Lengths, types, directions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "direction"),
    [(C2C, FORWARD), (C2C, INVERSE), (Z2Z, FORWARD), (Z2Z, INVERSE)]
    + [(R2C, FORWARD), (D2Z, FORWARD), (C2R, INVERSE), (Z2D, INVERSE)],
)
def test_every_length_up_to_64(fft: Fft, random: np.random.Generator, kind: int, direction: int) -> None:
    batch = 2
    for length in range(1, 65):
        half = length // 2 + 1
        to_real, from_real = kind in (C2R, Z2D), kind in (R2C, D2Z)
        source = numbers(random, kind, (batch, half if to_real else length), is_real=from_real)
        expected = reference(kind, source, (length,), direction)
        result = numbers(random, kind, (batch, half if from_real else length), is_real=to_real)
        on_device, result_on_device = cupy.asarray(source), cupy.asarray(result)
        plan = fft.plan("cufftPlan1d", length, kind, batch)
        fft.execute(kind, plan, on_device, result_on_device, direction)
        assert_close(result_on_device.get(), expected)
        np.testing.assert_array_equal(on_device.get(), source)


@pytest.mark.parametrize("length", [67, 97, 127, 128, 210, 251, 1009, 1024, 3 * 67, 2 * 1009, 4096])
def test_longer_transforms(fft: Fft, random: np.random.Generator, length: int) -> None:
    source = numbers(random, Z2Z, (1, length), is_real=False)
    result = cupy.asarray(np.empty_like(source))
    plan = fft.plan("cufftPlan1d", length, Z2Z, 1)
    fft.execute(Z2Z, plan, cupy.asarray(source), result, FORWARD)
    assert_close(result.get(), reference(Z2Z, source, (length,), FORWARD))


@pytest.mark.parametrize("lengths", [(4, 6), (5, 1), (1, 7), (3, 4, 5), (2, 1, 9)])
@pytest.mark.parametrize("kind", [C2C, R2C, C2R, Z2Z, D2Z, Z2D])
def test_two_and_three_dimensions(fft: Fft, random: np.random.Generator, kind: int, lengths: tuple[int, ...]) -> None:
    half = (*lengths[:-1], lengths[-1] // 2 + 1)
    to_real, from_real = kind in (C2R, Z2D), kind in (R2C, D2Z)
    source = numbers(random, kind, half if to_real else lengths, is_real=from_real)
    result = cupy.asarray(numbers(random, kind, half if from_real else lengths, is_real=to_real))
    direction = FORWARD if from_real else INVERSE
    plan = fft.plan(f"cufftPlan{len(lengths)}d", *lengths, kind)
    fft.execute(kind, plan, cupy.asarray(source), result, direction)
    assert_close(result.get(), reference(kind, source, lengths, direction))


def test_an_impulse_is_exact(fft: Fft) -> None:
    for length in (1, 2, 3, 8, 60):
        source = np.zeros(length, np.complex128)
        source[0] = 3
        array = cupy.asarray(source)
        fft.execute(Z2Z, fft.plan("cufftPlan1d", length, Z2Z, 1), array, array, FORWARD)  # in place
        np.testing.assert_array_equal(array.get(), np.full(length, 3 + 0j))


# ---- Layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(6,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize(("input_stride", "output_stride"), [(1, 1), (2, 3), (3, 1)])
def test_strides_and_embedding(
    fft: Fft, random: np.random.Generator, lengths: tuple[int, ...], input_stride: int, output_stride: int
) -> None:
    batch, rank = 3, len(lengths)
    input_embed = tuple(length + 1 for length in lengths)
    output_embed = tuple(length + 2 for length in lengths)
    source = numbers(random, C2C, (batch, *input_embed, input_stride), is_real=False)
    before = numbers(random, C2C, (batch, *output_embed, output_stride), is_real=False)
    result = cupy.asarray(before)
    sides = [list(input_embed), input_stride, source[0].size, list(output_embed), output_stride, before[0].size]
    plan = fft.plan("cufftPlanMany", rank, list(lengths), *sides, C2C, batch)
    fft.execute(C2C, plan, cupy.asarray(source), result, FORWARD)
    part = (slice(None), *(slice(length) for length in lengths), 0)
    expected = before.copy()
    expected[part] = reference(C2C, source[part], lengths, FORWARD)
    assert_close(result.get(), expected)
    untouched = np.ones(before.shape, bool)
    untouched[part] = False
    np.testing.assert_array_equal(result.get()[untouched], before[untouched])


def test_interleaved_batches(fft: Fft, random: np.random.Generator) -> None:
    """The columns of an array: the distance is less than the stride."""
    source = numbers(random, Z2Z, (10, 4), is_real=False)
    result = cupy.asarray(np.zeros_like(source))
    plan = fft.plan("cufftPlanMany", 1, [10], [10], 4, 1, [10], 4, 1, Z2Z, 4)
    fft.execute(Z2Z, plan, cupy.asarray(source), result, FORWARD)
    assert_close(result.get(), np.fft.fft(source, axis=0))


@pytest.mark.parametrize("lengths", [(6,), (7,), (3, 6), (2, 3, 5)])
def test_real_numbers_in_place_are_padded(fft: Fft, random: np.random.Generator, lengths: tuple[int, ...]) -> None:
    batch, last = 2, lengths[-1]
    padded = (*lengths[:-1], 2 * (last // 2 + 1))
    array = numbers(random, D2Z, (batch, *padded), is_real=True)
    source = array[..., :last].copy()
    on_device = cupy.asarray(array)
    nothing: list[Any] = [None, 1, 0, None, 1, 0]
    plan = fft.plan("cufftPlanMany", len(lengths), list(lengths), *nothing, D2Z, batch)
    fft.execute(D2Z, plan, on_device, on_device, FORWARD)
    spectrum = on_device.get().view(np.complex128)
    assert_close(spectrum, reference(D2Z, source, lengths, FORWARD))
    plan = fft.plan("cufftPlanMany", len(lengths), list(lengths), *nothing, Z2D, batch)
    fft.execute(Z2D, plan, on_device, on_device, INVERSE)
    assert_close(on_device.get()[..., :last] / np.prod(lengths), source)


# ---- Through CuPy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
@pytest.mark.parametrize("norm", ["backward", "ortho", "forward"])
@pytest.mark.parametrize("name", ["fft", "ifft"])
@pytest.mark.parametrize(("length", "axis"), [(None, -1), (5, 0), (12, 1)])
def test_cupy_in_one_dimension(
    random: np.random.Generator, name: str, dtype: Any, norm: str, length: int | None, axis: int
) -> None:
    source = (random.standard_normal((6, 9)) + 1j * random.standard_normal((6, 9))).astype(np.complex128)
    source = source.astype(dtype) if np.issubdtype(dtype, np.complexfloating) else source.real.astype(dtype)
    found = getattr(cupy.fft, name)(cupy.asarray(source), n=length, axis=axis, norm=norm)
    expected = getattr(np.fft, name)(source.astype(np.complex128), n=length, axis=axis, norm=norm)
    assert found.dtype == np.result_type(dtype, np.complex64)
    assert_close(found.get(), expected)


@pytest.mark.parametrize(
    ("name", "shape", "keywords"),
    [
        ("fftn", (4, 5, 6), {}),
        ("fftn", (4, 5, 6), {"axes": (0, 2)}),
        ("fftn", (4, 5, 6), {"s": (3, 8), "axes": (1, 2)}),
        ("ifftn", (4, 5, 6), {"norm": "ortho"}),
        ("fft2", (7, 5), {}),
        ("ifft2", (3, 7, 5), {}),
        ("rfft", (4, 7), {}),
        ("irfft", (4, 5), {"n": 9}),
        ("irfft", (4, 5), {}),
        ("rfftn", (4, 5, 6), {}),
        ("irfftn", (4, 5, 4), {}),
        ("rfft2", (2, 6, 5), {}),
        ("irfft2", (2, 6, 5), {"s": (6, 9)}),
        ("hfft", (3, 6), {}),
        ("ihfft", (3, 6), {}),
    ],
)
def test_cupy_as_numpy(
    random: np.random.Generator, name: str, shape: tuple[int, ...], keywords: dict[str, Any]
) -> None:
    source: Array = random.standard_normal(shape)
    if not name.startswith(("rfft", "ihfft")):
        source = source + 1j * random.standard_normal(shape)
    found = getattr(cupy.fft, name)(cupy.asarray(source), **keywords)
    expected = getattr(np.fft, name)(source, **keywords)
    assert found.dtype == expected.dtype
    assert_close(found.get(), expected)


def test_arrays_in_fortran_order(random: np.random.Generator) -> None:
    source = np.asfortranarray(random.standard_normal((4, 6)) + 0j)
    assert_close(cupy.fft.fftn(cupy.asarray(source, order="F")).get(), np.fft.fftn(source))


def test_a_plan_of_cupy_is_used_again(random: np.random.Generator) -> None:
    plan = binding.Plan1d(8, C2C, 2)
    for _ in range(2):
        source = numbers(random, C2C, (2, 8), is_real=False)
        result = cupy.asarray(np.zeros_like(source))
        plan.fft(cupy.asarray(source), result, binding.CUFFT_FORWARD)
        assert_close(result.get(), reference(C2C, source, (8,), FORWARD))


# ---- Stream order ----------------------------------------------------------------------------------------------------


def test_transforms_run_in_the_order_of_their_stream(random: np.random.Generator) -> None:
    source = numbers(random, Z2Z, (1, 16), is_real=False)
    array, result = cupy.asarray(np.zeros_like(source)), cupy.asarray(np.zeros_like(source))
    plan = binding.Plan1d(16, Z2Z, 1)
    host = cupy.cuda.alloc_pinned_memory(source.nbytes)
    ctypes.memmove(host.ptr, source.ctypes.data, source.nbytes)
    stream = cupy.cuda.Stream(non_blocking=True)
    with cuda.stream_order(5), stream:
        array.data.copy_from_host_async(ctypes.c_void_p(host.ptr), source.nbytes, stream)
        plan.fft(array, result, binding.CUFFT_FORWARD)
        stream.synchronize()
    assert_close(result.get(), reference(Z2Z, source, (16,), FORWARD))


def test_a_captured_transform_runs_with_its_graph(fft: Fft, random: np.random.Generator) -> None:
    source = numbers(random, Z2Z, (1, 9), is_real=False)
    array, result = cupy.asarray(source), cupy.asarray(np.zeros_like(source))
    plan = fft.plan("cufftPlan1d", 9, Z2Z, 1)
    stream = cupy.cuda.Stream(non_blocking=True)
    stream.begin_capture()
    fft("cufftSetStream", plan, ctypes.c_void_p(stream.ptr))
    fft("cufftExecZ2Z", plan, array, result, FORWARD)
    graph = stream.end_capture()
    fft("cufftDestroy", plan)
    np.testing.assert_array_equal(result.get(), np.zeros_like(source))
    graph.launch(stream)
    stream.synchronize()
    assert_close(result.get(), reference(Z2Z, source, (9,), FORWARD))


# ---- Faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact_allocations")
@pytest.mark.parametrize("side", ["input", "output"])
def test_a_transform_out_of_bounds(fft: Fft, side: str) -> None:
    short, long = cupy.asarray(np.zeros(7, np.complex64)), cupy.asarray(np.zeros(8, np.complex64))
    plan = fft.plan("cufftPlan1d", 8, C2C, 1)
    arrays = (short, long) if side == "input" else (long, short)
    assert fft.status("cufftExecC2C", plan, *arrays, FORWARD) == EXEC_FAILED
    assert f"cufftExecC2C: {side}" in cuda.last_failure()
    fft("cufftDestroy", plan)


@pytest.mark.usefixtures("exact_allocations")
def test_a_work_area_that_was_freed(fft: Fft) -> None:
    array = cupy.asarray(np.zeros(8, np.complex64))
    plan, needed = fft.plan("cufftCreate"), ctypes.c_size_t()
    fft("cufftSetAutoAllocation", plan, 0)
    fft("cufftMakePlan1d", plan, 8, C2C, 1, ctypes.byref(needed))
    assert fft.status("cufftExecC2C", plan, array, array, FORWARD) == NO_WORKSPACE
    area = cupy.cuda.alloc(needed.value)
    fft("cufftSetWorkArea", plan, ctypes.c_void_p(area.ptr))
    fft("cufftExecC2C", plan, array, array, FORWARD)
    del area
    assert fft.status("cufftExecC2C", plan, array, array, FORWARD) == EXEC_FAILED
    assert "cufftExecC2C: work area" in cuda.last_failure()
    fft("cufftDestroy", plan)


def make(name: str, *arguments: Any) -> Callable[[Fft], int]:
    return lambda fft: fft.status(
        name, *(ctypes.byref(ctypes.c_int()) if each == "plan" else each for each in arguments)
    )


@pytest.mark.parametrize(
    ("call", "status"),
    [
        (make("cufftPlan1d", "plan", 0, C2C, 1), INVALID_SIZE),
        (make("cufftPlan1d", "plan", 8, C2C, 0), INVALID_VALUE),
        (make("cufftPlan1d", "plan", 8, 0x30, 1), INVALID_TYPE),
        (make("cufftPlanMany", "plan", 4, [2, 2, 2, 2], None, 1, 1, None, 1, 1, C2C, 1), INVALID_VALUE),
        (make("cufftPlanMany", "plan", 1, [8], [8], 0, 8, [8], 1, 8, C2C, 1), INVALID_VALUE),
        (make("cufftDestroy", 12345), INVALID_PLAN),
        (make("cufftSetStream", 12345, None), INVALID_PLAN),
        (make("cufftXtSetGPUs", 1, 1, [0]), NOT_SUPPORTED),
    ],
)
def test_calls_that_are_refused(fft: Fft, call: Callable[[Fft], int], status: int) -> None:
    assert call(fft) == status


def test_a_plan_for_another_type(fft: Fft) -> None:
    array = cupy.asarray(np.zeros(8, np.complex64))
    plan = fft.plan("cufftPlan1d", 8, C2C, 1)
    assert fft.status("cufftExecR2C", plan, array, array) == INVALID_TYPE
    assert fft.status("cufftExecC2C", plan, array, array, 0) == INVALID_VALUE
    fft("cufftDestroy", plan)
    assert fft.status("cufftExecC2C", plan, array, array, FORWARD) == INVALID_PLAN
    created = fft.plan("cufftCreate")
    assert fft.status("cufftExecC2C", created, array, array, FORWARD) == INVALID_PLAN  # not made
    fft("cufftDestroy", created)


def test_injected_failures(fft: Fft) -> None:
    array = cupy.asarray(np.zeros(8, np.complex64))
    plan = fft.plan("cufftPlan1d", 8, C2C, 1)
    with cuda.failing("cufftExecC2C", error="launch_failed") as failure:
        assert fft.status("cufftExecC2C", plan, array, array, FORWARD) == EXEC_FAILED
    assert failure.injected == 1
    fft("cufftExecC2C", plan, array, array, FORWARD)
    fft("cufftDestroy", plan)
