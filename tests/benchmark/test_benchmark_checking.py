"""The checks of results before they are timed: what is expected, where cases are cut, and planted errors."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bench_fakes import case_of, layer_of, one_of_each_kind
from gpu_fakes import ClockDevice

from benchmarks import cases
from benchmarks.cases import Case, select
from benchmarks.checking import EPS, expect
from benchmarks.data import form, make_arrays, make_operands, pool_maximum
from benchmarks.gpu.cuts import Cut, cut_of, expected, fault_of
from benchmarks.layers import ConvLayer, NormLayer, PoolLayer, ResampleLayer, UnfoldLayer

DEVICE = ClockDevice()

# --- Convolutions -------------------------------------------------------------------------------------------------

SMALL_CONVOLUTIONS = [
    cases._conv("small", "plain", 4, 6, 7, 3, padding=1, bias=True, cpu_batch=2),
    cases._conv("small", "all", 4, 6, (9, 8), (3, 2), (2, 3), (2, 1), (2, 1), 2, cpu_batch=2),
    cases._conv("small", "strided", 3, 4, 8, 2, stride=3),  # some inputs are never read
    cases._conv("small", "line", 4, 4, (11,), 3, stride=2, padding=1, groups=4),
    cases._conv("small", "space", 2, 2, (4, 5, 3), 2, padding=1, bias=True),
    cases._conv("small", "up", 4, 6, 4, 4, 2, 1, groups=2, transposed=True, cpu_batch=2, bias=True),
]


def naive_convolution(layer, x, y, weight):
    """Every product of a convolution, once: (output, input gradient, weight gradient)."""
    big, small, out_size, in_size = x, y, layer.out_size, layer.size
    if layer.transposed:
        big, small, out_size, in_size = y, x, layer.size, layer.out_size
    forward, to_big, to_weight = (np.zeros(a.shape) for a in (small, big, weight))
    outs, ins = weight.shape[0] // layer.groups, weight.shape[1]
    for o in np.ndindex(*out_size):
        for tap in np.ndindex(*layer.kernel):
            axes = zip(o, layer.stride, layer.padding, layer.dilation, tap, strict=True)
            i = tuple(a * s - p + d * t for a, s, p, d, t in axes)
            if not all(0 <= a < extent for a, extent in zip(i, in_size, strict=True)):
                continue
            for n, oc, c in itertools.product(range(x.shape[0]), range(len(weight)), range(ins)):
                channel = oc // outs * ins + c
                forward[(n, oc, *o)] += big[(n, channel, *i)] * weight[(oc, c, *tap)]
                to_big[(n, channel, *i)] += small[(n, oc, *o)] * weight[(oc, c, *tap)]
                to_weight[(oc, c, *tap)] += small[(n, oc, *o)] * big[(n, channel, *i)]
    return (to_big, forward, to_weight) if layer.transposed else (forward, to_big, to_weight)


@pytest.mark.parametrize("operation", ["forward", "backward_input", "backward_weight"])
@pytest.mark.parametrize("layer", SMALL_CONVOLUTIONS, ids=lambda layer: layer.name)
def test_convolution_checker(layer, operation):
    case = Case(layer, operation, layer.cpu_batch)
    arrays = make_arrays(case)
    x = arrays.get("input", np.zeros(layer.input_shape(case.batch), np.float32))
    y = arrays.get("grad_output", np.zeros(layer.output_shape(case.batch), np.float32))
    weight = arrays.get("weight", np.zeros(layer.weight_shape, np.float32))
    place = layer.operations.index(operation)
    right = naive_convolution(layer, x, y, weight)[place]
    if "bias" in arrays:
        right += arrays["bias"].reshape(-1, *(1,) * layer.rank)
    right = right.astype(np.float32)
    expectations = expect(case, arrays)
    assert fault_of(Cut(case), case, expectations, [right], DEVICE) is None
    assert math.prod(right.shape) == expectations[0].values.size  # so small that all is checked
    for spot in {(0,) * right.ndim, tuple(e - 1 for e in right.shape)}:
        wrong = right.copy()
        wrong[spot] += 1e-3
        assert "expected" in fault_of(Cut(case), case, expectations, [wrong], DEVICE)


def test_tolerances_are_far_below_one_missing_term():
    case = Case(layer_of("ResNet-50", "conv5_3x3"), "forward", 1)
    (expectation,) = expect(case, make_arrays(case))
    typical_term = 1 / math.sqrt(512 * 9)  # of unit inputs and scaled weights
    assert np.max(expectation.tolerance) < typical_term / 10
    assert np.max(expectation.tolerance) > 10 * EPS


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


# --- Everything else ----------------------------------------------------------------------------------------------


def other_cases():
    pool = {"network": "small", "name": "pool", "channels": 2, "cpu_batch": 2}
    window = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0)}
    small = [
        PoolLayer(**pool, size=(7, 6), kind="max", **window),
        PoolLayer(**pool, size=(7, 6), kind="avg", **window),
        PoolLayer(**pool, size=(7, 5), kind="adaptive_avg", output=(3, 2)),
        UnfoldLayer(**pool, size=(7, 6), **window),
        ResampleLayer(**pool, size=(3, 4), kind="nearest", output=(6, 8)),
        ResampleLayer(**pool, size=(3, 4), kind="bilinear", output=(7, 9)),
        ResampleLayer(**pool, size=(3, 4), kind="unpool", output=(6, 8)),
    ]
    norm = {"network": "small", "name": "norm", "channels": 6, "size": (4, 5), "cpu_batch": 3}
    small += [NormLayer(**norm, kind=kind, groups=3) for kind in ("batch", "layer", "group", "instance")]
    return [Case(layer, name, layer.cpu_batch) for layer in small for name in layer.operations]


def right_results(case: Case) -> list[Any]:
    """A right result of a case that is no convolution, whole."""
    made = []
    for expectation in expect(case, make_arrays(case)):
        values = np.asarray(expectation.values).astype(expectation.dtype)
        if expectation.channels_last:
            values = np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)
        made.append(values)
    return made


SMALL = [
    pytest.param(case, False, id=f"{getattr(case.layer, 'kind', 'unfold')}-{case.operation}") for case in other_cases()
]
OF_A_GPU = [pytest.param(case, True, id=case.id) for case in one_of_each_kind() if not case.flops]


@pytest.mark.table(6)
@pytest.mark.parametrize(("case", "is_cut"), SMALL + OF_A_GPU)
def test_planted_errors_are_found(case: Case, is_cut: bool) -> None:
    results = right_results(case)
    cut, expectations = expected(case, make_operands(case)) if is_cut else (Cut(case), expect(case, make_arrays(case)))

    def fault(given: list[Any]) -> str:
        return fault_of(cut, case, expectations, given, DEVICE) or ""

    assert not fault(results)
    for place, expectation in enumerate(expectations):
        right = results[place]

        def exchanged(array: Any, place: int = place) -> list[Any]:
            return [array if n == place else other for n, other in enumerate(results)]

        error = 1 + np.abs(right).max() if is_cut else 1e-2
        for number in (0, -1):
            wrong = right.copy(order="K")
            wrong.flat[number] += error
            assert expectation.name in fault(exchanged(wrong))
        wrong = right.copy(order="K")
        wrong.flat[-1] = np.nan
        assert "not finite" in fault(exchanged(wrong))
        assert "shape" in fault(exchanged(right[:-1]))
        assert "float64" in fault(exchanged(right.astype(np.float64)))
    assert "arrays came back" in fault([*results, results[0]])


def test_an_order_in_memory_is_checked_where_it_is_the_point() -> None:
    case = case_of("resnet-50/conv2_out/pack")
    (right,) = right_results(case)
    cut, expectations = expected(case, make_operands(case))
    assert "strides" in str(fault_of(cut, case, expectations, [np.ascontiguousarray(right)], DEVICE))


@pytest.mark.parametrize("kind", ["batch", "layer", "group", "instance"])
def test_expected_norm_gradients_are_derivatives(kind):
    layer = NormLayer(network="n", name="n", channels=6, size=(4, 5), kind=kind, groups=3)
    forward = Case(layer, layer.operations[0], 3)
    backward = Case(layer, "backward", 3)
    arrays = {name: array.astype(np.float64) for name, array in make_arrays(backward).items()}
    gradients = dict(zip(("input", "weight", "bias"), expect(backward, arrays), strict=True))
    rng = np.random.default_rng(0)
    for name, expectation in gradients.items():
        step = 1e-5 * rng.standard_normal(arrays[name].shape)
        above, below = (expect(forward, arrays | {name: arrays[name] + sign * step})[0].values for sign in (1, -1))
        change = (arrays["grad_output"] * (above - below)).sum() / 2
        assert change == pytest.approx((expectation.values * step).sum(), rel=1e-6)


BACKWARDS = [case for case in other_cases() if case.operation == "backward"]
LINEAR = [case for case in BACKWARDS if case.layer.kind in ("avg", "adaptive_avg", "nearest", "bilinear")]


@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.layer.kind)
def test_expected_linear_gradients_are_adjoints(case):
    layer = case.layer
    x = np.random.default_rng(1).standard_normal(layer.input_shape(case.batch))
    y = expect(replace(case, operation="forward"), {"input": x})[0].values
    arrays = make_arrays(case)
    gx = expect(case, arrays)[0].values
    assert (y * arrays["grad_output"]).sum() == pytest.approx((x * gx).sum())


def test_pool_maximum_takes_the_first_of_equals_and_skips_padding():
    layer = cases._pool("small", "pool", "max", 1, 2, 2, stride=2, padding=1)
    best, indices = pool_maximum(np.array([[[[-1, -2], [-3, -4]]]], np.float32), layer)
    assert best.tolist() == [[[[-1, -2], [-3, -4]]]]
    assert indices.tolist() == [[[[0, 1], [2, 3]]]]
    same = replace(layer, padding=(0, 0))
    assert pool_maximum(np.ones((1, 1, 2, 2), np.float32), same)[1].item() == 0


# --- Cuts ---------------------------------------------------------------------------------------------------------


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


@pytest.mark.thorough
def test_the_form_of_a_cases_arrays() -> None:
    for case in one_of_each_kind():
        made = make_operands(case)
        assert form(case) == {name: (array.shape, array.dtype) for name, array in made.items()}, case.id
