"""Operations on Dask's arrays by worker processes: results, bounded memory, and a worker that is lost on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask_calls import CHUNKINGS, ROWS, called, expect_same, in_memory

import gpucnn.functional as F
from gpucnn import nn

pytestmark = pytest.mark.filterwarnings("default")  # of distributed, in threads of its own


@pytest.fixture(scope="module")
def distributed(dask: Any) -> Any:
    if not os.environ.get("GPUCNN_REQUIRE_DASK"):
        pytest.importorskip("distributed", reason="distributed is not installed")
    return import_module("distributed")


@pytest.fixture(scope="module")
def da(dask: Any) -> Any:
    return import_module("dask.array")


def started(distributed: Any, **options: Any) -> Iterator[Any]:
    """A cluster of processes with one thread each, and its client as ``cluster.client``."""
    settings = {"threads_per_worker": 1, "processes": True, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    with distributed.LocalCluster(**settings, **options) as cluster, distributed.Client(cluster) as client:
        cluster.client = client
        yield cluster


@pytest.fixture(scope="module")
def two_workers(distributed: Any) -> Iterator[Any]:
    yield from started(distributed, n_workers=2, memory_limit=0)


@pytest.mark.table(24)
@pytest.mark.parametrize("chunks", CHUNKINGS)
@pytest.mark.parametrize("row", ROWS)
def test_results_of_processes_are_those_in_memory(two_workers: Any, da: Any, row: str, chunks: str) -> None:
    def compute(arrays: list[Any]) -> Any:
        return two_workers.client.gather(two_workers.client.compute(arrays))

    expect_same(da, called(da, row, ROWS[row], CHUNKINGS[chunks]), in_memory(row), compute=compute)


def drawn(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(-4, 5, shape).astype(np.float32)


def test_a_network_by_processes(two_workers: Any, da: Any) -> None:
    model = nn.models.mobilenet_v2(num_classes=3, rng=0).eval()
    x = drawn(1, 3, 40, 32)
    model[0](x)  # what it keeps for a backward stays here
    found = two_workers.client.compute(model(da.from_array(x, chunks=(1, 3, 16, 32)))).result()
    np.testing.assert_allclose(found, model(x), rtol=0, atol=1e-5)


@pytest.mark.thorough
def test_a_lost_worker_changes_nothing(two_workers: Any, distributed: Any, da: Any) -> None:
    x, w = drawn(1, 2, 200, 50), drawn(3, 2, 3, 3)
    y = F.conv2d(F.conv2d(da.from_array(x, chunks=(1, 2, 4, 50)), w[:2], padding=1), w, padding=1)
    on_workers = two_workers.client.persist(y)
    futures = distributed.futures_of(on_workers)
    distributed.wait(futures[: len(futures) // 2])
    nanny = two_workers.workers[0]
    held = two_workers.client.has_what()[nanny.worker_address]
    two_workers.sync(nanny.kill)
    assert held, "nothing was lost"
    np.testing.assert_array_equal(on_workers.compute(), F.conv2d(F.conv2d(x, w[:2], padding=1), w, padding=1))


def peak_memory() -> int:
    """Most bytes that this process has had in memory at once; getrusage counts those of the one that started it too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not count a process's memory")
def test_memory_is_that_of_the_chunks_in_flight(distributed: Any, da: Any) -> None:
    limit = 300_000_000
    for cluster in started(distributed, n_workers=1, memory_limit=limit):
        x = da.ones((1, 1, 30_000, 20_000), chunks=(1, 1, 1000, 2000), dtype=np.float32) + np.float32(1)
        assert x.nbytes == 8 * limit
        y = F.conv2d(x, np.ones((1, 1, 3, 3), np.float32), stride=8, padding=1)
        assert float(F.max_pool2d(y, 2).max()) == 18
        (peak,) = cluster.client.run(peak_memory).values()
        print(f"{x.nbytes} bytes by a worker with at most {peak}")
        assert peak < limit
