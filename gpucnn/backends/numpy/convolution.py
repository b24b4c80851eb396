"""Convolution and its two gradients: which algorithm computes what.

All three contract windows with a matrix. The forward samples its input with the layer's stride; the backward-input
samples the output's gradient with stride 1 once per stride residue (no multiplication by the zeros of a dilated
gradient); the backward-weight contracts the forward's windows with the output's gradient. Channels-last input is
contracted in its own order, so that no transpose is taken in either layout.

`direct` is the definition, one tap after the other, and the module to read first; `columns`, `winograd`, `folding` and
`depthwise` compute the same in less time where `select` says so.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

from gpucnn.backends.dtypes import name_of
from gpucnn.backends.numpy import columns, depthwise, direct, folding, grouped, select, winograd
from gpucnn.backends.numpy.columns import Samplings
from gpucnn.backends.numpy.grouped import Part
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import ConvGeometry


def convolve(x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Y [N, OC, OD, OH, OW] = x [N, C, D, H, W] * w [OC, C / groups, KD, KH, KW] + bias [OC]."""
    inputs, outputs, groups = geometry.channels
    weight = w.reshape(groups, outputs // groups, inputs // groups, *geometry.kernel_size)
    contract_parts(x, [(weight, geometry.forward, y)], _by_group(bias, groups))


def convolve_backward_input(grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry) -> None:
    """grad_x [N, C, D, H, W] from grad_y [N, OC, OD, OH, OW]: the dilated backward, by stride residue."""
    inputs, outputs, groups = geometry.channels
    if not depthwise.suits(groups, inputs, outputs) and select.folds(geometry, len(grad_y), name_of(grad_y.dtype)):
        folding.fold_products(grad_y, w, bias, geometry, grad_x)
        return
    weight = w.reshape(groups, outputs // groups, inputs // groups, *geometry.kernel_size).swapaxes(1, 2)
    depth, height, width = geometry.axes
    parts: list[Part] = []
    residues = list(product(depth.backward, height.backward, width.backward))
    if len(residues) < prod(min(axis.stride, axis.size) for axis in geometry.axes):  # no tap reaches the others
        grad_x[...] = 0 if bias is None else bias.reshape(-1, 1, 1, 1)
    for d, h, w_ in residues:
        taps: Any = tuple(slice(each.start, each.stop, each.step) for each in (r.kernel_indices for r in (d, h, w_)))
        part = grad_x[:, :, d.first :: depth.stride, h.first :: height.stride, w_.first :: width.stride]
        parts.append((weight[:, :, :, *taps], (d.sampling, h.sampling, w_.sampling), part))
    if parts:
        contract_parts(grad_y, parts, _by_group(bias, groups))


def convolve_backward_weight(x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """grad_w [OC, C / groups, KD, KH, KW]: the products of each piece of windows with its share of grad_y, summed."""
    inputs, outputs, groups = geometry.channels
    module: Any = columns
    if depthwise.suits(groups, inputs, outputs):
        module = depthwise
    elif grouped.suits(groups, inputs, outputs) and grouped.computes(x, geometry.forward):
        module = grouped
    by_group = grad_w.reshape(groups, outputs // groups, *grad_w.shape[1:])
    module.contract_weight(x, grad_y, geometry.forward, by_group)


def _by_group(bias: Array | None, groups: int) -> Array | None:
    return None if bias is None else bias.reshape(groups, -1)


def contract_parts(source: Array, parts: list[Part], bias: Array | None) -> None:
    """`contract` of several targets that read one source."""
    channels = (parts[0][0].shape[0], source.shape[1], parts[0][2].shape[1])
    if depthwise.suits(*channels):
        depthwise.contract_parts(source, parts, bias)
        return
    if grouped.suits(*channels):
        parts = grouped.contract_parts(source, parts, bias)
    for weight, samplings, target in parts:
        contract(source, weight, samplings, target, bias)


def contract(source: Array, weight: Array, samplings: Samplings, target: Array, bias: Array | None) -> None:
    """target[n, (g, m), o] = bias[g, m] + sum over c, t of weight[g, m, c, t] * source[n, (g, c), where o reads at t].

    source [N, G * C, D, H, W]; weight [G, M, C, KD, KH, KW]; target [N, G * M, *o], any strides; bias [G, M] or None.
    """
    if target.size == 0:
        return
    algorithm = select.contraction(source.shape, weight.shape, samplings, name_of(source.dtype))
    if algorithm == "winograd" and winograd.contract(source, weight, samplings, target, bias):
        return
    if algorithm == "direct":
        direct.contract(source, weight, samplings, target, bias)
    else:
        columns.contract(source, weight, samplings, target, bias)
