"""The operations and their gradients: names, arguments and meaning as in ``torch.nn.functional``.

Arrays in, arrays of the same kind out: NumPy's on the CPU, CuPy's on their GPU, and those of other libraries, through
DLPack, where their memory is. Images are [N, C, *space] or, without a batch, [C, *space], in any memory order.

Every differentiable ``op(array…, **options)`` has an ``op_backward(grad_output, <the same arguments>)``, which returns
a tuple with the gradient of each array argument in order, and None for those without one. ``needs=(True, False, …)``
skips the gradients that are not needed.
"""

from gpucnn.functional.activation import *
from gpucnn.functional.average_pooling import *
from gpucnn.functional.convolution import *
from gpucnn.functional.elementwise import *
from gpucnn.functional.grid_sampling import *
from gpucnn.functional.locally_connected import *
from gpucnn.functional.losses import *
from gpucnn.functional.max_pooling import *
from gpucnn.functional.normalization import *
from gpucnn.functional.padding import *
from gpucnn.functional.response_normalization import *
from gpucnn.functional.row_normalization import *
from gpucnn.functional.smooth_activation import *
from gpucnn.functional.unfolding import *
from gpucnn.functional.upsampling import *

# each module lists its names, once
__all__ = sorted(name for name, value in globals().items() if getattr(value, "__module__", "").startswith(__name__))
