"""`explain`: the algorithm that a call takes, and why, from shapes alone."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod
from typing import Any

import numpy as np

from gpucnn import functional
from gpucnn.backends import Backend, backend_of
from gpucnn.backends.cpu import select as in_cpp
from gpucnn.backends.cpu.builds import DTYPES
from gpucnn.backends.cuda.convolution import select as on_a_gpu
from gpucnn.backends.cuda.device.simulator_runtime import SimulatorRuntime
from gpucnn.backends.cuda.launch.dry_run import DryRun
from gpucnn.backends.cuda.launch.plans import dense
from gpucnn.backends.dtypes import FLOATING, accumulator, name_of, of_products
from gpucnn.backends.layout import is_channels_last
from gpucnn.backends.listening import listening
from gpucnn.backends.numpy import select as on_the_cpu
from gpucnn.functional._convolution_geometry import geometry_of, transposed_geometry
from gpucnn.geometry import ConvGeometry
from gpucnn.geometry.arguments import integer, is_sequence
from gpucnn.numerics import algorithm, choices

Shape = tuple[int, ...]

_DIRECTIONS = {  # of the operations that have several algorithms; names are without their rank
    "conv": "forward",
    "conv_activation": "forward",
    "conv_input": "backward_input",
    "conv_weight": "backward_weight",
    "conv_transpose": "backward_input",
}
_PRIMITIVES = {  # of the others, where they are a primitive of another name; see `gpucnn.backends.Backend`
    "adaptive_avg_pool": "average_pool",
    "adaptive_max_pool": "max_pool",
    "avg_pool": "average_pool",
    "batch_norm": "norm_forward",
    "fold": "col2im",
    "group_norm": "norm_forward",
    "instance_norm": "norm_forward",
    "layer_norm": "norm_forward",
    "local_response_norm": "average_pool",
    "locally_connected": "locally_connect",
    "lp_pool": "average_pool",
    "max_unpool": "unpool",
    "rms_norm": "norm_forward",
    "resample": "interpolate",
    "sum_pool": "average_pool",
    "unfold": "im2col",
}


@dataclass(frozen=True)
class Alternative:
    """An algorithm that computes the call, and its estimated cost.

    Attributes
    ----------
    name : str
    nanoseconds : float or None
        On the CPU: of one core, by the cost model that chooses; None where it has no model.
    bytes_moved, multiply_adds : int or None
        On a GPU: what is read and written, and what is multiplied.
    """

    name: str
    nanoseconds: float | None = None
    bytes_moved: int | None = None
    multiply_adds: int | None = None


@dataclass(frozen=True)
class Explanation:
    """The result of `explain`; its text is one line, and a table of the alternatives where there are any.

    Attributes
    ----------
    operation, backend : str
        What was asked.
    algorithm : str
        The algorithm that computes the call.
    reason : str
        One sentence.
    alternatives : tuple of Alternative
        All algorithms that compute it, including the one taken; none where there is only one way.
    """

    operation: str
    backend: str
    algorithm: str
    reason: str
    alternatives: tuple[Alternative, ...] = ()

    def __str__(self) -> str:
        head = f"{self.algorithm}: {self.reason}"
        if not self.alternatives:
            return head
        rows: list[tuple[str, ...]] = [("algorithm", "estimated ns of one core")]
        if self.backend != "cuda":
            rows += [(each.name, _number(each.nanoseconds)) for each in self.alternatives]
        else:
            rows = [("algorithm", "estimated bytes moved", "multiply-adds")]
            rows += [(each.name, _number(each.bytes_moved), _number(each.multiply_adds)) for each in self.alternatives]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])])  # names to the left, numbers right
            for name, *cells in rows
        ]
        return "\n".join([head, *lines])


def explain(
    operation: str,
    *shapes_or_arrays: Any,
    dtype: Any = "float32",
    backend: str | None = None,
    channels_last: bool = False,
    **parameters: Any,
) -> Explanation:
    """Explain which algorithm a call would take, and why, without computing it.

    Parameters
    ----------
    operation : str
        The name of an operation of `gpucnn.functional`, but no backward. The gradients of convolutions are
        ``conv{n}d_input`` and ``conv{n}d_weight``.
    *shapes_or_arrays
        Its arguments in order; a shape may stand for each array.
    dtype : dtype
        Of the arrays that shapes stand for; where an array is given, that one's dtype counts.
    backend : "numpy", "compiled", "cuda" or None
        The backend that would run it: without one, that which NumPy arrays meet in this process. Neither a GPU nor a
        compiler is needed.
    channels_last : bool
        Whether `input` and `grad_output` have their channels innermost in memory, as an array that is given may have.
    **parameters
        The operation's other arguments, as it takes them.

    Returns
    -------
    Explanation
        With `algorithm`, `reason` and `alternatives`; ``print`` shows all of them.

    Raises
    ------
    ValueError
        There is no such operation or backend, or a `gpucnn.algorithm` block forces one that cannot compute the call.
    TypeError, ValueError
        As the operation itself, where shapes, dtypes or parameters are wrong.

    See Also
    --------
    gpucnn.algorithm, gpucnn.tune

    Notes
    -----
    The answer holds for contiguous arrays. `gpucnn.algorithm` and `gpucnn.tuned` count as they do for calls.

    Nothing is measured. On the CPU, costs are those of the model that makes the choice: nanoseconds of one core, of
    which only the ratios mean much. A gradient of the weight is counted as its forward. On a GPU nothing is chosen by
    cost: the bytes are those of input, weight and output, the least that is moved, and for ``"im2col"`` twice those of
    the columns, which are written and read, and for ``"implicit_gemm"`` twice those of images that it first copies to
    channels last. It is that of a GPU of compute capability 8.0 or later. The bias is left out.

    Examples
    --------
    >>> print(explain("conv2d", (32, 64, 56, 56), (64, 64, 3, 3), padding=1, dtype="float16", backend="cuda"))
    im2col: The matrix product of one image and group is large enough to be worth its columns.
    algorithm  estimated bytes moved  multiply-adds
    direct                25,763,840  3,699,376,128
    im2col               256,974,848  3,699,376,128
    >>> print(explain("max_pool2d", (8, 64, 56, 56), 2, backend="numpy"))
    max_pool: It is the only way to compute max_pool2d: the numpy backend's primitive of that name.
    """
    function = _function(operation)
    backend = backend or backend_of(np.zeros(1)).name
    if backend not in ("numpy", "compiled", "cuda"):
        raise ValueError(f"explain: backend is {backend!r}, expected 'numpy', 'compiled' or 'cuda'")
    try:
        bound = inspect.signature(function).bind(*shapes_or_arrays, **parameters)
    except TypeError as error:
        raise TypeError(f"explain: {operation}: {error}") from None
    bound.arguments.pop("out", None)
    arrays = _arrays(function, bound.arguments, _dtype(dtype))
    last = channels_last or any(each.channels_last for each in arrays.values())
    family = re.sub(r"[123]d", "", operation)
    is_primitive = family in _PRIMITIVES or family in Backend.__abstractmethods__
    launches = family in _DIRECTIONS or (is_primitive and family != "lp_pool")  # which takes powers as well
    _check(function, bound, arrays, last, launches)
    if family not in _DIRECTIONS:
        return _one_way(operation, family, backend, bound.arguments, next(iter(arrays.values())).dtype)
    bound.apply_defaults()
    given = dict(bound.arguments) | {name: array.shape for name, array in arrays.items()}
    convolution = _Convolution(*_geometry(operation, family, given), _dtype_of_products(arrays), last)
    if backend == "compiled" and name_of(accumulator(convolution.dtype)) in DTYPES:
        return convolution.compiled(operation)
    return convolution.on_the_cpu(operation, backend) if backend != "cuda" else convolution.on_a_gpu(operation)


# --- What was asked -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """The properties of an array that a choice depends on."""

    shape: Shape
    dtype: np.dtype[Any]
    channels_last: bool = False


def _function(operation: Any) -> Callable[..., Any]:
    known = [name for name in functional.__all__ if not name.endswith("_backward")]
    if operation in known:
        found: Callable[..., Any] = getattr(functional, operation)
        return found
    forward = str(operation).removesuffix("_backward")
    near = get_close_matches(forward, known, cutoff=0.5)
    if re.fullmatch(r"conv[123]d", forward) and forward != operation:
        near = [f"{forward}_input", f"{forward}_weight"]
    meant = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    expected = "the name of an operation of gpucnn.functional that is no backward"
    raise ValueError(f"explain: operation is {operation!r}, expected {expected}{meant}")


def _dtype(dtype: Any) -> np.dtype[Any]:
    try:
        return np.dtype(str(dtype).removeprefix("torch.") if str(dtype).startswith("torch.") else dtype)
    except TypeError:
        hint = ", which NumPy knows once ml_dtypes is imported" if "bfloat16" in str(dtype) else ""
        raise TypeError(f"explain: dtype is {dtype!r}, expected a dtype of NumPy{hint}") from None


def _arrays(function: Callable[..., Any], given: Mapping[str, Any], dtype: np.dtype[Any]) -> dict[str, _Form]:
    """The forms of the array arguments, by name."""
    operation = function.__name__
    names = [
        name
        for name, annotation in function.__annotations__.items()
        if str(annotation).startswith("Array") and given.get(name) is not None and name not in ("return", "out")
    ]
    arrays = {name: given[name] for name in names if hasattr(given[name], "shape") and hasattr(given[name], "dtype")}
    dtypes = [_dtype(array.dtype) for name, array in arrays.items() if name not in ("indices", "target")]
    forms = {}
    for name in names:
        if name in arrays:
            array = arrays[name]
            last = name in ("input", "grad_output") and hasattr(array, "strides") and _is_last(operation, array)
            forms[name] = _Form(tuple(array.shape), _dtype(array.dtype), last)
        elif is_sequence(given[name]):
            shape = tuple(integer(operation, name, size, 0, "a shape") for size in given[name])
            forms[name] = _Form(shape, (dtypes or [dtype])[0])
        else:
            raise TypeError(f"explain: {name} is {given[name]!r}, expected a shape or an array")
    for name in ("indices", "target"):  # the classes of each row have one axis less than the rows
        classes = (
            name == "target" and operation == "cross_entropy" and len(forms[name].shape) < len(forms["input"].shape)
        )
        if name in forms and name not in arrays and (name == "indices" or classes):
            forms[name] = _Form(forms[name].shape, np.dtype(np.int64))
    return forms


def _is_last(operation: str, image: Any) -> bool:
    """Whether an image [N, C, *] or [C, *] has its channels innermost in memory."""
    is_unbatched = f"{image.ndim - 1}d" in operation
    return is_channels_last(image[None] if is_unbatched else image)


def _check(
    function: Callable[..., Any], bound: inspect.BoundArguments, arrays: Mapping[str, _Form], last: bool, launches: bool
) -> None:
    """Raise the errors of the operation: it is called as a dry run, on uninitialised arrays.

    Without `launches` it is arithmetic of the array library, which should not run over large arrays: sizes are first
    replaced by small ones, equal ones by equal ones, and only a call that then fails is made with its own sizes.
    """
    sizes = sorted({size for form in arrays.values() for size in form.shape})
    own = {size: size for size in sizes}
    small = {size: min(size, 2 + index) for index, size in enumerate(sizes)}
    plain = {name: deepcopy(value) for name, value in bound.arguments.items() if name not in arrays}  # as generators
    dry = DryRun(SimulatorRuntime())
    with listening(dry), algorithm("direct"), np.errstate(all="ignore"):
        for exchanged in (own,) if launches else (small, own):
            made = {name: _made(dry.xp, name, form, exchanged, last) for name, form in arrays.items()}
            try:
                function(**plain | made)
            except (TypeError, ValueError):
                if exchanged is own:
                    raise
            else:
                return


def _made(xp: Any, name: str, form: _Form, sizes: Mapping[int, int], last: bool) -> Any:
    """An array of zeros that stands for one of the call."""
    shape = tuple(sizes[size] for size in form.shape)
    if last and name in ("input", "grad_output") and len(shape) > 2:
        return xp.moveaxis(xp.zeros((shape[0], *shape[2:], shape[1]), form.dtype), -1, 1)
    return xp.zeros(shape, form.dtype)


def _dtype_of_products(arrays: Mapping[str, _Form]) -> np.dtype[Any]:
    """The dtype that convolutions are computed in."""
    return of_products(next(iter(arrays.values())).dtype)


def _geometry(operation: str, family: str, given: Mapping[str, Any]) -> tuple[str, ConvGeometry, int]:
    """The direction of a convolution, its geometry and its batch size."""
    rank = int(re.findall(r"[123]", operation)[0])
    image = tuple(given["input_size"] if family == "conv_input" else given["input"])
    weight = tuple(given["weight_size"] if family == "conv_weight" else given["weight"])
    stride, padding, dilation, groups = (given[name] for name in ("stride", "padding", "dilation", "groups"))
    if family == "conv_transpose":
        extra = given["output_padding"]
        geometry = transposed_geometry(operation, rank, image, weight, stride, padding, extra, dilation, groups)
    else:
        geometry = geometry_of(operation, rank, image, weight, stride, padding, dilation, groups)
    return _DIRECTIONS[family], geometry, image[0] if len(image) == rank + 2 else 1


# --- The answers ----------------------------------------------------------------------------------------------------


def _one_way(operation: str, family: str, backend: str, given: Mapping[str, Any], dtype: np.dtype[Any]) -> Explanation:
    name = _PRIMITIVES.get(family, family if family in Backend.__abstractmethods__ else "elementwise")
    if family == "interpolate" and given.get("mode") == "area":
        name = "average_pool"
    elif (family == "batch_norm" and not given.get("training")) or not given.get("use_input_stats", True):
        name = "norm_apply"
    elif family in ("relu", "leaky_relu") and backend == "cuda" and name_of(dtype) in FLOATING:
        name = "bias_activation"
    by = "the array library's functions" if name == "elementwise" else f"the {backend} backend's primitive of that name"
    return Explanation(operation, backend, name, f"It is the only way to compute {operation}: {by}.")


@dataclass(frozen=True)
class _Convolution:
    """A convolution in one direction, as the backends' selections take it."""

    direction: str
    geometry: ConvGeometry
    batch: int
    dtype: np.dtype[Any]
    channels_last: bool

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        """Those of x [N, C, D, H, W] and y [N, OC, OD, OH, OW]."""
        inputs, outputs, _ = self.geometry.channels
        return (self.batch, inputs, *self.geometry.input_size), (self.batch, outputs, *self.geometry.output_size)

    def compiled(self, operation: str) -> Explanation:
        """By the kernels in C++, which have no model of cost; a dgrad by its stride residue with the most taps."""
        direction, geometry, dtype = self.direction, self.geometry, name_of(accumulator(self.dtype))
        asked = choices().algorithm
        name = in_cpp.algorithm(direction, geometry, asked, not self.channels_last)
        if name is None and direction == "backward_weight":
            name = "implicit_gemm"
        elif name is None:
            weight, samplings = max(on_the_cpu.contractions(direction, geometry), key=lambda part: prod(part[0]))
            whole = len(on_the_cpu.contractions(direction, geometry)) == 1
            depth, height, width = samplings
            order = in_cpp.Order.PIXELS if self.channels_last else in_cpp.Order.ROWS
            order = order if whole else in_cpp.Order.OTHER
            name = in_cpp.contraction(self.batch, weight, (depth, height, width), dtype, order, asked)
        reason = _asked(name) or _REASONS_IN_CPP[name]
        return Explanation(operation, "compiled", name, reason)

    def on_the_cpu(self, operation: str, backend: str) -> Explanation:
        name = on_the_cpu.algorithm(self.direction, self.geometry, self.batch, choices().algorithm)
        costs = on_the_cpu.costs(self.direction, self.geometry, self.batch)
        reason = _asked(name) or _REASONS.get(name) or self._least_cost(name, len(costs))
        alternatives = tuple(Alternative(other, cost) for other, cost in costs.items())
        return Explanation(operation, backend, name, reason, alternatives)

    def _least_cost(self, name: str, count: int) -> str:
        if self.direction == "backward_weight":
            return "A gradient of the weight is a product with columns unless each channel is filtered alone."
        least = f"Its estimated cost is the least of the {count} algorithms that compute"
        parts = on_the_cpu.contractions(self.direction, self.geometry)
        if name == "fold" or len(parts) == 1:
            return f"{least} this."
        names = {on_the_cpu.contraction(self.batch, *part) for part in parts} - {name}
        others = f"; others take {' and '.join(sorted(names))}" if names else ""
        return f"{least} the largest of its {len(parts)} stride residues{others}."

    def on_a_gpu(self, operation: str) -> Explanation:
        direction, geometry, dtype = self.direction, self.geometry, name_of(self.dtype)
        x, y = (dense(shape, self.dtype.itemsize, self.channels_last) for shape in self.shapes)
        name = on_a_gpu.algorithm(direction, geometry, dtype, x, y, (8, 0))
        names = on_a_gpu.algorithms(direction, geometry, dtype, (8, 0))
        picks = choices().picks
        if choices().algorithm is not None:
            reason = _asked(name)
        elif name == "depthwise":
            reason = "Each channel is filtered alone, and a tile of the images fits into a block's shared memory."
        elif picks is not None and picks.algorithm(direction, geometry, dtype) == name:
            reason = "It was the quickest when gpucnn.tune timed it."
        elif len(names) == 1:
            reason = f"No matrix product is taken of {dtype}."
        elif name == "winograd":
            reason = "There are channels enough that fewer products are worth the transforms of images."
        elif name == "implicit_gemm":
            reason = "The matrix product is large enough for tiles, whose columns are gathered as they are multiplied."
        elif name == "im2col":
            reason = "The matrix product of one image and group is large enough to be worth its columns."
        else:
            reason = "The matrix product of one image and group is too small to be worth its columns."
        if on_a_gpu.takes_depthwise(direction, geometry, dtype, x, y):
            names += ("depthwise",)
        return Explanation(operation, "cuda", name, reason, tuple(map(self._moved, names)))

    def _moved(self, name: str) -> Alternative:
        inputs, outputs, groups = self.geometry.channels
        weights = outputs * (inputs // groups) * self.geometry.taps
        positions = self.batch * prod(self.geometry.output_size)
        values = weights + sum(map(prod, self.shapes))
        if name == "im2col" and not self.geometry.is_pixel_by_pixel:
            values += 2 * positions * inputs * self.geometry.taps
        if name == "implicit_gemm" and not self.channels_last:
            x, y = map(prod, self.shapes)
            values += 2 * {"forward": x, "backward_input": y, "backward_weight": x + y}[self.direction]
        products = positions * weights
        if name == "winograd":
            written = self.geometry.output_size if self.direction == "forward" else self.geometry.input_size
            tiles = 16 * self.batch * prod(-(-size // 2) for size in written)
            values, products = values + 2 * tiles * (inputs + outputs), tiles * inputs * outputs
        return Alternative(name, None, values * self.dtype.itemsize, products)


_SPREAD = "Windows reach over more input than a tile can copy; NumPy multiplies, whose estimated cost is the least so."
_REASONS_IN_CPP = {
    "direct": _SPREAD,
    "im2col": _SPREAD,
    "depthwise": "Each group has few channels; lanes run over them, or along positions.",
    "fold": "Few channels are computed: lanes run over positions, and columns are folded into the image.",
    "implicit_gemm": "It is the kernel for all shapes: tiles of outputs, whose input is copied channels-last.",
    "pointwise": "Taps are 1 x 1 and images in C order: the product needs no copy of a tile.",
    "pointwise_dots": "Taps are 1 x 1, filters few and channels innermost: lanes run over channels.",
    "winograd": "There are channels and tiles enough that 16 products instead of 36 are worth the transforms.",
}
_REASONS = {  # of what is chosen on the CPU by no cost
    "depthwise": "Each channel is filtered alone, which is no matrix product: lanes run over channels.",
}


def _asked(name: str) -> str:
    """The reason where the caller asks for an algorithm, else an empty text."""
    chosen = choices().algorithm
    if chosen is None:
        return ""
    fold = ", by which a product and a fold cost less here than columns" if name == "fold" else ""
    return f"The block gpucnn.algorithm({chosen!r}) asks for it{fold}."


def _number(value: float | None) -> str:
    return "not modelled" if value is None else f"{value:,.0f}"
