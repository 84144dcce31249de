"""Leases at one Raft engine: who may extend one, and which votes faith forbids."""

from __future__ import annotations

from replog.engine import EngineSetup
from replog.limits import Limits
from replog.stored_log import HeldLog
from replog.types import NO_NODE, Epoch, HardState, NodeId, Role, Voter
from replog_raft import Raft, RaftOptions
from replog_raft.messages import Heartbeat, HeartbeatReply, RequestVote, Vote

LEASE_NS = 450_000_000


def node(*learners: NodeId) -> Raft:
    """Node 1 of three voters with leases, of which some are lost; the faith after its start is
    over."""
    voters = tuple(Voter(each, each) for each in (1, 2, 3))
    raft = Raft(
        EngineSetup(
            node_id=1,
            epoch=Epoch(1, "raft", voters, 1, (("lease_ms", 450),)),
            hard_state=HardState(1, 0, NO_NODE),
            log=HeldLog(),
            limits=Limits(),
            options=RaftOptions(clock_drift_percent=0),
            seed=1,
            nonce=0,
            learners=tuple(Voter(each, 99) for each in learners),
        )
    )
    raft.observe_time(0)
    raft.observe_time(LEASE_NS)
    return raft


def said(raft: Raft) -> list[object]:
    """Every message that leaves when all that the engine wants done is done."""
    found: list[object] = []
    while (ready := raft.ready()) is not None:
        found += [*ready.messages, *ready.messages_after_sync]
        raft.advance(ready)
    return found


def test_lost_voter_extends_no_lease() -> None:
    """Who lost its disk keeps no faith with anybody: its answers extend no lease."""
    raft = node(3)
    raft.campaign()
    raft.step(Vote(1, 1, 2, 1, granted=True, pre=True))
    said(raft)
    raft.step(Vote(1, 1, 2, 1, granted=True, pre=False))
    assert raft.role is Role.LEADER
    for _ in range(raft.options.heartbeat_ticks):
        raft.tick()
    said(raft)
    assert raft.leader is not None
    raft.step(HeartbeatReply(1, 1, 3, 1, 1))
    assert raft.leader.lease.until_ns is None
    raft.step(HeartbeatReply(1, 1, 2, 1, 1))
    assert raft.leader.lease.until_ns == 2 * LEASE_NS


def test_vote_refused_in_faith() -> None:
    """While faith is kept neither a term is entered nor a vote given, not even to who was elected
    by a detector's word or in the own term; when the time is over it is given."""
    raft = node()
    raft.step(Heartbeat(1, 3, 2, 1, 0, 1))
    said(raft)
    raft.leader_id = NO_NODE  # as if it counted its ticks too fast
    raft.observe_time(2 * LEASE_NS - 1)
    for term in (3, 4):
        for transfer in (False, True):
            raft.step(RequestVote(1, term, 3, 1, 9, 3, False, transfer, ordered_in=0))
        assert [each for each in said(raft) if isinstance(each, Vote) and each.granted] == []
        assert raft.term == 3
    raft.observe_time(2 * LEASE_NS)
    raft.step(RequestVote(1, 4, 3, 1, 9, 3, False, False, ordered_in=0))
    assert Vote(1, 4, 1, 3, granted=True, pre=False) in said(raft)


def test_no_campaign_in_faith() -> None:
    """Who keeps faith asks for no vote and no pre-vote, and gives itself none; when the time is
    over it does."""
    raft = node()
    raft.step(Heartbeat(1, 3, 2, 1, 0, 1))
    said(raft)
    raft.observe_time(2 * LEASE_NS - 1)
    raft.campaign()
    assert said(raft) == []
    raft.observe_time(2 * LEASE_NS)
    raft.campaign()
    assert [each.pre for each in said(raft) if isinstance(each, RequestVote)] == [True, True]
