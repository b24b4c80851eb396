"""The examples in the docstrings of `gpucnn.nn` and `gpucnn.data`, those of the families of layers apart."""

from __future__ import annotations

import doctest
import inspect
import re
from importlib import import_module
from pkgutil import walk_packages

import numpy as np
import pytest

import gpucnn.data
import gpucnn.nn

FAMILIES = {"gpucnn.nn.convolution", "gpucnn.nn.normalization", "gpucnn.nn.pooling"}  # examples in test_layers.py
MODULES = {
    module.name
    for package in (gpucnn.nn, gpucnn.data)
    for module in walk_packages(package.__path__, f"{package.__name__}.")
}


@pytest.mark.parametrize("name", sorted(MODULES - FAMILIES))
def test_examples(name: str) -> None:
    if name.endswith(("checkpoints", "_loading")):
        pytest.importorskip("safetensors")
    module = import_module(name)
    found = doctest.testmod(module, extraglobs={"np": np})
    assert not found.failed
    assert found.attempted == len(re.findall(r">>> (?!.*SKIP)", inspect.getsource(module)))
