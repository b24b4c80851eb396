"""The implementations that a GPU's benchmark compares, on arrays of the host: what they compute, and their settings."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bench_fakes import TRANSITION, OutOfMemory, case_of, needs_simulator, one_of_each_kind
from gpu_fakes import ClockDevice

from benchmarks.cases import Case
from benchmarks.data import make_operands
from benchmarks.gpu.ahead import compile_ahead
from benchmarks.gpu.cuts import expected, fault_of
from benchmarks.gpu.device import SimulatedDevice
from benchmarks.layers import ConvLayer, NormLayer
from benchmarks.providers import GPU_PROVIDERS, PROVIDERS, Provider, installed, kinds
from benchmarks.providers.plain_cupy import CupyxScipy, PlainCupy

CASES = one_of_each_kind(2)


def expect_right(providers: Iterable[Provider], cases: Iterable[Case], calls: int = 1) -> set[tuple[str, str]]:
    """Hold the results of those who take a case to what is expected, each time; the kinds of cases that were taken."""
    taken = set()
    for case in cases:
        operands = make_operands(case)
        cut, expectations = expected(case, operands)
        for provider in providers:
            if provider.refuses(case) is None:
                call = provider.within(lambda p=provider: p.prepare(case, operands))  # type: ignore[misc]  # noqa: B023
                for _ in range(calls):
                    results = provider.results(provider.within(call))
                    assert fault_of(cut, case, expectations, results, ClockDevice()) is None, (provider.name, case.id)
                taken.add((case.family, case.operation))
    return taken


# --- PyTorch ------------------------------------------------------------------------------------------------------


def host_versions(*kinds: type[Provider]) -> list[Provider]:
    """PyTorch's providers for a GPU, on the CPU: arrays of NumPy are CuPy's there."""
    pytest.importorskip("torch")
    return [type(kind.__name__, (kind,), {"_shared_with": lambda self: np.from_dlpack})(1) for kind in kinds]


def gpu_kinds(*names: str) -> list[type[Provider]]:
    return [kind for kind in GPU_PROVIDERS if kind.name in names]


@pytest.mark.thorough
def test_pytorch_computes_every_kind_of_case_right() -> None:
    providers = host_versions(*(kind for kind in GPU_PROVIDERS if kind.name.startswith("PyTorch")))
    assert len(providers) == 4

    def is_precise(case: Case) -> bool:  # PyTorch's kernels for the CPU add up in float16 elsewhere
        return not (case.dtype == "float16" and isinstance(case.layer, NormLayer) and case.operation == "backward")

    cases = list(filter(is_precise, CASES))
    assert expect_right(providers, cases) == {(case.family, case.operation) for case in cases}


@pytest.mark.thorough
def test_torch_compile_takes_each_layer_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    (provider,) = host_versions(*gpu_kinds("torch.compile"))
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **k: compiled(f, backend="aot_eager", fullgraph=True, **k))
    expect_right([provider], CASES, calls=2)  # a graph is run backwards more than once
    monkeypatch.setattr("benchmarks.providers.pytorch_gpu.COMPILE_ALLOWANCE_S", 0.0)
    assert "for compilation are spent" in str(provider.refuses(case_of("vit-b/layer_norm/forward")))
    assert "float32 only" in str(provider.refuses(case_of("vit-b/layer_norm/forward/float16")))


@pytest.mark.thorough
def test_cudnns_search_has_a_thread_of_its_own() -> None:

    searching, plain = host_versions(*gpu_kinds("PyTorch cudnn.benchmark", "PyTorch"))[::-1]
    torch: Any = pytest.importorskip("torch")

    def where() -> tuple[int, bool]:
        return threading.get_ident(), torch.backends.cudnn.benchmark

    assert plain.within(where) == (threading.get_ident(), False)
    first = searching.within(where)
    assert first[1]
    assert first[0] != threading.get_ident()
    assert searching.within(where) == first
    assert not torch.backends.cudnn.benchmark
    assert "convolutions only" in str(searching.refuses(case_of("resnet-50/bn1/backward")))
    with pytest.raises(ZeroDivisionError):
        searching.within(lambda: 1 / 0)
    assert not torch.backends.cudnn.benchmark


def test_tf32_is_off_and_both_libraries_are_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    torch: Any = pytest.importorskip("torch")
    stream = SimpleNamespace(ptr=7)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(get_current_stream=lambda: stream)))
    torch.backends.cuda.matmul.allow_tf32 = True  # the provider is to set it back
    (kind,) = gpu_kinds("PyTorch")
    if not torch.cuda.is_available():
        with pytest.raises(ImportError, match="sees no GPU"):
            kind(1)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: type("Stream", (), {"cuda_stream": 0}))
    with pytest.raises(RuntimeError, match="two streams"):
        kind(1)


# --- CuPy ---------------------------------------------------------------------------------------------------------


class PlainNumpy(PlainCupy):
    """The peer on NumPy's arrays."""

    def _module(self) -> Any:
        return np

    def _memory_bytes(self) -> int:
        return 1 << 34


class PlainScipy(CupyxScipy):
    """The peer on NumPy's arrays and SciPy's functions."""

    def _module(self) -> Any:
        return np

    def _ndimage(self) -> Any:
        return pytest.importorskip("scipy.ndimage")


@pytest.mark.thorough
def test_what_a_user_of_cupy_writes_computes_every_kind_of_case_right() -> None:
    others = (
        "c3d/conv5a/forward", "conv-tasnet/dw_dilated/backward_input", "deeplabv3/logits/forward",
        "fpn/upsample/forward", "fpn/upsample/backward", "segnet/unpool1/forward",
    )  # fmt: skip
    cases = (*CASES, *map(case_of, others))
    # a call leaves its operands as they were
    assert expect_right([PlainNumpy(1)], cases, calls=2) == {(case.family, case.operation) for case in cases}
    assert expect_right([PlainScipy(1)], cases, calls=2) == {
        ("depthwise convolution", "forward"), ("depthwise convolution", "backward_input"), ("pooling", "forward"),
        ("resampling", "forward"),
    }  # fmt: skip


@pytest.mark.parametrize("operation", ["forward", "backward_input", "backward_weight"])
@pytest.mark.parametrize("transposed", [False, True])
def test_plain_cupys_convolutions_with_all_parameters_at_once(operation: str, transposed: bool) -> None:
    layer = ConvLayer(
        network="small", name="all", channels=4, out_channels=6, size=(9, 8), kernel=(3, 2), stride=(2, 3),
        padding=(2, 1), dilation=(2, 1), groups=2, bias=True, transposed=transposed,
    )  # fmt: skip
    assert expect_right([PlainNumpy(1)], [Case(layer, operation, 2)])


def test_plain_cupy_refuses_windows_that_fill_the_device() -> None:
    assert "a copy of its windows takes 7 GiB" in str(PlainNumpy(1).refuses(case_of("yolov3-spp/spp13/backward", 64)))
    assert "a copy of its windows takes 92 GiB" in str(
        PlainNumpy(1).refuses(case_of("replknet-31b/dw31_128/forward", 64))
    )
    assert PlainScipy(1).refuses(case_of("replknet-31b/dw31_128/forward", 64)) is None
    assert "float32 only" in str(PlainNumpy(1).refuses(case_of("resnet-50/bn1/backward/float16")))


# --- gpucnn -------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_gpucnns_calls_on_arrays_of_a_device() -> None:
    plain, last = (kind(1) for kind in GPU_PROVIDERS if kind.ours)
    expect_right([plain, last], CASES)
    case = case_of("mobilenetv2/dw_960/forward")
    call = plain.prepare(case, make_operands(case))
    (result,) = plain.results(call())
    assert plain.hot(call, [result])() is result  # written again
    assert plain.hot(print, [result]) is print
    (output,) = last.results(last.prepare(case, make_operands(case))())
    assert output.strides[1] == output.itemsize


def test_every_device_has_its_providers() -> None:
    assert kinds("cpu") == PROVIDERS
    assert kinds("gpu") == GPU_PROVIDERS
    assert {kind.device for kind in GPU_PROVIDERS} == {"gpu"}
    assert {kind.device for kind in PROVIDERS} == {"cpu"}
    present, _ = installed(1, ["gpucnn"], "gpu")
    assert [provider.name for provider in present] == ["gpucnn", "gpucnn channels_last"]


@needs_simulator
def test_programs_are_compiled_ahead_and_nothing_is_launched() -> None:
    from gpucnn import simulator
    from gpucnn.backends import backend_named

    asked: list[str] = []
    runtime: Any = backend_named("simulator").runtime  # type: ignore[attr-defined]
    providers = [kind(1) for kind in GPU_PROVIDERS if kind.ours]
    cases = [case_of(TRANSITION), case_of("resnet-50/max_pool/backward"), case_of("vit-b/layer_norm/backward")]
    with pytest.MonkeyPatch.context() as patch, simulator.profile() as profile:
        patch.setattr(type(runtime), "prepare", lambda self, source, device: asked.append(source.name) or True)
        compiled = compile_ahead("simulator", SimulatedDevice(), providers, cases, 2)
    assert compiled == len(asked) == len(set(asked)) > 3
    assert {name.partition("[")[0] for name in asked} >= {"average_pool", "max_pool_with_indices"}
    assert not profile.launches


@needs_simulator
def test_a_call_that_fails_ahead_is_left_to_its_measurement() -> None:
    assert compile_ahead("simulator", SimulatedDevice(), [OutOfMemory(1)], [case_of(TRANSITION)], 1) == 0
