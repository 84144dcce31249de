"""Network clients of replog beside those of etcd: the same requests, in one run.

Every trial has a new cluster of three on loopback, and a process of its own for the client.  The
systems take turns, again and again (etcd, a, b, etcd, a, b, ...), and what counts is the ratio to
the etcd of the same round: machines drift.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, TypeAlias

from replog_bench.cluster import run_network
from replog_bench.etcd_cluster import REQUESTS, Etcd
from replog_bench.etcd_tools import EtcdTools, build_load
from replog_bench.journal import sync_microseconds
from replog_bench.load import LoadResult
from replog_bench.report import EtcdRow
from replog_bench.trial import Trial

Progress: TypeAlias = Callable[[str], None]
Run: TypeAlias = Callable[[Trial, str], LoadResult]
"""One trial of a system with one kind of request."""

ETCD: Final = "etcd"


@dataclass(frozen=True, slots=True)
class EtcdPlan:
    """What is asked of every system."""

    clients: Sequence[int]
    """Requests in flight, one measurement after the other."""
    value_bytes: int
    """Of an encoded put of replog; etcd gets the same key and value."""
    warm_up_seconds: float
    seconds: float
    repeats: int
    etcd_connections: int
    """Over how many connections etcd's requests go; replog's go over one."""
    directory: Path | None

    @contextmanager
    def trial(self, clients: int) -> Iterator[Trial]:
        """A trial in an empty directory, which goes with the block."""
        with tempfile.TemporaryDirectory(prefix="replog-bench-", dir=self.directory) as made:
            yield Trial(
                clients=clients,
                value_bytes=self.value_bytes,
                warm_up_seconds=self.warm_up_seconds,
                seconds=self.seconds,
                directory=Path(made),
            )


def find_systems(
    engines: Sequence[str], tools: EtcdTools | None, plan: EtcdPlan, progress: Progress
) -> dict[str, Run]:
    """etcd, where it is installed, and replog with each of the engines, in this order."""
    systems: dict[str, Run] = {}
    if tools is not None:
        load = build_load(tools, progress)
        systems[ETCD] = Etcd(tools.server, load, plan.etcd_connections).run
    for engine in engines:
        systems[engine] = partial(run_network, engine)
    return systems


def run_etcd_plan(systems: Mapping[str, Run], plan: EtcdPlan, progress: Progress) -> list[EtcdRow]:
    """Measure everything; a row for each number in flight, kind of request and system."""
    rows: list[EtcdRow] = []
    for clients in plan.clients:
        results: dict[str, dict[str, list[LoadResult]]] = {
            kind: {name: [] for name in systems} for kind in REQUESTS
        }
        syncs: list[float] = []
        for repeat in range(plan.repeats):
            with plan.trial(clients) as trial:
                syncs.append(sync_microseconds(trial.directory))
            for kind, found in results.items():
                for name, run in systems.items():
                    progress(
                        f"{name}, {clients} in flight, {kind}, run {repeat + 1} of {plan.repeats}"
                    )
                    with plan.trial(clients) as trial:
                        found[name].append(run(trial, kind))
        for kind, found in results.items():
            rows += [_row(name, clients, kind, found, plan, median(syncs)) for name in systems]
    return rows


def _row(
    name: str,
    clients: int,
    kind: str,
    results: Mapping[str, Sequence[LoadResult]],
    plan: EtcdPlan,
    sync_us: float,
) -> EtcdRow:
    found = results[name]
    ratios = [
        each.ops_per_second / of_etcd.ops_per_second
        for each, of_etcd in zip(found, results.get(ETCD, ()), strict=False)
    ]
    return EtcdRow(
        system=name,
        clients=clients,
        request=kind,
        ops_per_second=median(each.ops_per_second for each in found),
        ops_per_second_best=max(each.ops_per_second for each in found),
        p50_ms=median(each.p50_ms for each in found),
        p99_ms=median(each.p99_ms for each in found),
        ratio_to_etcd=median(ratios) if ratios else None,
        ratio_min=min(ratios, default=None),
        ratio_max=max(ratios, default=None),
        connections=min(clients, plan.etcd_connections) if name == ETCD else 1,
        repeats=len(found),
        value_bytes=plan.value_bytes,
        sync_us=sync_us,
    )
