"""Kinds of arrays and layouts of memory: what is taken, how it comes back, and what is said of the rest."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from array_backends import ArrayBackend
from calls import ARRAYS, CALLS, fresh
from tolerances import assert_close

import gpucnn
import gpucnn.functional as F
from gpucnn import backends, simulator
from gpucnn.backends import available, backend_of, bfloat16, receive
from gpucnn.backends.cpu import builds
from gpucnn.backends.cuda import CudaBackend
from gpucnn.backends.cuda.device import cupy_runtime
from gpucnn.backends.numpy import NumpyBackend

Array = np.ndarray[Any, Any]
RUNNING = ("running_mean", "running_var")  # written to


def each_array(arguments: dict[str, Any], change: Callable[[Array], Any], but: tuple[str, ...] = ()) -> dict[str, Any]:
    """The arguments with each array changed."""
    return {
        key: change(value) if key in ARRAYS and value is not None and key not in but else value
        for key, value in arguments.items()
    }


def results_of(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def assert_same(actual: Any, expected: Any, close: bool = False) -> None:
    """Raise unless two results are equal, or close, item by item, with None in the same places."""
    assert isinstance(actual, tuple) == isinstance(expected, tuple)
    for one, other in zip(results_of(actual), results_of(expected), strict=True):
        assert (one is None) == (other is None)
        if one is not None and close:
            assert_close(one, other)
        elif one is not None:
            np.testing.assert_array_equal(one, other, strict=True)


# --- PyTorch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_tensors_in_tensors_out(torch: Any, name: str) -> None:
    operation = getattr(F, name)
    arguments = each_array(fresh(name), torch.from_numpy)
    result = operation(**arguments)
    assert all(item is None or type(item) is torch.Tensor for item in results_of(result))
    numpy_again = tuple(None if item is None else item.numpy() for item in results_of(result))
    expected = operation(**fresh(name))
    assert_same(numpy_again if isinstance(result, tuple) else numpy_again[0], expected)


@pytest.mark.parametrize(
    "name", ["max_pool2d", "batch_norm", "instance_norm", "layer_norm", "rms_norm", "group_norm", "dropout"]
)
def test_what_the_forward_hands_over_is_of_tensors_too(torch: Any, name: str) -> None:
    more = {"max_pool2d": "return_indices", "dropout": "return_mask"}.get(name, "return_statistics")
    results = getattr(F, name)(**each_array(fresh(name, **{more: True}), torch.from_numpy))
    assert len(results) == len(getattr(F, name)(**fresh(name, **{more: True})))
    assert all(type(result) is torch.Tensor for result in results)


def test_tensors_are_taken_and_given_back_without_a_copy(torch: Any) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    _, (array, nothing), give_back = receive("op", {"x": tensor, "none": None})
    assert nothing is None
    array[0, 0] = 7
    assert tensor[0, 0] == 7
    assert array.ctypes.data == tensor.data_ptr()
    result = np.arange(3.0)
    (returned, absent), word = give_back(((result, None), "word"))
    assert returned.data_ptr() == result.ctypes.data
    assert absent is None
    assert word == "word"


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_running_statistics_of_tensors_are_updated_in_place(torch: Any, name: str) -> None:
    arrays, tensors = fresh(name), each_array(fresh(name), torch.from_numpy)
    mean, variance = (tensors[statistic] for statistic in RUNNING)
    getattr(F, name)(**arrays)
    getattr(F, name)(**tensors)
    assert mean.abs().max() > 0
    np.testing.assert_array_equal(mean.numpy(), arrays["running_mean"])
    np.testing.assert_array_equal(variance.numpy(), arrays["running_var"])


def test_channels_last_tensors_come_back_channels_last(torch: Any) -> None:
    x = torch.randn(2, 3, 6, 5).to(memory_format=torch.channels_last)
    y = F.conv2d(x, torch.randn(4, 3, 3, 3))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "complex64", "int64", "uint8"])
def test_dtypes_of_tensors_stay(torch: Any, dtype: str) -> None:
    x = torch.ones(1, 2, 4, 4, dtype=getattr(torch, dtype))
    assert F.im2col(x, 2).dtype == x.dtype


def test_tensors_without_axes_or_elements(torch: Any) -> None:
    assert F.relu(torch.tensor(-1.5)).shape == ()
    assert F.cross_entropy(torch.randn(3, 4), torch.tensor([0, 1, 2])).shape == ()
    assert F.conv2d(torch.zeros(0, 1, 4, 4), torch.ones(2, 1, 2, 2)).shape == (0, 2, 3, 3)


def test_tensors_as_sizes_and_numbers(torch: Any) -> None:
    x = np.ones((1, 1, 4, 4))
    assert F.max_pool2d(x, torch.tensor(2), stride=torch.tensor([2, 1])).shape == (1, 1, 2, 3)
    assert F.interpolate(x, scale_factor=torch.tensor(2.0)).shape == (1, 1, 8, 8)


def test_subclasses_of_tensors_are_tensors(torch: Any) -> None:
    class Named(torch.Tensor):  # type: ignore[misc, name-defined]
        pass

    x = torch.ones(1, 1, 3, 3)
    assert F.conv2d(x.as_subclass(Named), x).item() == 9
    assert F.relu(torch.nn.Parameter(x, requires_grad=False)).equal(x)


def test_tensors_that_cannot_be_shared(torch: Any) -> None:
    x = torch.ones(1, 1, 3, 3)
    complex_x = torch.view_as_complex(torch.ones(1, 1, 3, 3, 2))
    for wrong, said in {
        torch.ones(1, 1, 3, 3, requires_grad=True): "requires grad, expected tensor.detach()",
        torch.nn.Parameter(x): "the operations of gpucnn.torch are those that it follows",
        x.to("meta"): "expected an array that DLPack can share",
        x.to_sparse(): "expected an array that DLPack can share",
        complex_x.conj(): "conjugate bit",
        complex_x.conj().imag: "conv2d: input of torch is a negated view, expected tensor.resolve_neg()",
    }.items():
        with pytest.raises(TypeError, match=re.escape(said)) as caught:
            F.conv2d(wrong, x)
        assert str(caught.value).startswith("conv2d: input of torch ")
    assert F.relu(complex_x.conj().imag.resolve_neg()).max() == 0


def test_tensors_of_several_dtypes_are_told_apart_in_their_own_words(torch: Any) -> None:
    said = "input has dtype uint8 and weight float32, expected one dtype for both: cast input, input.to(torch.float32)"
    with pytest.raises(TypeError, match=f"^conv2d: {re.escape(said)}$"):
        F.conv2d(torch.ones(1, 1, 3, 3, dtype=torch.uint8), torch.ones(1, 1, 3, 3))


@pytest.mark.parametrize("name", CALLS)
def test_tensors_of_bfloat16(torch: Any, name: str) -> None:
    def half(array: Array) -> Array:
        return array.astype(ml_dtypes.bfloat16) if array.dtype.kind == "f" else array

    def half_tensor(array: Array) -> Any:
        return torch.from_numpy(array).to(torch.bfloat16 if array.dtype.kind == "f" else None)

    halves, tensors = each_array(fresh(name), half), each_array(fresh(name), half_tensor)
    for result, expected in zip(
        results_of(getattr(F, name)(**tensors)), results_of(getattr(F, name)(**halves)), strict=True
    ):
        assert (result is None) == (expected is None)
        if result is not None and expected.dtype == ml_dtypes.bfloat16:
            assert result.dtype == torch.bfloat16
            np.testing.assert_array_equal(result.float().numpy(), expected.astype(np.float32))


def test_tensors_of_bfloat16_are_not_copied(torch: Any) -> None:
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T
    _, (array,), give_back = receive("op", {"x": tensor})
    assert (array.dtype, array.strides, array.ctypes.data) == (ml_dtypes.bfloat16, (2, 6), tensor.data_ptr())
    array[2, 1] = 7
    assert tensor[2, 1] == 7
    returned = give_back(array)
    assert (returned.dtype, returned.stride(), returned.data_ptr()) == (torch.bfloat16, (1, 3), tensor.data_ptr())


def test_tensors_of_any_strides(torch: Any) -> None:
    x, w = torch.randn(2, 3, 9, 8, dtype=torch.float64), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    for view in (x[..., ::2, 1:], x.transpose(2, 3), x[:1].expand(2, 3, 9, 8), x[:, :, :0].new_zeros(0, 3, 4, 4)):
        assert F.conv2d(view, w).equal(F.conv2d(view.clone(memory_format=torch.contiguous_format), w))


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


# --- JAX ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_arrays_of_jax_in_and_out(jax: Any, name: str) -> None:
    """But for running statistics, which are written to."""
    singles = each_array(fresh(name), lambda array: array.astype(np.float32) if array.dtype.kind == "f" else array)
    if "running_mean" in singles:
        singles.update(dict.fromkeys(RUNNING))
    result = getattr(F, name)(**each_array(singles, jax.numpy.asarray))
    expected = getattr(F, name)(**singles)
    for one, other in zip(results_of(result), results_of(expected), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert isinstance(one, jax.Array)
            np.testing.assert_array_equal(np.asarray(one), other)


def test_arrays_of_jax_are_taken_without_a_copy_and_never_written_to(jax: Any) -> None:
    for dtype in (jax.numpy.float32, jax.numpy.bfloat16):
        x = jax.numpy.arange(6, dtype=dtype).reshape(2, 3)
        _, (array,), give_back = receive("op", {"x": x})
        assert array.ctypes.data == x.unsafe_buffer_pointer()
        assert not array.flags.writeable
        assert (give_back(array) == x).all()
    ones = jax.numpy.ones((2, 1, 3, 3))
    with pytest.raises(ValueError, match=r"^batch_norm: running_mean is read-only"):
        F.batch_norm(ones, ones[0, 0, 0, :1], ones[0, 0, 0, :1], training=True)
    with pytest.raises(ValueError, match=r"^conv2d: out is read-only"):
        F.conv2d(ones, ones[:1], out=ones[:, :, :1, :1])


def test_large_results_for_jax_are_not_copied(jax: Any) -> None:
    result = F.conv2d(np.ones((4, 1, 300, 300), np.float32), np.ones((1, 1, 1, 1), np.float32))
    give_back = receive("op", {"x": jax.numpy.ones(1)})[2]
    assert give_back(result).unsafe_buffer_pointer() == result.ctypes.data


def test_arrays_of_jax_without_elements(jax: Any) -> None:
    assert F.relu(jax.numpy.zeros((0, 3))).shape == (0, 3)
    assert F.conv2d(jax.numpy.zeros((0, 1, 4, 4)), jax.numpy.ones((2, 1, 2, 2))).shape == (0, 2, 3, 3)


def test_values_that_jax_traces_are_refused(jax: Any) -> None:
    message = r"^relu: input is traced by JAX and has no values yet, expected an array; .* gpucnn\.jax "
    for transform in (jax.jit, lambda function: jax.grad(lambda x: function(x).sum()), jax.vmap):
        with pytest.raises(TypeError, match=message):
            transform(F.relu)(jax.numpy.ones(3))


# --- Other libraries ----------------------------------------------------------------------------------------------


class Shared:
    """An array of another library that knows DLPack and the array API, and nothing of NumPy."""

    device: tuple[int, int] = (1, 0)

    def __init__(self, array: Any) -> None:
        self.array = np.asarray(getattr(array, "array", array))

    @property
    def ndim(self) -> int:
        return int(self.array.ndim)

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(from_dlpack=lambda other: Shared(np.from_dlpack(other)))


class Homeless(Shared):
    """One whose library has no way in."""

    def __array_namespace__(self) -> Any:
        return SimpleNamespace()


class OnGpu(Shared):
    """One on the first GPU, whose memory this process reads all the same."""

    device = (2, 0)

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(from_dlpack=OnGpu)


class OnSecondGpu(OnGpu):
    """One in memory that the second GPU shares with the CPU."""

    device = (13, 1)


class Elsewhere(Shared):
    """One on a GPU of another maker."""

    device = (10, 0)


class Pinned(Shared):
    """One in memory of the CPU that a GPU can read too."""

    device = (3, 0)


@pytest.mark.parametrize("name", CALLS)
def test_another_library_in_and_out(name: str) -> None:
    result = getattr(F, name)(**each_array(fresh(name), Shared))
    assert all(item is None or type(item) is Shared for item in results_of(result))
    arrays = tuple(None if item is None else item.array for item in results_of(result))
    assert_same(arrays if isinstance(result, tuple) else arrays[0], getattr(F, name)(**fresh(name)))


@pytest.mark.parametrize("versions", [{"max_version": (1, 0)}, {}], ids=["versioned", "unversioned"])
def test_another_library_in_and_out_in_bfloat16(monkeypatch: pytest.MonkeyPatch, versions: dict[str, Any]) -> None:
    """Both of DLPack's structures have the dtype, in different places."""
    monkeypatch.setattr(Shared, "__dlpack__", lambda self, **_: bfloat16.given(self.array).__dlpack__(**versions))
    x = np.array([-1.0, 2.5], ml_dtypes.bfloat16)
    monkeypatch.setattr(
        Shared, "__array_namespace__", lambda self: SimpleNamespace(from_dlpack=lambda other: bfloat16.taken(other))
    )
    assert_same(F.relu(Shared(x)), F.relu(x))


def test_bfloat16_of_another_library_needs_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    bfloat16.dtype.cache_clear()
    message = "bfloat16 needs the package ml_dtypes, or cast it to float32"
    with pytest.raises(TypeError, match=rf"^relu: input of test_arrays has dtype bfloat16, .*: {message}$"):
        F.relu(Shared(np.array([1.0], ml_dtypes.bfloat16)))
    bfloat16.dtype.cache_clear()


def test_a_library_whose_module_takes_arrays_in(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = ModuleType("tinyarrays")
    library.Array = type("Array", (), {"__module__": "tinyarrays.core", "ndim": 1, "__init__": Shared.__init__})
    library.Array.__dlpack__, library.Array.__dlpack_device__ = Shared.__dlpack__, lambda self: (1, 0)
    library.from_dlpack = lambda other: library.Array(np.from_dlpack(other))
    monkeypatch.setitem(sys.modules, "tinyarrays", library)
    result = F.relu(library.Array(np.array([-1.0, 2.0])))
    assert type(result) is library.Array
    assert result.array.tolist() == [0, 2]


def test_memory_of_the_cpu_that_a_gpu_reads() -> None:
    assert F.relu(Pinned(np.array([-1.0, 2.0]))).array.tolist() == [0, 2]


def test_another_device() -> None:
    message = "relu: input of test_arrays is on another device, expected memory of the CPU or of an NVIDIA GPU"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        F.relu(Elsewhere(np.ones(3)))


def test_arrays_on_two_devices(cupy: Any) -> None:
    there = "weight in CPU memory", "weight on GPU 1"
    for other, said in zip((Pinned, OnSecondGpu), there, strict=True):
        message = f"linear: got input on GPU 0, {said}; expected arrays on one device, nothing is copied between them"
        with pytest.raises(TypeError, match=f"^{message}$"):
            F.linear(OnGpu(np.ones(3)), other(np.ones(3)))
    message = "linear: got input on GPU 0, weight on GPU 1; expected arrays on one device, nothing is copied between"
    with pytest.raises(TypeError, match=f"^{message} them$"):
        F.linear(cupy.ndarray(np.ones(3)), cupy.ndarray(np.ones(3), 1))


def test_a_library_without_a_way_in() -> None:
    message = "relu: got arrays of test_arrays, expected a library with from_dlpack to return results by"
    with pytest.raises(TypeError, match=f"^{message}$"):
        F.relu(Homeless(np.ones(3)))


def test_what_only_looks_like_an_array() -> None:
    class HalfAnArray:
        ndim = 1

        def __dlpack__(self) -> None: ...

    for wrong in (HalfAnArray(), Shared, np.ndarray):
        with pytest.raises(TypeError, match=r"^relu: input is of type .*, expected an array$"):
            F.relu(wrong)


def test_read_only_statistics_of_another_library() -> None:
    arguments = each_array(fresh("batch_norm"), Shared)
    arguments["running_var"] = Shared(read_only(np.ones(4)))
    with pytest.raises((TypeError, ValueError), match=r"^batch_norm: running_var "):  # older DLPacks cannot say so
        F.batch_norm(**arguments)


@pytest.mark.parametrize("name", [name for name in CALLS if sum(key in ARRAYS for key in CALLS[name]) > 1])
def test_arrays_of_two_libraries(name: str) -> None:
    for parameter in [key for key in CALLS[name] if key in ARRAYS]:
        arguments = fresh(name)
        arguments[parameter] = Shared(arguments[parameter])
        with pytest.raises(TypeError, match=r"of (numpy|test_arrays) and .*of (numpy|test_arrays); expected one"):
            getattr(F, name)(**arguments)


def test_numpy_and_pytorch_are_two_libraries(torch: Any) -> None:
    message = "got arrays of two libraries, input of torch and weight of numpy; expected one, nothing is copied between"
    hint = r"numpy.from_dlpack\(input\) is one of numpy over the same memory"
    with pytest.raises(TypeError, match=f"^conv2d: {message} them; {hint}$"):
        F.conv2d(torch.ones(1, 1, 3, 3), np.ones((1, 1, 3, 3), np.float32))


# --- Which backend ------------------------------------------------------------------------------------------------


def test_the_backend_of_arrays(torch: Any) -> None:
    ours = backend_of(np.ones(1))
    assert isinstance(ours, NumpyBackend)
    assert backend_of(None, np.ones(1), None) is backend_of(Shared(np.ones(1))) is backend_of(torch.ones(1)) is ours
    for wrong in ([1.0], "array", 1.0, np.float64(1)):
        with pytest.raises(TypeError, match=r"^backend_of: array 1 is of type .*, expected an array$"):
            backend_of(np.ones(1), wrong)


@pytest.mark.parametrize("reason", [None, "CuPy is not installed"])
def test_available_backends_say_why_one_is_missing(monkeypatch: pytest.MonkeyPatch, reason: str | None) -> None:
    monkeypatch.setattr(cupy_runtime, "why_unavailable", lambda: reason)
    monkeypatch.setattr(simulator, "available", lambda: "it needs g++")
    monkeypatch.setattr(builds, "why_unavailable", lambda: reason and "no compiler")
    assert (
        gpucnn.backends.available()
        == available()
        == {
            "numpy": "available",
            "compiled": "not available: no compiler" if reason else "available",
            "cuda": "not available: CuPy is not installed" if reason else "available",
            "simulator": "not available: it needs g++",
        }
    )


# --- CuPy, and other libraries' arrays in a GPU's memory ----------------------------------------------------------


class CupyLike:
    """What dispatch asks of `cupy.ndarray`; it computes as the simulator's arrays do."""

    __module__ = "cupy"

    def __init__(self, array: Any, index: int = 0) -> None:
        self.array = array
        self.device = SimpleNamespace(id=index)
        self.ndim, self.dtype, self.shape, self.size = array.ndim, array.dtype, array.shape, array.size
        self.strides = array.strides

    __dlpack__ = Shared.__dlpack__

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.device.id)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A library named cupy, whose arrays a backend takes that only gives them back."""
    library: Any = ModuleType("cupy")
    library.ndarray = CupyLike
    library.from_dlpack = lambda other: CupyLike(other.array)
    library.maximum = lambda x, zero: CupyLike(np.maximum(x.array, zero))
    library.zeros, library.asarray = np.zeros, lambda array: array
    monkeypatch.setitem(sys.modules, "cupy", library)
    monkeypatch.setattr(backends, "_cupy_backend", lambda: SimpleNamespace(xp=library, host=False, name="cuda"))
    return library


def test_arrays_of_cupy_stay_what_they_are(cupy: Any) -> None:
    x = cupy.ndarray(np.array([-1, 2]))  # integers: floats have a kernel
    backend, (array, nothing), give_back = receive("op", {"x": x, "none": None})
    assert backend.name == "cuda"
    assert array is x
    assert nothing is None
    assert give_back(x) is x
    result = F.relu(x)
    assert type(result) is CupyLike
    assert result.array.tolist() == [0, 2]


def test_arrays_of_another_library_on_a_gpu_are_taken_by_cupy(cupy: Any) -> None:
    x = OnGpu(np.array([-1, 2]))
    result = F.relu(x)
    assert type(result) is OnGpu
    assert result.array.tolist() == [0, 2]
    _, (array,), give_back = receive("op", {"x": x})
    assert type(array) is CupyLike
    assert array.array is x.array  # no copy
    pair = give_back((array, None))
    assert (type(pair[0]), pair[1]) == (OnGpu, None)
    assert type(F.relu(OnSecondGpu(np.ones(2, np.int64)))) is OnGpu


def test_arrays_of_cupy_and_of_others_are_two_libraries(cupy: Any) -> None:
    for other, kind in ((np.ones(3), "numpy"), (simulator.asarray(np.ones(3)), "simulator"), (OnGpu(np.ones(3)), ".*")):
        with pytest.raises(
            TypeError, match=f"^linear: got arrays of two libraries, input of cupy and weight of {kind};"
        ):
            F.linear(cupy.ndarray(np.ones(3)), other)


def test_a_gpu_that_cannot_be_used_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    backends._cupy_backend.cache_clear()
    monkeypatch.setattr(cupy_runtime, "why_unavailable", lambda: "CuPy is not installed")
    message = "relu: input of {} is in a GPU's memory, out of reach: CuPy is not installed"
    for array, kind in ((OnGpu(np.ones(3)), "test_arrays"), (CupyLike(np.ones(3)), "cupy")):
        with pytest.raises(RuntimeError, match=f"^{re.escape(message.format(kind))}$"):
            F.relu(array)


# --- The simulator ------------------------------------------------------------------------------------------------


def test_arrays_of_the_simulator_have_a_backend_of_their_own() -> None:
    x = simulator.asarray(np.array([-1.0, 2.0]))
    backend = backend_of(x)
    assert isinstance(backend, CudaBackend)
    assert backend is backend_of(None, simulator.asarray(1.0))
    assert (backend.runtime.name, backend.host) == ("simulator", False)
    y = F.relu(x)
    assert type(y) is simulator.Array
    assert simulator.asnumpy(y).tolist() == [0, 2]


@pytest.mark.parametrize("name", [name for name in CALLS if sum(key in ARRAYS for key in CALLS[name]) > 1])
def test_numpy_and_the_simulator_are_two_libraries(name: str) -> None:
    for parameter in [key for key in CALLS[name] if key in ARRAYS]:
        arguments = fresh(name)
        arguments[parameter] = simulator.asarray(arguments[parameter])
        with pytest.raises(TypeError, match=r"of (numpy|simulator) and .*of (numpy|simulator); expected one"):
            getattr(F, name)(**arguments)


# --- Subclasses and layouts of NumPy's arrays ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("relu", {"input": np.ones(3)}),
        ("pad", {"pad": (0, 0)}),
        ("pad", {"pad": ()}),
        ("pad", {"pad": (0, 0), "mode": "reflect"}),
        ("dropout", {"training": False}),
        ("dropout", {"p": 0.0}),
        ("max_pool2d", {"kernel_size": 1, "stride": 1, "padding": 0}),
        ("avg_pool2d", {"kernel_size": 1, "stride": 1, "padding": 0}),
        ("sum_pool2d", {"kernel_size": 1, "stride": 1, "padding": 0}),
        ("lp_pool2d", {"kernel_size": 1, "stride": 1, "padding": 0, "norm_type": 1}),
        ("adaptive_max_pool2d", {"output_size": None}),
        ("adaptive_avg_pool2d", {"output_size": None}),
        ("interpolate", {"size": 3}),
        ("interpolate", {"size": 3, "mode": "area"}),
        ("bed_of_nails2d", {"scale_factor": 1}),
        ("im2col", {"kernel_size": 1, "padding": 0, "stride": 1}),
        ("leaky_relu", {"negative_slope": 1.0}),
    ],
)
def test_an_operation_that_changes_nothing_still_returns_a_copy(
    backend: ArrayBackend, name: str, others: dict[str, Any]
) -> None:
    """And so does its gradient."""
    arguments = fresh(name, **others)
    x = backend.asarray(arguments.pop("input"))
    result = getattr(F, name)(x, **arguments)
    (grad,) = getattr(F, f"{name}_backward")(result, x, **arguments)
    for array in (result, grad):
        assert not np.may_share_memory(array, x)
        np.testing.assert_array_equal(backend.asnumpy(array).reshape(-1), backend.asnumpy(x).reshape(-1))
    assert not np.may_share_memory(grad, result)


def test_matrices_and_memory_maps(tmp_path: Any) -> None:
    matrix = np.ones((2, 3)).view(np.matrix)
    assert type(F.linear(matrix, matrix)) is np.ndarray
    assert F.linear(matrix, matrix, None).tolist() == [[3, 3], [3, 3]]
    stored = np.memmap(tmp_path / "image", np.float64, "w+", shape=(1, 1, 3, 3))
    stored[...] = 1
    result = F.conv2d(stored, stored)
    assert type(result) is np.ndarray
    assert result.item() == 9


def test_another_byte_order() -> None:
    swapped = np.ones((1, 1, 3, 3)).astype(np.dtype(np.float64).newbyteorder())
    native = np.ones((1, 1, 3, 3))
    with pytest.raises(TypeError, match=r"^conv2d: input has dtype [<>]f8, expected this machine's byte order$"):
        F.conv2d(swapped, native)
    with pytest.raises(
        TypeError,
        match=r"^conv2d: input has dtype float64 and weight [<>]f8, .* cast weight, weight\.astype\(numpy\.float64\)$",
    ):
        F.conv2d(native, swapped)


def test_arrays_without_axes(backend: ArrayBackend) -> None:
    assert backend.run(F.relu, np.array(-1.0)).shape == ()
    assert backend.run(F.dropout, np.array(2.0), training=False) == 2
    assert backend.run(F.leaky_relu, np.array(-2.0, ml_dtypes.bfloat16)).dtype == ml_dtypes.bfloat16


def test_sizes_may_be_arrays_and_ranges(backend: ArrayBackend) -> None:
    x = backend.asarray(np.ones((1, 1, 5, 5)))
    for size in (np.int64(2), np.array(2), np.array([2, 2]), [2, 2], range(2, 4, 1), (np.uint8(2), 2)):
        assert F.max_pool2d(x, size).shape[:2] == (1, 1)
    assert F.avg_pool2d(x, 2, ceil_mode=np.True_, count_include_pad=np.array(False)).shape == (1, 1, 3, 3)
