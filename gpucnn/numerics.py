"""How exactly float32 is computed where the hardware offers less."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

PRECISIONS = ("fp32", "tf32", "fp32x3")

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
