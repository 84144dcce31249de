"""Engines in a given state, and messages as values: what the tests of the paper start from.

The engine under test is node 1 and its first peer is node 2, unless a test says otherwise.  Each
function makes one thing; what it leaves out does not matter to the claim.  Nothing is faked: a
candidate or a leader got there by messages alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from replog.engine import EngineSetup
from replog.limits import Limits
from replog.stored_log import HeldLog
from replog.types import (
    NO_NODE,
    Entry,
    EntryKind,
    Epoch,
    HardState,
    LogIndex,
    NodeId,
    Ready,
    Role,
    Term,
    Voter,
    entry_body,
)
from replog_raft.messages import (
    AppendEntries,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    RequestVote,
    TimeoutNow,
    Vote,
)
from replog_raft.options import RaftOptions
from replog_raft.raft import Raft

ME: Final[NodeId] = 1
EPOCH: Final = 1
OPTIONS: Final = RaftOptions(heartbeat_ticks=2, election_ticks_min=10, election_ticks_max=20)
LIMITS: Final = Limits()

_M = TypeVar("_M")


# -- logs --


def entry(index: LogIndex, term: Term, data: bytes = b"") -> Entry:
    """The entry that the leader of ``term`` proposed at ``index``."""
    return Entry(EPOCH, index, term, entry_body(EntryKind.COMMAND, EPOCH, term, index, data))


def log_of(terms: Sequence[Term], first_index: LogIndex = 1) -> tuple[Entry, ...]:
    """One entry for each of ``terms``."""
    return tuple(entry(index, term) for index, term in enumerate(terms, first_index))


def terms_of(raft: Raft) -> tuple[Term, ...]:
    """The terms of the whole log."""
    first, last = raft.view.base_index + 1, raft.view.last_index
    return tuple(raft.view.slice(index, index)[0].term for index in range(first, last + 1))


# -- engines --


def make_raft(
    terms: Sequence[Term] = (),
    *,
    term: Term = 0,
    voted_for: NodeId = NO_NODE,
    voters: int = 3,
    node_id: NodeId = ME,
    options: RaftOptions = OPTIONS,
    limits: Limits = LIMITS,
    start_index: LogIndex = 1,
    seed: int = 7,
) -> Raft:
    """A follower as it starts from its disk: a log of ``terms``, and at least ``term``."""
    term = max(term, *terms, 0)
    members = tuple(Voter(voter, 100 + voter) for voter in range(1, voters + 1))
    setup = EngineSetup(
        node_id=node_id,
        epoch=Epoch(EPOCH, "raft", members, start_index),
        hard_state=HardState(EPOCH, term, voted_for),
        log=HeldLog(log_of(terms, start_index)),
        limits=limits,
        options=options,
        seed=seed,
        nonce=0,
    )
    return Raft(setup)


def restart(raft: Raft, hard_state: HardState, entries: Sequence[Entry]) -> Raft:
    """The same node after a crash that left ``hard_state`` and ``entries`` on its disk."""
    return Raft(replace(raft.setup, hard_state=hard_state, log=HeldLog(entries)))


def make_asking_candidate(raft: Raft) -> Raft:
    """Turn a follower into a candidate whose own vote is not on disk yet."""
    raft.campaign()
    for peer in raft.peer_ids:
        if raft.role is Role.PRE_CANDIDATE:
            raft.step(vote(raft.term + 1, peer, pre=True))
    assert raft.role is Role.CANDIDATE
    return raft


def make_candidate(raft: Raft) -> Raft:
    """Turn a follower into a candidate whose own vote is on disk and counted."""
    make_asking_candidate(raft)
    settle(raft)
    return raft


def make_new_leader(raft: Raft) -> Raft:
    """Turn a follower into a leader that has sent nothing yet."""
    make_candidate(raft)
    for peer in raft.peer_ids:
        if raft.role is Role.CANDIDATE:
            raft.step(vote(raft.term, peer))
    assert raft.role is Role.LEADER
    return raft


def make_leader(raft: Raft) -> Raft:
    """Turn a follower into a leader whose no-op is on its disk and on its way to the peers."""
    make_new_leader(raft)
    settle(raft)
    return raft


def make_steady_leader(raft: Raft, followers: Iterable[NodeId] = (2, 3)) -> Raft:
    """Turn a follower into a leader whose ``followers`` hold its whole log and know it."""
    make_leader(raft)
    for peer in followers:
        raft.step(accepted(raft.term, peer, raft.view.last_index))
    settle(raft)
    return raft


# -- what an engine wants done --


def take(raft: Raft) -> Ready:
    """The next Ready, which must be there."""
    ready = raft.ready()
    assert ready is not None, "nothing is to be done"
    return ready


def settle(raft: Raft) -> list[object]:
    """Carry out everything on a disk that takes no time; the messages in the order they leave."""
    sent: list[object] = []
    while (ready := raft.ready()) is not None:
        sent.extend(ready.messages)
        raft.advance(ready)
        sent.extend(ready.messages_after_sync)
    return sent


def only(kind: type[_M], messages: Iterable[object], to: NodeId = NO_NODE) -> list[_M]:
    """The messages of one kind, to everybody or to one node."""
    return [
        message
        for message in messages
        if isinstance(message, kind) and to in (NO_NODE, getattr(message, "to"))  # noqa: B009
    ]


def tick(raft: Raft, ticks: int) -> None:
    """Let time pass."""
    for _ in range(ticks):
        raft.tick()


def ticks_until_campaign(raft: Raft) -> int:
    """How many ticks pass until the node begins an election."""
    attempt = raft.key()
    for ticks in range(1, 200):
        raft.tick()
        if only(RequestVote, settle(raft)):
            return ticks
    raise AssertionError(f"no election began from {attempt}")


# -- messages from peers --


def request_vote(
    term: Term,
    sender: NodeId = 2,
    *,
    last_index: LogIndex = 0,
    last_term: Term = 0,
    pre: bool = False,
    transfer: bool = False,
) -> RequestVote:
    """A peer asks for our vote."""
    ordered_in = term - 1 if transfer else 0
    return RequestVote(EPOCH, term, sender, ME, last_index, last_term, pre, transfer, ordered_in)


def vote(term: Term, sender: NodeId = 2, *, granted: bool = True, pre: bool = False) -> Vote:
    """A peer answers our request."""
    return Vote(EPOCH, term, sender, ME, granted, pre)


def append(
    term: Term,
    prev_index: LogIndex = 0,
    prev_term: Term = 0,
    terms: Sequence[Term] = (),
    *,
    commit: LogIndex = 0,
    sender: NodeId = 2,
) -> AppendEntries:
    """The leader sends one entry for each of ``terms``."""
    entries = log_of(terms, prev_index + 1)
    return AppendEntries(EPOCH, term, sender, ME, prev_index, prev_term, commit, entries)


def accepted(term: Term, sender: NodeId, match_index: LogIndex) -> AppendReply:
    """A follower durably holds our log up to ``match_index``."""
    return AppendReply(EPOCH, term, sender, ME, True, match_index, 0, 0, 0)


def rejected(
    term: Term,
    sender: NodeId,
    rejected_index: LogIndex,
    *,
    hint_index: LogIndex = 0,
    hint_term: Term = 0,
) -> AppendReply:
    """A follower's log does not match ours at ``rejected_index``."""
    return AppendReply(EPOCH, term, sender, ME, False, 0, rejected_index, hint_index, hint_term)


def heartbeat(
    term: Term, commit: LogIndex = 0, *, round_number: int = 1, sender: NodeId = 2
) -> Heartbeat:
    """The leader lives."""
    return Heartbeat(EPOCH, term, sender, ME, commit, round_number)


def heartbeat_reply(term: Term, sender: NodeId, round_number: int = 1) -> HeartbeatReply:
    """A follower heard our heartbeat."""
    return HeartbeatReply(EPOCH, term, sender, ME, round_number)


def timeout_now(term: Term, sender: NodeId = 2) -> TimeoutNow:
    """The leader asks us to take over."""
    return TimeoutNow(EPOCH, term, sender, ME)
