"""Boxes: the ones to keep, and the parts of images that they cut out."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.onnx.operators.arrays import ints
from gpucnn.onnx.operators.registry import Array, Host, operator, refuse


@operator("NonMaxSuppression", 10)
def non_max_suppression(
    boxes: Host,
    scores: Host,
    most: Host = None,
    iou_threshold: Host = None,
    score_threshold: Host = None,
    *,
    center_point_box: int = 0,
) -> Array:
    """Image, class and number of the boxes that overlap no better one by much, on the host."""
    number = 0 if most is None or not most.size else ints(most)[0]
    overlap = 0.0 if iou_threshold is None or not iou_threshold.size else float(iou_threshold.ravel()[0])
    least = None if score_threshold is None or not score_threshold.size else float(score_threshold.ravel()[0])
    corners = _corners(boxes, center_point_box)
    kept = [
        (image, kind, box)
        for image in range(scores.shape[0])
        for kind in range(scores.shape[1])
        for box in _kept(corners[image], scores[image, kind], number, overlap, least)
    ]
    return np.array(kept, np.int64).reshape(-1, 3)


def _corners(boxes: Any, is_centred: int) -> Any:
    """Boxes as their low and high corners [..., 4]."""
    one, other = boxes[..., :2], boxes[..., 2:]
    if is_centred:
        return np.concatenate([one - other / 2, one + other / 2], -1)
    return np.concatenate([np.minimum(one, other), np.maximum(one, other)], -1)


def _kept(boxes: Any, scores: Any, most: int, overlap: float, least: float | None) -> list[int]:
    """The numbers of the boxes of one class that are kept, the best first."""
    order = np.argsort(-scores, kind="stable")
    if least is not None:
        order = order[scores[order] > least]
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], -1)
    found: list[int] = []
    while order.size and len(found) < most:
        best, order = int(order[0]), order[1:]
        found.append(best)
        sides = np.minimum(boxes[order, 2:], boxes[best, 2:]) - np.maximum(boxes[order, :2], boxes[best, :2])
        shared = np.prod(np.maximum(sides, 0), -1)
        order = order[shared <= overlap * (areas[order] + areas[best] - shared)]
    return found


@operator("RoiAlign", 10)
def roi_align(
    x: Host,
    rois: Host,
    batch_indices: Host,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Array:
    """Boxes of images, each in a grid of bins whose samples are interpolated, on the host."""
    if mode not in ("avg", "max") or coordinate_transformation_mode not in ("half_pixel", "output_half_pixel"):
        raise refuse(f"mode is {mode!r} and coordinates {coordinate_transformation_mode!r}, which are unknown")
    is_half = coordinate_transformation_mode == "half_pixel"
    size = (output_height, output_width)
    y = np.empty((len(rois), x.shape[1], *size), x.dtype)
    for at, (box, image) in enumerate(zip(rois.astype(np.float64), ints(batch_indices), strict=True)):
        low, high = box[1::-1] * spatial_scale - 0.5 * is_half, box[:1:-1] * spatial_scale - 0.5 * is_half
        extent = high - low if is_half else np.maximum(high - low, 1.0)
        counts = [sampling_ratio or max(int(np.ceil(extent[k] / size[k])), 1) for k in range(2)]
        rows, columns = (_samples(low[k], extent[k], size[k], counts[k], x.shape[2 + k]) for k in range(2))
        parts = [
            x[image][:, down[0][:, None], right[0]] * (down[1][:, None] * right[1])
            for down in rows
            for right in columns
        ]
        samples = sum(parts) if mode == "avg" else np.maximum.reduce(parts)  # the largest part, as the standard has it
        bins = samples.reshape(-1, size[0], counts[0], size[1], counts[1])
        y[at] = bins.mean(axis=(2, 4)) if mode == "avg" else bins.max(axis=(2, 4))
    return y


def _samples(low: float, extent: float, bins: int, count: int, size: int) -> list[tuple[Any, Any]]:
    """The two inputs around each sample of an axis, and their weights, which are 0 for a sample outside."""
    places = low + extent / bins * ((np.arange(bins * count) + 0.5) / count)
    inside = (places >= -1) & (places <= size)
    places = np.clip(places, 0, size - 1)
    first = places.astype(np.int64)
    share = places - first
    return [(first, (1 - share) * inside), (np.minimum(first + 1, size - 1), share * inside)]
