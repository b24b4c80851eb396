"""Memory of convolutions on NumPy: the blocks of work, and the workspace held."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from array_backends import ArrayBackend
from convolution_cases import KIB, LAYOUTS, MIB, held
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from properties import check_gradients, check_results
from sample import examples
from strategies import arranged, numbers

import gpucnn.functional as F
from gpucnn.backends.numpy import columns, depthwise, memory


@pytest.fixture
def hold(backend: ArrayBackend, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many bytes of windows, or of planes, are held at once."""
    if backend.name != "numpy":
        pytest.skip("these blocks are the NumPy backend's")

    def set_limit(limit: int) -> None:
        monkeypatch.setattr(memory, "WORKSPACE_BYTES", limit)
        columns.pieces.cache_clear()  # they were cut by the limit of that time
        depthwise._takes_planes.cache_clear()
        depthwise._planes.cache_clear()
        depthwise._lanes.cache_clear()

    return set_limit


# --- Blocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["conv", "conv_transpose", "locally_connected"])
@examples(150)
@given(data=st.data(), limit=st.sampled_from([1, 150, 300, 700, 2000, 5000]))
def test_work_cut_into_blocks_is_that_of_the_oracle(
    backend: ArrayBackend, hold: Callable[[int], None], family: str, data: st.DataObject, limit: int
) -> None:
    hold(limit)
    case = data.draw(FAMILIES[family].cases())
    check_results(backend, case)
    check_gradients(backend, case)


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


@pytest.mark.parametrize("shape", [(1, 2, 16, 3), (16, 1, 2, 3), (2, 16, 1, 3), (16, 1, 32, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_workspace_of_locally_connected_layers_is_bounded(
    hold: Callable[[int], None], rng: np.random.Generator, shape: tuple[int, int, int, int], dtype: str
) -> None:
    batch, inputs, outputs, kernel = shape
    limit, size = 64 * KIB, 33 - kernel
    hold(limit)
    x, grad = numbers(rng, (batch, inputs, 32, 32), dtype), numbers(rng, (batch, outputs, size, size), dtype)
    w = numbers(rng, (outputs, size, size, inputs, kernel, kernel), dtype)
    wide = 4 * x.size  # the gradient of the image is added up in float32
    assert held(F.locally_connected2d, x, w) < 4 * limit
    assert held(lambda: F.locally_connected2d_backward(grad, x, w, needs=(True, False, False))[0]) < 5 * limit + wide
    assert held(lambda: F.locally_connected2d_backward(grad, x, w, needs=(False, True, False))[1]) < 5 * limit


@pytest.mark.thorough
@pytest.mark.parametrize("order", LAYOUTS)
def test_convolution_of_a_large_batch_holds_no_columns(order: str) -> None:
    """8 x 64 x 224 x 224 images in float32 have 882 MiB of columns; 256 MiB beside input and output are allowed."""
    x, w = arranged(np.ones((8, 64, 224, 224), np.float32), order), np.ones((64, 64, 3, 3), np.float32)
    assert held(F.conv2d, x, w, padding=1) < 256 * MIB
    assert held(F.conv2d_input, x.shape, w, x, padding=1) < 256 * MIB
    assert held(F.conv2d_weight, x, w.shape, x, padding=1) < 256 * MIB
