"""The table of operators: for each name and version a function, whose signature is what the operator takes.

Positional parameters are the operator's inputs, optional where they have a default; keyword-only ones are its
attributes. Annotations say more: a `Host` input is read as numbers, such as a shape, and reaches the function as a
NumPy array wherever the others are; one that is `Anywhere` stays where it is, as only its shape or dtype counts. An
attribute's annotation is the type that a file must give it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.onnx.errors import UnsupportedError
from gpucnn.onnx.graph import Graph

__all__ = [
    "NEWEST", "OWN", "Anywhere", "Array", "Branch", "Host", "Operator", "Tensor", "find", "operator", "refuse",
    "supported",
]  # fmt: skip

NEWEST = 28  # the newest operator set of the default domain whose changes the table has
OWN = "gpucnn"  # the domain of operators that the optimiser makes; no file may use it

Array = Any
Host = Any  # an input whose values are needed to know what to do
Anywhere = Any  # an input that is not computed with
Tensor = Any  # an attribute that is an array
Branch = Callable[..., list[Array]]  # an attribute that is a graph, as a function of arrays

_KINDS: dict[str, Callable[[Any], bool]] = {
    "int": lambda value: isinstance(value, int),
    "float": lambda value: isinstance(value, float),
    "str": lambda value: isinstance(value, str),
    "list[int]": lambda value: isinstance(value, list) and all(isinstance(item, int) for item in value),
    "list[float]": lambda value: isinstance(value, list) and all(isinstance(item, float | int) for item in value),
    "list[str]": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "Tensor": lambda value: isinstance(value, np.ndarray),
    "Branch": lambda value: isinstance(value, Graph),
}
# Keyword-only parameters that are no attributes: the number of outputs that the node names, and where to write the one.
_FROM_RUN = ("count", "out")


@dataclass(frozen=True)
class Operator:
    """A row of the table."""

    name: str
    since: int
    function: Callable[..., Any]
    least: int  # inputs
    most: int
    hosts: frozenset[int]  # positions of the inputs that are read as numbers
    anywhere: frozenset[int]  # positions of those that stay where they are; -1 for all of a variadic operator
    attributes: dict[str, str]  # the annotation of each
    required: frozenset[str]  # attributes without a default
    counts: bool  # whether the function is told the number of outputs
    writes: bool  # whether it can be told the array for its result
    launches: bool  # whether it changes no array but by gpucnn's own operations, whose launches can be repeated

    def problems(self, attributes: dict[str, Any], inputs: int) -> list[str]:
        """Objections to a node of this operator, each as the end of a sentence."""
        found = [f"attribute {name!r} is not supported" for name in attributes if name not in self.attributes]
        found += [f"attribute {name!r} is missing" for name in sorted(self.required - set(attributes))]
        for name, value in attributes.items():
            kind = self.attributes.get(name)
            if kind is not None and not _KINDS[kind](value):
                found.append(f"attribute {name!r} is of type {type(value).__name__}, expected {kind}")
        if not self.least <= inputs <= self.most:
            expected = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
            found.append(f"has {inputs} inputs, expected {'any number' if self.most > 999 else expected}")
        return found


_TABLE: dict[tuple[str, str], list[Operator]] = {}


def operator(
    name: str, since: int = 1, domain: str = "", *, launches: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function into the table, as the operator `name` from version `since` of its operator set on."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        rows = _TABLE.setdefault((domain, name), [])
        rows.append(_row(name, since, function, launches))
        rows.sort(key=lambda row: row.since)
        return function

    return enter


def _row(name: str, since: int, function: Callable[..., Any], launches: bool) -> Operator:
    parameters = list(inspect.signature(function).parameters.values())
    positional = [item for item in parameters if item.kind is item.POSITIONAL_OR_KEYWORD]
    named = [item for item in parameters if item.kind is item.KEYWORD_ONLY and item.name not in _FROM_RUN]
    variadic = any(item.kind is item.VAR_POSITIONAL for item in parameters)
    return Operator(
        name,
        since,
        function,
        least=sum(item.default is item.empty for item in positional),
        most=2**31 if variadic else len(positional),
        hosts=frozenset(at for at, item in enumerate(positional) if "Host" in str(item.annotation)),
        anywhere=frozenset(
            -1 if item.kind is item.VAR_POSITIONAL else at
            for at, item in enumerate(parameters)
            if "Anywhere" in str(item.annotation)
        ),
        attributes={item.name: str(item.annotation).removesuffix(" | None") for item in named},
        required=frozenset(item.name for item in named if item.default is item.empty),
        counts=any(item.name == "count" for item in parameters),
        writes=any(item.name == "out" for item in parameters),
        launches=launches,
    )


def find(domain: str, name: str, version: int) -> Operator | None:
    """The operator as it is in `version` of its operator set, or None where the table has none."""
    rows = [row for row in _TABLE.get((domain, name), ()) if row.since <= version]
    return rows[-1] if rows else None


def supported() -> dict[str, int]:
    """The names of the operators that run, each with the first version of the operator set that it is known from."""
    return {name: rows[0].since for (domain, name), rows in sorted(_TABLE.items()) if not domain}


def refuse(message: str) -> UnsupportedError:
    """The error of an operator that cannot do what its attributes or arrays request."""
    return UnsupportedError(message)
