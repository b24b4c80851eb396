"""The CPU backend: every primitive in NumPy, readable throughout and optimised where it matters."""

from __future__ import annotations

import numpy as np

from gpucnn.backends.base import Backend
from gpucnn.backends.numpy import (
    average_pooling,
    convolution,
    elementwise,
    max_pooling,
    memory,
    normalization,
    resampling,
    unfolding,
)


class NumpyBackend(Backend):
    """Primitives over `numpy.ndarray`, one function each in this folder's modules."""

    name = "numpy"
    xp = np
    host = True

    empty = staticmethod(memory.empty_in_c_order)
    empty_like = staticmethod(memory.empty)
    empty_weight = staticmethod(memory.empty_weight)
    copy = staticmethod(elementwise.copy)

    convolve = staticmethod(convolution.convolve)
    convolve_backward_input = staticmethod(convolution.convolve_backward_input)
    convolve_backward_weight = staticmethod(convolution.convolve_backward_weight)

    locally_connect = staticmethod(unfolding.locally_connect)
    locally_connect_backward_input = staticmethod(unfolding.locally_connect_backward_input)
    locally_connect_backward_weight = staticmethod(unfolding.locally_connect_backward_weight)
    im2col = staticmethod(unfolding.im2col)
    col2im = staticmethod(unfolding.col2im)

    max_pool = staticmethod(max_pooling.max_pool)
    max_pool_backward = staticmethod(max_pooling.max_pool_backward)
    unpool = staticmethod(max_pooling.unpool)
    gather = staticmethod(max_pooling.gather)
    average_pool = staticmethod(average_pooling.average_pool)
    average_pool_backward = staticmethod(average_pooling.average_pool_backward)

    interpolate = staticmethod(resampling.interpolate)
    interpolate_backward = staticmethod(resampling.interpolate_backward)

    norm_statistics = staticmethod(normalization.norm_statistics)
    norm_apply = staticmethod(normalization.norm_apply)
    norm_forward = staticmethod(normalization.norm_forward)
    norm_activation_backward = staticmethod(normalization.norm_activation_backward)
    norm_backward = staticmethod(normalization.norm_backward)

    masked = staticmethod(elementwise.masked)
    bias_activation = staticmethod(elementwise.bias_activation)
    bias_activation_backward = staticmethod(elementwise.bias_activation_backward)
    channel_sums = staticmethod(elementwise.channel_sums)
