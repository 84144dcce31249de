"""The classic failures, one by one: who dies when, and what the others make of it.

A leader dies before, after a minority of, after a majority of its accepts; an acceptor dies after
it promised or accepted, and comes back with its memory, without it, or never; proposers duel.  The
words are those of Paxos; in Raft a promise is a vote, and an accept an append.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from replog.engine import FieldKind
from replog.envelope import open_envelope
from replog.testing.cluster import Cluster
from replog.testing.conformance.subject import (
    Scenario,
    Subject,
    check_equal,
    done,
    elect,
    payloads,
    scenarios_of,
)
from replog.testing.network import Flight
from replog.testing.nodes import Outcome
from replog.types import NO_NODE, EntryKind, NodeId

DUEL_ROUNDS = 100
DUEL_SEEDS = 5
RETURNS = ("with memory", "without memory", "never")


def carries(subject: Subject, payload: bytes) -> Callable[[Flight], bool]:
    """Whether a message carries an entry with this payload, whatever the engine calls it."""
    fields = {
        spec.record: [name for name, kind in spec.fields.items() if kind is FieldKind.ENTRIES]
        for spec in subject.plugin.messages
    }

    def matches(flight: Flight) -> bool:
        return any(
            entry.kind == EntryKind.COMMAND and open_envelope(entry)[1] == payload
            for name in fields.get(type(flight.message), ())
            for entry in getattr(flight.message, name)
        )

    return matches


def leader_dies(subject: Subject, node_count: int, receivers: int, returns: bool) -> bool:
    """The leader dies when so many others have its proposal on disk, and nobody knows it; whether
    the value is in the log in the end."""
    cluster = subject.led(node_count)
    done(cluster, b"before")
    cluster.tick(3)
    matches = carries(subject, b"x")
    cluster.hold(matches)
    proposal = cluster.propose(1, b"x")
    receiving = range(2, 2 + receivers)
    cluster.deliver(lambda flight: matches(flight) and flight.to in receiving)
    cluster.hold(lambda flight: flight.to == 1)  # no answer ever arrives
    cluster.settle()
    cluster.crash(1)
    assert proposal.outcome is Outcome.UNKNOWN
    cluster.network.held.clear()
    cluster.release()
    subject.wait_leader(cluster, timeouts=6)
    done(cluster, b"after")
    if returns:
        subject.recover(cluster)
        check_equal(cluster)
    survivor = cluster.leader()
    assert payloads(cluster, survivor)[0] == b"before"
    assert payloads(cluster, survivor).count(b"x") <= 1
    return b"x" in payloads(cluster, survivor)


def leader_dies_before_accepts(subject: Subject) -> None:
    """The leader dies before anybody else has its proposal: the client is told that the outcome is
    unknown, and all agree on it."""
    node_counts = subject.supported(3, 5)
    assert not leader_dies(subject, node_counts[0], receivers=0, returns=False)
    for node_count in node_counts:
        leader_dies(subject, node_count, receivers=0, returns=True)


def leader_dies_after_minority(subject: Subject) -> None:
    """The leader dies when a minority has its proposal: either outcome, and all agree on it."""
    for returns in (True, False):
        leader_dies(subject, 5, receivers=1, returns=returns)


def leader_dies_after_majority(subject: Subject) -> None:
    """The leader dies when a majority has its proposal on disk, and knew nothing of it: the value
    is in the log of its successor."""
    node_counts = subject.supported(3, 5)
    for node_count, receivers in ((3, 1), (3, 2), (5, 2), (5, 4)):
        if node_count not in node_counts:
            continue
        for returns in (True, False):
            assert leader_dies(subject, node_count, receivers, returns), (node_count, receivers)


def acceptor_dies_after_promise(subject: Subject) -> None:
    """An acceptor dies when it has promised; with its memory, without it, or gone for ever: all
    agree, and the others go on."""
    for returns in RETURNS:
        cluster = subject.cluster()
        cluster.campaign(1)
        for _ in range(100):
            if cluster.nodes[2].disk.hard_state is not None:
                break
            cluster.deliver(count=1)
        assert cluster.nodes[2].disk.hard_state is not None, "node 2 promised nothing"
        come_back(subject, cluster, returns)


def acceptor_dies_after_accept(subject: Subject) -> None:
    """An acceptor dies when it has accepted, before its answer arrives; the same three ways."""
    for returns in RETURNS:
        cluster = subject.led()
        cluster.isolate(3)
        cluster.hold(lambda flight: flight.sender == 2)
        proposal = cluster.propose(1, b"x")
        cluster.settle()
        assert proposal.outcome is Outcome.PENDING
        assert any(carries_value(cluster, 2, b"x")), "node 2 accepted nothing"
        cluster.heal()
        come_back(subject, cluster, returns)
        assert b"x" in payloads(cluster, 1)


def carries_value(cluster: Cluster, node_id: NodeId, payload: bytes) -> list[bool]:
    """For each entry on a node's disk, whether it holds the payload."""
    return [
        entry.kind == EntryKind.COMMAND and open_envelope(entry)[1] == payload
        for entry in cluster.nodes[node_id].disk.entries.values()
    ]


def come_back(subject: Subject, cluster: Cluster, returns: str) -> None:
    """Node 2 dies and comes back, or does not; the cluster goes on without it meanwhile."""
    cluster.crash(2)
    cluster.network.held.clear()
    cluster.release()
    cluster.settle()
    subject.wait_leader(cluster, timeouts=6)
    cluster.tick(subject.election_ticks // 2)  # what was lost before is sent again
    done(cluster, b"without node 2")
    if returns == "with memory":
        subject.recover(cluster)
        check_equal(cluster)
        return
    if returns == "without memory":
        cluster.wipe(2)
        cluster.restart(2)
        cluster.campaign(2)
    cluster.tick(5 * subject.election_ticks)
    assert cluster.leader() in (1, 3), "the fenced node leads"
    done(cluster, b"still without it")
    cluster.tick(5)
    assert payloads(cluster, 1) == payloads(cluster, 3)
    if returns == "without memory":
        assert payloads(cluster, 2) == []


def duel(subject: Subject) -> None:
    """Proposers interrupt each other again and again, with messages arriving in any order: never
    two values; and when nobody interferes any more one of them leads within a few timeouts."""
    for seed in range(DUEL_SEEDS):
        random = Random(seed)
        cluster = subject.cluster(random.choice(subject.supported(3, 5)), seed)
        cluster.hold(every_flight)
        for at in range(DUEL_ROUNDS):
            node_id = random.choice(list(cluster.nodes))
            cluster.campaign(node_id)
            for _ in range(random.randint(0, 12)):
                held = list(cluster.network.held)
                if held:
                    number = random.choice(held)
                    cluster.deliver(partial(is_number, number))
            leader_id = cluster.leader()
            if leader_id != NO_NODE:
                cluster.propose(leader_id, b"%d" % at)
            if random.random() < 0.1:
                cluster.tick()
        subject.recover(cluster)
        check_equal(cluster)


def every_flight(flight: Flight) -> bool:
    """Matches all of them."""
    return flight.number > 0


def is_number(number: int, flight: Flight) -> bool:
    """Whether this is the flight of that number."""
    return flight.number == number


def old_value_on_majority(subject: Subject) -> None:
    """A value that a majority stored before its leader died, and a candidate that lacks it: all
    agree, and the value is not lost."""
    for node_count in subject.supported(3, 5):
        cluster = subject.led(node_count)
        matches = carries(subject, b"x")
        cluster.hold(lambda flight: matches(flight) and flight.to == node_count)  # noqa: B023
        cluster.hold(lambda flight: flight.to == 1)
        cluster.propose(1, b"x")
        cluster.settle()
        cluster.crash(1)
        cluster.network.held.clear()
        cluster.release()
        cluster.tick(subject.election_ticks // 2)
        cluster.campaign(node_count)
        cluster.settle()
        subject.wait_leader(cluster, timeouts=6)
        done(cluster, b"y")
        subject.recover(cluster)
        check_equal(cluster)
        assert payloads(cluster, 1)[:2] == [b"x", b"y"]


def two_values_without_fence(subject: Subject) -> Cluster:
    """A script, not a scenario: the acceptor that lost its memory is taken for the one that had it.
    Two values are chosen at one index, which the cluster's invariants must find.
    """
    cluster = subject.cluster()
    elect(cluster, 3)
    done(cluster, b"w")
    cluster.transfer(3, 1)
    cluster.settle()
    cut = cluster.isolate(3)
    done(cluster, b"x")
    cluster.crash(2)
    cluster.wipe(2, fenced=False)
    cluster.crash(1)
    cluster.mend(cut)
    cluster.restart(2)
    cluster.tick(subject.election_ticks)
    if cluster.leader() != 3:
        elect(cluster, 3)
    cluster.propose(3, b"y")
    cluster.settle()
    return cluster


SCENARIOS: tuple[Scenario, ...] = scenarios_of(
    "failures",
    (
        leader_dies_before_accepts,
        leader_dies_after_minority,
        leader_dies_after_majority,
        acceptor_dies_after_promise,
        acceptor_dies_after_accept,
        duel,
        old_value_on_majority,
    ),
)
