"""The contract of a backend: the few primitives that all public operations are composed of.

All arrays are the backend's own. Images are [N, C, D, H, W]: an operation of rank 1 or 2 has leading spatial axes of
size 1. Callers have validated shapes and dtypes; `gpucnn.geometry` defines the elements that each method reads.

A backend names the modules of its folder (`implemented_by`): `backend.convolve` is the function `convolve` in one of
them.

Primitives write their results into preallocated arrays, passed after their inputs: dense, in the memory order that
`Backend.empty_like` gives for the first input (columns and statistics in C order, weights in any). Inputs have any
strides. 16-bit floats accumulate in float32: of them a bias, and the gradient of a weight or a bias, may be float32.
Results are bitwise reproducible.
"""

from __future__ import annotations

from abc import ABC, abstractmethod, update_abstractmethods
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, ClassVar, TypeVar

from gpucnn.backends import optimization, smooth
from gpucnn.backends.layout import planes
from gpucnn.backends.optimization import AdamStep, Descent
from gpucnn.geometry import ConvGeometry, GridGeometry, InterpolationGeometry, NormGeometry, PoolGeometry

Array = Any
Class = TypeVar("Class", bound=type)
Method = TypeVar("Method", bound=Callable[..., None])


def primitive(declared: Method) -> Method:
    """Declare a primitive, which each backend implements by a function of this name and these parameters.

    It is abstract to Python, not to type checkers, which cannot see what `implemented_by` adds to a class.
    """
    return abstractmethod(declared)


def implemented_by(*modules: ModuleType, method: Callable[[Any], Any]) -> Callable[[Class], Class]:
    """Give a backend its primitives: of each, the function of that name in one of `modules`, as `method` wraps it.

    Raises
    ------
    TypeError
        A primitive is not in exactly one of the modules, and the class does not define it.
    """

    def complete(backend: Class) -> Class:
        for name in sorted(Backend.__abstractmethods__ - vars(backend).keys()):
            found = [vars(module)[name] for module in modules if name in vars(module)]
            if len(found) != 1:
                raise TypeError(f"{backend.__name__}: {name} is in {len(found)} of its modules, expected one")
            setattr(backend, name, method(found[0]))
        update_abstractmethods(backend)
        return backend

    return complete


@dataclass(frozen=True)
class Epilogue:
    """Epilogue of a primitive, applied to its sums before the store: ``activation(sum + residual)``.

    `residual` has the shape and dtype of the result. `activation` is "none", "relu", "leaky_relu" or "relu6", or, for
    convolutions, one of `SMOOTH`. NaN propagates.
    """

    SMOOTH: ClassVar = {"sigmoid": 1, "hard_sigmoid": 2, "silu": 3, "hard_swish": 4, "gelu": 5, "gelu_tanh": 6}
    """Those whose derivative is known by their input alone, with their numbers in kernels: see `smooth`."""

    residual: Array | None = None
    activation: str = "none"
    negative_slope: float = 0.0

    @property
    def smooth(self) -> int:
        """The number of a smooth activation, 0 of others."""
        return self.SMOOTH.get(self.activation, 0)

    @property
    def keeps_signs(self) -> bool:
        """Whether results have the signs of what is activated, on which the gradient depends."""
        return self.activation in ("relu", "relu6") or (self.activation == "leaky_relu" and self.negative_slope > 0)


class Backend(ABC):
    """Primitives over one kind of array.

    `xp` is its NumPy-like module, for elementwise operations. With `host`, values are in host memory, where they can be
    checked without synchronising with a device.
    """

    name: str
    xp: Any
    host: bool

    # --- Arrays: primitives write into those that they are given, and these methods make them ----------------------

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: Any, on: Array) -> Array:
        """An uninitialised array in C order, on the device of `on`."""

    @abstractmethod
    def empty_like(self, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
        """An uninitialised array [N, C, *] on the device of `like`, with its channels innermost if those of `like` are.

        Any other memory order of `like` gives C order.
        """

    def zeros(self, shape: tuple[int, ...], dtype: Any, on: Array) -> Array:
        """An array of zeros in C order, on the device of `on`."""
        array = self.empty(shape, dtype, on)
        array[...] = 0
        return array

    def empty_weight(self, shape: tuple[int, ...], dtype: Any, x: Array) -> Array:
        """An uninitialised array for the gradient of a weight [OC, C / groups, *k], which images x [N, C, *] meet.

        Its memory order is that in which the gradient is computed.
        """
        return self.empty(shape, dtype, on=x)

    def writes_to(self, array: Array) -> bool:
        """Whether primitives can write to `array` in place."""
        return True

    # --- Steps of optimisers, in place: arrays of one shape and dtype -------------------------------------------------

    def sgd(self, data: Array, grad: Array, velocity: Array | None, step: Descent) -> None:
        """Change `data`, and `velocity` where there is one, by the formula of `gpucnn.nn.SGD`."""
        optimization.sgd(self.xp, data, grad, velocity, step)

    def adam(self, data: Array, grad: Array, mean: Array, square: Array, most: Array | None, step: AdamStep) -> None:
        """Change all arrays but `grad` by the formula of `gpucnn.nn.Adam`; `most` is the largest `square` so far."""
        optimization.adam(self.xp, data, grad, mean, square, most, step)

    # --- Copies -------------------------------------------------------------------------------------------------------

    @primitive
    def copy(self, x: Array, y: Array) -> None:
        """Write x to y [N, C, *], of the same shape and any strides; in y's dtype, where both are floating-point."""

    # --- Convolution: w is [OC, C / groups, KD, KH, KW], bias [OC] or None ----------------------------------------

    @primitive
    def convolve(self, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
        """Cross-correlate x [N, C, D, H, W] with w: y [N, OC, OD, OH, OW], plus bias."""

    def convolve_activation(
        self, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry, epilogue: Epilogue
    ) -> None:
        """As `convolve` and then `bias_activation` with the epilogue, whose residual is [N, OC, OD, OH, OW].

        A backend whose kernels apply epilogues to their sums replaces it, and gives the same bits.
        """
        sums = y if self.host else self.empty_like(y.shape, y.dtype, y)  # a GPU's kernel may not write what it reads
        self.convolve(x, w, bias, sums, geometry)
        residual = None if epilogue.residual is None else planes(epilogue.residual)
        self.bias_activation(planes(sums), None, planes(y), replace(epilogue, residual=residual))

    @primitive
    def convolve_backward_input(
        self, grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry
    ) -> None:
        """Spread grad_y [N, OC, OD, OH, OW] back through w: grad_x [N, C, D, H, W] (dgrad).

        It is the transposed convolution as well, whose `bias` [C] is added; nothing is conjugated.
        """

    @primitive
    def convolve_backward_weight(self, x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
        """Correlate x [N, C, D, H, W] with grad_y [N, OC, OD, OH, OW]: grad_w [OC, C / groups, KD, KH, KW] (wgrad)."""

    # --- Fully connected: w is [OUT, IN], bias [OUT] or None -----------------------------------------------------

    @primitive
    def linear(self, x: Array, w: Array, bias: Array | None, y: Array) -> None:
        """Y [N, OUT] = x [N, IN] times w transposed, plus bias; 16-bit results are rounded once."""

    @primitive
    def linear_backward_input(self, grad_y: Array, w: Array, grad_x: Array) -> None:
        """grad_x [N, IN] = grad_y [N, OUT] times w; nothing is conjugated."""

    @primitive
    def linear_backward_weight(self, x: Array, grad_y: Array, grad_w: Array) -> None:
        """grad_w [OUT, IN] = grad_y [N, OUT] transposed times x [N, IN]."""

    # --- Locally connected: w is [OC, OD, OH, OW, C, KD, KH, KW], bias [OC, OD, OH, OW] or None -------------------

    @primitive
    def locally_connect(self, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
        """Convolve with a separate filter at each position: y [N, OC, OD, OH, OW]."""

    @primitive
    def locally_connect_backward_input(self, grad_y: Array, w: Array, grad_x: Array, geometry: ConvGeometry) -> None:
        """grad_x [N, C, D, H, W] of a locally connected layer; nothing is conjugated."""

    @primitive
    def locally_connect_backward_weight(self, x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
        """grad_w [OC, OD, OH, OW, C, KD, KH, KW] of a locally connected layer."""

    # --- Unfolding ------------------------------------------------------------------------------------------------

    @primitive
    def im2col(self, x: Array, columns: Array, geometry: ConvGeometry) -> None:
        """Columns [N, C * KD * KH * KW, OD * OH * OW] of x [N, C, D, H, W]; padding reads as zero."""

    @primitive
    def col2im(self, columns: Array, x: Array, geometry: ConvGeometry) -> None:
        """Image [N, C, D, H, W]: each input's sum over the columns' entries that im2col copies it to."""

    # --- Pooling --------------------------------------------------------------------------------------------------

    @primitive
    def max_pool(self, x: Array, y: Array, indices: Array | None, geometry: PoolGeometry) -> None:
        """Maximum of each window, NaN if it holds one: y [N, C, OD, OH, OW].

        `indices`, if given, are int64 [N, C, OD, OH, OW] in [0, D*H*W): the flat position of each maximum in its plane,
        the first of equal ones, the last of NaNs, -1 for a window wholly in padding.
        """

    @primitive
    def max_pool_backward(self, grad_y: Array, indices: Array, grad_x: Array, geometry: PoolGeometry) -> None:
        """grad_x [N, C, D, H, W]: each input's sum over the windows of which it was the maximum."""

    @primitive
    def unpool(self, values: Array, indices: Array, planes: Array) -> None:
        """Scatter values [N, C, D, H, W] by their indices into zeroed planes [N, C, OD, OH, OW]; the last one is kept.

        A value with index -1 is dropped; other indices are within the planes.
        """

    @primitive
    def gather(self, planes: Array, indices: Array, values: Array) -> None:
        """Values = ``planes[n, c].flat[indices[n, c]]`` for planes [N, C, D, H, W]; 0 where the index is -1."""

    @primitive
    def average_pool(self, x: Array, y: Array, geometry: PoolGeometry) -> None:
        """Sum of each window over ``geometry.divisor``: y [N, C, OD, OH, OW]."""

    @primitive
    def average_pool_backward(self, grad_y: Array, grad_x: Array, geometry: PoolGeometry) -> None:
        """grad_x [N, C, D, H, W]: each input's sum over its windows, each over its divisor."""

    # --- Resampling -----------------------------------------------------------------------------------------------

    @primitive
    def interpolate(self, x: Array, y: Array, geometry: InterpolationGeometry) -> None:
        """Resample x [N, C, D, H, W]: y [N, C, OD, OH, OW]."""

    @primitive
    def interpolate_backward(self, grad_y: Array, grad_x: Array, geometry: InterpolationGeometry) -> None:
        """The adjoint of `interpolate`: grad_x [N, C, D, H, W]."""

    @primitive
    def grid_sample(self, x: Array, grid: Array, y: Array, geometry: GridGeometry) -> None:
        """Sample x [N, C, D, H, W] at the positions of grid [N, OD, OH, OW, rank]: y [N, C, OD, OH, OW]."""

    @primitive
    def grid_sample_backward(
        self,
        grad_y: Array,
        x: Array,
        grid: Array,
        grad_x: Array | None,
        grad_grid: Array | None,
        geometry: GridGeometry,
    ) -> None:
        """The requested gradients: grad_x [N, C, D, H, W] and grad_grid [N, OD, OH, OW, rank], the latter in C order.

        Each has the same bits with and without the other.
        """

    # --- Normalisation: x is [N, G, C, P], weight and bias [1, G, C, 1]; see NormGeometry --------------------------

    @primitive
    def norm_statistics(
        self, x: Array, mean: Array, var: Array, rstd: Array, geometry: NormGeometry, eps: float
    ) -> None:
        """Mean, biased variance and rstd = 1 / sqrt(var + eps) over ``geometry.axes``, kept as axes of size 1.

        All are float32 for 16-bit x.
        """

    @primitive
    def norm_apply(
        self,
        x: Array,
        mean: Array,
        var: Array,
        weight: Array | None,
        bias: Array | None,
        y: Array,
        eps: float,
        epilogue: Epilogue,
    ) -> None:
        """Y = epilogue of ``(x - mean) * rstd * weight + bias`` with rstd = 1 / sqrt(var + eps), rounded once."""

    @primitive
    def norm_forward(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        y: Array,
        mean: Array,
        var: Array,
        rstd: Array,
        geometry: NormGeometry,
        eps: float,
        epilogue: Epilogue,
    ) -> None:
        """As `norm_apply` with x's own statistics, which are written as by `norm_statistics`."""

    @primitive
    def norm_activation_backward(
        self,
        grad_y: Array,
        x: Array,
        mean: Array,
        rstd: Array,
        weight: Array | None,
        bias: Array | None,
        grad: Array,
        epilogue: Epilogue,
    ) -> None:
        """Grad = grad_y times the activation's derivative, by the signs of `norm_apply`'s pre-activation values."""

    @primitive
    def norm_backward(
        self,
        grad_y: Array,
        x: Array,
        mean: Array,
        rstd: Array,
        weight: Array | None,
        grad_x: Array | None,
        grad_weight: Array | None,
        grad_bias: Array | None,
        geometry: NormGeometry,
    ) -> None:
        """The requested gradients, those of weight and bias, [1, G, C, 1], both or neither.

        grad_x is that of a norm by x's own statistics; the others are the sums of ``grad_y * (x - mean) * rstd`` and of
        grad_y. Each has the same bits with and without the others.
        """

    @primitive
    def moving_average(self, found: Array, average: Array, factor: float, momentum: float) -> None:
        """Average [C] = ``(1 - momentum) * average + momentum * mean``, in place, in any floating dtype.

        The mean is that over N of found [N, C, 1, 1], in the dtype of statistics, times the factor.
        """

    # --- Of x of any shape, a new array in the dtype that sums are kept in: by `xp`, or a backend's kernels ---------

    def softmax(self, x: Array, axis: int, is_log: bool) -> Array:
        """The softmax of x along an axis, or its logarithm."""
        return smooth.softmax(self.xp, x, axis, is_log)

    def softmax_backward(self, grad_y: Array, y: Array, axis: int, is_log: bool) -> Array:
        """The gradient of `softmax` by its result y, in the memory order of grad_y where that matters."""
        return smooth.softmax_backward(self.xp, grad_y, y, axis, is_log)

    def smooth_activation(self, x: Array, kind: str) -> Array:
        """The activation of that kind, one of `Epilogue.SMOOTH`, of each element."""
        return smooth.smooth_activation(self.xp, x, kind)

    def smooth_activation_backward(self, grad_y: Array, x: Array, kind: str) -> Array:
        """The gradient of `smooth_activation`."""
        return smooth.smooth_activation_backward(self.xp, grad_y, x, kind)

    # --- Element by element: the rest is `xp` ---------------------------------------------------------------------

    @primitive
    def masked(self, values: Array, mask: Array, y: Array) -> None:
        """Y = values where the mask of their shape is True, and 0 elsewhere, even for infinities and NaN."""

    @primitive
    def bias_activation(self, x: Array, bias: Array | None, y: Array, epilogue: Epilogue) -> None:
        """Y = epilogue of ``x + bias`` for x [N, C, P] and bias [C], rounded once."""

    @primitive
    def bias_activation_backward(
        self, grad_y: Array, y: Array, grad_x: Array, grad_bias: Array | None, epilogue: Epilogue
    ) -> None:
        """grad_x [N, C, P] and the gradient of the bias [C], its sum over N and P.

        The derivative is that at the signs of y [N, C, P], for "relu6" at y itself; it is of no smooth activation.
        """

    @primitive
    def channel_sums(self, x: Array, sums: Array) -> None:
        """The sums [C] of x [N, C, *] over all but its channels, kept in float32 where x has 16 bits."""
