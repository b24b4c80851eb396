"""Families of operations for JAX, each closed under differentiation: as `gpucnn.torch._operators`, without conjugates.

Each function takes first what is no array: the options of the operation, as `frozen` makes them, and shapes.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gpucnn.functional as F
from gpucnn.backends.dtypes import accumulator, of_products
from gpucnn.jax._callbacks import called

Array = Any
Options = tuple[tuple[str, Any], ...]


def frozen(**options: Any) -> Options:
    """Options that can be hashed, as JAX looks up what it has compiled."""

    def plain(value: Any) -> Any:
        return tuple(map(plain, value)) if isinstance(value, list | tuple) else value

    return tuple((name, plain(value)) for name, value in options.items())


def _of_shape(shape: tuple[int, ...], like: Array) -> Array:
    """An array without memory of its own, for gradients that read only a shape of it."""
    return np.broadcast_to(np.zeros((), like.dtype), shape)


def _conjugate(array: Array) -> Array:
    """What a gradient of `gpucnn.functional` is to be given, since it conjugates and JAX's do not."""
    return array.conj() if array.dtype.kind == "c" else array


@cache
def product(name: str) -> Any:
    """An operation linear in images and weights: ``(options, shape of the result, x, w, bias)``."""
    function, backward = getattr(F, name), getattr(F, f"{name}_backward")

    @partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def forward(options: Options, shape: tuple[int, ...], x: Array, w: Array, bias: Array | None) -> Array:
        def compute(x: Array, w: Array, bias: Array | None) -> tuple[Array]:
            return (function(x, w, bias, **dict(options)),)

        return called(compute, [(shape, of_products(x.dtype))], x, w, bias, images=(0,))[0]

    @partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def of_input(options: Options, shape: tuple[int, ...], grad: Array, w: Array) -> Array:
        def compute(grad: Array, w: Array) -> tuple[Array]:
            x = _of_shape((len(grad), *shape[1:]), grad)
            return (backward(grad, x, _conjugate(w), **dict(options), needs=(True, False, False))[0],)

        return called(compute, [(shape, grad.dtype)], grad, w, images=(0,))[0]

    @partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def of_weight(options: Options, shape: tuple[int, ...], x: Array, grad: Array) -> Array:
        def compute(x: Array, grad: Array) -> tuple[Array]:
            w = _of_shape(shape, grad)
            return (backward(grad, _conjugate(x), w, **dict(options), needs=(False, True, False))[1],)

        return called(compute, [(shape, x.dtype)], x, grad)[0]

    def of_bias(grad: Array, bias: Array | None) -> Array | None:
        """The sum over the batch, and over the positions where these share a bias."""
        return None if bias is None else grad.sum((0, *range(1 + bias.ndim, grad.ndim)), dtype=bias.dtype)

    forward.defvjp(
        lambda options, shape, *arrays: (forward(options, shape, *arrays), arrays),
        lambda options, shape, kept, grad: (
            of_input(options, kept[0].shape, grad, kept[1]),
            of_weight(options, kept[1].shape, kept[0], grad),
            of_bias(grad, kept[2]),
        ),
    )
    of_input.defvjp(
        lambda options, shape, *arrays: (of_input(options, shape, *arrays), arrays),
        lambda options, shape, kept, grad: (
            forward(options, kept[0].shape, grad, kept[1], None),
            of_weight(options, kept[1].shape, grad, kept[0]),
        ),
    )
    of_weight.defvjp(
        lambda options, shape, *arrays: (of_weight(options, shape, *arrays), arrays),
        lambda options, shape, kept, grad: (
            of_input(options, kept[0].shape, kept[1], grad),
            forward(options, kept[1].shape, kept[0], grad, None),
        ),
    )
    return forward


@cache
def linear(name: str) -> Any:
    """An operation linear in images: ``(options, shape of the result, x)``."""
    function, backward = getattr(F, name), getattr(F, f"{name}_backward")

    @partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def forward(options: Options, shape: tuple[int, ...], x: Array) -> Array:
        return called(lambda x: (function(x, **dict(options)),), [(shape, x.dtype)], x, images=(0,))[0]

    @partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def adjoint(options: Options, shape: tuple[int, ...], grad: Array) -> Array:
        def compute(grad: Array) -> Any:
            return backward(grad, _of_shape((len(grad), *shape[1:]), grad), **dict(options))

        return called(compute, [(shape, grad.dtype)], grad, images=(0,))[0]

    forward.defvjp(
        lambda options, shape, x: (forward(options, shape, x), x.shape),
        lambda options, shape, kept, grad: (adjoint(options, kept, grad),),
    )
    adjoint.defvjp(
        lambda options, shape, grad: (adjoint(options, shape, grad), grad.shape),
        lambda options, shape, kept, grad: (forward(options, kept, grad),),
    )
    return forward


@cache
def maximum(name: str) -> Any:
    """Max pooling with its indices, of JAX's default integers: ``(options, shape of the result, x)``."""
    function, backward = getattr(F, name), getattr(F, f"{name}_backward")

    @partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def forward(options: Options, shape: tuple[int, ...], x: Array) -> tuple[Array, Array]:
        index_dtype = jnp.asarray(0).dtype

        def compute(x: Array) -> tuple[Array, Array]:
            y, indices = function(x, **dict(options), return_indices=True)
            return y, indices.astype(index_dtype)

        y, indices = called(compute, [(shape, x.dtype), (shape, index_dtype)], x, images=(0,))
        return y, indices

    @partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def scatter(options: Options, shape: tuple[int, ...], grad: Array, indices: Array) -> Array:
        def compute(grad: Array, indices: Array) -> Any:
            x = _of_shape((len(grad), *shape[1:]), grad)
            return backward(grad, x, **dict(options), indices=indices.astype(np.int64))

        return called(compute, [(shape, grad.dtype)], grad, indices, images=(0, 1))[0]

    def gather(grad: Array, indices: Array) -> Array:
        plane = grad.reshape(*grad.shape[:2], -1)
        taken = jnp.take_along_axis(plane, jnp.maximum(indices.reshape(*indices.shape[:2], -1), 0), 2)
        return jnp.where(indices < 0, 0, taken.reshape(indices.shape))  # -1: nothing but padding

    def remember(options: Options, shape: tuple[int, ...], x: Array) -> Any:
        y, indices = forward(options, shape, x)
        return (y, indices), (x.shape, indices)

    forward.defvjp(remember, lambda options, shape, kept, grads: (scatter(options, kept[0], grads[0], kept[1]),))
    scatter.defvjp(
        lambda options, shape, grad, indices: (scatter(options, shape, grad, indices), indices),
        lambda options, shape, indices, grad: (gather(grad, indices), None),
    )
    return forward


# --- Norms --------------------------------------------------------------------------------------------------------


def wide(x: Array) -> Any:
    """The dtype of statistics: float32 for 16 bits."""
    return accumulator(np.dtype(x.dtype))


@cache
def norm(name: str) -> Any:
    """A norm by its own statistics: ``(options, (view, axes, kept), x, weight, bias)``.

    `view` is the shape [N, G, C, P] that it sees x in, whose mean is over `axes`, and `kept` the shape of the
    statistics. Returns the result, these (mean and reciprocal deviation) and, of a norm with running statistics, mean
    and unbiased variance by channel. Only the result has gradients.
    """
    function, backward = getattr(F, name), getattr(F, f"{name}_backward")
    training = {"batch_norm": {"training": True}, "instance_norm": {"use_input_stats": True}}.get(name)
    Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    @partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def forward(options: Options, shapes: Shapes, x: Array, weight: Array | None, bias: Array | None) -> Any:
        def compute(x: Array, weight: Array | None, bias: Array | None) -> Any:
            named = {"weight": weight, "bias": bias, **dict(options), "return_statistics": True}
            if training is None:
                return function(x, **named)
            # with a momentum of 1 the running statistics are the batch's
            running = [np.zeros(x.shape[1], wide(x)) for _ in range(2)]
            return *function(x, *running, **named, **training, momentum=1.0), *running

        statistics = [(shapes[2], wide(x))] * 2 + [((x.shape[1],), wide(x))] * (2 if training else 0)
        return tuple(called(compute, [(x.shape, x.dtype), *statistics], x, weight, bias))

    @partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def gradients(options: Options, shapes: Shapes, grad: Array, x: Array, weight: Any, bias: Any, *kept: Array) -> Any:
        given = [array for array in (x, weight, bias) if array is not None]
        needs = (True, weight is not None, bias is not None)

        def compute(grad: Array, x: Array, weight: Any, bias: Any, mean: Array, rstd: Array) -> Any:
            named = {"weight": weight, "bias": bias, **dict(options), "mean": mean, "rstd": rstd}
            if training is not None:
                named |= {"running_mean": None, "running_var": None, **training}
            return [found for found in backward(grad, x, **named) if found is not None]

        results = called(compute, [(one.shape, one.dtype) for one in given], grad, x, weight, bias, *kept)
        found = iter(results)
        return tuple(next(found) if need else None for need in needs)

    def formula(options: Options, shapes: Shapes, grad: Array, x: Array, weight: Any, bias: Any) -> Any:
        """What `gradients` computes, in JAX's operations."""
        (view, axes, _), shared = shapes, (0, 3)
        upstream, image = grad.reshape(view).astype(wide(x)), x.reshape(view).astype(wide(x))
        mean, var = image.mean(axes, keepdims=True), image.var(axes, keepdims=True)
        rstd = 1 / jnp.sqrt(var + dict(options)["eps"])
        normalized = (image - mean) * rstd
        scaled = upstream if weight is None else upstream * weight.reshape(1, *view[1:3], 1)
        projected = normalized * (scaled * normalized).mean(axes, keepdims=True)
        of_x = rstd * (scaled - scaled.mean(axes, keepdims=True) - projected)
        sums = (upstream * normalized).sum(shared), upstream.sum(shared)
        others = (
            None if one is None else total.reshape(one.shape).astype(one.dtype)
            for one, total in zip((weight, bias), sums, strict=True)
        )
        return of_x.reshape(x.shape).astype(x.dtype), *others

    def remember(options: Options, shapes: Shapes, *arrays: Any) -> Any:
        found = forward(options, shapes, *arrays)
        return found, (*arrays, *found[1:3])

    def differentiated(options: Options, shapes: Shapes, kept: Any, grads: Any) -> Any:
        differentiable = jax.vjp(partial(formula, options, shapes), *kept[:4])[1]
        return *differentiable(grads), None, None

    forward.defvjp(remember, lambda options, shapes, kept, grads: gradients(options, shapes, grads[0], *kept))
    gradients.defvjp(lambda options, shapes, *arrays: (gradients(options, shapes, *arrays), arrays), differentiated)
    return forward
