"""Libraries whose arrays are computed later: a call on such arrays is passed on whole, to a part of gpucnn for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

LIBRARIES = frozenset({"dask"})
"""Names of these libraries; the part of gpucnn that knows one has its name."""


class DeferredArraysError(TypeError):
    """The call of an operation has arrays of such a library.

    An operation that cannot pass the call on lets the error reach the caller.
    """

    def __init__(self, op: str, kind: str, name: str) -> None:
        super().__init__(
            f"{op}: {name} is an array of {kind}, which this operation does not take; "
            "expected an array in memory, as .compute() returns and .map_blocks passes to a function"
        )
        self.op, self.kind, self.name = op, kind, name

    def passed_on(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """The result of the call, by the part of gpucnn that knows its arrays."""
        return import_module(f"gpucnn.{self.kind}").deferred(self, arguments, named)


def deferring(operation: Callable[P, R]) -> Callable[P, R]:
    """`operation`, whose calls on arrays that are computed later are passed on.

    Such arrays are noticed where all arrays are received, so that other calls pay nothing for it.
    """

    @wraps(operation)
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return operation(*arguments, **named)
        except DeferredArraysError as error:
            found = error
        result: R = found.passed_on(arguments, named)
        return result

    return call
