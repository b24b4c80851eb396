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


def compare(torch: Any, ours: nn.Module, theirs: Any, x: Any, seed: int = 0, factor: float = 1.0) -> None:
    """Forward, backward, gradients and what is left in the states of both, within `factor` times the tolerance.

    PyTorch's computes in its parameters' dtype, float64 if it has none.
    """
    wide = next((parameter.dtype for parameter in theirs.parameters()), torch.float64)
    tensor = torch.from_numpy(x.astype(float)).to(wide).requires_grad_()
    y, expected = ours(x), theirs(tensor)
    assert_close(y, expected.detach().numpy(), x.dtype, factor)
    grad = np.random.default_rng(seed).standard_normal(y.shape).astype(x.dtype)
    expected.backward(torch.from_numpy(grad.astype(float)).to(wide))
    assert_close(ours.backward(grad), tensor.grad.numpy(), x.dtype, factor)
    for (name, parameter), (other, peer) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other
        assert_close(parameter.grad, peer.grad.numpy(), x.dtype, factor)
    for name, array in theirs.state_dict().items():
        mine = ours.state_dict()[name]
        assert_close(mine, array.numpy(), mine.dtype, factor)
