"""The answers of `gpucnn.explain`: the algorithm of every operation on both backends, the reason, and the costs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from calls import CALLS, fresh
from convolution_cases import bits

import gpucnn
import gpucnn.functional as F
from gpucnn import numerics, simulator
from gpucnn.backends.base import Backend
from gpucnn.backends.cuda.convolution import depthwise, im2col, implicit_gemm
from gpucnn.backends.cuda.convolution import direct as direct_on_a_gpu
from gpucnn.backends.cuda.convolution import winograd as winograd_on_a_gpu
from gpucnn.backends.numpy import NumpyBackend, columns, direct, folding
from gpucnn.backends.numpy import depthwise as depthwise_on_the_cpu
from gpucnn.explaining import Explanation

OPERATIONS = sorted(name for name in F.__all__ if not name.endswith("_backward"))

RESNET: tuple[Any, ...] = ("conv2d", (2, 64, 56, 56), (64, 64, 3, 3)), {"padding": 1}
WIDE: tuple[Any, ...] = ("conv2d", (2, 256, 14, 14), (256, 256, 3, 3)), {"padding": 1}
RESNET_INPUT: tuple[Any, ...] = ("conv2d_input", (2, 64, 56, 56), (64, 64, 3, 3), (2, 64, 56, 56)), {"padding": 1}
RESNET_WEIGHT: tuple[Any, ...] = ("conv2d_weight", (2, 64, 56, 56), (64, 64, 3, 3), (2, 64, 56, 56)), {"padding": 1}
STEM: tuple[Any, ...] = ("conv2d_input", (1, 3, 64, 64), (64, 3, 7, 7), (1, 64, 32, 32)), {"stride": 2, "padding": 3}
RESNEXT: tuple[Any, ...] = ("conv2d", (2, 128, 56, 56), (128, 4, 3, 3)), {"padding": 1, "groups": 32}
MOBILENET: tuple[Any, ...] = ("conv2d", (2, 960, 7, 7), (960, 1, 3, 3)), {"padding": 1, "groups": 960}
DEEPLAB: tuple[Any, ...] = ("conv2d", (1, 2048, 33, 33), (256, 2048, 3, 3)), {"padding": 12, "dilation": 12}
DCGAN: tuple[Any, ...] = ("conv_transpose2d", (8, 1024, 4, 4), (1024, 512, 4, 4)), {"stride": 2, "padding": 1}
CENSUS: tuple[Any, ...] = ("conv2d", (1, 1, 8, 8), (1, 1, 3, 3)), {}


def explained(call: tuple[Any, ...], **others: Any) -> Explanation:
    positional, named = call
    return gpucnn.explain(*positional, **named, **others)


@pytest.mark.parametrize(
    ("call", "dtype", "algorithm", "reason"),
    [
        (RESNET, "float64", "im2col", "the least of the 2 algorithms that compute this."),
        (RESNET_INPUT, "float32", "im2col", "the least of the 3"),
        (RESNET_WEIGHT, "float32", "im2col", "unless each channel is filtered alone."),
        (STEM, "float32", "fold", "the least of the 3"),
        (RESNEXT, "float32", "im2col", "the least of the 2 algorithms that compute this"),
        (RESNEXT, "int64", "im2col", "the least of the 2"),
        (MOBILENET, "float32", "depthwise", "Each channel is filtered alone"),
        (DEEPLAB, "float64", "direct", "the least of the 2"),
        (DCGAN, "float32", "fold", "the least of the 3"),
        (CENSUS, "int8", "im2col", "the least of the 2"),
    ],
)
def test_convolutions_on_the_cpu(call: Any, dtype: str, algorithm: str, reason: str) -> None:
    told = explained(call, dtype=dtype)
    assert (told.operation, told.backend, told.algorithm) == (call[0][0], "numpy", algorithm)
    assert reason in told.reason
    costs = {each.name: each.nanoseconds for each in told.alternatives}
    assert algorithm in costs
    assert {"direct", "im2col"} <= costs.keys()
    assert all((cost is None) == (name == "depthwise") for name, cost in costs.items())
    assert all(each.bytes_moved is each.multiply_adds is None for each in told.alternatives)


@pytest.mark.parametrize(
    ("call", "dtype", "algorithm", "reason", "names"),
    [
        (RESNET, "float32", "implicit_gemm", "large enough", ["direct", "im2col", "implicit_gemm", "winograd"]),
        (WIDE, "float32", "winograd", "channels enough", ["direct", "im2col", "implicit_gemm", "winograd"]),
        (RESNET, "bfloat16", "implicit_gemm", "large enough", ["direct", "im2col", "implicit_gemm"]),
        (RESNET, "float64", "im2col", "large enough", ["direct", "im2col"]),
        (RESNET, "int8", "direct", "No matrix product is taken of int32", ["direct"]),
        (RESNET_INPUT, "float16", "implicit_gemm", "large enough", ["direct", "im2col", "implicit_gemm"]),
        (RESNET_WEIGHT, "complex64", "im2col", "large enough", ["direct", "im2col"]),
        (RESNEXT, "float32", "implicit_gemm", "large enough", ["direct", "im2col", "implicit_gemm"]),
        (RESNEXT, "float64", "direct", "too small", ["direct", "im2col"]),
        (RESNEXT, "float16", "implicit_gemm", "large enough", ["direct", "im2col", "implicit_gemm"]),
        (MOBILENET, "float32", "depthwise", "filtered alone", ["direct", "im2col", "implicit_gemm", "depthwise"]),
        (MOBILENET, "complex64", "direct", "too small", ["direct", "im2col"]),
        (DCGAN, "float32", "implicit_gemm", "large enough", ["direct", "im2col", "implicit_gemm"]),
    ],
)
def test_convolutions_on_a_gpu(call: Any, dtype: str, algorithm: str, reason: str, names: list[str]) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    for channels_last in (False, True):
        told = explained(call, dtype=dtype, backend="cuda", channels_last=channels_last)
        assert (told.backend, told.algorithm) == ("cuda", algorithm)
        assert reason in told.reason
        assert [each.name for each in told.alternatives] == names


def test_the_model_of_a_gpu_by_hand() -> None:
    """Each array once, columns twice and none of them where a tap is a pixel, copies to channels last twice."""
    told = gpucnn.explain("conv2d", (2, 3, 8, 8), (4, 3, 3, 3), dtype="float16", backend="cuda")
    arrays = 2 * (2 * 3 * 64 + 4 * 27 + 2 * 4 * 36)
    sums = 2 * 4 * 36 * 27
    assert [(each.bytes_moved, each.multiply_adds) for each in told.alternatives] == [
        (arrays, sums), (arrays + 2 * 2 * 27 * 2 * 36, sums), (arrays + 2 * 2 * 2 * 3 * 64, sums)
    ]  # fmt: skip
    told = gpucnn.explain("conv2d", (2, 3, 8, 8), (4, 3, 3, 3), dtype="float16", backend="cuda", channels_last=True)
    assert told.alternatives[-1].bytes_moved == arrays
    told = gpucnn.explain("conv2d", (2, 3, 8, 8), (4, 3, 3, 3), backend="cuda", channels_last=True)
    tiles = 2 * 9 * 16
    winograd = told.alternatives[-1]
    assert (winograd.bytes_moved, winograd.multiply_adds) == (2 * arrays + 4 * 2 * tiles * (3 + 4), tiles * 3 * 4)
    told = gpucnn.explain("conv1d_weight", (2, 3, 8), (4, 3, 1), (2, 4, 8), dtype="float64", backend="cuda")
    assert {each.bytes_moved for each in told.alternatives} == {8 * (2 * 3 * 8 + 12 + 2 * 4 * 8)}


# --- It is what runs ----------------------------------------------------------------------------------------------


def noted(ran: list[str], name: str, function: Any) -> Any:
    return lambda *arguments: (ran.append(name), function(*arguments))[1]


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name.startswith("conv")])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("backend", ["numpy", "cuda"])
def test_the_algorithm_is_the_one_that_runs(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, name: str, groups: int, backend: str
) -> None:
    rank = next(n for n in (1, 2, 3) if f"{n}d" in name)
    x, w, y = (2, 4, *(16,) * rank), (4, 4 // groups, *(3,) * rank), (2, 4, *(14,) * rank)
    is_gradient = name.endswith(("_input", "_weight"))
    shapes = (x, w, y) if is_gradient else (x, w)
    told = gpucnn.explain(name, *shapes, groups=groups, backend=backend)
    by: dict[str, tuple[Any, tuple[str, ...]]]
    if backend == "numpy":
        both = ("contract", "contract_weight")
        by = {
            "depthwise": (depthwise_on_the_cpu, both), "direct": (direct, both), "fold": (folding, ("fold_products",)),
            "im2col": (columns, both),
        }  # fmt: skip
    else:
        request.getfixturevalue("compiler")
        directions = ("forward", "backward_input", "backward_weight")
        modules = {
            "depthwise": depthwise, "direct": direct_on_a_gpu, "im2col": im2col, "implicit_gemm": implicit_gemm,
            "winograd": winograd_on_a_gpu,
        }  # fmt: skip
        by = {name: (module, directions[: 2 if name == "winograd" else 3]) for name, module in modules.items()}
    ran: list[str] = []
    for algorithm, (module, functions) in by.items():
        for function in functions:
            monkeypatch.setattr(module, function, noted(ran, algorithm, getattr(module, function)))
    as_array = np.asarray if backend == "numpy" else simulator.asarray
    arguments: list[Any] = [as_array(np.ones(shape, np.float32)) for shape in shapes]
    if is_gradient:
        at = 0 if name.endswith("_input") else 1
        arguments[at] = shapes[at]
    with gpucnn.backend("numpy"):  # the one that is explained, of the two CPU backends
        getattr(F, name)(*arguments, groups=groups)
    assert ran[0] == told.algorithm


# --- The caller's choice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "cuda"])
@pytest.mark.parametrize("call", [RESNET, RESNET_WEIGHT, MOBILENET], ids=lambda call: call[0][0])
def test_a_block_shows_in_the_reason(backend: str, call: Any) -> None:
    for name in ("direct", "im2col"):
        with gpucnn.algorithm(name):
            told = explained(call, backend=backend)
            assert told.algorithm == name
            assert told.reason == f"The block gpucnn.algorithm({name!r}) asks for it."
    with gpucnn.algorithm("im2col"):
        told = explained(STEM, backend="numpy")
        assert told.algorithm == "fold"
        assert told.reason.endswith("asks for it, by which a product and a fold cost less here than columns.")


def test_what_a_block_does_not_compute_is_refused_as_by_the_call() -> None:
    with gpucnn.algorithm("winograd"):
        with pytest.raises(ValueError, match=r"^algorithm: 'winograd' is not computed by NumPy"):
            explained(RESNET)
        assert explained(RESNET, backend="cuda").algorithm == "winograd"
        with pytest.raises(
            ValueError, match=r"^algorithm: 'winograd' computes no such convolution of float32, expected"
        ):
            explained(RESNET_WEIGHT, backend="cuda")
        assert gpucnn.explain("relu", (2, 3)).algorithm == "elementwise"


def test_a_pick_shows_in_the_reason() -> None:
    class Slow:
        def algorithm(self, direction: str, geometry: Any, dtype: str) -> str:
            return "direct"

    with numerics.picking(Slow()):
        told = explained(RESNET, backend="cuda")
        assert (told.algorithm, told.reason) == ("direct", "It was the quickest when gpucnn.tune timed it.")
        assert explained(MOBILENET, backend="cuda").algorithm == "depthwise"


# --- Every operation ----------------------------------------------------------------------------------------------


@pytest.mark.table(1000)
@pytest.mark.parametrize("backend", ["numpy", "cuda"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_known(name: str, backend: str) -> None:
    """By arrays, which stay as they are, and by shapes."""
    arguments = fresh(name)
    before = {key: value.copy() for key, value in arguments.items() if isinstance(value, np.ndarray)}
    told = gpucnn.explain(name, **arguments, backend=backend)
    assert all(bits(arguments[key]) == bits(value) for key, value in before.items())
    lines = str(told).splitlines()
    assert lines[0] == f"{told.algorithm}: {told.reason}"
    assert told.reason.endswith(".")
    if name.startswith("conv"):
        assert len(lines) == 2 + len(told.alternatives) > 3
        assert len({len(line) for line in lines[1:]}) == 1
    else:
        assert len(lines) == 1
        assert "only way" in told.reason
    shapes = {key: value.shape if isinstance(value, np.ndarray) else value for key, value in arguments.items()}
    assert gpucnn.explain(name, **shapes, dtype="float64", backend=backend).algorithm == told.algorithm


@pytest.mark.table(1000)
@pytest.mark.parametrize("name", [name for name in OPERATIONS if not name.startswith("conv")])
def test_the_primitive_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    ran: list[str] = []
    for primitive in Backend.__abstractmethods__ - {"empty", "empty_like", "copy", "masked", "moving_average"}:
        monkeypatch.setattr(
            NumpyBackend, primitive, staticmethod(noted(ran, primitive, getattr(NumpyBackend, primitive)))
        )
    told = gpucnn.explain(name, **fresh(name))
    assert ran == []
    getattr(F, name)(**fresh(name))
    assert ran == ([] if told.algorithm == "elementwise" else [told.algorithm])


@pytest.mark.parametrize(
    ("operation", "given", "options", "algorithms"),
    [
        ("batch_norm", ((2, 3, 4), (3,), (3,)), {"training": True}, {"norm_forward"}),
        ("batch_norm", ((2, 3, 4), (3,), (3,)), {}, {"norm_apply"}),
        ("instance_norm", ((2, 3, 4), (3,), (3,)), {"use_input_stats": False}, {"norm_apply"}),
        ("interpolate", ((2, 3, 4, 4),), {"size": 2, "mode": "area"}, {"average_pool"}),
        ("interpolate", ((2, 3, 4, 4),), {"size": 8}, {"interpolate"}),
        ("relu", ((2, 3),), {}, {"elementwise", "bias_activation"}),
        ("relu", ((2, 3),), {"dtype": "int32"}, {"elementwise"}),
        ("linear", ((2, 3), (4, 3)), {}, {"linear"}),
    ],
)
def test_what_has_one_way(operation: str, given: Any, options: Any, algorithms: set[str]) -> None:
    told = [gpucnn.explain(operation, *given, **options, backend=backend) for backend in ("numpy", "cuda")]
    assert {each.algorithm for each in told} == algorithms
    assert all(each.alternatives == () for each in told)


def test_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a generator moves on, nor is anything launched or allocated that would not fit."""
    rng, twin = np.random.default_rng(1), np.random.default_rng(1)
    gpucnn.explain("dropout", (2, 3), rng=rng)
    assert rng.random() == twin.random()
    huge = (1 << 10, 1 << 10, 1 << 10)
    assert gpucnn.explain("softmax", huge, dim=-1).algorithm == "elementwise"
    assert gpucnn.explain("sigmoid", huge, backend="cuda").algorithm == "elementwise"


def test_an_explanation_is_frozen() -> None:
    told = explained(RESNET)
    with pytest.raises(dataclasses.FrozenInstanceError):
        told.algorithm = "direct"  # type: ignore[misc]
    assert hash(told) == hash(explained(RESNET))


def test_the_text_is_a_line_and_a_table() -> None:
    assert str(explained(MOBILENET)).splitlines()[-1] == "depthwise              not modelled"
    text = str(gpucnn.explain("conv2d", (1, 2, 4, 4), (2, 2, 1, 1), dtype="float64", backend="cuda"))
    assert text.splitlines() == [
        "direct: The matrix product of one image and group is too small to be worth its columns.",
        "algorithm  estimated bytes moved  multiply-adds",
        "direct                       544             64",
        "im2col                       544             64",
    ]


# --- Errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("maxpool2d",), {}, ValueError, r"^explain: operation is 'maxpool2d', .*you mean 'max_pool2d' or"),
        (("conv2d_backward",), {}, ValueError, "did you mean 'conv2d_input' or 'conv2d_weight'"),
        (("relu_backward",), {}, ValueError, "no backward; did you mean 'relu'"),
        (("fft",), {}, ValueError, "no backward"),
        ((5,), {}, ValueError, r"^explain: operation is 5, expected"),
        (
            ("relu", (2, 3)),
            {"backend": "tpu"},
            ValueError,
            r"^explain: backend is 'tpu', expected 'numpy', 'compiled' or 'cuda'$",
        ),
        (("relu", (2, 3)), {"dtype": "float33"}, TypeError, r"^explain: dtype is 'float33', expected a dtype"),
        (("conv2d", 5, (4, 3, 3, 3)), {}, TypeError, r"^explain: input is 5, expected a shape or an array$"),
        (("conv2d", (1, -3, 8, 8), (4, 3, 3, 3)), {}, ValueError, r"^conv2d: input"),
        (("conv2d", (1, 3, 8, 8)), {}, TypeError, r"^explain: conv2d: missing a required argument: 'weight'$"),
        (("relu", (2, 3)), {"dim": 1}, TypeError, r"^explain: relu: got an unexpected keyword argument 'dim'$"),
        (("conv2d", (1, 3, 8, 8), (4, 2, 3, 3)), {}, ValueError, r"^conv2d: input has shape \(1, 3, 8, 8\), expected"),
        (("conv2d", (1, 3, 8, 8), (4, 3, 3, 3), (5,)), {}, ValueError, r"^conv2d: bias has shape \(5,\), expected"),
        (("conv2d", (1, 3, 8, 8), (4, 3, 9, 9)), {}, ValueError, r"^conv2d: "),
        (("softmax", (70, 30)), {"dim": 7}, ValueError, r"^softmax: dim is 7"),
        (("linear", (70, 30), (20, 31)), {}, ValueError, r"^linear: .*\b31\b"),
        (("gelu", (2, 3)), {"dtype": "int32"}, TypeError, r"^gelu: input has dtype int32"),
        (("max_pool2d", (1, 3, 8, 8), 9), {}, ValueError, r"^max_pool2d: "),
    ],
)
def test_wrong_input(arguments: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gpucnn.explain(*arguments, **options)


def test_arrays_of_two_dtypes_are_refused_as_by_the_call() -> None:
    x, w = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3))
    with pytest.raises(TypeError, match=r"^conv2d: input has dtype float32 and weight float64"):
        gpucnn.explain("conv2d", x, w)
    assert gpucnn.explain("conv2d", x, (4, 3, 3, 3), dtype="float64").alternatives[-1].name == "im2col"


def test_the_backwards_of_calls_are_no_operations_to_explain() -> None:
    for name in CALLS:
        if name.endswith("_backward"):
            with pytest.raises(ValueError, match="that is no backward"):
                gpucnn.explain(name)
