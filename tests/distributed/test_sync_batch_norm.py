"""A batch norm whose batch is spread over ranks is the batch norm of the whole batch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import reference_norms
from array_backends import BACKENDS, ArrayBackend
from rank_threads import on_ranks

from gpucnn import nn
from gpucnn.distributed import SyncBatchNorm, local, synchronized
from gpucnn.distributed.communicator import shares

SHAPES = [(11, 3), (7, 3, 5), (7, 3, 4, 5), (2, 3, 2, 3, 2)]  # the last one leaves ranks without samples


def parts(array: Any, size: int) -> list[Any]:
    return [array[share] for share in shares(len(array), size)]


def norms(options: dict[str, Any]) -> tuple[nn.Module, Any]:
    """A batch norm with random parameters, and what makes the same one over ranks."""
    layer = nn.BatchNorm2d(3, **options)
    rng = np.random.default_rng(1)
    for array in layer.state_dict().values():
        if array.ndim:
            array[...] = rng.uniform(0.5, 2.0, array.shape)

    def spread(communicator: Any, backend: ArrayBackend) -> Any:
        made = SyncBatchNorm(3, communicator, **options)
        made.load_state_dict(layer.state_dict())
        return made.map_arrays(backend.asarray)

    return layer, spread


OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"affine": False, "eps": 1e-3},
    {"bias": False},
    {"track_running_stats": False},
]


@pytest.mark.table(6)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_it_is_the_norm_of_the_whole_batch(
    backend: ArrayBackend, shape: tuple[int, ...], size: int, options: dict[str, Any]
) -> None:
    options = {"dtype": np.float64, **options}
    layer, spread = norms(options)
    twin = nn.BatchNorm2d.member(max(1, len(shape) - 2))(3, **options)
    twin.load_state_dict(layer.state_dict())
    rng = np.random.default_rng(2)
    batches = [rng.standard_normal(shape) * 3 + 40 for _ in range(2)]
    grad = rng.standard_normal(shape)
    expected = []
    for x in batches:
        twin.zero_grad()
        expected.append((twin(x), twin.backward(grad)))
    of_parameters = [parameter.grad for parameter in twin.parameters()]

    def work(communicator: Any) -> Any:
        norm, found = spread(communicator, backend), []
        for x in batches:
            norm.zero_grad()
            x, g = (backend.asarray(parts(each, size)[communicator.rank].copy()) for each in (x, grad))
            found.append((backend.asnumpy(norm(x)), backend.asnumpy(norm.backward(g))))
        grads = [backend.asnumpy(parameter.grad) for parameter in norm.parameters()]
        return found, grads, {name: backend.asnumpy(array) for name, array in norm.state_dict().items()}

    results = on_ranks(size, work)
    for batch, values in enumerate(expected):
        for at, value in enumerate(values):
            whole = np.concatenate([result[0][batch][at] for result in results])
            np.testing.assert_allclose(whole, value, rtol=0, atol=1e-11)
    for at, value in enumerate(of_parameters):
        np.testing.assert_allclose(sum(result[1][at] for result in results), value, rtol=0, atol=1e-11)
    for name, value in twin.state_dict().items():
        assert len({result[2][name].tobytes() for result in results}) == 1
        np.testing.assert_allclose(results[0][2][name], value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_it_is_near_the_definition_where_the_mean_is_large(dtype: str) -> None:
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((6, 3, 4, 4)) + np.array([0, 100, -500]).reshape(3, 1, 1)).astype(dtype)
    grad = rng.standard_normal(x.shape).astype(dtype)
    wide, wide_grad = x.astype(np.float64), grad.astype(np.float64)
    y = reference_norms.batch_norm(wide, None, None, training=True).y
    expected = reference_norms.batch_norm_backward_graph(wide_grad, wide, None, None, training=True)[0]

    def work(communicator: Any) -> Any:
        norm = SyncBatchNorm(3, communicator)
        own = norm(parts(x, 2)[communicator.rank])
        return own, norm.backward(parts(grad, 2)[communicator.rank])

    results = on_ranks(2, work)
    for at, value in enumerate((y, expected)):
        whole = np.concatenate([result[at] for result in results])
        assert whole.dtype == dtype
        np.testing.assert_allclose(whole, value, rtol=0, atol=5e-3 if dtype == "float16" else 1e-4)


def test_in_evaluation_ranks_need_not_meet() -> None:
    x = np.random.default_rng(4).standard_normal((4, 3, 5, 5))
    for options in ({"dtype": np.float64}, {"dtype": np.float64, "track_running_stats": False}):
        layer, spread = norms(options)
        norm = spread(local(2)[1], BACKENDS["numpy"]).eval()
        layer.eval()
        assert (norm(x) == layer(x)).all()
        assert (norm.backward(x) == layer.backward(x)).all()
        assert (norm.weight.grad == layer.weight.grad).all()


def test_activations_and_residuals_follow_it() -> None:
    x = np.random.default_rng(5).standard_normal((6, 3, 4, 4))

    def blocks(norm: nn.Module) -> nn.Module:
        return nn.Residual(nn.Sequential(nn.Conv2d(3, 3, 1, rng=0, dtype=np.float64), norm), activation=nn.ReLU())

    whole = blocks(nn.BatchNorm2d(3, dtype=np.float64))
    expected = whole(x), whole.backward(x)

    def work(communicator: Any) -> Any:
        block = blocks(SyncBatchNorm(3, communicator, dtype=np.float64))
        own = parts(x, 2)[communicator.rank]
        return block(own), block.backward(own)

    results = on_ranks(2, work)
    for at, value in enumerate(expected):
        np.testing.assert_allclose(np.concatenate([each[at] for each in results]), value, rtol=0, atol=1e-12)


def test_a_model_is_synchronized_with_its_parameters_and_modes() -> None:
    communicator = local(1)[0]
    inner = nn.BatchNorm2d(4)
    inner.frozen = True
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Residual(nn.Sequential(inner)), nn.BatchNorm2d(4)).eval()
    state = model.state_dict()
    changed = synchronized(model, communicator)
    assert changed is model
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(SyncBatchNorm) == 2
    assert nn.BatchNorm2d not in kinds
    assert all(one is other for one, other in zip(model.state_dict().values(), state.values(), strict=True))
    assert list(model.state_dict()) == list(state)
    assert model[1].body[0].frozen
    assert not model[2].training
    assert copy.deepcopy(model)[2].communicator is communicator
    assert isinstance(synchronized(nn.BatchNorm1d(2), communicator), SyncBatchNorm)
    with pytest.raises(TypeError, match="model is a int"):
        synchronized(3, communicator)  # type: ignore[arg-type]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_it_is_folded_for_inference(rank: int) -> None:
    rng = np.random.default_rng(rank)
    conv = getattr(nn, f"Conv{rank}d")(2, 4, 3, rng=rng, dtype=np.float64)
    model = nn.Sequential(conv, nn.BatchNorm2d.member(rank)(4, dtype=np.float64), nn.ReLU())
    x = rng.standard_normal((3, 2, *[6] * rank))
    model(x)  # moves the running statistics
    expected = nn.fused(model)(x)
    synchronized(model, local(1)[0])
    assert isinstance(model[1], SyncBatchNorm)
    found = nn.fused(model)
    assert isinstance(found[1], nn.Identity)
    np.testing.assert_array_equal(found(x), expected)
    np.testing.assert_allclose(found(x), model.eval()(x), rtol=0, atol=1e-12)


def test_one_that_computes_otherwise_is_not_folded() -> None:
    class Doubling(SyncBatchNorm):
        def forward(self, x: Any) -> Any:
            return 2 * super().forward(x)

    model = nn.Sequential(nn.Conv2d(2, 3, 1), Doubling(3, local(1)[0]))
    assert isinstance(nn.fused(model)[1], Doubling)


def test_errors() -> None:
    norm = SyncBatchNorm(3, local(1)[0])
    with pytest.raises(ValueError, match="input has 1 dimensions"):
        norm(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="input has 2 channels, expected num_features = 3"):
        norm(np.zeros((4, 2), np.float32))
    with pytest.raises(ValueError, match="the whole batch has one value per channel"):
        norm(np.zeros((1, 3), np.float32))
    norm.needs_input_grad = False
    assert norm.backward(norm(np.ones((2, 3), np.float32))) is None
    assert norm.weight.grad is not None
    with pytest.raises(TypeError, match="momentum"):
        SyncBatchNorm(3, local(1)[0], momentum="a")  # type: ignore[arg-type]
