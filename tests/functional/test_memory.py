"""Memory order, blocks and merged axes, which the NumPy backend's families share."""

from __future__ import annotations

import threading
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample import examples

from gpucnn.backends.numpy import memory

EXTENTS = st.lists(st.integers(0, 7), min_size=1, max_size=5)


def channels_last(*shape: int) -> np.ndarray[Any, Any]:
    """An array [N, C, *spatial] of counting numbers with its channels innermost."""
    n, c, *space = shape
    return np.moveaxis(np.arange(float(prod(shape))).reshape(n, *space, c), -1, 1)


# --- Blocks -------------------------------------------------------------------------------------------------------


@examples(300)
@given(extents=EXTENTS, most=st.integers(-3, 60))
def test_blocks_cover_each_item_exactly_once_in_order_and_within_the_limit(extents: list[int], most: int) -> None:
    visits = np.zeros(extents, int)
    numbers = np.arange(prod(extents)).reshape(extents)
    walked: list[int] = []
    for block in memory.blocks(extents, most):
        assert all(slice_.step is None and 0 <= slice_.start <= slice_.stop for slice_ in block)
        assert visits[block].size <= max(1, most)
        visits[block] += 1
        walked += numbers[block].reshape(-1).tolist()
    assert (visits == 1).all()
    assert walked == list(range(prod(extents)))


@examples(300)
@given(extents=st.lists(st.integers(1, 7), min_size=1, max_size=5), most=st.integers(1, 60))
def test_blocks_are_about_equal_and_none_is_wasted(extents: list[int], most: int) -> None:
    """The first is the largest, and no two neighbours along the cut axis would fit as one."""
    sizes = [prod(s.stop - s.start for s in block) for block in memory.blocks(extents, most)]
    assert sizes[0] == max(sizes)
    cut = next(axis for axis in range(len(extents)) if prod(extents[axis + 1 :]) <= max(1, most))
    inner = prod(extents[cut + 1 :])
    parts = -(-extents[cut] // (max(1, most) // inner))
    assert len(sizes) == prod(extents[:cut]) * parts
    assert max(sizes) == -(-extents[cut] // parts) * inner


@pytest.mark.parametrize(
    ("extents", "most", "expected"),
    [
        ((4,), 4, [[(0, 4)]]),
        ((4,), 3, [[(0, 2)], [(2, 4)]]),
        ((5,), 2, [[(0, 2)], [(2, 4)], [(4, 5)]]),
        ((2, 3), 6, [[(0, 2), (0, 3)]]),
        ((2, 3), 5, [[(0, 1), (0, 3)], [(1, 2), (0, 3)]]),
        ((2, 3), 2, [[(i, i + 1), cut] for i in range(2) for cut in ((0, 2), (2, 3))]),
        ((1, 2), 0, [[(0, 1), (0, 1)], [(0, 1), (1, 2)]]),
    ],
)
def test_blocks_by_hand(extents: tuple[int, ...], most: int, expected: list[list[tuple[int, int]]]) -> None:
    assert [[(s.start, s.stop) for s in block] for block in memory.blocks(extents, most)] == expected


def test_nothing_has_one_empty_block_or_none() -> None:
    for extents in ((0,), (0, 3), (3, 0), (2, 0, 3)):
        for block in memory.blocks(extents, 4):
            assert np.zeros(extents)[block].size == 0


# --- Memory order -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (channels_last(2, 3, 4, 5), True),
        (channels_last(2, 3, 4), True),
        (channels_last(2, 3, 4, 5, 6), True),
        (channels_last(1, 3, 4, 5), True),
        (channels_last(2, 3, 1, 5), True),
        (channels_last(2, 3, 4, 5)[:, :, ::2, ::-1], True),
        (channels_last(2, 3, 4, 5)[::-1], True),
        (channels_last(2, 4, 4, 5)[:, :3], True),  # pixels with a gap between them
        (channels_last(2, 3, 4, 5).astype(np.float16), True),
        (np.zeros((2, 3, 4, 5)), False),
        (channels_last(2, 1, 4, 5), False),  # one channel is contiguous either way
        (channels_last(2, 3, 1, 1), False),
        (channels_last(2, 4, 4, 5)[:, ::2], False),
        (channels_last(2, 3, 4, 5)[:, ::-1], False),
        (np.zeros((2, 3)), False),
        (np.zeros(3), False),
        (np.zeros((2, 3, 4)).transpose(2, 1, 0), False),  # channels neither innermost nor outermost
        (np.broadcast_to(np.zeros((1, 3, 1, 1)), (2, 3, 4, 5)), False),
        (np.lib.stride_tricks.as_strided(np.zeros(20), (1, 3, 4, 2), (8, 8, 8, 8)), False),  # pixels that overlap
    ],
)
def test_which_arrays_are_channels_last(array: np.ndarray[Any, Any], expected: bool) -> None:
    assert memory.is_channels_last(array) is expected


@pytest.mark.parametrize("like", [channels_last(2, 3, 4, 5), np.zeros((2, 3, 4, 5))])
def test_new_arrays_have_the_order_of_another(like: np.ndarray[Any, Any]) -> None:
    array = memory.empty((3, 2, 6, 7), np.float32, like=like)
    assert array.shape == (3, 2, 6, 7)
    assert array.dtype == np.float32
    assert memory.is_channels_last(array) is memory.is_channels_last(like)


# --- Merged axes --------------------------------------------------------------------------------------------------


@st.composite
def views(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Views of up to four axes: in any order, cut, stepped over, turned round or broadcast."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    array = np.arange(float(prod(shape))).reshape(shape)
    array = array.transpose(draw(st.permutations(range(len(shape)))))
    cuts = [slice(None), slice(-3, None), slice(None, None, 2), slice(None, None, -1), slice(0, 1)]
    array = array[tuple(draw(st.sampled_from(cuts)) for _ in shape)]
    return np.broadcast_to(array, (2, *array.shape)) if draw(st.booleans()) else array


@examples(400)
@given(array=views(), data=st.data())
def test_merged_is_a_view_of_the_same_items_or_none(array: np.ndarray[Any, Any], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, array.ndim - 1))
    shape = (*array.shape[:first], prod(array.shape[first:]))
    merged = memory.merged(array, first)
    rows = memory.merged_rows(array, first)
    if merged is None:
        assert rows is None
        assert not np.shares_memory(array.reshape(shape), array)  # NumPy has to copy it too
        return
    assert merged.shape == shape
    np.testing.assert_array_equal(merged, array.reshape(shape))
    assert np.shares_memory(merged, array)
    contiguous = merged.strides[-1] == array.itemsize
    assert (rows is not None) == contiguous
    if rows is not None:
        np.testing.assert_array_equal(rows, merged)


def test_writing_to_merged_axes_writes_to_the_array() -> None:
    array = np.zeros((2, 3, 4))
    merged = memory.merged(array, 1)
    assert merged is not None
    merged[1, 5] = 7
    assert array[1, 1, 1] == 7


def test_axes_that_merge_without_being_contiguous() -> None:
    """A channel of a channels-last image merges to one axis with a step, which BLAS does not take in place."""
    image = channels_last(2, 3, 4, 5)
    assert memory.merged(image, 2) is not None
    assert memory.merged_rows(image, 2) is None
    assert memory.merged_rows(np.zeros((2, 3, 4, 5)), 2) is not None
    assert memory.merged(np.zeros((2, 3, 4, 6))[..., :5], 2) is None


# --- Scratch ------------------------------------------------------------------------------------------------------


def test_scratch_is_a_threads_own_and_kept() -> None:
    first = memory.scratch("test", (3, 5), np.float32)
    assert (first.shape, first.dtype, first.ctypes.data % 64) == ((3, 5), np.float32, 0)
    assert first.flags.c_contiguous
    assert first.flags.writeable
    again = memory.scratch("test", (2, 3), np.complex64)
    assert again.ctypes.data == first.ctypes.data
    assert not np.shares_memory(first, memory.scratch("another", (3, 5), np.float32))
    others: list[Any] = []
    thread = threading.Thread(target=lambda: others.append(memory.scratch("test", (3, 5), np.float32)))
    thread.start()
    thread.join()
    assert not np.shares_memory(first, others[0])
    for shape in ((), (0, 4), (1000,)):
        assert memory.scratch("test", shape, np.float64).shape == shape


def test_scratch_that_is_large_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SCRATCH_BYTES", 1000)
    memory.scratch("test of a large one", (125,), np.float64)
    kept = memory._scratch.buffers["test of a large one"]
    memory.scratch("test of a large one", (126,), np.float64)
    assert memory._scratch.buffers["test of a large one"] is kept
