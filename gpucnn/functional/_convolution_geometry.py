"""The geometry of convolutions, transposed ones and locally connected layers, from the shapes of their arrays."""

from __future__ import annotations

from gpucnn.functional._call import expect_filters, image_shape, wrong_channels
from gpucnn.functional._family import axis_names
from gpucnn.geometry import ConvGeometry, Padding, Size
from gpucnn.geometry.arguments import integer
from gpucnn.geometry.caches import remembered
from gpucnn.geometry.geometries import Channels, conv_geometry, conv_transpose_geometry


def _groups(op: str, groups: int, name: str, shape: tuple[int, ...], rank: int) -> int:
    """`groups`, which must divide the channels of the image array called `name`."""
    parts = integer(op, "groups", groups, 1)
    if shape[-rank - 1] % parts:
        raise wrong_channels(op, name, shape, rank, f"C a multiple of groups = {parts}")
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
    layout = f"OC, C / groups, {axis_names('K', rank)}"
    expect_filters(op, weight_name, weight_shape, layout)
    outputs, depth, *kernel = weight_shape
    parts = _groups(op, groups, input_name, input_shape, rank)
    if outputs % parts:
        raise ValueError(f"{op}: {weight_name} has {outputs} output channels, expected a multiple of groups = {parts}")
    if depth * parts != inputs:
        wanted = f"C = {depth}" if parts == 1 else f"C = {depth} * groups = {depth * parts}"
        wanted += f", for {weight_name} ({layout}) has shape {weight_shape}"
        raise wrong_channels(op, input_name, input_shape, rank, wanted)
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
    layout = f"C, OC / groups, {axis_names('K', rank)}"
    expect_filters(op, "weight", weight_shape, layout)
    depth, outputs, *kernel = weight_shape
    parts = _groups(op, groups, "input", input_shape, rank)
    if depth != inputs:
        wanted = f"C = {depth}, for weight ({layout}) has shape {weight_shape}"
        raise wrong_channels(op, "input", input_shape, rank, wanted)
    channels = Channels(outputs * parts, inputs, parts)
    return conv_transpose_geometry(op, tuple(space), channels, tuple(kernel), stride, padding, output_padding, dilation)


@remembered
def local_geometry(
    op: str,
    rank: int,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Size,
    padding: Padding,
    dilation: Size,
) -> ConvGeometry:
    """The geometry of a locally connected layer between arrays of these shapes."""
    _, inputs, *space = image_shape(op, "input", input_shape, rank)
    layout = f"OC, {axis_names('O', rank)}, C, {axis_names('K', rank)}"
    expect_filters(op, "weight", weight_shape, layout)
    depth, kernel = weight_shape[rank + 1], weight_shape[rank + 2 :]
    if depth != inputs:
        wanted = f"C = {depth}, for weight ({layout}) has shape {weight_shape}"
        raise wrong_channels(op, "input", input_shape, rank, wanted)
    channels = Channels(inputs, weight_shape[0])
    geometry = conv_geometry(op, tuple(space), channels, kernel, stride, padding, dilation)
    positions = geometry.output_size[3 - rank :]
    if weight_shape[1 : rank + 1] != positions:
        raise ValueError(f"{op}: weight has filters for {weight_shape[1 : rank + 1]} outputs, expected {positions}")
    return geometry
