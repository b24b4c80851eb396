"""Fused bias, residual and activation on the GPU: one pass over the arrays, forward and backward."""

from __future__ import annotations

from typing import NamedTuple

from gpucnn.backends.base import Epilogue
from gpucnn.backends.cuda.convolution.split_k import add_parts
from gpucnn.backends.cuda.device.limits import skewed
from gpucnn.backends.cuda.device.runtime import Array, Runtime
from gpucnn.backends.cuda.device.sources import Kernel
from gpucnn.backends.cuda.elementwise.packing import pack
from gpucnn.backends.cuda.elementwise.tiles import BiasSums, bias_chunk, bias_sums
from gpucnn.backends.cuda.launch.plans import Fields, Layout, Work, empty, launch, layout, strides
from gpucnn.backends.dtypes import accumulator, name_of
from gpucnn.backends.layout import is_dense
from gpucnn.backends.listening import note_computed

FORWARD = Kernel("bias_activation", "BiasParams")
BACKWARD = Kernel("bias_activation_backward", "BiasSumParams")
ACTIVATIONS = {"none": 0, "relu": 1, "leaky_relu": 2, "relu6": 3}


def bias_activation(runtime: Runtime, x: Array, bias: Array | None, y: Array, epilogue: Epilogue) -> None:
    """Y = epilogue of ``x + bias`` for x [N, C, P] and bias [C], rounded once."""
    x, residual = in_order_of(runtime, x, y), epilogue.residual
    residual = None if residual is None else in_order_of(runtime, residual, y)
    arrays = {"x": x, "bias": bias, "residual": residual, "y": y}
    facts = {"activation": activation_of(epilogue), "sum_bytes": accumulator(x.dtype).itemsize}
    facts |= {"biases": bias_dtype(x, bias)}
    launch(runtime, FORWARD, x.dtype, arrays, _forward_work, **facts)


def bias_dtype(x: Array, bias: Array | None) -> str:
    """The macro BIAS of a program: the name of the bias's dtype, which is float32 or that of x."""
    return name_of((x if bias is None else bias).dtype)


class Activation(NamedTuple):
    """An activation as kernels know it: its number, or that of a smooth one, which each build is made for."""

    number: int
    slope: float
    smooth: int

    @property
    def fields(self) -> Fields:
        """Those of a kernel's parameters."""
        return {"activation": self.number, "negative_slope": self.slope}


def activation_of(epilogue: Epilogue) -> Activation:
    """The activation of an epilogue."""
    name = epilogue.activation
    return Activation(ACTIVATIONS.get(name, 0), float(epilogue.negative_slope), epilogue.smooth)


def _forward_work(
    x: Layout,
    bias: Layout | None,
    residual: Layout | None,
    y: Layout,
    activation: Activation,
    sum_bytes: int,
    biases: str,
) -> Work:
    c, run = x.shape[1], run_of(x) or 1
    width = _width(x, residual, y)
    chunk, slots = bias_chunk(c, run, x.itemsize, sum_bytes)
    fields = {
        **{"count": x.size, "c": c, "run": run, "chunk": chunk, "slots": slots},
        **strides("bias", ("c",), bias),
        **activation.fields,
    }
    return Work(
        fields,
        blocks=-(-x.size // chunk),
        extents=(x.size + 2 * chunk,),
        constants=(("PACK", width), ("BIAS", biases), ("SMOOTH", activation.smooth)),
        shared_bytes=(skewed(slots, sum_bytes) + 1) * sum_bytes,
    )


def bias_activation_backward(
    runtime: Runtime, grad_y: Array, y: Array, grad_x: Array, grad_bias: Array | None, epilogue: Epilogue
) -> None:
    """grad_x [N, C, P], by the signs of y [N, C, P], and the gradient of the bias [C]: its sum over N and P."""
    grad_y, y = in_order_of(runtime, grad_y, grad_x), in_order_of(runtime, y, grad_x)
    _backward(runtime, grad_y, y, grad_x, grad_bias, epilogue)


def channel_sums(runtime: Runtime, x: Array, sums: Array) -> None:
    """The sums [C] of x [N, C, *] over all but its channels; of integers and complex numbers by the array library."""
    if x.dtype.kind in "ciu":
        note_computed()
        sums[...] = runtime.xp.sum(x, axis=(0, *range(2, x.ndim)), dtype=x.dtype)
        return
    planes = _without_gaps(runtime, x.reshape(*x.shape[:2], -1 if x.size else 0))
    _backward(runtime, planes, None, None, sums, Epilogue())


def _backward(
    runtime: Runtime, grad_y: Array, y: Array | None, grad_x: Array | None, sums: Array | None, epilogue: Epilogue
) -> None:
    """Write grad_x, if requested, and its sums [C]; all are dense [N, C, P] of one memory order."""
    n, c, p = grad_y.shape
    run = run_of(grad_y) or 1
    width = _width(*(None if array is None else layout(array) for array in (grad_y, y, grad_x)))
    chosen = bias_sums(n * p // run, c, run, width, grad_y.itemsize)
    parts = empty(runtime, (chosen.splits, c), accumulator(grad_y.dtype))
    arrays = {"grad_y": grad_y, "y": y, "grad_x": grad_x, "parts": parts}
    facts = {"sums": chosen, "run": run, "activation": activation_of(epilogue)}
    launch(runtime, BACKWARD, grad_y.dtype, arrays, _backward_work, **facts)
    if sums is not None:
        add_parts(runtime, parts, sums)


def _backward_work(grad_y: Layout, sums: BiasSums, run: int, activation: Activation) -> Work:
    n, c, p = grad_y.shape
    fields = {
        **{"c": c, "run": run, "rows": n * p // run},
        **{name: getattr(sums, name) for name in ("piece", "pieces", "segments", "splits", "lanes", "teams")},
        **activation.fields,
    }
    reach = (sums.splits * sums.segments + 256, grad_y.size + 256 * sums.pack * 4)
    return Work(fields, blocks=sums.splits * sums.groups, extents=reach, constants=(("PACK", sums.pack),))


# --- Memory order -------------------------------------------------------------------------------------------------


def run_of(x: Array | Layout) -> int:
    """Contiguous elements of one channel of x [N, C, P]: P or 1; 0 where x has gaps or another order."""
    return next((run for order, run in (((0, 1, 2), x.shape[2]), ((0, 2, 1), 1)) if is_dense(x, order)), 0)


def _without_gaps(runtime: Runtime, x: Array) -> Array:
    """X [N, C, P], or a dense copy in the closer of both memory orders."""
    return x if not x.size or run_of(x) else _copied(runtime, x, x)


def in_order_of(runtime: Runtime, x: Array, other: Array) -> Array:
    """X [N, C, P], or a copy in the order of `other`, which has no gaps."""
    return x if not x.size or run_of(x) == run_of(other) else _copied(runtime, x, other)


def _copied(runtime: Runtime, x: Array, like: Array) -> Array:
    copy = empty(runtime, x.shape, x.dtype, like=like)
    pack(runtime, x, copy)
    return copy


def _width(*arrays: Layout | None) -> int:
    """Vector width, in elements, of accesses to any of the arrays."""
    return min(array.alignment // array.itemsize or 1 for array in arrays if array is not None)
