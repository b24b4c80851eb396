"""Arrays on both sides of 2**31 elements: the last image beneath it with 32-bit indices, the first above with 64-bit.

A batch of many small images is taken, all zeros but the first, the middle and the last one, and of the results the same
three are compared with NumPy. On the simulator the batch is two images with untouched memory between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

import gpucnn
from benchmarks.gpu_check.checks import Check, expect
from benchmarks.gpu_check.machine import KernelBuild, Machine, NotRun
from benchmarks.primitives import agree, numbers, placed, run
from gpucnn.backends.numpy import NumpyBackend
from gpucnn.geometry import NormGeometry
from gpucnn.geometry.geometries import Channels, conv_geometry, interpolation_geometry, pool_geometry

END = 2**31
IMAGE = (4, 1, 64, 64)  # channels and spatial sizes: 2**14 elements, so that 2**17 images are 2**31
IMAGES = {"below": END // prod(IMAGE) - 1, "above": END // prod(IMAGE) + 1}
INDEX = {"below": "int32", "above": "int64"}
EPS = 1e-5  # of the norms
HEADROOM = 256 << 20  # bytes in addition to the arrays


@dataclass(frozen=True, eq=False)
class Large:
    """A call whose first argument or result, `images` of IMAGE, is on one side of 2**31 elements.

    `shapes` are those of one image: of the arguments that have a batch, and of the results that have one. `shared` are
    the arguments that follow those; `kernel` is the one whose index type is in question. `sums` says that the results
    have no batch, they are sums over it and compared whole.
    """

    name: str
    primitive: str
    kernel: str
    dtype: str
    batched: tuple[tuple[int, ...], ...]
    shared: Callable[[int], tuple[Any, ...]]
    result_bytes: int  # of one image's results
    sums: bool = False
    batched_dtypes: tuple[str, ...] = ()
    most: int = 0  # indices are in [-1, most)

    def bytes_needed(self, images: int) -> int:
        dtypes = self.batched_dtypes or (self.dtype,) * len(self.batched)
        given = sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in zip(self.batched, dtypes, strict=True))
        return images * (given + self.result_bytes) + HEADROOM


def large_calls() -> tuple[Large, ...]:
    """Every kernel that walks over a batch, with reads or writes beyond 2**31."""
    c, *space = IMAGE
    size = prod(IMAGE)
    small = (c, 1, 8, 8)  # what windows of 8 with a stride of 8 make of an image
    size2 = (space[1], space[2])
    conv = conv_geometry("conv2d", size2, Channels(c, c), 3, 1, 1, 1)
    strided = conv_geometry("conv2d", size2, Channels(c, c), 8, 8, 0, 1)
    quarter = conv_geometry("conv2d", (32, 32), Channels(c, 1), 2, 1, ((0, 1), (0, 1)), 1)  # columns: 4 * 4 * 32 * 32
    pool = pool_geometry("max_pool2d", size2, 8, 8, 0, 1, False, "padded")
    nearest = interpolation_geometry((8, 8), size2, None, "nearest", False)
    shrink = interpolation_geometry(size2, (8, 8), None, "nearest", False)
    w3, w8 = numbers((c, c, 1, 3, 3), "int8", seed="w"), numbers((c, c, 1, 8, 8), "int8", seed="w")
    columns = (c * 4, 32 * 32)
    places = ("int8", "int64")
    rows, batch = (1, c, prod(space)), (c, 1, prod(space))

    def norm(shape: tuple[int, ...], axes: tuple[int, ...]) -> Callable[[int], tuple[Any, ...]]:
        g, group, positions = shape
        return lambda n: (NormGeometry((n, g, group, positions), axes), EPS)

    return (
        Large("convolution, reads and writes", "convolve", "conv_forward", "int8", (IMAGE,),
              lambda n: (w3, None, conv), size),
        Large("convolution, reads", "convolve", "conv_forward", "int8", (IMAGE,),
              lambda n: (w8, None, strided), prod(small)),
        Large("backward input, writes", "convolve_backward_input", "conv_backward_input", "int8", (small,),
              lambda n: (w8, None, strided), size),
        Large("backward weight, reads", "convolve_backward_weight", "conv_backward_weight", "int8", (IMAGE, small),
              lambda n: (strided,), 0, sums=True),
        Large("im2col, writes", "im2col", "im2col", "int8", ((c, 1, 32, 32),), lambda n: (quarter,), size),
        Large("col2im, reads", "col2im", "col2im", "int8", (columns,), lambda n: (quarter,), c * 32 * 32),
        Large("max pooling, reads", "max_pool", "max_pool", "int8", (IMAGE,), lambda n: (pool,), prod(small)),
        Large("max pooling with indices, reads", "max_pool_with_indices", "max_pool_with_indices", "int8", (IMAGE,),
              lambda n: (pool,), 9 * prod(small)),
        Large("max pooling backward, writes", "max_pool_backward", "max_pool_backward", "int8", (small, small),
              lambda n: (pool,), size, batched_dtypes=places, most=64),
        Large("unpooling, writes", "unpool", "unpool", "int8", (small, small), lambda n: ((1, *size2),), 5 * size,
              batched_dtypes=places, most=64 * 64),
        Large("gather, reads", "gather", "gather", "int8", (IMAGE, small), lambda n: (), prod(small),
              batched_dtypes=places, most=64 * 64),
        Large("average pooling, reads", "average_pool", "average_pool", "float16", (IMAGE,), lambda n: (pool,),
              2 * prod(small)),
        Large("average pooling backward, writes", "average_pool_backward", "average_pool_backward", "float16", (small,),
              lambda n: (pool,), 2 * size),
        Large("interpolation, writes", "interpolate", "resample_tiles", "int8", (small,), lambda n: (nearest,), size),
        Large("interpolation, reads", "interpolate", "resample_tiles", "int8", (IMAGE,), lambda n: (shrink,),
              prod(small)),
        Large("statistics of rows, reads", "norm_statistics", "norm_statistics", "float16", (rows,),
              norm(rows, (2, 3)), 8),
        Large("statistics of the batch, reads", "norm_statistics", "norm_statistics", "float16", (batch,),
              norm(batch, (0, 2, 3)), 0, sums=True),
    )  # fmt: skip


def large_arrays(machine: Machine) -> Iterator[Check]:
    """Each large call on each side of 2**31 elements."""
    for call in large_calls():
        if machine.kind == "simulator" and prod(call.batched[0]) < prod(IMAGE):
            continue  # there only what reads can be spread out: the results are the backend's own
        for side in IMAGES:
            yield Check(f"{call.name}, {side} 2**31", lambda call=call, side=side: _beyond(machine, call, side))  # type: ignore[misc]


def _beyond(machine: Machine, call: Large, side: str) -> str:
    images = 2 if machine.kind == "simulator" else IMAGES[side]
    needed, free = call.bytes_needed(images), machine.free_bytes()
    if machine.kind != "simulator" and needed > free:
        raise NotRun(f"needs {needed / 2**30:.1f} GiB of the device's memory, {free / 2**30:.1f} are free")
    kept = sorted({0, images // 2, images - 1})
    shown = [_image(call, number, len(kept)) for number in range(len(call.batched))]
    given = [_batch(machine, host, images, kept, side) for host in shown]
    on_device = placed(call.shared(images), machine.put)
    expected = _expected(call, shown, images, len(kept))
    for build, backend in machine.backends.items():
        with gpucnn.algorithm("direct"):
            results = run(backend, call.primitive, *(*given, *on_device))
        machine.synchronise()
        found = tuple(_seen(machine, call, result, kept) for result in results)
        del results  # before the next build's take as much memory
        said = agree(found, expected)
        expect(not said, f"{build} build, images {', '.join(map(str, kept))} of {images}: {said}")
    index = {build.index for build in map(KernelBuild.of, machine.recorder.names) if build.kernel == call.kernel}
    expect(index == {INDEX[side]}, f"{call.kernel} ran with {sorted(index)}, expected {INDEX[side]}")
    return f"{INDEX[side]} indices"


def _image(call: Large, number: int, count: int) -> Any:
    """The images of one argument that are not zero."""
    dtypes = call.batched_dtypes or (call.dtype,) * len(call.batched)
    shape = (count, *call.batched[number])
    if dtypes[number] == "int64":
        return np.random.default_rng(number).integers(-1, call.most, shape)
    values = numbers(shape, dtypes[number], seed=number)
    return np.abs(values) if call.primitive == "norm_statistics" else values  # so that means do not cancel


def _batch(machine: Machine, host: Any, images: int, kept: Sequence[int], side: str) -> Any:
    """`images` on the device: those of `host` where `kept` says, zeros elsewhere."""
    if machine.kind == "simulator":
        return _spread(machine, host, side)
    batch = machine.runtime.xp.zeros((images, *host.shape[1:]), host.dtype)
    for number, image in zip(kept, host, strict=True):
        batch[number] = machine.put(image)
    return batch


def _spread(machine: Machine, host: Any, side: str) -> Any:
    """Two images of the simulator, the second one's end one image short of 2**31 elements or one past them."""
    from gpucnn.simulator import arrays

    if host[0].size != prod(IMAGE):
        return machine.put(host)
    step = (END - 2 * host[0].size if side == "below" else END) * host.itemsize
    memory = np.zeros(step + host[0].nbytes, np.uint8)  # untouched pages take no memory
    strides = (step, *np.ascontiguousarray(host[0]).strides)
    batch = arrays.strided(memory, host.shape, host.dtype, strides, 0)
    for number, image in enumerate(host):
        batch[number] = machine.put(image)
    return batch


def _seen(machine: Machine, call: Large, result: Any, kept: Sequence[int]) -> Any:
    """The results for the images `kept`, or all of a sum over the batch."""
    return machine.get(result if call.sums else machine.runtime.xp.stack([result[number] for number in kept]))


def _expected(call: Large, shown: Sequence[Any], images: int, count: int) -> tuple[Any, ...]:
    """The NumPy backend's results for the images that are not zero."""
    if call.sums and call.primitive == "norm_statistics":
        return _batch_statistics(shown[0], images)
    shared = [_for_fewer(value, count) for value in call.shared(images)]
    return run(NumpyBackend(), call.primitive, *(*shown, *shared))


def _for_fewer(value: Any, count: int) -> Any:
    return replace(value, shape=(count, *value.shape[1:])) if isinstance(value, NormGeometry) else value


def _batch_statistics(x: Any, images: int) -> tuple[Any, ...]:
    """The statistics of `images` rows of which all are zero but those of x [N, G, C, P]."""
    wide = x.astype(np.float64)
    count = images * prod(x.shape[2:])
    mean = wide.sum((0, 2, 3), keepdims=True) / count
    variance = (wide**2).sum((0, 2, 3), keepdims=True) / count - mean**2
    return tuple(found.astype(np.float32) for found in (mean, variance, 1 / np.sqrt(variance + EPS)))
