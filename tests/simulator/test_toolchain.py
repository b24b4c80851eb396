"""The compiler is found or missed in words; the cache is safe against others and against damage."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from running import needs_gcc

from gpucnn import simulator
from gpucnn.compilation import trust
from gpucnn.simulator import CompileError, Module, asarray, asnumpy, coverage, toolchain

SOURCE = r"""
#line 1 "add.cu"
__device__ __forceinline__ float add(float x, float y) {
  return x + y;
}
extern "C" __global__ void kernel(float* y, int bug) {
  if (bug)
    y[threadIdx.x] = 0;
  else
    y[threadIdx.x] = add(y[threadIdx.x], 1);
}
"""


def result(text: str = SOURCE) -> float:
    y = asarray(np.ones(4, "f4"))
    Module(text, "add").function("kernel")((1,), (4,), (y, np.int32(0)))
    return float(asnumpy(y)[0])


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path))
    return tmp_path / "simulator"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds nothing but the runtime."""
    runtime = toolchain.runtime("assembly")
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "simulator"
    folder.mkdir()
    shutil.copy(runtime, folder)
    return folder


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


@pytest.mark.no_compiler
def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert simulator.available().startswith("the simulator did not find 'no-such-compiler'")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nowhere")
    assert simulator.available().startswith("the simulator needs g++ 11 or newer, or clang++; install one")
    with pytest.raises(CompileError, match="install one"):
        toolchain.compiler()


@pytest.mark.no_compiler
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(CompileError, match="set GPUCNN_CACHE_DIR"):
        toolchain.cached("thing.so", Path.touch)


@pytest.mark.no_compiler
def test_another_system_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert simulator.available() == "the simulator needs Linux, this is darwin; a Linux container will do"


def test_a_compiler_is_found() -> None:
    assert simulator.available() == "available"


def test_compiled_files_are_used_again(cache: Path) -> None:
    assert result() == 2
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert {path.name.split("-")[0] for path in before} - {"shim"} == {"kernel", "runtime"}
    assert result() == 2
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == before
    assert result(SOURCE.replace("x + y", "x + y + y")) == 3
    assert len(list(cache.iterdir())) == len(before) + 1


@pytest.mark.no_compiler
@pytest.mark.parametrize("terminal", [True, False])
def test_who_waits_at_a_terminal_is_told_once_that_kernels_are_compiled(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    for name in ("first.so", "second.so", "first.so"):
        toolchain.cached(name, Path.touch)
    said = f"simulator: compiling kernels with {toolchain.compiler().path}, seconds each; kept in {cache_folder}\n"
    assert screen.getvalue() == (said if terminal else "")
    toolchain._announce.cache_clear()
    toolchain.cached("first.so", Path.touch)  # a full cache says nothing
    assert screen.getvalue() == (said if terminal else "")


@pytest.mark.parametrize("keep", [0, 1, 700, 999, -64, -1])
def test_a_damaged_file_is_noticed(keep: int, cache_folder: Path) -> None:
    def build(target: Path) -> None:
        target.write_bytes(bytes(range(100)) * 10)

    path = toolchain.cached("thing.so", build)
    data = path.read_bytes()
    assert data.startswith(bytes(range(100)))
    assert path.parent == cache_folder
    for damaged in (data[:keep], data[:5] + b"x" + data[6:], b""):
        path.write_bytes(damaged)
        assert not toolchain.is_whole(path)
        assert toolchain.cached("thing.so", build).read_bytes() == data
    assert list(cache_folder.iterdir()) == [path]


def test_a_damaged_kernel_is_built_again(cache: Path) -> None:
    code = "import test_toolchain as t; assert t.result() == 2"
    run_python(code)
    (path,) = cache.glob("kernel-*.so")
    path.write_bytes(path.read_bytes()[:5000])
    run_python(code)
    assert toolchain.is_whole(path)


@pytest.mark.no_compiler
def test_nothing_is_loaded_from_where_others_can_write(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(target: Path) -> None:
        target.write_text("code")

    monkeypatch.setattr(trust, "_warned", False)
    toolchain.cached("thing.so", build)
    cache_folder.chmod(0o777)
    with pytest.warns(RuntimeWarning, match=r"simulator can be written by everybody \(mode 0777\)"):
        path = toolchain.cached("thing.so", build)
    assert path == trust.private_folder() / "simulator" / "thing.so"
    path.unlink()


@needs_gcc
def test_nor_are_the_lines_that_ran_counted_there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_warned", False)
    (cache / "coverage").mkdir()
    (cache / "coverage").chmod(0o777)
    with simulator.options(mode="coverage"):
        with pytest.warns(RuntimeWarning, match="coverage can be written by everybody"):
            assert result() == 2
        assert coverage.report()["add.cu"].missed == {6}
        coverage.reset()
    assert not list((cache / "coverage").iterdir())


@pytest.mark.no_compiler
def test_a_failed_build_leaves_nothing(cache_folder: Path) -> None:
    def build(target: Path) -> None:
        target.write_text("half")
        raise CompileError("no")

    with pytest.raises(CompileError):
        toolchain.cached("thing.so", build)
    assert list(cache_folder.iterdir()) == []


def _result_in_process(start: str) -> float:
    os.environ["GPUCNN_CACHE_DIR"] = start
    return result()


def test_several_processes_build_the_same(cache: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_result_in_process, [str(cache.parent)] * 2, chunksize=1) == [2, 2]
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert all(map(toolchain.is_whole, files))
    assert len(files) == (2 if toolchain.compiler().is_clang else 3)  # the runtime, the kernel, the shim compiled


@needs_gcc
@pytest.mark.usefixtures("cache")
def test_coverage_counts_lines() -> None:
    with simulator.options(mode="coverage"):
        assert result() == 2
        first = coverage.report()["add.cu"]
        assert {2, 5, 8} <= first.executed
        assert first.missed == {6}
        assert 0 < first.share < 1
        y = asarray(np.ones(4, "f4"))
        Module(SOURCE, "add").function("kernel")((1,), (4,), (y, np.int32(1)))
        assert coverage.report()["add.cu"].missed == frozenset()
        coverage.reset()
        assert not coverage.report()["add.cu"].executed


@needs_gcc
@pytest.mark.usefixtures("cache")
def test_coverage_of_several_processes_adds_up() -> None:
    use = "from gpucnn import simulator\nimport test_toolchain as t"
    code = f"{use}\nwith simulator.options(mode='coverage'):\n  t.result()"
    run_python(code)
    assert coverage.report()["add.cu"].missed == {6}
    assert set(coverage.report()) == {"add.cu"}
