"""Reads that need no slot: rounds of Commits, and what a leader recovered (FPaxos §3)."""

from __future__ import annotations

from paxos_given import answers, b, carried_out, done, engine_of, kind, led, lone

from replog.testing import Cluster, Outcome
from replog.types import LogIndex, ReadIndex, Role, Voter
from replog_multipaxos import MultiPaxos, MultiPaxosOptions
from replog_multipaxos.messages import (
    Accept,
    Commit,
    CommitReply,
    LearnRequest,
    Prepare,
    ReadReply,
    ReadRequest,
)


def reply(engine: MultiPaxos, sender: int, round_number: int) -> CommitReply:
    """An acceptor answers a round."""
    return CommitReply(1, engine.term, sender, engine.node_id, round_number, 0, 0, ())


def answered(engine: MultiPaxos) -> list[tuple[int, LogIndex | None]]:
    """The reads that are answered by now."""
    reads: list[ReadIndex] = [read for ready in carried_out(engine) for read in ready.reads]
    return [(read.read_id, read.index) for read in reads]


def test_round_is_a_commit_that_names_no_slot() -> None:
    """A round of reads asks for nothing but an answer: nothing is sent again because of it, and
    no values are asked for."""
    cluster = led()
    done(cluster, 1, b"x")
    leader, follower = engine_of(cluster, 1), engine_of(cluster, 2)
    leader.propose(b"under way")
    leader.read(7)
    sent = answers(leader)
    commits = [message for message in sent if isinstance(message, Commit)]
    assert [(each.to, each.chosen_upto, each.sent_upto) for each in commits] == [
        (2, 0, 0),
        (3, 0, 0),
    ]
    follower.step(commits[0])
    (answer,) = answers(follower)
    assert isinstance(answer, CommitReply)
    assert answer.ranges == ()
    leader.step(answer)
    again = answers(leader)
    assert not any(isinstance(message, Accept) for message in again)


def test_reads_do_not_hurry_learning() -> None:
    """A node that lacks chosen values asks for them by the heartbeats of ticks, not by the rounds
    of reads, which may be many."""
    engine = lone(promised=b(1, 1))
    engine.step(Commit(1, b(1, 1), 1, 2, chosen_upto=5, sent_upto=5, round=1))
    answers(engine)
    for round_number in range(2, 6):
        engine.step(Commit(1, b(1, 1), 1, 2, chosen_upto=0, sent_upto=0, round=round_number))
        assert not any(isinstance(each, LearnRequest) for each in answers(engine))
    engine.step(Commit(1, b(1, 1), 1, 2, chosen_upto=5, sent_upto=5, round=6))
    assert any(isinstance(each, LearnRequest) for each in answers(engine))


def test_read_waits_for_recovered_slots() -> None:
    """A new leader has a read wait for the last slot that phase 1 found open, though it does not
    know that one as chosen."""
    cluster = led()
    done(cluster, 1, b"x")
    cluster.hold(kind("accepted"))
    cluster.propose(1, b"y")
    cluster.settle()
    cluster.crash(1)
    leader_id = next_leader(cluster)
    leader = engine_of(cluster, leader_id)
    assert leader.commit_index < leader.slots.last_index
    query = cluster.query(leader_id)
    cluster.settle()
    assert query.outcome is Outcome.PENDING
    cluster.release()
    cluster.tick(5)
    assert query.result == (b"x", b"y")


def next_leader(cluster: Cluster) -> int:
    """Let time pass until somebody leads."""
    assert cluster.run_until(lambda: cluster.leader() in (2, 3), 200)
    return cluster.leader()


def test_phase2_quorum_confirms() -> None:
    """As many answers as a phase-2 quorum has confirm a round: it meets every phase-1 quorum, and
    one that a leader is by itself needs no other."""
    for phase2, needed in ((1, 0), (2, 1), (3, 2), (5, 4)):
        options = MultiPaxosOptions(phase1_quorum=6 - phase2, phase2_quorum=phase2)
        cluster = led(5, options)
        leader = engine_of(cluster, 1)
        leader.read(7)
        found = answered(leader)
        assert bool(found) is (needed == 0)
        for sender in range(2, 2 + needed):
            assert not found
            leader.step(reply(leader, sender, leader.leader.round if leader.leader else 0))
            found = answered(leader)
        assert found == [(7, 0)]


def test_learner_confirms_nothing() -> None:
    """An acceptor that lost its memory counts in no round."""
    leader = engine_of(led(), 1)
    leader.set_learners((Voter(3, 9),))
    leader.read(7)
    answered(leader)
    assert leader.leader is not None
    leader.step(reply(leader, 3, leader.leader.round))
    assert answered(leader) == []
    leader.step(reply(leader, 2, leader.leader.round))
    assert answered(leader) == [(7, 0)]


def test_answers_of_lower_ballots_confirm_nothing() -> None:
    """An answer at another ballot, and one to a round that never began, prove nothing."""
    leader = engine_of(led(), 1)
    leader.read(7)
    answered(leader)
    assert leader.leader is not None
    number = leader.leader.round
    leader.step(CommitReply(1, leader.term - 1, 2, 1, number, 0, 0, ()))
    leader.step(reply(leader, 2, number + 1))
    leader.step(reply(leader, 2, number - 1))
    assert answered(leader) == []


def test_deposed_leader_refuses() -> None:
    """A leader that promises a higher ballot serves no read of a round that is not confirmed."""
    leader = engine_of(led(), 1)
    leader.read(7)
    answered(leader)
    leader.step(Prepare(1, b(9, 2), 2, 1, from_slot=1, pre=False, ordered_in=0))
    assert leader.role is Role.FOLLOWER
    assert answered(leader) == [(7, None)]


def test_acceptor_that_promised_more_does_not_answer() -> None:
    """An acceptor bound to a higher ballot answers a round with a Nack, which confirms nothing."""
    cluster = led()
    leader, acceptor = engine_of(cluster, 1), engine_of(cluster, 2)
    leader.read(7)
    (commit, _) = [each for each in answers(leader) if isinstance(each, Commit)]
    acceptor.step(Prepare(1, b(9, 3), 3, 2, from_slot=1, pre=False, ordered_in=0))
    acceptor.step(commit)
    sent = answers(acceptor)
    assert not any(isinstance(each, CommitReply) for each in sent)


def test_follower_asks_and_serves() -> None:
    """A follower asks its leader once for all that came, and serves with the answer."""
    cluster = led()
    done(cluster, 1, b"x")
    cluster.tick(2)
    leader, follower = engine_of(cluster, 1), engine_of(cluster, 3)
    for read_id in (7, 8):
        follower.read(read_id)
    (request,) = answers(follower)
    assert isinstance(request, ReadRequest)
    leader.step(request)
    sent = answers(leader)
    assert not any(isinstance(each, ReadReply) for each in sent)
    assert leader.leader is not None
    leader.step(reply(leader, 2, leader.leader.round))
    (answer,) = [each for each in answers(leader) if isinstance(each, ReadReply)]
    follower.step(answer)
    assert answered(follower) == [(7, 1), (8, 1)]
