"""Depthwise and grouped convolution on the CPU: bands, planes and pixels, cut small, against loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import reference
from array_backends import BACKENDS
from convolution_cases import Layer, bits
from families.convolution import convolution
from properties import Case, check_gradients, check_results
from strategies import ORDERS, Windows

import gpucnn.functional as F
from gpucnn.backends.numpy import depthwise, grouped, select, threads
from gpucnn.geometry import Axis, Sampling

# padding on one side, on both and beyond the kernel; strides with and without taps for each residue; dilations of
# neighbouring and of distant taps, both ways round; images of one row and of one column, and none in the middle
WINDOWS = {
    "3x3": Windows(2, (9, 8), (3, 3), (1, 1), (1, 1), 1),
    "5x4": Windows(2, (8, 11), (5, 4), (1, 1), (1, 1), ((4, 1), (0, 3))),
    "strided": Windows(2, (9, 12), (3, 4), (2, 3), (1, 1), ((1, 0), (2, 1))),
    "residues without taps": Windows(2, (9, 9), (1, 2), (2, 3), (1, 1), 0),
    "dilated": Windows(2, (9, 10), (3, 2), (1, 1), (2, 3), ((2, 2), (0, 1))),
    "strided and dilated": Windows(2, (11, 12), (3, 3), (2, 2), (1, 3), ((1, 2), (3, 3))),
    "far taps": Windows(2, (7, 6), (3, 3), (1, 1), (6, 5), ((6, 6), (5, 5))),
    "taps in padding only": Windows(2, (4, 3), (3, 3), (1, 1), (5, 4), 5),
    "cropped": Windows(2, (9, 9), (3, 3), (1, 1), (1, 1), "valid"),
    "one row": Windows(1, (37,), (3,), (1,), (1,), 1),
    "one row, dilated": Windows(1, (41,), (3,), (1,), (8,), ((8, 8),)),
    "one row, strided": Windows(1, (40,), (4,), (3,), (2,), ((5, 1),)),
    "one column": Windows(2, (31, 1), (5, 1), (1, 1), (1, 1), ((2, 2), (0, 0))),
    "3d": Windows(3, (4, 5, 6), (2, 3, 3), (1, 1, 1), (1, 1, 1), ((1, 0), (1, 1), (1, 1))),
    "3d, strided": Windows(3, (5, 6, 7), (3, 2, 3), (2, 1, 2), (1, 2, 1), ((1, 1), (0, 1), (2, 0))),
}
# depthwise, with a multiplier, the other way round; several channels a group
CHANNELS = [(5, 5, 5), (3, 6, 3), (6, 3, 3), (6, 4, 2), (2, 4, 2)]
ROWS: tuple[int | None, ...] = (None, 0, 1, 2, 5)  # of a band; 0 for columns, None for what is chosen


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets how work is cut: the bytes of a piece, the plane from which bands are taken, the rows of a band."""
    planned = (
        depthwise._plane_pieces, depthwise._pixel_pieces, grouped._planned, select.algorithm, select.contraction
    )  # fmt: skip

    def set_sizes(piece: int, plane: int, rows: int | None = None, lanes: int = 256, run: int = 4096) -> None:
        for module in (depthwise, grouped):
            monkeypatch.setattr(module, "MAX_BYTES", piece)
            monkeypatch.setattr(module, "MIN_BYTES", min(piece, 64))
        for name, value in (("LANES", lanes), ("RUN", run), ("MIN_DOT", 20)):
            monkeypatch.setattr(depthwise, name, value)
        monkeypatch.setattr(select, "MIN_PLANE", plane)
        if rows is not None:

            def band_rows(filters: int, channels: int, samplings: Any) -> int:
                return max(1, rows) if samplings[1].step > 1 else rows

            monkeypatch.setattr(select, "band_rows", band_rows)
        for plans in planned:
            plans.cache_clear()

    yield set_sizes
    for plans in planned:
        plans.cache_clear()


def results_of(layer: Layer) -> list[Any]:
    """The bits of the result and of the gradients."""
    case = convolution(layer)
    return bits((case.forward(**case.arguments), *case.backward(case.grad, **case.arguments)))


def check(case: Case) -> None:
    check_results(BACKENDS["numpy"], case)
    check_gradients(BACKENDS["numpy"], case)


# --- Against loops --------------------------------------------------------------------------------------------------


@pytest.mark.table(4)
@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("plane", [0, 1 << 30], ids=["large planes", "small planes"])
def test_is_the_loops(cut: Callable[..., None], windows: Windows, channels: tuple[int, int, int], plane: int) -> None:
    case = convolution(Layer(windows, 2, channels))
    for rows, piece in ((None, 1 << 20), (None, 1), (0, 700), (1, 700), (2, 1 << 20), (5, 700)):
        cut(piece, plane, rows)
        check(case)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "complex64", "int8", "uint16"])
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_every_dtype_and_order_is_the_loops(
    cut: Callable[..., None], dtype: str, channels: tuple[int, int, int], order: str
) -> None:
    for name, plane in product(("strided", "one row, dilated"), (0, 1 << 30)):
        cut(700, plane)
        check(convolution(Layer(WINDOWS[name], 3, channels, dtype, (order,) * 3)))


@pytest.mark.table(2)
@pytest.mark.parametrize(("lanes", "run"), [(1, 1), (2, 5), (3, 12), (100, 24)])
@pytest.mark.parametrize("channels", [(7, 7, 7), (3, 6, 3)], ids=str)
def test_runs_of_any_length_are_the_loops(
    cut: Callable[..., None], lanes: int, run: int, channels: tuple[int, int, int]
) -> None:
    for name, order in product(("3x3", "strided and dilated"), ("contiguous", "channels_last")):
        cut(2000, 1 << 30, lanes=lanes, run=run)
        check(convolution(Layer(WINDOWS[name], 2, channels, orders=(order,) * 3)))


@pytest.mark.thorough
def test_large_pieces_are_the_loops() -> None:
    """Nothing is set: what is chosen for planes and channels of a usual size."""
    for size, channels, stride in product((7, 13, 28), ((24, 24, 24), (24, 12, 6)), (1, 2)):
        check(convolution(Layer(Windows(2, (size, size + 1), (3, 3), (stride, stride), (1, 1), 1), 2, channels)))


# --- What is not finite ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("channels", [(3, 3, 3), (4, 4, 2)], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_within_its_windows(
    cut: Callable[..., None], rows: int | None, channels: tuple[int, int, int], value: float
) -> None:
    cut(1 << 20, 0, rows)
    layer = Layer(Windows(2, (12, 12), (3, 3), (1, 1), (1, 1), "valid"), 2, channels)
    x, w, b, grad = layer.arrays()
    w = np.abs(w) + 1
    x[1, 0, 5, 6] = value
    touched = reference.conv(np.isfinite(x) ^ True, np.ones_like(w), None, *layer.loops) > 0
    np.testing.assert_array_equal(np.isfinite(F.conv2d(x, w, b, **layer.options)), ~touched)
    grad[0, 0, 3, 4] = value
    touched = reference.conv_backward(np.isfinite(grad) ^ True, np.zeros_like(x), np.ones_like(w), *layer.loops)[0] > 0
    np.testing.assert_array_equal(np.isfinite(F.conv2d_input(x.shape, w, grad, **layer.options)), ~touched)


def test_large_values_are_no_reason_to_warn(cut: Callable[..., None]) -> None:
    """Their squares overflow where results are checked for what is not finite."""
    cut(1 << 20, 0)
    x, w = np.full((1, 2, 9, 9), 1e30, np.float32), np.ones((2, 1, 3, 3), np.float32)
    np.testing.assert_allclose(F.conv2d(x, w, groups=2), 9e30, rtol=1e-6)


# --- Threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [(24, 24, 24), (12, 24, 6)], ids=str)
@pytest.mark.parametrize("plane", [0, 1 << 30])
def test_bits_do_not_depend_on_threads(
    cut: Callable[..., None], order: str, channels: tuple[int, int, int], plane: int
) -> None:
    cut(3000, plane)
    before = threads.get_num_threads()
    for windows in (WINDOWS["3x3"], WINDOWS["strided"]):
        layer = Layer(windows, 3, channels, "float32", (order,) * 3)
        try:
            threads.set_num_threads(1)
            alone = results_of(layer)
            threads.set_num_threads(3)
            for _ in range(5):
                assert results_of(layer) == alone
        finally:
            threads.set_num_threads(before)


def test_work_is_cut_whatever_the_threads(cut: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    run = threads.run
    monkeypatch.setattr(threads, "run", lambda task, items: (counts.append(len(items)), run(task, items)))
    x, w = np.ones((2, 8, 20, 20), np.float32), np.ones((8, 1, 3, 3), np.float32)
    for plane in (0, 1 << 30):
        cut(4000, plane)
        F.conv2d(x, w, groups=8, padding=1)
        F.conv2d_weight(x, w.shape, x, groups=8, padding=1)
    assert sum(count > 3 for count in counts) == 4


# --- Choices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
def test_reads_are_what_taps_read(windows: Windows) -> None:
    pads = reference.resolve_padding(windows.padding, windows.sizes, windows.kernel, windows.stride, windows.dilation)
    sizes = reference.output_size(windows.sizes, windows.kernel, windows.stride, pads, windows.dilation)
    for size, k, s, d, (low, high), out in zip(
        windows.sizes, windows.kernel, windows.stride, windows.dilation, pads, sizes, strict=True
    ):
        axis = Axis(size, k, s, d, low, high, out)
        for sampling in (axis.forward, *(residue.sampling for residue in axis.backward)):
            for split, start in product((False, True), range(min(2, sampling.targets))):
                check_reads(sampling, slice(start, sampling.targets), split)


def check_reads(sampling: Sampling, targets: slice, split: bool) -> None:
    found = {}
    for part in depthwise.reads(sampling, targets, split):
        inside, source = part.inside(sampling.sources)
        positions = dict(zip(range(part.copied)[inside], range(sampling.sources)[source], strict=True))
        assert part.hop == 1 or not split
        for i, k in enumerate(range(len(sampling.offsets))[part.kernel]):
            for target in range(targets.stop - targets.start):
                copied = part.start + i * part.tap + target * part.hop
                assert 0 <= copied < part.copied
                found[k, target + targets.start] = positions.get(copied)
    for k, target in product(range(len(sampling.offsets)), range(targets.start, targets.stop)):
        position = target * sampling.step + sampling.offsets[k]
        assert found[k, target] == (position if 0 <= position < sampling.sources else None)


def test_bands_have_more_rows_where_groups_have_fewer_channels() -> None:
    same = Sampling(56, 56, 1, range(-1, 2))
    samplings = (Sampling(1, 1, 1, range(1)), same, same)
    rows = [select.band_rows(channels, channels, samplings) for channels in (1, 4, 16)]
    assert rows[0] > rows[1] > 0
    assert rows[2] in (0, 1)


def test_bands_are_for_near_taps_and_blas() -> None:
    near = Axis(16, 3, low=1, high=1, out=16).forward
    far = Axis(16, 3, dilation=7, low=7, high=7, out=16).forward
    one = Sampling(1, 1, 1, range(1))

    def chosen(height: Sampling, width: Sampling, dtype: str = "float32", channels: int = 1) -> str:
        weight = (4, channels, channels, 1, 3, 3)
        return select.contraction(1, weight, (one, height, width), dtype, False)

    assert chosen(near, near) == chosen(near, far) == chosen(near, near, "bfloat16") == "grouped"
    assert chosen(far, near) == chosen(near, near, "int32") == "depthwise"
    assert chosen(near, near, channels=16) == "grouped"
    assert "grouped" not in {chosen(near, near, channels=17), chosen(far, near, channels=4)}
