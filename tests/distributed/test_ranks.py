"""`fit` over ranks that are threads: the weights of one process, whatever the number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_threads import BATCH, EPOCHS, assert_near, assert_same, network, on_ranks, samples, trained

from gpucnn import nn
from gpucnn.data import Loader
from gpucnn.distributed import local, volume
from gpucnn.distributed.training import Ranks


class EndedError(Exception):
    pass


class Ending(nn.CrossEntropyLoss):
    """A loss at whose `at`-th gradient the run ends."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def backward(self, grad_output: Any = 1.0) -> Any:
        self.left -= 1
        if not self.left:
            raise EndedError
        return super().backward(grad_output)


def near(one: nn.History, other: nn.History, atol: float = 1e-12) -> None:
    for name in ("losses", "validation_losses", "accuracies", "validation_accuracies", "learning_rates"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=0, atol=atol, err_msg=name)
    assert one.best_epoch == other.best_epoch


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("norm", ["none", "synchronized"])
def test_weights_are_those_of_one_process(norm: str, size: int) -> None:
    weights, history, _ = trained(None, norm)
    results = on_ranks(size, lambda each: trained(each, norm))
    for found, its_history, _ in results:
        assert_same(found, results[0][0])
        assert its_history == results[0][1]
    assert_near(results[0][0], weights)
    near(results[0][1], history)
    for found, *_ in on_ranks(size, lambda each: trained(each, norm)):
        assert_same(found, results[0][0])


def test_without_rounding_weights_have_the_same_bits() -> None:
    """Small integers, a batch and rates of powers of two: all sums are exact in any order."""
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (16, 2, 6, 6)).astype(np.float64)
    y = rng.integers(-2, 3, (16, 3)).astype(np.float64)

    def work(communicator: Any) -> Any:
        model = network()
        for parameter in model.parameters():
            parameter.data[...] = np.random.default_rng(1).integers(-1, 2, parameter.shape) / 2
        rank, size = (0, 1) if communicator is None else (communicator.rank, communicator.size)
        nn.fit(
            model,
            Loader(x, y, 8, shuffle=True, rng=0, shard=(rank, size)),
            loss=nn.MSELoss(reduction="sum"),
            optimizer=nn.SGD(model.parameters(), 2.0**-6),
            epochs=1,
            progress=False,
            communicator=communicator,
        )
        return model.state_dict()

    alone = work(None)
    for size in (2, 4):
        for found in on_ranks(size, work):
            assert_same(found, alone)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_each_target_that_counts_has_the_same_weight(reduction: str) -> None:
    """Some ranks have no target that counts, in some batches none has."""
    x, y = samples()
    y = np.where(np.arange(len(y)) % 8 < 6, -100, y)
    y[8:16] = -100

    def options(communicator: Any) -> dict[str, Any]:
        place = (0, 1) if communicator is None else (communicator.rank, communicator.size)
        loss = nn.CrossEntropyLoss(np.array([1.0, 2.0, 0.5]), reduction=reduction, ignore_index=-100)
        return {"loss": loss, "loader": Loader(x, y, BATCH, shard=place), "validation": False, "epochs": 2}

    with np.errstate(invalid="ignore"):
        weights, history, _ = trained(None, **options(None))
    with np.errstate(invalid="ignore"):
        results = on_ranks(4, lambda each: trained(each, **options(each)))
    assert_near(results[0][0], weights)
    near(results[0][1], history)


def test_clipping_schedules_scaling_and_early_stopping_are_alike() -> None:
    x, y = samples(np.float32)

    def options(scaler: nn.LossScaler, shard: tuple[int, int] = (0, 1)) -> dict[str, Any]:
        model = network(dtype=np.float32)
        optimizer = nn.Adam(model.parameters(), 0.01)
        return {
            "model": model,
            "loader": Loader(30 * x, y, BATCH, shard=shard),
            "optimizer": optimizer,
            "clip_norm": 0.05,
            "early_stopping": 2,
            "epochs": 6,
            "scaler": scaler,
            "schedule": nn.ReduceLROnPlateau(optimizer, patience=0),
            "dtype": np.float32,
        }

    scaler = nn.LossScaler(2.0**127, growth_interval=8)
    with np.errstate(all="ignore"):
        weights, history, _ = trained(None, **options(scaler))
    assert scaler.scale < 2.0**127  # there were overflows

    def work(communicator: Any) -> Any:
        own = nn.LossScaler(2.0**127, growth_interval=8)
        with np.errstate(all="ignore"):
            return *trained(communicator, **options(own, (communicator.rank, 3)))[:2], own.scale

    for found, its_history, scale in on_ranks(3, work):
        assert_near(found, weights, 1e-5)
        near(its_history, history, 1e-5)
        assert scale == scaler.scale


def test_an_overflow_on_one_rank_is_seen_by_all() -> None:
    x, y = samples(np.float32)
    x[0] = np.inf  # of the first rank's first batch

    def work(communicator: Any) -> float:
        scaler = nn.LossScaler(1024.0)
        place = (communicator.rank, communicator.size)
        with np.errstate(all="ignore"):
            loader = Loader(x, y, BATCH, shard=place)
            trained(communicator, loader=loader, scaler=scaler, dtype=np.float32, epochs=1, validation=False)
        return scaler.scale

    assert on_ranks(2, work) == [512.0, 512.0]


def test_running_statistics_are_the_first_ranks() -> None:
    x, y = samples()
    results = on_ranks(2, lambda each: trained(each, "local"))
    for found, *_ in results:
        assert_same(found, results[0][0])
    norm = nn.BatchNorm2d(4, dtype=np.float64)
    seen: list[Any] = []

    def work(communicator: Any) -> Any:
        model = network("local")
        if communicator.rank == 0:
            of = model[1].finished
            vars(model[1])["finished"] = lambda x, *more, **options: (seen.append(x), of(x, *more, **options))[1]
        options: dict[str, Any] = {"loss": nn.CrossEntropyLoss(), "optimizer": nn.SGD(model.parameters(), 0.1)}
        loader = Loader(x, y, BATCH, shard=(communicator.rank, 2))
        nn.fit(model, loader, epochs=1, progress=False, communicator=communicator, **options)
        return model[1].state_dict()

    states = on_ranks(2, work)
    for array in seen:
        norm(array)
    assert len(seen) == 3
    for state in states:
        assert (state["running_mean"] == norm.running_mean).all()
        assert (state["running_var"] == norm.running_var).all()


def test_dropouts_differ_from_rank_to_rank_and_repeat() -> None:
    def work(communicator: Any) -> Any:
        weights, _, model = trained(communicator, dropout=0.5, rng=3)
        return weights, model[4].rng.bit_generator.state["state"]["state"]

    results, again = on_ranks(3, work), on_ranks(3, work)
    assert len({state for _, state in results}) == 3
    for one, other in zip(results, again, strict=True):
        assert_same(one[0], other[0])
        assert_same(one[0], results[0][0])


# --- Checkpoints --------------------------------------------------------------------------------------------------


@pytest.mark.table(3)
@pytest.mark.parametrize("sizes", [(2, 2), (2, 1), (1, 3), (3, 2), (4, 4)])
@pytest.mark.parametrize("at", [2, 5])
def test_any_number_of_ranks_goes_on(tmp_path: Path, at: int, sizes: tuple[int, int]) -> None:
    pytest.importorskip("safetensors")
    before, after = sizes
    options: dict[str, Any] = {"early_stopping": 2, "rng": 0}
    undisturbed, history, _ = trained(None, "synchronized", **options)
    checkpoint = nn.Checkpoint(tmp_path / "run", every=1)
    options["checkpoint"] = checkpoint

    def broken(communicator: Any) -> Any:
        return trained(communicator, "synchronized", loss=Ending(at), **options)

    with pytest.raises(EndedError):
        on_ranks(before, broken)
    results = on_ranks(after, lambda each: trained(each if after > 1 else None, "synchronized", seed=5, **options))
    for found, its_history, _ in results:
        assert_near(found, undisturbed)
        near(its_history, history)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("rng", range(6))
def test_as_many_ranks_go_on_bit_for_bit(tmp_path: Path, every: int, rng: int) -> None:
    """The history's sums too, which round otherwise where they are added in another order."""
    pytest.importorskip("safetensors")
    options: dict[str, Any] = {"dropout": 0.4, "rng": rng}
    undisturbed = on_ranks(2, lambda each: trained(each, "local", **options))[0]
    options["checkpoint"] = nn.Checkpoint(tmp_path / "run", every=every)
    with pytest.raises(EndedError):
        on_ranks(2, lambda each: trained(each, "local", loss=Ending(5), **options))
    results = on_ranks(2, lambda each: trained(each, "local", seed=7, **options))
    for found, its_history, _ in results:
        assert_same(found, undisturbed[0])
        assert its_history == undisturbed[1]
    more = on_ranks(3, lambda each: trained(each, "local", seed=7, **{**options, "epochs": EPOCHS + 1}))
    assert len(more[0][1]) == EPOCHS + 1  # a third rank draws masks of its own


def test_an_error_of_the_first_rank_alone_is_raised_on_all(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    (tmp_path / "run").write_bytes(b"no checkpoint")
    caught = []

    def work(communicator: Any) -> None:
        with pytest.raises(ValueError, match="is no whole safetensors file") as info:
            trained(communicator, checkpoint=tmp_path / "run")
        caught.append(info)

    on_ranks(2, work)
    assert len(caught) == 2


def test_an_error_that_cannot_be_sent_is_named_on_all() -> None:
    class UnsentError(Exception):
        def __init__(self, one: int, other: int) -> None:
            super().__init__(f"{one} and {other}")

    def work(communicator: Any) -> None:
        def make() -> None:
            raise UnsentError(1, 2)

        with pytest.raises(RuntimeError, match="UnsentError: 1 and 2"):
            Ranks(communicator).first(make)

    on_ranks(2, work)


# --- What ranks say to each other ---------------------------------------------------------------------------------


def test_a_run_sends_what_the_model_says() -> None:
    def work(communicator: Any) -> Any:
        _, _, model = trained(communicator, "local", validation=False)
        return communicator.bytes_sent, volume(model.parameters(), communicator.rank, 3), model

    results = on_ranks(3, work)
    batches = EPOCHS * 3
    for rank, (sent, gradients, model) in enumerate(results):
        others = 2 * (batches + EPOCHS) * 24  # counts, and that an epoch has ended
        others += 2 * EPOCHS * (32 + 2)  # losses and hits; whether to stop
        state = sum(array.nbytes for array in model.state_dict().values())
        buffers = sum(array.nbytes for _, array in model.named_buffers())
        if rank == 0:
            others += 2 * (state + batches * buffers)
        assert 0 <= sent - batches * gradients - others < (10_000 if rank == 0 else 1)  # the first one's generators


def test_the_callbacks_of_any_rank_stop_all() -> None:
    def work(communicator: Any) -> int:
        return len(trained(communicator, callbacks=[lambda *_: communicator.rank == 1])[1])

    assert on_ranks(3, work) == [1, 1, 1]


def test_progress_is_the_first_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    history = on_ranks(3, lambda each: trained(each, progress=True))[0][1]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == EPOCHS
    assert f"loss {history.losses[0]:.4f}" in lines[0]


def test_ranks_with_fewer_batches_are_named() -> None:
    x, y = samples()

    def work(communicator: Any) -> None:
        batches = [(x[start : start + 4], y[start : start + 4]) for start in range(0, 8 + 4 * communicator.rank, 4)]
        with pytest.raises(ValueError, match=r"only the loaders of ranks \[1\] have another batch"):
            trained(communicator, loader=batches, validation=False)

    on_ranks(2, work)


def test_errors() -> None:
    x, y = samples()
    communicator = local(2)[1]
    with pytest.raises(ValueError, match=r"loader has the shard \(0, 1\), expected \(1, 2\)"):
        trained(communicator, loader=Loader(x, y, 4))
    model, other = network(), nn.Parameter(np.zeros(1))
    with pytest.raises(ValueError, match="parameters that are not the model's"):
        trained(communicator, model=model, optimizer=nn.SGD([*model.parameters(), other], 0.1))
    with pytest.raises(TypeError, match="communicator is a int without rank"):
        nn.fit(
            model,
            [(x, y)],
            loss=nn.CrossEntropyLoss(),
            optimizer=nn.SGD(model.parameters(), 0.1),
            epochs=1,
            communicator=3,
        )
