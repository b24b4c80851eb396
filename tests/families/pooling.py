"""Poolings, the ways back up, and interpolation: calls to draw."""

from __future__ import annotations

import math
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import reference
from hypothesis import assume
from hypothesis import strategies as st
from pooling_cases import CONTENTS, INTEGERS, LEADS, adaptives, content, of_batches, pools, torch_pools
from properties import Array, Case
from strategies import ORDERS, arranged, numbers, paddings, pair_of

from families.drawing import Ints, Purpose, over_all_integers, rounding, seeds, sizes_of

FILTERS = {"linear": ("linear", "bilinear", "trilinear"), "cubic": ("cubic", "bicubic", "tricubic")}  # by rank
FACTORS = (0.3, 1 / 3, 0.5, 0.75, 1, 1.1, 1.3, 1.7, 2, 2.2, 2.5, 3, 3.7)


@st.composite
def poolings(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose, kind: str) -> Case:
    """Max, average, sum and lp pooling; numbers may be NaN and infinite where the gradient does not read them."""
    by_torch, small = purpose == "pytorch", purpose == "slopes"
    contents = ("numbers",) if small else ("numbers", "ties") if kind == "lp" else CONTENTS
    pool = draw(torch_pools(kind, contents) if by_torch else pools(dtypes, contents, largest=3 if small else 9))
    x, sizes, rank, batched = pool.input(), pool.windows.sizes, pool.rank, pool.batched
    assume(not small or x.size <= 150)
    grad = pool.grad((*pool.lead, *reference.output_size(sizes, *pool.geometry, ceil_mode=pool.ceil_mode)))
    more: dict[str, Any] = {}
    if kind == "avg":
        divisors = [None] if by_torch and rank == 1 else [None, 1, 5] if by_torch else [None, None, 1, 3, -2, 2.5]
        more = {"count_include_pad": draw(st.booleans()), "divisor_override": draw(st.sampled_from(divisors))}
    elif kind == "lp":
        more = {"norm_type": draw(st.sampled_from([1, 2, 3, 4, 0.5, 1.5]))}
        if more["norm_type"] not in ((1, 2, 4) if by_torch else (2, 4)):  # no sum is negative or cancels
            x = (np.abs(x) + x.dtype.type(0.125)).astype(x.dtype)
    elif kind == "sum":
        over_all_integers(draw, x, grad)
    oracle, backward = (getattr(reference, f"{kind}_pool{end}") for end in ("", "_backward"))
    power, divided = ((more["norm_type"],), {}) if kind == "lp" else ((), more)

    def expected() -> Any:
        return of_batches(lambda x: oracle(x, *power, *pool.geometry, ceil_mode=pool.ceil_mode, **divided), batched, x)

    def gradient() -> Array:
        if kind == "max":
            return of_batches(lambda x, g, at: backward(g, at, x.shape), batched, x, grad, expected()[1])
        if kind == "lp":
            return of_batches(
                lambda x, g: backward(g, x, *power, *pool.geometry, ceil_mode=pool.ceil_mode), batched, x, grad
            )
        return of_batches(lambda g: backward(g, sizes, *pool.geometry, **divided), batched, grad)

    options = {**pool.options, **more}
    assume(not small or kind != "max" or (expected()[1] >= 0).all())  # no maximum is infinite
    if by_torch:
        if kind == "max":  # PyTorch's gradient of a window that reads nothing goes somewhere
            grad = np.where(expected()[1] < 0, grad.dtype.type(0), grad)
        if kind == "lp" and rank == 1:  # which takes no sequences
            options |= {"kernel_size": pool.windows.kernel[0], "stride": pool.windows.stride[0]}
        unknown = {"avg": ["dilation"] + ["divisor_override"] * (rank == 1), "lp": ["padding", "dilation"]}
        options = {key: value for key, value in options.items() if key not in unknown.get(kind, [])}
    return Case(
        f"{kind}_pool{rank}d",
        {"input": x},
        options,
        grad,
        expected,
        lambda: (gradient(),),
        rank=rank,
        copies="forward" if kind == "max" else "",
        infinite=kind in ("avg", "sum"),
        **rounding(purpose),
    )


@st.composite
def adaptive_poolings(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose, kind: str) -> Case:
    case = draw(adaptives(dtypes, ("numbers",) if purpose == "slopes" else CONTENTS))
    assume(purpose == "oracle" or 0 not in case.lead)
    x, grad, batched = case.input(), case.grad(), case.batched
    assume(purpose != "slopes" or x.size <= 100)
    oracle = getattr(reference, f"adaptive_{kind}_pool")

    def expected() -> Any:
        return of_batches(lambda x: oracle(x, case.out), batched, x)

    def gradients() -> tuple[Array]:
        if kind == "avg":
            return (of_batches(lambda g: reference.adaptive_avg_pool_backward(g, case.sizes), batched, grad),)
        at = expected()[1]
        return (of_batches(lambda x, g, at: reference.max_pool_backward(g, at, x.shape), batched, x, grad, at),)

    return Case(
        f"adaptive_{kind}_pool{case.rank}d",
        {"input": x},
        {"output_size": case.out if purpose == "pytorch" else case.output_size},
        grad,
        expected,
        gradients,
        rank=case.rank,
        copies="forward" if kind == "max" else "",
        infinite=kind == "avg",
        **rounding(purpose),
    )


@st.composite
def unpoolings(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    """Max unpooling, with indices that repeat and miss; for PyTorch those of a max pooling."""
    if purpose == "pytorch":
        return replace(draw(of_pooled()), **rounding(purpose))
    rank, lead = draw(st.integers(1, 3)), draw(st.sampled_from(LEADS))
    sizes, kernel = draw(sizes_of(rank, 4 if rank < 3 else 2)), draw(sizes_of(rank, 3))
    stride, padding = draw(st.one_of(st.none(), sizes_of(rank, 3))), draw(paddings(kernel))
    steps = kernel if stride is None else stride
    default = [(size - 1) * step + window for size, step, window in zip(sizes, steps, kernel, strict=True)]
    default = [size - sum(pair_of(padding, axis)) for axis, size in enumerate(default)]
    if padding in ("same", "same_lower"):
        default = [size * step for size, step in zip(sizes, steps, strict=True)]
    assume(all(usual + step > 1 for usual, step in zip(default, steps, strict=True)))
    ranges = ((max(1, usual - step + 1), usual + step - 1) for usual, step in zip(default, steps, strict=True))
    out = tuple(draw(st.integers(*limits)) for limits in ranges)
    forms = [out, list(out), (*lead, *out), *out[: len(set(out)) == 1], *[None] * (default == list(out))]
    dtype, index_dtype = draw(st.sampled_from(dtypes)), draw(st.sampled_from(("int64", "int64", *INTEGERS[1:])))
    one, other = draw(st.tuples(*[st.sampled_from(ORDERS)] * 2))
    rng = np.random.default_rng(draw(seeds))
    x, grad = (arranged(numbers(rng, (*lead, *space), dtype), one, len(lead) == 2) for space in (sizes, out))
    least = 0 if index_dtype.startswith("u") else -1
    indices = arranged(rng.integers(least, prod(out), x.shape).astype(index_dtype), other, len(lead) == 2)
    options = {"kernel_size": kernel, "stride": stride, "padding": padding, "output_size": draw(st.sampled_from(forms))}
    return unpooling(x, indices, grad, options, out)


@st.composite
def of_pooled(draw: st.DrawFn) -> Case:
    """The unpooling of what was pooled."""
    pool = draw(torch_pools("avg"))
    x, w = pool.input(), pool.windows
    y, indices = of_batches(lambda x: reference.max_pool(x, *pool.geometry, ceil_mode=pool.ceil_mode), pool.batched, x)
    options = {"kernel_size": w.kernel, "stride": pool.stride, "padding": w.padding}
    options["output_size"] = x.shape if pool.batched else w.sizes
    return unpooling(y.astype(x.dtype), indices, pool.grad(x.shape), options, w.sizes)


def unpooling(x: Array, indices: Array, grad: Array, options: dict[str, Any], out: Ints) -> Case:
    batched = x.ndim - len(out) == 2
    return Case(
        f"max_unpool{len(out)}d",
        {"input": x, "indices": indices},
        options,
        grad,
        lambda: of_batches(lambda x, at: reference.max_unpool(x, at, out), batched, x, indices),
        lambda: (of_batches(reference.max_unpool_backward, batched, grad, indices), None),
        rank=len(out),
        copies="forward backward",
    )


@st.composite
def nails(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    rank, lead = draw(st.integers(1, 3)), draw(st.sampled_from(LEADS))
    sizes, factors = draw(sizes_of(rank, 4)), draw(sizes_of(rank, 3))
    dtype, order, batched = draw(st.sampled_from(dtypes)), draw(st.sampled_from(ORDERS)), len(lead) == 2
    rng = np.random.default_rng(draw(seeds))
    out = tuple(size * factor for size, factor in zip(sizes, factors, strict=True))
    x, grad = (arranged(numbers(rng, (*lead, *space), dtype), order, batched) for space in (sizes, out))
    assume(purpose != "slopes" or x.size <= 100)
    return Case(
        f"bed_of_nails{rank}d",
        {"input": x},
        {"scale_factor": factors[0] if len(set(factors)) == 1 else factors},
        grad,
        lambda: of_batches(lambda x: reference.bed_of_nails(x, factors), batched, x),
        lambda: (of_batches(lambda grad: reference.bed_of_nails_backward(grad, factors), batched, grad),),
        rank=rank,
        copies="forward backward",
    )


@st.composite
def interpolations(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose, modes: tuple[str, ...]) -> Case:
    """By sizes or by factors; what the modes "nearest…" copy may be NaN."""
    mode = draw(st.sampled_from(modes))
    options: dict[str, Any] = {}
    if mode in FILTERS:
        options["align_corners"] = draw(st.sampled_from([None, False, True]))
        options["antialias"] = draw(st.booleans())
    antialias = options.get("antialias", False)
    is_2d = purpose == "pytorch" and (mode == "cubic" or antialias)  # what PyTorch has for 2-d images alone
    rank = 2 if is_2d else draw(st.integers(1, 3))
    options["mode"] = mode = FILTERS[mode][rank - 1] if mode in FILTERS else mode
    most = 3 if purpose == "slopes" else 8 if rank < 3 else 4
    factors = None
    if draw(st.booleans()):
        sizes = draw(sizes_of(rank, most))
        options["size"] = asked = draw(st.one_of(st.integers(1, 6), sizes_of(rank, 12 if rank < 3 else 6)))
        out = (asked,) * rank if isinstance(asked, int) else asked
    else:
        asked = draw(st.one_of(st.sampled_from(FACTORS), st.tuples(*[st.sampled_from(FACTORS)] * rank)))
        options["scale_factor"], given = asked, asked if isinstance(asked, tuple) else (asked,) * rank
        leasts = [math.ceil(1 / factor) for factor in given]
        sizes = tuple(draw(st.integers(least, max(least, most))) for least in leasts)
        out = tuple(math.floor(size * factor) for size, factor in zip(sizes, given, strict=True))
        options["recompute_scale_factor"] = draw(st.sampled_from([None, False, True]))
        factors = None if options["recompute_scale_factor"] else given
    leads = [(2, 3), (1, 2), (2, 1)] + [(0, 2)] * (purpose == "oracle")
    copied = mode.startswith("nearest")
    dtype, lead, order = (draw(st.sampled_from(items)) for items in (dtypes, leads, ORDERS))
    rng = np.random.default_rng(draw(seeds))
    x, grad = (numbers(rng, (*lead, *space), dtype) for space in (sizes, out))
    assume(purpose != "slopes" or x.size <= 100)
    x = content(x, "NaN", rng) if copied and purpose != "slopes" else x
    x, grad = arranged(x, order), arranged(grad, order)
    axes = list(zip(sizes, out, factors or sizes, strict=True))
    # where an axis keeps or doubles its size PyTorch's "nearest" goes by sizes backward, but forward in 2-d alone
    by_factor = any(new in (size, 2 * size) and factor != new / size for size, new, factor in axes)
    if purpose == "pytorch" and antialias:
        assume(not by_factor)  # an axis that keeps its size is copied forward, but not backward
        assume(out[1] > 1 or sizes[0] == out[0])  # such a column is wrong forward, but not backward
    known = {
        "scale_factor": factors, "mode": mode, "align_corners": bool(options.get("align_corners")),
        "antialias": antialias,
    }  # fmt: skip
    return Case(
        "interpolate",
        {"input": x},
        options,
        grad,
        lambda: reference.interpolate(x, out, **known),
        lambda: (reference.interpolate_backward(grad, sizes, **known),),
        has_peer_result=mode != "nearest" or factors is None or rank == 2 or not by_factor,
        rank=rank,
        copies="forward" if copied else "",
        **rounding(purpose),
    )
