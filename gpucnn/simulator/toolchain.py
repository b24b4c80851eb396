"""The C++ compiler: its choice, its flags, and the cache of its results.

Results live in ``gpucnn.paths.cache_folder() / "simulator"``, each under a hash of everything that it was made
from. A file is written under another name and renamed, so several processes may build it concurrently; it ends in a
checksum, so a truncated one is detected and rebuilt.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from gpucnn.paths import cache_folder
from gpucnn.simulator.errors import CompileError

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
_SEAL = b"gpucnn-sealed:"

MISSING = (
    "the simulator needs g++ 11 or newer, or clang++; install one, for instance with your system's package manager"
)


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler, and the facts that identify its version without running it."""

    path: str
    is_clang: bool
    identity: str


@cache
def _find(chosen: str | None, search_path: str | None) -> Compiler | None:
    for name in [chosen] if chosen else ["g++", "clang++"]:
        found = shutil.which(name, path=search_path)
        if found:
            real = Path(found).resolve()
            status = real.stat()
            return Compiler(
                found, "clang" in real.name or "clang" in name, f"{real} {status.st_size} {status.st_mtime_ns}"
            )
    return None


def find_compiler() -> Compiler | None:
    """The compiler that CXX names, else g++, else clang++; None if there is none."""
    return _find(os.environ.get("CXX"), os.environ.get("PATH"))


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
    result = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if result.returncode:
        raise CompileError(result.stderr.strip() or f"{command[0]} failed with exit status {result.returncode}")
    return result.stdout


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


def hash_of(*parts: str) -> str:
    """A short name for the result of these parts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


# --- The cache ----------------------------------------------------------------------------------------------------


_made = threading.local()


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The file `name` of the cache, made by `build` if it is not there or not whole."""
    path = folder() / name
    if is_whole(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompileError(f"cannot make the cache folder {path.parent}: {error}; set GPUCNN_CACHE_DIR") from error
    _announce(path.parent)
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as scratch:
        target = Path(scratch) / path.name
        build(target)
        seal(target)
        os.replace(target, path)
    _made.files = made() + 1
    return path


@cache
def _announce(kept_in: Path) -> None:
    """Report at a terminal, once, that something is being compiled."""
    if sys.stderr.isatty():
        said = f"simulator: compiling kernels with {compiler().path}, seconds each; kept in {kept_in}"
        print(said, file=sys.stderr, flush=True)


def made() -> int:
    """The number of files that this thread has built, as they were not in the cache."""
    files: int = getattr(_made, "files", 0)
    return files


def seal(path: Path) -> None:
    """Append a checksum; a loader does not look behind the end of a shared library."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("ab") as file:
        file.write(_SEAL + digest.encode())


def content(path: Path) -> bytes:
    """What a file of the cache held before its checksum was appended."""
    return path.read_bytes().rpartition(_SEAL)[0]


def is_whole(path: Path) -> bool:
    """Whether a file is there and its checksum is right."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    body, mark, digest = data.rpartition(_SEAL)
    return bool(mark) and hashlib.sha256(body).hexdigest().encode() == digest


@cache
def load(path: Path) -> ctypes.CDLL:
    """The shared library at `path`."""
    return ctypes.CDLL(str(path))
