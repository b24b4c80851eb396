"""The interface of a provider: an implementation that the benchmarks measure."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, ClassVar, TypeVar

import numpy as np

from benchmarks.cases import Case
from benchmarks.data import Arrays
from benchmarks.layers import Device, LayoutLayer, NormLayer, UnfoldLayer

Call = Callable[[], Any]
Result = TypeVar("Result")


class Provider(ABC):
    """One implementation: it turns a case into a call without arguments.

    `prepare` does what a user would do once: conversion of layouts and weights, sessions, plans.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]  # modules that must be installed
    device: ClassVar[Device] = "cpu"
    ours: ClassVar[bool] = False  # gpucnn itself; the others are peers

    def __init__(self, threads: int) -> None:
        """Confine the implementation to `threads` threads."""
        self.threads = threads

    @classmethod
    def why_absent(cls) -> str | None:
        """The reason why this implementation cannot run here, or None."""
        missing = [module for module in cls.requires if find_spec(module) is None]
        return f"not installed: {', '.join(missing)}" if missing else None

    @abstractmethod
    def version(self) -> str: ...

    def refuses(self, case: Case) -> str | None:
        """The reason why this implementation does not take `case`, or None."""
        return None

    def prepare(self, case: Case, arrays: Arrays) -> Call:
        """The call to check and to time; it may be repeated and must not change `arrays`.

        A provider has a method for each kind of layer that it takes, given the case, its layer and the arrays.
        """
        call: Call = getattr(self, case.layer.computation)(case, case.layer, arrays)
        return call

    def results(self, returned: Any) -> list[Any]:
        """The results of a call, as arrays in the logical order N, C, spatial: of NumPy, or of CuPy on a GPU."""
        values = returned if isinstance(returned, tuple | list) else (returned,)
        return [self.array(value) for value in values if value is not None]

    def array(self, value: Any) -> Any:
        """One result of a call as an array."""
        return np.asarray(value) if self.device == "cpu" else value

    def hot(self, call: Call, results: list[Any]) -> Call:
        """The call as used for host times: it writes into `results`, where the implementation can."""
        return call

    def within(self, function: Callable[[], Result]) -> Result:
        """Run `function`, which calls this implementation, in the thread or setting that it requires."""
        return function()

    def time(self, call: Call, repeats: int) -> float:
        """Mean seconds of `repeats` calls in a row."""
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats


def channels_last(array: Any) -> Any:
    """A copy of an image [N, C, *spatial] whose channels are innermost in memory."""
    order = (0, *range(2, array.ndim), 1)
    back = (0, array.ndim - 1, *range(1, array.ndim - 1))
    return array.transpose(order).copy(order="C").transpose(back)


def channels_last_unfit(case: Case) -> str | None:
    """The reason why a case has nothing to compute in channels-last order, or None."""
    if isinstance(case.layer, UnfoldLayer):
        return "the columns of im2col have no channels_last order"
    if isinstance(case.layer, NormLayer) and case.layer.kind == "layer":
        return "layer norm's channels are last already"
    if isinstance(case.layer, LayoutLayer):
        return "the case is the change of order itself"
    return None
