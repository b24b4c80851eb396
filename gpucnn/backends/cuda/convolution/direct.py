"""Direct convolution on the GPU: each result is the sum of one thread or one block.

A locally connected layer is a convolution whose weight varies with the output position, so both run the same kernels.
"""

from __future__ import annotations

from math import prod

from gpucnn.backends.cuda.convolution.fields import conv_fields, extents
from gpucnn.backends.cuda.convolution.split_k import add_parts, weight_block, weight_splits
from gpucnn.backends.cuda.device.runtime import Array, Runtime
from gpucnn.backends.cuda.device.sources import Kernel
from gpucnn.backends.cuda.elementwise.bias_activation import bias_dtype
from gpucnn.backends.cuda.launch.plans import SPACE, Fields, Layout, Work, empty, launch
from gpucnn.backends.dtypes import kernel_accumulator, name_of
from gpucnn.geometry import ConvGeometry

FORWARD = Kernel("conv_forward", "ConvParams")
BACKWARD_INPUT = Kernel("conv_backward_input", "ConvParams")
BACKWARD_WEIGHT = Kernel("conv_backward_weight", "ConvParams", block=128)
LOCAL_BACKWARD_WEIGHT = Kernel("local_backward_weight", "ConvParams")

MAX_REPAIR_THREADS = 8 * 132 * 256


def forward(
    runtime: Runtime,
    x: Array,
    w: Array,
    bias: Array | None,
    y: Array,
    geometry: ConvGeometry,
    not_finite: Array | None = None,
) -> None:
    """Y [N, OC, OD, OH, OW], of a convolution or of a locally connected layer.

    Given `not_finite`, int32 [1], only those of y are written that are infinite or NaN, and none where it is 0.
    """
    arrays = {"x": x, "w": w, "bias": bias, "not_finite": not_finite, "y": y}
    launch(runtime, FORWARD, x.dtype, arrays, _forward_work, geometry=geometry, biases=bias_dtype(x, bias))


def _forward_work(
    x: Layout,
    w: Layout,
    bias: Layout | None,
    not_finite: Layout | None,
    y: Layout,
    geometry: ConvGeometry,
    biases: str,
) -> Work:
    fields = conv_fields(geometry, x, w, y, bias, written=y)
    return _work(fields, y.size, geometry, biases, not_finite)


def backward_input(
    runtime: Runtime,
    grad_y: Array,
    w: Array,
    bias: Array | None,
    grad_x: Array,
    geometry: ConvGeometry,
    not_finite: Array | None = None,
) -> None:
    """grad_x [N, C, D, H, W], of a convolution or of a locally connected layer; `not_finite` as `forward` takes it."""
    arrays = {"grad_y": grad_y, "w": w, "bias": bias, "not_finite": not_finite, "grad_x": grad_x}
    facts = {"geometry": geometry, "biases": bias_dtype(grad_y, bias)}
    launch(runtime, BACKWARD_INPUT, grad_y.dtype, arrays, _backward_input_work, **facts)


def _backward_input_work(
    grad_y: Layout,
    w: Layout,
    bias: Layout | None,
    not_finite: Layout | None,
    grad_x: Layout,
    geometry: ConvGeometry,
    biases: str,
) -> Work:
    fields = conv_fields(geometry, grad_x, w, grad_y, bias, written=grad_x)
    inputs = prod(fields[f"residues_{name}"] * fields[f"run_{name}"] for name in SPACE)  # residues of one length
    return _work(fields, grad_x.shape[0] * grad_x.shape[1] * inputs, geometry, biases, not_finite)


def _work(fields: Fields, results: int, geometry: ConvGeometry, biases: str, not_finite: Layout | None) -> Work:
    """One thread for each result; of those that are not finite, which are few, as many blocks as run at once."""
    constants = (("BIAS", biases), ("LEAVES_FINITE", int(not_finite is not None)))
    reach = extents(geometry)
    if not_finite is None:
        return Work(fields, results, extents=reach, constants=constants)
    threads = min(results, MAX_REPAIR_THREADS)
    return Work(fields, threads, extents=(*reach, results + threads), constants=constants)


def backward_weight(runtime: Runtime, x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """Split-K wgrad: sums over parts of the batch and its positions, one block each, then the parts' sum in order."""
    positions = x.shape[0] * prod(geometry.output_size)
    splits = weight_splits(grad_w.size, positions)
    parts = empty(runtime, (splits, *grad_w.shape), kernel_accumulator(x.dtype))
    arrays = {"x": x, "grad_y": grad_y, "parts": parts}
    launch(runtime, BACKWARD_WEIGHT, x.dtype, arrays, _backward_weight_work, geometry=geometry)
    add_parts(runtime, parts, grad_w)


def _backward_weight_work(x: Layout, grad_y: Layout, parts: Layout, geometry: ConvGeometry) -> Work:
    splits = parts.shape[0]
    run = -(-x.shape[0] * prod(geometry.output_size) // splits)
    fields = conv_fields(geometry, x, None, grad_y, written=x)
    block = weight_block(run)
    reach = (*extents(geometry), splits * run + block)
    return Work(fields | {"splits": splits, "run": run}, blocks=parts.size, block=block, extents=reach)


# --- Locally connected layers: w is [OC, OD, OH, OW, C, KD, KH, KW] -----------------------------------------------

locally_connect = forward


def locally_connect_backward_input(
    runtime: Runtime, grad_y: Array, w: Array, grad_x: Array, geometry: ConvGeometry
) -> None:
    """grad_x [N, C, D, H, W]."""
    backward_input(runtime, grad_y, w, None, grad_x, geometry)


def locally_connect_backward_weight(
    runtime: Runtime, x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry
) -> None:
    """grad_w [OC, OD, OH, OW, C, KD, KH, KW]: each filter's sum over the batch."""
    arrays = {"x": x, "grad_y": grad_y, "grad_w": grad_w}
    facts = {"geometry": geometry, "target": name_of(grad_w.dtype)}
    launch(runtime, LOCAL_BACKWARD_WEIGHT, x.dtype, arrays, _local_weight_work, **facts)


def _local_weight_work(x: Layout, grad_y: Layout, grad_w: Layout, geometry: ConvGeometry, target: str) -> Work:
    fields = conv_fields(geometry, x, grad_w, grad_y, written=grad_w)
    return Work(fields, grad_w.size, extents=extents(geometry), constants=(("TARGET", target),))
