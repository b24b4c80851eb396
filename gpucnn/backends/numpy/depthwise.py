"""Convolution of few channels a group, depthwise above all: weighted sums of shifted images instead of products.

A depthwise filter has too few weights for a product of matrices to pay for its columns. Here each piece of work, which
stays in a core's L2, copies a few planes once per tap along the width: [planes, KW, rows, OW], each copy shifted by its
tap and zero where that reads padding. Rows lie end to end there, so the taps along the height are views of it that
start whole rows apart, and one `numpy.einsum` multiplies and adds all of them, a plane a pass. `numpy.vecdot` of the
same views with the output's gradient is the weight's gradient.

Planes so small that such runs are short have their channels laid out innermost instead, one row of pixels a pass, and
so have images that are in that order from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.geometry import Sampling

__all__ = ["contract", "contract_weight", "suits"]

Samplings = tuple[Sampling, Sampling, Sampling]
Index: TypeAlias = Any  # a tuple of slices and numbers

PLANES_BYTES, PIXELS_BYTES = 2 << 20, 1 << 20  # copied for a piece
LEAST_PLANE = 400  # outputs of a plane; smaller ones have their channels innermost
LANES = 512  # channels of a piece, where they are innermost
RUN = 4096  # numbers that a pass runs along there


def suits(groups: int, inputs: int, outputs: int) -> bool:
    """Whether this module computes a convolution of so many channels, as it does where groups have one on either side.

    Examples
    --------
    >>> suits(96, 96, 96), suits(96, 96, 192), suits(32, 128, 128), suits(1, 1, 1)
    (True, True, False, False)
    """
    return groups > 1 and groups in (inputs, outputs)


def contract(source: Array, weight: Array, samplings: Samplings, target: Array, bias: Array | None) -> None:
    """target[n, (g, m), o] = bias[g, m] + sum over c, t of weight[g, m, c, t] * source[n, (g, c), where o reads at t].

    source [N, G * C, D, H, W]; weight [G, M, C, KD, KH, KW]; target [N, G * M, *o], any strides; bias [G, M] or None.
    """
    groups, filters, channels = weight.shape[:3]
    dtype = accumulator(source.dtype)
    sources = source.reshape(source.shape[0], groups, channels, *source.shape[2:])
    targets = target.reshape(target.shape[0], groups, filters, *target.shape[2:])
    weight = weight.astype(dtype, copy=False)
    if _pixelwise(source, target.shape):
        _contract_pixels(sources, weight, samplings, targets, bias)
        return
    if _along_width(samplings):
        sources, targets, weight = (array.swapaxes(-1, -2) for array in (sources, targets, weight))
        samplings = (samplings[0], samplings[2], samplings[1])
    _contract_planes(sources, weight, samplings, targets, bias)


def contract_weight(x: Array, grad_y: Array, samplings: Samplings, kernel: Sequence[int], groups: int) -> Array:
    """grad_w [G, M, C, KD, KH, KW] of x [N, G * C, D, H, W] and grad_y [N, G * M, OD, OH, OW], as it is summed."""
    sources = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    grads = grad_y.reshape(grad_y.shape[0], groups, grad_y.shape[1] // groups, *grad_y.shape[2:])
    if grads.size == 0:
        return np.zeros((groups, grads.shape[2], sources.shape[2], *kernel), accumulator(x.dtype))
    if _pixelwise(x, grad_y.shape):
        return _weight_pixels(sources, grads, samplings, kernel)
    if _along_width(samplings):
        sources, grads = sources.swapaxes(-1, -2), grads.swapaxes(-1, -2)
        kernel, samplings = (kernel[0], kernel[2], kernel[1]), (samplings[0], samplings[2], samplings[1])
        return _weight_planes(sources, grads, samplings, kernel).swapaxes(-1, -2)
    return _weight_planes(sources, grads, samplings, kernel)


def _pixelwise(source: Array, target: Sequence[int]) -> bool:
    """Whether the channels are to be innermost: they are in the source, or the targets' planes are small."""
    return memory.is_channels_last(source) or target[-1] * target[-2] < LEAST_PLANE


def _along_width(samplings: Samplings) -> bool:
    """Whether taps are best told apart along the width, as they are for images of one row.

    Taps that are next to each other are not: an einsum would take its passes along them.
    """
    height, width = samplings[1:]
    apart = len(width.offsets) < 2 or abs(width.offsets[1] - width.offsets[0]) > width.step
    return height.targets == height.sources == len(height.offsets) == 1 and apart


# --- Taps ---------------------------------------------------------------------------------------------------------


class Reads(NamedTuple):
    """Taps along one axis that read positions of one residue modulo the step, and the positions that they share."""

    kernel: slice  # the taps
    first: int  # the position that is copied first; below 0 in the padding
    step: int
    copied: int
    start: int  # the copied one that the first of the taps reads for the first target
    stride: int  # copied ones from one tap's to the next one's

    @property
    def taps(self) -> int:
        """How many there are."""
        return len(range(self.kernel.start, self.kernel.stop, self.kernel.step))

    def inside(self, sources: int) -> tuple[slice, slice]:
        """Which of the copied positions lie on an axis of `sources`, and where there."""
        begin = min(self.copied, max(0, -(self.first // self.step)))
        end = max(begin, min(self.copied, (sources - 1 - self.first) // self.step + 1))
        start = self.first + begin * self.step
        return slice(begin, end), slice(start, start + (end - begin) * self.step, self.step)


def reads(sampling: Sampling, targets: slice) -> list[Reads]:
    """What `targets` read: all taps of one residue modulo the step together, as they are evenly spaced.

    Taps further apart than there are targets share nothing, and each is on its own.
    """
    length = targets.stop - targets.start
    found = []
    for residue in range(sampling.step):
        taps = [k for k, offset in enumerate(sampling.offsets) if offset % sampling.step == residue]
        if not taps:
            continue
        shifts = [sampling.offsets[k] // sampling.step for k in taps]
        stride = shifts[1] - shifts[0] if len(taps) > 1 else 0
        together = len(taps) if abs(stride) < length else 1
        for i in range(0, len(taps), together):
            kernel, reach = taps[i : i + together], shifts[i : i + together]
            between = kernel[1] - kernel[0] if together > 1 else 1
            first = (targets.start + min(reach)) * sampling.step + residue
            found.append(
                Reads(
                    slice(kernel[0], kernel[-1] + 1, between),
                    first,
                    sampling.step,
                    length + max(reach) - min(reach),
                    reach[0] - min(reach),
                    stride if together > 1 else 0,
                )
            )
    return found


def _outside(inside: slice, length: int) -> list[slice]:
    """The parts of ``range(length)`` before and after `inside`, if there are any."""
    return [part for part in (slice(0, inside.start), slice(inside.stop, length)) if part.start < part.stop]


def _halo(sampling: Sampling) -> float:
    """About how many positions of an axis are copied for each target."""
    return 1 + (len(sampling.offsets) - 1) / sampling.targets


def _most(most: int, copied: float, targets: Array, dtype: np.dtype[Any]) -> int:
    """Targets of a piece, for each of which so many numbers are copied: `most` bytes, and the workspace for all."""
    filters = targets.shape[2]
    return int(min(most / copied, memory.WORKSPACE_BYTES / (copied + 2 * filters)) / dtype.itemsize)


class Copies(NamedTuple):
    """How a piece copies what some taps read, and the view of the copies that they read: planned once a call."""

    kernel: tuple[slice, ...]  # the taps
    shape: tuple[int, ...]  # of the copies, behind the axes that they have in common with the image
    moved: tuple[int, ...]  # the same, as the moves index it
    moves: list[tuple[Index, Index]]  # to where among the copies, from where in the image
    padding: list[Index]  # where the copies are zero
    windows: tuple[int, ...]  # the windows' shape, behind the same axes
    start: int  # where among the numbers of one copy they begin
    steps: tuple[int, ...]  # and their strides there

    def read(self, image: Array, common: int, dtype: np.dtype[Any]) -> Array:
        """Copy image, whose first `common` axes the copies have too; return the windows."""
        shape = image.shape[:common]
        copies = memory.scratch("depthwise copies", (*shape, *self.shape), dtype)
        into = copies.reshape(*shape, *self.moved)
        for to, source in self.moves:
            into[to] = image[source]
        for index in self.padding:
            copies[index] = 0
        steps = (*copies.strides[:common], *(step * dtype.itemsize for step in self.steps))
        return np.ndarray((*shape, *self.windows), dtype, copies, self.start * dtype.itemsize, steps)


def _planned(blocks: list[Block], plan: Callable[[Block], list[Copies]]) -> Iterator[tuple[Block, list[Copies]]]:
    """Each block, whose last axes are (OD, OH, OW), and the plans of its place."""
    plans: dict[Any, list[Copies]] = {}
    for block in blocks:
        place = tuple((axis.start, axis.stop) for axis in block[-3:])
        if place not in plans:
            plans[place] = plan(block[-3:])
        yield block, plans[place]


# --- Planes: a pass runs along the pixels of a plane ---------------------------------------------------------------


def _plane_copies(samplings: Samplings, targets: Block, size: Sequence[int], flat: bool) -> list[Copies]:
    """Copies [n, g, C, KW, rows along D, rows along H, OW]; windows [n, g, C, kd, kh, KW, od, oh * ow].

    `targets` are slices of (OD, OH, OW); images [n, g, C, D, H, W] of this `size`, or [n, g, C, D, H * W] if `flat`.
    """
    od, oh, ow = (axis.stop - axis.start for axis in targets)
    width = samplings[2]
    taps = {tap.index: tap for tap in width.taps(targets[2].start, targets[2].stop)}
    kernel = len(width.offsets)
    every = slice(None)
    plans = []
    for d, h in product(reads(samplings[0], targets[0]), reads(samplings[1], targets[1])):
        (to_d, from_d), (to_h, from_h) = d.inside(size[0]), h.inside(size[1])
        moves: list[tuple[Index, Index]] = []
        padding: list[Index] = [(..., outside, every, every) for outside in _outside(to_d, d.copied)]
        padding += [(..., outside, every) for outside in _outside(to_h, h.copied)]
        padding += [(..., k, every, every, every) for k in range(kernel) if k not in taps]
        for k, to_w, from_w in taps.values():
            if flat:  # all rows at once, past their ends, which took a third less time than one by one
                by = from_w.start - to_w.start
                start, stop = from_h.start * ow + max(0, by), from_h.stop * ow + min(0, by)
                back = (from_h.start - to_h.start) * ow + by
                moves.append(((..., k, to_d, slice(start - back, stop - back)), (..., from_d, slice(start, stop))))
            else:
                moves.append(((..., k, to_d, to_h, to_w), (..., from_d, from_h, from_w)))
            padding += [(..., k, to_d, to_h, outside) for outside in _outside(to_w, ow)]
        shape = (kernel, d.copied, h.copied, ow)
        plane = h.copied * ow
        plans.append(
            Copies(
                kernel=(d.kernel, h.kernel),
                shape=shape,
                moved=(kernel, d.copied, plane) if flat else shape,
                moves=moves,
                padding=padding,
                windows=(d.taps, h.taps, kernel, od, oh * ow),
                start=d.start * plane + h.start * ow,
                steps=(d.stride * plane, h.stride * ow, d.copied * plane, plane, 1),
            )
        )
    return plans


def _plane_pieces(
    sources: Array, targets: Array, samplings: Samplings, dtype: np.dtype[Any]
) -> tuple[Array, list[tuple[Block, list[Copies]]]]:
    """The images as they are copied, and blocks of (N, G, OD, OH, OW) targets with the plans of their copies."""
    n, groups, _, *outputs = targets.shape
    *_, height, width = sources.shape
    depth, rows, columns = samplings
    copied = sources.shape[2] * len(columns.offsets) * _halo(depth) * _halo(rows)
    blocks = list(memory.blocks((n, groups, *outputs), _most(PLANES_BYTES, copied, targets, dtype)))
    flat = (
        rows.step == columns.step == 1
        and width == outputs[2] == blocks[0][4].stop
        and sources.strides[4] == width * sources.strides[5]
    )
    size = sources.shape[3:]
    images = sources.reshape(*sources.shape[:4], height * width) if flat else sources
    return images, list(_planned(blocks, lambda targets: _plane_copies(samplings, targets, size, flat)))


def _contract_planes(sources: Array, weight: Array, samplings: Samplings, targets: Array, bias: Array | None) -> None:
    """As `contract`, of sources [N, G, C, D, H, W] and targets [N, G, M, OD, OH, OW]."""
    filters = weight.shape[1]
    dtype = weight.dtype
    pieces_of, pieces = _plane_pieces(sources, targets, samplings, dtype)

    def compute(piece: tuple[Block, list[Copies]]) -> None:
        (images, chosen, *space), plans = piece
        part = targets[images, chosen, :, *space]
        size = (*part.shape[:4], part.shape[4] * part.shape[5])
        in_place = part.dtype == dtype and part.strides[4:] == (part.shape[5] * dtype.itemsize, dtype.itemsize)
        sums = terms = part.reshape(size) if in_place else memory.scratch("depthwise sums", size, dtype)
        for plan in plans:
            windows = plan.read(pieces_of[images, chosen], 3, dtype)
            matrix = weight[chosen, :, :, *plan.kernel]
            for m in range(filters):
                np.einsum("gcdhw,ngcdhwol->ngol", matrix[:, m], windows, out=terms[:, :, m])
            if terms is sums:
                terms = memory.scratch("depthwise terms", size, dtype) if len(plans) > 1 else terms
            else:
                np.add(sums, terms, out=sums)
        if bias is not None:
            np.add(sums, bias[chosen, :, None, None], out=sums)
        if not in_place:
            part[...] = sums.reshape(part.shape)

    threads.run(compute, pieces)


def _weight_planes(sources: Array, grads: Array, samplings: Samplings, kernel: Sequence[int]) -> Array:
    """As `contract_weight`, of sources [N, G, C, D, H, W] and grads [N, G, M, OD, OH, OW]."""
    groups, channels = sources.shape[1:3]
    filters = grads.shape[2]
    dtype = accumulator(sources.dtype)
    pieces_of, pieces = _plane_pieces(sources, grads, samplings, dtype)
    results: list[Array] = [np.empty(0)] * len(pieces)

    def compute(index: int) -> None:
        (images, chosen, *space), plans = pieces[index]
        grad = np.ascontiguousarray(grads[images, chosen, :, *space], dtype).conj()
        grad = grad.reshape(*grad.shape[:3], 1, 1, 1, 1, grad.shape[3], -1)
        result = np.empty((grad.shape[1], filters, channels, *kernel), dtype)
        for plan in plans:
            windows = plan.read(pieces_of[images, chosen], 3, dtype)
            for m in range(filters):
                result[:, m][:, :, *plan.kernel] = np.vecdot(grad[:, :, m], windows).sum((0, -1))
        results[index] = result

    threads.run(compute, range(len(pieces)))
    grad_w = np.zeros((groups, filters, channels, *kernel), dtype)
    for ((_, chosen, *_), _), result in zip(pieces, results, strict=True):
        grad_w[chosen] += result
    return grad_w


# --- Pixels: a pass runs along the channels of a row's pixels -------------------------------------------------------


def _pixel_copies(samplings: Samplings, targets: Block, size: Sequence[int], groups: int, pixels: int) -> list[Copies]:
    """Copies [n, C, along D, along H, along W, g]; windows [n, C, kd, kh, kw, od, oh, runs, run of pixels and groups].

    `targets` are slices of (OD, OH, OW); images [n, C, D, H, W, g] of this `size` and with `groups`.
    """
    od, oh, ow = (axis.stop - axis.start for axis in targets)
    every = slice(None)
    plans = []
    for axes in product(*map(reads, samplings, targets)):
        to, source = zip(*map(Reads.inside, axes, size), strict=True)
        shape = tuple(axis.copied for axis in axes)
        steps = (shape[1] * shape[2] * groups, shape[2] * groups, groups)
        plans.append(
            Copies(
                kernel=tuple(axis.kernel for axis in axes),
                shape=(*shape, groups),
                moved=(*shape, groups),
                moves=[((..., *to, every), (..., *source, every))],
                padding=[
                    (..., outside, *(every,) * (3 - i))
                    for i, (inside, count) in enumerate(zip(to, shape, strict=True))
                    for outside in _outside(inside, count)
                ],
                windows=(*(axis.taps for axis in axes), od, oh, ow // pixels, pixels * groups),
                start=sum(axis.start * step for axis, step in zip(axes, steps, strict=True)),
                steps=(
                    *(axis.stride * step for axis, step in zip(axes, steps, strict=True)),
                    *steps[:2],
                    pixels * groups,
                    1,
                ),
            )
        )
    return plans


def _pixel_pieces(
    sources: Array, targets: Array, samplings: Samplings, dtype: np.dtype[Any], longest: int
) -> list[tuple[Block, list[Copies]]]:
    """Blocks of (G, N, OD, OH, OW) targets with the plans of their copies."""
    n, groups, _, *outputs = targets.shape
    lanes = [chosen for (chosen,) in memory.blocks((groups,), LANES)]
    copied = sources.shape[2] * prod(map(_halo, samplings))
    blocks = list(memory.blocks((n, *outputs), _most(PIXELS_BYTES, copied, targets, dtype) // lanes[0].stop))
    size = sources.shape[3:]
    pieces: list[tuple[Block, list[Copies]]] = []
    for chosen in lanes:
        width = chosen.stop - chosen.start

        def plan(targets: Block, width: int = width) -> list[Copies]:
            pixels = _run(targets[2].stop - targets[2].start, width, longest)
            return _pixel_copies(samplings, targets, size, width, pixels)

        pieces += [((chosen, *block), plans) for block, plans in _planned(blocks, plan)]
    return pieces


def _run(width: int, groups: int, longest: int) -> int:
    """How many pixels of a row make a run: they divide it, of at most `longest` channels in all."""
    most = max(1, longest // groups)
    return next(pixels for pixels in range(min(width, most), 0, -1) if width % pixels == 0)


def _contract_pixels(sources: Array, weight: Array, samplings: Samplings, targets: Array, bias: Array | None) -> None:
    """As `contract`, of sources [N, G, C, D, H, W] and targets [N, G, M, OD, OH, OW]."""
    filters = weight.shape[1]
    dtype = weight.dtype
    by_group = np.ascontiguousarray(weight.transpose(1, 2, 3, 4, 5, 0))  # [M, C, KD, KH, KW, G]
    pixels_of = sources.transpose(0, 2, 3, 4, 5, 1)

    def compute(piece: tuple[Block, list[Copies]]) -> None:
        (chosen, images, *space), plans = piece
        part = targets[images, chosen, :, *space].transpose(0, 2, 3, 4, 5, 1)  # [n, M, od, oh, ow, g]
        groups = part.shape[5]
        *_, runs, run = plans[0].windows
        sums = terms = memory.scratch("depthwise sums", (*part.shape[:4], runs, run), dtype)
        for plan in plans:
            windows = plan.read(pixels_of[images, ..., chosen], 2, dtype)
            matrix = by_group[:, :, *plan.kernel, None, chosen]
            tiled = memory.scratch("depthwise weights", (*matrix.shape[:5], run // groups, groups), dtype)
            tiled[...] = matrix
            tiled = tiled.reshape(*matrix.shape[:5], run)
            for m in range(filters):
                np.einsum("cdhwl,ncdhwyxbl->nyxbl", tiled[m], windows, out=terms[:, m])
            if terms is sums:
                terms = memory.scratch("depthwise terms", sums.shape, dtype) if len(plans) > 1 else terms
            else:
                np.add(sums, terms, out=sums)
        result = sums.reshape(part.shape)
        if bias is not None:
            np.add(result, bias[chosen].T[:, None, None, None], out=result)
        part[...] = result

    threads.run(compute, _pixel_pieces(sources, targets, samplings, dtype, RUN))


def _weight_pixels(sources: Array, grads: Array, samplings: Samplings, kernel: Sequence[int]) -> Array:
    """As `contract_weight`, of sources [N, G, C, D, H, W] and grads [N, G, M, OD, OH, OW]."""
    groups, channels = sources.shape[1:3]
    filters = grads.shape[2]
    dtype = accumulator(sources.dtype)
    pieces = _pixel_pieces(sources, grads, samplings, dtype, 1)
    pixels_of = sources.transpose(0, 2, 3, 4, 5, 1)
    results: list[Array] = [np.empty(0)] * len(pieces)

    def compute(index: int) -> None:
        (chosen, images, *space), plans = pieces[index]
        part = grads[images, chosen, :, *space].transpose(0, 2, 3, 4, 5, 1)
        *_, runs, run = plans[0].windows
        grad = memory.scratch("depthwise gradient", part.shape, dtype)
        grad[...] = part
        grad = grad.reshape(*part.shape[:4], runs, run)
        result = np.empty((filters, channels, *kernel, part.shape[5]), dtype)
        for plan in plans:
            windows = plan.read(pixels_of[images, ..., chosen], 2, dtype)
            for m in range(filters):
                sums = np.einsum("nyxbl,ncdhwyxbl->cdhwl", grad[:, m], windows)
                result[m][:, *plan.kernel] = sums.reshape(*sums.shape[:4], -1, part.shape[5]).sum(4)
        results[index] = result

    threads.run(compute, range(len(pieces)))
    grad_w = np.zeros((filters, channels, *kernel, groups), dtype)
    for ((chosen, *_), _), result in zip(pieces, results, strict=True):
        grad_w[..., chosen] += result
    return grad_w.transpose(5, 0, 1, 2, 3, 4)
