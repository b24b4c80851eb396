"""The loader: which batches, the same whatever prepares them, from the start or from anywhere."""

from __future__ import annotations

import gc
import json
import threading
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from gpucnn.data import Compose, Flip, Loader, Shift

Batches = list[tuple[np.ndarray, np.ndarray]]


def made(n: int = 20, **options: Any) -> Loader:
    x = np.arange(n * 4, dtype=np.float32).reshape(n, 1, 2, 2)
    return Loader(x, np.arange(n), **{"batch_size": 3, "rng": 5, **options})


def same(a: Batches, b: Batches) -> bool:
    return len(a) == len(b) and all(
        p.tobytes() == q.tobytes()
        for first, second in zip(a, b, strict=True)
        for p, q in zip(first, second, strict=True)
    )


def threads() -> int:
    return sum(thread.name.startswith("gpucnn-loader") for thread in threading.enumerate())


@given(st.integers(1, 40), st.integers(1, 12), st.booleans(), st.booleans(), st.integers(0, 3), st.integers(0, 9))
def test_an_epoch_gives_each_element_once(
    n: int, batch_size: int, shuffle: bool, drop_last: bool, prefetch: int, seed: int
) -> None:
    options = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last, "prefetch": prefetch}
    if drop_last and n < batch_size:
        with pytest.raises(ValueError, match=f"{n} elements make no batch of {batch_size}"):
            made(n, rng=seed, **options)
        return
    loader = made(n, rng=seed, **options)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert all(len(x) == len(y) == batch_size for x, y in batches[:-1])
    y = np.concatenate([y for _, y in batches])
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches])[:, 0, 0, 0], 4 * y)
    if shuffle:
        assert len(set(y)) == len(y)
    else:
        assert y.tolist() == list(range(len(y)))
    assert len(y) == (n - n % batch_size if drop_last else n)


def test_each_epoch_has_its_order_and_a_seed_decides_all() -> None:
    first, second = made(shuffle=True), made(shuffle=True)
    epochs = [[y.tolist() for _, y in first] for _ in range(4)]
    assert epochs == [[y.tolist() for _, y in second] for _ in range(4)]
    assert len({str(epoch) for epoch in epochs}) == 4
    assert epochs[0] != [y.tolist() for _, y in made(shuffle=True, rng=6)]
    generator = made(shuffle=True, rng=np.random.default_rng(5))
    assert epochs[0] == [y.tolist() for _, y in generator]
    assert made(rng=None).seed != made(rng=None).seed


AUGMENT = Compose(Flip(), Shift(1))


@pytest.mark.parametrize("prefetch", [1, 2, 100])
def test_batches_do_not_depend_on_threads(prefetch: int) -> None:
    plain, ahead = made(shuffle=True, augment=AUGMENT), made(shuffle=True, augment=AUGMENT, prefetch=prefetch)
    for _ in range(3):
        assert same(list(plain), list(ahead))
    assert threads() == 0


def test_each_batch_and_epoch_is_changed_otherwise() -> None:
    def noise(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.random(len(x))

    loader = made(augment=noise)
    drawn = np.concatenate([x for _ in range(3) for x, _ in loader])
    assert len(set(drawn)) == 60


@given(st.integers(0, 3 * 7), st.booleans(), st.sampled_from([0, 2]), st.integers(0, 99))
def test_a_restored_loader_goes_on_with_the_next_batch(at: int, shuffle: bool, prefetch: int, seed: int) -> None:
    options: dict[str, Any] = {"shuffle": shuffle, "augment": AUGMENT, "prefetch": prefetch}
    whole = made(rng=seed, **options)
    expected: Batches = []
    states = [whole.state_dict()]
    for _ in range(3):
        for batch in whole:
            expected.append(batch)
            states.append(whole.state_dict())  # as a checkpoint in the loop's body sees it
    assert len(expected) == 3 * 7
    resumed = made(rng=seed + 1, **options)
    resumed.load_state_dict(json.loads(json.dumps(states[at])))
    rest: Batches = []
    while resumed.epoch < 3:
        rest += list(resumed)
    assert same(rest, expected[at:])


def test_a_state_between_epochs_begins_the_next() -> None:
    loader = made(shuffle=True)
    list(loader)
    assert loader.state_dict() == {"seed": loader.seed, "epoch": 1, "batch": 0}
    resumed = made(shuffle=True, rng=99)
    resumed.load_state_dict(loader.state_dict())
    assert same(list(resumed), list(loader))


def test_an_epoch_left_early_stays_left() -> None:
    expected, loader = made(shuffle=True), made(shuffle=True, prefetch=2)
    list(expected)
    for _ in loader:
        break
    assert loader.state_dict() == {"seed": loader.seed, "epoch": 0, "batch": 1}
    assert same(list(loader), list(expected))
    assert loader.epoch == 2


def test_a_state_that_is_none() -> None:
    loader = made()
    before = loader.state_dict()
    for wrong in ({"batch": 8}, {"epoch": -1}):
        with pytest.raises(ValueError, match="expected at most 7"):
            loader.load_state_dict({**before, **wrong})
    lacking = "…Loader.load_state_dict: got ['seed'], expected seed, epoch and batch…"
    refused(KeyError, (lacking, lambda: loader.load_state_dict({"seed": 1})))
    assert loader.state_dict() == before


# --- Threads ------------------------------------------------------------------------------------------------------


def test_batches_are_prepared_ahead_and_no_further() -> None:
    began = []
    loader = made(30, prefetch=2, augment=lambda x, rng: began.append(len(began)) or x)
    batches = iter(loader)
    next(batches)
    threading.Event().wait(0.05)
    assert 1 <= len(began) <= 3
    assert len(list(batches)) == 9
    assert len(began) == 10


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_an_exception_passes_through_at_its_batch(prefetch: int) -> None:
    def fails(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if x[0, 0, 0, 0] == 24:
            raise ZeroDivisionError("in the third batch")
        return x

    got = []
    with pytest.raises(ZeroDivisionError, match="in the third batch"):
        got.extend(made(augment=fails, prefetch=prefetch))
    assert threads() == 0
    loader = iter(made(augment=fails, prefetch=prefetch))
    assert [next(loader)[1].tolist() for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]


def test_no_thread_stays_after_an_early_exit() -> None:
    for _ in made(300, prefetch=4):
        break
    gc.collect()
    assert threads() == 0
    batches = iter(made(300, prefetch=4))
    next(batches)
    assert threads() == 1
    batches.close()  # type: ignore[attr-defined]
    assert threads() == 0


# --- Arrays and arguments -----------------------------------------------------------------------------------------


def test_arrays_of_any_backend(backend: ArrayBackend) -> None:
    x, y = np.arange(20.0).reshape(10, 2), np.arange(10)
    on_device = Loader(backend.asarray(x), backend.asarray(y), 4, shuffle=True, rng=1)
    for (a, b), (c, d) in zip(on_device, Loader(x, y, 4, shuffle=True, rng=1), strict=True):
        assert type(a) is type(backend.asarray(x))
        np.testing.assert_array_equal(backend.asnumpy(a), c)
        np.testing.assert_array_equal(backend.asnumpy(b), d)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"batch_size": 0}, ValueError, "batch_size is 0, expected at least 1"),
        ({"batch_size": 2.0}, TypeError, "batch_size is a float, expected an int"),
        ({"batch_size": True}, TypeError, "batch_size is a bool"),
        ({"prefetch": -1}, ValueError, "prefetch is -1, expected at least 0"),
        ({"n": 0}, ValueError, "0 elements make no batch of 3"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=f"^Loader: {says}"):
        made(**options)


def test_as_many_labels_as_images() -> None:
    with pytest.raises(ValueError, match="Loader: x has 3 elements and y 2, expected as many"):
        Loader(np.zeros((3, 1)), np.zeros(2))


def test_what_is_no_array_is_refused_by_name() -> None:
    x, y = np.ones((4, 2)), np.arange(4)
    refused(
        TypeError,
        ("Loader: y is of type int, expected an array…", lambda: Loader(x, 3)),
        ("Loader: x is of type tuple, expected an array…", lambda: Loader((x, y), 3)),
        ("Loader: x is of type list, expected an array…", lambda: Loader([1, 2], [3, 4])),
    )
    refused(ValueError, ("Loader: y has no axes…", lambda: Loader(x, np.array(3))))


# --- Shards -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 6), st.booleans(), st.integers(0, 2))
def test_shards_together_are_one_loader(n: int, batch_size: int, size: int, shuffle: bool, prefetch: int) -> None:
    options = {"batch_size": batch_size, "shuffle": shuffle, "prefetch": prefetch}
    whole = made(n, **options)
    shards = [made(n, **options, shard=(rank, size)) for rank in range(size)]
    assert {len(shard) for shard in shards} == {len(whole)}
    for _ in range(2):
        epochs = [list(shard) for shard in shards]
        for at, pair in enumerate(whole):
            parts = [epoch[at] for epoch in epochs]
            assert same([pair], [tuple(np.concatenate(values) for values in zip(*parts, strict=True))])
            sizes = [len(y) for _, y in parts]
            assert max(sizes) - min(sizes) <= 1
        assert all(shard.state_dict() == whole.state_dict() for shard in shards)


def test_the_state_of_a_shard_is_that_of_any_number() -> None:
    whole = made(shuffle=True)
    rest = list(whole)[3:]
    first = made(shuffle=True, shard=(1, 3))
    for _ in zip(range(3), first, strict=False):
        pass
    shards = [made(shuffle=True, rng=9, shard=(rank, 2)) for rank in range(2)]
    for shard in shards:
        shard.load_state_dict(first.state_dict())
    pairs = zip(*map(list, shards), strict=True)
    assert same([tuple(map(np.concatenate, zip(*pair, strict=True))) for pair in pairs], rest)


def test_augmentations_of_shards_differ_and_repeat() -> None:
    x, y = np.ones((8, 1, 9, 9), np.float32), np.arange(8)

    def batches(rank: int, size: int) -> Batches:
        return list(Loader(x, y, 8, rng=0, augment=Shift(4), shard=(rank, size)))

    assert same(batches(1, 2), batches(1, 2))
    assert not same([(batches(0, 2)[0][0], y)], [(batches(1, 2)[0][0], y)])


def test_errors_of_shards() -> None:
    for shard in ([0, 2], (0,), 3):
        with pytest.raises(TypeError, match=r"shard is .*, expected a tuple"):
            made(shard=shard)
    with pytest.raises(TypeError, match="shard's size is a float"):
        made(shard=(0, 2.0))
    for shard in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="shard"):
            made(shard=shard)
