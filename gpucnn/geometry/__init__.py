"""Sizes, paddings and windows of convolution and pooling, as plain arithmetic.

Everything that an operation must know before it touches an array is decided here: output sizes, ``"same"`` padding,
receptive fields, parameter and multiply-add counts, and the frozen geometries that the backends read. It needs only
the standard library, and a geometry, once made, is valid: nothing below it checks again.

A size is an int, or one int per spatial axis; functions return the form that they were given.

References
----------
- V. Dumoulin, F. Visin, *A guide to convolution arithmetic for deep learning*, 2016, arXiv:1603.07285v2.
- A. Araujo, W. Norris, J. Sim, *Computing receptive fields of convolutional neural networks*, Distill, 2019.
"""

from gpucnn.geometry.arguments import Padding, Size
from gpucnn.geometry.axes import AdaptiveAxis, Axis, Filter, InterpolationAxis, Residue, Sampling, Tap, resize_axis
from gpucnn.geometry.geometries import ConvGeometry, GridGeometry, InterpolationGeometry, NormGeometry, PoolGeometry
from gpucnn.geometry.networks import (
    Im2colShapes,
    ReceptiveField,
    TransposedWindow,
    Window,
    conv_multiply_adds,
    conv_parameters,
    im2col_shapes,
    locally_connected_parameters,
    receptive_field,
)
from gpucnn.geometry.sizes import (
    conv_output_size,
    conv_transpose_output_size,
    max_unpool_output_size,
    pool_output_size,
    same_padding,
)

__all__ = [
    "AdaptiveAxis",
    "Axis",
    "ConvGeometry",
    "Filter",
    "GridGeometry",
    "Im2colShapes",
    "InterpolationAxis",
    "InterpolationGeometry",
    "NormGeometry",
    "Padding",
    "PoolGeometry",
    "ReceptiveField",
    "Residue",
    "Sampling",
    "Size",
    "Tap",
    "TransposedWindow",
    "Window",
    "conv_multiply_adds",
    "conv_output_size",
    "conv_parameters",
    "conv_transpose_output_size",
    "im2col_shapes",
    "locally_connected_parameters",
    "max_unpool_output_size",
    "pool_output_size",
    "receptive_field",
    "resize_axis",
    "same_padding",
]
