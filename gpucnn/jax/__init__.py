"""gpucnn's operations for JAX: on its arrays, under `jax.jit`, `jax.grad` and `jax.vmap`.

Programs that JAX compiles call gpucnn on the host, by `jax.pure_callback`, with shapes and dtypes from
`gpucnn.geometry`: on a GPU that copies there and back. Reverse-mode derivatives are there, of any order; forward-mode
ones (`jax.jvp`, `jax.hessian`) are not. The functions have the names and meanings of those in `gpucnn.functional`.

JAX is imported here and nowhere else in gpucnn.
"""

from gpucnn.jax.convolution import *
from gpucnn.jax.normalization import *
from gpucnn.jax.pooling import *

# each module lists its names, once
__all__ = sorted(name for name, value in globals().items() if getattr(value, "__module__", "").startswith(__name__))
