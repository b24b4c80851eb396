"""Normalisation layers: batch, instance, layer, RMS, group and local response norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

import gpucnn.functional as F
from gpucnn.functional._family import SPACE
from gpucnn.geometry.arguments import boolean, integer, integers, is_sequence, number
from gpucnn.nn._family import Ranked, Weighted
from gpucnn.nn.module import Array, Module, Parameter

__all__ = [
    "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d",
    "LayerNorm", "LocalResponseNorm", "RMSNorm",
]  # fmt: skip


class Norm(Weighted):
    """The base of the norms: a scale and a shift, where they are wanted."""

    eps: float | None

    def forward(self, x: Array) -> Array:
        """The normalised x, in its shape."""
        return self.finished(x)

    def finished(self, x: Array, residual: Array | None = None, activation: str | None = None) -> Array:
        """``activation(norm(x) + residual)`` in one pass; what is kept is for the backward of the norm alone."""
        raise NotImplementedError(f"{type(self).__name__} defines no finished")

    def _set_affine(self, shape: tuple[int, ...], scales: bool, bias: bool, dtype: Any) -> None:
        shifts = boolean(type(self).__name__, "bias", bias) and scales
        self.weight = Parameter(np.ones(shape, dtype)) if scales else None
        self.bias = Parameter(np.zeros(shape, dtype)) if shifts else None

    def _bias_repr(self) -> str:
        """The end of the repr of a norm that scales and does not shift."""
        return ", bias=False" if self.weight is not None and self.bias is None else ""


class Tracking(Norm, Ranked):
    """The base of batch and instance norm: statistics tracked in training and used in evaluation."""

    buffer_names = ("running_mean", "running_var", "num_batches_tracked")

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        name = type(self).__name__
        self.num_features = integer(name, "num_features", num_features, 1)
        self.eps = number(name, "eps", eps, least=0.0)
        self.momentum = None if momentum is None else number(name, "momentum", momentum)
        self.affine = boolean(name, "affine", affine)
        self.track_running_stats = boolean(name, "track_running_stats", track_running_stats)
        self._set_affine((self.num_features,), self.affine, bias, dtype)
        tracks = self.track_running_stats
        self.running_mean: Array | None = np.zeros(self.num_features, dtype) if tracks else None
        self.running_var: Array | None = np.ones(self.num_features, dtype) if tracks else None
        self.num_batches_tracked: Array | None = np.zeros((), np.int64) if tracks else None

    def _expect_channels(self, x: Array, axis: int) -> None:
        if x.shape[axis] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: input has {x.shape[axis]} channels, expected num_features = "
                f"{self.num_features}"
            )

    def _normalised(self, x: Array, momentum: float, **finish: Any) -> tuple[Array, tuple[Any, ...]]:
        """The normalised x, and the values that `_gradient` takes."""
        by_input = self.training or self.running_mean is None  # by the statistics of x, or by the running ones
        arguments = (x, self.running_mean, self.running_var, *self._arrays(), by_input, momentum, self.eps)
        if not self.keeps:
            return self.function(*arguments, **finish), ()
        y, mean, rstd = self.function(*arguments, return_statistics=True, **finish)
        return y, (x, by_input, mean, rstd)

    def _gradient(self, grad_output: Array, x: Array, by_input: bool, mean: Array, rstd: Array) -> Array:
        """The gradient of x; those of weight and bias are accumulated."""
        arguments = (self.running_mean, self.running_var, *self._arrays(), by_input, 0.0, self.eps)
        grads = self.gradient(grad_output, x, *arguments, mean=mean, rstd=rstd, needs=self._needs(2))
        return self._accumulated(grads)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}{self._bias_repr()}"
        )


class BatchNormNd(Tracking, op="batch_norm"):
    """Normalise each channel over the batch, as ``torch.nn.BatchNorm{n}d``.

    Parameters
    ----------
    num_features : int
        Channels C of the input [N, C, {space}] (or [N, C], for `BatchNorm1d`).
    eps : float
        Added to the variance.
    momentum : float or None
        Share of a batch in the running statistics; None for the plain average of all batches so far.
    affine : bool
        Scale and shift each channel.
    track_running_stats : bool
        Keep running statistics, and normalise by them in evaluation; else always by the batch's own.
    bias : bool
        With `affine`: shift too.
    dtype : dtype
        Of parameters and statistics.

    Attributes
    ----------
    weight, bias : Parameter [C] or None
        At first ones and zeros.
    running_mean, running_var : array [C] or None
        At first zeros and ones; updated by each forward in training.
    num_batches_tracked : int64 array [] or None
        The number of batches that updated them.

    Notes
    -----
    Backward goes through the batch's mean and variance where forward normalised by these; where it took the running
    ones, as in evaluation, they are constants.

    References
    ----------
    S. Ioffe, C. Szegedy, *Batch normalization*, ICML 2015, arXiv:1502.03167v3.

    Examples
    --------
    >>> layer = BatchNorm{n}d(3)
    >>> y = layer(np.random.default_rng(0).standard_normal((8, 3, {4}), dtype=np.float32))
    >>> abs(float(y.mean())) < 1e-6, int(layer.num_batches_tracked)
    (True, 1)
    """

    def finished(self, x: Array, residual: Array | None = None, activation: str | None = None) -> Array:
        """As `Norm.finished`."""
        self._expect_axes(x, *(["N, C"] if self.rank == 1 else []), f"N, C, {SPACE[self.rank]}")
        self._expect_channels(x, 1)
        momentum, counter = 0.0, self.num_batches_tracked if self.training else None
        if counter is not None:
            batches = counter + (1 if x.shape[0] else 0)
            momentum = 1 / max(1, int(batches)) if self.momentum is None else self.momentum
        y, kept = self._normalised(x, momentum, residual=residual, activation=activation)
        if counter is not None:
            counter[...] = batches
        self.keep(*kept)
        return y

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the input; those of weight and bias are accumulated."""
        return self._gradient(grad_output, *self.kept())


class InstanceNormNd(Tracking, op="instance_norm"):
    """Normalise each channel of each image by itself, as ``torch.nn.InstanceNorm{n}d``.

    Parameters
    ----------
    num_features : int
        Channels C of the input, [N, C, {space}] or [C, {space}].
    eps : float
        Added to the variance.
    momentum : float or None
        Share of a batch in the running statistics; None leaves them as they are, as in PyTorch.
    affine : bool
        Scale and shift each channel.
    track_running_stats : bool
        Keep running statistics, and normalise by them in evaluation.
    bias : bool
        With `affine`: shift too.
    dtype : dtype
        Of parameters and statistics.

    Attributes
    ----------
    weight, bias : Parameter [C] or None
        At first ones and zeros.
    running_mean, running_var : array [C] or None
        At first zeros and ones; updated by each forward in training.
    num_batches_tracked : int64 array [] or None
        Always 0, as in PyTorch.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, *Instance normalization*, 2016, arXiv:1607.08022v3.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((2, 3, {4}), dtype=np.float32)
    >>> abs(float(InstanceNorm{n}d(3)(x)[0, 0].mean())) < 1e-6
    True
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        *,
        bias: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, bias=bias, dtype=dtype)

    def finished(self, x: Array, residual: Array | None = None, activation: str | None = None) -> Array:
        """As `Norm.finished`."""
        self._expect_image(x)
        self._expect_channels(x, -self.rank - 1)
        batch, beside = x, residual
        if x.ndim != self.rank + 2:
            batch, beside = x[None], None if residual is None else residual[None]
        y, kept = self._normalised(batch, self.momentum or 0.0, residual=beside, activation=activation)
        self.keep(x.shape, *kept)
        return y.reshape(x.shape)

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the input; those of weight and bias are accumulated."""
        shape, x, *others = self.kept()
        if grad_output.shape != shape:
            name = type(self).__name__
            raise ValueError(f"{name}: grad_output has shape {tuple(grad_output.shape)}, expected {tuple(shape)}")
        grad = self._gradient(grad_output.reshape(x.shape), x, *others)
        return None if grad is None else grad.reshape(shape)


class RowNorm(Norm):
    """The base of layer and group norm: statistics of the input alone, taken over rows of it."""

    function: ClassVar[Callable[..., Any]]
    gradient: ClassVar[Callable[..., Any]]
    _rows: ClassVar[str]  # the attribute that tells the operation what a row is

    def finished(self, x: Array, residual: Array | None = None, activation: str | None = None) -> Array:
        """As `Norm.finished`."""
        arguments = (x, getattr(self, self._rows), *self._arrays(), self.eps)
        y, mean, rstd = self.function(*arguments, return_statistics=True, residual=residual, activation=activation)
        self.keep(x, mean, rstd)
        return y

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the input; those of weight and bias are accumulated."""
        x, mean, rstd = self.kept()
        arguments = (getattr(self, self._rows), *self._arrays(), self.eps)
        grads = self.gradient(grad_output, x, *arguments, mean=mean, rstd=rstd, needs=self._needs())
        return self._accumulated(grads)


class LayerNorm(RowNorm):
    """Normalise over the last axes, as ``torch.nn.LayerNorm``.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The last axes, over which one mean and variance are taken.
    eps : float
        Added to the variance.
    elementwise_affine : bool
        Scale and shift each element.
    bias : bool
        With `elementwise_affine`: shift too.
    dtype : dtype
        Of the parameters.

    Attributes
    ----------
    weight, bias : Parameter of shape `normalized_shape`, or None
        At first ones and zeros.

    Raises
    ------
    TypeError, ValueError
        A parameter is of another type or out of range.

    See Also
    --------
    gpucnn.functional.layer_norm

    References
    ----------
    J. Ba, J. Kiros, G. Hinton, *Layer normalization*, 2016, arXiv:1607.06450v1.

    Examples
    --------
    >>> LayerNorm(2, dtype=np.float64)(np.array([[1.0, 3.0]])).round(3)
    array([[-1.,  1.]])
    """

    function, gradient = staticmethod(F.layer_norm), staticmethod(F.layer_norm_backward)
    _rows = "normalized_shape"

    def __init__(
        self,
        normalized_shape: Any,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: Any = np.float32,
    ) -> None:
        self.normalized_shape = _row_shape("LayerNorm", normalized_shape)
        self.eps = number("LayerNorm", "eps", eps, least=0.0)
        self.elementwise_affine = boolean("LayerNorm", "elementwise_affine", elementwise_affine)
        self._set_affine(self.normalized_shape, self.elementwise_affine, bias, dtype)

    def extra_repr(self) -> str:
        """The arguments."""
        arguments = f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        return arguments + self._bias_repr()


class RMSNorm(Norm):
    """Divide by the root mean square over the last axes, as ``torch.nn.RMSNorm``.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The last axes, over which one mean square is taken.
    eps : float, optional
        Added to the mean square; by default the machine epsilon of the input's dtype, of float32 for 16-bit inputs.
    elementwise_affine : bool
        Scale each element.
    dtype : dtype
        Of the weight.

    Attributes
    ----------
    weight : Parameter of shape `normalized_shape`, or None
        At first ones.
    bias : None

    Raises
    ------
    TypeError, ValueError
        A parameter is of another type or out of range.

    See Also
    --------
    gpucnn.functional.rms_norm

    References
    ----------
    B. Zhang, R. Sennrich, *Root mean square layer normalization*, NeurIPS 2019, arXiv:1910.07467v1.

    Examples
    --------
    >>> RMSNorm(2, dtype=np.float64)(np.array([[3.0, 4.0]])).round(3)
    array([[0.849, 1.131]])
    """

    def __init__(
        self,
        normalized_shape: Any,
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: Any = np.float32,
    ) -> None:
        self.normalized_shape = _row_shape("RMSNorm", normalized_shape)
        self.eps = None if eps is None else number("RMSNorm", "eps", eps, least=0.0)
        self.elementwise_affine = boolean("RMSNorm", "elementwise_affine", elementwise_affine)
        self._set_affine(self.normalized_shape, self.elementwise_affine, False, dtype)

    def finished(self, x: Array, residual: Array | None = None, activation: str | None = None) -> Array:
        """As `Norm.finished`."""
        arguments = (x, self.normalized_shape, self._arrays()[0], self.eps)
        y, rstd = F.rms_norm(*arguments, return_statistics=True, residual=residual, activation=activation)
        self.keep(x, rstd)
        return y

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the input; that of the weight is accumulated."""
        x, rstd = self.kept()
        arguments = (self.normalized_shape, self._arrays()[0], self.eps)
        grads = F.rms_norm_backward(grad_output, x, *arguments, rstd=rstd, needs=self._needs()[:2])
        return self._accumulated((*grads, None))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(RowNorm):
    """Normalise groups of channels of each image, as ``torch.nn.GroupNorm``.

    Parameters
    ----------
    num_groups : int
        Number of groups; divides `num_channels`.
    num_channels : int
        Channels C of the input [N, C, *space].
    eps : float
        Added to the variance.
    affine : bool
        Scale and shift each channel.
    bias : bool
        With `affine`: shift too.
    dtype : dtype
        Of the parameters.

    Attributes
    ----------
    weight, bias : Parameter [C] or None
        At first ones and zeros.

    Raises
    ------
    TypeError, ValueError
        A parameter is of another type or out of range.

    See Also
    --------
    gpucnn.functional.group_norm

    References
    ----------
    Y. Wu, K. He, *Group normalization*, ECCV 2018, arXiv:1803.08494v3.

    Examples
    --------
    >>> GroupNorm(2, 4)(np.ones((1, 4, 3), np.float32)).shape
    (1, 4, 3)
    """

    function, gradient = staticmethod(F.group_norm), staticmethod(F.group_norm_backward)
    _rows = "num_groups"

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        self.num_groups = integer("GroupNorm", "num_groups", num_groups, 1)
        self.num_channels = integer("GroupNorm", "num_channels", num_channels, 1)
        if self.num_channels % self.num_groups:
            raise ValueError(
                f"GroupNorm: num_channels is {num_channels}, expected a multiple of num_groups = {num_groups}"
            )
        self.eps = number("GroupNorm", "eps", eps, least=0.0)
        self.affine = boolean("GroupNorm", "affine", affine)
        self._set_affine((self.num_channels,), self.affine, bias, dtype)

    def finished(self, x: Array, residual: Array | None = None, activation: str | None = None) -> Array:
        """As `Norm.finished`."""
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"GroupNorm: input has shape {tuple(x.shape)}, expected (N, {self.num_channels}, *space)")
        return super().finished(x, residual, activation)

    def extra_repr(self) -> str:
        """The arguments."""
        arguments = f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"
        return arguments + self._bias_repr()


class LocalResponseNorm(Module):
    """Divide by a power of the squares in neighbouring channels, as ``torch.nn.LocalResponseNorm``.

    Parameters
    ----------
    size : int
        Channels in a window.
    alpha : float
        Factor of the mean square.
    beta : float
        Exponent.
    k : float
        Added before the power.

    Raises
    ------
    TypeError, ValueError
        A parameter is of another type or out of range.

    See Also
    --------
    gpucnn.functional.local_response_norm

    Examples
    --------
    >>> LocalResponseNorm(2, alpha=2.0, beta=1.0, k=0.0)(np.array([[[1.0], [2.0]]]))[0, :, 0]
    array([1. , 0.4])
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        self.size = integer("LocalResponseNorm", "size", size, 1)
        self.alpha = number("LocalResponseNorm", "alpha", alpha)
        self.beta = number("LocalResponseNorm", "beta", beta)
        self.k = number("LocalResponseNorm", "k", k)

    def forward(self, x: Array) -> Array:
        """The normalised x, in its shape."""
        self.keep(x)
        return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the input."""
        (x,) = self.kept()
        needs = (self.needs_input_grad,)
        return F.local_response_norm_backward(grad_output, x, self.size, self.alpha, self.beta, self.k, needs=needs)[0]

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


def _row_shape(name: str, normalized_shape: Any) -> tuple[int, ...]:
    """`normalized_shape` as a tuple of at least one int."""
    axes = len(normalized_shape) if is_sequence(normalized_shape) else 1
    shape = integers(name, "normalized_shape", normalized_shape, axes, 1)
    if not axes:
        raise ValueError(f"{name}: normalized_shape is empty, expected at least one axis")
    return shape


# --- The members of the families --------------------------------------------------------------------------------------


# fmt: off
class BatchNorm1d(BatchNormNd, rank=1): ...
class BatchNorm2d(BatchNormNd, rank=2): ...
class BatchNorm3d(BatchNormNd, rank=3): ...
class InstanceNorm1d(InstanceNormNd, rank=1): ...
class InstanceNorm2d(InstanceNormNd, rank=2): ...
class InstanceNorm3d(InstanceNormNd, rank=3): ...
