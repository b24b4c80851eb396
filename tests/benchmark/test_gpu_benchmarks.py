"""The benchmarks' run on a GPU: checks, failures, lost devices, reports; without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gpu_fakes import BenchCupy, ClockDevice
from rich.console import Console
from scripted_worker import script

from benchmarks import __main__ as command
from benchmarks import plots, publishing, report, targets
from benchmarks.cases import LAYERS, Case, select
from benchmarks.checking import expect
from benchmarks.data import PIECE, form, make_arrays, make_operands, normal
from benchmarks.gpu import command as gpu_command
from benchmarks.gpu import environment, fallback, sampling, worker
from benchmarks.gpu.ahead import compile_ahead
from benchmarks.gpu.command import Collected
from benchmarks.gpu.cuts import cut_of, expected, fault_of
from benchmarks.gpu.device import SimulatedDevice
from benchmarks.gpu.environment import chosen_gpu
from benchmarks.gpu.sampling import DeviceLost
from benchmarks.gpu.session import Session
from benchmarks.isolation import EXIT_DEVICE_LOST, Task, follow
from benchmarks.layers import ConvLayer, LayoutLayer, NormLayer, PoolLayer
from benchmarks.providers import GPU_PROVIDERS, PROVIDERS, Provider, installed, kinds
from benchmarks.providers.plain_cupy import CupyxScipy, PlainCupy
from benchmarks.results import Outcome, Record, Run, record_from, rows_of
from benchmarks.timing import Limits, Timing
from gpucnn.simulator import available


def case_of(identifier: str, batch: int = 2) -> Case:
    return replace(next(case for case in select("full", device="gpu") if case.id == identifier), batch=batch)


TRANSITION = "densenet-121/transition1/forward"

# The cases --------------------------------------------------------------------------------------------------------


def test_a_gpu_has_more_cases_and_what_its_targets_are_about_comes_first() -> None:
    cases = select("default", device="gpu")
    kind = [(case.family, case.operation, case.dtype) for case in cases]
    assert kind[0][0] == "depthwise convolution"
    first = {name: min(place for place, (family, *_) in enumerate(kind) if family == name) for name, *_ in kind}
    assert first["normalization"] < first["pooling"] < first["layout"] < first["unfolding"] < first["dense convolution"]
    half = [case for case in cases if case.dtype == "float16"]
    assert {case.family for case in half} >= {
        "depthwise convolution", "pooling", "normalization", "layout", "bias and activation", "dense convolution"
    }  # fmt: skip
    assert len({case.id for case in cases}) == len(cases)
    assert all(case.batch == case.layer.gpu_batch for case in cases)
    on_cpu = select("full")
    assert {case.dtype for case in on_cpu} == {"float32"}
    assert not {"layout", "bias and activation"} & {case.family for case in on_cpu}
    assert {case.dtype for case in select("quick", device="gpu")} == {"float32"}


def test_half_the_width_is_half_the_bytes() -> None:
    by_id = {case.id: case for case in select("full", device="gpu")}
    for identifier, case in by_id.items():
        if case.dtype == "float16" and "max_pool" not in identifier and case.operation != "backward":
            assert 2 * case.least_bytes == by_id[identifier.removesuffix("/float16")].least_bytes, identifier
    cast = by_id["resnet-50/conv2_out_cast/pack"]
    assert cast.least_bytes == 6 * 64 * 64 * 56 * 56
    assert cast.dtypes == ("float32", "float16")
    assert by_id["resnet-50/conv2_out_cast/unpack"].dtypes == ("float16", "float32")
    assert by_id["resnet-50/conv2_out/pack/float16"].least_bytes == 4 * 64 * 64 * 56 * 56


def test_large_arrays_are_the_same_however_many_threads_draw_them() -> None:
    shape = (3, PIECE // 2 + 7)
    one, other = (normal(np.random.default_rng(5), shape, "float32") for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert len(np.unique(one[:, :1000])) > 2900
    assert abs(float(one.mean())) < 0.01
    assert normal(np.random.default_rng(5), shape, "float16").dtype == np.float16


# Cuts -------------------------------------------------------------------------------------------------------------


def small(layer: Any) -> bool:
    return max(np.prod(layer.input_shape(1)), np.prod(layer.output_shape(1))) < 500_000


def one_of_each_kind() -> list[Case]:
    kinds: dict[Any, Case] = {}
    for case in select("default", device="gpu"):
        layer = case.layer
        kind = (case.family, case.operation, case.dtype, getattr(layer, "kind", ""), getattr(layer, "cast", False))
        if small(layer) and case.flops / case.batch < 2e8:
            kinds.setdefault(kind, replace(case, batch=11))
    return list(kinds.values())


def right_results(case: Case) -> list[Any]:
    """A right result of a case that is no convolution, whole."""
    made = []
    for expectation in expect(case, make_arrays(case)):
        values = np.asarray(expectation.values).astype(expectation.dtype)
        if expectation.channels_last:
            values = np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)
        made.append(values)
    return made


@pytest.mark.table(2)
@pytest.mark.parametrize("case", [c for c in one_of_each_kind() if not c.flops], ids=lambda case: case.id)
def test_a_cut_is_a_case_of_its_own(case: Case) -> None:
    device = ClockDevice()
    results = right_results(case)
    cut, expectations = expected(case, make_operands(case))
    assert fault_of(cut, case, expectations, results, device) is None
    for place, expectation in enumerate(expectations):
        wrong = [array.copy(order="K") for array in results]
        error = 1 + np.abs(results[place]).max()
        wrong[place].flat[0] += error
        fault = fault_of(cut, case, expectations, wrong, device)
        assert fault is not None
        assert expectation.name in fault
        wrong[place][...] = results[place]
        wrong[place].flat[-1] += error
        assert fault_of(cut, case, expectations, wrong, device) is not None
        wrong[place].flat[-1] = np.nan
        assert "not finite" in str(fault_of(cut, case, expectations, wrong, device))
        shorter = [array[:-1] if n == place else array for n, array in enumerate(results)]
        assert "shape" in str(fault_of(cut, case, expectations, shorter, device))
        wide = [array.astype(np.float64) if n == place else array for n, array in enumerate(results)]
        assert "float64" in str(fault_of(cut, case, expectations, wide, device))
    assert "arrays came back" in str(fault_of(cut, case, expectations, [*results, results[0]], device))


def test_what_is_cut() -> None:
    pool = cut_of(case_of("resnet-50/max_pool/backward", 64))
    assert pool.axis == 0
    assert pool.chosen is not None
    assert (pool.chosen[0], pool.chosen[-1], pool.case.batch) == (0, 63, len(pool.chosen))
    batch = cut_of(case_of("resnet-50/bn1/backward", 64))
    assert (batch.axis, batch.case.batch, batch.case.layer.channels) == (1, 64, 4)
    assert (batch.axis_of("weight"), batch.axis_of("grad_bias"), batch.axis_of("input")) == (0, 0, 1)
    group = cut_of(case_of("ddpm/group_norm/forward", 64))
    layer: Any = group.case.layer
    assert (layer.channels, layer.groups) == (32, 8)
    assert group.chosen is not None
    assert list(group.chosen[:8]) == [0, 1, 2, 3, 16, 17, 18, 19]
    assert cut_of(case_of("vit-b/layer_norm/backward")).axis is None
    assert cut_of(case_of("resnet-50/conv1/forward")).axis is None


def test_no_cut_costs_more_than_seconds() -> None:
    for case in select("full", device="gpu"):
        if not isinstance(case.layer, ConvLayer):
            smaller = cut_of(case).case
            shapes = smaller.layer.input_shape(smaller.batch), smaller.layer.output_shape(smaller.batch)
            assert max(map(np.prod, shapes)) < 2**25, case.id


def test_an_order_in_memory_is_checked_where_it_is_the_point() -> None:
    case = case_of("resnet-50/conv2_out/pack")
    (right,) = right_results(case)
    cut, expectations = expected(case, make_operands(case))
    plain = [np.ascontiguousarray(right)]
    assert "strides" in str(fault_of(cut, case, expectations, plain, ClockDevice()))


def test_a_convolutions_result_is_checked_where_it_is_sampled() -> None:
    case = case_of("mobilenetv2/dw_960/forward/float16")
    cut, expectations = expected(case, make_operands(case))
    (expectation,) = expectations
    result = np.zeros(expectation.shape, np.float16)
    assert expectation.where is not None
    result[expectation.where] = expectation.values
    assert fault_of(cut, case, expectations, [result], ClockDevice()) is None
    result[tuple(axis[7] for axis in expectation.where)] += np.float16(0.1)
    assert "checked values are off" in str(fault_of(cut, case, expectations, [result], ClockDevice()))


# A session --------------------------------------------------------------------------------------------------------


class Halves(Provider):
    """Average pooling by 2x2 in NumPy: right, and all that it takes."""

    name = "halves"
    requires = ("numpy",)
    device = "gpu"
    ours = True
    seconds = 1e-4
    clock: ClockDevice | None = None

    def version(self) -> str:
        return "1"

    def refuses(self, case: Case) -> str | None:
        return None if case.id == TRANSITION else "not halves"

    def prepare(self, case: Case, arrays: Any) -> Any:
        n, c, h, w = arrays["input"].shape
        x = arrays["input"].reshape(n, c, h // 2, 2, w // 2, 2)

        halved = x.mean((3, 5), dtype=np.float32)

        def call() -> Any:
            if self.clock is not None:
                self.clock.queue(self.name, self.seconds)
            return halved

        return call

    def results(self, returned: Any) -> list[Any]:
        return [returned]


class Slow(Halves):
    name = "slow peer"
    ours = False
    seconds = 4e-4


class Wrong(Halves):
    name = "wrong peer"
    ours = False

    def results(self, returned: Any) -> list[Any]:
        return [returned + np.float32(1)]


class OutOfMemory(Halves):
    name = "out of memory"
    ours = False

    def prepare(self, case: Case, arrays: Any) -> Any:
        raise MemoryError("Out of memory allocating 3 bytes\n  (of 2)")


class FailsLater(Halves):
    """Fails in its third call: it was checked, and is being timed."""

    name = "fails later"
    ours = False

    def prepare(self, case: Case, arrays: Any) -> Any:
        call = super().prepare(case, arrays)
        left = iter(range(2))

        def failing() -> Any:
            if next(left, None) is None:
                self.fail()
            return call()

        return failing

    def fail(self) -> None:
        raise RuntimeError("launch failed")


class LosesTheDevice(FailsLater):
    name = "loses the device"

    def fail(self) -> None:
        assert self.clock is not None
        self.clock.lost = True
        raise RuntimeError("cudaErrorIllegalAddress")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ClockDevice:
    device = ClockDevice()
    monkeypatch.setattr(sampling.time, "perf_counter", device.perf_counter)
    monkeypatch.setattr(Halves, "clock", device)
    return device


def session_of(clock: ClockDevice, *kinds: type[Provider], **options: Any) -> Session:
    return Session(clock, [kind(1) for kind in kinds], **options)


def test_a_session_checks_and_times(clock: ClockDevice) -> None:
    record = session_of(clock, Halves, Slow, Wrong).record(case_of(TRANSITION), 0.1, 6)
    assert [outcome.status for outcome in record.outcomes] == ["timed", "timed", "wrong"]
    ours, slow, wrong = record.outcomes
    assert ours.timing is not None
    assert slow.timing is not None
    assert (ours.timing.median, slow.timing.median) == (pytest.approx(1e-4), pytest.approx(4e-4))
    assert ours.warm is not None
    assert ours.host is not None
    assert ours.host.median == pytest.approx(1e-6)
    assert (wrong.timing, wrong.warm, wrong.host) == (None, None, None)
    assert "expected" in wrong.note
    assert record.raw_launch_s == pytest.approx(3e-6)
    assert "raw 2" in clock.log  # the input and the output
    assert clock.released == 1
    assert clock.spoiled == [4 * 2 * 128 * 28 * 28] * 3  # memory held NaN before the checked calls


def test_one_failure_does_not_end_a_case(clock: ClockDevice) -> None:
    said: list[tuple[str, str]] = []
    session = session_of(clock, Halves, OutOfMemory, FailsLater, say=lambda *event: said.append(event))
    record = session.record(case_of(TRANSITION), 0.1, 6)
    assert [outcome.status for outcome in record.outcomes] == ["timed", "failed", "failed"]
    assert record.outcomes[1].note == "MemoryError: Out of memory allocating 3 bytes (of 2)"
    assert record.outcomes[2].note == "RuntimeError: launch failed"
    assert said[:3] == [("halves", "check"), ("out of memory", "check"), ("fails later", "check")]
    assert ("halves", "time") in said


@pytest.mark.thorough
def test_a_lost_device_says_who_had_it(clock: ClockDevice) -> None:
    session = session_of(clock, Halves, LosesTheDevice)
    with pytest.raises(DeviceLost) as lost:
        session.record(case_of(TRANSITION), 0.1, 6)
    assert (lost.value.provider, lost.value.note) == ("loses the device", "RuntimeError: cudaErrorIllegalAddress")
    clock.lost = False
    again = session_of(clock, Halves, LosesTheDevice, lost={(TRANSITION, "loses the device"): "it was lost"})
    record = again.record(case_of(TRANSITION), 0.1, 6)
    assert [(outcome.status, outcome.note) for outcome in record.outcomes] == [("timed", ""), ("failed", "it was lost")]
    nobody = session_of(clock, Halves, LosesTheDevice, lost={(TRANSITION, ""): "killed"})
    assert {outcome.note for outcome in nobody.record(case_of(TRANSITION), 0.1, 6).outcomes} == {"killed"}


def test_what_does_not_fit_is_not_tried(clock: ClockDevice) -> None:
    clock.free = 1000
    record = session_of(clock, Halves, Slow).record(case_of(TRANSITION), 0.1, 6)
    assert {outcome.status for outcome in record.outcomes} == {"refused"}
    assert "GiB of the device's memory" in record.outcomes[0].note
    assert clock.log == []


def test_a_case_that_nobody_takes_costs_nothing(clock: ClockDevice) -> None:
    record = session_of(clock, Halves).record(case_of("resnet-50/bn1/backward"), 0.1)
    assert [outcome.status for outcome in record.outcomes] == ["refused"]
    assert record.raw_launch_s is None


# Providers --------------------------------------------------------------------------------------------------------


def host_versions(*kinds: type[Provider]) -> list[Provider]:
    """PyTorch's providers for a GPU, on the CPU: arrays of NumPy are CuPy's there."""
    pytest.importorskip("torch")
    return [type(kind.__name__, (kind,), {"_shared_with": lambda self: np.from_dlpack})(1) for kind in kinds]


def gpu_kinds(*names: str) -> list[type[Provider]]:
    return [kind for kind in GPU_PROVIDERS if kind.name in names]


@pytest.mark.thorough
def test_pytorch_computes_every_kind_of_case_right() -> None:
    providers = host_versions(*gpu_kinds(*(kind.name for kind in GPU_PROVIDERS if kind.name.startswith("PyTorch"))))
    assert len(providers) == 4
    timed = 0
    for case in (replace(case, batch=2) for case in one_of_each_kind()):
        if case.dtype == "float16" and isinstance(case.layer, NormLayer) and case.operation == "backward":
            continue  # PyTorch's kernels for the CPU add up in float16 there
        cut, expectations = expected(case, make_operands(case))
        for provider in providers:
            if provider.refuses(case) is None:
                call = provider.within(lambda p=provider, c=case: p.prepare(c, make_operands(c)))  # type: ignore[misc]
                results = provider.results(provider.within(call))
                assert fault_of(cut, case, expectations, results, ClockDevice()) is None, (provider.name, case.id)
                timed += 1
    assert timed > 100


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
    taken: dict[str, set[tuple[str, str]]] = {"plain CuPy": set(), "cupyx.scipy": set()}
    others = (
        "c3d/conv5a/forward", "conv-tasnet/dw_dilated/backward_input", "deeplabv3/logits/forward",
        "fpn/upsample/forward", "fpn/upsample/backward", "segnet/unpool1/forward",
    )  # fmt: skip
    kinds = (*one_of_each_kind(), *map(case_of, others))
    for case in (replace(case, batch=2) for case in kinds):
        operands = make_operands(case)
        cut, expectations = expected(case, operands)
        for provider in (PlainNumpy(1), PlainScipy(1)):
            if provider.refuses(case) is None:
                call = provider.prepare(case, operands)
                for _ in range(2):  # a call leaves its operands as they were
                    fault = fault_of(cut, case, expectations, provider.results(call()), ClockDevice())
                    assert fault is None, (provider.name, case.id)
                taken[provider.name].add((case.family, case.operation))
    every = {(case.family, case.operation) for case in kinds}
    assert taken["plain CuPy"] == every
    assert taken["cupyx.scipy"] == {
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
    case = Case(layer, operation, 2)
    cut, expectations = expected(case, make_operands(case))
    provider = PlainNumpy(1)
    results = provider.results(provider.prepare(case, make_operands(case))())
    assert fault_of(cut, case, expectations, results, ClockDevice()) is None


def test_plain_cupy_refuses_windows_that_fill_the_device() -> None:
    assert "a copy of its windows takes 7 GiB" in str(PlainNumpy(1).refuses(case_of("yolov3-spp/spp13/backward", 64)))
    assert "a copy of its windows takes 92 GiB" in str(
        PlainNumpy(1).refuses(case_of("replknet-31b/dw31_128/forward", 64))
    )
    assert PlainScipy(1).refuses(case_of("replknet-31b/dw31_128/forward", 64)) is None
    assert "float32 only" in str(PlainNumpy(1).refuses(case_of("resnet-50/bn1/backward/float16")))


@pytest.mark.thorough
def test_torch_compile_takes_each_layer_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    (provider,) = host_versions(*gpu_kinds("torch.compile"))
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **k: compiled(f, backend="aot_eager", fullgraph=True, **k))
    for case in (replace(case, batch=2) for case in one_of_each_kind()):
        if provider.refuses(case) is None:
            cut, expectations = expected(case, make_operands(case))
            call = provider.prepare(case, make_operands(case))
            for _ in range(2):  # a graph is run backwards more than once
                fault = fault_of(cut, case, expectations, provider.results(call()), ClockDevice())
                assert fault is None, case.id
    monkeypatch.setattr("benchmarks.providers.pytorch_gpu.COMPILE_ALLOWANCE_S", 0.0)
    assert "for compilation are spent" in str(provider.refuses(case_of("vit-b/layer_norm/forward")))
    assert "float32 only" in str(provider.refuses(case_of("vit-b/layer_norm/forward/float16")))


@pytest.mark.thorough
def test_cudnns_search_has_a_thread_of_its_own() -> None:
    import threading

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
    monkeypatch.setitem(sys.modules, "cupy", BenchCupy(stream=7))
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


@pytest.mark.thorough
def test_gpucnns_calls_on_arrays_of_a_device() -> None:
    plain, last = (kind(1) for kind in GPU_PROVIDERS if kind.ours)
    for case in (replace(case, batch=2) for case in one_of_each_kind()):
        cut, expectations = expected(case, make_operands(case))
        for provider in (plain, last):
            if provider.refuses(case) is None:
                results = provider.results(provider.prepare(case, make_operands(case))())
                assert fault_of(cut, case, expectations, results, ClockDevice()) is None, (provider.name, case.id)
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


@pytest.mark.thorough
def test_the_form_of_a_cases_arrays() -> None:
    for case in one_of_each_kind():
        made = make_operands(case)
        assert form(case) == {name: (array.shape, array.dtype) for name, array in made.items()}, case.id


@pytest.mark.skipif(available() != "available", reason="the simulator needs a C++ compiler")
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


@pytest.mark.skipif(available() != "available", reason="the simulator needs a C++ compiler")
def test_a_call_that_fails_ahead_is_left_to_its_measurement() -> None:
    class Failing(Halves):
        def prepare(self, case: Case, arrays: Any) -> Any:
            raise RuntimeError("later")

    assert compile_ahead("simulator", SimulatedDevice(), [Failing(1)], [case_of(TRANSITION)], 1) == 0


# Workers ----------------------------------------------------------------------------------------------------------


def timing(seconds: float) -> Timing:
    return Timing(seconds, 0.9 * seconds, 1.1 * seconds, 9, 1)


def made(identifier: str, ours: float = 1e-4, peer: float = 2e-4, status: str = "timed") -> Record:
    outcomes = [
        Outcome("gpucnn", True, "timed", timing(ours), "", timing(ours / 2), timing(7.9e-6)),
        Outcome("PyTorch", False, "timed", timing(peer), "", timing(peer), timing(2e-5)),
    ]
    if status != "timed":
        outcomes[0] = Outcome("gpucnn", True, status, note="so it was")  # type: ignore[arg-type]
    return Record.of(case_of(identifier, 64), outcomes, 7.5e-6)


FACTS: dict[str, Any] = {
    "device": {"kind": "gpu", "name": "NVIDIA Fake 100", "threads": 2, "l2_bytes": 50 << 20},
    "host": {"kind": "cpu", "name": "Some CPU", "cpus": 2, "threads": 2, "load": 0.1},
    "versions": {"gpucnn": "1", "cuDNN": "9.10.2"},
    "date": "2026-01-01",
    "clocks": {"at the start": {"SM clock": "1980 MHz", "driver": "1.2"}},
}
LIMITS = Limits(50e12, "PyTorch", 3e12, {"tf32": 400e12, "float16": 750e12})
HELLO = [
    {"providers": {"gpucnn": "1"}, "absent": {"torch.compile": "not installed: triton"}},
    {"environment": FACTS, "limits": asdict(LIMITS)},
]


A, B = "mobilenetv2/dw_144/forward", "resnet-50/bn1/backward"


def measured(identifier: str) -> list[dict[str, Any]]:
    return [
        {"item": identifier}, {"by": "gpucnn", "step": "check"}, {"result": asdict(made(identifier))}
    ]  # fmt: skip


def test_what_workers_say_is_collected() -> None:
    collected = Collected()
    again = {"providers": {"gpucnn": "1"}, "absent": {}}
    for event in [*HELLO, *measured(A), again, {"clocks": {"at the end": {"power": "300 W"}}}, {"unreached": [B]}]:
        collected.take(event)
    assert collected.records == [made(A)]
    assert (collected.limits, collected.providers, collected.trouble) == (LIMITS, {"gpucnn": "1"}, "")
    assert set(collected.environment["clocks"]) == {"at the start", "at the end"}
    assert (collected.absent, collected.unreached) == (HELLO[0]["absent"], [B])


@pytest.mark.thorough
def test_a_worker_measures_the_cases_that_are_left(clock: ClockDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(environment, "make_device", lambda kind: clock)
    monkeypatch.setattr("benchmarks.environment.confine", lambda threads: None)
    monkeypatch.setattr("benchmarks.providers.GPU_PROVIDERS", (Halves, LosesTheDevice))

    def run(done: int = 0, lost: dict[str, str] | None = None, seconds: float = 60.0) -> int:
        events.clear()
        options: Any = {"device": "simulator", "tier": "quick", "filters": ["transition1"]}
        return worker.work(lambda **event: events.append(event), done, lost or {}, seconds, **options)

    assert run() == EXIT_DEVICE_LOST
    assert events[0]["providers"] == {"halves": "1", "loses the device": "1"}
    assert events[2]["environment"]["device"]["name"] == "Clock 100"
    assert events[-1] == {"lost": "loses the device", "note": "RuntimeError: cudaErrorIllegalAddress"}
    clock.lost = False
    assert run(lost={"loses the device": "gone"}) == 0
    records = [record_from(event["result"]) for event in events if "result" in event]
    assert [record.id for record in records] == [TRANSITION, "densenet-121/transition1/backward"]
    assert [outcome.status for outcome in records[0].outcomes] == ["timed", "failed"]
    assert {outcome.status for outcome in records[1].outcomes} == {"refused"}  # lost on the case before alone
    assert not any("limits" in event for event in events)  # the first worker measured those
    assert run(done=1, seconds=0) == 0
    assert events[-1] == {"unreached": ["densenet-121/transition1/backward"]}
    monkeypatch.setattr("benchmarks.providers.GPU_PROVIDERS", ())
    assert run() == worker.EXIT_NO_PROVIDER


def test_a_gpu_is_chosen_by_its_number() -> None:
    assert chosen_gpu(None, {}) == {}
    assert chosen_gpu(1, {}) == {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert chosen_gpu(1, {"CUDA_VISIBLE_DEVICES": "4, 6"})["CUDA_VISIBLE_DEVICES"] == "6"
    assert chosen_gpu(None, {"CUDA_VISIBLE_DEVICES": "GPU-ab,GPU-cd"})["CUDA_VISIBLE_DEVICES"] == "GPU-ab"
    with pytest.raises(ValueError, match="--gpu is 2, expected less than 2"):
        chosen_gpu(2, {"CUDA_VISIBLE_DEVICES": "4,6"})


# The command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the command as on a machine with a GPU whose workers say what is given."""
    monkeypatch.setattr(environment, "why_none", lambda: None)
    monkeypatch.setattr("benchmarks.environment.confine", lambda threads: None)

    monkeypatch.setattr(fallback, "outcomes", lambda cases, provider, seconds: (on_host(0.031) for _ in cases))
    monkeypatch.setattr(publishing, "RESULTS", tmp_path / "committed")
    monkeypatch.setattr(publishing, "LOCAL", tmp_path / "local")

    def run(events: Any, *arguments: str) -> tuple[int, dict[str, Path]]:
        monkeypatch.setattr(gpu_command, "follow", lambda task, file, seconds: events)
        status = command.main(["--out", str(tmp_path), *arguments])
        return status, {path.name: path for path in tmp_path.iterdir()}

    return run


def on_host(seconds: float, status: str = "timed", note: str = "") -> Outcome:
    return Outcome("gpucnn NumPy", True, status, timing(seconds) if status == "timed" else None, note)  # type: ignore[arg-type]


def said(*events: dict[str, Any]) -> Any:
    yield from HELLO
    yield from events


def test_a_run_on_a_gpu_writes_all_its_files(run_command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, files = run_command(said(*measured(A), *measured(B)))
    assert status == 0
    stem = "nvidia-fake-100"
    figures = ("-over-numpy.png", "-roofline.png", "-speedup.png")
    assert set(files) == {f"{stem}{end}" for end in (".json", ".md", *figures)}
    run = Run.load(files[f"{stem}.json"])
    assert run.complete
    assert run.on_gpu
    assert run.records == tuple(fallback.added(made(name), on_host(0.031)) for name in (A, B))
    assert (run.subjects, run.peers) == (["gpucnn"], ["PyTorch"])
    printed = capsys.readouterr().out
    assert "measuring on the GPU" in printed
    assert "without torch.compile (not installed: triton)" in printed
    assert "3000 GB/s copy" in printed
    assert "750 TFLOP/s float16" in printed


def test_what_will_not_be_published_is_not_measured_on_a_gpu(
    run_command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    published = publishing.RESULTS / "nvidia-fake-100.json"
    hello = [HELLO[0] | {"providers": {"gpucnn": "1", "PyTorch": "2"}}, HELLO[1]]
    assert run_command((event for event in [*hello, *measured(A)]), "--publish")[0] == 0
    before = published.read_text()

    def begins(*events: dict[str, Any]) -> Any:
        yield from events
        raise AssertionError("nothing is measured after this")

    capsys.readouterr()
    assert run_command(begins(*HELLO), "--publish")[0] == command.EXIT_USAGE  # the worker found no PyTorch
    assert "compares with PyTorch, which this run does not" in capsys.readouterr().err
    used = {"environment": FACTS | {"device": FACTS["device"] | {"utilization": 0.5}}, "limits": asdict(LIMITS)}
    assert run_command(begins(hello[0], used), "--publish")[0] == command.EXIT_USAGE
    assert "the GPU is busy with other work (50% of the time)" in capsys.readouterr().err
    assert published.read_text() == before


@pytest.mark.thorough
def test_a_run_that_is_told_to_end_ends_its_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    told = f"import os, signal, time; time.sleep(1); os.kill({os.getpid()}, signal.SIGTERM)"
    code = f"{told}; time.sleep(4); open({str(alive)!r}, 'w')"
    task = script(tmp_path, ([*HELLO, *measured(A)], code))
    monkeypatch.setattr(environment, "why_none", lambda: None)
    monkeypatch.setattr("benchmarks.environment.confine", lambda threads: None)
    monkeypatch.setattr(gpu_command, "follow", lambda _, file, seconds: follow(task, file, seconds))
    assert command.main(["--out", str(tmp_path)]) == command.EXIT_INTERRUPTED
    assert (tmp_path / "nvidia-fake-100-partial.json").exists()
    time.sleep(0.1)
    assert not alive.exists()


@pytest.mark.thorough
def test_an_earlier_result_is_printed_and_drawn_again(run_command: Any, tmp_path: Path) -> None:
    _, files = run_command(said(*measured(A)))
    files["nvidia-fake-100.md"].unlink()
    (tmp_path / "README.md").write_text("\n".join(report.README_MARKERS["gpu"]))
    earlier = str(files["nvidia-fake-100.json"])
    assert command.main(["--report", earlier, "--out", str(tmp_path)]) == 0
    assert files["nvidia-fake-100.md"].exists()
    assert command.main(["--report", earlier, "--publish", "--readme", str(tmp_path / "README.md")]) == 0
    assert "(committed/nvidia-fake-100.md)" in (tmp_path / "README.md").read_text()


def test_a_run_without_enough_time_says_what_it_did_not_reach(
    run_command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    status, files = run_command(said(*measured(A), {"unreached": [B, "x"]}))
    assert status == 0
    run = Run.load(files["nvidia-fake-100.json"])
    assert run.complete  # neither filtered nor interrupted: it may be published
    assert run.unreached == (B, "x")
    assert "2 cases were not reached" in capsys.readouterr().out
    assert f"{B}, x" in files["nvidia-fake-100.md"].read_text()


@pytest.mark.thorough
def test_failures_and_interruptions_keep_what_there_is(run_command: Any) -> None:
    wrong = {"result": asdict(made(A, status="wrong"))}
    assert run_command(said({"item": A}, wrong))[0] == command.EXIT_FAULT

    def interrupted() -> Any:
        yield from said(*measured(A))
        raise KeyboardInterrupt

    status, files = run_command(interrupted())
    assert status == command.EXIT_INTERRUPTED
    assert "nvidia-fake-100-partial.json" in files
    assert run_command(said(*measured(A), {"trouble": "all were lost"}))[0] == command.EXIT_FAULT
    assert run_command(event for event in [{"trouble": "no"}])[0] == command.EXIT_USAGE
    assert run_command(said(), "--filter", "no such layer")[0] == command.EXIT_USAGE


def test_the_device_is_chosen_and_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(environment, "why_none", lambda: "CuPy is not installed")
    assert command.choose_device("auto") == (
        "cpu", "measuring on the CPU, for there is no GPU to measure on: CuPy is not installed"
    )  # fmt: skip
    assert command.choose_device("gpu") == ("none", "no GPU to measure on: CuPy is not installed")
    assert command.main(["--device", "gpu"]) == command.EXIT_USAGE
    monkeypatch.setattr(environment, "why_none", lambda: None)
    assert command.choose_device("auto")[0] == command.choose_device("gpu")[0] == "gpu"
    assert command.choose_device("cpu")[0] == "cpu"
    assert command.main(["--list", "--device", "gpu", "--filter", "pack"]) == 0
    assert "resnet-50/conv2_out_cast/pack" in capsys.readouterr().out
    assert command.split_filters(["cudnn,compile", "vgg"], "gpu") == (["cudnn", "compile"], ["vgg"])
    with pytest.raises(SystemExit):
        command.parse(["--gpu", "-1"])


@pytest.mark.thorough
@pytest.mark.skipif(available() != "available", reason="the simulator needs a C++ compiler")
def test_end_to_end_on_the_simulator(tmp_path: Path) -> None:
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "--device", "simulator", "--quick", "--out", str(tmp_path)),
            *("--filter", "transition1/forward", "--providers", "gpucnn"),
        ],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    run = Run.load(tmp_path / "simulator-quick-filtered.json")
    timed = {(r.id, o.provider) for r in run.records for o in r.outcomes if o.status == "timed"}
    assert timed >= {(TRANSITION, name) for name in ("gpucnn", "gpucnn channels_last", "gpucnn NumPy")}
    assert all(row.ratio_to("gpucnn NumPy") for row in rows_of(run))
    assert (tmp_path / "simulator-quick-filtered-gpucnn-over-numpy.png").exists()
    assert run.environment["device"]["kind"] == "gpu"


@pytest.mark.thorough
@pytest.mark.skipif(available() != "available", reason="the simulator needs a C++ compiler")
def test_the_suites_of_pytest_benchmark_run_on_a_device(tmp_path: Path) -> None:
    written = tmp_path / "benchmark.json"
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks/bench_layers.py"),
            *("--device", "simulator", "-k", "transition1/forward-gpucnn] and not last"),
            *("--benchmark-json", str(written)),
        ],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (benchmark,) = json.loads(written.read_text())["benchmarks"]
    facts = benchmark["extra_info"]
    assert (facts["device"], facts["provider"]) == ("simulator", "gpucnn")
    assert facts["cold"]["median"] > 0


# The NumPy backend ------------------------------------------------------------------------------------------------


class HalvesOnHost(Halves):
    name = "gpucnn NumPy"
    device = "cpu"

    def prepare(self, case: Case, arrays: Any) -> Any:
        n, c, h, w = arrays["input"].shape
        x = arrays["input"].reshape(n, c, h // 2, 2, w // 2, 2)
        return lambda: x.mean((3, 5), dtype=np.float32)


class WrongOnHost(HalvesOnHost):
    def results(self, returned: Any) -> list[Any]:
        return [returned + np.float32(1)]


def test_the_fallback_is_checked_and_then_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case_of(TRANSITION)]
    (timed,) = fallback.outcomes(cases, HalvesOnHost(1), 0.2)
    assert (timed.status, timed.ours) == ("timed", True)
    assert timed.timing is not None
    assert 1 <= timed.timing.samples <= fallback.MAX_ROUNDS
    (wrong,) = fallback.outcomes(cases, WrongOnHost(1), 0.2)
    assert (wrong.status, wrong.timing) == ("wrong", None)
    assert "expected" in wrong.note
    (failed,) = fallback.outcomes(cases, OutOfMemory(1), 0.2)
    assert (failed.status, failed.note) == ("failed", "MemoryError: Out of memory allocating 3 bytes (of 2)")
    monkeypatch.setattr(fallback, "LONG_S", 0.0)
    monkeypatch.setattr(fallback, "interleave", None)
    (slow,) = fallback.outcomes(cases, HalvesOnHost(1), 0.2)
    assert slow.timing is not None
    assert slow.timing.samples == 1  # that of the check


def test_the_fallback_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = iter((0.0, 0.0, 5.0, 6.0, 9.0, 9.0))

    class Clocked(fallback.Schedule):
        def left(self) -> float:
            return 10.0 - next(passed)

    monkeypatch.setattr(fallback, "Schedule", Clocked)
    monkeypatch.setattr(fallback, "_outcome", lambda case, provider, schedule: on_host(1.0))
    clock = iter((0.0, 4.0, 4.0, 9.5))
    monkeypatch.setattr(fallback, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = list(fallback.outcomes([case_of(TRANSITION)] * 4, HalvesOnHost(1), 10.0))
    # Ten seconds are left, then ten, of which the first case took 4; then five, less than the 5.5 s of the second.
    assert [outcome.status for outcome in found] == ["timed", "timed", "refused", "refused"]
    assert found[-1].note == fallback.NOT_REACHED


def test_the_fallback_takes_the_float32_cases_that_the_gpu_was_timed_on_and_the_cheapest_first() -> None:
    cases = select("default", device="gpu")
    half = "resnet-50/bn1/backward/float16"
    records = [made(name) for name in (A, B, half, TRANSITION)] + [made("resnet-50/bn1/training", status="failed")]
    chosen = [case.id for case in fallback.in_order(cases, records)]
    assert chosen == [TRANSITION, A, B]


@pytest.mark.parametrize(
    ("words", "wanted"), [([], True), (["numpy"], True), (["gpucnn"], True), (["torch", "cupy"], False)]
)
def test_the_fallback_is_left_out_by_providers(words: list[str], wanted: bool) -> None:
    assert fallback.is_wanted(words) == wanted
    assert command.split_filters(["numpy", "vgg"], "gpu") == (["numpy"], ["vgg"])


@pytest.mark.usefixtures("run_command")  # the machine that it sets up
def test_the_fallback_runs_when_no_worker_is_left_and_within_the_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[Any] = []

    def events(task: Task, file: Path, seconds: float) -> Any:
        steps.append(("worker", seconds))
        try:
            yield from said(*measured(A), *measured(B))
        finally:
            steps.append("worker ended")

    def outcomes(cases: list[Case], provider: Provider, seconds: float) -> Any:
        steps.append(("host", seconds))
        yield on_host(0.031)
        yield on_host(0.0, "refused", fallback.NOT_REACHED)

    monkeypatch.setattr(fallback, "outcomes", outcomes)
    monkeypatch.setattr(gpu_command, "follow", events)
    local = publishing.RESULTS.parent / "local"
    assert command.main(["--out", str(local)]) == 0
    (worker, seconds), ended, (host, budget) = steps
    assert (worker, ended, host) == ("worker", "worker ended", "host")
    total = gpu_command.BUDGET_S["default"]
    assert 0.75 * total < seconds < 0.81 * total
    assert budget < total
    printed = capsys.readouterr().out
    assert "gpucnn NumPy on the host: 2 cases" in printed
    assert "310.00 x gpucnn NumPy" in printed
    assert "1 cases are not reached" in printed
    run = Run.load(local / "nvidia-fake-100.json")
    assert [o.status for record in run.records for o in record.outcomes if o.provider == "gpucnn NumPy"] == [
        "timed", "refused"
    ]  # fmt: skip


@pytest.mark.thorough
def test_an_interruption_of_the_fallback_keeps_what_was_measured(
    run_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcomes(cases: list[Case], provider: Provider, seconds: float) -> Any:
        yield on_host(0.031)
        raise KeyboardInterrupt

    monkeypatch.setattr(fallback, "outcomes", outcomes)
    status, files = run_command(said(*measured(A), *measured(B)))
    assert status == command.EXIT_INTERRUPTED
    run = Run.load(files["nvidia-fake-100-partial.json"])
    assert sorted(len(record.outcomes) for record in run.records) == [2, 3]


# Reports ----------------------------------------------------------------------------------------------------------


def with_others(record: Record, cupy: float, host: float) -> Record:
    """A record with the times of plain CuPy and of the NumPy backend."""
    plain = Outcome("plain CuPy", False, "timed", timing(cupy))
    return replace(record, outcomes=(*record.outcomes, plain, on_host(host)))


def test_the_tables_compare_with_numpy_and_with_plain_cupy() -> None:
    run = run_of(with_others(made(A), 8e-4, 0.05), with_others(made(B), 2e-4, 0.005), made(TRANSITION))
    rows = rows_of(run)
    assert [row.peer for row in rows] == ["PyTorch"] * 3
    (tiny,) = rows_of(run_of(with_others(made(A), 8e-4, 1e-6)))
    assert (tiny.peer, tiny.ratio) == ("PyTorch", pytest.approx(2))  # the NumPy backend is no peer, be it the quickest
    assert [row.ratio_to("gpucnn NumPy") for row in rows] == [pytest.approx(500), pytest.approx(50), None]
    text = report.markdown_report(run)
    assert f"| {' | '.join(report.CASE_HEADINGS)} |" in text
    assert "| 2.00 | 8.00 | 2.00 | PyTorch | 50 | 500 |" in text
    assert (
        "| group | operation | cases | of limit | to PyTorch | range | to plain CuPy | to best | range | to NumPy |"
        in text
    )
    assert "the same arrays on the host (Some CPU, 2 threads), while the GPU was idle" in text
    without = report.markdown_report(run_of(made(A)))
    assert "NumPy" not in without
    assert "CuPy" not in without


def test_the_figure_over_numpy_has_what_was_timed() -> None:
    run = run_of(with_others(made(A), 8e-4, 0.05), with_others(made(B), 2e-4, 0.005), made(TRANSITION))
    figure = plots._over_numpy(run, rows_of(run))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["depthwise convolution: 500", "normalization: 50"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["forward", "backward", "plain CuPy"]
    alone = run_of(fallback.added(made(A), on_host(0.05)))
    (legend,) = plots._over_numpy(alone, rows_of(alone)).legends
    assert [text.get_text() for text in legend.get_texts()] == ["forward"]


def run_of(*records: Record) -> Run:
    return Run("default", True, 1.0, FACTS, LIMITS, records)


def test_targets_beside_what_was_reached() -> None:
    run = run_of(made(A, 1e-4, 2e-4), made("mobilenetv2/dw_960/backward_input", 1e-4, 1e-4), made(B))
    depthwise, norm = targets.reached(rows_of(run), run.cache_bytes)
    assert (depthwise.target.name, depthwise.cases, norm.target.name) == ("depthwise convolution", 2, "norm backward")
    assert depthwise.ratio == pytest.approx(2**0.5)
    moved = case_of(A, 64).least_bytes
    assert moved > run.cache_bytes > case_of("mobilenetv2/dw_960/backward_input", 64).least_bytes
    assert depthwise.share == pytest.approx(moved / 3e12 / 1e-4)  # of the larger case alone
    assert depthwise.host_s == pytest.approx(7.9e-6)
    assert depthwise.host_ratio == pytest.approx(7.9 / 7.5)
    assert depthwise.met == {"ratio": False, "share": False, "host_s": True, "host_ratio": True}
    assert norm.met["ratio"]
    text = report.markdown_report(run)
    assert "| depthwise convolution | float32 | 2 | **1.41** | 1.50 |" in text
    assert "| 7.9 µs | 1.05 |" in text
    assert "| 0.05 | 7.9 | 1.05 |" in text  # warm, host, over a raw launch


def test_every_target_is_of_cases_that_exist() -> None:
    for target in targets.TARGETS:
        kinds = {case.operation for case in select("quick", device="gpu") if case.family == target.family}
        assert kinds & set(target.operations)
        assert {case.family for case in select("default", device="gpu")} >= {target.family}
        all_operations = {o for layer in LAYERS if layer.family == target.family for o in layer.operations}
        assert set(target.operations) <= all_operations


def test_float16_has_its_own_limit_and_rows() -> None:
    half = made("resnet-50/conv1/forward/float16", 1e-3, 1e-3)
    row = rows_of(run_of(half))[0]
    assert row.share == pytest.approx(max(half.flops / 750e12, half.least_bytes / 3e12) / 1e-3)
    assert "| convolution, float16 | forward | 1 |" in report.markdown_summary(run_of(half))


def test_the_readme_has_a_place_for_each_device(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    (cpu, cpu_end), (gpu, gpu_end) = report.README_MARKERS["cpu"], report.README_MARKERS["gpu"]
    readme.write_text(f"{cpu}\nold\n{cpu_end}\nbetween\n{gpu}\nolder\n{gpu_end}\n")
    report.update_readme(readme, run_of(made(A)), "details.md")
    written = readme.read_text()
    assert written.startswith(f"{cpu}\nold\n{cpu_end}\nbetween\n{gpu}")
    assert "older" not in written
    assert "| depthwise convolution | all | 1 |" in written
    assert "| depthwise convolution | forward |" not in written  # by groups alone
    assert "target" not in written
    assert "cuDNN 9.10.2" in written
    assert "SM clock 1980 MHz" in written
    readme.write_text(f"{cpu}{cpu_end}")
    with pytest.raises(ValueError, match="gpu-benchmark:start"):
        report.update_readme(readme, run_of(made(A)), "details.md")


def test_the_committed_readme_has_both_places() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    for start, end in report.README_MARKERS.values():
        assert text.count(start) == text.count(end) == 1


def test_a_gpus_run_round_trips_and_older_files_load(tmp_path: Path) -> None:
    run = replace(run_of(made(A), made(B, status="failed")), unreached=("a", "b"))
    run.save(tmp_path / "run.json")
    assert Run.load(tmp_path / "run.json") == run
    data = json.loads((tmp_path / "run.json").read_text())
    data["schema"] = 1
    del data["unreached"]
    del data["limits"]["other_flops"]
    for record in data["records"]:
        del record["dtype"], record["raw_launch_s"]
        for outcome in record["outcomes"]:
            for missing in ("warm", "host"):
                outcome.pop(missing, None)
    (tmp_path / "old.json").write_text(json.dumps(data))
    old = Run.load(tmp_path / "old.json")
    assert old.records[0].outcomes[0].timing == run.records[0].outcomes[0].timing
    assert (old.unreached, old.records[0].dtype, old.records[0].outcomes[0].warm) == ((), "float32", None)


def test_the_terminal_shows_targets_and_faults(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=160)
    report.print_report(run_of(made(A), made(B, status="failed")), console)
    printed = capsys.readouterr().out
    assert "gpucnn: targets" in printed
    assert "FAILED" in printed
    assert "GPU: NVIDIA Fake 100" in printed


# The machine ------------------------------------------------------------------------------------------------------


def test_the_gpus_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def smi(arguments: Any, **options: Any) -> Any:
        asked.append(arguments)
        values = {"clocks.sm": "1980 MHz", "clocks.mem": "2619 MHz", "power.draw": "[N/A]", "power.limit": "700.00 W"}
        line = ", ".join(values.get(name, "7") for name in environment.CLOCKS.values())
        return type("Done", (), {"stdout": line + "\n"})

    monkeypatch.setitem(sys.modules, "cupy", BenchCupy())
    monkeypatch.setattr(environment.subprocess, "run", smi)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    known = environment.clocks()
    assert known == {
        "SM clock": "1980 MHz", "memory clock": "2619 MHz", "power limit": "700.00 W", "temperature": "7", "driver": "7"
    }  # fmt: skip
    assert asked[0][-1] == "--id=3"
    device = environment.make_device("gpu")
    monkeypatch.setattr("benchmarks.environment.subprocess.run", smi)
    facts = environment.describe(2, [], device)
    assert facts["device"]["name"] == "NVIDIA Fake 100"
    assert facts["device"]["compute_capability"] == "9.0"
    assert facts["versions"]["CUDA"] == "13.0"
    assert facts["versions"]["driver's CUDA"] == "13.1"
    assert facts["versions"]["driver"] == "7"
    assert facts["host"]["kind"] == "cpu"
    assert environment.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert [environment._cudnn(number) for number in (91002, 8907)] == ["9.10.2", "8.9.7"]


def test_a_machine_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(environment.subprocess, "run", missing)
    assert environment.clocks() == {}
    assert environment.utilization() is None


@pytest.mark.parametrize(("answer", "share"), [("37 %", 0.37), ("0 %", 0.0), ("[N/A]", None)])
def test_the_share_of_time_that_a_gpu_was_used_before(
    monkeypatch: pytest.MonkeyPatch, answer: str, share: float | None
) -> None:
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=f"{answer}\n"))
    assert environment.utilization() == share


def test_kinds_of_layers_that_a_cut_knows() -> None:
    kinds = {type(case.layer) for case in select("full", device="gpu")}
    assert {ConvLayer, LayoutLayer, NormLayer, PoolLayer} < kinds
