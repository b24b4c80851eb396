"""The simulated libraries are built: names, versions of symbols, what is built again, and what is said of mistakes."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpucnn.simulator import CompileError
from gpucnn.simulator.cuda import libraries

SOURCES = {
    "driver/memory.cpp": '#include "driver/services.h"\nCUDASIM_EXPORT int cuMemAlloc() { return 1 + hidden(); }',
    "driver/other.cpp": "int hidden() { return 2; }",
    "driver/services.h": '#define CUDASIM_EXPORT extern "C" __attribute__((visibility("default")))\nint hidden();',
    "cudart/memory.cpp": '#include "driver/services.h"\n#include "cudart/own.h"\n'
    "CUDASIM_EXPORT int cuMemAlloc();\nCUDASIM_EXPORT int cudaMalloc() { return 10 * cuMemAlloc(); }",
    "cudart/own.h": "// nothing",
    "nvrtc/a.cpp": "int nvrtc_hidden;",
    "cublas/a.cpp": 'extern "C" __attribute__((visibility("default"))) int cublasCreate_v2() { return 0; }',
    "curand/a.cpp": "int curand_hidden;",
    "cufft/a.cpp": "int cufft_hidden;",
    "host_headers/crt/host_defines.h": "// nothing",
}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Sources of small libraries, which no other test has in its cache."""
    folder = tmp_path / "sources"
    for name, text in SOURCES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    folder = tmp_path / "headers"
    folder.mkdir()
    (folder / "cuda.h").write_text("// nothing", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path / "cache"))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def built(folder: Path, sources: Path, headers: Path, version: str = "12.9") -> list[str]:
    """What a build compiled and linked."""
    done: list[str] = []
    libraries.build(folder, headers=headers, cuda_version=version, sources=sources, report=done.append)
    return sorted(done)


def dynamic(path: Path) -> str:
    """The dynamic section of a library and its symbols, as readelf prints them."""
    command = ["readelf", "--wide", "--dynamic", "--dyn-syms", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("version", "names"),
    [
        (
            "12.9",
            [
                "libcublas.so.12",
                "libcublasLt.so.12",
                "libcuda.so.1",
                "libcudart.so.12",
                "libcufft.so.11",
                "libcurand.so.10",
                "libnvrtc.so.12",
            ],
        ),
        (
            "13.2",
            [
                "libcublas.so.13",
                "libcublasLt.so.13",
                "libcuda.so.1",
                "libcudart.so.13",
                "libcufft.so.12",
                "libcurand.so.10",
                "libnvrtc.so.13",
            ],
        ),
    ],
)
def test_each_library_has_the_name_that_programs_look_it_up_by(
    version: str, names: list[str], tmp_path: Path, sources: Path, headers: Path
) -> None:
    files = libraries.build(tmp_path / "lib", headers=headers, cuda_version=version, sources=sources)
    assert sorted(path.name for path in (tmp_path / "lib").iterdir()) == names
    assert [*files] == ["driver", "cudart", "nvrtc", "cublas", "cublasLt", "curand", "cufft"]
    for path in files.values():
        assert re.findall(r"Library soname: \[(.*)\]", dynamic(path)) == [path.name]
        assert re.findall(r"Library r(?:un)?path: \[(.*)\]", dynamic(path)) == ["$ORIGIN"]


def test_symbols_carry_the_soname_as_their_version(tmp_path: Path, sources: Path, headers: Path) -> None:
    files = libraries.build(tmp_path / "lib", headers=headers, sources=sources)
    assert "cublasCreate_v2@@libcublas.so.12" in dynamic(files["cublas"])
    assert "cudaMalloc@@libcudart.so.12" in dynamic(files["cudart"])
    assert re.search(r"cuMemAlloc$", dynamic(files["driver"]), re.MULTILINE)
    assert "hidden" not in dynamic(files["driver"])


def test_a_moved_library_finds_its_driver(tmp_path: Path, sources: Path, headers: Path) -> None:
    libraries.build(tmp_path / "lib", headers=headers, sources=sources)
    moved = shutil.move(tmp_path / "lib", tmp_path / "moved")
    code = f"import ctypes; print(ctypes.CDLL({str(moved / 'libcudart.so.12')!r}).cudaMalloc())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "30\n"


def test_only_what_changed_is_built_again(tmp_path: Path, sources: Path, headers: Path) -> None:
    lib = tmp_path / "lib"
    assert len(built(lib, sources, headers)) == 7 + 7
    assert built(lib, sources, headers) == []
    assert built(tmp_path / "second", sources, headers) == []
    edit(sources / "cublas/a.cpp", "return 0", "return 1")
    assert built(lib, sources, headers) == ["cublas/a.cpp", "libcublas.so.12"]
    assert ctypes.CDLL(str(lib / "libcublas.so.12")).cublasCreate_v2() == 1
    edit(sources / "cudart/own.h", "nothing", "something")
    assert built(lib, sources, headers) == ["cudart/memory.cpp", "libcudart.so.12"]
    edit(sources / "cublas/a.cpp", "return 1", "return 0")
    assert built(lib, sources, headers) == []


def test_a_header_is_part_of_all_that_include_it(tmp_path: Path, sources: Path, headers: Path) -> None:
    built(tmp_path, sources, headers)
    edit(sources / "driver/services.h", "int hidden();", "int hidden();  // of other.cpp")
    again = built(tmp_path, sources, headers)
    assert [name for name in again if name.endswith(".cpp")] == ["cudart/memory.cpp", "driver/memory.cpp"]


def test_the_headers_of_a_source_are_found_through_others(tmp_path: Path, sources: Path, headers: Path) -> None:
    built(tmp_path, sources, headers)
    (sources / "driver/more.h").write_text("#define MORE 3\n", encoding="utf-8")
    edit(sources / "cudart/own.h", "// nothing", '# include "../driver/more.h"\n#include <crt/host_defines.h>')
    found = libraries.included_by(sources / "cudart/memory.cpp", [sources, sources / "host_headers"])
    names = ["cudart/own.h", "driver/more.h", "driver/services.h", "host_headers/crt/host_defines.h"]
    assert [str(path.relative_to(sources)) for path in found] == names
    assert built(tmp_path, sources, headers) == ["cudart/memory.cpp", "libcudart.so.12"]
    edit(sources / "driver/more.h", "3", "4")
    assert built(tmp_path, sources, headers) == ["cudart/memory.cpp", "libcudart.so.12"]


def test_the_version_of_cuda_is_part_of_every_object(tmp_path: Path, sources: Path, headers: Path) -> None:
    built(tmp_path / "12", sources, headers)
    edit(sources / "cublas/a.cpp", "return 0", "return CUDASIM_CUDA_VERSION")
    for version, number in (("12.9", 12090), ("13.2", 13020)):
        built(tmp_path / version, sources, headers, version)
        library = tmp_path / version / f"libcublas.so.{version[:2]}"
        assert ctypes.CDLL(str(library)).cublasCreate_v2() == number


def test_a_running_program_keeps_the_library_that_it_loaded(tmp_path: Path, sources: Path, headers: Path) -> None:
    built(tmp_path, sources, headers)
    before = (tmp_path / "libcublas.so.12").stat().st_ino
    unchanged = (tmp_path / "libcudart.so.12").stat().st_ino
    edit(sources / "cublas/a.cpp", "return 0", "return 1")
    built(tmp_path, sources, headers)
    assert (tmp_path / "libcublas.so.12").stat().st_ino != before
    assert (tmp_path / "libcudart.so.12").stat().st_ino == unchanged


def test_a_source_that_does_not_compile_is_told_with_its_line(tmp_path: Path, sources: Path, headers: Path) -> None:
    edit(sources / "cublas/a.cpp", "return 0", "return missing")
    with pytest.raises(CompileError, match=r"cublas/a\.cpp .* does not compile:\n(?s:.*)a\.cpp:1:.*missing") as caught:
        built(tmp_path, sources, headers)
    assert caught.value.file == str(sources / "cublas/a.cpp")


def test_a_function_that_is_nowhere_is_told(tmp_path: Path, sources: Path, headers: Path) -> None:
    edit(sources / "cublas/a.cpp", "return 0", "int absent(); return absent()")
    with pytest.raises(CompileError, match=r"libcublas\.so\.12 does not link:\n(?s:.*)absent"):
        built(tmp_path, sources, headers)


def test_sources_that_are_missing_are_told(tmp_path: Path, sources: Path, headers: Path) -> None:
    shutil.rmtree(sources / "curand")
    with pytest.raises(CompileError, match="the sources of the simulated library curand are not in"):
        built(tmp_path, sources, headers)


def test_headers_that_are_missing_are_told(tmp_path: Path, sources: Path) -> None:
    with pytest.raises(CompileError, match=r"need NVIDIA's headers: there is no cuda\.h in"):
        built(tmp_path, sources, tmp_path)


def test_an_unknown_version_of_cuda_is_refused(tmp_path: Path, sources: Path, headers: Path) -> None:
    with pytest.raises(ValueError, match=r"cuda_version must be of CUDA 12 or 13, got '11\.8'"):
        built(tmp_path, sources, headers, "11.8")
