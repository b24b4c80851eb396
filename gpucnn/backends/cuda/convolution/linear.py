"""Fully connected layers: 1×1 convolutions of one image, whose positions are the rows of x, channels last."""

from __future__ import annotations

from gpucnn.backends.cuda.convolution import convolution
from gpucnn.backends.cuda.device.runtime import Array, Runtime
from gpucnn.geometry import ConvGeometry
from gpucnn.geometry.geometries import Channels, conv_geometry


def linear(runtime: Runtime, x: Array, w: Array, bias: Array | None, y: Array) -> None:
    """Y [N, OUT] = x [N, IN] times w [OUT, IN] transposed, plus bias [OUT]."""
    if len(x):
        convolution.convolve(runtime, _image(x), _filters(w), bias, _image(y), _geometry(x, w))


def linear_backward_input(runtime: Runtime, grad_y: Array, w: Array, grad_x: Array) -> None:
    """grad_x [N, IN] = grad_y [N, OUT] times w [OUT, IN]."""
    if len(grad_x):
        geometry = _geometry(grad_x, w)
        convolution.convolve_backward_input(runtime, _image(grad_y), _filters(w), None, _image(grad_x), geometry)


def linear_backward_weight(runtime: Runtime, x: Array, grad_y: Array, grad_w: Array) -> None:
    """grad_w [OUT, IN] = grad_y [N, OUT] transposed times x [N, IN]."""
    if not len(x):
        grad_w[...] = 0
        return
    geometry = _geometry(x, grad_w)
    convolution.convolve_backward_weight(runtime, _image(x), _image(grad_y), _filters(grad_w), geometry)


def _image(rows: Array) -> Array:
    """Rows [N, C] as the image [1, C, 1, 1, N]."""
    return rows.T[None, :, None, None, :]


def _filters(w: Array) -> Array:
    """W [OUT, IN] as [OUT, IN, 1, 1, 1]."""
    return w[:, :, None, None, None]


def _geometry(x: Array, w: Array) -> ConvGeometry:
    (n, inputs), outputs = x.shape, w.shape[0]
    return conv_geometry("linear", (n,), Channels(inputs, outputs), 1, 1, 0, 1)
