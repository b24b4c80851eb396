"""Memory of convolutions: the order of results, the blocks of work, and the workspace held."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from convolution_cases import CHANNELS, KIB, LAYOUTS, MIB, Layer, bits, held, poisoned_memory
from strategies import ORDERS, Windows, arranged, numbers
from tolerances import assert_close, summed

import gpucnn.functional as F
from gpucnn.backends.numpy import memory


@pytest.fixture
def hold(backend: ArrayBackend, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many bytes of windows, or of planes, are held at once."""
    if backend.name != "numpy":
        pytest.skip("these blocks are the NumPy backend's")

    def set_limit(limit: int) -> None:
        monkeypatch.setattr(memory, "WORKSPACE_BYTES", limit)

    return set_limit


# --- Memory order -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2])
@pytest.mark.parametrize("channels", [(4, 6, 2), (4, 4, 4)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_results_have_the_memory_order_of_the_first_array(
    backend: ArrayBackend, rank: int, kernel: int, channels: tuple[int, int, int], dtype: str
) -> None:
    windows = Windows(rank, (3, 4, 5)[:rank], (kernel,) * rank, (kernel,) * rank, (1,) * rank, 1)
    for batch, order in product((2, None), ORDERS):
        layer = Layer(windows, batch, channels, dtype, (order, "contiguous", order))
        x, w, b, grad = layer.arrays()
        y = backend.run(layer.op(), x, w, b, **layer.options)
        grad_x, grad_w, _ = backend.run(layer.op("_backward"), grad, x, w, **layer.options)
        for image in (y, grad_x):
            last = np.moveaxis(image, -rank - 1, -1)
            assert (last if order == "channels_last" else image).flags.c_contiguous
        for result, given in product((y, grad_x, grad_w), (x, w, b, grad)):
            assert not np.shares_memory(result, given)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels", CHANNELS)
def test_any_mixture_of_memory_orders_gives_the_same_gradients(
    backend: ArrayBackend, kernel: int, channels: tuple[int, int, int]
) -> None:
    windows = Windows(2, (5, 6), (kernel, 2), (1, 2), (2, 1), ((1, 0), (0, 2)))
    plain = Layer(windows, 2, channels)
    x, w, b, grad = plain.arrays()
    expected = backend.run(F.conv2d_backward, grad, x, w, b, **plain.options)
    for orders in product(LAYOUTS, ORDERS, LAYOUTS):
        x, w, b, grad = Layer(windows, 2, channels, orders=orders).arrays()
        results = backend.run(F.conv2d_backward, grad, x, w, b, **plain.options)
        for actual, wanted in zip(results, expected, strict=True):
            assert_close(actual, wanted)


# --- Blocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("limit", [1, 700, 5000])
def test_convolution_cut_into_blocks_is_the_loops(
    backend: ArrayBackend,
    hold: Callable[[int], None],
    order: str,
    channels: tuple[int, int, int],
    dtype: str,
    limit: int,
) -> None:
    windows = Windows(2, (7, 8), (3, 2), (1, 2), (2, 1), ((3, 0), (1, 2)))
    layer = Layer(windows, 3, channels, dtype, (order, "contiguous", order))
    x, w, b, grad = layer.arrays()
    hold(limit)
    with poisoned_memory():
        y = backend.run(F.conv2d, x, w, b, **layer.options)
        results = backend.run(F.conv2d_backward, grad, x, w, b, **layer.options)
    assert_close(y, reference.conv(x, w, b, *layer.loops), summed(x.dtype))
    for actual, expected in zip(results, reference.conv_backward(grad, x, w, *layer.loops), strict=True):
        assert_close(actual, expected, summed(x.dtype))
    assert bits(backend.run(F.conv2d_backward, grad, x, w, b, **layer.options)) == bits(results)


@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("limit", [1, 150, 1000])
def test_blocks_of_a_3d_convolution_are_cut_along_any_axis(
    backend: ArrayBackend, hold: Callable[[int], None], order: str, groups: int, limit: int
) -> None:
    windows = Windows(3, (3, 4, 5), (2, 2, 3), (2, 1, 1), (1, 2, 1), ((0, 1), (1, 0), (1, 1)))
    layer = Layer(windows, 2, (2, 2, groups), "float64", (order, "contiguous", order))
    x, w, b, grad = layer.arrays()
    hold(limit)
    assert_close(backend.run(F.conv3d, x, w, b, **layer.options), reference.conv(x, w, b, *layer.loops))
    results = backend.run(F.conv3d_backward, grad, x, w, b, **layer.options)
    for actual, expected in zip(results, reference.conv_backward(grad, x, w, *layer.loops), strict=True):
        assert_close(actual, expected)


# --- How much is held ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize(
    ("channels", "kernel", "options"),
    [
        pytest.param((8, 8), 3, {}, id="dense"),
        pytest.param((8, 8), 3, {"groups": 2}, id="grouped"),
        pytest.param((8, 8), 3, {"groups": 8}, id="depthwise"),
        pytest.param((2, 32), 1, {"padding": 1}, id="pointwise, many filters"),
        pytest.param((32, 2), 1, {"padding": 1}, id="pointwise, many channels"),
        pytest.param((8, 8), 3, {"stride": 3, "dilation": 2}, id="strided"),
    ],
)
def test_workspace_is_bounded(
    hold: Callable[[int], None],
    rng: np.random.Generator,
    dtype: str,
    order: str,
    channels: tuple[int, int],
    kernel: int,
    options: dict[str, int],
) -> None:
    inputs, outputs = channels
    x = arranged(numbers(rng, (2, inputs, 48, 48), dtype), order)
    w = numbers(rng, (outputs, inputs // options.get("groups", 1), kernel, kernel), dtype)
    limit = 32 * KIB
    hold(limit)
    grad = arranged(F.conv2d(x, w, **options), order)
    # windows, their products, and the output's gradient beside them; filters, and some of Python's own
    most = 4 * limit + 4 * 4 * w.size + 32 * KIB
    assert held(F.conv2d, x, w, **options) < most
    assert held(F.conv2d_input, x.shape, w, grad, **options) < most
    assert held(F.conv2d_weight, x, w.shape, grad, **options) < most


@pytest.mark.thorough
@pytest.mark.parametrize("order", LAYOUTS)
def test_convolution_of_a_large_batch_holds_no_columns(order: str) -> None:
    """8 x 64 x 224 x 224 images in float32 have 882 MiB of columns; 256 MiB beside input and output are allowed."""
    x, w = arranged(np.ones((8, 64, 224, 224), np.float32), order), np.ones((64, 64, 3, 3), np.float32)
    assert held(F.conv2d, x, w, padding=1) < 256 * MIB
    assert held(F.conv2d_input, x.shape, w, x, padding=1) < 256 * MIB
    assert held(F.conv2d_weight, x, w.shape, x, padding=1) < 256 * MIB
