"""`gpucnn.torch`: the same results and gradients as PyTorch's own functions, and what PyTorch does with them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch_calls import OURS, PYTORCH, TorchCall, called, tensors_of

import gpucnn.functional as F

TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}


@pytest.fixture(scope="module")
def ours(torch: Any) -> Any:
    return import_module("gpucnn.torch")


def with_gradients(function: Any, call: TorchCall, tensors: list[Any]) -> list[Any]:
    """The result of a call and the gradients of a sum of it with weights."""
    y = called(function, call, tensors)
    weights = (np.arange(y.numel()) % 7 - 2.5).reshape(y.shape)
    (y * y.new_tensor(weights)).sum().backward()
    return [y.detach(), *(tensor.grad for tensor in tensors if tensor is not None)]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("call", PYTORCH, ids=str)
def test_results_and_gradients_are_those_of_pytorch(torch: Any, ours: Any, call: TorchCall, dtype: str) -> None:
    exact, tensors = tensors_of(torch, call, torch.float64), tensors_of(torch, call, getattr(torch, dtype))
    for one, other in zip(exact, tensors, strict=True):
        if one is not None:
            one.data = other.data.double()  # as rounded
    expected = with_gradients(getattr(torch.nn.functional, call.name), call, exact)
    found = with_gradients(getattr(ours, call.name), call, tensors)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == getattr(torch, dtype)
        largest = max(1.0, float(other.abs().max()))
        assert float((one.double() - other).abs().max()) <= TOLERANCES[dtype] * largest


@pytest.mark.parametrize("call", OURS, ids=str)
def test_results_are_those_of_gpucnn(torch: Any, ours: Any, call: TorchCall) -> None:
    tensors = tensors_of(torch, call)
    expected = called(getattr(F, call.name), call, [None if one is None else one.detach() for one in tensors])
    assert called(getattr(ours, call.name), call, tensors).equal(expected)


@pytest.mark.table(6)
@pytest.mark.parametrize("call", [*PYTORCH, *OURS], ids=str)
def test_first_and_second_derivatives(torch: Any, ours: Any, call: TorchCall) -> None:
    tensors, function = tensors_of(torch, call, seed=1), getattr(ours, call.name)
    there = [place for place, tensor in enumerate(tensors) if tensor is not None]

    def of_tensors(*given: Any) -> Any:
        return called(function, call, [given[there.index(p)] if p in there else None for p in range(len(tensors))])

    given = [tensors[place] for place in there]
    checks = torch.autograd
    assert checks.gradcheck(of_tensors, given, fast_mode=True)
    assert checks.gradgradcheck(of_tensors, given, fast_mode=True)


def test_third_derivatives_of_a_convolution(torch: Any, ours: Any) -> None:
    x, w = tensors_of(torch, TorchCall("conv2d", ((1, 2, 4, 4), (2, 2, 3, 3)), {}))
    for function in (ours.conv2d, torch.nn.functional.conv2d):
        (of_x,) = torch.autograd.grad(function(x, w).pow(4).sum(), x, create_graph=True)
        (of_w,) = torch.autograd.grad(of_x.pow(2).sum(), w, create_graph=True)
        (third,) = torch.autograd.grad(of_w.pow(2).sum(), x)
        if function is ours.conv2d:
            expected = third
    torch.testing.assert_close(third, expected)


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_running_statistics_move_as_in_pytorch(torch: Any, ours: Any, name: str, dtype: str) -> None:
    results = []
    for library in (ours, torch.nn.functional):
        generator = torch.Generator().manual_seed(0)
        running = [torch.zeros(3, dtype=getattr(torch, dtype)), torch.ones(3, dtype=getattr(torch, dtype))]
        for momentum in (0.1, 0.5, 1.0):
            x = torch.randn(4, 3, 5, generator=generator).to(getattr(torch, dtype)) * 2 + 1
            getattr(library, name)(x, *running, None, None, True, momentum)
        kept = getattr(library, name)(x.requires_grad_(), *running, None, None, False)
        results.append((*running, kept.detach(), *torch.autograd.grad(kept.pow(2).sum(), x)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_kept_statistics_have_second_derivatives(torch: Any, ours: Any) -> None:
    x, weight, bias = tensors_of(torch, TorchCall("", ((3, 4, 2), (4,), (4,)), {}))
    mean, var = torch.arange(4.0).double(), torch.arange(4.0).double() + 0.5
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda *given: ours.batch_norm(given[0], mean, var, *given[1:]), (x, weight, bias))


def test_norms_of_16_bits_take_parameters_of_32(torch: Any, ours: Any) -> None:
    x = torch.randn(4, 6, 5, dtype=torch.bfloat16, requires_grad=True)
    weight, bias = torch.randn(6, requires_grad=True), torch.randn(6, requires_grad=True)
    running = torch.zeros(6), torch.ones(6)
    for y in (
        ours.batch_norm(x, *running, weight, bias, True),
        ours.batch_norm(x, *running, weight, bias, False),
        ours.group_norm(x, 3, weight, bias),
    ):
        found = torch.autograd.grad(y.float().pow(2).sum(), (x, weight, bias))
        assert [y.dtype, *(one.dtype for one in found)] == [torch.bfloat16, torch.bfloat16, *[torch.float32] * 2]


def test_complex_tensors_with_pending_conjugates(torch: Any, ours: Any) -> None:
    x, w = (torch.randn(2, 2, 4, dtype=torch.complex128, requires_grad=True) for _ in range(2))
    results = []
    for library in (ours, torch.nn.functional):
        y = library.conv1d(x.conj(), w[..., :2].conj()), library.conv_transpose1d(x.conj(), w, stride=2)
        results.append((*y, *torch.autograd.grad(sum(one.abs().pow(2).sum() for one in y), (x, w))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_integers_are_summed_in_wider_ones(torch: Any, ours: Any) -> None:
    x = torch.full((1, 2, 5), 100, dtype=torch.int8)
    assert ours.conv1d(x, x[..., :2]).tolist() == [[[40000] * 4]]


def test_channels_last_images_stay_so(torch: Any, ours: Any) -> None:
    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    y = ours.max_pool2d(ours.batch_norm(ours.conv2d(x, torch.randn(8, 4, 3, 3)), None, None, training=True), 2)
    y.square().sum().backward()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_images_without_elements(torch: Any, ours: Any) -> None:
    x, w = torch.zeros(0, 2, 4, 4, requires_grad=True), torch.ones(3, 2, 2, 2, requires_grad=True)
    y = ours.avg_pool2d(ours.conv2d(x, w), 2)
    y.sum().backward()
    assert (y.shape, x.grad.shape, float(w.grad.abs().sum())) == ((0, 3, 1, 1), x.shape, 0)


def test_a_window_of_nothing_but_padding_has_no_gradient(torch: Any, ours: Any) -> None:
    x = torch.randn(1, 1, 2, dtype=torch.float64, requires_grad=True)
    window = {"kernel_size": 2, "stride": 1, "padding": ((1, 2),), "dilation": 3}  # taps at -1 and 2, then 0 and 3
    y, indices = ours.max_pool1d(x, **window, return_indices=True)
    assert indices.tolist() == [[[-1, 0]]]
    upstream = torch.ones_like(y).requires_grad_()
    (grad,) = torch.autograd.grad(y, x, upstream, create_graph=True)
    assert grad.tolist() == [[[1, 0]]]
    assert torch.autograd.grad(grad.sum(), upstream)[0].tolist() == [[[0, 1]]]


# --- What PyTorch does with functions ------------------------------------------------------------------------------


def network(ours: Any, x: Any, w: Any, running: tuple[Any, Any]) -> Any:
    y = ours.batch_norm(ours.conv2d(x, w, padding="same"), *running, training=True)
    y = ours.max_pool2d(y, 3, 2, 1, ceil_mode=True)
    y = ours.conv_transpose2d(ours.group_norm(y, 2), w, stride=2, padding=1)
    return ours.adaptive_avg_pool2d(ours.avg_pool2d(ours.layer_norm(y, y.shape[2:]), 2), (1, None))


@pytest.mark.parametrize(
    ("compiler", "dynamic"),
    [
        *((compiler, dynamic) for compiler in ("eager", "aot_eager") for dynamic in (False, True)),
        pytest.param("inductor", False, marks=pytest.mark.thorough),  # compiles C++ for most of a minute
    ],
)
@pytest.mark.filterwarnings("ignore")  # of PyTorch's compilers
def test_compiled_networks(
    torch: Any, ours: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, compiler: str, dynamic: bool
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    w = torch.randn(6, 4, 3, 3, requires_grad=True, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend=compiler, dynamic=dynamic)
    for size in (8, 11) if dynamic else (8,):
        x = torch.randn(2, 4, size, size, generator=torch.Generator().manual_seed(0))
        results = []
        for function in (network, compiled):
            running = torch.zeros(6), torch.ones(6)
            y = function(ours, x, w, running)
            results.append((y, *torch.autograd.grad(y.pow(3).sum(), w), *running))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


def test_autocast_casts_images_and_weights(torch: Any, ours: Any) -> None:
    x, w, bias = tensors_of(torch, TorchCall("", ((2, 4, 6), (4, 4, 3), (4,)), {}), torch.float32)
    local = torch.randn(2, 4, 4, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = [ours.conv1d(x, w, bias), ours.conv_transpose1d(x, w, bias), ours.locally_connected1d(x, local)]
        results += [ours.max_pool1d(results[0], 2), ours.batch_norm(results[0], None, None, training=True)]
    assert {result.dtype for result in results} == {torch.bfloat16}
    found = torch.autograd.grad(sum(result.float().sum() for result in results), (x, w, bias, local))
    assert {one.dtype for one in found} == {torch.float32}


@pytest.mark.parametrize(("axes", "out"), [((0, None), 0), ((2, None), 1), ((None, 1), 0), ((0, 1), 0)])
def test_vmap(torch: Any, ours: Any, axes: tuple[Any, Any], out: int) -> None:
    x, w = torch.randn(3, 3, 3, 5, 4), torch.randn(2, 3, 3, 2, 2)
    x, w = x if axes[0] is not None else x[0], w if axes[1] is not None else w[:, 0]
    found = torch.vmap(lambda x, w: ours.max_pool2d(ours.conv2d(x, w), 2), axes, out)(x, w)

    def item(one: Any, axis: int | None, place: int) -> Any:
        return one if axis is None else one.select(axis, place)

    separate = [ours.max_pool2d(ours.conv2d(item(x, axes[0], at), item(w, axes[1], at)), 2) for at in range(3)]
    torch.testing.assert_close(found, torch.stack(separate, out))


def test_vmap_of_norms_normalises_each_by_itself(torch: Any, ours: Any) -> None:
    x = torch.randn(3, 2, 4, 5)
    for function in (lambda x: ours.batch_norm(x, None, None, training=True), lambda x: ours.layer_norm(x, 5)):
        torch.testing.assert_close(torch.vmap(function)(x), torch.stack([function(one) for one in x]))


def test_wrong_arguments(torch: Any, ours: Any) -> None:
    x = torch.ones(1, 2, 4, 4)
    for error, said, call in (
        (TypeError, "conv2d: got a ndarray, expected tensors of PyTorch", lambda: ours.conv2d(np.ones((1, 1)), x)),
        (ValueError, "conv1d: input has 4 dimensions, expected 3 (N, C, W) or 2 (C, W)", lambda: ours.conv1d(x, x)),
        (ValueError, "conv2d: input has shape (1, 2, 4, 4), expected", lambda: ours.conv2d(x, torch.ones(1, 3, 2, 2))),
        (ValueError, "conv2d: window of axis 0 spans", lambda: ours.conv2d(x, torch.ones(1, 2, 5, 2))),
        (ValueError, "adaptive_avg_pool2d: output_size has 1", lambda: ours.adaptive_avg_pool2d(x, (2,))),
        (ValueError, "max_pool2d: padding of axis 0 is (2, 2)", lambda: ours.max_pool2d(x, 2, padding=2)),
        (
            ValueError,
            "batch_norm: input has shape (1, 3)",
            lambda: ours.batch_norm(x[0, :1, :3, 0], None, None, None, None, True),
        ),
        (
            TypeError,
            "conv2d: input is of torch.float32 on cpu and weight of torch",
            lambda: ours.conv2d(x, x.double()),
        ),
    ):
        with pytest.raises(error, match=re.escape(said)):
            call()


# --- Streams: no GPU is here, so stand-ins say which streams would be used ------------------------------------------


def test_cupy_computes_on_the_stream_of_pytorch(torch: Any, ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = import_module("gpucnn.torch._tensors")
    current: list[Any] = []

    @contextmanager
    def entered(*what: Any) -> Iterator[None]:
        current.append(what)
        yield
        current.remove(what)

    cuda = SimpleNamespace(
        Device=lambda index: entered("device", index), ExternalStream=lambda *stream: entered("stream", *stream)
    )
    monkeypatch.setitem(__import__("sys").modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=1000 + device.index), raising=False
    )
    with tensors._on_stream_of(SimpleNamespace(is_cuda=True, device=SimpleNamespace(index=1))):
        assert current == [("device", 1), ("stream", 1001, 1)]
    assert current == []
