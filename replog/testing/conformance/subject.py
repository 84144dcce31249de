"""What a conformance scenario is, what it is about, and the few steps that most of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from replog.engine import EnginePlugin
from replog.errors import ConfigError
from replog.limits import Limits
from replog.machine import Machine
from replog.storage.protocol import Recovered
from replog.testing import scenarios as suite
from replog.testing.checks import Check, Nodes
from replog.testing.cluster import Cluster
from replog.testing.nodes import ClusterNode, Outcome, Proposal, Recorder
from replog.testing.scenarios import Skipped
from replog.testing.trials import find_trial
from replog.types import NO_NODE, NodeId, Role, record

ELECTION_TICKS_DEFAULT = 20

NODE_COUNTS: Final = (1, 2, 3, 4, 5)
"""The sizes of cluster that some scenario asks for."""

CAMPAIGNS_MAX = 4
"""How often a node is told to campaign until it leads: the first attempts may do no more than teach
it the terms of the others."""


Pump: TypeAlias = Callable[[], bool]
"""Moves one message, if there is one; whether there was."""


@record
class Subject:
    """The engine under test, with the options that its clusters get."""

    plugin: EnginePlugin
    options: object
    election_ticks: int
    """The longest time without a leader after which a node tries to lead."""
    unsupported: Mapping[int, str]
    """Why a cluster of so many nodes is not for the scenarios, which rest on majorities: by node
    count; what is not in it is supported."""

    def supported(self, *node_counts: int) -> tuple[int, ...]:
        """Those of some node counts with which a scenario can be run; raises :class:`Skipped` if
        there is none."""
        found = tuple(count for count in node_counts if count not in self.unsupported)
        if not found:
            raise Skipped("; ".join(self.unsupported[count] for count in node_counts))
        return found

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
        """A cluster of the engine; see :class:`~replog.testing.cluster.Cluster`.

        Raises :class:`Skipped` if the subject does not support the node count.
        """
        self.supported(node_count)
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

    def silence(self, cluster: Cluster) -> None:
        """Let nobody hear anybody until no node holds on to a leader or candidate any more."""
        for cut in list(cluster.network.cuts):
            cluster.mend(cut)
        cut = cluster.partition(*[(node_id,) for node_id in cluster.nodes])
        cluster.tick(2 * self.election_ticks)
        cluster.mend(cut)

    def lead_among(
        self, cluster: Cluster, node_id: NodeId, group: Sequence[NodeId], pump: Pump | None = None
    ) -> bool:
        """Have a node elected by a group, after a silence; the others stay cut off.

        ``pump`` moves the messages that the test holds, one a call, as long as it returns true.
        Whether the node leads: an engine may find that it must not.
        """
        self.silence(cluster)
        cluster.partition(group, [other for other in cluster.nodes if other not in group])
        for _ in range(CAMPAIGNS_MAX):
            cluster.campaign(node_id)
            cluster.settle()
            while not leads(cluster, node_id) and pump is not None and pump():
                cluster.settle()
            if leads(cluster, node_id):
                return True
        return False

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


Scenario: TypeAlias = suite.Scenario[Subject]
"""One claim about every engine, and the run that shows it."""


def unsupported_counts(
    plugin: EnginePlugin, options: object, node_counts: Sequence[int] | None
) -> Mapping[int, str]:
    """Why which of :data:`NODE_COUNTS` are not supported.

    ``node_counts`` are those that are (``None``: to be found out).  Found out is whether the engine
    accepts its options for so many nodes, and whether it commits with a majority, no less and no
    more: what a minority must not do, and a majority must, is what most scenarios are about.
    """
    found: dict[int, str] = {}
    for count in NODE_COUNTS:
        if node_counts is not None:
            if count not in node_counts:
                found[count] = f"{count} nodes: not among the node counts named"
            continue
        try:
            plugin.agreed(options, count)
        except ConfigError as error:
            found[count] = f"{count} nodes: {error}"
            continue
        voters = tuple(range(1, count + 1))
        quorum = find_trial(plugin).commit_quorum(options, voters)
        least = next(size for size in range(1, count + 1) if quorum.is_quorum(voters[:size]))
        if least != count // 2 + 1:
            found[count] = f"{count} nodes: {least} of them commit, and that is no majority"
    return found


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
    """Every machine was given the same, in the same order; those that are lost for ever aside."""
    given = [payloads(cluster, node_id) for node_id in cluster.nodes if not cluster.is_out(node_id)]
    assert all(each == given[0] for each in given), "the machines differ"


def leads(cluster: Cluster, node_id: NodeId) -> bool:
    """Whether a node is the leader of the highest term."""
    return cluster.leader() == node_id


class Elections(Check):
    """A check that counts the elections of a cluster: in how many terms a node asked to lead."""

    def __init__(self) -> None:
        self.terms: dict[int, NodeId] = {}
        """The terms in which a node was seen as a candidate or leader."""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Note who asks."""
        engine = node.replica.engine
        if engine.soft_state.role in (Role.CANDIDATE, Role.LEADER):
            self.terms[engine.term] = node.node_id
        return ""
