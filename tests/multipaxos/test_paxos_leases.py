"""Leases and the fence of ballots, at one engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from paxos_given import answers, b, carried_out, lone

from replog.testing.network import Flight
from replog.testing.nodes import ClusterNode
from replog.types import NodeId, Role, Voter
from replog_multipaxos import MultiPaxos, MultiPaxosOptions
from replog_multipaxos.checks import binds_in_faith
from replog_multipaxos.messages import Commit, CommitReply, Nack, Prepare, Promise

LEASE_NS = 450_000_000
AGREED = (("lease_ms", 450),)


def acceptor() -> MultiPaxos:
    """Node 2, whose faith after its start is over, and which has just heard node 1 lead."""
    engine = lone(2, agreed=AGREED)
    engine.observe_time(0)
    engine.observe_time(LEASE_NS)
    engine.step(Commit(1, b(1, 1), 1, 2, chosen_upto=0, sent_upto=0, round=1))
    carried_out(engine)
    return engine


def test_higher_prepare_raises_nothing_in_faith() -> None:
    """In faith a Prepare of a higher ballot is refused, and the promise stays as it was; when the
    time is over it is promised."""
    engine = acceptor()
    ask = Prepare(1, b(2, 3), 3, 2, from_slot=1, pre=False, ordered_in=0)
    engine.observe_time(2 * LEASE_NS - 1)
    engine.step(ask)
    [nack] = answers(engine)
    assert isinstance(nack, Nack)
    assert engine.term == b(1, 1)
    engine.observe_time(2 * LEASE_NS)
    engine.step(ask)
    [promise] = answers(engine)
    assert isinstance(promise, Promise)
    assert engine.term == b(2, 3)


@pytest.mark.parametrize(
    ("ordered_in", "pre", "is_bound"),
    [(0, False, False), (b(1, 1), False, False), (b(2, 1), False, True), (b(2, 1), True, False)],
)
def test_order_binds_in_faith(ordered_in: int, pre: bool, is_bound: bool) -> None:
    """With leases P11 lets a node refuse a Prepare, but not one that was ordered at its ballot."""
    node = SimpleNamespace(status_seen=SimpleNamespace(term=b(2, 1)))
    ask = Prepare(1, b(3, 3), 3, 2, from_slot=1, pre=pre, ordered_in=ordered_in)
    flight = SimpleNamespace(message=ask)
    assert binds_in_faith(cast(ClusterNode, node), cast(Flight, flight)) is is_bound


def test_known_ballot_is_not_promised_in_faith() -> None:
    """A node that was told of a ballot, and so can vote at no lower one, still promises it to
    nobody while the lease may run of the leader that it heard."""
    engine = acceptor()
    engine.step(Nack(1, b(2, 3), 3, 2, rejected=b(1, 1), leader_id=0))
    carried_out(engine)
    assert engine.term == b(2, 3)
    ask = Prepare(1, b(2, 3), 3, 2, from_slot=1, pre=False, ordered_in=0)
    engine.step(ask)
    [nack] = answers(engine)
    assert isinstance(nack, Nack)
    engine.observe_time(2 * LEASE_NS)
    engine.step(ask)
    [promise] = answers(engine)
    assert isinstance(promise, Promise)


def leader(*learners: NodeId) -> MultiPaxos:
    """Node 1, which leads at ballot 1.1 by the promise of node 2."""
    engine = lone(1, agreed=AGREED, options=MultiPaxosOptions(clock_drift_percent=0))
    engine.set_learners([Voter(each, 99) for each in learners])
    engine.observe_time(0)
    engine.observe_time(LEASE_NS)
    engine.campaign()
    engine.step(Promise(1, b(1, 1), 2, 1, True, 1, 0, 0, 0, ()))
    carried_out(engine)
    engine.step(Promise(1, b(1, 1), 2, 1, False, 1, 0, 0, 0, ()))
    assert engine.role is Role.LEADER
    carried_out(engine)
    return engine


def test_lost_voter_extends_no_lease() -> None:
    """Who lost its disk keeps no faith with anybody: its answers extend no lease."""
    engine = leader(3)
    assert engine.leader is not None
    engine.step(CommitReply(1, engine.term, 3, 1, 1, 0, 0, ()))
    assert engine.leader.lease.until_ns is None
    engine.step(CommitReply(1, engine.term, 2, 1, 1, 0, 0, ()))
    assert engine.leader.lease.until_ns == 2 * LEASE_NS


def test_refused_campaign_counts_as_no_failed_round() -> None:
    """A candidate whose timeouts pass while it keeps faith begins no round, and backs off no
    further for that."""
    engine = lone(2, agreed=AGREED)
    engine.observe_time(0)
    for _ in range(100):
        engine.tick()
    assert engine.role is Role.FOLLOWER
    assert (engine.attempt, engine.failed_count) == (0, 0)
    engine.observe_time(LEASE_NS)
    engine.tick()
    assert engine.role is Role.PRE_CANDIDATE
