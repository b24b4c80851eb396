"""An environment with the real CuPy over the simulated CUDA libraries: made, updated, described."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from gpucnn.simulator import toolchain
from gpucnn.simulator.cuda import libraries
from gpucnn.simulator.cupy import absent
from gpucnn.simulator.cupy.downloads import PIP, BuildError, Downloads, make_venv, run
from gpucnn.simulator.cupy.modules import MODULES, Builder, Python
from gpucnn.simulator.cupy.progress import Progress
from gpucnn.simulator.cupy.versions import Versions, choose

MARK = "gpucnn-cuda.json"  # in the folder of each environment that was made here
PACKAGE = "gpucnn_cuda"  # in its site-packages: the libraries, and the defaults of environment variables
REQUIRED = ("numpy>=2.3", "threadpoolctl>=3.5", "cuda-pathfinder>=1.3.4")  # by gpucnn
DEVICES = ("t4", "a100", "h100", "rtx4090")
# What CuPy's wheel has in NVIDIA's machine code only; without these files CuPy says that they are missing.
MACHINE_CODE = ("jitify",)
PLACES = ("linked", "nvidia-wheels")
# Where NVIDIA's wheels put the two libraries that gpucnn needs, by the major version of CUDA.
NVIDIA_FOLDERS = {
    12: {"cublas": "nvidia/cublas/lib", "cublasLt": "nvidia/cublas/lib", "nvrtc": "nvidia/cuda_nvrtc/lib"},
    13: {"cublas": "nvidia/cu13/lib", "cublasLt": "nvidia/cu13/lib", "nvrtc": "nvidia/cu13/lib"},
}

_DEFAULTS = '''"""Defaults of environment variables for the real CuPy over gpucnn's simulated CUDA libraries.

gpucnn_cuda.pth imports this at each start of this environment's Python. What is set already stays.
"""

import os

DEFAULTS = {defaults}


def set_defaults():
    """Set the variables that are not set, and those of CUDA's toolkit."""
    # CuPy wants a folder with CUDA's headers. This one has none: the simulated NVRTC has those that kernels include.
    # A toolkit of this machine would give kernels its own headers.
    os.environ["CUDA_PATH"] = os.environ["CUDA_HOME"] = os.path.dirname(os.path.abspath(__file__))
    cache = os.environ.get("GPUCNN_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "gpucnn"
    )
    # A folder apart: no real GPU may ever be given the images that are compiled here.
    os.environ.setdefault("CUPY_CACHE_DIR", os.path.join(os.path.expanduser(cache), "cupy-kernels"))
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


set_defaults()
'''

_HEADER = "#pragma once  // by this file CuPy finds the folder; what kernels need of CUDA, the simulated NVRTC knows\n"


@dataclass(frozen=True)
class Description:
    """What an environment is made of, as its mark says."""

    cupy: str
    cuda: int
    device: str
    places: str
    complete: bool

    @property
    def versions(self) -> Versions:
        """The versions of CuPy and of what its modules are rebuilt with."""
        return choose(self.cupy, self.cuda)


def description(folder: Path) -> Description:
    """The mark of an environment that was made here; a BuildError for any other folder."""
    try:
        return Description(**json.loads((folder / MARK).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise BuildError(f"{folder} was not made by this command: it has no {MARK}") from None


def refusal(folder: Path) -> str | None:
    """Why an environment cannot be made at a folder; None if it can."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        return f"{folder} is not a folder"
    if not any(folder.iterdir()):
        return None
    if (folder / MARK).is_file():
        return f"{folder} was made by this command already: --update rebuilds its libraries, --force makes it anew"
    real = next(folder.glob("lib/python*/site-packages/cupy_cuda*.dist-info"), None)
    if real:
        return f"{folder} holds a CuPy for a real GPU ({real.stem}); choose a folder that does not exist"
    return f"{folder} exists and was not made by this command; choose a folder that does not exist"


def make(folder: Path, plan: Description, python: Path, progress: Progress, *, force: bool = False) -> None:
    """Make an environment.

    Parameters
    ----------
    folder : Path
        Its folder, which does not exist yet or is empty.
    plan : Description
        What it is made of.
    python : Path
        The Python that it is made from.
    progress : Progress
        Is told each step.
    force : bool
        Whether an environment that was made here is removed first.

    Raises
    ------
    BuildError, CompileError
        With a sentence that says what is missing or what failed.
    """
    if not toolchain.find_compiler():
        raise BuildError(toolchain.availability())
    if force and (folder / MARK).is_file():
        shutil.rmtree(folder)
    refused = refusal(folder)
    if refused:
        raise BuildError(refused)
    folder.mkdir(parents=True, exist_ok=True)
    _write_mark(folder, plan)
    with progress.step("virtual environment"):
        make_venv(python, folder)
        new = Python.of(folder / "bin/python")
    downloads = Downloads(new.executable, plan.versions, new.tag)
    requirements = (plan.versions.wheel, *REQUIRED)
    with progress.step(f"download of {plan.versions.wheel} and what it requires"):
        wheels = downloads.wheels(requirements)
    with progress.step(f"installation of {plan.versions.wheel}"):
        command = [new.executable, *PIP, "install", "--quiet", "--no-index", "--find-links", wheels]
        run([*command, *requirements], f"installing {plan.versions.wheel}")
    _complete(folder, plan, new, downloads, progress)


def update(folder: Path, progress: Progress) -> None:
    """Rebuild the libraries, the modules and the defaults of an environment that was made here."""
    plan = description(folder)
    new = Python.of(folder / "bin/python")
    _complete(folder, plan, new, Downloads(new.executable, plan.versions, new.tag), progress)


def _complete(folder: Path, plan: Description, python: Python, downloads: Downloads, progress: Progress) -> None:
    """Everything that follows the installation of CuPy's wheel."""
    versions = plan.versions
    with progress.step("CuPy's source, Cython, NVIDIA's headers"):
        builder = Builder(versions, python, downloads.source(), downloads.tools(), downloads.headers())
    with progress.step("simulated CUDA libraries"):
        linked = libraries.build(
            python.site_packages / PACKAGE / "lib", headers=builder.headers, cuda_version=versions.cuda
        )
        elsewhere = _place(plan, python, linked)
        linked |= absent.build(python, plan.cuda, python.site_packages / PACKAGE / "lib")
    with progress.step(f"CuPy's modules {', '.join(module.name for module in MODULES)}"):
        builder.compile_all(MODULES)
        for module in MODULES:
            builder.build(module, linked, elsewhere)
    for name in MACHINE_CODE:
        for path in (python.site_packages / "cupy/cuda").glob(f"{name}.*.so"):
            path.unlink()
    with progress.step("gpucnn"):
        _install_gpucnn(python, builder.tools)
        _write_defaults(python, plan)
    _write_mark(folder, Description(**asdict(plan) | {"complete": True}))


def _place(plan: Description, python: Python, linked: dict[str, Path]) -> tuple[str, ...]:
    """Move libraries to where NVIDIA's wheels have them, if the plan is so; the names of those that moved."""
    if plan.places == "linked":
        return ()
    moved = NVIDIA_FOLDERS[plan.cuda]
    for name, folder in moved.items():
        target = python.site_packages / folder / linked[name].name
        target.parent.mkdir(parents=True, exist_ok=True)
        linked[name].replace(target)
        # NVIDIA's driver is where the system looks; a library finds this one next to itself.
        driver = target.parent / linked["driver"].name
        driver.unlink(missing_ok=True)
        driver.symlink_to(os.path.relpath(linked["driver"], driver.parent))
    return tuple(moved)


def _install_gpucnn(python: Python, tools: Path) -> None:
    """Install the gpucnn that runs: from its checkout if that is where it is, else a copy of its files."""
    checkout = toolchain.HERE.parents[1]
    if (checkout / "pyproject.toml").is_file():
        command = [python.executable, *PIP, "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        run([*command, "--editable", checkout], "installing gpucnn from its checkout", {"PYTHONPATH": str(tools)})
        return
    for file in metadata.files("gpucnn") or ():
        source = Path(str(file.locate()))
        if ".." in file.parts or not source.is_file():  # a script outside site-packages
            continue
        target = python.site_packages / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def _write_defaults(python: Python, plan: Description) -> None:
    """The defaults of environment variables, and the file by which Python imports them at its start."""
    # CuPy's CUB kernels are machine code of NVIDIA's: called, they would find no device to run on.
    defaults = {"CUPY_ACCELERATORS": "", "GPUCNN_CUDA_DEVICE": plan.device}
    package = python.site_packages / PACKAGE
    (package / "include").mkdir(parents=True, exist_ok=True)
    (package / "include" / "cuda_runtime.h").write_text(_HEADER, encoding="utf-8")
    (package / "__init__.py").write_text(_DEFAULTS.format(defaults=json.dumps(defaults)), encoding="utf-8")
    (python.site_packages / f"{PACKAGE}.pth").write_text(f"import {PACKAGE}\n", encoding="utf-8")


def _write_mark(folder: Path, plan: Description) -> None:
    (folder / MARK).write_text(json.dumps(asdict(plan), indent=2) + "\n", encoding="utf-8")


def instructions(folder: Path) -> str:
    """The commands with which an environment is used."""
    python = folder / "bin/python"
    return (
        f"{python} your_program.py  # CuPy, on simulated CUDA\n"
        f"{python} -m pip install pytest && {python} -m pytest --cuda-simulator your_tests\n"
        f"{sys.executable} -m gpucnn.simulator.cupy --check {folder}"
    )
