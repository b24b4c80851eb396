"""Modules: a forward, a backward, parameters by name, and a state to save."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from os import PathLike
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gpucnn.backends import backend_named, receive
from gpucnn.geometry import TransposedWindow, Window
from gpucnn.nn._loading import loadable
from gpucnn.nn.keeping import keeps
from gpucnn.nn.summary import Summary, summary

__all__ = ["LoadResult", "Module", "Parameter"]

Array = Any
Self = TypeVar("Self", bound="Module")

_BACKENDS = {"cpu": "numpy", "cuda": "cuda", "simulator": "simulator"}


class Parameter:
    """An array that is learned: NumPy's, CuPy's or the simulator's.

    Raises
    ------
    TypeError
        It is of another library, or no array.

    Attributes
    ----------
    data : array
        Its values.
    grad : array or None
        The sum of the gradients since the last `Module.zero_grad`, of the shape of `data`; None before there is one.
    requires_grad : bool
        Whether backward computes its gradient. A frozen parameter has False.
    on_accumulate : callable or None
        Called with the parameter after each addition to `grad`: by it gradients are sent while a backward goes on.
    """

    def __init__(self, data: Array, requires_grad: bool = True) -> None:
        self.data = _native("Parameter", "data", data)
        self.grad: Array | None = None
        self.requires_grad = requires_grad
        self.on_accumulate: Callable[[Parameter], Any] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `data`."""
        return tuple(self.data.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(self.data.size)

    def accumulate(self, grad: Array) -> None:
        """Add `grad` to the gradient accumulated since the last `Module.zero_grad`."""
        self.grad = grad if self.grad is None else self.grad + grad
        if self.on_accumulate is not None:
            self.on_accumulate(self)

    def __repr__(self) -> str:
        frozen = "" if self.requires_grad else ", frozen"
        return f"Parameter({self.shape}, {self.data.dtype}{frozen})"


class LoadResult(NamedTuple):
    """The names that `Module.load_state_dict` did not find, and those it did not expect."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """A layer, or a network of layers, with an explicit backward.

    A subclass sets its parameters (`Parameter`), its modules and its buffers as attributes, and defines

    - ``forward(x)``, which hands ``self.keep(…)`` what its backward needs, and
    - ``backward(grad_output) -> grad_input``, which takes that by ``self.kept()`` and adds the gradients of its
      parameters by `Parameter.accumulate`.

    Notes
    -----
    There is no tape: a network's backward calls the backward of its parts, in reverse. A module keeps the values of its
    last forward, so it can be used at one place in a network only.

    Attributes
    ----------
    training : bool
        Whether layers with a separate training behaviour, such as dropout, are to use it.
    buffer_names : tuple of str
        Attributes that belong to the state and are no parameters, such as running statistics.
    needs_input_grad : bool
        Whether backward computes the gradient of the input; else it returns None. Set it to False on the first
        module, whose input is data, to save that work.
    frozen : bool
        Whether `train` leaves the module in evaluation mode, so that it changes neither by learning nor by running
        statistics; `gpucnn.nn.freeze` sets it.
    """

    training: bool = True
    frozen: bool = False
    needs_input_grad: bool = True
    buffer_names: tuple[str, ...] = ()

    # --- Forward and backward -------------------------------------------------------------------------------------

    def forward(self, x: Array) -> Array:
        """The module's result."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the last forward's input, given that of its result; parameters' gradients are accumulated.

        Raises
        ------
        RuntimeError
            There was no forward since the last backward, or it was under `inference`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no backward")

    def __call__(self, *inputs: Any, **options: Any) -> Array:
        """As `forward`."""
        return self.forward(*inputs, **options)

    @property
    def keeps(self) -> bool:
        """Whether a backward may follow the forward that runs: False under `inference`."""
        return keeps()

    def keep(self, *values: Any) -> None:
        """Keep what the backward needs, until it is taken or the next forward."""
        self._kept: tuple[Any, ...] | None = values if self.keeps else None

    def kept(self) -> tuple[Any, ...]:
        """The values that `keep` was handed, which are then released.

        Raises
        ------
        RuntimeError
            Nothing is kept.
        """
        values = vars(self).get("_kept")
        if values is None:
            raise RuntimeError(
                f"{type(self).__name__}: backward has no forward to go back through; expected one call of it for each "
                "forward outside nn.inference()"
            )
        self._kept = None
        return tuple(values)

    def forget(self) -> None:
        """Release what this module and all below it keep, when no backward will follow."""
        for module in self.modules():
            module._kept = None

    # --- Parts ----------------------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules that are attributes of this one, in the order in which they were set."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def children(self) -> Iterator[Module]:
        """As `named_children`, without names."""
        return (child for _, child in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """The module itself and all below it, by dotted name."""
        yield prefix.removesuffix("."), self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}{name}.")

    def modules(self) -> Iterator[Module]:
        """As `named_modules`, without names."""
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters by dotted name, those of a module before those of its children."""
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    yield f"{prefix}.{name}" if prefix else name, value

    def parameters(self) -> Iterator[Parameter]:
        """As `named_parameters`, without names."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """All buffers by dotted name."""
        for prefix, module in self.named_modules():
            for name in module.buffer_names:
                if getattr(module, name) is not None:
                    yield f"{prefix}.{name}" if prefix else name, getattr(module, name)

    # --- Modes ----------------------------------------------------------------------------------------------------

    def train(self: Self, mode: bool = True) -> Self:
        """Set `training` of this module and all below it that are not `frozen`."""
        for module in self.modules():
            module.training = mode and not module.frozen
        return self

    def eval(self: Self) -> Self:
        """As ``train(False)``."""
        return self.train(False)

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Let gradients of all parameters be computed, or freeze them."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def apply(self: Self, function: Callable[[Module], Any]) -> Self:
        """Call `function` with each module, those below before the one above."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    def map_arrays(self: Self, function: Callable[[Array], Array]) -> Self:
        """Replace each parameter and buffer by `function` of it; gradients are dropped.

        Raises
        ------
        TypeError
            It makes arrays of another library than NumPy or CuPy of the parameters.
        """
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, Parameter):
                    value.data, value.grad = _native("map_arrays", "what function made", function(value.data)), None
            for name in module.buffer_names:
                if getattr(module, name) is not None:
                    setattr(module, name, function(getattr(module, name)))
        return self

    def to(self: Self, device: str) -> Self:
        """Move all parameters and buffers to another kind of memory; gradients are dropped.

        Arrays of other libraries among the buffers, such as PyTorch's tensors, become NumPy's or CuPy's.

        Parameters
        ----------
        device : "cpu", "cuda" or "simulator"
            NumPy's arrays, CuPy's on the current GPU, or those of `gpucnn.simulator`.

        Raises
        ------
        ValueError
            There is no such device.
        RuntimeError
            It cannot be used here; the message says what is missing and what to do.

        Examples
        --------
        >>> from gpucnn import nn
        >>> nn.Linear(3, 2).to("cpu")
        Linear(in_features=3, out_features=2, bias=True)
        """
        if device not in _BACKENDS:
            raise ValueError(f"{type(self).__name__}.to: device is {device!r}, expected one of {tuple(_BACKENDS)}")
        try:
            backend = backend_named(_BACKENDS[device])
        except RuntimeError as error:
            raise RuntimeError(f"{type(self).__name__}.to: {device!r} is not available: {error}") from None

        def moved(array: Array) -> Array:
            source, (array,), _ = receive(f"{type(self).__name__}.to", {"array": array})
            if source.name == backend.name:
                return array
            host = array if isinstance(array, np.ndarray) else source.xp.asnumpy(array)
            return host if device == "cpu" else backend.xp.asarray(host)

        return self.map_arrays(moved)

    # --- State ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """Parameters and buffers by PyTorch's names; the arrays themselves, not copies."""
        state: dict[str, Array] = {}
        for prefix, module in self.named_modules():
            own = {name: value.data for name, value in vars(module).items() if isinstance(value, Parameter)}
            own |= {name: getattr(module, name) for name in module.buffer_names if getattr(module, name) is not None}
            state |= {f"{prefix}.{name}" if prefix else name: array for name, array in own.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Array], strict: bool = True) -> LoadResult:
        """Copy values into parameters and buffers, in their dtype and on their device.

        Parameters
        ----------
        state : mapping of str to array
            As `state_dict` gives, or a PyTorch network's, as NumPy arrays.
        strict : bool
            Whether a missing or unexpected name is an error.

        Returns
        -------
        LoadResult
            The names missing and unexpected.

        Raises
        ------
        KeyError
            `strict`, and names are missing or unexpected; nothing was changed.
        TypeError
            `state` is no mapping, or a value is no array of numbers that its place can take, such as complex ones for
            a float32 weight; nothing was changed.
        ValueError
            A shape is another one, or a place is read-only; nothing was changed.
        """
        result, pairs = self.matched(state, strict)
        for array, value in pairs:
            array[...] = value
        return result

    def matched(self, state: Any, strict: bool = True) -> tuple[LoadResult, list[tuple[Array, Array]]]:
        """The copies that `load_state_dict` would make: arrays of this module that `state` names, and new values.

        Raises
        ------
        KeyError, TypeError, ValueError
            As `load_state_dict`; nothing is changed in any case.
        """
        if not isinstance(state, Mapping):
            hint = "; nn.load_weights(model, path) reads a file" if isinstance(state, str | PathLike) else ""
            raise TypeError(f"load_state_dict: state is a {type(state).__name__}, expected a dict of arrays{hint}")
        own = self.state_dict()
        result = LoadResult([name for name in own if name not in state], [name for name in state if name not in own])
        if strict and any(result):
            raise KeyError(
                f"load_state_dict: missing {_listed(result.missing_keys)}, unexpected {_listed(result.unexpected_keys)}"
            )
        pairs = [
            (array, loadable("load_state_dict", name, state[name], array))
            for name, array in own.items()
            if name in state
        ]
        return result, pairs

    # --- Summary and export ----------------------------------------------------------------------------

    def multiply_adds(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
        """Multiply-adds for one image; 0 for layers that are elementwise or only compare."""
        return 0

    def window(self, input_shape: tuple[int, ...]) -> Window | TransposedWindow | None:
        """The window of the input that one output position sees; None where it has no such form."""
        return Window(1)

    def summary(self, input_shape: Sequence[int] | int) -> Summary:
        """The `gpucnn.nn.summary` of this network: a printable table of its modules."""
        return summary(self, input_shape)

    def to_onnx(self, path: str | PathLike[str], example: Any) -> None:
        """Write this network to an ONNX file, by `gpucnn.onnx.export`.

        Parameters
        ----------
        path : str or path
            The file.
        example : sequence of int, or array
            Shape of one input without the batch axis, such as (3, 224, 224), or an input with it.

        Raises
        ------
        ModuleNotFoundError
            The package onnx is not installed.
        TypeError
            A module cannot be exported; the message has its name in the model and the reason.
        ValueError
            The shape is none, or the network does not take it.
        """
        import_module("gpucnn.onnx.exporting").export(self, path, example)  # which not every network needs

    # --- For people -----------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """The layer's arguments, as its repr shows them."""
        return ""

    def __repr__(self) -> str:
        parts = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        inner = "".join(f"\n  {part}" for part in parts)
        return f"{type(self).__name__}({self.extra_repr()}{inner}{chr(10) if inner else ''})"


def _native(op: str, name: str, array: Any) -> Array:
    """`array`, checked to be an array of one of the backends."""
    taken = receive(op, {name: array})[1][0]
    if type(taken) is not type(array) and not isinstance(array, np.ndarray):
        raise TypeError(
            f"{op}: {name} is a {type(array).__module__}.{type(array).__name__}, expected a NumPy or CuPy array; "
            "their from_dlpack makes one over the same memory"
        )
    return array


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return shown or "none"
