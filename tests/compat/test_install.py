"""`gpucnn.compat.install`: the modules that CuPy 14 removed, as programs look for them, and their end."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gpucnn import compat
from gpucnn.compat import cudnn

NAMES = ["cupy.cudnn", "cupyx.cudnn", "cupy.cuda.cudnn"]
PACKAGES = ["cupy", "cupy.cuda", "cupyx"]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The packages of a CuPy 14 that have nothing in them, in a folder."""
    for name in PACKAGES:
        folder = tmp_path.joinpath(*name.split("."))
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("__version__ = '14.2.0'\n")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("cupy", "cupyx")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("cupy", "cupyx")]:
        del sys.modules[name]


def found(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def test_the_modules_are_there_after_install_and_gone_after_uninstall(stub: Path) -> None:
    assert not any(map(found, NAMES))
    compat.install()
    for name in NAMES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.name == name
        module = importlib.import_module(name)
        assert module.__name__ == name
        assert module.__spec__ is spec
        assert module.__package__ == name.rpartition(".")[0]
        assert module.__doc__ == cudnn.__doc__
        assert set(cudnn.__all__) <= set(dir(module))
        assert all(getattr(module, name) is getattr(cudnn, name) for name in cudnn.__all__)
    compat.uninstall()
    assert not any(map(found, NAMES))
    for name in NAMES:
        package, _, attribute = name.rpartition(".")
        assert not hasattr(sys.modules[package], attribute)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


@pytest.mark.table(10)
@pytest.mark.parametrize(
    "program",
    [
        "import cupy.cudnn\nassert cupy.cudnn.CUDNN_POOLING_MAX == 0",
        "from cupy import cudnn\ncudnn.convolution_forward",
        "import cupyx.cudnn\ncupyx.cudnn.pooling_forward",
        "from cupyx import cudnn\ncudnn.pooling_forward",
        "from cupyx.cudnn import *\nbatch_normalization_forward_training_ex",
        "from cupy.cuda import cudnn\nassert cudnn.available and cudnn.getVersion() >= 8000",
        "import cupy\nimport cupy.cuda\nassert cupy.cuda.cudnn_enabled and cupy.cuda.cudnn.CUDNN_TENSOR_NHWC == 1",
        "import cupy.cuda.cudnn as libcudnn\ntry:\n    raise libcudnn.CuDNNError(8)\nexcept RuntimeError: pass",
        "from importlib import util\nassert util.find_spec('cupy.cuda.cudnn')\nfrom cupy import cudnn",
    ],
)
def test_programs_find_them(stub: Path, program: str) -> None:
    with pytest.raises((ImportError, AttributeError, AssertionError)):
        exec(program, {})
    compat.install()
    exec(program, {})


def test_install_and_uninstall_twice_have_no_further_effect(stub: Path) -> None:
    compat.uninstall()
    compat.install()
    first = sys.modules["cupy.cudnn"]
    compat.install()
    assert sys.modules["cupy.cudnn"] is first
    compat.uninstall()
    compat.uninstall()
    assert not hasattr(sys.modules["cupy.cuda"], "cudnn_enabled")
    compat.install()
    assert sys.modules["cupy.cudnn"] is not first


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("imported", [False, True])
def test_modules_of_cupy_stay(stub: Path, name: str, imported: bool) -> None:
    stub.joinpath(*name.split(".")).with_suffix(".py").write_text("its_own = True")
    importlib.invalidate_caches()
    if imported:
        importlib.import_module(name)
    message = f"install: CuPy 14.2.0 has {name}, expected CuPy 14 or later, which has none"
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        compat.install()
    assert importlib.import_module(name).its_own
    assert not any(found(other) for other in NAMES if other != name)
    compat.uninstall()
    assert importlib.import_module(name).its_own


def test_what_was_put_in_their_place_stays_after_uninstall(stub: Path) -> None:
    compat.install()
    other = ModuleType("cupy.cudnn")
    sys.modules["cupy"].cudnn = other  # type: ignore[attr-defined]
    compat.uninstall()
    assert sys.modules["cupy"].cudnn is other


def test_without_cupy_the_message_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cupy", *NAMES):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"^install: cupy is not installed: pip install .*cuda12"):
        compat.install()
    compat.uninstall()


def test_a_name_that_is_not_there_says_what_is(stub: Path) -> None:
    compat.install()
    module: Any = importlib.import_module("cupy.cudnn")
    for owner in (module, cudnn):
        with pytest.raises(AttributeError, match=r"has no create_rnn_descriptor: of CuPy's cuDNN functions there are"):
            owner.create_rnn_descriptor  # noqa: B018
        assert not hasattr(owner, "get_handle")


def test_the_real_cupy_has_them(cupy: Any) -> None:
    """A convolution as SigPy makes it, from the import to the result."""
    if int(cupy.__version__.partition(".")[0]) < 14:
        with pytest.raises(RuntimeError, match=r"^install: CuPy 13\S* has cupy"):
            compat.install()
        return
    compat.install()
    try:
        assert importlib.util.find_spec("cupy.cuda.cudnn") is not None
        convolution = importlib.import_module("cupy.cudnn").convolution_forward
        assert cupy.cudnn.convolution_forward is convolution
        data, filters = cupy.arange(5, dtype=cupy.float32), cupy.array([1, 2, 4], cupy.float32)
        y = cupy.full((1, 1, 7, 1), cupy.nan, cupy.float32)
        window = (2, 0), (1, 1), (1, 1), 1
        flipped = filters.reshape(1, 1, 3, 1)[:, :, ::-1]
        convolution(data.reshape(1, 1, 5, 1), flipped, None, y, *window, auto_tune=True, tensor_core="auto")
        np.testing.assert_array_equal(y.ravel().get(), np.convolve(data.get(), filters.get()))
    finally:
        compat.uninstall()
    assert importlib.util.find_spec("cupy.cuda.cudnn") is None
