"""Export: ONNX Runtime and `gpucnn.onnx` compute from the file what the network does, for every module and batch."""

from __future__ import annotations

import doctest
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layer_cases import CONFIGS, EVERY, Case, randomised

from gpucnn import nn
from gpucnn.nn import models
from gpucnn.onnx import export, exporting, load
from gpucnn.onnx._rules import RULES

pytest.importorskip("onnx.checker", reason="onnx is not installed")  # of a folder named onnx there is no checker
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

Host = np.ndarray[Any, Any]
TOLERANCE = 1e-5  # of the largest magnitude


def of(name: str, shape: tuple[int, ...], *args: Any, **options: Any) -> Case:
    return Case(name, shape, args, options)


IMAGES = (2, 4, 7, 9)

# What PyTorch's layers cannot be told, and the other ways that a rule takes.
MORE = [
    of("Conv1d", (2, 3, 8), 3, 4, 5, stride=3, padding="same"),
    of("Conv2d", IMAGES, 4, 6, (4, 3), stride=2, padding="same", groups=2),
    of("Conv2d", IMAGES, 4, 6, (4, 2), padding="same_lower", dilation=(1, 2)),
    of("Conv2d", IMAGES, 4, 2, 3, stride=(1, 2), padding=((0, 2), (3, 1))),
    of("Conv2d", IMAGES, 4, 2, 4, padding="same", padding_mode="reflect"),
    of("Conv2d", IMAGES, 4, 8, 3, groups=4, padding="valid", bias=False),
    of("ConvTranspose1d", (2, 3, 5), 3, 2, 2, stride=5, padding="same"),
    of("ConvTranspose2d", IMAGES, 4, 2, (5, 2), stride=(2, 3), padding="same_lower"),
    of("ConvTranspose2d", IMAGES, 4, 2, 3, stride=2, padding=((0, 2), (2, 1)), output_padding=1),
    of("ConvTranspose2d", IMAGES, 4, 2, 2, stride=3, output_padding=(2, 1), bias=False),
    of("LocallyConnected2d", IMAGES, 4, 3, (7, 9), (3, 2), (2, 1), "same", (1, 2), False),
    of("MaxPool2d", IMAGES, (3, 2), stride=2, padding=((0, 2), (1, 0)), ceil_mode=True),
    of("MaxPool2d", IMAGES, 2, stride=1, padding=2, dilation=3),
    of("MaxPool2d", IMAGES, 3, stride=2, padding="same", return_indices=True),
    of("MaxPool3d", (2, 2, 4, 5, 6), 2, return_indices=True),
    of("AvgPool1d", (2, 3, 10), 3, stride=2, padding=1, ceil_mode=True),
    of("AvgPool1d", (2, 3, 10), 3, stride=2, padding="same", count_include_pad=False),
    of("AvgPool2d", IMAGES, (3, 4), stride=(2, 3), padding=(1, 2), ceil_mode=True, divisor_override=-3),
    of("AvgPool2d", IMAGES, 2, stride=1, padding=2, dilation=3, count_include_pad=False),
    of("AvgPool3d", (2, 2, 4, 5, 6), 2, stride=1, dilation=(1, 2, 1), padding=((1, 0), (0, 1), (1, 1))),
    of("SumPool2d", IMAGES, 3, stride=2, padding=((0, 2), (1, 1)), ceil_mode=True),
    of("LPPool2d", IMAGES, 3, (3, 2), stride=2, ceil_mode=True, padding=((0, 2), (1, 0)), dilation=(1, 2)),
    of("AdaptiveMaxPool2d", (2, 3, 8, 6), (4, 3), return_indices=True),
    of("AdaptiveMaxPool1d", (2, 3, 8), 2),
    of("AdaptiveAvgPool2d", (2, 3, 8, 6), (None, 3)),
    of("AdaptiveAvgPool3d", (2, 3, 4, 5, 6), 1),
    of("Upsample", IMAGES, scale_factor=(2, 3)),
    of("Upsample", IMAGES, (9, 4), mode="nearest-exact"),
    of("Upsample", IMAGES, scale_factor=1.3, mode="bilinear"),
    of("Upsample", IMAGES, (10, 14), mode="area"),
    of("Upsample", (2, 2, 3, 4, 5), (5, 4, 7), mode="trilinear", align_corners=True),
    of("BedOfNails2d", IMAGES, (1, 3)),
    of("InstanceNorm1d", (2, 3, 7), 3, affine=True, bias=False),
    of("GroupNorm", (2, 6, 5), 3, 6, bias=False),
    of("BatchNorm2d", IMAGES, 4, bias=False),
    of("LayerNorm", (2, 3, 4, 5), (4, 5)),
    of("RMSNorm", (2, 3, 5), 5),
    of("LocalResponseNorm", IMAGES, 4, alpha=0.5),
    of("GELU", (2, 3, 4)),
    of("Flatten", IMAGES, 1, 2),
]


def batched(case: Case, model: Any) -> Host:
    """The case's input with a batch axis, as export wants it."""
    x = case.input(np.float32)
    missing = hasattr(model, "rank") and x.ndim == model.rank + 1 and case.name != "BatchNorm1d"
    missing |= x.ndim == len(getattr(model, "normalized_shape", "1"))
    return x[None] if missing else x


def run(path: Path, x: Host) -> list[Host]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    results: list[Host] = session.run(None, {"input": x})
    return results


def assert_same(model: nn.Module, path: Path, x: Host) -> None:
    """The file's results are the network's in evaluation, for a batch of one more too, in both runtimes."""
    loaded = load(path)
    for batch in (x, np.concatenate([x, x[:1]])):
        with nn.inference():
            expected: Any = model.eval()(batch)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for found in (run(path, batch), loaded.run([batch])):
            assert len(found) == len(expected)
            for one, other in zip(found, expected, strict=True):
                assert (one.shape, one.dtype) == (other.shape, other.dtype)
                np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * max(1.0, float(abs(other).max())))


CASES = {str(case): case for case in (*CONFIGS, *MORE, *EVERY.values())}


@pytest.mark.table(40)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_runtime_computes_the_same(case: Case, tmp_path: Path) -> None:
    model = case.layer(np.float32)
    x = batched(case, model)
    export(model, tmp_path / "model.onnx", x)
    assert_same(model, tmp_path / "model.onnx", x)


def test_every_module_has_a_rule_or_is_made_of_others() -> None:
    kinds = {kind for kind in map(vars(nn).get, nn.__all__) if isinstance(kind, type) and issubclass(kind, nn.Module)}
    kinds = {kind for kind in kinds if not issubclass(kind, nn.Loss)}
    ruled = {kind for kind in kinds if any(base.__name__ in RULES for base in kind.__mro__)}
    assert {kind.__name__ for kind in kinds - ruled} == {"Module", "Sequential", "Residual", "Concat"}


# --- The file ---------------------------------------------------------------------------------------------------------


def small_network() -> nn.Module:
    return randomised(models.resnet18(3, width=4, dtype=np.float32, rng=0), 1)


def test_weights_have_the_names_of_the_state(tmp_path: Path) -> None:
    model = small_network()
    model.to_onnx(tmp_path / "model.onnx", (3, 64, 64))
    graph = onnx.load(tmp_path / "model.onnx").graph
    stored = {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer}
    state = {name: array for name, array in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert state.keys() <= stored.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(stored[name], array)
    assert {node.name for node in graph.node} >= {"conv1.Conv", "layer2.0.downsample.1.BatchNormalization", "fc.Gemm"}


def test_the_batch_is_of_any_size_and_the_image_is_not(tmp_path: Path) -> None:
    nn.Conv2d(3, 2, 3).to_onnx(tmp_path / "model.onnx", (3, 8, 9))
    graph = onnx.load(tmp_path / "model.onnx").graph
    shapes = [
        [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    ]
    assert shapes == [["batch", 3, 8, 9], ["batch", 2, 6, 7]]
    assert [value.name for value in (*graph.input, *graph.output)] == ["input", "output"]
    assert len(graph.node) == 1  # and no copy to the output's name


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_the_dtype_is_that_of_the_network(tmp_path: Path, dtype: Any) -> None:
    nn.Linear(3, 2, dtype=dtype).to_onnx(tmp_path / "model.onnx", 3)
    x = np.ones((4, 3), dtype)
    assert run(tmp_path / "model.onnx", x)[0].dtype == dtype


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, rng=0), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5, rng=0))
    x = np.random.default_rng(1).standard_normal((2, 3, 5, 5), dtype=np.float32)
    y = model(x)
    before = {name: array.copy() for name, array in model.state_dict().items()}
    model.to_onnx(tmp_path / "model.onnx", x)
    assert model.training
    assert all("forward" not in vars(module) for module in model.modules())
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert model.backward(y).shape == x.shape  # what it kept is there still
    assert_same(model, tmp_path / "model.onnx", x)


def test_networks_of_the_simulator(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("compiler")
    model = nn.Sequential(nn.Conv2d(1, 2, 3, rng=0), nn.ReLU())
    model.to("simulator").to_onnx(tmp_path / "model.onnx", (1, 5, 5))
    assert_same(model.to("cpu"), tmp_path / "model.onnx", np.ones((1, 1, 5, 5), np.float32))


# --- Modules of the user's --------------------------------------------------------------------------------------------


class Written(nn.Module):
    """A module whose forward is a function of two layers and its input."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.one, self.other = nn.Conv2d(2, 2, 3, padding=1, rng=0), nn.ReLU()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(self.one, self.other, x)


FOLLOWED: dict[str, Callable[..., Any]] = {
    "sum": lambda f, g, x: f(x) + g(x),
    "constants": lambda f, g, x: (2.0 * f(x) - 1) / (1 + abs(-x)),
    "array": lambda f, g, x: f(x) * np.arange(2, dtype=np.float32).reshape(2, 1, 1),
    "functions": lambda f, g, x: np.exp(-f(x)) + np.maximum(np.tanh(x), np.sqrt(g(x))),
    "twice": lambda f, g, x: f(g(f(x))),
    "concatenated": lambda f, g, x: np.concatenate([f(x), x, g(x)], axis=1),
    "sliced": lambda f, g, x: f(x)[:, :, 1:-1, ::2] + x[..., 1:-1, ::2],
    "position": lambda f, g, x: f(x)[:, -1] + x[:, 0],
    "means": lambda f, g, x: f(x).mean(axis=(2, 3), keepdims=True) * x + np.sum(x, axis=1, keepdims=True),
    "reshaped": lambda f, g, x: f(x).reshape(x.shape[0], -1) + x.reshape((x.shape[0], -1)),
    "transposed": lambda f, g, x: f(x).transpose(0, 1, 3, 2) + np.transpose(x, (0, 1, 3, 2)),
    "two results": lambda f, g, x: (f(x), g(x)),
    "the same twice": lambda f, g, x: (x, x),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_numpy_functions_are_followed(name: str, tmp_path: Path) -> None:
    model = Written(FOLLOWED[name])
    x = np.random.default_rng(0).random((2, 2, 5, 5), dtype=np.float32)
    model.to_onnx(tmp_path / "model.onnx", x)
    assert_same(model, tmp_path / "model.onnx", x)


def test_unpooling_by_indices(tmp_path: Path) -> None:
    class Unpooled(nn.Module):
        def __init__(self) -> None:
            self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

        def forward(self, x: Any) -> Any:
            return self.unpool(*self.pool(x), output_size=x.shape[2:])

    x = np.random.default_rng(0).random((2, 3, 5, 7), dtype=np.float32)
    Unpooled().to_onnx(tmp_path / "model.onnx", x)
    assert_same(Unpooled(), tmp_path / "model.onnx", x)


class Scaled(nn.Sequential):
    """A container whose forward is its own."""

    def forward(self, x: Any) -> Any:
        return super().forward(x) * 3


class LeakyReLU(nn.Module):
    """A module with the name of one of gpucnn's."""

    def forward(self, x: Any) -> Any:
        return x * 2


def test_subclasses_are_followed_by_what_they_do(tmp_path: Path) -> None:
    model = nn.Sequential(Scaled(nn.Conv2d(2, 2, 1, rng=0), LeakyReLU()), nn.Residual(Scaled(nn.Tanh())))
    x = np.random.default_rng(0).random((2, 2, 3, 3), dtype=np.float32)
    model.to_onnx(tmp_path / "model.onnx", x)
    assert_same(model, tmp_path / "model.onnx", x)


class Doubled(nn.ReLU):
    """A layer of gpucnn whose forward is another."""

    def forward(self, x: Any) -> Any:
        return nn.ReLU().forward(x)  # no module of the model


def within(module: nn.Module) -> nn.Module:
    return nn.Sequential({"body": nn.Sequential(nn.ReLU(), module)})


REFUSED = {
    "body.1, a Written, cannot be exported: it calls clip, which is not followed": lambda f, g, x: np.clip(x, 0, 1),
    "body.1, a Written, cannot be exported: it gives an array that no module made": lambda f, g, x: np.ones(3),
    "body.1, a Written, cannot be exported: it gives a NoneType": lambda f, g, x: None,
    "body.1, a Written, cannot be exported: it computes in a way": lambda f, g, x: x.swapaxes(1, 2),
    "body.1, a Written, cannot be exported: it reshapes (2, 2, 5, 5) to (100,)": lambda f, g, x: x.reshape(-1),
    "body.1, a Written, cannot be exported: it slices the batch axis": lambda f, g, x: x[:1],
    "body.1, a Written, cannot be exported: it indexes by": lambda f, g, x: x[:, [0, 1]],
    "body.1, a Written, cannot be exported: it calls add with where": lambda f, g, x: np.add(x, x, where=True),
    "body.1.one, a Conv2d, cannot be exported: it computes in a way": lambda f, g, x: f(x.swapaxes(2, 3)),
    "body.1.one, a Conv2d, cannot be exported: its input has 3 axes, expected 4": lambda f, g, x: f(x[:, 0]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_module_that_cannot_be_exported_is_named(message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=f"^to_onnx: {re.escape(message)}"):
        within(Written(REFUSED[message])).to_onnx(tmp_path / "model.onnx", np.ones((2, 2, 5, 5), np.float32))
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Doubled(), "it gives an array that no module made"),
        (nn.AdaptiveMaxPool2d(3, return_indices=True), "its windows differ in size, and it returns indices"),
        (nn.MaxPool2d(2, padding=2, dilation=3, return_indices=True), "its padding is as large as its kernel"),
    ],
)
def test_a_layer_that_onnx_cannot_say_is_named(module: nn.Module, reason: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=rf"^to_onnx: body\.1, a {type(module).__name__}, cannot be exported: {reason}"):
        within(module).to_onnx(tmp_path / "model.onnx", (2, 5, 5))


def test_what_is_no_network_or_no_example(tmp_path: Path) -> None:
    path: Any = tmp_path / "model.onnx"
    with pytest.raises(TypeError, match=r"^to_onnx: model is of type int, expected a Module"):
        export(3, path, (3, 4, 4))
    with pytest.raises(ValueError, match=r"^to_onnx: example is 0"):
        nn.ReLU().to_onnx(path, (3, 0))
    with pytest.raises(ValueError, match=r"^to_onnx: example has no axes"):
        nn.ReLU().to_onnx(path, np.array(1.0))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"^to_onnx: onnx is not installed: pip install .*\[onnx\]"):
        nn.ReLU().to_onnx(tmp_path / "model.onnx", (3, 4, 4))


def test_the_example_of_the_docstring() -> None:
    found = doctest.testmod(exporting)
    assert found.attempted > 0
    assert found.failed == 0
