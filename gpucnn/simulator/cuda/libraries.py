"""The simulated CUDA libraries: their names, and how they are built from the C++ in the folders next to this file.

Each source is compiled to an object file of the cache, under a hash of everything that it was made from, so a change
rebuilds one object and the libraries that it is part of. The libraries are written into a folder of the caller's; they
find one another there, so the folder may be moved.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpucnn.simulator import toolchain
from gpucnn.simulator.errors import CompileError

HERE = Path(__file__).parent
MAX_COMPILERS = 2  # at once: each takes up to half a GiB
WARNINGS = ("-Wall", "-Wextra")
FLAGS = ("-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-pthread", "-ffp-contract=off", *WARNINGS)
LINK_FLAGS = ("-shared", "-pthread", "-Wl,-z,defs", "-Wl,--as-needed", "-Wl,-rpath,$ORIGIN")


@dataclass(frozen=True)
class Library:
    """A simulated library.

    Attributes
    ----------
    name : str
        Of the library, and of the folder of its sources.
    sonames : dict of int to str
        Its file name, which programs look it up by, for each major version of CUDA.
    needs : tuple of str
        The libraries whose functions it calls.
    versions_symbols : bool
        Whether its symbols carry its soname as their version, as NVIDIA's do.
    is_empty : bool
        Whether it has no sources: it is only looked up, nothing of it is called.
    """

    name: str
    sonames: dict[int, str]
    needs: tuple[str, ...] = ("driver",)
    versions_symbols: bool = True
    is_empty: bool = False


# In the order in which they are linked.
LIBRARIES = (
    Library("driver", {12: "libcuda.so.1", 13: "libcuda.so.1"}, needs=(), versions_symbols=False),
    Library("cudart", {12: "libcudart.so.12", 13: "libcudart.so.13"}),
    Library("nvrtc", {12: "libnvrtc.so.12", 13: "libnvrtc.so.13"}),
    Library("cublas", {12: "libcublas.so.12", 13: "libcublas.so.13"}),
    Library("cublasLt", {12: "libcublasLt.so.12", 13: "libcublasLt.so.13"}, needs=(), is_empty=True),
    Library("curand", {12: "libcurand.so.10", 13: "libcurand.so.10"}),
    Library("cufft", {12: "libcufft.so.11", 13: "libcufft.so.12"}),
)
MAJORS = (12, 13)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', re.MULTILINE)


def build(
    folder: Path,
    *,
    headers: Path,
    cuda_version: str = "12.9",
    sources: Path = HERE,
    report: Callable[[str], object] = lambda done: None,
) -> dict[str, Path]:
    """Build the simulated CUDA libraries into a folder; what the cache has is not compiled again.

    Parameters
    ----------
    folder : Path
        Where the libraries go. A library there is replaced, never written to, so running programs keep theirs.
    headers : Path
        The include folder of NVIDIA's runtime, of the same version of CUDA.
    cuda_version : str
        The version that the libraries report, "12.9": its major part chooses their names.
    sources : Path
        The folder with a folder of C++ for each library.
    report : callable
        Takes the name of each file that was compiled or linked.

    Returns
    -------
    dict of str to Path
        The file of each library, by the name of the library in `LIBRARIES`.

    Raises
    ------
    CompileError
        A source that does not compile, with the compiler's messages; a folder without headers; no compiler.
    """
    major = int(cuda_version.partition(".")[0])
    if major not in MAJORS:
        raise ValueError(f"cuda_version must be of CUDA {' or '.join(map(str, MAJORS))}, got {cuda_version!r}")
    if not (headers / "cuda.h").is_file():
        raise CompileError(f"the simulated CUDA libraries need NVIDIA's headers: there is no cuda.h in {headers}")
    folder.mkdir(parents=True, exist_ok=True)
    job = _Job(sources, headers, cuda_version, report)
    objects = job.compile_all()
    built: dict[str, Path] = {}
    for library in LIBRARIES:
        target = folder / library.sonames[major]
        cached = job.link(library, target.name, objects[library.name], [built[need] for need in library.needs])
        _replace(cached, target)
        built[library.name] = target
    return built


def sources_of(library: Library, sources: Path = HERE) -> list[Path]:
    """The C++ sources of a library, in the order in which they are linked."""
    return sorted((sources / library.name).glob("*.cpp"))


def parallel_compilers() -> int:
    """How many compilers may run at once."""
    return min(MAX_COMPILERS, len(os.sched_getaffinity(0)))


class _Job:
    """What one build has in common: sources, headers, the compiler and its flags."""

    def __init__(self, sources: Path, headers: Path, cuda_version: str, report: Callable[[str], object]) -> None:
        self.sources = sources
        self.compiler = toolchain.compiler()
        self.report = report
        major, minor = (int(part) for part in cuda_version.split(".")[:2])
        self.folders = (sources, sources / "host_headers", toolchain.HERE)
        self.includes = (*(f"-I{folder}" for folder in self.folders), f"-isystem{headers}")
        self.flags = (*FLAGS, *toolchain.processor_flags(), f"-DCUDASIM_CUDA_VERSION={major * 1000 + minor * 10}")
        self.common = toolchain.hash_of(self.compiler.identity, *self.flags, identity(headers))

    def compile_all(self) -> dict[str, list[Path]]:
        """The object files of each library."""
        with ThreadPoolExecutor(parallel_compilers()) as pool:
            started = {
                library.name: [pool.submit(self.compile, library, path) for path in self.checked_sources(library)]
                for library in LIBRARIES
            }
            try:
                return {name: [job.result() for job in jobs] for name, jobs in started.items()}
            except CompileError:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def checked_sources(self, library: Library) -> list[Path]:
        """The sources of a library; an error if there are none."""
        found = sources_of(library, self.sources)
        if not found and not library.is_empty:
            raise CompileError(f"the sources of the simulated library {library.name} are not in {self.sources}")
        return found

    def compile(self, library: Library, source: Path) -> Path:
        """The object file of a source, from the cache if it is there."""
        parts = [path.read_text(encoding="utf-8") for path in (source, *included_by(source, self.folders))]
        key = toolchain.hash_of(self.common, *parts)

        def compile_to(target: Path) -> None:
            command = [self.compiler.path, *self.flags, *self.includes, "-c", str(source), "-o", str(target)]
            try:
                toolchain.run(command)
            except CompileError as error:
                message = f"{library.name}/{source.name} of the simulated CUDA libraries does not compile:\n{error}"
                raise CompileError(message, file=str(source)) from None
            self.report(f"{library.name}/{source.name}")

        return toolchain.cached(f"cuda-{library.name}-{source.stem}-{key}.o", compile_to)

    def link(self, library: Library, soname: str, objects: Sequence[Path], needs: Sequence[Path]) -> Path:
        """The shared library of object files, from the cache if it is there."""
        flags = (*LINK_FLAGS, f"-Wl,-soname,{soname}")
        used = [path.read_bytes() for path in needs]
        digests = [hashlib.sha256(data).hexdigest() for data in used]
        key = toolchain.hash_of(self.compiler.identity, soname, *flags, *(path.name for path in objects), *digests)

        def link_to(target: Path) -> None:
            extra = []
            if library.versions_symbols:
                script = target.with_suffix(".map")
                script.write_text(f"{soname} {{ global: *; }};\n", encoding="utf-8")
                extra = [f"-Wl,--version-script={script}"]
            inputs = [str(path) for path in (*objects, *needs)]
            try:
                toolchain.run([self.compiler.path, *flags, *extra, *inputs, "-o", str(target), "-ldl"])
            except CompileError as error:
                raise CompileError(f"the simulated {soname} does not link:\n{error}") from None
            self.report(soname)

        return toolchain.cached(f"cuda-{library.name}-{key}.so", link_to)


def included_by(source: Path, folders: Sequence[Path]) -> list[Path]:
    """The headers in `folders`, and next to what includes them, that a source includes; and those that they include."""
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        path = waiting.pop()
        names = _INCLUDE.findall(path.read_text(encoding="utf-8"))
        for name in names:
            there = [folder / name for folder in (path.parent, *folders) if (folder / name).is_file()]
            if there and there[0].resolve() not in found:
                found.add(there[0].resolve())
                waiting.append(there[0].resolve())
    return sorted(found)


def identity(folder: Path) -> str:
    """A hash of the names and contents of a folder's headers."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".h", ".hpp", ".inc"):
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _replace(source: Path, target: Path) -> None:
    """Make `target` a copy of `source`, unless it is one; in one step, as programs may have it loaded."""
    if target.is_file() and target.read_bytes() == source.read_bytes():
        return
    with tempfile.TemporaryDirectory(prefix="new-", dir=target.parent) as scratch:
        copy = Path(scratch) / target.name
        shutil.copy(source, copy)
        os.replace(copy, target)
