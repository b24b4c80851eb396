"""The driver's entry points through ctypes, and kernels for them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from gpucnn.simulator import compilation, toolchain

SUCCESS = 0
Array = np.ndarray[Any, Any]


class CudaError(Exception):
    """A call that did not succeed: its function, the error's name, and the text of cuGetErrorString."""

    def __init__(self, function: str, name: str, text: str) -> None:
        super().__init__(f"{function}: {name}: {text}")
        self.name = name.removeprefix("CUDA_ERROR_")
        self.text = text
        self.detail = text.partition(": ")[2]


@cache
def image(text: str, mode: str = "check", name: str = "kernel.cu") -> bytes:
    """A compiled source."""
    path = compilation.build(text, name, mode, toolchain.runtime("assembly"))
    return path.read_bytes()


class Driver:
    """The simulated driver. Calls raise `CudaError` unless they succeed."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.context = self.handle("cuDevicePrimaryCtxRetain", 0)
        self.call("cuCtxPushCurrent_v2", self.context)

    def end_test(self) -> None:
        """Do what is pending and undo what the test left."""
        self.library.cudasim_set_stream_seed(ctypes.c_uint64(0))
        self.library.cudasim_reset()
        while self.library.cuCtxPopCurrent_v2(None) == SUCCESS:
            pass
        for device in (0, 1):
            self.library.cuDevicePrimaryCtxReset_v2(device)
        self.library.cuDevicePrimaryCtxRelease_v2(0)

    def set_stream_seed(self, seed: int) -> None:
        """Let work run at once, for 0, or late and in an order by the seed."""
        assert self.library.cudasim_set_stream_seed(ctypes.c_uint64(seed)) == SUCCESS

    # ---- Calls -------------------------------------------------------------------------------------------------------

    def call(self, function: str, *arguments: Any) -> None:
        """Call an entry point by the name that it is exported under."""
        status = getattr(self.library, function)(*arguments)
        if status != SUCCESS:
            raise CudaError(function, self._text("cuGetErrorName", status), self._text("cuGetErrorString", status))

    def _text(self, function: str, status: int) -> str:
        text = ctypes.c_char_p()
        getattr(self.library, function)(status, ctypes.byref(text))
        return (text.value or b"").decode()

    def handle(self, function: str, *arguments: Any) -> ctypes.c_void_p:
        """What a function writes through its first parameter."""
        made = ctypes.c_void_p()
        self.call(function, ctypes.byref(made), *arguments)
        return made

    def number(self, function: str, *arguments: Any, kind: Any = ctypes.c_int) -> Any:
        """A number that a function writes through its first parameter."""
        made = kind()
        self.call(function, ctypes.byref(made), *arguments)
        return made.value

    # ---- Memory ------------------------------------------------------------------------------------------------------

    def alloc(self, nbytes: int) -> ctypes.c_void_p:
        return self.handle("cuMemAlloc_v2", ctypes.c_size_t(nbytes))

    def free(self, pointer: ctypes.c_void_p) -> None:
        self.call("cuMemFree_v2", pointer)

    def upload(self, array: Array) -> ctypes.c_void_p:
        """A copy of a host array in an allocation of exactly its size."""
        pointer = self.alloc(array.nbytes)
        self.call("cuMemcpyHtoD_v2", pointer, ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes))
        return pointer

    def download(self, pointer: ctypes.c_void_p, count: int, dtype: Any = np.float32) -> Array:
        """An array of the device; the call waits for the legacy stream only."""
        array = np.empty(count, dtype)
        self.call("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), pointer, ctypes.c_size_t(array.nbytes))
        return array

    # ---- Streams and events ------------------------------------------------------------------------------------------

    def stream(self, flags: int = 1) -> ctypes.c_void_p:
        """A stream; by default one that is not ordered with the legacy stream."""
        return self.handle("cuStreamCreate", flags)

    def event(self, flags: int = 0) -> ctypes.c_void_p:
        return self.handle("cuEventCreate", flags)

    # ---- Kernels -----------------------------------------------------------------------------------------------------

    def module(self, text: str, mode: str = "check", name: str = "kernel.cu") -> ctypes.c_void_p:
        return self.handle("cuModuleLoadData", image(text, mode, name))

    def function(self, module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        return self.handle("cuModuleGetFunction", module, name.encode())

    def kernel(self, text: str, name: str, mode: str = "check") -> ctypes.c_void_p:
        """A kernel of a source of its own."""
        return self.function(self.module(text, mode), name)

    def launch(
        self,
        function: ctypes.c_void_p,
        *values: Any,
        grid: Sequence[int] = (1, 1, 1),
        block: Sequence[int] = (32, 1, 1),
        shared: int = 0,
        stream: ctypes.c_void_p | None = None,
    ) -> None:
        """Launch a kernel with arguments that are ctypes objects."""
        pointers = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(value) for value in values))
        self.call("cuLaunchKernel", function, *grid, *block, shared, stream, pointers, None)
