"""A CuPy whose work for the CUDA backend is written down while it is done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cupy_watch import Launch, Watch

from gpucnn import backends
from gpucnn.backends.cuda.device import cupy_runtime
from gpucnn.backends.cuda.device.cupy_runtime import CupyFunction


@pytest.fixture
def watch(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """What the backend asks of CuPy, as of a new process: no plan, kernel or recorded call is kept from before."""
    watch, allocate, cublas = Watch(), cupy.cuda.get_allocator(), cupy_runtime._cublas()

    class Function(CupyFunction):
        """One whose launches are written down, those of recorded calls too."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            bare = self.bare

            def launch(grid: Any, block: Any, args: Any, shared_mem: int = 0) -> None:
                watch.launches.append(Launch(cupy.cuda.runtime.getDevice(), grid, block, args, shared_mem))
                bare(grid, block, args, shared_mem=shared_mem)

            self.bare = launch

    class Cublas:
        @staticmethod
        def gemmStridedBatchedEx(*arguments: Any) -> None:  # noqa: N802 (CuPy's name)
            watch.products.append(arguments)
            cublas.gemmStridedBatchedEx(*arguments)

    def counted(nbytes: int) -> Any:
        watch.allocation(nbytes)
        return allocate(nbytes)

    monkeypatch.setattr(cupy_runtime, "CupyFunction", Function)
    monkeypatch.setattr(cupy_runtime, "_cublas", Cublas)
    backends._cupy_backend.cache_clear()
    backends._cupy_backend()  # so that the first call is recorded
    with cupy.cuda.using_allocator(counted):
        yield watch
    backends._cupy_backend.cache_clear()  # the next call makes one that nobody watches
