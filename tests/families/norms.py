"""Norms, with a residual and an activation or without: calls to draw."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import reference
import reference_norms
from hypothesis import strategies as st
from properties import Array, Case
from strategies import ORDERS, arranged, dtype_of, numbers

from families.drawing import Ints, Purpose, rounding, seeds

OWN = ("batch", "instance", "layer", "group", "rms")  # each normalises by its input's statistics
KINDS = (*OWN, "batch_kept", "instance_kept")  # by running statistics
OF_ROWS = ("layer", "rms")  # of the last axes
MOMENTUM = 0.1
SLOPE = 0.2  # of a leaky_relu below 0


@st.composite
def norms(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose, kind: str, finished: bool = False) -> Case:
    """A norm of an input with up to three spatial axes; where it is finished, with a residual and an activation."""
    finish = (False, None)
    if finished:
        finish = draw(st.tuples(st.booleans(), st.sampled_from(("relu", "leaky_relu", "none", None))))
    if purpose == "slopes":
        of_shape = (3, 2) if kind in OF_ROWS else {"group": 2}.get(kind)
        return norm(kind, (2, 4, 3, 2), of_shape, "float64", finish=finish)
    sizes = st.integers(1, 6 if purpose == "pytorch" else 4)
    option: Any = None
    if kind in OF_ROWS:
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
    wide = dtype in ("float16", "bfloat16") and draw(st.booleans())
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


@st.composite
def response_norms(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    """A local response norm of images with one to four spatial axes, whose window may be wider than their channels."""
    most = 3 if purpose == "slopes" else 5
    sizes = st.integers(1, most)
    n, c = draw(st.integers(0 if purpose == "oracle" else 1, most)), draw(st.integers(1, 2 * most))
    shape = (n, c, *draw(st.lists(sizes, min_size=1, max_size=2 if purpose == "slopes" else 4)))
    rng, dtype, order = np.random.default_rng(draw(seeds)), draw(st.sampled_from(dtypes)), draw(st.sampled_from(ORDERS))
    x, grad = (arranged(numbers(rng, shape, dtype), order) for _ in range(2))
    # an alpha of less than 0 stays below k
    parameters = {"alpha": (1e-4, 0.5, 2, -0.01), "beta": (0.75, 1, 2, 0, -0.5), "k": (1.0, 2, 0.5)}
    options = {"size": draw(st.integers(1, 12))} | {
        name: draw(st.sampled_from(values)) for name, values in parameters.items()
    }
    return Case(
        "local_response_norm",
        {"input": x},
        options,
        grad,
        lambda: reference_norms.local_response_norm(x, **options),
        lambda: (reference_norms.local_response_norm_backward(grad, x, **options),),
        **{key: max(value, 4.0) for key, value in {"factor": 4.0, "gradient_factor": 8.0, **rounding(purpose)}.items()},
    )


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

    `option` is layer and RMS norm's normalized_shape, or group norm's num_groups; `finish` is whether there is a
    residual, and the activation.
    """
    rng = np.random.default_rng(seed)
    name, own, has_running = kind.removesuffix("_kept") + "_norm", kind in OWN, kind not in ("layer", "group", "rms")
    parameters = option if kind in OF_ROWS else shape[1:2]

    def parameter(positive: bool = False) -> Array:
        array = numbers(rng, parameters, parameter_dtype or dtype)
        array = (abs(array) + 0.5).astype(array.dtype) if positive else array
        return arranged(array, "strided" if order == "strided" else "contiguous")

    x = arranged(numbers(rng, shape, dtype) + np.array(mean, dtype_of(dtype)), order)
    grad = arranged(numbers(rng, shape, dtype), order)
    running: list[Array | None] = [None, None]
    if has_running and (given[2] or not own):
        running = [parameter(), parameter(positive=True)]
    weight, bias = (parameter() if has else None for has in (given[0], given[1] and kind != "rms"))
    (has_residual, activation), residual = finish, arranged(numbers(rng, shape, dtype), order)
    arrays = {"input": x, "weight": weight, "bias": bias}
    options: dict[str, Any] = {"eps": eps}
    if has_running:
        arrays = dict(
            zip(("input", "running_mean", "running_var", "weight", "bias"), (x, *running, weight, bias), strict=True)
        )
        options |= {"training" if kind.startswith("batch") else "use_input_stats": own, "momentum": MOMENTUM}
    else:
        options["normalized_shape" if kind in OF_ROWS else "num_groups"] = option
    if kind == "rms":
        del arrays["bias"]
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
        # rounded as between two operations, which parameters in float32 show of a gradient in 16 bits
        wide = np.result_type(grad, np.float32)
        below = (grad.astype(wide) * wide.type(slope)).astype(grad.dtype)
        upstream = reference.wide(np.where(normalised()[0] > 0, grad, below))
        graph = "batch_norm_backward_graph" if name == "batch_norm" else f"{name}_backward"
        gx, gw, gb = getattr(reference_norms, graph)(upstream, x, *middle, weight, *switch, eps)
        return gx, *[None] * (2 * has_running), gw, *[gb] * ("bias" in arrays), *[upstream] * has_residual

    def peer(torch: Any, **leaves: Any) -> Any:
        after = {key: leaves.pop(key, None) for key in ("residual", "activation", "negative_slope")}
        if not has_running and leaves["weight"] is None and leaves.get("bias") is not None:
            # group_norm's backward breaks on a bias without a weight
            leaves["weight"] = torch.ones_like(leaves["bias"], requires_grad=False)
        y = getattr(torch.nn.functional, name)(**leaves)
        y = y if after["residual"] is None else y + after["residual"]
        return torch.nn.functional.leaky_relu(y, slope)

    # A rounding of the input or of its mean is multiplied by the reciprocal standard deviation, one of the gradient
    # once more; what is computed in float32 and rounded to 16 bits at the end does not show it.
    rstd = float(expected()[-1].max(initial=0.0))
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
