"""What programs of other people do that the library's own kernels do not."""

from __future__ import annotations

import ctypes

import pytest
from driving import Driver


@pytest.mark.parametrize("mode", ["fast", "check"])
def test_an_empty_kernel_runs(driver: Driver, mode: str) -> None:
    module = driver.module('extern "C" __global__ void nothing(double) {}', mode)
    driver.launch(driver.function(module, "nothing"), ctypes.c_double(1))
