"""Reads that need no entry (Raft §8; thesis §6.4)."""

from __future__ import annotations

from given import (
    accepted,
    append,
    heartbeat_reply,
    make_leader,
    make_raft,
    make_steady_leader,
    only,
    settle,
    take,
    tick,
)

from replog.types import NO_NODE, LogIndex, NodeId, ReadIndex, Role, Voter
from replog_raft.messages import AppendEntries, Heartbeat, ReadReply, ReadRequest
from replog_raft.raft import Raft


def begin(raft: Raft, *read_ids: int) -> int:
    """Ask some reads of a leader, and return the number of the round that began for them."""
    for read_id in read_ids:
        raft.read(read_id)
    ready = take(raft)
    assert not ready.reads
    return only(Heartbeat, ready.messages)[-1].round


def answered(raft: Raft) -> list[tuple[int, LogIndex | None]]:
    """The reads that are answered by now."""
    found: list[ReadIndex] = []
    while (ready := raft.ready()) is not None:
        found += ready.reads
        raft.advance(ready)
    return [(read.read_id, read.index) for read in found]


# -- at the leader --


def test_read_waits_for_majority() -> None:
    """Thesis §6.4: A leader serves a read when a majority, itself among it, has answered a round of
    heartbeats that began after the read was asked for."""
    raft = make_steady_leader(make_raft((1, 1), term=4, voters=5), (2, 3, 4, 5))
    number = begin(raft, 7)
    assert answered(raft) == []
    raft.step(heartbeat_reply(5, 2, number))
    raft.step(heartbeat_reply(5, 2, number))
    assert answered(raft) == []
    raft.step(heartbeat_reply(5, 3, number))
    assert answered(raft) == [(7, 3)]


def test_read_round_not_answered_before() -> None:
    """Thesis §6.4: The answer to a round that began before the read did proves nothing."""
    raft = make_steady_leader(make_raft((1, 1), term=4))
    tick(raft, 2)
    (earlier, _) = only(Heartbeat, settle(raft))
    assert begin(raft, 7) > earlier.round
    for peer in (2, 3):
        raft.step(heartbeat_reply(5, peer, earlier.round))
    assert answered(raft) == []


def test_read_after_round_left_waits() -> None:
    """Thesis §6.4: A read that was asked for when the round's heartbeats had left waits for the
    next round."""
    raft = make_steady_leader(make_raft((1, 1), term=4))
    first = begin(raft, 7)
    second = begin(raft, 8)
    raft.step(heartbeat_reply(5, 2, first))
    assert answered(raft) == [(7, 3)]
    raft.step(heartbeat_reply(5, 2, second))
    assert answered(raft) == [(8, 3)]


def test_read_later_round_will_do() -> None:
    """Thesis §6.4: Who answered a later round was in no higher term at the earlier one, so what was
    lost is made good by the next heartbeats."""
    raft = make_steady_leader(make_raft((1, 1), term=4))
    number = begin(raft, 7)
    tick(raft, 2)
    (later, _) = only(Heartbeat, settle(raft))
    assert later.round > number
    raft.step(heartbeat_reply(5, 3, later.round))
    assert answered(raft) == [(7, 3)]


def test_read_answer_to_no_round_ignored() -> None:
    """Thesis §6.4: An answer to a round that has not begun confirms nothing."""
    raft = make_steady_leader(make_raft((1, 1), term=4))
    number = begin(raft, 7)
    raft.step(heartbeat_reply(5, 2, number + 1))
    assert answered(raft) == []


def test_reads_share_a_round() -> None:
    """Thesis §6.4: Reads that come together cost one round of heartbeats."""
    raft = make_steady_leader(make_raft((1, 1), term=4))
    for read_id in range(10):
        raft.read(read_id)
    beats = only(Heartbeat, take(raft).messages)
    assert [beat.to for beat in beats] == [2, 3]
    raft.step(heartbeat_reply(5, 2, beats[0].round))
    assert answered(raft) == [(read_id, 3) for read_id in range(10)]


def test_read_new_leader_waits_for_noop() -> None:
    """§8: A new leader does not know what is committed before its no-op is, so it has a read wait
    for that."""
    raft = make_leader(make_raft((1, 1), term=4))
    assert raft.commit_index == 0
    number = begin(raft, 7)
    raft.step(heartbeat_reply(5, 2, number))
    assert answered(raft) == [(7, 3)]


def test_read_sees_what_is_committed() -> None:
    """Thesis §6.4: The index of a read is the commit index as its round begins, at least."""
    raft = make_steady_leader(make_raft((1, 1), term=4))
    for _ in range(2):
        raft.propose(b"set")
    settle(raft)
    raft.step(accepted(5, 2, 5))
    settle(raft)
    number = begin(raft, 7)
    raft.step(heartbeat_reply(5, 3, number))
    assert answered(raft) == [(7, 5)]


def test_read_alone_at_once() -> None:
    """Thesis §6.4: The only voter is a majority by itself."""
    raft = make_leader(make_raft(voters=1))
    raft.read(7)
    assert answered(raft) == [(7, 1)]


def test_read_learner_not_counted() -> None:
    """Thesis §4.2.1: The answer of a learner, which remembers no vote, confirms no round."""
    raft = make_steady_leader(make_raft((1, 1), term=4))
    raft.set_learners((Voter(3, 9),))
    settle(raft)
    number = begin(raft, 7)
    raft.step(heartbeat_reply(5, 3, number))
    assert answered(raft) == []
    raft.step(heartbeat_reply(5, 2, number))
    assert answered(raft) == [(7, 3)]


def test_read_refused_when_deposed() -> None:
    """Thesis §6.4: A leader that learns of a higher term serves no read that it has not confirmed
    yet."""
    raft = make_steady_leader(make_raft((1, 1), term=4))
    number = begin(raft, 7)
    raft.step(append(6, 3, 5))
    assert raft.role is Role.FOLLOWER
    raft.step(heartbeat_reply(5, 3, number))
    assert answered(raft) == [(7, None)]


def test_read_amid_transfer() -> None:
    """Thesis §3.10: A leader that is handing over still reads, for its successor needs the votes of
    a majority before anything can be committed without it."""
    raft = make_steady_leader(make_raft((1, 1), term=4))
    raft.transfer(2)
    settle(raft)
    number = begin(raft, 7)
    raft.step(heartbeat_reply(5, 3, number))
    assert answered(raft) == [(7, 3)]


def test_rounds_ask_for_no_gaps() -> None:
    """§5.3: Rounds of reads may be many, so between two ticks' heartbeats an answer asks only once
    where a peer stands that has not acknowledged everything yet."""
    raft = make_steady_leader(make_raft((1, 1), term=4))
    raft.propose(b"set")
    settle(raft)
    probes: list[AppendEntries] = []
    for read_id in range(5):
        number = begin(raft, read_id)
        raft.step(heartbeat_reply(5, 2, number))
        probes += only(AppendEntries, settle(raft))
    assert len(probes) == 1
    tick(raft, 2)
    (beat, _) = only(Heartbeat, settle(raft))
    raft.step(heartbeat_reply(5, 2, beat.round))
    assert len(only(AppendEntries, settle(raft), to=2)) == 1


# -- at a follower --


def follower(nonce_count: int = 0) -> Raft:
    """A follower of node 2 in term 5 that has asked ``nonce_count`` reads already."""
    raft = make_raft((1, 1), term=4)
    raft.step(append(5, 2, 1))
    settle(raft)
    for at in range(nonce_count):
        raft.read(100 + at)
        (request,) = only(ReadRequest, settle(raft))
        raft.step(ReadReply(1, 5, 2, 1, request.nonce, 2))
        settle(raft)
    return raft


def test_follower_asks_its_leader() -> None:
    """Thesis §6.4: A follower serves reads too: it asks the leader for the index, one request for
    all that came."""
    raft = follower()
    raft.read(7)
    raft.read(8)
    (request,) = only(ReadRequest, settle(raft))
    assert (request.to, request.term) == (2, 5)
    raft.step(ReadReply(1, 5, 2, 1, request.nonce, 9))
    assert answered(raft) == [(7, 9), (8, 9)]


def test_leader_answers_after_round() -> None:
    """Thesis §6.4: A leader answers a follower's request as its own reads, after a round that began
    since."""
    raft = make_steady_leader(make_raft((1, 1), term=4))
    raft.step(ReadRequest(1, 5, 3, 1, 77))
    sent = settle(raft)
    assert not only(ReadReply, sent)
    raft.step(heartbeat_reply(5, 2, only(Heartbeat, sent)[-1].round))
    assert only(ReadReply, settle(raft)) == [ReadReply(1, 5, 1, 3, 77, 3)]


def test_follower_asks_again() -> None:
    """Thesis §6.4: A request or an answer that was lost is made good by a later one."""
    raft = follower()
    raft.read(7)
    (first,) = only(ReadRequest, settle(raft))
    tick(raft, 2)
    (second,) = only(ReadRequest, settle(raft))
    assert second.nonce > first.nonce
    raft.step(ReadReply(1, 5, 2, 1, second.nonce, 4))
    assert answered(raft) == [(7, 4)]


def test_follower_asks_new_leader() -> None:
    """Thesis §6.4: What the last leader did not answer is asked of the next."""
    raft = follower()
    raft.read(7)
    assert only(ReadRequest, settle(raft), to=2)
    raft.step(append(6, 2, 1, sender=3))
    (request,) = only(ReadRequest, settle(raft))
    assert (request.to, request.term) == (3, 6)


def test_follower_earlier_answer_proves_nothing() -> None:
    """Thesis §6.4: A read is not served by the answer to a request that left before it was asked
    for."""
    raft = follower()
    raft.read(7)
    (first,) = only(ReadRequest, settle(raft))
    raft.read(8)
    settle(raft)
    raft.step(ReadReply(1, 5, 2, 1, first.nonce, 4))
    assert answered(raft) == [(7, 4)]


def test_follower_answer_to_earlier_life() -> None:
    """Thesis §6.4: An answer to a request of an earlier life of the process is no answer, be its
    number lower than those of this life, or higher."""
    raft = follower(nonce_count=1)
    raft.read(7)
    (request,) = only(ReadRequest, settle(raft))
    for nonce in (0, request.nonce + 1, request.nonce + 1000):
        raft.step(ReadReply(1, 5, 2, 1, nonce, 4))
    assert answered(raft) == []


def test_follower_without_leader_refuses() -> None:
    """Thesis §6.4: Without a leader a read is refused after a while."""
    raft = make_raft((1, 1), term=4)
    assert raft.leader_id == NO_NODE
    raft.read(7)
    assert answered(raft) == []
    tick(raft, raft.setup.limits.read_ticks_max)
    assert answered(raft) == [(7, None)]


def test_follower_becomes_leader() -> None:
    """Thesis §6.4: What a follower was asked and its leader did not answer waits for a round when
    it leads itself."""
    raft = make_raft((1, 1), term=4)
    raft.read(7)
    settle(raft)
    peers: tuple[NodeId, ...] = (2, 3)
    make_steady_leader(raft, peers)
    tick(raft, 2)
    (beat, _) = only(Heartbeat, settle(raft))
    raft.step(heartbeat_reply(5, 2, beat.round))
    assert answered(raft) == [(7, 3)]
