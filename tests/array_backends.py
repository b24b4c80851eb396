"""The kinds of arrays that the suite runs on, one of them a run: ``pytest --backend=…``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis
import numpy as np
import pytest

from gpucnn import simulator
from gpucnn.backends import Backend, backend_of

WRITING = ("batch_norm", "instance_norm")


@dataclass(frozen=True)
class ArrayBackend:
    """One kind of array: how NumPy arrays become it, with their strides, and how it becomes NumPy's again."""

    name: str
    asarray: Callable[[Any], Any]
    asnumpy: Callable[[Any], np.ndarray[Any, Any]]

    @property
    def takes_numpy(self) -> bool:
        """Whether its arrays are NumPy's."""
        return self.name in ("numpy", "compiled")

    @property
    def primitives(self) -> Backend:
        """What computes on these arrays."""
        return backend_of(self.asarray(np.zeros(1)))

    def run(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`operation` with each NumPy array among its arguments as this kind, and its results as NumPy arrays.

        Of the arrays on a device only running statistics may be written to, and only by `WRITING` operations.
        """
        taken = [*map(self._taken, args)], {name: self._taken(value) for name, value in kwargs.items()}
        result = operation(*taken[0], **taken[1])
        if self.name != "numpy" and getattr(operation, "__name__", "") not in WRITING:
            pairs = zip((*args, *kwargs.values()), (*taken[0], *taken[1].values()), strict=True)
            for given, array in ((given, array) for given, array in pairs if array is not given):
                assert self.asnumpy(array).tobytes() == np.asarray(given).tobytes(), "an argument was written to"
        return tuple(map(self._returned, result)) if isinstance(result, tuple) else self._returned(result)

    def can_hold(self, dtype: Any) -> bool:
        """Whether there are arrays of this kind with that dtype."""
        try:
            self.asarray(np.zeros((), dtype))
        except (TypeError, ValueError):
            return False
        return True

    def _taken(self, value: Any) -> Any:
        is_array = isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)
        return self.asarray(value) if is_array and self.can_hold(value.dtype) else value

    def _returned(self, value: Any) -> Any:
        return None if value is None else self.asnumpy(value)


def _cupy_asarray(host: np.ndarray[Any, Any]) -> Any:
    """A copy on the GPU with the strides of `host`; what lies between its elements is NaN."""
    cupy: Any = importlib.import_module("cupy")
    if host.dtype.name == "bfloat16" and int(cupy.__version__.split(".")[0]) < 14:
        if hypothesis.currently_in_test_context():
            hypothesis.reject()
        pytest.skip(f"CuPy {cupy.__version__} has no bfloat16")
    is_addressable = host.flags.aligned and not any(step % host.itemsize for step in host.strides)
    if not host.size or not is_addressable or host.dtype.hasobject:  # what CuPy takes or refuses by itself
        return cupy.asarray(host)
    reaches = [(size - 1) * step for size, step in zip(host.shape, host.strides, strict=True)]
    below, above = -sum(min(0, reach) for reach in reaches), sum(max(0, reach) for reach in reaches)
    image = np.full(below + above + host.itemsize, 1 if host.dtype == np.bool_ else 0xFF, np.uint8)
    np.ndarray(host.shape, host.dtype, image, below, host.strides)[...] = host
    return cupy.ndarray(host.shape, host.dtype, cupy.asarray(image).data + below, strides=host.strides)


def _cupy_asnumpy(array: Any) -> np.ndarray[Any, Any]:
    """A copy on the CPU whose axes have the same order in memory."""
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    host: np.ndarray[Any, Any] = array.transpose(order).get()
    return host.transpose(sorted(range(array.ndim), key=order.__getitem__))


BACKENDS = {
    "numpy": ArrayBackend("numpy", lambda array: array, lambda array: array),
    "compiled": ArrayBackend("compiled", lambda array: array, lambda array: array),
    "simulator": ArrayBackend("simulator", simulator.asarray, simulator.asnumpy),
    "cuda": ArrayBackend("cuda", _cupy_asarray, _cupy_asnumpy),
}
