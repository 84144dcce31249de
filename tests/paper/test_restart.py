"""What survives a crash (Raft figure 2, "Persistent state on all servers")."""

from __future__ import annotations

from given import (
    accepted,
    append,
    heartbeat,
    make_asking_candidate,
    make_leader,
    make_raft,
    make_steady_leader,
    only,
    request_vote,
    restart,
    settle,
    take,
    terms_of,
    vote,
)

from replog.types import NO_NODE, HardState, Role
from replog_raft.messages import AppendReply, HeartbeatReply, Vote


def test_restart_from_disk() -> None:
    """Figure 2: Term, vote and log are found again; all of the log counts as durable."""
    raft = make_raft((1, 1, 2), term=4, voted_for=3)
    assert (raft.term, raft.voted_for, terms_of(raft)) == (4, 3, (1, 1, 2))
    status = raft.status()
    assert (status.last_index, status.durable_index) == (3, 3)


def test_restart_forgets_volatile_state() -> None:
    """Figure 2: Role, leader and commit index are volatile: they begin as follower, nobody, 0."""
    raft = make_steady_leader(make_raft((1, 1), term=1))
    assert raft.commit_index == 3
    again = restart(raft, HardState(1, 2, 1), raft.view.slice(1, 3))
    assert (again.role, again.leader_id, again.commit_index) == (Role.FOLLOWER, NO_NODE, 0)
    assert again.ready() is None


def test_restart_commits_by_leader() -> None:
    """§5.3: A restarted follower commits again what its leader tells it to, from the first
    entry."""
    raft = make_raft((1, 1), term=1)
    raft.step(append(1, 2, 1, (1,), commit=3))
    assert [entry.index for entry in take(raft).committed] == [1, 2, 3]


def test_restart_states_recovered_term() -> None:
    """Figure 2: The recovered term is on disk, so the answer to a heartbeat leaves at once."""
    raft = make_raft(term=6)
    raft.step(heartbeat(6, round_number=3))
    assert take(raft).messages == [HeartbeatReply(1, 6, 1, 2, round=3)]


def test_restart_acknowledges_recovered_entries() -> None:
    """§5.3: Recovered entries that the leader verifies are acknowledged without being written
    again."""
    raft = make_raft((1, 1), term=1)
    raft.step(append(1, terms=(1, 1)))
    ready = take(raft)
    assert not ready.writes
    assert [reply.match_index for reply in only(AppendReply, ready.messages_after_sync)] == [2]


def test_crash_after_asking() -> None:
    """Figure 2: A candidate that crashes after asking finds its own vote again and gives the term
    to nobody else."""
    raft = make_asking_candidate(make_raft(term=3))
    ready = take(raft)
    raft.advance(ready)
    assert ready.messages_after_sync
    assert ready.hard_state is not None
    again = restart(raft, ready.hard_state, ())
    again.step(request_vote(4, 3))
    assert only(Vote, settle(again)) == [Vote(1, 4, 1, 3, granted=False, pre=False)]


def test_crash_before_asking() -> None:
    """Figure 2: A candidate that crashes before its vote is on disk has asked nobody, so it may
    vote for another in that term."""
    raft = make_asking_candidate(make_raft(term=3))
    ready = take(raft)
    assert ready.hard_state is not None
    assert not ready.messages or all(getattr(sent, "pre", False) for sent in ready.messages)
    again = restart(raft, HardState(1, 3, NO_NODE), ())
    again.step(request_vote(4, 3))
    assert [answer.granted for answer in only(Vote, settle(again))] == [True]


def test_crash_of_leader_with_unwritten_entry() -> None:
    """Thesis §10.2.1: An entry that the leader sent but lost in a crash comes back from the
    quorum that holds it."""
    leader = make_steady_leader(make_raft())
    lost = leader.propose(b"set")
    take(leader)
    leader.step(accepted(1, 2, 2))
    leader.step(accepted(1, 3, 2))
    assert leader.commit_index == 2
    again = restart(leader, HardState(1, 1, 1), leader.view.slice(1, 1))
    successor = make_raft((1, 1), term=1)
    assert successor.view.last_index == 2
    again.step(request_vote(2, 2, last_index=2, last_term=1))
    assert [answer.granted for answer in only(Vote, settle(again))] == [True]
    again.step(append(2, 1, 1, (1, 2), commit=2))
    assert again.view.term_at(2) == lost.term
    assert again.commit_index == 2


def test_restart_as_leader_again() -> None:
    """§5.2: A leader that crashed leads again only in a later term."""
    raft = make_leader(make_raft((1,), term=1))
    again = restart(raft, HardState(1, 2, 1), raft.view.slice(1, 2))
    again.step(vote(2, 2))
    again.step(vote(2, 3))
    assert again.role is Role.FOLLOWER
    make_leader(again)
    assert again.term == 3
