"""Autotuning: time the algorithms on the device, and keep the fastest for later processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.backends import backend_named
from gpucnn.backends.cuda.convolution.select import algorithms
from gpucnn.backends.cuda.device.background import at_once
from gpucnn.numerics import Picks, picking
from gpucnn.warm_up import Case, Options, operation_call, shown

RUNS = 20  # of each algorithm, of which the median counts
_Asked = tuple[str, Any, str]


@dataclass(frozen=True)
class Pick:
    """The algorithm that was picked for one convolution.

    Attributes
    ----------
    operation : str
        The operation that was called.
    direction : str
        "forward", "backward_input" or "backward_weight".
    algorithm : str
        The quickest.
    milliseconds : dict
        The median time of the call by each.
    """

    operation: str
    direction: str
    algorithm: str
    milliseconds: dict[str, float]


def tune(
    cases: Iterable[Case],
    *,
    dtype: Any = "float32",
    channels_last: bool = False,
    backward: bool = False,
    progress: bool = True,
) -> list[Pick]:
    """Time the algorithms of convolutions on the current GPU, and keep the quickest for `tuned`.

    Parameters
    ----------
    cases, dtype, channels_last, backward, progress
        As `gpucnn.warmup` takes them; calls only, no models.

    Returns
    -------
    list of Pick
        One for each convolution of which there are several algorithms; a backward has two.

    Raises
    ------
    RuntimeError
        There is no GPU: times of the simulator or of NumPy would say nothing about one.
    ValueError, TypeError
        As `gpucnn.warmup`.

    Notes
    -----
    Each algorithm runs 20 times between two events of the device; the median counts, with the caches as they are in
    such a loop. A pick is kept by device, compute capability, driver, gpucnn's version, direction, dtype, precision
    and geometry, in a separate file in the folder ``autotune`` of ``GPUCNN_CACHE_DIR``. Batch size and memory order are
    those of the case, and not part of the key: tune with the cases that will be run.

    Only calls within `tuned` use a pick. This has not yet run on a GPU: times were faked to test it.
    """
    backend: Any = backend_named("cuda")
    options = Options("tune", backend, np.dtype(dtype), channels_last, backward, random=True)
    calls = [operation_call(index, case, options) for index, case in enumerate(cases)]
    runtime = backend.runtime
    kept = runtime.autotune_cache(anew=True)
    capability = runtime.device(backend.xp.empty(1)).compute_capability
    picks = []
    for operation, make in shown(calls, "cases tuned", len(calls), progress):
        call = make(backend.xp)
        probe = _Probe({})
        with picking(probe), at_once():
            call()
        for asked in probe.asked:
            direction = asked[0]
            names = algorithms(*asked, capability)
            if len(names) > 1:
                timed = _timed(runtime, call, asked, names)
                picks.append(Pick(operation, direction, kept.keep(*asked, timed), timed))
    return picks


@contextmanager
def tuned() -> Iterator[None]:
    """Within the block, compute convolutions on a GPU by the algorithms that `tune` picked, where there is a pick.

    Raises
    ------
    RuntimeError
        There is no GPU.

    Notes
    -----
    The picks are those for the device that is current when the block begins. `gpucnn.algorithm` takes precedence, and
    where there is no pick, the choice by size stands.

    Algorithms sum in different orders, so results depend on what was picked: on the device and on how a timing went.
    Each repeats bit for bit as long as the picks stay. Outside the block nothing depends on the device.
    """
    backend: Any = backend_named("cuda")
    with picking(backend.runtime.autotune_cache()):
        yield


class _Probe:
    """Given picks, which record the convolutions that they are asked for."""

    def __init__(self, told: dict[_Asked, str]) -> None:
        self._told = told
        self.asked: dict[_Asked, None] = {}

    def algorithm(self, direction: str, geometry: Any, dtype: str) -> str | None:
        """The given algorithm."""
        self.asked[direction, geometry, dtype] = None
        return self._told.get((direction, geometry, dtype))


def _timed(runtime: Any, call: Callable[[], object], asked: _Asked, names: Iterable[str]) -> dict[str, float]:
    """The milliseconds of `call` by each algorithm of the convolution that was asked for."""
    times = {}
    for name in names:
        picks: Picks = _Probe({asked: name})
        with picking(picks), at_once():
            call()  # compiles and plans
            times[name] = runtime.milliseconds(call, RUNS)
    return times
