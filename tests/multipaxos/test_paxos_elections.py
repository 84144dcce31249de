"""Elections: the round that binds nobody, back-off, hold, partial links, a detector outside."""

from __future__ import annotations

import pytest
from paxos_given import answers, b, carried_out, cluster_of, done, engine_of, led, lone

from replog.errors import InvariantViolated
from replog.testing import Cluster
from replog.types import Role
from replog_multipaxos import PLUGIN, MultiPaxosOptions, election
from replog_multipaxos.ballot import ROUND_MAX
from replog_multipaxos.messages import Commit, Nack, Prepare, Promise

DETECTOR = MultiPaxosOptions(automatic_elections=False)


def test_pre_round_binds_nobody() -> None:
    """Asking raises no ballot, writes nothing, and is answered at once."""
    engine = lone(promised=b(1, 3))
    engine.step(Prepare(1, b(5, 1), 1, 2, from_slot=1, pre=True, ordered_in=0))
    ready = engine.ready()
    assert ready is not None
    assert not ready.writes
    [answer] = ready.messages
    assert isinstance(answer, Promise)
    assert answer.pre
    assert engine.term == b(1, 3)


def test_pre_round_refused_while_a_leader_is_heard() -> None:
    """Who hears a leader refuses and says whom; after a timeout of silence he agrees."""
    engine = lone(promised=b(1, 1))
    engine.step(Commit(1, b(1, 1), 1, 2, chosen_upto=0, sent_upto=0, round=0))
    ask = Prepare(1, b(2, 3), 3, 2, from_slot=1, pre=True, ordered_in=0)
    engine.step(ask)
    [nack] = answers(engine)
    assert isinstance(nack, Nack)
    assert nack.leader_id == 1
    for _ in range(engine.options.election_ticks_min):
        engine.silent_ticks += 1
    engine.step(ask)
    assert isinstance(answers(engine)[0], Promise)


def test_hold_after_anothers_prepare() -> None:
    """Who promised somebody something does not campaign for 1.5 timeouts, and refuses others."""
    engine = lone()
    engine.step(Prepare(1, b(1, 1), 1, 2, from_slot=1, pre=False, ordered_in=0))
    carried_out(engine)
    engine.step(Prepare(1, b(2, 3), 3, 2, from_slot=1, pre=True, ordered_in=0))
    assert isinstance(answers(engine)[0], Nack)
    for _ in range(engine.options.hold_ticks - 1):
        engine.tick()
    assert engine.role is Role.FOLLOWER


@pytest.mark.parametrize("failed_count", range(6))
def test_back_off_doubles(failed_count: int) -> None:
    """Each Nack in a row doubles the range of the timeouts, up to eight times."""
    options = MultiPaxosOptions()
    drawn = [options.election_ticks(seed, 1, 1, 0, failed_count) for seed in range(2000)]
    spread = options.election_ticks_max - options.election_ticks_min
    widest = options.election_ticks_min + (spread << min(failed_count, 3))
    assert min(drawn) == options.election_ticks_min
    assert max(drawn) == widest


def test_refused_round_backs_off() -> None:
    """A round that a quorum refuses ends, and the next one comes later."""
    engine = lone(1, node_count=3)
    engine.campaign()
    carried_out(engine)
    assert engine.role is Role.PRE_CANDIDATE
    for sender in (2, 3):
        engine.step(Nack(1, 0, sender, 1, rejected=b(1, 1), leader_id=0))
    assert engine.role is Role.FOLLOWER
    assert engine.failed_count == 1
    assert engine.term == 0


def test_one_nack_per_node_counts() -> None:
    """Of five nodes, the same refusal twice is one refusal."""
    engine = lone(1, node_count=5)
    engine.campaign()
    carried_out(engine)
    for _ in range(4):
        engine.step(Nack(1, 0, 2, 1, rejected=b(1, 1), leader_id=0))
    assert engine.role is Role.PRE_CANDIDATE


def test_refused_ballot_backs_off_once() -> None:
    """However many nodes refuse one ballot, the range of the timeouts doubles once for it."""
    engine = lone(1, options=DETECTOR)
    for round_number in (1, 2):
        engine.campaign()
        carried_out(engine)
        for sender in (2, 3):
            engine.step(Nack(1, b(round_number, 3), sender, 1, b(round_number, 1), leader_id=0))
        assert engine.failed_count == round_number


def test_many_pages_are_no_failure() -> None:
    """A candidate whose promise comes in pages, one each few ticks, does not begin anew, however
    long that takes."""
    engine = lone(1)
    election.start_election(engine, ordered_in=0)
    carried_out(engine)
    ballot = engine.term
    for slot in range(1, 30):
        for _ in range(engine.options.election_ticks_min - 1):
            engine.tick()
        engine.step(Promise(1, ballot, 2, 1, False, slot, slot, 0, 0, ()))
        carried_out(engine)
    assert (engine.role, engine.term) == (Role.CANDIDATE, ballot)


@pytest.mark.parametrize("automatic", [False, True])
def test_last_round_stops_the_node(automatic: bool) -> None:
    """A node that has promised a ballot of the last round stops with a sentence when it would have
    to begin the next one: some node has miscounted."""
    engine = lone(1, options=MultiPaxosOptions(automatic_elections=automatic))
    engine.step(Commit(1, b(ROUND_MAX, 3), 3, 1, chosen_upto=0, sent_upto=0, round=0))
    carried_out(engine)
    with pytest.raises(InvariantViolated, match=f"of the last round, {ROUND_MAX}.* node 3"):
        engine.campaign()


def test_refusal_says_who_leads() -> None:
    """A node that cannot hear the leader learns from the quorum that refuses it whom they
    follow."""
    cluster = led(5)
    cluster.cut([(1, 5), (5, 1)])
    length = len(cluster.trace)
    cluster.tick(60)
    assert cluster.leader() == 1
    lines = [line for line in cluster.trace.lines(length) if line.split()[1:3] == ["n5", "role"]]
    asked = [at for at, line in enumerate(lines) if " pre_candidate" in line]
    assert asked
    assert "leader=n1" in lines[asked[0] + 1]


def test_detector_elects_without_timers() -> None:
    """With a failure detector outside no timer starts an election, and whoever it calls leads at
    once, whatever the others hear."""
    cluster = cluster_of(options=DETECTOR)
    cluster.tick(500)
    assert cluster.leader() == 0
    for node_id in (2, 1, 3):
        cluster.campaign(node_id)
        cluster.settle()
        assert cluster.leader() == node_id
        done(cluster, node_id, b"x")


def test_outdated_hub_of_constrained_links_leads() -> None:
    """The leader is cut off, the others reach only one hub, and the hub's log is the oldest of all:
    it is elected all the same and learns what it lacks, where a vote by log would refuse it."""
    for seed in range(10):
        cluster = Cluster(PLUGIN, node_count=5, seed=seed)
        cluster.campaign(1)
        cluster.settle()
        cut = cluster.isolate(3)
        for at in range(5):
            done(cluster, 1, b"%d" % at)
        cluster.mend(cut)
        cluster.cut(
            (a, z) for a in cluster.nodes for z in cluster.nodes if a != z and 3 not in (a, z)
        )
        cluster.cut([(1, 3), (3, 1)])
        assert cluster.run_until(lambda: cluster.leader() == 3, 200), f"seed {seed}"  # noqa: B023
        done(cluster, 3, b"after")
        assert len(cluster.applied(3)) >= 6


def test_prepares_until_stable_bounded() -> None:
    """After the death of a leader there are at most two binding phases 1 on average until another
    leads, over 50 seeds, and never more than five."""
    counts = []
    for seed in range(50):
        cluster = Cluster(PLUGIN, node_count=5, seed=seed)
        cluster.campaign(1)
        cluster.settle()
        cluster.tick(4)
        cluster.crash(1)
        length = len(cluster.trace)
        assert cluster.run_until(lambda: cluster.leader() != 0, 100)  # noqa: B023
        cluster.tick(30)
        lines = cluster.trace.lines(length)
        counts.append(sum(1 for line in lines if " role       candidate" in line))
    assert sum(counts) / len(counts) <= 2
    assert max(counts) <= 5


def test_leader_without_quorum_steps_down() -> None:
    """A leader that hears no phase-2 quorum for a timeout stops."""
    cluster = led()
    cluster.isolate(1)
    cluster.tick(2 * 10 + 1)
    assert engine_of(cluster, 1).role is not Role.LEADER
