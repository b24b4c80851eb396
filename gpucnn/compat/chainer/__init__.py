"""Chainer's functions of the convolution family, on plain arrays.

Names, arguments and defaults are those of ``chainer.functions`` and, of `im2col_gpu`, `col2im_gpu` and the sizes, of
``chainer.utils.conv``. They take and return arrays of NumPy, CuPy and the simulator, and keep no graph: gradients are
those of `gpucnn.functional`.
"""

from gpucnn.compat.chainer.columns import *
from gpucnn.compat.chainer.convolution import *
from gpucnn.compat.chainer.pooling import *
from gpucnn.compat.chainer.unpooling import *

# each module lists its names, once
__all__ = sorted(name for name, value in globals().items() if getattr(value, "__module__", "").startswith(__name__))
