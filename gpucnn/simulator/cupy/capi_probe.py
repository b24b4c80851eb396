"""Print what an extension module offers to other modules. A script for the Python of the environment: it needs nothing.

A process for each module: a module can be loaded only once, and others must find it under its name.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import re
import sys
from typing import Any


def interface_of(name: str, path: str) -> dict[str, str]:
    """The signatures of a module's C functions, and the sizes of the objects of its classes.

    Parameters
    ----------
    name : str
        The full name under which the module is imported.
    path : str
        Its file.

    Returns
    -------
    dict of str to str
        A description by the name of the function or class.
    """
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None:
        raise ImportError(f"{path} is not an extension module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    functions: dict[str, Any] = getattr(module, "__pyx_capi__", {})
    signatures = {function: _signature(capsule) for function, capsule in functions.items()}
    classes = {
        key: f"objects of {value.__basicsize__} bytes"
        for key, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == name
    }
    return signatures | classes


def _signature(capsule: Any) -> str:
    """The name of a capsule, which Cython makes the C function's signature."""
    found = re.search(r'"(.*)"', repr(capsule))
    return found.group(1) if found else "a function without a signature"


if __name__ == "__main__":
    print(json.dumps(interface_of(sys.argv[1], sys.argv[2])))
