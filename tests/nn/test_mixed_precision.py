"""Layers with float32 parameters that compute in 16 bits, against PyTorch's autocast, and whole trainings so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
from array_backends import ArrayBackend
from layer_cases import CASES, EVERY
from strategies import dtype_of

from gpucnn import nn
from gpucnn.nn import _family

HALVES = ("float16", "bfloat16")
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # the largest relative error of one rounding

LAYERS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
    "dense": ("Conv2d", (5, 8, 3), {"stride": 2, "padding": 1}, (2, 5, 9, 8)),
    "1d without a bias": ("Conv1d", (4, 6, 5), {"bias": False}, (2, 4, 20)),
    "3d of one image": ("Conv3d", (2, 3, 2), {"dilation": (1, 2, 1)}, (2, 4, 5, 6)),
    "groups": ("Conv2d", (6, 9, 3), {"groups": 3}, (2, 6, 7, 7)),
    "depthwise": ("Conv2d", (4, 4, 3), {"groups": 4, "padding": 1}, (2, 4, 8, 8)),
    "reflected": ("Conv2d", (3, 8, 3), {"padding": 1, "padding_mode": "reflect"}, (2, 3, 6, 6)),
    "transposed": ("ConvTranspose2d", (6, 4, 4), {"stride": 2, "padding": 1}, (2, 6, 5, 4)),
    "fully connected": ("Linear", (40, 24), {}, (6, 40)),
}


def asserted_close(actual: Any, expected: Any, dtype: str, roundings: float, label: str = "") -> None:
    """Raise unless errors are below so many roundings of the largest magnitude of `expected`."""
    assert actual.shape == expected.shape
    most = roundings * ROUNDING[dtype] * float(abs(expected).max())
    assert float(abs(actual.astype(np.float64) - expected).max()) <= most, label


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("label", LAYERS)
def test_layers_compute_as_under_autocast(backend: ArrayBackend, torch: Any, label: str, dtype: str) -> None:
    """Within four roundings: PyTorch's bias is rounded, its gradients of parameters too, and either result once."""
    name, arguments, options, shape = LAYERS[label]
    rng = np.random.default_rng(3)
    ours, theirs = getattr(nn, name)(*arguments, **options, rng=1), getattr(torch.nn, name)(*arguments, **options)
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in ours.state_dict().items()})
    x = rng.standard_normal(shape).astype(np.float32)
    leaf = torch.from_numpy(x).requires_grad_()
    with torch.autocast("cpu", dtype=getattr(torch, dtype)):
        expected = theirs(leaf)
    grad = rng.standard_normal(expected.shape).astype(dtype_of(dtype))
    expected.backward(torch.from_numpy(grad.astype(np.float32)).to(expected.dtype))

    ours.map_arrays(backend.asarray)
    with nn.mixed_precision(dtype):
        y = ours(backend.asarray(x))
    for given in (grad, grad.astype(np.float32)):
        ours.zero_grad()
        with nn.mixed_precision(dtype):
            ours(backend.asarray(x))
        grad_x = ours.backward(backend.asarray(given))  # outside of the block
        assert (y.dtype, grad_x.dtype) == (dtype_of(dtype), np.float32)
        asserted_close(backend.asnumpy(y), expected.detach().float().numpy(), dtype, 4)
        asserted_close(backend.asnumpy(grad_x), leaf.grad.numpy(), dtype, 4)
        for key, parameter in ours.named_parameters():
            assert (parameter.data.dtype, parameter.grad.dtype) == (np.float32, np.float32)
            asserted_close(backend.asnumpy(parameter.grad), getattr(theirs, key).grad.numpy(), dtype, 4, key)


@pytest.mark.parametrize("dtype", HALVES)
def test_locally_connected_layers(backend: ArrayBackend, dtype: str) -> None:
    """PyTorch has none: as the same layer in float32, to the roundings of image, weight and result."""
    layer, wide = (nn.LocallyConnected2d(3, 4, 6, 3, rng=1).map_arrays(backend.asarray) for _ in range(2))
    x = np.random.default_rng(3).standard_normal((2, 3, 6, 6)).astype(np.float32)
    with nn.mixed_precision(dtype):
        y = layer(backend.asarray(x))
    expected = wide(backend.asarray(x))
    assert y.dtype == dtype_of(dtype)
    asserted_close(backend.asnumpy(y), backend.asnumpy(expected), dtype, 4)
    grads = backend.asnumpy(layer.backward(y)), backend.asnumpy(wide.backward(expected))
    asserted_close(*grads, dtype, 12)
    for parameter, other in zip(layer.parameters(), wide.parameters(), strict=True):
        assert parameter.grad.dtype == np.float32
        asserted_close(backend.asnumpy(parameter.grad), backend.asnumpy(other.grad), dtype, 12)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", EVERY)
def test_every_layer_and_network_takes_what_the_others_give(backend: ArrayBackend, name: str, dtype: str) -> None:
    """From float32 to float32, whatever is rounded within, with the same bits each time; layers as in float32."""
    case, found = EVERY[name], []
    for _ in range(2):
        layer = case.layer(np.float32).map_arrays(backend.asarray)
        with nn.mixed_precision(dtype):
            y = layer(backend.asarray(case.input(np.float32)))
            assert y.dtype in (np.float32, dtype_of(dtype))
            grad = np.random.default_rng(4).standard_normal(y.shape).astype(y.dtype)
            grad_x = layer.backward(backend.asarray(grad))
        assert grad_x.dtype == np.float32
        assert {parameter.grad.dtype for parameter in layer.parameters()} <= {np.dtype(np.float32)}
        arrays = (y, grad_x, *(parameter.grad for parameter in layer.parameters()))
        found.append([backend.asnumpy(array).tobytes() for array in arrays])
    assert found[0] == found[1]
    if name in CASES and name != "Dropout":
        expected = case.layer(np.float32)(case.input(np.float32))
        asserted_close(backend.asnumpy(y), expected, dtype, 6)


# --- Networks -----------------------------------------------------------------------------------------------------


def network(library: Any = nn, **seed: Any) -> Any:
    return library.Sequential(
        library.Conv2d(3, 16, 3, padding=1, **seed),
        library.BatchNorm2d(16),
        library.ReLU(),
        library.MaxPool2d(2),
        library.ConvTranspose2d(16, 8, 2, 2, **seed),
        library.GroupNorm(2, 8),
        library.Sigmoid(),
        library.Conv2d(8, 8, 3, groups=8, **seed),
        library.Flatten(),
        library.Linear(8 * 36, 4, **seed),
    )


STEPS = 8


def batches() -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(5)
    y = rng.integers(0, 4, (STEPS, 6))
    x = rng.standard_normal((STEPS, 6, 3, 8, 8)) + y[..., None, None, None] / 2
    return list(zip(x.astype(np.float32), y, strict=True))


def trained_by_pytorch(torch: Any, start: dict[str, Any], dtype: str | None) -> tuple[dict[str, Any], list[float]]:
    """The state after the steps under autocast, or in float32, and the losses."""
    model = network(torch.nn)
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in start.items()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == "float16")
    losses = []
    for x, y in batches():
        with torch.autocast("cpu", dtype=getattr(torch, dtype or "bfloat16"), enabled=dtype is not None):
            loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return {name: tensor.numpy().astype(np.float64) for name, tensor in model.state_dict().items()}, losses


def trained(backend: ArrayBackend, dtype: str) -> tuple[nn.Module, list[float]]:
    model = network(rng=1).map_arrays(backend.asarray)
    optimizer, loss = nn.SGD(model.parameters(), lr=0.05, momentum=0.9), nn.CrossEntropyLoss()
    scaler = nn.LossScaler(2.0**16 if dtype == "float16" else 1.0)
    losses = []
    for x, y in batches():
        with nn.mixed_precision(dtype):
            output = model(backend.asarray(x))
            value = loss(output, backend.asarray(y))
        assert (output.dtype, value.dtype) == (dtype_of(dtype), np.float32)
        model.zero_grad()
        model.backward(loss.backward(scaler.scale))
        assert scaler.step(optimizer)
        scaler.update()
        losses.append(float(value))
    assert {array.dtype.name for array in model.state_dict().values()} == {"float32", "int64"}
    assert {array.dtype.name for state in optimizer.state.values() for array in state.values()} == {"float32"}
    return model, losses


def moved(state: dict[str, Any], start: dict[str, Any]) -> Any:
    """The way of all parameters and statistics in training, as one vector."""
    names = [name for name in start if start[name].dtype == np.float32]
    return np.concatenate([(np.asarray(state[name], np.float64) - start[name]).ravel() for name in names])


@pytest.mark.parametrize("dtype", HALVES)
def test_training_goes_the_way_that_it_goes_under_autocast(backend: ArrayBackend, torch: Any, dtype: str) -> None:
    """Within two roundings of its length and of the losses, and no further from float32's than PyTorch's is."""
    start = {name: np.array(array) for name, array in network(rng=1).state_dict().items()}
    model, losses = trained(backend, dtype)
    expected, their_losses = trained_by_pytorch(torch, start, dtype)
    exact, _ = trained_by_pytorch(torch, start, None)
    np.testing.assert_allclose(losses, their_losses, rtol=2 * ROUNDING[dtype])
    ours = {name: backend.asnumpy(array) for name, array in model.state_dict().items()}
    ways = [moved(state, start) for state in (ours, expected, exact)]
    length = float(np.linalg.norm(ways[2]))
    apart = [float(np.linalg.norm(ways[one] - ways[other])) / length for one, other in ((0, 1), (0, 2), (1, 2))]
    assert apart[0] <= 2 * ROUNDING[dtype]
    assert apart[1] <= 1.25 * apart[2]
    again, _ = trained(backend, dtype)
    assert runs.bits(again, backend.asnumpy) == runs.bits(model, backend.asnumpy)


def test_weights_are_cast_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cast = network(rng=1), []
    weights = {id(parameter.data): name for name, parameter in model.named_parameters()}
    monkeypatch.setattr(
        _family, "cast", lambda array, dtype: cast.append(weights.get(id(array))) or array.astype(dtype)
    )
    ((x, _), *_) = batches()
    with nn.mixed_precision("float16"):
        model.backward(model(x))
    assert [name for name in cast if name is not None] == ["0.weight", "4.weight", "7.weight", "9.weight"]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "join",
    [
        lambda layer, norm: nn.Residual(layer, activation=nn.ReLU()),  # the image itself is float32
        lambda layer, norm: nn.Residual(norm, layer),
        lambda layer, norm: nn.Concat(layer, nn.Sequential(layer_of(5), norm), nn.Identity()),
    ],
    ids=["identity", "shortcut", "concat"],
)
def test_branches_of_two_dtypes_are_joined_in_the_wider_one(backend: ArrayBackend, join: Any, dtype: str) -> None:
    """Each branch takes its gradient back in its own dtype, whatever layer is its last."""

    def joined() -> nn.Module:
        return join(layer_of(2), nn.BatchNorm2d(4)).map_arrays(backend.asarray)

    model, wide = joined(), joined()
    x = np.random.default_rng(3).standard_normal((2, 4, 5, 5)).astype(np.float32)
    with nn.mixed_precision(dtype):
        y = model(backend.asarray(x))
        grad = model.backward(y)
    expected = wide(backend.asarray(x))
    assert (y.dtype, grad.dtype) == (np.float32, np.float32)
    asserted_close(backend.asnumpy(y), backend.asnumpy(expected), dtype, 8)
    asserted_close(backend.asnumpy(grad), backend.asnumpy(wide.backward(expected)), dtype, 24)


def layer_of(seed: int) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1, rng=seed)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss(), nn.BCEWithLogitsLoss()], ids=repr)
@pytest.mark.parametrize("dtype", HALVES)
def test_losses_are_in_float32(backend: ArrayBackend, loss: Any, dtype: str) -> None:
    """And so is their gradient, times the scale, until it is rounded once."""
    rng = np.random.default_rng(1)
    output, target = rng.standard_normal((40, 3)).astype(dtype_of(dtype)), rng.random((40, 3)).astype(np.float32)
    with nn.mixed_precision(dtype):
        value = loss(*map(backend.asarray, (output, target)))
        grad = loss.backward(2.0**14)
    expected = loss(output.astype(np.float32), target)
    assert (value.dtype, grad.dtype) == (np.float32, dtype_of(dtype))
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    asserted_close(backend.asnumpy(grad), loss.backward(2.0**14), dtype, 1.001)


def test_layers_of_other_dtypes_stay_as_they_are() -> None:
    for dtype in (np.float64, np.complex64, np.float16):
        layer, other = nn.Linear(3, 2, dtype=dtype, rng=1), nn.Linear(3, 2, dtype=dtype, rng=1)
        x = np.ones((1, 3), dtype)
        with nn.mixed_precision("bfloat16"):
            y = layer(x)
        np.testing.assert_array_equal(y, other(x), strict=True)
        layer.backward(y), other.backward(y)
        np.testing.assert_array_equal(layer.weight.grad, other.weight.grad, strict=True)
    with nn.mixed_precision("float16"), nn.mixed_precision(None):
        assert nn.Linear(3, 2)(np.ones((1, 3), np.float32)).dtype == np.float32
    with nn.mixed_precision("float16"), pytest.raises(TypeError, match=r"^linear: input has dtype float64"):
        nn.Linear(3, 2)(np.ones((1, 3)))


def test_wrong_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("float32", "fp16", np.float16, 16, True):
        with (
            pytest.raises(ValueError, match=r"^mixed_precision: dtype is .*, expected 'float16', 'bfloat16' or None$"),
            nn.mixed_precision(wrong),
        ):
            pass
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(ModuleNotFoundError, match=r"^mixed_precision: ml_dtypes is not installed"):
        nn.mixed_precision("bfloat16").__enter__()


# --- Training by `fit` --------------------------------------------------------------------------------------------


def fitted(backend: ArrayBackend, dtype: str | None, **options: Any) -> tuple[nn.Module, nn.History]:
    model = network(rng=1).map_arrays(backend.asarray)
    optimizer = nn.SGD(model.parameters(), lr=0.05, momentum=0.9)
    history = nn.fit(
        model,
        batches(),
        **{"loss": nn.CrossEntropyLoss(), "optimizer": optimizer, "epochs": 1, "progress": False, **options},
        mixed_precision=dtype,
    )
    return model, history


@pytest.mark.parametrize("dtype", HALVES)
def test_fit_takes_the_same_steps(backend: ArrayBackend, dtype: str) -> None:
    model, losses = trained(backend, dtype)
    validation = batches()[:1]
    other, history = fitted(backend, dtype, validation=validation)
    assert runs.bits(other, backend.asnumpy) == runs.bits(model, backend.asnumpy)
    assert history.losses == [pytest.approx(np.mean(losses), rel=1e-6)]
    with nn.mixed_precision(dtype):
        assert nn.evaluate(model, validation, nn.CrossEntropyLoss()).loss == history.validation_losses[0]
    assert nn.evaluate(model, validation, nn.CrossEntropyLoss()).loss != history.validation_losses[0]


def test_gradients_are_clipped_as_they_are_without_a_scale(backend: ArrayBackend) -> None:
    """The scale is a power of two and of bfloat16's range: it changes no bit."""
    found = [
        runs.bits(fitted(backend, "bfloat16", clip_norm=0.1, scaler=scaler)[0], backend.asnumpy)
        for scaler in (None, nn.LossScaler(2.0**20))
    ]
    assert found[0] == found[1] != runs.bits(fitted(backend, "bfloat16")[0], backend.asnumpy)


@pytest.mark.parametrize("scale", [2.0**10, 2.0**40])
def test_an_overflow_is_skipped_where_gradients_are_clipped(backend: ArrayBackend, scale: float) -> None:
    """Without a warning, which would be an error here, and without a trace in the weights."""
    model, scaler = nn.Linear(2, 3, rng=0).map_arrays(backend.asarray), nn.LossScaler(scale)
    first = backend.asnumpy(model.weight.data).copy()
    batch = np.ones((1, 2), np.float32), np.zeros(1, int)
    options = {"loss": nn.CrossEntropyLoss(), "optimizer": nn.SGD(model.parameters(), 0.1), "epochs": 1}
    nn.fit(model, [batch], **options, progress=False, mixed_precision="float16", scaler=scaler, clip_norm=1.0)
    overflows = scale > 2.0**16
    assert (scaler.scale < scale) == overflows
    assert (backend.asnumpy(model.weight.data) == first).all() == overflows


def test_an_overflow_is_skipped_and_the_next_step_is_right(backend: ArrayBackend) -> None:
    """A first scale that is too large costs steps and changes nothing else."""
    batch = batches()[:1]

    def step(scale: float, epochs: int) -> tuple[Any, ...]:
        model = nn.Sequential(layer_of(1), nn.Flatten(), nn.Linear(100, 3, rng=2)).map_arrays(backend.asarray)
        optimizer, scaler = nn.Adam(model.parameters()), nn.LossScaler(scale)
        x = np.random.default_rng(1).standard_normal((6, 4, 5, 5)).astype(np.float32)
        options = {"loss": nn.CrossEntropyLoss(), "optimizer": optimizer, "epochs": epochs, "progress": False}
        nn.fit(model, [(x, batch[0][1] % 3)], mixed_precision="float16", scaler=scaler, **options)
        weights = runs.bits(model, backend.asnumpy)
        states = [{name: np.asarray(value).tobytes() for name, value in each.items()} for each in (
            {name: value if isinstance(value, int) else backend.asnumpy(value) for name, value in state.items()}
            for state in optimizer.state.values()
        )]  # fmt: skip
        return weights, states, scaler.scale

    too_large = 2.0**24
    skipped = next(count for count in range(1, 20) if step(too_large, count)[1])
    start = step(too_large, skipped - 1)
    assert start[1:] == ([], too_large / 2 ** (skipped - 1))
    assert skipped > 2
    assert start[0] == step(1.0, 0)[0]
    assert step(too_large, skipped + 2) == step(start[2], 3)


def test_a_run_goes_on_with_its_scale(tmp_path: Path) -> None:
    """Ended at any batch and resumed, it has the weights, the optimiser's state and the scale of one undisturbed."""

    def run(path: Path | None, at: int | None = None, seed: int = 0, scale: float = 2.0**26) -> Any:
        scaler = nn.LossScaler(scale, growth_interval=3)
        options = {"mixed_precision": "float16", "scaler": scaler, "early_stopping": None, "seed": seed}
        return *runs.run("list", "Adam", 1, path, at, **options), scaler.state_dict()

    undisturbed = run(None)
    assert undisturbed[-1]["scale"] < 2.0**26
    for at in range(2, runs.BATCHES * runs.EPOCHS + 1, 3):
        path = tmp_path / str(at)
        with pytest.raises(runs.EndedError):
            run(path, at)
        assert run(path, seed=9, scale=4.0) == undisturbed, at
    with pytest.raises(ValueError, match=r"holds \[.*'scaler'.*\], expected a run with"):
        runs.run("list", "Adam", 1, path, early_stopping=None)


def test_fit_refuses_other_scalers() -> None:
    with pytest.raises(TypeError, match=r"^fit: scaler is a float, expected an nn\.LossScaler$"):
        fitted(runs_on_numpy(), "float16", scaler=2.0)
    with pytest.raises(ValueError, match=r"^mixed_precision: dtype is 'half'"):
        fitted(runs_on_numpy(), "half")


def runs_on_numpy() -> ArrayBackend:
    return ArrayBackend("numpy", lambda array: array, lambda array: array)


# --- The scaler ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unscales", [False, True])
def test_the_scaler_does_as_pytorchs(backend: ArrayBackend, torch: Any, unscales: bool) -> None:
    """Two optimisers over random gradients, some infinite or NaN: parameters, steps and scales are equal."""
    options = {"growth_factor": 4.0, "backoff_factor": 0.25, "growth_interval": 3}
    theirs, ours = torch.amp.GradScaler("cpu", init_scale=2.0**10, **options), nn.LossScaler(2.0**10, **options)
    tensors = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    parameters = [nn.Parameter(backend.asarray(np.ones(3, np.float32))) for _ in range(3)]
    peers = [torch.optim.SGD(tensors[:2], lr=0.5), torch.optim.SGD(tensors[2:], lr=0.5)]
    optimizers = [nn.SGD(parameters[:2], lr=0.5), nn.SGD(parameters[2:], lr=0.5)]
    rng = np.random.default_rng(2)
    scales = set()
    for number in range(40):
        for tensor, parameter in zip(tensors, parameters, strict=True):
            grad = rng.standard_normal(3).astype(np.float32) * np.float32(ours.scale)
            if rng.random() < 0.07:
                grad[rng.integers(3)] = rng.choice([np.inf, -np.inf, np.nan])
            tensor.grad, parameter.grad = torch.from_numpy(grad.copy()), backend.asarray(grad)
        if number == 5:
            parameters[0].grad = tensors[0].grad = None
        theirs.scale(torch.ones(1))  # makes its scale a tensor
        for peer, optimizer in zip(peers, optimizers, strict=True):
            if unscales:
                theirs.unscale_(peer)
                ours.unscale_(optimizer)
            before = [parameter.data.copy() for parameter in parameters]
            theirs.step(peer)
            stepped = ours.step(optimizer)
            changed = any((b != p.data).any() for b, p in zip(before, parameters, strict=True))
            assert stepped == changed
        theirs.update()
        ours.update()
        scales.add(ours.scale)
        assert ours.state_dict() == theirs.state_dict()
        for tensor, parameter in zip(tensors, parameters, strict=True):
            np.testing.assert_array_equal(backend.asnumpy(parameter.data), tensor.detach().numpy())
    assert len(scales) > 3
    other = nn.LossScaler()
    other.load_state_dict(theirs.state_dict())
    assert other.state_dict() == ours.state_dict()


def test_the_scale_stays_in_the_range_of_float32() -> None:
    weight = nn.Parameter(np.ones(1, np.float32))
    optimizer = nn.SGD([weight])
    for scale, grad in ((2.0**127, 1.0), (2.0**-126, np.inf)):
        scaler = nn.LossScaler(scale, growth_interval=1)
        weight.grad = np.array([grad], np.float32)
        scaler.step(optimizer)
        scaler.update()
        assert 2.0**-126 <= np.float32(scaler.scale) < np.inf


def test_wrong_uses_of_the_scaler() -> None:
    weight = nn.Parameter(np.ones(1, np.float32))
    optimizer, scaler = nn.SGD([weight]), nn.LossScaler()
    weight.grad = np.ones(1, np.float32)
    with pytest.raises(RuntimeError, match=r"^LossScaler\.update: there was no step since the last update"):
        scaler.update()
    with pytest.raises(TypeError, match=r"^LossScaler: optimizer is a Parameter, expected an nn\.Optimizer$"):
        scaler.step(weight)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"^LossScaler\.unscale_: the gradients are unscaled already"):
        scaler.unscale_(optimizer)
    assert scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"^LossScaler\.step: there was a step of this optimizer"):
        scaler.step(optimizer)
    scaler.update()
    weight.grad = np.ones(1, np.float16)
    with pytest.raises(TypeError, match=r"^LossScaler\.unscale_: a gradient is float16"):
        scaler.step(optimizer)
    for name, values in {
        "init_scale": (0, -1.0, np.inf, "2", None), "growth_factor": (0.5, np.nan), "backoff_factor": (2, -0.1),
        "growth_interval": (0, 1.5),
    }.items():  # fmt: skip
        for value in values:
            with pytest.raises((TypeError, ValueError), match=rf"^LossScaler: {name} is"):
                nn.LossScaler(**{name: value})
    state = scaler.state_dict()
    for wrong, error in (({}, KeyError), ({**state, "scale": 0.0}, ValueError), ({**state, "scale": None}, TypeError)):
        with pytest.raises(error):
            scaler.load_state_dict(wrong)
        assert scaler.state_dict() == state
