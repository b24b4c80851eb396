"""Precision and algorithm of convolutions, where there is a choice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

PRECISIONS = ("fp32", "tf32", "fp32x3")

ALGORITHMS = ("direct", "im2col", "winograd")


class Picks(Protocol):
    """Algorithms that were found to be the quickest, see `gpucnn.tuned`."""

    def algorithm(self, direction: str, geometry: Any, dtype: str) -> str | None:
        """The algorithm for a convolution in that direction; None where there is no pick."""


_picks: ContextVar[Picks | None] = ContextVar("gpucnn_picks", default=None)
_algorithm: ContextVar[str | None] = ContextVar("gpucnn_algorithm", default=None)
_precision: ContextVar[str | None] = ContextVar("gpucnn_precision", default=None)


def current_precision() -> str:
    """The precision in force: the innermost `precision` block's, else TF32 where ``CUPY_TF32`` is set, else fp32.

    Examples
    --------
    >>> with precision("tf32"):
    ...     current_precision()
    'tf32'
    """
    chosen = _precision.get()
    if chosen is not None:
        return chosen
    return "tf32" if os.environ.get("CUPY_TF32", "0") not in ("", "0") else "fp32"


@contextmanager
def precision(mode: str) -> Iterator[None]:
    """Within the block, let float32 convolutions be computed at another precision where the hardware has it.

    Parameters
    ----------
    mode : "fp32", "tf32" or "fp32x3"
        Full float32; tensor cores' 10-bit mantissa; or three products of such parts, nearly float32.

    Raises
    ------
    ValueError
        There is no such mode.

    Notes
    -----
    It allows less precision and never demands it: the CPU computes full float32 in every mode.

    Examples
    --------
    >>> with precision("tf32"):
    ...     pass
    """
    if mode not in PRECISIONS:
        raise ValueError(f"precision: mode is {mode!r}, expected one of {PRECISIONS}")
    token = _precision.set(mode)
    try:
        yield
    finally:
        _precision.reset(token)


def current_algorithm() -> str | None:
    """The algorithm that convolutions are held to, or None where each is chosen by its size.

    Examples
    --------
    >>> current_algorithm() is None
    True
    """
    return _algorithm.get()


def choices() -> tuple[str | None, str | None, Picks | None]:
    """What the blocks that are open choose: algorithm, precision and picks, None where they leave it.

    Examples
    --------
    >>> with precision("tf32"):
    ...     choices()
    (None, 'tf32', None)
    """
    return _algorithm.get(), _precision.get(), _picks.get()


def current_picks() -> Picks | None:
    """The picks that convolutions on a GPU go by where no algorithm is asked for, or None.

    Examples
    --------
    >>> current_picks() is None
    True
    """
    return _picks.get()


@contextmanager
def picking(picks: Picks) -> Iterator[None]:
    """Within the block, let convolutions on a GPU go by `picks` where no algorithm is asked for."""
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
        the CPU ``"winograd"`` computes the output, and the gradient of the input, in float32 and 16 bits, at stride 1,
        three taps along the width, and three or one along the height; on a GPU nothing. On a GPU ``"im2col"`` computes
        no convolution of integers, among others.

    Notes
    -----
    Results of two algorithms differ by rounding; each repeats bit for bit.

    On the CPU the gradient of the weight is computed by columns and a product within any block: it has no tiles. So is
    what ``"winograd"`` finds to be infinite or NaN. Groups with one channel on either side, or at most 16 on both, have
    algorithms of their own there, whatever the name.

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
