"""Terms, the logical clock (Raft §5.1; figure 2, "All Servers")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from given import (
    accepted,
    append,
    heartbeat,
    heartbeat_reply,
    make_candidate,
    make_leader,
    make_raft,
    only,
    rejected,
    request_vote,
    settle,
    take,
    terms_of,
    timeout_now,
    vote,
)

from replog.types import NO_NODE, HardState, NodeId, Role, Term
from replog_raft.messages import HeartbeatReply, Message, Vote

OF_TERM: dict[str, Callable[[Term, NodeId], Message]] = {
    "request_vote": lambda term, sender: request_vote(term, sender, last_index=9, last_term=9),
    "vote": lambda term, sender: vote(term, sender, granted=False),
    "granted_vote": lambda term, sender: vote(term, sender),
    "append": lambda term, sender: append(term, sender=sender),
    "accepted": lambda term, sender: accepted(term, sender, 0),
    "rejected": lambda term, sender: rejected(term, sender, 0),
    "heartbeat": lambda term, sender: heartbeat(term, sender=sender),
    "heartbeat_reply": lambda term, sender: heartbeat_reply(term, sender),
}
"""One message of every kind that states its sender's term."""


@pytest.mark.parametrize("kind", OF_TERM)
@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE])
def test_update_term_higher(kind: str, role: Role) -> None:
    """§5.1: A node that sees a higher term, in a message of any kind, enters it as a follower."""
    raft = make_raft((1,), term=1)
    if role is Role.CANDIDATE:
        make_candidate(raft)
    raft.step(OF_TERM[kind](7, 2))
    assert (raft.term, raft.role) == (7, Role.FOLLOWER)


@pytest.mark.parametrize("kind", [kind for kind in OF_TERM if kind != "request_vote"])
def test_update_term_leader(kind: str) -> None:
    """§5.1: A leader that finds its term out of date becomes a follower."""
    raft = make_leader(make_raft((1,), term=1))
    raft.step(OF_TERM[kind](7, 2))
    assert (raft.term, raft.role) == (7, Role.FOLLOWER)


def test_update_term_clears_vote() -> None:
    """Figure 2: A vote is for one term: a node that enters a higher term is unbound in it."""
    raft = make_raft(term=3, voted_for=3)
    raft.step(append(4))
    assert take(raft).hard_state == HardState(1, 4, NO_NODE)


def test_update_term_forgets_leader() -> None:
    """§5.2: Who leads a new term is not known before its leader is heard."""
    raft = make_raft(term=3)
    raft.step(heartbeat(3))
    assert raft.leader_id == 2
    raft.step(heartbeat_reply(4, 3))
    assert raft.leader_id == NO_NODE


def test_update_term_durable() -> None:
    """Figure 2: A new term is handed out to be made durable, once."""
    raft = make_raft(term=3)
    raft.step(heartbeat(8))
    assert take(raft).hard_state == HardState(1, 8, NO_NODE)
    raft.step(heartbeat(8))
    assert take(raft).hard_state is None


@pytest.mark.parametrize("kind", ["request_vote", "append", "heartbeat"])
@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE, Role.LEADER])
def test_answer_stale_request(kind: str, role: Role) -> None:
    """§5.1: A request of a lower term is refused with the own term, at once when that is on disk,
    and changes nothing."""
    raft = make_raft((1, 5), term=5)
    if role is Role.CANDIDATE:
        make_candidate(raft)
    elif role is Role.LEADER:
        make_leader(raft)
    settle(raft)
    before = raft.key()
    raft.step(OF_TERM[kind](4, 3))
    ready = take(raft)
    (answer,) = ready.messages
    assert isinstance(answer, Vote if kind == "request_vote" else HeartbeatReply)
    assert (answer.term, answer.to) == (raft.term, 3)
    assert not isinstance(answer, Vote) or not answer.granted
    assert not ready.writes
    assert raft.key() == before


def test_answer_stale_pre_vote() -> None:
    """§5.1 with thesis §9.6: A pre-vote for a lower term is refused with the own term, so that its
    sender catches up."""
    raft = make_raft(term=5)
    raft.step(request_vote(4, pre=True))
    (answer,) = take(raft).messages
    assert answer == Vote(1, 5, 1, 2, granted=False, pre=True)


def test_answer_stale_request_after_sync() -> None:
    """§5.1: A refusal that states a term which is not on disk yet leaves after the sync."""
    raft = make_raft(term=3)
    raft.step(heartbeat(6))
    take(raft)
    raft.step(append(4, sender=3))
    ready = take(raft)
    assert not ready.messages
    assert only(HeartbeatReply, ready.messages_after_sync, to=3)[0].term == 6


@pytest.mark.parametrize("kind", ["vote", "accepted", "rejected", "heartbeat_reply", "timeout_now"])
@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE, Role.LEADER])
def test_ignore_stale_answer(kind: str, role: Role) -> None:
    """§5.1: An answer or an order of a lower term changes nothing and is not answered."""
    raft = make_raft((1, 5), term=5)
    if role is Role.CANDIDATE:
        make_candidate(raft)
    elif role is Role.LEADER:
        make_leader(raft)
    settle(raft)
    before = raft.key()
    for sender in (2, 3):
        stale = {
            "vote": vote(4, sender),
            "accepted": accepted(4, sender, 2),
            "rejected": rejected(4, sender, 1),
            "heartbeat_reply": heartbeat_reply(4, sender),
            "timeout_now": timeout_now(4, sender),
        }[kind]
        raft.step(stale)
    assert raft.ready() is None
    assert raft.key() == before


@pytest.mark.parametrize("kind", OF_TERM)
def test_ignore_other_epoch(kind: str) -> None:
    """Contract: A message of another epoch speaks of other voters: nothing is taken from it."""
    raft = make_raft((1,), term=1)
    raft.step(replace(OF_TERM[kind](7, 2), epoch=2))
    assert (raft.term, raft.ready()) == (1, None)


@pytest.mark.parametrize("kind", OF_TERM)
def test_ignore_non_voter(kind: str) -> None:
    """Contract: A message of a node that is no voter changes nothing and is not answered."""
    raft = make_raft((1,), term=1)
    raft.step(OF_TERM[kind](7, 9))
    assert (raft.term, raft.ready()) == (1, None)
    assert terms_of(raft) == (1,)
