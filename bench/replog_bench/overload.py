"""What a leader does under a multiple of the load that it can take.

Each trial is one new cluster of three.  Its leader is first measured with a closed loop (the peak),
then offered ``factor`` times as much by an open loop, and then measured with the closed loop again,
for machines drift: the ratio is to the mean of the two.  Trials are with the key-value store as it
is and with one that is slow; and with that once more without the limit on the gap between what is
committed and what is applied, to show what it is good for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any, Final

from replog.limits import MIB, Limits
from replog_bench.cluster import running
from replog_bench.processes import ChildFailed
from replog_bench.report import OverloadRow
from replog_bench.trial import END_SECONDS, Trial

WITH_LIMITS: Final = Limits(
    unapplied_entries_max=4096,
    unapplied_bytes_max=16 * MIB,
    uncommitted_bytes_max=16 * MIB,
)
"""What the overloaded leaders have: less than by default, for the runs are short."""

WITHOUT_GAP: Final = replace(
    WITH_LIMITS, unapplied_entries_max=1 << 40, unapplied_bytes_max=1 << 40
)

SLOW_ENTRIES: Final = 64
"""What a leader with the slow machine applies in one turn: it must not be silent for long."""

DRAIN_SECONDS: Final = 30.0
"""How long what was taken may go on after the load has ended."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to be overloaded."""

    machine: str
    apply_us: int
    limits: Limits

    @property
    def has_gap_limit(self) -> bool:
        """Whether the gap between what is committed and what is applied is bounded."""
        return self.limits.unapplied_entries_max < WITHOUT_GAP.unapplied_entries_max

    @property
    def memory_bound_bytes(self) -> int | None:
        """The bytes that the limits let a leader hold; ``None``: there is no bound."""
        limits = self.limits
        if not self.has_gap_limit:
            return None
        # Submitted, proposed and not applied, and applied.
        submitted = limits.uncommitted_bytes_max
        return submitted + limits.unapplied_bytes_max + limits.log_cache_bytes_max


@dataclass(frozen=True, slots=True)
class OverloadPlan:
    """What is asked."""

    engines: Sequence[str]
    clients: int
    """In flight in the closed loops."""
    value_bytes: int
    warm_up_seconds: float
    closed_seconds: float
    seconds: float
    """Of the overload."""
    factor: float
    patience_seconds: float
    apply_us: int
    """How much longer the slow machine takes for a command."""
    repeats: int
    directory: Path | None

    def kinds(self) -> Sequence[Kind]:
        """What each engine is measured with."""
        return (
            Kind("kv", 0, WITH_LIMITS),
            Kind("slow kv", self.apply_us, replace(WITH_LIMITS, apply_entries_max=SLOW_ENTRIES)),
            Kind("slow kv", self.apply_us, replace(WITHOUT_GAP, apply_entries_max=SLOW_ENTRIES)),
        )


def run_overload_plan(plan: OverloadPlan, progress: Callable[[str], None]) -> list[OverloadRow]:
    """Measure everything; a row for each engine and kind."""
    rows: list[OverloadRow] = []
    for engine in plan.engines:
        for kind in plan.kinds():
            found = []
            for repeat in range(plan.repeats):
                limited = "" if kind.has_gap_limit else ", no limit on the gap"
                progress(f"{engine}, {kind.machine}{limited}, run {repeat + 1} of {plan.repeats}")
                found.append(_run_trial(plan, engine, kind))
            rows.append(_row(plan, engine, kind, found))
    return rows


def _run_trial(plan: OverloadPlan, engine: str, kind: Kind) -> dict[str, Any]:
    """What the leader says of one trial; raises :class:`ChildFailed` where something else failed
    than what was refused."""
    found = _heard(plan, engine, kind)
    for closed in (found["before"], found["after"]):
        if closed["errors"] or not closed["operations"]:
            raise ChildFailed(f"the closed loop failed: {closed['first_error'] or 'nothing done'}")
    if found["overload"]["other_errors"]:
        raise ChildFailed(f"a command failed: {found['overload']['first_error']}")
    return found


def _heard(plan: OverloadPlan, engine: str, kind: Kind) -> dict[str, Any]:
    """What the leader of a new cluster says when it was overloaded."""
    closed_seconds = 2 * (plan.warm_up_seconds + plan.closed_seconds + END_SECONDS)
    with tempfile.TemporaryDirectory(prefix="replog-bench-", dir=plan.directory) as made:
        trial = Trial(
            clients=plan.clients,
            value_bytes=plan.value_bytes,
            warm_up_seconds=plan.warm_up_seconds,
            seconds=closed_seconds + plan.seconds + DRAIN_SECONDS,
            directory=Path(made),
        )
        slow = ("--apply-us", str(kind.apply_us))
        with running(
            engine, trial, limits=kind.limits, module="replog_bench.overload_node", more=slow
        ) as cluster:
            cluster.leader.tell(
                do="overload",
                clients=plan.clients,
                value_bytes=plan.value_bytes,
                warm_up_seconds=plan.warm_up_seconds,
                closed_seconds=plan.closed_seconds,
                seconds=plan.seconds,
                factor=plan.factor,
                patience_seconds=plan.patience_seconds,
            )
            deadline = monotonic() + trial.load_seconds
            while "overload" not in (line := cluster.leader.line(deadline - monotonic())):
                pass  # A change of the leader shows in the result, as failed commands.
            return dict(line)


def _row(plan: OverloadPlan, engine: str, kind: Kind, found: list[dict[str, Any]]) -> OverloadRow:
    peaks = [
        (each["before"]["ops_per_second"] + each["after"]["ops_per_second"]) / 2 for each in found
    ]
    overloads = [each["overload"] for each in found]
    done = [each["done_per_second"] for each in overloads]
    ratios = [each / peak for each, peak in zip(done, peaks, strict=True)]
    bound = kind.memory_bound_bytes
    offered = [each["offered_per_second"] for each in found]
    return OverloadRow(
        engine=engine,
        machine=kind.machine,
        gap_limit=kind.limits.unapplied_entries_max if kind.has_gap_limit else None,
        clients=plan.clients,
        peak_per_second=median(peaks),
        peak_p99_ms=median(each["before"]["p99_ms"] for each in found),
        offered_to_peak=median(each / peak for each, peak in zip(offered, peaks, strict=True)),
        done_per_second=median(done),
        ratio_to_peak=median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        refused_share=median(each["refused"] / max(1, each["asked"]) for each in overloads),
        given_up_share=median(each["given_up"] / max(1, each["offered"]) for each in overloads),
        p50_ms=median(each["p50_ms"] for each in overloads),
        p99_ms=median(each["p99_ms"] for each in overloads),
        gap_max=max(each["gap_max"] for each in overloads),
        grown_mib=max(each["grown_bytes"] for each in found) / MIB,
        memory_bound_mib=None if bound is None else bound / MIB,
        repeats=len(found),
    )
