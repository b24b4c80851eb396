"""From a program's text to a binary: NVRTC's library, the architecture, and the folder of compiled binaries."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpucnn.backends.cuda.device import compiler as compiler_module
from gpucnn.backends.cuda.device import nvrtc
from gpucnn.backends.cuda.device.compiler import Compiler, default_folder, whole
from gpucnn.backends.cuda.device.nvrtc import CompilationError, Compiled, Nvrtc, NvrtcNotFoundError, architecture
from gpucnn.backends.cuda.device.sources import Source

SOURCE = Source("add", "add[float32]", '#line 1 "add.cu"\nextern "C" __global__ void add(float* x) { x[0] += 1; }\n')


def elf(payload: bytes = b"code") -> bytes:
    """The least that is an ELF file: a header, `payload`, and a table of one section."""
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    header[0x28:0x30] = (64 + len(payload)).to_bytes(8, "little")
    header[0x3A:0x3C] = (64).to_bytes(2, "little")
    header[0x3C:0x3E] = (1).to_bytes(2, "little")
    return bytes(header) + payload + bytes(64)


class FakeNvrtc:
    """A compiler whose binaries hold what they were compiled from."""

    version = (12, 9)
    supported = (80, 86, 90)

    def compile(self, text: str, name: str, options: Sequence[str]) -> Compiled:
        content = f"{text}{options}".encode()
        return Compiled(b".version " + content if "-arch=compute_90" in options else elf(content), "")


class Forbidden:
    """A compiler that must not be needed."""

    version = FakeNvrtc.version

    def compile(self, text: str, name: str, options: Sequence[str]) -> Compiled:
        raise AssertionError(f"{name} was compiled")


def compiler_in(folder: Path, nvrtc: Any = None) -> Compiler:
    return Compiler(nvrtc or FakeNvrtc(), lambda: folder)


# --- The folder ---------------------------------------------------------------------------------------------------


def test_a_binary_is_compiled_once(tmp_path: Path) -> None:
    compiler = compiler_in(tmp_path)
    first, second = compiler.compile(SOURCE, "sm_90"), compiler.compile(SOURCE, "sm_90")
    assert compiler.compiled == 1
    assert first == second
    assert first.path is not None
    assert first.path.read_bytes() == first.image
    assert compiler_in(tmp_path, Forbidden()).compile(SOURCE, "sm_90") == first


def test_the_binary_holds_the_text_and_the_options(tmp_path: Path) -> None:
    image = compiler_in(tmp_path).compile(SOURCE, "sm_90").image
    for part in (SOURCE.text.encode(), b"-std=c++17", b"--fmad=false", b"-arch=sm_90"):
        assert part in image


def test_ptx_is_named_so(tmp_path: Path) -> None:
    compiler = compiler_in(tmp_path)
    cubin, ptx = compiler.compile(SOURCE, "sm_90"), compiler.compile(SOURCE, "compute_90")
    assert (Path(cubin.name).suffix, Path(ptx.name).suffix) == (".cubin", ".ptx")
    assert compiler_in(tmp_path, Forbidden()).compile(SOURCE, "compute_90") == ptx


def test_whatever_a_binary_depends_on_is_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def name(source: Source = SOURCE, target: str = "sm_90", version: tuple[int, int] = (12, 9)) -> str:
        fake = FakeNvrtc()
        fake.version = version
        return compiler_in(tmp_path, fake).compile(source, target).name

    names = [name(), name(replace(SOURCE, text=SOURCE.text + " ")), name(target="sm_80"), name(target="compute_90")]
    names += [name(version=(12, 8)), name(version=(13, 9))]
    monkeypatch.setattr(compiler_module, "OPTIONS", ("-std=c++17",))
    names.append(name())
    monkeypatch.setattr(compiler_module, "__version__", "9.9")
    names.append(name())
    assert len(set(names)) == len(names)
    assert name() == name(replace(SOURCE, name="another", kernel="another"))


GOOD = FakeNvrtc().compile(SOURCE.text, "", (*nvrtc.OPTIONS, "-arch=sm_90")).image
SPOILED = {
    "empty": b"",
    "one byte short": GOOD[:-1],
    "half": GOOD[: len(GOOD) // 2],
    "garbage": bytes(range(256)),
    "one bit": GOOD[:70] + bytes([GOOD[70] ^ 1]) + GOOD[71:],
    "longer": GOOD + b"\0",
    "another's": elf(b"another"),
}


@pytest.mark.parametrize("image", SPOILED.values(), ids=SPOILED)
def test_a_spoiled_file_is_compiled_again(tmp_path: Path, image: bytes) -> None:
    good = compiler_in(tmp_path).compile(SOURCE, "sm_90")
    assert good.path is not None
    assert good.image == GOOD
    good.path.write_bytes(image)
    compiler = compiler_in(tmp_path)
    assert compiler.compile(SOURCE, "sm_90") == good
    assert compiler.compiled == 1
    assert good.path.read_bytes() == good.image


@pytest.mark.parametrize("digest", [None, b"", b"0" * 64, b"\xff"])
def test_a_spoiled_digest_has_its_file_compiled_again(tmp_path: Path, digest: bytes | None) -> None:
    good = compiler_in(tmp_path).compile(SOURCE, "sm_90")
    (path,) = tmp_path.glob("*.sha256")
    path.unlink() if digest is None else path.write_bytes(digest)
    assert compiler_in(tmp_path).compile(SOURCE, "sm_90") == good
    assert compiler_in(tmp_path, Forbidden()).compile(SOURCE, "sm_90") == good


def test_the_folder_is_made_and_holds_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    compiler_in(folder).compile(SOURCE, "sm_90")
    assert sorted(path.suffix for path in folder.iterdir()) == [".cubin", ".sha256"]


def test_the_folder_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path))
    assert default_folder() == tmp_path / "cubin"
    binary = Compiler(FakeNvrtc()).compile(SOURCE, "sm_90")
    assert binary.path is not None
    assert binary.path.parent == tmp_path / "cubin"


# --- A folder that cannot be used -----------------------------------------------------------------------------------


def expect_compiled_in_memory(compiler: Compiler) -> None:
    with pytest.warns(RuntimeWarning, match=r"compiled kernels cannot be kept.*GPUCNN_CACHE_DIR") as caught:
        binary = compiler.compile(SOURCE, "sm_90")
    assert len(caught) == 1
    assert binary.path is None
    assert whole(binary.image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        assert compiler.compile(SOURCE, "sm_90") == binary
    assert compiler.compiled == 1


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has a umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o644), (0o077, 0o600)])
def test_others_may_read_what_the_umask_lets_them_read(tmp_path: Path, umask: int, mode: int) -> None:
    """But not write it, whatever the umask says; the folder is this user's."""
    before = os.umask(umask)
    try:
        compiler_in(tmp_path / "cubin").compile(SOURCE, "sm_90")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "cubin").iterdir()} == {mode}
    assert stat.S_IMODE((tmp_path / "cubin").stat().st_mode) == 0o700


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has these permissions")
@pytest.mark.parametrize("part", ["the folder", "the binary"])
def test_where_others_can_write_nothing_is_loaded_or_stored(tmp_path: Path, part: str) -> None:
    folder = tmp_path / "cubin"
    good = compiler_in(folder).compile(SOURCE, "sm_90")
    assert good.path is not None
    unsafe = folder if part == "the folder" else good.path
    unsafe.chmod(0o777)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    compiler = compiler_in(folder)
    assert compiler.find(SOURCE, "sm_90") is None
    with pytest.warns(RuntimeWarning, match=rf"{unsafe} can be written by everybody.*chmod go-w") as caught:
        binary = compiler.compile(SOURCE, "sm_90")
    assert len(caught) == 1
    assert (binary.path, binary.image, compiler.compiled) == (None, good.image, 1)
    assert compiler.compile(SOURCE, "sm_90") == binary  # kept in memory, without another warning
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    expect_compiled_in_memory(compiler_in(tmp_path / "file" / "cubin"))


def test_no_home_folder() -> None:
    def folder() -> Path:
        raise RuntimeError("Could not determine home directory.")

    expect_compiled_in_memory(Compiler(FakeNvrtc(), folder))


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_or_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(source: str, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    expect_compiled_in_memory(compiler_in(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    expect_compiled_in_memory(compiler_in(tmp_path))
    tmp_path.chmod(stat.S_IRWXU)


def test_a_read_only_folder_still_serves_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = compiler_in(tmp_path).compile(SOURCE, "sm_90")
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("it was written to"))
    assert compiler_in(tmp_path, Forbidden()).compile(SOURCE, "sm_90") == good


def test_another_process_that_was_quicker_is_no_reason_to_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replaced_by_another(source: str, target: Path) -> None:
        monkeypatch.undo()
        compiler_in(tmp_path).compile(SOURCE, "sm_90")
        raise PermissionError(errno.EACCES, "another process has it open, as Windows says")

    monkeypatch.setattr(os, "replace", replaced_by_another)
    binary = compiler_in(tmp_path).compile(SOURCE, "sm_90")
    assert binary.path is not None


# --- Many threads ---------------------------------------------------------------------------------------------------


def test_threads_compile_a_program_once(tmp_path: Path) -> None:
    class Slow(FakeNvrtc):
        def compile(self, text: str, name: str, options: Sequence[str]) -> Compiled:
            compiled.append(text)
            time.sleep(0.05)
            return super().compile(text, name, options)

    compiled: list[str] = []
    compiler = compiler_in(tmp_path, Slow())
    sources = [replace(SOURCE, text=f"// {number}") for number in range(2)]
    assert compiler.find(sources[0], "sm_90") is None
    with ThreadPoolExecutor(8) as threads:
        binaries = list(threads.map(lambda number: compiler.compile(sources[number % 2], "sm_90"), range(16)))
    assert sorted(compiled) == ["// 0", "// 1"]
    assert sum(binary.is_new for binary in binaries) == 2
    assert len(set(binaries)) == 2
    assert compiler.find(sources[0], "sm_90") == binaries[0]


# --- Many processes -------------------------------------------------------------------------------------------------

PROCESS = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("error")
from test_compiler import SOURCE, FakeNvrtc, compiler_in
from dataclasses import replace
compiler = compiler_in(Path(sys.argv[1]))
sys.stdin.readline()  # until all are there
for repeat in range(int(sys.argv[2])):
    binary = compiler.compile(replace(SOURCE, text=f"// {repeat}"), "sm_90")
    assert binary.image == FakeNvrtc().compile(f"// {repeat}", "", ("-std=c++17", "--fmad=false", "-arch=sm_90")).image
    assert binary.path is not None
print(compiler.compiled)
"""


def start_process(folder: Path, programs: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, str(folder), str(programs)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        command, cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def compiled_by(process: subprocess.Popen[str]) -> int:
    output, _ = process.communicate()
    assert process.returncode == 0
    return int(output)


@pytest.mark.thorough
def test_processes_may_share_the_folder(tmp_path: Path) -> None:
    programs = 100
    processes = [start_process(tmp_path, programs) for _ in range(8)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert sum(map(compiled_by, processes)) >= programs
    assert compiled_by(start_process(tmp_path, programs)) == 0  # the next one finds all that they compiled
    assert len(list(tmp_path.iterdir())) == 2 * programs


# --- Whole binaries -------------------------------------------------------------------------------------------------


def test_a_binary_is_whole_as_far_as_its_headers_say() -> None:
    assert whole(elf())
    assert not any(whole(elf()[:length]) for length in range(len(elf())))
    assert not whole(b"\x7fELF\x01" + elf()[5:])  # 32 bits
    assert whole(b"//\n.version 8.8\n.target sm_90\n")
    assert not whole(b"error")


def test_a_compiler_that_returns_no_whole_binary(tmp_path: Path) -> None:
    class Short(FakeNvrtc):
        def compile(self, text: str, name: str, options: Sequence[str]) -> Compiled:
            return Compiled(elf()[:-1], "")

    with pytest.raises(CompilationError, match=r"add\[float32\]: NVRTC returned 131 bytes"):
        compiler_in(tmp_path, Short()).compile(SOURCE, "sm_90")
    assert not list(tmp_path.iterdir())


# --- The architecture -----------------------------------------------------------------------------------------------

CUDA_12 = (50, 60, 70, 75, 80, 86, 87, 89, 90, 100, 120)
CUDA_13 = (75, 80, 86, 87, 89, 90, 100, 103, 120)


@pytest.mark.parametrize(
    ("supported", "targets"),
    [
        (CUDA_12, "7.0:sm_70 7.5:sm_75 8.0:sm_80 8.6:sm_86 8.9:sm_89 9.0:sm_90 10.0:sm_100 12.0:sm_120"),
        (CUDA_12, "7.2:compute_70"),  # embedded: no desktop's binary runs there
        (CUDA_12, "8.8:compute_87 10.3:compute_100 12.1:compute_120"),
        (CUDA_13, "10.3:sm_103 13.0:compute_120"),
        ((90, 75), "9.0:sm_90"),
        ((100, 90, 75), "9.1:compute_90"),
    ],
)
def test_architecture(supported: tuple[int, ...], targets: str) -> None:
    for capability, expected in (target.split(":") for target in targets.split()):
        major, minor = map(int, capability.split("."))
        assert architecture((major, minor), supported) == expected, capability


def test_a_device_that_nvrtc_has_forgotten() -> None:
    with pytest.raises(CompilationError, match=r"no longer compiles for compute capability 7\.0, only from 7\.5 on"):
        architecture((7, 0), CUDA_13)


# --- The library ----------------------------------------------------------------------------------------------------


def test_a_library_that_is_nowhere() -> None:
    with pytest.raises(NvrtcNotFoundError, match=r"NVRTC of CUDA 98 or 99 was not found: pip install"):
        nvrtc.load((98, 99))


def test_files_that_are_no_library_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libnvrtc.so.98").write_text("no library")
    monkeypatch.setattr(nvrtc, "places", lambda name, majors: [str(tmp_path / "libnvrtc.so.98"), "absent"])
    with pytest.raises(NvrtcNotFoundError):
        nvrtc.load((98,))


def test_a_library_of_another_version_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"first": (13, 0), "second": (12, 9), "third": (12, 8)}
    monkeypatch.setattr(nvrtc, "places", lambda name, majors: versions)
    monkeypatch.setattr(nvrtc, "Nvrtc", lambda place: SimpleNamespace(path=place, version=versions[place]))
    assert nvrtc.load((12,)).path == "second"
    assert nvrtc.load((12, 13)).path == "first"


# --- NVRTC ----------------------------------------------------------------------------------------------------------


def test_nvrtc_says_what_it_is(nvrtc_library: Nvrtc) -> None:
    assert nvrtc_library.version[0] in nvrtc.MAJORS
    assert {75, 80, 86, 89, 90} <= set(nvrtc_library.supported)


def test_nvrtc_compiles_to_a_whole_cubin(nvrtc_library: Nvrtc, tmp_path: Path) -> None:
    compiler = compiler_in(tmp_path, nvrtc_library)
    binary = compiler.compile(SOURCE, "sm_90")
    assert binary.image.startswith(b"\x7fELF\x02")
    assert b"add" in binary.image
    assert whole(binary.image)
    assert not whole(binary.image[: len(binary.image) // 2])
    assert compiler_in(tmp_path, nvrtc_library).compile(SOURCE, "sm_90") == binary
    assert nvrtc_library.compile(SOURCE.text, SOURCE.name, (*nvrtc.OPTIONS, "-arch=sm_90")).image == binary.image


def test_nvrtc_compiles_to_ptx(nvrtc_library: Nvrtc, tmp_path: Path) -> None:
    image = compiler_in(tmp_path, nvrtc_library).compile(SOURCE, "compute_80").image
    assert b".target sm_80" in image
    assert b"\0" not in image


def test_multiplications_are_not_fused_unless_asked_for(nvrtc_library: Nvrtc, tmp_path: Path) -> None:
    text = 'extern "C" __global__ void f(float* x) { x[0] = %s; }'
    products = [("x[0] * x[1] + x[2]", False), ("fmaf(x[0], x[1], x[2])", True)]
    for expression, fused in products:
        image = compiler_in(tmp_path, nvrtc_library).compile(Source("f", "f", text % expression), "compute_80").image
        assert (b"fma.rn.f32" in image) == fused
        assert (b"mul.rn.f32" in image) == (not fused)  # .rn: the driver may not fuse it either


def test_a_program_that_does_not_compile(nvrtc_library: Nvrtc) -> None:
    lines = ['#line 1 "a.cu"', "// a", '#line 1 "b.cuh"', "__device__ int one = 1;", "__device__ int wrong = unknown;"]
    text = "\n".join((*lines, '#line 3 "a.cu"', "__device__ int other = nameless;\n"))
    with pytest.raises(CompilationError) as caught:
        nvrtc_library.compile(text, "f[float32]", (*nvrtc.OPTIONS, "-arch=sm_90"))
    message = str(caught.value)
    assert message.startswith(
        f"f[float32] does not compile with NVRTC {nvrtc_library.version[0]}.{nvrtc_library.version[1]} and -std=c++17"
    )
    assert 'b.cuh(2): error: identifier "unknown" is undefined' in message
    assert "\nb.cuh:2: __device__ int wrong = unknown;" in message
    assert "\na.cu:3: __device__ int other = nameless;" in message
    assert "one = 1" not in message


def test_options_that_nvrtc_does_not_take(nvrtc_library: Nvrtc) -> None:
    with pytest.raises(CompilationError, match="invalid value for --gpu-architecture"):
        nvrtc_library.compile(SOURCE.text, SOURCE.name, ("-arch=sm_999",))


def test_many_programs_in_one_process(nvrtc_library: Nvrtc) -> None:
    options = (*nvrtc.OPTIONS, "-arch=sm_90")
    images = {nvrtc_library.compile(SOURCE.text.replace("add", f"add{i}"), "add", options).image for i in range(20)}
    assert len(images) == 20
