"""What a conformance scenario is, what it is about, and the few steps that most of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from replog.engine import EnginePlugin
from replog.limits import Limits
from replog.machine import Machine
from replog.storage.protocol import Recovered
from replog.testing.checks import Check
from replog.testing.cluster import Cluster
from replog.testing.network import Flight
from replog.testing.nodes import ClusterNode, Outcome, Proposal, Recorder
from replog.types import NO_NODE, NodeId, Role, record

ELECTION_TICKS_DEFAULT = 20


@record
class Subject:
    """The engine under test, with the options that its clusters get."""

    plugin: EnginePlugin
    options: object
    election_ticks: int
    """The longest time without a leader after which a node tries to lead."""

    def cluster(
        self,
        node_count: int = 3,
        seed: int = 0,
        *,
        limits: Limits | None = None,
        machine: Callable[[], Machine] = Recorder,
        disks: Mapping[NodeId, Recovered] | None = None,
        sync_ticks: int = 0,
        checks: Sequence[Check] = (),
    ) -> Cluster:
        """A cluster of the engine; see :class:`~replog.testing.cluster.Cluster`."""
        return Cluster(
            self.plugin,
            self.options,
            node_count=node_count,
            seed=seed,
            limits=limits,
            machine=machine,
            disks=disks,
            sync_ticks=sync_ticks,
            checks=checks,
        )

    def led(self, node_count: int = 3, seed: int = 0, *, limits: Limits | None = None) -> Cluster:
        """A cluster that node 1 leads, on a good day."""
        cluster = self.cluster(node_count, seed, limits=limits)
        elect(cluster, 1)
        return cluster

    def wait_leader(self, cluster: Cluster, timeouts: int = 3) -> NodeId:
        """Let time pass until somebody leads, at most so many election timeouts."""
        found = cluster.run_until(
            lambda: cluster.leader() != NO_NODE, timeouts * self.election_ticks + 5
        )
        assert found, f"no leader within {timeouts} election timeouts"
        return cluster.leader()

    def recover(self, cluster: Cluster) -> None:
        """End every fault, and see the cluster work again."""
        cluster.calm()
        backlog = max(node.status_seen.last_index for node in cluster.nodes.values())
        ticks = 10 * self.election_ticks
        cluster.check_liveness(ticks, ticks + 4 * backlog)


@record
class Scenario:
    """One claim about every engine, and the run that shows it."""

    name: str
    """``topic.scenario``."""
    claim: str
    run: Callable[[Subject], None]
    """Raises ``AssertionError`` (a :class:`~replog.testing.checks.Violation` is one)."""


def scenarios_of(
    topic: str, functions: Sequence[Callable[[Subject], None]]
) -> tuple[Scenario, ...]:
    """Functions as scenarios: the name from their name, the claim from their docstring."""
    found: list[Scenario] = []
    for function in functions:
        claim = " ".join((function.__doc__ or "").split())
        assert claim, f"{function.__name__} claims nothing"
        found.append(Scenario(f"{topic}.{function.__name__}", claim, function))
    return tuple(found)


def elect(cluster: Cluster, node_id: NodeId) -> None:
    """Have a node elected at once, on a good day and with nobody leading."""
    cluster.campaign(node_id)
    cluster.settle()
    assert cluster.leader() == node_id, f"node {node_id} was not elected"


def done(cluster: Cluster, payload: bytes) -> Proposal:
    """Propose at the leader, and see it done without time passing."""
    proposal = cluster.propose(cluster.leader(), payload)
    cluster.settle()
    assert proposal.outcome is Outcome.DONE, f"{payload!r} ended as {proposal.outcome.value}"
    return proposal


def payloads(cluster: Cluster, node_id: NodeId) -> list[bytes]:
    """What a node's machine was given, in order."""
    machine = cluster.nodes[node_id].machine
    assert isinstance(machine, Recorder)
    return machine.payloads


def check_equal(cluster: Cluster) -> None:
    """Every machine that is up was given the same, in the same order."""
    given = [payloads(cluster, node_id) for node_id in cluster.nodes]
    assert all(each == given[0] for each in given), "the machines differ"


class Elections:
    """A check that counts the elections of a cluster: in how many terms a node asked to lead."""

    def __init__(self) -> None:
        self.terms: dict[int, NodeId] = {}
        """The terms in which a node was seen as a candidate or leader."""

    def check_sent(self, nodes: Mapping[NodeId, ClusterNode], flight: Flight) -> str:
        """Messages are not looked at."""
        return ""

    def check_event(self, nodes: Mapping[NodeId, ClusterNode], node: ClusterNode) -> str:
        """Note who asks."""
        engine = node.replica.engine
        if engine.soft_state.role in (Role.CANDIDATE, Role.LEADER):
            self.terms[engine.term] = node.node_id
        return ""
