"""The guide is whole: its pages are linked in order, say what their code prints, and build without a warning."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [
    "1-from-templates-to-filters",
    "2-convolution-layer",
    "3-special-convolutions",
    "4-pooling",
    "5-normalisation",
    "6-fully-connected-as-convolution",
    "7-fine-tuning",
    "8-convolution-as-matrix-multiplication",
    "9-backward-by-hand",
]
WITH_CODE = [DOCS / "index.md", *(DOCS / "guide" / f"{page}.md" for page in PAGES), DOCS / "gallery.md"]
NEEDS = {"digits(": "sklearn", "from skimage": "skimage"}
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*%?")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def tokens(printed: str) -> list[str]:
    """Words and numbers, without the spaces and brackets by which NumPy lays out arrays."""
    return re.sub(r"[\[\]()]", " ", printed).split()


def same(shown: str, printed: str) -> bool:
    """Whether two words are the same; shares that were trained may differ by five points, from machine to machine."""
    if shown.endswith("%") and printed.endswith("%"):
        return abs(float(shown[:-1]) - float(printed[:-1])) <= 5
    if NUMBER.fullmatch(shown) and NUMBER.fullmatch(printed):
        a, b = float(shown.replace(",", "")), float(printed.replace(",", ""))
        return abs(a - b) <= 1e-3 * max(abs(a), abs(b))
    return shown == printed


def test_pages_are_linked_in_order() -> None:
    assert sorted(path.stem for path in (DOCS / "guide").glob("*.md")) == PAGES
    listed = re.findall(r"^guide/(\S+)$", text_of(DOCS / "index.md"), flags=re.MULTILINE)
    assert listed == PAGES
    reference = sorted(str(path.relative_to(DOCS).with_suffix("")) for path in (DOCS / "api").rglob("*.md"))
    linked = re.findall(
        r"^((?:api|functional|nn)/\S+)$",
        "".join(map(text_of, [DOCS / "index.md", *DOCS.glob("api/*.md")])),
        re.MULTILINE,
    )
    assert sorted(page if page.startswith("api/") else f"api/{page}" for page in linked) == reference
    for page, following in pairwise(PAGES):
        assert re.search(rf"^Next: .*\({following}\.md\)", text_of(DOCS / "guide" / f"{page}.md"), flags=re.MULTILINE)


@pytest.mark.table(1)
@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: path.stem)
def test_pages_show_what_their_code_prints(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = text_of(path)
    for words, module in NEEDS.items():
        if words in text:
            pytest.importorskip(module, reason=f"the page needs {module}")
    blocks = re.findall(r"```(python|text)\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    for (language, block), (following, shown) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language != "python":
            continue
        exec(compile(block, str(path), "exec"), names)
        printed = capsys.readouterr().out
        assert bool(printed) == (following == "text"), (
            f"what this prints is not shown, or shown and not printed:\n{block}"
        )
        if printed:
            pairs = list(zip(tokens(shown), tokens(printed), strict=True))
            assert [pair for pair in pairs if not same(*pair)] == [], printed


@pytest.mark.table(2)
@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: path.stem)
def test_figures_are_drawn_and_described(path: Path) -> None:
    drawn = set(re.findall(r'save\(figure, "([\w-]+)"\)', "".join(map(text_of, (DOCS / "figures").glob("*.py")))))
    figures = re.findall(r"```\{figure\} (\S+)\n(.*?)```", text_of(path), flags=re.DOTALL)
    for target, body in figures:
        assert (path.parent / target).resolve().parent == DOCS / "build" / "figures"
        assert Path(target).stem in drawn
        assert body.startswith(":alt: ")
    assert figures or path.stem == "index"


@pytest.mark.thorough
def test_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    missing = [
        name
        for name in ("sphinx", "myst_parser", "pydata_sphinx_theme", "matplotlib", "skimage", "sklearn")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        reason = f"not installed: {', '.join(missing)}"
        assert os.environ.get("GPUCNN_REQUIRE_SPHINX") != "1", reason
        pytest.skip(reason)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    for page in PAGES:
        html = (tmp_path / "guide" / f"{page}.html").read_text(encoding="utf-8")
        sidebar = html.partition('<nav class="bd-docs-nav')[2].partition("</nav>")[0]
        assert all(f"{other}.html" in sidebar for other in PAGES if other != page), "the sidebar lists all pages"
    sources = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    remote = re.compile(r"<(?:script|link|img)[^>]*(?:src|href)=\"https?://")
    assert [name for name, source in sources.items() if remote.search(source)] == []
