"""The geometry of convolutions and transposed ones, from the shapes of their arrays."""

from __future__ import annotations

from gpucnn.functional._call import expect_filters, image_shape
from gpucnn.functional._family import axis_names
from gpucnn.geometry import ConvGeometry, Padding, Size
from gpucnn.geometry.arguments import integer, remembered
from gpucnn.geometry.geometries import Channels, conv_geometry, conv_transpose_geometry


def _groups(op: str, groups: int, **channels: tuple[str, int]) -> int:
    """`groups`, which must divide each count of channels, given as (argument, count)."""
    parts = integer(op, "groups", groups, 1)
    for what, (argument, count) in channels.items():
        if count % parts:
            raise ValueError(
                f"{op}: {argument} has {count} {what.replace('_', ' ')}, expected a multiple of groups = {parts}"
            )
    return parts


@remembered
def geometry_of(
    op: str,
    rank: int,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Size,
    padding: Padding,
    dilation: Size,
    groups: int,
    input_name: str = "input",
    weight_name: str = "weight",
) -> ConvGeometry:
    """The geometry of a convolution between arrays of these shapes."""
    _, inputs, *space = image_shape(op, input_name, input_shape, rank)
    expect_filters(op, weight_name, weight_shape, f"OC, C / groups, {axis_names('K', rank)}")
    outputs, depth, *kernel = weight_shape
    parts = _groups(op, groups, channels=(input_name, inputs), output_channels=(weight_name, outputs))
    if depth * parts != inputs:
        raise ValueError(
            f"{op}: {weight_name} has {depth} input channels, "
            f"expected input channels / groups = {inputs} / {parts} = {inputs // parts}"
        )
    channels = Channels(inputs, outputs, parts)
    return conv_geometry(op, tuple(space), channels, tuple(kernel), stride, padding, dilation)


@remembered
def transposed_geometry(
    op: str,
    rank: int,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Size,
    padding: Padding,
    output_padding: Size,
    dilation: Size,
    groups: int,
) -> ConvGeometry:
    """The geometry of the convolution that a transposed convolution between arrays of these shapes transposes."""
    _, inputs, *space = image_shape(op, "input", input_shape, rank)
    expect_filters(op, "weight", weight_shape, f"C, OC / groups, {axis_names('K', rank)}")
    depth, outputs, *kernel = weight_shape
    parts = _groups(op, groups, channels=("input", inputs))
    if depth != inputs:
        raise ValueError(f"{op}: weight has {depth} input channels, expected those of input = {inputs}")
    channels = Channels(outputs * parts, inputs, parts)
    return conv_transpose_geometry(op, tuple(space), channels, tuple(kernel), stride, padding, output_padding, dilation)
