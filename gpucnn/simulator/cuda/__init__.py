"""The CUDA driver, runtime and libraries, simulated on the CPU: what a program's tests can ask of them.

The functions here work on the simulated driver that the process has loaded, in an environment which
``python -m gpucnn.simulator.cupy`` made, once CuPy has been imported there. They let calls of CUDA fail, count calls,
and find memory that has been left behind:

>>> from gpucnn.simulator import cuda
>>> with cuda.failing("cuMemAlloc", call=3):  # doctest: +SKIP
...     step()
>>> before = cuda.marker()  # doctest: +SKIP
>>> step()  # doctest: +SKIP
>>> assert not cuda.live_allocations(since=before)  # doctest: +SKIP
"""

from gpucnn.simulator.cuda.control import (
    Allocation,
    Injection,
    NotSimulated,
    calls,
    check_memory,
    checks_kernels,
    failing,
    failing_at,
    is_loaded,
    last_failure,
    live_allocations,
    marker,
    memory_limit,
    reset,
    stream_order,
)

__all__ = [
    "Allocation",
    "Injection",
    "NotSimulated",
    "calls",
    "check_memory",
    "checks_kernels",
    "failing",
    "failing_at",
    "is_loaded",
    "last_failure",
    "live_allocations",
    "marker",
    "memory_limit",
    "reset",
    "stream_order",
]
