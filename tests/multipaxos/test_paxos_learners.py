"""Learners: nodes that learn what is chosen, and whose word counts in no quorum (PMS §2.3)."""

from __future__ import annotations

import pytest
from paxos_given import answers, b, carried_out, lone

from replog.errors import CallerError
from replog.types import NodeId, Role, Voter
from replog_multipaxos import MultiPaxos, MultiPaxosOptions
from replog_multipaxos.messages import Accepted, Prepare, Promise, TakeOver

BY_HAND = MultiPaxosOptions(automatic_elections=False)


def leader(*learners: NodeId) -> MultiPaxos:
    """Node 1, which leads at ballot 1.1 by the promise of node 2."""
    engine = lone(1, options=BY_HAND)
    engine.set_learners([Voter(each, 99) for each in learners])
    engine.campaign()
    carried_out(engine)
    engine.step(Promise(1, b(1, 1), 2, 1, False, 1, 0, 0, 0, ()))
    assert engine.role is Role.LEADER
    carried_out(engine)
    return engine


def test_learner_does_not_ask() -> None:
    """No timer and no order makes a learner a candidate."""
    engine = lone(2)
    engine.set_learners((Voter(2, 99),))
    for _ in range(200):
        engine.tick()
    engine.campaign()
    engine.step(TakeOver(1, b(1, 1), 1, 2))
    assert engine.role is Role.FOLLOWER


@pytest.mark.parametrize("pre", [True, False])
def test_learner_does_not_promise(pre: bool) -> None:
    """A learner answers no Prepare, for its answer would be taken for the lost acceptor's."""
    engine = lone(2)
    engine.set_learners((Voter(2, 99),))
    engine.step(Prepare(1, b(1, 1), 1, 2, from_slot=1, pre=pre, ordered_in=0))
    assert answers(engine) == []


def test_promise_of_a_learner_counts_nothing() -> None:
    """A promise that the lost incarnation gave makes nobody a leader any more."""
    engine = lone(1, options=BY_HAND)
    engine.set_learners((Voter(3, 99),))
    engine.campaign()
    carried_out(engine)
    engine.step(Promise(1, b(1, 1), 3, 1, False, 1, 0, 0, 0, ()))
    assert engine.role is Role.CANDIDATE
    engine.step(Promise(1, b(1, 1), 2, 1, False, 1, 0, 0, 0, ()))
    assert engine.role is Role.LEADER


def test_vote_of_a_learner_chooses_nothing() -> None:
    """What a leader and a learner accepted is not chosen."""
    engine = leader(3)
    engine.propose(b"x")
    carried_out(engine)
    engine.step(Accepted(1, b(1, 1), 3, 1, 0, ((1, 1),)))
    assert engine.commit_index == 0
    engine.step(Accepted(1, b(1, 1), 2, 1, 0, ((1, 1),)))
    assert engine.commit_index == 1


def test_vote_behind_a_hole_is_counted_without_learners() -> None:
    """Also slot by slot, behind a hole, a learner's vote is none."""
    engine = leader(3)
    for _ in range(3):
        engine.propose(b"x")
        carried_out(engine)
    engine.step(Accepted(1, b(1, 1), 3, 1, 0, ((2, 3),)))
    assert not engine.chosen
    engine.step(Accepted(1, b(1, 1), 2, 1, 0, ((3, 3),)))
    assert engine.chosen.ranges() == ((3, 3),)


def test_leadership_is_not_handed_to_a_learner() -> None:
    """Handing over to a learner is refused, with the nodes that can be named."""
    engine = leader(3)
    with pytest.raises(CallerError, match=r"choose one of 2$"):
        engine.transfer(3)


def test_leader_that_becomes_a_learner_follows() -> None:
    """Who learns that it is a learner itself leads no more."""
    engine = leader()
    engine.set_learners((Voter(1, 99),))
    assert engine.role is Role.FOLLOWER
    before = engine.key()
    engine.set_learners(())
    assert engine.key() != before


def test_what_a_lost_peer_accepted_is_forgotten() -> None:
    """A peer that comes back as a learner has lost what it accepted; where it stands is asked."""
    engine = leader()
    engine.propose(b"x")
    carried_out(engine)
    engine.step(Accepted(1, b(1, 1), 3, 1, 0, ((1, 1),)))
    assert engine.status().peers[1].match_index == 1
    engine.set_learners((Voter(3, 99),))
    assert engine.status().peers[1].match_index == 0
    engine.step(Accepted(1, b(1, 1), 3, 1, 0, ((1, 1),)))
    engine.set_learners((Voter(3, 99),))
    assert engine.status().peers[1].match_index == 1
