"""The nodes of each kind of module: one rule each, by the name of its class or of its family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from math import prod, sqrt
from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.nn._tracing import Traced

Host = np.ndarray[Any, Any]
Pairs = Sequence[tuple[int, int]]


@dataclass
class Run:
    """A module that ran, and the graph that its nodes are added to."""

    graph: Any
    module: Any
    name: str
    inputs: Sequence[Any]
    options: dict[str, Any]
    results: Sequence[Host]

    @property
    def x(self) -> str:
        """The name of the input."""
        return str(self.graph.tensor(self.inputs[0]))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the input."""
        return tuple(self.inputs[0].shape)

    @property
    def space(self) -> tuple[int, ...]:
        """The spatial size of the input, which has a batch axis.

        Raises
        ------
        TypeError
            It has none.
        """
        rank = getattr(self.module, "rank", len(self.shape) - 2)
        if len(self.shape) != rank + 2:
            raise self.refuse(f"its input has {len(self.shape)} axes, expected {rank + 2} with that of the batch")
        return self.shape[2:]

    @property
    def out(self) -> tuple[int, ...]:
        """The spatial size of the result."""
        return tuple(self.results[0].shape[2:])

    def refuse(self, reason: str) -> TypeError:
        """The error that the module cannot be exported."""
        error: TypeError = self.graph.refuse(reason)
        return error

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; the names of its results. An empty input is one left out."""
        return self.graph.node(op, list(inputs), outputs, **attributes)

    def state(self, attribute: str) -> str:
        """The name of a parameter or buffer of the module; empty where it has none."""
        value = getattr(self.module, attribute)
        if value is None:
            return ""
        array = value if hasattr(value, "dtype") else value.data
        return str(self.graph.state(f"{self.name}.{attribute}".removeprefix("."), array))

    def weight(self, value: Any, name: str, dtype: Any = None) -> str:
        """The name of a new weight, in the input's dtype or another."""
        array = np.asarray(value, self.inputs[0].dtype if dtype is None else dtype)
        return str(self.graph.weight(array, f"{self.name}.{name}".removeprefix(".")))

    def integers(self, values: Sequence[int]) -> str:
        """The name of a list of integers."""
        return self.weight(list(values), "sizes", np.int64)

    def reshaped(self, x: str, *sizes: int) -> str:
        """X in the shape [batch, *sizes]."""
        return str(self.add("Reshape", x, self.integers([0, *sizes])))

    def padded(self, x: str, pairs: Pairs, mode: str = "constant", value: float = 0.0) -> str:
        """X with (low, high) padding of its last axes."""
        if not any(chain(*pairs)):
            return x
        pads = self.integers([0, 0, *(low for low, _ in pairs), 0, 0, *(high for _, high in pairs)])
        filled = [self.weight(value, "padding")] if mode == "constant" else []
        return str(self.add("Pad", x, pads, *filled, mode=mode))

    def scaled(self, x: str, axis: int) -> str:
        """X times the module's weight plus its bias, which begin at that axis of x, where it has them."""
        for op, attribute in (("Mul", "weight"), ("Add", "bias")):
            name = self.state(attribute)
            if name:
                sizes = getattr(self.module, attribute).shape
                missing = len(self.shape) - axis - len(sizes)
                if missing:
                    name = self.add("Reshape", name, self.integers([*sizes, *(1,) * missing]))
                x = self.add(op, x, name)
        return x


Rule = Callable[[Run], Any]
RULES: dict[str, Rule] = {}


def rule(*kinds: str) -> Callable[[Rule], Rule]:
    """Register the rule of classes."""

    def registered(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return registered


def _flat(pairs: Pairs) -> list[int]:
    """Padding in ONNX's order: all low ends, then all high ends."""
    return [low for low, _ in pairs] + [high for _, high in pairs]


# --- Convolution ------------------------------------------------------------------------------------------------------

_PADDING_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@rule("ConvNd")
def _conv(run: Run) -> Any:
    module, x = run.module, run.x
    pairs = module.window((1, 1, *run.space)).padding
    if module.padding_mode != "zeros":
        x = run.padded(x, pairs, _PADDING_MODES[module.padding_mode])
        pairs = [(0, 0)] * module.rank
    return run.add("Conv", x, run.state("weight"), run.state("bias"), pads=_flat(pairs), **_window(module, True))


def _window(module: Any, groups: bool = False) -> dict[str, Any]:
    """The attributes of a window."""
    window = {"kernel_shape": module.kernel_size, "strides": module.stride, "dilations": module.dilation}
    return window | {"group": module.groups} if groups else window


@rule("ConvTransposeNd")
def _conv_transpose(run: Run) -> Any:
    """What output padding adds is cut off less, or has zeros and the bias where nothing was cut off."""
    module, pairs, beyond = run.module, [], []
    for axis, (low, _) in enumerate(module.window((1, 1, *run.space)).padding):
        extent = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
        last = (run.space[axis] - 1) * module.stride[axis] + extent - low  # where the output ends if nothing is cut off
        pairs.append((low, max(0, last - run.out[axis])))
        beyond.append((0, max(0, run.out[axis] - last)))
    attributes = {"pads": _flat(pairs), **_window(module, True)}
    if not any(chain(*beyond)):
        return run.add("ConvTranspose", run.x, run.state("weight"), run.state("bias"), **attributes)
    y = run.padded(run.add("ConvTranspose", run.x, run.state("weight"), **attributes), beyond)
    bias = run.state("bias")
    return run.add("Add", y, run.add("Reshape", bias, run.integers([-1] + [1] * module.rank))) if bias else y


@rule("LocallyConnectedNd")
def _locally_connected(run: Run) -> Any:
    """A slice of the padded image for each tap, then a product for each position."""
    module = run.module
    x = run.padded(run.x, module.window((1, 1, *run.space)).padding)
    axes = run.integers(range(2, 2 + module.rank))
    taps = []
    for tap in np.ndindex(module.kernel_size):
        first = [at * step for at, step in zip(tap, module.dilation, strict=True)]
        last = [at + (out - 1) * step + 1 for at, out, step in zip(first, run.out, module.stride, strict=True)]
        sliced = run.add("Slice", x, *map(run.integers, (first, last)), axes, run.integers(module.stride))
        taps.append(run.reshaped(sliced, module.in_channels, 1, prod(run.out)))
    columns = run.add("Concat", *taps, axis=2)  # [N, C, taps, positions]
    weight = run.add(
        "Reshape",
        run.state("weight"),
        run.integers([module.out_channels, prod(run.out), module.in_channels, len(taps)]),
    )
    y = run.reshaped(run.add("Einsum", columns, weight, equation="nctp,opct->nop"), module.out_channels, *run.out)
    bias = run.state("bias")
    return run.add("Add", y, bias) if bias else y


# --- Pooling ----------------------------------------------------------------------------------------------------------


def _pool_padding(run: Run) -> list[tuple[int, int]]:
    """The padding with which the last window ends where the padded image does, so that sizes need no rounding up."""
    module = run.module
    pairs = []
    for axis, (low, _) in enumerate(module.window((1, 1, *run.space)).padding):
        extent = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
        end = (run.out[axis] - 1) * module.stride[axis] + extent
        pairs.append((low, max(0, end - run.space[axis] - low)))
    return pairs


def _fits(run: Run, pairs: Pairs) -> bool:
    """Whether a pool of ONNX takes the padding: less than the kernel."""
    return all(max(pair) < size for pair, size in zip(pairs, run.module.kernel_size, strict=True))


def _in_plane(run: Run, indices: str, space: Sequence[int]) -> Any:
    """Indices of a whole batch of images as those of each image and channel."""
    return run.add("Mod", indices, run.weight(prod(space), "positions", np.int64))


@rule("MaxPoolNd")
def _max_pool(run: Run) -> Any:
    module, pairs, x = run.module, _pool_padding(run), run.x
    wants_indices = module.return_indices or module._keeps_indices
    if not _fits(run, pairs):
        if wants_indices:
            raise run.refuse("its padding is as large as its kernel, and it returns indices")
        x = run.padded(x, pairs, value=float(np.finfo(run.inputs[0].dtype).min))
        pairs = [(0, 0)] * module.rank
    made = run.add("MaxPool", x, outputs=2 if wants_indices else 1, pads=_flat(pairs), **_window(module))
    if not wants_indices:
        return made
    y, indices = made[0], _in_plane(run, made[1], run.space)
    run.graph.indices[module] = indices
    return (y, indices) if module.return_indices else y


@rule("MaxUnpoolNd")
def _max_unpool(run: Run) -> Any:
    module, channels = run.module, run.shape[1]
    given = run.inputs[1] if len(run.inputs) > 1 else run.options.get("indices")
    indices = run.graph.indices[module._pool[0]] if given is None else run.graph.tensor(given)
    if given is not None and not isinstance(given, Traced):
        raise run.refuse("its indices are no result of a module")
    x, indices = (run.reshaped(name, channels, prod(run.space)) for name in (run.x, indices))
    batch = run.add("Shape", x, start=0, end=1)
    shape = run.add("Concat", batch, run.integers([channels, prod(run.out)]), axis=0)
    zeros = run.add("Expand", run.weight(0, "zero"), shape)
    return run.reshaped(run.add("ScatterElements", zeros, indices, x, axis=2), channels, *run.out)


@rule("AvgPoolNd")
def _avg_pool(run: Run) -> Any:
    return _average(run, run.module.count_include_pad, run.module.divisor_override)


@rule("SumPoolNd")
def _sum_pool(run: Run) -> Any:
    return _average(run, True, 1)


def _average(run: Run, with_padding: bool, divisor: float | None) -> Any:
    """The sums of the windows by a divisor: a number, or the taps within the image, with its padding or without."""
    module, pairs, taps = run.module, _pool_padding(run), prod(run.module.kernel_size)
    divisors = _taps(run, with_padding) if divisor is None else np.full(run.out, divisor)
    counts_padding = int((divisors == taps).all())
    attributes = {"pads": _flat(pairs), "count_include_pad": counts_padding, **_window(module)}
    if _fits(run, pairs) and (counts_padding or (divisor is None and (divisors == _taps(run, False)).all())):
        return run.add("AveragePool", run.x, **attributes)
    padded = run.padded(run.x, pairs)
    return run.add("Mul", run.add("AveragePool", padded, **_window(module)), run.weight(taps / divisors, "scale"))


def _taps(run: Run, with_padding: bool) -> Host:
    """The number of each window's taps on the image, or on it and the padding that was asked for; at least 1."""
    module, counts = run.module, []
    for axis, (low, high) in enumerate(module.window((1, 1, *run.space)).padding):
        starts = np.arange(run.out[axis]) * module.stride[axis] - low
        positions = starts[:, None] + np.arange(module.kernel_size[axis]) * module.dilation[axis]
        first, last = (-low, run.space[axis] + high) if with_padding else (0, run.space[axis])
        counts.append(((positions >= first) & (positions < last)).sum(axis=1))
    taps: Host = np.maximum(reduce(np.multiply.outer, counts), 1)
    return taps


@rule("LPPoolNd")
def _lp_pool(run: Run) -> Any:
    """``(sum of x**p) ** (1 / p)``, without the absolute value that ONNX's own takes."""
    module = run.module
    powers = run.add("Pow", run.x, run.weight(module.norm_type, "power"))
    means = run.add("AveragePool", run.padded(powers, _pool_padding(run)), **_window(module))
    taps = prod(module.kernel_size)
    sums = run.add("Mul", means, run.weight(taps * taps / _taps(run, True), "scale"))  # of averages of those counted
    return run.add("Pow", sums, run.weight(1 / module.norm_type, "root"))


@rule("AdaptiveAvgPoolNd")
def _adaptive_avg_pool(run: Run) -> Any:
    if set(run.out) == {1}:
        return run.add("GlobalAveragePool", run.x)
    if _divides(run):
        return run.add("AveragePool", run.x, **_even_windows(run))
    return _by_matrices(run, lambda rows, axis: F.adaptive_avg_pool1d(rows, run.out[axis]))


@rule("AdaptiveMaxPoolNd")
def _adaptive_max_pool(run: Run) -> Any:
    if run.module.return_indices:
        if not _divides(run):
            raise run.refuse("its windows differ in size, and it returns indices")
        y, indices = run.add("MaxPool", run.x, outputs=2, **_even_windows(run))
        return y, _in_plane(run, indices, run.space)
    if _divides(run):
        return run.add("MaxPool", run.x, **_even_windows(run))
    x = run.x
    for axis, (size, out) in enumerate(zip(run.space, run.out, strict=True), 2):
        bounds = [(at * size // out, -(-(at + 1) * size // out)) for at in range(out)]
        along = run.integers([axis])
        windows = [run.add("Slice", x, run.integers([low]), run.integers([high]), along) for low, high in bounds]
        x = run.add("Concat", *(run.add("ReduceMax", window, along, keepdims=1) for window in windows), axis=axis)
    return x


def _divides(run: Run) -> bool:
    """Whether all windows of an adaptive pool are of one size."""
    return not any(size % out for size, out in zip(run.space, run.out, strict=True))


def _even_windows(run: Run) -> dict[str, Any]:
    sizes = [size // out for size, out in zip(run.space, run.out, strict=True)]
    return {"kernel_shape": sizes, "strides": sizes}


# --- Larger images ----------------------------------------------------------------------------------------------------


def _by_matrices(run: Run, resampled: Callable[[Host, int], Host]) -> Any:
    """A resampling along each axis by itself, whose matrix is what it makes of the unit vectors."""
    letters, x = "abcdefgh"[: len(run.shape)], run.x
    for axis, size in enumerate(run.space):
        matrix = resampled(np.eye(size, dtype=run.inputs[0].dtype)[None], axis)[0]
        if matrix.shape != (size, size) or (matrix != np.eye(size)).any():
            source = letters[axis + 2]
            equation = f"{letters},{source}z->{letters.replace(source, 'z')}"
            x = run.add("Einsum", x, run.weight(matrix, "matrix"), equation=equation)
    return x


@rule("Upsample")
def _upsample(run: Run) -> Any:
    module = run.module
    factors = [out / size for out, size in zip(run.out, run.space, strict=True)]
    by_sizes = module.scale_factor is None or module.recompute_scale_factor
    if by_sizes or np.all(np.equal(module.scale_factor, factors)):  # sizes say it all
        attributes: dict[str, Any] = {}
        if module.mode == "nearest" and all(factor.is_integer() for factor in factors):
            attributes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        elif module.mode.endswith("linear") or module.mode == "bicubic":  # whose filter is for 2-d images alone
            grid = "align_corners" if module.align_corners else "half_pixel"
            kind = "cubic" if module.mode == "bicubic" else "linear"
            attributes = {"mode": kind, "coordinate_transformation_mode": grid}
        if attributes:
            axes = list(range(2, len(run.shape)))
            return run.add("Resize", run.x, "", "", run.integers(run.out), axes=axes, **attributes)
    return _by_matrices(run, lambda rows, axis: _resampled(module, rows, axis))


def _resampled(module: Any, rows: Host, axis: int) -> Host:
    """Rows [1, C, W] resampled as a module resamples that axis of images."""
    size, factor = (given[axis] if isinstance(given, tuple) else given for given in (module.size, module.scale_factor))
    mode = next((kind for kind in ("linear", "cubic") if module.mode.endswith(kind)), module.mode)
    resampled: Host = F.interpolate(rows, size, factor, mode, module.align_corners, module.recompute_scale_factor)
    return resampled


@rule("BedOfNailsNd")
def _bed_of_nails(run: Run) -> Any:
    """An axis of size 1 behind each spatial one, zeros after its value, and both as one axis."""
    channels, factors = run.shape[1], run.module.scale_factor
    apart = run.reshaped(run.x, channels, *chain(*((size, 1) for size in run.space)))
    blocks = run.padded(apart, list(chain(*(((0, 0), (0, factor - 1)) for factor in factors))))
    return run.reshaped(blocks, channels, *run.out)


@rule("PadTo")
def _pad_to(run: Run) -> Any:
    pairs = [(0, out - size) for size, out in zip(run.space, run.out, strict=True)]
    return run.padded(run.x, pairs)


# --- Norms ------------------------------------------------------------------------------------------------------------


@rule("BatchNormNd")
def _batch_norm(run: Run) -> Any:
    """By the running statistics; where there are none, as in training, by those of the batch."""
    if run.module.running_mean is not None:
        return _by_running_statistics(run)
    axes = run.integers([axis for axis in range(len(run.shape)) if axis != 1])
    centred = run.add("Sub", run.x, run.add("ReduceMean", run.x, axes))
    variance = run.add("ReduceMean", run.add("Mul", centred, centred), axes)
    deviation = run.add("Sqrt", run.add("Add", variance, run.weight(run.module.eps, "eps")))
    return run.scaled(run.add("Div", centred, deviation), 1)


@rule("InstanceNormNd")
def _instance_norm(run: Run) -> Any:
    assert run.space
    if run.module.running_mean is not None:
        return _by_running_statistics(run)
    return run.add("InstanceNormalization", run.x, *_affine(run, run.shape[1]), epsilon=run.module.eps)


def _by_running_statistics(run: Run) -> Any:
    statistics = run.state("running_mean"), run.state("running_var")
    return run.add("BatchNormalization", run.x, *_affine(run, run.shape[1]), *statistics, epsilon=run.module.eps)


def _affine(run: Run, sizes: Any) -> tuple[str, str]:
    """Scale and shift, ones and zeros where the module has none."""
    scale, shift = run.state("weight"), run.state("bias")
    return scale or run.weight(np.ones(sizes), "ones"), shift or run.weight(np.zeros(sizes), "zeros")


@rule("LayerNorm")
def _layer_norm(run: Run) -> Any:
    shape = run.module.normalized_shape
    attributes = {"axis": -len(shape), "epsilon": run.module.eps}
    return run.add("LayerNormalization", run.x, *_affine(run, shape), **attributes)


@rule("GroupNorm")
def _group_norm(run: Run) -> Any:
    """Instance norm of the groups as channels."""
    groups = run.module.num_groups
    parts = run.weight(np.ones(groups), "ones"), run.weight(np.zeros(groups), "zeros")
    grouped = run.reshaped(run.x, groups, -1)
    normalised = run.add("InstanceNormalization", grouped, *parts, epsilon=run.module.eps)
    return run.scaled(run.reshaped(normalised, *run.shape[1:]), 1)


@rule("RMSNorm")
def _rms_norm(run: Run) -> Any:
    """Written out: the operator set that is written has none."""
    rows, dtype = len(run.module.normalized_shape), run.inputs[0].dtype
    eps = run.module.eps
    if eps is None:
        eps = np.finfo(dtype if dtype.itemsize > 2 else np.float32).eps
    means = run.add("ReduceMean", run.add("Mul", run.x, run.x), run.integers(range(-rows, 0)))
    root = run.add("Sqrt", run.add("Add", means, run.weight(eps, "eps")))
    y, weight = run.add("Div", run.x, root), run.state("weight")
    return run.add("Mul", y, weight) if weight else y


@rule("LocalResponseNorm")
def _local_response_norm(run: Run) -> Any:
    """By ONNX's own, but of an even size, whose window there has one more channel after the middle, not before it."""
    module = run.module
    if module.size % 2:
        return run.add("LRN", run.x, size=module.size, alpha=module.alpha, beta=module.beta, bias=module.k)
    squares = run.reshaped(run.add("Mul", run.x, run.x), 1, run.shape[1], prod(run.shape[2:]))
    padded = run.padded(squares, [(module.size // 2, (module.size - 1) // 2), (0, 0)])
    means = run.add("AveragePool", padded, kernel_shape=[module.size, 1])
    scaled = run.add("Mul", run.reshaped(means, *run.shape[1:]), run.weight(module.alpha, "alpha"))
    base = run.add("Add", scaled, run.weight(module.k, "k"))
    return run.add("Div", run.x, run.add("Pow", base, run.weight(module.beta, "beta")))


# --- Elementwise and linear -------------------------------------------------------------------------------------------


@rule("Identity", "Dropout")
def _identity(run: Run) -> Any:
    return run.x


@rule("ReLU")
def _relu(run: Run) -> Any:
    return run.add("Relu", run.x)


@rule("ReLU6")
def _relu6(run: Run) -> Any:
    return run.add("Clip", run.x, run.weight(0, "least"), run.weight(6, "most"))


@rule("LeakyReLU")
def _leaky_relu(run: Run) -> Any:
    return run.add("LeakyRelu", run.x, alpha=run.module.negative_slope)


@rule("Tanh")
def _tanh(run: Run) -> Any:
    return run.add("Tanh", run.x)


@rule("Sigmoid")
def _sigmoid(run: Run) -> Any:
    return run.add("Sigmoid", run.x)


@rule("SiLU")
def _silu(run: Run) -> Any:
    return run.add("Mul", run.x, run.add("Sigmoid", run.x))


@rule("Hardsigmoid")
def _hard_sigmoid(run: Run) -> Any:
    return run.add("HardSigmoid", run.x, alpha=1 / 6, beta=0.5)


@rule("Hardswish")
def _hard_swish(run: Run) -> Any:
    return run.add("Mul", run.x, run.add("HardSigmoid", run.x, alpha=1 / 6, beta=0.5))


@rule("GELU")
def _gelu(run: Run) -> Any:
    """``x / 2 * (1 + erf(x / sqrt(2)))``, or with ``tanh(sqrt(2 / π) * (x + 0.044715 x³))`` for the erf."""
    x = run.x
    if run.module.approximate == "none":
        share = run.add("Erf", run.add("Div", x, run.weight(sqrt(2), "root")))
    else:
        cube = run.add("Pow", x, run.weight(3, "three"))
        bent = run.add("Add", x, run.add("Mul", cube, run.weight(0.044715, "bend")))
        share = run.add("Tanh", run.add("Mul", bent, run.weight(sqrt(2 / np.pi), "scale")))
    half = run.add("Mul", x, run.weight(0.5, "half"))
    return run.add("Mul", half, run.add("Add", share, run.weight(1, "one")))


@rule("Softmax")
def _softmax(run: Run) -> Any:
    return run.add("Softmax", run.x, axis=run.module.dim)


@rule("Flatten")
def _flatten(run: Run) -> Any:
    shape = list(run.results[0].shape)
    if run.module.start_dim % len(run.shape) == 0:
        shape[0] = -1  # the batch is part of it
    else:
        shape[0] = 0
    return run.add("Reshape", run.x, run.integers(shape))


@rule("Linear")
def _linear(run: Run) -> Any:
    weight, bias = run.state("weight"), run.state("bias")
    if len(run.shape) == 2:
        return run.add("Gemm", run.x, weight, bias, transB=1)
    product = run.add("MatMul", run.x, run.add("Transpose", weight, perm=[1, 0]))
    return run.add("Add", product, bias) if bias else product
