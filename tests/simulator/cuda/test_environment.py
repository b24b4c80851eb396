"""The command that makes an environment: its choices and refusals. CI makes environments and runs CuPy in them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath
from typing import ClassVar

import pytest

from gpucnn.simulator import toolchain
from gpucnn.simulator.cupy import __main__ as command
from gpucnn.simulator.cupy import absent, downloads, environment, modules, versions
from gpucnn.simulator.cupy.downloads import BuildError
from gpucnn.simulator.cupy.progress import Progress

ROOT = Path(__file__).resolve().parents[3]
PLAN = environment.Description("14.2.0", 12, "h100", "linked", complete=True)

pytestmark = pytest.mark.no_compiler


def marked(folder: Path, plan: environment.Description = PLAN) -> Path:
    """A folder as the command leaves it, without what is in an environment."""
    folder.mkdir()
    environment._write_mark(folder, plan)
    return folder


@pytest.mark.parametrize(
    ("cupy", "cuda", "wheel", "number", "cython"),
    [
        ("14.2", 12, "cupy-cuda12x==14.2.0", 12090, "3.2.4"),
        ("14", 12, "cupy-cuda12x==14.2.0", 12090, "3.2.4"),
        ("14.2.0", 13, "cupy-cuda13x==14.2.0", 13020, "3.2.4"),
        ("13.6", 12, "cupy-cuda12x==13.6.0", 12090, "3.0.12"),
    ],
)
def test_a_version_is_chosen(cupy: str, cuda: int, wheel: str, number: int, cython: str) -> None:
    row = versions.choose(cupy, cuda)
    assert (row.wheel, row.cuda_number, row.cython) == (wheel, number, cython)


@pytest.mark.parametrize(("cupy", "cuda"), [("13.6", 13), ("14.20", 12), ("1", 12), ("12.0", 12)])
def test_other_versions_are_refused_with_a_list(cupy: str, cuda: int) -> None:
    known = "--cupy 14.2.0 --cuda 12; --cupy 14.2.0 --cuda 13; --cupy 13.6.0 --cuda 12"
    with pytest.raises(ValueError, match=f"^CuPy {cupy} for CUDA {cuda} is not among .*: {known}$"):
        versions.choose(cupy, cuda)


def test_what_gpucnn_requires_is_in_an_environment() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pathfinder = next(item for item in project["optional-dependencies"]["cuda12"] if "pathfinder" in item)
    assert (*project["dependencies"], pathfinder) == environment.REQUIRED


def test_the_setuptools_that_installs_gpucnn_is_new_enough() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    assert build == ["setuptools>=77"]
    assert int(versions.SETUPTOOLS.removeprefix("setuptools==").partition(".")[0]) >= 77


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_or_empty_folder_is_taken(exists: bool, tmp_path: Path) -> None:
    folder = tmp_path / "environment"
    if exists:
        folder.mkdir()
    assert environment.refusal(folder) is None


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert environment.refusal(tmp_path / "file") == f"{tmp_path / 'file'} is not a folder"
    assert environment.refusal(tmp_path) == (
        f"{tmp_path} exists and was not made by this command; choose a folder that does not exist"
    )


def test_an_environment_with_a_real_cupy_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "lib/python3.11/site-packages/cupy_cuda12x-14.2.0.dist-info").mkdir(parents=True)
    assert environment.refusal(tmp_path) == (
        f"{tmp_path} holds a CuPy for a real GPU (cupy_cuda12x-14.2.0); choose a folder that does not exist"
    )


def test_an_environment_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    folder = marked(tmp_path / "environment")
    assert environment.refusal(folder) == (
        f"{folder} was made by this command already: --update rebuilds its libraries, --force makes it anew"
    )


def test_force_does_not_remove_what_others_made(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("text", encoding="utf-8")
    with pytest.raises(BuildError, match="was not made by this command"):
        environment.make(tmp_path, PLAN, Path(sys.executable), Progress(), force=True)
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "text"


def test_the_mark_tells_what_an_environment_is_made_of(tmp_path: Path) -> None:
    assert environment.description(marked(tmp_path / "environment")) == PLAN
    assert PLAN.versions.wheel == "cupy-cuda12x==14.2.0"


@pytest.mark.parametrize("text", [None, "", "[]", '{"cupy": "14.2.0"}'])
def test_a_folder_without_the_mark_is_not_touched(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / environment.MARK).write_text(text, encoding="utf-8")
    with pytest.raises(BuildError, match=f"^{re.escape(str(tmp_path))} was not made by this command"):
        environment.update(tmp_path, Progress())


@pytest.mark.parametrize("option", ["--check", "--update"])
def test_the_command_tells_a_foreign_folder(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tmp_path), option]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"error: {tmp_path} was not made by this command: it has no gpucnn-cuda.json\n"


def test_the_command_tells_versions_that_it_cannot_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tmp_path / "new"), "--cupy", "12.0"]) == 1
    assert capsys.readouterr().err.startswith("error: CuPy 12.0 for CUDA 12 is not among the versions")
    assert not (tmp_path / "new").exists()


def test_a_missing_compiler_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert command.main([str(tmp_path / "new")]) == 1
    assert capsys.readouterr().err == f"error: {toolchain.MISSING}\n"
    assert not (tmp_path / "new").exists()


def test_missing_headers_of_python_are_told(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    facts = {"include": str(tmp_path), "site_packages": "", "suffix": ".so", "version": "3.11"}
    fake.write_text(f"#!/bin/sh\necho '{json.dumps(facts)}'\n", encoding="utf-8")
    fake.chmod(0o755)
    with pytest.raises(
        BuildError, match=r"^Python\.h is not in .*: install the headers of Python 3\.11, .*python3-dev$"
    ):
        modules.Python.of(fake)


def test_a_python_without_pip_is_told(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'No module named ensurepip' >&2\nexit 1\n", encoding="utf-8")
    fake.chmod(0o755)
    with pytest.raises(BuildError, match="cannot make a virtual environment with pip; install Python's venv module"):
        downloads.make_venv(fake, tmp_path / "new")


def test_a_command_that_fails_is_told_with_its_last_lines() -> None:
    code = "import sys; [print(i, file=sys.stderr) for i in range(100)]; sys.exit(3)"
    with pytest.raises(BuildError) as caught:
        downloads.run([sys.executable, "-c", code], "counting")
    assert str(caught.value).splitlines() == ["counting failed:", *(str(i) for i in range(85, 100))]


def test_commands_do_not_see_the_modules_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    code = "import os; print(os.environ.get('PYTHONPATH'), os.environ['PYTHONNOUSERSITE'], os.environ.get('MORE'))"
    assert downloads.run([sys.executable, "-c", code], "asking", {"MORE": "1"}) == "None 1 1\n"


def test_a_download_that_fails_leaves_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path))

    def half(target: Path) -> None:
        (target / "half").touch()
        raise BuildError("no network")

    with pytest.raises(BuildError, match="no network"):
        downloads._cached("things", half)
    assert list((tmp_path / "cupy").iterdir()) == []
    made = downloads._cached("things", lambda target: (target / "whole").touch())
    assert downloads._cached("things", half) == made == tmp_path / "cupy/things"
    assert [path.name for path in made.iterdir()] == ["whole"]


DEFAULTS = ("CUPY_ACCELERATORS", "CUPY_CACHE_DIR", "GPUCNN_CUDA_DEVICE")


def defaults(tmp_path: Path, names: tuple[str, ...] = DEFAULTS, **given: str) -> dict[str, str]:
    """The variables that a new Python has after the import of the defaults."""
    python = modules.Python(Path(sys.executable), tmp_path, tmp_path, ".cpython-311-x86_64-linux-gnu.so", "3.11")
    (tmp_path / environment.PACKAGE).mkdir()
    environment._write_defaults(python, environment.Description("14.2.0", 12, "a100", "linked", complete=True))
    assert (tmp_path / "gpucnn_cuda.pth").read_text(encoding="utf-8") == "import gpucnn_cuda\n"
    code = f"import os, gpucnn_cuda; print('|'.join(os.environ[name] for name in {names}))"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CUPY_", "GPUCNN_", "XDG_"))}
    clean |= {"PYTHONPATH": str(tmp_path), "HOME": "/somebody", **given}
    ran = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    return dict(zip(names, ran.stdout.strip().split("|"), strict=True))


def test_defaults_of_variables(tmp_path: Path) -> None:
    assert defaults(tmp_path) == {
        "CUPY_ACCELERATORS": "",
        "CUPY_CACHE_DIR": "/somebody/.cache/gpucnn/cupy-kernels",
        "GPUCNN_CUDA_DEVICE": "a100",
    }


def test_variables_that_are_set_stay(tmp_path: Path) -> None:
    given = {"CUPY_ACCELERATORS": "cub", "GPUCNN_CUDA_DEVICE": "t4"}
    found = defaults(tmp_path, GPUCNN_CACHE_DIR="/cache", **given)
    assert found == given | {"CUPY_CACHE_DIR": "/cache/cupy-kernels"}


def test_a_toolkit_of_the_machine_is_not_used(tmp_path: Path) -> None:
    variables = defaults(tmp_path, ("CUDA_PATH", "CUDA_HOME"), CUDA_PATH="/toolkit", CUDA_HOME="/other")
    package = tmp_path / "gpucnn_cuda"
    assert variables == {"CUDA_PATH": str(package), "CUDA_HOME": str(package)}
    assert (package / "include" / "cuda_runtime.h").is_file()
    assert not (package / "bin").exists()


class Installed(PurePosixPath):
    """A file of an installed distribution, as importlib.metadata has it."""

    root: ClassVar[Path]

    def locate(self) -> Path:
        return self.root / self


def test_a_gpucnn_that_is_not_a_checkout_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Installed.root = tmp_path / "from"
    (tmp_path / "from/gpucnn/simulator").mkdir(parents=True)
    (tmp_path / "from/gpucnn/module.py").write_text("text", encoding="utf-8")
    listed = [Installed("gpucnn/module.py"), Installed("gpucnn/missing.py"), Installed("../../../bin/program")]
    monkeypatch.setattr(environment.metadata, "files", lambda name: listed)
    monkeypatch.setattr(toolchain, "HERE", tmp_path / "from/gpucnn/simulator")
    python = modules.Python(Path(sys.executable), tmp_path, tmp_path / "to", ".cpython-311-x86_64-linux-gnu.so", "3.11")
    environment._install_gpucnn(python, tmp_path)
    assert [path for path in (tmp_path / "to").rglob("*") if path.is_file()] == [tmp_path / "to/gpucnn/module.py"]


def test_a_module_is_linked_with_what_programs_look_up_by_name() -> None:
    from gpucnn.simulator.cuda.libraries import LIBRARIES

    linked = {*modules.RUNTIME.needs, *modules.RUNTIME.loads}
    assert linked == {library.name for library in (*LIBRARIES, *absent.LIBRARIES)}
    for moved in environment.NVIDIA_FOLDERS.values():
        assert set(moved) < linked


def test_a_library_that_is_not_simulated_says_so() -> None:
    library = absent.Absent("cusparse", {12: "libcusparse.so.12"}, 10)
    text = absent.source_of(library, ["cusparseCreate", "cusparseGetErrorString"])
    assert "int cusparseCreate() { return absent(__func__); }" in text
    assert 'const char* cusparseGetErrorString() { return "not simulated"; }' in text
    assert "  return 10;" in text


def test_the_instructions_name_the_environment() -> None:
    text = environment.instructions(Path("/env"))
    assert [line.split()[0] for line in text.splitlines()] == ["/env/bin/python", "/env/bin/python", sys.executable]


def test_no_address_of_a_registry_is_in_the_sources() -> None:
    folder = ROOT / "gpucnn/simulator/cupy"
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    assert [name for name, text in texts.items() if re.search(r"https?://|--(extra-)?index-url", text)] == []


def test_progress_is_a_line_for_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    with progress.step("one thing"):
        pass
    assert re.fullmatch(r" +\d+\.\d s  one thing\n", capsys.readouterr().err)
