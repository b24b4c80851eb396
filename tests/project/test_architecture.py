"""Who may import whom, what an import loads, and that the repository stands on its own."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import gpucnn

PACKAGE = Path(gpucnn.__file__).parent
REPOSITORY = Path(__file__).parents[2]
STDLIB = frozenset(sys.stdlib_module_names)

CUDA_BACKEND = {
    "gpucnn.__version__", "gpucnn.backends.base", "gpucnn.backends.cuda", "gpucnn.backends.dtypes",
    "gpucnn.backends.layout", "gpucnn.backends.listening", "gpucnn.backends.replaying", "gpucnn.backends.samples",
    "gpucnn.geometry", "gpucnn.paths", "gpucnn.compilation", "gpucnn.installing", "gpucnn.numerics", "numpy",
}  # fmt: skip

NETWORKS = {
    "gpucnn.__version__", "gpucnn.backends.backend_named", "gpucnn.backends.backend_of", "gpucnn.backends.deferring",
    "gpucnn.backends.dtypes", "gpucnn.backends.layout", "gpucnn.backends.optimization", "gpucnn.backends.receive",
    "gpucnn.functional", "gpucnn.geometry", "gpucnn.installing", "gpucnn.nn", "numpy", "matplotlib", "ml_dtypes",
    "rich", "safetensors",
}  # fmt: skip

# What each part of the package may import: parts of the package, and libraries beside the standard one. A part is a
# module and all below it; of several that a module is part of, the longest counts.
MAY_IMPORT: dict[str, set[str]] = {
    "gpucnn": {
        "gpucnn.backends", "gpucnn.compat", "gpucnn.data", "gpucnn.distributed", "gpucnn.explaining",
        "gpucnn.functional",
        "gpucnn.geometry", "gpucnn.information", "gpucnn.memory_format", "gpucnn.nn", "gpucnn.numerics",
        "gpucnn.onnx", "gpucnn.simulator", "gpucnn.tuning", "gpucnn.warm_up",
    },
    "gpucnn.explaining": {
        "gpucnn.backends.Backend", "gpucnn.backends.backend_of", "gpucnn.backends.cpu",
        "gpucnn.backends.cuda.convolution.select", "gpucnn.backends.cuda.device.simulator_runtime",
        "gpucnn.backends.cuda.launch", "gpucnn.backends.dtypes", "gpucnn.backends.layout",
        "gpucnn.backends.listening",
        "gpucnn.backends.numpy.select", "gpucnn.functional", "gpucnn.geometry", "gpucnn.numerics", "numpy",
    },
    "gpucnn.tuning": {
        "gpucnn.backends.backend_named", "gpucnn.backends.cuda.convolution.select",
        "gpucnn.backends.cuda.device.background", "gpucnn.numerics", "gpucnn.warm_up", "numpy",
    },
    "gpucnn.warm_up": {
        "gpucnn.backends.Backend", "gpucnn.backends.backend_named", "gpucnn.backends.backend_of",
        "gpucnn.backends.cpu.builds", "gpucnn.backends.cuda", "gpucnn.backends.listening", "gpucnn.functional",
        "gpucnn.geometry", "gpucnn.nn",
        "numpy", "rich",
    },
    "gpucnn.__main__": {"gpucnn.information"},
    "gpucnn.information": {
        "gpucnn.__version__", "gpucnn.backends", "gpucnn.numerics", "gpucnn.paths", "gpucnn.warm_up", "numpy",
        "threadpoolctl",
    },
    "gpucnn.memory_format": {
        "gpucnn.backends.dtypes", "gpucnn.backends.replaying", "gpucnn.functional._call", "numpy",
    },
    "gpucnn.installing": set(),
    "gpucnn.paths": set(),
    "gpucnn.numerics": set(),
    "gpucnn.functional": {
        "gpucnn.functional", "gpucnn.geometry", "gpucnn.backends.Epilogue", "gpucnn.backends.kind_of",
        "gpucnn.backends.receive", "gpucnn.backends.deferring", "gpucnn.backends.dtypes", "gpucnn.backends.layout",
        "gpucnn.backends.replaying", "numpy",
    },
    "gpucnn.backends": {
        "gpucnn.backends.base", "gpucnn.backends.bfloat16", "gpucnn.backends.cpu", "gpucnn.backends.numpy",
        "gpucnn.backends.cuda", "gpucnn.backends.deferring", "gpucnn.backends.replaying", "gpucnn.simulator", "numpy",
    },
    "gpucnn.backends.bfloat16": {"ml_dtypes", "numpy"},
    "gpucnn.backends.base": {
        "gpucnn.backends.layout", "gpucnn.backends.optimization", "gpucnn.backends.smooth", "gpucnn.geometry",
    },
    "gpucnn.backends.deferring": set(),
    "gpucnn.backends.dtypes": {"numpy"},
    "gpucnn.backends.layout": set(),
    "gpucnn.backends.normal": set(),
    "gpucnn.backends.optimization": set(),
    "gpucnn.backends.listening": set(),
    "gpucnn.backends.replaying": {
        "gpucnn.backends.deferring", "gpucnn.backends.listening", "gpucnn.geometry", "gpucnn.numerics", "numpy",
    },
    "gpucnn.backends.smooth": {"gpucnn.backends.dtypes", "gpucnn.backends.normal", "numpy"},
    "gpucnn.backends.samples": {"gpucnn.geometry", "numpy"},
    "gpucnn.backends.numpy": {
        "gpucnn.backends.base", "gpucnn.backends.dtypes", "gpucnn.backends.layout", "gpucnn.backends.listening",
        "gpucnn.backends.numpy", "gpucnn.backends.optimization", "gpucnn.backends.samples", "gpucnn.backends.smooth",
        "gpucnn.geometry", "numpy",
    },
    "gpucnn.backends.numpy.convolution": {
        "gpucnn.backends.dtypes", "gpucnn.backends.numpy", "gpucnn.geometry", "gpucnn.numerics",
    },
    "gpucnn.backends.numpy.threads": {"gpucnn.geometry", "threadpoolctl"},
    "gpucnn.backends.cpu": {
        "gpucnn.backends.base", "gpucnn.backends.cpu", "gpucnn.backends.dtypes", "gpucnn.backends.layout",
        "gpucnn.backends.listening", "gpucnn.backends.numpy",
        "gpucnn.backends.optimization", "gpucnn.backends.replaying", "gpucnn.backends.samples", "gpucnn.compilation",
        "gpucnn.geometry", "gpucnn.numerics", "gpucnn.paths", "numpy",
    },
    "gpucnn.compilation": {"gpucnn.compilation"},
    "gpucnn.backends.cuda": CUDA_BACKEND,
    "gpucnn.backends.cuda.device.cupy_runtime": CUDA_BACKEND | {"cupy", "cupy_backends"},
    "gpucnn.backends.cuda.device.libraries": {"cuda"},
    "gpucnn.backends.cuda.device.simulator_runtime": CUDA_BACKEND | {"gpucnn.simulator"},
    "gpucnn.simulator": {"gpucnn.compilation", "gpucnn.simulator", "gpucnn.paths", "numpy"},
    "gpucnn.simulator.cupy": {"cupy", "gpucnn.paths", "gpucnn.simulator", "rich"},
    "gpucnn.simulator.pytest_plugin": {"cupy", "cupy_backends", "gpucnn.simulator", "pytest"},
    "gpucnn.simulator.profiles": {"gpucnn.installing", "gpucnn.simulator", "matplotlib"},
    "gpucnn.geometry": {"gpucnn.geometry"},
    "gpucnn.compat": {
        "gpucnn.backends.Backend", "gpucnn.backends.receive", "gpucnn.backends.dtypes", "gpucnn.backends.layout",
        "gpucnn.compat", "gpucnn.functional", "gpucnn.geometry", "gpucnn.numerics",
    },
    "gpucnn.compat.modules": {"cupy", "gpucnn.compat", "gpucnn.installing"},
    "gpucnn.nn": NETWORKS,
    "gpucnn.nn.module": NETWORKS | {"gpucnn.onnx.exporting"},
    "gpucnn.nn.training": NETWORKS | {"gpucnn.distributed.training"},
    "gpucnn.distributed": {
        "gpucnn.backends.backend_of", "gpucnn.backends.dtypes", "gpucnn.distributed", "gpucnn.functional",
        "gpucnn.geometry", "gpucnn.installing", "gpucnn.nn", "mpi4py", "numpy",
    },
    "gpucnn.distributed.nccl": {"cupy", "gpucnn.distributed", "gpucnn.installing", "numpy"},
    "gpucnn.onnx": {
        "gpucnn.__version__", "gpucnn.backends.backend", "gpucnn.backends.backend_named", "gpucnn.backends.cpu.library",
        "gpucnn.backends.listening", "gpucnn.backends.receive", "gpucnn.functional", "gpucnn.geometry",
        "gpucnn.installing", "gpucnn.nn", "gpucnn.numerics", "gpucnn.onnx", "ml_dtypes", "numpy", "onnx",
    },
    "gpucnn.onnx.operators": {
        "gpucnn.backends.backend_of", "gpucnn.backends.dtypes", "gpucnn.backends.normal", "gpucnn.functional",
        "gpucnn.geometry", "gpucnn.onnx", "numpy",
    },
    "gpucnn.compat.thinc": {"gpucnn.backends.dtypes", "gpucnn.compat", "gpucnn.geometry", "numpy"},
    "gpucnn.dask": {
        "dask", "gpucnn.backends.backend", "gpucnn.backends.backend_of", "gpucnn.backends.chosen",
        "gpucnn.backends.deferring", "gpucnn.backends.dtypes", "gpucnn.backends.receive", "gpucnn.dask",
        "gpucnn.functional", "gpucnn.geometry", "gpucnn.numerics", "numpy",
    },
    "gpucnn.jax": {"gpucnn.backends.dtypes", "gpucnn.functional", "gpucnn.geometry", "gpucnn.jax", "jax", "numpy"},
    "gpucnn.torch": {
        "cupy", "gpucnn.backends.bfloat16", "gpucnn.functional", "gpucnn.geometry", "gpucnn.torch", "torch",
    },
    "gpucnn.data": {"gpucnn.backends.backend_of", "gpucnn.backends.receive", "gpucnn.data", "numpy"},
    "gpucnn.data.datasets": {"gpucnn.data", "gpucnn.functional.interpolate", "gpucnn.installing", "numpy", "sklearn"},
    "gpucnn.data.folders": {"gpucnn.data", "gpucnn.geometry", "gpucnn.installing", "numpy", "PIL"},
    "gpucnn.examples": {
        "gpucnn.data", "gpucnn.distributed", "gpucnn.examples", "gpucnn.functional", "gpucnn.installing", "gpucnn.nn",
        "gpucnn.set_num_threads", "numpy", "matplotlib", "rich", "threadpoolctl",
    },
    "gpucnn.examples.read_text": {
        "gpucnn.functional", "gpucnn.installing", "gpucnn.onnx", "gpucnn.set_num_threads", "numpy", "onnx",
        "PIL",
    },
}  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def is_part(name: str, of: str) -> bool:
    return name == of or name.startswith(f"{of}.")


@cache
def imported(path: Path) -> tuple[str, ...]:
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    """The full name of everything that a file imports, wherever it does, and by whatever means."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0], ast.Constant):
                yield node.args[0].value
            elif name == "optional" and isinstance(node.args[1], ast.Constant):
                yield node.args[1].value


def test_modules_are_found() -> None:
    assert {"gpucnn", "gpucnn.functional.convolution", "gpucnn.backends.numpy.memory"} <= set(MODULES)
    assert "gpucnn.geometry.axes.Axis" in imported(PACKAGE / "geometry" / "geometries.py")
    assert "threadpoolctl" in imported(PACKAGE / "information.py")


@pytest.mark.table(1000)
@pytest.mark.parametrize("module", MODULES)
def test_nothing_lower_imports_anything_higher(module: str) -> None:
    part = max((part for part in MAY_IMPORT if is_part(module, part)), key=len)
    allowed = MAY_IMPORT[part]
    for name in imported(MODULES[module]):
        within = name.partition(".")[0] in STDLIB or any(is_part(name, other) for other in allowed)
        assert within, f"{module} imports {name}, expected only {sorted(allowed)} and the standard library"


def imported_modules(module: str) -> set[str]:
    """The package's modules that one imports, wherever it does, for annotations too."""
    names = imported(MODULES[module])
    found = {name if name in MODULES else name.rpartition(".")[0] for name in names}
    return found & set(MODULES) - {module, "gpucnn"}  # its version is there before it imports anything


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {module: imported_modules(module) for module in MODULES if module != "gpucnn"}
    assert "gpucnn.backends.layout" in graph["gpucnn.backends.numpy.memory"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


@pytest.mark.table(1000)
@pytest.mark.parametrize("part", MAY_IMPORT)
def test_each_rule_is_about_a_module(part: str) -> None:
    assert part in MODULES


@pytest.mark.parametrize("library", ["cupy", "torch", "ml_dtypes", "jax", "dask"])
def test_no_module_imports_a_peer(library: str) -> None:
    # NumPy's bfloat16 is that of ml_dtypes, which is loaded where a tensor of it is taken or layers compute in it
    simulated = {"cupy.allocations", "cupy.self_test", "pytest_plugin"}  # run in an environment with CuPy alone
    may = {
        "cupy": {
            "gpucnn.backends.cuda.device.cupy_runtime",
            "gpucnn.compat.modules",
            "gpucnn.distributed.nccl",
            "gpucnn.torch._tensors",
            *(f"gpucnn.simulator.{name}" for name in simulated),
        },
        "ml_dtypes": {"gpucnn.backends.bfloat16", "gpucnn.nn.precision", "gpucnn.onnx.tensors"},
    }.get(library, set())
    found = {module for module, path in MODULES.items() if any(is_part(name, library) for name in imported(path))}
    assert {module for module in found if not is_part(module, f"gpucnn.{library}")} == may


# --- What an import loads -----------------------------------------------------------------------------------------


def loaded(code: str, before: str = "pass") -> set[str]:
    """The modules that `code` loads in a fresh interpreter that ran `before`."""
    lines = ["import json, sys", before, "old = set(sys.modules)", code, "print(json.dumps([*set(sys.modules) - old]))"]
    ran = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    return set(json.loads(ran.stdout))


def of(library: str, modules: set[str]) -> set[str]:
    return {module for module in modules if is_part(module, library)}


PARTS = ("backends", "compat", "data", "functional", "geometry", "nn", "onnx", "simulator")
PEERS = (
    "cupy", "onnx", "torch", "ml_dtypes", "jax", "dask", "threadpoolctl", "onnxruntime", "matplotlib", "hypothesis",
    "pytest",
)  # fmt: skip


@pytest.mark.parametrize(
    ("code", "before", "never"),
    [
        ("import gpucnn", "pass", (*PEERS, "numpy", *(f"gpucnn.{part}" for part in PARTS))),
        (
            "import gpucnn.functional", "import numpy",
            (*PEERS, "numpy", "gpucnn.backends.numpy", "gpucnn.information"),
        ),
        (
            "import gpucnn.nn, gpucnn.data", "import numpy, gpucnn.functional",
            (*PEERS, "rich", "safetensors", "sklearn", "PIL", "gpucnn.simulator"),
        ),
        (
            "x = np.ones((1, 1, 3, 3))\nF.conv2d(x, x)\nF.relu(np.ones(3).view(np.matrix))",
            "import numpy as np, gpucnn.functional as F",
            (*(peer for peer in PEERS if peer != "threadpoolctl"), "gpucnn.backends.cuda", "gpucnn.simulator"),
        ),
        (
            "gpucnn.functional.softmax(gpucnn.simulator.asarray(np.ones(3)), 0)", "import numpy as np, gpucnn",
            (*PEERS, "gpucnn.backends.numpy", "gpucnn.backends.cuda.device.cupy_runtime"),
        ),
    ],
    ids=["the package", "operations", "networks and data", "computing", "computing on the simulator"],
)  # fmt: skip
def test_nothing_is_loaded_that_is_not_needed(code: str, before: str, never: tuple[str, ...]) -> None:
    """Of threadpoolctl only where something is computed: it holds BLAS to one thread."""
    modules = loaded(code, before)
    assert {name for library in never for name in of(library, modules)} == set()


def test_importing_the_geometry_loads_no_library() -> None:
    modules = loaded("import gpucnn.geometry")
    assert of("gpucnn", modules) == {name for name in MODULES if is_part(name, "gpucnn.geometry")} | {"gpucnn"}
    assert not of("numpy", modules)
    assert not any(of(peer, modules) for peer in PEERS)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_loaded_when_it_is_first_used(part: str) -> None:
    assert f"gpucnn.{part}" in loaded(f"gpucnn.{part}", before="import gpucnn")


# --- The repository -----------------------------------------------------------------------------------------------

TEXT = {".py", ".md", ".toml", ".txt", ".json", ".cu", ".cuh", ".yml", ".yaml", ".cfg", ".sh", ""}
FOLDERS = "ho[m]e|wor[k]|tm[p]|Use[r]s|roo[t]|mn[t]"  # in brackets, so that this line is not found itself
MACHINES = re.compile(rf"[.][.]/share[d]\b|(?<![\w.~])/(?:{FOLDERS})/|\b[A-Z]:\\+(?:{FOLDERS})")


def repository_files() -> list[Path]:
    hidden = re.compile(r"(^|/)(\.(?!ci/|gitignore)|__pycache__|[^/]*\.egg-info|build/|dist/)")
    files = (path for path in REPOSITORY.rglob("*") if path.is_file() and path.suffix in TEXT)
    return [path for path in files if not hidden.search(path.relative_to(REPOSITORY).as_posix())]


def test_the_pattern_of_paths_finds_paths() -> None:
    for path in ("open('../" + "shared/x')", "see /" + "home/me/x", "/" + "tmp/x", '"C:\\\\' + 'Users\\\\me"'):
        assert MACHINES.search(path), path
    for no_path in ("https://example.org/ho" + "me/", "gpucnn/tm" + "p/x", "~/wor" + "k/", "../share" + "dness"):
        assert not MACHINES.search(no_path), no_path


def test_no_file_names_a_path_of_one_machine() -> None:
    files = repository_files()
    assert {"pyproject.toml", "README.md", "conftest.py", "convolution.py"} <= {path.name for path in files}
    found = {
        f"{path.relative_to(REPOSITORY)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINES.search(line)
    }
    assert not found


def test_the_package_is_typed_and_needs_numpy_and_the_threads_of_its_blas() -> None:
    assert (PACKAGE / "py.typed").is_file()
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^dependencies = \["numpy>=2\.3", "threadpoolctl>=3\.5"\]$', text, re.MULTILINE)
