"""gpucnn's operations for PyTorch: on tensors, with its signatures, followed by autograd and `torch.compile`.

Each function calls an operator ``torch.ops.gpucnn.…`` that computes in the tensors' memory: on the CPU by gpucnn's CPU
backends, on CUDA by its kernels through CuPy, on PyTorch's current stream. Derivatives of any order are there, as are
`torch.vmap` and autocast. What the functions take beyond PyTorch's, and how results differ from PyTorch's, is said
in `gpucnn.functional`, whose names they have.

PyTorch is imported here and nowhere else in gpucnn.
"""

from gpucnn.torch.convolution import *
from gpucnn.torch.normalization import *
from gpucnn.torch.pooling import *

# each module lists its names, once
__all__ = sorted(name for name, value in globals().items() if getattr(value, "__module__", "").startswith(__name__))
