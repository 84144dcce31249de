"""What network clients are served with: puts, puts in a session, linearizable reads.

Each is measured with the same number of requests in flight, over one connection to the leader of a
new cluster of three, in turn, again and again; and is compared with the puts of the same repeat,
because machines drift.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from replog_bench.cluster import run_network
from replog_bench.load import LoadResult
from replog_bench.network import KINDS
from replog_bench.report import ClientsRow
from replog_bench.trial import Trial


@dataclass(frozen=True, slots=True)
class ClientsPlan:
    """What is asked."""

    engines: Sequence[str]
    clients: Sequence[int]
    """Requests in flight, one measurement after the other."""
    value_bytes: int
    warm_up_seconds: float
    seconds: float
    repeats: int
    directory: Path | None


def run_clients_plan(plan: ClientsPlan, progress: Callable[[str], None]) -> list[ClientsRow]:
    """Measure everything; a row for each engine, number in flight and kind of request."""
    rows: list[ClientsRow] = []
    for engine in plan.engines:
        for clients in plan.clients:
            results: dict[str, list[LoadResult]] = {kind: [] for kind in KINDS}
            for repeat in range(plan.repeats):
                for kind, found in results.items():
                    progress(f"{engine}, {clients} in flight, {kind}, run {repeat + 1}")
                    found.append(_run_trial(plan, engine, clients, kind))
            rows += [_row(engine, clients, kind, results) for kind in KINDS]
    return rows


def _run_trial(plan: ClientsPlan, engine: str, clients: int, kind: str) -> LoadResult:
    with tempfile.TemporaryDirectory(prefix="replog-bench-", dir=plan.directory) as made:
        trial = Trial(
            clients=clients,
            value_bytes=plan.value_bytes,
            warm_up_seconds=plan.warm_up_seconds,
            seconds=plan.seconds,
            directory=Path(made),
        )
        return run_network(engine, trial, kind)


def _row(engine: str, clients: int, kind: str, results: dict[str, list[LoadResult]]) -> ClientsRow:
    found = results[kind]
    ratios = [
        each.ops_per_second / put.ops_per_second
        for each, put in zip(found, results[KINDS[0]], strict=True)
    ]
    return ClientsRow(
        engine=engine,
        clients=clients,
        request=kind,
        ops_per_second=median(each.ops_per_second for each in found),
        p50_ms=median(each.p50_ms for each in found),
        p99_ms=median(each.p99_ms for each in found),
        ratio_to_put=median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        repeats=len(found),
    )
