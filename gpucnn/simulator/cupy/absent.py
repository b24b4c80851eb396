"""Libraries of CUDA that are not simulated, but that modules of CuPy are linked with and cannot be imported without.

Each becomes a library whose functions say that they are not simulated, by name, and return the library's status for
"not supported". The names are those that the modules of the wheel ask for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gpucnn.simulator import toolchain
from gpucnn.simulator.cupy.downloads import run
from gpucnn.simulator.cupy.modules import Python

FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared")


@dataclass(frozen=True)
class Absent:
    """A library that is not simulated.

    Attributes
    ----------
    name : str
        Of the library, with which its functions' names begin, too.
    sonames : dict of int to str
        Its file name for each major version of CUDA.
    not_supported : int
        What its functions return, as its documentation has it.
    """

    name: str
    sonames: dict[int, str]
    not_supported: int


LIBRARIES = (
    Absent("nvJitLink", {12: "libnvJitLink.so.12", 13: "libnvJitLink.so.13"}, 0),  # only loaded, before cuSPARSE
    Absent("cusparse", {12: "libcusparse.so.12", 13: "libcusparse.so.12"}, 10),
    Absent("cusolver", {12: "libcusolver.so.11", 13: "libcusolver.so.12"}, 9),
)

_SOURCE = """#include <stdio.h>
static int absent(const char* name) {{
  fprintf(stderr, "simulated CUDA: %s is not simulated\\n", name);
  return {status};
}}
extern "C" {{
{functions}
}}
"""


def build(python: Python, cuda_major: int, folder: Path) -> dict[str, Path]:
    """Build the libraries into a folder, for the CuPy of an environment; the file of each, by its name."""
    built = {}
    for library in LIBRARIES:
        target = folder / library.sonames[cuda_major]
        made = compiled(source_of(library, functions_of(library, python.site_packages)), target.name)
        target.unlink(missing_ok=True)
        target.write_bytes(made.read_bytes())
        built[library.name] = target
    return built


def functions_of(library: Absent, site_packages: Path) -> list[str]:
    """The functions of a library that CuPy's modules call."""
    names: set[str] = set()
    for module in sorted(site_packages.glob(f"cupy*/**/*{library.name}*.so")):
        listed = run(["nm", "-D", "--undefined-only", module], f"listing what {module.name} calls")
        names.update(re.findall(rf"\bU ({library.name}\w+)", listed))
    return sorted(names)


def source_of(library: Absent, functions: list[str]) -> str:
    """The source of a library with functions that say that they are not simulated."""
    texts = ("String", "Name")  # of an error
    lines = [
        f'const char* {name}() {{ return "not simulated"; }}'
        if name.endswith(texts)
        else f"int {name}() {{ return absent(__func__); }}"
        for name in functions
    ]
    return _SOURCE.format(status=library.not_supported, functions="\n".join(lines))


def compiled(source: str, soname: str) -> Path:
    """The shared library of a source, its symbols versioned by its name as NVIDIA's are."""
    compiler = toolchain.compiler()
    key = toolchain.hash_of(compiler.identity, *FLAGS, soname, source)

    def build_to(target: Path) -> None:
        script = target.with_suffix(".map")
        script.write_text(f"{soname} {{ global: *; }};\n", encoding="utf-8")
        options = [f"-Wl,-soname,{soname}", f"-Wl,--version-script={script}", "-w", "-x", "c++", "-"]
        toolchain.run([compiler.path, *FLAGS, *options, "-o", str(target)], source)

    return toolchain.cached(f"cuda-absent-{key}.so", build_to)
