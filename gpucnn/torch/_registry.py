"""The registration of PyTorch's operators ``gpucnn::…``."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch

Tensor = Any

_LIBRARY = torch.library.Library("gpucnn", "DEF")


def operator(
    name: str,
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    setup: Callable[..., None],
    backward: Callable[..., Any],
    images: Collection[int] = (),
) -> None:
    """Define ``torch.ops.gpucnn.name``.

    Parameters
    ----------
    name, schema : str
        Name, and arguments and results in PyTorch's notation.
    kernel : callable
        Computes it on tensors of the CPU or of CUDA.
    fake : callable
        Returns empty tensors, as the kernel would, to those that trace it.
    setup, backward : callable
        As `torch.library.register_autograd` takes them; `backward` may return fewer gradients than there are inputs.
    images : collection of int
        The places of arguments whose first axis is the batch that the results have too.
    """
    _LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    qualified = f"gpucnn::{name}"
    torch.library.impl(qualified, ("cpu", "cuda"), kernel, lib=_LIBRARY)
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    defined = getattr(torch.ops.gpucnn, name)
    torch.library.register_vmap(qualified, _batching(defined, frozenset(images)), lib=_LIBRARY)

    def padded(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        nothing = (None,) * len(ctx.needs_input_grad)
        found = nothing if all(grad is None for grad in grads) else tuple(backward(ctx, *grads))
        return found + nothing[len(found) :]

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        setup(ctx, inputs, output)

    torch.library.register_autograd(qualified, padded, setup_context=remember, lib=_LIBRARY)


def _batching(defined: Any, images: frozenset[int]) -> Callable[..., Any]:
    """The rule of `torch.vmap`: where images alone have the new axis, it joins their batch; else a call for each."""

    def rule(info: Any, axes: tuple[int | None, ...], *arguments: Any) -> Any:
        new = {place for place, axis in enumerate(axes) if isinstance(axis, int)}
        moved = [value.movedim(axes[place], 0) if place in new else value for place, value in enumerate(arguments)]
        if new <= images:
            for place in images:
                whole = moved[place] if place in new else moved[place].expand(info.batch_size, *moved[place].shape)
                moved[place] = whole.flatten(0, 1)
            apart = (result.unflatten(0, (info.batch_size, -1)) for result in _several(defined(*moved)))
        else:
            calls = (
                defined(*(value[item] if place in new else value for place, value in enumerate(moved)))
                for item in range(info.batch_size)
            )
            apart = (torch.stack(results) for results in zip(*map(_several, calls), strict=True))
        results = tuple(apart)
        return (results[0], 0) if len(results) == 1 else (results, (0,) * len(results))

    return rule


def _several(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
