"""Modules made of modules: one after the other, with a shortcut, or side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, TypeVar, overload

from gpucnn.geometry.arguments import plain
from gpucnn.nn._fusion import joined, through
from gpucnn.nn._joining import added, concatenated, parted
from gpucnn.nn.module import Array, Module
from gpucnn.nn.precision import cast, half

__all__ = ["Concat", "Residual", "Sequential"]

Self = TypeVar("Self", bound="Modules")


class Modules(Module):
    """The base of `Sequential` and `Concat`: modules in order, by name and by number."""

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            named: Mapping[str, Any] = modules[0]
        else:
            named = {str(number): module for number, module in enumerate(modules)}
        for name, module in named.items():
            self._add(name, module)

    def _add(self, name: str, module: Any) -> None:
        own = type(self).__name__
        if not isinstance(module, Module):
            raise TypeError(f"{own}: {name} is of type {type(module).__name__}, expected a Module")
        if not isinstance(name, str) or not name or "." in name or hasattr(self, name):
            raise ValueError(f"{own}: {name!r} is no name for a module, expected one that is free and has no dots")
        self._expect_new(module)
        setattr(self, name, module)

    def _expect_new(self, module: Module) -> None:
        if any(child is module for child in self.children()):
            raise ValueError(
                f"{type(self).__name__}: got the same {type(module).__name__} twice, expected a module for each place, "
                "since it keeps the values of one forward"
            )

    def append(self: Self, module: Module) -> Self:
        """Put a module at the end, under its number, or the next one that is free."""
        number = next(number for number in count(len(self)) if not hasattr(self, str(number)))
        self._add(str(number), module)
        return self

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    @overload
    def __getitem__(self, at: int) -> Module: ...

    @overload
    def __getitem__(self: Self, at: slice) -> Self: ...

    def __getitem__(self: Self, at: int | slice) -> Module | Self:
        """The module at a place, or a container with those of a slice, under their names."""
        if isinstance(at, slice):
            part = type(self).__new__(type(self))
            vars(part).update({name: value for name, value in vars(self).items() if not isinstance(value, Module)})
            vars(part).update(list(self.named_children())[at])
            part._kept = None
            return part
        return getattr(self, self._name(at))  # type: ignore[no-any-return]

    def __setitem__(self, at: int, module: Module) -> None:
        """Replace the module at a place."""
        name = self._name(at)
        if not isinstance(module, Module):
            raise TypeError(f"{type(self).__name__}: got {type(module).__name__}, expected a Module")
        if module is not self[at]:
            self._expect_new(module)
            setattr(self, name, module)

    def _name(self, at: int) -> str:
        names = [name for name, _ in self.named_children()]
        try:
            return names[at]
        except IndexError:
            raise IndexError(f"{type(self).__name__}: got place {at}, expected one of {len(names)}") from None


class Sequential(Modules):
    """Modules one after the other, as ``torch.nn.Sequential``.

    Parameters
    ----------
    *modules : Module, or one mapping of str to Module
        In order; named by their number, or by the mapping's keys.

    Raises
    ------
    TypeError
        One is no module.
    ValueError
        A name is taken, or a module comes twice: each keeps the values of one forward.

    Notes
    -----
    ``model[0]``, ``model[-1] = head``, ``model[:3]`` (which shares the modules), ``len(model)`` and ``append`` work as
    on a list. Where `needs_input_grad` is False, backward ends at the first module with a parameter to learn.

    Examples
    --------
    >>> from gpucnn import nn
    >>> model = Sequential(nn.Linear(4, 3, rng=0), nn.ReLU(), nn.Linear(3, 2, rng=1))
    >>> model(np.ones((1, 4), np.float32)).shape
    (1, 2)
    >>> list(model.state_dict())
    ['0.weight', '0.bias', '2.weight', '2.bias']
    >>> Sequential({"fc": nn.Linear(4, 3), "relu": nn.ReLU()})
    Sequential(
      (fc): Linear(in_features=4, out_features=3, bias=True)
      (relu): ReLU()
    )
    """

    def forward(self, x: Array) -> Array:
        """The last module's result."""
        x = through(self, x)
        self.keep()
        return x

    def finished(self, x: Array, residual: Array | None = None, activation: str = "none") -> Array:
        """``activation(forward(x) + residual)``, where the last module can finish with these."""
        x = through(self, x, residual=residual, activation=activation)
        self.keep()
        return x

    def finished_by(self) -> list[Module]:
        """The modules, of which the last finishes with a residual and an activation."""
        return list(self)

    def backward(self, grad_output: Array) -> Array:
        """The gradient of the first module's input."""
        self.kept()
        modules = list(self)
        first = 0 if self.needs_input_grad else _first_trainable(modules)
        for place in range(len(modules) - 1, first - 1, -1):
            grad_output = _backward(modules[place], grad_output, self.needs_input_grad or place > first)
            if grad_output is None:
                first = place
                break
        for module in modules[:first]:
            module.forget()
        return grad_output if self.needs_input_grad else None


def _first_trainable(modules: list[Module]) -> int:
    """The place of the first module with a parameter to learn; their number where there is none."""
    places = (place for place, module in enumerate(modules) if any(p.requires_grad for p in module.parameters()))
    return next(places, len(modules))


def _backward(module: Module, grad_output: Array, needs_input: bool) -> Array:
    """The backward of a module, without the gradient of its input where that is not needed."""
    if needs_input or not module.needs_input_grad:
        return module.backward(grad_output)
    module.needs_input_grad = False
    try:
        return module.backward(grad_output)
    finally:
        module.needs_input_grad = True


def _added(grads: list[Array | None]) -> Array:
    """The sum of gradients, leaving out those that were not needed."""
    total = None
    for grad in grads:
        if grad is not None:
            total = grad if total is None else added(total, grad)
    return total


class Residual(Module):
    """``activation(body(x) + shortcut(x))``: a block with a skip connection that adds.

    Parameters
    ----------
    body : Module
        The residual branch.
    shortcut : Module, optional
        The module on the shortcut, such as a 1×1 convolution where shapes change; the identity where it is None.
    activation : Module, optional
        The module applied to the sum.

    Raises
    ------
    TypeError
        One is no module.

    References
    ----------
    K. He et al., *Deep residual learning for image recognition*, CVPR 2016, arXiv:1512.03385v1.

    Examples
    --------
    >>> from gpucnn import nn
    >>> block = Residual(nn.Conv2d(8, 8, 3, padding=1), activation=nn.ReLU())
    >>> block(np.ones((1, 8, 5, 5), np.float32)).shape
    (1, 8, 5, 5)
    """

    body: Module
    shortcut: Module | None
    activation: Module | None

    def __init__(self, body: Module, shortcut: Module | None = None, activation: Module | None = None) -> None:
        for name, module in (("body", body), ("shortcut", shortcut), ("activation", activation)):
            if not (isinstance(module, Module) or (module is None and name != "body")):
                raise TypeError(f"Residual: {name} is of type {type(module).__name__}, expected a Module")
            setattr(self, name, module)

    def forward(self, x: Array) -> Array:
        """``activation(body(x) + shortcut(x))``."""
        y, beside = self.body(x), x if self.shortcut is None else self.shortcut(x)
        if y.shape != beside.shape:
            raise ValueError(
                f"Residual: body makes shape {tuple(y.shape)} of it, expected the shortcut's {tuple(beside.shape)}"
            )
        if y.dtype != beside.dtype and half() is None:
            raise TypeError(
                f"Residual: body makes dtype {y.dtype} of it and the shortcut {beside.dtype}, expected one; cast the "
                "input to the dtype of the parameters"
            )
        self.keep(y.dtype, beside.dtype)
        return joined(y, beside, self.activation)

    def backward(self, grad_output: Array) -> Array:
        """The sum of the gradients of both ways."""
        dtypes = self.kept()
        if self.activation is not None:
            grad_output = self.activation.backward(grad_output)
        grad, beside = parted(grad_output, *dtypes)
        grad = _backward(self.body, grad, self.needs_input_grad)
        if self.shortcut is not None:
            beside = _backward(self.shortcut, beside, self.needs_input_grad)
        return _added([grad, beside]) if self.needs_input_grad else None


class Concat(Modules):
    """Branches side by side, their results joined along the channels: a skip connection that concatenates.

    Parameters
    ----------
    *branches : Module, or one mapping of str to Module
        Each gets the input; named by their number, or by the mapping's keys.
    dim : int
        The axis to join along.

    Raises
    ------
    TypeError
        One is no module.
    ValueError
        A name is taken, or a module comes twice.

    Notes
    -----
    A U-Net nests these: ``Concat(Identity(), Sequential(down, inner, up))`` is one of its levels.

    Examples
    --------
    >>> from gpucnn import nn
    >>> level = Concat(nn.Identity(), nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2)))
    >>> level(np.ones((1, 3, 4, 4))).shape
    (1, 6, 4, 4)
    """

    def __init__(self, *branches: Module | Mapping[str, Module], dim: int = 1) -> None:
        self.dim = plain(dim)
        super().__init__(*branches)
        if not len(self):
            raise ValueError("Concat: got no branch, expected at least one")

    def forward(self, x: Array) -> Array:
        """The branches' results, one after the other along the axis."""
        parts = [branch(x) for branch in self]
        shapes = [tuple(part.shape) for part in parts]
        axis = self.dim if self.dim >= 0 else self.dim + len(shapes[0])
        if len({(len(shape), shape[:axis], shape[axis + 1 :]) for shape in shapes}) > 1 or axis >= len(shapes[0]):
            raise ValueError(
                f"Concat: branches give shapes {shapes}, expected them to differ along dim = {self.dim} only"
            )
        dtypes = [part.dtype for part in parts]
        if len(set(dtypes)) > 1 and half() is None:
            raise TypeError(
                f"Concat: branches give dtypes {', '.join(map(str, dtypes))}, expected one; cast the input to the "
                "dtype of the parameters"
            )
        self.keep(axis, [shape[axis] for shape in shapes], dtypes)
        return concatenated(parts, axis)

    def backward(self, grad_output: Array) -> Array:
        """The sum of the branches' gradients."""
        axis, sizes, dtypes = self.kept()
        if grad_output.shape[axis] != sum(sizes):
            raise ValueError(
                f"Concat: grad_output has size {grad_output.shape[axis]} along axis {axis}, expected {sum(sizes)}"
            )
        grads, start = [], 0
        for branch, size, dtype in zip(self, sizes, dtypes, strict=True):
            part = grad_output[(slice(None),) * axis + (slice(start, start + size),)]
            part = part if len(set(dtypes)) == 1 else cast(part, dtype)
            grads.append(_backward(branch, part, self.needs_input_grad))
            start += size
        return _added(grads) if self.needs_input_grad else None

    def extra_repr(self) -> str:
        """The axis, where it is not the default."""
        return "" if self.dim == 1 else f"dim={self.dim}"
