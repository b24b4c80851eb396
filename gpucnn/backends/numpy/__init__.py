"""The CPU backend: every primitive in NumPy, readable throughout and optimised where it matters."""

from __future__ import annotations

import numpy as np

from gpucnn.backends.base import Backend, implemented_by
from gpucnn.backends.numpy import (
    average_pooling,
    convolution,
    elementwise,
    grid_sampling,
    linear,
    max_pooling,
    memory,
    normalization,
    optimization,
    resampling,
    unfolding,
)


@implemented_by(
    average_pooling,
    convolution,
    elementwise,
    grid_sampling,
    linear,
    max_pooling,
    normalization,
    resampling,
    unfolding,
    method=staticmethod,
)
class NumpyBackend(Backend):
    """Primitives over `numpy.ndarray`, each the function of its name in one of these modules."""

    name = "numpy"
    xp = np
    host = True

    empty = staticmethod(memory.empty_in_c_order)
    zeros = staticmethod(memory.zeros)
    empty_like = staticmethod(memory.empty)
    empty_weight = staticmethod(memory.empty_weight)
    sgd = staticmethod(optimization.sgd)
    adam = staticmethod(optimization.adam)
