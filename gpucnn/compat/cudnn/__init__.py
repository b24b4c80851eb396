"""CuPy's cuDNN functions, which CuPy 14 removed, over gpucnn's operations.

They have the names, arguments and results of ``cupy.cudnn`` in CuPy 13, and the constants of ``cupy.cuda.cudnn``, for
arrays of NumPy, CuPy and the simulator. What differs:

- Results repeat bit for bit, whatever `deterministic` says, and no convolution is refused for its workspace.
- Arrays have any strides, those that are written to as well. Images have one to three spatial axes.
- NaN propagates in pooling and activations.
- Wrong arguments raise `TypeError` or `ValueError`, where cuDNN's status raised ``CuDNNError``.

There are no descriptors and no handles, nor functions for recurrent networks, dropout, CTC and fused operations.
"""

from __future__ import annotations

from typing import Any

from gpucnn.compat.cudnn import batch_normalization, constants, convolution, elementwise, library, pooling
from gpucnn.compat.cudnn.batch_normalization import *
from gpucnn.compat.cudnn.constants import *
from gpucnn.compat.cudnn.convolution import *
from gpucnn.compat.cudnn.elementwise import *
from gpucnn.compat.cudnn.library import *
from gpucnn.compat.cudnn.pooling import *

__all__ = sorted(
    name
    for module in (batch_normalization, constants, convolution, elementwise, library, pooling)
    for name in module.__all__
)


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"{__name__} has no {name}: of CuPy's cuDNN functions there are those for convolution, pooling, batch "
        "normalization, activations and softmax, without descriptors or handles"
    )
