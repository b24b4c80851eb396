"""Shared parts of the norms: their arrays, their checks, and their steps over x seen as [N, G, C, P]."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from gpucnn.backends import Epilogue
from gpucnn.backends.dtypes import FLOATING, accumulator
from gpucnn.backends.layout import channels_are_inner, empty_rows_like
from gpucnn.functional._call import Array, Call, Needs, choice, needed
from gpucnn.functional.activation import ACTIVATIONS
from gpucnn.geometry import NormGeometry
from gpucnn.geometry.arguments import integer, integers, is_sequence, number

BATCH = (0, 2, 3)  # axes of [N, G, C, P] that share a mean: one for each channel
ROW = (2, 3)  # one for each row

Shape4 = tuple[int, int, int, int]
Running = tuple[Array | None, Array | None]


class NormCall(Call):
    """The arrays of one norm and the steps over x seen as [N, G, C, P].

    A 16-bit x may come with float32 parameters and statistics, as is usual in mixed-precision training.
    """

    def __init__(
        self,
        op: str,
        input: Array,
        grad_output: Array | None = None,
        *,
        eps: float,
        momentum: float = 0.0,
        finish: tuple[Array | None, str | None, float] = (None, None, 0.01),
        out: Array | None = None,
        **parameters: Array | None,
    ) -> None:
        residual, activation, negative_slope = finish
        optional = ("residual",) if op.endswith("_backward") else ("grad_output", "residual")
        super().__init__(
            op, FLOATING, optional=optional, out=out, input=input, grad_output=grad_output, residual=residual
        )
        self.x, self.grad, self.residual = self.arrays
        self.activation = "none" if activation is None else choice(op, "activation", activation, ACTIVATIONS)
        self.slope = number(op, "negative_slope", negative_slope)
        self.eps = number(op, "eps", eps, 0.0)
        self.momentum = number(op, "momentum", momentum)
        self.wide = accumulator(self.dtype)
        self.weight: Array | None = None
        self.bias: Array | None = None
        self.running_mean: Array | None = None
        self.running_var: Array | None = None
        self.mean: Array | None = None
        self.rstd: Array | None = None
        for name, array in parameters.items():
            if array is not None:
                array = self.also(name, array)
                if array.dtype not in (self.dtype, self.wide):
                    raise self.mixed(name, {"input": self.x, name: array})
                setattr(self, name, array)
        self.expect_shape("grad_output", self.grad, self.x.shape)
        self.expect_shape("residual", self.residual, self.x.shape)

    # --- Checks ---------------------------------------------------------------------------------------------------

    def check_affine(self) -> None:
        self.expect_per_channel("weight", self.weight, self.x)
        self.expect_per_channel("bias", self.bias, self.x)

    def check_statistics(self, shape: tuple[int, ...]) -> None:
        """Raise unless mean and rstd are both absent, or both of `shape`."""
        if (self.mean is None) != (self.rstd is None):
            raise ValueError(f"{self.op}: got one of mean and rstd, expected both or none")
        self.expect_shape("mean", self.mean, shape)
        self.expect_shape("rstd", self.rstd, shape)

    def check_running(self, running: Running, uses: bool, writes: bool) -> None:
        """Raise unless the running statistics are given where they are used, and writable where they are updated."""
        if (running[0] is None) != (running[1] is None):
            raise ValueError(f"{self.op}: got one of running_mean and running_var, expected both or none")
        if uses and running[0] is None:
            raise ValueError(f"{self.op}: running_mean and running_var are None, expected arrays to normalise by")
        if running[0] is None:
            return
        for name, array in zip(("running_mean", "running_var"), running, strict=True):
            self.expect_per_channel(name, array, self.x)
            if writes and array is not None and not getattr(array.flags, "writeable", True):
                raise ValueError(f"{self.op}: {name} is read-only, expected an array that can be updated in place")

    def check_batch(self, shape: Shape4, running: Running, training: bool, writes: bool = True) -> None:
        self.check_affine()
        self.check_running(running, uses=not training, writes=writes and training)
        if self.eps == 0 and training:
            raise ValueError(f"{self.op}: eps is 0, expected more than 0 in training")
        if training and shape[0] * shape[3] == 1:
            raise ValueError(f"{self.op}: input has shape {self.x.shape}, expected more than one value per channel")

    def check_instance(self, shape: Shape4, running: Running, use_input_stats: bool, writes: bool = True) -> None:
        self.check_affine()
        self.check_running(running, uses=not use_input_stats, writes=writes and use_input_stats)
        if use_input_stats and shape[3] == 1:
            raise ValueError(f"{self.op}: input has shape {self.x.shape}, expected more than one value per channel")

    # --- Steps ----------------------------------------------------------------------------------------------------

    def statistics(self, geometry: NormGeometry) -> tuple[Array, Array]:
        """Mean and reciprocal standard deviation of x itself."""
        mean, var, rstd = self.new_statistics(geometry)
        self.backend.norm_statistics(self.x.reshape(geometry.shape), mean, var, rstd, geometry, self.eps)
        return mean, rstd

    def new_statistics(self, geometry: NormGeometry) -> list[Array]:
        """Arrays for mean, variance and reciprocal standard deviation."""
        kept = tuple(1 if axis in geometry.axes else size for axis, size in enumerate(geometry.shape))
        return [self.backend.empty(kept, self.wide, on=self.x) for _ in range(3)]

    def output(self, shape: Shape4) -> Array:
        """The array for the output [N, G, C, P]: `out`, or a new one.

        Raises
        ------
        ValueError
            `out` is not as `expect_writable` wants it.
        """
        if self._out is None:
            return empty_rows_like(self.backend, self.x.reshape(shape))
        out = self.checked_out(self.x.shape)
        return self._writable(out, channels_are_inner(self.x.reshape(shape))).reshape(shape)

    def epilogue(self, shape: Shape4) -> Epilogue:
        """Residual [N, G, C, P] and activation."""
        residual = None if self.residual is None else self.residual.reshape(shape)
        return Epilogue(residual, self.activation, self.slope)

    def reciprocal(self, var: Array) -> Array:
        return 1 / self.xp.sqrt(var + self.eps)

    def batch(self, shape: Shape4, running: Running) -> tuple[Array, Array, Array]:
        """Output by the batch's own statistics, and these, [1, C, 1, 1]; updates the running ones."""
        geometry = NormGeometry(shape, BATCH)
        if not geometry.count:
            mean, rstd = self.batch_statistics(geometry, running, True)
            return self.applied(shape, mean, rstd), mean, rstd
        y, mean, var, rstd = self.forward(geometry)
        self.update(running, mean, var, geometry.count)
        return y, mean, rstd

    def batch_statistics(self, geometry: NormGeometry, running: Running, training: bool) -> tuple[Array, Array]:
        """The statistics that a batch is normalised by, [1, C, 1, 1]."""
        if not training:
            return self.kept_statistics(running)
        if not geometry.count:
            nothing = self.xp.zeros((1, geometry.shape[1], 1, 1), self.wide)
            return nothing, nothing
        return self.statistics(geometry)

    def instances(self, shape: Shape4, running: Running) -> tuple[Array, Array, Array]:
        """Output by the images' own statistics, and these, [N, C, 1, 1]; updates the running ones."""
        geometry = NormGeometry(shape, ROW)
        y, mean, var, rstd = self.forward(geometry)
        if shape[0]:
            self.update(running, mean, var, geometry.count)
        return y, mean, rstd

    def rows(self, shape: Shape4, centred: bool = True) -> tuple[Array, Array, Array]:
        """Output, mean and reciprocal standard deviation of layer, RMS and group norm."""
        y, mean, _, rstd = self.forward(NormGeometry(shape, ROW, centred))
        return y, mean, rstd

    def kept(self, shape: Shape4, running: Running) -> Array:
        """Output by the running statistics."""
        return self.applied(shape, *self.running_statistics(running))

    def applied(self, shape: Shape4, mean: Array, var: Array) -> Array:
        """Output by statistics other than the input's own."""
        parameters = self.spread(self.weight, shape), self.spread(self.bias, shape)
        y = self.output(shape)
        self.backend.norm_apply(self.x.reshape(shape), mean, var, *parameters, y, self.eps, self.epilogue(shape))
        return y.reshape(self.x.shape)

    def running_statistics(self, running: Running) -> tuple[Array, Array]:
        """Running mean and variance as given, [1, C, 1, 1]."""
        mean, var = (self.spread(array, (0, array.shape[0], 1, 0)) for array in running)  # type: ignore[union-attr]
        return mean, var

    def kept_statistics(self, running: Running) -> tuple[Array, Array]:
        """Mean and reciprocal standard deviation, [1, C, 1, 1]."""
        mean, var = self.running_statistics(running)
        return mean.copy(), self.reciprocal(var)

    def update(self, running: Running, mean: Array, var: Array, count: int) -> None:
        """Move the running statistics towards those of the images, whose biased variances are of `count` values."""
        for array, found, factor in zip(running, (mean, var), (1.0, count / (count - 1)), strict=True):
            if array is not None:
                self.backend.moving_average(found, array, factor, self.momentum)

    def spread(self, array: Array | None, shape: Shape4) -> Array | None:
        """Weight or bias as [1, G, C, 1], in the dtype of statistics."""
        if array is None:
            return None
        spread = array.reshape(1, shape[1], shape[2], 1)
        return spread if spread.dtype == self.wide else spread.astype(self.wide)

    def forward(self, geometry: NormGeometry) -> tuple[Array, Array, Array, Array]:
        """Output by the input's own statistics, and these: mean, biased variance and reciprocal standard deviation."""
        parameters = self.spread(self.weight, geometry.shape), self.spread(self.bias, geometry.shape)
        y, (mean, var, rstd) = self.output(geometry.shape), self.new_statistics(geometry)
        x, epilogue = self.x.reshape(geometry.shape), self.epilogue(geometry.shape)
        self.backend.norm_forward(x, *parameters, y, mean, var, rstd, geometry, self.eps, epilogue)
        return y.reshape(self.x.shape), mean, var, rstd

    def handed_over(self, shape: Shape4, axes: tuple[int, ...]) -> tuple[Array | None, Array | None]:
        """The forward's mean and rstd as axes of x, or None."""
        if self.mean is None or self.rstd is None:
            return None, None
        kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
        return self.mean.reshape(kept).astype(self.wide, copy=False), self.rstd.reshape(kept).astype(
            self.wide, copy=False
        )

    def backward(
        self,
        geometry: NormGeometry,
        mean: Array,
        rstd: Array,
        needs: Sequence[bool],
        own_statistics: bool = True,
    ) -> tuple[Array | None, ...]:
        """Gradients with respect to x, weight and bias; `own_statistics` says that mean and rstd are those of x.

        After them the gradient of the residual, where there is one.
        """
        if not any(needs):
            return (None,) * len(needs)
        grad, x = self.before_activation(geometry.shape, mean, rstd), self.x.reshape(geometry.shape)
        weight = self.spread(self.weight, geometry.shape)
        wanted = (self.weight if needs[1] else None, self.bias if needs[2] else None)
        is_affine = any(array is not None for array in wanted)
        grad_x = empty_rows_like(self.backend, self.x.reshape(geometry.shape)) if needs[0] and own_statistics else None
        affine = (1, *geometry.shape[1:3], 1)
        of_weight, of_bias = (self.backend.empty(affine, self.wide, on=self.x) if is_affine else None for _ in range(2))
        if is_affine or grad_x is not None:
            self.backend.norm_backward(grad, x, mean, rstd, weight, grad_x, of_weight, of_bias, geometry)
        if needs[0] and not own_statistics:
            grad_x = self.stored_like(grad * (rstd if weight is None else rstd * weight), x)
        grad_weight, grad_bias = (
            None if array is None or grad is None else grad.reshape(array.shape).astype(array.dtype, copy=False)
            for array, grad in zip(wanted, (of_weight, of_bias), strict=True)
        )
        grad_x = None if grad_x is None else grad_x.reshape(self.x.shape)
        if self.residual is None:
            return grad_x, grad_weight, grad_bias
        grad_residual = grad.reshape(self.x.shape) if needs[3] else None
        if grad_residual is not None and self.activation == "none":  # grad_output itself, which is the caller's
            grad_residual = grad_residual.copy(order="K")
        return grad_x, grad_weight, grad_bias, grad_residual

    def before_activation(self, shape: Shape4, mean: Array, rstd: Array) -> Array:
        """The gradient with respect to the activation's input, [N, G, C, P], whose signs are recomputed."""
        grad = self.grad.reshape(shape)
        if self.activation == "none":
            return grad
        parameters = self.spread(self.weight, shape), self.spread(self.bias, shape)
        before, epilogue = empty_rows_like(self.backend, self.x.reshape(shape)), self.epilogue(shape)
        self.backend.norm_activation_backward(grad, self.x.reshape(shape), mean, rstd, *parameters, before, epilogue)
        return before

    def row_backward(self, shape: Shape4, kept: tuple[int, ...], needs: Needs) -> tuple[Array | None, ...]:
        """Gradients of layer and group norm."""
        self.check_statistics(kept)
        wanted = self.needed(needs, 3)
        geometry = NormGeometry(shape, ROW)
        mean, rstd = self.handed_over(shape, ROW)
        if mean is None:
            mean, rstd = self.statistics(geometry)
        return self.result(self.backward(geometry, mean, rstd, wanted))

    def needed(self, needs: Needs, count: int) -> tuple[bool, ...]:
        """`needs` as bools, of `count` arrays and of the residual where there is one."""
        return needed(self.op, needs, count + (self.residual is not None))


def batch_shape(call: Call, x: Array) -> Shape4:
    """[N, C, 1, P]."""
    if x.ndim < 2:
        raise ValueError(f"{call.op}: input has {x.ndim} dimensions, expected at least 2 (N, C, *space)")
    _require_values(call, x)
    return x.shape[0], x.shape[1], 1, prod(x.shape[2:])


def instance_shape(call: Call, x: Array) -> Shape4:
    """[N, C, 1, P]."""
    if x.ndim < 3:
        raise ValueError(f"{call.op}: input has {x.ndim} dimensions, expected at least 3 (N, C, *space)")
    _require_values(call, x)
    return x.shape[0], x.shape[1], 1, prod(x.shape[2:])


def group_shape(call: NormCall, x: Array, num_groups: int) -> Shape4:
    """[N, G, C / G, P]."""
    if x.ndim < 2:
        raise ValueError(f"{call.op}: input has {x.ndim} dimensions, expected at least 2 (N, C, *space)")
    _require_values(call, x)
    groups = integer(call.op, "num_groups", num_groups, 1)
    n, c, *space = x.shape
    if c % groups:
        wanted = f"(N, C, *space) with C a multiple of num_groups = {groups}"
        raise ValueError(f"{call.op}: input has shape {x.shape}, expected {wanted}")
    call.check_affine()
    if n * (c // groups) * prod(space) == 1:
        raise ValueError(f"{call.op}: input has shape {x.shape}, expected more than one value per group")
    return n, groups, c // groups, prod(space)


def layer_shape(call: NormCall, x: Array, normalized_shape: Any) -> tuple[Shape4, tuple[int, ...]]:
    """[rows, 1, row, 1], and the shape of the rows."""
    values = len(normalized_shape) if is_sequence(normalized_shape) else 1
    row: Sequence[int] = integers(call.op, "normalized_shape", normalized_shape, values, 1)
    if not row:
        raise ValueError(f"{call.op}: normalized_shape is empty, expected at least one axis")
    if x.shape[-len(row) :] != tuple(row):
        raise ValueError(f"{call.op}: input has shape {x.shape}, expected it to end in normalized_shape = {tuple(row)}")
    call.expect_shape("weight", call.weight, tuple(row))
    call.expect_shape("bias", call.bias, tuple(row))
    leading = x.shape[: x.ndim - len(row)]
    return (prod(leading), 1, prod(row), 1), leading


def _require_values(call: Call, x: Array) -> None:
    if 0 in x.shape[1:]:
        raise ValueError(f"{call.op}: input has shape {x.shape}, expected channels and spatial sizes of at least 1")
