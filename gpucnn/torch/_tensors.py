"""Operations of `gpucnn.functional` on tensors, on PyTorch's stream, and the memory order of their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from gpucnn.backends import bfloat16

Tensor = Any


def computed(op: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """The result of an operation of `gpucnn.functional` on tensors, of which the first argument is one.

    Tensors of the CPU become NumPy's arrays here, in a fraction of the time that `gpucnn.functional` takes for it.
    """
    if not arguments[0].is_cuda:
        return _tensors(op(*map(_array, arguments), **{name: _array(value) for name, value in named.items()}))
    with _on_stream_of(arguments[0]):
        return op(*map(_plain, arguments), **{name: _plain(value) for name, value in named.items()})


def _plain(value: Any) -> Any:
    """A tensor without its history and with its values in memory, as they can be shared; anything else as it is."""
    return value.detach().resolve_conj().resolve_neg() if isinstance(value, torch.Tensor) else value


def _array(value: Any) -> Any:
    """A tensor as NumPy's array over the same memory; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    tensor = _plain(value)
    return bfloat16.taken(tensor) if tensor.dtype is torch.bfloat16 else tensor.numpy()


def _tensors(result: Any) -> Any:
    """A result, an array or a tuple of arrays and None, as tensors over the same memory."""
    if result is None:
        return None
    if isinstance(result, tuple):
        return tuple(map(_tensors, result))
    return torch.from_dlpack(bfloat16.given(result)) if result.dtype == bfloat16.dtype() else torch.from_numpy(result)


@contextmanager
def _on_stream_of(tensor: Tensor) -> Iterator[None]:
    """Within the block, CuPy launches and allocates on PyTorch's current stream of the tensor's GPU.

    So no stream waits for another, and memory that either frees is taken again in the order of that stream.
    """
    cuda, index = import_module("cupy").cuda, tensor.device.index
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    with cuda.Device(index), cuda.ExternalStream(stream, index):
        yield


def has_inner_channels(tensor: Tensor) -> bool:
    """Whether a tensor [N, C, *space] is stored channels last, as `gpucnn.backends.layout.is_channels_last` says.

    That one remembers answers by sizes, which PyTorch's symbolic ones cannot be.
    """
    channels = tensor.shape[1]
    steps = [step for step, size in zip(tensor.stride()[2:], tensor.shape[2:], strict=True) if size != 1]
    return bool(channels != 1 and tensor.stride(1) == 1 and steps and all(step >= channels for step in steps))


def stored_like(tensor: Tensor, image: Tensor) -> Tensor:
    """`tensor`, or a copy, without gaps and in the memory order of `image`: channels last, or C order."""
    if has_inner_channels(image):
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
    return tensor.contiguous()


def empty_like(image: Tensor, shape: Any, dtype: Any = None) -> Tensor:
    """A new tensor of `shape` in the memory order of `image`."""
    return stored_like(image.new_empty(shape, dtype=dtype), image)


def of_shape(shape: Any, like: Tensor) -> Tensor:
    """A tensor of `shape` and of the kind of `like` that takes no memory, for operations that read only its shape."""
    return like.new_zeros(()).expand(tuple(shape))
