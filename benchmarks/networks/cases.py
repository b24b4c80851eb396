"""The networks, each for inference and for a training step. To add one, add an entry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.cases import chosen, slug
from benchmarks.layers import Tier

FAMILY = "whole network"
OPERATIONS = ("inference", "training_step")
BATCH = 4
CLASSES = 1000
SEED = 0

# of each stage: widening, channels, blocks, the stride of the first one
MOBILENET_V2 = [
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
]  # fmt: skip
VGG_11 = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]


@dataclass(frozen=True)
class Network:
    """A network for square images: as gpucnn has it, and as PyTorch has it.

    `model` makes it with gpucnn, given `gpucnn.nn.models` and a seed; `twin` makes it with PyTorch, given
    `benchmarks.networks.pytorch`. Training has no dropout, so that results can be compared.
    """

    name: str
    model: Callable[[Any, int], Any]
    twin: Callable[[Any], Any]
    size: int = 224
    tiers: tuple[Tier, ...] = ("default", "full")
    batch: int = BATCH
    classes: int = CLASSES


@dataclass(frozen=True)
class NetworkCase:
    """One operation of one network, to be checked and timed."""

    network: Network
    operation: str
    family: str = FAMILY

    @property
    def id(self) -> str:
        """For example ``resnet-50/224x224/training_step``."""
        return f"{slug(self.network.name)}/{self.layer}/{self.operation}"

    @property
    def layer(self) -> str:
        """The size of the images, in place of a layer's name."""
        return f"{self.network.size}x{self.network.size}"

    @property
    def shapes(self) -> str:
        """For example ``4x3x224x224 -> 4x1000``."""
        network = self.network
        return f"{network.batch}x3x{network.size}x{network.size} -> {network.batch}x{network.classes}"


RESNET_18 = Network(
    "ResNet-18",
    lambda models, seed: models.resnet18(rng=seed),
    lambda torch: torch.ResNet((2, 2, 2, 2), CLASSES, 64, False),
)
NETWORKS = (
    # He, Zhang, Ren, Sun 2016
    replace(RESNET_18, size=64, tiers=("quick",)),
    RESNET_18,
    Network(
        "ResNet-50",
        lambda models, seed: models.resnet50(rng=seed),
        lambda torch: torch.ResNet((3, 4, 6, 3), CLASSES, 64, True),
    ),
    # Sandler et al. 2018
    Network(
        "MobileNetV2",
        lambda models, seed: models.mobilenet_v2(dropout=0.0, rng=seed),
        lambda torch: torch.MobileNetV2(MOBILENET_V2, CLASSES, 32, 1280),
    ),
    # Simonyan, Zisserman 2015: configuration A
    Network(
        "VGG-11",
        lambda models, seed: models.vgg11(dropout=0.0, rng=seed),
        lambda torch: torch.VGG(VGG_11, CLASSES, 4096, False),
    ),
)


def select_networks(
    tier: Tier = "default", filters: Iterable[str] = (), networks: Sequence[Network] = NETWORKS
) -> list[NetworkCase]:
    """The cases of `tier` whose id or family contains every filter, as `benchmarks.cases.select` reads them."""
    cases = [
        NetworkCase(network, operation) for network in networks if tier in network.tiers for operation in OPERATIONS
    ]
    return chosen(cases, filters)
