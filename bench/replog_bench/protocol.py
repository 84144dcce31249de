"""What events cost by protocol: messages, bytes and ticks in the modelled cluster.

Nothing here depends on the machine: real replicas run over :class:`replog.testing.Cluster`, every
message is encoded as it would be on the wire, and what left is counted.  So a difference between
two engines is one of their protocols, and the same run gives the same figures everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, quantiles
from typing import TypeAlias

from replog import plugins
from replog.engine import EnginePlugin
from replog.limits import Limits
from replog.node_messages import NODE_TYPES
from replog.testing.checks import Check, Nodes
from replog.testing.cluster import Cluster
from replog.testing.faults import Faults
from replog.testing.network import Flight
from replog.testing.nodes import ClusterNode, Outcome, Proposal
from replog.types import NO_NODE, NodeId, Role
from replog.wire import MessageCodec
from replog_bench.report import ProtocolRow

PAYLOAD = bytes(64)
BACKLOGS = (0, 100, 1000)
LOSS_CHANCE = 0.05
PER_TICK = 5
WINDOW = Limits(in_flight_messages_max=100_000)
"""Wide enough that a backlog of single entries is under way at once."""
COLD_STARTS = 50
SETTLE_TICKS = 400

Progress: TypeAlias = Callable[[str], None]
Measure: TypeAlias = Callable[[EnginePlugin], list[ProtocolRow]]


class Meter(Check):
    """Counts what leaves the nodes; a check of the cluster, since those see every message."""

    def __init__(self, plugin: EnginePlugin) -> None:
        self._codec = MessageCodec(plugin.messages, Limits())
        self.messages = 0
        self.size_bytes = 0
        self.candidates: dict[int, NodeId] = {}
        """The terms in which a node asked to lead."""

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Count a message, if it is the engine's."""
        if type(flight.message) in NODE_TYPES:
            return ""
        self.messages += 1
        self.size_bytes += len(self._codec.encode(flight.message))
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Note who asks to lead."""
        engine = node.replica.engine
        if engine.soft_state.role in (Role.CANDIDATE, Role.LEADER):
            self.candidates[engine.term] = node.node_id
        return ""

    def reset(self) -> None:
        """Begin to count anew."""
        self.messages = self.size_bytes = 0
        self.candidates = {}

    def row(self, what: str, engine: str, ticks: float, note: str) -> ProtocolRow:
        """What was counted."""
        return ProtocolRow(what, engine, self.messages, self.size_bytes / 1024, ticks, note)


def metered(plugin: EnginePlugin, node_count: int = 3, seed: int = 0) -> tuple[Cluster, Meter]:
    """A cluster, and what counts its messages."""
    meter = Meter(plugin)
    cluster = Cluster(plugin, node_count=node_count, seed=seed, limits=WINDOW, checks=(meter,))
    return cluster, meter


def led(plugin: EnginePlugin, seed: int = 0) -> tuple[Cluster, Meter]:
    """The same with node 1 as the leader."""
    cluster, meter = metered(plugin, seed=seed)
    cluster.campaign(1)
    cluster.settle()
    cluster.tick(4)
    return cluster, meter


def steady_state(plugin: EnginePlugin) -> list[ProtocolRow]:
    """One command at a time, on a good day."""
    cluster, meter = led(plugin)
    meter.reset()
    count = 100
    for _ in range(count):
        cluster.propose(1, PAYLOAD)
        cluster.settle()
    what, note = "one command", "64 bytes, 3 nodes, the notice of the commit included"
    messages, kib = meter.messages / count, meter.size_bytes / count / 1024
    return [ProtocolRow(what, plugin.name, messages, kib, 0.0, note)]


def take_over(plugin: EnginePlugin) -> list[ProtocolRow]:
    """A leader dies while so many entries are on the others' disks that nobody knows as committed;
    until its successor has committed and applied them all."""
    rows = []
    for backlog in BACKLOGS:
        cluster, meter = led(plugin)
        cluster.hold(is_to_leader)
        for _ in range(backlog):
            cluster.propose(1, PAYLOAD)
        cluster.settle()
        cluster.crash(1)
        cluster.network.held.clear()
        cluster.release()
        # Long enough that nobody hears the old leader, too short for a timeout of their own.
        cluster.tick(9)
        meter.reset()
        cluster.tick()
        start = cluster.now
        cluster.campaign(2)
        cluster.settle()
        cluster.run_until(lambda: is_applied(cluster, backlog), SETTLE_TICKS)  # noqa: B023
        note = "from the campaign until a survivor has applied all of it"
        rows.append(meter.row(f"take-over, {backlog} open", plugin.name, cluster.now - start, note))
    return rows


def is_to_leader(flight: Flight) -> bool:
    """Whether a message goes to node 1."""
    return flight.to == 1


def is_applied(cluster: Cluster, count: int) -> bool:
    """Whether a leader has applied so many commands."""
    leader_id = cluster.leader()
    if leader_id == NO_NODE:
        return False
    return sum(1 for entry in cluster.applied(leader_id) if entry.data) >= count


def loss(plugin: EnginePlugin) -> list[ProtocolRow]:
    """Five proposals per tick while one message in twenty is lost; how long each takes."""
    waits: list[int] = []
    messages, size_bytes = 0, 0
    for seed in range(5):
        cluster, meter = led(plugin, seed)
        meter.reset()
        open_proposals: list[tuple[int, Proposal]] = []
        for _ in range(400):
            leader_id = cluster.leader()
            if leader_id != NO_NODE:
                open_proposals += [
                    (cluster.now, cluster.propose(leader_id, PAYLOAD)) for _ in range(PER_TICK)
                ]
            cluster.run(1, Faults(drop_chance=LOSS_CHANCE))
            waits += [
                cluster.now - start - 1
                for start, proposal in open_proposals
                if proposal.outcome is Outcome.DONE
            ]
            open_proposals = [
                (start, proposal)
                for start, proposal in open_proposals
                if proposal.outcome is Outcome.PENDING
            ]
        messages += meter.messages
        size_bytes += meter.size_bytes
    p99 = quantiles(waits, n=100)[98]
    late = sum(1 for wait in waits if wait) / len(waits)
    note = f"ticks: p99 of the wait; {late:.2%} wait at all, the longest {max(waits)}"
    count = len(waits)
    what = f"a command, {LOSS_CHANCE:.0%} loss"
    kib = size_bytes / count / 1024
    return [ProtocolRow(what, plugin.name, messages / count, kib, p99, note)]


def catch_up(plugin: EnginePlugin) -> list[ProtocolRow]:
    """A follower comes back that missed 1,000 entries; until it has applied them."""
    cluster, meter = led(plugin)
    cluster.crash(3)
    for _ in range(1000):
        cluster.propose(1, PAYLOAD)
    cluster.settle()
    cluster.restart(3)
    meter.reset()
    start = cluster.now
    cluster.run_until(cluster.is_converged, SETTLE_TICKS)
    return [meter.row("catch-up, 1000 missed", plugin.name, cluster.now - start, "same leader")]


def diverged(plugin: EnginePlugin) -> list[ProtocolRow]:
    """An old leader comes back with 100 entries of its own that nobody else has."""
    cluster, meter = led(plugin)
    cluster.isolate(1)
    for _ in range(100):
        cluster.propose(1, PAYLOAD)
    cluster.settle()
    cluster.run_until(lambda: cluster.leader() in (2, 3), SETTLE_TICKS)
    for _ in range(100):
        cluster.propose(cluster.leader(), PAYLOAD)
    cluster.settle()
    cluster.tick(4)
    meter.reset()
    start = cluster.now
    cluster.heal()
    cluster.run_until(cluster.is_converged, SETTLE_TICKS)
    return [
        meter.row("repair, 100 diverged", plugin.name, cluster.now - start, "heartbeats included")
    ]


def cold_start(plugin: EnginePlugin) -> list[ProtocolRow]:
    """Five nodes start at once; until one leads."""
    messages, size_bytes, ticks, elections = 0, 0, [], 0
    for seed in range(COLD_STARTS):
        cluster, meter = metered(plugin, 5, seed)
        cluster.run_until(lambda: cluster.leader() != NO_NODE, SETTLE_TICKS)  # noqa: B023
        messages += meter.messages
        size_bytes += meter.size_bytes
        ticks.append(cluster.now)
        elections += len(meter.candidates)
    note = f"5 nodes, {COLD_STARTS} seeds; {elections / COLD_STARTS:.2f} elections on average"
    kib = size_bytes / COLD_STARTS / 1024
    return [ProtocolRow("cold start", plugin.name, messages / COLD_STARTS, kib, mean(ticks), note)]


MEASURES: tuple[Measure, ...] = (
    steady_state,
    take_over,
    loss,
    catch_up,
    diverged,
    cold_start,
)


def run_protocol(
    engines: Sequence[str], progress: Progress, measures: Sequence[Measure] = MEASURES
) -> list[ProtocolRow]:
    """Every measure with every engine, the engines beside each other.

    Raises :class:`~replog.errors.PluginError` for an engine that is not installed.
    """
    found = [plugins.find_engine(name) for name in engines]
    rows: list[ProtocolRow] = []
    for measure in measures:
        measured = []
        for plugin in found:
            progress(f"{measure.__name__} with {plugin.name}")
            measured.append(measure(plugin))
        rows += [row for group in zip(*measured, strict=True) for row in group]
    return rows
