"""What is done stays done, everywhere, in one order; who was away catches up."""

from __future__ import annotations

from collections.abc import Sequence

from replog.errors import NotLeader, Overloaded
from replog.limits import Limits
from replog.testing.checks import Check, Nodes
from replog.testing.conformance.subject import (
    Scenario,
    Subject,
    check_equal,
    done,
    elect,
    payloads,
    scenarios_of,
)
from replog.testing.faults import Faults
from replog.testing.nodes import ClusterNode, Outcome
from replog.types import EntryKind, LogIndex, NodeId, PeerState

MISSED = 10_000
BATCH = 500
POSITIONS_MIN = 10
"""How many positions of a peer that catches up there are at least to judge."""

REORDERED_SEEDS = 200


def one_order(subject: Subject) -> None:
    """What is proposed is done once, in one order, on every node."""
    cluster = subject.led(5)
    for at in range(50):
        done(cluster, b"%d" % at)
    cluster.tick(4)
    assert all(
        payloads(cluster, each) == [b"%d" % at for at in range(50)] for each in cluster.nodes
    )


def many_in_flight(subject: Subject) -> None:
    """Proposals do not wait for each other: many are under way at once, in order."""
    cluster = subject.led()
    proposals = [cluster.propose(1, b"%d" % at) for at in range(200)]
    assert all(each.outcome is Outcome.PENDING for each in proposals)
    cluster.settle()
    assert all(each.outcome is Outcome.DONE for each in proposals)
    indexes = [each.index for each in proposals]
    assert indexes == list(range(indexes[0], indexes[0] + 200))


def only_the_leader(subject: Subject) -> None:
    """Any other node refuses a proposal and says who leads."""
    cluster = subject.led()
    cluster.tick(4)
    refused = cluster.propose(2, b"x")
    assert refused.outcome is Outcome.NOT_DONE
    assert isinstance(refused.error, NotLeader)
    assert refused.error.leader_id == 1


def bounded_uncommitted(subject: Subject) -> None:
    """Above its limit of uncommitted bytes a leader refuses and proposes nothing, and takes
    proposals again when it can."""
    cluster = subject.led(limits=Limits(uncommitted_bytes_max=1000, command_bytes_max=500))
    cut = cluster.isolate(1)
    proposals = [cluster.propose(1, bytes(400)) for _ in range(6)]
    refused = [each for each in proposals if each.outcome is Outcome.NOT_DONE]
    assert refused
    assert all(isinstance(each.error, Overloaded) for each in refused)
    last_index = cluster.nodes[1].replica.engine.status().last_index
    cluster.propose(1, bytes(400))
    assert cluster.nodes[1].replica.engine.status().last_index == last_index
    cluster.mend(cut)
    cluster.tick(subject.election_ticks // 2)
    done(cluster, b"again")


def all_reordered(subject: Subject) -> None:
    """Every message is held back and overtaken, over 200 seeds: the histories are equal."""
    faults = Faults(reorder_chance=1.0, delay_ticks_max=2, duplicate_chance=0.2)
    for seed in range(REORDERED_SEEDS):
        cluster = subject.cluster(3, seed)
        cluster.campaign(1 + seed % 3)
        cluster.run(12, faults, propose_chance=0.8)
        subject.recover(cluster)
        check_equal(cluster)


def missed_10000(subject: Subject) -> None:
    """A follower that missed 10,000 entries is brought up by ``next_index``, which falls at most
    once: when the leader hears of it again, and before anything is known to have arrived."""
    positions = Positions(1, 3)
    limits = Limits(message_bytes_max=16_000, in_flight_messages_max=4)
    cluster = subject.cluster(limits=limits, checks=(positions,))
    elect(cluster, 1)
    done(cluster, b"before")
    cluster.crash(3)
    engine = cluster.nodes[1].replica.engine
    for _ in range(MISSED // BATCH):
        engine.propose_batch([b""] * BATCH, EntryKind.NOOP)
        cluster.tick()
    assert cluster.nodes[1].applied_index >= MISSED, "two of three do not commit"
    done(cluster, b"without it")
    cluster.restart(3)
    positions.seen.clear()
    found = cluster.run_until(cluster.is_converged, 10 * subject.election_ticks)
    assert found, "it did not catch up"
    assert len(positions.seen) >= POSITIONS_MIN, "it was brought up with too few messages"
    check_falls(positions.seen)


class Positions(Check):
    """A check that notes where a leader takes a peer to be, whenever that changes."""

    def __init__(self, leader_id: NodeId, peer_id: NodeId) -> None:
        self._leader_id = leader_id
        self._peer_id = peer_id
        self.seen: list[tuple[LogIndex, LogIndex]] = []
        """``match_index`` and ``next_index``, while the peer's position is known."""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Look at the leader's status."""
        if node.node_id == self._leader_id:
            for peer in node.status_seen.peers:
                position = (peer.match_index, peer.next_index)
                is_known = peer.node_id == self._peer_id and peer.state is PeerState.REPLICATE
                if is_known and self.seen[-1:] != [position]:
                    self.seen.append(position)
        return ""


def check_falls(seen: Sequence[tuple[LogIndex, LogIndex]]) -> None:
    """Judge the (``match_index``, ``next_index``) of a peer that came back.

    What a node was sent while it was down is lost, and may be sent again from where that began:
    once, and as long as ``match_index`` is what it was.
    """
    steps = [next_index for _, next_index in seen]
    falls = [at for at in range(1, len(steps)) if steps[at] < steps[at - 1]]
    assert len(falls) <= 1, f"next_index fell {len(falls)} times"
    if falls:
        assert seen[falls[0]][0] == seen[0][0], "next_index fell while the peer was brought up"


def missed_under_load(subject: Subject) -> None:
    """A follower that was away for 300 entries and a change of leader catches up while writes go
    on."""
    cluster = subject.led(5)
    cluster.crash(5)
    for at in range(150):
        done(cluster, b"first %d" % at)
    cluster.crash(1)
    subject.wait_leader(cluster, timeouts=4)
    for at in range(150):
        done(cluster, b"second %d" % at)
    cluster.restart(5)
    cluster.restart(1)
    for at in range(100):
        cluster.propose(cluster.leader(), b"third %d" % at)
        cluster.tick()
    subject.recover(cluster)
    check_equal(cluster)


def isolated_follower_returns(subject: Subject) -> None:
    """A follower that was cut off for long does not depose the leader when it returns."""
    cluster = subject.led()
    cut = cluster.isolate(3)
    for at in range(10 * subject.election_ticks):
        if at % 7 == 0:
            done(cluster, b"%d" % at)
        cluster.tick()
    cluster.mend(cut)
    cluster.tick(3 * subject.election_ticks)
    assert cluster.leader() == 1
    assert cluster.is_converged()


def isolated_leader_returns(subject: Subject) -> None:
    """A leader that was cut off steps down by itself, and follows when it returns."""
    cluster = subject.led()
    cut = cluster.isolate(1)
    cluster.tick(5 * subject.election_ticks)
    assert cluster.leader() in (2, 3)
    assert cluster.nodes[1].replica.engine.soft_state.leader_id != 1
    done(cluster, b"without it")
    cluster.mend(cut)
    cluster.tick(2 * subject.election_ticks)
    subject.recover(cluster)
    check_equal(cluster)


SCENARIOS: tuple[Scenario, ...] = scenarios_of(
    "replication",
    (
        one_order,
        many_in_flight,
        only_the_leader,
        bounded_uncommitted,
        all_reordered,
        missed_10000,
        missed_under_load,
        isolated_follower_returns,
        isolated_leader_returns,
    ),
)
