"""The compiled CPU kernels of 64-bit ARM on another machine: QEMU's emulation of its processor computes all calls.

    python tests/emulated.py tests/fuzz.py --dtype float32 --count 100

runs a script in whose process a kernel's call is sent to a program under emulation (`emulated.cpp`), with the memory of
its arrays, which comes back. What checks the kernels of this machine checks those of another one so.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gpucnn.backends.cpu import builds, implicit_gemm, pointwise, smooth, winograd  # noqa: E402
from gpucnn.backends.cpu import library as cpu_library  # noqa: E402
from gpucnn.backends.numpy import threads  # noqa: E402

COMPILER, EMULATOR, SYSTEM = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
VECTOR_BYTES = 16  # of NEON
FLAGS = "-O1 -march=armv8-a"


def why_unavailable() -> str:
    """A sentence that says what is missing, empty if nothing is."""
    missing = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]
    return f"{' and '.join(missing)} not installed: apt-get install g++-aarch64-linux-gnu qemu-user" if missing else ""


class Machine:
    """The program under emulation."""

    def __init__(self, folder: Path) -> None:
        program = folder / "emulated"
        source = Path(__file__).with_suffix(".cpp")
        subprocess.run([COMPILER, "-std=c++20", "-O1", str(source), "-o", str(program), "-ldl", "-pthread"], check=True)
        self._process = subprocess.Popen(
            [EMULATOR, "-L", SYSTEM, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, kernel: tuple[Path, str], params: bytes, arrays: list[Any], workspace: int, items: int) -> int:
        """The result of threads.cpp's ``run``; arrays are changed as the kernel changes them."""
        extents = [None if array is None else byte_bounds(_owner(array)) for array in arrays]
        memory = _merged([extent for extent in extents if extent is not None])
        library, name = kernel
        sent = [*map(_text, (str(builds.library("threads", "float32")), str(library), name)), _text(params)]
        sent.append(struct.pack("=4q", workspace, items, threads.get_num_threads(), len(memory)))
        before = [ctypes.string_at(low, high - low) for low, high in memory]
        sent += [*map(_text, before), struct.pack("=q", len(arrays))]
        for array in arrays:
            at = 0 if array is None else array.__array_interface__["data"][0]
            place = next((i for i, (low, high) in enumerate(memory) if low <= at < high), -1)
            sent.append(struct.pack("=2q", place, at - memory[place][0] if place >= 0 else 0))
        result = struct.unpack("=q", self._answer(b"".join(sent), 8))[0]
        for (low, high), old in zip(memory, before, strict=True):
            new = self._answer(b"", high - low)
            if new != old:  # what is only read may be in memory that cannot be written to
                ctypes.memmove(low, new, high - low)
        return int(result)

    def _answer(self, sent: bytes, count: int) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if sent:
            self._process.stdin.write(sent)
            self._process.stdin.flush()
        answer = self._process.stdout.read(count)
        if len(answer) != count:
            raise RuntimeError(f"the emulated program ended with status {self._process.wait()}")
        return answer


def _owner(array: Any) -> Any:
    """The array that a view is a part of: a kernel writes all stride residues from the first one's place on."""
    return _owner(array.base) if isinstance(array.base, np.ndarray) else array


def _text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("=q", len(content)) + content


def _merged(extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges of addresses that some extents cover."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(extents):
        if found and low < found[-1][1]:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return found


def emulate(folder: Path) -> None:
    """From now on compile this process's kernels for 64-bit ARM, and let a program in `folder` run them."""
    machine = Machine(folder)
    os.environ.update(CXX=COMPILER, GPUCNN_CPU_FLAGS=FLAGS)

    def call(launch: Any, **arrays: Any) -> None:
        taken = [arrays[name] for name in launch.arrays]
        if machine.run(launch.function, launch.params.raw, taken, launch.workspace, launch.items):
            raise MemoryError

    patched: Any = cpu_library
    patched.Launches = lambda *_: None
    patched.Kernel.address = lambda kernel, dtype: (builds.library(kernel.file, dtype), kernel.name)
    patched.Launch.__call__ = call
    replacements: dict[Any, dict[str, Any]] = {
        builds: {"load": lambda path: path, "target_flags": lambda: ()},
        **{module: {"vector_bytes": lambda: VECTOR_BYTES} for module in (implicit_gemm, pointwise, smooth, winograd)},
    }
    for module, names in replacements.items():
        for name, function in names.items():
            assert hasattr(module, name)
            setattr(module, name, function)


def main(script: str, *arguments: str) -> None:
    if why_unavailable():
        sys.exit(why_unavailable())
    sys.argv = [script, *arguments]
    with tempfile.TemporaryDirectory() as folder:
        emulate(Path(folder))
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python tests/emulated.py SCRIPT [arguments]")
    main(*sys.argv[1:])
