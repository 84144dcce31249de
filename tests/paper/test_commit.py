"""Committing (Raft §5.3, §5.4.2; figure 2, "Leaders"; thesis §10.2.1)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from given import (
    LIMITS,
    OPTIONS,
    accepted,
    make_leader,
    make_new_leader,
    make_raft,
    make_steady_leader,
    only,
    settle,
    take,
    tick,
    vote,
)

from replog.errors import InvariantViolated, Overloaded
from replog.types import NodeId, Role
from replog_raft.messages import AppendEntries, Heartbeat


@pytest.mark.parametrize(
    ("voters", "needed"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3)]
)
def test_commit_by_majority(voters: int, needed: int) -> None:
    """§5.3: An entry is committed once a majority of the cluster holds it, an even-sized cluster
    needing more than half; not one copy earlier."""
    raft = make_raft(voters=voters)
    if voters == 1:
        raft.campaign()
        settle(raft)
    else:
        make_leader(raft)
    for peer in range(2, 2 + needed):
        assert raft.commit_index == 0
        raft.step(accepted(1, peer, 1))
    assert raft.commit_index == 1


def test_commit_covers_earlier_entries() -> None:
    """§5.3: Committing an entry commits every entry before it, those of former leaders too."""
    raft = make_leader(make_raft((1, 2, 2), term=2))
    raft.step(accepted(3, 2, 4))
    assert [entry.index for entry in take(raft).committed] == [1, 2, 3, 4]


def test_commit_own_term_only() -> None:
    """§5.4.2: Entries of earlier terms are not committed by counting their copies."""
    raft = make_leader(make_raft((1, 2, 2), term=2, voters=5))
    for peer in (2, 3, 4, 5):
        raft.step(accepted(3, peer, 3))
    assert raft.commit_index == 0
    for peer in (2, 3):
        raft.step(accepted(3, peer, 4))
    assert raft.commit_index == 4


def test_commit_figure_8() -> None:
    """§5.4.2, figure 8: The leader that finds its old entry on a majority may still lose it to a
    rival with a higher last term, so it must not have committed it."""
    leader = make_leader(make_raft((1, 2), term=3, voters=5))
    for peer in (2, 3):
        leader.step(accepted(4, peer, 2))  # figure 8 (c): the entry of term 2 is on a majority
    assert leader.commit_index == 0
    rival = make_raft((1, 3), term=4, voters=5, node_id=5)
    voter = make_raft((1, 2), term=4, voters=5, node_id=2)
    rival.campaign()
    rival.step(vote(5, 2, pre=True))
    rival.step(vote(5, 3, pre=True))
    settle(rival)
    assert rival.term == 5
    rival.step(vote(5, 2))
    rival.step(vote(5, 3))
    for append in only(AppendEntries, settle(rival), to=2):
        voter.step(replace(append, prev_index=1, prev_term=1, entries=rival.view.slice(2, 3)))
    assert [voter.view.term_at(index) for index in (1, 2, 3)] == [1, 3, 5]  # figure 8 (d)


# -- whose copy counts --


def test_count_own_copy_at_advance() -> None:
    """Thesis §10.2.1: The leader's own copy counts only when it is on its disk."""
    raft = make_steady_leader(make_raft())
    raft.propose(b"set")
    ready = take(raft)
    raft.step(accepted(1, 2, 2))
    assert raft.commit_index == 1
    raft.advance(ready)
    assert raft.commit_index == 2


def test_commit_before_own_disk() -> None:
    """Thesis §10.2.1: A quorum of others commits an entry before the leader's own disk has it."""
    raft = make_steady_leader(make_raft())
    raft.propose(b"set")
    take(raft)
    raft.step(accepted(1, 2, 2))
    raft.step(accepted(1, 3, 2))
    assert raft.status().durable_index == 1
    assert [entry.index for entry in take(raft).committed] == [2]


def test_advance_in_order() -> None:
    """Thesis §10.2.1: Several writes may be on their way; each that arrives counts up to its own
    last entry, not up to what was appended since."""
    raft = make_steady_leader(make_raft())
    writes = []
    for _ in range(3):
        raft.propose(b"set")
        writes.append(take(raft))
    raft.step(accepted(1, 2, 4))
    reached = []
    for ready in writes:
        raft.advance(ready)
        reached.append((raft.status().durable_index, raft.commit_index))
    assert reached == [(2, 2), (3, 3), (4, 4)]


def test_single_voter() -> None:
    """§5.2, §5.3: A cluster of one elects itself and commits alone, but not before its disk."""
    raft = make_raft(voters=1)
    tick(raft, OPTIONS.election_ticks_max)
    election = take(raft)
    assert (raft.role, raft.term) == (Role.CANDIDATE, 1)
    raft.advance(election)
    assert raft.role is Role.LEADER
    raft.propose(b"set")
    write = take(raft)
    assert (len(write.entries), raft.commit_index) == (2, 0)
    raft.advance(write)
    assert [entry.index for entry in take(raft).committed] == [1, 2]
    tick(raft, 3 * OPTIONS.election_ticks_max)
    assert raft.role is Role.LEADER


# -- telling the followers --


def test_append_carries_commit_index() -> None:
    """§5.3: The leader's commit index is in every append that it sends."""
    raft = make_steady_leader(make_raft((1, 1), term=1))
    raft.propose(b"set")
    assert {sent.commit_index for sent in only(AppendEntries, take(raft).messages)} == {3}


def test_heartbeat_commit_within_match() -> None:
    """§5.3: A heartbeat tells a follower to commit nothing beyond what it is known to hold."""
    raft = make_leader(make_raft((1, 1), term=1))
    raft.step(accepted(2, 2, 3))
    assert raft.commit_index == 3
    settle(raft)
    tick(raft, OPTIONS.heartbeat_ticks)
    beats = {beat.to: beat.commit_index for beat in only(Heartbeat, settle(raft)) if beat.round}
    assert beats == {2: 3, 3: 0}


def test_heartbeat_commit_within_commit() -> None:
    """§5.3: A heartbeat tells a follower to commit nothing that is not committed, whatever it
    holds."""
    raft = make_leader(make_raft(voters=5))
    raft.step(accepted(1, 2, 1))
    tick(raft, OPTIONS.heartbeat_ticks)
    beats = only(Heartbeat, take(raft).messages)
    assert [beat.commit_index for beat in beats] == [0, 0, 0, 0]


def notices(messages: list[object]) -> dict[NodeId, int]:
    """The bare notices of a new commit index."""
    return {beat.to: beat.commit_index for beat in only(Heartbeat, messages) if not beat.round}


def test_commit_notice_held_back() -> None:
    """§5.3: The bare notice of a commit waits while entries are handed out to be applied; if
    nothing is proposed meanwhile it leaves with the next Ready."""
    raft = make_steady_leader(make_raft())
    raft.propose(b"set")
    settle(raft)
    raft.step(accepted(1, 2, 2))
    raft.step(accepted(1, 3, 2))
    first = take(raft)
    assert [entry.index for entry in first.committed] == [2]
    assert not notices(list(first.messages))
    assert notices(list(take(raft).messages)) == {2: 2, 3: 2}
    assert raft.ready() is None


def test_commit_notice_carried_by_append() -> None:
    """§5.3: What is proposed while entries are applied carries the commit index, and no bare notice
    follows."""
    raft = make_steady_leader(make_raft())
    raft.propose(b"set")
    settle(raft)
    raft.step(accepted(1, 2, 2))
    raft.step(accepted(1, 3, 2))
    take(raft)
    raft.propose(b"next")
    messages = list(take(raft).messages)
    assert {sent.commit_index for sent in only(AppendEntries, messages)} == {2}
    assert not notices(messages)
    assert not notices(settle(raft))


def test_commit_notice_not_repeated() -> None:
    """§5.3: What an append told already is not told again by a bare notice when the follower
    acknowledges it, also if a heartbeat told less in between."""
    raft = make_steady_leader(make_raft(), followers=(3,))
    raft.propose(b"set")
    settle(raft)
    raft.step(accepted(1, 3, 2))
    raft.propose(b"next")
    raft.step(accepted(1, 2, 1))
    messages = settle(raft)
    assert {sent.commit_index for sent in only(AppendEntries, messages, to=2)} == {2}
    tick(raft, OPTIONS.heartbeat_ticks)
    settle(raft)
    raft.step(accepted(1, 2, 2))
    assert 2 not in notices(settle(raft))


# -- limits --


def test_uncommitted_bytes_bounded() -> None:
    """§5.3: A leader refuses proposals while more than ``uncommitted_bytes_max`` bytes are not
    committed, and takes them again when they are."""
    raft = make_steady_leader(make_raft(limits=replace(LIMITS, uncommitted_bytes_max=1500)))
    raft.propose(bytes(1000))
    raft.propose(bytes(1000))
    with pytest.raises(Overloaded, match="uncommitted_bytes_max = 1500"):
        raft.propose(b"")
    assert raft.view.last_index == 3
    settle(raft)
    raft.step(accepted(1, 2, 3))
    assert raft.propose(b"").index == 4


def test_uncommitted_bytes_exact() -> None:
    """§5.3: A commit makes room for exactly the bytes that it committed."""
    raft = make_steady_leader(make_raft(limits=replace(LIMITS, uncommitted_bytes_max=1500)))
    raft.propose(bytes(1000))
    settle(raft)
    raft.step(accepted(1, 2, 2))
    raft.propose(bytes(1000))
    raft.propose(bytes(1000))
    settle(raft)
    raft.step(accepted(1, 2, 3))
    raft.propose(bytes(1000))
    with pytest.raises(Overloaded):
        raft.propose(b"")


def test_uncommitted_bytes_of_own_proposals() -> None:
    """§5.3: Committing what former leaders proposed makes no room for more than the limit."""
    limits = replace(LIMITS, uncommitted_bytes_max=1000)
    raft = make_leader(make_raft((1,) * 100, term=1, limits=limits))
    raft.propose(bytes(1000))
    for peer in raft.peer_ids:
        raft.step(accepted(raft.term, peer, match_index=101))
    assert raft.commit_index == 101
    with pytest.raises(Overloaded):
        raft.propose(b"")


def test_check_sees_commit_beyond_log() -> None:
    """Figure 3: The engine's own check finds a commit index beyond its log."""
    raft = make_new_leader(make_raft())
    raft.check()
    raft.commit_index = 9
    with pytest.raises(InvariantViolated, match="committed beyond the log"):
        raft.check()
