"""One definition for the 1-d, 2-d and 3-d members of a family of operations."""

from __future__ import annotations

import inspect
import re
from ast import literal_eval
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from gpucnn.backends.deferring import deferring
from gpucnn.backends.replaying import replayed

P = ParamSpec("P")
R = TypeVar("R")

SPACE = {1: "W", 2: "H, W", 3: "D, H, W"}


def axis_names(prefix: str, rank: int) -> str:
    """The spatial axes with a letter before each: ``"KH, KW"``."""
    return ", ".join(prefix + axis for axis in SPACE[rank].split(", "))


def family(define: Callable[Concatenate[int, P], R]) -> tuple[Callable[P, R], Callable[P, R], Callable[P, R]]:
    """The functions of rank 1, 2 and 3 that `define`, whose first parameter is the rank, stands for.

    ``conv_nd`` becomes ``conv1d``, ``conv2d`` and ``conv3d``: each with its own name, its signature without the rank,
    and the docstring as `fill` makes it.
    """
    one, two, three = (_of_rank(define, rank, deferring) for rank in (1, 2, 3))
    return one, two, three


def replayed_family(
    define: Callable[Concatenate[int, P], R], first: int = 0
) -> tuple[Callable[P, R], Callable[P, R], Callable[P, R]]:
    """As `family`, for operations recorded and replayed by `gpucnn.backends.replaying.replayed`."""
    one, two, three = (_of_rank(define, rank, lambda member: replayed(member, first)) for rank in (1, 2, 3))
    return one, two, three


def named_family(define: Callable[Concatenate[str, P], R]) -> tuple[Callable[P, R], Callable[P, R], Callable[P, R]]:
    """As `family`, for a `define` whose first parameter is the member's name, such as "conv2d".

    Compilers that trace a function take an int that it is given for a variable, but not a string.
    """
    one, two, three = (_of_rank(define, rank, _passed, by_name=True) for rank in (1, 2, 3))
    return one, two, three


def _passed(operation: Callable[P, R]) -> Callable[P, R]:
    """`operation` as a function."""

    def call(*arguments: P.args, **named: P.kwargs) -> R:
        return operation(*arguments, **named)

    return call


def _of_rank(
    define: Callable[Concatenate[Any, P], R],
    rank: int,
    wrap: Callable[[Callable[P, R]], Callable[P, R]],
    by_name: bool = False,
) -> Callable[P, R]:
    """The member of one rank: `wrap` makes a function of ``partial(define, rank)``, or of that with its name."""
    source = cast(FunctionType, define)
    name = source.__name__.replace("_nd", f"{rank}d")
    # a copy of the function under its public name, which Python's own messages about arguments then give
    body = FunctionType(source.__code__, source.__globals__, name, source.__defaults__, source.__closure__)
    body.__kwdefaults__, body.__annotations__ = source.__kwdefaults__, source.__annotations__
    body.__qualname__ = name
    member: Any = wrap(partial(cast(Callable[..., R], body), name if by_name else rank))
    member.__dict__.pop("__wrapped__", None)  # else tools look at the partial object, which is no function
    member.__name__ = member.__qualname__ = name
    member.__module__ = source.__module__
    member.__doc__ = fill(source.__doc__ or "", rank)
    signature = inspect.signature(source)
    first, *parameters = signature.parameters.values()
    member.__annotations__ = {key: value for key, value in source.__annotations__.items() if key != first.name}
    member.__signature__ = signature.replace(parameters=parameters)
    return cast(Callable[P, R], member)


def fill(text: str, rank: int) -> str:
    """Fill in the parts that depend on the rank.

    {n} is the rank and {space} the spatial axes, in {kernel} and {out} with K and O before each. For the shapes and
    numbers of examples {5} is a 5 for each spatial axis, and {5**n} that power.

    Examples
    --------
    >>> fill("conv{n}d: [N, C, {space}], [OC, C, {kernel}], (1, 3, {5}), {2**n}", 2)
    'conv2d: [N, C, H, W], [OC, C, KH, KW], (1, 3, 5, 5), 4'
    """
    words = {
        "{n}": str(rank),
        "{space}": SPACE[rank],
        "{kernel}": axis_names("K", rank),
        "{out}": axis_names("O", rank),
    }
    for placeholder, word in words.items():
        text = text.replace(placeholder, word)
    text = re.sub(r"\{(\d+)\}", lambda size: ", ".join([size[1]] * rank), text)
    return re.sub(r"\{([\d.]+)\*\*n\}", lambda base: str(literal_eval(base[1]) ** rank), text)
