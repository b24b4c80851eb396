"""The rates that a GPU reaches: a large copy, and large matrix products in each precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.device import CupyDevice
from benchmarks.gpu.sampling import Sampler
from benchmarks.timing import Limits

COPY_BYTES = 1 << 30  # of each array; at most a sixteenth of the memory
PRODUCT_SIZE = 8192
REPEATS = 7

Call = Callable[[], object]


def measure_limits(device: CupyDevice, repeats: int = REPEATS) -> Limits:
    """The quickest of several samples of each; of copies by CuPy, by the driver and by PyTorch, the quickest."""
    moved = 2 * COPY_BYTES
    while 8 * moved > device.free_bytes():
        moved //= 2
    copy = moved / min(_least(device, call, repeats) for call in _copies(device.xp, moved // 2))
    device.release()
    library, products = _products(device.xp)
    rates = {}
    for precision, make in products.items():
        call = make()
        rates[precision] = 2 * PRODUCT_SIZE**3 / _least(device, call, repeats)
        del call
        device.release()
    return Limits(rates.pop("float32"), library, copy, rates)


def _least(device: CupyDevice, call: Call, repeats: int) -> float:
    sampler = Sampler(device, call)
    sampler.warm_up()
    return min(sampler.cold() for _ in range(repeats))


def _copies(xp: Any, nbytes: int) -> list[Call]:
    source = xp.asarray(np.random.default_rng(0).standard_normal(1 << 18, np.float32))
    source = xp.tile(source, nbytes // source.nbytes)
    target = xp.empty_like(source)

    def by_kernel() -> None:
        target[...] = source

    calls: list[Call] = [by_kernel, lambda: target.data.copy_from_device_async(source.data, source.nbytes)]
    torch = _torch()
    if torch is not None:
        given, taken = torch.from_dlpack(source), torch.from_dlpack(target)
        calls.append(lambda: taken.copy_(given))
    return calls


def _products(xp: Any) -> tuple[str, dict[str, Callable[[], Call]]]:
    """The library that multiplies, and a function that makes the product of each precision."""
    torch = _torch()
    host = np.random.default_rng(0).standard_normal((2, PRODUCT_SIZE, PRODUCT_SIZE), np.float32)
    if torch is None:

        def by_cupy(dtype: str) -> Call:
            a, b = (xp.asarray(side).astype(dtype) for side in host)
            return lambda: xp.matmul(a, b)

        return "CuPy", {dtype: lambda dtype=dtype: by_cupy(dtype) for dtype in ("float32", "float16")}  # type: ignore[misc]

    def by_torch(dtype: Any, tf32: bool = False) -> Call:
        a, b = (torch.from_numpy(side).to(device="cuda", dtype=dtype) for side in host)

        def multiply() -> object:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            try:
                return torch.mm(a, b)
            finally:
                torch.backends.cuda.matmul.allow_tf32 = False

        return multiply

    return "PyTorch", {
        "float32": lambda: by_torch(torch.float32),
        "tf32": lambda: by_torch(torch.float32, tf32=True),
        "float16": lambda: by_torch(torch.float16),
        "bfloat16": lambda: by_torch(torch.bfloat16),
    }


def _torch() -> Any:
    """PyTorch, where it is installed for this GPU."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None
