"""A check that a module which was compiled anew offers CuPy's other modules the same C functions as the wheel's.

Modules of Cython call one another's C functions through pointers, which they look up by name and signature when they
are imported, and use one another's objects by their sizes. A difference is looked for when the module is built.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gpucnn.simulator.cupy import capi_probe
from gpucnn.simulator.cupy.downloads import BuildError, run


def check_interface(
    wheel_module: Path,
    rebuilt_module: Path,
    *,
    name: str = "cupy_backends.cuda.api.runtime",
    python: Path | None = None,
) -> int:
    """Check that a module which was compiled anew can stand in the place of the wheel's.

    Parameters
    ----------
    wheel_module, rebuilt_module : Path
        The two files.
    name : str
        The full name of the module, which must be one that can be imported before CuPy is.
    python : Path, optional
        The Python of the environment that CuPy is installed in; by default the one that runs this.

    Returns
    -------
    int
        The number of functions and classes that were compared.

    Raises
    ------
    BuildError
        If something is missing or has another signature or size, or a file cannot be imported.
    """
    executable = python or Path(sys.executable)
    wheel, rebuilt = (_interface(executable, name, path) for path in (wheel_module, rebuilt_module))
    differences = [
        f"{key}: {wheel[key]} in the wheel, {rebuilt.get(key, 'missing')} as compiled anew"
        for key in sorted(wheel)
        if wheel[key] != rebuilt.get(key)
    ]
    if differences:
        listed = "\n  ".join(differences)
        raise BuildError(f"{name} as compiled anew does not fit CuPy's wheel:\n  {listed}")
    return len(wheel)


def _interface(python: Path, name: str, path: Path) -> dict[str, str]:
    answer = run([python, capi_probe.__file__, name, path], f"importing {path} as {name}")
    found: dict[str, str] = json.loads(answer.splitlines()[-1])
    return found
