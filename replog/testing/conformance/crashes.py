"""Nodes that crash with something said that their disk does not hold, and what old leaders left.

The rules of "durable before sent" and of which value a new leader has to go on with cannot be seen
while nothing fails: each takes a crash, or two leaders, at one moment.  These are the moments, in
words that every engine knows.  None of the scenarios says what the engine has to do at them; what
was acknowledged, and the invariants of the cluster, say what must not come of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import permutations

from replog.engine import FieldKind
from replog.limits import Limits
from replog.testing.checks import Check, Nodes
from replog.testing.cluster import Cluster
from replog.testing.conformance.failures import carries, carries_value
from replog.testing.conformance.subject import (
    Scenario,
    Subject,
    check_equal,
    done,
    elect,
    leads,
    payloads,
    scenarios_of,
)
from replog.testing.faults import Faults
from replog.testing.network import Flight
from replog.testing.nodes import Outcome
from replog.types import NodeId, Role, Term

ELECTION_STAGES = 4
"""How often a candidate asks until it leads, at most: whether it could, then in earnest."""

OLD_COUNT = 4
"""How many values an old leader leaves: its log is longer than that of the younger one."""

PUMPED_MAX = 200
"""How many messages are passed on one by one, at most, until what the script waits for is there."""


def on_link(sender: NodeId, to: NodeId) -> Callable[[Flight], bool]:
    """Whether a message travels from one node to another."""
    return lambda flight: flight.link == (sender, to)


def brings_entries(subject: Subject, sender: NodeId, to: NodeId) -> Callable[[Flight], bool]:
    """Whether a message brings entries from one node to another, whatever the engine calls it."""
    fields = {
        spec.record: [name for name, kind in spec.fields.items() if kind is FieldKind.ENTRIES]
        for spec in subject.plugin.messages
    }
    return lambda flight: (
        flight.link == (sender, to)
        and any(getattr(flight.message, name) for name in fields.get(type(flight.message), ()))
    )


def deliver_one(cluster: Cluster, matches: Callable[[Flight], bool]) -> bool:
    """Pass on the oldest of the matching messages that are held; whether there was one."""
    held = [number for number, flight in cluster.network.held.items() if matches(flight)]
    return bool(held) and cluster.deliver(lambda flight: flight.number == min(held)) == 1


def lose_held(cluster: Cluster, matches: Callable[[Flight], bool]) -> None:
    """Lose the matching messages among those that are held."""
    held = cluster.network.held
    for number in [number for number, flight in held.items() if matches(flight)]:
        del held[number]


def forget_messages(cluster: Cluster) -> None:
    """Lose everything that is held, and hold nothing any more."""
    cluster.network.held.clear()
    cluster.release()


# -- answers that leave before the sync --


def voter_dies_with_answer_out(subject: Subject) -> None:
    """Two candidates ask one voter, which crashes after each answer to the one, its disk held or
    not: nobody is elected twice by one vote."""
    for candidate, voter, other in permutations((1, 2, 3)):
        for is_held in (True, False):
            cluster = subject.cluster()
            if is_held:
                cluster.hold_disk(voter)
            cluster.cut([(candidate, other), (other, candidate)])
            cluster.hold(lambda flight: flight.to == voter)  # noqa: B023
            cluster.campaign(candidate)
            cluster.campaign(other)
            cluster.settle()
            for _ in range(ELECTION_STAGES):
                cluster.deliver(on_link(candidate, voter))
                cluster.settle()
                cluster.crash(voter)
                cluster.restart(voter)
                cluster.deliver(on_link(other, voter))
                cluster.settle()
            subject.recover(cluster)
            check_equal(cluster)


def voter_dies_between_leaders(subject: Subject) -> None:
    """A voter crashes with its answer to a new leader out and its disk held, and goes on with the
    old one, which knows of no other: whatever that acknowledged stays."""
    for old, new, voter in permutations((1, 2, 3)):
        cluster = subject.cluster()
        elect(cluster, old)
        done(cluster, b"before")
        cluster.tick(3)
        cluster.hold_disk(voter)
        cluster.hold(on_link(new, old))
        cluster.hold(brings_entries(subject, new, voter))
        # The new one has answered for everything there is, so it is asked to take over at once.
        cluster.transfer(old, new)
        cluster.settle()
        if leads(cluster, new):
            cluster.propose(new, b"new")
            cluster.settle()
        cluster.hold(on_link(new, voter))
        cluster.crash(voter)
        cluster.restart(voter)
        cluster.release_disk(voter)
        # A leader that is handing over takes no proposals for a while.
        cluster.tick(subject.election_ticks - 1)
        cluster.propose(old, b"old")
        cluster.settle()
        cluster.release()
        cluster.settle()
        subject.recover(cluster)
        check_equal(cluster)


def acceptor_dies_with_answer_out(subject: Subject) -> None:
    """An acceptor is given entries, many of them twice, and crashes with its answers out and its
    disk held; then the leader dies: whatever was acknowledged stays."""
    for acceptor, other in ((2, 3), (3, 2)):
        cluster = subject.led()
        done(cluster, b"before")
        cluster.tick(3)
        cluster.hold_disk(acceptor)
        cluster.isolate(other)
        cluster.run(4, Faults(duplicate_chance=1.0, delay_ticks_max=1), propose_chance=1.0)
        cluster.crash(acceptor)
        cluster.restart(acceptor)
        cluster.release_disk(acceptor)
        cluster.crash(1)
        cluster.heal()
        subject.wait_leader(cluster, timeouts=6)
        done(cluster, b"after")
        subject.recover(cluster)
        check_equal(cluster)


class AskedOnce(Check):
    """No node asks to lead in a term that it asked for in an earlier run and forgot."""

    def __init__(self) -> None:
        self._asked: dict[tuple[NodeId, Term], int] = {}
        """By node and term: the run that asked for it when its disk did not hold it."""

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """See whether a candidate asks, and on what grounds."""
        node = nodes[flight.sender]
        engine, hard_state = node.replica.engine, node.disk.hard_state
        if engine.soft_state.role is not Role.CANDIDATE or flight.term != engine.term:
            return ""
        asking = (node.node_id, flight.term)
        if self._asked.get(asking, node.run) != node.run:
            return f"node {node.node_id} asks for term {flight.term}, which it asked for and forgot"
        if hard_state is None or hard_state.term < flight.term:
            self._asked[asking] = node.run
        return ""


def candidate_dies_having_asked(subject: Subject) -> None:
    """A candidate crashes while its disk is held, and campaigns again, before another node: it asks
    for another term, or had not asked yet."""
    for candidate, first, second in permutations((1, 2, 3)):
        cluster = subject.cluster(checks=(AskedOnce(),))
        cluster.hold_disk(candidate)
        cut = cluster.isolate(second)
        cluster.campaign(candidate)
        cluster.settle()
        cluster.crash(candidate)
        cluster.restart(candidate)
        cluster.release_disk(candidate)
        cluster.mend(cut)
        cluster.isolate(first)
        cluster.campaign(candidate)
        cluster.settle()
        subject.recover(cluster)
        check_equal(cluster)


# -- what old leaders left --


def old_entry_reaches_majority(subject: Subject) -> None:
    """An old entry reaches a majority under a later leader, which then dies; another leader, whose
    own entry is younger, comes back (Raft, figure 8): all agree, and whatever was committed stays.
    """
    cluster = subject.led(5, limits=Limits(message_bytes_max=1))  # an entry a message
    done(cluster, b"before")
    cluster.tick(3)
    has_old = carries(subject, b"old")
    cluster.hold(lambda flight: has_old(flight) and flight.to != 2)
    cluster.propose(1, b"old")
    cluster.settle()
    cluster.crash(1)
    forget_messages(cluster)
    for peer in (3, 4):
        cluster.hold(brings_entries(subject, 5, peer))
    subject.lead_among(cluster, 5, (3, 4, 5))
    if leads(cluster, 5):
        cluster.propose(5, b"young")
        cluster.settle()
    cluster.crash(5)
    forget_messages(cluster)
    cluster.restart(1)
    to_last = on_link(1, 3)
    cluster.hold(to_last)
    subject.lead_among(cluster, 1, (1, 2, 3), partial(deliver_one, cluster, to_last))
    for _ in range(PUMPED_MAX):
        if any(carries_value(cluster, 3, b"old")) or not deliver_one(cluster, to_last):
            break
        cluster.settle()
    cluster.crash(1)
    forget_messages(cluster)
    cluster.restart(5)
    subject.lead_among(cluster, 5, (3, 4, 5))
    subject.recover(cluster)
    check_equal(cluster)


def two_old_values(subject: Subject) -> None:
    """Two leaders left different values at one index, the older one more of them; the value of the
    younger was acknowledged.  Whoever leads next, of those who know the one, the other or none: it
    stays."""
    node_counts = subject.supported(3, 5)
    for node_count, older, candidates in (
        (3, 1, (1, 3)),
        (3, 3, (3, 1)),
        (5, 1, (1, 3, 5)),
        (5, 5, (5, 3, 1)),
    ):
        for candidate in candidates if node_count in node_counts else ():
            leave_two_values(subject, node_count, older, candidate)


def leave_two_values(subject: Subject, node_count: int, older: NodeId, candidate: NodeId) -> None:
    """Node 2 is the younger of the leaders; ``older`` is 1 or the last node."""
    last = node_count + 1 - older
    cluster = subject.cluster(node_count)
    elect(cluster, older)
    done(cluster, b"before")
    cluster.tick(3)
    cluster.hold(carries(subject, b"old"))
    for _ in range(OLD_COUNT):
        cluster.propose(older, b"old")
    cluster.settle()
    cluster.crash(older)
    forget_messages(cluster)
    # In a cluster of five one node knows neither value: the last at the other end.
    group = (2, last) if node_count == 3 else (2, 3, 4)
    assert subject.lead_among(cluster, 2, group), "node 2 was not elected"
    others = [node_id for node_id in group if node_id != 2]
    cluster.hold(lambda flight: flight.sender == 2)
    young = cluster.propose(2, b"young")
    for _ in range(PUMPED_MAX):
        # Nothing goes on to who has the value: that it is committed only node 2 knows.
        lacking = [other for other in others if not any(carries_value(cluster, other, b"young"))]
        if not deliver_one(cluster, lambda flight: flight.to in lacking):  # noqa: B023
            break
        cluster.settle()
    assert young.outcome is Outcome.DONE, "the younger value was not acknowledged"
    cluster.crash(2)
    forget_messages(cluster)
    cluster.restart(older)
    group = (1, 3) if node_count == 3 else (1, 3, 5)
    if not subject.lead_among(cluster, candidate, group):
        cluster.run_until(lambda: cluster.leader() in group, 6 * subject.election_ticks)
    assert cluster.leader() in group, "nobody leads"
    done(cluster, b"after")
    subject.recover(cluster)
    check_equal(cluster)
    assert payloads(cluster, 2)[:2] == [b"before", b"young"]


def old_proposal_comes_late(subject: Subject) -> None:
    """A deposed leader's proposal arrives when its successor has put another value in its place:
    that stays, also when those who got the late one die."""
    for late in (1, 3):
        cluster = subject.cluster()
        elect(cluster, late)
        done(cluster, b"before")
        cluster.tick(3)
        cluster.hold(carries(subject, b"late"))
        cluster.propose(late, b"late")
        cluster.settle()
        others = [node_id for node_id in cluster.nodes if node_id != late]
        assert subject.lead_among(cluster, 2, others), "node 2 was not elected"
        done(cluster, b"young")
        cluster.heal()
        cluster.release()
        cluster.settle()
        for node_id in others:
            cluster.crash(node_id)
            cluster.restart(node_id)
        subject.recover(cluster)
        check_equal(cluster)
        assert payloads(cluster, late)[:2] == [b"before", b"young"]


def old_write_ends_late(subject: Subject) -> None:
    """A deposed leader's write of its own values ends when it has been given others in their place:
    that makes none of those durable, also where it crashes before they are."""
    for own_count in (1, OLD_COUNT):
        cluster = subject.led()
        done(cluster, b"before")
        cluster.tick(3)
        cluster.hold_disk(1)
        cluster.hold(lambda flight: 1 in flight.link)
        for _ in range(own_count):
            cluster.propose(1, b"old")
        cluster.settle()
        own_writes = len(cluster.nodes[1].disk.pending)
        assert own_writes > 0, "it has nothing on its way to its disk"
        subject.silence(cluster)
        for _ in range(ELECTION_STAGES):
            cluster.campaign(2)
            cluster.settle()
        assert leads(cluster, 2), "node 2 was not elected"
        done(cluster, b"young")
        # Of an engine whose leaders ask first, none: the answer waits for the disk.
        cluster.deliver(brings_entries(subject, 2, 1))
        cluster.settle()
        cluster.sync(1, own_writes)
        cluster.settle()
        forget_messages(cluster)
        cluster.crash(3)
        cluster.propose(2, b"not durable")
        cluster.settle()
        cluster.crash(1)
        cluster.restart(1)
        cluster.release_disk(1)
        subject.recover(cluster)
        check_equal(cluster)
        assert payloads(cluster, 1)[:2] == [b"before", b"young"]


def old_answer_comes_late(subject: Subject) -> None:
    """A node's answer to an old proposal arrives when the one that it was for leads again, and has
    put another value in its place: it does not speak for that."""
    cluster = subject.led(5)
    done(cluster, b"before")
    cluster.tick(3)
    has_old = carries(subject, b"old")
    cluster.hold(lambda flight: has_old(flight) and flight.to != 3)
    cluster.hold(on_link(3, 1))
    cluster.propose(1, b"old")
    cluster.settle()
    late = dict(cluster.network.held)
    for peer in (4, 5):
        cluster.hold(brings_entries(subject, 2, peer))
        cluster.hold(brings_entries(subject, 1, peer))
    if subject.lead_among(cluster, 2, (2, 4, 5)):
        cluster.propose(2, b"young")
        cluster.settle()
    subject.lead_among(cluster, 1, (1, 2, 4))
    cluster.heal()
    cluster.cut([(1, 3), (1, 5)])
    cluster.deliver(lambda flight: flight.number in late and flight.link == (3, 1))
    cluster.settle()
    cluster.crash(1)
    forget_messages(cluster)
    subject.recover(cluster)
    check_equal(cluster)


def open_value_stays_open(subject: Subject) -> None:
    """A node that alone has a value is asked by a candidate that hears of no value, crashes and
    comes back: it takes nothing for committed that is not."""
    cluster = subject.led()
    done(cluster, b"before")
    cluster.tick(3)
    cluster.hold(carries(subject, b"open"))
    cluster.propose(1, b"open")
    cluster.settle()
    subject.lead_among(cluster, 2, (1, 2))
    cluster.crash(1)
    cluster.restart(1)
    cluster.settle()
    forget_messages(cluster)
    subject.recover(cluster)
    check_equal(cluster)


def lagging_node_learns_late(subject: Subject) -> None:
    """A node that missed an entry hears of its deposed leader's progress, late, and catches up from
    one that follows another leader by then; it crashes, comes back, and all agree."""
    cluster = subject.led(5)
    done(cluster, b"before")
    cluster.tick(3)
    cluster.hold(lambda flight: flight.sender == 1)
    missed = cluster.propose(1, b"missed")
    for peer in (2, 3):
        while not any(carries_value(cluster, peer, b"missed")):
            assert deliver_one(cluster, on_link(1, peer)), f"node {peer} is not sent the entry"
            cluster.settle()
    assert missed.outcome is Outcome.DONE, "three of five did not commit"
    cluster.tick(subject.election_ticks * 2 // 5)
    # That the entry is committed only node 1 knows, and node 5 is told too late.
    lose_held(cluster, brings_entries(subject, 1, 5))
    lose_held(cluster, lambda flight: flight.to != 5)
    late = dict(cluster.network.held)
    if not subject.lead_among(cluster, 4, (2, 3, 4)):
        cluster.run_until(lambda: cluster.leader() in (2, 3), 6 * subject.election_ticks)
    assert cluster.leader() in (2, 3, 4), "three of five elect nobody"
    cluster.settle()
    cluster.heal()
    cluster.cut([(5, 1), (4, 5)])
    lose_held(cluster, lambda flight: flight.number not in late)
    cluster.release()
    cluster.settle()
    cluster.crash(5)
    cluster.restart(5)
    subject.recover(cluster)
    check_equal(cluster)


def asked_node_has_an_old_value(subject: Subject) -> None:
    """A node hears that an entry is committed which it lacks, and asks around, if the engine does;
    the first that it can ask has a deposed leader's value there: it does not take that."""
    cluster = subject.cluster(5)
    elect(cluster, 5)
    done(cluster, b"before")
    cluster.tick(3)
    has_old = carries(subject, b"old")
    cluster.hold(lambda flight: has_old(flight) and flight.to != 1)
    cluster.propose(5, b"old")
    cluster.settle()
    cluster.crash(5)
    forget_messages(cluster)
    assert subject.lead_among(cluster, 2, (2, 3, 4)), "node 2 was not elected"
    for peer in (1, 3):
        cluster.hold(brings_entries(subject, 2, peer))
    cluster.heal()
    cluster.restart(5)
    young = cluster.propose(2, b"young")
    found = cluster.run_until(lambda: young.outcome is Outcome.DONE, 3 * subject.election_ticks)
    assert found, "three of five did not commit"
    cluster.tick(subject.election_ticks)
    cluster.release()
    subject.recover(cluster)
    check_equal(cluster)
    assert payloads(cluster, 3)[:2] == [b"before", b"young"]


SCENARIOS: tuple[Scenario, ...] = scenarios_of(
    "crashes",
    (
        voter_dies_with_answer_out,
        voter_dies_between_leaders,
        acceptor_dies_with_answer_out,
        candidate_dies_having_asked,
        old_entry_reaches_majority,
        two_old_values,
        old_proposal_comes_late,
        old_write_ends_late,
        old_answer_comes_late,
        open_value_stays_open,
        lagging_node_learns_late,
        asked_node_has_an_old_value,
    ),
)
