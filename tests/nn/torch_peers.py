"""A module of gpucnn and one of PyTorch with the same names: they are to compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from tolerances import assert_close

from gpucnn import nn


def load(torch: Any, theirs: Any, ours: nn.Module) -> None:
    """Give PyTorch's module copies of our weights and statistics, which must have its names."""
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in ours.state_dict().items()})


def compare(
    torch: Any, ours: nn.Module, theirs: Any, x: Any, seed: int = 0, factor: float = 1.0, relative: bool = False
) -> None:
    """Forward, backward, gradients and what is left in the states of both, within `factor` times the tolerance.

    PyTorch's computes in its parameters' dtype, float64 if it has none. Of a network, `relative`, errors are relative
    to the largest magnitude of each array however small that is, and ten times as large in gradients, which pass all
    layers; of gradients that cancel to nothing, relative to a thousandth of the largest of all.
    """
    wide = next((parameter.dtype for parameter in theirs.parameters()), torch.float64)
    tensor = torch.from_numpy(x.astype(float)).to(wide).requires_grad_()
    y, expected = ours(x), theirs(tensor)
    close = _assert_relatively_close if relative else assert_close
    close(y, expected.detach().numpy(), x.dtype, factor)
    grad = np.random.default_rng(seed).standard_normal(y.shape).astype(x.dtype)
    expected.backward(torch.from_numpy(grad.astype(float)).to(wide))
    of_gradients = 10 * factor if relative else factor
    close(ours.backward(grad), tensor.grad.numpy(), x.dtype, of_gradients)
    gradients = {name: peer.grad.numpy() for name, peer in theirs.named_parameters()}
    assert [name for name, _ in ours.named_parameters()] == list(gradients)
    least = {"least": 1e-3 * max((float(abs(grad).max()) for grad in gradients.values()), default=0.0)}
    for name, parameter in ours.named_parameters():
        close(parameter.grad, gradients[name], x.dtype, of_gradients, **(least if relative else {}))
    for name, array in theirs.state_dict().items():
        mine = ours.state_dict()[name]
        close(mine, array.numpy(), mine.dtype, factor)


def _assert_relatively_close(actual: Any, expected: Any, dtype: Any, factor: float, least: float = 1e-9) -> None:
    """As `assert_close`, relative to the largest magnitude of `expected`, which counts as `least` at least."""
    largest = max(float(abs(expected).max(initial=0.0)), least)
    assert_close(actual, expected, dtype, factor * min(1.0, largest))
