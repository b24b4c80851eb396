"""The contract of a backend: the few primitives that every public operation is made of.

All arrays are the backend's own. Images are [N, C, D, H, W]: an operation of rank 1 or 2 has leading spatial axes of
size 1. Shapes and dtypes were checked above and are right here; `gpucnn.geometry` says what each method reads.

Any strides are taken. A result has the memory order of the array that it follows (the first argument): channels last
if that one's channels are innermost, else C order. 16-bit floats accumulate in float32. Results repeat bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

from gpucnn.geometry import ConvGeometry, InterpolationGeometry, NormGeometry, PoolGeometry

Array = Any


class Backend(ABC):
    """Primitives over one kind of array.

    `xp` is its NumPy-like module, for all that is elementwise. `host` says that values lie in this process's memory,
    where they can be checked without waiting for a device.
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

    def writes_to(self, array: Array) -> bool:
        """Whether primitives can write to `array` where it is in memory."""
        return True

    @abstractmethod
    def copy(self, x: Array, y: Array) -> None:
        """Write x to y, of the same shape and dtype and of any strides."""

    def into(self, out: Array, shape: tuple[int, ...] | None = None) -> Backend:
        """The backend as one whose primitives write their result, the first of several, to `out` and return it.

        `out` is an array in the result's dtype, of any strides, that shares no memory with an argument. It has the
        result's shape, or `shape` is that and `out` has it with axes taken together or apart. A primitive may compute
        its result aside and copy it there.
        """
        return cast(Backend, _Into(self, out))

    # --- Convolution: w is [OC, C / groups, KD, KH, KW], bias [OC] or None ----------------------------------------

    @abstractmethod
    def convolve(self, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
        """Cross-correlate x [N, C, D, H, W] with w: y [N, OC, OD, OH, OW], plus bias."""

    @abstractmethod
    def convolve_backward_input(
        self, grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry
    ) -> None:
        """Spread grad_y [N, OC, OD, OH, OW] back through w: grad_x [N, C, D, H, W] (dgrad).

        It is the transposed convolution as well, whose `bias` [C] is added; nothing is conjugated.
        """

    @abstractmethod
    def convolve_backward_weight(self, x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
        """Correlate x [N, C, D, H, W] with grad_y [N, OC, OD, OH, OW]: grad_w [OC, C / groups, KD, KH, KW] (wgrad)."""

    # --- Locally connected: w is [OC, OD, OH, OW, C, KD, KH, KW], bias [OC, OD, OH, OW] or None -------------------

    @abstractmethod
    def locally_connect(self, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
        """Convolve with a filter of its own at each position: y [N, OC, OD, OH, OW]."""

    @abstractmethod
    def locally_connect_backward_input(self, grad_y: Array, w: Array, grad_x: Array, geometry: ConvGeometry) -> None:
        """grad_x [N, C, D, H, W] of a locally connected layer; nothing is conjugated."""

    @abstractmethod
    def locally_connect_backward_weight(self, x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
        """grad_w [OC, OD, OH, OW, C, KD, KH, KW] of a locally connected layer."""

    # --- Unfolding ------------------------------------------------------------------------------------------------

    @abstractmethod
    def im2col(self, x: Array, columns: Array, geometry: ConvGeometry) -> None:
        """Columns [N, C * KD * KH * KW, OD * OH * OW] of x [N, C, D, H, W]; padding reads as zero."""

    @abstractmethod
    def col2im(self, columns: Array, x: Array, geometry: ConvGeometry) -> None:
        """Image [N, C, D, H, W]: each input's sum over the columns' entries that im2col reads it into."""

    # --- Pooling --------------------------------------------------------------------------------------------------

    @abstractmethod
    def max_pool(self, x: Array, y: Array, indices: Array | None, geometry: PoolGeometry) -> None:
        """Maximum of each window, NaN if it holds one: y [N, C, OD, OH, OW].

        Where `indices` are wanted, int64 [N, C, OD, OH, OW] in [0, D*H*W), they say where in its plane each maximum
        is: the first of equal ones, the last of NaNs, -1 for a window wholly in padding.
        """

    @abstractmethod
    def max_pool_backward(self, grad_y: Array, indices: Array, grad_x: Array, geometry: PoolGeometry) -> None:
        """grad_x [N, C, D, H, W]: each input's sum over the windows of which it was the maximum."""

    @abstractmethod
    def unpool(self, values: Array, indices: Array, planes: Array) -> None:
        """Planes [N, C, OD, OH, OW] of zeros, with values [N, C, D, H, W] put where indices say; the last one stays.

        An index of -1 puts its value nowhere; others are within the planes.
        """

    @abstractmethod
    def gather(self, planes: Array, indices: Array, values: Array) -> None:
        """Values = ``planes[n, c].flat[indices[n, c]]`` for planes [N, C, D, H, W]; 0 where the index is -1."""

    @abstractmethod
    def average_pool(self, x: Array, y: Array, geometry: PoolGeometry) -> None:
        """Sum of each window over ``geometry.divisor``: y [N, C, OD, OH, OW]."""

    @abstractmethod
    def average_pool_backward(self, grad_y: Array, grad_x: Array, geometry: PoolGeometry) -> None:
        """grad_x [N, C, D, H, W]: each input's sum over its windows, each over its divisor."""

    # --- Resampling -----------------------------------------------------------------------------------------------

    @abstractmethod
    def interpolate(self, x: Array, y: Array, geometry: InterpolationGeometry) -> None:
        """Resample x [N, C, D, H, W]: y [N, C, OD, OH, OW]."""

    @abstractmethod
    def interpolate_backward(self, grad_y: Array, grad_x: Array, geometry: InterpolationGeometry) -> None:
        """The adjoint of `interpolate`: grad_x [N, C, D, H, W]."""

    # --- Normalisation: x is [N, G, C, P], weight and bias [1, G, C, 1]; see NormGeometry --------------------------

    @abstractmethod
    def norm_statistics(self, x: Array, geometry: NormGeometry, eps: float) -> tuple[Array, Array, Array]:
        """Mean, biased variance and rstd = 1 / sqrt(var + eps) over ``geometry.axes``, kept as axes of size 1.

        All are float32 for 16-bit x.
        """

    @abstractmethod
    def norm_apply(
        self,
        x: Array,
        mean: Array,
        var: Array,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        residual: Array | None,
        activation: str,
        negative_slope: float,
    ) -> Array:
        """``activation((x - mean) * rstd * weight + bias + residual)`` with rstd = 1 / sqrt(var + eps), rounded once.

        It has the dtype of x; residual is [N, G, C, P] in that dtype, `activation` as in `bias_activation`.
        """

    @abstractmethod
    def norm_forward(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        geometry: NormGeometry,
        eps: float,
        residual: Array | None,
        activation: str,
        negative_slope: float,
    ) -> tuple[Array, Array, Array, Array]:
        """As `norm_apply` with x's own statistics; and these, as `norm_statistics`."""

    @abstractmethod
    def norm_activation_backward(
        self,
        grad_y: Array,
        x: Array,
        mean: Array,
        rstd: Array,
        weight: Array | None,
        bias: Array | None,
        residual: Array | None,
        activation: str,
        negative_slope: float,
    ) -> Array:
        """grad_y times the activation's derivative, by the signs of what `norm_apply` computes before it."""

    @abstractmethod
    def norm_backward_affine(
        self, grad_y: Array, x: Array, mean: Array, rstd: Array, geometry: NormGeometry
    ) -> tuple[Array, Array]:
        """Gradients of weight and bias, [1, G, C, 1]: sums of ``grad_y * (x - mean) * rstd`` and of grad_y."""

    @abstractmethod
    def norm_backward_input(
        self, grad_y: Array, x: Array, mean: Array, rstd: Array, weight: Array | None, geometry: NormGeometry
    ) -> Array:
        """grad_x where mean and rstd are x's own statistics."""

    @abstractmethod
    def norm_backward(
        self, grad_y: Array, x: Array, mean: Array, rstd: Array, weight: Array | None, geometry: NormGeometry
    ) -> tuple[Array, Array, Array]:
        """What `norm_backward_input` and `norm_backward_affine` return, to the bit."""

    # --- Element by element: the rest is `xp` ---------------------------------------------------------------------

    @abstractmethod
    def masked(self, values: Array, mask: Array) -> Array:
        """Values where the mask of their shape is True, and 0 elsewhere, also for what is infinite or NaN there."""

    @abstractmethod
    def packed(self, x: Array, dtype: Any, channels_last: bool) -> Array:
        """A copy of x [N, C, P] in C order or with channels innermost, in its own or another floating-point dtype."""

    @abstractmethod
    def bias_activation(
        self, x: Array, bias: Array | None, residual: Array | None, activation: str, negative_slope: float
    ) -> Array:
        """``activation(x + bias + residual)`` for x and residual [N, C, P] and bias [C], rounded once.

        `activation` is "none", "relu" or "leaky_relu"; a NaN stays one.
        """

    @abstractmethod
    def bias_activation_backward(
        self, grad_y: Array, y: Array, activation: str, negative_slope: float
    ) -> tuple[Array, Array]:
        """grad_x [N, C, P], by the signs of y [N, C, P], and the gradient of the bias [C]: its sum over N and P."""

    @abstractmethod
    def channel_sums(self, x: Array) -> Array:
        """The sums [C] of x [N, C, *] over all but its channels, kept in float32 where x has 16 bits."""


class _Into:
    """The primitives of a backend, with a copy of their result in `out`."""

    def __init__(self, backend: Backend, out: Array) -> None:
        self._backend, self._out = backend, out

    def __getattr__(self, name: str) -> Callable[..., Any]:
        primitive = getattr(self._backend, name)

        def called(*arguments: Any) -> Any:
            result = primitive(*arguments)
            first, *others = result if isinstance(result, tuple) else (result,)
            self._out[...] = first.reshape(self._out.shape)
            return (self._out, *others) if others else self._out

        return called
