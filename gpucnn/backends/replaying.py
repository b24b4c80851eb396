"""Hook through which a backend intercepts public calls, before any argument is read, and replays recorded ones.

A backend whose calls cost more host time than device time records each call and replays it. This module only passes
the calls on; `gpucnn.backends.cuda.launch.replays` records them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Replayer(Protocol):
    """Runner of the calls on one type of array."""

    def __call__(self, operation: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Run the call, with the result of ``operation(*arguments, **named)``."""


REPLAYERS: dict[type, Replayer] = {}
"""Replayers by the exact type of an operation's first array."""


def replayed(operation: Callable[P, R], first: int = 0) -> Callable[P, R]:
    """`operation`, whose argument number `first` is an array, with its calls passed to the array type's replayer.

    Only for operations whose every effect is a launch or a new array, for any arguments: other effects are not
    replayed. The launches may depend on shapes, strides, dtypes, plain parameters and the choices of `gpucnn.numerics`,
    and on nothing else.
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
