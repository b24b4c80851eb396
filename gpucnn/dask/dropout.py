"""Dropout of Dask's arrays, and its gradient: each chunk draws from a generator of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.dask._calls import DaskCall
from gpucnn.dask._tiles import Index, Source, sizes_of, spans_of

Array = Any
Given = dict[str, Any]


def _dropout(op: str, given: Given) -> Any:
    call = DaskCall(op, given)
    key, tiles, chunks = _drawn(call)
    if not isinstance(call.trial, tuple):
        return tiles.result("image", key, chunks, call.trial)
    parts = zip(("image", "mask"), call.trial, strict=True)
    return tuple(tiles.result(part, key, chunks, meta, item) for item, (part, meta) in enumerate(parts))


def _dropout_backward(op: str, given: Given) -> tuple[Array | None]:
    call = DaskCall(op, given)
    if call.trial[0] is None:
        return (None,)
    key, tiles, chunks = _drawn(call)
    return (tiles.result("image", key, chunks, call.trial[0], 0),)


def _drawn(call: DaskCall) -> Any:
    """The results for the chunks of the input, by index; their graph, and their sizes."""
    seed = call.options["rng"] = _seed(call.options["rng"])  # in the names of tasks: other draws are other results
    spans = tuple(map(spans_of, call.images["input"].chunks))
    sources = {name: Source(array, spans) for name, array in call.images.items()}

    def options(index: Index) -> Given:
        return call.options | {"rng": _seed_of_chunk(seed, index)}

    tiles = call.tiles()
    return (
        tiles.compute("dropped", call.function, tuple(map(len, spans)), sources, options),
        tiles,
        tuple(map(sizes_of, spans)),
    )


def _seed(rng: Any) -> int:
    """A seed as it is, or one that is drawn here and now: a task that is run again draws the same."""
    if hasattr(rng, "integers"):
        return int(rng.integers(2**63 - 1))
    return int(np.random.default_rng().integers(2**63 - 1)) if rng is None else int(rng)


def _seed_of_chunk(seed: int, index: Index) -> int:
    return int(np.random.SeedSequence([seed, *index]).generate_state(1)[0])


OPERATIONS = {"dropout": _dropout, "dropout_backward": _dropout_backward}
