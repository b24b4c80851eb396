"""Python with the compiled CPU kernels under a sanitizer of GCC: what they read, write and compute is checked.

    python tests/sanitized.py address tests/fuzz.py --dtype float32
    python tests/sanitized.py thread -m pytest -s --backend=compiled tests/cpu_backend/test_cpu_threads.py

``address`` is AddressSanitizer with UndefinedBehaviorSanitizer, ``thread`` is ThreadSanitizer. The first finding ends
the program with a report. The sanitizer's library is loaded before Python, so it knows all arrays, and each buffer
that kernels share is as long as it has to be. The kernels of float32 are compiled beforehand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gpucnn.backends.cpu import builds, depthwise, depthwise_groups
from gpucnn.backends.cpu import library as cpu_library
from gpucnn.backends.numpy.threads import usable_cores

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "-O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all"
# Without two that take compilers long: AddressSanitizer finds the same
CHECKS = {"address": "address,undefined -fno-sanitize=null,object-size", "thread": "thread"}
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}
OPTIONS = {
    # Python itself leaks; a test asks for too much memory
    "ASAN_OPTIONS": "detect_leaks=0 allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1 die_after_fork=0 allocator_may_return_null=1",
    "PYTHONMALLOC": "malloc",
    "OPENBLAS_NUM_THREADS": "1",
}


def library(kind: str) -> str | None:
    """The path of a sanitizer's library, None where g++ or the library is not installed."""
    try:
        command = ["g++", f"-print-file-name={LIBRARIES[kind]}"]
        path = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return None
    return str(path.resolve()) if path.is_absolute() else None


def environment(kind: str) -> dict[str, str]:
    """Environment variables of such a program, but for LD_PRELOAD."""
    flags = f"{FLAGS} -fsanitize={CHECKS[kind]}"
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    return {
        **OPTIONS,
        "CXX": "g++",
        "GPUCNN_CPU_FLAGS": flags,
        "PYTHONPATH": path,
    }


def exact_buffers() -> None:
    """In such a program, give each call buffers of the size that it asks for, not larger ones that a thread keeps."""
    if "-fsanitize" in os.environ.get("GPUCNN_CPU_FLAGS", ""):
        for module in (cpu_library, depthwise, depthwise_groups):
            module.scratch = lambda name, shape, dtype, most=0: np.empty(shape, dtype)  # type: ignore[attr-defined]


def build(dtypes: list[str]) -> None:
    """Compile what is not in the cache yet: compilers take half as long again with the sanitizer's library."""
    compiler = builds._compiler()
    with ThreadPoolExecutor(usable_cores()) as threads:
        wanted = [build for build in builds.missing() if build.dtype in dtypes]
        list(threads.map(lambda build: builds._compile(build, compiler), wanted))


def main(kind: str, *arguments: str) -> None:
    """Become Python with these arguments, with a sanitizer."""
    preloaded = library(kind)
    if preloaded is None:
        sys.exit(f"{LIBRARIES[kind]} is not installed: it comes with g++")
    os.environ.update(environment(kind))
    build(["float32"])
    os.execve(sys.executable, [sys.executable, *arguments], {**os.environ, "LD_PRELOAD": preloaded})


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in CHECKS:
        sys.exit(f"usage: python tests/sanitized.py {{{','.join(CHECKS)}}} arguments of Python")
    main(*sys.argv[1:])
