"""Downloads for an environment, by pip with the user's configuration, kept in the cache."""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from gpucnn.paths import cache_folder
from gpucnn.simulator.cupy.versions import SETUPTOOLS, Versions
from gpucnn.simulator.toolchain import hash_of

PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")
_LINES_OF_FAILURE = 15


class BuildError(RuntimeError):
    """An environment cannot be made; the message says why and what to do."""


def run(command: Sequence[object], what: str, extra: Mapping[str, str] | None = None) -> str:
    """The output of a command; a BuildError with the last lines of it if the command fails."""
    # Neither the caller's modules nor those of the user's folder are part of an environment.
    unwanted = {"PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__"}
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    environment |= {"PYTHONNOUSERSITE": "1", **(extra or {})}
    ran = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if ran.returncode:
        said = (ran.stderr.strip() or ran.stdout.strip()).splitlines()[-_LINES_OF_FAILURE:]
        raise BuildError("\n".join([f"{what} failed:", *said]))
    return ran.stdout


def folder() -> Path:
    """The folder of the cache for all that is downloaded, unpacked or installed here."""
    return cache_folder() / "cupy"


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder that becomes `path` at the end of the block: never a half of it is found there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="new-", dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        made.mkdir()
        yield made
        try:
            made.rename(path)
        except OSError:
            if not path.is_dir():  # else another process made it meanwhile
                raise


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, filled by `make` if it is not there."""
    path = folder() / name
    if not path.is_dir():
        with _new_folder(path) as made:
            make(made)
    return path


class Downloads:
    """Downloads with the pip of the new environment."""

    def __init__(self, python: Path, versions: Versions, python_tag: str) -> None:
        self.python = python
        self.versions = versions
        self.python_tag = python_tag

    def wheels(self, requirements: Sequence[str]) -> Path:
        """A folder with the wheels of requirements, and of all that they require."""

        def download(target: Path) -> None:
            command = [self.python, *PIP, "download", "--quiet", "--only-binary=:all:", "--dest", target]
            run([*command, *requirements], f"downloading {', '.join(requirements)}")

        return _cached(f"wheels-{self.python_tag}-{hash_of(*requirements)}", download)

    def tools(self) -> Path:
        """A folder with Cython and setuptools, to be put on PYTHONPATH."""
        requirements = [f"Cython=={self.versions.cython}", SETUPTOOLS]

        def install(target: Path) -> None:
            command = [self.python, *PIP, "install", "--quiet", "--no-deps", "--target", target]
            run([*command, *requirements], f"installing {' and '.join(requirements)}")

        return _cached(f"tools-{self.python_tag}-{hash_of(*requirements)}", install)

    def source(self) -> Path:
        """CuPy's source, unpacked."""
        version = self.versions.cupy

        def download(target: Path) -> None:
            command = [self.python, *PIP, "download", "--quiet", "--no-deps", "--no-binary=cupy", "--dest", target]
            # pip runs setup.py for the name and version; with the stub it looks for no CUDA.
            extra = {"CUPY_INSTALL_USE_STUB": "1", "PYTHONPATH": str(self.tools())}
            run([*command, "--no-build-isolation", f"cupy=={version}"], f"downloading CuPy {version}'s source", extra)
            (archive,) = target.glob("cupy-*.tar.gz")
            with tarfile.open(archive) as file:
                file.extractall(target, filter="data")
            archive.unlink()

        return _cached(f"source-{version}", download) / f"cupy-{version}"

    def headers(self) -> Path:
        """The include folder of NVIDIA's runtime."""
        requirement = self.versions.headers

        def download(target: Path) -> None:
            command = [self.python, *PIP, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", target]
            run([*command, requirement], f"downloading {requirement}")
            (wheel,) = target.glob("*.whl")
            with zipfile.ZipFile(wheel) as file:
                wanted = [name for name in file.namelist() if name.startswith(f"{self.versions.include}/")]
                file.extractall(target, wanted)
            wheel.unlink()

        return _cached(requirement.replace("==", "-"), download) / self.versions.include


def make_venv(python: Path, target: Path) -> None:
    """A virtual environment with pip."""
    try:
        run([python, "-m", "venv", target], "making a virtual environment")
    except BuildError as error:
        if "ensurepip" in str(error) or "No module named venv" in str(error):
            text = (
                f"{python} cannot make a virtual environment with pip; install Python's venv module, for instance "
                "the package python3-venv"
            )
            raise BuildError(text) from None
        raise
