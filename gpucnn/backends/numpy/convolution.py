"""Convolution, dgrad and wgrad, by the algorithm that `select` chooses for each.

All three contract windows with a matrix. The forward samples its input with the layer's stride; dgrad samples the
output's gradient with stride 1 once per stride residue (no multiplication by the zeros of a dilated gradient); wgrad
contracts the forward's windows with the output's gradient.

`direct` is the definition, one tap at a time, and the module to read first; `columns`, `folding` and `depthwise`
compute the same result faster where `select` chooses them.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

from gpucnn.backends.numpy import columns, depthwise, direct, folding, select
from gpucnn.backends.numpy.columns import Samplings
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import ConvGeometry
from gpucnn.numerics import choices

Part = tuple[Array, Samplings, Array]  # weight [G, M, C, KD, KH, KW], samplings and target [N, G * M, *o], any strides
_MODULES: dict[str, Any] = {"direct": direct, "im2col": columns, "depthwise": depthwise}


def convolve(x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Y [N, OC, OD, OH, OW] = x [N, C, D, H, W] * w [OC, C / groups, KD, KH, KW] + bias [OC]."""
    inputs, outputs, groups = geometry.channels
    weight = w.reshape(groups, outputs // groups, inputs // groups, *geometry.kernel_size)
    module = _MODULES[select.algorithm("forward", geometry, len(x), choices().algorithm)]
    if y.size:
        module.contract(x, weight, geometry.forward, y, None if bias is None else bias.reshape(groups, -1))


def convolve_backward_input(grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry) -> None:
    """grad_x [N, C, D, H, W] from grad_y [N, OC, OD, OH, OW]: dgrad by stride residue."""
    chosen = choices().algorithm
    name = select.algorithm("backward_input", geometry, len(grad_y), chosen)
    if not grad_x.size:
        return
    if name == "fold":
        folding.fold_products(grad_y, w, bias, geometry, grad_x)
        return
    by_group = None if bias is None else bias.reshape(geometry.channels.groups, -1)
    for weight, samplings, target in residue_parts(w, bias, grad_x, geometry):
        module = _MODULES[select.contraction(len(grad_y), weight.shape, samplings, chosen)]
        module.contract(grad_y, weight, samplings, target, by_group)


def residue_parts(w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry) -> list[Part]:
    """The contractions of a dgrad, one a stride residue: weight [G, C, M, *taps], samplings, and their part of grad_x.

    Inputs that no tap reaches are set to the bias, or 0.
    """
    inputs, outputs, groups = geometry.channels
    weight = w.reshape(groups, outputs // groups, inputs // groups, *geometry.kernel_size).swapaxes(1, 2)
    depth, height, width = geometry.axes
    residues = list(product(depth.backward, height.backward, width.backward))
    if len(residues) < prod(min(axis.stride, axis.size) for axis in geometry.axes):  # no tap reaches the others
        grad_x[...] = 0 if bias is None else bias.reshape(-1, 1, 1, 1)
    parts: list[Part] = []
    for d, h, w_ in residues:
        taps: Any = tuple(slice(each.start, each.stop, each.step) for each in (r.kernel_indices for r in (d, h, w_)))
        target = grad_x[:, :, d.first :: depth.stride, h.first :: height.stride, w_.first :: width.stride]
        parts.append((weight[:, :, :, *taps], (d.sampling, h.sampling, w_.sampling), target))
    return parts


def convolve_backward_weight(x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """grad_w [OC, C / groups, KD, KH, KW]: the products of each piece of windows with its share of grad_y, summed."""
    by_group = grad_w.reshape(geometry.channels.groups, -1, *grad_w.shape[1:])
    module = _MODULES[select.algorithm("backward_weight", geometry, len(x), choices().algorithm)]
    module.contract_weight(x, grad_y, geometry.forward, by_group)
