"""Granting votes (Raft §5.2, §5.4.1; figure 2, "RequestVote RPC")."""

from __future__ import annotations

import pytest
from given import (
    OPTIONS,
    append,
    heartbeat,
    make_leader,
    make_raft,
    only,
    request_vote,
    restart,
    settle,
    take,
    tick,
)

from replog.errors import InvariantViolated
from replog.types import NO_NODE, HardState, Role
from replog_raft.messages import Vote


def test_vote_once_per_term() -> None:
    """§5.2: A node votes for at most one candidate in a term, first come first served."""
    raft = make_raft(voters=5)
    for candidate in (3, 2, 4):
        raft.step(request_vote(1, candidate))
    votes = only(Vote, settle(raft))
    assert [(answer.to, answer.granted) for answer in votes if answer.granted] == [(3, True)]
    assert sorted(answer.to for answer in votes if not answer.granted) == [2, 4]


def test_vote_next_term_unbound() -> None:
    """§5.2: A vote binds within its term only: the next term has a vote of its own."""
    raft = make_raft(term=1, voted_for=3)
    raft.step(request_vote(2, 2))
    assert [answer.granted for answer in only(Vote, settle(raft))] == [True]


def test_vote_repeated() -> None:
    """Figure 2: The candidate that has the vote gets it again when it asks again."""
    raft = make_raft(term=4, voted_for=2)
    raft.step(request_vote(4, 2))
    ready = take(raft)
    assert ready.messages_after_sync == [Vote(1, 4, 1, 2, granted=True, pre=False)]
    assert ready.hard_state is None


def test_vote_repeated_waits_for_sync() -> None:
    """Figure 2: A repeated grant does not overtake the sync of the first: neither is in
    ``messages``."""
    raft = make_raft(term=3)
    raft.step(request_vote(4, 2))
    take(raft)
    raft.step(request_vote(4, 2))
    ready = take(raft)
    assert not ready.messages
    assert [answer.granted for answer in only(Vote, ready.messages_after_sync)] == [True]


def test_vote_durable_before_answer() -> None:
    """Figure 2: The vote is in the hard state of the very Ready after whose sync the answer
    leaves."""
    raft = make_raft(term=3)
    raft.step(request_vote(4, 2))
    ready = take(raft)
    assert ready.hard_state == HardState(1, 4, 2)
    assert not ready.messages
    assert ready.messages_after_sync == [Vote(1, 4, 1, 2, granted=True, pre=False)]


def test_vote_after_restart() -> None:
    """Figure 2: A vote survives a crash: restarted from its disk, the node refuses a rival."""
    raft = make_raft(term=3)
    raft.step(request_vote(4, 2))
    hard_state = take(raft).hard_state
    assert hard_state is not None
    again = restart(raft, hard_state, ())
    again.step(request_vote(4, 3))
    assert [answer.granted for answer in only(Vote, settle(again))] == [False]


@pytest.mark.parametrize("candidate_term", [1, 2, 3])
@pytest.mark.parametrize("candidate_index", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("pre", [False, True])
def test_vote_up_to_date_log(candidate_term: int, candidate_index: int, pre: bool) -> None:
    """§5.4.1: A vote is granted iff the candidate's last term is higher, or equal and its log at
    least as long."""
    raft = make_raft((1, 2, 2), term=3)
    raft.step(
        request_vote(4, last_index=candidate_index, last_term=candidate_term, pre=pre),
    )
    is_current = candidate_term > 2 or (candidate_term == 2 and candidate_index >= 3)
    assert [answer.granted for answer in only(Vote, settle(raft))] == [is_current]


def test_refuse_vote_stays_unbound() -> None:
    """§5.4.1: A candidate whose log is refused leaves its term behind, but not its name in the
    vote."""
    raft = make_raft((1, 2), term=3)
    raft.step(request_vote(5, 2, last_index=9, last_term=1))
    assert take(raft).hard_state == HardState(1, 5, NO_NODE)
    raft.step(request_vote(5, 3, last_index=2, last_term=2))
    assert take(raft).hard_state == HardState(1, 5, 3)


def test_grant_vote_puts_off_election() -> None:
    """Figure 2: A granted vote starts the election timeout anew."""
    raft = make_raft(term=1)
    tick(raft, OPTIONS.election_ticks_min - 1)
    raft.step(request_vote(2, 2))
    tick(raft, OPTIONS.election_ticks_min - 1)
    assert raft.role is Role.FOLLOWER


def test_refuse_vote_does_not_put_off_election() -> None:
    """Figure 2: A refused vote does not: a candidate that cannot win must not hold others back."""
    raft = make_raft((1, 2), term=2)
    for elapsed in range(OPTIONS.election_ticks_max):
        raft.step(request_vote(3 + elapsed, 2, last_index=1, last_term=1))
        raft.tick()
        if raft.role is not Role.FOLLOWER:
            return
    raise AssertionError("refused candidates kept the node from its own election")


@pytest.mark.parametrize("message", [append(2, 1, 1), heartbeat(2)], ids=["append", "heartbeat"])
def test_second_leader_refused(message: object) -> None:
    """§5.2, Election Safety: A leader that meets another leader of its own term stops the node."""
    raft = make_leader(make_raft((1,), term=1))
    assert raft.term == 2
    with pytest.raises(InvariantViolated, match="acts as leader in term 2"):
        raft.step(message)
