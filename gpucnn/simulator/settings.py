"""Settings of a simulated launch: checked or fast, and the order in which threads and blocks run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

MODES = ("check", "fast", "coverage", "profile")
ORDERS = ("forward", "reverse", "random")
CONTEXT_SWITCHES = ("assembly", "ucontext")


@dataclass(frozen=True)
class Settings:
    """The settings of `options`; see there."""

    mode: str = "check"
    order: str = "forward"
    seed: int = 1
    yield_every: int = 0
    context_switch: str = "assembly"

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, MODES)
        _one_of("order", self.order, ORDERS)
        _one_of("context_switch", self.context_switch, CONTEXT_SWITCHES)
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {self.seed}")
        if not 0 <= self.yield_every < 2**32:
            raise ValueError(f"yield_every must be in [0, 2**32), got {self.yield_every}")


_settings: ContextVar[Settings | None] = ContextVar("gpucnn_simulator_settings", default=None)


def current() -> Settings:
    """The settings in force: the innermost `options` block's, else those of the environment."""
    return _settings.get() or _from_environment()


@contextmanager
def options(
    *,
    mode: str | None = None,
    order: str | None = None,
    seed: int | None = None,
    yield_every: int | None = None,
    context_switch: str | None = None,
) -> Iterator[Settings]:
    """Within the block, run kernels with other settings; those not given stay unchanged.

    Parameters
    ----------
    mode : "check", "fast", "coverage" or "profile"
        With all checks; without any, some twenty times faster; without, counting the lines that were run; or with all,
        counting memory traffic, for `gpucnn.simulator.profile`.
    order : "forward", "reverse" or "random"
        The order in which the threads of a block, and the blocks, take their turns.
    seed : int
        Of the random order and of `yield_every`.
    yield_every : int
        In check mode, switch threads at about one in this many memory accesses; 0 for never.
    context_switch : "assembly" or "ucontext"
        The way threads are switched. The second is slow and portable; processors other than x86-64 and aarch64 always
        use it.

    Notes
    -----
    The defaults are the environment's GPUCNN_SIMULATOR_MODE, GPUCNN_SIMULATOR_ORDER and GPUCNN_SIMULATOR_SEED, read
    once, else "check", "forward" and 1.

    Examples
    --------
    >>> with options(order="random", seed=7) as settings:
    ...     settings.order
    'random'
    """
    given: dict[str, Any] = {
        "mode": mode,
        "order": order,
        "seed": seed,
        "yield_every": yield_every,
        "context_switch": context_switch,
    }
    settings = replace(current(), **{name: value for name, value in given.items() if value is not None})
    token = _settings.set(settings)
    try:
        yield settings
    finally:
        _settings.reset(token)


@cache
def _from_environment() -> Settings:
    """The environment's settings, read once: a launch is too short to read them each time."""
    mode, order, seed = (os.environ.get(f"GPUCNN_SIMULATOR_{name}") for name in ("MODE", "ORDER", "SEED"))
    return Settings(mode or "check", order or "forward", _seed(seed))


def _seed(text: str | None) -> int:
    if not text:
        return 1
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"GPUCNN_SIMULATOR_SEED must be an integer, got {text!r}") from None


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
