"""Elections (Raft §5.2; figure 2, "Followers" and "Candidates")."""

from __future__ import annotations

import pytest
from given import (
    OPTIONS,
    append,
    heartbeat,
    heartbeat_reply,
    make_asking_candidate,
    make_candidate,
    make_leader,
    make_new_leader,
    make_raft,
    make_steady_leader,
    only,
    request_vote,
    settle,
    take,
    tick,
    ticks_until_campaign,
    timeout_now,
    vote,
)

from replog.types import EntryKind, HardState, Role
from replog_raft.messages import AppendEntries, Heartbeat, RequestVote, Vote


def test_start_as_follower() -> None:
    """§5.2: A node starts as a follower, whatever it was before its crash."""
    raft = make_raft((1, 2), term=4, voted_for=1)
    assert raft.role is Role.FOLLOWER
    assert raft.ready() is None


@pytest.mark.parametrize("message", [append(1), heartbeat(1)], ids=["append", "heartbeat"])
def test_leader_heard_puts_off_election(message: object) -> None:
    """§5.2: A follower stays one as long as it hears a leader."""
    raft = make_raft(term=1)
    for _ in range(10):
        tick(raft, OPTIONS.election_ticks_min - 1)
        assert raft.role is Role.FOLLOWER
        raft.step(message)


def test_election_after_timeout() -> None:
    """§5.2: A follower that hears nothing for an election timeout begins an election."""
    raft = make_raft(term=1)
    tick(raft, OPTIONS.election_ticks_max)
    assert raft.role is Role.PRE_CANDIDATE
    assert len(only(RequestVote, settle(raft))) == 2


def test_election_ticks_range() -> None:
    """§5.2: Election timeouts are spread over the whole of [min, max], both ends included."""
    drawn = {
        OPTIONS.election_ticks(7, node_id, term, attempt)
        for node_id in range(1, 6)
        for term in range(40)
        for attempt in range(4)
    }
    assert drawn == set(range(OPTIONS.election_ticks_min, OPTIONS.election_ticks_max + 1))


def test_election_ticks_observed() -> None:
    """§5.2: No follower begins an election before the shortest timeout or after the longest."""
    for seed in range(30):
        ticks = ticks_until_campaign(make_raft(seed=seed))
        assert OPTIONS.election_ticks_min <= ticks <= OPTIONS.election_ticks_max


def test_election_ticks_differ_by_node() -> None:
    """§5.2: Timeouts differ from node to node, so that in most cases one alone times out."""
    waits = {ticks_until_campaign(make_raft(voters=7, node_id=node)) for node in range(1, 8)}
    assert len(waits) >= 4


def test_election_ticks_differ_by_attempt() -> None:
    """§5.2: An attempt that raised no term does not repeat its timing, which would collide for
    ever."""
    raft = make_raft()
    waits = [ticks_until_campaign(raft) for _ in range(8)]
    assert raft.term == 0
    assert len(set(waits)) >= 3


def test_election_ticks_differ_by_term() -> None:
    """§5.2: Each term draws its timeouts anew."""
    assert len({ticks_until_campaign(make_raft(term=term)) for term in range(8)}) >= 4


def test_election_ticks_redrawn() -> None:
    """§5.2: A follower that enters a term waits as that term has it."""
    for term in range(1, 6):
        raft = make_raft()
        raft.step(heartbeat_reply(term, 2))
        settle(raft)
        assert ticks_until_campaign(raft) == ticks_until_campaign(make_raft(term=term))


def test_start_election() -> None:
    """Figure 2: A candidate raises its term, votes for itself and asks every other voter, naming
    its last entry."""
    raft = make_asking_candidate(make_raft((1, 1, 3), term=5, voters=5))
    ready = take(raft)
    assert ready.hard_state == HardState(1, 6, 1)
    assert ready.messages_after_sync == [
        RequestVote(
            1, 6, 1, peer, last_index=3, last_term=3, pre=False, transfer=False, ordered_in=0
        )
        for peer in (2, 3, 4, 5)
    ]


def test_request_votes_after_hard_state() -> None:
    """Figure 2: Nobody is asked before the own vote is on disk: a candidate that crashed after
    asking must not vote for another in the same term."""
    raft = make_asking_candidate(make_raft())
    ready = take(raft)
    assert ready.hard_state == HardState(1, 1, 1)
    assert not [asked for asked in only(RequestVote, ready.messages) if not asked.pre]
    assert len(only(RequestVote, ready.messages_after_sync)) == 2


def test_count_own_vote_at_advance() -> None:
    """§5.2: A candidate counts its own vote only when it is on disk."""
    raft = make_asking_candidate(make_raft(voters=3))
    ready = take(raft)
    raft.step(vote(1, 2))
    assert raft.leader is None
    raft.advance(ready)
    assert raft.role is Role.LEADER


def test_count_own_vote_of_this_term_only() -> None:
    """§5.2: A vote that reaches the disk late counts for its own term, not for the candidacy of
    the next."""
    raft = make_asking_candidate(make_raft(voters=3))
    late = take(raft)
    raft.step(heartbeat(2))
    make_asking_candidate(raft)
    assert raft.term == 3
    raft.step(vote(3, 2))
    raft.advance(late)
    assert raft.role is Role.CANDIDATE


@pytest.mark.parametrize(
    ("voters", "needed"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3)]
)
def test_win_election(voters: int, needed: int) -> None:
    """§5.2: A candidate with the votes of a majority of the cluster leads, and with one fewer does
    not."""
    raft = make_candidate(make_raft(voters=voters)) if voters > 1 else make_raft(voters=1)
    if voters == 1:
        raft.campaign()
        raft.advance(take(raft))
    for peer in range(2, 2 + needed):
        assert raft.role is Role.CANDIDATE
        raft.step(vote(1, peer))
    assert raft.role is Role.LEADER
    assert raft.leader_id == 1


def test_count_vote_once() -> None:
    """§5.2: A vote that arrives twice is one vote."""
    raft = make_candidate(make_raft(voters=5))
    for _ in range(4):
        raft.step(vote(1, 2))
    assert raft.role is Role.CANDIDATE


def test_ignore_vote_of_earlier_term() -> None:
    """§5.2: A vote for an earlier candidacy does not count for this one."""
    raft = make_candidate(make_raft(term=4))
    raft.step(vote(4, 2))
    raft.step(vote(4, 3))
    assert raft.role is Role.CANDIDATE


def test_ignore_pre_vote_as_candidate() -> None:
    """§5.2: A late grant of a pre-vote is no vote."""
    raft = make_candidate(make_raft(voters=5))
    for peer in (2, 3, 4, 5):
        raft.step(vote(1, peer, pre=True))
    assert (raft.role, raft.term) == (Role.CANDIDATE, 1)


def test_lose_election() -> None:
    """§5.2: A candidate that a majority refused gives up and waits as a follower."""
    raft = make_candidate(make_raft(voters=5))
    for peer in (2, 3):
        raft.step(vote(1, peer, granted=False))
        assert raft.role is Role.CANDIDATE
    raft.step(vote(1, 4, granted=False))
    assert (raft.role, raft.term) == (Role.FOLLOWER, 1)


@pytest.mark.parametrize("message", [append(1), heartbeat(1)], ids=["append", "heartbeat"])
@pytest.mark.parametrize("pre", [False, True], ids=["candidate", "pre_candidate"])
def test_candidate_follows_leader(message: object, pre: bool) -> None:
    """§5.2: A (pre-)candidate that hears the leader of its own term recognises it and follows."""
    raft = make_raft(term=1)
    if pre:
        raft.campaign()
    else:
        raft = make_candidate(make_raft())
    raft.step(message)
    assert (raft.role, raft.term, raft.leader_id) == (Role.FOLLOWER, 1, 2)


def test_candidate_ignores_leader_of_earlier_term() -> None:
    """§5.2: A candidate stays one when the leader of an earlier term writes."""
    raft = make_candidate(make_raft(term=1))
    raft.step(append(1))
    assert (raft.role, raft.term) == (Role.CANDIDATE, 2)


def test_split_vote() -> None:
    """§5.2: When votes are split the candidate times out and begins another election, in the end
    in a higher term."""
    raft = make_candidate(make_raft(voters=4))
    raft.step(vote(1, 2))
    raft.step(vote(1, 3, granted=False))
    ticks = ticks_until_campaign(raft)
    assert OPTIONS.election_ticks_min <= ticks <= OPTIONS.election_ticks_max
    for peer in (2, 3):
        raft.step(vote(2, peer, pre=True))
    assert take(raft).hard_state == HardState(1, 2, 1)


def test_timeout_now_as_candidate_ignored() -> None:
    """Thesis §3.10: A candidate already does what a handover would ask of it."""
    raft = make_candidate(make_raft())
    raft.step(timeout_now(1))
    assert (raft.role, raft.term) == (Role.CANDIDATE, 1)


def test_append_noop_on_election() -> None:
    """§8: A new leader begins its term with a no-op entry, sent to everybody at once."""
    raft = make_new_leader(make_raft((1, 1), term=1))
    ready = take(raft)
    (noop,) = ready.entries
    assert (noop.kind, noop.index, noop.term, noop.data) == (EntryKind.NOOP, 3, 2, b"")
    assert only(AppendEntries, ready.messages) == [
        AppendEntries(1, 2, 1, peer, 2, 1, 0, (noop,)) for peer in (2, 3)
    ]


def test_send_heartbeats() -> None:
    """§5.2: A leader sends every peer a heartbeat every ``heartbeat_ticks``, an idle one too."""
    raft = make_steady_leader(make_raft())
    rounds: list[int] = []
    for _ in range(3):
        tick(raft, OPTIONS.heartbeat_ticks - 1)
        assert not only(Heartbeat, settle(raft))
        raft.tick()
        beats = only(Heartbeat, settle(raft))
        assert [beat.to for beat in beats] == [2, 3]
        rounds.append(beats[0].round)
    assert rounds == [1, 2, 3]


def test_campaign_as_leader_ignored() -> None:
    """§5.2: A leader has nothing to win."""
    raft = make_leader(make_raft())
    raft.campaign()
    assert (raft.role, raft.term, raft.ready()) == (Role.LEADER, 1, None)


def test_candidate_refuses_rival() -> None:
    """§5.2: A candidate has voted: it refuses a rival of its own term."""
    raft = make_candidate(make_raft())
    raft.step(request_vote(1, 3))
    assert only(Vote, settle(raft)) == [Vote(1, 1, 1, 3, granted=False, pre=False)]


def test_candidate_waits_for_its_disk() -> None:
    """§5.2: A candidate whose own vote is on its way to disk has asked nobody yet, so it does not
    time out: a slow disk would get one more write per timeout, and no election would end."""
    raft = make_asking_candidate(make_raft())
    ready = take(raft)
    assert ready.hard_state is not None
    for _ in range(10 * OPTIONS.election_ticks_max):
        raft.tick()
        assert raft.ready() is None
    raft.campaign()
    assert raft.ready() is None
    assert (raft.role, raft.term) == (Role.CANDIDATE, 1)
    raft.advance(ready)
    assert ticks_until_campaign(raft) >= OPTIONS.election_ticks_min
