"""Installing: each message names a command that works for the gpucnn that prints it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpucnn import installing
from gpucnn.examples import _report, digits
from gpucnn.installing import install_command, optional

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]

# --- The command --------------------------------------------------------------------------------------------------


def installed_from(monkeypatch: pytest.MonkeyPatch, folder: Path, origin: dict[str, object] | None) -> None:
    """Let gpucnn be installed in `folder`, where pip noted `origin`."""
    monkeypatch.setattr(installing, "CHECKOUT", folder)
    text = None if origin is None else json.dumps(origin)
    monkeypatch.setattr(metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda file: text))


def test_a_checkout_installs_itself() -> None:
    assert install_command("cuda12") == f'pip install -e "{ROOT}[cuda12]"'


@pytest.mark.parametrize(
    ("origin", "requirement"),
    [
        (None, "gpucnn[cuda12]"),
        ({"url": "file:///gpucnn", "dir_info": {}}, "gpucnn[cuda12] @ file:///gpucnn"),
        (
            {"url": "https://example.org/gpucnn-0.1.0-py3-none-any.whl", "archive_info": {}},
            "gpucnn[cuda12] @ https://example.org/gpucnn-0.1.0-py3-none-any.whl",
        ),
        (
            {"url": "https://example.org/gpucnn.git", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}},
            "gpucnn[cuda12] @ git+https://example.org/gpucnn.git@0a1b",
        ),
    ],
    ids=["index", "folder", "wheel", "git"],
)
def test_an_installed_gpucnn_names_where_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: dict[str, object] | None, requirement: str
) -> None:
    installed_from(monkeypatch, tmp_path, origin)
    assert shlex.split(install_command("cuda12")) == ["pip", "install", requirement]


def test_a_copy_that_pip_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "CHECKOUT", tmp_path)
    monkeypatch.setattr(sys, "path", [])  # nothing is installed
    assert install_command("train") == 'pip install "gpucnn[train]"'


def test_each_extra_that_a_message_names_exists() -> None:
    named = {
        extra
        for folder in ("gpucnn", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for extra in re.findall(
            r"""(?:install_command\(|optional\([^)]*, )["'](\w+)["']\)""", path.read_text(encoding="utf-8")
        )
    }
    assert {"bench", "cuda12", "examples", "test", "train"} <= named
    assert named <= set(EXTRAS)


def test_no_message_words_a_command_of_its_own() -> None:
    of_its_own = re.compile(r"pip install [^\n]*gpucnn\[")
    files = [path for folder in ("gpucnn", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    found = [path for path in files if of_its_own.search(path.read_text(encoding="utf-8"))]
    assert found == [ROOT / "gpucnn" / "installing.py"]


# --- Optional modules ---------------------------------------------------------------------------------------------


def test_an_installed_module_is_imported() -> None:
    assert optional("op", "json.decoder", "train") is json.decoder


@pytest.mark.parametrize(("module", "project"), [("matplotlib.figure", "matplotlib"), ("PIL.Image", "Pillow")])
def test_a_missing_package_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, module: str, project: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = f"History.plot: {project} is not installed: {install_command('train')}"
    with pytest.raises(ModuleNotFoundError, match=f"^{re.escape(message)}$"):
        optional("History.plot", module, "train")


def test_a_package_that_itself_lacks_another_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_package\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'no_such_package'$"):
        optional("op", "half_installed", "train")


def test_an_example_says_what_to_install_before_it_trains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(_report, "NEEDED", ("no_such_package",))
    with pytest.raises(SystemExit, match="2"):
        digits.main(["--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    expected = f"python -m gpucnn.examples.digits: no_such_package is not installed: {install_command('examples')}\n"
    assert (said.out, said.err) == ("", expected)
    assert not (tmp_path / "out").exists()


def test_a_command_is_worded_without_loading_numpy() -> None:
    code = "import sys, gpucnn.installing; print(gpucnn.installing.install_command('bench'), 'numpy' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{install_command('bench')} False\n"
