"""Mutation testing: change the code in one place at a time, and list the changes that no test notices.

    pip install -e .[test,mutation]
    python tests/mutate.py geometry
    python tests/mutate.py numpy --max-children 2 "gpucnn.backends.numpy.pooling.*"

What follows the suite's name goes to ``mutmut run``. It works in a copy of the tree, in which two things are rewritten:

- each ``@decorator`` above a function becomes ``name = decorator(name)`` below it, since mutmut leaves decorated
  functions alone, and much of the geometry is properties and cached makers;
- ``strict=True`` of zip and ``copy=False`` of astype go: the one guards lengths that are equal by construction, the
  other saves time, so no test of results can tell.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("gpucnn", "tests")

# What is mutated, and the tests that judge it: no PyTorch, and no limits on time or memory
SUITES = {
    "geometry": ("gpucnn/geometry", ["geometry", "geometry_axes", "geometry_networks", "small_calls"]),
    "numpy": (
        "gpucnn/backends/numpy",
        [
            *("families", "convolution", "depthwise", "unfolding", "pooling", "upsampling", "interpolation", "padding"),
            *("normalization", "normalization_statistics", "normalization_blocks", "fused_norms", "norm_reductions"),
            "norm_range",
            *("bias_activation", "memory", "memory_format", "numpy_convolution", "numpy_pooling", "numpy_select"),
        ],
    ),
}

CONFIG = """
[tool.mutmut]
source_paths = ["{source}"]
also_copy = ["gpucnn"]
process_isolation = "forkserver" # a fork of a process that ran the tests would inherit its warm caches
pytest_add_cli_args = ["--all", "--hypothesis-profile=mutation", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
"""

UNSEEN = (", strict=True", ", copy=False")
DECORATORS = {"property", "cached_property", "lru_cache", "cache", "remembered"}


def rewritten(source: str) -> str:
    """The same module in a form that mutmut reaches into."""
    for argument in UNSEEN:
        source = source.replace(f"{argument})", ")")
    lines = source.splitlines()
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    for function in sorted(functions, key=lambda node: node.lineno, reverse=True):
        for decorator in function.decorator_list:
            text = ast.unparse(decorator)
            if text.partition("(")[0] in DECORATORS:
                indent = " " * function.col_offset
                lines.insert(function.end_lineno or 0, f"{indent}{function.name} = {text}({function.name})")
                lines[decorator.lineno - 1] = ""
    return "\n".join(lines) + "\n"


def main(suite: str, *arguments: str) -> int:
    """Run mutmut in a copy and print what survived; the copy stays, to look at a mutant or to go on."""
    folder, names = SUITES[suite]
    copy = Path(tempfile.mkdtemp(prefix="mutants-"))
    for name in COPIED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (copy / folder).rglob("*.py"):
        path.write_text(rewritten(path.read_text()))
    config = CONFIG.format(source=folder, tests=[str(*Path("tests").glob(f"*/test_{name}.py")) for name in names])
    (copy / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + config)
    mutmut = [sys.executable, "-m", "mutmut"]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*mutmut, "run", *arguments], cwd=copy, env=environment)
    subprocess.run([*mutmut, "results"], cwd=copy)
    print(f"cd {copy}, then: mutmut show NAME")
    return done.returncode


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in SUITES:
        sys.exit(f"usage: python tests/mutate.py {{{','.join(SUITES)}}} [arguments of mutmut run]")
    sys.exit(main(*sys.argv[1:]))
