"""Kernels with a mistake planted in each: how the tests run them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpucnn.simulator import Module, SimulatorError, asarray, asnumpy, toolchain
from gpucnn.simulator.arrays import Array

needs_gcc = pytest.mark.skipif(
    getattr(toolchain.find_compiler(), "is_clang", False), reason="only g++ can do this, and clang++ is the compiler"
)
KERNELS = Path(__file__).parent / "kernels"


@cache
def module(file: str) -> Module:
    """The source kernels/`file`."""
    text = (KERNELS / file).read_text(encoding="utf-8")
    return Module(f'#line 1 "{file}"\n{text}', file)


def line_of(file: str, mark: str) -> int:
    """The one line of kernels/`file` that holds `mark`."""
    lines = (KERNELS / file).read_text(encoding="utf-8").splitlines()
    (number,) = (number for number, line in enumerate(lines, 1) if mark in line)
    return number


def argument(value: Any) -> Any:
    """Arrays of the simulator from NumPy's, an int parameter from a Python number; others stay."""
    if isinstance(value, np.ndarray) and value.ndim:
        return asarray(value)
    return np.int32(value) if isinstance(value, int) else value


def fails(
    file: str,
    kind: type[SimulatorError] | tuple[type[SimulatorError], ...],
    marks: tuple[str, ...],
    kernel: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    *args: Any,
    shared_mem: int = 0,
) -> str:
    """The message of a launch's error, which must be of just this kind, at a line that holds one of `marks`, if any."""
    with pytest.raises(kind) as caught:
        launch(file, kernel, grid, block, *args, shared_mem=shared_mem)
    error = caught.value
    assert type(error) in (kind if isinstance(kind, tuple) else (kind,))
    assert (error.file, error.kernel) == (file, kernel)
    assert not marks or error.line in [line_of(file, mark) for mark in marks]
    assert str(error).startswith(f"{file}:{error.line}: ")
    return str(error)


def launch(
    file: str, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], *args: Any, shared_mem: int = 0
) -> list[Any]:
    """Launch a kernel of kernels/`file`; what the arrays among `args` then hold."""
    taken = [argument(value) for value in args]
    module(file).function(kernel)(grid, block, tuple(taken), shared_mem)
    return [asnumpy(value) for value in taken if isinstance(value, Array)]
