"""The simulated driver, built for the tests that call it through ctypes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from driver_calls import REASON, SETTINGS, VARIABLES, Calls, library_path
from driving import Driver

from gpucnn.simulator import toolchain
from gpucnn.simulator.cuda import control
from gpucnn.simulator.cupy.environment import MARK


@pytest.fixture(scope="session")
def small_driver(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    """The driver with two devices of 64 MiB each, a library of its own next to any that CuPy has loaded."""
    path = library_path()
    if path is None:
        pytest.skip(REASON)
    if find_spec("gpucnn_cuda"):
        import_module("cupy")  # else it would find this copy, by its name, in the place of its own
    own = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    own.write_bytes(path.read_bytes())  # another file is loaded a second time
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(f"GPUCNN_CUDA_{name}", raising=False)
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        cu = Calls(own)
        cu("cuInit", 0)
        cu.library.cudasim_reset()
    return cu


# ---- For test_driver_memory, _devices and _failures ----------------------------------------------------------------


@pytest.fixture
def cu(small_driver: Calls, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """The driver with the primary context of device 0 current, without memory, counts and injected failures.

    `gpucnn.simulator.cuda` controls it, too.
    """
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    contexts = [small_driver.number("cuDevicePrimaryCtxRetain", device) for device in (0, 1)]
    small_driver("cuCtxPushCurrent_v2", contexts[0])
    small_driver.library.cudasim_reset()
    monkeypatch.setattr(control, "SONAME", small_driver.library._name)
    control._library.cache_clear()
    yield small_driver
    control._library.cache_clear()
    small_driver.library.cudasim_reset()
    while small_driver.status("cuCtxPopCurrent_v2", None) == 0:
        pass
    for device in (0, 1):
        small_driver.status("cuDevicePrimaryCtxReset_v2", device)
        small_driver.status("cuDevicePrimaryCtxRelease_v2", device)


# ---- For test_driver_streams, _graphs, _modules and _launches -------------------------------------------------------


@pytest.fixture
def driver(small_driver: Calls) -> Iterator[Driver]:
    """The driver with a current context; work runs when it is issued."""
    toolchain.load(toolchain.runtime("assembly"))  # images ask for it by name
    driver = Driver(small_driver.library)
    yield driver
    driver.end_test()


@pytest.fixture
def late_driver(driver: Driver) -> Driver:
    """The driver with a stream seed: work runs as late as the program allows."""
    driver.set_stream_seed(1)
    return driver


# ---- For tests of CuPy ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cuda_environment() -> Path:
    """The folder of this Python's environment, which ``python -m gpucnn.simulator.cupy`` made.

    Where GPUCNN_REQUIRE_CUDA_SIMULATOR is set, as in CI, it is an error if that did not make it.
    """
    folder = Path(sys.prefix)
    if not (folder / MARK).is_file():
        if os.environ.get("GPUCNN_REQUIRE_CUDA_SIMULATOR"):
            raise pytest.UsageError(f"python -m gpucnn.simulator.cupy did not make {folder}")
        pytest.skip("needs an environment that python -m gpucnn.simulator.cupy made")
    return folder
