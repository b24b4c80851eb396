"""gpucnn's programs, compiled in threads before the first case is measured.

A first run meets some five hundred programs, each compiled in tenths of a second: in turn they would take a fifth of
its time. Here the calls of all cases are made once as a dry run on uninitialised arrays; the programs that they
would have launched are compiled in parallel, and found on disk when the cases are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from typing import Any

from benchmarks.cases import Case
from benchmarks.data import form
from benchmarks.gpu.device import Device
from benchmarks.providers import Provider

HEADROOM = 0.4  # of the free memory that the arrays of a case may take here


def compile_ahead(
    backend: str,
    device: Device,
    providers: Sequence[Provider],
    cases: Iterable[Case],
    threads: int,
    alive: Callable[[], None] = lambda: None,
) -> int:
    """Compile what the cases will launch on `backend`, "cuda" or "simulator"; return the number of programs compiled.

    A program that does not compile, and a call that fails, fail again where they are measured, and are reported there.
    `alive` is called now and then.
    """
    from gpucnn.backends import backend_named
    from gpucnn.backends.cuda.launch.dry_run import DryRun
    from gpucnn.backends.listening import listening

    runtime: Any = backend_named(backend).runtime  # type: ignore[attr-defined]
    dry = DryRun(runtime)
    with listening(dry):
        for case, provider in product(cases, [provider for provider in providers if provider.ours]):
            if provider.refuses(case) is None and case.least_bytes < HEADROOM * device.free_bytes():
                with suppress(Exception):
                    arrays = {name: dry.xp.empty(shape, dtype) for name, (shape, dtype) in form(case).items()}
                    provider.prepare(case, arrays)()
                arrays = {}
                device.release()
                alive()

    def compiled(wanted: tuple[Any, Any]) -> bool:
        with suppress(Exception):
            return bool(runtime.prepare(*wanted))
        return False

    count = 0
    with ThreadPoolExecutor(threads) as pool:
        for fresh in pool.map(compiled, [(source, on) for (source, _), on in dry.sources.items()]):
            count += fresh
            alive()
    return count
