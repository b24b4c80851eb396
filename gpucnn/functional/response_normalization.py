"""Local response normalisation and its gradient, composed of sum pooling over channels and elementwise steps."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.deferring import deferring
from gpucnn.backends.dtypes import FLOATING
from gpucnn.backends.layout import is_channels_last
from gpucnn.functional._call import Array, Call, Needs, needed
from gpucnn.geometry.arguments import integer, number
from gpucnn.geometry.geometries import pool_geometry

__all__ = ["local_response_norm", "local_response_norm_backward"]


@deferring
def local_response_norm(input: Array, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Array:
    """Divide each value by a power of the squares in the same place of neighbouring channels.

    Parameters
    ----------
    input : array [N, C, *space]
        Floating-point, with at least one spatial axis.
    size : int
        Channels in a window: ``size // 2`` before a channel, the channel itself, and those after it. Channels that do
        not exist count as 0.
    alpha : float
        Factor of the mean square.
    beta : float
        Exponent.
    k : float
        Added before the power.

    Returns
    -------
    array in the shape, dtype and memory order of `input`

    Raises
    ------
    TypeError
        The dtype is not supported, or a parameter is not a number.
    ValueError
        `input` has fewer than 3 axes, no channel or no space, or a parameter is out of range.

    See Also
    --------
    local_response_norm_backward, batch_norm

    Notes
    -----
    ``input / (k + alpha / size * sum(input**2))**beta``, with the sum over a window. 16-bit values are computed in
    float32 and rounded once.

    References
    ----------
    A. Krizhevsky, I. Sutskever, G. Hinton, *ImageNet classification with deep convolutional neural networks*, NeurIPS
    2012, section 3.3; its alpha is ``alpha / size`` here, as in PyTorch.

    Examples
    --------
    >>> local_response_norm(np.array([[[1.0], [2.0], [3.0]]]), 2, alpha=2.0, beta=1.0, k=0.0)[0, :, 0]
    array([1.        , 0.4       , 0.23076923])
    """
    call = Call("local_response_norm", FLOATING, input=input)
    (x,) = call.arrays
    response = _response(call, x, size, alpha, beta, k)
    wide = call.promoted(x)
    with np.errstate(all="ignore"):  # 0 / 0 where k is 0, and what overflows
        y = wide / response.scale(call, wide) ** response.beta
    return call.result(_in_order(call, y, x))


@deferring
def local_response_norm_backward(
    grad_output: Array,
    input: Array,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    needs: Needs = None,
) -> tuple[Array | None]:
    """Gradient of `local_response_norm`.

    Parameters
    ----------
    grad_output : array in the shape of `input`
        Gradient of the loss with respect to the output.
    input, size, alpha, beta, k
        As they were given to `local_response_norm`.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `input`.

    Raises
    ------
    TypeError, ValueError
        As `local_response_norm`, or `grad_output` is not in the shape of `input`.

    Notes
    -----
    ``grad * s**-beta - 2 * alpha * beta / size * input * sum(grad * input * s**(-beta - 1))`` with
    ``s = k + alpha / size * sum(input**2)``; the first sum is over the channels whose window holds the input.

    Examples
    --------
    >>> x = np.ones((1, 2, 1))
    >>> local_response_norm_backward(x, x, 1, alpha=1.0, beta=1.0, k=1.0)[0].ravel()
    array([0., 0.])
    """
    call = Call("local_response_norm_backward", FLOATING, grad_output=grad_output, input=input)
    grad, x = call.arrays
    response = _response(call, x, size, alpha, beta, k)
    call.expect_shape("grad_output", grad, x.shape)
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    wide, wide_grad = call.promoted(x), call.promoted(grad)
    with np.errstate(all="ignore"):
        scale = response.scale(call, wide)
        direct = wide_grad / scale**response.beta
        others = response.sums(call, direct * wide / scale, before=response.after, after=response.before)
        grad_x = direct - (2 * response.share * response.beta) * wide * others
    return call.result((_in_order(call, grad_x, grad),))


def _in_order(call: Call, values: Array, like: Array) -> Array:
    """A copy of the values in the dtype and memory order of `like`."""
    y = call.destination(like.shape, like)
    call.backend.copy(values, y)
    return y


class _Response(NamedTuple):
    """The window of a local response norm, and its parameters; `share` is alpha / size."""

    before: int
    after: int
    share: float
    beta: float
    k: float

    def scale(self, call: Call, x: Array) -> Array:
        """The base of the power."""
        return self.k + self.share * self.sums(call, x * x, self.before, self.after)

    def sums(self, call: Call, values: Array, before: int, after: int) -> Array:
        """Sums over windows of channels of values [N, C, *space], `before` and `after` each channel."""
        n, c = values.shape[:2]
        last = is_channels_last(values)
        p = prod(values.shape[2:])
        planes = call.xp.moveaxis(values, 1, -1).reshape(n, 1, p, c) if last else values.reshape(n, 1, c, p)
        kernel, padding = [1, before + 1 + after], [(0, 0), (before, after)]
        order = slice(None, None, 1 if last else -1)
        geometry = pool_geometry(call.op, planes.shape[2:], kernel[order], 1, padding[order])
        sums = call.backend.empty((n, 1, 1, *planes.shape[2:]), values.dtype, on=values)
        call.backend.average_pool(planes[:, :, None], sums, geometry)
        if not last:
            return sums.reshape(values.shape)
        return call.xp.moveaxis(sums.reshape(n, *values.shape[2:], c), -1, 1)


def _response(call: Call, x: Array, size: Any, alpha: Any, beta: Any, k: Any) -> _Response:
    """The checked parameters.

    Raises
    ------
    TypeError, ValueError
        As `local_response_norm`.
    """
    if x.ndim < 3:
        raise ValueError(f"{call.op}: input has {x.ndim} dimensions, expected at least 3 (N, C, *space)")
    if 0 in x.shape[1:]:
        raise ValueError(f"{call.op}: input has shape {x.shape}, expected channels and spatial sizes of at least 1")
    length = integer(call.op, "size", size, 1)
    share = number(call.op, "alpha", alpha) / length
    return _Response(length // 2, (length - 1) // 2, share, number(call.op, "beta", beta), number(call.op, "k", k))
