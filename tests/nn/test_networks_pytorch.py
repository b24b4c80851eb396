"""Random networks against PyTorch's: some steps of plain descent, in training and evaluation, with parts frozen."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sample import examples
from tolerances import assert_close

from gpucnn import nn

Layers = list[tuple[str, tuple[Any, ...]]]

# Names and arguments of layers that take images of 4 channels and any size from 2 on, and make such ones.
LAYERS: Layers = [
    ("Conv2d", (4, 4, 3, 1, 1)), ("ConvTranspose2d", (4, 4, 3, 1, 1)), ("BatchNorm2d", (4,)), ("InstanceNorm2d", (4,)),
    ("GroupNorm", (1, 4)), ("ReLU", ()), ("LeakyReLU", ()), ("Tanh", ()), ("MaxPool2d", (2, 2, 1)),
    ("AvgPool2d", (2, 2, 1)), ("Upsample", (6,)),
]  # fmt: skip
FIRST, LAST = ("Conv2d", (3, 4, 3, 1, 1)), [("AdaptiveAvgPool2d", (1,)), ("Flatten", ()), ("Linear", (4, 2))]
networks = st.lists(st.sampled_from(LAYERS), max_size=5).map(lambda layers: [FIRST, *layers, *LAST])


def made(name: str, args: tuple[Any, ...]) -> nn.Module:
    typed = name.startswith(("Conv", "Linear", "Batch", "Group", "Instance"))
    layer: nn.Module = getattr(nn, name)(*args, **({"dtype": np.float64} if typed else {}))
    return layer


@examples(30)
@given(layers=networks, frozen=st.sets(st.integers(0, 7)), seed=st.integers(0, 99))
def test_descent_goes_the_same_way(torch: Any, layers: Layers, frozen: set[int], seed: int) -> None:
    ours = nn.Sequential(*(made(name, args) for name, args in layers))
    theirs = torch.nn.Sequential(*(getattr(torch.nn, name)(*args) for name, args in layers)).double()
    ours.load_state_dict({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    for at in frozen & set(range(len(layers))):
        ours[at].requires_grad_(False)
        theirs[at].requires_grad_(False)
    ours.needs_input_grad = False
    rng = np.random.default_rng(seed)
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        ours.zero_grad()
        theirs.zero_grad()
        x, target = rng.standard_normal((3, 3, 8, 8)), rng.standard_normal((3, 2))
        y, expected = ours(x), theirs(torch.from_numpy(x))
        assert_close(y, expected.detach().numpy(), factor=1e3)  # norms of few values amplify rounding, step by step
        assert ours.backward(y - target) is None
        if expected.requires_grad:
            expected.backward(expected.detach() - torch.from_numpy(target))
        for (name, parameter), peer in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert (parameter.grad is None) == (peer.grad is None), name
            if parameter.grad is not None:
                assert_close(parameter.grad, peer.grad.numpy(), factor=1e5)
                parameter.data -= 0.01 * parameter.grad
                peer.data -= 0.01 * peer.grad
        for name, tensor in theirs.state_dict().items():
            mine = ours.state_dict()[name]
            assert_close(mine, tensor.numpy(), mine.dtype, factor=1e4)
