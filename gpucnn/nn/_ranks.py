"""The part of one process in `fit`; `gpucnn.distributed.training.Ranks` is that of several processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Array = Any
Numbers = tuple[float, float, int, int | None, int]


class Alone:
    """The only process of a run."""

    rank, size = 0, 1

    def check(self, model: Any, optimizer: Any, loaders: Mapping[str, Any]) -> None:
        """Raise ValueError if the parts of the run do not fit these ranks."""

    def first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank, for all of them; its exception is raised on all."""
        return make()

    def begin(self, model: Any, generators: Mapping[str, np.random.Generator]) -> None:
        """Let all ranks begin with the first one's weights, and with generators that differ."""

    def backward(self, model: Any, loss: Any, output: Array, target: Array, scale: float | None, asked: bool) -> None:
        """The gradients of the whole batch, times `scale`; `asked` says whether this rank is to stop."""
        model.backward(loss.backward() if scale is None else loss.backward(scale))

    def ended(self) -> None:
        """Note that this rank has no further batch in the epoch."""

    def stops(self, asked: bool) -> bool:
        """Whether all ranks stop before the next batch."""
        return asked

    def agreed(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any rank has it."""
        return flags

    def tallies(self, numbers: Numbers) -> list[Numbers]:
        """The numbers of each rank's tally."""
        return [numbers]

    def others(self, states: dict[str, Any]) -> list[dict[str, Any]]:
        """The states of generators of the other ranks, in order."""
        return []

    def own(self, states: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
        """The states of this rank's generators, of those that a checkpoint has for the first one and the others."""
        return states
