"""Loss scaling: gradients that float16 holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpucnn.backends import backend_of
from gpucnn.geometry.arguments import integer, number
from gpucnn.nn.optimizers import Optimizer

__all__ = ["LossScaler"]

LEAST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)  # of a scale
_STATE = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")


class LossScaler:
    """A factor of the loss that keeps the gradients of float16 images in range, as ``torch.amp.GradScaler``.

    Parameters
    ----------
    init_scale : float
        The factor at first.
    growth_factor : float
        The factor grows by it after `growth_interval` steps in a row without an infinity or NaN, and
    backoff_factor : float
        shrinks by it after a step with one.
    growth_interval : int
        The number of those steps.

    Attributes
    ----------
    scale : float
        The factor of the next step.

    Raises
    ------
    TypeError, ValueError
        An argument is of another type or out of range.

    See Also
    --------
    mixed_precision

    Notes
    -----
    A step is ``model.backward(loss.backward(scaler.scale))``, then ``scaler.step(optimizer)`` and ``scaler.update()``.
    A gradient below 6e-8 is 0 in float16; times the scale it is not. Where the scale was too large, gradients overflow,
    the step is skipped, and the next one has a smaller scale. Powers of two, as all are by default, change no other
    bit. bfloat16 has the range of float32 and needs no scale. Outside of `fit` NumPy warns of gradients that overflow.

    Examples
    --------
    >>> from gpucnn import nn
    >>> weight = nn.Parameter(np.ones(1, np.float32))
    >>> optimizer, scaler = nn.SGD([weight], lr=0.5), LossScaler(init_scale=1024.0)
    >>> for grad in (np.inf, 1024.0):
    ...     weight.grad = np.array([grad], np.float32)
    ...     stepped = scaler.step(optimizer)
    ...     scaler.update()
    ...     print(stepped, weight.data, scaler.scale)
    False [1.] 512.0
    True [0.] 512.0
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        self.scale = number("LossScaler", "init_scale", init_scale, LEAST, LARGEST)
        self.growth_factor = number("LossScaler", "growth_factor", growth_factor, 1.0)
        self.backoff_factor = number("LossScaler", "backoff_factor", backoff_factor, 0.0, 1.0)
        self.growth_interval = integer("LossScaler", "growth_interval", growth_interval, 1)
        self._growth_tracker = 0  # steps since the scale changed
        self._finite: dict[Optimizer, bool] = {}  # of those unscaled since the last update
        self._stepped: set[Optimizer] = set()

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of an optimiser's parameters by the scale, before `step`: to clip them, for example.

        Raises
        ------
        RuntimeError
            It was called already since the last `update`.
        TypeError
            It is no optimiser, or a gradient is float16, too narrow for what is unscaled.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"LossScaler: optimizer is a {type(optimizer).__name__}, expected an nn.Optimizer")
        if optimizer in self._finite:
            raise RuntimeError("LossScaler.unscale_: the gradients are unscaled already, expected update() before")
        parameters = [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        if any(parameter.grad.dtype == np.float16 for parameter in parameters):
            raise TypeError("LossScaler.unscale_: a gradient is float16, expected parameters of float32")
        checks: dict[Any, list[Any]] = {}  # by array library
        for parameter in parameters:
            xp = backend_of(parameter.grad).xp
            checks.setdefault(xp, []).append(xp.isfinite(parameter.grad).all())
            parameter.grad = parameter.grad * (1 / self.scale)
        self._finite[optimizer] = all(bool(xp.stack(each).all()) for xp, each in checks.items())  # waits for a device

    def step(self, optimizer: Optimizer) -> bool:
        """The optimiser's step by unscaled gradients, which is skipped if one of them is infinite or NaN.

        Returns
        -------
        bool
            Whether there was a step.

        Raises
        ------
        RuntimeError
            It was called already since the last `update`.
        TypeError
            As `unscale_`.
        """
        if optimizer in self._stepped:
            raise RuntimeError("LossScaler.step: there was a step of this optimizer, expected update() before the next")
        if optimizer not in self._finite:
            self.unscale_(optimizer)
        if self._finite[optimizer]:
            optimizer.step()
        self._stepped.add(optimizer)
        return self._finite[optimizer]

    def update(self) -> None:
        """The scale of the next step.

        Raises
        ------
        RuntimeError
            There was no step since the last one.
        """
        if not self._finite:
            raise RuntimeError("LossScaler.update: there was no step since the last update, expected one")
        factor = 1.0
        if all(self._finite.values()):
            self._growth_tracker += 1
            if self._growth_tracker == self.growth_interval:
                factor = self.growth_factor
        else:
            factor = self.backoff_factor
        if factor != 1.0:
            self.scale, self._growth_tracker = min(max(self.scale * factor, LEAST), LARGEST), 0
        self._finite.clear()
        self._stepped.clear()

    def state_dict(self) -> dict[str, Any]:
        """The scale, the factors, the interval and the steps since the scale changed, by PyTorch's names."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of another scaler, or of a ``torch.amp.GradScaler``.

        Raises
        ------
        KeyError
            A name is missing; nothing was changed.
        TypeError, ValueError
            A value is of another type or out of range; nothing was changed.
        """
        missing = [name for name in _STATE if name not in state]
        if missing:
            raise KeyError(f"LossScaler.load_state_dict: state has no {missing[0]}, expected {', '.join(_STATE)}")
        *arguments, tracker = (state[name] for name in _STATE)
        loaded = LossScaler(*arguments)
        loaded._growth_tracker = integer("LossScaler", "_growth_tracker", tracker, 0)
        vars(self).update(vars(loaded))
