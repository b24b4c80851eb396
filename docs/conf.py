"""Sphinx configuration: ``pip install -e ".[docs]" && sphinx-build -W -b html docs docs/build/html``."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils.parsers.rst import Directive

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

project = "gpucnn"
author = "the gpucnn developers"
copyright = "the gpucnn developers, MIT licence"
try:
    release = importlib.metadata.version("gpucnn")
except importlib.metadata.PackageNotFoundError:
    release = ""

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "py:obj"  # single backticks in docstrings: a link where there is such a name, code elsewhere
exclude_patterns = ["build"]
templates_path = ["templates"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more: shapes and dtypes
napoleon_google_docstring = False
napoleon_use_ivar = True  # the fields of a NamedTuple are members already
napoleon_use_rtype = False

html_theme = "pydata_sphinx_theme"
html_title = "gpucnn"
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["guide.css"]
html_context = {"default_mode": "light"}
html_sidebars = {"**": ["pages"]}
html_theme_options = {
    "navbar_center": [],  # the sidebar lists all pages
    "navbar_end": ["theme-switcher"],
    "footer_end": [],
    "show_prev_next": True,
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",
}


def draw_figures(*_: object) -> None:
    """Run each script of figures/ whose pictures are older than what they are made of."""
    shared = {DOCS / "figures" / name for name in ("style.py", "page.py")}
    scripts = sorted(set((DOCS / "figures").glob("*.py")) - shared)
    stamps = DOCS / "build" / "figures"
    stamps.mkdir(parents=True, exist_ok=True)
    environment = {"OPENBLAS_NUM_THREADS": "1"} | os.environ
    environment["PYTHONPATH"] = os.pathsep.join([str(DOCS.parent), os.environ.get("PYTHONPATH", "")])
    for script in scripts:
        stamp = stamps / f"{script.stem}.stamp"
        measured = (
            [*DOCS.glob("guide/*.md"), DOCS / "gallery.md"]
            if "import page" in script.read_text(encoding="utf-8")
            else []
        )
        newest = max(path.stat().st_mtime for path in (script, *shared, *measured))
        if not stamp.exists() or stamp.stat().st_mtime < newest:
            subprocess.run([sys.executable, str(script)], check=True, env=environment)
            stamp.touch()


class Members(Directive):
    """``.. members:: PACKAGE MODULE…``: the public names of a package that are defined in these modules."""

    required_arguments = 1
    optional_arguments = 100

    def run(self) -> list[Any]:
        """Replace the directive by one of autodoc's for each name."""
        package, *modules = self.arguments
        namespace = import_module(package)
        lines = [f".. currentmodule:: {package}", ""]
        for name in namespace.__all__:
            member = getattr(namespace, name)
            if getattr(member, "__module__", None) in modules:
                is_class = isinstance(member, type)
                lines += [f".. auto{'class' if is_class else 'function'}:: {name}", *["   :members:"] * is_class, ""]
        self.state_machine.insert_input(lines, self.state_machine.input_lines.source(0))
        return []


def escape_stars(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep the star of a shape such as [N, C, *space] from opening an emphasis; literals and examples stay."""
    for index, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = line.split("``")
            parts[::2] = [re.sub(r"(?<=[\[ (])\*(?=\w*[\],)=])", r"\\*", part) for part in parts[::2]]
            lines[index] = "``".join(parts)


def setup(app: object) -> None:
    """Draw before the first page is read, and mend docstrings before they are taken apart."""
    app.add_directive("members", Members)  # type: ignore[attr-defined]
    app.connect("builder-inited", draw_figures)  # type: ignore[attr-defined]
    app.connect("autodoc-process-docstring", escape_stars, priority=400)  # type: ignore[attr-defined]
