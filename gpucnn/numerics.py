"""Precision and algorithm of convolutions, where there is a choice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

NOT_COMPUTED = ("tf32", "fp32x3")  # precisions that have a name and no kernels

ALGORITHMS = ("direct", "im2col", "winograd")


class Picks(Protocol):
    """Algorithms that were measured to be the fastest, see `gpucnn.tuned`."""

    def algorithm(self, direction: str, geometry: Any, dtype: str) -> str | None:
        """The algorithm for a convolution in that direction; None where there is no pick."""


_picks: ContextVar[Picks | None] = ContextVar("gpucnn_picks", default=None)
_algorithm: ContextVar[str | None] = ContextVar("gpucnn_algorithm", default=None)


@contextmanager
def precision(mode: str) -> Iterator[None]:
    """Within the block, compute float32 convolutions at a chosen precision: at present in full float32, as outside it.

    Parameters
    ----------
    mode : "fp32"
        Full float32. "tf32", the 10-bit mantissa of tensor cores, and "fp32x3", three such products in place of one,
        are reserved names: nothing is computed with them yet.

    Raises
    ------
    NotImplementedError
        The mode is "tf32" or "fp32x3", whatever the arrays are.
    ValueError
        There is no such mode.

    Notes
    -----
    CuPy's variable ``CUPY_TF32`` applies to `gpucnn.functional.linear` on a GPU, whose products are CuPy's own,
    and to nothing else here.

    Examples
    --------
    >>> with precision("fp32"):
    ...     pass
    """
    if mode in NOT_COMPUTED:
        raise NotImplementedError(
            f"precision: mode is {mode!r}, by which nothing is computed yet; expected 'fp32', or arrays of float16 "
            "for quicker products"
        )
    if mode != "fp32":
        raise ValueError(f"precision: mode is {mode!r}, expected 'fp32'")
    yield


def current_algorithm() -> str | None:
    """The algorithm forced on convolutions, or None where each is chosen by its size.

    Examples
    --------
    >>> current_algorithm() is None
    True
    """
    return _algorithm.get()


def choices() -> tuple[str | None, Picks | None]:
    """The open blocks' choices: algorithm and picks, None where there is none.

    Examples
    --------
    >>> with algorithm("direct"):
    ...     choices()
    ('direct', None)
    """
    return _algorithm.get(), _picks.get()


def current_picks() -> Picks | None:
    """The picks that convolutions on a GPU use where no algorithm is requested, or None.

    Examples
    --------
    >>> current_picks() is None
    True
    """
    return _picks.get()


@contextmanager
def picking(picks: Picks) -> Iterator[None]:
    """Within the block, let convolutions on a GPU use `picks` where no algorithm is requested."""
    token = _picks.set(picks)
    try:
        yield
    finally:
        _picks.reset(token)


@contextmanager
def algorithm(name: str) -> Iterator[None]:
    """Within the block, compute convolutions by one algorithm, in place of the one chosen by their size.

    Parameters
    ----------
    name : "direct", "im2col" or "winograd"
        On the CPU: tap by tap; columns and a matrix product, or for the gradient of the input a product and a fold
        where that costs less; Winograd's minimal filtering. On a GPU: one kernel that sums each result; or columns and
        a matrix product, which takes workspace; no Winograd.

    Raises
    ------
    ValueError
        There is no such algorithm. Within the block, a convolution that it does not compute raises ValueError too. On
        the CPU ``"winograd"`` computes the output, and the gradient of the input but not of the weight, in float32 and
        16 bits, at stride 1, three taps along the width, and three or one along the height; on a GPU nothing. On a GPU
        ``"im2col"`` computes no convolution of integers, among others.

    See Also
    --------
    gpucnn.explain : The algorithm of a call, and why.

    Notes
    -----
    Results of two algorithms differ by rounding; each repeats bit for bit.

    Depthwise and grouped convolutions have separate algorithms on both backends, and follow the name as all others do.
    Results of ``"winograd"`` that are infinite or NaN are recomputed by columns and a product.

    Examples
    --------
    >>> with algorithm("direct"):
    ...     current_algorithm()
    'direct'
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm: name is {name!r}, expected one of {ALGORITHMS}")
    token = _algorithm.set(name)
    try:
        yield
    finally:
        _algorithm.reset(token)
