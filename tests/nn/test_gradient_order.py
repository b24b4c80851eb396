"""Networks on channels-last images stay in that order in their backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from strategies import arranged

from gpucnn import nn
from gpucnn.backends.layout import is_channels_last
from gpucnn.nn import models

Array = np.ndarray[Any, Any]
NETWORKS: dict[str, Any] = {
    "pooled to a position": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "pooled by a window": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d((12, 14)), nn.Flatten()),
    "flattened": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(672, 2)),
    "ResNet": lambda: models.ResNet(models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=2, width=4, rng=0),
    "MobileNetV2": lambda: models.MobileNetV2(
        num_classes=2, stages=[(1, 8, 1, 1), (6, 16, 2, 2)], last_channels=32, rng=0
    ),
}


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_images_are_in_their_order(backend: ArrayBackend, name: str, last: bool) -> None:
    size = (40, 33) if name in ("ResNet", "MobileNetV2") else (14, 16)
    x = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    model = NETWORKS[name]().map_arrays(backend.asarray)
    seen: list[tuple[bool, bool]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):

            def backward(grad: Any, module: Any = module, of: Any = module.backward) -> Any:
                operands, _ = module._kept
                seen.append((is_channels_last(grad), is_channels_last(operands.x)))
                return of(grad)

            vars(module)["backward"] = backward
    y = model(backend.asarray(arranged(x, "channels_last" if last else "contiguous")))
    grad = model.backward(backend.asarray(np.ones(y.shape, np.float32)))
    assert seen
    assert all(of_grad == of_x == last for of_grad, of_x in seen)
    assert is_channels_last(grad) == last


def test_gradients_are_the_same_in_both_orders() -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, 14, 16))
    for make in list(NETWORKS.values())[:3]:
        model = make().map_arrays(lambda array: array.astype(np.float64))
        grads = []
        for order in ("contiguous", "channels_last"):
            y = model(arranged(x, order))
            grads.append(model.backward(np.arange(y.size, dtype=np.float64).reshape(y.shape)))
        np.testing.assert_allclose(*grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [lambda: nn.AdaptiveAvgPool2d(1), lambda: nn.MaxPool2d(2), nn.Flatten])
def test_tensors_of_other_libraries_are_taken(torch: Any, make: Any) -> None:
    layer, x = make(), torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    grad = layer.backward(layer(x))
    assert isinstance(grad, torch.Tensor)
    assert grad.is_contiguous(memory_format=torch.channels_last)
