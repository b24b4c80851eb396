"""Depthwise and grouped convolution on the CPU: lanes of channels, cut small, against loops."""

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
from gpucnn.backends.numpy import columns, depthwise, select, threads

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


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets how work is cut: bytes and lanes of a piece, and the least plane; the fewest lanes and taps are one."""

    def forget() -> None:
        """Forget what was chosen and how work was cut, by the sizes of that time."""
        kept = depthwise._takes_planes, depthwise._planes, depthwise._lanes
        for cache in (select.algorithm, select.contraction, *kept, columns.pieces):
            cache.cache_clear()

    def set_sizes(piece: int = 1 << 20, lanes: int = 640, plane: int = 1 << 30) -> None:
        monkeypatch.setattr(depthwise, "MIN_PLANE", plane)
        monkeypatch.setattr(depthwise, "PIECE_BYTES", piece)
        monkeypatch.setattr(depthwise, "PLANE_PIECE_BYTES", piece)
        monkeypatch.setattr(columns, "PIECE_BYTES", piece)
        monkeypatch.setattr(depthwise, "LANES", lanes)
        monkeypatch.setattr(select, "MIN_LANES", 1)
        monkeypatch.setattr(select, "MIN_TAPS", 1)
        forget()

    yield set_sizes
    forget()


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
def test_is_the_loops(cut: Callable[..., None], windows: Windows, channels: tuple[int, int, int]) -> None:
    case = convolution(Layer(windows, 2, channels))
    for piece, plane in product((1 << 20, 1, 700), (1, 1 << 30)):
        cut(piece, plane=plane)
        check(case)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "complex64", "int8", "uint16"])
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_every_dtype_and_order_is_the_loops(
    cut: Callable[..., None], dtype: str, channels: tuple[int, int, int], order: str
) -> None:
    for name, plane in product(("strided", "one row, dilated"), (1, 1 << 30)):
        cut(piece=700, plane=plane)
        check(convolution(Layer(WINDOWS[name], 3, channels, dtype, (order,) * 3)))


@pytest.mark.table(2)
@pytest.mark.parametrize("lanes", [1, 2, 3, 14, 100])
def test_any_number_of_lanes_is_the_loops(cut: Callable[..., None], lanes: int) -> None:
    for name, order in product(("3x3", "strided and dilated"), ("contiguous", "channels_last")):
        cut(piece=2000, lanes=lanes)
        check(convolution(Layer(WINDOWS[name], 2, (7, 7, 7), orders=(order,) * 3)))


@pytest.mark.thorough
def test_large_pieces_are_the_loops() -> None:
    """Nothing is set: what is chosen for planes and channels of a usual size."""
    for size, channels, stride in product((7, 13, 28), ((24, 24, 24), (24, 12, 6)), (1, 2)):
        check(convolution(Layer(Windows(2, (size, size + 1), (3, 3), (stride, stride), (1, 1), 1), 2, channels)))


# --- What is not finite ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1 << 20, 700])
@pytest.mark.parametrize("plane", [1, 1 << 30])
@pytest.mark.parametrize("channels", [(3, 3, 3), (4, 4, 2)], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_within_its_windows(
    cut: Callable[..., None], piece: int, plane: int, channels: tuple[int, int, int], value: float
) -> None:
    cut(piece, plane=plane)
    layer = Layer(Windows(2, (12, 12), (3, 3), (1, 1), (1, 1), "valid"), 2, channels)
    x, w, b, grad = layer.arrays()
    w = np.abs(w) + 1
    x[1, 0, 5, 6] = value
    touched = reference.conv(np.isfinite(x) ^ True, np.ones_like(w), None, *layer.loops) > 0
    np.testing.assert_array_equal(np.isfinite(F.conv2d(x, w, b, **layer.options)), ~touched)
    grad[0, 0, 3, 4] = value
    touched = reference.conv_backward(np.isfinite(grad) ^ True, np.zeros_like(x), np.ones_like(w), *layer.loops)[0] > 0
    np.testing.assert_array_equal(np.isfinite(F.conv2d_input(x.shape, w, grad, **layer.options)), ~touched)


def test_large_values_are_no_reason_to_warn() -> None:
    x, w = np.full((1, 2, 9, 9), 1e30, np.float32), np.ones((2, 1, 3, 3), np.float32)
    np.testing.assert_allclose(F.conv2d(x, w, groups=2), 9e30, rtol=1e-6)


# --- Threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [(24, 24, 24), (12, 24, 6)], ids=str)
@pytest.mark.parametrize("plane", [1, 1 << 30])
def test_bits_do_not_depend_on_threads(
    cut: Callable[..., None], order: str, channels: tuple[int, int, int], plane: int
) -> None:
    cut(piece=3000, plane=plane)
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
    for plane in (1, 1 << 30):
        cut(piece=4000, plane=plane)
        F.conv2d(x, w, groups=8, padding=1)
        F.conv2d_weight(x, w.shape, x, groups=8, padding=1)
    assert sum(count > 3 for count in counts) == 4
