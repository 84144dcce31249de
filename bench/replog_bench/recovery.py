"""What it takes a node to come back: a restart, a catch-up over the log, a snapshot from a peer;
and the memory that a long log and a large snapshot take meanwhile.

Three processes on loopback, as in :mod:`replog_bench.cluster`, with the log on disk and every sync.
A scenario founds a cluster, leaves one node behind, fills the others and lets the one come on:

=============  ===================================================================================
``long-log``   nothing is trimmed: the memory of the filled nodes, the catch-up of the one that was
               away, and its restart with everything in its log
``default``    the same with the default limits, which trim the log; only the restart counts
``transfer``   the log is trimmed behind a snapshot of a machine on its own disk, and the one that
               was away fetches that; before, the disk alone writes as much
``cut``        the same, but the receiver is killed in the middle and started again, and later the
               node that it fetches from
=============  ===================================================================================

A node is ended as by a crash, and what the filling wrote is on the disk before anything is timed.
Times begin where the parent starts the process of a node (restart), where the node knows its leader
(catch-up), where the first chunk has come (transfer).

The machine of the long log goes round over a few thousand keys, so what grows is not the machine.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import Final, TypeAlias

from replog.config import Config, local_config
from replog.config_text import config_toml
from replog.founding import found_cluster, founding_path
from replog.limits import MIB, Limits
from replog.types import NodeId
from replog_bench.processes import Child, ChildFailed, Line, Processes
from replog_bench.report import RecoveryRow

Progress: TypeAlias = Callable[[str], None]
Figures: TypeAlias = Mapping[str, float]
"""What one run of a scenario measured, by the name of the figure."""

VALUE_BYTES: Final = 64
LARGE_VALUE_BYTES: Final = 256 * 1024
IN_FLIGHT: Final = 1024
LARGE_IN_FLIGHT: Final = 32
READY_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 0.01
"""How often the parent looks how far a transfer came."""

BARE_SYNC_BYTES: Final = 8 * MIB

UNREACHED: Final = 1 << 40
"""A limit that no run reaches."""
KEEP_ALL: Final = Limits(
    snapshot_entries=UNREACHED, snapshot_log_bytes=UNREACHED, trim_margin_entries=UNREACHED
)
KEEP_NOTHING: Final = Limits(
    snapshot_entries=UNREACHED,
    snapshot_log_bytes=UNREACHED,
    trim_margin_entries=1,
    snapshot_bytes_per_second_max=1 << 40,
)
"""Snapshots are taken when the harness asks for them, and sent as fast as they can be."""


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """What to measure."""

    engine: str
    entries: int
    """Of 64 bytes, in the long log."""
    snapshot_bytes: int
    """About how large the machine is whose snapshot travels."""
    repeats: int
    scenarios: Sequence[str]
    seconds_max: float
    """How long one step of a scenario may take."""
    directory: Path | None


@dataclass(slots=True)
class Cluster:
    """Three nodes, some of which run."""

    config: Config
    path: Path
    plan: RecoveryPlan
    processes: Processes
    children: dict[NodeId, Child] = field(default_factory=dict)

    def start(self, node_id: NodeId, *, is_watching: bool = False) -> Child:
        """Start a node; it says when it is open."""
        child = self.processes.start(
            f"{self.plan.engine} node {node_id}",
            "replog_bench.recovery_node",
            (
                *("--config", str(self.path), "--node", str(node_id)),
                *("--lifetime-seconds", str(8 * self.plan.seconds_max)),
                *(("--watch",) if is_watching else ()),
            ),
        )
        self.children[node_id] = child
        return child

    def kill(self, node_id: NodeId) -> None:
        """End a node as a crash would."""
        self.processes.kill(self.children.pop(node_id))

    def ask(self, node_id: NodeId, do: str, **order: object) -> Line:
        """Tell a node something, and hear its answer."""
        self.children[node_id].tell(do=do, **order)
        return self.children[node_id].line(self.plan.seconds_max)

    def number(self, node_id: NodeId, key: str) -> float:
        """One figure of a node's picture."""
        return float(str(self.ask(node_id, "picture")[key]))


@contextmanager
def running(plan: RecoveryPlan, machine: str, limits: Limits) -> Iterator[Cluster]:
    """Found a cluster and run it until all of its nodes know a leader."""
    with (
        tempfile.TemporaryDirectory(prefix="replog-bench-", dir=plan.directory) as made,
        Processes() as processes,
    ):
        directory = Path(made)
        config = local_config(directory, engine=plan.engine, state_machine=machine, limits=limits)
        path = directory / "cluster.toml"
        path.write_text(config_toml(config), encoding="utf-8")
        found_cluster(config, founding_path(config, path))
        cluster = Cluster(config, path, plan, processes)
        for node in config.nodes:
            cluster.start(node.id)
        for child in cluster.children.values():
            child.line(READY_SECONDS)
        cluster.children[config.nodes[0].id].tell(do="campaign")
        yield cluster


def leave_one(cluster: Cluster) -> tuple[NodeId, NodeId, NodeId]:
    """End a node that does not lead: (the leader, its follower, who is away)."""
    for node_id in cluster.children:
        leader_id = int(str(cluster.ask(node_id, "follow")["leader"]))
    follower_id, away_id = (node_id for node_id in cluster.children if node_id != leader_id)
    cluster.kill(away_id)
    return leader_id, follower_id, away_id


def fill(cluster: Cluster, leader_id: NodeId, follower_id: NodeId, *, is_large: bool) -> int:
    """Fill two nodes, and wait until both have applied everything; the last index."""
    plan = cluster.plan
    cluster.ask(follower_id, "mark")
    filled = cluster.ask(
        leader_id,
        "fill",
        entries=max(1, plan.snapshot_bytes // LARGE_VALUE_BYTES) if is_large else plan.entries,
        value_bytes=LARGE_VALUE_BYTES if is_large else VALUE_BYTES,
        in_flight=LARGE_IN_FLIGHT if is_large else IN_FLIGHT,
        is_distinct=is_large,
    )
    index = int(str(filled["index"]))
    cluster.ask(follower_id, "reach", index=index)
    return index


def settle_disk() -> None:
    """Have everything on the disk that the filling of the cluster left in memory: what is written
    from now on waits for nothing else."""
    os.sync()


def come_on(cluster: Cluster, node_id: NodeId, index: int) -> tuple[float, float]:
    """Start a node and wait until it has applied everything: how many seconds that took since it
    was started, and since it knew its leader."""
    settle_disk()
    began = monotonic()
    child = cluster.start(node_id)
    child.line(cluster.plan.seconds_max)
    line = cluster.ask(node_id, "reach", index=index)
    reached_at = float(str(line["reached_at"]))
    return reached_at - began, reached_at - float(str(line["followed_at"]))


# -- the scenarios --


def run_long_log(plan: RecoveryPlan) -> Figures:
    """A log of which nothing is trimmed."""
    with running(plan, "kv", KEEP_ALL) as cluster:
        leader_id, follower_id, away_id = leave_one(cluster)
        index = fill(cluster, leader_id, follower_id, is_large=False)
        figures = {
            "leader grows": cluster.number(leader_id, "grown_bytes") / MIB,
            "follower grows": cluster.number(follower_id, "grown_bytes") / MIB,
        }
        _, seconds = come_on(cluster, away_id, index)
        figures["catch-up"] = plan.entries / seconds
        figures["caught-up node grows"] = cluster.number(away_id, "grown_bytes") / MIB
        cluster.kill(away_id)
        figures["restart, whole log"], _ = come_on(cluster, away_id, index)
        return figures


def run_default(plan: RecoveryPlan) -> Figures:
    """The default limits."""
    with running(plan, "kv", Limits()) as cluster:
        leader_id, follower_id, away_id = leave_one(cluster)
        index = fill(cluster, leader_id, follower_id, is_large=False)
        come_on(cluster, away_id, index)  # or no quorum is left, and the restart has an election
        cluster.kill(follower_id)
        seconds, _ = come_on(cluster, follower_id, index)
        return {"restart, default limits": seconds}


@contextmanager
def _snapshotted(plan: RecoveryPlan) -> Iterator[tuple[Cluster, NodeId, tuple[NodeId, ...], int]]:
    """A cluster whose nodes have a large snapshot and no log, but for one that has neither: with
    that one, those, and the size of the snapshot."""
    with running(plan, "sqlite-kv", KEEP_NOTHING) as cluster:
        leader_id, follower_id, away_id = leave_one(cluster)
        filled = (leader_id, follower_id)
        fill(cluster, leader_id, follower_id, is_large=True)
        sizes = [cluster.ask(node_id, "snapshot")["size_bytes"] for node_id in filled]
        settle_disk()
        for node_id in filled:
            cluster.ask(node_id, "mark")
        yield cluster, away_id, filled, int(str(sizes[0]))


def _wait_for_transfer(cluster: Cluster, node_id: NodeId, key: str, least: float) -> Line:
    """Wait until a figure of a node's picture is as high as ``least``."""
    deadline = monotonic() + cluster.plan.seconds_max
    while float(str((line := cluster.ask(node_id, "picture"))[key])) < least:
        if monotonic() > deadline:
            raise ChildFailed(
                f"node {node_id} says {key} = {line[key]} after {cluster.plan.seconds_max:g} s, "
                f"and {least:,.0f} was waited for"
            )
        sleep(LOOK_SECONDS)
    return line


def write_bare(path: Path, size_bytes: int) -> float:
    """Write a file as a snapshot is received, a MiB at a time and synced every few, but without a
    network and a check; how many seconds that took.

    The file stays: memory that is given back is used again by whoever comes next, at less cost.
    """
    piece = os.urandom(MIB)
    began = monotonic()
    with path.open("wb", buffering=0) as file:
        for at in range(0, size_bytes, MIB):
            file.write(piece[: size_bytes - at])
            if at % BARE_SYNC_BYTES == 0:
                os.fdatasync(file.fileno())
        os.fdatasync(file.fileno())
    return monotonic() - began


def run_transfer(plan: RecoveryPlan) -> Figures:
    """A snapshot that nothing cuts."""
    with _snapshotted(plan) as (cluster, away_id, sources, size_bytes):
        bare_seconds = write_bare(cluster.path.parent / "bare", size_bytes)
        cluster.start(away_id, is_watching=True).line(READY_SECONDS)
        line = cluster.ask(away_id, "installed")
        first, durable, installed = (
            float(str(line[key])) for key in ("first_chunk_at", "durable_at", "installed_at")
        )
        return {
            "bare write and sync": size_bytes / bare_seconds / 1e6,
            "snapshot durable": size_bytes / (durable - first) / 1e6,
            "snapshot durable, of bare": bare_seconds / (durable - first),
            "snapshot installed": size_bytes / (installed - first) / 1e6,
            "receiver grows": float(str(line["grown_bytes"])) / MIB,
            "sender grows": max(cluster.number(each, "grown_bytes") for each in sources) / MIB,
        }


def run_cut(plan: RecoveryPlan) -> Figures:
    """A snapshot whose receiver is killed, and then its source."""
    with _snapshotted(plan) as (cluster, away_id, sources, size_bytes):
        cluster.start(away_id).line(READY_SECONDS)
        line = _wait_for_transfer(cluster, away_id, "received_bytes", size_bytes / 3)
        first_grown_bytes = float(str(line["grown_bytes"]))
        cluster.kill(away_id)
        sent_bytes = sum(cluster.number(each, "sent_bytes") for each in sources)
        cluster.start(away_id, is_watching=True).line(READY_SECONDS)
        line = _wait_for_transfer(cluster, away_id, "received_bytes", size_bytes / 3)
        source_id = int(str(line["source"]))
        grown = [cluster.number(each, "grown_bytes") for each in sources]
        if source_id in sources:  # else everything has come already
            cluster.kill(source_id)
            cluster.start(source_id).line(READY_SECONDS)
        line = cluster.ask(away_id, "installed")
        grown += [cluster.number(each, "grown_bytes") for each in sources]
        again_bytes = sent_bytes + float(str(line["received_bytes"])) - size_bytes
        return {
            "cut: sent again": again_bytes / 1e6,
            "cut: receiver grows": max(first_grown_bytes, float(str(line["grown_bytes"]))) / MIB,
            "cut: sender grows": max(grown) / MIB,
        }


SCENARIOS: Final[Mapping[str, Callable[[RecoveryPlan], Figures]]] = {
    "long-log": run_long_log,
    "default": run_default,
    "transfer": run_transfer,
    "cut": run_cut,
}


# -- the rows --


@dataclass(frozen=True, slots=True)
class Budget:
    """What a figure is, and what it should be."""

    unit: str
    at_most: float | None
    at_least: float | None
    note: str


BUDGETS: Final[Mapping[str, Budget]] = {
    "restart, whole log": Budget("s", 5, None, "from the start of the process; nothing trimmed"),
    "restart, default limits": Budget("s", 5, None, "the same; a snapshot may hold most of it"),
    "catch-up": Budget("entries/s", None, 200_000, "from knowing the leader to applied"),
    "leader grows": Budget("MiB", 64, None, "peak while the log was filled"),
    "follower grows": Budget("MiB", 64, None, "peak while the log was filled"),
    "caught-up node grows": Budget("MiB", 64, None, "peak while it caught up"),
    "bare write and sync": Budget("MB/s", None, None, "a file of the same size, before that"),
    "snapshot durable": Budget("MB/s", None, 200, "from the first chunk to its name"),
    "snapshot durable, of bare": Budget("x", None, None, "the ratio of the two"),
    "snapshot installed": Budget("MB/s", None, None, "from the first chunk to the machine"),
    "receiver grows": Budget("MiB", 32, None, "peak, installing as well"),
    "sender grows": Budget("MiB", 32, None, "peak"),
    "cut: sent again": Budget("MB", None, None, "receiver killed, then its source"),
    "cut: receiver grows": Budget("MiB", 32, None, "peak of both its runs, installing as well"),
    "cut: sender grows": Budget("MiB", 32, None, "peak"),
}


def run_recovery(plan: RecoveryPlan, progress: Progress) -> list[RecoveryRow]:
    """Run the scenarios in turn, again and again; a row per figure."""
    measured: dict[str, list[float]] = {}
    for repeat in range(plan.repeats):
        for name in plan.scenarios:
            progress(f"{name}, run {repeat + 1} of {plan.repeats}")
            for what, value in SCENARIOS[name](plan).items():
                measured.setdefault(what, []).append(value)
    return [recovery_row(what, values) for what, values in measured.items()]


def recovery_row(what: str, values: Sequence[float]) -> RecoveryRow:
    """The row of one figure."""
    budget = BUDGETS[what]
    if budget.at_least is not None:
        best, said, is_kept = max(values), f">= {budget.at_least:,}", max(values) >= budget.at_least
        return RecoveryRow(what, median(values), best, budget.unit, said, is_kept, budget.note)
    best = max(values) if budget.unit in ("MB/s", "x") else min(values)
    if budget.at_most is None:
        return RecoveryRow(what, median(values), best, budget.unit, "", None, budget.note)
    said, is_kept = f"<= {budget.at_most:,}", best <= budget.at_most
    return RecoveryRow(what, median(values), best, budget.unit, said, is_kept, budget.note)
