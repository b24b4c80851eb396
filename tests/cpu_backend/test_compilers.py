"""The compiled CPU kernels by other compilers, and for 64-bit ARM under emulation: drawn calls are computed right."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import emulated
import pytest

ROOT = Path(__file__).parents[2]


def expect_right(*command: str, **variables: str) -> None:
    """Run a script of tests/, which ends with a failure if a call is computed wrong."""
    arguments = [sys.executable, *command]
    done = subprocess.run(arguments, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr


def skip(reason: str) -> None:
    assert not os.environ.get("GPUCNN_REQUIRE_COMPILERS"), reason
    pytest.skip(reason)


def newest_clang() -> str:
    """A clang++ of version 15 or newer."""
    for name in (*(f"clang++-{version}" for version in range(25, 14, -1)), "clang++"):
        if shutil.which(name):
            version = subprocess.run([name, "-dumpversion"], capture_output=True, text=True, check=True).stdout
            if int(version.partition(".")[0]) >= 15:
                return name
    skip("clang++ 15 or newer is not installed")
    raise AssertionError


@pytest.mark.thorough
def test_by_clang() -> None:
    clang = newest_clang()
    expect_right("tests/fuzz.py", "--dtype", "float32", "--count", "400", "--seed", "8", CXX=clang)
    same_bits = "tests/cpu_backend/test_cpu_optimization.py"
    expect_right("-m", "pytest", "-q", "--backend=compiled", "-k", "float32", same_bits, CXX=clang)


@pytest.mark.thorough
def test_on_64_bit_arm() -> None:
    if emulated.why_unavailable():
        skip(emulated.why_unavailable())
    expect_right("tests/emulated.py", "tests/fuzz.py", "--dtype", "float32", "--count", "200", "--seed", "9")
