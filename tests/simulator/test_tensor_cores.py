"""mma, ldmatrix, cp.async and the conversions against NumPy; asynchronous copies that nobody waited for."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from running import launch, line_of

from gpucnn import simulator
from gpucnn.simulator import Misaligned, OutOfBounds, Race, SynchronisationError, UninitialisedRead, toolchain

Host = np.ndarray[Any, Any]
FILE = "tensor.cu"
MODES = ["check", "fast"]


@pytest.fixture(params=MODES, autouse=True)
def mode(request: pytest.FixtureRequest) -> Any:
    with simulator.options(mode=request.param):
        yield request.param


def numbers(shape: tuple[int, ...], dtype: Any = np.float32) -> Host:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_product_of_16_bit_floats(dtype: Any) -> None:
    a, b, c = numbers((16, 16), dtype), numbers((16, 8), dtype), numbers((16, 8))
    args = (a.view("u2"), b.view("u2"), c, int(dtype is not np.float16))
    expected = a.astype("f8") @ b.astype("f8") + c
    _, _, d = launch(FILE, "product_16_bit", (1,), (32,), *args, 0)
    np.testing.assert_allclose(d, expected, rtol=1e-6, atol=1e-6)
    _, _, swapped = launch(FILE, "product_16_bit", (1,), (32,), *args, 1)
    assert abs(swapped - expected).max() > 0.1


def test_product_of_8_values() -> None:
    a, b, c = numbers((16, 8), np.float16), numbers((8, 8), np.float16), numbers((16, 8))
    _, _, d = launch(FILE, "product_short", (1,), (32,), a.view("u2"), b.view("u2"), c)
    np.testing.assert_allclose(d, a.astype("f8") @ b.astype("f8") + c, rtol=1e-6, atol=1e-6)


def test_product_of_tf32() -> None:
    a, b, c = numbers((16, 8)), numbers((8, 8)), numbers((16, 8))
    _, _, d = launch(FILE, "product_tf32", (1,), (32,), a, b, c)
    np.testing.assert_allclose(d, tf32(a).astype("f8") @ tf32(b).astype("f8") + c, rtol=1e-6, atol=1e-6)


def tf32(x: Host) -> Host:
    """Rounded to 10 bits of mantissa, ties away from zero."""
    mantissa, exponent = np.frexp(x.astype("f8"))
    scaled = mantissa * 2**11
    rounded = np.sign(scaled) * np.floor(abs(scaled) + 0.5)
    return np.ldexp(rounded / 2**11, exponent).astype("f4")


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [0, 1])
def test_matrix_loads(count: int, transposed: int) -> None:
    x = np.arange(256, dtype="u2").reshape(8, 32)
    _, y = launch(FILE, "load_matrices", (1,), (32,), x, np.zeros((32, 4), "u4"), count, transposed, 0)
    pairs = y.view("u2").reshape(32, 4, 2)
    for m in range(4):
        matrix = x[:, 8 * m : 8 * m + 8]
        expected = (matrix.T if transposed else matrix).reshape(32, 2)
        np.testing.assert_array_equal(pairs[:, m], expected if m < count else 0)


def test_rows_of_a_matrix_load_are_aligned() -> None:
    x, y = np.arange(256, dtype="u2"), np.zeros((32, 4), "u4")
    with pytest.raises(Misaligned) as caught:
        launch(FILE, "load_matrices", (1,), (32,), x, y, 4, 0, 2)
    assert (caught.value.file, caught.value.line) == (FILE, line_of(FILE, "// matrix load"))


def test_rows_of_a_matrix_load_are_in_shared_memory(mode: str) -> None:
    x, y = np.arange(256, dtype="u2"), np.zeros((32, 4), "u4")
    if mode == "check":
        with pytest.raises(OutOfBounds, match="shared 'tile'"):
            launch(FILE, "load_matrices", (1,), (32,), x, y, 4, 0, 64)
    with pytest.raises(simulator.AddressSpaceError):
        launch(FILE, "load_matrices", (1,), (32,), x, y, 4, 0, 1 << 20)


def test_a_product_needs_the_whole_warp() -> None:
    launch(FILE, "partial_warp", (1,), (32,), np.zeros(32, "f4"), 32)
    with pytest.raises(SynchronisationError):
        launch(FILE, "partial_warp", (1,), (32,), np.zeros(32, "f4"), 31)
    with pytest.raises(SynchronisationError, match="needs all 32 lanes"):
        launch(FILE, "partial_warp", (1,), (16,), np.zeros(32, "f4"), 32)


@pytest.mark.parametrize("used", [4, 2, 0])
def test_asynchronous_copies(used: int) -> None:
    x = np.arange(1, 257, dtype="f4")
    _, y = launch(FILE, "async_copy", (1,), (32,), x, np.zeros(256, "f4"), used, 0)
    np.testing.assert_array_equal(y, np.where(np.arange(256) % 4 < used, x, 0))


def test_asynchronous_copies_land_at_the_wait(mode: str) -> None:
    x = np.arange(1, 257, dtype="f4")

    def run(bug: int) -> Any:
        return launch(FILE, "async_copy", (1,), (32,), x, np.zeros(256, "f4"), 4, bug)

    with pytest.raises(Misaligned):
        run(3)
    if mode == "fast":
        return
    for bug, mark in ((1, "// read of the first stage"), (4, "// read of the second stage")):
        with pytest.raises(UninitialisedRead, match="has not been waited for") as caught:
            run(bug)
        assert caught.value.line == line_of(FILE, mark)
    with pytest.raises((Race, UninitialisedRead)):
        run(2)
    with pytest.raises(OutOfBounds):
        launch(FILE, "async_copy", (1,), (32,), x[:252], np.zeros(256, "f4"), 4, 0)


def test_conversions_to_float() -> None:
    bits = np.arange(1 << 16, dtype="u2")
    zeros = np.zeros(1 << 16, "f4")
    _, half, bfloat = launch(FILE, "to_float", (256,), (256,), bits, zeros, zeros, 1 << 16)
    np.testing.assert_array_equal(half, bits.view("f2").astype("f4"))
    np.testing.assert_array_equal(bfloat, bits.view(ml_dtypes.bfloat16).astype("f4"))


def floats() -> Host:
    """Random bits, every half, the numbers halfway between two halves, and those beside them."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype="u4")
    every_half = np.arange(1 << 16, dtype="u2").view("f2").astype("f4")
    halves = np.arange(0x7C00, dtype="u2").view("f2").astype("f8")
    ties = ((halves[1:] + halves[:-1]) / 2).astype("f4")
    return np.concatenate(
        [bits.view("f4"), every_half, ties, *(np.nextafter(ties, np.float32(end)) for end in (0, 9e9))]
    )


def test_conversions_from_float() -> None:
    x = floats()
    n = len(x)
    args = (x, np.zeros(n, "u2"), np.zeros(n, "u2"), np.zeros(n, "u4"), np.zeros(n, "u4"))
    _, half, bfloat, rounded, pair = launch(FILE, "from_float", (-(-n // 256),), (256,), *args, n)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(half.view("f2"), x.astype("f2"))
        np.testing.assert_array_equal(
            bfloat.view(ml_dtypes.bfloat16).astype("f4"), x.astype(ml_dtypes.bfloat16).astype("f4")
        )
        finite = np.isfinite(x) & (abs(x) < 3e38) & (abs(x) > 1e-30)
        np.testing.assert_array_equal(rounded.view("f4")[finite], tf32(x[finite]))
    np.testing.assert_array_equal(pair >> 16, half)
    assert (pair & 0xFFFF == 0x3C00).all()


def test_conversions_without_instructions_for_them(tmp_path: Path) -> None:
    """What processors without the instructions use gives the same bits."""
    source = tmp_path / "half.cpp"
    source.write_text(
        """#include "half_bits.h"
        extern "C" void from_float(const float* x, uint16_t* y, int n) {
          for (int i = 0; i < n; i++) y[i] = gpucnn::float_to_half(x[i]);
        }
        extern "C" void to_float(const uint16_t* x, float* y, int n) {
          for (int i = 0; i < n; i++) y[i] = gpucnn::half_to_float(x[i]);
        }
        """
    )
    flags = ["-O1", "-fPIC", "-shared", "-DGPUCNN_SIMULATOR_PORTABLE_HALF", f"-I{toolchain.HERE / 'include'}"]
    toolchain.run([toolchain.compiler().path, *flags, str(source), "-o", str(tmp_path / "half.so")])
    library = ctypes.CDLL(str(tmp_path / "half.so"))
    x = floats()
    half, back = np.zeros(len(x), "u2"), np.zeros(1 << 16, "f4")
    every = np.arange(1 << 16, dtype="u2")
    library.from_float(np.ctypeslib.as_ctypes(x), np.ctypeslib.as_ctypes(half), len(x))
    library.to_float(np.ctypeslib.as_ctypes(every), np.ctypeslib.as_ctypes(back), 1 << 16)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(half.view("f2"), x.astype("f2"))
    np.testing.assert_array_equal(back, every.view("f2").astype("f4"))
