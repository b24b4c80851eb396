"""PyTorch on a GPU, at its best: both memory orders, cuDNN's search for its quickest algorithm, and torch.compile.

Float32 is float32: TF32 is off for convolutions and for matrix products. Tensors share the memory of the arrays that
all implementations are given, or are copies in another memory order, made beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.cases import Case
from benchmarks.data import Arrays
from benchmarks.layers import ActivationLayer, ConvLayer, LayoutLayer, NormLayer, UnfoldLayer
from benchmarks.providers.base import Call, Result
from benchmarks.providers.pytorch import PyTorch, PyTorchChannelsLast

COMPILE_ALLOWANCE_S = 100.0  # for all cases of a run together


class PyTorchGpu(PyTorch):
    """The default memory order: N, C, spatial."""

    name = "PyTorch"
    requires = ("torch", "cupy")
    device = "gpu"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.torch.backends.cuda.matmul.allow_tf32 = False
        self.torch.backends.cudnn.allow_tf32 = False
        self.from_dlpack = self._shared_with()

    def _shared_with(self) -> Any:
        """The conversion of tensors to CuPy's arrays, after a check that both are on one stream."""
        import cupy

        if not self.torch.cuda.is_available():
            raise ImportError("this PyTorch sees no GPU")
        if self.torch.cuda.current_stream().cuda_stream != cupy.cuda.get_current_stream().ptr:
            raise RuntimeError("PyTorch and CuPy are on two streams: events of one would not time the other")
        return cupy.from_dlpack

    def tensor(self, array: Any) -> Any:
        return self.torch.from_dlpack(array)

    def array(self, value: Any) -> Any:
        return self.from_dlpack(value.detach())


class PyTorchGpuChannelsLast(PyTorchChannelsLast, PyTorchGpu):
    pass


class _Searching(PyTorchGpu):
    """With ``torch.backends.cudnn.benchmark``: cuDNN times its algorithms at the first call of a size.

    PyTorch keeps one plan for a size in each thread, whether it was found by search or by rule, and the first one
    stays. So these calls are made in a separate thread, whose plans are all found by search.
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._thread = ThreadPoolExecutor(1, initializer=self._enter)

    def _enter(self) -> None:
        """Bind the thread to the GPU before either library uses it there."""
        if self.torch.cuda.is_available():
            self.torch.cuda.set_device(0)
            self.torch.cuda.synchronize()

    def refuses(self, case: Case) -> str | None:
        if not isinstance(case.layer, ConvLayer):
            return "cuDNN searches for convolutions only"
        return super().refuses(case)

    def within(self, function: Callable[[], Result]) -> Result:
        return self._thread.submit(self._with_search, function).result()

    def _with_search(self, function: Callable[[], Result]) -> Result:
        self.torch.backends.cudnn.benchmark = True
        try:
            return function()
        finally:
            self.torch.backends.cudnn.benchmark = False


class PyTorchCudnnSearch(_Searching):
    name = "PyTorch cudnn.benchmark"


class PyTorchCudnnSearchChannelsLast(_Searching, PyTorchGpuChannelsLast):
    name = "PyTorch channels_last, cudnn.benchmark"


class PyTorchCompiled(PyTorchGpu):
    """torch.compile, for the operations that it generates kernels for, within its time allowance."""

    name = "torch.compile"
    requires = ("torch", "cupy", "triton")

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.spent_s = 0.0
        from torch._functorch import config

        if hasattr(config, "donated_buffer"):  # one graph is run backwards many times
            config.donated_buffer = False

    def refuses(self, case: Case) -> str | None:
        if not isinstance(case.layer, ActivationLayer | LayoutLayer | NormLayer | UnfoldLayer):
            return "torch.compile leaves it to the same kernels, or takes long over little"
        if case.dtype != "float32":
            return "float32 only, for its compilations take seconds each"
        if self.spent_s > COMPILE_ALLOWANCE_S:
            return f"its {COMPILE_ALLOWANCE_S:.0f} s for compilation are spent"
        return super().refuses(case)

    def prepare(self, case: Case, arrays: Arrays) -> Call:
        started = time.perf_counter()
        self.torch.compiler.reset()
        call = super().prepare(case, arrays)
        call()
        self.spent_s += time.perf_counter() - started
        return call

    def _forward(self, case: Case, tensors: dict[str, Any]) -> Call:
        return self.torch.compile(super()._forward(case, tensors), dynamic=False)
