"""Names and conventions of libraries that computed convolutions on CuPy's arrays, over gpucnn's operations.

- `gpucnn.compat.cudnn`: the functions and constants of ``cupy.cudnn``, which CuPy 14 removed. `install` makes them
  importable under CuPy's names, so that code written for them runs as it is; `uninstall` takes them away again.
- `gpucnn.compat.chainer`: Chainer's convolution and pooling functions.
- `gpucnn.compat.from_scratch`: im2col and col2im as in the books *Deep Learning from Scratch* and in DeZero.
- `gpucnn.compat.thinc`: the windows of words of thinc, over which spaCy's networks convolve.

All but the last take arrays of NumPy, CuPy and the simulator, that one of NumPy and CuPy. They return arrays of the
same kind.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["chainer", "cudnn", "from_scratch", "install", "thinc", "uninstall"]

if TYPE_CHECKING:
    from gpucnn.compat import chainer, cudnn, from_scratch, thinc
    from gpucnn.compat.modules import install, uninstall


def __getattr__(name: str) -> Any:
    if name in ("install", "uninstall"):
        return getattr(import_module("gpucnn.compat.modules"), name)
    if name in __all__:
        return import_module(f"gpucnn.compat.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
