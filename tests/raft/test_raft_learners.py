"""Learners: nodes that follow, and whose word counts in no quorum (Raft thesis §4.2.1)."""

from __future__ import annotations

import pytest

from replog.engine import EngineSetup
from replog.errors import CallerError
from replog.limits import Limits
from replog.stored_log import HeldLog
from replog.types import NO_NODE, Epoch, HardState, NodeId, Role, Voter
from replog_raft import Raft, RaftOptions
from replog_raft.messages import (
    AppendEntries,
    AppendReply,
    HeartbeatReply,
    RequestVote,
    TimeoutNow,
    Vote,
)

OPTIONS = RaftOptions(heartbeat_ticks=2, election_ticks_min=10, election_ticks_max=20)


def node(*learners: NodeId) -> Raft:
    """Node 1 of three voters, of which some are lost."""
    return Raft(
        EngineSetup(
            node_id=1,
            epoch=Epoch(1, "raft", tuple(Voter(each, each) for each in (1, 2, 3)), 1),
            hard_state=HardState(1, 0, NO_NODE),
            log=HeldLog(),
            limits=Limits(),
            options=OPTIONS,
            seed=1,
            nonce=0,
            learners=tuple(Voter(each, 99) for each in learners),
        )
    )


def said(raft: Raft) -> list[object]:
    """Every message that leaves when all that the engine wants done is done."""
    found: list[object] = []
    while (ready := raft.ready()) is not None:
        found += [*ready.messages, *ready.messages_after_sync]
        raft.advance(ready)
    return found


def leader(*learners: NodeId) -> Raft:
    """Node 1, which node 2 has elected in term 1."""
    raft = node(*learners)
    raft.campaign()
    raft.step(Vote(1, 1, 2, 1, granted=True, pre=True))
    said(raft)
    raft.step(Vote(1, 1, 2, 1, granted=True, pre=False))
    assert raft.role is Role.LEADER
    said(raft)
    return raft


def test_learner_does_not_campaign() -> None:
    """No timer and no order makes a learner a candidate."""
    raft = node(1)
    for _ in range(100):
        raft.tick()
    raft.campaign()
    raft.step(TimeoutNow(1, 0, 2, 1))
    assert raft.role is Role.FOLLOWER
    assert said(raft) == []


@pytest.mark.parametrize("pre", [True, False])
def test_learner_does_not_vote(pre: bool) -> None:
    """A learner answers no request for a vote, for its answer would be taken for the lost
    voter's."""
    raft = node(1)
    raft.step(
        RequestVote(1, 1, 2, 1, last_index=9, last_term=1, pre=pre, transfer=False, ordered_in=0)
    )
    assert said(raft) == []
    assert raft.voted_for == NO_NODE


def test_vote_of_a_learner_counts_nothing() -> None:
    """A vote that the lost incarnation gave makes nobody a leader any more."""
    raft = node(3)
    raft.campaign()
    raft.step(Vote(1, 1, 3, 1, granted=True, pre=True))
    assert raft.role is Role.PRE_CANDIDATE


def test_acknowledgement_of_a_learner_commits_nothing() -> None:
    """What a leader and a learner hold is not committed: of three voters two must hold it, and the
    learner is none of them."""
    raft = leader(3)
    raft.step(AppendReply(1, 1, 3, 1, True, 1, 0, 0, 0))
    assert raft.commit_index == 0
    raft.step(AppendReply(1, 1, 2, 1, True, 1, 0, 0, 0))
    assert raft.commit_index == 1


def test_voter_that_becomes_a_learner_counts_no_more() -> None:
    """What a voter acknowledged before it was lost counts no more for what is not committed."""
    raft = leader()
    raft.propose(b"x")
    ready = raft.ready()
    assert ready is not None  # our own copy is not on disk yet
    raft.step(AppendReply(1, 1, 3, 1, True, 2, 0, 0, 0))
    assert raft.commit_index == 1  # the no-op is on two disks
    raft.set_learners((Voter(3, 99),))
    raft.advance(ready)
    assert raft.commit_index == 1
    raft.step(AppendReply(1, 1, 2, 1, True, 2, 0, 0, 0))
    assert raft.commit_index == 2


def test_learner_is_replicated_to() -> None:
    """A leader sends to a learner what it sends to all."""
    raft = leader(3)
    raft.step(AppendReply(1, 1, 3, 1, True, 1, 0, 0, 0))
    raft.propose(b"x")
    assert 3 in [getattr(message, "to", 0) for message in said(raft)]


def test_silent_voter_deposes_beside_a_learner() -> None:
    """A leader that hears a learner alone hears no quorum, and gives up (thesis §6.2)."""
    raft = leader(3)
    for _ in range(2 * OPTIONS.election_ticks_min + 2):
        raft.step(AppendReply(1, 1, 3, 1, True, 1, 0, 0, 0))
        raft.tick()
    assert raft.role is Role.FOLLOWER


def test_leadership_is_not_handed_to_a_learner() -> None:
    """Handing over to a learner is refused, with the nodes that can be named."""
    raft = leader(3)
    with pytest.raises(CallerError, match=r"choose one of 2$"):
        raft.transfer(3)


def test_leader_that_becomes_a_learner_follows() -> None:
    """Who learns that it is a learner itself leads no more."""
    raft = leader()
    raft.set_learners((Voter(1, 99),))
    assert raft.role is Role.FOLLOWER
    before = raft.key()
    raft.set_learners(())
    assert raft.key() != before


def test_what_a_lost_peer_acknowledged_is_forgotten() -> None:
    """A peer that comes back as a learner has lost what it acknowledged: it is not told to commit
    it, and may say that it holds nothing; so again with its next incarnation."""
    raft = leader()
    raft.step(AppendReply(1, 1, 3, 1, True, 1, 0, 0, 0))
    assert raft.status().peers[1].match_index == 1
    for incarnation in (77, 88):
        raft.set_learners((Voter(3, incarnation),))
        assert raft.status().peers[1].match_index == 0
        raft.step(AppendReply(1, 1, 3, 1, False, 0, raft.view.last_index, 0, 0))
        said(raft)
        raft.step(AppendReply(1, 1, 3, 1, True, 1, 0, 0, 0))
        assert raft.status().peers[1].match_index == 1
    raft.set_learners((Voter(3, 88),))
    assert raft.status().peers[1].match_index == 1


def test_new_learner_is_sent_to_without_new_work() -> None:
    """A peer that has just become a learner is sent the last entry, though nothing new is proposed,
    and again when it is heard: else it would never say where it stands."""
    raft = leader()
    raft.step(AppendReply(1, 1, 3, 1, True, 1, 0, 0, 0))
    said(raft)
    raft.set_learners((Voter(3, 77),))
    for _ in range(2):
        sent = [each for each in said(raft) if isinstance(each, AppendEntries) and each.to == 3]
        assert [entry.index for each in sent for entry in each.entries] == [1]
        raft.step(HeartbeatReply(1, 1, 3, 1, 1))
