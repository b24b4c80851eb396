"""The 1-d to 3-d functions of a family, from the one for images of any rank."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from gpucnn.compat._arrays import rank_of

P = ParamSpec("P")
R = TypeVar("R")


def of_rank(function: Callable[P, R], rank: int) -> Callable[P, R]:
    """`function`, whose first argument is `x`, for images of one rank: ``pooling_nd`` becomes ``pooling_2d``."""
    name = function.__name__.replace("_nd", f"_{rank}d")

    @wraps(function)
    def member(*arguments: P.args, **named: P.kwargs) -> R:
        x = arguments[0] if arguments else named.get("x")
        if rank_of(name, "x", x) != rank:
            raise ValueError(f"{name}: x has shape {x.shape}, expected {rank + 2} dimensions")  # type: ignore[attr-defined]
        return function(*arguments, **named)

    member.__name__ = member.__qualname__ = name
    member.__doc__ = (
        f"As `{function.__name__}`, for {rank}-d images.\n\n"
        "    Raises\n    ------\n    ValueError\n"
        f"        `x` does not have {rank + 2} dimensions.\n"
    )
    return member
