"""Steps of optimisers in C++, in one pass over memory; the bits are those of NumPy's."""

from __future__ import annotations

import numpy as np

from gpucnn.backends.cpu.elementwise import copy, work_items
from gpucnn.backends.cpu.library import Kernel, Launch, is_addressable, shared_scratch
from gpucnn.backends.dtypes import name_of
from gpucnn.backends.numpy import optimization as plain
from gpucnn.backends.numpy.memory import Array
from gpucnn.backends.optimization import AdamStep, Descent

FEW = 1 << 12  # elements, over which NumPy passes in less time than a launch takes

_SGD, _ADAM = Kernel("sgd"), Kernel("adam")


def sgd(data: Array, grad: Array, velocity: Array | None, step: Descent) -> None:
    """As `gpucnn.backends.optimization.sgd`."""
    if _computes(data, grad, velocity):
        _launch(_SGD, step, data=data, grad=grad, velocity=velocity)
    else:
        plain.sgd(data, grad, velocity, step)


def adam(data: Array, grad: Array, mean: Array, square: Array, most: Array | None, step: AdamStep) -> None:
    """As `gpucnn.backends.optimization.adam`."""
    if _computes(data, grad, mean, square, most):
        _launch(_ADAM, step, data=data, grad=grad, mean=mean, square=square, most=most)
    else:
        plain.adam(data, grad, mean, square, most, step)


def _computes(data: Array, grad: Array, *state: Array | None) -> bool:
    """Whether the kernels take a parameter, its gradient and its state."""
    if data.size < FEW or data.dtype not in (np.float32, np.float64) or grad.dtype != data.dtype:
        return False
    return is_addressable(grad) and all(
        array is None or (array.flags.c_contiguous and array.flags.aligned) for array in (data, *state)
    )


def _launch(kernel: Kernel, step: Descent | AdamStep, grad: Array, **arrays: Array | None) -> None:
    data = arrays["data"]
    assert data is not None
    dtype = name_of(data.dtype)
    if not grad.flags.c_contiguous:
        given, grad = grad, shared_scratch("gradient", data.size, dtype).reshape(data.shape)
        copy(given, grad)  # such as that of a convolution's weight, whose channels may be innermost
    items = work_items(data.size)
    values = {**step._asdict(), "count": data.size, "items": items}
    Launch(kernel, dtype, values, items)(**arrays, grad=grad)  # not kept: the numbers of each step may be others
