"""Reads that need no entry (Raft §8; thesis §6.4): the rounds of a leader, and who asks it.

:mod:`replog.reads` keeps what waits; here are Raft's messages, its index and its quorum.  A round
is a round of heartbeats: the answer to a heartbeat states that its sender was in the leader's term,
and in no higher one, when it gave it.  These functions are given the engine they act for; they
write its outbox and the rounds of its leadership.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from replog.reads import Reader
from replog.types import NO_NODE, LogIndex, ReadIndex
from replog_raft import leader as leading
from replog_raft.messages import ReadReply, ReadRequest

if TYPE_CHECKING:
    from replog_raft.leader import Leader
    from replog_raft.raft import Raft


def carry_on(raft: Raft) -> Sequence[ReadIndex]:
    """Begin what the reads need that came since the last ``ready``: a round at a leader, a request
    at anybody who follows one.  Returns the reads that are answered."""
    leader = raft.leader
    if leader is None:
        ask_leader(raft)
    else:
        turn_rounds(raft, leader)
    return raft.reads.take_answers()


def turn_rounds(raft: Raft, leader: Leader) -> None:
    """Begin a round for whoever waits for one, and serve whoever's round is confirmed."""
    for read_id in raft.reads.take_waiting():
        leader.rounds.register(Reader(raft.node_id, read_id))
    if leader.rounds.has_fresh:
        begin_round(raft, leader)
    # Thesis §6.4: a majority, ourselves among it.  Whoever was elected in a higher term had a
    # majority too, so one of those who answered voted for it, and did that after it answered us:
    # when the round began nobody had committed anything in a higher term.  A leader that is handing
    # over reads on, since its successor needs the same votes.
    for reader, index in leader.rounds.release(raft.quorum, raft.node_id):
        if reader.node_id == raft.node_id:
            raft.reads.serve(reader.number, index)
        else:
            epoch, me = raft.epoch.number, raft.node_id
            raft.send(ReadReply(epoch, raft.term, me, reader.node_id, reader.number, index))


def read_index(raft: Raft, leader: Leader) -> LogIndex:
    """Up to where whoever reads now must have applied.

    Before the no-op of its term is committed a leader does not know what is (Raft §8); the no-op
    has everything in front of it that was committed in earlier terms (Raft §5.4.3).
    """
    return max(raft.commit_index, leader.first_index)


def read_by_lease(raft: Raft, read_id: int, now_ns: int) -> bool:
    """Serve a read without a round, if at ``now_ns`` our lease still runs (thesis §6.4.1)."""
    leader = raft.leader
    if leader is None or not leader.lease.holds(now_ns):
        return False
    raft.reads.serve_unasked(read_id, read_index(raft, leader))
    return True


def begin_round(raft: Raft, leader: Leader) -> None:
    """Send a heartbeat to everybody, of a number of its own."""
    leading.begin_round(raft, leader)
    leader.rounds.begin(leader.round, read_index(raft, leader))
    if leader.probed is None:
        leader.probed = []
    for peer, progress in leader.progress.items():
        leading.send_heartbeat(raft, peer, progress, leader.round)


def ask_leader(raft: Raft) -> None:
    """Ask the leader that we follow for the index to read at; a learner may, too."""
    if raft.leader_id == NO_NODE:
        return
    nonce = raft.reads.next_nonce(raft.leader_id, raft.term)
    if nonce is not None:
        epoch, me = raft.epoch.number, raft.node_id
        raft.send_stating_term(ReadRequest(epoch, raft.term, me, raft.leader_id, nonce))


def handle_read_request(raft: Raft, message: ReadRequest) -> None:
    """A follower reads; above the limit it has to ask again."""
    leader = raft.leader
    assert leader is not None
    if leader.rounds.count < raft.setup.limits.reads_max:
        leader.rounds.register(Reader(message.sender, message.nonce))


def end_rounds(raft: Raft, leader: Leader) -> None:
    """The leadership is over: what waits for its rounds will not be confirmed.  Peers ask whoever
    leads next."""
    own = [each.number for each in leader.rounds.readers() if each.node_id == raft.node_id]
    raft.reads.refuse(own)
