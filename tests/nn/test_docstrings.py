"""The docstrings of layers, data and ranks: arguments, and examples but those of the families of layers."""

from __future__ import annotations

import doctest
import inspect
import re
from importlib import import_module
from pkgutil import walk_packages
from typing import Any

import numpy as np
import pytest
from docstrings import documented, sections_of
from layer_cases import CASES

import gpucnn.data
import gpucnn.distributed
import gpucnn.nn

FAMILIES = {"gpucnn.nn.convolution", "gpucnn.nn.normalization", "gpucnn.nn.pooling"}  # examples in test_layers.py
MODULES = {
    module.name
    for package in (gpucnn.nn, gpucnn.data, gpucnn.distributed)
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


APART = {gpucnn.data.Images, gpucnn.data.Split, gpucnn.data.Compose}  # records, and one of any steps
DOCUMENTED = [
    *(getattr(gpucnn.data, name) for name in gpucnn.data.__all__ if getattr(gpucnn.data, name) not in APART),
    *(getattr(gpucnn.nn, name) for name in CASES),
    *(getattr(gpucnn.distributed, name) for name in gpucnn.distributed.__all__ if name != "Communicator"),
]


@pytest.mark.parametrize("found", DOCUMENTED, ids=lambda found: found.__name__)
def test_docstrings_name_each_argument(found: Any) -> None:
    sections = sections_of(found)
    assert sections["Summary"].strip()
    assert not re.search(r"\{\w+\}", found.__doc__), "a placeholder was left"
    names = [name for name in documented(sections.get("Parameters", "")) if not name.startswith("or ")]
    parameters = [
        re.split("[:=]", str(parameter))[0].strip() for parameter in inspect.signature(found).parameters.values()
    ]
    assert sorted(names) == sorted(parameters)
    if found.__module__.startswith("gpucnn.nn"):
        assert sections["Examples"].strip()
    elif inspect.isfunction(found):
        assert sections["Returns"].strip()
        assert sections["Raises"].strip()


def test_each_name_of_the_data_is_there() -> None:
    assert gpucnn.data.__all__ == sorted(gpucnn.data.__all__)
    assert all(getattr(gpucnn.data, name).__module__.startswith("gpucnn.data.") for name in gpucnn.data.__all__)
