"""The documents are true: their code runs, their links lead somewhere, their commands are the ones CI runs."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpucnn

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(path for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md") for path in ROOT.glob(pattern))


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def code_lines(document: Path) -> list[str]:
    """The lines of all blocks of code, without the bodies of directives such as {figure}."""
    lines, inside = [], None
    for line in document.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line[3:] if inside is None else None
        elif inside and not inside.startswith("{"):
            lines.append(line)
    return lines


# Those of the guide run in test_guide.py, which compares what they print.
RUN = [path for path in DOCUMENTS if path.parent.name != "guide" and path.name not in ("gallery.md", "index.md")]


@pytest.mark.parametrize("document", RUN, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_blocks_run(document: Path, request: pytest.FixtureRequest) -> None:
    if "import simulator" in document.read_text(encoding="utf-8"):
        request.getfixturevalue("compiler")
    if "import torch" in document.read_text(encoding="utf-8"):
        request.getfixturevalue("torch")
    if "import jax" in document.read_text(encoding="utf-8"):
        request.getfixturevalue("jax")
    if "import dask" in document.read_text(encoding="utf-8"):
        request.getfixturevalue("dask")
    names: dict[str, Any] = {}
    for block in blocks(document, "python"):
        exec(compile(block, str(document), "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8"))
    local = [target for target in targets if not target.startswith("http")]
    assert [target for target in local if not (document.parent / target).exists()] == []


@pytest.mark.parametrize(
    "document", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name
)
def test_code_fits_between_the_sidebars(document: Path) -> None:
    assert [line for line in code_lines(document) if len(line) > 100] == []


def test_every_environment_variable_is_documented() -> None:
    sources = [path for folder in ("gpucnn", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    text = "".join(
        path.read_text(encoding="utf-8")
        for path in (*sources, ROOT / "tests/conftest.py", ROOT / "tests/simulator/cuda/conftest.py", ROOT / ".ci/run")
    )
    read = set(re.findall(r"(?<!-D)\bGPUCNN_[A-Z_]*[A-Z]\b", text))  # -DGPUCNN_…: a macro of the simulator's C++
    for path in (ROOT / "gpucnn/simulator/cuda").rglob("*.cpp"):
        read |= set(re.findall(r'"(GPUCNN_[A-Z_]+)"', path.read_text(encoding="utf-8")))
    for path in (ROOT / "gpucnn/simulator/include").glob("*.h"):  # macros, which the compiled C++ names
        read -= set(re.findall(r"#define (GPUCNN_[A-Z_]+)", path.read_text(encoding="utf-8")))
    page = (ROOT / "docs" / "environment-variables.md").read_text(encoding="utf-8")
    assert read == set(re.findall(r"^\| `(GPUCNN_[A-Z_]+)` \|", page, flags=re.MULTILINE))


@pytest.mark.parametrize("package", ["gpucnn", "gpucnn.functional", "gpucnn.nn"])
def test_each_public_name_is_on_one_page_of_the_reference(package: str) -> None:
    namespace = importlib.import_module(package)
    homes = {getattr(getattr(namespace, name), "__module__", None) for name in namespace.__all__} - {None}
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").rglob("*.md"))
    listed = re.findall(rf"^\.\. members:: {re.escape(package)} (.*)$", pages, flags=re.MULTILINE)
    assert sorted(module for modules in listed for module in modules.split()) == sorted(homes)


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, flags=re.MULTILINE) == [gpucnn.__version__]


def test_each_extra_that_the_documents_name_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for document in DOCUMENTS:
        named = re.findall(r"pip install[^\n`]*\[([a-z0-9,]+)\]", document.read_text(encoding="utf-8"))
        assert {extra for extras in named for extra in extras.split(",")} <= set(project["optional-dependencies"])


def test_no_document_installs_from_an_index_that_has_no_gpucnn() -> None:
    named = {
        document.name: re.findall(r"pip install [^\n`&]*", document.read_text(encoding="utf-8"))
        for document in DOCUMENTS
    }
    bare = {
        name: [line for line in lines if re.search(r"""(?<![\w/])["']?gpucnn""", line)] for name, lines in named.items()
    }
    assert {name: lines for name, lines in bare.items() if lines} == {}


def test_readme_example_says_its_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    exec(blocks(ROOT / "README.md", "python")[0], {})
    assert capsys.readouterr().out.split("\n")[0] == "(8, 16, 16, 16) (8, 16, 8, 8) (8, 3, 32, 32) (16, 3, 3, 3)"


def test_readme_commands_stand_between_markers() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for marker, command in (
        ("main-command", 'pip install -e ".[bench]" && python -m benchmarks'),
        ("test-command", 'pip install -e ".[test]" && pytest'),
    ):
        between = text.partition(f"<!-- {marker} -->")[2].partition(f"<!-- /{marker} -->")[0]
        assert [line for line in between.splitlines() if line.startswith("pip install")] == [command]


def test_readme_names_operations_of_every_family() -> None:
    """And none that there is not."""
    import gpucnn.functional as F

    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What there is")[2].partition("| networks")[0]
    named = set(re.findall(r"`([a-z0-9_{}]+)`", table))
    homes = {
        re.sub(r"[123]d", "{n}d", name): getattr(F, name).__module__
        for name in F.__all__
        if not name.endswith("_backward")
    }
    assert named <= homes.keys()
    assert {homes[name] for name in named} == set(homes.values())


def test_photograph_example_filters_what_it_is_given() -> None:
    filtered = load(ROOT / "docs" / "examples" / "photograph.py").filtered
    photograph = np.zeros((48, 64, 3), np.uint8)
    photograph[:, 32:] = 255  # one vertical edge
    steps = list(filtered(photograph).values())
    edges, blurred, largest, mean = steps[1:]
    assert set(np.flatnonzero(edges[24] > 0.5)) == {31, 32, 63}  # the edge, and the zero padding at the right border
    np.testing.assert_allclose(blurred[:, :16], 0, atol=1e-6)
    np.testing.assert_allclose(blurred[:, 48:], 1, atol=1e-5)
    assert (np.diff(blurred[24, :, 0]) >= -1e-6).all()
    assert largest.shape == (3, 4)
    assert mean.shape == (3, 4, 3)
    np.testing.assert_allclose(mean[0, :, 0], [0, 0, 1, 1])


@pytest.mark.parametrize("name", ["photograph", "call_to_launch"])
def test_an_example_draws_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name == "photograph":
        pytest.importorskip("skimage", reason="scikit-image is not installed")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    example = load(ROOT / "docs" / "examples" / f"{name}.py")
    monkeypatch.setattr(example, "PICTURE", tmp_path / "images" / "picture.png")
    example.main()
    assert example.PICTURE.read_bytes().startswith(b"\x89PNG")


def test_each_step_from_a_call_to_a_launch_is_linked() -> None:
    example = load(ROOT / "docs" / "examples" / "call_to_launch.py")
    assert {name for pair in example.ARROWS for name in pair} == set(example.STEPS)


def test_debugging_guide_shows_what_is_printed(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    request.getfixturevalue("compiler")
    guide = ROOT / "docs" / "debugging-kernels-without-a-gpu.md"
    names: dict[str, Any] = {}
    for block in blocks(guide, "python"):
        exec(compile(block, str(guide), "exec"), names)
    printed = capsys.readouterr().out.split()
    for shown in blocks(guide, "text"):
        words = shown.split()
        assert any(printed[start : start + len(words)] == words for start in range(len(printed)))
