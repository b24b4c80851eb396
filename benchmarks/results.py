"""Records of a run, the JSON that holds them, and the ratios computed from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.cases import Case
from benchmarks.providers import Provider
from benchmarks.timing import Limits, Timing

SCHEMA = 3
READ_SCHEMAS = (1, 2, 3)  # the first has no figures of a GPU, the second no whole networks
PYTORCH, PLAIN_CUPY = "PyTorch", "plain CuPy"  # peers with their own columns; PyTorch in its default order, NCHW
FALLBACK = "gpucnn NumPy"  # the NumPy backend: neither a peer nor a subject beside another of gpucnn's backends
COMPILED, COMPILED_CHANNELS_LAST = "gpucnn compiled", "gpucnn compiled channels_last"

# A subject that is timed in several memory orders, whose figures are those of the quickest on each case.
ORDERS = {COMPILED: {"C order": COMPILED, "channels_last": COMPILED_CHANNELS_LAST}}

Status = Literal["timed", "refused", "wrong", "failed"]


def described(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one provider on one case; `note` says why it was not timed.

    On a GPU `timing` is from a cold cache, `warm` from a warm one, and `host` what the host spends on a call.
    `peak_bytes` is the peak of memory that a whole network's training step takes, where the system counts it.
    """

    provider: str
    ours: bool
    status: Status
    timing: Timing | None = None
    note: str = ""
    warm: Timing | None = None
    host: Timing | None = None
    peak_bytes: int | None = None

    @staticmethod
    def of(provider: Provider, status: Status, note: str = "", timing: Timing | None = None, **figures: Any) -> Outcome:
        return Outcome(provider.name, provider.ours, status, timing, note, **figures)

    @staticmethod
    def failed(provider: Provider, error: Exception) -> Outcome:
        """The outcome of an error, which is told in one line."""
        return Outcome.of(provider, "failed", described(error))


@dataclass(frozen=True)
class Record:
    """A case, its cost, and the outcome of each provider."""

    id: str
    network: str
    layer: str
    operation: str
    family: str
    shapes: str
    flops: int
    least_bytes: int
    outcomes: tuple[Outcome, ...]
    dtype: str = "float32"
    raw_launch_s: float | None = None  # the host's time for a bare launch with as many arrays

    @staticmethod
    def of(case: Case, outcomes: Iterable[Outcome], raw_launch_s: float | None = None) -> Record:
        return Record(
            id=case.id,
            network=case.layer.network,
            layer=case.layer.name,
            operation=case.operation,
            family=case.family,
            shapes=case.shapes,
            flops=case.flops,
            least_bytes=case.least_bytes,
            outcomes=tuple(outcomes),
            dtype=case.dtype,
            raw_launch_s=raw_launch_s,
        )


@dataclass(frozen=True)
class Run:
    """Everything that is written to ``<device>.json``.

    `records` are of layers, `networks` of whole networks; `unreached` are the cases that the time did not suffice for.
    """

    tier: str
    complete: bool  # not filtered, not interrupted; a GPU's time may have left out the cases of `unreached`
    seconds: float
    environment: dict[str, Any]
    limits: Limits
    records: tuple[Record, ...]
    unreached: tuple[str, ...] = ()
    networks: tuple[Record, ...] = ()

    def save(self, path: Path) -> None:
        """Write JSON; of the records only the measured figures."""
        data = asdict(self)
        for section in ("records", "networks"):
            data[section] = [_measured(record) for record in data[section]]
        path.write_text(json.dumps({"schema": SCHEMA, **data}, indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> Run:
        data = json.loads(path.read_text())
        schema = data.pop("schema", None)
        if schema not in READ_SCHEMAS:
            raise ValueError(f"{path.name} has schema {schema}, expected {' or '.join(map(str, READ_SCHEMAS))}")
        data["limits"] = Limits(**data["limits"])
        for section in ("records", "networks"):
            data[section] = tuple(record_from(record) for record in data.get(section, ()))
        data["unreached"] = tuple(data.get("unreached", ()))
        return Run(**data)

    @property
    def on_gpu(self) -> bool:
        return bool(self.environment["device"]["kind"] == "gpu")

    @property
    def cache_bytes(self) -> int:
        """The bytes of a GPU's last-level cache; 0 elsewhere."""
        return int(self.environment["device"].get("l2_bytes", 0))

    @property
    def all_records(self) -> tuple[Record, ...]:
        """Those of layers, then those of whole networks."""
        return (*self.records, *self.networks)

    @property
    def subjects(self) -> list[str]:
        """The providers that the tables are about: `subjects_of` gpucnn's own or, without it, the first."""
        outcomes = [outcome for record in self.all_records for outcome in record.outcomes]
        ours = dict.fromkeys(outcome.provider for outcome in outcomes if outcome.ours)
        return subjects_of(ours) or [outcome.provider for outcome in outcomes[:1]]

    @property
    def peers(self) -> list[str]:
        """The other implementations that were timed."""
        outcomes = [outcome for record in self.all_records for outcome in record.outcomes]
        return list(dict.fromkeys(o.provider for o in outcomes if o.status == "timed" and not o.ours))

    @property
    def faults(self) -> list[tuple[Record, Outcome]]:
        """Every wrong result and every failure."""
        return [
            (record, outcome)
            for record in self.all_records
            for outcome in record.outcomes
            if outcome.status in ("wrong", "failed")
        ]


def subjects_of(ours: Iterable[str]) -> list[str]:
    """Those of gpucnn's own implementations that tables are about: one for all its memory orders, NumPy if alone."""
    names = list(ours)
    others = {name for subject in names for name in ORDERS.get(subject, {}).values() if name != subject}
    subjects = [name for name in names if name not in others]
    return [name for name in subjects if name != FALLBACK] or subjects


def _measured(record: dict[str, Any]) -> dict[str, Any]:
    """A record's dictionary without the figures that are None and the empty notes, which `record_from` fills in."""
    outcomes = [{key: value for key, value in one.items() if value not in (None, "")} for one in record["outcomes"]]
    return {key: value for key, value in record.items() if value is not None} | {"outcomes": outcomes}


def record_from(data: dict[str, Any]) -> Record:
    """A record from its `dataclasses.asdict`."""
    outcomes = [Outcome(**{name: _timing(name, value) for name, value in one.items()}) for one in data["outcomes"]]
    return Record(**{**data, "outcomes": tuple(outcomes)})


def _timing(name: str, value: Any) -> Any:
    return Timing(**value) if name in ("timing", "warm", "host") and value else value


@dataclass(frozen=True)
class Row:
    """One timed case of one subject, its quickest peer and its limit.

    `named` are the times of `PYTORCH`, `PLAIN_CUPY` and `FALLBACK`, as far as they took the case; `orders` those of the
    subject in each memory order, where there are several. `warm` and `host` are a GPU's: the time from a warm cache,
    and the host's for a call.
    """

    record: Record
    subject: str
    timing: Timing
    rate: float  # flop or bytes per second, whichever limit binds
    unit: Literal["GFLOP/s", "GB/s"]
    share: float  # of the limit; above 1 if the caches hold the data
    named: dict[str, Timing]
    orders: dict[str, Timing] = field(default_factory=dict)
    peer: str = ""
    peer_timing: Timing | None = None
    warm: Timing | None = None
    host: Timing | None = None

    @property
    def host_ratio(self) -> float | None:
        """The host's time for a call over that for a raw launch."""
        raw = self.record.raw_launch_s
        return self.host.median / raw if self.host and raw else None

    @property
    def ratio(self) -> float | None:
        """The quickest peer's time over ours: above 1 we are faster."""
        return self.peer_timing.median / self.timing.median if self.peer_timing else None

    def ratio_to(self, name: str) -> float | None:
        """The time of one of `named` over ours, where it took the case."""
        return self.named[name].median / self.timing.median if name in self.named else None


def row_of(record: Record, subject: str, subjects: Sequence[str], limits: Limits) -> Row | None:
    """The row of `subject`, or None where it was not timed."""
    timings = {outcome.provider: outcome.timing for outcome in record.outcomes if outcome.timing}
    orders = {order: name for order, name in ORDERS.get(subject, {"": subject}).items() if name in timings}
    if not orders:
        return None
    quickest = min(orders.values(), key=lambda name: timings[name].median)
    outcome, own = next(o for o in record.outcomes if o.provider == quickest), timings[quickest]
    others = {name: timing for name, timing in timings.items() if name not in subjects}
    peers = {o.provider: others[o.provider] for o in record.outcomes if o.provider in others and not o.ours}
    peer = min(peers, key=lambda name: peers[name].median, default="")
    arithmetic = limits.bound_by_arithmetic(record.flops, record.least_bytes, record.dtype)
    return Row(
        record=record,
        subject=subject,
        timing=own,
        rate=(record.flops if arithmetic else record.least_bytes) / own.median,
        unit="GFLOP/s" if arithmetic else "GB/s",
        share=limits.least_seconds(record.flops, record.least_bytes, record.dtype) / own.median,
        named={name: others[name] for name in (PYTORCH, PLAIN_CUPY, FALLBACK) if name in others},
        orders={order: timings[name] for order, name in orders.items() if len(orders) > 1},
        peer=peer,
        peer_timing=peers.get(peer),
        warm=outcome.warm,
        host=outcome.host,
    )


def rows_of(run: Run) -> list[Row]:
    """Every row of a run, in the order of the cases."""
    subjects = run.subjects
    rows = (row_of(record, subject, subjects, run.limits) for record in run.records for subject in subjects)
    return [row for row in rows if row is not None]


def rows_by_subject(run: Run) -> dict[str, list[Row]]:
    """The rows of each subject, which may be none."""
    rows = rows_of(run)
    return {subject: [row for row in rows if row.subject == subject] for subject in run.subjects}


@dataclass(frozen=True)
class Ratios:
    """Ratios to a peer over the cases that it took: the geometric mean, the least and the largest."""

    cases: int
    mean: float
    lowest: float
    highest: float

    @staticmethod
    def of(values: Iterable[float | None]) -> Ratios | None:
        """None where the peer took no case."""
        known = [value for value in values if value is not None]
        return Ratios(len(known), geometric_mean(known), min(known), max(known)) if known else None


@dataclass(frozen=True)
class Summary:
    """The geometric means over the cases of one kind and operation."""

    subject: str
    kind: str
    operation: str
    cases: int
    share: float
    named: dict[str, Ratios | None]  # to `PYTORCH`, `PLAIN_CUPY` and `FALLBACK`
    best: Ratios | None  # to the quickest peer of each case


def by_family(record: Record) -> tuple[str, str]:
    """Each operation of each family separately, and each dtype."""
    return record.family + in_dtype(record.dtype), record.operation


def by_group(record: Record) -> tuple[str, str]:
    """Convolutions other than depthwise ones by direction; every other kind together with its gradients."""
    if record.family.endswith("convolution") and not record.family.startswith("depthwise"):
        return "convolution" + in_dtype(record.dtype), record.operation
    return record.family + in_dtype(record.dtype), "all"


def in_dtype(dtype: str) -> str:
    """The remark on a dtype other than float32."""
    return "" if dtype == "float32" else f", {dtype}"


def summarize(rows: Iterable[Row], kind_of: Callable[[Record], tuple[str, str]] = by_family) -> list[Summary]:
    """One summary per subject, kind and operation, in the order of the rows."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.subject, *kind_of(row.record)), []).append(row)
    return [
        Summary(
            *key,
            cases=len(own),
            share=geometric_mean([row.share for row in own]),
            named={name: Ratios.of(row.ratio_to(name) for row in own) for name in (PYTORCH, PLAIN_CUPY, FALLBACK)},
            best=Ratios.of(row.ratio for row in own),
        )
        for key, own in groups.items()
    ]


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))
