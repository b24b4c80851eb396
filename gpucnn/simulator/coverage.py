"""Line coverage of the kernels: builds that count lines, and the sums of their counts.

Each source has its own folder of gcov's files under ``gpucnn.paths.cache_folder() / "simulator" / "coverage"``. The
counts of all processes that ran its kernels add up there until `reset`.

Run kernels under ``options(mode="coverage")``; `report` lists the lines that ran.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpucnn.compilation.trust import deny_others, make_folder, safe, why_unsafe
from gpucnn.simulator import toolchain
from gpucnn.simulator.compilation import Source, compile_kernel, kernel_flags, lowering_identity
from gpucnn.simulator.errors import CompileError

_DUMP = """
#line 1 "<coverage>"
extern "C" void __gcov_dump();
extern "C" void __gcov_reset();
GPUCNN_EXPORTED void gpucnn_coverage_dump() {
  __gcov_dump();
  __gcov_reset();
}
"""

_loaded: set[Path] = set()  # modules of this process, whose counts are still in memory


@dataclass(frozen=True)
class FileCoverage:
    """The lines of one source file that hold code: those that ran in any module, and those that did not."""

    executed: frozenset[int]
    missed: frozenset[int]

    @property
    def share(self) -> float:
        """Executed lines as a share of all that hold code."""
        count = len(self.executed) + len(self.missed)
        return len(self.executed) / count if count else 1.0


def build(text: str, name: str, runtime: Path) -> Path:
    """Compile a source that counts its lines; its shared library."""
    compiler = toolchain.compiler()
    if compiler.is_clang:
        raise CompileError("line coverage of kernels needs g++ and its gcov; install it, or take CXX=g++")
    flags = kernel_flags("coverage")
    key = toolchain.hash_of(compiler.identity, runtime.name, lowering_identity(), name, text, *flags)
    target = _folder() / key / "kernel.so"
    make_folder(target.parent)
    with _locked(target.parent):  # gcov's files must stay where the compiler put them: no renaming here
        if why_unsafe(target) or not toolchain.is_whole(target):
            compile_kernel(Source(text, name, epilogue=_DUMP), "coverage", runtime, target)
            toolchain.seal(target)
            deny_others(target)
    _loaded.add(target)
    return target


def reset() -> None:
    """Forget all counts."""
    _dump()
    for counts in _folder().glob("*/*.gcda"):
        counts.unlink(missing_ok=True)


def report() -> dict[str, FileCoverage]:
    """The lines of each source file, by the name that its ``#line`` directives give it."""
    gcov = shutil.which("gcov")
    if gcov is None:
        raise CompileError("gcov, which belongs to g++, was not found")
    _dump()
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for notes in sorted(_folder().glob("*/*.gcda")):
        for file, line, count in _lines(gcov, notes):
            counts[file][line] += count
    return {
        file: FileCoverage(frozenset(+lines), frozenset(line for line in lines if not lines[line]))
        for file, lines in sorted(counts.items())
    }


def _lines(gcov: str, counts: Path) -> Iterator[tuple[str, int, int]]:
    """File, line and count of each line in the kernels' own files."""
    command = [gcov, "--json-format", "--stdout", "--object-directory", str(counts.parent), str(counts)]
    for document in toolchain.run(command).splitlines():
        for file in json.loads(document)["files"]:
            name = file["file"]
            if Path(name).is_absolute() or name.startswith("<"):
                continue  # the shim and the standard library
            for line in file["lines"]:
                yield name, line["line_number"], line["count"]


def _dump() -> None:
    """Write the counts of this process."""
    for path in _loaded:
        library: ctypes.CDLL = toolchain.load(path)
        library.gpucnn_coverage_dump()


def _folder() -> Path:
    return safe(toolchain.folder() / "coverage")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time build in `folder`."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
