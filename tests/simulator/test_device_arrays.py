"""The simulator's device arrays: CuPy's manners over NumPy's memory."""

from __future__ import annotations

import copy
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from strategies import ORDERS, arranged, dtype_of, numbers

from gpucnn.simulator import Array, asarray, asnumpy
from gpucnn.simulator import namespace as xp
from gpucnn.simulator.arrays import ALIGNMENT, DTYPES

Host = np.ndarray[Any, Any]

LAYOUTS: dict[str, Callable[[Host], Host]] = {order: lambda host, o=order: arranged(host, o) for order in ORDERS} | {
    "Fortran": np.asfortranarray,
    "broadcast": lambda host: np.broadcast_to(host[:1], host.shape),
    "sliding": lambda host: np.lib.stride_tricks.sliding_window_view(host.reshape(-1), 5)[::2],
    "all reversed": lambda host: host[(slice(None, None, -1),) * host.ndim],
    "empty": lambda host: host[:, :, :0],
    "scalar": lambda host: host[0, 0, 0, 0, ...],
}


def image(dtype: str = "float32") -> Host:
    return numbers(np.random.default_rng(0), (2, 3, 4, 5), dtype)


# --- There and back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_strides_go_there_and_values_and_order_come_back(layout: str, dtype: str) -> None:
    host = LAYOUTS[layout](image("float32").astype(dtype_of(dtype)))
    array = asarray(host)
    assert type(array) is Array
    assert (array.shape, array.dtype, array.ndim, array.size) == (host.shape, host.dtype, host.ndim, host.size)
    assert (array.itemsize, array.nbytes) == (host.itemsize, host.nbytes)
    assert array.strides == host.strides or not host.size
    back = asnumpy(array)
    assert type(back) is np.ndarray
    np.testing.assert_array_equal(back, host)
    assert np.argsort(np.abs(back.strides)).tolist() == np.argsort(np.abs(host.copy("K").strides)).tolist()
    assert back.flags.writeable
    assert not np.shares_memory(back, array._host)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_holds_its_memory_alone_and_nan_in_the_gaps(layout: str) -> None:
    host = LAYOUTS[layout](image())
    array = asarray(host)
    memory = array._memory.view(np.float32) if array._memory.nbytes % 4 == 0 else array._memory[:0]
    inside = {value.tobytes() for value in host.reshape(-1)}
    assert all(np.isnan(value) or value.tobytes() in inside for value in memory)
    array[...] = 0
    assert (host == LAYOUTS[layout](image())).all()


def test_views_keep_their_place_in_what_they_were_cut_from() -> None:
    """As a view on the device would, so that vector loads meet the same alignment."""
    host = np.zeros((9, 9), np.float32)
    for view in (host, host[1:], host[:, 3:], host[2:, 1::2], host[::-1, ::-1], host[3:4, 5:6]):
        lowest = min(view.__array_interface__["data"][0], view[-1:, -1:].__array_interface__["data"][0])
        array = asarray(view)
        first = min(array.data.ptr, array[-1:, -1:].data.ptr)
        assert (first - array.data.mem.ptr) % ALIGNMENT == (lowest - host.__array_interface__["data"][0]) % ALIGNMENT
        assert array.data.mem.ptr % ALIGNMENT == 0


def test_what_no_device_has_is_laid_out_anew_or_refused() -> None:
    unaligned = np.frombuffer(b"." + np.arange(4.0).tobytes(), np.float64, offset=1)
    fields = np.zeros(3, [("x", "f4"), ("y", "i2")])["x"]
    for host, strides in ((unaligned, (8,)), (fields, (4,))):
        array = asarray(host)
        assert array.strides == strides
        assert array.data.ptr % ALIGNMENT == 0
        np.testing.assert_array_equal(asnumpy(array), host)
    for dtype in ("S3", "U1", object, "M8[s]", [("x", "f8")], ml_dtypes.float8_e4m3fn):
        with pytest.raises(TypeError, match=r"^a device has no arrays of dtype .*, expected one of bfloat16, bool"):
            asarray(np.zeros(2, dtype))


def test_anything_like_an_array_is_taken_and_an_array_is_itself() -> None:
    assert asnumpy(asarray([[1, 2], [3, 4]])).tolist() == [[1, 2], [3, 4]]
    assert asarray(1.5).shape == ()
    assert asarray([1, 2], np.float32).dtype == np.float32
    array = asarray(np.ones(3))
    assert asarray(array) is array
    assert asarray(array, np.float64) is array
    assert asarray(array, np.float32).dtype == np.float32
    assert xp.array(array) is not array
    assert asnumpy(np.ones(2)).tolist() == [1, 1]


# --- Memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_what_no_one_wrote_is_nan(dtype: str) -> None:
    for array in (xp.empty((3, 5), dtype_of(dtype)), xp.empty_like(asarray(np.zeros((3, 5), dtype_of(dtype))))):
        assert array.shape == (3, 5)
        assert array.dtype == dtype_of(dtype)
        if array.dtype.kind in "fcV":
            assert xp.isnan(array).all()
        assert asnumpy(array).astype(bool).all()


def test_all_new_memory_is_aligned() -> None:
    x = asarray(image())
    results = [x + 1, x.sum(), x[x > 0], x.copy(), x.astype("float64"), xp.zeros(3), xp.arange(3), np.exp(x)]
    results += [x.max(axis=1), x.T.reshape(-1), xp.concatenate([x, x]), xp.where(x > 0, x, 0), xp.empty(1)]
    results += [xp.ones_like(x), xp.eye(3)]
    for array in results:
        assert array.data.ptr % ALIGNMENT == 0
        assert array.base is None
        assert array.flags.owndata
        assert array.data.mem.size == array.nbytes


def test_views_share_the_memory_of_what_they_were_cut_from() -> None:
    x = asarray(image())
    views = [x[0], x[..., ::2], x[0, 0, 0, 0], x.T, x.reshape(-1), x.ravel(), x.swapaxes(1, 2), x[None], x[1:][0]]
    views += [xp.moveaxis(x, 1, -1), xp.expand_dims(x, 0), x.view(np.int32), np.squeeze(x[:1]), *x]
    for view in views:
        assert view.base is x
        assert view._memory is x._memory
        assert view.data.mem == x.data.mem
        assert not view.flags.owndata
        assert np.may_share_memory(view, x)
    x[0] = 7
    assert (views[0] == 7).all()
    views[2][...] = 8
    assert x[0, 0, 0, 0] == 8
    complex_x = asarray(image("complex64"))
    complex_x.real[...] = 3
    complex_x.imag[...] = 0
    assert (complex_x == 3).all()
    assert x.real is x
    assert not x.imag.any()


def test_memory_order_is_kept_where_cupy_keeps_it() -> None:
    last = asarray(arranged(image(), "channels_last"))
    kept = [last.copy(order="K"), xp.copy(last), np.copy(last), last.astype(np.float64), xp.empty_like(last)]
    for array in (*kept, xp.zeros_like(last), np.ones_like(last), xp.array(last, np.float16)):
        assert [step // array.itemsize for step in array.strides] == [step // 4 for step in last.strides]
    assert xp.zeros_like(last, shape=(2, 3, 7, 7)).strides == (588, 4, 84, 12)
    assert xp.empty((2, 3), order="F").flags.f_contiguous
    assert not hasattr(last.flags, "writeable")


def test_what_is_computed_is_in_c_order_as_in_cupy() -> None:
    last = asarray(arranged(image(), "channels_last"))
    on, other = asarray(last > 0), asarray(arranged(image(), "channels_last"))
    results = [last + 1, last * other, -last, last > 0, 1 / last, np.exp(last), xp.where(on, last, 0), last.clip(0, 1)]
    results += [xp.concatenate([last, other], axis=1), xp.stack([last, other]), last.copy(), last.take(xp.arange(2), 1)]
    results += [last[:, xp.arange(2)], last.sum(axis=0), last.max(axis=1, keepdims=True), xp.maximum(last, other)]
    for array in results:
        assert array.flags.c_contiguous
    before = last.strides
    last += other
    assert last.strides == xp.multiply(last, 2, out=last).strides == before


def test_what_cupy_has_no_bfloat16_of_is_float32() -> None:
    x = asarray(image().astype(ml_dtypes.bfloat16))
    zero = xp.zeros((), x.dtype)
    for result in (xp.where(x > 0, x, zero), xp.clip(x, zero, zero), x.clip(zero, zero)):
        assert result.dtype == np.float32
    for result in (x + x, xp.maximum(x, zero), xp.exp(x), x.sum(), x.astype(x.dtype), xp.concatenate([x, x])):
        assert result.dtype == x.dtype
    assert xp.where(x > 0, x.astype(np.float16), 0).dtype == np.float16


# --- CuPy's manners -----------------------------------------------------------------------------------------------


def test_no_way_to_the_host_unasked() -> None:
    x = asarray(np.ones(3))
    for convert in (np.asarray, np.array, lambda array: np.ones(3).__setitem__(..., array)):
        with pytest.raises(TypeError, match=r"use gpucnn\.simulator\.asnumpy"):
            convert(x)
    assert x.get().tolist() == x.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, host: x + host,
        lambda x, host: host + x,
        lambda x, host: x == host,
        lambda x, host: host @ x,
        lambda x, host: np.add(x, host),
        lambda x, host: np.add(host, host, out=x),
        lambda x, host: np.concatenate([x, host]),
        lambda x, host: x.__iadd__(host),
        lambda x, host: x.__setitem__(slice(None), host),
        lambda x, host: x[host > 0],
        lambda x, host: x.take(host.astype(int)),
        lambda x, host: xp.where(x > 0, x, host),
        lambda x, host: xp.maximum(host, x),
    ],
)
def test_host_arrays_are_not_mixed_in(mix: Callable[[Array, Host], Any]) -> None:
    message = (
        "got a NumPy array of shape (3,) beside an array of the simulator, expected gpucnn.simulator.asarray(array)"
    )
    x = asarray(np.ones(3))
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        mix(x, np.arange(3.0))
    assert asnumpy(x).tolist() == [1, 1, 1]


def test_lists_and_other_things_are_not_mixed_in_either() -> None:
    x = asarray(np.ones(3))
    for other in ([1, 2, 3], (1, 2, 3), "word", None):
        for mix in (operator.add, operator.iadd, np.multiply, lambda x, other: other * x):
            with pytest.raises(TypeError):
                mix(x, other)


def test_numbers_of_python_and_numpy_are_mixed_in() -> None:
    x = asarray(np.ones(3, np.float32))
    for number, dtype in (
        (1, "f4"), (2.5, "f4"), (np.float32(2), "f4"), (np.array(2, np.float32), "f4"),
        (np.float64(1), "f8"),  # as NEP 50 has it
    ):  # fmt: skip
        for product in (x * number, number * x):
            assert type(product) is Array
            assert product.dtype == dtype
            assert product.tolist() == [number] * 3


def test_reductions_and_elements_are_arrays_without_axes() -> None:
    x = asarray(np.arange(6.0).reshape(2, 3))
    for result in (x.sum(), x.max(), x.mean(), x[1, 2], np.sum(x), x.argmax(), x.all(), (x > 1).any(), x[0][0]):
        assert type(result) is Array
        assert result.shape == ()
    assert (float(x.sum()), int(x.max()), complex(x[0, 1]), bool(x.any()), x.max().item()) == (15.0, 5, 1 + 0j, True, 5)
    assert x.item(1, 2) == 5
    assert list(range(xp.asarray(3))) == [0, 1, 2]
    assert f"{x.mean():.2f} {x[0]} {x.sum()!r}" == "2.50 [0. 1. 2.] array(15.)"
    for ask in (bool, float, int):
        with pytest.raises((TypeError, ValueError)):
            ask(x)
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)


def test_a_device_does_not_warn() -> None:
    x = asarray(np.array([-1.0, 0.0, np.inf, 1e300]))
    with np.errstate(all="raise"):
        assert xp.isnan(xp.log(x)[0])
        assert xp.isnan((x - x)[2])
        assert math.isinf((x * x).max())
        assert xp.isinf(1 / x)[1]


# --- What it computes ---------------------------------------------------------------------------------------------

BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lt", "le", "gt", "ge", "eq", "ne"]
BITWISE = ["and_", "or_", "xor"]


def assert_same(actual: Any, expected: Any) -> None:
    if isinstance(expected, tuple | list):
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
        return
    assert type(actual) is Array
    np.testing.assert_array_equal(asnumpy(actual), expected, strict=True)


@pytest.mark.parametrize("name", BINARY + BITWISE)
def test_operators(name: str) -> None:
    a, b = (np.arange(1, 7).reshape(2, 3), np.array([3, 1, 2])) if name in BITWISE else (image() + 3, image()[0, 0, 0])
    operation = getattr(operator, name)
    assert_same(operation(asarray(a), asarray(b)), operation(a, b))
    assert_same(operation(asarray(a), 2), operation(a, 2))
    assert_same(operation(2, asarray(a)), operation(2, a))
    in_place = getattr(operator, "i" + name.strip("_"), None)
    for kind in (a, a[:, ::-1]) if in_place else ():
        array, host = asarray(kind), kind.copy()
        view = array[...]
        assert in_place(array, asarray(b)) is array
        assert_same(view, in_place(host, b))


@pytest.mark.parametrize(
    "call",
    [
        lambda x, m: -x,
        lambda x, m: +x,
        lambda x, m: abs(x),
        lambda x, m: ~(x > 0),
        lambda x, m: x @ x.swapaxes(-1, -2),
        lambda x, m: m.matmul(x, x.swapaxes(-1, -2)),
        lambda x, m: np.dot(x[0, 0].T, x[0, 0]),
        lambda x, m: x.sum(axis=(0, 2), keepdims=True),
        lambda x, m: x.max(1),
        lambda x, m: x.mean(axis=0, dtype=m.float64),
        lambda x, m: x.var(axis=-1),
        lambda x, m: x.reshape(2, -1, order="F"),
        lambda x, m: x.transpose(3, 0, 1, 2),
        lambda x, m: x.take(m.asarray([2, 0, 2]), axis=1),
        lambda x, m: x.astype("float16"),
        lambda x, m: x[m.asarray([1, 0]), ..., m.asarray([0, 2])],
        lambda x, m: x[:, [0, 2]],
        lambda x, m: x[x > 0],
        lambda x, m: m.where(x > 0, x, 0),
        lambda x, m: m.where(x > 0, 1, 0.5),
        lambda x, m: m.maximum(x, m.zeros((), x.dtype)),
        lambda x, m: m.clip(x, -1, 1),
        lambda x, m: m.exp(x),
        lambda x, m: m.concatenate([x, x], axis=2),
        lambda x, m: m.stack((x, x)),
        lambda x, m: m.pad(x, 1),
        lambda x, m: m.einsum("nchw,nchw->c", x, x),
        lambda x, m: m.broadcast_to(x[:1], x.shape),
        lambda x, m: m.full((2, 3), 7, m.int32),
        lambda x, m: m.full_like(x, 2.5),
        lambda x, m: m.linspace(0, 1, 5),
        lambda x, m: m.random.default_rng(1).random((2, 3)),
        lambda x, m: m.random.default_rng(1).integers(9, size=4),
        lambda x, m: m.random.default_rng(np.random.default_rng(1)).standard_normal(3),
        lambda x, m: np.sin(x),
        lambda x, m: np.add.reduce(x, axis=1),
        lambda x, m: np.flip(x, 1),
        lambda x, m: np.split(x, 2),
        lambda x, m: np.modf(x),
    ],
)
def test_operators_methods_and_functions_are_those_of_numpy(call: Callable[[Any, Any], Any]) -> None:
    host = image()
    assert_same(call(asarray(host), xp), call(host, np))


def test_functions_of_numpy_take_arrays() -> None:
    x = asarray(image())
    assert np.shape(x) == (2, 3, 4, 5)
    assert np.array_equal(x, x)


def test_results_go_where_they_are_wanted() -> None:
    x, out = asarray(np.arange(3.0)), xp.empty(3)
    assert np.multiply(x, 2, out=out) is out
    assert x.sum(out=out[0]) is not None
    assert out.tolist() == [3, 2, 4]
    assert x.astype(x.dtype, copy=False) is x
    out.fill(5)
    out[1] = asarray(6.0)
    out[asarray([True, False, False])] = 4
    assert out.tolist() == [4, 6, 5]
    out.set(np.ones(3))
    assert out.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"^set: values has shape \(2,\), expected \(3,\)$"):
        out.set(np.ones(2))


def test_bfloat16_needs_no_help() -> None:
    x = asarray(np.array([1.5, -2.0], ml_dtypes.bfloat16))
    assert (x * 2).dtype == xp.maximum(x, xp.zeros((), x.dtype)).dtype == xp.empty(2, x.dtype).dtype == x.dtype
    assert x.astype(np.float32).tolist() == [1.5, -2]
    assert xp.abs(x).max() == 2


def test_iteration_and_copies() -> None:
    x = asarray(image())
    assert len(x) == 2
    assert [item.shape for item in x] == [(3, 4, 5)] * 2
    assert copy.copy(x) is not x
    with pytest.raises(TypeError):
        len(x.sum())


def test_what_cupy_does_not_have_is_not_in_the_namespace() -> None:
    for name in ("memmap", "fromstring", "vectorize", "frompyfunc", "errstate"):
        assert not hasattr(xp, name)
    assert xp.ndarray is Array
    assert xp.float32 is np.float32
    assert all(hasattr(xp, name) for name in xp.__all__)
