"""The installed files: every package of the tree, the kernels, and all that the simulator compiles."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def test_every_package_is_listed() -> None:
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "gpucnn").rglob("__init__.py")}
    assert set(SETUPTOOLS["packages"]) == found | {"gpucnn.kernels"}
    assert SETUPTOOLS["package-dir"]["gpucnn.kernels"] == "kernels"


def test_files_that_are_not_python_are_listed() -> None:
    folders = {
        "gpucnn": ROOT / "gpucnn",
        "gpucnn.kernels": ROOT / "kernels",
        "gpucnn.simulator": ROOT / "gpucnn/simulator",
        "gpucnn.simulator.cuda": ROOT / "gpucnn/simulator/cuda",
    }
    listed = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in folders[package].glob(pattern)
        if path.is_file()
    }
    suffixes = {".cu", ".cuh", ".cpp", ".h", ".hpp", ".inc", ".typed"}
    there = {path for folder in ("gpucnn", "kernels") for path in (ROOT / folder).rglob("*") if path.suffix in suffixes}
    assert there - listed == set()
