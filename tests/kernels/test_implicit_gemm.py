"""The implicit GEMM: what its main loops issue, what it moves, and how exact its sums are."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
import sample
from kernel_cases import CASES
from launches import SM_75, Launch, recording
from memory_traffic import CONFLICT, SECTORS, image, profiled
from strategies import arranged, dtype_of, numbers
from test_nvrtc import REGISTERS, capability_of, reports
from test_sass import code_of

import gpucnn
import gpucnn.functional as F
from gpucnn import backends, simulator
from gpucnn.backends.cuda import CudaBackend
from gpucnn.backends.cuda.convolution import implicit_gemm
from gpucnn.backends.cuda.convolution.folding import fold_of_input, fold_of_output
from gpucnn.backends.cuda.device.nvrtc import OPTIONS, Nvrtc
from gpucnn.backends.cuda.device.runtime import Device, Function
from gpucnn.backends.cuda.device.simulator_runtime import SimulatorRuntime
from gpucnn.backends.cuda.device.sources import Source
from gpucnn.backends.replaying import REPLAYERS
from gpucnn.geometry.geometries import Channels, conv_geometry

LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {  # x, w, options
    "ResNet, 56 x 56": ((32, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    "ResNet, 28 x 28": ((32, 128, 28, 28), (128, 128, 3, 3), {"padding": 1}),
    "ResNet, a stride": ((32, 256, 28, 28), (256, 256, 3, 3), {"padding": 1, "stride": 2}),
    "ResNet, 7 x 7": ((32, 512, 7, 7), (512, 512, 3, 3), {"padding": 1}),
    "ResNet, a shortcut": ((32, 512, 28, 28), (1024, 512, 1, 1), {"stride": 2}),
    "ResNet, the stem": ((32, 3, 224, 224), (64, 3, 7, 7), {"padding": 3, "stride": 2}),
    "DeepLab": ((8, 256, 33, 33), (256, 256, 3, 3), {"padding": 12, "dilation": 12}),
}
DIRECTIONS = ("forward", "dgrad", "wgrad")
PRODUCTS = {"float16": "HMMA", "bfloat16": "HMMA", "tf32": "HMMA", "fp32x3": "HMMA", "fp32": "FFMA"}
"""Dtypes, or precisions of float32, and the instruction that multiplies."""
OTHERS = {"HMMA": 3.0, "FFMA": 0.2}
"""Other instructions for each of these in a main loop, at most."""


def precision_of(name: str) -> tuple[str, str]:
    """The dtype and the precision that a name of PRODUCTS stands for."""
    return (name, "fp32") if "float" in name else ("float32", name)


def test_every_tile_has_a_case() -> None:
    found: dict[str, set[Any]] = {"forward": set(), "backward weight": set()}
    for case in CASES:
        direction = case.name.partition(",")[0]
        if "implicit GEMM" not in case.name or direction not in found:
            continue
        x = case.arguments[0]
        geometry = case.arguments[-1]
        if fold_of_input(geometry, 2) or fold_of_output(geometry):
            continue
        rows = geometry.channels.outputs // geometry.channels.groups
        columns = len(x) * prod(geometry.output_size)
        terms = 2 if case.precision == "fp32x3" else 1
        tile = implicit_gemm.tile(rows, columns, geometry.channels.groups, terms)
        found[direction].add(tile if direction == "forward" else implicit_gemm.weight_tile(rows, terms))
    assert found["forward"] == set(implicit_gemm.TILES)
    sizes = product((16, 32, 64, 128), (1, 2))
    assert found["backward weight"] == {implicit_gemm.weight_tile(rows, terms) for rows, terms in sizes}


@pytest.mark.parametrize(
    ("channels", "size", "n", "splits"),
    [(64, 56, 32, 105), (256, 56, 32, 11), (512, 7, 32, 1), (512, 1, 1, 1), (4096, 8, 1, 1)],
)
def test_parts_of_a_sum_are_whole_rounds_of_blocks(channels: int, size: int, n: int, splits: int) -> None:
    geometry = conv_geometry("conv2d", (size, size), Channels(channels, channels), 3, 1, 1, 1)
    found, run = implicit_gemm.split_positions(n, channels, 2, geometry)
    assert found == splits
    assert (found - 1) * run < n * size * size <= found * run
    assert run % 32 == 0


def programs(name: str, layer: str, capability: tuple[int, int]) -> dict[str, Launch]:
    """What the three directions of a layer launch, built for its sizes."""
    (x, w, options), (dtype, precision), found = LAYERS[layer], precision_of(name), {}
    arrays = [np.zeros(shape, dtype_of(dtype)) for shape in (x, w)]
    recorded = recording(specialises=True, capability=capability)
    with recorded as recorder, gpucnn.precision(precision), gpucnn.algorithm("implicit_gemm"):
        y = F.conv2d(*arrays, **options)
        calls = (
            lambda: F.conv2d(*arrays, **options),
            lambda: F.conv2d_input(x, arrays[1], y, **options),
            lambda: F.conv2d_weight(arrays[0], w, y, **options),
        )
        for direction, call in zip(DIRECTIONS, calls, strict=True):
            recorder.launches.clear()
            call()
            found[direction] = next(each for each in recorder.launches.values() if "gemm" in each.source.kernel)
    return found


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "architecture"), [*((name, "sm_90") for name in PRODUCTS), ("float16", "sm_75"), ("fp32", "sm_75")]
)
def test_main_loops_issue_few_other_instructions(sass_compiler: Nvrtc, name: str, architecture: str) -> None:
    found, opcode = [], PRODUCTS[name]
    for layer in sample.some(list(LAYERS), 4):
        for direction, launch in programs(name, layer, capability_of(architecture)).items():
            code = code_of(sass_compiler, launch, architecture)
            loop = code.main_loop(opcode) or code.opcodes
            others = (loop.total() - loop[opcode]) / loop[opcode]
            if others > OTHERS[opcode]:
                found.append(f"{layer}, {direction}: {others:.2f} others for each {opcode}, expected {OTHERS[opcode]}")
            if code.local:
                found.append(f"{layer}, {direction}: {code.local} accesses of local memory")
            copied = "LDGSTS" if architecture == "sm_90" else "STS"
            if 128 not in code.of(copied) or (copied == "LDGSTS" and len(code.of(copied)) > 1):
                found.append(f"{layer}, {direction}: copies of {dict(code.of(copied))} bits, expected 128")
    assert not found, "\n".join(found)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["float16", "tf32", "fp32x3", "fp32"])
def test_each_tile_reads_its_factors_once(name: str, order: str) -> None:
    """Global traffic is that of the tiles: w once per tile of positions, x once per tap and tile of rows."""
    dtype, precision = precision_of(name)
    x, w = image(2, 64, 16, 16, dtype=dtype, order=order), image(96, 64, 3, 3, dtype=dtype)
    y = image(2, 96, 16, 16, dtype=dtype, order=order)
    with gpucnn.precision(precision):
        terms = implicit_gemm.terms(x.dtype)
        for direction, call in (
            ("forward", lambda: F.conv2d(x, w, padding=1)),
            ("dgrad", lambda: F.conv2d_input(x.shape, w, y, padding=1)),
            ("wgrad", lambda: F.conv2d_weight(x, w.shape, y, padding=1)),
        ):
            _, profile = profiled(call)
            (launch,) = [each for each in profile.launches if "gemm" in each.kernel]
            assert launch.worst_conflict <= CONFLICT, direction
            assert launch.sector_share <= SECTORS, direction
            assert all(access.bytes == 16 for access in launch.accesses if access.space == "global"), direction
            assert launch.moved_bytes <= 1.1 * scheme(direction, x, w, y, terms), direction


def scheme(direction: str, x: Any, w: Any, y: Any, terms: int) -> int:
    """The bytes that the tiles of a direction read and write."""
    rows, columns = (96, 64) if direction != "dgrad" else (64, 96)
    if direction == "wgrad":
        tile = implicit_gemm.weight_tile(rows, terms)
        geometry = conv_geometry("conv2d", (16, 16), Channels(64, 96), 3, 1, 1, 1)
        splits = implicit_gemm.split_positions(2, columns, x.itemsize, geometry, terms)[0]
        tiles_m, tiles_n = -(-rows // tile.rows), -(-9 * columns // tile.columns)
        return int(tiles_n * y.nbytes + tiles_m * 9 * x.nbytes + splits * prod(w.shape) * 4)
    tile = implicit_gemm.tile(rows, 2 * 16 * 16, 1, terms)
    tiles_m, tiles_n = -(-rows // tile.rows), -(-2 * 16 * 16 // tile.columns)
    read, written = (x, y) if direction == "forward" else (y, x)
    return int(tiles_n * w.nbytes + tiles_m * 9 * read.nbytes + written.nbytes)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", PRODUCTS)
def test_errors_are_those_of_a_sequential_sum(name: str) -> None:
    """Against float64: at most those of a sum in float32 one after another, of factors as they are read, rounded once.

    TF32 reads factors with 11 bits, fp32x3 with 22, of which it leaves out the product of the last 11.
    """
    dtype, precision = precision_of(name)
    rng = np.random.default_rng(1)
    x, w, y = (numbers(rng, shape, dtype) for shape in ((2, 40, 9, 11), (24, 40, 3, 3), (2, 24, 9, 11)))
    given = [simulator.asarray(each) for each in (x, w, y)]
    exact = [each.astype(np.float64) for each in (x, w, y)]
    factors = {"tf32": 2 * 2.0**-11, "fp32x3": 3 * 2.0**-22}.get(name, 0.0)
    result = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}[dtype]
    with gpucnn.precision(precision):
        assert gpucnn.explain("conv2d", *given[:2], padding=1, backend="cuda").algorithm == "implicit_gemm"
        for name, at, terms in (("conv2d", (0, 1), 360), ("conv2d_input", (1, 2), 216), ("conv2d_weight", (0, 2), 198)):
            calls = [
                {"conv2d": lambda a: F.conv2d(a[0], a[1], padding=1),
                 "conv2d_input": lambda a: F.conv2d_input(x.shape, a[1], a[2], padding=1),
                 "conv2d_weight": lambda a: F.conv2d_weight(a[0], w.shape, a[2], padding=1)}[name](arrays)
                for arrays in (given, exact, [abs(each) for each in exact])
            ]  # fmt: skip
            got, expected, size = simulator.asnumpy(calls[0]).astype(np.float64), calls[1], calls[2]
            allowed = (factors + terms * 2.0**-24) * size + result * abs(expected) + 2.0**-24
            assert (abs(got - expected) <= allowed).all(), (name, at)


@pytest.mark.usefixtures("compiler")
def test_three_products_of_tf32_are_as_exact_as_float32() -> None:
    """The error of fp32x3 is at most twice that of a sequential sum in float32, and a thousandth of TF32's."""
    rng = np.random.default_rng(2)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 96, 12, 12), (64, 96, 3, 3)))
    exact = F.conv2d(x.astype(np.float64), w.astype(np.float64), padding=1)
    errors = {}
    for precision in ("fp32", "fp32x3", "tf32"):
        with gpucnn.precision(precision), gpucnn.algorithm("implicit_gemm"):
            y = F.conv2d(simulator.asarray(x), simulator.asarray(w), padding=1)
        errors[precision] = float(np.sqrt(np.mean((simulator.asnumpy(y) - exact) ** 2)))
    assert errors["fp32x3"] <= 2 * errors["fp32"]
    assert errors["fp32x3"] <= errors["tf32"] / 1000


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", PRODUCTS)
def test_what_is_no_number_stays_none(name: str) -> None:
    """NaN of any bits, and infinity but for fp32x3, where one of its two terms is NaN."""
    dtype, precision = precision_of(name)
    x = np.ones((1, 16, 1, 4), np.float32)
    x[0, 3, 0, 1], x[0, 5, 0, 3] = np.uint32(0x7FFFFFFF).view(np.float32), np.inf
    x = x.astype(dtype_of(dtype))
    w = np.ones((16, 16, 1, 1), dtype_of(dtype))
    with gpucnn.precision(precision), gpucnn.algorithm("implicit_gemm"):
        y = F.conv2d(simulator.asarray(x), simulator.asarray(w))
    found = simulator.asnumpy(y)[0, 0, 0].astype(np.float64)
    np.testing.assert_array_equal(found, [16, np.nan, 16, np.nan if name == "fp32x3" else np.inf])


# --- Epilogue ---------------------------------------------------------------------------------------------------------

FINISHED = {  # x, w, options, whether the product's store finishes it
    "whole tiles": ((2, 16, 8, 8), (64, 16, 3, 3), {"padding": 1}, True),
    "odd positions": ((1, 32, 7, 9), (40, 32, 3, 3), {"padding": 1}, True),
    "groups, strides, dilation": ((3, 64, 13, 11), (32, 32, 3, 2), {"groups": 2, "stride": 2, "dilation": 2}, True),
    "one position": ((1, 24, 3, 3), (17, 24, 3, 3), {}, True),
    "a volume": ((1, 16, 4, 5, 6), (32, 16, 2, 3, 3), {}, True),
    "a fold, whose results are looked at": ((1, 3, 20, 20), (64, 3, 7, 7), {"stride": 2, "padding": 3}, False),
}


@pytest.mark.table(4)
@pytest.mark.parametrize("order", ["contiguous", "channels_last", "strided", None])
@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("case", FINISHED)
@pytest.mark.usefixtures("compiler")
def test_an_epilogue_has_the_bits_of_a_pass_of_its_own(case: str, name: str, order: str | None) -> None:
    (*shapes, options, _), (dtype, precision), rng = FINISHED[case], precision_of(name), np.random.default_rng(7)
    x, w, b = (numbers(rng, shape, dtype) for shape in (*shapes, shapes[1][:1]))
    convolve, finish = getattr(F, f"conv{x.ndim - 2}d"), getattr(F, f"conv{x.ndim - 2}d_activation")
    for of_x in ("contiguous", "channels_last"):
        given = [simulator.asarray(each) for each in (arranged(x, of_x), w, b)]
        with gpucnn.precision(precision), gpucnn.algorithm("implicit_gemm"):
            y = convolve(*given, **options)
            residual = None if order is None else simulator.asarray(arranged(numbers(rng, y.shape, dtype), order))
            for activation in ("relu", "relu6", "leaky_relu", "none", "hard_swish", "gelu"):
                expected = F.bias_activation(y, None, residual, activation)
                result = finish(*given, **options, residual=residual, activation=activation)
                assert simulator.asnumpy(result).tobytes() == simulator.asnumpy(expected).tobytes()


@pytest.mark.parametrize("case", FINISHED)
def test_an_epilogue_is_part_of_the_products_store(case: str) -> None:
    *shapes, options, is_one = FINISHED[case]
    x, w = (np.zeros(shape, np.float16) for shape in shapes)
    with recording(specialises=True) as recorder:
        getattr(F, f"conv{x.ndim - 2}d_activation")(x, w, **options)
    launched = {launch.source.kernel for launch in recorder.launches.values()}
    assert "implicit_gemm" in launched
    assert ("bias_activation" not in launched) == is_one


# --- Turing -----------------------------------------------------------------------------------------------------------


class _Turing(SimulatorRuntime):
    """The simulator as a device of compute capability 7.5."""

    name = "Turing"

    def __init__(self) -> None:
        self.products: dict[str, str] = {}  # by kernel the last program that multiplies

    def device(self, array: Any) -> Device:
        return replace(super().device(array), compute_capability=SM_75)

    def function(self, source: Source, device: Device) -> Function:
        if "SM_80" in source.text:
            self.products[source.kernel] = source.text
        return super().function(source, device)


@pytest.fixture
def turing(monkeypatch: pytest.MonkeyPatch) -> _Turing:
    """Simulated arrays are on a Turing GPU."""
    runtime = _Turing()
    backend = CudaBackend(runtime)
    monkeypatch.setattr(backends, "_simulator_backend", lambda: backend)
    monkeypatch.setattr(backends, "_NATIVE", {})
    monkeypatch.delitem(REPLAYERS, simulator.Array, raising=False)
    return runtime


ON_TURING = {  # x, w, options
    "whole tiles": ((2, 32, 8, 8), (64, 32, 3, 3), {"padding": 1}),
    "odd sizes": ((1, 19, 7, 9), (41, 19, 3, 3), {"padding": 1}),
    "groups, strides, dilation": ((2, 64, 13, 11), (32, 32, 3, 2), {"groups": 2, "stride": 3, "dilation": 2}),
    "steps of many channels": ((1, 200, 5, 5), (130, 200, 1, 1), {"stride": 2}),
    "a stem, which is folded": ((1, 3, 20, 20), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    "a volume": ((1, 16, 4, 5, 6), (32, 16, 2, 3, 3), {"padding": (1, 0, 1)}),
    "an empty batch": ((0, 16, 6, 6), (16, 16, 3, 3), {}),
}


def three_directions(x: Any, w: Any, y_like: Any, options: dict[str, Any]) -> list[Any]:
    """Results of a convolution, of its dgrad and of its wgrad, the latter two of `y_like`."""
    rank = x.ndim - 2
    convolve, dgrad, wgrad = (getattr(F, f"conv{rank}d{kind}") for kind in ("", "_input", "_weight"))
    return [convolve(x, w, **options), dgrad(x.shape, w, y_like, **options), wgrad(x, w.shape, y_like, **options)]


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("case", ON_TURING)
def test_on_turing(case: str, dtype: str, order: str, request: pytest.FixtureRequest) -> None:
    """By FFMA the bits of later devices; on tensor cores, by products of 8 values, their errors."""
    (*shapes, options), rng = ON_TURING[case], np.random.default_rng(3)
    x, w = (arranged(numbers(rng, shape, dtype), order) for shape in shapes)
    y = arranged(numbers(rng, getattr(F, f"conv{x.ndim - 2}d")(x, w, **options).shape, dtype), order)
    given = [simulator.asarray(each) for each in (x, w, y)]
    exact = [each.astype(np.float64) for each in (x, w, y)]
    with gpucnn.algorithm("implicit_gemm"):
        later = three_directions(*given, options)
        runtime = request.getfixturevalue("turing")
        found = three_directions(*given, options)
    assert not x.size or set(runtime.products) == {"implicit_gemm", "implicit_gemm_backward_weight"}
    assert all("#define SM_80 0\n" in program for program in runtime.products.values())
    expected = three_directions(*exact, options)
    size = three_directions(*(abs(each) for each in exact), options)
    terms = (w[0].size, w.size // w.shape[1], max(1, y.size // y.shape[1]))
    for got, same, exactly, largest, count in zip(found, later, expected, size, terms, strict=True):
        if dtype == "float32":
            assert simulator.asnumpy(got).tobytes() == simulator.asnumpy(same).tobytes()
        allowed = count * 2.0**-24 * largest + 2.0**-11 * abs(exactly) + 2.0**-24
        assert (abs(simulator.asnumpy(got).astype(np.float64) - exactly) <= allowed).all()


@pytest.mark.usefixtures("compiler")
def test_turing_takes_the_implicit_gemm_by_itself(turing: _Turing) -> None:
    x, w, other = (
        simulator.asarray(np.zeros((n, 64, size, size), np.float16)) for n, size in ((1, 8), (64, 3), (1, 6))
    )
    F.conv2d_activation(x, w, activation="relu", residual=other)
    assert set(turing.products) == {"implicit_gemm"}
    on_this = r"computes no convolution of float32 on a GPU of compute capability 7\.5"
    with gpucnn.algorithm("implicit_gemm"), gpucnn.precision("tf32"), pytest.raises(ValueError, match=on_this):
        F.conv2d(x.astype(np.float32), w.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_two_blocks_of_a_forward_fit_a_turing_multiprocessor(nvrtc_library: Nvrtc, dtype: str) -> None:
    """Of registers and of 64 KiB of shared memory, so that one multiplies while the other copies."""
    x, w = np.zeros((32, 256, 14, 14), dtype), np.zeros((256, 256, 3, 3), dtype)
    with recording(specialises=True, capability=SM_75) as recorder, gpucnn.algorithm("implicit_gemm"):
        F.conv2d(x, w, padding=1)
    (launch,) = [each for each in recorder.launches.values() if each.source.kernel == "implicit_gemm"]
    log = nvrtc_library.compile(launch.source.text, launch.source.name, (*OPTIONS, "-arch=sm_75", "-Xptxas=-v")).log
    (report,) = reports(log)
    assert (report.stack, report.spilled) == (0, 0)
    assert 2 * report.registers * launch.threads <= REGISTERS
    assert 2 * (report.shared + launch.shared_mem) <= 64 << 10
