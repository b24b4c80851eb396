"""Depthwise convolution, with channel multipliers: groups with one channel on the input or the output side.

Such a filter has too few weights for a GEMM to amortise im2col. Large planes are computed as banded products, like all
small groups (`grouped`). Small planes, and all channels-last images, are copied with channels innermost and zero
padding: each tap is then a view, and one `numpy.einsum` multiplies and adds all of them, vectorised over the channels
of several pixels. On MobileNetV2's and EfficientNet's 7 x 7 layers that took a fifth to a third of the time of one
product per channel, and on twelve layers, forward and dgrad, 0.2 to 0.8 of the time of an einsum over the windows of
`columns`, whose inner loops are the channels of one pixel.

Wgrad is the same einsum with the output's gradient; for large planes it is `numpy.vecdot` of that gradient with
shifted planes [planes, KW, rows, OW], one shifted copy per tap along the width, zero where a tap reads padding. Rows
are contiguous there, so taps along the height are views at offsets of whole rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.numpy import memory, select, threads
from gpucnn.backends.numpy.grouped import Part, Samplings
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.geometry import Sampling
from gpucnn.geometry.caches import kept

__all__ = ["contract_parts", "contract_weight"]

Index: TypeAlias = Any  # a tuple of slices and numbers
Limits = tuple[int, int, int]  # elements that a piece copies: at most, at least, and including its sums

# Bytes of a piece's copies; short calls would contend for the interpreter's lock. Work of fewer than four pieces is cut
# into four.
MAX_BYTES, MIN_BYTES = 3 << 20, 256 << 10
PLANS_BYTES = 4 << 20  # of all plans that are kept, of each kind
LANES = 256  # channels of a piece, where they are innermost
RUN = 4096  # elements of one inner loop there, each with its own weight per tap
MIN_DOT = 512  # numbers of a dot product; vecdot lets other threads run only where it takes more than 500 of them


def contract_parts(source: Array, parts: Sequence[Part], bias: Array | None) -> None:
    """Fill targets that read one source, as `columns.contract` does each: a strided backward-input has several.

    source [N, G * C, D, H, W]; bias [G, M] or None.
    """
    tasks: list[Callable[[], None]] = []
    for weight, samplings, target in parts:
        if not target.size:
            continue
        groups, filters, channels = weight.shape[:3]
        sources = source.reshape(source.shape[0], groups, channels, *source.shape[2:])
        targets = target.reshape(target.shape[0], groups, filters, *target.shape[2:])
        tasks += _pixel_sums(sources, weight.astype(accumulator(source.dtype), copy=False), samplings, targets, bias)
    threads.run(lambda task: task(), tasks)


def contract_weight(x: Array, grad_y: Array, samplings: Samplings, grad_w: Array) -> None:
    """Fill grad_w [G, M, C, KD, KH, KW] from x [N, G * C, D, H, W] and grad_y [N, G * M, OD, OH, OW]."""
    groups, _, _, *kernel = grad_w.shape
    sources = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    grads = grad_y.reshape(grad_y.shape[0], groups, grad_y.shape[1] // groups, *grad_y.shape[2:])
    innermost = select.channels_innermost(memory.is_channels_last(x), grad_y.shape[-1] * grad_y.shape[-2])
    swapped = not innermost and _along_width(samplings)
    if swapped:
        sources, grads = sources.swapaxes(-1, -2), grads.swapaxes(-1, -2)
        kernel, samplings = [kernel[0], kernel[2], kernel[1]], (samplings[0], samplings[2], samplings[1])
    sums = np.zeros((groups, grads.shape[2], sources.shape[2], *kernel), accumulator(x.dtype))
    if grads.size:
        each = _pixel_gradients if innermost else _plane_gradients
        pieces, gradient = each(sources, grads, samplings, kernel)
        for piece, share in zip(pieces, threads.results_of(gradient, pieces), strict=True):
            sums[piece.groups] += share
    grad_w[...] = sums.swapaxes(-1, -2) if swapped else sums


def _along_width(samplings: Samplings) -> bool:
    """Whether to swap width and height, so that taps along the width are views: for images of one row.

    False where taps are adjacent: einsum's inner loop would then run over the taps.
    """
    height, width = samplings[1:]
    apart = len(width.offsets) < 2 or abs(width.spacing) > width.step
    return height.targets == height.sources == len(height.offsets) == 1 and apart


# --- Taps ---------------------------------------------------------------------------------------------------------


class Reads(NamedTuple):
    """Taps along one axis that share one copy of their positions."""

    kernel: slice  # the taps
    taps: int  # their number
    first: int  # first copied position; below 0 in the padding
    step: int  # between copied positions
    copied: int  # their number
    start: int  # copied position that the first tap of the first target reads
    tap: int  # copied positions between consecutive taps
    hop: int  # and between consecutive targets

    def inside(self, sources: int) -> tuple[slice, slice]:
        """Slices of the copied positions within an axis of `sources`, and of that axis."""
        begin = min(self.copied, max(0, -(self.first // self.step)))
        end = max(begin, min(self.copied, (sources - 1 - self.first) // self.step + 1))
        start = self.first + begin * self.step
        return slice(begin, end), slice(start, start + (end - begin) * self.step, self.step)


def reads(sampling: Sampling, targets: slice, split: bool) -> list[Reads]:
    """The reads of `targets`: all taps together, or with `split` grouped by residue modulo the step, so that hop is 1.

    Taps are evenly spaced. Where separate copies are smaller, as for a large dilation, each tap has its own.
    """
    length, step = targets.stop - targets.start, sampling.step
    hop = 1 if split else step
    found = []
    for taps in sampling.by_residue() if split else [range(len(sampling.offsets))]:
        offsets = [sampling.offsets[k] for k in taps]
        low, between = min(offsets), step // hop
        copied = (length - 1) * hop + (max(offsets) - low) // between + 1
        if copied <= len(taps) * length:
            kernel = slice(taps[0], taps[-1] + 1, taps.step if len(taps) > 1 else 1)
            apart = (offsets[1] - offsets[0]) // between if len(taps) > 1 else 0
            first, start = targets.start * step + low, (offsets[0] - low) // between
            found.append(Reads(kernel, len(taps), first, between, copied, start, apart, hop))
        else:
            for k, offset in zip(taps, offsets, strict=True):
                found.append(Reads(slice(k, k + 1, 1), 1, targets.start * step + offset, step, length, 0, 0, 1))
    return found


def _outside(inside: slice, length: int) -> list[slice]:
    """The parts of ``range(length)`` before and after `inside`, if there are any."""
    return [part for part in (slice(0, inside.start), slice(inside.stop, length)) if part.start < part.stop]


class Copies(NamedTuple):
    """The copies that a piece makes for some taps, and the window view over them."""

    kernel: tuple[slice, ...]  # the taps
    shape: tuple[int, ...]  # of the copies, behind the axes that they have in common with the image
    moved: tuple[int, ...]  # the same, as the moves index it
    moves: list[tuple[Index, Index]]  # to where among the copies, from where in the image
    before: bool  # whether all copies are set to zero before
    padding: list[Index]  # which are set to zero afterwards
    windows: tuple[int, ...]  # the windows' shape, behind the same axes
    start: int  # where among the numbers of one copy they begin
    steps: tuple[int, ...]  # and their strides there

    def read(self, image: Array, common: int, dtype: np.dtype[Any]) -> Array:
        """Copy image, whose first `common` axes the copies have too; return the windows."""
        shape = image.shape[:common]
        copies = memory.scratch("depthwise copies", (*shape, *self.shape), dtype)
        if self.before:
            copies[...] = 0
        into = copies.reshape(*shape, *self.moved)
        for to, source in self.moves:
            into[to] = image[source]
        for index in self.padding:
            copies[index] = 0
        steps = (*copies.strides[:common], *(step * dtype.itemsize for step in self.steps))
        return np.ndarray((*shape, *self.windows), dtype, copies, self.start * dtype.itemsize, steps)


class Piece(NamedTuple):
    """A block of targets, and the copies of their sources for each set of taps."""

    groups: slice
    images: slice
    space: Block
    plans: list[Copies]


def _pieces(blocks: Sequence[Block], plan: Callable[[Block, int], list[Copies]]) -> list[Piece]:
    """Pieces of blocks (G, N, OD, OH, OW), planned once per spatial block and number of groups."""
    plans: dict[Any, list[Copies]] = {}
    pieces = []
    for groups, images, *space in blocks:
        width = groups.stop - groups.start
        place = (width, *((axis.start, axis.stop) for axis in space))
        if place not in plans:
            plans[place] = plan(tuple(space), width)
        pieces.append(Piece(groups, images, tuple(space), plans[place]))
    return pieces


def _limits(itemsize: int) -> Limits:
    return MAX_BYTES // itemsize, MIN_BYTES // itemsize, memory.WORKSPACE_BYTES // itemsize


def _most(targets: Sequence[int], copied: float, limits: Limits) -> int:
    """Most targets [N, G, M, OD, OH, OW] of a piece, with `copied` elements copied per target of a group."""
    n, groups, filters, *size = targets
    most, least, workspace = limits
    quarter = n * groups * prod(size) * copied / 4
    return int(min(min(most, max(least, quarter)) / copied, workspace / (copied + 2 * filters))) + 1


def _halo(sampling: Sampling, split: bool) -> float:
    """Upper bound of the positions copied along an axis per target."""
    whole = slice(0, sampling.targets)
    return max(axis.copied for axis in reads(sampling, whole, split)) / sampling.targets


def _sums(part: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Array, bool]:
    """Array of this shape for the sums of a part of the target, and whether it is a view of the part."""
    if part.dtype == dtype and part.strides[-2:] == (part.shape[-1] * part.itemsize, part.itemsize):
        return part.reshape(shape), True  # which splits or merges its last two axes
    return memory.scratch("depthwise sums", shape, dtype), False


# --- Planes: a pass runs along the pixels of a plane ---------------------------------------------------------------


def _plane_copies(
    samplings: Samplings, size: Sequence[int], flat: bool, targets: Block, groups: int = 1
) -> list[Copies]:
    """Copies [n, g, C, KW, along D, along H, OW] and windows [n, g, C, kd, kh, KW, od, oh * ow].

    `targets` are slices of (OD, OH, OW); images [n, g, C, D, H, W] of this `size`, or [n, g, C, D, H * W] if `flat`.
    """
    od, oh, ow = (axis.stop - axis.start for axis in targets)
    taps = {tap.index: tap for tap in samplings[2].taps(targets[2].start, targets[2].stop)}
    kernel = len(samplings[2].offsets)
    every = slice(None)
    plans = []
    for d, h in product(reads(samplings[0], targets[0], split=False), reads(samplings[1], targets[1], split=True)):
        (to_d, from_d), (to_h, from_h) = d.inside(size[0]), h.inside(size[1])
        moves: list[tuple[Index, Index]] = []
        padding: list[Index] = [(..., outside, every, every) for outside in _outside(to_d, d.copied)]
        padding += [(..., outside, every) for outside in _outside(to_h, h.copied)]
        padding += [(..., k, every, every, every) for k in range(kernel) if k not in taps]
        for k, to_w, from_w in taps.values():
            if from_h.start >= from_h.stop:  # none of these rows is on the image
                continue
            if flat:  # all rows in one run, past their ends: a third less time than row by row
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
                before=False,
                padding=padding,
                windows=(d.taps, h.taps, kernel, od, oh * ow),
                start=d.start * plane + h.start * ow,
                steps=(d.tap * plane, h.tap * ow, d.copied * plane, d.hop * plane, 1),
            )
        )
    return plans


@kept(PLANS_BYTES)
def _plane_pieces(
    sources: tuple[int, ...], targets: tuple[int, ...], samplings: Samplings, flat: bool, limits: Limits
) -> list[Piece]:
    """The pieces for sources [N, G, C, D, H, W], possibly flat, and targets [N, G, M, OD, OH, OW]."""
    n, groups, _, *outputs = targets
    depth, height, width = samplings
    copied = sources[2] * len(width.offsets) * _halo(depth, split=False) * _halo(height, split=True)
    blocks = memory.blocks((n, groups, *outputs), _most(targets, copied, limits))
    plan = partial(_plane_copies, samplings, sources[3:], flat)
    return _pieces([(chosen, ns, *space) for ns, chosen, *space in blocks], plan)


def _plane_gradients(
    sources: Array, grads: Array, samplings: Samplings, kernel: Sequence[int]
) -> tuple[list[Piece], Callable[[Piece], Array]]:
    """Pieces, and the function of one that returns its partial gradient [g, M, C, KD, KH, KW]."""
    channels, filters = sources.shape[2], grads.shape[2]
    dtype = accumulator(sources.dtype)
    *_, columns = sources.shape
    flat = (
        samplings[1].step == samplings[2].step == 1
        and columns == grads.shape[5]
        and sources.strides[4] == columns * sources.strides[5]
    )
    limits = _limits(dtype.itemsize)
    pieces = _plane_pieces(sources.shape, grads.shape, samplings, flat, limits)
    if flat and pieces[0].space[2].stop < columns:  # long rows are cut
        flat = False
        pieces = _plane_pieces(sources.shape, grads.shape, samplings, flat, limits)
    images = sources.reshape(*sources.shape[:4], -1) if flat else sources

    def gradient(piece: Piece) -> Array:
        part = grads[piece.images, piece.groups, :, *piece.space]
        n, g, _, od, oh, ow = part.shape
        runs_of = range(min(oh, max(1, oh * ow // MIN_DOT)), 0, -1)  # of rows of a plane, of MIN_DOT numbers at least
        rows = oh // next(count for count in runs_of if oh % count == 0)
        runs = (od, oh // rows, rows * ow)
        grad = np.ascontiguousarray(part, dtype).conj().reshape(n, g, filters, 1, 1, 1, 1, *runs)
        result = np.empty((g, filters, channels, *kernel), dtype)
        for plan in piece.plans:
            windows = plan.read(images[piece.images, piece.groups], 3, dtype)
            windows = windows.reshape(*windows.shape[:-2], *runs)
            for m in range(filters):
                result[:, m][:, :, *plan.kernel] = np.vecdot(grad[:, :, m], windows).sum((0, -2, -1))
        return result

    return pieces, gradient


# --- Pixels: a pass runs along the channels of a row's pixels -------------------------------------------------------


def _pixel_copies(samplings: Samplings, size: Sequence[int], longest: int, targets: Block, groups: int) -> list[Copies]:
    """Copies [n, C, along D, along H, along W, g] and windows [n, C, kd, kh, kw, od, oh, runs, run].

    `targets` are slices of (OD, OH, OW), images [n, C, D, H, W, g] of this `size`. A run is that of the channels of one
    or several pixels next to each other, of at most `longest` numbers then.
    """
    length = tuple(axis.stop - axis.start for axis in targets)
    every = slice(None)
    plans = []
    for axes in product(
        *(reads(sampling, axis, split=False) for sampling, axis in zip(samplings, targets, strict=True))
    ):
        inside = [axis.inside(sources) for axis, sources in zip(axes, size, strict=True)]
        shape = (*(axis.copied for axis in axes), groups)
        steps = (shape[1] * shape[2] * groups, shape[2] * groups, groups)
        pixels = 1
        if axes[2].hop == 1:
            most = max(1, longest // groups)
            pixels = next(count for count in range(min(length[2], most), 0, -1) if length[2] % count == 0)
        hops = [axis.hop * step for axis, step in zip(axes, steps, strict=True)]
        plans.append(
            Copies(
                kernel=tuple(axis.kernel for axis in axes),
                shape=shape,
                moved=shape,
                moves=[((..., *(to for to, _ in inside), every), (..., *(source for _, source in inside), every))],
                before=any(to != slice(0, axis.copied) for (to, _), axis in zip(inside, axes, strict=True)),
                padding=[],
                windows=(*(axis.taps for axis in axes), *length[:2], length[2] // pixels, pixels * groups),
                start=sum(axis.start * step for axis, step in zip(axes, steps, strict=True)),
                steps=(
                    *(axis.tap * step for axis, step in zip(axes, steps, strict=True)),
                    *hops[:2],
                    pixels * hops[2],
                    1,
                ),
            )
        )
    return plans


@kept(PLANS_BYTES)
def _pixel_pieces(
    sources: tuple[int, ...], targets: tuple[int, ...], samplings: Samplings, longest: int, limits: Limits
) -> list[Piece]:
    """The pieces for sources [N, G, C, D, H, W] and targets [N, G, M, OD, OH, OW], with runs of at most `longest`."""
    n, groups, _, *outputs = targets
    lanes = [chosen for (chosen,) in memory.blocks((groups,), LANES)]
    copied = sources[2] * prod(_halo(sampling, split=False) for sampling in samplings)
    blocks = memory.blocks((n, *outputs), _most(targets, copied, limits) // lanes[0].stop)
    plan = partial(_pixel_copies, samplings, sources[3:], longest)
    return _pieces([(chosen, *block) for block, chosen in product(blocks, lanes)], plan)


def _pixel_sums(
    sources: Array, weight: Array, samplings: Samplings, targets: Array, bias: Array | None
) -> list[Callable[[], None]]:
    """The tasks of `contract` for sources [N, G, C, D, H, W] and targets [N, G, M, OD, OH, OW]."""
    filters, dtype = weight.shape[1], weight.dtype
    weight = np.ascontiguousarray(weight.transpose(1, 2, 3, 4, 5, 0))
    images = sources.transpose(0, 2, 3, 4, 5, 1)
    pieces = _pixel_pieces(sources.shape, targets.shape, samplings, RUN, _limits(dtype.itemsize))

    def compute(piece: Piece) -> None:
        part = targets[piece.images, piece.groups, :, *piece.space].transpose(0, 2, 3, 4, 5, 1)
        groups = part.shape[5]
        runs, run = piece.plans[0].windows[-2:]
        size = (*part.shape[:4], runs, run)
        sums, in_place = _sums(part, size, dtype)
        for i, plan in enumerate(piece.plans):
            windows = plan.read(images[piece.images, ..., piece.groups], 2, dtype)
            matrix = weight[:, :, *plan.kernel, None, piece.groups]
            repeated = memory.scratch("depthwise weights", (*matrix.shape[:5], run // groups, groups), dtype)
            repeated[...] = matrix
            terms = memory.scratch("depthwise terms", size, dtype) if i else sums
            for m in range(filters):
                row = repeated[m].reshape(*matrix.shape[1:5], run)
                np.einsum("cdhwl,ncdhwyxbl->nyxbl", row, windows, out=terms[:, m])
            if i:
                np.add(sums, terms, out=sums)
        if bias is not None:
            part_of = sums.reshape(part.shape)
            np.add(part_of, bias[piece.groups].T[:, None, None, None], out=part_of)
        if not in_place:
            part[...] = sums.reshape(part.shape)

    return [partial(compute, piece) for piece in pieces]


def _pixel_gradients(
    sources: Array, grads: Array, samplings: Samplings, kernel: Sequence[int]
) -> tuple[list[Piece], Callable[[Piece], Array]]:
    """Pieces, and the function of one that returns its partial gradient [g, M, C, KD, KH, KW]."""
    channels, filters = sources.shape[2], grads.shape[2]
    dtype = accumulator(sources.dtype)
    images = sources.transpose(0, 2, 3, 4, 5, 1)
    pieces = _pixel_pieces(sources.shape, grads.shape, samplings, 1, _limits(dtype.itemsize))

    def gradient(piece: Piece) -> Array:
        part = grads[piece.images, piece.groups, :, *piece.space].transpose(0, 2, 3, 4, 5, 1)
        grad = memory.scratch("depthwise gradient", part.shape, dtype)
        grad[...] = part
        result = np.empty((filters, channels, *kernel, part.shape[5]), dtype)
        for plan in piece.plans:
            windows = plan.read(images[piece.images, ..., piece.groups], 2, dtype)
            for m in range(filters):
                by_image = np.einsum("nyxbl,ncdhwyxbl->ncdhwl", grad[:, m], windows)  # short sums are more exact
                result[m][:, *plan.kernel] = by_image.sum(axis=0)
        return result.transpose(5, 0, 1, 2, 3, 4)

    return pieces, gradient
