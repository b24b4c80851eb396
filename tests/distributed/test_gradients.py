"""Gradients are summed bucket by bucket, each once, and the bytes are those of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from rank_threads import network, on_ranks, samples

from gpucnn import nn
from gpucnn.distributed import GradientReducer, local, volume
from gpucnn.distributed.gradients import buckets


def backward(model: nn.Module, rank: int) -> None:
    """Gradients by samples that differ from rank to rank."""
    x, _ = samples()
    y = model(x[4 * rank : 4 * rank + 4])
    model.backward(np.full_like(y, rank + 1.0))


def gradients(model: nn.Module) -> list[Any]:
    return [None if each.grad is None else np.array(each.grad) for each in model.parameters()]


@pytest.mark.parametrize("bucket_mb", [1e-6, 1e-3, 25.0])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_they_are_the_sums_over_ranks(size: int, bucket_mb: float) -> None:
    expected: list[Any] = []
    for rank in range(size):
        model = network()
        backward(model, rank)
        own = gradients(model)
        expected = [a + b for a, b in zip(expected, own, strict=True)] if expected else own

    def work(communicator: Any) -> list[Any]:
        model = network()
        reducer = GradientReducer(model.parameters(), communicator, bucket_mb)
        found = []
        for _ in range(2):
            model.zero_grad()
            before = communicator.bytes_sent
            with reducer:
                backward(model, communicator.rank)
            sent = communicator.bytes_sent - before
            assert sent == volume(model.parameters(), communicator.rank, size, bucket_mb)
            found.append(gradients(model))
        assert [a.tobytes() for a in found[0]] == [b.tobytes() for b in found[1]]
        return found[0]

    for found in on_ranks(size, work):
        assert [a.tobytes() for a in found] == [b.tobytes() for b in expected]


def test_the_volume_is_that_of_a_ring() -> None:
    parameters = list(network().parameters())
    elements = sum(each.size for each in parameters) + len(parameters)
    for size in (1, 2, 3, 8):
        sent = [volume(parameters, rank, size) for rank in range(size)]
        assert sum(sent) == 2 * (size - 1) * elements * 8
        assert max(sent) - min(sent) <= 8 * size


def test_buckets_follow_the_backward_and_have_one_dtype() -> None:
    parameters = [nn.Parameter(np.zeros(2, dtype)) for dtype in ("f4", "f4", "f8", "f4", "f4")]
    found = [[parameters.index(each) for each in bucket] for bucket in buckets(parameters, 16)]
    assert found == [[4, 3], [2], [1, 0]]
    assert [[parameters.index(each) for each in bucket] for bucket in buckets(parameters, 1e9)] == [[4, 3, 1, 0], [2]]


def test_they_are_sent_while_the_backward_goes_on() -> None:
    model = network()
    seen: list[int] = []

    def work(communicator: Any) -> None:
        mine = model if communicator.rank == 0 else network()
        reducer = GradientReducer(mine.parameters(), communicator, 1e-6)
        if communicator.rank == 0:
            of = mine[0].backward
            vars(mine[0])["backward"] = lambda grad: (seen.append(len(reducer._sums)), of(grad))[1]
        with reducer:
            backward(mine, communicator.rank)
        assert len(reducer._sums) == 4

    on_ranks(2, work)
    assert seen == [2]  # those of the last layer, before the backward of the first


def test_a_shared_parameter_waits_for_all_its_gradients() -> None:
    def model_of(rank: int) -> nn.Sequential:
        layers = nn.Sequential(*(nn.Linear(3, 3, bias=False, rng=each, dtype=np.float64) for each in range(2)))
        layers[1].weight = layers[0].weight
        y = layers(np.full((2, 3), rank + 1.0))
        assert y.shape == (2, 3)
        return layers

    expected = 0
    for rank in range(2):
        model = model_of(rank)
        model.backward(np.ones((2, 3)))
        expected = expected + model[0].weight.grad

    def work(communicator: Any) -> Any:
        model = model_of(communicator.rank)
        with GradientReducer(model.parameters(), communicator, 1e-6):
            model.backward(np.ones((2, 3)))
        return model[0].weight.grad

    for found in on_ranks(2, work):
        assert (found == expected).all()


def test_a_gradient_that_some_or_all_ranks_lack() -> None:
    def work(communicator: Any) -> list[Any]:
        parameters = [nn.Parameter(np.zeros(2)) for _ in range(3)]
        with GradientReducer(parameters, communicator):
            parameters[0].accumulate(np.ones(2))
            if communicator.rank == 1:
                parameters[1].accumulate(np.array([2.0, 3.0]))
        return [None if each.grad is None else each.grad.tolist() for each in parameters]

    assert on_ranks(2, work) == [[[2.0, 2.0], [2.0, 3.0], None]] * 2


def test_frozen_parameters_are_not_sent_until_they_are_learned() -> None:
    def work(communicator: Any) -> None:
        model = network()
        reducer = GradientReducer(model.parameters(), communicator)
        for frozen in (True, False):
            model[0].requires_grad_(not frozen)
            model.zero_grad()
            before = communicator.bytes_sent
            with reducer:
                backward(model, 0)
            learned = [each for each in model.parameters() if each.requires_grad]
            assert communicator.bytes_sent - before == volume(model.parameters(), communicator.rank, 2)
            assert volume(model.parameters(), 0, 2) == volume(learned, 0, 2)
            assert (model[0].weight.grad is None) == frozen
            assert model[-1].weight.grad is not None

    on_ranks(2, work)


def test_16_bits_are_added_in_float32_and_rounded_once(backend: ArrayBackend) -> None:
    values = [2048.0, 1.0, 1.0, 1.0]  # in float16 each 1 alone would be lost

    def work(communicator: Any) -> float:
        parameter = nn.Parameter(backend.asarray(np.zeros(1, np.float16)))
        with GradientReducer([parameter], communicator):
            parameter.accumulate(backend.asarray(np.array([values[communicator.rank]], np.float16)))
        return float(backend.asnumpy(parameter.grad)[0])

    assert set(on_ranks(4, work)) == {float(np.float16(2051))}


def test_an_exception_leaves_no_hook() -> None:
    model = network()
    reducer = GradientReducer(model.parameters(), local(2)[0])
    with pytest.raises(ZeroDivisionError), reducer:
        raise ZeroDivisionError
    assert all(each.on_accumulate is None for each in model.parameters())


def test_errors() -> None:
    with pytest.raises(ValueError, match="bucket_mb is 0"):
        GradientReducer([], local(1)[0], 0)
    with pytest.raises(ValueError, match="volume: bucket_mb is -1"):
        volume([], 0, 2, -1)
    parameter = nn.Parameter(np.zeros(1))
    with GradientReducer([parameter, nn.Parameter(np.zeros(1))], local(1)[0]):
        parameter.accumulate(np.ones(1))
        parameter.accumulate(np.ones(1))  # alone it does not matter
    reducer = GradientReducer([nn.Parameter(np.zeros(1)), parameter, nn.Parameter(np.zeros(1))], local(2)[0])
    reducer.__enter__()
    parameter.accumulate(np.ones(1))
    with pytest.raises(RuntimeError, match="added to more often than modules share it"):
        parameter.accumulate(np.ones(1))
