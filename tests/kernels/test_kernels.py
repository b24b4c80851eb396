"""The kernels themselves, on the simulator: held to the NumPy backend in every build, and in any order of threads."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import sample
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import CASES, PACKED, Case
from sample import examples
from strategies import ORDERS, Windows, arranged, dtype_of, numbers, windows

import gpucnn
import gpucnn.functional as F
from benchmarks import primitives
from gpucnn import simulator
from gpucnn.backends import backend_of, replaying
from gpucnn.backends.cuda import CudaBackend
from gpucnn.backends.cuda.device import sources
from gpucnn.backends.cuda.device.simulator_runtime import SimulatorRuntime
from gpucnn.backends.cuda.elementwise import packing
from gpucnn.backends.cuda.launch import plans as launching
from gpucnn.geometry import ConvGeometry
from gpucnn.geometry.geometries import Channels, conv_geometry

pytestmark = pytest.mark.usefixtures("compiler")
KERNELS = sorted(path.stem for path in sources.folder().glob("*.cu"))
DRAWN = random.Random(1).sample(CASES, len(CASES))  # so that evenly spread rows are of all dtypes and orders


def simulated(case: Case, cuda: CudaBackend) -> tuple[np.ndarray[Any, Any], ...]:
    return tuple(simulator.asnumpy(result) for result in case.run(cuda, simulator.asarray))


@pytest.fixture(scope="module")
def cuda() -> CudaBackend:
    return CudaBackend(SimulatorRuntime())


# --- Every case ---------------------------------------------------------------------------------------------------


def test_every_kernel_has_cases() -> None:
    assert {kernel for case in CASES for kernel in case.kernels} == set(KERNELS)


@pytest.mark.table(3)
@pytest.mark.parametrize("kernel", KERNELS)
def test_results_are_those_of_the_numpy_backend(kernel: str, cuda: CudaBackend) -> None:
    cases = sample.some([case for case in DRAWN if kernel in case.kernels], 2)
    assert [case.name for case in cases if not case.agrees(simulated(case, cuda))] == []


def bits(case: Case, cuda: CudaBackend) -> list[bytes]:
    return [result.tobytes() for result in simulated(case, cuda)]


def common(kernel: str) -> list[Case]:
    """The cases of a kernel in float32, or of one that takes 16 bits, in float16."""
    cases = [case for case in DRAWN if kernel in case.kernels]
    return [case for case in cases if "float32" in case.name] or [case for case in cases if "float16" in case.name]


@pytest.mark.table(4)
@pytest.mark.parametrize("kernel", KERNELS)
def test_results_are_the_same_bits_in_any_order_of_threads(kernel: str, cuda: CudaBackend) -> None:
    for case in sample.some(common(kernel), 2):
        expected = bits(case, cuda)
        for order, seed in (("forward", 1), ("reverse", 1), ("random", 1), ("random", 2)):
            with simulator.options(order=order, seed=seed):
                assert bits(case, cuda) == expected, (case.name, order, seed)


@pytest.mark.table(1)
@pytest.mark.parametrize("kernel", KERNELS)
def test_results_are_the_same_bits_with_64_bit_indices(
    kernel: str, cuda: CudaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = sample.some(common(kernel), 2)
    expected = [bits(case, cuda) for case in cases]
    monkeypatch.setattr(launching, "needs_int64", lambda layouts, extents: True)
    wide = CudaBackend(SimulatorRuntime())  # with no plans yet
    assert [case.name for case, one in zip(cases, expected, strict=True) if bits(case, wide) != one] == []


@pytest.mark.table(2)
@pytest.mark.parametrize("kernel", KERNELS)
def test_specialised_builds_give_the_same_bits(kernel: str, cuda: CudaBackend) -> None:
    runtime = SimulatorRuntime()
    runtime.specialises = True
    cases = common(kernel)
    for case in sample.some(cases[:: max(1, len(cases) // 4)], 2):  # a build for each takes its time
        assert bits(case, CudaBackend(runtime)) == bits(case, cuda), case.name


# --- Drawn geometries ---------------------------------------------------------------------------------------------
# By the algorithms that a caller asks for; what is chosen by itself, and all other operations, the suite draws with
# --backend=simulator.


def agrees(primitive: str, *arguments: Any) -> None:
    """Assert that a primitive gives the NumPy backend's results on the simulator, forwards and backwards in time."""
    algorithm = "im2col" if len(arguments) > 3 and getattr(arguments[-1], "taps", 1) % 2 else "direct"
    case = Case(primitive, primitive, arguments, algorithm)
    results = simulated(case, CudaBackend(_RUNTIME))
    assert case.agrees(results)
    with simulator.options(order="random", seed=3):
        assert bits(case, CudaBackend(_RUNTIME)) == [result.tobytes() for result in results]


_RUNTIME = SimulatorRuntime()


def three(window: Windows) -> dict[str, Any]:
    return {"stride": window.stride, "padding": window.padding, "dilation": window.dilation}


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[int, ConvGeometry]:
    window = draw(windows())
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = Channels(groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3)), groups)
    return draw(st.integers(1, 3)), conv_geometry("conv", window.sizes, channels, window.kernel, **three(window))


def image(seed: int, n: int, c: int, size: tuple[int, ...], order: str) -> Any:
    return arranged(numbers(np.random.default_rng(seed), (n, c, *size), "float32"), order)


@examples(100)
@given(convolutions(), st.sampled_from(ORDERS), st.integers(0, 99))
def test_convolution(drawn: tuple[int, ConvGeometry], order: str, seed: int) -> None:
    n, geometry = drawn
    c, oc, groups = geometry.channels
    x, y = image(seed, n, c, geometry.input_size, order), image(seed + 1, n, oc, geometry.output_size, order)
    w = image(seed + 2, oc, c // groups, geometry.kernel_size, order)
    agrees("convolve", x, w, numbers(np.random.default_rng(seed), (oc,), "float32"), geometry)
    agrees("convolve_backward_input", y, w, numbers(np.random.default_rng(seed), (c,), "float32"), geometry)
    agrees("convolve_backward_weight", x, y, geometry)


# --- Both sides of 2^31 -------------------------------------------------------------------------------------------


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the programs that are asked for."""
    names: list[str] = []
    original = SimulatorRuntime.function

    def recorded(self: SimulatorRuntime, source: sources.Source, device: Any) -> Any:
        names.append(source.name)
        return original(self, source, device)

    monkeypatch.setattr(SimulatorRuntime, "function", recorded)
    launching._plan.cache_clear()
    monkeypatch.setattr(replaying, "REPLAYERS", {})
    return names


def far_apart(step: int) -> Any:
    """An int8 image [1, 2, 3, 5] whose two channels lie `step` bytes apart, on the simulator."""
    host = np.zeros(step + 15, np.int8)
    view = np.lib.stride_tricks.as_strided(host, (1, 2, 3, 5), (1, step, 5, 1))
    view[...] = numbers(np.random.default_rng(2), view.shape, "int8")
    return view


@pytest.mark.thorough
@pytest.mark.parametrize(("step", "index"), [(2**31 - 79, "int32"), (2**31 - 78, "int64"), (2**31 + 999, "int64")])
def test_offsets_on_both_sides_of_2_to_the_31(step: int, index: str, builds: list[str]) -> None:
    x = far_apart(step)
    near, far = x.copy(), simulator.asarray(x)
    assert far.strides[1] == step
    w = numbers(np.random.default_rng(3), (2, 2, 2, 2), "int8")
    geometry = conv_geometry("conv2d", (3, 5), Channels(2, 2), (2, 2), 1, 1, 1)
    with gpucnn.algorithm("direct"):
        (y,) = primitives.run(
            backend_of(far), "convolve", far[:, :, None], simulator.asarray(w)[:, :, None], None, geometry
        )
        y = y[:, :, 0]
    np.testing.assert_array_equal(simulator.asnumpy(y), F.conv2d(near, w, padding=1).astype(np.int8))
    np.testing.assert_array_equal(simulator.asnumpy(F.im2col(far, 2)), F.im2col(near, 2))
    np.testing.assert_array_equal(simulator.asnumpy(F.max_pool2d(far, 2, stride=1)), F.max_pool2d(near, 2, stride=1))
    assert [name.split(",generic")[0] for name in builds] == [
        f"{name}[int8,{index}" for name in ("conv_forward", "im2col", "max_pool")
    ]


@pytest.mark.thorough
def test_32_bit_indices_would_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    far = simulator.asarray(far_apart(2**31 + 999))
    monkeypatch.setattr(launching, "needs_int64", lambda layouts, extents: False)
    backend = CudaBackend(SimulatorRuntime())  # with no plans yet
    geometry = conv_geometry("im2col", (3, 5), Channels(2, 1), 2, 1, 0, 1)
    with pytest.raises((simulator.SimulatorError, OverflowError)):
        primitives.run(backend, "im2col", far[:, :, None], geometry)


# --- Elements that lie across their grain -------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [[("a", "u1"), ("b", "f4")], [("a", "u1"), ("b", "f4"), ("c", "u1", 3)]])
def test_fields_of_packed_records_are_copied_first(packed: Any) -> None:
    records = np.zeros((1, 2, 5, 6), packed)
    records["b"] = numbers(np.random.default_rng(1), records.shape, "float32")
    field = records["b"]
    w = numbers(np.random.default_rng(2), (3, 2, 3, 3), "float32")
    given = simulator.Array(field, records.view(np.uint8).reshape(-1), None)  # asarray would have copied it
    assert given.strides[-1] == records.itemsize
    y = F.conv2d(given, simulator.asarray(w))
    np.testing.assert_allclose(simulator.asnumpy(y), F.conv2d(field.copy(), w), rtol=1e-5, atol=1e-5)
    whole = simulator.asarray(field.copy())
    doubled = F.bias_activation(whole, residual=given, activation="none")  # within an epilogue too
    np.testing.assert_array_equal(simulator.asnumpy(doubled), 2 * field)


def lying_across(shape: tuple[int, ...], dtype: str) -> Any:
    """Complex numbers that begin in the middle of what one access reads."""
    part = np.dtype(dtype).itemsize // 2
    memory = simulator.asarray(numbers(np.random.default_rng(3), (2 * int(np.prod(shape)) + 1,), f"f{part}"))
    array = memory[1:].view(dtype).reshape(shape)
    assert array.data.ptr % (2 * part) == part
    return array


@pytest.mark.table(2)
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize(
    "operation",
    [
        lambda x: F.avg_pool2d(x, 3, 2),
        lambda x: F.im2col(x, 3, padding=1),
        lambda x: F.col2im(x.reshape(2, 27, 16), (6, 6), 3),
        lambda x: gpucnn.channels_last(x),
    ],
)
def test_complex_numbers_across_their_grain_are_copied_first(operation: Any, dtype: str) -> None:
    x = lying_across((2, 12, 6, 6), dtype)
    np.testing.assert_allclose(simulator.asnumpy(operation(x)), operation(simulator.asnumpy(x)), rtol=1e-5, atol=1e-5)


def test_an_out_of_complex_numbers_across_their_grain() -> None:
    x = simulator.asarray(numbers(np.random.default_rng(4), (2, 3, 6, 6), "complex64"))
    out = lying_across((2, 3, 3, 3), "complex64")
    assert F.avg_pool2d(x, 2, out=out) is out
    np.testing.assert_allclose(simulator.asnumpy(out), F.avg_pool2d(simulator.asnumpy(x), 2), rtol=1e-5)


# --- Copies that fill up with zeros -------------------------------------------------------------------------------


@pytest.mark.table(6)
@pytest.mark.parametrize("more", [1, 5, 70])
@pytest.mark.parametrize("order", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("name", sorted(PACKED))
def test_a_copy_fills_further_channels_with_zeros(name: str, order: str, more: int) -> None:
    runtime, (n, c, p) = SimulatorRuntime(), PACKED[name]
    for dtype, target in (("float32", "float32"), ("float16", "float16"), ("float32", "bfloat16"), ("int8", "int8")):
        x = arranged(numbers(np.random.default_rng(5), (n, c, p), dtype), order)
        y = launching.empty(runtime, (n, p, c + more), dtype_of(target))  # full of NaN where there is such a value
        packing.pack(runtime, simulator.asarray(x), y.swapaxes(1, 2))
        result = simulator.asnumpy(y).swapaxes(1, 2)
        np.testing.assert_array_equal(result[:, :c], x.astype(result.dtype))
        np.testing.assert_array_equal(result[:, c:], np.zeros_like(result[:, c:]))


# --- Plans --------------------------------------------------------------------------------------------------------


def test_a_layers_second_call_decides_nothing() -> None:
    decided = []
    backend = CudaBackend(SimulatorRuntime())
    case = next(case for case in CASES if case.primitive == "convolve")
    before = launching._plan.cache_info().misses
    for _ in range(3):
        case.run(backend, simulator.asarray)
        decided.append(launching._plan.cache_info().misses - before)
    assert decided == [1, 1, 1]
