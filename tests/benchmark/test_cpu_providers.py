"""gpucnn's implementations on a CPU: each by its own backend, and right in both memory orders."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import pytest
from bench_fakes import Halves, case_of, one_of_each_kind

from benchmarks import timing
from benchmarks.data import make_operands
from benchmarks.gpu.cuts import Cut
from benchmarks.gpu.device import Device
from benchmarks.gpu.session import Session
from benchmarks.networks.runners import RUNNERS
from benchmarks.providers import installed
from benchmarks.providers.gpucnn import GpucnnCompiled, GpucnnCompiledChannelsLast, GpucnnNumpy
from benchmarks.results import COMPILED, COMPILED_CHANNELS_LAST, FALLBACK
from gpucnn.backends import backend_of
from gpucnn.backends.cpu import builds

COMPILED_KINDS = GpucnnCompiled, GpucnnCompiledChannelsLast
CASES = [case for case in one_of_each_kind(2) if case.dtypes == ("float32", "float32")]
needs_builds = pytest.mark.skipif(bool(builds.why_unavailable()), reason="compiled kernels need a C++ compiler")


@needs_builds
def test_each_computes_by_its_own_backend():
    x = np.ones(3, np.float32)
    for kind in (*COMPILED_KINDS, GpucnnNumpy):
        assert kind(1).within(lambda: backend_of(x).name) == kind.backend
    assert [kind.name for kind in (*COMPILED_KINDS, GpucnnNumpy)] == [COMPILED, COMPILED_CHANNELS_LAST, FALLBACK]
    assert set(RUNNERS) >= {*COMPILED_KINDS, GpucnnNumpy}


@needs_builds
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_both_orders_are_right(case):
    providers = [kind(1) for kind in COMPILED_KINDS]
    outcomes, calls, _ = Session(Device(), providers, cut_of=Cut).check(case)
    assert {outcome.status for outcome in outcomes.values()} <= {"refused"}
    assert providers[0] in calls


@needs_builds
def test_channels_last_has_its_channels_innermost():
    case = case_of("mobilenetv2/dw_960/forward")
    for kind, is_innermost in zip(COMPILED_KINDS, (False, True), strict=True):
        provider = kind(1)
        (y,) = provider.results(provider.within(provider.prepare(case, make_operands(case))))
        assert (y.strides[1] == y.itemsize) == is_innermost


def test_without_a_compiler_numpy_is_what_there_is(monkeypatch):
    monkeypatch.setattr(builds, "why_unavailable", lambda: "there is no compiler")
    present, absent = installed(1, ["gpucnn"])
    assert [provider.name for provider in present] == [FALLBACK]
    assert absent == dict.fromkeys([COMPILED, COMPILED_CHANNELS_LAST], "there is no compiler")


def test_times_are_taken_within_the_setting_of_the_implementation():
    setting = ContextVar("setting", default="none")
    seen = []

    @contextmanager
    def computing_by(name):
        token = setting.set(name)
        yield
        setting.reset(token)

    class Within(Halves):
        def within(self, function):
            with computing_by(self.name):
                return function()

    class Other(Within):
        name = "other"

    first, second = Within(1), Other(1)
    calls = {
        provider: lambda provider=provider: seen.append((provider.name, setting.get())) for provider in (first, second)
    }
    timing.interleave(calls, budget_s=0.0, max_rounds=1)
    assert set(seen) == {("halves", "halves"), ("other", "other")}
