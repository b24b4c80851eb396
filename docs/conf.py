"""How Sphinx builds the documentation: ``pip install -e ".[docs]" && sphinx-build -W -b html docs docs/build/html``."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

project = "gpucnn"
author = "the gpucnn developers"
copyright = "the gpucnn developers, MIT licence"  # noqa: A001
try:
    release = importlib.metadata.version("gpucnn")
except importlib.metadata.PackageNotFoundError:
    release = ""

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["build"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more: shapes and dtypes
napoleon_google_docstring = False
napoleon_use_rtype = False

html_theme = "pydata_sphinx_theme"
html_title = "gpucnn"
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["guide.css"]
html_context = {"default_mode": "light"}
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "footer_end": [],
    "show_prev_next": True,
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",
}


def draw_figures(*_: object) -> None:
    """Run each script of figures/ whose pictures are older than it or than the style."""
    scripts = sorted((DOCS / "figures").glob("*.py"))
    stamps = DOCS / "build" / "figures"
    stamps.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(DOCS.parent), os.environ.get("PYTHONPATH", "")])}
    for script in scripts:
        stamp = stamps / f"{script.stem}.stamp"
        newest = max(script.stat().st_mtime, (DOCS / "figures" / "style.py").stat().st_mtime)
        if not stamp.exists() or stamp.stat().st_mtime < newest:
            subprocess.run([sys.executable, str(script)], check=True, env=environment)
            stamp.touch()


def setup(app: object) -> None:
    """Draw before the first page is read."""
    app.connect("builder-inited", draw_figures)  # type: ignore[attr-defined]
