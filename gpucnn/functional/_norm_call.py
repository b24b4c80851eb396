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
Statistics = tuple[Array | None, Array | None]


class NormCall(Call):
    """The arrays of one norm and the steps over x seen as [N, G, C, P].

    A 16-bit x may come with float32 parameters and statistics, as is usual in mixed-precision training.
    """

    weight: Array | None = None
    bias: Array | None = None
    running_mean: Array | None = None
    running_var: Array | None = None
    mean: Array | None = None
    rstd: Array | None = None

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
        optional = ("residual", *parameters, *(() if op.endswith("_backward") else ("grad_output",)))
        given = {"input": input, "grad_output": grad_output, "residual": residual, **parameters}
        super().__init__(op, FLOATING, optional=optional, wide=parameters, out=out, **given)
        self.x, self.grad, self.residual, *others = self.arrays
        vars(self).update(zip(parameters, others, strict=True))
        self.activation = "none" if activation is None else choice(op, "activation", activation, ACTIVATIONS)
        self.slope = number(op, "negative_slope", negative_slope)
        self.eps = number(op, "eps", eps, 0.0)
        self.momentum = number(op, "momentum", momentum)
        self.wide = accumulator(self.dtype)
        self.expect_shape("grad_output", self.grad, self.x.shape)
        self.expect_shape("residual", self.residual, self.x.shape)

    # --- Checks ---------------------------------------------------------------------------------------------------

    def of_channels(self, axes: tuple[int, ...], own: bool, updates: bool = False) -> NormGeometry:
        """Batch norm, over the axes `BATCH`, or instance norm, over `ROW`: by x's `own` statistics or the running ones.

        Raises
        ------
        ValueError
            Shapes do not fit, running statistics are missing, or read-only where the call `updates` them, or own ones
            would be of one value.
        """
        x, is_batch = self.x, axes == BATCH
        require_axes(self, 2 if is_batch else 3)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.expect_per_channel(name, getattr(self, name), x)
        if (self.running_mean is None) != (self.running_var is None):
            raise ValueError(f"{self.op}: got one of running_mean and running_var, expected both or none")
        if self.running_mean is None and not own:
            raise ValueError(f"{self.op}: running_mean and running_var are None, expected arrays to normalise by")
        for name, array in (("running_mean", self.running_mean), ("running_var", self.running_var)):
            if own and updates and array is not None and not getattr(array.flags, "writeable", True):
                raise ValueError(f"{self.op}: {name} is read-only, expected an array that can be updated in place")
        if own and is_batch and self.eps == 0:
            raise ValueError(f"{self.op}: eps is 0, expected more than 0 in training")
        geometry = NormGeometry((x.shape[0], x.shape[1], 1, prod(x.shape[2:])), axes if own else BATCH)
        if own and geometry.count == 1:
            raise ValueError(f"{self.op}: input has shape {x.shape}, expected more than one value per channel")
        return geometry

    def handed_over(self, geometry: NormGeometry, shape: tuple[int, ...]) -> Statistics:
        """The forward's mean and rstd, which it returned in this shape, as axes of x; None where they are not given.

        Raises
        ------
        ValueError
            One of them is missing, or has another shape.
        """
        if (self.mean is None) != (self.rstd is None):
            raise ValueError(f"{self.op}: got one of mean and rstd, expected both or none")
        if self.mean is None or self.rstd is None:
            return None, None
        self.expect_shape("mean", self.mean, shape)
        self.expect_shape("rstd", self.rstd, shape)
        kept, wide = geometry.kept, self.wide
        return self.mean.reshape(kept).astype(wide, copy=False), self.rstd.reshape(kept).astype(wide, copy=False)

    # --- Steps ----------------------------------------------------------------------------------------------------

    def statistics(self, geometry: NormGeometry) -> tuple[Array, Array]:
        """Mean and reciprocal standard deviation of x itself."""
        mean, var, rstd = self.new_statistics(geometry)
        if self.x.size:
            self.backend.norm_statistics(self.x.reshape(geometry.shape), mean, var, rstd, geometry, self.eps)
        return mean, rstd

    def new_statistics(self, geometry: NormGeometry) -> list[Array]:
        """Arrays for mean, variance and reciprocal standard deviation: zeros where there are no values."""
        make = self.backend.empty if self.x.size else self.backend.zeros
        return [make(geometry.kept, self.wide, on=self.x) for _ in range(3)]

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

    def rows(self, shape: Shape4, centred: bool = True) -> tuple[Array, Array, Array]:
        """Output, mean and reciprocal standard deviation of layer, RMS and group norm."""
        y, mean, _, rstd = self.forward(NormGeometry(shape, ROW, centred))
        return y, mean, rstd

    def tracked(self, geometry: NormGeometry) -> tuple[Array, Array, Array]:
        """Output by x's own statistics, towards which the running ones move, and mean and rstd."""
        y, mean, var, rstd = self.forward(geometry)
        count = geometry.count
        if self.x.size and self.running_mean is not None:
            self.backend.moving_average(mean, self.running_mean, 1.0, self.momentum)
            self.backend.moving_average(var, self.running_var, count / (count - 1), self.momentum)
        return y, mean, rstd

    def kept(self, geometry: NormGeometry) -> Array:
        """Output by the running statistics."""
        shape = geometry.shape
        return self.applied(shape, self.spread(self.running_mean, shape), self.spread(self.running_var, shape))

    def applied(self, shape: Shape4, mean: Array, var: Array) -> Array:
        """Output by statistics other than x's own."""
        parameters = self.spread(self.weight, shape), self.spread(self.bias, shape)
        y = self.output(shape)
        self.backend.norm_apply(self.x.reshape(shape), mean, var, *parameters, y, self.eps, self.epilogue(shape))
        return y.reshape(self.x.shape)

    def kept_statistics(self, geometry: NormGeometry) -> tuple[Array, Array]:
        """Mean and reciprocal standard deviation by the running statistics, [1, C, 1, 1]."""
        mean, var = self.spread(self.running_mean, geometry.shape), self.spread(self.running_var, geometry.shape)
        return mean.copy(), 1 / self.xp.sqrt(var + self.eps)

    def spread(self, array: Array | None, shape: Shape4) -> Any:
        """Weight, bias or a running statistic as [1, G, C, 1], in the dtype of statistics."""
        if array is None:
            return None
        spread = array.reshape(1, shape[1], shape[2], 1)
        return spread if spread.dtype == self.wide else spread.astype(self.wide)

    def forward(self, geometry: NormGeometry) -> tuple[Array, Array, Array, Array]:
        """Output by the input's own statistics, and these: mean, biased variance and reciprocal standard deviation."""
        parameters = self.spread(self.weight, geometry.shape), self.spread(self.bias, geometry.shape)
        y, (mean, var, rstd) = self.output(geometry.shape), self.new_statistics(geometry)
        x, epilogue = self.x.reshape(geometry.shape), self.epilogue(geometry.shape)
        if x.size:
            self.backend.norm_forward(x, *parameters, y, mean, var, rstd, geometry, self.eps, epilogue)
        return y.reshape(self.x.shape), mean, var, rstd

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
        shape = geometry.shape
        grad, x = self.before_activation(shape, mean, rstd), self.x.reshape(shape)
        weight = self.spread(self.weight, shape)
        wanted = (self.weight if needs[1] else None, self.bias if needs[2] else None)
        is_affine = any(array is not None for array in wanted)
        grad_x = empty_rows_like(self.backend, x) if needs[0] and own_statistics else None
        affine = (1, *shape[1:3], 1)
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
        grad, x = self.grad.reshape(shape), self.x.reshape(shape)
        if self.activation == "none":
            return grad
        parameters = self.spread(self.weight, shape), self.spread(self.bias, shape)
        before = empty_rows_like(self.backend, x)
        self.backend.norm_activation_backward(grad, x, mean, rstd, *parameters, before, self.epilogue(shape))
        return before

    def row_backward(self, shape: Shape4, kept: tuple[int, ...], needs: Needs) -> tuple[Array | None, ...]:
        """Gradients of layer and group norm."""
        geometry = NormGeometry(shape, ROW)
        mean, rstd = self.handed_over(geometry, kept)
        wanted = self.needed(needs, 3)
        if mean is None:
            mean, rstd = self.statistics(geometry)
        return self.result(self.backward(geometry, mean, rstd, wanted))

    def needed(self, needs: Needs, count: int) -> tuple[bool, ...]:
        """`needs` as bools, of `count` arrays and of the residual where there is one."""
        return needed(self.op, needs, count + (self.residual is not None))


def require_axes(call: NormCall, axes: int) -> None:
    """Raise ValueError unless the input has so many axes, N, C and others, and no empty channels or space."""
    if call.x.ndim < axes:
        raise ValueError(f"{call.op}: input has {call.x.ndim} dimensions, expected at least {axes} (N, C, *space)")
    if 0 in call.x.shape[1:]:
        wanted = "expected channels and spatial sizes of at least 1"
        raise ValueError(f"{call.op}: input has shape {call.x.shape}, {wanted}")


def group_shape(call: NormCall, num_groups: int) -> Shape4:
    """[N, G, C / G, P]."""
    require_axes(call, 2)
    groups = integer(call.op, "num_groups", num_groups, 1)
    n, c, *space = call.x.shape
    if c % groups:
        wanted = f"(N, C, *space) with C a multiple of num_groups = {groups}"
        raise ValueError(f"{call.op}: input has shape {call.x.shape}, expected {wanted}")
    call.expect_per_channel("weight", call.weight, call.x)
    call.expect_per_channel("bias", call.bias, call.x)
    if n * (c // groups) * prod(space) == 1:
        raise ValueError(f"{call.op}: input has shape {call.x.shape}, expected more than one value per group")
    return n, groups, c // groups, prod(space)


def layer_shape(call: NormCall, normalized_shape: Any) -> tuple[Shape4, tuple[int, ...]]:
    """[rows, 1, row, 1], and the shape of the rows."""
    x, values = call.x, len(normalized_shape) if is_sequence(normalized_shape) else 1
    row: Sequence[int] = integers(call.op, "normalized_shape", normalized_shape, values, 1)
    if not row:
        raise ValueError(f"{call.op}: normalized_shape is empty, expected at least one axis")
    if x.shape[-len(row) :] != tuple(row):
        raise ValueError(f"{call.op}: input has shape {x.shape}, expected it to end in normalized_shape = {tuple(row)}")
    call.expect_shape("weight", call.weight, tuple(row))
    call.expect_shape("bias", call.bias, tuple(row))
    leading = x.shape[: x.ndim - len(row)]
    return (prod(leading), 1, prod(row), 1), leading
