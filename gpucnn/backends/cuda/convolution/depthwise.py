"""Depthwise convolution on the GPU, tiled in shared memory so that each array is read and written once."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

from gpucnn.backends.cuda.convolution import depthwise_tiles
from gpucnn.backends.cuda.convolution.depthwise_tiles import ALONG_CHANNELS, BLOCK, Request, Side, Tile, Walk
from gpucnn.backends.cuda.convolution.fields import axis_fields, extents
from gpucnn.backends.cuda.convolution.split_k import add_parts
from gpucnn.backends.cuda.device.limits import MAX_SHARED_BYTES, power_of_two
from gpucnn.backends.cuda.device.runtime import MAX_BYTES, Array, Runtime
from gpucnn.backends.cuda.device.sources import Kernel
from gpucnn.backends.cuda.elementwise.bias_activation import bias_dtype
from gpucnn.backends.cuda.elementwise.packing import pack
from gpucnn.backends.cuda.launch.plans import IMAGE, SPACE, Fields, Layout, Work, dense, empty, launch, layout, strides
from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.layout import is_channels_last, is_dense, planes
from gpucnn.geometry import ConvGeometry

FORWARD = Kernel("depthwise_forward", "DepthwiseParams", block=BLOCK)
BACKWARD_INPUT = Kernel("depthwise_backward_input", "DepthwiseParams", block=BLOCK)
BACKWARD_WEIGHT = Kernel("depthwise_backward_weight", "DepthwiseParams", block=BLOCK)
FILTER = ("oc", "c", "kd", "kh", "kw")


class Plan(NamedTuple):
    """A launch without its array addresses."""

    request: Request
    tile: Tile
    walk: Walk


def takes(direction: str, x: Layout, y: Layout, geometry: ConvGeometry) -> bool:
    """Whether these kernels compute a depthwise convolution over arrays laid out as x and y, or copies in C order."""
    if _fits(direction, x, y, geometry):
        return True
    copy_x, copy_y = (dense(image.shape, image.itemsize) for image in (x, y))
    return (is_channels_last(x) or is_channels_last(y)) and _fits(direction, copy_x, copy_y, geometry)


def _fits(direction: str, x: Layout, y: Layout, geometry: ConvGeometry) -> bool:
    request = _request(direction, x, y, geometry)
    return request is not None and _plan(request) is not None


def forward(runtime: Runtime, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Write y [N, C * M, OD, OH, OW] from x [N, C, D, H, W], w [C * M, 1, KD, KH, KW] and bias [C * M]."""
    fits = _fits("forward", layout(x), layout(y), geometry)
    arrays = {"x": x, "w": w, "bias": bias, "y": y}
    if not fits:
        arrays |= {"x": _in_planes(runtime, x), "y": empty(runtime, y.shape, y.dtype)}
    launch(runtime, FORWARD, x.dtype, arrays, _forward_work, geometry=geometry, biases=bias_dtype(x, bias))
    if not fits:
        pack(runtime, planes(arrays["y"]), planes(y))


def backward_input(
    runtime: Runtime, grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry
) -> None:
    """Write grad_x [N, C, D, H, W] from grad_y [N, C * M, OD, OH, OW], w [C * M, 1, KD, KH, KW] and bias [C]."""
    fits = _fits("backward_input", layout(grad_x), layout(grad_y), geometry)
    arrays = {"grad_y": grad_y, "w": w, "bias": bias, "grad_x": grad_x}
    if not fits:
        arrays |= {"grad_y": _in_planes(runtime, grad_y), "grad_x": empty(runtime, grad_x.shape, grad_x.dtype)}
    facts = {"geometry": geometry, "biases": bias_dtype(grad_y, bias)}
    launch(runtime, BACKWARD_INPUT, grad_y.dtype, arrays, _backward_input_work, **facts)
    if not fits:
        pack(runtime, planes(arrays["grad_x"]), planes(grad_x))


def backward_weight(runtime: Runtime, x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """Write grad_w [C * M, 1, KD, KH, KW]: its parts, and their sum in order."""
    if not _fits("backward_weight", layout(x), layout(grad_y), geometry):
        x, grad_y = _in_planes(runtime, x), _in_planes(runtime, grad_y)
    plan = _planned("backward_weight", layout(x), layout(grad_y), geometry)
    n: int = x.shape[0]
    splits = _tiles(plan) * -(-n // depthwise_tiles.images(plan.request, plan.tile, n))
    parts = empty(runtime, (splits, *grad_w.shape), accumulator(x.dtype))
    arrays = {"x": x, "grad_y": grad_y, "parts": parts}
    launch(runtime, BACKWARD_WEIGHT, x.dtype, arrays, _backward_weight_work, geometry=geometry)
    add_parts(runtime, parts, grad_w)


# --- Transposed images ----------------------------------------------------------------------------------------------

# With channels last, a tile holds some channels of a filter's whole receptive field, which does not fit for hundreds of
# taps. Copies to planes and back, three passes instead of one, move less than a hundredth of the direct kernels' bytes.


def _in_planes(runtime: Runtime, image: Array) -> Array:
    """An image [N, C, D, H, W] in C order: itself, or a copy."""
    if image.strides == dense(image.shape, image.itemsize).strides:
        return image
    copied = empty(runtime, image.shape, image.dtype)
    pack(runtime, planes(image), planes(copied))
    return copied


# --- Works ------------------------------------------------------------------------------------------------------------


def _forward_work(x: Layout, w: Layout, bias: Layout | None, y: Layout, geometry: ConvGeometry, biases: str) -> Work:
    plan = _planned("forward", x, y, geometry)
    vectors = -(-plan.tile.y.channels // plan.request.vec)
    return _work(plan, x, y, w, bias, vectors=vectors, types=(("BIAS", biases),))


def _backward_input_work(
    grad_y: Layout, w: Layout, bias: Layout | None, grad_x: Layout, geometry: ConvGeometry, biases: str
) -> Work:
    plan = _planned("backward_input", grad_x, grad_y, geometry)
    vectors = -(-plan.tile.planes // plan.request.vec)
    return _work(plan, grad_x, grad_y, w, bias, vectors=vectors, types=(("BIAS", biases),))


def _backward_weight_work(x: Layout, grad_y: Layout, parts: Layout, geometry: ConvGeometry) -> Work:
    plan = _planned("backward_weight", x, grad_y, geometry)
    request, tile, walk = plan
    height, taps = request.axes[1], request.taps
    groups = -(-tile.y.channels // request.vec)
    vectors = min(depthwise_tiles.WARP, power_of_two(groups)) if request.channels_last else 1
    units = prod((request.axes[0].kernel, -(-height.kernel // taps), request.axes[2].kernel, -(-groups // vectors)))
    positions = tile.sizes[0] * walk.slots * walk.lanes
    free = MAX_SHARED_BYTES - depthwise_tiles.shared_bytes(request, tile)[-1]
    room = 1 + free // max(1, tile.planes * request.filter_bytes)
    lanes = walk.segment // vectors
    cut = max(1, min(BLOCK // walk.segment // units, room, -(-positions // lanes)))
    each = -(-positions // cut)
    run = -(-each // lanes) * lanes
    cut = -(-positions // run)
    return _work(plan, x, grad_y, None, None, vectors=vectors, units=units * cut, parts=cut, part_run=run)


def _work(
    plan: Plan,
    x: Layout,
    y: Layout,
    w: Layout | None,
    bias: Layout | None,
    *,
    vectors: int,
    units: int = 0,
    parts: int = 1,
    part_run: int = 0,
    types: tuple[tuple[str, str], ...] = (),
) -> Work:
    request, tile, walk = plan
    n = x.shape[0]
    images = depthwise_tiles.images(request, tile, n)
    filters, x_end, end = depthwise_tiles.shared_bytes(request, tile)
    more = -(-(parts - 1) * tile.planes * request.filter_bytes // 16) * 16  # sums of further parts
    fields: Fields = {
        "n": n,
        "c": request.geometry.channels.inputs,
        "multiplier": request.multiplier,
        **strides("x", IMAGE, x),
        **strides("y", IMAGE, y),
        **strides("w", FILTER, w),
        **strides("bias", ("c",), bias),
        "channels_last": int(request.channels_last),
        "images": images,
        "planes": tile.planes,
        **_side_fields("x", tile.x),
        **_side_fields("y", tile.y),
        "x_at": (filters + more) // 16,
        "y_at": (x_end + more) // 16,
        "filter_pitch": depthwise_tiles.filter_pitch(request.geometry.taps),
        **{name: getattr(walk, name) for name in ("classes", "slots", "columns", "lanes", "segment")},
        "vectors": vectors,
        "units": units,
        "parts": parts,
        "part_run": part_run,
    }
    del fields["w_c"]
    for name, axis, size, whole in zip(SPACE, request.axes, tile.sizes, request.written, strict=True):
        fields |= {**axis_fields(name, axis), f"tile_{name}": size, f"tiles_{name}": -(-whole // size)}
    chunks = -(-request.geometry.channels.inputs // tile.planes)
    return Work(
        fields,
        blocks=chunks * _tiles(plan) * -(-n // images),
        extents=(*extents(request.geometry), n + images, chunks * tile.planes * max(1, request.multiplier)),
        constants=(("PACK", request.pack), ("VEC", request.vec), ("ROWS", walk.rows), ("TAPS", request.taps), *types),
        shared_bytes=end + more,
    )


def _side_fields(name: str, part: Side) -> Fields:
    fields: Fields = {f"{name}_axes": part.along, f"{name}_packs": part.packs}
    for axis, runs, pitch in zip("cdhw", part.runs, part.pitches, strict=True):
        fields |= {f"{name}_runs_{axis}": runs, f"{name}_pitch_{axis}": pitch}
    return fields


def _tiles(plan: Plan) -> int:
    return prod(-(-whole // size) for whole, size in zip(plan.request.written, plan.tile.sizes, strict=True))


# --- Plans ------------------------------------------------------------------------------------------------------------


def _planned(direction: str, x: Layout, y: Layout, geometry: ConvGeometry) -> Plan:
    request = _request(direction, x, y, geometry)
    plan = None if request is None else _plan(request)
    assert plan is not None  # `takes` said so to `select`
    return plan


@lru_cache(maxsize=4096)
def _plan(request: Request) -> Plan | None:
    tile = depthwise_tiles.tile(request)
    if tile is None:
        return None
    sides = ((tile.x, request.geometry.input_size), (tile.y, request.geometry.output_size))
    if request.pack > 1 and not all(_in_phase(part, sizes, request.pack) for part, sizes in sides):
        return _plan(request._replace(pack=1))
    return Plan(request, tile, depthwise_tiles.walk(request, tile))


def _in_phase(part: Side, sizes: tuple[int, int, int], pack: int) -> bool:
    """Whether all runs of a box have the same offset modulo `pack`; runs of channels have offset 0."""
    if part.along == ALONG_CHANNELS:
        return True
    steps = (prod(sizes), prod(sizes[1:]), sizes[2])
    return all(runs == 1 or step % pack == 0 for runs, step in zip(part.runs, steps, strict=False))


@lru_cache(maxsize=4096)
def _request(direction: str, x: Layout, y: Layout, geometry: ConvGeometry) -> Request | None:
    """The request, or None where the arrays are in neither of the two memory orders."""
    whole = MAX_BYTES // x.itemsize
    if is_dense(x, (1, 2, 3, 4)) and is_dense(y, (1, 2, 3, 4)):
        aligned = all(
            part.alignment == MAX_BYTES and (part.shape[0] == 1 or part.strides[0] % MAX_BYTES == 0) for part in (x, y)
        )
        return Request(geometry, direction, x.itemsize, False, whole if aligned else 1)
    if all(part.strides[1] == part.itemsize for part in (x, y)):
        return Request(geometry, direction, x.itemsize, True, whole if min(x.pack(1), y.pack(1)) == whole else 1)
    return None
