"""Leases in the simulator: clocks that drift, readers that trust them, and who judges both.

The clocks run as far from real time as the cluster's nodes were told that they may, each at a rate
of its own.  Readers go to whoever takes itself for the leader, deposed or not, and above all to a
process that has just been let go on after a pause, before it hears or counts anything.

What must hold is stronger than that no reader is told the past (I22): when somebody is seen to
lead, no lease of a lower term may run any more, by its holder's own clock (I25).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final

from replog.leases import LeaseTerms
from replog.limits import Limits
from replog.testing.chance import Source
from replog.testing.checks import Check, Nodes
from replog.testing.goals import Goals
from replog.testing.nodes import ClusterNode, Outcome
from replog.testing.queries import Query
from replog.types import NodeId, ReadLevel, Role, Term

if TYPE_CHECKING:
    from replog.testing.cluster import Cluster
    from replog.testing.registers import Workload

LEASES_CHANCE: Final = 0.7
"""How likely it is that a run has leases, if they fit its heartbeats."""

RATE: Final = 100
"""Of a clock that is right: so many hundredths of real time."""


def draw_lease(source: Source, heartbeat_ticks: int, election_ticks_min: int) -> tuple[int, int]:
    """The milliseconds of a lease, 0 for none, and the bound on the clocks in per cent: in most of
    the runs in which heartbeats are frequent enough, with clocks that drift as far as that lets."""
    is_wanted, drift_percent = source.random() < LEASES_CHANCE, source.choice((0, 10, 30))
    limits = Limits()
    lease_ms = (election_ticks_min - 1) * limits.tick_ms
    terms = LeaseTerms.of(lease_ms, drift_percent)
    fits = not terms.problems(heartbeat_ticks, election_ticks_min, limits)
    return (lease_ms if is_wanted and fits else 0), drift_percent


def draw_rates(random: Random, drift_percent: int, nodes: Nodes) -> None:
    """Let every clock be as fast, as slow or as right as it may be."""
    for node in nodes.values():
        node.lease_rate = RATE + random.choice((-drift_percent, 0, drift_percent))


class LeaseReaders:
    """Clients that read by lease, where there are leases."""

    def __init__(
        self,
        random: Random,
        cluster: Cluster,
        workload: Workload,
        first_client: int,
        drift_percent: int | None,
    ) -> None:
        """The clients are numbered from ``first_client`` on; ``drift_percent`` says how far the
        clocks may drift (``None``: nobody reads by lease)."""
        self._random = random
        self._cluster = cluster
        self._workload = workload
        self._first_client = first_client
        self._queries: list[Query | None] = []
        if drift_percent is not None:
            draw_rates(random, drift_percent, cluster.nodes)
            self._queries = [None] * random.choice((1, 2))
        cluster.driver.handle_resumed = self.handle_resumed

    def tick(self) -> None:
        """Each client that waits for nothing asks somebody that takes itself for the leader."""
        for reader, last in enumerate(self._queries):
            guess = self._random.random()
            leaders = [node for node in self._cluster.nodes.values() if _leads(node)]
            if leaders and (last is None or last.outcome is not Outcome.PENDING):
                self._read(reader, leaders[int(guess * 1000) % len(leaders)])

    def handle_resumed(self, node: ClusterNode) -> None:
        """A process goes on after a pause: who is first asks before it knows of that."""
        if self._queries and _leads(node):
            self._read(0, node)

    def _read(self, reader: int, node: ClusterNode) -> None:
        payload = self._workload.draw_query(self._random, len(self._cluster.proposals) + 1)
        if payload:
            client = self._first_client + reader
            level = ReadLevel.LEASE
            self._queries[reader] = self._cluster.query(node.node_id, payload, level, 0, client)


def _leads(node: ClusterNode) -> bool:
    return node.is_running and node.replica.engine.soft_state.role is Role.LEADER


class LeaseWatch(Check):
    """I25, and the goal that a lease ended by the clock before a rival led."""

    def __init__(self, goals: Goals, clock_ns: Callable[[ClusterNode], int]) -> None:
        self._goals = goals
        self._clock_ns = clock_ns
        self._led_term: Term = 0
        self._led_by: NodeId = 0

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Look at the node's own lease, which an answer may just have extended; and at those of all
        others when it is the first that is seen to lead in a new term."""
        status = node.status_seen
        if status.role is not Role.LEADER:
            return ""
        if status.term <= self._led_term:
            return self._problem(node)
        self._led_term, self._led_by = status.term, node.node_id
        found = ""
        for other in nodes.values():
            if other.is_up:
                found = found or self._problem(other)
        return found

    def _problem(self, node: ClusterNode) -> str:
        """What is wrong with the lease of a node, if that is of a lower term."""
        term = node.status_seen.term
        if term >= self._led_term:
            return ""
        until_ns = node.replica.engine.status().lease_until_ns
        if until_ns is None:
            return ""
        left_ns = until_ns - self._clock_ns(node)
        if left_ns <= 0:
            self._goals.reach("lease_expired_before_rival_led")
            return ""
        return (
            f"I25: node {self._led_by} leads in term {self._led_term}, and the lease of node "
            f"{node.node_id} in term {term} runs for {left_ns} ns more by its own clock"
        )
