"""Optimisers: updates of parameters by their gradients. Names, arguments and update rules as in ``torch.optim``.

They compute in the parameters' dtype, in place and in a fixed order, so that a run repeats bit for bit. For parameters
of float16 and bfloat16 they compute in float32, their states included, and round the parameter once a step: a step
below half the distance between two 16-bit numbers is lost, so learn weights of float32 where steps are that small, as
`gpucnn.nn.mixed_precision` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from gpucnn.backends import backend_of
from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.optimization import AdamStep, Descent
from gpucnn.geometry.arguments import plain
from gpucnn.nn._loading import loadable
from gpucnn.nn.module import Array, Module, Parameter

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "clip_grad_norm_"]

Parameters = Iterable[Parameter] | Iterable[Mapping[str, Any]]


class Optimizer:
    """The base of all optimisers; a subclass defines in `update` how one parameter changes.

    Parameters
    ----------
    params : iterable of Parameter, or iterable of dicts
        The parameters. Each dict is a group: "params" and the options that differ from the defaults, such as "lr".
    defaults : dict
        The options by name.

    Attributes
    ----------
    param_groups : list of dict
        The groups with all their options. Changing an option, as schedules do with "lr", holds from the next step on.
    state : dict
        The state kept for each parameter, such as a running mean of its gradients; arrays of
        float32 where the parameter has 16 bits.
    state_names : tuple of str
        The names that a state must hold to be loaded.

    Raises
    ------
    TypeError
        Something is not a Parameter.
    ValueError
        There is no parameter, or one is given twice; or an option is unknown or out of range.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, params: Parameters, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Parameter, dict[str, Any]] = {}
        given = [params] if isinstance(params, Mapping) else _listed(self._name, "params", params)
        if not given:
            raise ValueError(f"{self._name}: params is empty, expected at least one Parameter")
        for group in given if isinstance(given[0], Mapping) else [{"params": given}]:
            self.add_param_group(group)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Learn more parameters, such as those that were frozen so far.

        Parameters
        ----------
        group : dict
            "params", and the options that differ from the defaults.

        Raises
        ------
        TypeError, ValueError
            As for the parameters at the start.
        """
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(
                f"{self._name}: a group is a {type(group).__name__} without 'params', expected a dict with it"
            )
        params = _listed(self._name, "params", group["params"])
        known = {id(parameter) for other in self.param_groups for parameter in other["params"]}
        for parameter in params:
            if not isinstance(parameter, Parameter):
                raise TypeError(f"{self._name}: params holds a {type(parameter).__name__}, expected nn.Parameter")
            if id(parameter) in known:
                raise ValueError(f"{self._name}: params holds {parameter!r} twice, expected each parameter once")
            known.add(id(parameter))
        options = {name: value for name, value in group.items() if name != "params"}
        unknown = [name for name in options if name not in self.defaults]
        if unknown:
            raise ValueError(
                f"{self._name}: a group has the option {unknown[0]!r}, expected of {', '.join(self.defaults)}"
            )
        whole = {"params": params, **_plain({**self.defaults, **options})}
        self.check(whole)
        self.param_groups.append(whole)

    def check(self, group: dict[str, Any]) -> None:
        """Raise ValueError if an option of `group` is out of range, TypeError if it is of another type."""
        for name, value in group.items():
            if name != "params" and not isinstance(value, Real | tuple) and getattr(value, "ndim", None) != 0:
                raise TypeError(f"{self._name}: {name} is {value!r}, expected a number")
        for name in ("lr", "weight_decay"):
            self.expect(group[name] >= 0, group, name, "a number of at least 0")

    def expect(self, fits: bool, group: dict[str, Any], name: str, expected: str) -> None:
        """Raise ValueError about the option `name` unless `fits`."""
        if not fits:
            raise ValueError(f"{self._name}: {name} is {group[name]}, expected {expected}")

    def zero_grad(self) -> None:
        """Drop the gradients of all parameters."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def step(self) -> None:
        """Change each parameter that has a gradient."""
        for group in map(_plain, self.param_groups):  # a caller or a schedule may have set a NumPy number
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._change(parameter, parameter.grad, group)

    def _change(self, parameter: Parameter, grad: Array, group: dict[str, Any]) -> None:
        """Update one parameter: in float32 if it has 16 bits, in which small squares are 0 and large ones infinite."""
        data = parameter.data
        wide = data.astype(accumulator(data.dtype), copy=False)
        grad = grad.astype(accumulator(grad.dtype), copy=False)
        self.update(wide, grad, self.state.setdefault(parameter, {}), group)
        if wide.dtype != data.dtype:
            data[...] = wide

    def update(self, data: Array, grad: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Change `data` in place, which is float32 where the parameter has 16 bits.

        Parameters
        ----------
        data, grad : array
            The parameter's values and its gradient, which is not written to.
        state : dict
            The state of this parameter, kept from one step to the next.
        group : dict
            The options.
        """
        raise NotImplementedError(f"{self._name} defines no update")

    def state_dict(self) -> dict[str, Any]:
        """The state and the options of the groups, in PyTorch's structure; the arrays are not copied.

        Returns
        -------
        dict
            "state": by the number of a parameter its state; "param_groups": the options, "params" as numbers.
        """
        numbers: dict[Parameter, int] = {}
        groups = []
        for group in self.param_groups:
            own = [numbers.setdefault(parameter, len(numbers)) for parameter in group["params"]]
            groups.append({**{name: value for name, value in group.items() if name != "params"}, "params": own})
        return {"state": {numbers[each]: dict(state) for each, state in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of another optimiser of the same kind for the same parameters.

        Parameters
        ----------
        state : dict
            As `state_dict` gives. Arrays are copied to the parameters' device, in their dtype, or in float32 where that
            has 16 bits.

        Raises
        ------
        KeyError
            A part, an option or a number that is remembered is missing; nothing was changed.
        TypeError
            A value is no array of numbers; nothing was changed.
        ValueError
            The groups are others, a shape is, or an option is out of range; nothing was changed.

        Notes
        -----
        Options that this optimiser does not have, such as PyTorch's ``foreach``, are left out.
        """
        op = f"{self._name}.load_state_dict"
        _expect_names(op, "state", state, ("state", "param_groups"))
        groups = state["param_groups"]
        counts = [len(group["params"]) for group in groups]
        expected = [len(group["params"]) for group in self.param_groups]
        if counts != expected:
            raise ValueError(f"{op}: groups have {counts} parameters, expected {expected} as in this one")
        options = [self._loaded_options(op, group) for group in groups]
        entries = {int(number): values for number, values in state["state"].items()}
        loaded = {
            parameter: self._loaded_state(op, number, entries[number], parameter)
            for ours, theirs in zip(self.param_groups, groups, strict=True)
            for parameter, number in zip(ours["params"], theirs["params"], strict=True)
            if number in entries
        }
        self.state = loaded
        for group, changed in zip(self.param_groups, options, strict=True):
            group.update(changed)

    def _loaded_options(self, op: str, group: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a group that this optimiser has; those that were a list in a file are a tuple."""
        _expect_names(op, "a group", group, tuple(self.defaults))
        values = {name: group[name] for name in self.defaults}
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        self.check(options)
        return options

    def _loaded_state(self, op: str, number: int, values: Mapping[str, Any], parameter: Parameter) -> dict[str, Any]:
        """Copies of the state of one parameter; a count as a number."""
        _expect_names(op, f"the state of parameter {number}", values, self.state_names if values else ())
        loaded: dict[str, Any] = {}
        for name, value in values.items():
            if name == "step":
                loaded[name] = int(loadable(op, f"{name} of parameter {number}", value, np.zeros((), np.int64)))
            elif value is not None:
                dtype = accumulator(parameter.data.dtype)
                copied = backend_of(parameter.data).xp.empty_like(parameter.data, dtype=dtype)
                copied[...] = loadable(op, f"{name} of parameter {number}", value, copied)
                loaded[name] = copied
        return loaded

    def __repr__(self) -> str:
        groups = "; ".join(
            ", ".join(
                [
                    f"{len(group['params'])} parameters",
                    *(f"{name}={value!r}" for name, value in group.items() if name != "params"),
                ]
            )
            for group in self.param_groups
        )
        return f"{self._name}({groups})"


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if wanted.

    Parameters
    ----------
    params : iterable of Parameter, or iterable of dicts
        The parameters, or groups of them with separate options.
    lr : float
        Learning rate.
    momentum : float
        Share of the last step's direction that is kept.
    dampening : float
        Share of the gradient that momentum leaves out.
    weight_decay : float
        Times the parameter is added to its gradient (L2 penalty).
    nesterov : bool
        Look ahead along the momentum; needs a momentum and no dampening.
    maximize : bool
        Go up instead of down.

    Raises
    ------
    TypeError, ValueError
        As `Optimizer`.

    Notes
    -----
    With the gradient g, weight decay included: v = momentum * v + (1 - dampening) * g, where the first v is g; then
    w -= lr * v, or for Nesterov w -= lr * (g + momentum * v). As ``torch.optim.SGD``.

    References
    ----------
    I. Sutskever et al., *On the importance of initialization and momentum in deep learning*, ICML 2013.

    Examples
    --------
    >>> weight = Parameter(np.array([1.0]))
    >>> optimizer = SGD([weight], lr=0.1)
    >>> weight.accumulate(np.array([2.0]))
    >>> optimizer.step()
    >>> weight.data
    array([0.8])
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**options, "nesterov": nesterov, "maximize": maximize})

    def check(self, group: dict[str, Any]) -> None:
        """Raise ValueError if an option of `group` is out of range."""
        super().check(group)
        self.expect(group["momentum"] >= 0, group, "momentum", "a number of at least 0")
        fits = not group["nesterov"] or (group["momentum"] > 0 and group["dampening"] == 0)
        self.expect(fits, group, "nesterov", "it only with a momentum above 0 and a dampening of 0")

    def update(self, data: Array, grad: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Change `data` in place."""
        backend, momentum = backend_of(data), group["momentum"]
        is_first = bool(momentum) and "momentum_buffer" not in state
        if is_first:
            state["momentum_buffer"] = backend.xp.empty_like(data)
        step = Descent(
            lr=group["lr"],
            momentum=momentum,
            gradient_share=1 - group["dampening"],
            weight_decay=group["weight_decay"],
            nesterov=bool(group["nesterov"]),
            maximize=bool(group["maximize"]),
            is_first=is_first,
        )
        backend.sgd(data, grad, state["momentum_buffer"] if momentum else None, step)


class Adam(Optimizer):
    """Steps by running means of the gradient and of its square, with a separate rate for each parameter.

    Parameters
    ----------
    params : iterable of Parameter, or iterable of dicts
        The parameters, or groups of them with separate options.
    lr : float
        Learning rate.
    betas : tuple of (float, float)
        How much of the running means of the gradient and of its square stays at each step.
    eps : float
        Added to the root in the denominator.
    weight_decay : float
        Times the parameter is added to its gradient (L2 penalty). For decoupled decay see `AdamW`.
    amsgrad : bool
        Divide by the largest running mean of the square so far, instead of the present one.
    maximize : bool
        Go up instead of down.

    Raises
    ------
    TypeError, ValueError
        As `Optimizer`.

    Notes
    -----
    At step t: m += (1 - b1) * (g - m), v = b2 * v + (1 - b2) * g², then
    w -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps). As ``torch.optim.Adam``.

    References
    ----------
    D. Kingma, J. Ba, *Adam*, ICLR 2015; S. Reddi et al., *On the convergence of Adam and beyond*, ICLR 2018.

    Examples
    --------
    >>> weight = Parameter(np.array([1.0]))
    >>> optimizer = Adam([weight], lr=0.1)
    >>> weight.accumulate(np.array([2.0]))
    >>> optimizer.step()
    >>> weight.data.round(6)
    array([0.9])
    """

    state_names = ("step", "exp_avg", "exp_avg_sq")
    decoupled = False  # whether the weight decay is separate from the gradient

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**options, "amsgrad": amsgrad, "maximize": maximize})

    def check(self, group: dict[str, Any]) -> None:
        """Raise ValueError if an option of `group` is out of range."""
        super().check(group)
        self.expect(group["eps"] >= 0, group, "eps", "a number of at least 0")
        fits = len(group["betas"]) == 2 and all(0 <= beta < 1 for beta in group["betas"])
        self.expect(fits, group, "betas", "two numbers in [0, 1)")

    def update(self, data: Array, grad: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Change `data` in place."""
        backend = backend_of(data)
        xp, lr, (beta1, beta2) = backend.xp, group["lr"], group["betas"]
        if not state:
            state |= {"step": 0, "exp_avg": xp.zeros_like(data), "exp_avg_sq": xp.zeros_like(data)}
        if group["amsgrad"] and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = xp.zeros_like(data)
        state["step"] += 1
        step = AdamStep(
            rate=lr / (1 - beta1 ** state["step"]),
            gradient_share=1 - beta1,
            kept_square=beta2,
            square_share=1 - beta2,
            square_correction=math.sqrt(1 - beta2 ** state["step"]),
            eps=group["eps"],
            weight_decay=0.0 if self.decoupled else group["weight_decay"],
            shrinkage=1 - lr * group["weight_decay"] if self.decoupled else 1.0,
            maximize=bool(group["maximize"]),
        )
        most = state["max_exp_avg_sq"] if group["amsgrad"] else None
        backend.adam(data, grad, state["exp_avg"], state["exp_avg_sq"], most, step)


class AdamW(Adam):
    """As `Adam`, but the weight decay shrinks the parameters separately from their gradients.

    Parameters
    ----------
    params : iterable of Parameter, or iterable of dicts
        The parameters, or groups of them with separate options.
    lr : float
        Learning rate.
    betas : tuple of (float, float)
        How much of the running means of the gradient and of its square stays at each step.
    eps : float
        Added to the root in the denominator.
    weight_decay : float
        Each step starts with w *= 1 - lr * weight_decay.
    amsgrad : bool
        Divide by the largest running mean of the square so far, instead of the present one.
    maximize : bool
        Go up instead of down.

    Raises
    ------
    TypeError, ValueError
        As `Optimizer`.

    References
    ----------
    I. Loshchilov, F. Hutter, *Decoupled weight decay regularization*, ICLR 2019.

    Examples
    --------
    >>> AdamW([Parameter(np.ones(3))]).param_groups[0]["weight_decay"]
    0.01
    """

    decoupled = True

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options with an array library's numbers as Python's, since the former would widen sums with arrays."""
    return {
        name: tuple(map(plain, value)) if isinstance(value, tuple) else plain(value) for name, value in group.items()
    }


def _listed(op: str, name: str, given: Any) -> list[Any]:
    """One parameter, or an iterable of them or of groups, as a list.

    Raises
    ------
    TypeError
        It is a model, a method that was not called, or not iterable.
    """
    if isinstance(given, Parameter):
        return [given]
    if isinstance(given, Module) or callable(given):
        what = f"a {type(given).__name__}" if isinstance(given, Module) else "a function that was not called"
        raise TypeError(f"{op}: {name} is {what}, expected model.parameters()")
    if not isinstance(given, Iterable):
        raise TypeError(f"{op}: {name} is a {type(given).__name__}, expected model.parameters()")
    return list(given)


def _expect_names(op: str, what: str, values: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raise KeyError unless `values` has all of `names`."""
    missing = [name for name in names if name not in values]
    if missing:
        raise KeyError(f"{op}: {what} has no {missing[0]}, expected {', '.join(names)}")


def clip_grad_norm_(
    parameters: Parameter | Iterable[Parameter],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> float:
    """Scale all gradients by one factor, so that together their norm is at most `max_norm`.

    Parameters
    ----------
    parameters : Parameter or iterable of Parameter
        Those whose gradients count; the ones without a gradient do not.
    max_norm : float
        The largest norm that is left.
    norm_type : float
        Above 0, or infinity for the largest magnitude.
    error_if_nonfinite : bool
        Whether a norm that is NaN or infinite is an error; else the gradients become NaN or 0.

    Returns
    -------
    float
        The norm before.

    Raises
    ------
    ValueError
        The norm is not finite, and `error_if_nonfinite`; or `norm_type` or `max_norm` is out of range.

    Notes
    -----
    As ``torch.nn.utils.clip_grad_norm_``, in float64 and in the order of the parameters. It waits for a device.

    Examples
    --------
    >>> weight = Parameter(np.zeros(2))
    >>> weight.accumulate(np.array([3.0, 4.0]))
    >>> clip_grad_norm_([weight], 1.0)
    5.0
    >>> weight.grad.round(4)
    array([0.6, 0.8])
    """
    max_norm, norm_type = plain(max_norm), plain(norm_type)
    if not (norm_type > 0 and max_norm >= 0):
        raise ValueError(
            f"clip_grad_norm_: norm_type is {norm_type} and max_norm is {max_norm}, expected above 0 and at least 0"
        )
    every = _listed("clip_grad_norm_", "parameters", parameters)
    having = [(parameter, parameter.grad) for parameter in every if parameter.grad is not None and parameter.size]
    norm = _norm([grad for _, grad in having], norm_type)
    if error_if_nonfinite and not math.isfinite(norm):
        raise ValueError(f"clip_grad_norm_: the norm of the gradients is {norm}, expected a finite one")
    factor = max_norm / (norm + 1e-6)
    if not factor >= 1.0:  # NaN as well
        for parameter, grad in having:
            scaled = grad.astype(accumulator(grad.dtype), copy=False) * factor  # 16 bits would round the factor itself
            parameter.grad = scaled.astype(grad.dtype, copy=False)
    return norm


def _norm(grads: list[Array], norm_type: float) -> float:
    if math.isinf(norm_type):
        return float(np.max([float(abs(grad).max()) for grad in grads], initial=0.0))
    total = 0.0
    for grad in grads:
        wide = abs(grad.astype(np.float64))
        wide **= norm_type
        total += float(wide.sum())
    return float(total ** (1.0 / norm_type))
