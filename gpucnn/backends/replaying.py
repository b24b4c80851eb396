"""Calls that a backend has seen before, handed to it as they came: before an argument is read.

A backend whose calls cost more on the host than the device needs for them keeps how each one ran, and runs it again
from that. Here is only how it gets to see them; `gpucnn.backends.cuda.launch.replays` is how it keeps them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Replayer(Protocol):
    """What runs the calls of one type of array."""

    def __call__(self, operation: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """What ``operation(*arguments, **named)`` returns or raises."""


REPLAYERS: dict[type, Replayer] = {}
"""By the very type of an operation's first array."""


def replayed(operation: Callable[P, R], first: int = 0) -> Callable[P, R]:
    """`operation`, whose argument number `first` is an array, with its calls shown to what replays them.

    Only for operations whose every effect is a launch or a new array, whatever their arguments: what else they do is
    not done again. Which launches they are may depend on shapes, strides, dtypes, plain parameters and the choices of
    `gpucnn.numerics`, and on nothing else.
    """
    name = list(signature(operation).parameters)[first]

    @wraps(operation)
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        replayer = REPLAYERS.get(type(arguments[first] if len(arguments) > first else named.get(name)))
        if replayer is None:
            return operation(*arguments, **named)
        result: R = replayer(operation, arguments, named)
        return result

    return call
