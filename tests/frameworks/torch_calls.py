"""Calls of each function of `gpucnn.torch`, with PyTorch's own, and arguments of each operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Make = Callable[..., Any]


class TorchCall(NamedTuple):
    """A function of both libraries, the shapes of its tensors, None for an absent one, and its other arguments."""

    name: str
    shapes: tuple[tuple[int, ...] | None, ...]
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name}-{'-'.join(map(str, self.options.values()))}"


def _convolutions(n: int) -> list[TorchCall]:
    space, taps = (6, 5, 4)[:n], (3, 2, 2)[:n]
    window: dict[str, Any] = {"stride": 2, "padding": 1, "dilation": 1, "groups": 2}
    return [
        TorchCall(f"conv{n}d", ((2, 4, *space), (6, 2, *taps), (6,)), window),
        TorchCall(f"conv{n}d", ((2, 4, *space), (4, 1, *taps), None), {"groups": 4, "dilation": 2}),
        TorchCall(f"conv{n}d", ((4, *space), (2, 4, *[3] * n), (2,)), {"padding": "same"}),
        TorchCall(f"conv_transpose{n}d", ((2, 4, *space), (4, 3, *taps), (6,)), window | {"output_padding": 1}),
        TorchCall(f"conv_transpose{n}d", ((4, *space), (4, 3, *taps), None), {"dilation": 2}),
    ]


def _pools(n: int) -> list[TorchCall]:
    x, window = (2, 3, *(7, 6, 4)[:n]), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}
    sizes = (3, 4, 2)[:n]
    return [
        TorchCall(f"max_pool{n}d", (x,), window),
        TorchCall(f"max_pool{n}d", (x[1:],), {"kernel_size": 2, "stride": 1, "dilation": 2}),
        TorchCall(f"avg_pool{n}d", (x,), window | {"count_include_pad": False}),
        TorchCall(f"avg_pool{n}d", (x[1:],), {"kernel_size": 2}),
        TorchCall(f"adaptive_max_pool{n}d", (x,), {"output_size": sizes}),
        TorchCall(f"adaptive_avg_pool{n}d", (x,), {"output_size": sizes}),
    ]


X = (3, 4, 5, 2)
PYTORCH = [
    *(call for n in (1, 2, 3) for call in (*_convolutions(n), *_pools(n))),
    TorchCall("avg_pool2d", (X,), {"kernel_size": (2, 1), "divisor_override": 3}),
    TorchCall("adaptive_avg_pool2d", (X,), {"output_size": (None, 1)}),
    TorchCall("batch_norm", (X, None, None, (4,), (4,)), {"training": True}),
    TorchCall("batch_norm", ((5, 4), None, None, None, (4,)), {"training": True, "eps": 0.1}),
    TorchCall("instance_norm", (X, None, None, (4,), None), {"eps": 0.01}),
    TorchCall("layer_norm", (X, (5, 2), (5, 2)), {"normalized_shape": (5, 2)}),
    TorchCall("layer_norm", (X, (2,), None), {"normalized_shape": (2,), "eps": 0.5}),
    TorchCall("group_norm", (X, (4,), (4,)), {"num_groups": 2}),
    TorchCall("group_norm", (X, None, None), {"num_groups": 1}),
]
"""Those that PyTorch has too, with running statistics left out."""

OURS = [
    TorchCall("conv2d", ((2, 3, 7, 6), (4, 3, 3, 2), (4,)), {"stride": 2, "padding": "same"}),
    TorchCall("conv2d", ((2, 3, 7, 6), (4, 3, 3, 2), (4,)), {"padding": ((1, 0), (2, 1)), "stride": (1, 2)}),
    TorchCall("conv_transpose1d", ((2, 3, 5), (3, 4, 3), (4,)), {"stride": 3, "padding": "same_lower"}),
    TorchCall("locally_connected1d", ((2, 3, 6), (2, 5, 3, 2), (2, 5)), {}),
    TorchCall("locally_connected2d", ((2, 2, 5, 4), (3, 3, 3, 2, 3, 2), (3, 3, 3)), {"stride": 2, "padding": 1}),
    TorchCall("locally_connected3d", ((2, 3, 3, 3), (2, 2, 2, 2, 2, 2, 2, 2), None), {}),
    TorchCall("max_pool2d", ((2, 3, 5, 4),), {"kernel_size": 3, "padding": ((2, 0), (1, 2)), "stride": 2}),
    TorchCall("avg_pool2d", ((2, 3, 5, 4),), {"kernel_size": 2, "padding": "same", "dilation": 2}),
]
"""Those that PyTorch has not, at least not with these arguments."""


def tensors_of(torch: Any, call: TorchCall, dtype: Any = None, seed: int = 0) -> list[Any]:
    """Drawn tensors of a call that require grad."""
    generator = torch.Generator().manual_seed(seed)
    return [
        None
        if shape is None
        else torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in call.shapes
    ]


def called(function: Any, call: TorchCall, tensors: list[Any]) -> Any:
    """The result of `function` on a call's tensors: the input, then the others by name."""
    names = ("weight", "bias") if len(tensors) == 3 else ("running_mean", "running_var", "weight", "bias")
    return function(tensors[0], **dict(zip(names, tensors[1:], strict=False)), **call.options)


def operator_calls(torch: Any) -> dict[str, tuple[Any, ...]]:
    """Arguments of each operator, of float64 and requiring grad."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, last: bool = False) -> Any:
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (tensor.contiguous(memory_format=torch.channels_last) if last else tensor).requires_grad_()

    x, last, channels = drawn(2, 4, 4, 3), drawn(2, 4, 4, 3, last=True), drawn(4)
    conv, local = ([2, 1], [1, 0, 0, 1], [1, 1], 2), ([2, 1], [0, 0, 0, 0], [1, 1])
    pool = ([2, 2], [2, 1], [1, 1, 0, 1], [1, 1], True)
    pooled, adaptive = drawn(2, 4, 3, 3), drawn(2, 4, 3, 2)
    indices, at = (torch.randint(12, size, generator=generator) for size in (pooled.shape, adaptive.shape))
    filters, local_filters = drawn(6, 2, 3, 2), drawn(3, 2, 2, 4, 2, 2)
    transposed, filters_transposed = ([2, 1], [1, 0, 0, 0], [0, 0], 2, [1, 1]), drawn(4, 2, 3, 2)
    calls: dict[str, tuple[Any, ...]] = {
        "conv": (x, filters, drawn(6), *conv),
        "conv_input": (drawn(2, 6, 2, 3), filters, [4, 4, 3], *conv),
        "conv_weight": (last, drawn(2, 6, 2, 3), [6, 2, 3, 2], *conv),
        "conv_transpose": (last, filters_transposed, channels, *transposed),
        "conv_transpose_input": (drawn(2, 4, 8, 4), filters_transposed, [4, 4, 3], *transposed),
        "conv_transpose_weight": (x, drawn(2, 4, 8, 4), [4, 2, 3, 2], *transposed),
        "locally_connected": (last, local_filters, drawn(3, 2, 2), *local),
        "locally_connected_input": (drawn(2, 3, 2, 2), local_filters, [4, 4, 3], *local),
        "locally_connected_weight": (x, drawn(2, 3, 2, 2), [*local_filters.shape], *local),
        "avg_pool": (last, *pool, True, None),
        "avg_pool_input": (pooled, [4, 3], *pool, False, 3.0),
        "adaptive_avg_pool": (x, [3, 2]),
        "adaptive_avg_pool_input": (adaptive, [4, 3], [3, 2]),
        "max_pool": (last, *pool),
        "max_pool_input": (pooled, indices, [4, 3], *pool),
        "adaptive_max_pool": (x, [3, 2]),
        "adaptive_max_pool_input": (adaptive, at, [4, 3], [3, 2]),
        "batch_norm": (x, channels, None, 1e-5),
        "instance_norm": (last, channels, drawn(4), 1e-5),
        "group_norm": (last, None, None, 1e-5, 2),
        "layer_norm": (x, drawn(3), drawn(3), 1e-5, [3]),
        "normalize": (last, torch.arange(4.0).double(), torch.arange(1.0, 5.0).double(), channels, None, 1e-5),
    }
    for name in ("batch_norm", "instance_norm", "group_norm", "layer_norm"):
        image, weight, bias, *rest = calls[name]
        _, mean, rstd, *_ = getattr(torch.ops.gpucnn, name)(*calls[name])
        needs = [True, weight is not None, bias is not None]
        calls[f"{name}_input"] = (drawn(2, 4, 4, 3), image, weight, bias, mean, rstd, needs, *rest)
    return calls
