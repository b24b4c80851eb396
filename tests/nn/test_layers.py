"""Behaviour common to all layers and networks: failing, freezing, keeping state, and showing themselves."""

from __future__ import annotations

import copy
import doctest
import inspect
import pickle
import re
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from array_backends import ArrayBackend
from layer_cases import CASES, EVERY, WITH_PARAMETERS, keeps_nothing, outcome
from strategies import arranged, numbers
from tolerances import assert_close

from gpucnn import nn
from gpucnn.backends.layout import is_channels_last
from gpucnn.nn.module import Module

LAYERS = [
    name
    for name in nn.__all__
    if inspect.isclass(getattr(nn, name))
    and issubclass(getattr(nn, name), Module)
    and re.match(r"gpucnn\.nn\.(convol|linear|pool|norm|activ|contain)", getattr(nn, name).__module__)
]


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        (first[key] is None and second[key] is None) or np.array_equal(first[key], second[key]) for key in first
    )


def test_each_layer_has_a_case() -> None:
    assert set(LAYERS) == set(CASES)


@pytest.mark.parametrize(
    ("name", "training"), [case for case in product(EVERY, (True, False)) if case != ("Dropout", True)]
)
def test_layers_do_the_same_on_each_backend(backend: ArrayBackend, name: str, training: bool) -> None:
    case = EVERY[name]
    layer, other = case.layer(np.float32).train(training), case.layer(np.float32).train(training)
    other.map_arrays(backend.asarray)
    expected = outcome(layer, case.input(np.float32))
    found = outcome(other, backend.asarray(case.input(np.float32)), asarray=backend.asarray)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key] is None) == (value is None)
        if value is not None:  # sums in another order, of networks layer by layer
            assert_close(backend.asnumpy(found[key]), value, factor=100 if case.settled else 10)


def test_dropout_drops_by_its_generator_and_its_gradient_the_same(
    backend: ArrayBackend, rng: np.random.Generator
) -> None:
    """Which elements, is another matter on each backend: each array library draws numbers of its own."""
    x, grad = (rng.standard_normal((40, 50)).astype(np.float32) for _ in range(2))

    def dropped(layer: nn.Dropout) -> list[np.ndarray[Any, Any]]:
        found = outcome(layer, backend.asarray(x), grad, asarray=backend.asarray)
        return [backend.asnumpy(found[key]) for key in ("output", "grad_input")]

    layer, generator = nn.Dropout(0.25, rng=3), np.random.default_rng(3)
    y, grad_input = dropped(layer)
    kept = y != 0
    assert abs(kept.mean() - 0.75) < 5 * np.sqrt(0.25 * 0.75 / x.size)  # five standard deviations of the share
    assert_close(y, np.where(kept, x / 0.75, 0))
    assert_close(grad_input, np.where(kept, grad / 0.75, 0))
    assert nn.Dropout(rng=generator).rng is generator
    np.testing.assert_array_equal(dropped(nn.Dropout(0.25, rng=generator)), [y, grad_input])
    for other in (nn.Dropout(0.25, rng=4), layer):
        assert ((dropped(other)[0] != 0) != kept).any()
    layer.rng.bit_generator.state = np.random.default_rng(3).bit_generator.state
    np.testing.assert_array_equal(dropped(layer), [y, grad_input])
    assert nn.Dropout(0.0)(x) is x
    assert not nn.Dropout(1.0)(x).any()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if len(case.shape) == 4])
def test_layers_keep_channels_last(backend: ArrayBackend, name: str, training: bool) -> None:
    layer, x = CASES[name].layer(np.float32).train(training), CASES[name].input(np.float32)
    layer.map_arrays(backend.asarray)
    y = layer(backend.asarray(arranged(x, "channels_last")))
    if y.ndim == 4:
        assert is_channels_last(y)
        grad = numbers(np.random.default_rng(3), y.shape, "float32")
        assert is_channels_last(layer.backward(backend.asarray(arranged(grad, "channels_last"))))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_dtypes_stay(name: str, dtype: Any) -> None:
    case = CASES[name]
    layer = case.layer(dtype)
    results = outcome(layer, case.input(dtype))
    for key, array in results.items():
        assert array.dtype == (np.int64 if key.endswith("num_batches_tracked") else dtype), key
    assert results["grad_input"].shape == case.shape
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.shape == parameter.shape


@pytest.mark.parametrize("name", EVERY)
def test_backward_without_forward_is_an_error(name: str) -> None:
    case = EVERY[name]
    layer, x = case.layer(), case.input()
    y = np.ones_like(case.layer()(x))

    assert keeps_nothing(layer)
    layer(x)
    layer.backward(y)
    assert keeps_nothing(layer)
    layer(x)
    layer.forget()
    assert keeps_nothing(layer)
    with nn.inference():
        assert layer(x).shape == y.shape
    assert keeps_nothing(layer)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("Identity", "Flatten")])
def test_a_gradient_of_another_shape_is_an_error(name: str) -> None:
    case = CASES[name]
    layer = case.layer()
    y = layer(case.input())
    with pytest.raises(ValueError, match=r"grad_output"):
        layer.backward(np.ones((*y.shape[:-1], y.shape[-1] + 1)) if name != "Concat" else np.ones((2, 8, 5, 5)))


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_frozen_parameters_get_no_gradient(name: str) -> None:
    case = EVERY[name]
    expected = outcome(case.layer(), case.input())
    names = [key for key, _ in case.layer().named_parameters()]
    parts = [names[::2], names[1::2]] if len(names) > 4 else [[key] for key in names]
    for frozen in [*parts, names]:
        layer = case.layer()
        for key, parameter in layer.named_parameters():
            parameter.requires_grad = key not in frozen
        found = outcome(layer, case.input())
        assert all((found.pop(f"grad of {key}") is None) for key in frozen)
        assert equal(found, {key: expected[key] for key in found})


@pytest.mark.parametrize("name", EVERY)
def test_without_the_gradient_of_the_input(name: str) -> None:
    case = EVERY[name]
    layer, expected = case.layer(), outcome(case.layer(), case.input())
    layer.needs_input_grad = False
    found = outcome(layer, case.input())
    assert found.pop("grad_input") is None
    assert equal(found, {key: expected[key] for key in found})
    layer.needs_input_grad = True  # and it can be asked for again
    assert outcome(layer, case.input())["grad_input"].shape == case.shape


@pytest.mark.parametrize("name", [name for name in WITH_PARAMETERS if re.match("Conv|Local|Linear", name)])
def test_what_no_one_wants_is_not_computed(name: str) -> None:
    case = CASES[name]
    layer = case.layer().requires_grad_(False)
    layer.needs_input_grad = False
    assert outcome(layer, case.input())["grad_input"] is None
    if name != "Linear":
        asked: list[Any] = []
        gradient = layer.gradient  # type: ignore[attr-defined]
        layer.gradient = lambda *given, **named: asked.append(named["needs"]) or gradient(*given, **named)  # type: ignore[attr-defined]
        outcome(layer, case.input())
        assert asked == [(False, False, False)]


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_gradients_add_up_until_they_are_forgotten(name: str) -> None:
    case = EVERY[name]
    layer = case.layer().eval()
    first = outcome(layer, case.input())
    for key, grad in ((key, grad) for key, grad in outcome(layer, case.input()).items() if key.startswith("grad of")):
        np.testing.assert_allclose(grad, 2 * first[key], rtol=1e-12)
    layer.zero_grad()
    assert all(parameter.grad is None for parameter in layer.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_copies_and_pickles_are_independent(name: str) -> None:
    case = EVERY[name]
    layer = case.layer()
    expected = outcome(copy.deepcopy(layer), case.input())
    assert equal(outcome(pickle.loads(pickle.dumps(layer)), case.input()), expected)
    for array in layer.state_dict().values():
        array[...] = 0
    assert not any(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("name", CASES)
def test_what_is_shown_makes_the_layer_again(name: str) -> None:
    layer = CASES[name].layer()
    text = repr(layer)
    assert text.startswith(f"{type(layer).__name__}(")
    assert text.count("(") == text.count(")")
    if "\n" not in text and not name.startswith("MaxUnpool"):
        again = eval(f"nn.{text}", {"nn": nn})
        assert repr(again) == text
        assert {key: value.shape for key, value in again.state_dict().items()} == {
            key: value.shape for key, value in layer.state_dict().items()
        }


@pytest.mark.parametrize("name", EVERY)
def test_the_state_can_be_taken_over(name: str) -> None:
    case = EVERY[name]
    layer, other = case.layer(), case.make(np.float64)
    assert other.load_state_dict({key: array.copy() for key, array in layer.state_dict().items()}) == ([], [])
    assert equal(outcome(layer, case.input()), outcome(other, case.input()))


# --- Documentation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_examples(name: str) -> None:
    found = getattr(nn, name)
    runner, report = doctest.DocTestRunner(verbose=False), []
    for test in doctest.DocTestFinder().find(found, name, globs={**vars(nn), "np": np, "nn": nn}):
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
    assert runner.tries


@pytest.mark.parametrize("name", [name for name in LAYERS if name[-1] == "d" and name[-2] in "123"])
def test_members_of_a_family_are_of_their_rank(name: str) -> None:
    layer = getattr(nn, name)
    assert layer.rank == int(name[-2])
    assert layer.__name__ == layer.__qualname__ == name
    assert f"nn.{name}" in layer.__doc__ or f"{name}(" in layer.__doc__
    with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\) got an unexpected keyword argument 'size_of_it'"):
        layer(size_of_it=1)


@pytest.mark.parametrize("layer", [nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(3)])
def test_maxima_are_not_located_where_no_backward_follows(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6))
    expected = layer(x)
    asked = []
    function = type(layer).function
    monkeypatch.setattr(type(layer), "function", staticmethod(lambda *a, **k: asked.append(k) or function(*a, **k)))
    with nn.inference():
        np.testing.assert_array_equal(layer(x), expected)
    assert not any(options.get("return_indices") for options in asked)
    with pytest.raises(RuntimeError, match="no forward"):
        layer.backward(expected)
