"""Convolutions of Dask's arrays, transposed ones, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import gpucnn.functional as F
from gpucnn.backends import backend_of
from gpucnn.backends.dtypes import accumulator, of_products
from gpucnn.dask._calls import DaskCall
from gpucnn.dask._tiles import Index, Source, Spans, sizes_of, spans_of, whole
from gpucnn.dask._windows import inputs_by_chunk, outputs_by_chunk, outputs_within, reading, spreading
from gpucnn.functional._call import needed
from gpucnn.functional._convolution_geometry import geometry_of, transposed_geometry
from gpucnn.geometry import Axis, ConvGeometry

Array = Any
Given = dict[str, Any]


def _axes(geometry: ConvGeometry) -> tuple[Axis, ...]:
    return geometry.axes[3 - geometry.rank :]


def _geometry(call: DaskCall, input_shape: Sequence[int], weight_shape: Sequence[int]) -> ConvGeometry:
    names = ("stride", "padding", "dilation", "groups")
    shapes = tuple(map(int, input_shape)), tuple(map(int, weight_shape))
    assert call.rank is not None
    return geometry_of(call.op, call.rank, *shapes, *(call.options[name] for name in names))


def _at(readings: Sequence[Sequence[Any]], index: Index) -> list[Any]:
    """Of each spatial axis what a task reads."""
    return [along[at] for along, at in zip(readings, index[2:], strict=True)]


# --- Forward ------------------------------------------------------------------------------------------------------


def _conv(op: str, given: Given) -> Array:
    """`conv{n}d` and `conv{n}d_activation`."""
    call = DaskCall(op, given)
    x = call.images["input"]
    axes = _axes(_geometry(call, x.shape, call.parameters["weight"].shape))
    outputs = [outputs_by_chunk(axis, sizes) for axis, sizes in zip(axes, x.chunks[2:], strict=True)]
    others = {name: array for name, array in call.images.items() if name != "input"}
    return _convolved(call, F.__dict__[op], x, axes, outputs, call.trial, others, call.sources(), call.options)


def _convolved(
    call: DaskCall,
    function: Callable[..., Array],
    x: Array,
    axes: Sequence[Axis],
    outputs: Sequence[Spans],
    trial: Array,
    others: dict[str, Array],
    parameters: dict[str, Source],
    options: Given,
) -> Array:
    """The outputs of a convolution, each chunk from the part of x that it reads."""
    readings = [[reading(axis, span) for span in spans] for axis, spans in zip(axes, outputs, strict=True)]
    batch = spans_of(x.chunks[0])
    read = [tuple((each.start, each.stop) for each in along) for along in readings]
    sources = {
        "input": Source(x, (batch, whole(x.shape[1]), *read)),
        **{name: Source(array, (batch, whole(array.shape[1]), *outputs)) for name, array in others.items()},
        **parameters,
    }

    def padded(index: Index) -> Given:
        return {**options, "padding": tuple((each.low, each.high) for each in _at(readings, index))}

    return _image(call, function, sources, (batch, *outputs), trial, padded)


def _image(
    call: DaskCall,
    function: Callable[..., Array],
    sources: dict[str, Source],
    spans: Sequence[Spans],
    trial: Array,
    options: Callable[[Index], Given],
) -> Array:
    """The image whose chunks have these spans along the batch and the spatial axes, and all channels."""
    batch, *space = spans
    tiles = call.tiles()
    key = tiles.compute("image", function, (len(batch), 1, *map(len, space)), sources, options)
    chunks = (sizes_of(batch), trial.shape[1:2], *map(sizes_of, space))
    return call.give_back(tiles.result("image", key, chunks, trial))


# --- Transposed ---------------------------------------------------------------------------------------------------


def _conv_transpose(op: str, given: Given) -> Array:
    call = DaskCall(op, given)
    x, weight = call.images["input"], call.parameters["weight"]
    names = ("stride", "padding", "output_padding", "dilation", "groups")
    assert call.rank is not None
    axes = _axes(transposed_geometry(op, call.rank, x.shape, weight.shape, *(call.options[name] for name in names)))
    inputs = [inputs_by_chunk(axis, sizes) for axis, sizes in zip(axes, x.chunks[2:], strict=True)]

    def cut_off(readings: list[Any], sizes: tuple[int, ...]) -> Given:
        return {
            "padding": tuple((each.low, each.high) for each in readings),
            "output_padding": tuple(each.extra for each in readings),
        }

    return _spread(call, call.function, "input", x, axes, inputs, call.trial, cut_off)


def _conv_input(op: str, given: Given) -> Array:
    call = DaskCall(op, given)
    grad, shape = call.images["grad_output"], call.options["input_size"]
    axes = _axes(_geometry(call, shape, call.parameters["weight"].shape))
    inputs = [inputs_by_chunk(axis, sizes) for axis, sizes in zip(axes, grad.chunks[2:], strict=True)]
    return _gradient_of_input(call, grad, axes, inputs, call.trial)


def _gradient_of_input(
    call: DaskCall, grad: Array, axes: Sequence[Axis], inputs: Sequence[Spans], trial: Array
) -> Array:
    def cut_off(readings: list[Any], sizes: tuple[int, ...]) -> Given:
        padding = tuple((each.low, each.high) for each in readings)
        return {"padding": padding, "input_size": (sizes[0], trial.shape[1], *sizes[1:])}

    function = getattr(F, f"conv{call.rank}d_input")
    return _spread(call, function, "grad_output", grad, axes, inputs, trial, cut_off)


def _spread(
    call: DaskCall,
    function: Callable[..., Array],
    argument: str,
    grad: Array,
    axes: Sequence[Axis],
    inputs: Sequence[Spans],
    trial: Array,
    cut_off: Callable[[list[Any], tuple[int, ...]], Given],
) -> Array:
    """Outputs spread back to an image, each chunk of it from the outputs that reach it.

    `cut_off` gives arguments from what is read along each axis and the sizes of the batch and of each axis.
    """
    readings = [[spreading(axis, span) for span in spans] for axis, spans in zip(axes, inputs, strict=True)]
    batch = spans_of(grad.chunks[0])
    read = [tuple((each.start, each.stop) for each in along) for along in readings]
    sources = {argument: Source(grad, (batch, whole(grad.shape[1]), *read)), **call.sources()}
    kept = {name: value for name, value in call.options.items() if name in ("stride", "dilation", "groups")}

    def options(index: Index) -> Given:
        spans = batch[index[0]], *_at(inputs, index)
        return {**kept, **cut_off(_at(readings, index), sizes_of(spans))}

    return _image(call, function, sources, (batch, *inputs), trial, options)


# --- Gradients of weights, sums over all chunks -------------------------------------------------------------------


def _conv_weight(op: str, given: Given) -> Array:
    call = DaskCall(op, given)
    x, grad = call.images["input"], call.images["grad_output"]
    geometry = _geometry(call, x.shape, call.options["weight_size"])
    return _gradient_of_weight(call, x, grad, _axes(geometry), call.trial, _conv_weight_of)


def _gradient_of_weight(
    call: DaskCall, x: Array, grad: Array, axes: Sequence[Axis], trial: Array, function: Callable[..., Array]
) -> Array:
    """The gradient of a weight: of each chunk of outputs its share, and their sum in the order of a fixed tree."""
    outputs = [outputs_within(axis, sizes) for axis, sizes in zip(axes, grad.chunks[2:], strict=True)]
    readings = [[reading(axis, span) for span in spans] for axis, spans in zip(axes, outputs, strict=True)]
    batch = spans_of(grad.chunks[0])
    read = [tuple((each.start, each.stop) for each in along) for along in readings]
    sources = {
        "x": Source(x, (batch, whole(x.shape[1]), *read)),
        "grad": Source(grad, (batch, whole(grad.shape[1]), *outputs)),
    }
    kept = {name: value for name, value in call.options.items() if name in ("stride", "dilation", "groups")}
    kept |= {"rank": call.rank, "weight_size": trial.shape}

    def padded(index: Index) -> Given:
        return {**kept, "padding": tuple((each.low, each.high) for each in _at(readings, index))}

    grid = (len(batch), 1, *map(len, outputs))
    tiles = call.tiles()
    key = tiles.compute("weight-share", function, grid, sources, padded)
    return tiles.sum("weight", [key(index) for index in product(*map(range, grid))], trial)


def _conv_weight_of(rank: int, x: Array, grad: Array, **options: Any) -> Array:
    """The share of one chunk, in the dtype that sums are kept in."""
    wide = accumulator(of_products(x.dtype))
    share: Array = getattr(F, f"conv{rank}d_weight")(x, grad_output=grad, dtype=wide, **options)
    return share


def _transposed_weight_of(rank: int, x: Array, grad: Array, **options: Any) -> Array:
    """As `_conv_weight_of` for a transposed convolution, whose input is the `grad` of the one that it transposes."""
    if x.dtype.kind != "c":
        return _conv_weight_of(rank, x, grad, **options)
    return _conv_weight_of(rank, x.conj(), grad.conj(), **options)  # whose image is conjugated once more


def _channel_sums_of(grad: Array) -> Array:
    backend = backend_of(grad)
    sums = backend.empty(grad.shape[1:2], accumulator(of_products(grad.dtype)), on=grad)
    backend.channel_sums(grad.astype(of_products(grad.dtype), copy=False), sums)
    return sums


def _gradient_of_bias(call: DaskCall, grad: Array, trial: Array) -> Array:
    spans = [whole(grad.shape[1]) if axis == 1 else spans_of(sizes) for axis, sizes in enumerate(grad.chunks)]
    grid = tuple(map(len, spans))
    tiles = call.tiles()
    key = tiles.compute("bias-share", _channel_sums_of, grid, {"grad": Source(grad, tuple(spans))})
    return tiles.sum("bias", [key(index) for index in product(*map(range, grid))], trial)


# --- Gradients of all arguments -----------------------------------------------------------------------------------


def _conv_backward(op: str, given: Given) -> tuple[Array | None, ...]:
    call = DaskCall(op, given)
    grad, x = call.images["grad_output"], call.images["input"]
    axes = _axes(_geometry(call, x.shape, call.parameters["weight"].shape))
    of_x, of_weight, of_bias = call.trial
    call.parameters = {"weight": call.parameters["weight"]}
    inputs = [spans_of(sizes) for sizes in x.chunks[2:]]
    return (
        None if of_x is None else _gradient_of_input(call, grad, axes, inputs, of_x),
        None if of_weight is None else _gradient_of_weight(call, x, grad, axes, of_weight, _conv_weight_of),
        None if of_bias is None else _gradient_of_bias(call, grad, of_bias),
    )


def _conv_transpose_backward(op: str, given: Given) -> tuple[Array | None, ...]:
    call = DaskCall(op, given)
    grad, x, weight = call.images["grad_output"], call.images["input"], call.parameters["weight"]
    names = ("stride", "padding", "output_padding", "dilation", "groups")
    assert call.rank is not None
    axes = _axes(transposed_geometry(op, call.rank, x.shape, weight.shape, *(call.options[name] for name in names)))
    of_x, of_weight, of_bias = call.trial
    call.parameters = {"weight": weight.conj() if weight.dtype.kind == "c" else weight}
    kept = {name: call.options[name] for name in ("stride", "dilation", "groups")}
    outputs = [outputs_within(axis, sizes) for axis, sizes in zip(axes, x.chunks[2:], strict=True)]
    forward = getattr(F, f"conv{call.rank}d")
    return (
        None if of_x is None else _convolved(call, forward, grad, axes, outputs, of_x, {}, call.sources(), kept),
        None if of_weight is None else _gradient_of_weight(call, grad, x, axes, of_weight, _transposed_weight_of),
        None if of_bias is None else _gradient_of_bias(call, grad, of_bias),
    )


def _conv_input_backward(op: str, given: Given) -> tuple[Array | None, ...]:
    """Gradients with respect to the weight and the output's gradient: a convolution is linear in each of them."""
    call = DaskCall(op, given)
    rank, upstream, grad, weight = call.rank, *(given[name] for name in ("grad_grad_input", "grad_output", "weight"))
    window = {name: given[name] for name in ("stride", "padding", "dilation", "groups")}
    needs = needed(op, given["needs"], 2)
    return (
        getattr(F, f"conv{rank}d_weight")(upstream, weight.shape, grad, **window) if needs[0] else None,
        getattr(F, f"conv{rank}d")(upstream, weight, **window) if needs[1] else None,
    )


def _conv_weight_backward(op: str, given: Given) -> tuple[Array | None, ...]:
    """Gradients with respect to the input and the output's gradient."""
    call = DaskCall(op, given)
    rank, upstream, x, grad = call.rank, *(given[name] for name in ("grad_grad_weight", "input", "grad_output"))
    window = {name: given[name] for name in ("stride", "padding", "dilation", "groups")}
    needs = needed(op, given["needs"], 2)
    return (
        getattr(F, f"conv{rank}d_input")(x.shape, upstream, grad, **window) if needs[0] else None,
        getattr(F, f"conv{rank}d")(x, upstream, **window) if needs[1] else None,
    )


def _conv_activation_backward(op: str, given: Given) -> tuple[Array | None, ...]:
    """The activation's gradient, from the recomputed values before it, and then the convolution's."""
    call = DaskCall(op, given)
    arrays = [call.images["input"], *(given[name] for name in ("weight", "bias"))]
    window = {name: given[name] for name in ("stride", "padding", "dilation", "groups")}
    finish = {name: given[name] for name in ("activation", "negative_slope")}
    residual, output = call.images.get("residual"), call.images.get("output")
    needs = needed(op, given["needs"], 4)
    before = getattr(F, f"conv{call.rank}d")(*arrays, **window)
    grad, _, of_residual = F.bias_activation_backward(
        call.images["grad_output"], before, None, residual, **finish, output=output, needs=(True, False, needs[3])
    )
    of_x, *others = getattr(F, f"conv{call.rank}d_backward")(grad, *arrays, **window, needs=needs[:3])
    give_back = call.give_back
    return (
        None if of_x is None else give_back(of_x),
        *others,
        None if of_residual is None else give_back(of_residual),
    )


OPERATIONS = {
    "conv{n}d": _conv,
    "conv{n}d_activation": _conv,
    "conv{n}d_backward": _conv_backward,
    "conv{n}d_activation_backward": _conv_activation_backward,
    "conv{n}d_input": _conv_input,
    "conv{n}d_input_backward": _conv_input_backward,
    "conv{n}d_weight": _conv_weight,
    "conv{n}d_weight_backward": _conv_weight_backward,
    "conv_transpose{n}d": _conv_transpose,
    "conv_transpose{n}d_backward": _conv_transpose_backward,
}
