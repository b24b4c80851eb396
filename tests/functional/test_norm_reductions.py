"""Sums of the norms that are large enough to be split, who sums what, and copies between memory orders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference_norms
from array_backends import ArrayBackend
from strategies import arranged, dtype_of, numbers
from tolerances import assert_close

import gpucnn.functional as F
from gpucnn.backends.cuda.elementwise.packing import pack
from gpucnn.backends.cuda.launch.plans import Layout
from gpucnn.backends.cuda.normalization.normalization import memory_order, tiling
from gpucnn.backends.cuda.normalization.tiles import MAX_NORM_SUMS, MAX_NORM_THREADS, norm_rows

BATCH, ROW, AFFINE = (0, 2, 3), (2, 3), (0, 3)


# --- Who sums what ------------------------------------------------------------------------------------------------


def seen(shape: tuple[int, ...], order: tuple[int, ...], itemsize: int = 4) -> Layout:
    """An array that lies in memory with its axes in `order`, the outermost first."""
    steps, step = [0] * len(shape), itemsize
    for axis in reversed(order):
        steps[axis] = step
        step *= shape[axis]
    return Layout(shape, tuple(steps), itemsize)


@pytest.mark.parametrize(
    ("strides", "shape", "expected"),
    [
        ((96, 24, 12, 1), (2, 4, 2, 12), (0, 1, 2, 3)),
        ((96, 2, 1, 8), (2, 4, 2, 12), (0, 3, 1, 2)),  # channels last
        ((96, 24, 12, -1), (2, 4, 2, 12), (0, 1, 2, 3)),
        ((48, 12, 5, 1), (2, 4, 1, 12), (0, 1, 3, 2)),  # an axis of size 1 comes last, whatever its stride
    ],
)
def test_axes_in_the_order_of_memory(
    strides: tuple[int, ...], shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert memory_order(Layout(shape, tuple(8 * step for step in strides), 8)) == expected


@pytest.mark.parametrize(
    ("shape", "order", "axes", "sums", "constants"),
    [
        ((8, 64, 1, 49), (0, 1, 3, 2), BATCH, 8, (1, 0)),  # eight planes of 196 bytes end where a sector does
        ((8, 64, 1, 64), (0, 1, 3, 2), BATCH, 16, (4, 0)),
        ((8, 64, 1, 3136), (0, 1, 3, 2), BATCH, 1, (4, 0)),
        ((8, 64, 1, 49), (0, 3, 1, 2), BATCH, 32, (4, 1)),  # channels last: neighbours are sums of their own
        ((8, 3, 1, 49), (0, 3, 1, 2), BATCH, 3, (1, 0)),
        ((8, 64, 1, 1), (0, 1, 2, 3), BATCH, 32, (4, 1)),
        ((8, 32, 4, 49), (0, 3, 1, 2), ROW, 64, (4, 0)),  # group norm, channels last: a group's channels are neighbours
        ((8, 4, 16, 49), (0, 3, 1, 2), AFFINE, 32, (4, 1)),
        ((100, 1, 4096, 1), (0, 2, 1, 3), ROW, 1, (4, 0)),  # layer norm
        ((100, 1, 96, 1), (0, 2, 1, 3), AFFINE, 32, (4, 1)),
    ],
)
def test_sums_that_lie_side_by_side_are_taken_together(
    shape: tuple[int, ...],
    order: tuple[int, ...],
    axes: tuple[int, ...],
    sums: int,
    constants: tuple[int, int],
) -> None:
    x = seen(shape, order)
    chosen = tiling(x, axes, 32, y=x)
    assert chosen.fields["sums"] == sums
    assert tuple(value for _, value in chosen.constants) == constants
    plain = tiling(x, axes, 32, y=x._replace(alignment=4))  # one array that is not aligned
    assert dict(plain.constants)["PACK"] == 1


@pytest.mark.parametrize("axes", [BATCH, ROW, AFFINE])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2)])
@pytest.mark.parametrize(
    "shape",
    [
        (0, 3, 1, 4),
        (1, 1, 1, 1),
        (5, 3, 2, 8191),
        (4, 24, 2, 49),
        (3, 100, 1, 4),
        (4097, 1, 768, 1),
        (2, 32, 4, 1024),
        (1, 2, 1, 1 << 26),
    ],
)
def test_tiles_cover_all_elements_once(shape: tuple[int, ...], order: tuple[int, ...], axes: tuple[int, ...]) -> None:
    chosen = tiling(seen(shape, order), axes, 32)
    fields, pack, along = chosen.fields, *(value for _, value in chosen.constants)
    kept, reduced, splits, run = (fields[name] for name in ("kept", "reduced", "splits", "run"))
    assert kept * reduced == np.prod(shape)
    assert splits * run >= reduced
    assert (splits - 1) * run < max(1, reduced)
    columns, rows, side, sums = (fields[name] for name in ("columns", "rows", "side", "sums"))
    assert columns * rows <= chosen.block <= MAX_NORM_THREADS
    assert chosen.block % 32 == 0
    assert sums == columns // side * (pack if along else 1) <= MAX_NORM_SUMS
    width = 1 if along else side * pack  # elements of a sum that a row of threads reads
    assert run % (rows * width) == 0
    assert run // (rows * width) == (32 // pack if pack > 1 else 12)  # HELD
    assert fields["apart"] in (0, 1, 2, 4, 8, 16, 32)
    assert not along or chosen.block <= 256


@pytest.mark.parametrize("held", [16, 32])
@pytest.mark.parametrize("segments", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("length", [1, 33, 96, 768, 1024, 3136, 4096])
def test_blocks_hold_their_rows(segments: int, length: int, held: int) -> None:
    chosen = norm_rows(segments, length, segments == 1, held, 4)
    if chosen is None:
        assert segments * length > 256 * held // 4 or (segments == 1 and length > 3072) or segments == 32
        return
    assert chosen.lanes * held >= length
    assert chosen.lanes & (chosen.lanes - 1) == 0
    assert chosen.at_once * segments * chosen.lanes <= chosen.block <= 256
    assert chosen.block % 32 == 0


def test_large_rows_of_weights_are_not_held() -> None:
    assert norm_rows(1, 3413, True, 32, 4) is not None
    assert norm_rows(1, 3414, True, 32, 4) is None
    assert norm_rows(1, 3414, False, 32, 4) is not None


# --- Split sums ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_large_sums(backend: ArrayBackend, name: str, order: str, rng: np.random.Generator) -> None:
    """Two channels that one part could not hold; halves of the second lie far apart, as its parts' means do."""
    x = rng.standard_normal((2, 2, 90, 100)).astype(np.float32)
    x[:, 1, :50] += 1000
    x = arranged(x, order)
    grad = (x + rng.standard_normal(x.shape)).astype(x.dtype)
    weight, bias = np.array([2, -1], np.float32), np.array([0, 1], np.float32)
    arguments = (None, None, weight, bias, True)
    exact, exact_mean, exact_rstd = getattr(reference_norms, name)(x, *arguments)[:3]
    y, mean, rstd = backend.run(getattr(F, name), x, *arguments, return_statistics=True)
    np.testing.assert_allclose(mean, exact_mean, rtol=3e-7, atol=1e-8)
    np.testing.assert_allclose(rstd, exact_rstd, rtol=3e-7)
    assert_close(y, exact)
    gradients = "batch_norm_backward_graph" if name == "batch_norm" else "instance_norm_backward"
    expected = getattr(reference_norms, gradients)(grad, x, None, None, weight, True)
    gx, _, _, gw, gb = backend.run(getattr(F, name + "_backward"), grad, x, *arguments)
    for actual, wanted in zip((gx, gw, gb), expected, strict=True):
        assert_close(actual, wanted)
    again = backend.run(getattr(F, name + "_backward"), grad, x, *arguments)
    assert [gx.tobytes(), gw.tobytes(), gb.tobytes()] == [again[i].tobytes() for i in (0, 3, 4)]


# --- Packing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "complex64", "int8", "uint16"])
@pytest.mark.parametrize("shape", [(2, 33, 40), (1, 70, 1), (3, 1, 65), (0, 4, 5)])
def test_packing(
    backend: ArrayBackend, shape: tuple[int, int, int], dtype: str, has_bias: bool, rng: np.random.Generator
) -> None:
    if backend.takes_numpy:
        pytest.skip("a step of the GPU's convolutions")
    primitives: Any = backend.primitives
    x = numbers(rng, shape, dtype_of(dtype))
    bias = numbers(rng, shape[1:2], dtype_of(dtype)) if has_bias else None
    expected = x if bias is None else (x + bias[:, None]).astype(x.dtype)
    for order in ("contiguous", "channels_last", "strided", "reversed"):
        for out_order in ("contiguous", "channels_last", "strided"):
            out = backend.asarray(arranged(np.zeros_like(x), out_order))
            given: Any = None if bias is None else backend.asarray(bias)
            pack(primitives.runtime, backend.asarray(arranged(x, order)), out, given)
            np.testing.assert_array_equal(backend.asnumpy(out), expected)
