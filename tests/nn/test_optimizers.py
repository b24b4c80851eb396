"""Optimisers against ``torch.optim``, their groups and states; gradients clipped by their norm."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from array_backends import ArrayBackend

from gpucnn import nn

SHAPES = ((5, 3), (7,), ())
STEPS = 25

CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.8, "maximize": True, "weight_decay": 0.01}),
    ("Adam", {}),
    ("Adam", {"lr": 0.05, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.05, "amsgrad": True}),
    ("Adam", {"lr": 0.05, "maximize": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.2, "amsgrad": True}),
]
TOLERANCE = {np.float32: 2e-6, np.float64: 1e-13}  # relative to 1, over all steps


def start(dtype: Any = np.float64) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def gradients(step: int, dtype: Any = np.float64) -> list[np.ndarray]:
    rng = np.random.default_rng(100 + step)
    return [np.asarray(rng.standard_normal(shape) * 3.0 ** (step % 3 - 1), dtype) for shape in SHAPES]


def take_steps(
    optimizer: nn.Optimizer,
    parameters: Sequence[nn.Parameter],
    steps: range,
    dtype: Any = np.float64,
    place: Any = None,
) -> None:
    for step in steps:
        for parameter, grad in zip(parameters, gradients(step, dtype), strict=True):
            parameter.grad = grad if place is None else place(grad)
        optimizer.step()


def torch_steps(torch: Any, optimizer: Any, tensors: Sequence[Any], steps: range, dtype: Any = np.float64) -> None:
    for step in steps:
        for tensor, grad in zip(tensors, gradients(step, dtype), strict=True):
            tensor.grad = torch.tensor(grad)
        optimizer.step()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_steps_are_pytorchs(torch: Any, name: str, options: dict[str, Any], dtype: Any) -> None:
    parameters = [nn.Parameter(array) for array in start(dtype)]
    tensors = [torch.tensor(array) for array in start(dtype)]
    take_steps(getattr(nn, name)(parameters, **options), parameters, range(STEPS), dtype)
    torch_steps(torch, getattr(torch.optim, name)(tensors, **options), tensors, range(STEPS), dtype)
    for parameter, tensor, before in zip(parameters, tensors, start(dtype), strict=True):
        assert parameter.data.dtype == dtype
        np.testing.assert_allclose(parameter.data, tensor.numpy(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        assert (parameter.data != before).all()


@pytest.mark.parametrize(("name", "options"), CASES[3:5] + CASES[7:9] + CASES[11:], ids=str)
def test_every_backend_takes_the_same_steps(backend: ArrayBackend, name: str, options: dict[str, Any]) -> None:
    host = [nn.Parameter(array) for array in start(np.float32)]
    device = [nn.Parameter(backend.asarray(array)) for array in start(np.float32)]
    take_steps(getattr(nn, name)(host, **options), host, range(5), np.float32)
    optimizer = getattr(nn, name)(device, **options)
    take_steps(optimizer, device, range(5), np.float32, backend.asarray)
    for ours, theirs in zip(device, host, strict=True):
        tolerance = 0 if backend.name != "cuda" else 1e-6
        np.testing.assert_allclose(backend.asnumpy(ours.data), theirs.data, rtol=tolerance, atol=tolerance)
    norm = nn.clip_grad_norm_(device, 0.5)
    assert norm == pytest.approx(nn.clip_grad_norm_(host, 0.5), rel=1e-6)
    assert nn.clip_grad_norm_(device, 9.0) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_groups_have_options_of_their_own(torch: Any, name: str) -> None:
    parameters = [nn.Parameter(array) for array in start()]
    tensors = [torch.tensor(array) for array in start()]
    ours = getattr(nn, name)([{"params": parameters[:1], "lr": 0.3}, {"params": parameters[1], "weight_decay": 0.2}])
    theirs = getattr(torch.optim, name)(
        [{"params": tensors[:1], "lr": 0.3}, {"params": tensors[1], "weight_decay": 0.2}]
    )
    for step in range(4):
        if step == 2:
            ours.add_param_group({"params": parameters[2:], "lr": 0.01})
            theirs.add_param_group({"params": tensors[2:], "lr": 0.01})
        take_steps(ours, parameters, range(step, step + 1))
        torch_steps(torch, theirs, tensors, range(step, step + 1))
    for parameter, tensor in zip(parameters, tensors, strict=True):
        np.testing.assert_allclose(parameter.data, tensor.numpy(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_state_goes_on_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    whole = [nn.Parameter(array) for array in start(np.float32)]
    take_steps(getattr(nn, name)(whole, **options), whole, range(10), np.float32)
    halves = [nn.Parameter(array) for array in start(np.float32)]
    first = getattr(nn, name)(halves, **options)
    take_steps(first, halves, range(4), np.float32)
    second = getattr(nn, name)(halves, lr=9.0)
    second.load_state_dict(first.state_dict())
    for array in (value for state in first.state.values() for value in state.values() if isinstance(value, np.ndarray)):
        array[...] = np.nan  # not shared
    take_steps(second, halves, range(4, 10), np.float32)
    assert [each.data.tobytes() for each in halves] == [each.data.tobytes() for each in whole]


@pytest.mark.parametrize(("name", "options"), CASES[4:5] + CASES[7:9], ids=str)
def test_a_state_of_pytorchs_is_taken(torch: Any, name: str, options: dict[str, Any]) -> None:
    tensors = [torch.tensor(array) for array in start()]
    theirs = getattr(torch.optim, name)(tensors, **options)
    torch_steps(torch, theirs, tensors, range(3))
    parameters = [nn.Parameter(tensor.numpy().copy()) for tensor in tensors]
    ours = getattr(nn, name)(parameters)
    ours.load_state_dict(theirs.state_dict())
    take_steps(ours, parameters, range(3, 8))
    torch_steps(torch, theirs, tensors, range(3, 8))
    for parameter, tensor in zip(parameters, tensors, strict=True):
        np.testing.assert_allclose(parameter.data, tensor.numpy(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_gradients_and_places_stay(name: str, options: dict[str, Any]) -> None:
    parameters = [nn.Parameter(array) for array in start()]
    arrays = [parameter.data for parameter in parameters]
    optimizer = getattr(nn, name)(parameters, **options)
    for step in range(3):
        take_steps(optimizer, parameters, range(step, step + 1))
        for parameter, grad in zip(parameters, gradients(step), strict=True):
            np.testing.assert_array_equal(parameter.grad, grad)
    assert all(parameter.data is array for parameter, array in zip(parameters, arrays, strict=True))


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_parameters_without_a_gradient_stay(name: str) -> None:
    parameters = [nn.Parameter(array) for array in start()]
    optimizer = getattr(nn, name)(parameters, lr=0.1, weight_decay=0.1)
    take_steps(optimizer, parameters, range(1))
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in parameters)
    before = [parameter.data.copy() for parameter in parameters]
    parameters[0].grad = gradients(0)[0]
    optimizer.step()
    assert (parameters[0].data != before[0]).all()
    np.testing.assert_array_equal(parameters[1].data, before[1])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_16_bits_stay_16_bits(name: str, dtype: Any) -> None:
    parameters = [nn.Parameter(array) for array in start(dtype)]
    optimizer = getattr(nn, name)(parameters, lr=0.01, weight_decay=0.1)
    take_steps(optimizer, parameters, range(3), dtype)
    exact = [nn.Parameter(array) for array in start()]
    take_steps(getattr(nn, name)(exact, lr=0.01, weight_decay=0.1), exact, range(3))
    for parameter, expected in zip(parameters, exact, strict=True):
        assert parameter.data.dtype == dtype
        np.testing.assert_allclose(parameter.data.astype(float), expected.data, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_each_step_of_16_bits_is_one_of_float32_rounded_once(
    backend: ArrayBackend, name: str, options: dict[str, Any], dtype: Any
) -> None:
    parameters = [nn.Parameter(backend.asarray(array)) for array in start(dtype)]
    exact = [nn.Parameter(array.astype(np.float32)) for array in start(dtype)]
    optimizer, model = getattr(nn, name)(parameters, **options), getattr(nn, name)(exact, **options)
    for step in range(4):
        for parameter, grad in zip(exact, gradients(step, dtype), strict=True):
            parameter.grad = grad.astype(np.float32)
        take_steps(optimizer, parameters, range(step, step + 1), dtype, backend.asarray)
        model.step()
        for parameter, expected in zip(parameters, exact, strict=True):
            expected.data[...] = expected.data.astype(dtype)
            np.testing.assert_array_equal(backend.asnumpy(parameter.data), expected.data.astype(dtype))
    for state, expected_state in zip(optimizer.state.values(), model.state.values(), strict=True):
        for key in state.keys() - {"step"}:
            assert state[key].dtype == np.float32
            np.testing.assert_array_equal(backend.asnumpy(state[key]), expected_state[key])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-5, 1e-4, 300.0])
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_squares_that_16_bits_have_not_leave_the_step_as_long_as_the_rate(name: str, size: float, dtype: Any) -> None:
    parameter = nn.Parameter(np.zeros(2, dtype))
    parameter.grad = np.full(2, size, dtype)
    optimizer = getattr(nn, name)([parameter], lr=0.25)
    optimizer.step()
    expected = -0.25 if size else 0.0  # the mean over the root of the mean square is 1, eps of 1e-8 aside
    np.testing.assert_allclose(parameter.data.astype(float), expected, rtol=2e-3)


def test_a_state_of_16_bits_is_loaded_as_float32() -> None:
    parameter = nn.Parameter(np.ones(2, np.float16))
    optimizer = nn.Adam([parameter])
    state = {"step": 3, "exp_avg": np.ones(2, np.float16), "exp_avg_sq": np.full(2, 1e-9)}
    optimizer.load_state_dict({"state": {0: state}, "param_groups": optimizer.state_dict()["param_groups"]})
    loaded = optimizer.state[parameter]
    assert loaded["exp_avg"].dtype == loaded["exp_avg_sq"].dtype == np.float32
    np.testing.assert_allclose(loaded["exp_avg_sq"], 1e-9, rtol=1e-6)


def test_an_optimiser_shows_its_options() -> None:
    optimizer = nn.SGD([{"params": [nn.Parameter(np.ones(2))]}, {"params": nn.Parameter(np.ones(1)), "lr": 0.5}])
    assert repr(optimizer).startswith("SGD(1 parameters, lr=0.001, momentum=0.0")
    assert "; 1 parameters, lr=0.5" in repr(optimizer)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("SGD", {"lr": -1}, "SGD: lr is -1, expected a number of at least 0"),
        ("Adam", {"weight_decay": -1}, "Adam: weight_decay is -1"),
        ("SGD", {"momentum": -0.5}, "SGD: momentum is -0.5"),
        ("SGD", {"nesterov": True}, "nesterov is True, expected it only with a momentum above 0"),
        ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov is True"),
        ("Adam", {"eps": -1.0}, "Adam: eps is -1.0"),
        ("AdamW", {"betas": (0.9, 1.0)}, r"AdamW: betas is \(0.9, 1.0\), expected two numbers in \[0, 1\)"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(nn, name)([nn.Parameter(np.ones(1))], **options)


@pytest.mark.parametrize("name", ["lr", "weight_decay", "maximize"])
@pytest.mark.parametrize("value", ["0.1", None, [0.1]])
def test_options_that_are_no_numbers_are_named(name: str, value: Any) -> None:
    for make in (nn.SGD, nn.Adam, nn.AdamW):
        with pytest.raises(TypeError, match=f"{make.__name__}: {name} is {re.escape(repr(value))}, expected a number"):
            make([nn.Parameter(np.ones(1))], **{name: value})


def test_wrong_parameters_are_refused() -> None:
    one = nn.Parameter(np.ones(1))
    with pytest.raises(ValueError, match="SGD: params is empty, expected at least one Parameter"):
        nn.SGD([])
    with pytest.raises(TypeError, match=r"SGD: params holds a ndarray, expected nn.Parameter"):
        nn.SGD([np.ones(1)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="twice, expected each parameter once"):
        nn.SGD([one, one])
    with pytest.raises(ValueError, match="twice, expected each parameter once"):
        nn.SGD([{"params": one}, {"params": [one]}])
    with pytest.raises(ValueError, match="SGD: a group has the option 'rate', expected of lr, momentum"):
        nn.SGD([{"params": one, "rate": 1}])
    with pytest.raises(TypeError, match="SGD: a group is a dict without 'params'"):
        nn.SGD([{"parameters": one}])
    with pytest.raises(TypeError, match="SGD: a group is a dict without 'params'"):
        nn.SGD(nn.Linear(2, 2).state_dict())  # type: ignore[arg-type]
    one.grad = one.data
    with pytest.raises(NotImplementedError, match="Optimizer defines no update"):
        nn.Optimizer([one], {"lr": 1.0, "weight_decay": 0.0}).step()


@pytest.mark.parametrize("learn", [nn.SGD, nn.Adam, nn.AdamW, lambda given: nn.clip_grad_norm_(given, 1.0)])
def test_what_is_no_parameters_is_told_to_be_models_parameters(learn: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    for given in (model, model[0], model.parameters, 3):
        with pytest.raises(TypeError, match=r"(params|parameters) is .*, expected model.parameters\(\)"):
            learn(given)


def held(optimizer: nn.Optimizer) -> Any:
    """All that an optimiser remembers, in a form that can be compared."""
    state = optimizer.state_dict()
    arrays = {
        (number, name): np.asarray(value).tobytes()
        for number, values in state["state"].items()
        for name, value in values.items()
    }
    return arrays, state["param_groups"]


@pytest.mark.parametrize("name", ["SGD", "Adam"])
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda state: state.pop("param_groups"), KeyError, "state has no param_groups"),
        (lambda state: state["param_groups"][-1].pop("weight_decay"), KeyError, "a group has no weight_decay"),
        (lambda state: state["param_groups"][-1].update(lr=-1.0), ValueError, "lr is -1.0"),
        (lambda state: state["state"][2].update(dict.fromkeys(state["state"][2], np.ones(9))), ValueError, "shape"),
        (lambda state: state["state"][2].update(dict.fromkeys(state["state"][2], "x")), TypeError, "dtype"),
        (lambda state: state["state"][2].update(dict.fromkeys(state["state"][2], 1j)), TypeError, "dtype"),
    ],
)
def test_a_state_is_loaded_whole_or_not_at_all(name: str, wrong: Any, error: type[Exception], message: str) -> None:
    def optimizer(lr: float, steps: int) -> nn.Optimizer:
        parameters = [nn.Parameter(array) for array in start()]
        groups: list[dict[str, Any]] = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": lr / 2}]
        made: nn.Optimizer = getattr(nn, name)(groups, lr, **({"momentum": 0.9} if name == "SGD" else {}))
        take_steps(made, parameters, range(steps))
        return made

    state, target = optimizer(0.5, 3).state_dict(), optimizer(0.1, 1)
    wrong(state)
    before = held(target)
    with pytest.raises(error, match=message):
        target.load_state_dict(state)
    assert held(target) == before


def test_a_state_of_another_kind_of_optimiser_is_refused() -> None:
    parameters = [nn.Parameter(array) for array in start()]
    with pytest.raises(KeyError, match=r"Adam.load_state_dict: a group has no betas, expected lr, betas"):
        nn.Adam(parameters).load_state_dict(nn.SGD(parameters).state_dict())
    optimizer = nn.Adam(parameters)
    take_steps(optimizer, parameters, range(1))
    state = optimizer.state_dict()
    state["state"][1].pop("exp_avg_sq")
    with pytest.raises(KeyError, match="the state of parameter 1 has no exp_avg_sq, expected step, exp_avg, exp_avg_s"):
        optimizer.load_state_dict(state)


def test_states_of_others_are_refused() -> None:
    parameters = [nn.Parameter(array) for array in start()]
    optimizer = nn.SGD(parameters, momentum=0.9)
    take_steps(optimizer, parameters, range(1))
    with pytest.raises(ValueError, match=r"SGD.load_state_dict: groups have \[3\] parameters, expected \[2\]"):
        nn.SGD(parameters[:2]).load_state_dict(optimizer.state_dict())
    other = nn.SGD(parameters[::-1], momentum=0.5)
    with pytest.raises(ValueError, match=r"momentum_buffer of parameter 0 has shape \(5, 3\), expected \(\)"):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state
    assert other.param_groups[0]["momentum"] == 0.5


# --- The norm of gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.5, float("inf")])
@pytest.mark.parametrize("max_norm", [0.7, 1e3, 0.0])
def test_clipping_is_pytorchs(torch: Any, norm_type: float, max_norm: float) -> None:
    parameters, tensors = [nn.Parameter(array) for array in start()], [torch.tensor(array) for array in start()]
    for parameter, tensor, grad in zip(parameters[1:], tensors[1:], gradients(0)[1:], strict=True):
        parameter.grad, tensor.grad = grad, torch.tensor(grad)
    expected = torch.nn.utils.clip_grad_norm_(tensors, max_norm, norm_type)
    assert nn.clip_grad_norm_(iter(parameters), max_norm, norm_type) == pytest.approx(float(expected), rel=1e-12)
    assert parameters[0].grad is None
    for parameter, tensor in zip(parameters[1:], tensors[1:], strict=True):
        np.testing.assert_allclose(parameter.grad, tensor.grad.numpy(), rtol=1e-12)


def test_clipping_where_there_is_no_finite_norm() -> None:
    parameter = nn.Parameter(np.zeros(2, np.float32))
    assert nn.clip_grad_norm_([parameter], 1.0) == 0.0
    parameter.grad = np.array([np.nan, 1.0], np.float32)
    with pytest.raises(ValueError, match="norm of the gradients is nan, expected a finite one"):
        nn.clip_grad_norm_(parameter, 1.0, error_if_nonfinite=True)
    assert np.isnan(nn.clip_grad_norm_(parameter, 1.0))
    assert np.isnan(parameter.grad).all()
    assert parameter.grad.dtype == np.float32
    with pytest.raises(ValueError, match="norm_type is 0 and max_norm is 1"):
        nn.clip_grad_norm_(parameter, 1, 0)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_clipping_by_a_factor_that_16_bits_have_not(backend: ArrayBackend, dtype: Any) -> None:
    parameter = nn.Parameter(backend.asarray(np.zeros(2, dtype)))
    parameter.grad = backend.asarray(np.array([30000, 40000], dtype))
    nn.clip_grad_norm_(parameter, 5e-4)
    clipped = backend.asnumpy(parameter.grad)
    assert clipped.dtype == dtype
    np.testing.assert_allclose(clipped.astype(float), [3e-4, 4e-4], rtol=1e-2)


def test_squares_that_overflow_float32_are_no_infinite_norm() -> None:
    parameter = nn.Parameter(np.zeros(2, np.float32))
    parameter.grad = np.array([3e30, 4e30], np.float32)
    assert nn.clip_grad_norm_([parameter], 1.0) == pytest.approx(5e30)
