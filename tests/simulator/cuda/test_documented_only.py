"""The simulated CUDA has documented functions alone: it does not claim to be NVIDIA's, and answers nobody who asks.

NVIDIA's own binaries look a table of unnamed functions up in the driver and have it prove, by constants, that it is
NVIDIA's. Nothing of the kind may come into this project: what holds such a binary is compiled anew from its source, or
ends with a sentence.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from gpucnn.simulator.cupy import downloads, environment
from gpucnn.simulator.cupy.modules import Python

CUDA = Path(__file__).resolve().parents[3] / "gpucnn/simulator/cuda"
SUFFIXES = {".cpp", ".h", ".hpp", ".inc", ".map", ".py"}
SOURCES = sorted(path for path in CUDA.rglob("*") if path.suffix in SUFFIXES)

# Names of what is not documented: the driver's table, what identifies its parts, the runtime's hidden entry points.
UNDOCUMENTED = re.compile(
    r"ExportTable|ETID|\betbl|__cuda\w*FatBinary|__cuda\w*Register|cudart[A-Z]\w*Table|__fatbinwrap"
)
# Constants of eight bytes or more: keys, hashes, identifiers.
TABLES = {
    "bytes": re.compile(r"(?:0x[0-9a-fA-F]{1,2}u?\s*,\s*){7,}0x"),
    "characters": re.compile(r"(?:\\x[0-9a-fA-F]{2}){8,}"),
    "identifier": re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"),
    "CUuuid": re.compile(r"\bCUuuid\w*\s+\w+\s*=\s*\{(?!\s*\})"),
}

pytestmark = pytest.mark.no_compiler


def test_all_kinds_of_sources_are_looked_at() -> None:
    assert {"driver", "cudart", "nvrtc", "cublas", "curand", "cufft"} <= {path.parent.name for path in SOURCES}


def test_no_undocumented_function_is_named_but_to_refuse_it() -> None:
    named = [
        (path.name, line.strip())
        for path in SOURCES
        for line in path.read_text(encoding="utf-8").splitlines()
        if UNDOCUMENTED.search(line)
    ]
    refusal = 'if (!strcmp(name, "cuGetExportTable")) refuse_caller(name, caller);'
    assert named == [("proc_address.cpp", refusal)]


@pytest.mark.parametrize("kind", sorted(TABLES))
def test_no_table_of_constants(kind: str) -> None:
    found = {
        path.name: match.group()
        for path in SOURCES
        for match in TABLES[kind].finditer(path.read_text(encoding="utf-8"))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("bytes", "{0x6b, 0xd5, 0xfb, 0x6c, 0x5b, 0xf4, 0xe7, 0x4a}"),
        ("characters", r'"\x6b\xd5\xfb\x6c\x5b\xf4\xe7\x4a"'),
        ("identifier", "01234567-89ab-cdef-0123-456789abcdef"),
        ("CUuuid", "static const CUuuid kTools = {{1, 2}};"),
    ],
)
def test_a_table_would_be_found(kind: str, text: str) -> None:
    assert TABLES[kind].search(text)


HEADERS = {"libcuda.so": ("cuda.h", "cudaProfilerTypedefs.h"), "libcudart.so": ("cuda_runtime_api.h",)}
OURS = {"libcudart.so": {"cudaProfilerStart", "cudaProfilerStop"}}  # documented, in a header that no wheel has


@pytest.mark.parametrize("library", sorted(HEADERS))
def test_each_exported_function_is_in_nvidias_headers(library: str, cuda_environment: Path) -> None:
    python = Python.of(cuda_environment / "bin/python")
    plan = environment.description(cuda_environment)
    headers = downloads.Downloads(python.executable, plan.versions, python.tag).headers()
    (path,) = (python.site_packages / environment.PACKAGE / "lib").glob(f"{library}.*")
    listed = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    exported = {name.partition("@")[0] for name in re.findall(r" [TW] (\S+)", listed)}
    text = "".join(
        (headers / name).read_text(encoding="utf-8") for name in HEADERS[library] if (headers / name).is_file()
    )
    documented = set(re.findall(r"\w+", text)) | OURS.get(library, set())
    assert "cuMemAlloc_v2" in exported or "cudaMalloc" in exported
    assert {name for name in exported if not name.startswith(("cudasim_", "_"))} - documented == set()
