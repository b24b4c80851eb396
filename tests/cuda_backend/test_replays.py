"""Calls that are frozen: the same results, errors and devices as of calls that are read, in a fraction of the steps."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pytest
from calls import ALIASES, ARRAYS, CALLS, entered, fresh
from cupy_watch import Watch
from strategies import IMPOSTORS, arranged

import gpucnn
import gpucnn.functional as F
from gpucnn import backends, simulator
from gpucnn.backends import replaying
from gpucnn.backends.cuda.convolution import im2col
from gpucnn.backends.cuda.device import cublas
from gpucnn.backends.cuda.resampling import resampling

Array = Any
FROZEN = {"bias_activation", "col2im", "col2im_backward", "im2col", "im2col_backward", "interpolate"} | {
    "interpolate_backward", "leaky_relu", "leaky_relu_backward", "linear", "linear_backward", "relu", "relu_backward",
} | {
    f"{name}{n}d{way}"
    for n in (1, 2, 3)
    for name, ways in {
        "conv": ("", "_backward", "_input", "_input_backward", "_weight", "_weight_backward"),
        "conv_transpose": ("", "_backward"),
        "locally_connected": ("",), "max_pool": ("", "_backward"), "adaptive_max_pool": ("", "_backward"),
        "max_unpool": ("", "_backward"),
        "avg_pool": ("", "_backward"), "sum_pool": ("", "_backward"), "adaptive_avg_pool": ("", "_backward"),
    }.items()
    for way in ways
}  # fmt: skip
"""What is frozen of `calls`, whatever computes their convolutions."""

COPIED = {
    "group_norm", "group_norm_backward", "layer_norm", "layer_norm_backward", "rms_norm", "rms_norm_backward",
}  # fmt: skip
"""What is frozen of arrays in C order only: others are copied to that order, so that their axes can be joined."""


@pytest.fixture
def kept(compiler: None, monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """What the simulator's calls are kept in, empty at first."""
    backends.backend_of(simulator.asarray(np.ones(1)))
    replayer: Any = replaying.REPLAYERS[simulator.Array]
    kept: dict[Any, Any] = {}
    monkeypatch.setattr(replayer, "kept", kept)
    return kept


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def simulated(name: str, change: Callable[[Any], Any]) -> tuple[Any, ...]:
    """The results of a call of `calls` on new arrays of the simulator, whose numbers went through `change`."""
    given = fresh(name)
    for key, value in given.items():
        if key in ARRAYS and is_array(value):
            given[key] = simulator.asarray(change(value.astype(np.float32)) if value.dtype.kind == "f" else value)
    call = inspect.signature(getattr(F, name)).bind(**given)
    result = getattr(F, name)(*call.args, **call.kwargs)
    return tuple(
        None if array is None else simulator.asnumpy(array)
        for array in (result if isinstance(result, tuple) else (result,))
    )


def same(ones: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    def facts(array: Any) -> Any:
        return None if array is None else (array.shape, array.strides, array.dtype, array.tobytes())

    return list(map(facts, ones)) == list(map(facts, others))


CHANGES: tuple[Callable[[Any], Any], ...] = (
    lambda x: x,
    lambda x: np.abs(x) + 2,
    lambda x: arranged(np.abs(x) + 1, "channels_last") if x.ndim > 2 else np.abs(x) + 1,
    lambda x: arranged(np.abs(x) + 3, "channels_last") if x.ndim > 2 else np.abs(x) + 3,
)


@pytest.mark.table(2)
@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        (name, by)
        for name in sorted(CALLS.keys() - ALIASES.keys())
        for by in ("direct", "im2col")[: 1 + ("conv" in name)]
    ],
)
def test_a_call_gives_the_same_bits_each_time_on_whatever_arrays(
    name: str, algorithm: str, kept: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with gpucnn.algorithm(algorithm):
        found = [simulated(name, change) for change in CHANGES]
        frozen = [replay is not None for replay in kept.values()]
        monkeypatch.setattr(replaying, "REPLAYERS", {})
        expected = [simulated(name, change) for change in CHANGES]
    assert all(map(same, found, expected))
    forms = 1 + any(value.ndim > 2 for key, value in fresh(name).items() if key in ARRAYS and is_array(value))
    assert not frozen or len(frozen) == forms
    assert not any(frozen) or all(frozen) or name in COPIED
    assert name not in FROZEN or frozen == [True] * forms


# --- What makes another call --------------------------------------------------------------------------------------


def image(*shape: int, dtype: Any = np.float32, offset: int = 0) -> Any:
    """Numbers on the simulator, `offset` elements into their memory."""
    size = int(np.prod(shape))
    return simulator.asarray((np.arange(size + offset) % 7).astype(dtype))[offset:].reshape(shape)


def test_what_a_plan_depends_on_is_in_its_key(kept: dict[Any, Any]) -> None:
    x = image(2, 4, 6, 6)
    views = [  # each differs from the one before in one stride, the fifth in their order
        image(2, 8, 6, 6)[:, :4],
        image(2, 8, 6, 6)[:, ::2],
        image(2, 4, 12, 6)[:, :, ::2],
        image(2, 4, 6, 12)[..., ::2],
        image(2, 4, 6, 12)[..., ::2].swapaxes(2, 3),
        image(2, 6, 6, 4).transpose(0, 3, 1, 2),
    ]
    calls: list[Callable[[], Any]] = [
        lambda: F.avg_pool2d(x, 2),
        lambda: F.avg_pool2d(x, 3),
        lambda: F.avg_pool2d(x, (2, 3)),
        lambda: F.avg_pool2d(x, (3, 2)),
        lambda: F.avg_pool2d(x, 2, stride=1),
        lambda: F.avg_pool2d(x, 2, padding=1),
        lambda: F.avg_pool2d(x, 2, stride=2),
        lambda: F.avg_pool2d(x, 2, padding=((0, 1), (1, 0))),
        lambda: F.avg_pool2d(x, 2, ceil_mode=True),
        lambda: F.sum_pool2d(x, 2),
        lambda: F.avg_pool2d(x[0], 2),
        lambda: F.avg_pool2d(image(3, 4, 6, 6), 2),  # of the same strides
        lambda: F.avg_pool2d(image(2, 4, 6, 6, dtype=np.float64), 2),
        lambda: F.avg_pool2d(image(2, 4, 6, 6, dtype=np.complex64), 2),  # as well
        lambda: F.avg_pool2d(image(2, 4, 6, 6, offset=1), 2),
        lambda: F.avg_pool2d(image(2, 4, 6, 6, offset=2), 2),
        *[lambda view=view: F.avg_pool2d(view, 2) for view in views],
    ]
    for count, call in enumerate(calls, start=1):
        first, second = call(), call()
        assert len(kept) == count
        assert simulator.asnumpy(first).tobytes() == simulator.asnumpy(second).tobytes()
    for view in views:
        expected = F.avg_pool2d(simulator.asnumpy(view), 2)
        np.testing.assert_array_equal(simulator.asnumpy(F.avg_pool2d(view, 2)), expected, strict=True)
    F.avg_pool2d(image(2, 4, 6, 6, offset=3), 2)  # 12 bytes past 16 are as 4 are
    with gpucnn.algorithm("direct"):
        F.avg_pool2d(x, 2)
    with gpucnn.precision("fp32"):  # as outside it
        F.avg_pool2d(x, 2)
    assert len(kept) == len(calls) + 1
    assert all(replay is not None for replay in kept.values())


@pytest.mark.table(2)
@pytest.mark.parametrize("impostor", IMPOSTORS, ids=repr)
def test_an_equal_of_another_type_is_refused_after_a_frozen_call_too(kept: dict[Any, Any], impostor: Any) -> None:
    x = image(1, 1, 6, 6)
    for honest in (1, (1, 1), [1, 1], np.int64(1)):
        F.max_pool2d(x, 3, honest)
    with pytest.raises(TypeError, match="integer"):
        F.max_pool2d(x, 3, impostor)
    assert len(kept) == 2  # a list is read each time


def test_errors_are_raised_each_time_and_not_kept(kept: dict[Any, Any]) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="max_pool2d: kernel_size is 0"):
            F.max_pool2d(image(1, 1, 6, 6), 0)
    assert not kept


def test_one_array_as_two_arguments_is_read_each_time(kept: dict[Any, Any]) -> None:
    x, y = image(1, 1, 5, 5), image(1, 1, 5, 5)
    with gpucnn.algorithm("direct"):
        twice = simulator.asnumpy(F.conv2d(x, x))
        assert not kept
        F.conv2d(x, y)
        assert simulator.asnumpy(F.conv2d(x, x)) == twice
        assert simulator.asnumpy(F.conv2d(x, y * 2)) == 2 * twice


@pytest.mark.parametrize(
    "case", ["empty arrays", "sums of integers, which are the array library's", "chunks of images"]
)
def test_what_is_computed_by_other_means_than_launches_is_read_each_time(
    kept: dict[Any, Any], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(im2col, "images_at_once", lambda image_bytes: 2)
    integers = [image(*shape, dtype=np.int32) for shape in ((1, 3, 3, 3), (1, 2, 5, 5), (3, 2, 3, 3), (3,))]
    x, w, grad = image(3, 2, 5, 5), image(3, 2, 3, 3), image(3, 3, 3, 3)
    calls: dict[str, Callable[[], Any]] = {
        "empty arrays": lambda: [F.avg_pool2d(image(0, 3, 4, 4), 2)],
        "chunks of images": lambda: F.conv2d_backward(grad, x, w)[:2],
    }
    call = calls.get(case, lambda: F.conv2d_backward(*integers))
    with gpucnn.algorithm("im2col") if case.startswith("chunks") else contextlib.nullcontext():
        results = [tuple(map(simulator.asnumpy, call())) for _ in range(2)]
    assert same(*results)
    assert list(kept.values()) == [None]


def test_running_statistics_move_each_time(kept: dict[Any, Any]) -> None:
    x = image(4, 3, 5, 5)
    mean, var = image(3), image(3) + 1
    expected = [simulator.asnumpy(array).copy() for array in (mean, var)]
    for _ in range(3):
        F.batch_norm(x, mean, var, training=True)
        F.batch_norm(simulator.asnumpy(x), *expected, training=True)
    np.testing.assert_allclose(simulator.asnumpy(mean), expected[0], rtol=1e-6)
    np.testing.assert_allclose(simulator.asnumpy(var), expected[1], rtol=1e-6)
    assert [replay is not None for replay in kept.values()] == [True]


def test_inference_by_running_statistics_is_kept(kept: dict[Any, Any]) -> None:
    statistics = image(3), image(3) + 1
    for change in (1, 2):
        x = image(4, 3, 5, 5) * change
        y = F.batch_norm(x, *statistics)
        expected = F.batch_norm(*map(simulator.asnumpy, (x, *statistics)))
        np.testing.assert_allclose(simulator.asnumpy(y), expected, rtol=1e-5, atol=1e-6)
    assert [replay is not None for replay in kept.values()] == [True]


def test_copies_in_another_order_and_dtype_are_kept_by_it(kept: dict[Any, Any]) -> None:
    x = image(2, 3, 4, 4)
    for dtype in (None, np.float16, np.dtype("float16"), np.float32, np.dtype("float64")):
        for copied in (gpucnn.channels_last, gpucnn.channels_first):
            first, second = copied(x, dtype), copied(x * 2, dtype)
            assert first.dtype == second.dtype == np.dtype(dtype or np.float32)
            assert first.strides == second.strides
            np.testing.assert_array_equal(simulator.asnumpy(second), simulator.asnumpy(x * 2))
    assert [replay is not None for replay in kept.values()] == [True] * 10


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((1, 8, 9, 9), (8, 4, 3, 3), {"padding": 1, "groups": 2}),
        ((1, 3, 12, 12), (16, 3, 4, 4), {"stride": 2, "padding": 1}),
    ],
)
def test_convolutions_over_blocks_of_positions_are_kept(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], options: dict[str, Any], kept: dict[Any, Any]
) -> None:
    x, w = image(*x_shape, dtype=np.float16), image(*w_shape, dtype=np.float16)
    y = F.conv2d(x, w, **options)
    for call in (
        lambda: F.conv2d(x, w, **options),
        lambda: F.conv2d_input(x_shape, w, y, **options),
        lambda: F.conv2d_weight(x, w_shape, y, **options),
    ):
        assert simulator.asnumpy(call()).tobytes() == simulator.asnumpy(call()).tobytes()
    assert [replay is not None for replay in kept.values()] == [True] * 3


def test_arrays_by_name_are_found(kept: dict[Any, Any]) -> None:
    x, w, grad = image(1, 2, 5, 5), image(3, 2, 3, 3), image(1, 3, 3, 3)
    calls: list[Callable[[], Any]] = [
        lambda: F.avg_pool2d(input=x, kernel_size=2),
        lambda: F.avg_pool2d(kernel_size=2, input=x),
        lambda: F.conv2d_input(x.shape, grad_output=grad, weight=w),
        lambda: F.conv2d_input(input_size=x.shape, weight=w, grad_output=grad),
    ]
    for call in calls:
        assert simulator.asnumpy(call()).tobytes() == simulator.asnumpy(call()).tobytes()
    assert [replay is not None for replay in kept.values()] == [True] * 4
    with pytest.raises(TypeError, match="kernel_size"):
        F.avg_pool2d(input=x)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="input"):
        F.avg_pool2d(kernel_size=2)  # type: ignore[call-arg]


def test_forms_beyond_a_bound_are_forgotten(kept: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "MAX_KEPT", 3)
    for size in (2, 3, 4, 5):
        F.avg_pool2d(image(1, 1, size, size), 2)
    assert len(kept) == 1


def test_a_call_within_a_recorded_one_is_part_of_it(kept: dict[Any, Any]) -> None:
    def twice(x: Array) -> Any:
        return F.avg_pool2d(F.avg_pool2d(x, 2), 2)

    frozen = replaying.replayed(twice)
    x, y = image(1, 1, 8, 8), image(1, 1, 8, 8) * 3
    expected = [simulator.asnumpy(twice(array)).tobytes() for array in (x, y)]  # each of the two is kept by then
    assert [simulator.asnumpy(frozen(array)).tobytes() for array in (x, y)] == expected
    assert [replay is not None for replay in kept.values()] == [True] * 3


def test_threads_have_calls_of_their_own(kept: dict[Any, Any]) -> None:
    inputs = [image(2, 3, size, size) for size in (4, 5, 6, 7)] * 4
    expected = [simulator.asnumpy(F.avg_pool2d(x, 2)).tobytes() for x in inputs]
    kept.clear()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda x: simulator.asnumpy(F.avg_pool2d(x, 2)).tobytes(), inputs))
    assert found == expected
    assert [replay is not None for replay in kept.values()] == [True] * 4


# --- On CuPy ------------------------------------------------------------------------------------------------------


CUPY_CALLS: dict[str, Callable[[Any], Any]] = {  # on `Arrays`; products are those of cuBLAS
    "conv2d, implicit GEMM": lambda a: F.conv2d(a.x, a.dense, a.bias, 1, 1),
    "conv2d, Winograd": lambda a: F.conv2d(a.x, a.dense, a.bias, 1, 1),
    "conv2d_input, Winograd": lambda a: F.conv2d_input(a.x.shape, a.dense, a.grad, 1, 1),
    "conv2d, product": lambda a: F.conv2d(a.x, a.dense, None, 1, 1),
    "conv2d, 1x1": lambda a: F.conv2d(a.x, a.pixels),
    "conv2d, product and bias": lambda a: F.conv2d(a.x, a.dense, a.bias, 1, 1),
    "conv2d_backward, products and bias": lambda a: F.conv2d_backward(a.grad, a.x, a.dense, a.bias, 1, 1),
    "linear": lambda a: F.linear(a.x.reshape(-1, 32), a.pixels.reshape(32, 32), a.bias),
    "linear_backward": lambda a: F.linear_backward(a.grad.reshape(-1, 32), a.x.reshape(-1, 32), a.pixels[:, :, 0, 0]),
    "interpolate": lambda a: F.interpolate(a.x, None, 2, "bilinear"),
    "conv2d": lambda a: F.conv2d(a.x, a.depthwise, a.bias, padding=1, groups=32),
    "conv2d_input": lambda a: F.conv2d_input(a.x.shape, a.depthwise, a.x, 1, 1, 1, 32),
    "conv_transpose2d": lambda a: F.conv_transpose2d(a.x, a.depthwise, None, 2, groups=32),
    "max_pool2d": lambda a: F.max_pool2d(a.x, 3, 2, 1),
    "max_pool2d, indices": lambda a: F.max_pool2d(a.x, 3, 2, 1, return_indices=True),
    "avg_pool2d": lambda a: F.avg_pool2d(a.x, 2),
    "im2col": lambda a: F.im2col(a.x, 3, padding=1),
}


class Arrays:
    """Small integers, whose sums are exact in every order."""

    def __init__(self, xp: Any, seed: int) -> None:
        rng = np.random.default_rng(seed)

        def array(*shape: int) -> Any:
            return xp.asarray(rng.integers(-3, 4, shape).astype(np.float32))

        self.x, self.depthwise, self.bias = array(2, 32, 8, 8), array(32, 1, 3, 3), array(32)
        self.dense, self.pixels, self.grad = array(32, 32, 3, 3), array(32, 32, 1, 1), array(2, 32, 8, 8)


def expect_values_of_numpy(case: str, found: Any, seed: int) -> None:
    with gpucnn.algorithm("im2col") if "Winograd" in case else contextlib.nullcontext():  # which NumPy does not have
        expected = CUPY_CALLS[case](Arrays(np, seed))
    pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
    for one, other in pairs:
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one.get(), other, strict=True)


# The call, the replays' own, the key, the replay and, for an argument that is a tuple of tuples or for each array in
# another order than C, one more.
MAX_ENTERED = 6


@pytest.fixture
def by_name(case: str) -> Iterator[None]:
    """Within a test of products or Winograd's filtering, convolutions are computed so."""
    names = {"product": "im2col", "Winograd": "winograd"}
    chosen = next((gpucnn.algorithm(name) for word, name in names.items() if word in case), contextlib.nullcontext())
    with chosen:
        yield


NEW_ARRAYS = {  # where it is not the result alone: columns and products are arrays too, parts of sums, indices
    "conv2d, implicit GEMM": 3, "conv2d, Winograd": 4, "conv2d_input, Winograd": 4, "conv2d, product": 2,
    "conv2d, product and bias": 2, "conv2d_backward, products and bias": 5, "linear_backward": 2,
    "max_pool2d, indices": 2,
}  # fmt: skip


@pytest.mark.usefixtures("by_name")
@pytest.mark.parametrize("case", CUPY_CALLS)
def test_a_frozen_call_takes_few_steps(case: str, cupy: Any, watch: Watch) -> None:
    call, arrays = CUPY_CALLS[case], [Arrays(cupy, seed) for seed in (1, 2)]
    results = [call(arrays[0])]
    launches, allocated = watch.queued(), len(watch.allocated)
    products = {"CublasProduct.__call__", "handle", "_Handle.on"}
    steps = [step for _, step in entered(lambda: results.append(call(arrays[1]))) if step not in products]
    assert 4 < len(steps) <= MAX_ENTERED, steps
    assert watch.queued() == 2 * launches
    assert len(watch.allocated) == allocated + NEW_ARRAYS.get(case, 1)
    for seed, result in enumerate(results, start=1):
        expect_values_of_numpy(case, result, seed)


@pytest.mark.usefixtures("by_name")
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("case", CUPY_CALLS)
def test_a_stream_can_capture_a_call_that_was_made_before(
    case: str, frozen: bool, cupy: Any, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a CUDA graph, which is then launched on other values."""
    if not frozen:
        monkeypatch.setitem(replaying.REPLAYERS, cupy.ndarray, lambda operation, args, named: operation(*args, **named))
    call, arrays = CUPY_CALLS[case], Arrays(cupy, 1)
    call(arrays)
    launches, stream = watch.queued(), cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        result = call(arrays)
        graph = stream.end_capture()
    assert watch.queued() == 2 * launches
    for name, array in vars(Arrays(cupy, 2)).items():
        getattr(arrays, name)[...] = array
    cupy.cuda.get_current_stream().synchronize()
    graph.launch(stream)
    stream.synchronize()
    expect_values_of_numpy(case, result, 2)


def test_a_frozen_call_launches_what_the_first_one_did(cupy: Any, watch: Watch) -> None:
    x, other = (Arrays(cupy, seed).x for seed in (1, 2))
    results = [F.avg_pool2d(array, 2) for array in (x, other)]
    first, second = watch.launches
    assert first.addresses == (x.data.ptr, results[0].data.ptr)
    assert second.addresses == (other.data.ptr, results[1].data.ptr)
    assert first._replace(args=first.args[2:]) == second._replace(args=second.args[2:])
    assert [(result.shape, result.strides) for result in results] == [((2, 32, 4, 4), (2048, 64, 16, 4))] * 2
    for seed, result in enumerate(results, start=1):
        expect_values_of_numpy("avg_pool2d", result, seed)


@pytest.mark.parametrize("channels_last", [False, True])
def test_out_takes_the_place_of_the_new_array(cupy: Any, watch: Watch, channels_last: bool) -> None:
    def image(channels: int, size: int) -> Any:
        if channels_last:
            return cupy.moveaxis(cupy.ones((2, size, size, channels), np.float32), -1, 1)
        return cupy.ones((2, channels, size, size), np.float32)

    x, outs, w = image(4, 8), [image(6, 8) for _ in range(3)], cupy.ones((6, 4, 3, 3), np.float32)
    allocated = len(watch.allocated)
    with gpucnn.algorithm("direct"):
        assert all(F.conv2d(x, w, padding=1, out=out) is out for out in outs)
    assert [launch.args[4].data.ptr for launch in watch.launches] == [out.data.ptr for out in outs]
    assert len(watch.allocated) == allocated
    expected = F.conv2d(x.get(), w.get(), padding=1)
    assert all((out.get() == expected).all() for out in outs)


def test_a_result_that_was_copied_is_copied_each_time(cupy: Any) -> None:
    for seed in (1, 2, 3):
        x, out = Arrays(cupy, seed).x, cupy.zeros((2, 32, 8, 8), np.float32)[:, :, ::2, ::2]
        assert F.avg_pool2d(x, 2, out=out) is out
        expect_values_of_numpy("avg_pool2d", out, seed)


def test_out_is_held_apart_from_the_arguments_each_time(cupy: Any) -> None:
    whole = cupy.zeros((200,), np.float32)
    x, apart, within = (whole[a:b] for a, b in ((0, 128), (128, 160), (96, 128)))
    for _ in range(2):
        F.avg_pool2d(x.reshape(2, 4, 4, 4), 2, out=apart.reshape(2, 4, 2, 2))
        with pytest.raises(ValueError, match="avg_pool2d: out shares memory with an argument"):
            F.avg_pool2d(x.reshape(2, 4, 4, 4), 2, out=within.reshape(2, 4, 2, 2))


def test_out_between_the_channels_of_an_argument_is_kept_where_it_was_not_refused(cupy: Any, watch: Watch) -> None:
    """As in a dense block, whose layers add channels to one array."""
    whole, others = (cupy.zeros((2, 12, 6, 6), np.float32) for _ in range(2))
    w = cupy.zeros((4, 4, 3, 3), np.float32)

    def call(features: Any, begin: int) -> list[tuple[str, str]]:
        def layer() -> None:
            F.conv2d(features[:, :4], w, padding=1, out=features[:, begin : begin + 4])

        return entered(layer)

    with gpucnn.algorithm("direct"):
        assert len(call(whole, 4)) > 20
        assert len(call(whole, 4)) < 15
        assert len(call(others, 4)) < 15  # as far apart
        assert len(call(whole, 8)) > 20  # further
        assert len(call(others, 8)) < 15
        for _ in range(2):
            with pytest.raises(ValueError, match="conv2d: out shares memory with an argument"):
                call(whole, 2)


@gpucnn.algorithm("im2col")
def test_a_call_that_fails_half_way_is_not_kept(cupy: Any, watch: Watch) -> None:
    arrays = Arrays(cupy, 1)
    kept = cast(replaying.Replays, replaying.REPLAYERS[cupy.ndarray]).kept
    case = "conv2d, product and bias"
    for fails in (1, 2):  # the result, columns
        watch.fails = fails
        with pytest.raises(MemoryError):
            CUPY_CALLS[case](arrays)
        assert replaying.this_thread.listener is None
        assert not kept
    watch.products.clear()
    expect_values_of_numpy(case, CUPY_CALLS[case](arrays), 1)
    queued = len(watch.products)
    assert list(map(callable, kept.values())) == [True]
    watch.fails = 2
    with pytest.raises(MemoryError):  # and the replay of one leaves nothing half done
        CUPY_CALLS[case](arrays)
    assert len(watch.products) == queued
    expect_values_of_numpy(case, CUPY_CALLS[case](arrays), 1)
    assert len(watch.products) == 2 * queued


@gpucnn.algorithm("im2col")
def test_a_replay_holds_no_more_memory_than_the_call_did(cupy: Any, watch: Watch) -> None:
    """Columns of both directions lie in one place, as one is done with when the other begins."""
    x, w, grad = (cupy.ones(shape, np.float32) for shape in ((2, 16, 8, 8), (32, 16, 3, 3), (2, 32, 8, 8)))
    asked = []
    for _ in range(2):
        watch.allocated.clear()
        watch.launches.clear()
        F.conv2d_backward(grad, x, w, None, padding=1)
        asked.append(sum(watch.allocated))
    columns = 2 * 16 * 9 * 64 * 4
    assert asked[0] - asked[1] == columns
    assert len({address for launch in watch.launches for address in launch.addresses}) == 5
    # x, grad, grad_x, columns, and grad with all images side by side; the products write grad_w


def test_a_zero_has_no_sign(kept: dict[Any, Any]) -> None:
    """0.0 and -0.0 are equal, so that what is kept for one is found for the other."""
    x = image(1, 2, 3) - 3
    results = [simulator.asnumpy(F.bias_activation(x, None, None, "leaky_relu", slope)) for slope in (0.0, -0.0, 0.0)]
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()
    kept.clear()
    fresh = F.bias_activation(x, None, None, "leaky_relu", -0.0)
    assert simulator.asnumpy(fresh).tobytes() == results[0].tobytes()
    host = F.bias_activation(simulator.asnumpy(x), None, None, "leaky_relu", -0.0)
    assert host.tobytes() == results[0].tobytes()


def test_tables_of_an_interpolation_are_kept_with_its_calls(kept: dict[Any, Any]) -> None:
    sizes = (5, 7, 5)
    results = [simulator.asnumpy(F.interpolate(image(1, 2, 4, 4), size, None, "bilinear")) for size in sizes]
    resampling._tables.cache_clear()
    for size, expected in zip(sizes, results, strict=True):
        found = F.interpolate(image(1, 2, 4, 4), size, None, "bilinear")
        assert simulator.asnumpy(found).tobytes() == expected.tobytes()
    assert [replay is not None for replay in kept.values()] == [True, True]
    assert resampling._tables.cache_info().misses == 0


def test_nothing_holds_on_to_the_arrays_of_a_call(cupy: Any) -> None:
    arrays = [cupy.zeros((2, 3, 8, 8), np.float32), cupy.zeros((2, 3, 4, 4), np.float32)]
    x, out = arrays
    before = [sys.getrefcount(array) for array in arrays]
    results = [F.avg_pool2d(x, 2) for _ in range(3)]
    counts = [sys.getrefcount(result) for result in results]
    F.avg_pool2d(x, 2, out=out)
    F.avg_pool2d(x, 2, out=out)
    assert [sys.getrefcount(array) for array in arrays] == before
    assert len(set(counts)) == 1


def test_a_frozen_call_keeps_channels_last(cupy: Any) -> None:
    x = cupy.moveaxis(cupy.zeros((2, 8, 8, 3), np.float32), -1, 1)
    results = [F.avg_pool2d(x, 2) for _ in range(2)]
    assert [(result.shape, result.strides) for result in results] == [((2, 3, 4, 4), (192, 4, 48, 12))] * 2


def test_a_frozen_call_runs_on_the_device_of_its_arrays(cupy: Any, two_devices: None, watch: Watch) -> None:
    with cupy.cuda.Device(1):
        inputs = [Arrays(cupy, seed).x for seed in (1, 2)]
    results = [F.avg_pool2d(x, 2) for x in inputs]
    assert [result.data.device_id for result in results] == [1, 1]
    assert [launch.device for launch in watch.launches] == [1, 1]
    assert cupy.cuda.runtime.getDevice() == 0
    results.append(F.avg_pool2d(Arrays(cupy, 3).x, 2))
    assert [launch.device for launch in watch.launches] == [1, 1, 0]
    for seed, result in enumerate(results, start=1):
        expect_values_of_numpy("avg_pool2d", result, seed)


def test_products_are_computed_on_the_device_of_their_arrays(cupy: Any, two_devices: None, watch: Watch) -> None:
    with cupy.cuda.Device(1):
        arrays = [Arrays(cupy, seed) for seed in (1, 2)]
    results = [F.conv2d(each.x, each.pixels) for each in arrays]
    assert [result.data.device_id for result in results] == [1, 1]
    assert [product[0] for product in watch.products] == [cublas._handles.by_device[1].address] * 2
    read = [product[11] for product in watch.products]
    written = [product[16] for product in watch.products]
    assert read == [each.pixels.data.ptr for each in arrays]
    assert written == [result.data.ptr for result in results]
    sizes = [product[:6] + product[8:11] + product[12:15] + product[17:] for product in watch.products]
    assert sizes[0] == sizes[1]
    for seed, result in enumerate(results, start=1):
        expect_values_of_numpy("conv2d, 1x1", result, seed)
