"""Numbers as arguments: Python's, an array library's scalars and its arrays without axes are one and the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from array_backends import ArrayBackend
from calls import ARRAYS, CALLS, fresh

import gpucnn
import gpucnn.functional as F
from gpucnn import geometry
from gpucnn.geometry.arguments import boolean, integer, number

NUMBERS: dict[str, int | float] = {
    "eps": 0.125, "label_smoothing": 0.25, "norm_type": 3.0, "divisor_override": 3.0, "scale_factor": 2.0, "value": 0.5,
    "ignore_index": 1, "rng": 1, "dim": 1,
}  # fmt: skip
"""Values for arguments of `CALLS` that every form holds exactly, and that change the result; others are rounded."""

INTEGER_FORMS: dict[str, Callable[[int], Any]] = {
    "int8": np.int8,
    "uint64": lambda value: np.uint64(value) if value >= 0 else np.int64(value),
    "array of int32": lambda value: np.array(value, np.int32),
}
FLOAT_FORMS: dict[str, Callable[[float], Any]] = {
    "float16": np.float16,
    "float32": np.float32,
    "float64": np.float64,
    "bfloat16": ml_dtypes.bfloat16,
    "array of float64": lambda value: np.array(value, np.float64),
    "array of bfloat16": lambda value: np.array(value, ml_dtypes.bfloat16),
}
FLAG_FORMS: dict[str, Callable[[bool], Any]] = {"bool": np.bool_, "array of bool": np.array}


def forms_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Other forms of an argument: of a number, or of all numbers in a tuple."""
    if isinstance(value, tuple):
        for name in INTEGER_FORMS:
            yield f"{name} each", tuple(_in_form(name, item) for item in value)
        yield "array", np.array(value)
        return
    forms = FLAG_FORMS if isinstance(value, bool) else INTEGER_FORMS if isinstance(value, int) else FLOAT_FORMS
    for name, form in forms.items():  # type: ignore[attr-defined]
        yield name, form(value)


def _in_form(name: str, value: Any) -> Any:
    return INTEGER_FORMS[name](value) if isinstance(value, int) else tuple(_in_form(name, item) for item in value)


def _rounded(value: Any) -> Any:
    """The number, where it is no integer, as one that 16-bit floats hold."""
    return float(ml_dtypes.bfloat16(value)) if isinstance(value, float) else value


def parameters_of(name: str) -> dict[str, Any]:
    """The arguments of a call that are numbers, and what is given for each."""
    given = {key: NUMBERS.get(key, _rounded(value)) for key, value in CALLS[name].items() if key not in ARRAYS}
    if "bed_of_nails" in name:
        given["scale_factor"] = 2
    return {key: value for key, value in given.items() if isinstance(value, int | float | tuple)}


def single(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with arrays of float32, in which a wider number would show."""
    return {
        key: value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value
        for key, value in arguments.items()
    }


def described(backend: ArrayBackend, name: str, arguments: dict[str, Any]) -> list[Any]:
    """Type, dtype, shape and bits of each result of a call and of each statistic that it moved."""
    arrays = {key: backend.asarray(value) for key, value in arguments.items() if key in ARRAYS and value is not None}
    result = getattr(F, name)(**{**arguments, **arrays})
    results = result if isinstance(result, tuple) else (result,)
    moved = [arrays[key] for key in ("running_mean", "running_var") if key in arrays]
    return [
        None if array is None else (type(array), array.dtype, array.shape, backend.asnumpy(array).tobytes())
        for array in (*results, *moved)
    ]


def settings_of(name: str) -> list[dict[str, Any]]:
    """What else to give a call, so that each of its numbers is used."""
    if name.startswith(("batch_norm", "instance_norm")):
        flag = "training" if name.startswith("batch_norm") else "use_input_stats"
        handed = {"mean": None, "rstd": None} if name.endswith("_backward") else {"return_statistics": True}
        return [{flag: True, **handed}, {flag: False, **handed}]
    if name.startswith("rms_norm"):
        return [{"eps": None, "rstd": None} if name.endswith("_backward") else {"eps": None, "return_statistics": True}]
    if name.startswith(("layer_norm", "group_norm")):
        return [{"mean": None, "rstd": None} if name.endswith("_backward") else {"return_statistics": True}]
    if name.startswith("interpolate"):
        grad = {"grad_output": np.ones((2, 4, 6, 6))} if name.endswith("_backward") else {}
        linear = {"size": None, "scale_factor": 2.0, "mode": "bilinear", "align_corners": False, **grad}
        return [{"scale_factor": None}, linear]
    return [{"mask": None}] if name == "dropout_backward" else [{}]


@pytest.mark.parametrize("name", CALLS)
def test_numbers_in_other_forms_give_the_same_bits(backend: ArrayBackend, name: str) -> None:
    for others in settings_of(name):
        parameters = {key: value for key, value in {**parameters_of(name), **others}.items() if key not in ARRAYS}
        parameters = {key: value for key, value in parameters.items() if isinstance(value, int | float | tuple)}
        plain = {**single(fresh(name, **parameters)), **single(others)}
        expected = described(backend, name, _copied(plain))
        for key, value in parameters.items():
            for form, other in forms_of(value):
                actual = described(backend, name, {**_copied(plain), key: other})
                assert actual == expected, f"{name}({key}={other!r}), {form}"


CHANGING: list[tuple[str, str, Any, Any]] = [
    ("max_pool2d", "kernel_size", 2, (3, 2)),
    ("avg_pool2d", "stride", 1, 2),
    ("conv2d", "padding", 0, (1, 1)),
    ("im2col", "dilation", 1, 2),
    ("layer_norm", "eps", 0.125, 0.5),
    ("batch_norm", "momentum", 0.125, 0.5),
    ("instance_norm", "use_input_stats", False, True),
]


@pytest.mark.parametrize(("name", "key", "before", "after"), CHANGING)
@pytest.mark.parametrize("kind", ["NumPy's", "its own"])
def test_an_array_that_stands_for_a_number_is_read_in_each_call(
    backend: ArrayBackend, name: str, key: str, before: Any, after: Any, kind: str
) -> None:
    """Later calls of a form are replayed, and forms have no values of arrays."""
    plain = single(fresh(name))
    for value in (before, before, before, after):
        number = backend.asarray(np.array(value)) if kind == "its own" else np.array(value)
        expected = described(backend, name, {**_copied(plain), key: value})
        try:
            actual = described(backend, name, {**_copied(plain), key: number})
        except TypeError:
            assert kind == "its own"  # a device's array is no number everywhere
            return
        assert actual == expected


def _copied(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in arguments.items()}


def test_a_gradient_that_is_a_number(backend: ArrayBackend) -> None:
    arguments = single(fresh("cross_entropy"))
    arguments |= {key: backend.asarray(value) for key, value in arguments.items() if key in ARRAYS}
    expected = backend.asnumpy(F.cross_entropy_backward(0.5, **arguments)[0])
    for form in ("float16", "float32", "float64", "bfloat16"):
        actual = F.cross_entropy_backward(FLOAT_FORMS[form](0.5), **arguments)[0]
        np.testing.assert_array_equal(backend.asnumpy(actual), expected, strict=True)


# --- Geometry: its results are Python's numbers ---------------------------------------------------------------------

GEOMETRY: dict[str, dict[str, Any]] = {
    "conv_output_size": {"input_size": 9, "kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2},
    "pool_output_size": {
        "input_size": 9, "kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": True
    },
    "conv_transpose_output_size": {
        "input_size": 9, "kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "dilation": 1
    },
    "max_unpool_output_size": {"input_size": 9, "kernel_size": 3, "stride": 2, "padding": 1},
    "same_padding": {"input_size": 9, "kernel_size": 4, "stride": 2, "dilation": 1, "lower": True},
    "conv_parameters": {
        "in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2, "bias": True, "rank": 2
    },
    "locally_connected_parameters": {
        "in_channels": 4, "out_channels": 6, "kernel_size": 3, "output_size": 5, "bias": True, "rank": 2
    },
    "conv_multiply_adds": {
        "in_channels": 4, "out_channels": 6, "input_size": 9, "kernel_size": 3, "stride": 2, "padding": 1,
        "dilation": 1, "groups": 2, "rank": 2,
    },
    "im2col_shapes": {
        "in_channels": 4, "out_channels": 6, "input_size": 9, "kernel_size": 3, "stride": 2, "padding": 1,
        "dilation": 1, "groups": 2, "rank": 2,
    },
    "Window": {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2},
    "TransposedWindow": {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2},
    "resize_axis": {
        "size": 9, "out": 4, "scale": 0.5, "cubic_coeff_a": -0.5, "exclude_outside": True, "antialias": True,
    },
}  # fmt: skip


def typed(value: Any) -> Any:
    """A value with the types of all that it holds."""
    return [typed(item) for item in value] if isinstance(value, tuple) else (type(value), value)


def in_geometry(name: str, arguments: dict[str, Any]) -> Any:
    result = getattr(geometry, name)(**arguments)
    return typed(geometry.receptive_field([result, result]) if name.endswith("Window") else result)


@pytest.mark.parametrize("name", GEOMETRY)
def test_numbers_in_other_forms_give_the_same_geometry(name: str) -> None:
    expected = in_geometry(name, GEOMETRY[name])
    for key, value in GEOMETRY[name].items():
        for form, other in forms_of(value):
            assert in_geometry(name, {**GEOMETRY[name], key: other}) == expected, f"{name}({key}={other!r}), {form}"


def test_every_function_of_geometry_is_in_the_table() -> None:
    functions = {name for name in geometry.__all__ if name[0].islower()}
    assert functions - set(GEOMETRY) == {"receptive_field"}  # which the windows are given to


# --- The rest of the package ----------------------------------------------------------------------------------------


def test_the_number_of_threads() -> None:
    before = gpucnn.get_num_threads()
    for _, form in forms_of(1):
        gpucnn.set_num_threads(form)
        assert type(gpucnn.get_num_threads()) is int
    gpucnn.set_num_threads(before)


def test_shapes_to_warm_up_for() -> None:
    for _, shape in forms_of((2, 3)):
        assert gpucnn.warmup([("relu", {"input": shape})], backend="numpy", progress=False).cases == 1


# --- What reads them ------------------------------------------------------------------------------------------------


class Scalar:
    """An array of another library without axes, as PyTorch's are: its booleans are integers too."""

    ndim = 0

    def __init__(self, value: Any, dtype: str) -> None:
        self.value, self.dtype = value, dtype

    def item(self) -> Any:
        return self.value

    def __index__(self) -> int:
        return int(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)


@pytest.mark.parametrize("value", [True, np.True_, np.array(True), Scalar(True, "torch.bool"), Scalar(True, "bool")])
def test_booleans_are_no_numbers(value: Any) -> None:
    for read in (integer, number):
        with pytest.raises(TypeError, match=r"^op: size is .*, expected"):
            read("op", "size", value, 0)
    assert boolean("op", "flag", value) is True


@pytest.mark.parametrize("value", [1, np.int8(1), np.array(1), Scalar(1, "torch.int64"), 1.0, np.float32(1), "True"])
def test_numbers_are_no_booleans(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^op: flag is .*, expected True or False$"):
        boolean("op", "flag", value)


def test_numbers_are_read_into_pythons_own() -> None:
    for value in (*(form(2) for form in INTEGER_FORMS.values()), Scalar(2, "torch.int64")):
        read = integer("op", "size", value, 0)
        assert (type(read), read) == (int, 2)
    for value in (*(form(0.5) for form in FLOAT_FORMS.values()), np.longdouble(0.5), Scalar(0.5, "torch.float32")):
        read_number = number("op", "eps", value)
        assert (type(read_number), read_number) == (float, 0.5)


@pytest.mark.parametrize(
    "value", [np.ones(1), np.ones((1, 1), int), np.array("1"), np.complex64(1), np.datetime64(1, "s")]
)
def test_other_arrays_are_no_numbers(value: Any) -> None:
    for read in (integer, number):
        with pytest.raises(TypeError, match=r"^op: size is .*, expected"):
            read("op", "size", value, 0)
