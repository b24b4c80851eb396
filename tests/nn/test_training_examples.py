"""The examples in the docstrings of what trains."""

from __future__ import annotations

import doctest
from importlib import import_module

import numpy as np
import pytest

MODULES = {
    "losses": 5,
    "initialization": 12,
    "optimizers": 12,
    "schedules": 25,
    "checkpoints": 6,
    "history": 2,
    "training": 9,
    "_progress": 1,
}


@pytest.mark.parametrize(("module", "least"), MODULES.items())
def test_examples(module: str, least: int) -> None:
    if module == "checkpoints":
        pytest.importorskip("safetensors")
    found = doctest.testmod(import_module(f"gpucnn.nn.{module}"), extraglobs={"np": np})
    assert found.failed == 0
    assert found.attempted >= least
