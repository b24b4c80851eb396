"""Families of operations: calls to draw of each, with their oracle and their peer in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

import numpy as np
import reference
import reference_norms
from convolution_cases import CHANNELS, Layer, layers
from hypothesis import assume
from hypothesis import strategies as st
from pooling_cases import CONTENTS, INTEGERS, LEADS, ORDERED, adaptives, content, of_batches, pools, torch_pools
from properties import Array, Case
from strategies import COMPLEX, FLOATS, ORDERS, arranged, dtype_of, numbers, paddings, pair_of
from tolerances import summed

ALL = (*FLOATS, *COMPLEX, *INTEGERS)
LINEAR = (*FLOATS, *COMPLEX)
Ints = tuple[int, ...]
Purpose = str
"""What calls are drawn for: "oracle", "pytorch" for what PyTorch takes too, or "slopes", which are small and smooth."""
PYTORCH = 20.0  # times our tolerance is what PyTorch's own sums, in another order, may differ by
seeds = st.integers(0, 2**16)
REDUCTIONS = ("mean", "sum", "none")
MODES = ("constant", "reflect", "replicate", "circular", "symmetric")
LINEAR_MODE = {1: "linear", 2: "bilinear", 3: "trilinear"}
FACTORS = (0.3, 1 / 3, 0.5, 0.75, 1, 1.1, 1.3, 1.7, 2, 2.2, 2.5, 3, 3.7)
MOMENTUM = 0.1


def sizes_of(rank: int, most: int) -> st.SearchStrategy[Ints]:
    return st.tuples(*[st.integers(1, most)] * rank)


def rounding(purpose: Purpose) -> dict[str, float]:
    """What differences to a peer are allowed."""
    return {"factor": PYTORCH, "gradient_factor": PYTORCH} if purpose == "pytorch" else {}


def over_all_integers(draw: st.DrawFn, *arrays: Array) -> None:
    """Now and then the numbers of integer arrays are of their dtype's whole range: sums of them wrap around."""
    if arrays[0].dtype.kind in "iu" and draw(st.booleans()):
        rng = np.random.default_rng(3)
        for array in arrays:
            range_ = np.iinfo(array.dtype)
            array[...] = rng.integers(range_.min, range_.max, array.shape, array.dtype, endpoint=True)


# --- Convolution, its gradients, and its relatives -----------------------------------------------------------------


def drawn_layers(
    purpose: Purpose, dtypes: tuple[str, ...], most: int = 2000, few: int = 100, **kwargs: Any
) -> st.SearchStrategy[Any]:
    """Layers of at most `most` products, `few` for finite differences."""
    small = purpose == "slopes"
    size = {"largest": 3} if small else {}
    return layers(dtypes, few if small else most, symmetric=purpose == "pytorch", **size, **kwargs)


@st.composite
def convolutions(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    layer = draw(drawn_layers(purpose, dtypes))
    arrays = layer.arrays()
    over_all_integers(draw, *arrays)
    with_bias = purpose != "oracle" or draw(st.booleans())
    x, w, b, grad = arrays
    if grad.dtype.kind in "iu" and draw(st.booleans()):
        grad = grad.astype(summed(grad.dtype))  # as a result is
    return replace(convolution(layer, (x, w, b if with_bias else None, grad)), **rounding(purpose))


def convolution(layer: Layer, arrays: tuple[Any, ...] | None = None) -> Case:
    """The convolution of a layer, and its backward."""
    x, w, b, grad = arrays or layer.arrays()

    @cache
    def expected() -> Array:
        return layer.without(reference.conv(layer.with_batch(x), w, b, *layer.loops))

    @cache
    def gradients() -> tuple[Array, Array, Array]:
        gx, gw, gb = reference.conv_backward(layer.with_batch(grad), layer.with_batch(x), w, *layer.loops)
        return layer.without(gx), gw, gb

    return Case(
        f"conv{layer.windows.rank}d",
        {"input": x, "weight": w, "bias": b},
        layer.options,
        grad,
        expected,
        gradients,
        rank=layer.windows.rank,
    )


@st.composite
def convolution_gradients(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose, of: str) -> Case:
    """The gradient of a convolution with respect to its input or weight, as an operation that has gradients itself."""
    layer = draw(drawn_layers(purpose, dtypes, 1000))
    x, w, _, grad = layer.arrays()
    over_all_integers(draw, x, w, grad)
    rank = layer.windows.rank
    batched_x, batched_grad = layer.with_batch(x), layer.with_batch(grad)

    def by_input() -> Array:
        return layer.without(reference.conv_backward_input(batched_grad, w, layer.windows.sizes, *layer.loops))

    def by_weight() -> Array:
        return reference.conv_backward_weight(batched_grad, batched_x, layer.windows.kernel, *layer.loops)

    def forward() -> Array:
        return layer.without(reference.conv(batched_x, w, None, *layer.loops))

    def peer(torch: Any, grad_output: Any, **given: Any) -> Any:
        leaf = torch.zeros(given.pop(f"{of}_size"), dtype=grad_output.dtype, requires_grad=True)
        y = getattr(torch.nn.functional, f"conv{rank}d")(**given, **{of: leaf})
        return torch.autograd.grad(y, leaf, grad_output, create_graph=True)[0]

    sought, other, array = (x, "weight", w) if of == "input" else (w, "input", x)
    expected, gradient = (by_input, by_weight) if of == "input" else (by_weight, by_input)
    return Case(
        f"conv{rank}d_{of}",
        {other: array, "grad_output": grad},
        {f"{of}_size": sought.shape, **layer.options},
        sought,
        expected,
        lambda: (gradient(), forward()),
        peer,
        **rounding(purpose),
    )


@st.composite
def transposed_convolutions(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    rank = draw(st.integers(1, 3))
    sizes, kernel = (draw(sizes_of(rank, most if rank < 3 else most - 1)) for most in (5, 4))
    stride, dilation = draw(sizes_of(rank, 4)), draw(sizes_of(rank, 3))
    padding = draw(paddings((4,) * rank, named=purpose != "pytorch"))
    if purpose == "pytorch" and isinstance(padding, tuple):
        padding = tuple(pair[0] if isinstance(pair, tuple) else pair for pair in padding)
    same = padding in ("same", "same_lower")
    most = [0 if same else max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
    output_padding = tuple(draw(st.integers(0, limit)) for limit in most)
    (inputs, outputs, groups), batch = draw(st.sampled_from(CHANNELS)), draw(st.sampled_from([None, 0, 1, 2, 3]))
    dtype, orders = draw(st.sampled_from(dtypes)), draw(st.tuples(*[st.sampled_from(ORDERS)] * 3))

    pads, extra = reference.resolve_transposed_padding(padding, sizes, kernel, stride, dilation)
    extra = extra if same else output_padding
    out = reference.transposed_size(sizes, kernel, stride, pads, dilation, extra)
    assume(min(out) >= 1 and prod(sizes) * prod(kernel) <= (40 if purpose == "slopes" else 2000))
    lead = () if batch is None else (batch,)
    shapes = (*lead, inputs, *sizes), (inputs, outputs // groups, *kernel), (*lead, outputs, *out)
    rng = np.random.default_rng(1)
    batched = (bool(lead), True, bool(lead))
    x, w, grad = (
        arranged(numbers(rng, *each), *view)
        for each, view in zip(((shape, dtype) for shape in shapes), zip(orders, batched, strict=True), strict=True)
    )
    bias = numbers(rng, (outputs,), dtype)
    over_all_integers(draw, x, w, bias, grad)
    b = bias if purpose != "oracle" or draw(st.booleans()) else None

    def gradients() -> tuple[Array, Array, Array]:
        one = (lambda array: array) if lead else (lambda array: array[None])
        gx, gw, gb = reference.conv_transpose_backward(one(grad), one(x), w, stride, pads, dilation, groups)
        return gx if lead else gx[0], gw, gb

    return Case(
        f"conv_transpose{rank}d",
        {"input": x, "weight": w, "bias": b},
        {
            "stride": stride,
            "padding": padding,
            "output_padding": output_padding,
            "groups": groups,
            "dilation": dilation,
        },
        grad,
        lambda: of_batches(
            lambda x: reference.conv_transpose(x, w, b, stride, pads, extra, dilation, groups), bool(lead), x
        ),
        gradients,
        rank=rank,
        **rounding(purpose),
    )


@st.composite
def local_layers(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    rank = {"rank": 2} if purpose == "pytorch" else {}  # the images that PyTorch unfolds
    layer = draw(drawn_layers(purpose, dtypes, 1000, 30, channels=[(1, 1, 1), (2, 3, 1), (3, 2, 1)], **rank))
    assume(purpose != "pytorch" or layer.batch != 0)  # of which it unfolds no empty batch
    windows, loops, (inputs, outputs, _) = layer.windows, layer.loops[:3], layer.channels
    x, _, _, grad = layer.arrays()
    rng = np.random.default_rng(2)
    w = numbers(rng, (outputs, *layer.output_size, inputs, *windows.kernel), layer.dtype)
    w, bias = arranged(w, layer.orders[1]), numbers(rng, (outputs, *layer.output_size), layer.dtype)
    over_all_integers(draw, x, w, bias, grad)
    b = bias if purpose != "oracle" or draw(st.booleans()) else None
    options = {key: value for key, value in layer.options.items() if key != "groups"}

    def gradients() -> tuple[Array, Array, Array]:
        gx, gw, gb = reference.locally_connected_backward(layer.with_batch(grad), layer.with_batch(x), w, *loops)
        return layer.without(gx), gw, gb

    def peer(torch: Any, input: Any, weight: Any, bias: Any, **options: Any) -> Any:
        columns = torch.nn.functional.unfold(layer.with_batch(input), windows.kernel, **options)
        y = torch.einsum("nkp,opk->nop", columns, weight.reshape(outputs, columns.shape[-1], -1))
        return layer.without(y.reshape(layer.with_batch(grad).shape) + bias)

    return Case(
        f"locally_connected{windows.rank}d",
        {"input": x, "weight": w, "bias": b},
        options,
        grad,
        lambda: layer.without(reference.locally_connected(layer.with_batch(x), w, b, *loops)),
        gradients,
        peer,
        rank=windows.rank,
        **rounding(purpose),
    )


@st.composite
def unfoldings(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    """im2col and col2im, each of which is the other's gradient."""
    rank = {"rank": 2} if purpose == "pytorch" else {}
    layer = draw(drawn_layers(purpose, dtypes, 2000, 60, channels=[(1, 1, 1), (2, 1, 1), (3, 1, 1)], **rank))
    assume(purpose != "pytorch" or layer.batch != 0)  # PyTorch takes no empty batch here
    return unfolding(layer, draw(st.booleans()), draw)


def unfolding(layer: Layer, folds: bool, draw: st.DrawFn | None = None) -> Case:
    """im2col of a layer's image, or col2im of columns, with any other columns as the gradient."""
    windows, loops = layer.windows, layer.loops[:3]
    image = layer.arrays()[0]
    lead = () if layer.batch is None else (layer.batch,)
    shape = (*lead, layer.channels[0] * prod(windows.kernel), prod(layer.output_size))
    # a matrix has no channels-last order: its rows are what lies innermost
    columns = arranged(numbers(np.random.default_rng(2), shape, layer.dtype), layer.orders[2], bool(lead))
    if draw is not None:
        over_all_integers(draw, image, columns)
    options = {key: value for key, value in layer.options.items() if key != "groups"}
    options |= {"kernel_size": windows.kernel, **({"output_size": windows.sizes} if folds else {})}

    def unfolded() -> Array:
        return layer.without(reference.im2col(layer.with_batch(image), windows.kernel, *loops))

    def folded() -> Array:
        return layer.without(reference.col2im(layer.with_batch(columns), windows.sizes, windows.kernel, *loops))

    x, grad = (columns, image) if folds else (image, columns)
    result, gradient = (folded, unfolded) if folds else (unfolded, folded)
    return Case(
        "col2im" if folds else "im2col",
        {"input": x},
        options,
        grad,
        result,
        lambda: (gradient(),),
        lambda torch, **leaves: getattr(torch.nn.functional, "fold" if folds else "unfold")(**leaves),
        rank=0,
        copies="backward" if folds else "forward",
        factor=PYTORCH if draw is not None else 1,
    )


# --- Pooling, and back -------------------------------------------------------------------------------------------


@st.composite
def poolings(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose, kind: str) -> Case:
    """Max, average, sum and lp pooling; numbers may be NaN and infinite where the gradient does not read them."""
    by_torch, small = purpose == "pytorch", purpose == "slopes"
    contents = ("numbers",) if small else ("numbers", "ties") if kind == "lp" else CONTENTS
    pool = draw(
        torch_pools(kind, contents) if by_torch else pools(dtypes, contents, **({"largest": 3} if small else {}))
    )
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
    named = {**dict(zip(("kernel", "stride", "pads", "dilation"), pool.geometry, strict=True)), **more}

    def expected() -> Any:
        return of_batches(lambda x: oracle(x, **named, ceil_mode=pool.ceil_mode), batched, x)

    def gradient() -> Array:
        if kind == "max":
            return of_batches(lambda x, g, at: backward(g, at, x.shape), batched, x, grad, expected()[1])
        if kind == "lp":
            return of_batches(lambda x, g: backward(g, x, **named, ceil_mode=pool.ceil_mode), batched, x, grad)
        return of_batches(lambda g: backward(g, sizes, **named), batched, grad)

    options = {**pool.options, **more}
    assume(not small or kind != "max" or (expected()[1] >= 0).all())  # no maximum is infinite
    if by_torch:
        if kind == "max":  # PyTorch's gradient of a window that reads nothing goes somewhere
            grad = np.where(expected()[1] < 0, grad.dtype.type(0), grad)
        if kind == "lp" and rank == 1:  # which takes no sequences
            options |= {"kernel_size": pool.windows.kernel[0], "stride": pool.windows.stride[0]}
        unknown = {"avg": ("dilation", "divisor_override")[: 3 - min(rank, 2)], "lp": ("padding", "dilation")}
        options = {key: value for key, value in options.items() if key not in unknown.get(kind, ())}
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
def interpolations(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    """By sizes or by factors, in every mode; what is copied may be NaN, and of any dtype."""
    rank = draw(st.integers(1, 3))
    most = 3 if purpose == "slopes" else 8 if rank < 3 else 4
    mode = draw(st.sampled_from(("nearest", "nearest-exact", "area", LINEAR_MODE[rank])))
    options: dict[str, Any] = {"mode": mode}
    if mode == LINEAR_MODE[rank]:
        options["align_corners"] = draw(st.sampled_from([None, False, True]))
    factors = None
    if draw(st.booleans()):
        sizes = draw(sizes_of(rank, most))
        options["size"] = asked = draw(st.one_of(st.integers(1, 6), sizes_of(rank, 12 if rank < 3 else 6)))
        out = (asked,) * rank if isinstance(asked, int) else asked
    else:
        asked = draw(st.one_of(st.sampled_from(FACTORS), st.tuples(*[st.sampled_from(FACTORS)] * rank)))
        options["scale_factor"], factors = asked, asked if isinstance(asked, tuple) else (asked,) * rank
        leasts = [math.ceil(1 / factor) for factor in factors]
        sizes = tuple(draw(st.integers(least, max(least, most))) for least in leasts)
        out = tuple(math.floor(size * factor) for size, factor in zip(sizes, factors, strict=True))
    leads = [(2, 3), (1, 2), (2, 1)] + [(0, 2)] * (purpose == "oracle")
    copied = mode.startswith("nearest")
    dtype = draw(st.sampled_from([dtype for dtype in dtypes if copied or dtype in LINEAR]))
    lead, order = draw(st.sampled_from(leads)), draw(st.sampled_from(ORDERS))
    rng = np.random.default_rng(draw(seeds))
    x, grad = (numbers(rng, (*lead, *space), dtype) for space in (sizes, out))
    assume(purpose != "slopes" or x.size <= 100)
    x = content(x, "NaN", rng) if copied and purpose != "slopes" else x
    x, grad = arranged(x, order), arranged(grad, order)
    axes = list(zip(sizes, out, factors or sizes, strict=True))
    # where an axis keeps or doubles its size PyTorch's "nearest" goes by sizes backward, but forward in 2-d alone
    by_factor = any(new in (size, 2 * size) and factor != new / size for size, new, factor in axes)
    known = {"scale_factor": factors, "mode": mode, "align_corners": bool(options.get("align_corners"))}
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


# --- Norms ---------------------------------------------------------------------------------------------------------

OWN = ("batch", "instance", "layer", "group")  # each normalises by its input's statistics
KINDS = (*OWN, "batch_kept", "instance_kept")  # by running statistics
SLOPE = 0.2  # of a leaky_relu below 0


@st.composite
def norms(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose, kind: str, finished: bool = False) -> Case:
    """A norm of an input with up to three spatial axes; where it is finished, with a residual and an activation."""
    finish = (False, None)
    if finished:
        finish = draw(st.tuples(st.booleans(), st.sampled_from(("relu", "leaky_relu", "none", None))))
    if purpose == "slopes":
        return norm(kind, (2, 4, 3, 2), {"layer": (3, 2), "group": 2}.get(kind), "float64", finish=finish)
    sizes = st.integers(1, 6 if purpose == "pytorch" else 4)
    option: Any = None
    if kind == "layer":
        shape = tuple(draw(st.lists(sizes, min_size=1, max_size=4)))
        option = shape[draw(st.integers(0, len(shape) - 1)) :]
    else:
        least = 1 if kind.startswith("instance") else 0
        n, c, *space = draw(sizes), draw(sizes), *draw(st.lists(sizes, min_size=least, max_size=3))
        if kind == "group":
            option, c = c, c * draw(st.integers(1, 3))
        if prod(space) * {"batch": n, "instance": 1, "group": n * c // (option or 1)}.get(kind, 2) == 1:
            n, space = 2, [2, *space[1:]]
        shape = (n, c, *space)
    dtype = draw(st.sampled_from(dtypes))
    # the gradient of an activation is rounded to 16 bits, which a weight of 32 would show
    wide = dtype in ("float16", "bfloat16") and not finished and draw(st.booleans())
    case = norm(
        kind,
        shape,
        option,
        dtype,
        draw(st.sampled_from(ORDERS if len(shape) > 1 else ("contiguous", "strided"))),
        "float32" if wide else dtype,
        draw(st.tuples(st.booleans(), st.booleans(), st.booleans())),
        draw(st.sampled_from((1e-5, 1e-3, 0.5))),
        draw(st.sampled_from((0, 5))),
        draw(st.integers(0, 999)),
        finish,
    )
    if purpose != "pytorch":
        return case
    # its own rounding is of scale and shift folded into one
    return replace(case, factor=10 * case.gradient_factor, gradient_factor=10 * case.gradient_factor)


def norm(
    kind: str,
    shape: Ints,
    option: Any,
    dtype: str,
    order: str = "contiguous",
    parameter_dtype: str | None = None,
    given: tuple[bool, bool, bool] = (True, True, True),
    eps: float = 1e-5,
    mean: float = 0,
    seed: int = 1,
    finish: tuple[bool, str | None] = (False, None),
) -> Case:
    """A norm of `kind`, one of KINDS, with a weight, a bias and running statistics where these are `given`.

    `option` is layer norm's normalized_shape, or group norm's num_groups; `finish` is whether there is a residual, and
    the activation.
    """
    rng = np.random.default_rng(seed)
    name, own, has_running = kind.removesuffix("_kept") + "_norm", kind in OWN, kind not in ("layer", "group")
    parameters = option if kind == "layer" else shape[1:2]

    def parameter(positive: bool = False) -> Array:
        array = numbers(rng, parameters, parameter_dtype or dtype)
        array = (abs(array) + 0.5).astype(array.dtype) if positive else array
        return arranged(array, "strided" if order == "strided" else "contiguous")

    x = arranged(numbers(rng, shape, dtype) + np.array(mean, dtype_of(dtype)), order)
    grad = arranged(numbers(rng, shape, dtype), order)
    running: list[Array | None] = [None, None]
    if has_running and (given[2] or not own):
        running = [parameter(), parameter(positive=True)]
    weight, bias = (parameter() if has else None for has in given[:2])
    (has_residual, activation), residual = finish, arranged(numbers(rng, shape, dtype), order)
    arrays = {"input": x, "weight": weight, "bias": bias}
    options: dict[str, Any] = {"eps": eps}
    if has_running:
        arrays = dict(
            zip(("input", "running_mean", "running_var", "weight", "bias"), (x, *running, weight, bias), strict=True)
        )
        options |= {"training" if kind.startswith("batch") else "use_input_stats": own, "momentum": MOMENTUM}
    else:
        options["normalized_shape" if kind == "layer" else "num_groups"] = option
    if has_residual:
        arrays["residual"] = residual
    if activation is not None:
        options |= {"activation": activation, "negative_slope": SLOPE}
    slope = {"relu": 0.0, "leaky_relu": SLOPE}.get(activation or "", 1.0)
    middle: tuple[Any, ...] = tuple(running) if has_running else (option,)
    switch: tuple[Any, ...] = (own,) if has_running else ()

    def normalised() -> tuple[Any, ...]:
        moved = (own, MOMENTUM) if has_running else ()
        y, *statistics = getattr(reference_norms, name)(x, *middle, weight, bias, *moved, eps)[:3]
        return y + reference.wide(residual) if has_residual else y, *statistics

    def expected() -> tuple[Any, ...]:
        y, *statistics = normalised()
        return np.where(y > 0, y, slope * y), *statistics

    if activation in ("relu", "leaky_relu"):  # rounding decides the sign of what is near 0
        grad = arranged(np.where(abs(normalised()[0]) < 0.05, grad.dtype.type(0), grad), order)

    def gradients() -> tuple[Any, ...]:
        upstream = np.where(normalised()[0] > 0, 1, slope) * reference.wide(grad)
        graph = "batch_norm_backward_graph" if name == "batch_norm" else f"{name}_backward"
        gx, gw, gb = getattr(reference_norms, graph)(upstream, x, *middle, weight, *switch, eps)
        return gx, *[None] * (2 * has_running), gw, gb, *[upstream] * has_residual

    def peer(torch: Any, **leaves: Any) -> Any:
        after = {key: leaves.pop(key, None) for key in ("residual", "activation", "negative_slope")}
        if not has_running and leaves["weight"] is None and leaves["bias"] is not None:
            # group_norm's backward breaks on a bias without a weight
            leaves["weight"] = torch.ones_like(leaves["bias"], requires_grad=False)
        y = getattr(torch.nn.functional, name)(**leaves)
        y = y if after["residual"] is None else y + after["residual"]
        return torch.nn.functional.leaky_relu(y, slope)

    # A rounding of the input or of its mean is multiplied by the reciprocal standard deviation, one of the gradient
    # once more; what is computed in float32 and rounded to 16 bits at the end does not show it.
    rstd = float(expected()[2].max(initial=0.0))
    conditioning = 1.0 if x.itemsize == 2 else max(1.0, rstd * float(np.abs(x).max(initial=0.0)))
    return Case(
        name,
        arrays,
        options,
        grad,
        expected,
        gradients,
        peer,
        factor=conditioning,
        gradient_factor=conditioning * max(1.0, rstd),
    )


# --- Linear layers, elementwise operations and padding -------------------------------------------------------------


@st.composite
def linear_layers(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    """With any leading axes, and weights for one output or several."""
    leading = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    features, outputs = draw(st.integers(1, 5)), draw(st.sampled_from(((), (1,), (2,), (5,))))
    rng, dtype = np.random.default_rng(draw(seeds)), draw(st.sampled_from(dtypes))
    shapes = ((*leading, features), (*outputs, features), outputs, (*leading, *outputs))
    x, w, bias, grad = (np.asarray(numbers(rng, shape, dtype)) for shape in shapes)
    order = draw(st.sampled_from(("contiguous", "strided", "reversed")))
    x, w = arranged(x, order), np.asfortranarray(w) if draw(st.booleans()) else arranged(w, order)
    over_all_integers(draw, x, w, bias, grad)
    b = bias if draw(st.booleans()) else None
    assume(purpose != "pytorch" or outputs or (x.size and b is None))  # PyTorch breaks on others

    def gradients() -> tuple[Array, Array, Array]:
        gx, gw, gb = reference.linear_backward(grad.reshape(*leading, prod(outputs)), x, np.atleast_2d(w))
        return gx, gw.reshape(w.shape), gb.reshape(outputs)

    return Case(
        "linear",
        {"input": x, "weight": w, "bias": b},
        {},
        grad,
        lambda: reference.linear(x, np.atleast_2d(w), b if b is None else np.atleast_1d(b)).reshape(grad.shape),
        gradients,
    )


@st.composite
def unary_operations(
    draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose, name: str, **options: st.SearchStrategy[Any]
) -> Case:
    """An operation on each element, or along an axis that `dim` is drawn for."""
    along_axis = name.endswith("softmax")
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=int(along_axis), max_size=4)))
    order = draw(st.sampled_from(ORDERS if len(shape) > 1 else ("contiguous",)))
    rng, dtype = np.random.default_rng(draw(seeds)), draw(st.sampled_from(dtypes))
    x, grad = (arranged(numbers(rng, shape, dtype), order) for _ in range(2))
    assume(purpose != "slopes" or x.size <= 100)
    drawn = {key: draw(values) for key, values in options.items()}
    drawn = {key: value for key, value in drawn.items() if value is not None}
    if along_axis:
        drawn["dim"] = draw(st.integers(-x.ndim, x.ndim - 1))
    module = reference_norms if along_axis else reference

    def of_oracle(end: str, *arrays: Array) -> Any:
        return getattr(module, name + end)(*arrays, **drawn) if x.size else np.zeros(x.shape)

    return Case(name, {"input": x}, drawn, grad, lambda: of_oracle("", x), lambda: (of_oracle("_backward", grad, x),))


@st.composite
def bias_activations(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    """A bias and a residual, where there are any, then an activation."""
    shape = tuple(draw(st.lists(st.integers(1, 3 if purpose == "slopes" else 5), min_size=2, max_size=4)))
    if purpose == "oracle":
        shape = draw(st.sampled_from([shape, shape, (*shape[:-1], 10 * shape[-1]), (0, *shape[1:])]))
    rng, dtype, order = np.random.default_rng(draw(seeds)), draw(st.sampled_from(dtypes)), draw(st.sampled_from(ORDERS))
    order = order if len(shape) > 2 else "contiguous"
    x, grad, other = (arranged(numbers(rng, shape, dtype), order) for _ in range(3))
    bias = numbers(rng, shape[1:2], dtype) if draw(st.booleans()) else None
    residual = other if draw(st.booleans()) else None
    activation, negative_slope = (
        draw(st.sampled_from(("none", "relu", "leaky_relu"))),
        draw(st.sampled_from((0.3, 0.0, -0.5))),
    )
    slope = {"relu": 0.0, "leaky_relu": negative_slope}.get(activation, 1.0)
    total = reference.wide(x)
    for term in (None if bias is None else reference.per_channel(bias, x.ndim), residual):
        total = total if term is None else total + reference.wide(term)

    def gradients() -> Any:
        through = np.where(total > 0, 1, slope) * reference.wide(grad)
        return through, reference.sum_per_channel(through), through

    def peer(torch: Any, input: Any, bias: Any, residual: Any, **options: Any) -> Any:
        y = input if bias is None else input + bias.reshape(-1, *[1] * (x.ndim - 2))
        return torch.nn.functional.leaky_relu(y if residual is None else y + residual, slope)

    return Case(
        "bias_activation",
        {"input": x, "bias": bias, "residual": residual},
        {"activation": activation, "negative_slope": negative_slope},
        grad,
        lambda: np.where(total > 0, total, slope * total),
        gradients,
        peer,
        rank=len(shape) - 2 or None,
    )


@st.composite
def pads(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    """Padding and cropping; for PyTorch of images, which it takes in all modes but one."""
    images, mode = purpose == "pytorch", draw(st.sampled_from(MODES[:-1] if purpose == "pytorch" else MODES))
    shape = draw(st.lists(st.integers(1, 5), min_size=2 if images else 0, max_size=4))
    axes = draw(st.integers(1, len(shape) - 1)) if images else draw(st.integers(0, len(shape)))
    if images:
        shape = shape[-axes - draw(st.integers(1, 2)) :]
    pad: list[int] = []
    for size in reversed(shape[len(shape) - axes :]):
        keeps = 0 if mode == "constant" else 1
        low = draw(st.integers(0, size - keeps))
        high = draw(st.integers(0, size - keeps - low))
        left = size - low - high
        limit = {"reflect": left - 1, "circular": left, "symmetric": left}.get(mode, 4)
        pad += [-crop if crop else draw(st.integers(0, limit)) for crop in (low, high)]
    dtypes = dtypes if mode == "constant" or not images else tuple(dtype for dtype in dtypes if dtype in FLOATS)
    dtype, order = draw(st.sampled_from(dtypes)), draw(st.sampled_from(ORDERS if len(shape) > 1 else ("contiguous",)))
    rng = np.random.default_rng(draw(seeds))
    x = arranged(np.asarray(numbers(rng, tuple(shape), dtype)), order)
    assume(purpose != "slopes" or x.size <= 100)
    values = (None, 0, 3) + {"c": (1.5 - 2j,) * (not images), "i": (-2,), "u": ()}.get(
        x.dtype.kind, (-0.5, np.nan, np.inf)
    )
    value = draw(st.sampled_from(values)) if mode == "constant" else None
    crops, widths = [min(size, 0) for size in pad], [max(size, 0) for size in pad]
    cropped = reference.pad(x, crops)

    def expected() -> Array:
        return reference.pad(cropped, widths, mode, 0 if value is None else value)

    grad = np.asarray(numbers(rng, expected().shape, dtype))
    grad = arranged(grad, draw(st.sampled_from(ORDERS if grad.ndim > 1 else ("contiguous",))))
    return Case(
        "pad",
        {"input": x},
        {"pad": tuple(pad), "mode": mode, "value": value},
        grad,
        expected,
        lambda: (reference.pad_backward(reference.pad_backward(grad, cropped.shape, widths, mode), x.shape, crops),),
        copies="forward",
    )


# --- Losses --------------------------------------------------------------------------------------------------------


@st.composite
def cross_entropies(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    """Of vectors, and of batches with up to two more axes; by classes or by probabilities."""
    leading = draw(st.sampled_from(((), (0,), (1,), (4,))))
    classes, space = draw(st.integers(1, 5)), tuple(draw(st.lists(st.integers(1, 3), max_size=2)) if leading else ())
    rng, dtype = np.random.default_rng(draw(seeds)), draw(st.sampled_from(dtypes))
    shape = (*leading, classes, *space)
    assume(purpose != "slopes" or prod(shape) <= 40)
    x = (3 * numbers(rng, shape, "float64")).astype(dtype_of(dtype))
    x = arranged(x, draw(st.sampled_from(ORDERS if len(shape) > 1 else ("contiguous",))))
    smoothing, reduction = draw(st.sampled_from((0.0, 0.3, 1.0))), draw(st.sampled_from(REDUCTIONS))
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
    if draw(st.booleans()):
        shares = rng.dirichlet(np.ones(classes), (*leading, *space)).astype(x.dtype)
        target = np.moveaxis(shares, -1, len(leading))
    else:
        target = np.asarray(rng.integers(0, classes, (*leading, *space)))
        options["ignore_index"] = none = draw(st.sampled_from((-100, -1, 0, classes)))
        ignored = rng.random(target.shape) < draw(st.sampled_from((0, 0.4, 1)))
        target = np.asarray(np.where(ignored, none, target), draw(st.sampled_from(("int64", "int8"))))
    weight = rng.uniform(0.1, 2, classes).astype(x.dtype) if draw(st.booleans()) else None
    grad = np.asarray(numbers(rng, (*leading, *space) if reduction == "none" else (), dtype))
    batched = (x, target) if leading else (x[None], target[None])  # the oracle knows only batches
    assume(purpose != "slopes" or np.isfinite(reference_norms.cross_entropy(*batched, weight, **options)).all())

    def gradients() -> tuple[Array | None, ...]:
        grads = grad[None] if reduction == "none" and not leading else grad
        gx, gt = reference_norms.cross_entropy_backward(grads, *batched, weight, **options)
        return gx.reshape(x.shape), None if gt is None else gt.reshape(x.shape), None

    def peer(torch: Any, target: Any, **others: Any) -> Any:
        target = target if target.is_floating_point() else target.long()
        return torch.nn.functional.cross_entropy(target=target, **others)

    return Case(
        "cross_entropy",
        {"input": x, "target": target, "weight": weight},
        options,
        grad,
        lambda: reference_norms.cross_entropy(*batched, weight, **options).reshape(grad.shape),
        gradients,
        peer,
    )


@st.composite
def binary_cross_entropies(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    """Of logits and probabilities of one shape, with weights that broadcast to it."""
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=4)))
    assume(purpose != "slopes" or 0 < prod(shape) <= 40)
    dtype = dtype_of(draw(st.sampled_from(dtypes)))
    order = draw(st.sampled_from(ORDERS if len(shape) > 1 else ("contiguous",)))
    rng = np.random.default_rng(draw(seeds))
    x = arranged(np.asarray((6 * numbers(rng, shape, "float64")).astype(dtype)), order)
    target = np.asarray(rng.uniform(0, 1, shape))
    target = np.asarray(target.round() if draw(st.booleans()) else target, dtype)
    factors: list[Array | None] = []
    for _ in range(2):
        kept = draw(st.integers(0, len(shape)))
        form = tuple(draw(st.sampled_from((n, 1))) for n in shape[len(shape) - kept :])
        factors.append(np.asarray(rng.uniform(0.5, 3, form), dtype) if draw(st.booleans()) else None)
    weight, pos_weight = factors
    reduction = draw(st.sampled_from(REDUCTIONS))
    grad = np.asarray(numbers(rng, shape if reduction == "none" else (), "float64"), dtype)
    given = (x, target, weight)
    options = {"reduction": reduction, "pos_weight": pos_weight}
    name = "binary_cross_entropy_with_logits"

    def gradients() -> tuple[Array | None, ...]:
        backward = reference_norms.binary_cross_entropy_with_logits_backward
        return *backward(grad, *given, **options), None, None

    return Case(
        name,
        {"input": x, "target": target, "weight": weight, "pos_weight": pos_weight},
        {"reduction": reduction},
        grad,
        lambda: reference_norms.binary_cross_entropy_with_logits(*given, **options),
        gradients,
    )


# --- All of them ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """How calls of a family are drawn, and in which dtypes it is compared with what."""

    draw: Callable[..., st.SearchStrategy[Case]]
    dtypes: tuple[str, ...]
    by_pytorch: tuple[str, ...] = ("float64", "float32")  # none where PyTorch has no such function
    by_slopes: tuple[str, ...] = ("float64",)  # none where the gradient is not the slope everywhere
    tolerance: float = 1e-6  # of slopes
    drawn: tuple[tuple[str, Any], ...] = ()  # what else to draw by

    def cases(self, purpose: Purpose = "oracle") -> st.SearchStrategy[Case]:
        dtypes = {"oracle": self.dtypes, "pytorch": self.by_pytorch, "slopes": self.by_slopes}[purpose]
        return self.draw(dtypes, purpose, **dict(self.drawn))


SINGLE, COMPLEX_TOO = ("float64", "float32", "complex128", "complex64"), ("float64", "complex128")
slopes = st.sampled_from((None, 0.0, 0.2, 1, 3.5, -0.5, np.float32(0.25)))


def _unary(name: str, dtypes: tuple[str, ...] = FLOATS, **options: st.SearchStrategy[Any]) -> Family:
    tolerance = 1e-8 if "softmax" in name else 1e-6
    return Family(unary_operations, dtypes, tolerance=tolerance, drawn=(("name", name), *options.items()))


FAMILIES = {
    "conv": Family(convolutions, ALL, SINGLE, COMPLEX_TOO),
    "conv_input": Family(convolution_gradients, ALL, SINGLE, COMPLEX_TOO, drawn=(("of", "input"),)),
    "conv_weight": Family(convolution_gradients, ALL, SINGLE, COMPLEX_TOO, drawn=(("of", "weight"),)),
    "conv_transpose": Family(transposed_convolutions, ALL, SINGLE, COMPLEX_TOO),
    "locally_connected": Family(local_layers, ALL, SINGLE[:3], COMPLEX_TOO),
    "unfold": Family(unfoldings, ALL, SINGLE[:3], COMPLEX_TOO),
    "max_pool": Family(poolings, ORDERED, drawn=(("kind", "max"),)),
    "avg_pool": Family(poolings, LINEAR, by_slopes=COMPLEX_TOO, drawn=(("kind", "avg"),)),
    "sum_pool": Family(poolings, ALL, (), COMPLEX_TOO, drawn=(("kind", "sum"),)),
    "lp_pool": Family(poolings, FLOATS, drawn=(("kind", "lp"),)),
    "adaptive_max_pool": Family(adaptive_poolings, ORDERED, drawn=(("kind", "max"),)),
    "adaptive_avg_pool": Family(adaptive_poolings, LINEAR, by_slopes=COMPLEX_TOO, drawn=(("kind", "avg"),)),
    "max_unpool": Family(unpoolings, ALL, by_slopes=()),  # of values with one index the last stays
    "bed_of_nails": Family(nails, ALL, (), COMPLEX_TOO),
    "interpolate": Family(interpolations, ALL, by_slopes=COMPLEX_TOO),
    **{f"{kind}_norm": Family(norms, FLOATS, tolerance=1e-7, drawn=(("kind", kind),)) for kind in KINDS},
    **{f"{kind}_norm, finished": Family(norms, FLOATS, drawn=(("kind", kind), ("finished", True))) for kind in KINDS},
    "linear": Family(linear_layers, ALL, SINGLE, COMPLEX_TOO, 1e-7),
    "relu": _unary("relu", (*FLOATS, *INTEGERS)),
    "leaky_relu": _unary("leaky_relu", negative_slope=slopes),
    "sigmoid": _unary("sigmoid"),
    "gelu": _unary("gelu", approximate=st.sampled_from((None, "none", "tanh"))),
    "softmax": _unary("softmax"),
    "log_softmax": _unary("log_softmax"),
    "bias_activation": Family(bias_activations, FLOATS),
    "pad": Family(pads, ALL, SINGLE[:3], COMPLEX_TOO, 1e-7),
    "cross_entropy": Family(cross_entropies, FLOATS, tolerance=1e-8),
    "binary_cross_entropy_with_logits": Family(binary_cross_entropies, FLOATS, tolerance=1e-8),
}
