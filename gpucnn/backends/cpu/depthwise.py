"""Depthwise convolutions and those of small groups in C++."""

from __future__ import annotations

from gpucnn.backends.cpu import depthwise_pixels
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import ConvGeometry


def computes(direction: str, geometry: ConvGeometry) -> bool:
    """Whether this module computes a `direction` of a convolution of this geometry."""
    inputs, outputs, groups = geometry.channels
    return groups > 1 and inputs == outputs == groups


def forward(x, w, bias, y, geometry):
    depthwise_pixels.forward(x, w, bias, y, geometry)


def backward_input(grad_y, w, bias, grad_x, geometry):
    depthwise_pixels.backward_input(grad_y, w, bias, grad_x, geometry)


def backward_weight(x, grad_y, grad_w, geometry):
    depthwise_pixels.backward_weight(x, grad_y, grad_w, geometry)
