# ruff: noqa: E501 - the table keeps one line a layer
"""The cases: layers of published networks, one table, and the selection of cases from it.

The CPU batch keeps a call between about 0.1 and 100 ms on two cores, the GPU batch fills a device.
The order of the table is the order of the run. To add a case, add a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from benchmarks.layers import (
    DTYPE_BYTES,
    TIERS,
    ActivationLayer,
    ConvLayer,
    Device,
    Layer,
    LayoutLayer,
    NormLayer,
    PoolLayer,
    ResampleLayer,
    Shape,
    Tier,
    UnfoldLayer,
    per_axis,
)


@dataclass(frozen=True)
class Case:
    """One operation of one layer at one batch size and dtype: to be checked and timed."""

    layer: Layer
    operation: str
    batch: int
    dtype: str = "float32"

    @property
    def id(self) -> str:
        """For example ``resnet-50/conv1/backward_weight``, with the suffix ``/float16`` for another dtype."""
        dtype = "" if self.dtype == "float32" else f"/{self.dtype}"
        return f"{slug(self.layer.network)}/{self.layer.name}/{self.operation}{dtype}"

    @property
    def dtypes(self) -> tuple[str, str]:
        """The dtypes of input and output, which differ where a layout is changed with a cast."""
        if isinstance(self.layer, LayoutLayer) and self.layer.cast:
            return ("float32", "float16") if self.operation == "pack" else ("float16", "float32")
        return self.dtype, self.dtype

    @property
    def parameter_dtype(self) -> str:
        """The dtype of weight and bias; those of batch norm stay float32, as is usual in mixed precision."""
        batch_norm = isinstance(self.layer, NormLayer) and self.layer.kind == "batch"
        return "float32" if batch_norm else self.dtype

    @property
    def family(self) -> str:
        return self.layer.family

    @property
    def flops(self) -> int:
        return self.layer.flops(self.operation, self.batch)

    @property
    def least_bytes(self) -> int:
        return self.layer.least_bytes(self.operation, self.batch, DTYPE_BYTES[self.dtype])

    @property
    def shapes(self) -> str:
        """For example ``1x64x56x56 -> 1x256x56x56``."""
        sides = self.layer.input_shape(self.batch), self.layer.output_shape(self.batch)
        return " -> ".join("x".join(map(str, shape)) for shape in sides)


AnyCase = TypeVar("AnyCase", bound=Any)  # with an `id` and a `family`


def slug(network: str) -> str:
    """The name of a network as identifiers have it."""
    return re.sub(r"[^a-z0-9.+]+", "-", network.lower())


def chosen(cases: Iterable[AnyCase], filters: Iterable[str]) -> list[AnyCase]:
    """The cases whose id or family contains every filter.

    Words joined by a comma are alternatives: ``--filter vgg,alexnet --filter forward``.
    """
    alternatives = [[word for word in text.lower().split(",") if word] for text in filters]
    return [
        case
        for case in cases
        if all(any(word in f"{case.id} {case.family}" for word in words) for words in alternatives)
    ]


def select(tier: Tier = "default", filters: Iterable[str] = (), device: Device = "cpu") -> list[Case]:
    """The cases of `tier` and of those below it that `filters` leave, as `chosen` reads them.

    On a GPU the cases of its targets come first, and float16 follows float32.
    """
    included = TIERS[: TIERS.index(tier) + 1]
    cases = [
        Case(layer, operation, layer.batch(device), dtype)
        for layer in LAYERS
        if layer.tier in included and device in layer.devices
        for operation in layer.operations
        for dtype in ("float32", "float16")
        if dtype == "float32" or (device == "gpu" and _in_half(layer, tier))
    ]
    if device == "gpu":
        cases.sort(key=_place_on_gpu)
    return chosen(cases, filters)


# Of a GPU's run, should its time be short: the families in the order of what a user gains by their kernels.
_GPU_ORDER = (
    ("depthwise convolution",),
    ("normalization", "backward"),
    ("pooling",),
    ("normalization",),
    ("layout",),
    ("unfolding",),
    ("bias and activation",),
    ("resampling",),
)
_HALF = ("depthwise convolution", "pooling", "normalization", "layout", "bias and activation")


def _in_half(layer: Layer, tier: Tier) -> bool:
    """Whether the layer has float16 cases: families that memory limits, and the quick convolutions, all of them in full.

    A quick run has none.
    """
    if tier == "quick" or (isinstance(layer, LayoutLayer) and layer.cast):
        return False
    convolution = isinstance(layer, ConvLayer) and (layer.tier == "quick" or tier == "full")
    return layer.family in _HALF or convolution


def _place_on_gpu(case: Case) -> tuple[bool, int, bool, int]:
    """Memory-bound families before convolutions; within those float32 first, then by the order of families."""
    kind = (case.family, case.operation)
    places = [place for place, wanted in enumerate(_GPU_ORDER) if kind[: len(wanted)] == wanted]
    place = places[0] if places else len(_GPU_ORDER)
    return not places, TIERS.index(case.layer.tier) if not places else 0, case.dtype != "float32", place


Sizes = int | Shape  # one value for all axes, or one per axis; a single image size is that of a square


def _axes(size: Sizes, **windows: Sizes) -> dict[str, Any]:
    """Sizes, strides and so on with one value per axis."""
    size = (size, size) if isinstance(size, int) else size
    return {"size": size, **{name: per_axis(value, len(size)) for name, value in windows.items()}}


def _conv(
    network: str,
    name: str,
    channels: int,
    out_channels: int,
    size: Sizes,
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    **settings: Any,
) -> ConvLayer:
    axes = _axes(size, kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    shared = {"network": network, "name": name, "channels": channels, **axes, **settings}
    return ConvLayer(out_channels=out_channels, groups=groups, **shared)


def _depthwise(
    network: str, name: str, channels: int, size: Sizes, kernel: int, dilation: int = 1, **settings: Any
) -> ConvLayer:
    """One filter per channel, padded so that stride 1 keeps the size."""
    settings = {"padding": dilation * (kernel - 1) // 2, "dilation": dilation, "gpu_batch": 64, **settings}
    return _conv(network, name, channels, channels, size, kernel, groups=channels, **settings)


def _pool(
    network: str,
    name: str,
    kind: Literal["max", "avg", "adaptive_avg"],
    channels: int,
    size: Sizes,
    kernel: Sizes = 1,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output: Sizes = 1,
    **settings: Any,
) -> PoolLayer:
    windows = {"output": output} if kind == "adaptive_avg" else {"kernel": kernel, "stride": stride, "padding": padding}
    shared = {"gpu_batch": 64, **_axes(size, **windows), **settings}
    return PoolLayer(network=network, name=name, kind=kind, channels=channels, **shared)


def _norm(
    network: str, name: str, kind: Literal["batch", "layer", "group", "instance"], channels: int, size: Shape,
    **settings: Any,
) -> NormLayer:  # fmt: skip
    settings = {"gpu_batch": 64, **settings}
    return NormLayer(network=network, name=name, kind=kind, channels=channels, size=size, **settings)


def _unfold(
    network: str, name: str, channels: int, size: int, kernel: int, stride: int = 1, padding: int = 0, **settings: Any
) -> UnfoldLayer:
    axes = _axes(size, kernel=kernel, stride=stride, padding=padding)
    return UnfoldLayer(network=network, name=name, channels=channels, **axes, **settings)


def _resample(
    network: str, name: str, kind: Literal["nearest", "bilinear", "unpool"], channels: int, size: int, output: int
) -> ResampleLayer:
    return ResampleLayer(network=network, name=name, kind=kind, channels=channels, **_axes(size, output=output))


def _layout(network: str, name: str, channels: int, size: Shape, **settings: Any) -> LayoutLayer:
    return LayoutLayer(network=network, name=name, channels=channels, size=size, gpu_batch=64, **settings)


def _activation(network: str, name: str, channels: int, size: Shape, **settings: Any) -> ActivationLayer:
    return ActivationLayer(network=network, name=name, channels=channels, size=size, gpu_batch=64, **settings)


# fmt: off
CONVOLUTIONS: tuple[ConvLayer, ...] = (
    # Krizhevsky, Sutskever, Hinton 2012, as published: 227 pixels, two groups in conv2
    _conv("AlexNet", "conv1", 3, 96, 227, 11, stride=4, bias=True, cpu_batch=4, gpu_batch=128, tier="quick"),
    _conv("AlexNet", "conv2", 96, 256, 27, 5, padding=2, groups=2, bias=True, cpu_batch=2, gpu_batch=128),
    _conv("AlexNet", "conv3", 256, 384, 13, 3, padding=1, bias=True, cpu_batch=4, gpu_batch=128),
    # Simonyan, Zisserman 2015, table 1, column D
    _conv("VGG-16", "conv1_1", 3, 64, 224, 3, padding=1, bias=True),
    _conv("VGG-16", "conv1_2", 64, 64, 224, 3, padding=1, bias=True),
    _conv("VGG-16", "conv2_2", 128, 128, 112, 3, padding=1, bias=True, tier="full"),
    _conv("VGG-16", "conv3_2", 256, 256, 56, 3, padding=1, bias=True),
    _conv("VGG-16", "conv4_2", 512, 512, 28, 3, padding=1, bias=True, tier="full"),
    _conv("VGG-16", "conv5_2", 512, 512, 14, 3, padding=1, bias=True),
    # He et al. 2016, table 1; the stride of a bottleneck sits in its 3x3, as torchvision has it
    _conv("ResNet-50", "conv1", 3, 64, 224, 7, stride=2, padding=3, tier="quick"),
    _conv("ResNet-50", "conv2_reduce", 256, 64, 56, 1, cpu_batch=2),
    _conv("ResNet-50", "conv2_3x3", 64, 64, 56, 3, padding=1, cpu_batch=2, tier="quick"),
    _conv("ResNet-50", "conv2_expand", 64, 256, 56, 1, cpu_batch=2, tier="quick"),
    _conv("ResNet-50", "conv3_3x3_s2", 128, 128, 56, 3, stride=2, padding=1, cpu_batch=2),
    _conv("ResNet-50", "conv3_shortcut", 256, 512, 56, 1, stride=2, cpu_batch=2),
    _conv("ResNet-50", "conv4_3x3", 256, 256, 14, 3, padding=1, cpu_batch=4),
    _conv("ResNet-50", "conv4_expand", 256, 1024, 14, 1, cpu_batch=4, tier="full"),
    _conv("ResNet-50", "conv5_3x3", 512, 512, 7, 3, padding=1, cpu_batch=4),
    _conv("ResNet-50", "conv5_expand", 512, 2048, 7, 1, cpu_batch=4),
    # Xie et al. 2017, ResNeXt-50 (32x4d), table 1
    _conv("ResNeXt-50", "conv2_3x3", 128, 128, 56, 3, padding=1, groups=32, cpu_batch=2, tier="quick"),
    _conv("ResNeXt-50", "conv3_3x3_s2", 256, 256, 56, 3, stride=2, padding=1, groups=32, tier="full"),
    _conv("ResNeXt-50", "conv4_3x3", 512, 512, 14, 3, padding=1, groups=32, cpu_batch=4),
    # Sandler et al. 2018, table 2: expansion 6, so 24 -> 144 channels at 56 pixels
    _depthwise("MobileNetV2", "dw_96_s2", 96, 112, 3, stride=2),
    _depthwise("MobileNetV2", "dw_144", 144, 56, 3, cpu_batch=4, tier="quick"),
    _depthwise("MobileNetV2", "dw_384", 384, 14, 3, cpu_batch=8, tier="full"),
    _depthwise("MobileNetV2", "dw_960", 960, 7, 3, cpu_batch=8),
    _conv("MobileNetV2", "expand_24_144", 24, 144, 56, 1, cpu_batch=4, gpu_batch=64),
    _conv("MobileNetV2", "project_144_24", 144, 24, 56, 1, cpu_batch=4, gpu_batch=64, tier="full"),
    _conv("MobileNetV2", "head", 320, 1280, 7, 1, cpu_batch=8, gpu_batch=64, tier="full"),
    # Tan, Le 2019, EfficientNet-B0, table 1: 5x5 in stages 4, 6 and 7
    _depthwise("EfficientNet-B0", "dw5_240", 240, 28, 5, cpu_batch=4),
    _depthwise("EfficientNet-B0", "dw5_672_s2", 672, 14, 5, stride=2, cpu_batch=4, tier="full"),
    _depthwise("EfficientNet-B0", "dw5_1152", 1152, 7, 5, cpu_batch=4),
    # Liu et al. 2022, ConvNeXt-T, stage 1
    _depthwise("ConvNeXt-T", "dw7_96", 96, 56, 7, cpu_batch=2),
    # Ding et al. 2022, RepLKNet-31B, stage 1: the largest kernels in use
    _depthwise("RepLKNet-31B", "dw31_128", 128, 56, 31, devices=("gpu",)),
    # Chen et al. 2017: ASPP on 2048 channels, output stride 16 of 513 pixels; block 5 at rate 2
    _conv("DeepLabV3", "block5_rate2", 512, 512, 33, 3, padding=2, dilation=2),
    _conv("DeepLabV3", "aspp_rate6", 2048, 256, 33, 3, padding=6, dilation=6, tier="full"),
    _conv("DeepLabV3", "aspp_rate12", 2048, 256, 33, 3, padding=12, dilation=12),
    _conv("DeepLabV3", "aspp_rate18", 2048, 256, 33, 3, padding=18, dilation=18, tier="full"),
    # Ronneberger et al. 2015, figure 1: unpadded 3x3, 2x2 up-convolutions
    _conv("U-Net", "down3", 128, 256, 140, 3, bias=True, gpu_batch=8, tier="full"),
    _conv("U-Net", "bottom", 512, 1024, 32, 3, bias=True, gpu_batch=8),
    _conv("U-Net", "up1", 1024, 512, 28, 2, stride=2, bias=True, transposed=True, gpu_batch=8),
    _conv("U-Net", "up4", 128, 64, 196, 2, stride=2, bias=True, transposed=True, gpu_batch=8),
    _conv("U-Net", "head", 64, 2, 388, 1, bias=True, gpu_batch=8),
    # Radford et al. 2016, figure 1, with the 4x4 kernels that most implementations use
    _conv("DCGAN", "generator2", 1024, 512, 4, 4, stride=2, padding=1, transposed=True, cpu_batch=8, gpu_batch=128),
    _conv("DCGAN", "generator4", 256, 128, 16, 4, stride=2, padding=1, transposed=True, cpu_batch=4, gpu_batch=128, tier="quick"),
    _conv("DCGAN", "generator5", 128, 3, 32, 4, stride=2, padding=1, transposed=True, cpu_batch=8, gpu_batch=128),
    _conv("DCGAN", "discriminator2", 128, 256, 32, 4, stride=2, padding=1, cpu_batch=4, gpu_batch=128),
    # Baevski et al. 2020: second layer of the feature encoder, one second at 16 kHz
    _conv("wav2vec 2.0", "encoder2", 512, 512, (3199,), 3, stride=2, gpu_batch=16),
    # Radford et al. 2022, tiny: stem over 30 s of 80 mel bands
    _conv("Whisper", "conv1", 80, 384, (3000,), 3, padding=1, bias=True, gpu_batch=16),
    # Luo, Mesgarani 2019, table 2: depthwise over 512 channels, dilation 2**5
    _depthwise("Conv-TasNet", "dw_dilated", 512, (3200,), 3, dilation=32, gpu_batch=16),
    # Tran et al. 2015, figure 3: 3x3x3 on 16 frames of 112 pixels
    _conv("C3D", "conv1a", 3, 64, (16, 112, 112), 3, padding=1, bias=True, gpu_batch=16),
    _conv("C3D", "conv4a", 256, 512, (4, 14, 14), 3, padding=1, bias=True, gpu_batch=16, tier="full"),
    _conv("C3D", "conv5a", 512, 512, (2, 7, 7), 3, padding=1, bias=True, gpu_batch=16),
)

POOLINGS: tuple[PoolLayer, ...] = (
    _pool("AlexNet", "pool1", "max", 96, 55, 3, stride=2, cpu_batch=4),
    _pool("VGG-16", "pool1", "max", 64, 224, 2, stride=2),
    _pool("ResNet-50", "max_pool", "max", 64, 112, 3, stride=2, padding=1, cpu_batch=2, tier="quick"),
    # Szegedy et al. 2015, the pooling branch of inception 3a
    _pool("GoogLeNet", "inception_pool", "max", 192, 28, 3, padding=1, cpu_batch=4),
    # Redmon, Farhadi 2018 with spatial pyramid pooling: windows 5, 9, 13 at stride 1
    _pool("YOLOv3-SPP", "spp13", "max", 512, 19, 13, padding=6),
    _pool("C3D", "pool2", "max", 128, (16, 56, 56), 2, stride=2, gpu_batch=16),
    # Huang et al. 2017, transition 1
    _pool("DenseNet-121", "transition1", "avg", 128, 56, 2, stride=2, cpu_batch=4, tier="quick"),
    # Szegedy et al. 2016, 35x35 blocks
    _pool("Inception-v3", "branch_pool", "avg", 192, 35, 3, padding=1, cpu_batch=4),
    _pool("ResNet-50", "global_avg", "adaptive_avg", 2048, 7, output=1, cpu_batch=8),
    # Zhao et al. 2017: pyramid level of 6x6 bins over 60x60
    _pool("PSPNet", "pyramid6", "adaptive_avg", 2048, 60, output=6),
)

NORMALIZATIONS: tuple[NormLayer, ...] = (
    _norm("ResNet-50", "bn1", "batch", 64, (112, 112), cpu_batch=2, tier="quick"),
    _norm("ResNet-50", "bn5", "batch", 2048, (7, 7), cpu_batch=8),
    _norm("MobileNetV2", "bn_144", "batch", 144, (56, 56), cpu_batch=4),
    # Dosovitskiy et al. 2021, base: 196 patches and a class token
    _norm("ViT-B", "layer_norm", "layer", 768, (197,), cpu_batch=4, tier="quick"),
    _norm("ConvNeXt-T", "layer_norm", "layer", 96, (56, 56), cpu_batch=4),
    # Ho et al. 2020: 32 groups, 128 channels at 32 pixels
    _norm("DDPM", "group_norm", "group", 128, (32, 32), groups=32, cpu_batch=8),
    # Wu, He 2018: Mask R-CNN heads
    _norm("Mask R-CNN", "group_norm", "group", 256, (56, 56), groups=32),
    # Zhu et al. 2017: residual blocks
    _norm("CycleGAN", "instance_norm", "instance", 256, (64, 64), gpu_batch=8),
)

UNFOLDINGS: tuple[UnfoldLayer, ...] = (
    _unfold("AlexNet", "conv1", 3, 227, 11, stride=4),
    _unfold("ResNet-50", "conv2_3x3", 64, 56, 3, padding=1, tier="quick"),
    _unfold("ResNet-50", "conv3_3x3_s2", 128, 56, 3, stride=2, padding=1),
)

RESAMPLINGS: tuple[ResampleLayer, ...] = (
    # Badrinarayanan et al. 2017: the last decoder
    _resample("SegNet", "unpool1", "unpool", 64, 112, 224),
    # Lin et al. 2017: top-down path
    _resample("FPN", "upsample", "nearest", 256, 56, 112),
    # Chen et al. 2017: 21 classes back to the image
    _resample("DeepLabV3", "logits", "bilinear", 21, 33, 513),
    _resample("DeepLabV3+", "decoder", "bilinear", 256, 33, 129),
)

LAYOUTS: tuple[LayoutLayer, ...] = (
    _layout("ResNet-50", "image", 3, (224, 224)),
    _layout("ResNet-50", "image_cast", 3, (224, 224), cast=True),
    _layout("ResNet-50", "conv2_out", 64, (56, 56), tier="quick"),
    _layout("ResNet-50", "conv2_out_cast", 64, (56, 56), cast=True, tier="quick"),
    _layout("ResNet-50", "conv5_out", 2048, (7, 7)),
    _layout("MobileNetV2", "dw_144_out", 144, (56, 56)),
    _layout("VGG-16", "conv1_out", 64, (224, 224)),
)

ACTIVATIONS: tuple[ActivationLayer, ...] = (
    _activation("VGG-16", "conv1_relu", 64, (224, 224)),
    _activation("VGG-16", "conv3_relu", 256, (56, 56), tier="quick"),
    _activation("VGG-16", "conv5_relu", 512, (14, 14)),
)
# fmt: on

LAYERS: tuple[Layer, ...] = (
    *CONVOLUTIONS,
    *POOLINGS,
    *NORMALIZATIONS,
    *UNFOLDINGS,
    *RESAMPLINGS,
    *LAYOUTS,
    *ACTIVATIONS,
)
