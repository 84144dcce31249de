"""Lost, repeated and late messages, cut links, crashes at every write, slow disks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random

from replog.limits import Limits
from replog.testing.cluster import Cluster
from replog.testing.conformance.subject import (
    Elections,
    Scenario,
    Subject,
    check_equal,
    done,
    elect,
    leads,
    scenarios_of,
)
from replog.testing.faults import Faults, drawn_faults
from replog.testing.nodes import ClusterNode, Outcome
from replog.types import NO_NODE, NodeId

SEEDS = 25
RUN_TICKS = 150
HUB = 3
"""The node to which every other one keeps its link."""
STALL_TICKS = 60
"""3 s at the default length of a tick."""


def run_seeds(subject: Subject, faults: Faults, seeds: int) -> None:
    """Random runs under the same faults; each must end with a cluster that works."""
    node_counts = subject.supported(5, 3)
    for seed in range(seeds):
        cluster = subject.cluster(node_counts[min(seed % 3, len(node_counts) - 1)], seed)
        cluster.run(RUN_TICKS, faults, propose_chance=0.5)
        subject.recover(cluster)
        check_equal(cluster)


def loss(subject: Subject) -> None:
    """A fifth of all messages is lost: nothing that was done is."""
    run_seeds(subject, Faults(drop_chance=0.2), 10)


def duplication(subject: Subject) -> None:
    """A third of all messages arrives twice, some of them very late: nothing is applied twice."""
    run_seeds(subject, Faults(duplicate_chance=0.3, late_ticks_max=60), 10)


def repeated_answers(subject: Subject) -> None:
    """With three of five nodes down every answer of the fourth arrives twice, and still counts
    once: nothing is acknowledged, and nobody is elected."""
    cluster = subject.led(5)
    done(cluster, b"before")
    for node_id in (3, 4, 5):
        cluster.crash(node_id)
    faults = Faults(duplicate_chance=1.0, delay_ticks_max=1)
    cluster.run(4 * subject.election_ticks, faults, propose_chance=0.5)
    leaders: list[NodeId] = []
    cluster.run(
        8 * subject.election_ticks, faults, before_tick=lambda: leaders.append(cluster.leader())
    )
    assert set(leaders) == {NO_NODE}, "two of five elect a leader"
    assert [each.outcome for each in cluster.proposals].count(Outcome.DONE) == 1
    subject.recover(cluster)
    check_equal(cluster)


def reordering(subject: Subject) -> None:
    """Messages overtake each other by many ticks."""
    run_seeds(
        subject,
        Faults(reorder_chance=0.5, delay_ticks_max=3, late_chance=0.1, late_ticks_max=40),
        10,
    )


def everything(subject: Subject) -> None:
    """Any mixture of faults: loss, delay, cuts, crashes, pauses, slow disks, hand-overs."""
    node_counts = subject.supported(5, 3)
    for seed in range(SEEDS):
        random = Random(seed)
        limits = Limits(
            message_bytes_max=random.choice((1, 200, 1 << 20)),
            in_flight_messages_max=random.choice((1, 4, 64)),
        )
        sync_ticks = random.choice((0, 0, 1, 2, 3))
        node_count = node_counts[seed % len(node_counts)]
        cluster = subject.cluster(node_count, seed, limits=limits, sync_ticks=sync_ticks)
        cluster.run(RUN_TICKS, drawn_faults(random, subject.election_ticks), propose_chance=0.5)
        subject.recover(cluster)
        check_equal(cluster)


# -- crashes at every durable write --


def crash_at_every_write(subject: Subject) -> None:
    """A node crashes at each of its durable writes in turn, before or after the write is on disk,
    through two elections and many entries; it restarts, and nothing acknowledged is lost."""
    count = 0
    for victim in (1, 2, 3):
        for kept in (0, 1):
            at = 1
            while crash_at_write(subject, victim, at, kept):
                at += 1
                count += 1
    assert count >= 40, f"only {count} writes were hit"


def crash_at_write(subject: Subject, victim: NodeId, at: int, kept: int) -> bool:
    """Run the workload up to the victim's write number ``at``; whether there was one."""
    cluster = subject.cluster()
    steps: list[Callable[[], object]] = [
        lambda: cluster.campaign(1),
        *[lambda: propose_anywhere(cluster)] * 4,
        lambda: cluster.transfer(1, 2) if cluster.leader() == 1 else None,
        *[lambda: propose_anywhere(cluster)] * 4,
        lambda: cluster.tick(2),
    ]
    cluster.hold_disk(victim)
    written = 0
    for step in steps:
        step()
        cluster.settle()
        while cluster.nodes[victim].disk.pending:
            written += 1
            if written == at:
                cluster.crash(victim, kept)
                subject.recover(cluster)
                check_equal(cluster)
                return True
            cluster.sync(victim, 1)
            cluster.settle()
    return False


def propose_anywhere(cluster: Cluster) -> None:
    """Propose at whoever leads, if anybody does."""
    leader_id = cluster.leader()
    if leader_id != NO_NODE:
        cluster.propose(leader_id, b"%d" % len(cluster.proposals))


def whole_cluster_crashes(subject: Subject) -> None:
    """All nodes crash at once, again and again: what was acknowledged is there afterwards."""
    for seed in range(5):
        cluster = subject.cluster(3, seed, sync_ticks=seed % 2)
        acknowledged: list[bytes] = []
        for round_number in range(4):
            subject.wait_leader(cluster, timeouts=6)
            for at in range(10):
                propose_anywhere(cluster)
                cluster.tick(at % 3)
            acknowledged += [
                each.payload for each in cluster.proposals if each.outcome is Outcome.DONE
            ]
            for node_id in cluster.nodes:
                cluster.crash(node_id, kept=(round_number + node_id) % 2)
            for node_id in cluster.nodes:
                cluster.restart(node_id)
        subject.recover(cluster)
        check_equal(cluster)
        assert acknowledged


# -- disks --


def held_majority(subject: Subject) -> None:
    """While the disks of a majority stand still nothing is acknowledged; afterwards everything
    is."""
    for held in ((1, 2), (2, 3), (1, 3), (1, 2, 3)):
        cluster = subject.led()
        for node_id in held:
            cluster.hold_disk(node_id)
        proposals = [cluster.propose(1, b"%d" % at) for at in range(5)]
        cluster.tick(3)
        assert all(each.outcome is Outcome.PENDING for each in proposals)
        for node_id in held:
            cluster.release_disk(node_id)
        cluster.settle()
        assert all(each.outcome is Outcome.DONE for each in proposals)


def leader_disk_held(subject: Subject) -> None:
    """A leader whose own disk stands still commits through the others."""
    cluster = subject.led()
    cluster.hold_disk(1)
    done(cluster, b"x")


def no_leader_before_sync(subject: Subject) -> None:
    """Nobody leads while no disk has written anything; a candidate that crashes meanwhile does no
    harm."""
    for node_count in subject.supported(1, 3):
        cluster = subject.cluster(node_count)
        for node_id in cluster.nodes:
            cluster.hold_disk(node_id)
        cluster.campaign(1)
        cluster.tick(3 * subject.election_ticks)
        assert cluster.leader() == NO_NODE
        cluster.crash(1)
        cluster.restart(1)
        subject.recover(cluster)


def slow_disk_deposes_nobody(subject: Subject) -> None:
    """A sync that takes 3 s at the leader or at a follower changes no leader."""
    for held in (1, 2):
        elections = Elections()
        cluster = subject.cluster(checks=(elections,))
        elect(cluster, 1)
        count = len(elections.terms)
        cluster.hold_disk(held)
        proposal = cluster.propose(1, b"x")
        cluster.tick(STALL_TICKS)
        cluster.release_disk(held)
        cluster.tick(4)
        assert proposal.outcome is Outcome.DONE
        assert len(elections.terms) == count
        assert cluster.leader() == 1


# -- links --


def quorum_loss(subject: Subject) -> None:
    """Every node keeps only its link to one hub, which did not lead: the hub leads within a few
    timeouts, for nobody else can reach a quorum."""
    for seed in range(10):
        cluster = subject.led(5, seed)
        done(cluster, b"before")
        cluster.tick(4)
        cluster.cut(links_but(cluster, lambda a, b: HUB in (a, b)))
        ticks_max = 10 * subject.election_ticks
        assert cluster.run_until(partial(leads, cluster, HUB), ticks_max), f"seed {seed}"
        done(cluster, b"after")


def constrained(subject: Subject) -> None:
    """The leader is cut off, and the others reach only one hub, whose log is as good as theirs: the
    hub leads within a few timeouts."""
    for seed in range(10):
        cluster = subject.led(5, seed)
        done(cluster, b"before")
        cluster.tick(4)
        cluster.cut(links_but(cluster, lambda a, b: HUB in (a, b) and 1 not in (a, b)))
        ticks_max = 10 * subject.election_ticks
        assert cluster.run_until(partial(leads, cluster, HUB), ticks_max), f"seed {seed}"
        done(cluster, b"after")


def chained(subject: Subject) -> None:
    """Of three nodes in a chain one cannot hear the leader: the leader stays, and writes go on."""
    for seed in range(5):
        elections = Elections()
        cluster = subject.cluster(3, seed, checks=(elections,))
        elect(cluster, 1)
        cluster.cut([(1, 3), (3, 1)])
        for at in range(20 * subject.election_ticks):
            if at % 10 == 0 and cluster.leader() != NO_NODE:
                cluster.propose(cluster.leader(), b"%d" % at)
            cluster.tick()
        outcomes = [each.outcome for each in cluster.proposals]
        assert outcomes.count(Outcome.DONE) >= 0.9 * len(outcomes), f"seed {seed}: {outcomes}"
        assert len(elections.terms) <= 3, f"seed {seed}: {len(elections.terms)} elections"
        subject.recover(cluster)
        check_equal(cluster)


def one_way_links(subject: Subject) -> None:
    """Links that fail in one direction only leave a cluster that works again when they heal."""
    for link in ((1, 2), (2, 1), (1, 3), (3, 1)):
        cluster = subject.led()
        cluster.cut([link])
        cluster.run(10 * subject.election_ticks, propose_chance=0.2)
        done_count = sum(each.outcome is Outcome.DONE for each in cluster.proposals)
        assert done_count > 0, f"nothing was done while {link} was cut"
        subject.recover(cluster)
        check_equal(cluster)


def links_but(
    cluster: Cluster, keeps: Callable[[NodeId, NodeId], bool]
) -> Sequence[tuple[NodeId, NodeId]]:
    """Every directed link except those that are kept."""
    nodes: Mapping[NodeId, ClusterNode] = cluster.nodes
    return [(a, b) for a in nodes for b in nodes if a != b and not keeps(a, b)]


SCENARIOS: tuple[Scenario, ...] = scenarios_of(
    "faults",
    (
        loss,
        duplication,
        repeated_answers,
        reordering,
        everything,
        crash_at_every_write,
        whole_cluster_crashes,
        held_majority,
        leader_disk_held,
        no_leader_before_sync,
        slow_disk_deposes_nobody,
        quorum_loss,
        constrained,
        chained,
        one_way_links,
    ),
)
