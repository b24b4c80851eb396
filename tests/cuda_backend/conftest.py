"""A CuPy whose work for the CUDA backend is written down while it is done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cupy_watch import Launch, Watch

from gpucnn import backends
from gpucnn.backends.cuda.device import cublas, cupy_runtime
from gpucnn.backends.cuda.device.cupy_runtime import CupyFunction, CupyRuntime
from gpucnn.backends.cuda.device.runtime import Device


@pytest.fixture
def watch(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """What the backend asks of CuPy, as of a new process: no plan, kernel or recorded call is kept from before."""
    watch, allocate = Watch(), cupy.get_default_memory_pool().malloc  # whatever allocator the other tests run with
    library, device = _cublas(cupy)
    cublas.handle(library, cupy, device)  # its workspace is no array of the test's

    class Function(CupyFunction):
        """One whose launches are written down, those of recorded calls too."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            bare = self.bare

            def launch(grid: Any, block: Any, args: Any, shared_mem: int = 0) -> None:
                watch.launches.append(Launch(cupy.cuda.runtime.getDevice(), grid, block, args, shared_mem))
                bare(grid, block, args, shared_mem=shared_mem)

            self.bare = launch

    def gemm(*arguments: Any) -> int:
        watch.products.append(arguments)
        status: int = gemm_of_cublas(*arguments)
        return status

    def counted(nbytes: int) -> Any:
        watch.allocation(nbytes)
        return allocate(nbytes)

    monkeypatch.setattr(cupy_runtime, "CupyFunction", Function)
    gemm_of_cublas = library.gemm
    monkeypatch.setattr(library, "gemm", gemm)
    backends._cupy_backend.cache_clear()
    backends._cupy_backend()  # so that the first call is recorded
    with cupy.cuda.using_allocator(counted):
        yield watch
    backends._cupy_backend.cache_clear()  # the next call makes one that nobody watches


def _cublas(cupy: Any) -> tuple[cublas.Cublas, Device]:
    runtime = CupyRuntime()
    return runtime._cublas, runtime.device(cupy.empty(1))
