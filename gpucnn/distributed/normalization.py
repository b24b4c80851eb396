"""Batch norm by the statistics of the whole batch, of which each rank has a share."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn.backends import backend_of
from gpucnn.backends.dtypes import accumulator
from gpucnn.distributed.communicator import Array, Communicator
from gpucnn.geometry import NormGeometry
from gpucnn.nn.module import Module
from gpucnn.nn.normalization import BatchNormNd
from gpucnn.nn.precision import cast

__all__ = ["SyncBatchNorm", "synchronized"]

Host = np.ndarray[Any, Any]


class SyncBatchNorm(BatchNormNd):
    """Batch norm in which all ranks normalise by the mean and the variance of the whole batch.

    Parameters
    ----------
    num_features : int
        Channels C of the input [N, C, *space] or [N, C].
    communicator : Communicator
        The ranks, each of which has a share of the batch, which may be empty.
    eps, momentum, affine, track_running_stats, bias, dtype
        As of `gpucnn.nn.BatchNorm2d`.

    Raises
    ------
    TypeError, ValueError
        A parameter is of another type or out of range.

    See Also
    --------
    synchronized : to have these in place of a model's batch norms

    Notes
    -----
    Each rank sends its count n, means and sums of squared deviations M of all channels, in float64; all merge them in
    the order of the ranks by Chan's formula: with d the difference of the means, the mean of a and b moves from a's by
    ``d n_b / n``, and ``M = M_a + M_b + d² n_a n_b / n``. Backward sends the two sums that its formula has over the
    batch. So running statistics have the same bits on all ranks. In evaluation it is a batch norm like all.

    References
    ----------
    T. Chan, G. Golub, R. LeVeque, *Algorithms for computing the sample variance*, The American Statistician 37 (1983).

    Examples
    --------
    >>> from gpucnn.distributed import local
    >>> (communicator,) = local(1)
    >>> SyncBatchNorm(2, communicator, dtype=np.float64)(np.array([[1.0, 10.0], [3.0, 30.0]])).round(2)
    array([[-1., -1.],
           [ 1.,  1.]])
    """

    function, gradient = staticmethod(F.batch_norm), staticmethod(F.batch_norm_backward)
    equal_on_all_ranks = True  # its buffers, so that nobody need send them
    takes_any_rank = True  # of images, and in evaluation computes what the batch norm of that rank does

    def __init__(
        self,
        num_features: int,
        communicator: Communicator,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, bias=bias, dtype=dtype)
        self.communicator = communicator

    def finished(self, x: Array, residual: Array | None = None, activation: str | None = None) -> Array:
        """As `gpucnn.nn.normalization.Norm.finished`."""
        if x.ndim < 2:
            raise ValueError(f"SyncBatchNorm: input has {x.ndim} dimensions, expected at least 2 (N, C, *space)")
        self._expect_channels(x, 1)
        if not self.training:
            y, kept = self._normalised(x, 0.0, residual=residual, activation=activation)
            self.keep(None, *kept)
            return y
        count, mean, var = self._statistics(x)
        self._track(count, mean, var)
        xp, wide = backend_of(x).xp, accumulator(x.dtype)
        statistics = [xp.asarray(each.astype(wide)) for each in (mean, var)]
        arguments = (x, *statistics, *self._arrays(), False, 0.0, self.eps)
        y = F.batch_norm(*arguments, residual=residual, activation=activation)
        self.keep(count, x, *statistics)
        return y

    def _statistics(self, x: Array) -> tuple[int, Host, Host]:
        """The number of values of a channel in the whole batch, their means and their biased variances, [C]."""
        own, channels = x.size // x.shape[1], x.shape[1]
        sent = np.zeros(2 * channels + 1)
        sent[0] = own
        if own:
            mean, deviations = _moments(x)
            sent[1:] = np.concatenate([mean, deviations])
        count, mean, squares = 0, np.zeros(channels), np.zeros(channels)
        for row in self.communicator.all_gather(sent):
            added = int(row[0])
            if added:
                total = count + added
                difference = row[1 : channels + 1] - mean
                mean = mean + difference * (added / total)
                squares = squares + row[channels + 1 :] + difference**2 * (count * added / total)
                count = total
        if count == 1:
            raise ValueError("SyncBatchNorm: the whole batch has one value per channel, expected more in training")
        return count, mean, squares / max(count, 1)

    def _track(self, count: int, mean: Host, var: Host) -> None:
        """Move the running statistics towards those of the batch, as `BatchNormNd` does."""
        if not count or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        pairs: Any = ((self.running_mean, mean), (self.running_var, var * (count / (count - 1))))
        for running, new in pairs:
            value = backend_of(running).xp.asarray(new)
            running[...] = (1 - share) * running.astype(np.float64) + share * value

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the input; those of weight and bias, of this rank's samples, are accumulated."""
        count, *kept = self.kept()
        if count is None:
            return self._gradient(grad_output, *kept)
        x, mean, var = kept
        xp, channels = backend_of(x).xp, x.shape[1]
        ones, zeros = xp.ones(channels, mean.dtype), xp.zeros(channels, mean.dtype)
        arguments: Any = (mean, var, ones, zeros, False, 0.0, self.eps)
        of_weight, of_bias = F.batch_norm_backward(grad_output, x, *arguments, needs=(False, False, False, True, True))[
            3:
        ]
        for parameter, grad in ((self.weight, of_weight), (self.bias, of_bias)):
            if parameter is not None and parameter.requires_grad and grad is not None:
                parameter.accumulate(grad.astype(parameter.data.dtype, copy=False))
        rows = self.communicator.all_gather(xp.stack([of_weight, of_bias]).astype(np.float64))
        sums = rows[0]
        for row in rows[1:]:
            sums = sums + row
        if not self.needs_input_grad:
            return None
        return self._input_gradient(grad_output, x, mean, var, (sums / max(count, 1)).astype(mean.dtype))

    def _input_gradient(self, grad_output: Array, x: Array, mean: Array, var: Array, means: Array) -> Array:
        """``weight * rstd * (g - mean(g) - h * mean(g h))``, where h is x normalised and g is `grad_output`."""
        xp = backend_of(x).xp
        scale = 1 / xp.sqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight.data.astype(scale.dtype, copy=False)
        arguments: Any = (mean, var, means[0], means[1], False, 0.0, self.eps)
        beside = F.batch_norm(cast(x, mean.dtype), *arguments)
        grad = (cast(grad_output, mean.dtype) - beside) * scale.reshape(-1, *[1] * (x.ndim - 2))
        return cast(grad, x.dtype)


def _moments(x: Array) -> tuple[Host, Host]:
    """Means and sums of squared deviations of each channel, [C], in float64."""
    backend = backend_of(x)
    shape = (x.shape[0], x.shape[1], 1, prod(x.shape[2:]))
    mean, var, rstd = (backend.empty((1, shape[1], 1, 1), accumulator(x.dtype), on=x) for _ in range(3))
    backend.norm_statistics(x.reshape(shape), mean, var, rstd, NormGeometry(shape, (0, 2, 3)), 1.0)
    mean, var = (each.reshape(-1) if backend.xp is np else backend.xp.asnumpy(each).reshape(-1) for each in (mean, var))
    return mean.astype(np.float64), var.astype(np.float64) * (shape[0] * shape[3])


def synchronized(model: Module, communicator: Communicator) -> Module:
    """Replace a model's batch norms by `SyncBatchNorm` with their parameters and statistics.

    Parameters
    ----------
    model : Module
        The network, which is changed. Names stay the same, so its weights can be loaded by a network with batch norms.
    communicator : Communicator
        The ranks.

    Returns
    -------
    Module
        The model; or, of a batch norm, the norm in its place.

    Raises
    ------
    TypeError
        It is no Module.

    Examples
    --------
    >>> from gpucnn import nn
    >>> from gpucnn.distributed import local
    >>> synchronized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), local(1)[0])
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): SyncBatchNorm(8, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
    )
    """
    if not isinstance(model, Module):
        raise TypeError(f"synchronized: model is a {type(model).__name__}, expected a Module")
    if isinstance(model, BatchNormNd):
        norm = SyncBatchNorm.__new__(SyncBatchNorm)
        vars(norm).update(vars(model), communicator=communicator)
        return norm
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BatchNormNd):
                setattr(module, name, synchronized(child, communicator))
    return model
