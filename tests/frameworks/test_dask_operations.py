"""Operations on Dask's arrays: results and gradients as on arrays in memory, whatever the chunks; nothing is eager."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from calls import ARRAYS, fresh, said_name
from dask_calls import (
    CHUNKINGS,
    OPERATIONS,
    OTHERS,
    PARAMETERS,
    ROWS,
    Array,
    Chunks,
    called,
    expect_same,
    in_memory,
    of_dask,
    pieces_of,
)
from hypothesis import given
from hypothesis import strategies as st
from sample import examples
from tolerances import assert_close

import gpucnn
import gpucnn.functional as F
from gpucnn import backends, nn, numerics
from gpucnn.backends import backend_of
from gpucnn.geometry import resize_axis
from gpucnn.nn import activation


@pytest.fixture(scope="module")
def da(dask: Any) -> Any:
    return import_module("dask.array")


# --- Results ------------------------------------------------------------------------------------------------------


@pytest.mark.table(60)
@pytest.mark.parametrize("chunks", CHUNKINGS)
@pytest.mark.parametrize("row", ROWS)
def test_results_are_those_in_memory(backend: ArrayBackend, da: Any, row: str, chunks: str) -> None:
    found = called(da, row, ROWS[row], CHUNKINGS[chunks], backend)
    scheduler = "threads" if backend.takes_numpy else "sync"  # the others compute in one thread

    def compute(arrays: list[Any]) -> list[Any]:
        return [array.compute(scheduler=scheduler) for array in arrays]

    expect_same(da, found, in_memory(row), compute=compute, asnumpy=backend.asnumpy)


@pytest.mark.parametrize("name", ["batch_norm", "batch_norm_backward", "instance_norm", "instance_norm_backward"])
def test_norms_by_running_statistics(da: Any, name: str) -> None:
    option = "training" if "batch" in name else "use_input_stats"
    arguments = fresh(name) | {option: False}
    arguments = {key: value for key, value in arguments.items() if key not in ("mean", "rstd")}
    if not name.endswith("_backward"):
        arguments["return_statistics"] = True
    expect_same(da, called(da, name, arguments, pieces_of), getattr(F, name)(**arguments))


@pytest.mark.parametrize(
    "name", ["conv2d", "conv2d_backward", "max_pool2d", "relu", "batch_norm", "group_norm_backward"]
)
def test_batches_without_images(da: Any, name: str) -> None:
    arguments = {
        key: value[:0] if isinstance(value, np.ndarray) and key not in PARAMETERS and value.ndim > 1 else value
        for key, value in of_dask(name).items()
    }
    found, expected = called(da, name, arguments, CHUNKINGS["one chunk"]), getattr(F, name)(**arguments)
    expect_same(da, found, expected)


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm", "group_norm"])
def test_one_value_has_no_variance(da: Any, name: str) -> None:
    extra = {"batch_norm": (None, None, None, None, True), "instance_norm": (), "group_norm": (2,)}[name]
    with pytest.raises(ValueError, match=rf"{name}: input has shape .*, expected more than one value"):
        getattr(F, name)(da.ones((1, 2, 1), chunks=1), *extra)


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm", "group_norm"])
def test_statistics_of_norms(da: Any, name: str) -> None:
    arguments = of_dask(name) | {"return_statistics": True}
    expect_same(da, called(da, name, arguments, pieces_of), getattr(F, name)(**arguments))


@pytest.mark.parametrize("chunks", CHUNKINGS)
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "softmax", "log_softmax"])
@pytest.mark.table(20)
def test_rows_that_chunks_split(da: Any, name: str, chunks: str) -> None:
    """One mean of the last axis, of some axes, or of all of them, the batch's too, and the same with softmax."""
    x, grad = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    for axes in (1, 2, 3):
        given: tuple[Any, ...] = (3 - axes,) if "softmax" in name else (x.shape[-axes:], x[0, 0], x[1, 0])
        if "norm" in name:
            weight = np.random.default_rng(axes).standard_normal(x.shape[-axes:])
            given = (x.shape[-axes:], weight, weight) if name == "layer_norm" else (x.shape[-axes:], weight)
        lazy, upstream = (da.from_array(each, chunks=CHUNKINGS[chunks](each.shape)) for each in (x, grad))
        expect_same(da, getattr(F, name)(lazy, *given), getattr(F, name)(x, *given))
        backward = getattr(F, f"{name}_backward")
        expect_same(da, backward(upstream, lazy, *given), backward(grad, x, *given))
        if "norm" in name:
            _, *statistics = getattr(F, name)(x, *given, return_statistics=True)
            handed = dict(zip(("mean", "rstd")[-len(statistics) :], statistics, strict=True))
            expect_same(da, backward(upstream, lazy, *given, **handed), backward(grad, x, *given))


@pytest.mark.parametrize("name", ["relu", "sigmoid", "gelu", "softmax", "linear", "layer_norm"])
def test_arrays_of_few_axes(da: Any, name: str) -> None:
    for shape in ((), (5,)) if name in ("relu", "sigmoid", "gelu") else ((5,), (2, 5)):
        x = np.random.default_rng(0).standard_normal(shape)
        given = {"softmax": (-1,), "linear": (np.ones((3, 5)),), "layer_norm": (5,), "bias_activation": ()}.get(
            name, ()
        )
        if name == "bias_activation" and len(shape) < 2:
            continue
        lazy = da.from_array(x[None], chunks=(1, *(2,) * len(shape)))[0]  # without axes, a chunk is NumPy's scalar
        expect_same(da, getattr(F, name)(lazy, *given), np.asarray(getattr(F, name)(x, *given)))


# --- Random draws -------------------------------------------------------------------------------------------------


def test_dropout_scales_what_it_keeps(da: Any) -> None:
    x = np.random.default_rng(0).standard_normal((60, 50)).astype(np.float32)
    lazy = da.from_array(x, chunks=(7, 20))
    for rng in (None, 3, np.random.default_rng(4)):
        y, mask = F.dropout(lazy, 0.25, rng=rng, return_mask=True)
        assert y.chunks == mask.chunks == lazy.chunks
        kept = mask.compute()
        assert 0.7 < kept.mean() < 0.8
        expect_same(da, y, F.dropout_backward(x, x, 0.25, mask=kept)[0], exactly=True)  # and draws are repeated
        expect_same(da, F.dropout_backward(lazy, lazy, 0.25, mask=mask), (y.compute(),), exactly=True)
    assert len({part.tobytes() for part in np.split(kept[:56, :20], 8)}) == 8, "chunks draw different numbers"
    for options in ({"training": False}, {"p": 0.0}):
        expect_same(da, F.dropout(lazy, **options), x, exactly=True)


def test_dropout_draws_again_by_its_seed(da: Any) -> None:
    lazy = da.ones((6, 50), chunks=(4, 20))
    y = F.dropout(lazy, rng=5).compute()
    expect_same(da, F.dropout(lazy, rng=5), y, exactly=True)
    expect_same(da, F.dropout_backward(lazy, lazy, rng=5), (y,), exactly=True)
    generator = np.random.default_rng(0)
    found = [F.dropout(lazy, rng=rng).compute() for rng in (6, None, None, generator, generator)]
    assert len({each.tobytes() for each in (y, *found)}) == 6
    with pytest.raises(ValueError, match="dropout_backward: mask is None, expected the forward's, or a seed"):
        F.dropout_backward(lazy, lazy)


# --- Other properties ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d"])
def test_indices_of_maxima_are_those_of_the_whole_image(da: Any, name: str) -> None:
    arguments = fresh(name) | {"return_indices": True}
    expect_same(da, called(da, name, arguments, pieces_of), getattr(F, name)(**arguments), exactly=True)


@pytest.mark.parametrize("dtype", ["int8", "int32", "float16", "float32", "complex128"])
@pytest.mark.parametrize("name", ["conv2d", "conv2d_backward", "conv_transpose2d_backward", "conv2d_weight"])
def test_dtypes_of_convolutions(da: Any, name: str, dtype: str) -> None:
    arguments = {
        key: np.rint(3 * value).astype(dtype) if key in ARRAYS and isinstance(value, np.ndarray) else value
        for key, value in fresh(name).items()
    }
    if dtype == "complex128":
        arguments = {key: v * (1 + 2j) if isinstance(v, np.ndarray) else v for key, v in arguments.items()}
    expect_same(da, called(da, name, arguments, pieces_of), getattr(F, name)(**arguments), exactly=True)


@pytest.mark.parametrize("name", ["conv2d", "conv2d_backward", "conv2d_activation_backward", "conv_transpose1d",
                                  "conv1d_input_backward", "max_pool2d", "avg_pool3d_backward", "im2col",
                                  "im2col_backward"])  # fmt: skip
def test_images_without_a_batch_axis(da: Any, name: str) -> None:
    arguments = {
        key: value[0] if isinstance(value, np.ndarray) and key not in PARAMETERS and value.ndim > 2 else value
        for key, value in fresh(name).items()
    }
    if "input_size" in arguments:
        arguments["input_size"] = arguments["input_size"][1:]
    expect_same(da, called(da, name, arguments, pieces_of), getattr(F, name)(**arguments))


@examples(60)
@given(case=st.data())
def test_drawn_resampling(dask: Any, case: st.DataObject) -> None:
    """Of any filter and factor, also of an Resize of ONNX that reads a region beyond the image."""
    da, draw = import_module("dask.array"), case.draw
    rank, rng = draw(st.integers(1, 2)), np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.standard_normal((2, 2, *(draw(st.integers(1, 14)) for _ in range(rank))))
    linear, cubic = {1: ("linear", "cubic"), 2: ("bilinear", "bicubic")}[rank]
    mode = draw(st.sampled_from(["nearest", "nearest-exact", linear, cubic, "area", "region"]))
    if mode == "region":
        roi = (draw(st.floats(-1, 0.5)), draw(st.floats(0.6, 2)))
        options = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "roi": roi}
        given: dict[str, Any] = {
            "axes": [resize_axis(size, draw(st.integers(1, 20)), **options) for size in x.shape[2:]]
        }
    else:
        given = {"mode": mode}
        if draw(st.booleans()):
            given["size"] = tuple(draw(st.integers(1, 20)) for _ in range(rank))
        else:
            given["scale_factor"] = draw(st.sampled_from([1, 2, 3, 1.5, 2.7, 1.1]))
            given["recompute_scale_factor"] = draw(st.sampled_from([None, True]))
        if mode in (linear, cubic):
            given |= {"align_corners": draw(st.booleans()), "antialias": draw(st.booleans())}
    name = "resample" if mode == "region" else "interpolate"
    expected = getattr(F, name)(x, **given)
    image = da.from_array(x, chunks=drawn_chunks(draw, x.shape))
    expect_same(da, getattr(F, name)(image, **given), expected, exactly=mode.startswith("nearest"))
    upstream = rng.standard_normal(expected.shape)
    grad = da.from_array(upstream, chunks=drawn_chunks(draw, upstream.shape))
    backward = getattr(F, f"{name}_backward")
    expect_same(da, backward(grad, image, **given), backward(upstream, x, **given))


# --- Drawn windows and chunks, of integers: every bit counts ------------------------------------------------------


def drawn_chunks(draw: st.DrawFn, shape: Iterable[int]) -> Chunks:
    def along(size: int) -> tuple[int, ...]:
        ends = sorted(draw(st.sets(st.integers(1, max(size - 1, 1)))))
        return tuple(int(part) for part in np.diff([0, *ends, size]) if part) if size else (0,)

    return tuple(map(along, shape))


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    """An image with a window, larger than its chunks or smaller, and chunks of what is needed."""
    rank = draw(st.integers(1, 2))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    kernel, dilation = each(1, 3), each(1, 3)
    extents = [step * (size - 1) + 1 for size, step in zip(kernel, dilation, strict=True)]
    return {
        "rank": rank,
        "shape": (draw(st.integers(1, 2)), 2 * draw(st.integers(1, 2)), *each(1, 12)),
        "kernel": kernel,
        "window": {
            "stride": each(1, 4),
            "dilation": dilation,
            "padding": tuple((draw(st.integers(0, most - 1)), draw(st.integers(0, most - 1))) for most in extents),
        },
        "more": each(0, 5),
        "seed": draw(st.integers(0, 99)),
        "chunks": lambda shape: drawn_chunks(draw, shape),
    }


def whole_numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.integers(-4, 5, shape).astype(np.float64)


@examples(60)
@given(case=st.data())
def test_drawn_convolutions_and_gradients(dask: Any, case: st.DataObject) -> None:
    da, drawn = import_module("dask.array"), case.draw(windows())
    rank, rng = drawn["rank"], np.random.default_rng(drawn["seed"])
    padding = tuple(
        (low + more, high + more) for (low, high), more in zip(drawn["window"]["padding"], drawn["more"], strict=True)
    )
    window = drawn["window"] | {"padding": padding, "groups": 2}
    x = whole_numbers(rng, drawn["shape"])
    w = whole_numbers(rng, (4, x.shape[1] // 2, *drawn["kernel"]))
    transposed = whole_numbers(rng, (x.shape[1], 2, *drawn["kernel"]))
    bias = whole_numbers(rng, (4,))
    for op, weight in ((f"conv{rank}d", w), (f"conv_transpose{rank}d", transposed)):
        try:
            y = getattr(F, op)(x, weight, bias, **window)
        except ValueError:  # the window does not fit, or the padding cuts all off
            continue
        lazy = da.from_array(x, chunks=drawn["chunks"](x.shape))
        expect_same(da, getattr(F, op)(lazy, weight, bias, **window), y, exactly=True)
        grad = whole_numbers(rng, y.shape)
        lazy_grad = da.from_array(grad, chunks=drawn["chunks"](y.shape))
        expected = getattr(F, f"{op}_backward")(grad, x, weight, bias, **window)
        expect_same(da, getattr(F, f"{op}_backward")(lazy_grad, lazy, weight, bias, **window), expected, exactly=True)


@examples(60)
@given(case=st.data(), ceil_mode=st.booleans(), counts_padding=st.booleans())
def test_drawn_poolings_and_gradients(dask: Any, case: st.DataObject, ceil_mode: bool, counts_padding: bool) -> None:
    da, drawn = import_module("dask.array"), case.draw(windows())
    rank, rng = drawn["rank"], np.random.default_rng(drawn["seed"])
    x = whole_numbers(rng, drawn["shape"])
    window = drawn["window"] | {"kernel_size": drawn["kernel"], "ceil_mode": ceil_mode}
    try:
        y, indices = getattr(F, f"max_pool{rank}d")(x, **window, return_indices=True)
    except ValueError:  # no window fits
        return
    lazy = da.from_array(x, chunks=drawn["chunks"](x.shape))
    found = getattr(F, f"max_pool{rank}d")(lazy, **window, return_indices=True)
    expect_same(da, found, (y, indices), exactly=True)
    grad = whole_numbers(rng, y.shape)
    lazy_grad = da.from_array(grad, chunks=drawn["chunks"](y.shape))
    expected = getattr(F, f"max_pool{rank}d_backward")(grad, x, **window)
    for handed in ({}, {"indices": found[1]}):
        expect_same(da, getattr(F, f"max_pool{rank}d_backward")(lazy_grad, lazy, **window, **handed), expected)
    counted = window | {"count_include_pad": counts_padding}
    expect_same(da, getattr(F, f"avg_pool{rank}d")(lazy, **counted), getattr(F, f"avg_pool{rank}d")(x, **counted))
    expected = getattr(F, f"avg_pool{rank}d_backward")(grad, x, **counted)
    expect_same(da, getattr(F, f"avg_pool{rank}d_backward")(lazy_grad, lazy, **counted), expected)


@examples(60)
@given(case=st.data())
def test_drawn_unfolding_and_folding(dask: Any, case: st.DataObject) -> None:
    """Also with padding that is wider than the window, where some windows lie in it alone."""
    da, draw = import_module("dask.array"), case.draw
    drawn = draw(windows())
    rank, rng, chunks = drawn["rank"], np.random.default_rng(drawn["seed"]), drawn["chunks"]
    wider = tuple(
        (low + more, high) for (low, high), more in zip(drawn["window"]["padding"], drawn["more"], strict=True)
    )
    window = {"kernel_size": drawn["kernel"], **drawn["window"], "padding": wider}
    x = whole_numbers(rng, drawn["shape"])
    try:
        columns = F.im2col(x, **window)
    except ValueError:  # no window fits
        return
    if draw(st.booleans()):
        x, columns = x[0], columns[0]
    image, lazy = da.from_array(x, chunks=chunks(x.shape)), da.from_array(columns, chunks=chunks(columns.shape))
    expect_same(da, F.im2col(image, **window), columns, exactly=True)
    expect_same(da, F.im2col_backward(lazy, image, **window), F.im2col_backward(columns, x, **window), exactly=True)
    size = x.shape[-rank:]
    expect_same(da, F.col2im(lazy, size, **window), F.col2im(columns, size, **window), exactly=True)
    expected = F.col2im_backward(x, columns, size, **window)
    expect_same(da, F.col2im_backward(image, lazy, size, **window), expected, exactly=True)


@examples(100)
@given(case=st.data())
def test_drawn_padding(dask: Any, case: st.DataObject) -> None:
    da, draw = import_module("dask.array"), case.draw
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    dtype = draw(st.sampled_from(["float16", "float32", "int32", "complex64"]))
    x = (whole_numbers(np.random.default_rng(0), shape) / 8).astype(dtype)
    pad = draw(st.lists(st.integers(-2, 4), max_size=2 * len(shape)).filter(lambda pad: len(pad) % 2 == 0))
    mode = draw(st.sampled_from(["constant", "reflect", "replicate", "circular", "symmetric"]))
    options = {"pad": pad, "mode": mode, "value": draw(st.sampled_from([None, 3])) if mode == "constant" else None}
    image = da.from_array(x, chunks=drawn_chunks(draw, shape))
    try:
        expected = F.pad(x, **options)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            F.pad(image, **options)
        return
    expect_same(da, F.pad(image, **options), expected, exactly=True)
    upstream = (whole_numbers(np.random.default_rng(1), expected.shape) / 7).astype(dtype)
    grad = da.from_array(upstream, chunks=drawn_chunks(draw, expected.shape))
    (of_x,) = F.pad_backward(grad, image, **options)
    assert of_x.chunks == image.chunks
    expect_same(da, (of_x,), F.pad_backward(upstream, x, **options), exactly=True)


@pytest.mark.parametrize(("size", "out"), [(12, 4), (12, 8), (7, 3), (5, 9), (9, 1)])
def test_adaptive_windows(da: Any, size: int, out: int) -> None:
    x = whole_numbers(np.random.default_rng(0), (1, 2, size))
    lazy = da.from_array(x, chunks=(1, 2, 2))
    expected = F.adaptive_max_pool1d(x, out, return_indices=True)
    expect_same(da, F.adaptive_max_pool1d(lazy, out, return_indices=True), expected, exactly=True)
    expect_same(da, F.adaptive_avg_pool1d(lazy, out), F.adaptive_avg_pool1d(x, out))
    grad = whole_numbers(np.random.default_rng(1), expected[0].shape)
    lazy_grad = da.from_array(grad, chunks=(1, 1, 2))
    expect_same(da, F.adaptive_avg_pool1d_backward(lazy_grad, lazy, out), F.adaptive_avg_pool1d_backward(grad, x, out))


# --- Graphs -------------------------------------------------------------------------------------------------------


@pytest.mark.table(20)
@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_is_computed_when_a_graph_is_built(da: Any, name: str) -> None:
    def never(block: Array) -> Array:
        raise AssertionError("computed")

    arguments = {
        key: da.from_array(value, chunks=1).map_blocks(never, meta=value[(slice(0, 0),) * value.ndim])
        if isinstance(value, np.ndarray)
        else value
        for key, value in of_dask(name).items()
    }
    found = getattr(F, name)(**arguments)
    first = next(each for each in (found if isinstance(found, tuple) else (found,)) if each is not None)
    with pytest.raises(AssertionError, match="computed"):
        first.compute(scheduler="sync")


def test_chunks_of_a_result_follow_those_of_the_image(da: Any) -> None:
    x, w = da.zeros((4, 3, 32, 30), chunks=(2, 3, 8, (10, 20))), np.zeros((5, 3, 3, 3))
    assert F.conv2d(x, w, padding=1).chunks == ((2, 2), (5,), (8, 8, 8, 8), (10, 20))
    assert F.conv2d(x, w, padding=1, stride=2).chunks == ((2, 2), (5,), (4, 4, 4, 4), (5, 10))
    assert F.max_pool2d(x, 2).chunks == ((2, 2), (3,), (4, 4, 4, 4), (5, 10))
    assert F.conv_transpose2d(x, np.zeros((3, 5, 2, 2)), stride=2).chunks == ((2, 2), (5,), (16,) * 4, (20, 40))


def test_a_chunk_of_a_result_reads_no_more_than_its_windows(da: Any) -> None:
    read = []

    def noted(block: Array, block_info: Any = None) -> Array:
        read.append(block_info[0]["chunk-location"][2])
        return block

    x = da.zeros((1, 1, 40), chunks=(1, 1, 4)).map_blocks(noted, dtype=float, meta=np.zeros((0, 0, 0)))
    F.conv1d(x, np.ones((1, 1, 3)), padding=1).blocks[0, 0, 5].compute(scheduler="sync")
    assert sorted(read) == [4, 5, 6]


def test_a_parameter_is_in_the_graph_once(da: Any) -> None:
    w = np.ones((2, 1, 3))
    graph = dict(F.conv1d(da.zeros((1, 1, 40), chunks=(1, 1, 4)), w).__dask_graph__())
    assert (
        sum(np.shares_memory(w, value) for value in map(value_of, graph.values()) if isinstance(value, np.ndarray)) == 1
    )


def value_of(task: Any) -> Any:
    return getattr(task, "value", task)


def test_equal_calls_have_equal_names_and_others_have_not(da: Any) -> None:
    x, w = da.zeros((1, 1, 40), chunks=(1, 1, 4)), np.ones((2, 1, 3))
    assert F.conv1d(x, w).name == F.conv1d(x, w.copy()).name
    assert len({F.conv1d(x, w).name, F.conv1d(x, 2 * w).name, F.conv1d(x, w, stride=2).name}) == 3


def test_tasks_compute_as_chosen_where_the_graph_is_built(da: Any) -> None:
    x, w = da.zeros((1, 1, 12), chunks=(1, 1, 4), dtype=np.float32), np.ones((1, 1, 3), np.float32)
    with gpucnn.backend("numpy"), gpucnn.algorithm("winograd"), pytest.raises(ValueError, match="winograd"):
        F.conv1d(x, w)
    _tiles = import_module("gpucnn.dask._tiles")
    seen = []

    def noted(input: Array) -> Array:
        seen.append((numerics.choices(), backends.chosen()))
        return input

    with gpucnn.backend("numpy"), gpucnn.algorithm("direct"):
        tiles = _tiles.Tiles("noted", "1")
        expected = numerics.choices(), backends.chosen()
    source = _tiles.Source(x, tuple(map(_tiles.spans_of, x.chunks)))
    key = tiles.compute("image", noted, (1, 1, 3), {"input": source})
    tiles.result("image", key, x.chunks, x._meta).compute(scheduler="threads")
    assert seen == [expected] * 3
    with gpucnn.algorithm("direct"):
        direct = F.conv1d(x, w)
    assert direct.name != F.conv1d(x, w).name


def test_parameters_may_be_arrays_of_dask(da: Any) -> None:
    arguments = fresh("conv2d")
    lazy = {key: da.from_array(v, chunks=1) if key in PARAMETERS else v for key, v in arguments.items()}
    expect_same(da, F.conv2d(**lazy), F.conv2d(**arguments))


PARAMETERS_GRADIENTS: dict[str, Callable[[Any, Any], Any]] = {
    "conv1d_weight": lambda x, grad: (F.conv1d_weight(x, (4, 4, 1), grad),),
    "conv1d": lambda x, grad: F.conv1d_backward(grad, x, np.ones((4, 4, 1), x.dtype), np.ones(4, x.dtype))[1:],
    "bias_activation": lambda x, grad: F.bias_activation_backward(grad, x, np.ones(4, x.dtype))[1:2],
    "layer_norm": lambda x, grad: F.layer_norm_backward(grad, x, 6, *np.ones((2, 6), x.dtype))[1:],
}


@pytest.mark.parametrize("name", PARAMETERS_GRADIENTS)
def test_16_bit_sums_over_chunks_are_rounded_once(da: Any, name: str) -> None:
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((64, 4, 6)).astype(np.float16) for _ in range(2)]
    expected = PARAMETERS_GRADIENTS[name](*images)
    found = PARAMETERS_GRADIENTS[name](*(da.from_array(image, chunks=(1, 4, 6)) for image in images))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.compute(), other)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect", rng=0), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.5), nn.Conv2d(4, 2, 5, rng=1),
    ),
    "activations": lambda: nn.Sequential(
        *(getattr(nn, name)() for name in activation.__all__ if name not in ("Flatten", "Softmax")), nn.Softmax(1)
    ),
    "U-Net": lambda: nn.models.UNet(num_classes=2, in_channels=3, width=4, depth=2, rng=0),
    "ResNet": lambda: nn.models.resnet18(num_classes=4, width=4, rng=0),
    "MobileNet": lambda: nn.models.mobilenet_v2(num_classes=3, rng=0),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.table(5)
def test_a_network_in_evaluation_is_a_graph_of_its_layers(da: Any, name: str) -> None:
    model = NETWORKS[name]().eval()
    x = np.random.default_rng(0).standard_normal((2, 3, 40, 36)).astype(np.float32)
    expect_same(da, model(da.from_array(x, chunks=(1, 3, 17, 12))), model(x))


def test_sums_over_chunks_repeat_bit_for_bit(da: Any) -> None:
    rng = np.random.default_rng(0)
    x, grad = (da.from_array(rng.standard_normal((3, 2, 50)).astype(np.float32), chunks=(1, 2, 3)) for _ in range(2))
    results = {F.conv1d_weight(x, (2, 2, 1), grad).compute(num_workers=4).tobytes() for _ in range(5)}
    assert len(results) == 1


def test_blocks_keep_their_kind(backend: ArrayBackend, da: Any) -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 9, 8)).astype(np.float32)
    w = np.random.default_rng(1).standard_normal((6, 2, 3, 3)).astype(np.float32)
    empty = backend.asarray(np.zeros((0, 0, 0, 0), np.float32))
    lazy = da.from_array(x, chunks=(1, 3, 4, (3, 5))).map_blocks(backend.asarray, meta=empty)
    ones = np.ones(4, np.float32)
    calls: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("conv2d", [x, w], {"padding": 1, "groups": 2}),
        ("max_pool2d", [x, 3, 2, 1], {"return_indices": True}),
        ("max_pool2d_backward", [x[:, :, ::2, ::2], x, 2, 2], {"ceil_mode": True}),
        ("group_norm_backward", [x, x, 2, ones, ones], {}),
        ("batch_norm", [x, None, None, ones, ones], {"training": True, "activation": "relu"}),
    ]
    for name, arguments, options in calls:
        expected = getattr(F, name)(*arguments, **options)
        taken = [lazily(lazy, backend, value) if isinstance(value, np.ndarray) else value for value in arguments]
        found = getattr(F, name)(*taken, **options)
        pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
        for one, other in pairs:
            values = one.compute(scheduler="sync")
            assert type(values) is type(one._meta) is type(empty)
            assert_close(backend.asnumpy(values), other, factor=4)  # the sums of gradients are over all positions


def lazily(lazy: Any, backend: ArrayBackend, value: Array) -> Any:
    """An image as Dask's array, a part of `lazy` or all of it, and a parameter as an array of the backend's."""
    if value.ndim < 4 or value.shape[0] != lazy.shape[0]:
        return backend.asarray(value)
    return lazy if value.shape == lazy.shape else lazy[:, :, ::2, ::2].map_blocks(backend_copy, meta=lazy._meta)


def backend_copy(block: Any) -> Any:
    backend = backend_of(block)
    copy = backend.empty(block.shape, block.dtype, block)
    copy[...] = block
    return copy


# --- Errors -------------------------------------------------------------------------------------------------------


@pytest.mark.table(20)
@pytest.mark.parametrize("name", OTHERS)
def test_other_operations_say_what_to_do(da: Any, name: str) -> None:
    arguments = {
        key: da.from_array(value) if isinstance(value, np.ndarray) else value for key, value in fresh(name).items()
    }
    with pytest.raises(TypeError, match=rf"^{said_name(name)}: \w+ is an array of dask, .*\.compute\(\).*map_blocks"):
        getattr(F, name)(**arguments)


@pytest.mark.parametrize(
    ("name", "others", "error", "message"),
    [
        ("conv2d", {"padding": -1}, ValueError, "conv2d: padding is -1, expected at least 0"),
        ("conv2d", {"groups": 3}, ValueError, "C a multiple of groups = 3"),
        ("conv2d", {"weight": np.ones((4, 1, 2, 2), np.float32)}, TypeError, "expected one dtype for all"),
        ("conv2d_backward", {"grad_output": np.ones((3, 4, 3, 3))}, ValueError, "input has shape .* expected N = 3"),
        ("conv2d", {"out": np.ones((2, 4, 3, 3))}, TypeError, "conv2d: out is given with arrays of dask"),
        ("batch_norm", {}, TypeError, "batch_norm: running_mean and running_var are given with arrays of dask"),
        ("layer_norm", {"return_statistics": True}, TypeError, "layer_norm: return_statistics is True"),
        ("layer_norm", {"normalized_shape": (4, 3)}, ValueError, r"input has shape \(2, 4, 3, 3\), expected it to end"),
        ("conv2d_backward", {"grad_output": np.ones((2, 4, 1, 1))}, ValueError, r"expected \(2, 4, 4, 3\)"),
        ("pad_backward", {"grad_output": np.ones((2, 4, 3, 3))}, ValueError, r"expected \(2, 4, 3, 5\)"),
        ("col2im", {"output_size": 7}, ValueError, "col2im: input has 4 columns, expected one for each"),
    ],
)
def test_errors_come_before_anything_is_computed(
    da: Any, name: str, others: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        called(da, name, fresh(name, **others), pieces_of)


@pytest.mark.parametrize("name", ["conv2d", "max_pool2d", "pad", "batch_norm"])
def test_masked_chunks_are_refused_when_the_graph_is_built(da: Any, name: str) -> None:
    arguments = of_dask(name)
    masked = da.ma.masked_greater(da.from_array(arguments.pop("input"), chunks=2), 0)
    with pytest.raises(TypeError, match=f"{name}: input is a masked array"):
        getattr(F, name)(masked, **arguments)


def test_chunks_of_unknown_sizes_are_refused(da: Any) -> None:
    x = da.ones((4, 1, 5), chunks=2)
    with pytest.raises(ValueError, match=r"relu: input has chunks of unknown sizes, .*compute_chunk_sizes"):
        F.relu(x[x[:, 0, 0] > 0])
