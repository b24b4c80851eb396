"""Builds of the CPU kernels: each file of ``kernels/cpu`` as a shared library for each dtype, for the machine at hand.

A file is compiled once for each dtype, with ``SCALAR`` as its type. The build is named after all that it depends on:
the text with its headers, the flags, the processor and the compiler. The compiler of the last complete set is noted
beside it, so that a machine that has no compiler, or none any more, uses what is there.

Those of float32 are found or compiled when the first operation runs (`load_all`), those of float64 when the first of
float64 does, which few programs have. From the first operation on a process computes by them, or by NumPy, for good.
"""

from __future__ import annotations

import ctypes
import os
import platform
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

from gpucnn.backends.numpy.threads import usable_cores
from gpucnn.compilation.cache import cached, is_whole, load
from gpucnn.compilation.compiler import Compiler, CompilerError, find_compiler, hash_of, run
from gpucnn.compilation.files import write_whole
from gpucnn.compilation.trust import not_kept_message, private_folder, safe, why_unsafe
from gpucnn.paths import cache_folder

_PACKAGE = Path(__file__).parents[2]
_FOLDERS = (_PACKAGE / "kernels" / "cpu", _PACKAGE.parent / "kernels" / "cpu")  # in a wheel; in a checkout
_SCALARS = {"float32": "float", "float64": "double"}
DTYPES = tuple(_SCALARS)
FIRST = DTYPES[:1]  # whose builds decide whether a process computes by them

# -ffp-contract=fast: a * b + c is rounded once. Nothing of -ffast-math that changes results: sums have a fixed order.
FLAGS = (
    "-std=c++20",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-exceptions",
    "-fno-rtti",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
)

CLANG_FLAGS = ("-Xclang", "-ffp-contract=fast-honor-pragmas")  # its "fast" disregards uncontracted.hpp

_SLOWEST = ("pooling", "norm_lanes", "depthwise_lanes")  # to compile: first, so that other cores do not wait for them
_LINES_OF_FAILURE = 20  # of a compiler's messages
_MISSING = (
    "compiled CPU kernels need g++ 11 or newer, or clang++ 15 or newer; install one, for instance with your system's "
    "package manager"
)


# --- Sources --------------------------------------------------------------------------------------------------------


@cache
def folder() -> Path:
    """The folder that holds the C++ sources.

    Raises
    ------
    FileNotFoundError
        This installation has none.
    """
    for candidate in _FOLDERS:
        if (candidate / "vectors.hpp").is_file():
            return candidate
    raise FileNotFoundError(
        f"gpucnn: its CPU kernels are in none of {', '.join(map(str, _FOLDERS))}; install gpucnn again"
    )


def files() -> list[str]:
    """The names of the files of kernels, without suffix."""
    return sorted(path.stem for path in folder().glob("*.cpp"))


@cache
def text(file: str) -> str:
    """The source of a file."""
    return (folder() / f"{file}.cpp").read_text(encoding="utf-8")


@cache
def _headers() -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder().glob("*.hpp"))}


def target_flags() -> tuple[str, ...]:
    """The flags that choose this machine's instructions."""
    if platform.machine() in ("x86_64", "AMD64"):
        return ("-march=native", "-mprefer-vector-width=512")
    if platform.machine() in ("aarch64", "arm64"):
        return ("-mcpu=native",)
    return ()


def flags(is_clang: bool = False) -> tuple[str, ...]:
    """The flags of a build but for its dtype; those of GPUCNN_CPU_FLAGS come last, so that they prevail."""
    return (*FLAGS, *CLANG_FLAGS * is_clang, *target_flags(), *os.environ.get("GPUCNN_CPU_FLAGS", "").split())


@cache
def _processor() -> str:
    """What ``native`` stands for: the processor's name and features, those of the first core."""
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant")
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            first = list(takewhile(str.strip, file))  # up to the empty line: with many cores the file is long
    except OSError:
        return platform.processor() or platform.machine()
    return "".join(line for line in first if line.partition(":")[0].strip() in wanted)


# --- What is there --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Build:
    """A file of kernels for a dtype, and where its shared library is or will be."""

    file: str
    dtype: str
    path: Path


def builds() -> list[Build]:
    """All builds, by the compiler of this machine, else by the last one that there was."""
    compiler = find_compiler()
    kept = _kept_folder()
    identity = compiler.identity if compiler else _last_compiler(kept)
    return [_build(file, dtype, identity, kept) for file in files() for dtype in _SCALARS]


def _build(file: str, dtype: str, identity: str, kept: Path) -> Build:
    texts = (text(file), *_headers(), *_headers().values())
    key = hash_of(identity, _processor(), *flags(), _SCALARS[dtype], *texts)
    return Build(file, dtype, kept / f"{file}-{dtype}-{key}.so")


def missing() -> list[Build]:
    """The builds that are not in the cache, or not whole, or where others could change them."""
    return [build for build in builds() if why_unsafe(build.path) or not is_whole(build.path)]


def _kept_folder() -> Path:
    """The folder of the builds; that of this process where there is no home folder."""
    try:
        return cache_folder() / "cpu"
    except RuntimeError as error:
        _warn_not_kept(error)
        return private_folder() / "cpu"


def _note(kept: Path) -> Path:
    """The file that names the compiler of the last complete set of builds."""
    return kept / f"compiler-{hash_of(_processor(), *flags())}.txt"


def _last_compiler(kept: Path) -> str:
    with suppress(OSError):
        return _note(kept).read_text(encoding="utf-8", errors="replace")
    return ""


def _note_compiler(kept: Path, compiler: Compiler) -> None:
    if _last_compiler(kept) != compiler.identity and not why_unsafe(_note(kept)):
        with suppress(OSError):  # it costs machines without a compiler what was compiled, nothing else
            write_whole(_note(kept), compiler.identity.encode())


# --- Compilation ----------------------------------------------------------------------------------------------------


def compiled(wanted: list[Build]) -> Iterator[Build]:
    """Compile builds with as many compilers as there are cores, load them, and yield each when it is done.

    The slowest are first. Processes that start together take the others in different orders, and each what no other has
    compiled yet.

    Raises
    ------
    CompilerError
        There is no compiler, or it refused a program.
    OSError
        Not even a private folder can be written to, or a library cannot be loaded.
    """
    from concurrent.futures import ThreadPoolExecutor, as_completed  # it takes as long to load as all builds

    compiler = _compiler()
    shuffled = random.Random().sample(wanted, len(wanted))  # the program's own random numbers stay as they are
    shuffled.sort(key=lambda build: build.file not in _SLOWEST)
    with ThreadPoolExecutor(min(len(wanted), usable_cores())) as threads:
        asked = {threads.submit(_compile, build, compiler): build for build in shuffled}
        try:
            for future in as_completed(asked):
                build = asked[future]
                path, not_kept = future.result()
                if not_kept is not None:
                    _warn_not_kept(not_kept)
                _libraries[build.file, build.dtype] = load(path)
                yield build
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _compile(build: Build, compiler: Compiler) -> tuple[Path, OSError | None]:
    """The shared library of a build; and where it is in the private folder of this process, why not in the cache."""
    name = f"{build.file}.cpp"
    options = [*flags(compiler.is_clang), f"-DSCALAR={_SCALARS[build.dtype]}"]

    def compile_to(target: Path) -> None:
        sources = target.parent  # as they were when the build was named: somebody may be editing them
        for file, content in {**_headers(), name: text(build.file)}.items():
            (sources / file).write_text(content, encoding="utf-8")
        try:
            run([compiler.path, *options, str(sources / name), "-o", str(target)])
        except CompilerError as error:
            said = "\n".join(str(error).splitlines()[:_LINES_OF_FAILURE])
            message = f"{name} does not compile for {build.dtype} with {compiler.path}:\n{said}"
            raise CompilerError(message) from None

    try:
        return cached(build.path, compile_to), None
    except OSError as error:
        return cached(private_folder() / "cpu" / build.path.name, compile_to), error


_said: set[str] = set()  # warnings of this process


def _warn_not_kept(error: Exception) -> None:
    if "not kept" not in _said:
        _said.add("not kept")
        warnings.warn(not_kept_message(error), RuntimeWarning, stacklevel=2)


def _compiler() -> Compiler:
    found = find_compiler()
    if found is None:
        raise CompilerError(_no_compiler())
    return found


def _no_compiler() -> str:
    chosen = os.environ.get("CXX")
    if chosen:
        return f"compiled CPU kernels need the compiler that CXX names, {chosen!r}, which was not found; correct it"
    return _MISSING


# --- The libraries of this process ----------------------------------------------------------------------------------

Reporter = Callable[[Iterable[Build], int], Iterable[Build]]

_libraries: dict[tuple[str, str], ctypes.CDLL] = {}
_lock = threading.Lock()
_failures: dict[str, str] = {}  # by dtype, why its builds cannot be used; empty once all are loaded


def load_all(report: Reporter | None = None, dtypes: Sequence[str] = DTYPES) -> int:
    """Find or compile all builds for some dtypes, and load them; once a process.

    Parameters
    ----------
    report : function of an iterable and its length, optional
        Shows the progress of what is compiled, and yields it; by default a line on stderr.
    dtypes : sequence of str
        Where there is no compiler, the others have to be there too.

    Returns
    -------
    int
        How many had to be compiled.

    Raises
    ------
    RuntimeError
        They cannot be compiled or loaded, now or the first time; the message says why, and what to do.
    """
    with _lock:
        number, wanted = 0, [dtype for dtype in dtypes if dtype not in _failures]
        if wanted:
            failure = ""
            try:
                number = _load_all(report or progress_line, wanted)
            except (RuntimeError, OSError) as error:
                failure = str(error)
            _failures.update(dict.fromkeys(wanted, failure))
        for dtype in dtypes:
            if _failures[dtype]:
                raise RuntimeError(_failures[dtype])
        return number


def _load_all(report: Reporter, dtypes: Sequence[str]) -> int:
    needed = dtypes if find_compiler() else DTYPES
    absent = [build for build in builds() if build.dtype in needed and not _is_found(build)]
    if absent:
        _compiler()  # before progress is shown of what cannot be done
        for _ in report(compiled(absent), len(absent)):
            pass
    found = find_compiler()
    if found:
        _note_compiler(_kept_folder(), found)
    return len(absent)


def _is_found(build: Build) -> bool:
    """Whether a build is in the cache; it is loaded then."""
    path = safe(build.path)
    if not is_whole(path):
        return False
    _libraries[build.file, build.dtype] = load(path)
    return True


def library(file: str, dtype: str) -> ctypes.CDLL:
    """The library of a file for a dtype, of which all are compiled if they are neither loaded nor in the cache.

    Raises
    ------
    RuntimeError
        As `load_all`.
    """
    if (file, dtype) not in _libraries:
        load_all(dtypes=(dtype,))
    return _libraries[file, dtype]


def why_unavailable() -> str:
    """A sentence that says why the kernels cannot be used here, and what to do; empty if they can, as far as is known.

    Nothing is compiled for it.
    """
    if FIRST[0] in _failures:
        return _failures[FIRST[0]]
    try:
        return "" if find_compiler() or not missing() else _no_compiler()
    except OSError as error:
        return str(error)


def state() -> dict[str, str]:
    """How many of the builds are there, and what compiles the others."""
    found, absent, compiler = len(builds()), len(missing()), find_compiler()
    facts = {"builds": f"{found - absent} of {found} in {_kept_folder()}"}
    if absent:
        facts["builds"] += "; the first operation compiles the others, or python -m gpucnn --build"
    return {**facts, "compiler": compiler.path if compiler else "none, and none is needed"}


def progress_line(done: Iterable[Build], total: int) -> Iterator[Build]:
    """The builds one by one, with a line on stderr: rewritten at a terminal, else only for none and for all."""
    stream = sys.stderr
    if stream is None:  # the program has none
        yield from done
        return
    is_terminal = stream.isatty()

    def show(count: int) -> None:
        line = f"gpucnn: compiling its CPU kernels for this machine, once: {count} of {total}"
        end = "" if is_terminal and count < total else "\n"
        print(f"\r{line}" if is_terminal else line, end=end, file=stream, flush=True)

    show(0)
    count = 0
    try:
        for count, build in enumerate(done, start=1):
            if is_terminal or count == total:
                show(count)
            yield build
    finally:
        if is_terminal and count < total:
            print(file=stream)


def _forget() -> None:
    """Begin anew in the child of a fork, whose parent may have held the lock in another thread."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)
