"""A network with its weights and data, as every implementation is given it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.networks.cases import SEED, Network

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Subject:
    """A network of `gpucnn.nn`, whose weights all implementations copy, and a batch.

    `images` is [N, 3, size, size] in the dtype of the weights, `labels` [N] int64.
    """

    network: Network
    model: Any
    images: Array
    labels: Array

    @property
    def state(self) -> dict[str, Array]:
        """Parameters and buffers by name; not to be written to."""
        state: dict[str, Array] = self.model.state_dict()
        return state

    @property
    def parameters(self) -> int:
        """Numbers that the network learns."""
        return sum(parameter.size for parameter in self.model.parameters())

    def multiply_adds(self) -> int:
        """Multiply-adds of convolutions and linear layers, for the batch; the network is run once to count them."""
        return int(self.model.summary(self.images.shape[1:]).multiply_adds) * len(self.images)

    def copied_model(self) -> Any:
        """The network with its own copies of the arrays."""
        return copy.deepcopy(self.model)

    def in_float64(self) -> Subject:
        """The same numbers in float64."""
        model = self.copied_model().map_arrays(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a)
        return replace(self, model=model, images=self.images.astype(np.float64))


def make_subject(network: Network) -> Subject:
    """The network with random weights, and norms whose statistics, scales and shifts are random too."""
    from gpucnn import nn
    from gpucnn.nn import models

    model = network.model(models, SEED).eval()
    rng = np.random.default_rng(SEED)
    norms: list[Any] = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        for values, low, high in (
            (norm.weight.data, 0.5, 1.5),
            (norm.bias.data, -0.5, 0.5),
            (norm.running_mean, -0.5, 0.5),
            (norm.running_var, 0.5, 2.0),
        ):
            values[...] = rng.uniform(low, high, values.shape)
    images = rng.standard_normal((network.batch, 3, network.size, network.size), np.float32)
    return Subject(network, model, images, rng.integers(network.classes, size=network.batch))
