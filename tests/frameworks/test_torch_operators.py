"""The operators of `gpucnn.torch`: PyTorch's own checks of each, and gradients of all orders."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from torch_calls import operator_calls

OPERATORS = [
    f"{name}{suffix}"
    for name, suffixes in {
        "conv": ("", "_input", "_weight"),
        "conv_transpose": ("", "_input", "_weight"),
        "locally_connected": ("", "_input", "_weight"),
        **dict.fromkeys(("avg_pool", "adaptive_avg_pool", "max_pool", "adaptive_max_pool"), ("", "_input")),
        **dict.fromkeys(("batch_norm", "instance_norm", "group_norm", "layer_norm"), ("", "_input")),
        "normalize": ("",),
    }.items()
    for suffix in suffixes
]


@pytest.fixture(scope="module")
def calls(torch: Any) -> dict[str, tuple[Any, ...]]:
    import_module("gpucnn.torch")
    return operator_calls(torch)


def test_each_operator_is_listed(calls: dict[str, Any]) -> None:
    defined = import_module("gpucnn.torch._registry")._LIBRARY._op_defs
    assert sorted(f"gpucnn::{name}" for name in OPERATORS) == sorted(defined)
    assert sorted(OPERATORS) == sorted(calls)


@pytest.mark.parametrize("name", OPERATORS)
def test_pytorch_finds_each_operator_well_defined(torch: Any, calls: dict[str, Any], name: str) -> None:
    found = torch.library.opcheck(getattr(torch.ops.gpucnn, name).default, calls[name])
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.table(6)
@pytest.mark.parametrize("name", OPERATORS)
def test_first_and_second_derivatives(torch: Any, calls: dict[str, Any], name: str) -> None:
    if name.endswith("norm_input"):
        pytest.skip("its mean and rstd are taken to be those of its input: the norms' own tests differentiate it")
    places = [i for i, one in enumerate(calls[name]) if isinstance(one, torch.Tensor) and one.requires_grad]

    def of_tensors(*tensors: Any) -> Any:
        arguments = [*calls[name]]
        for place, tensor in zip(places, tensors, strict=True):
            arguments[place] = tensor
        result = getattr(torch.ops.gpucnn, name)(*arguments)
        return result[0] if isinstance(result, tuple) else result

    given = [calls[name][place] for place in places]
    assert torch.autograd.gradcheck(of_tensors, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(of_tensors, given, fast_mode=True)
