"""Python, memory and rounding of long signals: a call takes as few steps for 10 million positions as for a thousand."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample import examples

import gpucnn
import gpucnn.functional as F
from gpucnn.backends.cuda.pooling import tiles
from gpucnn.backends.cuda.pooling.pooling import _inputs_within, _outputs_within
from gpucnn.backends.numpy import memory, resampling
from gpucnn.geometry import Axis, TransposedWindow, Window, receptive_field
from gpucnn.geometry.caches import bytes_of, kept
from gpucnn.geometry.geometries import adaptive_geometry, pool_geometry

PACKAGE = str(Path(gpucnn.__file__).parent)
Array = np.ndarray[Any, Any]

# Lines of the package that a call executes, at most: for itself, and for each piece of 32 Ki elements, the smallest
# that an operation is cut into.
LINES, LINES_OF_PIECE = 4000, 100


@contextmanager
def one_thread() -> Iterator[None]:
    before = gpucnn.get_num_threads()
    gpucnn.set_num_threads(1)
    try:
        yield
    finally:
        gpucnn.set_num_threads(before)


def lines_of(call: Callable[[], Any], most: float) -> int:
    """Lines of the package that `call` executes; it is stopped where there are too many."""
    count = 0

    def line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        assert count <= most, f"more than {most} lines, now at {frame.f_code.co_qualname}, line {frame.f_lineno}"
        return line

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(PACKAGE) else None

    before = sys.gettrace()
    with one_thread():
        sys.settrace(enter)
        try:
            call()
        finally:
            sys.settrace(before)
    return count


def expect_few_lines(call: Callable[[], Any], elements: int) -> None:
    assert lines_of(call, LINES + LINES_OF_PIECE * (elements >> 15)) > 10


def signal(size: int, order: str = "row") -> Array:
    """Ones [1, 1, size], or an image of one column, or one with channels last."""
    x = np.ones(size, np.float32)
    return {
        "row": x.reshape(1, 1, size),
        "column": x.reshape(1, 1, size, 1),
        "volume": x.reshape(1, 1, 1, size, 1),
        "channels last": np.moveaxis(np.ones((1, size, 2), np.float32), -1, 1),
    }[order]


def of(name: str, x: Array, suffix: str = "") -> Any:
    return getattr(F, f"{name}{x.ndim - 2}d{suffix}")


def along(x: Array, length: int) -> tuple[int, ...]:
    """`length` along the longest axis of an image, 1 along the others."""
    return tuple(length if size == max(x.shape[2:]) else 1 for size in x.shape[2:])


sizes = st.sampled_from([1000, 4099, 30_000, 100_003, 10**6, 10**7])
orders = st.sampled_from(["row", "column", "volume", "channels last"])
shares = st.sampled_from([1, 2, 3, 7, 1000])  # of the axis that a window spans, or a stride goes on


@examples(30)
@given(sizes, orders, st.sampled_from(["avg_pool", "sum_pool", "max_pool"]), shares, st.data())
def test_windows_of_any_length(size: int, order: str, name: str, share: int, data: st.DataObject) -> None:
    x = signal(size, order)
    kernel = data.draw(st.sampled_from([1, 2, 3, 5, max(1, size // share)]))
    stride = data.draw(st.sampled_from([1, 2, kernel, max(1, size // 5)]))
    dilation = data.draw(st.sampled_from([1, 2, max(1, (size - 1) // max(1, kernel - 1))]))
    if dilation * (kernel - 1) >= size:
        dilation = 1
    padding = min(kernel // 2, 100_000)
    options = {
        "kernel_size": along(x, kernel),
        "stride": along(x, stride),
        "dilation": along(x, dilation),
        "padding": tuple(padding * (k > 1) for k in along(x, size)),
    }
    expect_few_lines(lambda: of(name, x)(x, **options), size)
    if size < 10**6:
        y = of(name, x)(x, **options)
        expect_few_lines(lambda: of(name, x, "_backward")(y, x, **options), size)


@examples(20)
@given(sizes, orders, shares, st.sampled_from(["avg", "max"]), st.integers(-1, 1))
def test_adaptive_windows_of_any_number(size: int, order: str, share: int, name: str, more: int) -> None:
    x = signal(size, order)
    out = along(x, max(1, size // share + more))
    expect_few_lines(lambda: of(f"adaptive_{name}_pool", x)(x, out), size)
    if size < 10**7:
        y = of(f"adaptive_{name}_pool", x)(x, out)
        expect_few_lines(lambda: of(f"adaptive_{name}_pool", x, "_backward")(y, x, out), size)


@examples(20)
@given(sizes, orders, shares, st.sampled_from(["nearest", "nearest-exact", "linear", "area"]), st.integers(-1, 1))
def test_samples_of_any_number(size: int, order: str, share: int, mode: str, more: int) -> None:
    x = signal(size, order)
    if mode == "linear":
        mode = ("linear", "bilinear", "trilinear")[x.ndim - 3]
    out = along(x, max(1, size // share + more))
    expect_few_lines(lambda: F.interpolate(x, out, mode=mode), 2 * size)
    if size < 10**7:
        y = F.interpolate(x, out, mode=mode)
        expect_few_lines(lambda: F.interpolate_backward(y, x, out, mode=mode), 2 * size)


@pytest.mark.parametrize("size", [10**4, 10**6])
@pytest.mark.parametrize("groups", [1, 4])
def test_steps_of_any_length_of_convolutions_and_columns(size: int, groups: int) -> None:
    x, w = np.ones((1, groups, size), np.float32), np.ones((groups, 1, 3), np.float32)
    steps: list[dict[str, Any]] = [
        {"stride": size // 4},
        {"dilation": size // 4},
        {"stride": 1000},
        {"dilation": 100},
        {},
    ]
    for options in steps:
        y, columns = F.conv1d(x, w, groups=groups, **options), F.im2col(x, (3,), **options)
        for elements, call in (
            (x.size, partial(F.conv1d, x, w, groups=groups, **options)),
            (3 * x.size, partial(F.conv1d_backward, y, x, w, groups=groups, **options)),
            (x.size, partial(F.im2col, x, (3,), **options)),
            (x.size, partial(F.col2im, columns, (size,), (3,), **options)),
        ):
            expect_few_lines(call, elements)


def test_receptive_fields_of_large_steps() -> None:
    layers: list[Any] = [
        3,
        Window(5, 3),
        TransposedWindow(2 * 10**6, 10**6, 7),
        3,
        TransposedWindow(4, 2, 1),
        Window(3, 1, 1),
    ]
    expect_few_lines(lambda: receptive_field(layers), 0)
    fields = {
        s: receptive_field([3, Window(5, 3), TransposedWindow(2 * s, s, 7), 3, TransposedWindow(4, 2, 1)])
        for s in (8, 64)
    }
    for steps, field in fields.items():
        outputs = [seen(o, steps) for o in range(4 * steps)]
        most = max(high - low + 1 for low, high in outputs)
        first = next(o for o, (low, high) in enumerate(outputs) if high - low + 1 == most)
        assert (field.size, field.start + first * field.stride) == (most, outputs[first][0])


def seen(o: int, steps: int) -> tuple[int, int]:
    """What output o sees of the input of the layers above, one by one."""
    inputs = {i for i in range(-9, o + 9) if 0 <= o + 1 - 2 * i < 4}
    inputs = {j + tap for j in inputs for tap in range(3)}
    inputs = {i for i in range(-99, o + 99) for j in inputs if 0 <= j + 7 - steps * i < 2 * steps}
    inputs = {3 * j + tap for j in inputs for tap in range(5)}
    return min(inputs), max(inputs) + 2


def test_unpooling_and_nails_of_long_signals() -> None:
    x = signal(10**6)
    y, indices = F.max_pool1d(x, 2, return_indices=True)
    expect_few_lines(lambda: F.max_unpool1d(y, indices, 2), x.size)
    expect_few_lines(lambda: F.max_unpool1d_backward(x, y, indices, 2), x.size)
    expect_few_lines(lambda: F.bed_of_nails1d(y, 2), x.size)
    expect_few_lines(lambda: F.lp_pool1d(x, 2, x.size), x.size)


@pytest.mark.parametrize("backward", [False, True])
def test_bands_of_long_signals_are_planned_in_few_lines_on_a_gpu(backward: bool) -> None:
    for axis in (Axis(10**7, 3, 2, out=5 * 10**6), *adaptive_geometry("op", (10**7,), 33_333).axes[2:]):
        span = _outputs_within if backward else _inputs_within
        read, written = (axis.out, axis.size) if backward else (axis.size, axis.out)

        def tile(axis: Any = axis, span: Any = span, read: int = read, written: int = written) -> tiles.Tile | None:
            return tiles.tile_of(
                (1, 1, read), (1, 1, written), lambda _, first, last: span(axis, first, last), (1, 1, 1), 1, 1, 4,
                lambda read, written: 4 * (read + written),
            )  # fmt: skip

        expect_few_lines(tile, 0)


# --- Results ------------------------------------------------------------------------------------------------------


@examples(60)
@given(
    size=st.integers(70, 700), kernel=st.integers(65, 300), stride=st.integers(1, 90), dilation=st.integers(1, 4),
    low=st.integers(0, 40), high=st.integers(0, 40), seed=st.integers(0, 9), turned=st.booleans(),
)  # fmt: skip
def test_long_windows_read_their_taps(
    size: int, kernel: int, stride: int, dilation: int, low: int, high: int, seed: int, turned: bool
) -> None:
    size = max(size, dilation * (kernel - 1) + 1)
    rng = np.random.default_rng(seed)
    x = rng.integers(-9, 9, (2, 3, size, 2) if turned else (2, 3, size)).astype(np.float64)
    options: dict[str, Any] = {
        "kernel_size": along(x, kernel), "stride": along(x, stride), "dilation": along(x, dilation),
        "padding": tuple((low, high) if side == size else (0, 0) for side in x.shape[2:]),
    }  # fmt: skip
    sums = of("sum_pool", x)(x, **options)
    (grad,) = of("sum_pool", x, "_backward")(sums, x, **options)
    y, indices = of("max_pool", x)(x, **options, return_indices=True)

    places = np.arange(sums.shape[2])[:, None] * stride + np.arange(kernel) * dilation - low
    inside = (places >= 0) & (places < size)
    rows = x.swapaxes(2, -1)  # [..., size]
    values = rows[..., places.clip(0, size - 1)]
    np.testing.assert_array_equal(sums.swapaxes(2, -1), np.where(inside, values, 0).sum(-1))
    values = np.where(inside, values, -np.inf)
    np.testing.assert_array_equal(y.swapaxes(2, -1), values.max(-1))
    first = np.take_along_axis(np.broadcast_to(places, values.shape), values.argmax(-1)[..., None], -1)[..., 0]
    columns = np.arange(x.shape[-1])[:, None] if turned else 0  # of a plane of `size` rows
    np.testing.assert_array_equal(indices.swapaxes(2, -1), first * (x.shape[-1] if turned else 1) + columns)
    reached = np.zeros((size, sums.shape[2]))
    np.add.at(reached, (places[inside], np.nonzero(inside)[0]), 1)
    np.testing.assert_array_equal(grad.swapaxes(2, -1), sums.swapaxes(2, -1) @ reached.T)


@pytest.mark.parametrize("content", ["NaN", "lowest", "equal"])
@pytest.mark.parametrize("order", ["row", "column", "channels last"])
def test_indices_of_long_windows_name_the_first_maximum_or_the_last_nan(content: str, order: str) -> None:
    x = signal(1000, order)
    x[...] = -np.inf if content == "lowest" else 1
    if content == "NaN":
        x[:, :, [100, 300, 499, 700]] = np.nan
    expected = {"NaN": [499, 700], "lowest": [0, 500], "equal": [0, 500]}[content]
    y, indices = of("max_pool", x)(x, along(x, 500), return_indices=True)
    assert indices[0, 0].reshape(-1).tolist() == expected
    assert np.isnan(y).all() == (content == "NaN")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("order", ["row", "column", "channels last"])
@pytest.mark.parametrize("out", [1, 7, 1000])
def test_averages_of_long_windows_round_as_little_as_sums_in_pairs(dtype: str, order: str, out: int) -> None:
    size = 300_007
    rng = np.random.default_rng(0)
    wide = rng.random(size) + 0.5
    x = signal(size, order).astype(dtype)
    x[...] = np.broadcast_to(wide.reshape(-1, *(1,) * (order == "column")), x.shape)
    exact = x[0, 0].reshape(-1).astype(np.float64)
    windows = [(o * size // out, -(-(o + 1) * size // out)) for o in range(out)]
    expected = [exact[start:stop].mean() for start, stop in windows]
    y = of("adaptive_avg_pool", x)(x, along(x, out))[0, 0].reshape(-1).astype(np.float64)
    np.testing.assert_allclose(y, expected, rtol=1e-6 if dtype == "float32" else 1e-3)


# --- Memory -------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_what_is_kept_of_new_sizes_is_bounded() -> None:
    """Each of 40 lengths would leave its tables of some hundred kilobytes."""
    x = np.zeros((1, 1, 30_100), np.float32)

    def calls(i: int) -> None:
        F.interpolate(x[..., : 30_000 + i], 20_000 + i, mode="linear")
        F.interpolate(x[..., : 30_000 + i], 25_000 + i)
        F.adaptive_avg_pool1d(x[..., : 30_000 + i], 9_999 + i)
        F.adaptive_max_pool1d(x[..., : 30_000 + i], 1, return_indices=True)
        F.avg_pool1d(x[..., : 30_000 + i], 3, 1, 1, count_include_pad=False)

    calls(0)
    gc.collect()
    tracemalloc.start()
    for i in range(1, 41):
        calls(i)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 2 << 20


@pytest.mark.parametrize("cache", [resampling._bands])
def test_the_tables_of_the_backend_are_kept_in_a_bounded_number_of_bytes(cache: Any) -> None:
    before = cache.cache_info()
    assert before.bytes <= cache._most_bytes <= 32 << 20


def test_kept_results_are_the_latest_within_the_bytes() -> None:
    made = []

    @kept(100_000)
    def zeros(size: int) -> Array:
        made.append(size)
        return np.zeros(size, np.uint8)

    for size in (9000, 9001, 9000, 9002):
        zeros(size)
    assert made == [9000, 9001, 9002]
    assert zeros.cache_info()[:2] == (1, 3)
    assert zeros(9000) is zeros(9000)
    for size in range(8000, 8012):
        zeros(size)
    assert zeros.cache_info().bytes <= 100_000
    made.clear()
    zeros(8011)
    zeros(9001)  # made long ago
    zeros(50_000)
    zeros(50_000)  # too large to be kept
    assert made == [9001, 50_000, 50_000]
    zeros.cache_clear()
    assert zeros.cache_info() == (0, 0, 0)


def test_bytes_of_what_is_kept() -> None:
    assert 8000 <= bytes_of(np.zeros(1000)) < 9000
    assert 8000 <= bytes_of((slice(0, 1), [np.zeros(1000)], {"a": 1})) < 10_000
    assert bytes_of(pool_geometry("op", (10**7,), 10**7)) < 4000


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("shape", [(1, 1, 8_000_001), (4, 8, 500, 500)])
@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 1), (200, 100), (None, None)])
def test_index_pooling_takes_less_memory_than_one_and_a_half_of_its_input(
    dtype: str, shape: tuple[int, ...], kernel: int | None, stride: int | None
) -> None:
    """Beside its results; where `kernel` is None, of one window."""
    x = np.ones(shape, dtype)
    x[..., ::3] = 2
    name = "max_pool" if kernel else "adaptive_max_pool"
    arguments = (kernel, stride) if kernel else (1,)
    with one_thread():
        results, extra = extra_memory(lambda: of(name, x)(x, *arguments, return_indices=True))
        assert extra < 1.5 * x.nbytes
        y, indices = results
        assert extra_memory(lambda: of(name, x, "_backward")(y, x, *arguments, indices=indices))[1] < 1.5 * x.nbytes
        more = indices.nbytes + y.nbytes  # which are made on the way
        assert extra_memory(lambda: of(name, x, "_backward")(y, x, *arguments))[1] < 1.5 * x.nbytes + more


def extra_memory(call: Callable[[], Any]) -> tuple[Any, int]:
    """The result of a call and the most bytes that it takes beside it."""
    memory._scratch.buffers.clear()
    tracemalloc.start()
    results = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return results, peak - sum(each.nbytes for each in results if each is not None)


@pytest.mark.parametrize("least", [0, -1])
@pytest.mark.parametrize("order", ["row", "channels last"])
def test_gradients_by_indices_in_parts_of_planes(monkeypatch: pytest.MonkeyPatch, order: str, least: int) -> None:
    rng = np.random.default_rng(0)
    x = signal(1001, order).astype(np.float16)
    grad = rng.integers(-4, 4, (*x.shape[:2], 500)).astype(np.float16)
    indices = rng.integers(least, 1001, grad.shape)
    (whole,) = F.max_pool1d_backward(grad, x, 2, indices=indices)
    monkeypatch.setattr("gpucnn.backends.numpy.max_pooling.MAX_SUMS", 100)
    monkeypatch.setattr("gpucnn.backends.numpy.max_pooling.MAX_WINDOWS", 64)
    (parted,) = F.max_pool1d_backward(grad, x, 2, indices=indices)
    np.testing.assert_array_equal(parted, whole)
    expected = np.zeros(x.shape)
    for c in range(x.shape[1]):
        inside = indices[0, c] >= 0
        np.add.at(expected[0, c], indices[0, c][inside], grad[0, c][inside])
    np.testing.assert_array_equal(whole, expected)
