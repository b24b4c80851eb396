"""Optimisers against ``torch.optim``, their groups and states; gradients clipped by their norm."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from array_backends import ArrayBackend
from refusals import refused, refuses
from runs import state_bits

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


def made(name: str, options: dict[str, Any], dtype: Any = np.float64, place: Any = np.copy) -> Any:
    """An optimiser and its parameters."""
    parameters = [nn.Parameter(place(array)) for array in start(dtype)]
    return getattr(nn, name)(parameters, **options), parameters


def take_steps(
    optimizer: nn.Optimizer,
    parameters: Sequence[nn.Parameter],
    steps: range,
    dtype: Any = np.float64,
    place: Any = None,
) -> None:
    """Steps that leave the gradients, and the parameters' arrays where they are."""
    arrays = [parameter.data for parameter in parameters]
    for step in steps:
        for parameter, grad in zip(parameters, gradients(step, dtype), strict=True):
            parameter.grad = grad if place is None else place(grad)
        optimizer.step()
        for parameter, array, grad in zip(parameters, arrays, gradients(step, dtype), strict=True):
            assert parameter.data is array
            if place is None:
                np.testing.assert_array_equal(parameter.grad, grad)


class Peer:
    """The same optimiser of PyTorch with tensors of its own."""

    def __init__(self, torch: Any, name: str, options: dict[str, Any], dtype: Any = np.float64) -> None:
        self.torch, self.dtype = torch, dtype
        self.tensors = [torch.tensor(array) for array in start(dtype)]
        self.optimizer = getattr(torch.optim, name)(self.tensors, **options)

    def take_steps(self, steps: range) -> None:
        for step in steps:
            for tensor, grad in zip(self.tensors, gradients(step, self.dtype), strict=True):
                tensor.grad = self.torch.tensor(grad)
            self.optimizer.step()

    def expect(self, parameters: Sequence[nn.Parameter]) -> None:
        tolerance = TOLERANCE[self.dtype]
        for parameter, tensor in zip(parameters, self.tensors, strict=True):
            assert parameter.data.dtype == self.dtype
            np.testing.assert_allclose(parameter.data, tensor.numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_steps_are_pytorchs(torch: Any, name: str, options: dict[str, Any], dtype: Any) -> None:
    optimizer, parameters = made(name, options, dtype)
    peer = Peer(torch, name, options, dtype)
    take_steps(optimizer, parameters, range(STEPS), dtype)
    peer.take_steps(range(STEPS))
    peer.expect(parameters)
    for parameter, before in zip(parameters, start(dtype), strict=True):
        assert (parameter.data != before).all()


@pytest.mark.parametrize(("name", "options"), CASES[3:5] + CASES[7:9] + CASES[11:], ids=str)
def test_every_backend_takes_the_same_steps(backend: ArrayBackend, name: str, options: dict[str, Any]) -> None:
    optimizer, host = made(name, options, np.float32)
    take_steps(optimizer, host, range(5), np.float32)
    optimizer, device = made(name, options, np.float32, backend.asarray)
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
    ours = getattr(nn, name)([{"params": parameters[:1], "lr": 0.3}, {"params": parameters[1], "weight_decay": 0.2}])
    peer = Peer(torch, name, {})
    theirs = [{"params": peer.tensors[:1], "lr": 0.3}, {"params": peer.tensors[1], "weight_decay": 0.2}]
    peer.optimizer = getattr(torch.optim, name)(theirs)
    for step in range(4):
        if step == 2:
            ours.add_param_group({"params": parameters[2:], "lr": 0.01})
            peer.optimizer.add_param_group({"params": peer.tensors[2:], "lr": 0.01})
        take_steps(ours, parameters, range(step, step + 1))
        peer.take_steps(range(step, step + 1))
    peer.expect(parameters)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_state_goes_on_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    optimizer, whole = made(name, options, np.float32)
    take_steps(optimizer, whole, range(10), np.float32)
    first, halves = made(name, options, np.float32)
    take_steps(first, halves, range(4), np.float32)
    second = getattr(nn, name)(halves, lr=9.0)
    second.load_state_dict(first.state_dict())
    for array in (value for state in first.state.values() for value in state.values() if isinstance(value, np.ndarray)):
        array[...] = np.nan  # not shared
    take_steps(second, halves, range(4, 10), np.float32)
    assert [each.data.tobytes() for each in halves] == [each.data.tobytes() for each in whole]


@pytest.mark.parametrize(("name", "options"), CASES[4:5] + CASES[7:9], ids=str)
def test_a_state_of_pytorchs_is_taken(torch: Any, name: str, options: dict[str, Any]) -> None:
    peer = Peer(torch, name, options)
    peer.take_steps(range(3))
    parameters = [nn.Parameter(tensor.numpy().copy()) for tensor in peer.tensors]
    ours = getattr(nn, name)(parameters)
    ours.load_state_dict(peer.optimizer.state_dict())
    take_steps(ours, parameters, range(3, 8))
    peer.take_steps(range(3, 8))
    peer.expect(parameters)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_parameters_without_a_gradient_stay(name: str) -> None:
    optimizer, parameters = made(name, {"lr": 0.1, "weight_decay": 0.1})
    take_steps(optimizer, parameters, range(1))
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in parameters)
    before = [parameter.data.copy() for parameter in parameters]
    parameters[0].grad = gradients(0)[0]
    optimizer.step()
    assert (parameters[0].data != before[0]).all()
    np.testing.assert_array_equal(parameters[1].data, before[1])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_each_step_of_16_bits_is_one_of_float32_rounded_once(
    backend: ArrayBackend, name: str, options: dict[str, Any], dtype: Any
) -> None:
    optimizer, parameters = made(name, options, dtype, backend.asarray)
    model, exact = made(name, options, dtype, lambda array: array.astype(np.float32))
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


ONE = nn.Parameter(np.ones(1))

test_options_out_of_range_are_refused = refuses(
    ValueError,
    ("SGD: lr is -1, expected a number of at least 0", lambda: nn.SGD([ONE], lr=-1)),
    ("Adam: weight_decay is -1…", lambda: nn.Adam([ONE], weight_decay=-1)),
    ("SGD: momentum is -0.5…", lambda: nn.SGD([ONE], momentum=-0.5)),
    ("…nesterov is True, expected it only with a momentum above 0…", lambda: nn.SGD([ONE], nesterov=True)),
    ("…nesterov is True…", lambda: nn.SGD([ONE], nesterov=True, momentum=0.9, dampening=0.1)),
    ("Adam: eps is -1.0…", lambda: nn.Adam([ONE], eps=-1.0)),
    ("AdamW: betas is (0.9, 1.0), expected two numbers in [0, 1)", lambda: nn.AdamW([ONE], betas=(0.9, 1.0))),
    ("SGD: params is empty, expected at least one Parameter…", lambda: nn.SGD([])),
    ("…twice, expected each parameter once…", lambda: nn.SGD([ONE, ONE])),
    ("…twice, expected each parameter once…", lambda: nn.SGD([{"params": ONE}, {"params": [ONE]}])),
    ("SGD: a group has the option 'rate', expected of lr, momentum…", lambda: nn.SGD([{"params": ONE, "rate": 1}])),
)

test_options_and_parameters_of_wrong_types_are_refused = refuses(
    TypeError,
    *(
        (
            f"{make.__name__}: {name} is {value!r}, expected a number…",
            lambda make=make, name=name, value=value: make([ONE], **{name: value}),
        )
        for make, name, value in product(
            (nn.SGD, nn.Adam, nn.AdamW), ("lr", "weight_decay", "maximize"), ("0.1", None, [0.1])
        )
    ),
    ("SGD: params holds a ndarray, expected nn.Parameter…", lambda: nn.SGD([np.ones(1)])),
    ("SGD: a group is a dict without 'params'…", lambda: nn.SGD([{"parameters": ONE}])),
    ("SGD: a group is a dict without 'params'…", lambda: nn.SGD(nn.Linear(2, 2).state_dict())),
)


def test_an_optimiser_of_ones_own_says_what_it_lacks() -> None:
    parameter = nn.Parameter(np.ones(1))
    parameter.grad = parameter.data
    with pytest.raises(NotImplementedError, match="Optimizer defines no update"):
        nn.Optimizer([parameter], {"lr": 1.0, "weight_decay": 0.0}).step()


@pytest.mark.parametrize("learn", [nn.SGD, nn.Adam, nn.AdamW, lambda given: nn.clip_grad_norm_(given, 1.0)])
def test_what_is_no_parameters_is_told_to_be_models_parameters(learn: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    for given in (model, model[0], model.parameters, 3):
        with pytest.raises(TypeError, match=r"(params|parameters) is .*, expected model.parameters\(\)"):
            learn(given)


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
    before = state_bits(target), target.state_dict()["param_groups"]
    with pytest.raises(error, match=message):
        target.load_state_dict(state)
    assert (state_bits(target), target.state_dict()["param_groups"]) == before


def test_states_of_others_are_refused() -> None:
    sgd, parameters = made("SGD", {"momentum": 0.9})
    take_steps(sgd, parameters, range(1))
    adam = nn.Adam(parameters)
    take_steps(adam, parameters, range(1))
    state = adam.state_dict()
    state["state"][1].pop("exp_avg_sq")
    lacking = "…the state of parameter 1 has no exp_avg_sq, expected step, exp_avg, exp_avg_s…"
    refused(
        KeyError,
        (
            "…Adam.load_state_dict: a group has no betas, expected lr, betas…",
            lambda: adam.load_state_dict(sgd.state_dict()),
        ),
        (lacking, lambda: adam.load_state_dict(state)),
    )
    fewer, other = nn.SGD(parameters[:2]), nn.SGD(parameters[::-1], momentum=0.5)
    refused(
        ValueError,
        (
            "SGD.load_state_dict: groups have [3] parameters, expected [2]…",
            lambda: fewer.load_state_dict(sgd.state_dict()),
        ),
        (
            "…momentum_buffer of parameter 0 has shape (5, 3), expected ()…",
            lambda: other.load_state_dict(sgd.state_dict()),
        ),
    )
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
