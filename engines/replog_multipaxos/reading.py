"""Reads that need no slot: the rounds of a leader, and who asks it.

:mod:`replog.reads` keeps what waits; here are the messages, the index and the quorum of
Multi-Paxos.  A round is a round of Commits that name no slot: the answer states that its sender had
promised the leader's ballot, and no higher one, when it gave it.  These functions are given the
engine they act for; they write its outbox and the rounds of its leadership.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from replog.reads import Reader
from replog.types import NO_NODE, LogIndex, ReadIndex
from replog_multipaxos import leader as leading
from replog_multipaxos.messages import Commit, ReadReply, ReadRequest

if TYPE_CHECKING:
    from replog_multipaxos.leader import Leader
    from replog_multipaxos.multipaxos import MultiPaxos


def carry_on(engine: MultiPaxos) -> Sequence[ReadIndex]:
    """Begin what the reads need that came since the last ``ready``: a round at a leader, a request
    at anybody who follows one.  Returns the reads that are answered."""
    leader = engine.leader
    if leader is None:
        ask_leader(engine)
    else:
        turn_rounds(engine, leader)
    return engine.reads.take_answers()


def turn_rounds(engine: MultiPaxos, leader: Leader) -> None:
    """Begin a round for whoever waits for one, and serve whoever's round is confirmed."""
    for read_id in engine.reads.take_waiting():
        leader.rounds.register(Reader(engine.node_id, read_id))
    if leader.rounds.has_fresh:
        begin_round(engine, leader)
    # A later leader needs promises from a phase-1 quorum, which every phase-2 quorum meets (FPaxos
    # §3); and whoever answered had promised nothing higher when it answered.  So its promise to
    # that leader came after the round began, and nothing was chosen at a higher ballot before.  A
    # leader that is handing over reads on, since its successor needs the same promises.
    for reader, index in leader.rounds.release(engine.phase2_quorum, engine.node_id):
        if reader.node_id == engine.node_id:
            engine.reads.serve(reader.number, index)
        else:
            epoch, me = engine.epoch.number, engine.node_id
            engine.send(ReadReply(epoch, engine.term, me, reader.node_id, reader.number, index))


def read_index(engine: MultiPaxos, leader: Leader) -> LogIndex:
    """Up to where whoever reads now must have applied.

    What was chosen at lower ballots is not behind the last slot that phase 1 found open (PMS §2.2,
    P2c), though a new leader may not know yet what of it is chosen; what is chosen at our own
    ballot nobody knows before we do.
    """
    return max(engine.commit_index, leader.recovered_index)


def read_by_lease(engine: MultiPaxos, read_id: int, now_ns: int) -> bool:
    """Serve a read without a round, if at ``now_ns`` our lease still runs."""
    leader = engine.leader
    if leader is None or not leader.lease.holds(now_ns):
        return False
    engine.reads.serve_unasked(read_id, read_index(engine, leader))
    return True


def begin_round(engine: MultiPaxos, leader: Leader) -> None:
    """Send everybody a Commit of a round of its own."""
    leading.begin_round(engine, leader)
    leader.rounds.begin(leader.round, read_index(engine, leader))
    epoch, ballot, me = engine.epoch.number, engine.term, engine.node_id
    for peer in leader.progress:
        engine.send(Commit(epoch, ballot, me, peer, 0, 0, leader.round))


def ask_leader(engine: MultiPaxos) -> None:
    """Ask the leader that we follow for the index to read at; a learner may, too."""
    if engine.leader_id == NO_NODE:
        return
    nonce = engine.reads.next_nonce(engine.leader_id, engine.term)
    if nonce is not None:
        epoch, me = engine.epoch.number, engine.node_id
        engine.send_stating_term(ReadRequest(epoch, engine.term, me, engine.leader_id, nonce))


def handle_read_request(engine: MultiPaxos, message: ReadRequest) -> None:
    """A follower reads; above the limit it has to ask again."""
    leader = engine.leader
    assert leader is not None
    if leader.rounds.count < engine.setup.limits.reads_max:
        leader.rounds.register(Reader(message.sender, message.nonce))


def handle_read_reply(engine: MultiPaxos, message: ReadReply) -> None:
    """The leader at our ballot says where to read."""
    engine.reads.hear(message.nonce, message.index)


def end_rounds(engine: MultiPaxos, leader: Leader) -> None:
    """The leadership is over: what waits for its rounds will not be confirmed.  Peers ask whoever
    leads next."""
    own = [each.number for each in leader.rounds.readers() if each.node_id == engine.node_id]
    engine.reads.refuse(own)
