"""The real wheel of CuPy for CUDA 12 without a GPU: that its cuBLAS and NVRTC are found where NVIDIA's wheels put them.

The libraries are stubs, in a temporary folder in the place of site-packages. Each test asks a Python of its own, since
what a process has loaded stays.
"""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

STARTED = """
import site
import cupy, numpy as np
from gpucnn.backends.cuda.device import cublas, cupy_runtime, libraries, nvrtc
site.PREFIXES[:] = [{prefix!r}]
cupy.cuda.runtime.getDeviceCount = lambda: 1
"""
NVRTC = """
extern "C" int nvrtcVersion(int* major, int* minor) { *major = 12, *minor = 77; return 0; }
extern "C" int nvrtcGetNumSupportedArchs(int* count) { *count = 1; return 0; }
extern "C" int nvrtcGetSupportedArchs(int* known) { *known = 90; return 0; }
extern "C" const char* nvrtcGetErrorString(int) { return ""; }
"""
CUBLAS = """
extern "C" int cublasGetProperty(int which, int* value) { *value = 12 + which; return 0; }
extern "C" int cublasSetWorkspace_v2() { return 0; }
"""

pytestmark = pytest.mark.usefixtures("bindings", "compiler")


@pytest.fixture(scope="module")
def bindings() -> Path:
    """The folder of CuPy's bindings; where GPUCNN_REQUIRE_CUPY_WHEEL is set, as in CI, its absence is an error."""
    try:
        wheel = metadata.distribution("cupy-cuda12x")
    except metadata.PackageNotFoundError:
        if os.environ.get("GPUCNN_REQUIRE_CUPY_WHEEL"):
            raise
        pytest.skip("cupy-cuda12x is not installed")
    return Path(str(wheel.locate_file("cupy_backends")))


def built(folder: Path, name: str, code: str) -> None:
    """Build a shared library, its symbols versioned by its name as NVIDIA's are."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / f"{name}.map"
    script.write_text(f"{name} {{ global: *; }};")
    command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", f"-Wl,-soname,{name}", f"-Wl,--version-script={script}"]
    subprocess.run([*command, "-o", str(folder / name)], input=code, text=True, check=True)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory, bindings: Path) -> Path:
    """A prefix whose site-packages hold stubs of cuBLAS and NVRTC, with each symbol that CuPy asks of cuBLAS."""
    prefix = tmp_path_factory.mktemp("prefix")
    nvidia = Path(site.getsitepackages([str(prefix)])[0], "nvidia")
    (binding,) = (bindings / "cuda" / "libs").glob("cublas.*.so")
    listed = subprocess.run(["nm", "-D", "--undefined-only", binding], capture_output=True, text=True, check=True)
    asked = "".join(
        f'extern "C" int {name}() {{ return 1; }}\n' for name in re.findall(r"cublas\w+(?=@)", listed.stdout)
    )
    built(nvidia / "cublas" / "lib", "libcublas.so.12", CUBLAS + asked)
    built(nvidia / "cublas" / "lib", "libcublasLt.so.12", "")
    built(nvidia / "cuda_nvrtc" / "lib", "libnvrtc.so.12", NVRTC)
    return prefix


def printed(prefix: Path, code: str) -> str:
    """What `code` prints in a new Python that finds libraries in the site-packages of `prefix` alone."""
    elsewhere = {"CONDA_PREFIX", "CUDA_HOME", "CUDA_PATH", "LD_LIBRARY_PATH", "CUPY_CI"}
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    command = [sys.executable, "-c", STARTED.format(prefix=str(prefix)) + code]
    ran = subprocess.run(
        command, cwd=PROJECT, env=environment | {"PYTHONNOUSERSITE": "1"}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_the_product_of_a_convolution_finds_cublas(packages: Path) -> None:
    code = """
cupy_runtime._load_cublas()
found = cublas.library((12,))
print(found.gemm(*[0] * 23), libraries.cublas_version(12), found._library._name)
"""
    assert printed(packages, code).startswith(f"1 12.13.14 {packages}")


def test_the_compiler_finds_nvrtc(packages: Path) -> None:
    code = "found = nvrtc.load((12,)); print(found.version, found.supported, found.path)"
    assert printed(packages, code).startswith(f"(12, 77) (90,) {packages}")


def test_nothing_is_lacking(packages: Path) -> None:
    assert printed(packages, "print(cupy_runtime.why_unavailable())") == "None"


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (
            (),
            "the compiler library NVRTC of CUDA 12 was not found: pip install cuda-pathfinder, and nvidia-cuda-nvrtc-",
        ),
        (("cuda_nvrtc",), "CuPy does not load the library cuBLAS of CUDA 12: pip install nvidia-cublas-cu12 for CUDA "),
    ],
)
def test_a_library_that_lacks_is_told(packages: Path, tmp_path: Path, there: tuple[str, ...], said: str) -> None:
    own, theirs = (Path(site.getsitepackages([str(prefix)])[0], "nvidia") for prefix in (tmp_path, packages))
    own.mkdir(parents=True)
    for wheel in there:
        (own / wheel).symlink_to(theirs / wheel)
    assert printed(tmp_path, "print(cupy_runtime.why_unavailable())").startswith(said)
