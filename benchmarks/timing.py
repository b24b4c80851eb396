"""Interleaved timing of several implementations, and the measured limits of this machine.

The implementations take turns, so that a busy neighbour or a changed clock affects all of them alike;
a ratio within one run then means something although the times themselves may not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.providers import Call, Provider

SAMPLE_S = 1e-3  # a sample repeats its call until it lasts this long
MIN_ROUNDS = 3
MAX_ROUNDS = 25
PATIENCE_S = 3.0  # a layer whose least rounds would take longer gets a single one
WARM_S = 20e-3  # untimed calls before each sample; a virtual machine's idle CPU takes that long to come back
MAX_UNTIMED = 1000
PAUSE_S = 12e-3  # lets the threads of the provider before come to rest: those of OpenMP spin for some 10 ms

GEMM_SIZE = 2048
COPY_BYTES = 1 << 28  # beyond the last-level cache of most machines


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median and 20th and 80th percentile of the samples."""

    median: float
    p20: float
    p80: float
    samples: int
    calls_per_sample: int

    @staticmethod
    def of(samples: Sequence[float], calls_per_sample: int) -> Timing:
        p20, median, p80 = (float(q) for q in np.percentile(samples, (20, 50, 80)))
        return Timing(median, p20, p80, len(samples), calls_per_sample)

    @property
    def spread(self) -> float:
        """The width of the central 60 % of the samples as a share of the median."""
        return (self.p80 - self.p20) / self.median


def interleave(
    calls: Mapping[Provider, Call], budget_s: float, max_rounds: int = MAX_ROUNDS, patience_s: float = PATIENCE_S
) -> dict[Provider, Timing]:
    """Time every call, one sample of each per round, for about `budget_s` seconds in all.

    `MIN_ROUNDS` rounds are run whatever the budget; a single one if these would take longer than `patience_s`.
    The order rotates from round to round.
    """
    order = list(calls)

    def measure(provider: Provider, repeats: int) -> float:
        return provider.within(lambda: provider.time(calls[provider], repeats))

    once: dict[Provider, float] = {}
    repeats: dict[Provider, int] = {}
    turn_s = 0.0
    for provider in order:
        seconds = measure(provider, 1)
        if seconds < WARM_S:  # the first call after the check also met cold caches
            seconds = measure(provider, 1)
        once[provider] = seconds
        repeats[provider] = max(1, math.ceil(SAMPLE_S / seconds))
        turn_s += PAUSE_S + seconds * (repeats[provider] + warming(seconds))
    least = MIN_ROUNDS if MIN_ROUNDS * turn_s <= patience_s else 1
    rounds = min(max(int(budget_s / turn_s), least), max_rounds)

    samples: dict[Provider, list[float]] = {provider: [] for provider in order}
    for _ in range(rounds):
        for provider in order:
            time.sleep(PAUSE_S)
            previous = samples[provider]
            if untimed := warming(once[provider] if not previous else previous[-1]):
                measure(provider, untimed)
            previous.append(measure(provider, repeats[provider]))
        order.append(order.pop(0))
    return {provider: Timing.of(samples[provider], repeats[provider]) for provider in calls}


def warming(seconds: float) -> int:
    """The number of warm-up calls of `seconds` each before a sample: none for calls that are long themselves."""
    return 0 if seconds >= WARM_S else min(MAX_UNTIMED, math.ceil(WARM_S / max(seconds, 1e-9)))


@dataclass(frozen=True)
class Limits:
    """The rates that this machine reaches with the given threads: the two roofs of the roofline."""

    gemm_flops: float  # float32 multiply-adds of a large matrix product, per second, times two
    gemm_library: str
    copy_bytes: float  # bytes read plus bytes written per second, arrays beyond the cache
    other_flops: dict[str, float] = field(default_factory=dict)  # of other precisions: tf32, float16, bfloat16

    def flops(self, dtype: str = "float32") -> float:
        """The rate of a matrix product of this dtype; float32's where none was measured."""
        return self.other_flops.get(dtype, self.gemm_flops)

    def least_seconds(self, flops: int, moved_bytes: int, dtype: str = "float32") -> float:
        """The least time of an implementation whose data comes from memory."""
        return max(flops / self.flops(dtype), moved_bytes / self.copy_bytes)

    def raised_by(self, other: Limits) -> Limits:
        """The higher of two measurements of a CPU: a limit is the best rate that was observed."""
        gemm = max(self, other, key=lambda limits: limits.gemm_flops)
        return replace(gemm, copy_bytes=max(self.copy_bytes, other.copy_bytes))

    def bound_by_arithmetic(self, flops: int, moved_bytes: int, dtype: str = "float32") -> bool:
        return flops / self.flops(dtype) > moved_bytes / self.copy_bytes


def measure_limits(threads: int, providers: Sequence[Provider], repeats: int = 6) -> Limits:
    """The quickest library's GEMM, and a copy shared among `threads` threads; the best repeat."""
    rates: dict[str, float] = {}
    for library, multiply in _matrix_products(providers).items():
        multiply()
        rates[library] = 2 * GEMM_SIZE**3 / _least_seconds(multiply, repeats)
    quickest = max(rates, key=rates.__getitem__)
    return Limits(rates[quickest], quickest, _copy_rate(threads, repeats))


def _matrix_products(providers: Sequence[Provider]) -> dict[str, Call]:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((GEMM_SIZE, GEMM_SIZE), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    products: dict[str, Call] = {"NumPy": lambda: np.matmul(a, b, out=out)}
    if any("torch" in provider.requires for provider in providers):
        import torch

        ta, tb = torch.from_numpy(a), torch.from_numpy(b)
        products["PyTorch"] = lambda: torch.mm(ta, tb)
    return products


def _copy_rate(threads: int, repeats: int) -> float:
    source = np.ones(COPY_BYTES // 4, dtype=np.float32)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            list(pool.map(lambda part: np.copyto(*part), parts))

        copy()
        return 2 * COPY_BYTES / _least_seconds(copy, repeats)


def _least_seconds(call: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
