"""What keeps a stable cluster stable: pre-vote (thesis §9.6), stickiness (thesis §4.2.3) and
check-quorum (thesis §6.2)."""

from __future__ import annotations

import pytest
from given import (
    OPTIONS,
    accepted,
    append,
    heartbeat,
    heartbeat_reply,
    make_candidate,
    make_leader,
    make_raft,
    make_steady_leader,
    only,
    request_vote,
    settle,
    take,
    tick,
    ticks_until_campaign,
    vote,
)

from replog.errors import NotLeader
from replog.types import NO_NODE, Role
from replog_raft.messages import Heartbeat, HeartbeatReply, RequestVote, Vote

# -- pre-vote --


def test_ask_pre_vote() -> None:
    """Thesis §9.6: An election begins by asking whether it could be won, for the next term and
    naming the last entry; nothing is made durable."""
    raft = make_raft((1, 3), term=5)
    raft.campaign()
    ready = take(raft)
    assert ready.messages == [
        RequestVote(
            1, 6, 1, peer, last_index=2, last_term=3, pre=True, transfer=False, ordered_in=0
        )
        for peer in (2, 3)
    ]
    assert not ready.writes
    assert raft.term == 5


def test_pre_vote_raises_no_term_of_sender() -> None:
    """Thesis §9.6: A node that is cut off does not raise its term, however often it tries."""
    raft = make_raft(term=5)
    for _ in range(5):
        ticks_until_campaign(raft)
    assert (raft.term, raft.role) == (5, Role.PRE_CANDIDATE)


def test_pre_vote_binds_nobody() -> None:
    """Thesis §9.6: Who grants a pre-vote keeps its term and its vote, and writes nothing; any
    number of candidates may be told yes."""
    raft = make_raft(term=5)
    raft.step(request_vote(6, 2, pre=True))
    raft.step(request_vote(6, 3, pre=True))
    ready = take(raft)
    assert ready.messages == [Vote(1, 6, 1, peer, granted=True, pre=True) for peer in (2, 3)]
    assert not ready.writes
    assert (raft.term, raft.voted_for) == (5, NO_NODE)


def test_pre_vote_does_not_put_off_election() -> None:
    """Thesis §9.6: A granted pre-vote does not start the election timeout anew."""
    raft = make_raft(term=5)
    waits = ticks_until_campaign(make_raft(term=5))
    tick(raft, waits - 1)
    raft.step(request_vote(6, 2, pre=True))
    raft.tick()
    assert raft.role is Role.PRE_CANDIDATE


def test_pre_vote_for_own_term_refused() -> None:
    """Thesis §9.6: A pre-vote for a term that the voter is in already is refused, with that
    term."""
    raft = make_raft(term=6)
    raft.step(request_vote(6, 2, pre=True))
    assert take(raft).messages == [Vote(1, 6, 1, 2, granted=False, pre=True)]


def test_pre_vote_won() -> None:
    """Thesis §9.6: The term is raised only when a majority said that the election could succeed."""
    raft = make_raft(term=5, voters=5)
    raft.campaign()
    raft.step(vote(6, 2, pre=True))
    assert (raft.role, raft.term) == (Role.PRE_CANDIDATE, 5)
    raft.step(vote(6, 3, pre=True))
    assert (raft.role, raft.term) == (Role.CANDIDATE, 6)


def test_pre_vote_refused() -> None:
    """Thesis §9.6: A pre-candidate that a majority refused waits as a follower, in its old term."""
    raft = make_raft((1,), term=5)
    raft.campaign()
    for peer in (2, 3):
        raft.step(vote(5, peer, granted=False, pre=True))
    assert (raft.role, raft.term) == (Role.FOLLOWER, 5)


def test_pre_vote_refused_by_higher_term() -> None:
    """§5.1: A refusal that states a higher term makes the pre-candidate enter that term."""
    raft = make_raft((1,), term=5)
    raft.campaign()
    raft.step(vote(9, 2, granted=False, pre=True))
    assert (raft.role, raft.term) == (Role.FOLLOWER, 9)


@pytest.mark.parametrize(
    "answers",
    [
        [vote(5, peer, pre=True) for peer in (2, 3)],
        [vote(9, peer, pre=True) for peer in (2, 3)],
        [vote(5, peer) for peer in (2, 3)],
        [vote(5, peer, granted=False) for peer in (2, 3)],
    ],
    ids=["for_an_earlier_term", "for_a_later_term", "votes", "refused_votes"],
)
def test_pre_vote_other_answer_ignored(answers: list[object]) -> None:
    """Thesis §9.6: Only an answer to a *pre*-vote, and a grant only for the term that was asked
    about, counts; none raises the term."""
    raft = make_raft((1,), term=5)
    raft.campaign()
    for answer in answers:
        raft.step(answer)
    assert (raft.role, raft.term) == (Role.PRE_CANDIDATE, 5)


# -- stickiness --


@pytest.mark.parametrize("pre", [False, True], ids=["vote", "pre_vote"])
def test_stick_to_leader(pre: bool) -> None:
    """Thesis §4.2.3: Who heard a leader within the shortest election timeout neither answers a
    request for a vote nor takes over its term."""
    raft = make_raft(term=5)
    raft.step(heartbeat(5))
    settle(raft)
    tick(raft, OPTIONS.election_ticks_min - 1)
    raft.step(request_vote(6, 3, pre=pre))
    assert (raft.term, raft.voted_for, raft.ready()) == (5, NO_NODE, None)


@pytest.mark.parametrize("pre", [False, True], ids=["vote", "pre_vote"])
def test_stick_no_longer(pre: bool) -> None:
    """Thesis §4.2.3: After the shortest election timeout without a leader votes are given again."""
    raft = make_raft(term=5, seed=3)
    raft.step(heartbeat(5))
    settle(raft)
    tick(raft, OPTIONS.election_ticks_min)
    assert raft.role is Role.FOLLOWER
    raft.step(request_vote(6, 3, pre=pre))
    assert [answer.granted for answer in only(Vote, settle(raft))] == [True]


def test_stick_not_as_candidate() -> None:
    """Thesis §4.2.3: Who gave its leader up and stands itself sticks to it no longer."""
    raft = make_raft(term=5)
    raft.step(heartbeat(5))
    raft.campaign()
    settle(raft)
    raft.step(request_vote(6, 3))
    assert [answer.granted for answer in only(Vote, settle(raft))] == [True]


@pytest.mark.parametrize("pre", [False, True], ids=["vote", "pre_vote"])
def test_leader_sticks_to_itself(pre: bool) -> None:
    """Thesis §4.2.3: A leader that hears its quorum is not deposed by a request for a vote."""
    raft = make_steady_leader(make_raft())
    raft.step(request_vote(9, 3, last_index=9, last_term=9, pre=pre))
    assert (raft.role, raft.term, raft.ready()) == (Role.LEADER, 1, None)


def test_stick_except_transfer() -> None:
    """Thesis §4.2.3: A candidate that the leader itself asked to stand gets its vote at once."""
    raft = make_raft(term=5)
    raft.step(heartbeat(5))
    settle(raft)
    raft.step(request_vote(6, 3, transfer=True))
    assert [answer.granted for answer in only(Vote, settle(raft))] == [True]
    assert (raft.term, raft.voted_for) == (6, 3)


def test_leader_yields_to_transfer() -> None:
    """Thesis §4.2.3: The leader steps down for the candidate that it asked to stand."""
    raft = make_steady_leader(make_raft())
    raft.step(request_vote(2, 3, last_index=1, last_term=1, transfer=True))
    assert (raft.role, raft.term, raft.voted_for) == (Role.FOLLOWER, 2, 3)


def test_stick_to_leader_in_own_term() -> None:
    """Thesis §4.2.3: Who heard the leader of its term and has not voted in it votes for no rival
    of that leader either."""
    raft = make_raft(term=5)
    raft.step(heartbeat(5))
    settle(raft)
    raft.step(request_vote(5, 3))
    assert not [answer for answer in only(Vote, settle(raft)) if answer.granted]


def test_deaf_node_is_heard_by_answer() -> None:
    """Thesis §9.6: A node that is stuck in a higher term tells it to the leader in its answer, and
    the leader steps down into that term: else the node would be deaf for ever."""
    stuck = make_raft(term=9)
    stuck.step(heartbeat(1))
    (answer,) = only(HeartbeatReply, settle(stuck))
    assert answer.term == 9
    leader = make_leader(make_raft())
    leader.step(heartbeat_reply(answer.term, 2))
    assert (leader.role, leader.term) == (Role.FOLLOWER, 9)


# -- check-quorum --


def test_step_down_without_quorum() -> None:
    """Thesis §6.2: A leader that heard no quorum for an election timeout steps down, in its term,
    and takes no proposals."""
    raft = make_leader(make_raft(voters=5))
    raft.step(heartbeat_reply(1, 2))
    tick(raft, OPTIONS.election_ticks_min - 1)
    assert raft.role is Role.LEADER
    raft.tick()
    assert (raft.role, raft.term, raft.leader_id) == (Role.FOLLOWER, 1, NO_NODE)
    with pytest.raises(NotLeader):
        raft.propose(b"late")


def test_lead_on_with_quorum() -> None:
    """Thesis §6.2: A leader that hears a bare quorum, itself included, leads on."""
    raft = make_leader(make_raft(voters=5))
    for _ in range(5):
        raft.step(heartbeat_reply(1, 2))
        raft.step(accepted(1, 4, 1))
        tick(raft, OPTIONS.election_ticks_min)
    assert raft.role is Role.LEADER


def test_step_down_when_quorum_falls_silent() -> None:
    """Thesis §6.2: Being heard once does not count for ever: each check begins anew."""
    raft = make_leader(make_raft())
    raft.step(heartbeat_reply(1, 2))
    tick(raft, OPTIONS.election_ticks_min)
    assert raft.leader is not None
    tick(raft, OPTIONS.election_ticks_min)
    assert raft.role is Role.FOLLOWER


def test_heartbeats_stop_with_leadership() -> None:
    """Thesis §6.2: A leader that steps down sends no heartbeat any more, also not one that is due
    in the same tick."""
    raft = make_leader(make_raft())
    tick(raft, OPTIONS.election_ticks_min - 1)
    settle(raft)
    raft.tick()
    assert not only(Heartbeat, settle(raft))
    tick(raft, OPTIONS.heartbeat_ticks)
    assert not only(Heartbeat, settle(raft))


def test_step_down_waits_whole_timeout() -> None:
    """Thesis §6.2: A leader that steps down waits a whole election timeout before it stands
    again."""
    raft = make_candidate(make_raft())
    tick(raft, OPTIONS.election_ticks_min - 1)
    raft.step(vote(1, 2))
    tick(raft, OPTIONS.election_ticks_min)
    assert raft.role is Role.FOLLOWER
    settle(raft)
    assert ticks_until_campaign(raft) >= OPTIONS.election_ticks_min


def test_follow_again_in_own_term() -> None:
    """Thesis §6.2: A leader that stepped down keeps its vote: it refuses a rival of that term."""
    raft = make_leader(make_raft())
    tick(raft, OPTIONS.election_ticks_min)
    settle(raft)
    raft.step(request_vote(1, 3, last_index=9, last_term=1))
    assert [answer.granted for answer in only(Vote, settle(raft))] == [False]


def test_slow_disk_deposes_nobody() -> None:
    """Thesis §6.2: A follower answers heartbeats at once while its disk is busy with entries, so
    check-quorum judges the network and not the disk."""
    raft = make_raft(term=1)
    raft.step(append(1, terms=(1, 1)))
    take(raft)  # on its way to a disk that takes long
    raft.step(heartbeat(1, round_number=8))
    assert take(raft).messages == [HeartbeatReply(1, 1, 1, 2, round=8)]


def test_heartbeat_answer_after_sync_of_term() -> None:
    """Figure 2: The answer to a heartbeat of a new term waits until that term is on disk, then
    answers leave at once."""
    raft = make_raft(term=1)
    raft.step(heartbeat(2, round_number=8))
    first = take(raft)
    assert not first.messages
    assert first.messages_after_sync == [HeartbeatReply(1, 2, 1, 2, round=8)]
    raft.step(heartbeat(2, round_number=9))
    second = take(raft)
    assert not second.messages
    raft.advance(first)
    raft.step(heartbeat(2, round_number=10))
    assert take(raft).messages == [HeartbeatReply(1, 2, 1, 2, round=10)]
