"""Learning-rate schedules: changes of an optimiser's options during training. As in ``torch.optim.lr_scheduler``.

A schedule is made after its optimiser, and ``step()`` is called after the optimiser's: once an epoch, or after each
batch where `Schedule.per_batch` says so, as `fit` does.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from gpucnn.geometry.arguments import plain
from gpucnn.nn.optimizers import Optimizer

__all__ = [
    "CosineAnnealingLR", "ExponentialLR", "LinearLR", "MultiStepLR", "OneCycleLR", "ReduceLROnPlateau", "Schedule",
    "StepLR",
]  # fmt: skip


class Schedule:
    """The base of all schedules; a subclass defines in `rate` the learning rate at a step.

    Parameters
    ----------
    optimizer : Optimizer
        Its groups' learning rates are where the schedule starts.

    Attributes
    ----------
    last_epoch : int
        The number of steps taken.
    base_lrs : list of float
        Each group's learning rate at the start; of a group that was added to the optimiser later, the rate that it had
        when the schedule took its next step.
    per_batch : bool
        Whether `fit` takes a step after each batch, instead of after each epoch. May be set on any schedule.

    Notes
    -----
    The rate is computed from the number of steps and not from the last rate, so it does not drift. A group that is
    added to the optimiser later follows from the schedule's next step on: its rate is then the one that it would have
    if it had been there from the start.
    """

    per_batch: bool = False

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = self._optimizer(optimizer)
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self.last_epoch = 0
        for name, value in list(vars(self).items()):
            setattr(self, name, [*map(plain, value)] if isinstance(value, list) else plain(value))
        self.apply()

    @property
    def _name(self) -> str:
        return type(self).__name__

    def rate(self, base: float, step: int) -> float:
        """The learning rate after `step` steps of a group that started with `base`."""
        raise NotImplementedError(f"{self._name} defines no rate")

    def apply(self) -> None:
        """Set the options of the present step."""
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = self.rate(base, self.last_epoch)

    def step(self) -> None:
        """Go on by one step."""
        self.admit()
        self.last_epoch += 1
        self.apply()

    def admit(self) -> None:
        """Take in the groups that were added to the optimiser since the last step."""
        self.base_lrs += [float(group["lr"]) for group in self.optimizer.param_groups[len(self.base_lrs) :]]

    def get_last_lr(self) -> list[float]:
        """Each group's present learning rate."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """All numbers of the schedule, and its position."""
        own = {name: value for name, value in vars(self).items() if name != "optimizer"}
        return {name: list(value) if isinstance(value, list) else value for name, value in own.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the numbers of another schedule of this kind; the optimiser's rates are part of the optimiser's state.

        Raises
        ------
        KeyError
            A number is missing or unexpected; nothing was changed.
        TypeError
            Something else stands in its place; nothing was changed.
        ValueError
            There are more groups than the optimiser has; nothing was changed.
        """
        op, own = f"{self._name}.load_state_dict", self.state_dict()
        if set(own) != set(state):
            raise KeyError(f"{op}: got {sorted(state)}, expected {sorted(own)}")
        for name, value in own.items():
            if _form(state[name]) != _form(value):
                raise TypeError(f"{op}: {name} is {state[name]!r}, expected {_form(value)} such as {value!r}")
        groups = len(self.optimizer.param_groups)
        if len(state["base_lrs"]) > groups:
            raise ValueError(
                f"{op}: base_lrs has {len(state['base_lrs'])} rates, expected at most {groups}, one a group"
            )
        vars(self).update(
            {name: list(state[name]) if isinstance(value, list) else state[name] for name, value in own.items()}
        )

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.state_dict().items())
        return f"{self._name}({shown})"

    def _optimizer(self, optimizer: Any) -> Optimizer:
        """`optimizer`, which is one."""
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{self._name}: optimizer is a {type(optimizer).__name__}, expected an nn.Optimizer")
        return optimizer

    def _for_each_group(self, name: str) -> list[float]:
        """The attribute `name`, a value for each group; groups that were added later take the one of all others.

        Raises
        ------
        ValueError
            The others have different ones.
        """
        values: list[float] = getattr(self, name)
        added = len(self.optimizer.param_groups) - len(values)
        if added > 0 and len(set(values)) > 1:
            raise ValueError(
                f"{self._name}: {name} is {values} and the optimizer has {added} groups more, expected a new schedule "
                "after add_param_group"
            )
        values += values[:1] * added
        return values

    def _expect(self, fits: bool, name: str, value: Any, expected: str) -> None:
        if not fits:
            raise ValueError(f"{self._name}: {name} is {value}, expected {expected}")


class StepLR(Schedule):
    """Multiply by `gamma` every `step_size` steps.

    Parameters
    ----------
    optimizer : Optimizer
        Whose learning rates change.
    step_size : int
        Steps between two changes.
    gamma : float
        The factor.

    Raises
    ------
    ValueError
        `step_size` is below 1.

    Examples
    --------
    >>> from gpucnn.nn import SGD, Parameter
    >>> schedule = StepLR(SGD([Parameter(np.ones(1))], lr=1.0), step_size=2, gamma=0.5)
    >>> for _ in range(4):
    ...     schedule.step()
    >>> schedule.get_last_lr()
    [0.25]
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self._expect(step_size >= 1, "step_size", step_size, "at least 1")
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        """The learning rate after `step` steps."""
        return base * self.gamma ** (step // self.step_size)


class MultiStepLR(Schedule):
    """Multiply by `gamma` at each of the steps `milestones`.

    Parameters
    ----------
    optimizer : Optimizer
        Whose learning rates change.
    milestones : sequence of int
        The steps, in any order.
    gamma : float
        The factor.

    Examples
    --------
    >>> from gpucnn.nn import SGD, Parameter
    >>> schedule = MultiStepLR(SGD([Parameter(np.ones(1))], lr=1.0), milestones=[1, 3], gamma=0.5)
    >>> schedule.step()
    >>> schedule.get_last_lr()
    [0.5]
    """

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        """The learning rate after `step` steps."""
        return base * self.gamma ** bisect_right(self.milestones, step)


class ExponentialLR(Schedule):
    """Multiply by `gamma` at each step.

    Parameters
    ----------
    optimizer : Optimizer
        Whose learning rates change.
    gamma : float
        The factor.

    Examples
    --------
    >>> from gpucnn.nn import SGD, Parameter
    >>> schedule = ExponentialLR(SGD([Parameter(np.ones(1))], lr=1.0), gamma=0.5)
    >>> schedule.step()
    >>> schedule.get_last_lr()
    [0.5]
    """

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = gamma
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        """The learning rate after `step` steps."""
        return base * self.gamma**step


class LinearLR(Schedule):
    """Grow evenly from one factor of the learning rate to another, then stay: a warm-up.

    Parameters
    ----------
    optimizer : Optimizer
        Whose learning rates change.
    start_factor : float
        The factor at the start, in (0, 1].
    end_factor : float
        The factor after `total_iters` steps, in [0, 1].
    total_iters : int
        The number of steps.

    Raises
    ------
    ValueError
        A number is out of range.

    Examples
    --------
    >>> from gpucnn.nn import SGD, Parameter
    >>> schedule = LinearLR(SGD([Parameter(np.ones(1))], lr=1.0), start_factor=0.5, total_iters=2)
    >>> schedule.step()
    >>> schedule.get_last_lr()
    [0.75]
    """

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1.0 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        self._expect(0 < start_factor <= 1, "start_factor", start_factor, "a number in (0, 1]")
        self._expect(0 <= end_factor <= 1, "end_factor", end_factor, "a number in [0, 1]")
        self._expect(total_iters >= 1, "total_iters", total_iters, "at least 1")
        self.start_factor, self.end_factor, self.total_iters = start_factor, end_factor, total_iters
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        """The learning rate after `step` steps."""
        share = min(step, self.total_iters) / self.total_iters
        return base * (self.start_factor + (self.end_factor - self.start_factor) * share)


class CosineAnnealingLR(Schedule):
    """Fall from the learning rate to `eta_min` along half a wave of a cosine, in `T_max` steps.

    Parameters
    ----------
    optimizer : Optimizer
        Whose learning rates change.
    T_max : int
        Steps down to `eta_min`; as many more lead up again.
    eta_min : float
        The lowest learning rate.

    Raises
    ------
    ValueError
        `T_max` is below 1.

    References
    ----------
    I. Loshchilov, F. Hutter, *SGDR: stochastic gradient descent with warm restarts*, ICLR 2017; without the restarts.

    Examples
    --------
    >>> from gpucnn.nn import SGD, Parameter
    >>> schedule = CosineAnnealingLR(SGD([Parameter(np.ones(1))], lr=1.0), T_max=2)
    >>> schedule.step()
    >>> round(schedule.get_last_lr()[0], 6)
    0.5
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self._expect(T_max >= 1, "T_max", T_max, "at least 1")
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        """The learning rate after `step` steps."""
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * step / self.T_max)) / 2


class OneCycleLR(Schedule):
    """Warm up to `max_lr`, then fall far below where it began; the momentum goes the other way. One step a batch.

    Parameters
    ----------
    optimizer : Optimizer
        Whose learning rates change, and whose momentum, or first beta.
    max_lr : float or sequence of float
        The highest learning rate, of each group.
    total_steps : int, optional
        The number of steps; else `epochs` times `steps_per_epoch`.
    epochs, steps_per_epoch : int, optional
        See `total_steps`.
    pct_start : float
        Share of the steps in which the rate rises.
    anneal_strategy : "cos" or "linear"
        The form of rise and fall.
    cycle_momentum : bool
        Whether the momentum changes as well.
    base_momentum, max_momentum : float
        The momentum where the rate is highest, and where it starts and ends.
    div_factor : float
        The rate starts at ``max_lr / div_factor``.
    final_div_factor : float
        It ends at the rate of the start over this.
    three_phase : bool
        Fall to the start's rate first, in as many steps as it rose, and then to the last.

    Raises
    ------
    ValueError
        The number of steps is not given, an option is out of range, or a step is taken after the last.

    Notes
    -----
    As ``torch.optim.lr_scheduler.OneCycleLR``. There are `total_steps` rates: the first holds before any step, so
    `total_steps` batches fit, and the step after the last batch changes nothing.

    References
    ----------
    L. Smith, N. Topin, *Super-convergence*, 2018.

    Examples
    --------
    >>> from gpucnn.nn import SGD, Parameter
    >>> schedule = OneCycleLR(SGD([Parameter(np.ones(1))], momentum=0.9), max_lr=1.0, total_steps=11)
    >>> round(schedule.get_last_lr()[0], 3), round(schedule.optimizer.param_groups[0]["momentum"], 3)
    (0.04, 0.95)
    >>> for _ in range(3):
    ...     schedule.step()
    >>> round(schedule.get_last_lr()[0], 3), round(schedule.optimizer.param_groups[0]["momentum"], 3)
    (0.98, 0.852)
    """

    per_batch = True

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
    ) -> None:
        pct_start, div_factor, final_div_factor = plain(pct_start), plain(div_factor), plain(final_div_factor)
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError("OneCycleLR: total_steps is None, expected it, or epochs and steps_per_epoch")
            total_steps = epochs * steps_per_epoch
        self._expect(total_steps >= 1, "total_steps", total_steps, "at least 1")
        self._expect(0 <= pct_start <= 1, "pct_start", pct_start, "a number in [0, 1]")
        self._expect(anneal_strategy in ("cos", "linear"), "anneal_strategy", anneal_strategy, "'cos' or 'linear'")
        groups = self._optimizer(optimizer).param_groups
        highest = [float(each) for each in (max_lr if isinstance(max_lr, Sequence) else [max_lr] * len(groups))]
        self._expect(len(highest) == len(groups), "max_lr", max_lr, f"{len(groups)} rates, one a group")
        if cycle_momentum and not all("momentum" in group or "betas" in group for group in groups):
            raise ValueError("OneCycleLR: cycle_momentum is True, expected an optimizer with a momentum or with betas")
        self.total_steps, self.max_lrs = total_steps, highest
        self.anneal_strategy, self.cycle_momentum = anneal_strategy, cycle_momentum
        self.momenta = [max_momentum, base_momentum]
        self.factors = [1 / div_factor, 1.0, 1 / div_factor / final_div_factor]
        self.ends = [float(pct_start * total_steps) - 1, float(total_steps - 1)]
        if three_phase:
            self.factors.insert(2, 1 / div_factor)
            self.ends.insert(1, float(2 * pct_start * total_steps) - 2)
        super().__init__(optimizer)

    def step(self) -> None:
        """Go on by one step."""
        if self.last_epoch >= self.total_steps:
            raise ValueError(
                f"OneCycleLR: step {self.last_epoch + 1} of {self.total_steps}, expected total_steps to be the number "
                "of batches in all"
            )
        super().step()

    def apply(self) -> None:
        """Set the options of the present step."""
        if self.last_epoch >= self.total_steps:
            return
        for group, highest in zip(self.optimizer.param_groups, self._for_each_group("max_lrs"), strict=True):
            group["lr"] = highest * self._between(self.factors)
            if self.cycle_momentum:
                high, low = self.momenta
                momentum = self._between([high, low, high, high][: len(self.factors)])
                if "betas" in group:
                    group["betas"] = (momentum, *group["betas"][1:])
                else:
                    group["momentum"] = momentum

    def _between(self, values: list[float]) -> float:
        """The value at the present step of its phase, between a first and a last value."""
        phase = next(index for index, end in enumerate(self.ends) if self.last_epoch <= end or end == self.ends[-1])
        start = self.ends[phase - 1] if phase else 0.0
        length = self.ends[phase] - start
        share = (self.last_epoch - start) / length if length else 1.0
        first, last = values[phase], values[phase + 1]
        if self.anneal_strategy == "linear":
            return first + (last - first) * share
        return last + (first - last) / 2 * (1 + math.cos(math.pi * share))


class ReduceLROnPlateau(Schedule):
    """Multiply by `factor` when a measure no longer improves; `fit` gives it the validation's loss, if there is one.

    A measure that is NaN is never an improvement.

    Parameters
    ----------
    optimizer : Optimizer
        Whose learning rates change.
    mode : "min" or "max"
        Whether lower or higher is better.
    factor : float
        The factor, below 1.
    patience : int
        The number of steps in a row without an improvement that change nothing.
    threshold : float
        The least change that counts as an improvement.
    threshold_mode : "rel" or "abs"
        Whether `threshold` is a share of the best, or a difference.
    cooldown : int
        The number of steps after a change that do not count.
    min_lr : float or sequence of float
        The lowest learning rate, of each group.
    eps : float
        Smaller changes are not made.

    Raises
    ------
    ValueError
        An option is out of range.

    Examples
    --------
    >>> from gpucnn.nn import SGD, Parameter
    >>> schedule = ReduceLROnPlateau(SGD([Parameter(np.ones(1))], lr=1.0), patience=0)
    >>> schedule.step(3.0)
    >>> schedule.step(4.0)
    >>> schedule.get_last_lr()
    [0.1]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        self._expect(mode in ("min", "max"), "mode", mode, "'min' or 'max'")
        self._expect(0 <= factor < 1, "factor", factor, "a number in [0, 1)")
        self._expect(threshold_mode in ("rel", "abs"), "threshold_mode", threshold_mode, "'rel' or 'abs'")
        self.mode, self.factor, self.patience = mode, factor, patience
        self.threshold, self.threshold_mode, self.cooldown, self.eps = threshold, threshold_mode, cooldown, eps
        groups = self._optimizer(optimizer).param_groups
        self.min_lrs = list(min_lr) if isinstance(min_lr, Sequence) else [min_lr] * len(groups)
        self._expect(len(self.min_lrs) == len(groups), "min_lr", min_lr, "one rate a group")
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = 0
        super().__init__(optimizer)

    def apply(self) -> None:
        """Do nothing: this schedule follows a measure."""

    def step(self, metrics: float | None = None) -> None:
        """Go on by one step, at which the measure is `metrics`.

        Raises
        ------
        TypeError
            The measure is missing.
        """
        if metrics is None:
            raise TypeError("ReduceLROnPlateau: step() has no metrics, expected the measure that is to improve")
        self.admit()
        self.last_epoch += 1
        if self._improves(float(metrics)):
            self.best, self.num_bad_epochs = float(metrics), 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            for group, lowest in zip(self.optimizer.param_groups, self._for_each_group("min_lrs"), strict=True):
                rate = max(group["lr"] * self.factor, lowest)
                if group["lr"] - rate > self.eps:
                    group["lr"] = rate
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def _improves(self, measure: float) -> bool:
        sign = 1.0 if self.mode == "max" else -1.0
        if self.threshold_mode == "rel":
            bar = self.best * (1.0 + sign * self.threshold)
        else:
            bar = self.best + sign * self.threshold
        return measure > bar if self.mode == "max" else measure < bar


def _form(value: Any) -> str:
    """The kind of a state's value, in words, so that only numbers replace numbers."""
    if isinstance(value, list | tuple):
        return "a list of numbers" if all(_form(item) == "a number" for item in value) else "a list"
    if not isinstance(value, bool) and isinstance(value, Real):
        return "a number"
    return f"a {type(value).__name__}"
