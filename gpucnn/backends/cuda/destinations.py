"""A primitive's result in an array that the caller has: in place of the new array that it would make.

Primitives ask their runtime for new arrays. The first one that would lie in memory just as the caller's does is the
caller's: kernels see no difference. If that was none, or not the result, the result is copied at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpucnn.backends.cuda.device.runtime import Array, ListeningRuntime
from gpucnn.backends.cuda.elementwise.packing import copy

if TYPE_CHECKING:
    from gpucnn.backends.cuda import CudaBackend


class Destination:
    """The primitives of a backend, whose result, the first of several, is written to `out`.

    `seen` is `out` in the result's shape: a view of it, or a copy, where there is no such view.
    """

    def __init__(self, backend: CudaBackend, out: Array, seen: Array) -> None:
        self._runtime, self._out, self._seen = backend.runtime, out, seen
        is_whole = out.data.ptr % out.itemsize == 0  # complex numbers may lie across their grain
        namespace = _Namespace(backend.runtime.xp, seen if is_whole and seen.data.ptr == out.data.ptr else None)
        self._backend = type(backend)(ListeningRuntime(backend.runtime, namespace))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        primitive = getattr(self._backend, name)

        def called(*arguments: Any) -> Any:
            result = primitive(*arguments)
            first, *others = result if isinstance(result, tuple) else (result,)
            if first.data.ptr != self._out.data.ptr:
                self._copy(first)
            elif _steps(first) != _steps(self._seen):  # its axes were taken for others of the same lengths
                self._copy(first.copy())
            return (self._out, *others) if others else self._out

        return called

    def _copy(self, result: Array) -> None:
        with self._runtime.using(self._runtime.device(self._out)):
            copy(self._runtime, result.reshape(self._out.shape), self._out)


class _Namespace:
    """A NumPy-like module, one of whose new arrays is `out`."""

    def __init__(self, xp: Any, out: Array | None) -> None:
        self._xp, self._out = xp, out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._xp, name)

    def empty(self, shape: Any, dtype: Any = float) -> Array:
        """`out` as it is, or with its channels last, if that is such an array; else a new one."""
        out = self._out
        if out is not None and out.dtype == dtype:
            # images with their channels last, and those of [N, G, C, P]
            orders = (out, self._xp.moveaxis(out, 1, -1), self._xp.moveaxis(out, -1, 1)) if out.ndim > 2 else (out,)
            for array in orders:
                if array.shape == tuple(shape) and array.flags.c_contiguous:
                    self._out = None
                    return array
        return self._xp.empty(shape, dtype)


def _steps(array: Array) -> list[int]:
    """The strides of the axes that are longer than 1."""
    return [step for step, size in zip(array.strides, array.shape, strict=True) if size > 1]
