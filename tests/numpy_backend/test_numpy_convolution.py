"""The NumPy backend's algorithms of convolution, each by itself: beside loops, in pieces, on threads, near infinity."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import pytest
import reference
import threadpoolctl
from convolution_cases import KIB, LAYOUTS, Array, Layer, bits, frozen, held, layers, poisoned_memory
from hypothesis import given
from hypothesis import strategies as st
from sample import examples
from strategies import COMPLEX, FLOATS, INTEGERS, Windows, arranged, numbers
from tolerances import assert_close, summed

import gpucnn
import gpucnn.functional as F
from gpucnn.backends.numpy import columns, depthwise, direct, folding, memory, select, threads
from gpucnn.geometry import Axis

ALGORITHMS = ("direct", "im2col", "fold")
CHANNELS = [(1, 1, 1), (3, 4, 1), (5, 2, 1), (4, 6, 2), (6, 4, 2), (9, 6, 3), (4, 4, 4), (3, 6, 3)]


@contextmanager
def held_to(name: str) -> Iterator[None]:
    """Within the block convolutions take this algorithm: "fold" is "im2col" with a fold for each backward-input."""
    with pytest.MonkeyPatch.context() as patch, gpucnn.algorithm("im2col" if name == "fold" else name):
        if name in ("fold", "im2col"):
            patch.setattr(select, "_folds", lambda *_: name == "fold")
        select.algorithm.cache_clear()  # it remembers what folded
        yield
    select.algorithm.cache_clear()


def forget_pieces() -> None:
    """Forget how work was cut, by the constants of that time."""
    columns.pieces.cache_clear()
    depthwise._takes_planes.cache_clear()
    depthwise._planes.cache_clear()
    depthwise._lanes.cache_clear()


@contextmanager
def pieces(kind: str) -> Iterator[None]:
    """Within the block work is cut as usual, into "small" pieces, or into the "least" there are."""
    scale = {"usual": None, "small": 16, "least": 1}[kind]
    with pytest.MonkeyPatch.context() as patch:
        if scale is not None:
            patch.setattr(columns, "PIECE_BYTES", 64 * scale)
            patch.setattr(columns, "MIN_POSITIONS", scale)
            patch.setattr(columns, "WORTH_SHARING", 100 * scale)
            patch.setattr(columns, "MIN_ROWS", 1)
        forget_pieces()
        yield
    forget_pieces()


@pytest.fixture(autouse=True)
def usual_threads() -> Iterator[None]:
    before = gpucnn.get_num_threads()
    yield
    gpucnn.set_num_threads(before)


@contextmanager
def dirty() -> Iterator[None]:
    """One thread, whose buffers are new and full of numbers that show."""
    gpucnn.set_num_threads(1)
    memory._scratch.buffers.clear()
    with poisoned_memory():
        yield
    memory._scratch.buffers.clear()


def results(layer: Layer, backward: bool = True) -> list[Array]:
    """Output and, as asked, the gradients by input and weight."""
    x, w, b, grad = layer.arrays()
    frozen(x, w, b, grad)
    y = layer.op()(x, w, b, **layer.options)
    if not backward:
        return [y]
    gradients = layer.op("_backward")(grad, x, w, b, **layer.options, needs=(True, True, False))
    return [y, *(gradient for gradient in gradients if gradient is not None)]


def assert_is_the_loops(layer: Layer) -> None:
    x, w, b, grad = layer.arrays()
    y, grad_x, *of_weight = results(layer)
    batched, grads = layer.with_batch(x), layer.with_batch(grad)
    assert_close(y, layer.without(reference.conv(batched, w, b, *layer.loops)), summed(x.dtype))
    expected = reference.conv_backward(grads, batched, w, *layer.loops)
    assert_close(grad_x, layer.without(expected[0]), summed(x.dtype))
    for grad_w in of_weight:
        assert_close(grad_w, expected[1], summed(x.dtype))


# --- Against the loops --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["direct", "im2col", "fold"])
@examples(60)
@given(
    layer=layers(FLOATS + COMPLEX + INTEGERS, most=1000, channels=CHANNELS),
    size=st.sampled_from(["usual", "small", "least"]),
)
def test_each_algorithm_is_the_loops(name: str, layer: Layer, size: str) -> None:
    with held_to(name), pieces(size), dirty():
        assert_is_the_loops(layer)


@pytest.mark.table(2)
@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("order", LAYOUTS)
def test_layers_with_many_channels_are_the_loops(name: str, order: str) -> None:
    """Enough of them for filters to be cut, and transformed or packed by several threads."""
    gpucnn.set_num_threads(2)
    layer = Layer(
        Windows(2, (13, 17), (3, 3), (1, 1), (1, 1), 1), 1, (130, 136, 1), "float32", (order, "contiguous", order)
    )
    with held_to(name):
        assert_is_the_loops(layer)
    with held_to(name), pieces("usual"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "WORTH_SHARING", 1 << 18)
        depth, height, width = (Axis(size, out=size).forward for size in (1, 13, 17))
        assert len({piece.filters.start for piece in columns.pieces(1, (1, 136, 130), (depth, height, width), 4)}) == 2
        assert_is_the_loops(layer)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_groups_of_many_channels_and_few_positions_are_the_loops(name: str) -> None:
    """Their positions are one block, and worth several pieces of each group's channels."""
    with pytest.MonkeyPatch.context() as patch, held_to(name):
        patch.setattr(columns, "WORTH_SHARING", 1 << 14)
        forget_pieces()
        assert_is_the_loops(Layer(Windows(2, (4, 5), (3, 3), (1, 1), (1, 1), 1), 2, (48, 30, 3), "float32"))
    forget_pieces()


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("order", LAYOUTS)
def test_views_of_filters_and_of_images_give_what_copies_give(rng: np.random.Generator, name: str, order: str) -> None:
    """Filters whose channels, taps or filters are innermost, that run backwards, and one number for many."""
    x, grad = (arranged(numbers(rng, (2, c, 6, 7), "float32"), order) for c in (6, 4))
    plain = numbers(rng, (4, 3, 3, 3), "float32")
    filters = [
        plain,
        np.moveaxis(np.ascontiguousarray(np.moveaxis(plain, 1, -1)), -1, 1),
        np.moveaxis(np.ascontiguousarray(np.moveaxis(plain, 0, -1)), -1, 0),
        plain[::-1, ::-1, ::-1, ::-1],
        np.broadcast_to(np.float32(0.5), plain.shape),
        np.repeat(plain, 2, axis=1)[:, ::2],
    ]
    loops = ((1, 1), ((1, 1), (1, 1)), (1, 1), 2)
    for w in filters:
        with held_to(name), pieces("small"):
            assert_close(F.conv2d(x, w, padding=1, groups=2), reference.conv(x, w, None, *loops), "float32")
            grad_x = F.conv2d_input(x.shape, w, grad, padding=1, groups=2)
        assert_close(grad_x, reference.conv_backward_input(grad, w, (6, 7), *loops), "float32")
    for image in (np.broadcast_to(x[:1], x.shape), np.broadcast_to(x[..., :1], x.shape), x * 0):
        with held_to(name):
            y = F.conv2d(image, plain, padding=1, groups=2)
        assert_close(y, reference.conv(image, plain, None, *loops), "float32")


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("size", ["usual", "least"])
def test_a_transposed_convolution_adds_its_bias_once(
    rng: np.random.Generator, name: str, order: str, groups: int, size: str
) -> None:
    x = arranged(numbers(rng, (2, 4, 5, 6), "float32"), order)
    w, b = numbers(rng, (4, 6 // groups, 3, 3), "float32"), numbers(rng, (6,), "float32")
    for stride in (1, 2, 4):
        with held_to(name), pieces(size), dirty():
            y = F.conv_transpose2d(x, w, b, stride, 1, 0, groups)
        loops = ((stride, stride), ((1, 1), (1, 1)), (0, 0), (1, 1), groups)
        assert_close(y, reference.conv_transpose(x, w, b, *loops), "float32")


# --- Which one runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_algorithm_of_the_block_is_the_one_that_runs(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, name: str, groups: int
) -> None:
    """Whatever the groups: depthwise and grouped layers have algorithms of their own only where none is asked for."""
    ran: list[str] = []

    def noted(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: ran.append(what) or function(*arguments)

    for what, module, function in (
        ("direct", direct, "contract"),
        ("im2col", columns, "contract"),
        ("fold", folding, "fold_products"),
        ("direct weight", direct, "contract_weight"),
        ("im2col weight", columns, "contract_weight"),
    ):
        monkeypatch.setattr(module, function, noted(what, getattr(module, function)))
    x, w, grad = (numbers(rng, shape, "float32") for shape in ((1, 4, 8, 8), (4, 4 // groups, 1, 3), (1, 4, 8, 8)))
    options: dict[str, Any] = {"padding": (0, 1), "groups": groups}
    forward = "im2col" if name == "fold" else name
    with held_to(name):
        F.conv2d(x, w, **options)
        F.conv2d_input(x.shape, w, grad, **options)
        F.conv2d_weight(x, w.shape, grad, **options)
        weight = ["direct weight"] + 3 * ["im2col weight"] if name == "direct" else ["im2col weight"]
        assert ran == [forward, name, *weight]  # tap by tap the gradient of the weight is a product each


@pytest.mark.parametrize("name", ["direct"])
def test_no_other_algorithm_folds(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, name: str) -> None:
    monkeypatch.setattr(select, "_folds", lambda *_: True)
    monkeypatch.setattr(folding, "fold_products", lambda *_: pytest.fail("it folds"))
    with held_to(name):
        F.conv2d_input((1, 3, 8, 8), numbers(rng, (4, 3, 3, 3), "float32"), np.ones((1, 4, 6, 6), np.float32))


# --- Pieces and threads -------------------------------------------------------------------------------------------

THREADED = [
    Layer(Windows(2, (13, 15), (3, 3), (1, 1), (1, 1), ((1, 2), (2, 0))), 3, (8, 12, 1), "float32"),
    Layer(Windows(2, (13, 15), (3, 3), (1, 1), (1, 1), 1), 3, (34, 36, 2), "float32", ("channels_last",) * 3),
    Layer(Windows(2, (14, 12), (3, 3), (1, 1), (2, 3), 3), 2, (6, 7, 1), "float16", ("contiguous",) * 3),
    Layer(Windows(3, (5, 6, 7), (2, 3, 3), (1, 1, 1), (1, 1, 2), 2), 2, (4, 6, 1), "float32"),
    Layer(Windows(1, (70,), (3,), (1,), (1,), 1), 4, (6, 8, 1), "float32", ("reversed",) * 3),
    Layer(Windows(2, (17, 16), (3, 3), (1, 1), (1, 1), 1), 1, (96, 144, 1), "float32"),  # BLAS would take several
]


def pieces_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the lists that `threads.run` is given from here on."""
    counts: list[int] = []
    run = threads.run
    monkeypatch.setattr(threads, "run", lambda task, items: counts.append(len(items)) or run(task, items))
    return counts


@pytest.mark.table(2)
@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("layer", THREADED, ids=str)
@pytest.mark.parametrize("size", ["usual", "small"])
def test_any_number_of_threads_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, name: str, layer: Layer, size: str
) -> None:
    monkeypatch.setattr(threads, "_pool", threads._Pool())
    counts = pieces_run(monkeypatch)
    with held_to(name), pieces(size):
        gpucnn.set_num_threads(1)
        expected = results(layer)
        if size == "small":
            assert sum(count >= 2 for count in counts) >= len(expected), (
                "output and gradients are to be cut into pieces"
            )
        for count, blas in ((1, 2), (2, 1), (2, 2), (3, 2)):
            gpucnn.set_num_threads(count)
            with threadpoolctl.threadpool_limits(blas, user_api="blas"):
                assert [bits(array) for array in results(layer)] == [bits(array) for array in expected]


@pytest.mark.thorough
@pytest.mark.parametrize("size", ["small", "least"])
@pytest.mark.parametrize(("channels", "groups"), [((8, 5), 1), ((8, 6), 2)])
def test_folds_cut_along_channels_depth_and_height_are_the_loops(
    size: str, channels: tuple[int, int], groups: int
) -> None:
    for stride, dilation in product((1, 2, 3), (1, 2)):
        windows = Windows(3, (7, 9, 6), (2, 3, 2), (stride,) * 3, (dilation,) * 3, ((1, 2), (3, 0), (0, 1)))
        with held_to("fold"), pieces(size), dirty():
            assert_is_the_loops(Layer(windows, 2, (*channels, groups), "float64"))


@pytest.mark.parametrize("name", ["direct", "im2col"])
@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize("padding", [((0, 15),), ((15, 0),), ((9, 20),)])
@pytest.mark.parametrize("limit", [1, 96, 200, 1500])
def test_pieces_that_lie_wholly_in_the_padding_are_the_bias(
    monkeypatch: pytest.MonkeyPatch, name: str, order: str, padding: Any, limit: int
) -> None:
    """Two pixels with a wide rim: later pieces begin past the image, in buffers that earlier ones have filled."""
    monkeypatch.setattr(memory, "WORKSPACE_BYTES", limit)
    for kernel in ((3,), (1, 3), (3, 3)):
        windows = Windows(len(kernel), (2,) * len(kernel), kernel, (1,) * len(kernel), (1,) * len(kernel), 0)
        windows = Windows(*(*vars(windows).values(),)[:5], padding * len(kernel))
        with held_to(name), pieces("usual"), dirty():
            assert_is_the_loops(Layer(windows, 2, (2, 3, 1), "float32", (order, "contiguous", order)))


# --- What is not finite -------------------------------------------------------------------------------------------


def warned(call: Callable[[], Array]) -> tuple[Array, set[str]]:
    """What a call returns, and of what it warns."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    return result, {str(warning.message) for warning in caught}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_result_past_the_largest_half_is_infinite_and_warned_of(name: str) -> None:
    x, w = np.full((1, 4, 6, 6), 100, np.float16), np.full((4, 4, 3, 3), 100, np.float16)
    for call in (lambda: F.conv2d(x, w, padding=1), lambda: F.conv2d_input(x.shape, w, x, padding=1)):
        with held_to(name):
            result, warning = warned(call)
        assert np.all(np.isposinf(result))
        assert warning == {"overflow encountered in cast"}


# --- How exact ----------------------------------------------------------------------------------------------------


def product_of_columns(x: Array, w: Array) -> Array:
    """y [N, OC, OH, OW] of 3 x 3 filters with a rim of one, as one product of matrices in x's dtype."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))  # [N, C, OH, OW, 3, 3]
    read = np.ascontiguousarray(windows.transpose(1, 4, 5, 0, 2, 3)).reshape(x.shape[1] * 9, -1)
    y = w.reshape(len(w), -1) @ read
    return y.reshape(len(w), x.shape[0], *x.shape[2:]).swapaxes(0, 1)


def errors(actual: Array, exact: Array) -> tuple[float, float]:
    """Largest and root of the mean square, relative to those of `exact`."""
    difference = actual - exact
    return (
        float(np.abs(difference).max() / np.abs(exact).max()),
        float(np.sqrt((difference**2).mean() / (exact**2).mean())),
    )


RESNET = [(64, 28), (256, 14)]


def activations(channels: int, size: int) -> tuple[Array, Array]:
    """Images after a ReLU, and filters as they are initialised."""
    rng = np.random.default_rng(channels)
    x = np.maximum(rng.standard_normal((1, channels, size, size)), 0)
    w = rng.standard_normal((channels, channels, 3, 3)) * np.sqrt(2 / (9 * channels))
    return x.astype(np.float32), w.astype(np.float32)


def computed(name: str, direction: str, x: Array, w: Array) -> Array:
    with held_to(name):
        return F.conv2d(x, w, padding=1) if direction == "forward" else F.conv2d_input(x.shape, w, x, padding=1)


def products(direction: str, x: Array, w: Array) -> tuple[Array, Array]:
    """The convolution as one product, in float32 and exactly."""
    applied = w if direction == "forward" else np.ascontiguousarray(w.swapaxes(0, 1)[..., ::-1, ::-1])
    return product_of_columns(x, applied), product_of_columns(x.astype(np.float64), applied.astype(np.float64))


each_error = pytest.mark.parametrize(
    ("name", "direction", "channels", "size"),
    [(name, way, *layer) for name in ALGORITHMS for way in ("forward", "backward_input") for layer in RESNET],
)


@each_error
def test_errors_are_within_twice_those_of_a_product(name: str, direction: str, channels: int, size: int) -> None:
    x, w = activations(channels, size)
    single, exact = products(direction, x, w)
    (largest, mean), actual = errors(single, exact), errors(computed(name, direction, x, w), exact)
    assert actual[0] <= 2 * largest
    assert actual[1] <= 2 * mean


@each_error
def test_errors_beside_pytorchs(torch: Any, name: str, direction: str, channels: int, size: int) -> None:
    x, w = activations(channels, size)
    _, exact = products(direction, x, w)
    image, filters = torch.from_numpy(x), torch.from_numpy(w)
    if direction == "forward":
        peer = torch.nn.functional.conv2d(image, filters, padding=1)
    else:
        peer = torch.nn.grad.conv2d_input(image.shape, filters, image, padding=1)
    (largest, mean), actual = errors(peer.numpy(), exact), errors(computed(name, direction, x, w), exact)
    assert actual[1] <= 2 * mean
    assert actual[0] <= 3 * largest  # a single number's error, which varies more


# --- How much is held ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("order", LAYOUTS)
@pytest.mark.parametrize(("dtype", "kernel"), [("float32", (3, 3)), ("float16", (3, 3)), ("float32", (1, 3))])
def test_the_workspace_of_a_thread_is_bounded(
    monkeypatch: pytest.MonkeyPatch, name: str, order: str, dtype: str, kernel: tuple[int, int]
) -> None:
    limit = 64 * KIB
    monkeypatch.setattr(memory, "WORKSPACE_BYTES", limit)
    forget_pieces()
    gpucnn.set_num_threads(1)
    layer = Layer(Windows(2, (64, 64), kernel, (1, 1), (1, 1), 1), 2, (8, 8, 1), dtype, (order, "contiguous", order))
    x, w, b, grad = layer.arrays()
    most: list[int] = []

    def call(operation: Callable[..., Array], *args: Any) -> None:
        with held_to(name):
            most.append(held(operation, *args, **layer.options))

    operations = [(F.conv2d, x, w, b), (F.conv2d_input, x.shape, w, grad), (F.conv2d_weight, x, w.shape, grad)]
    for operation in operations:
        thread = threading.Thread(target=call, args=operation)  # whose buffers are its own, and new
        thread.start()
        thread.join()
    # tap by tap: sums, columns, terms and the terms before
    assert len(most) == len(operations)
    assert max(most) < 4.5 * limit + 32 * KIB


def test_the_weights_gradient_of_small_planes_adds_up_image_by_image() -> None:
    """Sums over all images and positions in a row had twice this error."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.standard_normal((4, 64, 7, 7)), 0).astype(np.float32)
    grad, weight = rng.standard_normal((4, 64, 7, 7)).astype(np.float32), np.zeros((64, 1, 5, 5), np.float32)
    single, double = (
        F.conv2d_backward(
            *(array.astype(dtype) for array in (grad, x, weight)), padding=2, groups=64, needs=(False, True, False)
        )[1]
        for dtype in (np.float32, np.float64)
    )
    error = np.sqrt(np.mean((single - double) ** 2) / np.mean(double**2))
    assert error < np.finfo(np.float32).eps
