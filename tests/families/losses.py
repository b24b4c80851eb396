"""Losses: calls to draw."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import reference_norms
from hypothesis import assume
from hypothesis import strategies as st
from properties import Array, Case
from strategies import ORDERS, arranged, dtype_of, numbers

from families.drawing import Purpose, seeds

REDUCTIONS = ("mean", "sum", "none")


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
