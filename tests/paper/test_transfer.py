"""Handing over leadership (thesis §3.10)."""

from __future__ import annotations

import pytest
from given import (
    OPTIONS,
    accepted,
    heartbeat_reply,
    make_leader,
    make_raft,
    make_steady_leader,
    only,
    settle,
    take,
    tick,
    timeout_now,
    vote,
)

from replog.errors import CallerError, NotLeader, Overloaded
from replog.types import HardState, Role
from replog_raft.messages import AppendEntries, RequestVote, TimeoutNow
from replog_raft.raft import Raft


def keep_quorum(raft: Raft, ticks: int) -> None:
    """Let time pass for a leader whose peers answer."""
    for _ in range(ticks):
        for peer in raft.peer_ids:
            raft.step(heartbeat_reply(raft.term, peer))
        raft.tick()


def test_transfer_to_current_peer() -> None:
    """Thesis §3.10: A successor that holds the whole log is asked to stand at once."""
    raft = make_steady_leader(make_raft())
    raft.transfer(3)
    assert only(TimeoutNow, settle(raft)) == [TimeoutNow(1, 1, 1, 3)]


def test_transfer_asks_once() -> None:
    """Thesis §3.10: A successor is asked once, whatever other followers acknowledge meanwhile."""
    raft = make_steady_leader(make_raft(), followers=(3,))
    raft.transfer(3)
    settle(raft)
    raft.step(accepted(1, 2, 1))
    assert not only(TimeoutNow, settle(raft))


def test_transfer_catches_up_first() -> None:
    """Thesis §3.10: A successor that lacks entries gets them first, and is asked when it holds
    them all."""
    raft = make_steady_leader(make_raft(), followers=(3,))
    raft.propose(b"set")
    settle(raft)
    raft.transfer(2)
    assert not only(TimeoutNow, settle(raft))
    raft.step(accepted(1, 2, 1))
    messages = settle(raft)
    assert not only(TimeoutNow, messages)
    assert len(only(AppendEntries, messages, to=2)) == 1
    raft.step(accepted(1, 2, 2))
    assert only(TimeoutNow, settle(raft)) == [TimeoutNow(1, 1, 1, 2)]


def test_transfer_refuses_proposals() -> None:
    """Thesis §3.10: While it hands over a leader takes no proposals: the successor would never
    have caught up."""
    raft = make_steady_leader(make_raft())
    raft.transfer(2)
    with pytest.raises(Overloaded, match="handing leadership to node 2"):
        raft.propose(b"set")
    assert raft.view.last_index == 1


def test_transfer_expires() -> None:
    """Thesis §3.10: A transfer that takes an election timeout is off, and proposals are taken
    again."""
    raft = make_steady_leader(make_raft())
    raft.transfer(2)
    keep_quorum(raft, OPTIONS.election_ticks_min - 1)
    with pytest.raises(Overloaded):
        raft.propose(b"set")
    keep_quorum(raft, 1)
    assert raft.propose(b"set").index == 2
    assert raft.role is Role.LEADER


def test_transfer_expired_asks_nobody() -> None:
    """Thesis §3.10: A successor that catches up after the transfer was off is not asked any
    more."""
    raft = make_steady_leader(make_raft(), followers=(3,))
    raft.transfer(2)
    keep_quorum(raft, OPTIONS.election_ticks_min)
    raft.step(accepted(1, 2, 1))
    assert not only(TimeoutNow, settle(raft))


def test_transfer_again_to_another() -> None:
    """Thesis §3.10: A second transfer replaces the first: its successor is asked too, and it has a
    full timeout of its own."""
    raft = make_steady_leader(make_raft())
    raft.transfer(2)
    settle(raft)
    keep_quorum(raft, OPTIONS.election_ticks_min - 1)
    raft.transfer(3)
    assert only(TimeoutNow, settle(raft)) == [TimeoutNow(1, 1, 1, 3)]
    keep_quorum(raft, OPTIONS.election_ticks_min - 1)
    with pytest.raises(Overloaded, match="to node 3"):
        raft.propose(b"set")


def test_transfer_to_itself() -> None:
    """Thesis §3.10: A leader that is asked to hand over to itself goes on."""
    raft = make_steady_leader(make_raft())
    raft.transfer(1)
    assert raft.propose(b"set").index == 2


def test_transfer_to_stranger_refused() -> None:
    """Thesis §3.10: Only a voter can take over; the sentence names those that can."""
    raft = make_steady_leader(make_raft())
    with pytest.raises(CallerError, match="node 9 is no voter of the cluster; choose one of 2, 3"):
        raft.transfer(9)
    assert raft.propose(b"set").index == 2


def test_transfer_as_follower_refused() -> None:
    """Thesis §3.10: Only a leader has leadership to hand over."""
    with pytest.raises(NotLeader):
        make_raft().transfer(2)


def test_timeout_now_starts_election() -> None:
    """Thesis §3.10: The successor stands at once, without a pre-vote, and says that the leader
    asked it to."""
    raft = make_raft((1,), term=1)
    raft.step(timeout_now(1))
    ready = take(raft)
    assert ready.hard_state == HardState(1, 2, 1)
    assert not ready.messages
    assert ready.messages_after_sync == [
        RequestVote(
            1, 2, 1, peer, last_index=1, last_term=1, pre=False, transfer=True, ordered_in=1
        )
        for peer in (2, 3)
    ]


def test_transfer_won() -> None:
    """Thesis §3.10: The successor leads in the next term with the votes of a majority."""
    raft = make_raft((1,), term=1)
    raft.step(timeout_now(1))
    settle(raft)
    raft.step(vote(2, 2))
    assert (raft.role, raft.term) == (Role.LEADER, 2)


def test_transfer_ends_with_leadership() -> None:
    """Thesis §3.10: A leadership that is won again knows nothing of a former transfer."""
    raft = make_steady_leader(make_raft())
    tick(raft, OPTIONS.election_ticks_min)
    raft.transfer(2)
    tick(raft, OPTIONS.election_ticks_min)
    assert raft.role is Role.FOLLOWER
    make_leader(raft)
    assert raft.propose(b"set").term == 2


def test_election_after_failed_transfer() -> None:
    """Thesis §4.2.3: Only the election that the leader asked for passes over stickiness, not one
    that the successor begins later by itself."""
    raft = make_raft((1,), term=1)
    raft.step(timeout_now(1))
    settle(raft)
    tick(raft, OPTIONS.election_ticks_max)
    requests = only(RequestVote, settle(raft))
    assert len(requests) == 2
    assert not [asked for asked in requests if asked.transfer]
