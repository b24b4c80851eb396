"""Convolution, dgrad and wgrad, by the algorithm that `select` chooses for each.

All three contract windows with a matrix. The forward samples its input with the layer's stride; dgrad samples the
output's gradient with stride 1 once per stride residue (no multiplication by the zeros of a dilated gradient); wgrad
contracts the forward's windows with the output's gradient. Channels-last input is contracted in its own memory order,
so neither layout needs a transpose.

`direct` is the definition, one tap at a time, and the module to read first; `columns`, `winograd`, `folding`,
`depthwise` and `grouped` compute the same result faster where `select` chooses them.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

from gpucnn.backends.dtypes import name_of
from gpucnn.backends.numpy import columns, depthwise, direct, folding, grouped, memory, select, winograd
from gpucnn.backends.numpy.grouped import Part
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import ConvGeometry
from gpucnn.numerics import choices


def convolve(x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Y [N, OC, OD, OH, OW] = x [N, C, D, H, W] * w [OC, C / groups, KD, KH, KW] + bias [OC]."""
    inputs, outputs, groups = geometry.channels
    weight = w.reshape(groups, outputs // groups, inputs // groups, *geometry.kernel_size)
    bias = None if bias is None else bias.reshape(groups, -1)
    contract(_algorithm("forward", x, geometry), x, [(weight, geometry.forward, y)], bias)


def convolve_backward_input(grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry) -> None:
    """grad_x [N, C, D, H, W] from grad_y [N, OC, OD, OH, OW]: dgrad by stride residue."""
    if _algorithm("backward_input", grad_y, geometry) == "fold":
        folding.fold_products(grad_y, w, bias, geometry, grad_x)
        return
    dtype, last = name_of(grad_y.dtype), memory.is_channels_last(grad_y)
    parts: dict[str, list[Part]] = {}  # by algorithm
    for part in residue_parts(w, bias, grad_x, geometry):
        algorithm = select.contraction(len(grad_y), part[0].shape, part[1], dtype, last, choices().algorithm)
        parts.setdefault(algorithm, []).append(part)
    bias = None if bias is None else bias.reshape(geometry.channels.groups, -1)
    for algorithm, several in parts.items():
        contract(algorithm, grad_y, several, bias)


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
    groups = geometry.channels.groups
    modules: dict[str, Any] = {"depthwise": depthwise, "grouped": grouped, "direct": direct, "im2col": columns}
    by_group = grad_w.reshape(groups, -1, *grad_w.shape[1:])
    modules[_algorithm("backward_weight", x, geometry)].contract_weight(x, grad_y, geometry.forward, by_group)


def _algorithm(direction: str, source: Array, geometry: ConvGeometry) -> str:
    dtype, last = name_of(source.dtype), memory.is_channels_last(source)
    return select.algorithm(direction, geometry, len(source), dtype, last, choices().algorithm)


def contract(algorithm: str, source: Array, parts: list[Part], bias: Array | None) -> None:
    """target[n, (g, m), o] = bias[g, m] + sum over c, t of weight[g, m, c, t] * source[n, (g, c), where o reads at t].

    source [N, G * C, D, H, W]; bias [G, M] or None. A part is weight [G, M, C, KD, KH, KW], samplings and target
    [N, G * M, *o], any strides. A band or tile with infinities or NaN is recomputed: its zeros would spread them.
    """
    if algorithm == "depthwise":
        depthwise.contract_parts(source, parts, bias)
    elif algorithm == "grouped":
        left = grouped.contract_parts(source, parts, bias)
        if left:
            again = "depthwise" if select.is_depthwise(*left[0][0].shape[:3]) else "im2col"
            contract(again, source, left, bias)
    else:
        for part in parts:
            if part[2].size == 0 or (algorithm == "winograd" and winograd.contract(source, *part, bias)):
                continue
            (direct if algorithm == "direct" else columns).contract(source, *part, bias)
