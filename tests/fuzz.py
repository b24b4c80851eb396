"""Fuzzing of the compiled CPU kernels: drawn calls of all families of operations, against float64 on NumPy.

    python tests/fuzz.py --count 20000 --seed 0

Call `i` of a seed is always the same one; a failure prints the command that repeats it alone. Geometries, batches,
memory orders, dtypes, numbers (small integers, whose sums are exact; some infinities and NaN) and the number of
threads are drawn. Results must be within the suite's tolerance, exact where they can be, written as a whole, and the
same to the bit on any number of threads.
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from convolution_cases import bits, poisoned_memory  # noqa: E402
from pooling_cases import as_tuple  # noqa: E402
from sanitized import exact_buffers  # noqa: E402
from strategies import FLOATS, ORDERS, arranged, dtype_of  # noqa: E402
from tolerances import assert_close  # noqa: E402

import gpucnn  # noqa: E402
import gpucnn.functional as F  # noqa: E402
from gpucnn.backends.cpu import (  # noqa: E402
    convolution,
    depthwise,
    depthwise_groups,
    folding,
    implicit_gemm,
    locally_connected,
    normalization,
    pointwise,
    resampling,
    select,
    tiling,
    unfolding,
    winograd,
)

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]
MOST_PRODUCTS = 2_000_000
MOST_ELEMENTS = 20_000
CHANNELS = (1, 1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 24, 31, 32, 33, 48, 70, 300)
BATCHES = (None, 0, 1, 1, 2, 2, 3, 4, 5)
SPECIAL = (np.inf, -np.inf, np.nan, -0.0)
ACTIVATIONS = ("none", "relu", "relu6", "leaky_relu")


# Where work is cut: with limits so low that small arrays are cut as large ones are
LIMITS: dict[ModuleType, dict[str, int]] = {
    tiling: {"BLOCK_BYTES": 16 << 10},
    depthwise: {"ITEM": 1 << 10, "ITEM_ELEMENTS": 1 << 8, "BOX_BYTES": 8 << 10, "PIXELS": 16},
    depthwise_groups: {"COPY_BYTES": 1 << 10, "MULTIPLY_ADDS": 1 << 10},
    winograd: {"TRANSFORMED_BYTES": 32 << 10, "TILES": 6, "PART_FILTERS": 16, "SLICE": 16},
    folding: {"COLUMN_BYTES": 8 << 10},
    implicit_gemm: {"BLOCK_BYTES": 8 << 10, "SLICE": 16, "SUM_BYTES": 8 << 10, "MIN_FILTERS": 16, "RANGE": 32},
    normalization: {"LONG_ROW": 16, "CACHED_BYTES": 1 << 12, "MIN_STRIP": 8, "MIN_ROWS": 3},
    unfolding: {"ITEM_ENTRIES": 1 << 9, "SUMS_BYTES": 1 << 10},
    locally_connected: {"WEIGHTS": 1 << 8, "COLUMNS": 1 << 8},
    resampling: {"ITEM_TARGETS": 1 << 8, "TOGETHER": 1 << 8, "GROWN_BYTES": 1 << 10},
}
PLANNING = (*LIMITS, convolution, pointwise, select)


def forget_plans() -> None:
    for module in PLANNING:
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()


@contextmanager
def low_limits() -> Iterator[None]:
    """Plans of the compiled kernels by LIMITS."""
    forget_plans()
    with ExitStack() as patches:
        for module, limits in LIMITS.items():
            patches.enter_context(mock.patch.multiple(module, **limits))
        yield
    forget_plans()


@dataclass(frozen=True)
class Call:
    """An operation with its arguments, and how its results are compared."""

    name: str
    arrays: dict[str, Array | None]  # in the order of the parameters, a gradient of the result first
    options: dict[str, Any]
    exact: bool = False  # whether float32 holds the results, which 16-bit floats round once
    factor: float = 1.0  # by which rounding is amplified
    algorithm: str | None = None

    def run(self, backend: str, algorithm: str | None, dtype: Any = None) -> tuple[Any, ...]:
        """All results of the call, its floating-point arrays in `dtype`."""
        arrays = {
            name: array.astype(dtype) if array is not None and array.dtype.name in FLOATS and dtype else array
            for name, array in self.arrays.items()
        }
        chosen = nullcontext() if algorithm is None else gpucnn.algorithm(algorithm)
        with gpucnn.backend(backend), chosen, np.errstate(all="ignore"):
            return as_tuple(getattr(F, self.name)(**arrays, **self.options))


def check(call: Call, threads: int = 1, is_cut: bool = False) -> None:
    """Raise unless the compiled kernels compute a call as float64 does, in one piece or cut as a large one is."""
    given = [array for array in call.arrays.values() if array is not None]
    before = [array.tobytes() for array in given]
    kept, results = gpucnn.get_num_threads(), []
    try:
        for count in (1, threads):
            gpucnn.set_num_threads(count)
            with poisoned_memory(), low_limits() if is_cut else nullcontext():
                results.append(call.run("compiled", call.algorithm))
    finally:
        gpucnn.set_num_threads(kept)
    assert bits(results[0]) == bits(results[1]), f"{threads} threads compute other bits than one"
    assert [array.tobytes() for array in given] == before, "an argument was written to"
    expected = call.run("numpy", "direct" if "conv" in call.name else None, np.float64)
    for ours, wanted in zip(results[0], expected, strict=True):
        assert (ours is None) == (wanted is None)
        if ours is not None and call.exact:
            np.testing.assert_array_equal(ours.astype(np.float64), wanted.astype(ours.dtype).astype(np.float64))
        elif ours is not None:
            assert_close(ours, wanted, factor=call.factor)


# --- Drawing ----------------------------------------------------------------------------------------------------------


@dataclass
class Draw:
    """What the draws of one call share: the numbers' dtype, which may be given, their content, most memory orders."""

    rng: np.random.Generator
    dtype: str | None = None
    content: str = field(init=False)
    order: str = field(init=False)

    def __post_init__(self) -> None:
        some = self.one_of(("float32", "float32", "float32", *FLOATS))
        self.dtype = self.dtype or some
        self.content = self.one_of(("normal", "integers", "integers", "special"))
        self.order = self.one_of((*ORDERS[:2], *ORDERS, "repeated", "misaligned", "every second channel"))

    def one_of(self, items: Sequence[Any]) -> Any:
        return items[self.integer(0, len(items) - 1)]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def integer(self, least: int, most: int) -> int:
        return int(self.rng.integers(least, most + 1))

    def integers(self, rank: int, least: int, most: int) -> Ints:
        return tuple(self.integer(least, most) for _ in range(rank))

    def numbers(self, shape: Sequence[int], content: str | None = None) -> Array:
        """Numbers of the call's content, or another one."""
        content = content or self.content
        if content == "integers":
            return self.rng.integers(-3, 4, shape).astype(dtype_of(self.dtype))
        values = np.asarray(self.rng.standard_normal(shape)).astype(dtype_of(self.dtype))
        if content == "special":
            where = self.rng.random(values.shape) < 0.02
            values[where] = self.rng.choice(SPECIAL, int(where.sum()))
        return values

    def array(self, shape: Sequence[int], content: str | None = None, batched: bool = True) -> Array:
        """Numbers in some memory order: one of ORDERS, of an image repeated without a copy, or of other views."""
        values = self.numbers(shape, content)
        order = self.order if self.chance(0.6) else self.one_of((*ORDERS[:2], *ORDERS))
        if order == "repeated":
            return np.broadcast_to(values[:1], values.shape) if values.ndim > 1 else values
        if order == "misaligned":
            return misaligned(values)
        if order == "every second channel" and values.ndim > 1:
            last = np.moveaxis(values, 1 if batched else 0, -1).repeat(2, -1)
            last = misaligned(last) if self.chance(0.3) else last
            return np.moveaxis(last[..., ::2], -1, 1 if batched else 0)
        return arranged(values, order, batched) if values.ndim > 1 else values

    def parameter(self, shape: Sequence[int]) -> Array | None:
        """Finite numbers, or none."""
        return self.numbers(shape, self.finite) if self.chance(0.7) else None

    @property
    def finite(self) -> str:
        return "normal" if self.content == "special" else self.content

    @property
    def is_exact(self) -> bool:
        return self.content == "integers"


def misaligned(values: Array) -> Array:
    """A copy that starts between elements."""
    buffer = np.zeros(values.nbytes + 1, np.uint8)
    copy = buffer[1:].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


@dataclass(frozen=True)
class Window:
    """Windows that slide over an image, each with an output; `sizes` and `out` of its axes."""

    sizes: Ints
    kernel: Ints
    stride: Ints
    dilation: Ints
    padding: tuple[tuple[int, int], ...]
    out: Ints

    @property
    def options(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}


def window(draw: Draw, kernel: int = 5, within: bool = False, rank: int | None = None) -> Window:
    """Some windows; with `within` padding is less than them."""
    rank = rank or draw.one_of((1, 2, 2, 2, 3))
    taps = draw.one_of(((1,) * rank, (3,) * rank, (3,) * rank, draw.integers(rank, 1, kernel)))
    stride = draw.one_of(((1,) * rank, (1,) * rank, (2,) * rank, draw.integers(rank, 1, 4)))
    dilation = draw.one_of(((1,) * rank, (1,) * rank, draw.integers(rank, 1, 3)))
    return sliding(draw, taps, stride, dilation, within)


def sliding(draw: Draw, taps: Ints, stride: Ints, dilation: Ints, within: bool = False) -> Window:
    """Such windows over an image with some padding; with `within` it is less than them."""
    rank = len(taps)
    spans = [d * (k - 1) + 1 for k, d in zip(taps, dilation, strict=True)]
    limits = [min(4, span - 1) if within else 4 for span in spans]
    same = tuple(((span - 1) // 2, span // 2) for span in spans)
    some = tuple((draw.integer(0, limit), draw.integer(0, limit)) for limit in limits)
    padding = draw.one_of((((0, 0),) * rank, same, some))
    most = {1: 90, 2: 24, 3: 7}[rank]
    sizes = tuple(max(1, span - sum(pair)) + draw.integer(0, most) for span, pair in zip(spans, padding, strict=True))
    axes = zip(sizes, spans, stride, padding, strict=True)
    out = tuple((size + sum(pair) - span) // step + 1 for size, span, step, pair in axes)
    return Window(sizes, taps, stride, dilation, padding, out)


def channels(draw: Draw) -> tuple[int, int, int]:
    """Inputs, outputs and groups: dense, small groups, depthwise, multipliers on either side."""
    kind = draw.one_of(("dense", "dense", "dense", "groups", "lanes", "depthwise", "multiplier"))
    if kind == "dense":
        return draw.one_of(CHANNELS), draw.one_of(CHANNELS), 1
    if kind == "lanes":  # groups that are whole parts of a vector
        each, vectors = draw.one_of((4, 8, 16)), draw.one_of((1, 2, 3))
        return 16 * vectors, 16 * vectors, 16 * vectors // each
    groups = draw.one_of(CHANNELS) if kind == "depthwise" else draw.integer(2, 9)
    if kind == "depthwise":
        return groups, groups, groups
    if kind == "multiplier":
        pair = draw.one_of(((1, 2), (1, 3), (2, 1), (4, 1)))
        return groups * pair[0], groups * pair[1], groups
    return groups * draw.one_of((2, 3, 4, 8, 16, 17)), groups * draw.one_of((2, 3, 4, 8, 16, 17)), groups


def lead_of(draw: Draw, count: int) -> Ints:
    """The axes before the spatial ones: a batch, if any, and channels."""
    batch = draw.one_of(BATCHES)
    return (count,) if batch is None else (batch, count)


# --- Families ---------------------------------------------------------------------------------------------------------


def with_gradient(name: str, result: Array, arrays: dict[str, Array | None], *rest: Any) -> list[Call]:
    """A call, and that of its backward with `result` as the gradient."""
    return [Call(name, arrays, *rest), Call(f"{name}_backward", {"grad_output": result, **arrays}, *rest)]


def convolutions(draw: Draw) -> list[Call]:
    while True:
        w, (inputs, outputs, groups) = window(draw), channels(draw)
        lead = lead_of(draw, inputs)
        if prod(lead[:-1]) * outputs * prod(w.out) * inputs // groups * prod(w.kernel) <= MOST_PRODUCTS:
            break
    return convolution_calls(draw, w, (inputs, outputs, groups), lead, draw.one_of((None, None, "implicit_gemm")))


def tiled_convolutions(draw: Draw) -> list[Call]:
    """Those that Winograd's tiles compute."""
    while True:
        w = sliding(draw, (3, 3), (1, 1), draw.one_of(((1, 1), draw.integers(2, 1, 3))))
        groups, inputs, outputs = draw.one_of((1, 1, 2, 3)), draw.integer(16, 80), draw.integer(16, 80)
        lead = lead_of(draw, groups * inputs)
        if prod(lead[:-1]) * groups * outputs * prod(w.out) * inputs * 9 <= MOST_PRODUCTS:
            break
    chosen = "winograd" if draw.dtype != "float64" else None
    return convolution_calls(draw, w, (groups * inputs, groups * outputs, groups), lead, chosen)


def convolution_calls(
    draw: Draw, w: Window, channels: tuple[int, int, int], lead: Ints, algorithm: str | None
) -> list[Call]:
    """A convolution's forward, with an epilogue or without, its backward, and dgrad alone; or the latter two."""
    inputs, outputs, groups = channels
    batched = len(lead) == 2
    x = draw.array((*lead, *w.sizes), batched=batched)
    arrays = {
        "input": x,
        "weight": draw.array((outputs, inputs // groups, *w.kernel), draw.finite),
        "bias": draw.parameter((outputs,)),
    }
    grad = draw.array((*lead[:-1], outputs, *w.out), draw.finite, batched)
    options = {**w.options, "groups": groups}
    name = f"conv{len(w.sizes)}d"
    _, backward = with_gradient(name, grad, arrays, options, draw.is_exact, 4.0)
    chosen = algorithm if 0 not in lead else None  # NumPy has what is empty
    by_input = {"weight": arrays["weight"], "grad_output": draw.array(grad.shape, batched=batched)}
    sizes = {"input_size": x.shape}
    forward = Call(name, arrays, options, draw.is_exact, 4.0, chosen)
    if draw.chance(0.4):
        residual = draw.array(grad.shape, draw.finite, batched) if draw.chance(0.6) else None
        finish = {"activation": draw.one_of(ACTIVATIONS), "negative_slope": 0.25}
        exact = draw.is_exact and draw.dtype in ("float32", "float64")  # 16-bit floats round before the epilogue too
        forward = Call(f"{name}_activation", {**arrays, "residual": residual}, options | finish, exact, 4.0, chosen)
    return [
        forward,
        backward,
        Call(f"{name}_input", by_input, {**sizes, **options}, draw.is_exact, 4.0, chosen),
    ][draw.integer(0, 1) :]


def transposed_convolutions(draw: Draw) -> list[Call]:
    while True:
        w, (outputs, inputs, groups) = window(draw), channels(draw)
        lead = lead_of(draw, inputs)
        if prod(lead[:-1]) * outputs * prod(w.out) * inputs // groups * prod(w.kernel) <= MOST_PRODUCTS:
            break
    batched = len(lead) == 2
    arrays = {
        "input": draw.array((*lead, *w.out), batched=batched),
        "weight": draw.array((inputs, outputs // groups, *w.kernel), draw.finite),
        "bias": draw.parameter((outputs,)),
    }
    axes = zip(w.sizes, w.out, w.kernel, w.stride, w.dilation, w.padding, strict=True)
    extra = tuple(
        size - ((out - 1) * step + gap * (taps - 1) + 1 - sum(pair)) for size, out, taps, step, gap, pair in axes
    )
    options = {**w.options, "groups": groups, "output_padding": extra}
    grad = draw.array((*lead[:-1], outputs, *w.sizes), draw.finite, batched)
    name = f"conv_transpose{len(w.sizes)}d"
    forward, backward = with_gradient(name, grad, arrays, options, draw.is_exact, 4.0)
    # in its weight's gradient infinities of the input would meet the zeros of padding
    return [forward, backward][: 2 if draw.content != "special" else 1]


def local_layers(draw: Draw) -> list[Call]:
    while True:
        w, inputs, outputs = window(draw, 3), draw.one_of(CHANNELS), draw.one_of(CHANNELS)
        lead = lead_of(draw, inputs)
        if outputs * prod(w.out) * inputs * prod(w.kernel) * max(1, prod(lead[:-1])) <= MOST_PRODUCTS // 8:
            break
    batched = len(lead) == 2
    arrays = {
        "input": draw.array((*lead, *w.sizes), batched=batched),
        "weight": draw.array((outputs, *w.out, inputs, *w.kernel), draw.finite),
        "bias": draw.parameter((outputs, *w.out)),
    }
    grad = draw.array((*lead[:-1], outputs, *w.out), draw.finite, batched)
    return with_gradient(f"locally_connected{len(w.sizes)}d", grad, arrays, w.options, draw.is_exact)


def unfoldings(draw: Draw) -> list[Call]:
    while True:
        w, count = window(draw), draw.one_of(CHANNELS)
        lead = lead_of(draw, count)
        if prod(lead) * prod(w.kernel) * prod(w.out) <= 4 * MOST_ELEMENTS:
            break
    batched = len(lead) == 2
    columns = (*lead[:-1], count * prod(w.kernel), prod(w.out))
    options = {"kernel_size": w.kernel, **w.options}
    x, y = draw.array((*lead, *w.sizes), batched=batched), draw.array(columns, batched=batched)
    return [
        Call("im2col", {"input": x}, options, True),
        Call("col2im", {"input": y}, {"output_size": w.sizes, **options}, draw.is_exact),
    ]


def poolings(draw: Draw) -> list[Call]:
    kind = draw.one_of(("max", "max", "avg", "avg", "sum", "lp"))
    while True:
        w = window(draw, 6, within=True)
        lead = lead_of(draw, draw.one_of(CHANNELS))
        if prod(lead) * (prod(w.sizes) + prod(w.out)) <= MOST_ELEMENTS:
            break
    batched, name = len(lead) == 2, f"{kind}_pool{len(w.sizes)}d"
    content = "normal" if kind == "lp" else None
    x = draw.array((*lead, *w.sizes), content, batched)
    x = np.abs(x) + x.dtype.type(0.125) if kind == "lp" else x
    options: dict[str, Any] = {"kernel_size": w.kernel, **w.options}
    if kind == "avg":
        options |= {"count_include_pad": draw.chance(0.5), "divisor_override": draw.one_of((None, None, 3, -2.5))}
    if kind == "lp":
        options["norm_type"] = draw.one_of((1, 2, 3))
    grad = draw.array((*lead, *w.out), content, batched)
    exact = kind == "max" or (kind == "sum" and draw.is_exact)
    forward, backward = with_gradient(name, grad, {"input": x}, options, exact)
    if kind != "max":
        return [forward, backward]
    # sums of several gradients
    backward = Call(
        backward.name, {**backward.arrays, "grad_output": draw.array(grad.shape, "integers", batched)}, options, True
    )
    return [Call(name, {"input": x}, {**options, "return_indices": True}, True), backward]


def adaptive_poolings(draw: Draw) -> list[Call]:
    kind, rank = draw.one_of(("max", "avg")), draw.integer(1, 3)
    most = {1: 90, 2: 24, 3: 7}[rank]
    while True:
        sizes, out, lead = (
            draw.integers(rank, 1, most),
            draw.integers(rank, 1, most),
            lead_of(draw, draw.one_of(CHANNELS)),
        )
        if prod(lead) * (prod(sizes) + prod(out)) <= MOST_ELEMENTS:
            break
    batched = len(lead) == 2
    x = draw.array((*lead, *sizes), batched=batched)
    grad = draw.array((*lead, *out), "integers" if kind == "max" else None, batched)
    name = f"adaptive_{kind}_pool{rank}d"
    return with_gradient(name, grad, {"input": x}, {"output_size": out}, kind == "max")


def unpoolings(draw: Draw) -> list[Call]:
    rank = draw.integer(1, 3)
    most = {1: 60, 2: 16, 3: 5}[rank]
    while True:
        sizes, kernel, lead = (
            draw.integers(rank, 1, most),
            draw.integers(rank, 1, 3),
            lead_of(draw, draw.one_of(CHANNELS)),
        )
        out = tuple(size * k for size, k in zip(sizes, kernel, strict=True))
        if prod(lead) * prod(out) <= MOST_ELEMENTS:
            break
    batched = len(lead) == 2
    x, grad = (draw.array((*lead, *each), batched=batched) for each in (sizes, out))
    at = draw.rng.integers(-1, prod(out), x.shape).astype(draw.one_of(("int64", "int32")))
    at = arranged(at, draw.one_of(ORDERS), batched) if at.ndim > 1 else at
    return with_gradient(
        f"max_unpool{rank}d", grad, {"input": x, "indices": at}, {"kernel_size": kernel, "output_size": out}, True
    )


def interpolations(draw: Draw) -> list[Call]:
    rank = draw.integer(1, 3)
    most = {1: 60, 2: 20, 3: 6}[rank]
    while True:
        sizes = draw.integers(rank, 1, most)
        out = draw.one_of((tuple(2 * size for size in sizes), draw.integers(rank, 1, 2 * most)))
        lead = (draw.one_of(BATCHES[1:]), draw.one_of(CHANNELS))
        if prod(lead) * (prod(sizes) + prod(out)) <= MOST_ELEMENTS:
            break
    filters = ("linear", "bilinear", "trilinear")[rank - 1], ("cubic", "bicubic", "tricubic")[rank - 1]
    mode = draw.one_of(("nearest", "nearest-exact", *filters, "area"))
    options: dict[str, Any] = {"mode": mode, "size": out}
    if mode in filters:
        options["align_corners"] = draw.one_of((None, False, True))
        options["antialias"] = draw.one_of((False, True))
    # where sample positions are rounded, an infinity may have the weight 0 in one dtype and none in another
    content = draw.finite if mode in filters else None
    x, grad = (draw.array((*lead, *each), content) for each in (sizes, out))
    forward, backward = with_gradient("interpolate", grad, {"input": x}, options)
    copies = mode.startswith("nearest")
    return [
        Call(forward.name, forward.arrays, options, copies),
        Call(backward.name, backward.arrays, options, copies and draw.is_exact),
    ]


def norms(draw: Draw) -> list[Call]:
    kind, rank = draw.one_of(("batch", "batch_kept", "instance", "layer", "group")), draw.integer(1, 3)
    most = {1: 90, 2: 16, 3: 6}[rank]
    while True:
        groups, sizes = draw.one_of((1, 2, 3, 5)), draw.integers(rank, 1, most)
        count = groups * draw.one_of((1, 2, 4, 7, 16)) if kind == "group" else draw.one_of(CHANNELS)
        shape = (draw.integer(1, 5), count, *sizes)
        values = prod(sizes) * {"batch": shape[0], "instance": 1, "group": count // groups}.get(kind, 8)
        if values > 3 and prod(shape) <= MOST_ELEMENTS:
            break
    x, grad = (draw.array(shape, "normal") for _ in range(2))
    x = x * x.dtype.type(draw.one_of((1, 1, 5))) + x.dtype.type(draw.one_of((0, 0, 3)))
    if draw.chance(0.3):  # parts of a batch have means of their own
        x = x + np.linspace(0, 4, shape[0]).astype(x.dtype).reshape(-1, *(1,) * (rank + 1))
    normalized = shape[draw.integer(1, rank + 1) :] if kind == "layer" else shape[1:2]
    if kind == "layer" and prod(normalized) < 4:
        normalized = shape
    weight, bias = (draw.numbers(normalized, "normal") if draw.chance(0.7) else None for _ in range(2))
    weight = None if weight is None else np.clip(weight, -2, 2).astype(x.dtype)
    arrays: dict[str, Array | None] = {"input": x, "weight": weight, "bias": bias}
    options: dict[str, Any] = {"eps": draw.one_of((1e-5, 1e-3))}
    if kind == "batch_kept":
        moments = np.abs(draw.numbers(normalized, "normal")) + x.dtype.type(0.5)
        arrays |= {"running_mean": draw.numbers(normalized, "normal"), "running_var": moments}
    elif kind == "batch":
        arrays |= {"running_mean": None, "running_var": None}
        options["training"] = True
    elif kind != "instance":
        options["normalized_shape" if kind == "layer" else "num_groups"] = normalized if kind == "layer" else groups
    if draw.chance(0.4):  # far from zero, so that rounding gives no value another sign
        arrays["residual"] = np.copysign(x.dtype.type(60), draw.array(shape, "normal"))
        options |= {"activation": draw.one_of(ACTIVATIONS), "negative_slope": 0.3}
    axes = {"batch": (0, *range(2, rank + 2)), "instance": tuple(range(2, rank + 2))}.get(kind)
    wide = x.astype(np.float64)
    if kind == "group":
        wide, axes = wide.reshape(shape[0], groups, -1), (2,)
    elif kind == "layer":
        axes = tuple(range(len(shape) - len(normalized), len(shape)))
    var = arrays["running_var"].min() if kind == "batch_kept" else wide.var(axis=axes).min()  # type: ignore[union-attr]
    rstd = float(1 / np.sqrt(var + options["eps"]))
    factor = 2 * max(1.0, rstd * float(np.abs(x).max())) * max(1.0, rstd)
    if kind != "batch_kept" and draw.dtype == "float32" and draw.chance(0.2):  # squares beyond what float32 holds
        arrays["input"], options["eps"] = x * np.float32(draw.one_of((2.0**-70, 2.0**80))), 1e-300
    name = kind.removesuffix("_kept") + "_norm"
    return with_gradient(name, grad, arrays, options, False, factor)


def bias_activations(draw: Draw) -> list[Call]:
    rank = draw.integer(0, 3)
    most = {0: 900, 1: 90, 2: 24, 3: 7}[rank]
    shape = (draw.one_of(BATCHES[1:]), draw.one_of(CHANNELS), *draw.integers(rank, 1, most))
    while prod(shape) > MOST_ELEMENTS:
        shape = (*shape[:2], *[-(-size // 2) for size in shape[2:]])
    arrays = {
        "input": draw.array(shape),
        "bias": draw.parameter(shape[1:2]),
        "residual": draw.array(shape) if draw.chance(0.5) else None,
    }
    if draw.content != "integers":  # sums of eighths are exact, so it is known which side of 0 and of 6 they lie
        arrays = {name: array if array is None else np.round(array * 8) / 8 for name, array in arrays.items()}
    options = {"activation": draw.one_of(ACTIVATIONS), "negative_slope": 0.25}
    return with_gradient("bias_activation", draw.array(shape, draw.finite), arrays, options)


def softmaxes(draw: Draw) -> list[Call]:
    rank = draw.integer(1, 4)
    shape = draw.integers(rank, 1, {1: 900, 2: 60, 3: 17, 4: 9}[rank])
    name = draw.one_of(("softmax", "log_softmax"))
    grad, arrays = draw.array(shape, draw.finite), {"input": draw.array(shape)}
    return with_gradient(name, grad, arrays, {"dim": draw.integer(-rank, rank - 1)}, False, 4.0)


def smooth_activations(draw: Draw) -> list[Call]:
    rank = draw.integer(1, 4)
    shape = draw.integers(rank, 1, {1: 900, 2: 60, 3: 17, 4: 9}[rank])
    choices: tuple[tuple[str, dict[str, Any]], ...] = (
        ("sigmoid", {}),
        ("gelu", {"approximate": "none"}),
        ("gelu", {"approximate": "tanh"}),
    )
    name, options = draw.one_of(choices)
    return with_gradient(name, draw.array(shape, draw.finite), {"input": draw.array(shape)}, options, False, 4.0)


FAMILIES: dict[str, tuple[int, Callable[[Draw], list[Call]]]] = {  # with weights
    "convolution": (7, convolutions),
    "Winograd": (2, tiled_convolutions),
    "transposed convolution": (3, transposed_convolutions),
    "locally connected": (2, local_layers),
    "im2col": (2, unfoldings),
    "pooling": (4, poolings),
    "adaptive pooling": (2, adaptive_poolings),
    "unpooling": (1, unpoolings),
    "interpolation": (2, interpolations),
    "norm": (4, norms),
    "bias and activation": (2, bias_activations),
    "softmax": (1, softmaxes),
    "smooth activation": (1, smooth_activations),
}
_WEIGHTED = [name for name, (weight, _) in FAMILIES.items() for _ in range(weight)]


def drawn(
    seed: int, index: int, dtype: str | None = None, family: str | None = None
) -> tuple[str, list[Call], int, bool]:
    """The family of call `index` of a seed, its calls, their number of threads, and whether limits are low."""
    draw = Draw(np.random.default_rng((seed, index)), dtype)
    some = draw.one_of(_WEIGHTED)
    family = family or some
    return family, FAMILIES[family][1](draw), draw.integer(2, 3), draw.chance(0.4)


def described(call: Call) -> str:
    """A call in words: shapes, strides, options."""
    arrays = [
        f"{name}=None" if array is None else f"{name}={array.dtype} {array.shape} strides {array.strides}"
        for name, array in call.arrays.items()
    ]
    options = [f"{name}={value}" for name, value in call.options.items()]
    chosen = [] if call.algorithm is None else [f"algorithm {call.algorithm}"]
    return f"F.{call.name}({', '.join([*arrays, *options, *chosen])})"


def failures_of(seed: int, index: int, dtype: str | None = None, family: str | None = None) -> list[str]:
    """What is wrong with the calls of an index."""
    _, calls, threads, is_cut = drawn(seed, index, dtype, family)
    failures = []
    for call in calls:
        try:
            check(call, threads, is_cut)
        except Exception as error:
            again = f"python tests/fuzz.py --seed {seed} --first {index} --count 1"
            again += (f" --dtype {dtype}" if dtype else "") + (f' --family "{family}"' if family else "")
            failures.append(f"{again}\n{described(call)}\n{type(error).__name__}: {error}")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="how many to draw (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first to take (default 0)")
    parser.add_argument("--dtype", choices=FLOATS, help="the only dtype")
    parser.add_argument("--family", choices=FAMILIES, help="the only family of operations")
    given = parser.parse_args()
    exact_buffers()
    faulthandler.enable()
    started, failed, families = time.monotonic(), 0, Counter[str]()
    for done in range(1, given.count + 1):
        index = given.first + done - 1
        families[drawn(given.seed, index, given.dtype, given.family)[0]] += 1
        for failure in failures_of(given.seed, index, given.dtype, given.family):
            failed += 1
            sys.stdout.write(f"\n{failure}\n")
        if sys.stdout.isatty() or done % 500 == 0 or done == given.count:
            seconds = time.monotonic() - started
            end = "" if sys.stdout.isatty() and done < given.count else "\n"
            sys.stdout.write(f"\r{done}/{given.count} drawn, {failed} failed, {seconds:.0f} s{end}")
            sys.stdout.flush()
    sys.stdout.write(", ".join(f"{number} {name}" for name, number in sorted(families.items())) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
