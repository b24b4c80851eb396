"""`gpucnn.compat.cudnn` as the modules of CuPy that CuPy 14 removed."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType

from gpucnn.installing import optional

NAMES = ("cupy.cuda.cudnn", "cupy.cudnn", "cupyx.cudnn")
_FLAG = "cudnn_enabled"  # of cupy.cuda, which libraries asked for


class _StandIn(Loader):
    """The loader of the modules, by which they are told from CuPy's own."""

    def exec_module(self, module: ModuleType) -> None:
        """Give a module all names of `gpucnn.compat.cudnn`."""
        source = import_module("gpucnn.compat.cudnn")
        module.__doc__ = source.__doc__
        for name in ("__all__", "__getattr__", *source.__all__):
            setattr(module, name, getattr(source, name))


def install() -> None:
    """Make `gpucnn.compat.cudnn` importable as ``cupy.cudnn``, ``cupyx.cudnn`` and ``cupy.cuda.cudnn``.

    Call it before the program or library that looks for them is imported. It imports CuPy; called again, it has no
    effect.

    Raises
    ------
    ModuleNotFoundError
        CuPy is not installed.
    RuntimeError
        This CuPy has such a module: versions before 14, whose own ones stay.

    See Also
    --------
    uninstall

    Notes
    -----
    Each of the three is a module with a spec, which `import` statements and `importlib.util.find_spec` find, and an
    attribute of its package. ``cupy.cuda.cudnn_enabled`` is True.
    """
    optional("install", "cupy", "cuda12")
    missing = [name for name in NAMES if not _is_stand_in(name)]
    for name in missing:
        if name in sys.modules or find_spec(name) is not None:
            version = sys.modules["cupy"].__version__
            raise RuntimeError(f"install: CuPy {version} has {name}, expected CuPy 14 or later, which has none")
    for name in missing:
        module = module_from_spec(ModuleSpec(name, loader := _StandIn()))
        loader.exec_module(module)
        sys.modules[name] = module
        package, _, attribute = name.rpartition(".")
        setattr(import_module(package), attribute, module)
    setattr(sys.modules["cupy.cuda"], _FLAG, True)


def uninstall() -> None:
    """Take away what `install` made importable; without it, do nothing.

    Programs that have imported one of the modules keep it.
    """
    for name in filter(_is_stand_in, NAMES):
        package, _, attribute = name.rpartition(".")
        module = sys.modules.pop(name)
        if vars(sys.modules[package]).get(attribute) is module:
            delattr(sys.modules[package], attribute)
    if "cupy.cuda" in sys.modules:
        vars(sys.modules["cupy.cuda"]).pop(_FLAG, None)


def _is_stand_in(name: str) -> bool:
    """Whether `install` made the module of this name."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return isinstance(getattr(spec, "loader", None), _StandIn)
