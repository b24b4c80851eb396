"""Argument handling of every public operation: take arrays in, check them, and lift images to [N, C, D, H, W]."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np

from gpucnn.backends import Epilogue, kind_of, receive
from gpucnn.backends.dtypes import accumulator, advised, describe, name_of, of_products
from gpucnn.backends.layout import is_channels_last, stored_like
from gpucnn.functional._family import SPACE
from gpucnn.functional._out import expect_writable
from gpucnn.geometry import ConvGeometry, PoolGeometry
from gpucnn.geometry.arguments import boolean, integer, is_sequence

Array = Any
Needs = Sequence[bool] | None
Result = TypeVar("Result")


class GivesBack(Protocol):
    """The conversion of a result, an array or a tuple of them, to the caller's kind of array."""

    def __call__(self, result: Result, /) -> Result: ...


class Call:
    """The arrays of one call as their backend's own, all of one dtype that the operation takes.

    `arrays` holds them in the order given, None where one of the `optional` ones was left out. The first one names the
    dtype. Of 16-bit images the `wide` ones may be float32, as the sums are that a bias is added to. `dtype` is the one
    that the caller requests of the gradients of parameters.
    """

    widened = ""  # kinds of dtypes that `_widen` exchanges for wider ones

    def __init__(
        self,
        op: str,
        dtypes: frozenset[str],
        *,
        optional: Collection[str] = ("bias",),
        wide: Collection[str] = ("bias",),
        out: Any = None,
        dtype: Any = None,
        **arrays: Any,
    ) -> None:
        self.op, self._taken = op, dtypes
        if out is not None:
            arrays["out"] = out
        self._given = arrays
        for name, array in arrays.items():
            if array is None and name not in optional:
                self._expect_given(name, array)
        self._give_back: GivesBack
        self.backend, self.arrays, self._give_back = receive(op, arrays)
        self.xp = self.backend.xp
        if self.arrays[0].dtype.kind in self.widened:
            self._widen()
        self.dtype = self.arrays[0].dtype
        first = next(iter(arrays))
        if name_of(self.dtype) not in dtypes:
            raise TypeError(f"{op}: {first} has dtype {self.dtype}, expected {describe(dtypes)}")
        if not self.dtype.isnative:
            raise TypeError(f"{op}: {first} has dtype {self.dtype.str}, expected this machine's byte order")
        self._out: Array | None = None
        self._aside: tuple[Array, Array] | None = None  # a result, and the view of `out` that it is copied to
        self._later: list[Array] = []
        if out is not None:
            self._out = self.arrays.pop()
        self._requested = None if dtype is None else self._of_gradients(dtype)
        for name, array in zip(arrays, self.arrays, strict=False):
            if array is None or array.dtype == self.dtype:
                continue
            if name not in wide or array.dtype != accumulator(self.dtype):
                raise self.mixed(name, dict(zip(arrays, self.arrays, strict=False)))
        if self._out is not None and self._out.dtype != self._requested_else(self.dtype):
            expected = f"{self._requested_else(self.dtype)}, that of the result"
            raise TypeError(f"{op}: out has dtype {self._out.dtype}, expected {expected}")

    def _widen(self) -> None:
        """Exchange the arrays for ones of a wider dtype that the operation computes in."""

    def _requested_else(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return dtype if self._requested is None else self._requested

    def _of_gradients(self, dtype: Any) -> np.dtype[Any]:
        """The dtype that the caller requests of gradients: that of the arrays, or float32 where they have 16 bits."""
        names = dict.fromkeys((name_of(self.dtype), name_of(accumulator(self.dtype))))
        try:
            requested = np.dtype(str(dtype).removeprefix("torch.") if str(dtype).startswith("torch.") else dtype)
        except (TypeError, ValueError):
            requested = None
        if requested is None or name_of(requested) not in names or not requested.isnative:
            raise TypeError(f"{self.op}: dtype is {dtype!r}, expected {' or '.join(names)}")
        return requested

    def mixed(self, name: str, arrays: dict[str, Array | None]) -> TypeError:
        """The error for arrays of several dtypes, such as `name` and the first one, naming the one to cast."""
        dtypes = {other: array.dtype for other, array in arrays.items() if array is not None}
        first, target = next(iter(dtypes)), advised(dtypes, self._taken)
        module, kind = ("ml_dtypes" if target.name == "bfloat16" else "numpy"), kind_of(self._given[first])
        cast = f".to(torch.{target.name})" if kind == "torch" else f".astype({module}.{target.name})"
        wrong = [other for other, dtype in dtypes.items() if dtype != target]
        return TypeError(
            f"{self.op}: {first} has dtype {dtypes[first]} and {name} {dtypes[name]}, expected one dtype for "
            f"{'both' if len(dtypes) == 2 else 'all'}: cast {' and '.join(wrong)}, "
            f"{', '.join(other + cast for other in wrong)}"
        )

    def also(self, name: str, array: Any) -> Array:
        """Another array of the same kind, of any dtype."""
        self._expect_given(name, array)
        if type(array) is type(next(iter(self._given.values()))) is np.ndarray:
            received = array  # as `receive` would say; a norm has four others
        else:
            received = receive(self.op, {**self._given, name: array})[1][-1]
        self._later.append(received)
        return received

    def _expect_given(self, name: str, array: Any) -> None:
        if array is None:
            raise TypeError(f"{self.op}: {name} is None, expected an array")

    # --- Where the result goes --------------------------------------------------------------------------------

    def image(self, shape: tuple[int, ...], rank: int, like: Array) -> Array:
        """The array for an image result of `shape`, as [N, C, D, H, W]: `out`, or a new array in the order of `like`.

        Raises
        ------
        ValueError
            `out` is of another shape, cannot be written to, or shares memory with an argument.
        """
        if self._out is not None:
            return self._writable(lifted(self.checked_out(shape), rank), is_channels_last(lifted(like, rank)))
        batch = shape[: -rank - 1] or (1,)
        full = (*batch, shape[-rank - 1], *(1,) * (3 - rank), *shape[-rank:])
        return self.backend.empty_like(full, self.dtype, lifted(like, rank))

    def destination(self, shape: tuple[int, ...], like: Array) -> Array:
        """The array for a result [N, C, *] of `shape`: `out`, or a new array in the order of `like`.

        Raises
        ------
        ValueError
            As `image`.
        """
        if self._out is not None:
            return self._writable(self.checked_out(shape), is_channels_last(like))
        return self.backend.empty_like(shape, self.dtype, like)

    def in_c_order(self, shape: tuple[int, ...]) -> Array:
        """The array for a result of `shape` in C order: `out`, or a new array.

        Raises
        ------
        ValueError
            As `image`.
        """
        if self._out is None:
            return self.backend.empty(shape, self.dtype, on=self.arrays[0])
        return self._writable(self.checked_out(shape), channels_last=False)

    def gradient_of(self, parameter: Array) -> Array:
        """A new array in C order for the gradient of a parameter, in the dtype of `gradient_dtype`."""
        return self.backend.empty(parameter.shape, self.gradient_dtype(parameter), on=self.arrays[0])

    def gradient_dtype(self, parameter: Array) -> np.dtype[Any]:
        """The dtype of a parameter's gradient: that requested, else the parameter's."""
        return self._requested_else(parameter.dtype)

    def weight_gradient(self, shape: tuple[int, ...], x: Array) -> Array:
        """The array for the gradient of a weight of `shape`, which images x [N, C, *] meet: `out`, or a new array.

        Raises
        ------
        ValueError
            As `image`.
        """
        if self._out is None:
            return self.backend.empty_weight(shape, self._requested_else(self.dtype), x)
        return self._writable(self.checked_out(shape), channels_last=False)

    def _writable(self, out: Array, channels_last: bool) -> Array:
        """`out`, a view of the caller's, or an array in the order of primitives' results that `result` copies to it."""
        in_order = out.transpose(0, *range(2, out.ndim), 1) if channels_last else out
        if in_order.flags.c_contiguous and self.backend.writes_to(out):
            return out
        aside = self.backend.empty(tuple(in_order.shape), out.dtype, on=out)
        if channels_last:
            aside = aside.transpose(0, out.ndim - 1, *range(1, out.ndim - 1))
        self._aside = aside, out
        return aside

    def result(self, result: Result) -> Result:
        """The return value of the call: an array or a tuple of them, as the caller's kind; `out` for the first."""
        if self._out is None:
            return self._give_back(result)
        if self._aside is not None:
            self.backend.copy(*self._aside)
        out: Any = self._given["out"]
        return (out, *self._give_back(result[1:])) if isinstance(result, tuple) else out  # type: ignore[return-value]

    def checked_out(self, shape: tuple[int, ...]) -> Array:
        """The caller's `out`, an array of `shape` that can be written to."""
        self.expect_shape("out", self._out, shape)
        expect_writable(self.op, self._out, [array for array in (*self.arrays, *self._later) if array is not None])
        return self._out

    # --- Shapes ---------------------------------------------------------------------------------------------------

    def expect_shape(self, name: str, array: Array | None, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless `array` is None or has `shape`."""
        if array is not None and array.shape != shape:
            raise ValueError(f"{self.op}: {name} has shape {array.shape}, expected {shape}")

    def expect_per_channel(self, name: str, array: Array | None, image: Array) -> None:
        """Raise ValueError unless `array` is None or has one value for each channel of the input, [N, C, *]."""
        if array is not None and array.shape != image.shape[1:2]:
            raise ValueError(
                f"{self.op}: {name} has shape {array.shape}, expected {image.shape[1:2]}, "
                f"a value for each channel of input (N, C, *) of shape {image.shape}"
            )

    def expect_indices(self, name: str, indices: Array, plane: int) -> None:
        """Raise unless `indices` are integers and, where values can be looked at, in the plane or -1.

        Raises
        ------
        TypeError
            They are no integers.
        ValueError
            One is neither in ``[0, plane)`` nor -1.
        """
        if indices.dtype.kind not in "iu":
            raise TypeError(f"{self.op}: {name} has dtype {indices.dtype}, expected an integer dtype")
        if not self.backend.host or not indices.size:
            return
        unsigned = indices.view(indices.dtype.str.replace("i", "u"))
        if int(unsigned.max()) < plane:  # no -1 either, which is the largest of them
            return
        least, most = int(indices.min()), int(indices.max())
        if least < -1 or most >= plane:
            wrong = least if least < -1 else most
            raise ValueError(f"{self.op}: {name} hold {wrong}, expected positions in the plane, [0, {plane}), or -1")

    # --- Arithmetic -----------------------------------------------------------------------------------------------

    def conjugate(self, array: Array) -> Array:
        """The complex conjugate; a real array is its own."""
        return self.stored_like(self.xp.conj(array), array) if self.dtype.kind == "c" else array

    def activation_backward(
        self, grad: Array, signs: Array, grad_x: Array, grad_bias: Array | None, epilogue: Epilogue
    ) -> None:
        """Write grad_x [N, C, P] and a bias's gradient; `signs` is what is activated, or a result that keeps signs."""
        if epilogue.smooth and grad.size:
            grad = self.backend.smooth_activation_backward(grad, signs, epilogue.activation)  # in float32 of 16 bits
            self.backend.copy(self.stored_like(grad, grad_x), grad_x)
            if grad_bias is not None:
                is_wide = grad_bias.dtype == grad.dtype
                sums = grad_bias if is_wide else self.backend.empty(grad_bias.shape, grad.dtype, on=grad)
                self.backend.channel_sums(grad, sums)
                if not is_wide:
                    grad_bias[...] = sums.astype(grad_bias.dtype)
            return
        epilogue = replace(epilogue, activation="none") if epilogue.smooth else epilogue
        self.backend.bias_activation_backward(grad, signs, grad_x, grad_bias, epilogue)

    def stored_like(self, values: Array, like: Array) -> Array:
        """`values` in the dtype and memory order of `like`, which has as many axes."""
        return stored_like(self.xp, values, like)

    def promoted(self, array: Array) -> Array:
        """`array` in the dtype of the computation: float32 where it has 16 bits, else itself."""
        return array.astype(accumulator(array.dtype), copy=False)

    def leaked(self, values: Array, x: Array, slope: float) -> Array:
        """Values where x, of their shape, is more than 0, else a share of them; as values are stored."""
        wide = accumulator(values.dtype)
        on = x.astype(wide, copy=False) > 0
        wide_values = values.astype(wide, copy=False)
        result = self.masked(wide_values, self.xp.logical_not(on))
        result *= slope
        result += self.masked(wide_values, on)
        return self.stored_like(result, values)

    def masked(self, values: Array, mask: Array) -> Array:
        """Values where the mask is True, and 0 elsewhere; as values are stored."""
        y = self.xp.empty_like(values)
        self.backend.masked(values, mask, y)
        return y


class ProductCall(Call):
    """The arrays of a call that sums products.

    Integers of 8 bits are taken as int32 and those of 16 bits as int64, exactly, and so are the results: a sum of
    products soon leaves their own dtypes, in which it would wrap around.
    """

    widened = "iu"

    def _widen(self) -> None:
        count = len(self.arrays) - ("out" in self._given)
        dtypes = {of_products(array.dtype) for array in self.arrays[:count] if array is not None}
        if len(dtypes) == 1:
            (dtype,) = dtypes
            self.arrays[:count] = [
                None if array is None else array.astype(dtype, copy=False) for array in self.arrays[:count]
            ]


def convolved_shape(input_shape: tuple[int, ...], geometry: ConvGeometry) -> tuple[int, ...]:
    """The shape of a convolution's result for an input of `input_shape`."""
    rank = geometry.rank
    return (*input_shape[: -rank - 1], geometry.channels.outputs, *geometry.output_size[3 - rank :])


def transposed_shape(input_shape: tuple[int, ...], geometry: ConvGeometry) -> tuple[int, ...]:
    """The shape of a transposed convolution's result for `input_shape`; geometry is the convolution it transposes."""
    rank = geometry.rank
    return (*input_shape[: -rank - 1], geometry.channels.inputs, *geometry.input_size[3 - rank :])


def pooled_shape(input_shape: tuple[int, ...], geometry: PoolGeometry) -> tuple[int, ...]:
    """The shape of the result of pooling an input of `input_shape`."""
    return (*input_shape[: -geometry.rank], *geometry.output_size[3 - geometry.rank :])


def image_shape(op: str, name: str, shape: Sequence[int], rank: int) -> tuple[int, ...]:
    """The shape (N, C, *space) of an image array, N = 1 where it has no batch axis.

    Raises
    ------
    ValueError
        The number of axes is wrong, or there is no channel or no space.
    """
    if len(shape) not in (rank + 1, rank + 2):
        raise ValueError(
            f"{op}: {name} has {len(shape)} dimensions, "
            f"expected {rank + 2} (N, C, {SPACE[rank]}) or {rank + 1} (C, {SPACE[rank]})"
        )
    full = (1, *shape) if len(shape) == rank + 1 else tuple(shape)
    if 0 in full[1:]:
        raise ValueError(f"{op}: {name} has shape {tuple(shape)}, expected channels and spatial sizes of at least 1")
    return full


@lru_cache(maxsize=1024)
def space_of(op: str, shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The spatial sizes of an input of this shape, or the error of `image_shape`."""
    return image_shape(op, "input", shape, rank)[2:]


def wrong_channels(op: str, name: str, shape: Sequence[int], rank: int, expected: str) -> ValueError:
    """The error that an image array does not have `expected` channels C; its shape shows their axis."""
    batch = "N, " if len(shape) == rank + 2 else ""
    return ValueError(f"{op}: {name} has shape {tuple(shape)}, expected ({batch}C, {SPACE[rank]}) with {expected}")


def expect_filters(op: str, name: str, shape: tuple[int, ...], layout: str) -> None:
    """Raise ValueError unless `shape` has the axes of `layout`, none of them empty."""
    dimensions = layout.count(",") + 1
    if len(shape) != dimensions:
        raise ValueError(f"{op}: {name} has {len(shape)} dimensions, expected {dimensions} ({layout})")
    if 0 in shape:
        raise ValueError(f"{op}: {name} has shape {shape}, expected sizes of at least 1")


def _indices(item: int | None) -> dict[tuple[int, int], tuple[Any, ...]]:
    """By rank and number of axes: an index with `item` for each of N, D, H, W that an image does not have."""
    return {
        (rank, axes): (item,) * (rank + 2 - axes) + (slice(None),) * (axes - rank) + (item,) * (3 - rank)
        for rank in SPACE
        for axes in (rank + 1, rank + 2)
    }


_LIFTING, _LOWERING = _indices(None), _indices(0)


def lifted(array: Array, rank: int) -> Array:
    """A view [N, C, D, H, W] of an image array of the given rank, batched or not, or of filters [OC, C, *k]."""
    return array[_LIFTING[rank, array.ndim]]


def lowered(array: Array, rank: int, like: Array) -> Array:
    """A view of [N, C, D, H, W] with the axes that `like`, a caller's image array, has."""
    return array[_LOWERING[rank, like.ndim]]


def needed(op: str, needs: Needs, count: int) -> tuple[bool, ...]:
    """`needs` as one bool for each of the operation's array arguments; all of them where it is None."""
    if needs is None:
        return (True,) * count
    if not is_sequence(needs):
        raise TypeError(f"{op}: needs is {needs!r}, expected {count} bools, one for each array argument")
    if len(needs) != count:
        raise ValueError(f"{op}: needs has {len(needs)} values, expected {count}, one for each array argument")
    return tuple(boolean(op, "needs", need) for need in needs)


def shape_argument(op: str, name: str, value: Any) -> tuple[int, ...]:
    """A shape given as an argument, as a tuple of ints."""
    if not is_sequence(value):
        raise TypeError(f"{op}: {name} is {value!r}, expected a shape")
    return tuple(integer(op, name, item, 0, "a shape") for item in value)


def choice(op: str, name: str, value: Any, choices: Sequence[str], where: str = "") -> str:
    """`value`, which is one of `choices`.

    Raises
    ------
    ValueError
        It is not.
    """
    if not (isinstance(value, str) and value in choices):
        *firsts, last = map(repr, choices)
        raise ValueError(f"{op}: {name} is {value!r}, expected {', '.join(firsts)} or {last} {where}".rstrip())
    return value


def axis_argument(call: Call, x: Array, dim: int) -> int:
    """`dim` as an axis of x.

    Raises
    ------
    TypeError
        It is no integer.
    ValueError
        x has no such axis.
    """
    if not x.ndim:
        raise ValueError(f"{call.op}: input has 0 dimensions, expected at least 1")
    axis = integer(call.op, "dim", dim, -x.ndim, "an axis of input")
    if axis >= x.ndim:
        raise ValueError(f"{call.op}: dim is {axis}, expected less than input's {x.ndim} dimensions")
    return axis


def softmax_of(call: Call, x: Array, axis: int, is_log: bool) -> Array:
    """The softmax of x along an axis, or its logarithm, in the dtype that sums are kept in."""
    return call.backend.softmax(x, axis, is_log) if x.size else call.promoted(x).copy(order="K")
