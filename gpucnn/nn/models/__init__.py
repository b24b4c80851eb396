"""Networks of the literature, small enough to read and with the names of torchvision's and PyTorch's weights.

Each takes `num_classes` or what stands for it, widths that scale it down, and ``rng=`` for its random weights; the
variants of a family are functions, such as `resnet18` and `vgg16_bn`.
"""

from __future__ import annotations

from gpucnn.nn.models.alexnet import AlexNet, alexnet
from gpucnn.nn.models.dcgan import DCGANDiscriminator, DCGANGenerator
from gpucnn.nn.models.efficientnet import EfficientNetLite, MBConv, efficientnet_lite0
from gpucnn.nn.models.lenet import LeNet
from gpucnn.nn.models.mobilenet import InvertedResidual, MobileNetV2, mobilenet_v2
from gpucnn.nn.models.resnet import BasicBlock, Bottleneck, ResNet, resnet18, resnet34, resnet50, resnet101
from gpucnn.nn.models.unet import UNet
from gpucnn.nn.models.vgg import VGG, vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn

__all__ = [
    "VGG", "AlexNet", "BasicBlock", "Bottleneck", "DCGANDiscriminator", "DCGANGenerator", "EfficientNetLite",
    "InvertedResidual", "LeNet", "MBConv", "MobileNetV2", "ResNet", "UNet", "alexnet", "efficientnet_lite0",
    "mobilenet_v2", "resnet18", "resnet34", "resnet50", "resnet101", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn",
    "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
]  # fmt: skip
