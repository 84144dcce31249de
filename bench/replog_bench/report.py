"""Rows of figures: as JSON for programs, as a small table for people.

The figure of a row is the median of its repeats; a single run on a shared machine says little.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Final, Protocol

from replog_bench.load import LoadResult

BASE: Final = "bare"
"""The contestant that the others are compared with."""

NOT_DURABLE: Final = "NOT durable"
"""Said of every figure for which nothing was synced before it was acknowledged."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the trials of one contestant gave, in the order of the runs."""

    embedded: list[LoadResult]
    network: list[LoadResult]
    """Empty, or as many."""


@dataclass(frozen=True, slots=True)
class ThroughputRow:
    """One contestant with one number of clients."""

    engine: str
    clients: int
    """Commands in flight."""
    ops_per_second: float
    ops_per_second_best: float
    p50_ms: float
    p99_ms: float
    p50_in_syncs: float
    """The median latency as a multiple of ``sync_us``."""
    ratio_to_bare: float
    """Of the medians."""
    ratio_min: float
    """The spread of the ratios of runs that followed each other."""
    ratio_max: float
    ratio_to_first: float | None
    """Of the medians, to the first engine of the run; ``None`` for bare and for that one."""
    ratio_to_first_min: float | None
    ratio_to_first_max: float | None
    network_ops_per_second: float | None
    """With the load in a client's process; ``None`` where there were no such trials."""
    network_p50_ms: float | None
    network_p99_ms: float | None
    network_ratio_to_bare: float | None
    """To the embedded ``bare``, which has no network clients: a yardstick against drift."""
    repeats: int
    value_bytes: int
    durable: bool
    """Whether what was acknowledged survives a power cut; if not, no sync was waited for."""
    sync_us: float
    """The median time of making 100 bytes durable, taken between the runs."""

    HEADINGS = (
        "engine",
        "clients",
        "durable",
        "ops/s",
        "best",
        "p50 ms",
        "p99 ms",
        "syncs",
        "ratio",
        "min..max",
        "to first",
        "min..max",
        "net ops/s",
        "p50 ms",
        "p99 ms",
        "ratio",
        "sync us",
    )

    def cells(self) -> Sequence[str]:
        """The row as people read it."""
        return (
            self.engine,
            str(self.clients),
            "yes" if self.durable else "NO",
            f"{self.ops_per_second:,.0f}",
            f"{self.ops_per_second_best:,.0f}",
            f"{self.p50_ms:.2f}",
            f"{self.p99_ms:.2f}",
            f"{self.p50_in_syncs:.1f}",
            f"{self.ratio_to_bare:.2f}",
            f"{self.ratio_min:.2f}..{self.ratio_max:.2f}",
            _cell(self.ratio_to_first, ".2f"),
            f"{_cell(self.ratio_to_first_min, '.2f')}..{_cell(self.ratio_to_first_max, '.2f')}"
            if self.ratio_to_first is not None
            else "-",
            _cell(self.network_ops_per_second, ",.0f"),
            _cell(self.network_p50_ms, ".2f"),
            _cell(self.network_p99_ms, ".2f"),
            _cell(self.network_ratio_to_bare, ".2f"),
            f"{self.sync_us:.0f}",
        )


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


@dataclass(frozen=True, slots=True)
class ClientsRow:
    """What network clients are served with, of one kind of request."""

    engine: str
    clients: int
    """Requests in flight."""
    request: str
    ops_per_second: float
    """The medians of the repeats, ..."""
    p50_ms: float
    p99_ms: float
    ratio_to_put: float
    """... and of the ratios to the puts of the same repeat, ..."""
    ratio_min: float
    ratio_max: float
    """... with the lowest and the highest of these."""
    repeats: int

    HEADINGS = (
        "engine",
        "in flight",
        "request",
        "per second",
        "p50 ms",
        "p99 ms",
        "to put",
        "min..max",
    )

    def cells(self) -> Sequence[str]:
        """The row as people read it."""
        return (
            self.engine,
            str(self.clients),
            self.request,
            f"{self.ops_per_second:,.0f}",
            f"{self.p50_ms:.2f}",
            f"{self.p99_ms:.2f}",
            f"{self.ratio_to_put:.2f}",
            f"{self.ratio_min:.2f}..{self.ratio_max:.2f}",
        )


@dataclass(frozen=True, slots=True)
class OverloadRow:
    """What one engine's leader did when it was offered a multiple of what it can do."""

    engine: str
    machine: str
    gap_limit: int | None
    """How many entries may be committed and not applied; ``None``: any number."""
    clients: int
    """In flight in the closed loops."""
    peak_per_second: float
    """Of the closed loops before and after; the mean."""
    peak_p99_ms: float
    offered_to_peak: float
    done_per_second: float
    ratio_to_peak: float
    """Of what was done under overload; the medians of the repeats, ..."""
    ratio_min: float
    ratio_max: float
    """... with the lowest and the highest."""
    refused_share: float
    """Of how often a command was submitted."""
    given_up_share: float
    """Of the commands that came."""
    p50_ms: float
    """Of those that were done, from when they came."""
    p99_ms: float
    gap_max: int
    """The most entries that were seen committed and not applied."""
    grown_mib: float
    """How much more was resident in the leader's process, with the load in it."""
    memory_bound_mib: float | None
    """What the limits let a leader hold, in bytes of commands; ``None``: there is no bound."""
    repeats: int

    HEADINGS = (
        "engine",
        "machine",
        "gap limit",
        "peak/s",
        "offered",
        "done/peak",
        "min..max",
        "refused",
        "given up",
        "peak p99 ms",
        "p50 ms",
        "p99 ms",
        "gap",
        "grown MiB",
        "bound",
    )

    def cells(self) -> Sequence[str]:
        """The row as people read it."""
        return (
            self.engine,
            self.machine,
            "none" if self.gap_limit is None else str(self.gap_limit),
            f"{self.peak_per_second:,.0f}",
            f"{self.offered_to_peak:.2f}",
            f"{self.ratio_to_peak:.2f}",
            f"{self.ratio_min:.2f}..{self.ratio_max:.2f}",
            f"{self.refused_share:.0%}",
            f"{self.given_up_share:.0%}",
            f"{self.peak_p99_ms:.0f}",
            f"{self.p50_ms:.0f}",
            f"{self.p99_ms:.0f}",
            str(self.gap_max),
            f"{self.grown_mib:.1f}",
            "none" if self.memory_bound_mib is None else f"{self.memory_bound_mib:.0f}",
        )


@dataclass(frozen=True, slots=True)
class EtcdRow:
    """What network clients of one system are served with, beside those of etcd."""

    system: str
    """``etcd``, or the engine of replog."""
    clients: int
    """Requests in flight."""
    request: str
    ops_per_second: float
    ops_per_second_best: float
    p50_ms: float
    p99_ms: float
    ratio_to_etcd: float | None
    """The median of the ratios to the etcd of the same round; ``None`` where there was none, ..."""
    ratio_min: float | None
    """... and the lowest and the highest of these ratios."""
    ratio_max: float | None
    connections: int
    """All of them between one client and the leader."""
    repeats: int
    value_bytes: int
    """Of an encoded put of replog; the keys and values of etcd's are the same."""
    sync_us: float
    """The median time of making 100 bytes durable, taken between the rounds."""

    HEADINGS = (
        "system",
        "in flight",
        "request",
        "per second",
        "best",
        "p50 ms",
        "p99 ms",
        "to etcd",
        "min..max",
        "connections",
        "sync us",
    )

    def cells(self) -> Sequence[str]:
        """The row as people read it."""
        return (
            self.system,
            str(self.clients),
            self.request,
            f"{self.ops_per_second:,.0f}",
            f"{self.ops_per_second_best:,.0f}",
            f"{self.p50_ms:.2f}",
            f"{self.p99_ms:.2f}",
            _cell(self.ratio_to_etcd, ".2f"),
            f"{_cell(self.ratio_min, '.2f')}..{_cell(self.ratio_max, '.2f')}"
            if self.ratio_to_etcd is not None
            else "-",
            str(self.connections),
            f"{self.sync_us:.0f}",
        )


@dataclass(frozen=True, slots=True)
class MicroRow:
    """What one small operation costs."""

    name: str
    microseconds: float
    """The median."""
    microseconds_best: float
    note: str

    HEADINGS = ("what", "us", "best", "note")

    def cells(self) -> Sequence[str]:
        """The row as people read it."""
        return (self.name, f"{self.microseconds:.2f}", f"{self.microseconds_best:.2f}", self.note)


@dataclass(frozen=True, slots=True)
class ProtocolRow:
    """What one event costs one engine, counted in the modelled cluster: no clock is involved."""

    what: str
    engine: str
    messages: float
    kib: float
    ticks: float
    """Until it was over."""
    note: str

    HEADINGS = ("what", "engine", "messages", "KiB", "ticks", "note")

    def cells(self) -> Sequence[str]:
        """The row as people read it."""
        return (
            self.what,
            self.engine,
            f"{self.messages:,.1f}",
            f"{self.kib:,.1f}",
            f"{self.ticks:.1f}",
            self.note,
        )


@dataclass(frozen=True, slots=True)
class StorageRow:
    """What the log on disk costs in one respect."""

    what: str
    value: float
    unit: str
    ratio_to_bare: float | None
    """Beside the bare write and sync of the same bytes; ``None`` where there is no such thing."""
    note: str

    HEADINGS = ("what", "value", "unit", "ratio", "note")

    def cells(self) -> Sequence[str]:
        """The row as people read it."""
        return (
            self.what,
            f"{self.value:,.3f}" if self.value < 1000 else f"{self.value:,.0f}",
            self.unit,
            _cell(self.ratio_to_bare, ".2f"),
            self.note,
        )


@dataclass(frozen=True, slots=True)
class RecoveryRow:
    """What it takes a node to come back, in one respect."""

    what: str
    value: float
    """The median of the repeats."""
    best: float
    unit: str
    budget: str
    """What it should be, as people read it; empty: there is no budget."""
    is_kept: bool | None
    """Whether the best is within the budget; ``None`` without one."""
    note: str

    HEADINGS = ("what", "value", "best", "unit", "budget", "kept", "note")

    def cells(self) -> Sequence[str]:
        """The row as people read it."""
        return (
            self.what,
            f"{self.value:,.2f}" if self.value < 1000 else f"{self.value:,.0f}",
            f"{self.best:,.2f}" if self.best < 1000 else f"{self.best:,.0f}",
            self.unit,
            self.budget or "-",
            {True: "yes", False: "no", None: "-"}[self.is_kept],
            self.note,
        )


class Row(Protocol):
    """What a table is made of."""

    def cells(self) -> Sequence[str]:
        """The row as people read it."""


def throughput_rows(
    measured: Mapping[str, Measured],
    *,
    clients: int,
    value_bytes: int,
    sync_us: float,
    is_durable: bool = True,
) -> list[ThroughputRow]:
    """A row for each contestant; each has the same number of results, in the order of the runs."""
    base = [result.ops_per_second for result in measured[BASE].embedded]
    first_name = next((name for name in measured if name != BASE), BASE)
    first = [result.ops_per_second for result in measured[first_name].embedded]
    rows = []
    for name, results in measured.items():
        speeds = [result.ops_per_second for result in results.embedded]
        ratios = [speed / of_base for speed, of_base in zip(speeds, base, strict=True)]
        to_first = []
        if name not in (BASE, first_name):
            to_first = [speed / of_first for speed, of_first in zip(speeds, first, strict=True)]
        p50_ms = median(result.p50_ms for result in results.embedded)
        network_speed = _median([result.ops_per_second for result in results.network])
        rows.append(
            ThroughputRow(
                engine=name,
                clients=clients,
                ops_per_second=median(speeds),
                ops_per_second_best=max(speeds),
                p50_ms=p50_ms,
                p99_ms=median(result.p99_ms for result in results.embedded),
                p50_in_syncs=p50_ms * 1e3 / sync_us,
                ratio_to_bare=median(speeds) / median(base),
                ratio_min=min(ratios),
                ratio_max=max(ratios),
                ratio_to_first=median(speeds) / median(first) if to_first else None,
                ratio_to_first_min=min(to_first, default=None),
                ratio_to_first_max=max(to_first, default=None),
                network_ops_per_second=network_speed,
                network_p50_ms=_median([result.p50_ms for result in results.network]),
                network_p99_ms=_median([result.p99_ms for result in results.network]),
                network_ratio_to_bare=network_speed and network_speed / median(base),
                repeats=len(speeds),
                value_bytes=value_bytes,
                durable=is_durable,
                sync_us=sync_us,
            )
        )
    return rows


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def to_json(
    rows: Sequence[ThroughputRow]
    | Sequence[ClientsRow]
    | Sequence[OverloadRow]
    | Sequence[EtcdRow]
    | Sequence[MicroRow]
    | Sequence[ProtocolRow]
    | Sequence[StorageRow]
    | Sequence[RecoveryRow],
) -> str:
    """One array of one object per row."""
    return json.dumps(
        [
            {
                name: round(value, 4) if isinstance(value, float) else value
                for name, value in asdict(row).items()
            }
            for row in rows
        ],
        indent=1,
    )


def to_table(headings: Sequence[str], rows: Sequence[Row]) -> str:
    """Aligned columns: the first to the left, numbers to the right."""
    lines = [headings, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if position == 0 else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
