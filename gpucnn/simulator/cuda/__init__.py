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

The driver reads these variables of the environment when it is loaded; a value that makes no sense ends the program:

GPUCNN_CUDA_DEVICE
    The card: ``t4``, ``a100``, ``h100`` (the default) or ``rtx4090``, with its public figures and capability.
GPUCNN_CUDA_DEVICES
    How many of them, 1 by default; 0 for a machine without any.
GPUCNN_CUDA_MEMORY
    Memory of each, ``8G`` by default: allocations beyond it are out of memory.
GPUCNN_CUDA_CHECK
    ``0`` to run kernels without checks, some twenty times faster.
GPUCNN_CUDA_STREAM_SEED
    ``0``, the default, to run work when it is issued; else as late as the program allows, in an order by this seed.
GPUCNN_CUDA_STREAM_RACES
    ``1`` to report work in different streams that uses the same memory and that nothing orders.
GPUCNN_CUDA_STICKY
    ``1`` to let a failed kernel spoil its device, as on a GPU.
GPUCNN_CUDA_FAIL
    Failures to inject: ``cuMemAlloc:3=out_of_memory,any:17=launch_failed``.
GPUCNN_CUDA_LEAKS
    ``1`` to report at exit the memory that is still allocated.
GPUCNN_CUDA_LOG
    ``1`` to report failures on the standard error, ``2`` every call.
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
