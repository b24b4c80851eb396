"""The C++ compiler's flags for the simulator, and its results in ``gpucnn.paths.cache_folder() / "simulator"``."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from gpucnn.compilation import cache as cache_of_files
from gpucnn.compilation import compiler as compiler_of_machine
from gpucnn.compilation.cache import content, is_whole, load, made, seal
from gpucnn.compilation.compiler import Compiler, CompilerError, find_compiler, hash_of
from gpucnn.compilation.trust import safe
from gpucnn.paths import cache_folder
from gpucnn.simulator.errors import CompileError

__all__ = ["content", "find_compiler", "hash_of", "is_whole", "load", "made", "seal"]

HERE = Path(__file__).parent
RUNTIME_FLAGS = ("-std=c++17", "-O2", "-g1", "-fPIC", "-shared", "-fvisibility=default", "-pthread")
KERNEL_FLAGS = (
    "-std=c++17",
    "-fPIC",
    "-w",
    "-fno-exceptions",
    "-fno-asynchronous-unwind-tables",
    "-fsigned-char",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fvisibility=hidden",
)
_LINES = ("-gdwarf-4", "-g1")  # some addr2line mistake a file of version 5; in the other order g++ takes -g2
_UNDEFINED_BEHAVIOUR = "alignment,shift,integer-divide-by-zero,signed-integer-overflow"

MISSING = (
    "the simulator needs g++ 11 or newer, or clang++; install one, for instance with your system's package manager"
)


def availability() -> str:
    """Either "available" or a sentence that says what is missing and what to do."""
    if not sys.platform.startswith("linux"):
        return f"the simulator needs Linux, this is {sys.platform}; a Linux container will do"
    if find_compiler():
        return "available"
    chosen = os.environ.get("CXX")
    return f"the simulator did not find {chosen!r}, the compiler that CXX names; correct it" if chosen else MISSING


def compiler() -> Compiler:
    """The compiler, or a CompileError that says what to install."""
    found = find_compiler()
    if found is None:
        raise CompileError(availability())
    return found


@cache
def processor_flags() -> tuple[str, ...]:
    """Flags for a fused multiply-add and half conversions in hardware, where there are any."""
    umath: Any = import_module("numpy._core._multiarray_umath")
    wanted = {"FMA3": "-mfma", "F16C": "-mf16c"}
    return tuple(flag for feature, flag in wanted.items() if umath.__cpu_features__.get(feature))


def mode_flags(mode: str, is_clang: bool) -> tuple[str, ...]:
    """The flags that a mode adds for a kernel."""
    # What no kernel calls is not compiled: headers hold many functions.
    whole = () if is_clang else ("-fwhole-program",)
    if mode == "fast":
        return ("-O2", "-g0", "-DGPUCNN_CHECKED=0", *whole)
    if mode == "coverage":
        return ("-O0", *_LINES, "--coverage", "-DGPUCNN_CHECKED=0")
    bounds = "array-bounds" if is_clang else "bounds"
    blocks = ("-fsanitize-coverage=trace-pc",) if mode == "profile" else ()
    sanitizers = ("-fsanitize=thread", f"-fsanitize={bounds},{_UNDEFINED_BEHAVIOUR}", *blocks)
    flags = ("-O1", *_LINES, "-DGPUCNN_CHECKED=1", *whole, *sanitizers)
    if is_clang:
        return (*flags, "-mllvm", "-tsan-instrument-func-entry-exit=0")
    return (*flags, "-fno-tree-loop-distribute-patterns", "--param", "tsan-instrument-func-entry-exit=0")


@cache
def sources_identity() -> str:
    """A hash of the runtime and the shim."""
    digest = hashlib.sha256()
    for folder in ("include", "runtime"):
        for path in sorted((HERE / folder).iterdir()):
            if path.suffix in (".h", ".cpp"):
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


# --- Running it ---------------------------------------------------------------------------------------------------


def run(command: list[str], text: str | None = None) -> str:
    """The output of a command; a CompileError with its messages if it fails."""
    try:
        return compiler_of_machine.run(command, text)
    except CompilerError as error:
        raise CompileError(str(error)) from None


def runtime(context_switch: str) -> Path:
    """The runtime as a shared library."""
    found = compiler()
    forced = ("-DGPUCNN_SIMULATOR_UCONTEXT",) if context_switch == "ucontext" else ()
    flags = (*RUNTIME_FLAGS, *processor_flags(), *forced)
    key = hash_of(found.identity, sources_identity(), *flags)

    def build(target: Path) -> None:
        sources = [str(path) for path in sorted((HERE / "runtime").glob("*.cpp"))]
        name = f"-Wl,-soname,{target.name.partition('@')[0]}"
        run([found.path, *flags, name, *sources, "-o", str(target)])

    return cached(f"runtime-{key}.so", build)


def folder() -> Path:
    """The folder of compiled files."""
    return cache_folder() / "simulator"


# --- The cache ----------------------------------------------------------------------------------------------------


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The file `name` of the cache, made by `build` if it is not there or not whole.

    It is in a private folder of this process if others could change it in the cache.
    """
    path = safe(folder() / name)

    def announced(target: Path) -> None:
        _announce(path.parent)
        build(target)

    try:
        return cache_of_files.cached(path, announced)
    except OSError as error:
        raise CompileError(f"cannot write to the cache folder {path.parent}: {error}; set GPUCNN_CACHE_DIR") from error


@cache
def _announce(kept_in: Path) -> None:
    """Report at a terminal, once, that something is being compiled."""
    if sys.stderr.isatty():
        said = f"simulator: compiling kernels with {compiler().path}, seconds each; kept in {kept_in}"
        print(said, file=sys.stderr, flush=True)
