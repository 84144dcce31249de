"""Who leads, when, and who does not."""

from __future__ import annotations

from replog.testing.conformance.subject import (
    Elections,
    Scenario,
    Subject,
    check_equal,
    done,
    elect,
    scenarios_of,
)
from replog.testing.nodes import Outcome
from replog.types import NO_NODE, Role

COLD_STARTS = 100
ELECTIONS_MEAN_MAX = 2.0


def by_timeout(subject: Subject) -> None:
    """A cluster that is left alone elects a leader within three timeouts, and every node learns of
    it."""
    for node_count in subject.supported(1, 2, 3, 4, 5):
        cluster = subject.cluster(node_count)
        leader_id = subject.wait_leader(cluster)
        cluster.tick(subject.election_ticks)
        known = [node.replica.engine.soft_state.leader_id for node in cluster.nodes.values()]
        assert known == [leader_id] * node_count


def by_hand(subject: Subject) -> None:
    """Whichever node is told to campaign leads, and commits, without any time passing."""
    for node_id in (1, 2, 3):
        cluster = subject.cluster()
        elect(cluster, node_id)
        done(cluster, b"x")
        assert cluster.now == 0


def after_leader_died(subject: Subject) -> None:
    """When the leader dies, another leads within two of the longest timeouts, and writes go on."""
    node_counts = subject.supported(5, 3)
    for seed in range(20):
        cluster = subject.led(node_counts[seed % len(node_counts)], seed)
        done(cluster, b"before")
        cluster.tick(3)
        cluster.crash(1)
        ticks_max = 2 * subject.election_ticks + 2
        assert cluster.run_until(lambda: cluster.leader() != NO_NODE, ticks_max), f"seed {seed}"  # noqa: B023
        done(cluster, b"after")


def two_of_five_down(subject: Subject) -> None:
    """With two of five nodes down every proposal is done."""
    cluster = subject.led(5)
    cluster.crash(4)
    cluster.crash(5)
    for at in range(20):
        done(cluster, b"%d" % at)
        cluster.tick()


def three_of_five_down(subject: Subject) -> None:
    """With three of five nodes down nothing is done, and every proposal gets a typed outcome."""
    cluster = subject.led(5)
    for node_id in (3, 4, 5):
        cluster.crash(node_id)
    proposals = [cluster.propose(1, b"%d" % at) for at in range(5)]
    cluster.tick(4 * subject.election_ticks)
    proposals += [cluster.propose(node_id, b"late") for node_id in (1, 2)]
    cluster.tick(subject.election_ticks)
    assert cluster.leader() == NO_NODE, "a leader without a quorum goes on for ever"
    assert all(each.outcome in (Outcome.UNKNOWN, Outcome.NOT_DONE) for each in proposals)
    subject.recover(cluster)


def cold_start_of_five(subject: Subject) -> None:
    """Five nodes that start at once need at most two elections on average, over 100 seeds."""
    count = 0
    for seed in range(COLD_STARTS):
        elections = Elections()
        cluster = subject.cluster(5, seed, checks=(elections,))
        subject.wait_leader(cluster, timeouts=10)
        cluster.tick(2)
        count += len(elections.terms)
    mean = count / COLD_STARTS
    assert mean <= ELECTIONS_MEAN_MAX, f"{mean:.2f} elections on average"


def stable_leader(subject: Subject) -> None:
    """While nothing fails, nobody but the leader ever asks to lead."""
    elections = Elections()
    cluster = subject.cluster(5, checks=(elections,))
    subject.wait_leader(cluster)
    count = len(elections.terms)
    cluster.run(20 * subject.election_ticks, propose_chance=0.3)
    assert len(elections.terms) == count


def two_believed_leaders(subject: Subject) -> None:
    """A leader that was cut off and its successor propose at the same time and never diverge; what
    the old one took ends as not done or unknown."""
    for seed in range(10):
        cluster = subject.led(5, seed)
        done(cluster, b"common")
        cluster.partition((1, 2), (3, 4, 5))
        old = [cluster.propose(1, b"old %d" % at) for at in range(3)]
        cluster.run_until(lambda: cluster.leader() in (3, 4, 5), 5 * subject.election_ticks)  # noqa: B023
        new = cluster.leader()
        assert new in (3, 4, 5)
        if cluster.nodes[1].replica.engine.soft_state.role is Role.LEADER:
            old.append(cluster.propose(1, b"old, beside the new"))
        done(cluster, b"new")
        subject.recover(cluster)
        check_equal(cluster)
        assert all(each.outcome in (Outcome.UNKNOWN, Outcome.NOT_DONE) for each in old)


def transfer(subject: Subject) -> None:
    """Leadership is handed to a peer that is up to date without a timeout, and writes go on."""
    cluster = subject.led()
    done(cluster, b"before")
    cluster.tick(subject.election_ticks)
    cluster.transfer(1, 2)
    cluster.settle()
    assert cluster.leader() == 2
    done(cluster, b"after")
    subject.recover(cluster)
    check_equal(cluster)


def transfer_to_lagging(subject: Subject) -> None:
    """A peer that lags is brought up before it takes over; nothing is lost."""
    cluster = subject.led()
    cut = cluster.isolate(3)
    for at in range(20):
        done(cluster, b"%d" % at)
    cluster.mend(cut)
    cluster.transfer(1, 3)
    assert cluster.run_until(lambda: cluster.leader() == 3, subject.election_ticks)
    done(cluster, b"after")
    subject.recover(cluster)
    check_equal(cluster)


def transfer_to_dead(subject: Subject) -> None:
    """A transfer to a node that is down is given up after a while, and writes resume."""
    cluster = subject.led()
    cluster.crash(3)
    cluster.transfer(1, 3)
    refused = cluster.propose(1, b"meanwhile")
    assert refused.outcome is Outcome.NOT_DONE
    cluster.tick(2 * subject.election_ticks)
    assert cluster.leader() == 1
    done(cluster, b"after")


SCENARIOS: tuple[Scenario, ...] = scenarios_of(
    "elections",
    (
        by_timeout,
        by_hand,
        after_leader_died,
        two_of_five_down,
        three_of_five_down,
        cold_start_of_five,
        stable_leader,
        two_believed_leaders,
        transfer,
        transfer_to_lagging,
        transfer_to_dead,
    ),
)
