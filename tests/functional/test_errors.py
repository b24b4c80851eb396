"""Every bad call of every operation raises ValueError or TypeError, and says what came and what was expected."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from array_backends import ArrayBackend
from calls import ARRAYS, CALLS, fresh, rank_of, said_name
from hypothesis import assume, given
from hypothesis import strategies as st
from sample import examples

import gpucnn.functional as F
from gpucnn.geometry import InterpolationAxis

Wrong = list[tuple[Any, type[Exception]]]
BACKWARDS = [name for name in CALLS if name.endswith("_backward")]


def fault(backend: ArrayBackend, name: str, error: type[Exception] | None, *mentioned: str, **arguments: Any) -> str:
    """What is wrong with how a bad call is refused; an empty string where nothing is."""
    try:
        backend.run(getattr(F, name), **arguments)
    except Exception as raised:
        said = str(raised)
        if type(raised) not in (ValueError, TypeError) or type(raised) is not (error or type(raised)):
            return f"raises {raised!r}, expected {error}"
        if not said.startswith(f"{said_name(name)}: ") or "expected" not in said:
            return f"raises {raised!r}: not in the form of a message"
        missing = [words for words in mentioned if not re.search(words, said)]
        return f"raises {raised!r}, which does not mention {missing}" if missing else ""
    return "passes"


def assert_refused(
    backend: ArrayBackend, name: str, parameter: str, wrong: Wrong, *mentioned: str, **others: Any
) -> None:
    """Raise unless each wrong value of a parameter is refused as it should be, in words like those `mentioned`."""
    faults = []
    for value, error in wrong:
        fails = fault(backend, name, error, *mentioned, **fresh(name, **others, **{parameter: value}))
        shown = f"{value.dtype} array of {value.shape}" if isinstance(value, np.ndarray) else repr(value)
        faults += [f"{name}({parameter}={shown}) {fails}"] if fails else []
    assert not faults, "\n".join(faults)


def parameters_of(name: str) -> list[str]:
    return list(inspect.signature(getattr(F, name)).parameters)


# --- Parameters that are no arrays: what is wrong for each, at a rank ----------------------------------------------


class Junk:
    """Something that no parameter takes."""

    def __repr__(self) -> str:
        return "Junk()"


NO_NUMBERS: list[Any] = ["2", b"2", "", True, np.True_, 1j, Junk(), {1}, {1: 1}, slice(2), print, np.float32, math]


def types(*values: Any) -> Wrong:
    return [(value, TypeError) for value in values]


def values(*wrong: Any) -> Wrong:
    return [(value, ValueError) for value in wrong]


def wrong_integers(least: int) -> Wrong:
    return types(*NO_NUMBERS, 1.5, 2.0, np.float32(2), np.array(2.0)) + values(least - 1, -(2**70), 2**31, 10**30)


def wrong_sizes(least: int, n: int, optional: bool = False) -> Wrong:
    """For an int or n of them, each of at least `least`."""
    nested: list[Any] = [(value,) * n for value in (None, "2", 1.5, True, [2, 2])]
    arrays = [np.ones(n), np.ones((n, 1), int), np.ones((n, 2), int)]
    wrong = wrong_integers(least) + types(*nested, *arrays, *([] if optional else [None]))
    return wrong + values((), (2,) * (n + 4), (least - 1,) * n, (*(1,) * (n - 1), 2**31))


def wrong_paddings(n: int) -> Wrong:
    strings = values("full", "SAME", "", "valid ")
    pairs: list[Any] = [((1, 1, 1),) * n, ((1,),) * n, ((1, -1),) * n, (((),) * n)]
    integers = [(value, error) for value, error in wrong_integers(0) if not isinstance(value, str)]
    typed = types(None, ((1, 1.5),) * n, ((1, None),) * n, (None,) * n, (1.5,) * n, np.ones(n), [[[1, 1], [1, 1]]] * n)
    return strings + integers + typed + values((), (1,) * (n + 4), (-1,) * n, *pairs)


def wrong_numbers(*out_of_range: float, optional: bool = False) -> Wrong:
    """For a real number."""
    wrong = types(*NO_NUMBERS, (1.0,), [1.0], np.ones(1), np.array(True), np.array(1j), np.complex64(1))
    return wrong + types(*([] if optional else [None])) + values(math.nan, math.inf, -math.inf, 10**400, *out_of_range)


SAID = {"weight_size": "weight_size|window of axis", "kernel_size": "kernel_size|output_size has . values"}
"""How messages name a parameter, where it is not by its name alone."""

FLAGS = types(None, 0, 1, 1.0, "yes", "", (), (True,), np.ones(2, bool), np.array(1), Junk(), NotImplemented)
CHOICES = values("", "junk", "Nearest", None, 1, b"mean", ("mean",), np.array(["mean", "sum"]), Junk(), True)

AXIS = InterpolationAxis(3, 3)

WRONG: dict[str, Callable[[int], Wrong]] = {
    "kernel_size": lambda n: wrong_sizes(1, n),
    "stride": lambda n: wrong_sizes(1, n, optional=True),
    "padding": wrong_paddings,
    "dilation": lambda n: wrong_sizes(1, n),
    "output_padding": lambda n: wrong_sizes(0, n) + values(99, (2,) * n),
    "groups": lambda n: wrong_integers(1) + types(None, (1,), [1, 1]) + values(3, 4),
    "num_groups": lambda n: wrong_integers(1) + types(None, (1,), [1, 1]) + values(3, 8),
    "output_size": lambda n: wrong_sizes(1, n, optional=True),
    "size": lambda n: wrong_sizes(1, n, optional=True),
    "scale_factor": lambda n: wrong_sizes(1, n),
    "normalized_shape": lambda n: wrong_integers(1) + types(None, (3, 1.5)) + values((), 4, (3,) * 5, (4, 3), (0, 3)),
    "input_size": lambda n: types(None, 5, "555", b"555", {1}, (2, 2, *(5.0,) * n), (2, 2, *(None,) * n))
    + values((), (5,) * (n + 4), (2, 2, *(0,) * n), (2, 0, *(5,) * n), (2, 3, *(5,) * n), (2, 2, *(-5,) * n)),
    "weight_size": lambda n: types(None, 4, "412", b"412", {1}, (4, 1, *(2.0,) * n), (4, 1, *(None,) * n))
    + values((), (4, 1), (4, 1, *(0,) * n), (0, 1, *(2,) * n), (3, 1, *(2,) * n), (4, 2, *(2,) * n))
    + values((4, 1, *(99,) * n), (4, 1, *(2,) * (n - 1), 2**31)),
    "align_corners": lambda n: [item for item in FLAGS if item[0] is not None] + values(True, False),
    "recompute_scale_factor": lambda n: [item for item in FLAGS if item[0] is not None] + values(True),  # with a size
    "antialias": lambda n: FLAGS + values(True),  # with the nearest samples
    "axes": lambda n: types(None, 1, AXIS, "33", {AXIS}, Junk(), (3,) * n, (AXIS,) * (n - 1) + (None,))
    + values((), (AXIS,), (AXIS,) * 3, (replace(AXIS, size=4),) * n, (replace(AXIS, out=0),) * n)
    + values((replace(AXIS, scale=-1.0),) * n, (replace(AXIS, out=2**31),) * n),
    "divisor_override": lambda n: wrong_numbers(0, 0.0, optional=True),
    "norm_type": lambda n: wrong_numbers(0, -1, -0.5),
    "eps": lambda n: wrong_numbers(-1e-9, -1),
    "p": lambda n: wrong_numbers(-0.1, 1.1, 2),
    "label_smoothing": lambda n: wrong_numbers(-0.1, 1.1),
    "ignore_index": lambda n: wrong_integers(-(2**31)) + types(None, (1,)),
    "dim": lambda n: wrong_integers(-4) + types(None, (0,), [0]) + values(4, 99),
    "activation": lambda n: CHOICES,
    "pad": lambda n: types(None, 1, "11", b"11", {1}, Junk(), (1.5, 1), (True, True), ("1", "1"), ((1, 1), (1, 1)))
    + values((1,), (1, 1, 1), (1,) * 10, (2**31, 0), (-(2**31) - 1, 0), (-9, 0), (-2, -2)),
    "value": lambda n: types(*NO_NUMBERS, (1.0,), np.ones(1), np.array(True), np.array(None)) + values(10**400),
    "rng": lambda n: types("seed", 1.5, Junk(), -1, (1.5,), {1: 1}),
    "out": lambda n: types([1.0], 1, "out", np.float64(1), Junk(), np.ones((1,) * 7, np.float32), np.ndarray)
    + values(np.ones((1,) * 7), np.ones(()), np.ones(0)),
    "dtype": lambda n: types("float33", "float16", "int8", 1, 1.5, Junk(), np.complex64, True),
    "needs": lambda n: types(1, "yes", True, Junk(), (1,) * 5, (None,) * 5, "xx") + values((), (True,) * 9),
}  # fmt: skip


BY_ANNOTATION = {"bool": FLAGS, "float": wrong_numbers(), "str": CHOICES}
"""For parameters that are not in `WRONG`."""


def wrong_values(name: str, parameter: str) -> Wrong:
    if parameter == "align_corners" and "grid" in name:
        return FLAGS
    if parameter == "size" and "local_response" in name:
        return wrong_integers(1) + types(None, (1,), [1, 1])
    if parameter == "size" and "grid" in name:
        wrong = types(None, 5, "555", b"555", (2, 4, 3, 2.0), (2, 4, 3, None))
        return wrong + values((), (2, 4, 3), (2, 4, 0, 2), (2, 4, 3, -1), (3, 4, 3, 2), (2, 4, 3, 3, 2), (2,) * 6)
    if parameter not in WRONG:
        return BY_ANNOTATION[getattr(F, name).__annotations__[parameter]]
    wrong = WRONG[parameter](rank_of(name))
    if parameter == "stride" and "pool" not in name:  # no window to stand for it
        wrong = wrong + types(None)
    if (parameter == "activation" and "norm" in name) or (parameter == "eps" and "rms" in name):  # None is one of them
        wrong = [(value, error) for value, error in wrong if value is not None]
    if parameter == "output_size" and "adaptive" in name:  # None keeps an axis as it is
        wrong = [(value, error) for value, error in wrong if not (isinstance(value, tuple) and None in value)]
    return wrong


@pytest.mark.parametrize("name", CALLS)
def test_wrong_parameters(backend: ArrayBackend, name: str) -> None:
    other = {"needs", "scale_factor"} if "interpolate" in name else {"needs"}
    if name == "dropout_backward":
        other.add("rng")  # has no say where the mask is given
    for parameter in [parameter for parameter in parameters_of(name) if parameter not in ARRAYS | other]:
        assert_refused(backend, name, parameter, wrong_values(name, parameter), SAID.get(parameter, parameter))


@pytest.mark.parametrize("name", BACKWARDS)
def test_wrong_needs(backend: ArrayBackend, name: str) -> None:
    count = len(getattr(F, name)(**fresh(name)))
    others = types(1, "yes", True, Junk(), {True}, (1,) * count, (None,) * count, ("yes",) * count, "y" * count)
    assert_refused(backend, name, "needs", others + values((), (True,) * (count + 1)), "needs")


@pytest.mark.parametrize("name", ["interpolate", "interpolate_backward"])
def test_wrong_factors(backend: ArrayBackend, name: str) -> None:
    wrong = wrong_numbers(0, -1, 1e-3, 2.0**40, None, optional=True) + types((1, "2"), (None, None))
    wrong = [(value, error) for value, error in wrong if not isinstance(value, tuple | list) and np.ndim(value) == 0]
    assert_refused(backend, name, "scale_factor", wrong + values((), [1.0], (1.0,) * 6, (2, -1), (0, 0)), size=None)
    assert_refused(backend, name, "scale_factor", values(2, (2.0, 2.0)), size=5)


# --- Arrays -------------------------------------------------------------------------------------------------------

NO_ARRAYS = [[1.0], (1.0,), 1j, np.float64(1), np.int64(1), "array", b"array", Junk(), {1: 1.0}, range(3), np.ndarray]
WRONG_DTYPES = [
    "S3", "U3", object, "M8[s]", "m8[s]", [("x", "f8")], ml_dtypes.float8_e4m3fn, ml_dtypes.int4,
    *{"g", "G"} - {np.dtype(name).char for name in ("d", "D")},  # long double, where it is wider than a double
]  # fmt: skip
KINDS = {  # what each operation does not take
    "max_pool|relu": ["c16", "c8"],
    "leaky_relu|activation|sigmoid|gelu|lp_pool|norm|softmax|cross_entropy|dropout": ["i8", "u1", "c16"],
    "avg_pool": ["i8", "u4"],
    "": ["?"],
}


def arrays_of(name: str) -> list[str]:
    return [parameter for parameter in parameters_of(name) if parameter in ARRAYS]


def is_optional(name: str, parameter: str) -> bool:
    with_default = inspect.signature(getattr(F, name)).parameters[parameter].default is None
    return with_default or parameter in ("running_mean", "running_var")


@pytest.mark.parametrize("name", CALLS)
def test_no_arrays(backend: ArrayBackend, name: str) -> None:
    for parameter in arrays_of(name):
        wrong = types(*NO_ARRAYS, *([] if is_optional(name, parameter) else [None]))
        if "cross_entropy" in name and parameter == "grad_output":  # may be a number
            wrong = [(value, error) for value, error in wrong if not isinstance(value, np.number)]
        assert_refused(backend, name, parameter, wrong, parameter)


@pytest.mark.parametrize("name", CALLS)
def test_masked_arrays_would_lose_their_mask(backend: ArrayBackend, name: str) -> None:
    for parameter in arrays_of(name):
        assert_refused(backend, name, parameter, types(np.ma.array(CALLS[name][parameter])), parameter, "masked")


@pytest.mark.parametrize("name", CALLS)
def test_wrong_dtypes(backend: ArrayBackend, name: str) -> None:
    """Of one array, and of all of them at once; no dtype is cast to another."""
    arrays = arrays_of(name)
    of_inputs = [array for array in arrays if array not in ("indices", "target", "mask")]
    for parameter in arrays:
        dtypes = [*WRONG_DTYPES, "c16" if parameter in ("indices", "target") else "f4", "f2"]
        if parameter == "mask":
            dtypes = [*dtypes, "f8", "u1"]
        elif len(of_inputs) == 1 and parameter in of_inputs:
            dtypes = WRONG_DTYPES
        shape = CALLS[name][parameter].shape
        wrong = types(*(np.zeros(shape, dtype) for dtype in dtypes if backend.can_hold(dtype)))
        assert_refused(backend, name, parameter, wrong, "dtype")
    taken_by_others = [dtype for names, dtypes in KINDS.items() if re.search(names, name) for dtype in dtypes]
    for dtype in filter(backend.can_hold, WRONG_DTYPES + taken_by_others):
        together = {array: np.zeros(CALLS[name][array].shape, dtype) for array in of_inputs}
        first = together.pop(of_inputs[0])
        assert_refused(backend, name, of_inputs[0], types(first), "has dtype", **together)


def reshaped(shape: tuple[int, ...], axes: int) -> list[tuple[int, ...]]:
    """Shapes with one more or one less along one of the first `axes`, with axes more, and with none at all."""
    other = [(*shape[:axis], shape[axis] + step, *shape[axis + 1 :]) for axis in range(axes) for step in (1, -1)]
    return [*other, (1, 1, 1, *shape), ()]


@pytest.mark.parametrize("name", CALLS)
def test_wrong_shapes_of_further_arrays(backend: ArrayBackend, name: str) -> None:
    for parameter in [array for array in arrays_of(name) if array != "input"]:
        array = CALLS[name][parameter]
        has_kernel = parameter == "weight" and re.match("conv|locally", name)  # whose size is free
        shapes = reshaped(array.shape, array.ndim - rank_of(name) if has_kernel else array.ndim)
        if "binary" in name or (name, parameter) == (
            "cross_entropy_backward",
            "grad_output",
        ):  # () is one value for all
            shapes = [shape for shape in shapes if shape]
        if (name, parameter) == ("grid_sample", "grid"):  # of any number of samples
            shapes = [shape for shape in shapes if len(shape) != 4 or (shape[0], shape[3]) != (2, 2)]
        said = "weight|bias" if parameter == "weight" else parameter
        assert_refused(backend, name, parameter, values(*(np.ones(shape, array.dtype) for shape in shapes)), said)


def takes_any_shape(name: str) -> bool:
    return "any shape" in (getattr(F, name.removesuffix("_backward")).__doc__ or "")


WITH_INPUT = [name for name in CALLS if "input" in CALLS[name] and not takes_any_shape(name)]


@pytest.mark.parametrize("name", WITH_INPUT)
def test_wrong_dimensions_of_input(backend: ArrayBackend, name: str) -> None:
    """None, one, one too few, one too many, two too many."""
    shape = CALLS[name]["input"].shape
    shapes = {(), shape[-1:], shape[2:], (1, *shape), (1, 1, *shape)}
    if "bias_activation" in name:  # any space
        shapes = {(), shape[-1:]}
    elif re.search("norm|linear|cross_entropy", name):
        shapes = {()} if re.match("linear|cross", name) else {(), shape[-1:]}
    elif re.search("2col|2im|fold|interpolate", name):  # of several ranks
        shapes -= {shape[2:], (1, *shape)}
    assert_refused(backend, name, "input", values(*map(np.ones, shapes)))


@pytest.mark.parametrize("name", WITH_INPUT)
def test_no_channels_and_no_space(backend: ArrayBackend, name: str) -> None:
    shape = CALLS[name]["input"].shape
    shapes = [(*shape[:axis], 0, *shape[axis + 1 :]) for axis in range(1, len(shape))]
    if name in ("layer_norm", "rms_norm"):  # has no channels, only rows
        shapes.remove((2, 0, 3, 3))
    parameters = {"weight", "bias"} & set(arrays_of(name))
    others = {parameter: None for parameter in parameters if is_optional(name, parameter)}
    assert_refused(backend, name, "input", values(*map(np.ones, shapes)), **others)


# --- What they say ------------------------------------------------------------------------------------------------

zeros = np.zeros
MESSAGES: list[tuple[str, dict[str, Any], str]] = [
    ("conv2d", {"input": None}, "input is None, expected an array"),
    ("conv2d", {"input": [[1.0]]}, "input is of type list, expected an array"),
    ("conv2d", {"input": zeros(5)}, "input has 1 dimensions, expected 4 (N, C, H, W) or 3 (C, H, W)"),
    ("conv2d", {"input": zeros((2, 2, 0, 5))},
     "input has shape (2, 2, 0, 5), expected channels and spatial sizes of at least 1"),
    ("conv2d", {"input": zeros((2, 2, 6, 5), bool)},
     "input has dtype bool, expected floating-point (float16, bfloat16, float32, float64) or complex or integer"),
    ("conv2d", {"weight": zeros((4, 1, 2, 2), "f4")},
     "input has dtype float64 and weight float32, expected one dtype for all: cast input and bias, "
     "input.astype(numpy.float32), bias.astype(numpy.float32)"),
    ("conv2d", {"weight": zeros((4, 2, 2, 2))},
     "input has shape (2, 2, 6, 5), expected (N, C, H, W) with C = 2 * groups = 4, "
     "for weight (OC, C / groups, KH, KW) has shape (4, 2, 2, 2)"),
    ("conv2d", {"weight": zeros((4, 1, 2))}, "weight has 3 dimensions, expected 4 (OC, C / groups, KH, KW)"),
    ("conv2d", {"weight": zeros((4, 1, 0, 2))}, "weight has shape (4, 1, 0, 2), expected sizes of at least 1"),
    ("conv2d", {"weight": zeros((3, 1, 2, 2))}, "weight has 3 output channels, expected a multiple of groups = 2"),
    ("conv2d", {"groups": 3}, "input has shape (2, 2, 6, 5), expected (N, C, H, W) with C a multiple of groups = 3"),
    ("conv2d", {"bias": zeros(3)}, "bias has shape (3,), expected (4,)"),
    ("conv2d", {"stride": 0}, "stride is 0, expected at least 1"),
    ("conv2d", {"stride": (1, 2, 3)}, "stride has 3 values, expected 2"),
    ("conv2d", {"stride": 1.5}, "stride is 1.5, expected an integer or 2 of them"),
    ("conv2d", {"dilation": 2**31}, "dilation is 2147483648, expected at most 2147483647"),
    ("conv2d", {"dilation": 8},
     "window of axis 0 spans dilation * (kernel - 1) + 1 = 9, expected at most the padded input, 1 + 6 + 1 = 8"),
    ("conv2d", {"padding": "full"}, "padding is 'full', expected numbers, 'valid', 'same' or 'same_lower'"),
    ("conv2d", {"padding": ((1, 2, 3), (1, 2, 3))}, "padding of an axis has 3 values, expected (low, high)"),
    ("conv2d_backward", {"grad_output": zeros((2, 4, 4, 4))},
     "grad_output has shape (2, 4, 4, 4), expected (2, 4, 4, 3)"),
    ("conv2d_backward", {"needs": (True, True)}, "needs has 2 values, expected 3, one for each array argument"),
    ("conv2d_backward", {"needs": True}, "needs is True, expected 3 bools, one for each array argument"),
    ("conv1d_input", {"input_size": 6}, "input_size is 6, expected a shape"),
    ("conv3d_weight", {"weight_size": (4, 1, 2, 2)},
     "weight_size has 4 dimensions, expected 5 (OC, C / groups, KD, KH, KW)"),
    ("conv_transpose2d", {"weight": zeros((3, 2, 2, 2))},
     "input has shape (2, 2, 6, 5), expected (N, C, H, W) with C = 3, for weight (C, OC / groups, KH, KW) has shape "
     "(3, 2, 2, 2)"),
    ("conv_transpose2d", {"output_padding": 2},
     "output_padding of axis 0 is 2, expected less than stride 2 or dilation 1"),
    ("conv_transpose2d", {"padding": 9},
     "output of axis 0 has size -5, expected at least 1; padding (9, 9) cuts all of it"),
    ("conv_transpose2d", {"padding": "same"}, "output_padding is (1, 1), expected 0 with padding 'same'"),
    ("locally_connected1d", {"weight": zeros((4, 3, 2, 2))}, "weight has filters for (3,) outputs, expected (4,)"),
    ("unfold", {"kernel_size": (2,) * 4}, "kernel_size has 4 values, expected 1 to 3"),
    ("fold", {"output_size": (3,) * 4}, "output_size has 4 values, expected 1 to 3"),
    ("col2im", {"input": zeros((2, 15, 4))}, "input has 15 rows, expected a multiple of the window's 4 taps"),
    ("col2im", {"input": zeros((2, 16, 5))},
     "input has 5 columns, expected one for each of the window's 4 positions"),
    ("max_pool2d", {"padding": 2},
     "padding of axis 0 is (2, 2), expected less than the window, dilation * (kernel - 1) + 1 = 2"),
    ("max_pool2d", {"ceil_mode": 1}, "ceil_mode is 1, expected True or False"),
    ("max_pool2d_backward", {"indices": np.full((2, 2, 4, 3), 30)},
     "indices hold 30, expected positions in the plane, [0, 30), or -1"),
    ("max_pool2d_backward", {"indices": np.full((2, 2, 4, 3), -2)},
     "indices hold -2, expected positions in the plane, [0, 30), or -1"),
    ("max_pool2d_backward", {"indices": zeros((2, 2, 4, 3))}, "indices has dtype float64, expected an integer dtype"),
    ("avg_pool2d", {"divisor_override": 0}, "divisor_override is 0, expected another number"),
    ("lp_pool2d", {"norm_type": 0}, "norm_type is 0.0, expected more than 0"),
    ("adaptive_avg_pool2d", {"output_size": 2.0}, "output_size is 2.0, expected an integer, None, or 2 of them"),
    ("adaptive_avg_pool2d", {"output_size": (2, 2**31)}, "output_size is 2147483648, expected at most 2147483647"),
    ("interpolate_backward", {"size": 2**31}, "size is 2147483648, expected at most 2147483647"),
    ("max_unpool2d", {"output_size": (9, 5)}, "output_size of axis 0 is 9, expected more than 4 and less than 8"),
    ("max_unpool2d", {"indices": np.full((2, 2, 3, 2), 30)},
     "indices hold 30, expected positions in the plane, [0, 30), or -1"),
    ("max_unpool2d", {"output_size": (2, 3, 6, 5)}, "output_size begins with (2, 3), expected (2, 2) as input does"),
    ("interpolate", {"mode": "linear"},
     "mode is 'linear', expected 'nearest', 'nearest-exact', 'bilinear', 'bicubic' or 'area' for 2-d images"),
    ("interpolate", {"antialias": True}, "antialias is True, expected False with mode 'nearest'"),
    ("interpolate", {"recompute_scale_factor": True}, "recompute_scale_factor is True, expected False with a size"),
    ("resample", {"axes": [AXIS]}, "axes are of sizes (3,), expected (3, 3) as those of input"),
    ("resample", {"axes": [AXIS, 3]}, "3 is among axes, expected only InterpolationAxis"),
    ("interpolate", {"size": None}, "got size None and scale_factor None, expected just one of them"),
    ("interpolate", {"size": None, "scale_factor": 0.1},
     "scale_factor is 0.1, which makes (3, 3) to (0, 0), expected at least 1"),
    ("interpolate", {"align_corners": True}, "align_corners is True, expected None with mode 'nearest'"),
    ("batch_norm", {"input": zeros((1, 4, 1, 1)), "residual": None},
     "input has shape (1, 4, 1, 1), expected more than one value per channel"),
    ("batch_norm", {"training": False, "running_mean": None, "running_var": None},
     "running_mean and running_var are None, expected arrays to normalise by"),
    ("batch_norm", {"running_var": None}, "got one of running_mean and running_var, expected both or none"),
    ("batch_norm", {"eps": -1}, "eps is -1.0, expected a finite number of at least 0.0"),
    ("batch_norm", {"eps": 0}, "eps is 0, expected more than 0 in training"),
    ("batch_norm", {"momentum": math.nan}, "momentum is nan, expected a finite number"),
    ("batch_norm_backward", {"mean": None}, "got one of mean and rstd, expected both or none"),
    ("instance_norm", {"input": zeros((2, 4, 1)), "residual": None},
     "input has shape (2, 4, 1), expected more than one value per channel"),
    ("layer_norm", {"normalized_shape": (4, 3)},
     "input has shape (2, 4, 3, 3), expected it to end in normalized_shape = (4, 3)"),
    ("layer_norm", {"normalized_shape": ()}, "normalized_shape is empty, expected at least one axis"),
    ("group_norm", {"num_groups": 3},
     "input has shape (2, 4, 3, 3), expected (N, C, *space) with C a multiple of num_groups = 3"),
    ("group_norm", {"input": zeros((1, 4, 1)), "num_groups": 4, "residual": None},
     "input has shape (1, 4, 1), expected more than one value per group"),
    ("linear", {"weight": zeros((4, 2))},
     "input has shape (2, 3), expected (*, 2) as weight (OUT, IN) has shape (4, 2)"),
    ("linear", {"weight": zeros((0, 3)), "bias": None}, "weight has shape (0, 3), expected sizes of at least 1"),
    ("softmax", {"input": zeros(())}, "input has 0 dimensions, expected at least 1"),
    ("softmax", {"dim": 4}, "dim is 4, expected less than input's 4 dimensions"),
    ("softmax", {"dim": -5}, "dim is -5, expected at least -4"),
    ("cross_entropy", {"target": np.array([0, 1, 4])}, "target holds 4, expected classes in [0, 4)"),
    ("cross_entropy", {"target": zeros((3, 4), "f4")},
     "target has dtype float32, expected an integer dtype for classes, or float64 for probabilities"),
    ("cross_entropy", {"reduction": "max"}, "reduction is 'max', expected 'mean', 'sum' or 'none'"),
    ("dropout", {"p": 1.5}, "p is 1.5, expected a finite number in [0.0, 1.0]"),
    ("dropout_backward", {"mask": None, "rng": None},
     "mask is None, expected the forward's, or a seed as rng to draw it again"),
    ("pad", {"pad": (3, 0), "mode": "reflect"}, "pad of axis 3 is (3, 0), expected at most 2 with mode 'reflect'"),
    ("pad", {"value": 1.0, "mode": "reflect"}, "value is 1.0, expected None with mode 'reflect'"),
    ("pad", {"pad": (-4, 0)}, "pad of axis 3 is (-4, 0), expected to leave some of its 3 values"),
    ("pad", {"input": zeros(3, np.uint8), "value": 256}, "value is 256, expected a number that uint8 holds"),
    ("locally_connected2d", {"weight": zeros((3, 2, 3, 3))},
     "weight has 4 dimensions, expected 6 (OC, OH, OW, C, KH, KW)"),
    ("locally_connected2d", {"weight": zeros((4, 4, 3, 1, 2, 2))},
     "input has shape (2, 2, 6, 5), expected (N, C, H, W) with C = 1, for weight (OC, OH, OW, C, KH, KW) has shape "
     "(4, 4, 3, 1, 2, 2)"),
    ("locally_connected2d", {"bias": zeros(4)}, "bias has shape (4,), expected (4, 4, 3)"),
    ("im2col", {"input": zeros(5)}, "input has 1 dimensions, expected (N, C, *space) or (C, *space)"),
    ("col2im", {"input": zeros((1, 2, 16, 4))},
     "input has 4 dimensions, expected 3 (N, C * prod(kernel), L) or 2 (C * prod(kernel), L)"),
    ("max_pool2d", {"input": zeros((2, 2, 6, 5), complex)},
     "input has dtype complex128, expected floating-point (float16, bfloat16, float32, float64) or integer"),
    ("max_pool2d_backward", {"indices": np.zeros((2, 2), int)}, "indices has shape (2, 2), expected (2, 2, 4, 3)"),
    ("adaptive_max_pool2d_backward", {"indices": np.full((2, 2, 2, 2), 30)},
     "indices hold 30, expected positions in the plane, [0, 30), or -1"),
    ("avg_pool2d", {"divisor_override": math.nan}, "divisor_override is nan, expected a finite number"),
    ("avg_pool2d", {"input": zeros((2, 2, 6, 5), int)},
     "input has dtype int64, expected floating-point (float16, bfloat16, float32, float64) or complex"),
    ("lp_pool2d", {"input": zeros((2, 2, 6, 5), int)},
     "input has dtype int64, expected floating-point (float16, bfloat16, float32, float64)"),
    ("lp_pool2d", {"norm_type": math.inf}, "norm_type is inf, expected a finite number"),
    ("max_unpool2d", {"indices": np.full((2, 2, 3, 2), -2)},
     "indices hold -2, expected positions in the plane, [0, 30), or -1"),
    ("max_unpool2d", {"indices": np.full((2, 2, 3, 2), 2**63, np.uint64)},
     "indices hold 9223372036854775808, expected positions in the plane, [0, 30), or -1"),
    ("max_unpool1d", {"input": zeros((1, 1, 1)), "indices": np.zeros((1, 1, 1), int), "stride": 4, "padding": 1,
      "output_size": None},
     "output of axis 0 has size 0, expected at least 1"),
    ("interpolate", {"scale_factor": 2}, "got size 5 and scale_factor 2, expected just one of them"),
    ("interpolate", {"size": None, "scale_factor": -1},
     "scale_factor is -1.0, expected a finite number in [0.0, 2147483648.0]"),
    ("interpolate", {"size": None, "scale_factor": (2, 2**30)},
     "scale_factor makes axis 1 3221225472 long, expected at most 2147483647"),
    ("interpolate", {"input": zeros((3, 4))}, "input has 2 dimensions, expected 3 to 5 (N, C, *space)"),
    ("interpolate", {"input": zeros((1, 1, 2, 2), np.uint8), "mode": "bilinear"},
     "input has dtype uint8, expected floating-point (float16, bfloat16, float32, float64) or complex"),
    ("interpolate", {"input": zeros((1, 1, 2, 2), int), "mode": "area"},
     "input has dtype int64, expected floating-point (float16, bfloat16, float32, float64) or complex"),
    ("batch_norm", {"input": zeros(3), "residual": None}, "input has 1 dimensions, expected at least 2 (N, C, *space)"),
    ("batch_norm", {"activation": "swish"}, "activation is 'swish', expected 'none', 'relu', 'leaky_relu' or 'relu6'"),
    ("batch_norm", {"residual": zeros((2, 4, 3, 2))}, "residual has shape (2, 4, 3, 2), expected (2, 4, 3, 3)"),
    ("batch_norm", {"weight": zeros(4, int)},
     "input has dtype float64 and weight int64, expected one dtype for all: cast weight, "
     "weight.astype(numpy.float64)"),
    ("instance_norm", {"input": zeros((2, 4)), "residual": None},
     "input has 2 dimensions, expected at least 3 (N, C, *space)"),
    ("instance_norm", {"use_input_stats": False, "running_mean": None, "running_var": None},
     "running_mean and running_var are None, expected arrays to normalise by"),
    ("layer_norm", {"normalized_shape": (5, 2, 4, 3, 3)},
     "input has shape (2, 4, 3, 3), expected it to end in normalized_shape = (5, 2, 4, 3, 3)"),
    ("layer_norm", {"weight": zeros(2)}, "weight has shape (2,), expected (3, 3)"),
    ("rms_norm", {"weight": zeros(2)}, "weight has shape (2,), expected (3, 3)"),
    ("grid_sample", {"grid": zeros((2, 2, 3, 3))},
     "grid has shape (2, 2, 3, 3), expected (2, OH, OW, 2) for input of shape (2, 4, 3, 3)"),
    ("grid_sample", {"input": zeros((2, 4, 3))},
     "input has 3 dimensions, expected 4 (N, C, H, W) or 5 (N, C, D, H, W)"),
    ("grid_sample", {"mode": "cubic"}, "mode is 'cubic', expected 'bilinear', 'nearest' or 'bicubic' for 2-d images"),
    ("affine_grid", {"size": (2, 4, 3)}, "size is (2, 4, 3), expected 4 (N, C, OH, OW) or 5 (N, C, OD, OH, OW) sizes, "
     "of at least 1 but for N"),
    ("affine_grid", {"size": (3, 1, 2, 2)}, "theta has shape (2, 2, 3), expected (3, 2, 3) for size (3, 1, 2, 2)"),
    ("local_response_norm", {"size": 0}, "size is 0, expected at least 1"),
    ("local_response_norm", {"input": zeros((2, 3))}, "input has 2 dimensions, expected at least 3 (N, C, *space)"),
    ("rms_norm", {"eps": -1}, "eps is -1.0, expected a finite number of at least 0.0"),
    ("rms_norm_backward", {"rstd": zeros(5)}, "rstd has shape (5,), expected (2, 4)"),
    ("group_norm_backward", {"rstd": zeros(5)}, "rstd has shape (5,), expected (2, 2)"),
    ("linear", {"weight": zeros((4, 3, 1))}, "weight has 3 dimensions, expected 2 (OUT, IN) or 1 (IN)"),
    ("linear", {"input": zeros(())}, "input has shape (), expected (*, 3) as weight (OUT, IN) has shape (4, 3)"),
    ("linear", {"weight": zeros(3), "bias": zeros(1)}, "bias has shape (1,), expected ()"),
    ("gelu", {"approximate": "erf"}, "approximate is 'erf', expected 'none' or 'tanh'"),
    ("softmax", {"dim": None}, "dim is None, expected an axis of input"),
    ("softmax_backward", {"output": zeros(3)}, "output has shape (3,), expected (2, 4, 3, 3)"),
    ("cross_entropy", {"input": zeros(())}, "input has shape (), expected (N, C, *space) or (C,) of at least 1"),
    ("cross_entropy", {"target": np.array([0, 1, -1])}, "target holds -1, expected classes in [0, 4)"),
    ("cross_entropy_backward", {"grad_output": zeros(3)}, "grad_output has shape (3,), expected ()"),
    ("cross_entropy_backward", {"grad_output": 1.0, "reduction": "none"}, "grad_output has shape (), expected (3,)"),
    ("binary_cross_entropy_with_logits", {"weight": zeros((1, 3, 4))},
     "weight has shape (1, 3, 4), expected one that broadcasts to (3, 4)"),
    ("binary_cross_entropy_with_logits", {"pos_weight": zeros(3)},
     "pos_weight has shape (3,), expected one that broadcasts to (3, 4)"),
    ("binary_cross_entropy_with_logits_backward", {"grad_output": zeros((3, 4))},
     "grad_output has shape (3, 4), expected ()"),
    ("dropout", {"rng": 1.5}, "rng is 1.5, expected None, a seed or a Generator"),
    ("dropout_backward", {"mask": None, "rng": np.random.default_rng(1)},
     "mask is None, expected the forward's, or a seed as rng to draw it again"),
    ("dropout_backward", {"mask": zeros((4, 2, 3, 3), bool)}, "mask has shape (4, 2, 3, 3), expected (2, 4, 3, 3)"),
    ("dropout_backward", {"mask": np.zeros((2, 4, 3, 3), int)}, "mask has dtype int64, expected bool"),
    ("pad", {"pad": (1,)}, "pad has 1 values, expected two for each of at most 4 axes"),
    ("pad", {"pad": 1},
     "pad is 1, expected a sequence of integers: low and high of the last axis, then of the one before, and so on"),
    ("pad", {"pad": (1, 0.5)},
     "an item of pad is 0.5, expected an integer; pad is a sequence of integers: low and high of the last axis, then "
     "of the one before, and so on"),
    ("pad", {"mode": "edge"}, "mode is 'edge', expected 'constant', 'reflect', 'replicate', 'circular' or 'symmetric'"),
    ("pad", {"pad": (0, 0, 0, 4), "mode": "circular"},
     "pad of axis 2 is (0, 4), expected at most 3 with mode 'circular'"),
    ("pad", {"pad": (3, -1), "mode": "symmetric"},
     "pad of axis 3 is (3, -1), expected at most 2 with mode 'symmetric'"),
    ("pad", {"value": "1"}, "value is '1', expected a number of dtype float64"),
    ("pad", {"input": zeros(3, int), "value": 0.5}, "value is 0.5, expected a number that int64 holds"),
    ("pad", {"input": zeros(3, np.int32), "value": math.nan}, "value is nan, expected a number that int32 holds"),
]  # fmt: skip


@pytest.mark.table(len(MESSAGES))
@pytest.mark.parametrize(("name", "others", "message"), MESSAGES)
def test_messages(backend: ArrayBackend, name: str, others: dict[str, Any], message: str) -> None:
    if " hold" in message and not backend.primitives.host:
        pytest.skip("values on a device are not looked at, that would wait for it")
    for called in {name, name.removesuffix("_backward") + "_backward"}:
        with pytest.raises((TypeError, ValueError)) as caught:
            backend.run(getattr(F, called), **fresh(called, **others))
        said = str(caught.value).removeprefix(f"{said_name(called)}: ")
        # a gradient that fits the changed input no more may be told of first
        assert said == message or (called != name and re.match("grad_output has (shape|dtype)|.* for all: cast", said))


def of(dtype: str, *shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, dtype)


FILTERS = of("f4", 4, 3, 3, 3)
ADVICE: list[tuple[str, dict[str, Any], str]] = [
    ("conv2d", {"input": of("u1", 1, 3, 8, 8), "weight": FILTERS},
     "input has dtype uint8 and weight float32, expected one dtype for both: cast input, input.astype(numpy.float32)"),
    ("conv2d", {"input": of("f8", 1, 3, 8, 8), "weight": FILTERS},
     "input has dtype float64 and weight float32, expected one dtype for both: cast input, "
     "input.astype(numpy.float32)"),
    ("conv2d", {"input": of("f4", 1, 3, 8, 8), "weight": FILTERS, "bias": of("f8", 4)},
     "input has dtype float32 and bias float64, expected one dtype for all: cast bias, bias.astype(numpy.float32)"),
    ("conv2d", {"input": of("f4", 1, 3, 8, 8), "weight": FILTERS.astype(ml_dtypes.bfloat16)},
     "input has dtype float32 and weight bfloat16, expected one dtype for both: cast input, "
     "input.astype(ml_dtypes.bfloat16)"),
    ("conv2d", {"input": of("c8", 1, 3, 8, 8), "weight": FILTERS},
     "input has dtype complex64 and weight float32, expected one dtype for both: cast weight, "
     "weight.astype(numpy.complex64)"),
    ("conv2d", {"input": of("i1", 1, 3, 8, 8), "weight": of("i2", 4, 3, 3, 3)},
     "input has dtype int8 and weight int16, expected one dtype for both: cast input, input.astype(numpy.int16)"),
    ("conv2d_backward", {"grad_output": of("f8", 1, 4, 6, 6), "input": of("f4", 1, 3, 8, 8), "weight": FILTERS},
     "grad_output has dtype float64 and input float32, expected one dtype for all: cast grad_output, "
     "grad_output.astype(numpy.float32)"),
    ("relu_backward", {"grad_output": of("f4", 2, 3), "input": of("c8", 2, 3)},
     "grad_output has dtype float32 and input complex64, expected one dtype for both: cast input, "
     "input.astype(numpy.float32)"),
    ("batch_norm", {"input": of("f8", 2, 3, 4, 4), "running_mean": of("f4", 3), "running_var": of("f4", 3)},
     "input has dtype float64 and running_mean float32, expected one dtype for all: cast input, "
     "input.astype(numpy.float32)"),
    ("conv2d", {"input": of("f4", 2, 8, 8, 3), "weight": FILTERS},
     "input has shape (2, 8, 8, 3), expected (N, C, H, W) with C = 3, for weight (OC, C / groups, KH, KW) has shape "
     "(4, 3, 3, 3)"),
    ("conv2d", {"input": of("f4", 8, 8, 3), "weight": FILTERS},
     "input has shape (8, 8, 3), expected (C, H, W) with C = 3, for weight (OC, C / groups, KH, KW) has shape "
     "(4, 3, 3, 3)"),
    ("conv2d", {"input": of("f4", 2, 8, 8, 3), "weight": of("f4", 3, 1, 3, 3), "groups": 3},
     "input has shape (2, 8, 8, 3), expected (N, C, H, W) with C a multiple of groups = 3"),
    ("batch_norm", {"input": of("f4", 2, 8, 8, 3), "running_mean": of("f4", 3), "running_var": of("f4", 3)},
     "running_mean has shape (3,), expected (8,), a value for each channel of input (N, C, *) of shape (2, 8, 8, 3)"),
    ("cross_entropy", {"input": of("f4", 2, 3), "target": of("f4", 2)},
     "target has shape (2,), expected (2, 3) as input for probabilities, float32; classes are of an integer dtype, "
     "such as target.astype(numpy.int64)"),
    ("cross_entropy", {"input": of("f4", 2, 8, 8, 3), "target": of("i8", 2, 8, 8)},
     "target has shape (2, 8, 8), expected (2, 8, 3), a class for each place of input (N, C, *space) of shape "
     "(2, 8, 8, 3)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "message"), ADVICE)
def test_messages_say_which_array_to_change_and_where_its_channels_are(
    backend: ArrayBackend, name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        backend.run(getattr(F, name), **arguments)
    assert str(caught.value) == f"{name}: {message}"


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_a_refused_call_leaves_running_statistics_alone(backend: ArrayBackend, name: str) -> None:
    wrong = {"eps": -1.0, "momentum": math.nan, "bias": zeros(3), "running_var": zeros(3), "return_statistics": 1}
    for parameter, value in wrong.items():
        arguments = fresh(name, **{parameter: value})
        with pytest.raises((TypeError, ValueError)):
            backend.run(getattr(F, name), **arguments)
        assert (arguments["running_mean"] == 0).all()


# --- Anything at all ----------------------------------------------------------------------------------------------

LITTLE = st.integers(-3, 6)
HUGE = [2**31, -(2**31), 2**63, -(2**70), 10**400]
WORDS = ["same", "same_lower", "valid", "constant", "reflect", "nearest", "bilinear", "area", "mean", "none"]
SCALARS = st.one_of(
    LITTLE, st.floats(-3, 6), st.none(), st.booleans(), st.sampled_from(HUGE), st.sampled_from([math.nan, math.inf])
)
NESTED = st.recursive(SCALARS, lambda items: st.lists(items, max_size=4).map(tuple), max_leaves=6)
ANYTHING = st.one_of(LITTLE, NESTED, st.sampled_from(WORDS), st.text(max_size=2), st.sampled_from(NO_NUMBERS))
DTYPES = st.sampled_from(["f8", "f8", "f4", "f2", "i8", "u1", "c16", "?", "S1", object, ml_dtypes.bfloat16])
SHAPES = st.lists(st.integers(0, 4), max_size=5)
ANY_ARRAY = st.builds(lambda shape, dtype: np.ones(shape).astype(dtype), SHAPES, DTYPES)


@examples(600)
@given(data=st.data())
def test_any_arguments_give_a_result_or_a_refusal(backend: ArrayBackend, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(CALLS)))
    spoiled = data.draw(st.lists(st.sampled_from(parameters_of(name)), min_size=1, max_size=3, unique=True))
    others = {
        parameter: data.draw(ANY_ARRAY | ANYTHING if parameter in ARRAYS | {"out"} else ANYTHING, label=parameter)
        for parameter in spoiled
    }
    kinds = {value.dtype.kind for value in others.values() if isinstance(value, np.ndarray)}
    assume(backend.name != "cuda" or not kinds & set("SUMm"))  # which CuPy has no arrays of
    assert fault(backend, name, None, **fresh(name, **others)) in ("", "passes")
