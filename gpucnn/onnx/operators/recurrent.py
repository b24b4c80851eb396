"""Recurrent layers: LSTM, GRU and the plain one, in one or both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from gpucnn.onnx.operators import activation
from gpucnn.onnx.operators.arrays import namespace
from gpucnn.onnx.operators.registry import Array, operator, refuse

Function = Callable[[Array], Array]
Step = Callable[[Array, tuple[Array, ...]], tuple[Array, ...]]

# --- Activations by name ----------------------------------------------------------------------------------------------


def _logistic(x: Array) -> Array:
    return 1 / (1 + namespace(x).exp(-x))


_PLAIN: dict[str, Function] = {
    "relu": lambda x: namespace(x).maximum(x, 0),
    "tanh": lambda x: namespace(x).tanh(x),
    "sigmoid": _logistic,
    "softsign": activation.softsign,
    "softplus": activation.softplus,
}
_WITH_ALPHA: dict[str, tuple[Callable[[Array, float], Array], float]] = {
    "leakyrelu": (lambda x, alpha: namespace(x).where(x < 0, x * alpha, x), 0.01),
    "thresholdedrelu": (lambda x, alpha: activation.thresholded_relu(x, alpha=alpha), 1.0),
    "elu": (lambda x, alpha: activation.elu(x, alpha=alpha), 1.0),
}
_WITH_BETA: dict[str, tuple[Callable[[Array, float, float], Array], float, float]] = {
    "affine": (lambda x, alpha, beta: x * alpha + beta, 1.0, 0.0),
    "scaledtanh": (lambda x, alpha, beta: namespace(x).tanh(x * beta) * alpha, 1.0, 1.0),
    "hardsigmoid": (lambda x, alpha, beta: activation.hard_sigmoid(x, alpha=alpha, beta=beta), 0.2, 0.5),
}


def _functions(names: list[str], alphas: list[float] | None, betas: list[float] | None) -> list[Function]:
    """The activations, each of which takes the next alpha and beta if it has such."""
    alpha, beta = iter(alphas or ()), iter(betas or ())
    return [_function(name, alpha, beta) for name in names]


def _function(name: str, alphas: Iterator[float], betas: Iterator[float]) -> Function:
    key = name.lower()
    if key in _PLAIN:
        return _PLAIN[key]
    if key in _WITH_ALPHA:
        function, usual = _WITH_ALPHA[key]
        alpha = next(alphas, usual)
        return lambda x: function(x, alpha)
    if key in _WITH_BETA:
        wide, usual, other = _WITH_BETA[key]
        alpha, beta = next(alphas, usual), next(betas, other)
        return lambda x: wide(x, alpha, beta)
    raise refuse(f"activation {name!r} is unknown")


# --- The layers -------------------------------------------------------------------------------------------------------


@operator("RNN")
def rnn(
    x: Array,
    w: Array,
    r: Array,
    b: Array = None,
    lengths: Array = None,
    initial_h: Array = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> Any:
    """``h = f(x @ w.T + h @ r.T + b)``, time after time."""
    count = w.shape[0]
    functions = _functions(activations or ["Tanh"] * count, activation_alpha, activation_beta)

    def step_of(at: int) -> Step:
        (f,) = _chosen(functions, at, count)

        def step(products: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            return (f(_clipped(products + state[0] @ r[at].T, clip)),)

        return step

    biases = None if b is None else _summed(b)
    return _through(x, w, biases, lengths, _states(x, r, layout, initial_h), direction, layout, step_of)


@operator("GRU")
def gru(
    x: Array,
    w: Array,
    r: Array,
    b: Array = None,
    lengths: Array = None,
    initial_h: Array = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> Any:
    """Gated recurrent units, whose gates are z (keep), r (reset) and h (the new state)."""
    count, size = w.shape[0], r.shape[-1]
    functions = _functions(activations or ["Sigmoid", "Tanh"] * count, activation_alpha, activation_beta)
    inner = None if b is None else b[:, 5 * size :]  # the bias of the new state's recurrent part
    biases = None
    if b is not None:
        biases = b[:, : 3 * size].copy()
        biases[:, : 2 * size] += b[:, 3 * size : 5 * size]

    def step_of(at: int) -> Step:
        f, g = _chosen(functions, at, count)
        gates_r, new_r = r[at, : 2 * size].T, r[at, 2 * size :].T
        bias = 0 if inner is None else inner[at]

        def step(products: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            (h,) = state
            gates = f(_clipped(products[:, : 2 * size] + h @ gates_r, clip))
            keep, reset = gates[:, :size], gates[:, size:]
            recurrent = reset * (h @ new_r + bias) if linear_before_reset else (reset * h) @ new_r + bias
            new = g(_clipped(products[:, 2 * size :] + recurrent, clip))
            return (new + keep * (h - new),)

        return step

    return _through(x, w, biases, lengths, _states(x, r, layout, initial_h), direction, layout, step_of)


@operator("LSTM")
def lstm(
    x: Array,
    w: Array,
    r: Array,
    b: Array = None,
    lengths: Array = None,
    initial_h: Array = None,
    initial_c: Array = None,
    peepholes: Array = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> Any:
    """Long short-term memory, whose gates are i (input), o (output), f (forget) and c (the new content)."""
    count, size = w.shape[0], r.shape[-1]
    functions = _functions(activations or ["Sigmoid", "Tanh", "Tanh"] * count, activation_alpha, activation_beta)

    def step_of(at: int) -> Step:
        f, g, h = _chosen(functions, at, count)
        recurrent = r[at].T
        looks = None if peepholes is None else [peepholes[at, part * size : (part + 1) * size] for part in range(3)]

        def step(products: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            hidden, content = state
            sums = hidden @ recurrent
            sums += products
            if looks is not None:
                sums[:, :size] += looks[0] * content
                sums[:, 2 * size : 3 * size] += looks[2] * content
            gates = _clipped(sums, clip)
            opened = f(gates[:, : 3 * size])
            taken = opened[:, :size]
            kept = 1 - taken if input_forget else opened[:, 2 * size :]
            content = kept * content + taken * g(gates[:, 3 * size :])
            shown = opened[:, size : 2 * size]
            if looks is not None:
                shown = f(_clipped(sums[:, size : 2 * size] + looks[1] * content, clip))
            return shown * h(content), content

        return step

    biases = None if b is None else _summed(b)
    return _through(x, w, biases, lengths, _states(x, r, layout, initial_h, initial_c), direction, layout, step_of)


def _states(x: Array, r: Array, layout: int, *initial: Array | None) -> list[Array]:
    """The states at the start, [directions, N, H]: the given ones, else 0."""
    shape = (r.shape[0], x.shape[0 if layout else 1], r.shape[-1])
    zeros = namespace(x).zeros(shape, x.dtype)
    return [zeros if array is None else array.swapaxes(0, 1) if layout else array for array in initial]


def _chosen(functions: list[Function], at: int, count: int) -> list[Function]:
    each = len(functions) // count
    return functions[at * each : (at + 1) * each]


def _summed(b: Array) -> Array:
    """The biases of the input's and of the state's products."""
    half = b.shape[1] // 2
    return b[:, :half] + b[:, half:]


def _clipped(x: Array, bound: float | None) -> Array:
    return x if not bound else namespace(x).clip(x, -bound, bound)


# --- Time -------------------------------------------------------------------------------------------------------------

_DIRECTIONS = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}


def _through(
    x: Array,
    w: Array,
    biases: Array | None,
    lengths: Array | None,
    initial: list[Array],
    direction: str,
    layout: int,
    step_of: Callable[[int], Step],
) -> Any:
    """The states of all times and the last ones, in each direction.

    Parameters
    ----------
    x : array [T, N, I], or with `layout` 1 [N, T, I]
    w : array [directions, gates * H, I]
    biases : array [directions, gates * H], optional
    lengths : array [N], optional
        Of the sequences; after its end the state of one stays, and its output is 0.
    initial : list of array [directions, N, H]
    """
    xp = namespace(x)
    if direction not in _DIRECTIONS or len(_DIRECTIONS[direction]) != w.shape[0]:
        raise refuse(f"direction is {direction!r} with {w.shape[0]} weights, expected one of {', '.join(_DIRECTIONS)}")
    if layout:
        x = x.swapaxes(0, 1)
    time = x.shape[0]
    open_ = None if lengths is None else xp.arange(time).reshape(-1, 1, 1) < lengths.reshape(1, -1, 1)
    y = xp.empty((time, *initial[0].shape), x.dtype)
    finals = []
    for at, reverse in enumerate(_DIRECTIONS[direction]):
        products = x @ w[at].T
        if biases is not None:
            products += biases[at]
        step = step_of(at)
        state = tuple([array[at] for array in initial])
        hidden = y[:, at]
        for now in range(time - 1, -1, -1) if reverse else range(time):
            new = step(products[now], state)
            if open_ is None:
                state = new
                hidden[now] = new[0]
            else:
                state = tuple(xp.where(open_[now], one, old) for one, old in zip(new, state, strict=True))
                hidden[now] = xp.where(open_[now], new[0], x.dtype.type(0))
        finals.append(state)
    lasts = [arrays[0][None] if len(arrays) == 1 else xp.stack(arrays, 0) for arrays in zip(*finals, strict=True)]
    if layout:
        y, lasts = y.transpose(2, 0, 1, 3), [array.swapaxes(0, 1) for array in lasts]
    return y, *lasts
