"""Phase 2, facts and repair: who counts, what is lost and found again, who tells what."""

from __future__ import annotations

import pytest
from paxos_given import SMALL, answers, b, carried_out, done, engine_of, kind, led, lone, vote

from replog.errors import InvariantViolated, Overloaded, SchemaError
from replog.testing import Flight, Outcome
from replog.types import EntryKind, Role
from replog_multipaxos import MultiPaxosOptions
from replog_multipaxos.messages import (
    Accept,
    Accepted,
    Commit,
    Learn,
    LearnRequest,
    Nack,
    Promise,
)


def test_accept_at_or_above_the_promise() -> None:
    """A node accepts at its promised ballot and at a higher one, which it promises in the same
    write (PMS §2.2, P1a)."""
    engine = lone(promised=b(2, 1))
    engine.step(Accept(1, b(2, 1), 1, 2, 0, (vote(1, b(2, 1), b"x"),)))
    carried_out(engine)
    engine.step(Accept(1, b(3, 3), 3, 2, 0, (vote(1, b(3, 3), b"y"),)))
    ready = engine.ready()
    assert ready is not None
    assert ready.hard_state is not None
    assert ready.hard_state.term == b(3, 3)
    assert [entry.data for entry in ready.entries] == [b"y"]


def test_accepted_after_sync() -> None:
    """An Accepted leaves only after the vote is on disk, also when it answers a repetition."""
    engine = lone()
    accept = Accept(1, b(1, 1), 1, 2, 0, (vote(1, b(1, 1)),))
    for _ in range(2):
        engine.step(accept)
        ready = engine.ready()
        assert ready is not None
        assert not [message for message in ready.messages if isinstance(message, Accepted)]
        assert [type(message) for message in ready.messages_after_sync] == [Accepted]


def test_leader_counts_itself_after_its_sync() -> None:
    """The leader sends its Accepts beside its own write, and counts itself only after it."""
    cluster = led()
    cluster.hold_disk(1)
    proposal = cluster.propose(1, b"x")
    assert len(cluster.network.matching(kind("accept"))) == 2
    cluster.hold(kind("accepted", sender=3))
    cluster.settle()
    assert proposal.outcome is Outcome.PENDING  # node 2 alone is no quorum
    cluster.release_disk(1)
    assert proposal.outcome is Outcome.DONE


def test_one_voter_counts_once() -> None:
    """Of five nodes, the same Accepted three times is one vote."""
    cluster = led(5)
    cluster.hold(kind("accepted"))
    proposal = cluster.propose(1, b"x")
    cluster.settle()
    held = [flight for flight in cluster.network.held.values() if flight.sender == 2]
    for _ in range(3):
        engine_of(cluster, 1).step(held[0].message)
    assert engine_of(cluster, 1).commit_index == 0
    cluster.release()
    cluster.settle()
    assert proposal.outcome is Outcome.DONE


def test_vote_of_an_earlier_ballot_does_not_count() -> None:
    """A slot is chosen by a quorum at one ballot: answers to an earlier ballot of the same leader
    count nothing, though they speak of the same slot and value."""
    engine = lone(1, options=MultiPaxosOptions(automatic_elections=False))
    for round_number in (1, 2):
        engine.campaign()
        carried_out(engine)
        engine.step(Promise(1, b(round_number, 1), 2, 1, False, 1, 0, 0, 0, ()))
        assert engine.role is Role.LEADER
        if round_number == 1:
            engine.propose(b"x")
            engine.step(Nack(1, b(1, 2), 3, 1, rejected=b(1, 1), leader_id=0))
    engine.ready()  # our own vote at the new ballot is not on disk yet
    for sender in (2, 3):
        engine.step(Accepted(1, b(1, 1), sender, 1, 0, ((1, 1),)))
    assert engine.commit_index == 0
    for sender in (2, 3):
        engine.step(Accepted(1, b(2, 1), sender, 1, 0, ((1, 1),)))
    assert engine.commit_index == 1


def test_accepted_beyond_proposals_refused() -> None:
    """A vote for a slot that was never proposed is a peer's fault."""
    cluster = led()
    with pytest.raises(SchemaError, match="accepts slot 9"):
        engine_of(cluster, 1).step(Accepted(1, b(1, 1), 2, 1, 0, ((9, 9),)))


def test_window_is_bounded() -> None:
    """Above ``open_slots_max`` a leader refuses, and nothing is proposed."""
    cluster = led(options=MultiPaxosOptions(open_slots_max=3))
    cluster.isolate(1)
    proposals = [cluster.propose(1, b"%d" % at) for at in range(5)]
    outcomes = [each.outcome for each in proposals]
    assert outcomes == [Outcome.PENDING] * 3 + [Outcome.NOT_DONE] * 2
    assert isinstance(proposals[3].error, Overloaded)
    assert "open_slots_max = 3" in str(proposals[3].error)
    assert engine_of(cluster, 1).slots.last_index == 3


# -- repair --


def test_lost_accept_repeated_without_traffic() -> None:
    """An Accept that was lost to everybody is sent again, though nobody proposes anything."""
    cluster = led()
    proposal = cluster.propose(1, b"x")
    cluster.drop(kind("accept"))
    cluster.tick(4)
    assert proposal.outcome is Outcome.DONE


def test_lost_accepted_repaired_without_traffic() -> None:
    """An Accepted that was lost is asked for again; the entry itself is not sent twice."""
    cluster = led()
    proposal = cluster.propose(1, b"x")
    cluster.deliver(kind("accept"))
    assert cluster.drop(kind("accepted")) == 2
    cluster.tick(4)
    assert proposal.outcome is Outcome.DONE
    sent = [line for line in cluster.trace.lines() if " send " in line and "entries=1" in line]
    assert len(sent) == 2


def test_lost_end_moves_next_index_back() -> None:
    """Only when nothing from a slot on arrived does ``next_index`` move back, to that slot."""
    cluster = led(limits=SMALL)
    done(cluster, 1, b"a")
    cut = cluster.cut([(1, 3)])
    for at in range(4):
        done(cluster, 1, b"%d" % at)
    cluster.mend(cut)
    seen = set()
    for _ in range(4):
        cluster.tick()
        seen |= {peer.next_index for peer in engine_of(cluster, 1).status().peers}
    assert cluster.is_converged()
    assert min(seen) >= 2


def test_hole_filled_by_any_peer() -> None:
    """A follower to which the leader's Accepts do not get through learns the values from another
    node, without new traffic."""
    cluster = led()
    cluster.hold(lambda flight: flight.kind in ("accept", "learn") and flight.link == (1, 3))
    for at in range(5):
        done(cluster, 1, b"%d" % at)
    cluster.tick(12)
    assert [entry.data for entry in cluster.applied(3)] == [
        entry.data for entry in cluster.applied(1)
    ]
    told = [line for line in cluster.trace.lines() if "n2>n3 learn" in line and " recv " in line]
    assert told


def test_positions_come_from_promises() -> None:
    """A new leader knows where each peer stands: its first message to each begins there, and
    nothing is sent that the peer has already."""
    cluster = led(5, MultiPaxosOptions(automatic_elections=False), SMALL)
    for at in range(6):
        done(cluster, 1, b"%d" % at)
    cut = cluster.isolate(5)
    for at in range(3):
        done(cluster, 1, b"more %d" % at)
    cluster.tick(4)
    cluster.crash(1)
    cluster.mend(cut)
    sent: dict[int, list[int]] = {}

    def note(flight: Flight) -> bool:
        if flight.kind in ("accept", "learn") and flight.sender == 2:
            entries = flight.message.entries  # type: ignore[attr-defined]
            sent.setdefault(flight.to, []).extend(entry.index for entry in entries)
        return False

    cluster.hold(note)
    cluster.campaign(2)
    cluster.settle()
    assert cluster.leader() == 2
    cluster.tick(6)
    assert cluster.nodes[5].applied_index == 9
    assert sent.get(3, []) == []
    assert sorted(set(sent[5])) == [7, 8, 9]


def test_node_without_a_promise_is_brought_up() -> None:
    """A node that did not promise says where it stands when it is first heard."""
    cluster = led(5)
    cluster.isolate(5)
    for at in range(5):
        done(cluster, 1, b"%d" % at)
    cluster.heal()
    cluster.tick(8)
    assert cluster.is_converged()


# -- facts --


def test_fact_raises_the_promise() -> None:
    """Who learns a value promises its teller's ballot in the same write: a late Accept of a lower
    ballot must not pass."""
    engine = lone(promised=b(1, 1))
    engine.step(Learn(1, b(4, 3), 3, 2, (vote(1, b(2, 3), b"x"),)))
    ready = engine.ready()
    assert ready is not None
    assert ready.hard_state is not None
    assert ready.hard_state.term == b(4, 3)
    assert [entry.data for entry in ready.entries] == [b"x"]
    engine.advance(ready)
    engine.step(Accept(1, b(3, 1), 1, 2, 0, (vote(1, b(3, 1), b"late"),)))
    assert engine.slots.at(1).data == b"x"


def test_leader_that_learns_a_later_fact_stops() -> None:
    """A deposed leader that is told a fact of a later ballot leads no more."""
    cluster = led()
    engine = engine_of(cluster, 1)
    engine.step(Learn(1, b(4, 3), 3, 1, (vote(1, b(4, 3), b"x"),)))
    assert engine.role is Role.FOLLOWER
    assert engine.commit_index == 1


def test_fact_replaces_no_higher_ballot() -> None:
    """A fact of a lower ballot leaves a vote of a higher one as it is, if the value is the same;
    another value means that somebody broke the protocol."""
    engine = lone(promised=b(5, 1), entries=[vote(1, b(5, 1), b"x"), vote(2, b(5, 1), b"y")])
    engine.step(Learn(1, b(5, 1), 3, 2, (vote(1, b(2, 1), b"x"),)))
    assert engine.slots.at(1).term == b(5, 1)
    assert engine.commit_index == 1
    with pytest.raises(InvariantViolated, match="slot 2"):
        engine.step(Learn(1, b(5, 1), 3, 2, (vote(2, b(2, 1), b"z"),)))


def test_fact_of_a_higher_ballot_is_kept() -> None:
    """A vote for the same value at a lower ballot is replaced, so that what is stored in a chosen
    slot is never older than the choice."""
    engine = lone(promised=b(2, 1), entries=[vote(1, b(2, 1), b"x")])
    engine.step(Learn(1, b(5, 1), 3, 2, (vote(1, b(4, 3), b"x"),)))
    assert engine.slots.at(1).term == b(4, 3)


def test_leader_hears_of_its_facts() -> None:
    """Facts are acknowledged, after the sync, to the leader that told them, which moves its window
    on by that; to nobody else."""
    engine = lone(promised=b(1, 1))
    engine.step(Commit(1, b(1, 1), 1, 2, chosen_upto=0, sent_upto=0, round=0))
    carried_out(engine)
    engine.step(Learn(1, b(1, 1), 3, 2, (vote(1, b(1, 1)),)))
    assert answers(engine) == []
    engine.step(Learn(1, b(1, 1), 1, 2, (vote(2, b(1, 1)),)))
    ready = engine.ready()
    assert ready is not None
    assert ready.messages == []
    [told] = ready.messages_after_sync
    assert isinstance(told, Accepted)
    assert (told.to, told.chosen_upto, told.ranges) == (1, 2, ())


def test_facts_above_the_promise_refused() -> None:
    """Nobody can hold a vote above the ballot that he promised."""
    engine = lone()
    with pytest.raises(SchemaError, match="above its own promise"):
        engine.step(Learn(1, b(1, 3), 3, 2, (vote(1, b(2, 3)),)))


def test_only_chosen_values_are_told() -> None:
    """A request is answered with what is known as chosen, and with nothing else."""
    votes = [vote(slot, b(1, 1), b"%d" % slot) for slot in range(1, 5)]
    engine = lone(promised=b(1, 1), entries=votes, hint=2)
    carried_out(engine)
    engine.step(LearnRequest(1, b(1, 1), 3, 2, ((1, 9),)))
    [told] = answers(engine)
    assert isinstance(told, Learn)
    assert [entry.index for entry in told.entries] == [1, 2]


# -- restart --


def test_hint_spares_agreement() -> None:
    """After the whole cluster was down, phase 1 begins behind what was known as chosen: of a
    thousand entries not one is proposed again."""
    cluster = led()
    for at in range(50):
        done(cluster, 1, b"%d" % at)
    cluster.tick(4)
    done(cluster, 1, b"last")
    cluster.tick(4)
    for node_id in cluster.nodes:
        cluster.crash(node_id)
    for node_id in cluster.nodes:
        cluster.restart(node_id)
    assert len(cluster.applied(1)) >= 50  # without having heard anybody
    length = len(cluster.trace)
    assert cluster.run_until(cluster.is_converged, 80)
    again = [line for line in cluster.trace.lines(length) if " accept " in line and "send" in line]
    assert len(again) <= 4
    assert all("entries=51" in line or "entries=" not in line for line in again)


def test_accept_at_equal_ballot_commits_by_commit() -> None:
    """A follower commits on the leader's word what it accepted at the leader's ballot."""
    engine = lone()
    engine.step(Accept(1, b(1, 1), 1, 2, 0, (vote(1, b(1, 1), b"x"),)))
    engine.step(Commit(1, b(1, 1), 1, 2, chosen_upto=1, sent_upto=1, round=0))
    committed = [entry.data for ready in carried_out(engine) for entry in ready.committed]
    assert committed == [b"x"]


def test_noop_fills_a_gap_only() -> None:
    """A take-over with a hole fills that hole with a no-op and proposes the rest as it was."""
    cluster = led(limits=SMALL)
    cluster.hold(lambda flight: any(e.index == 1 for e in getattr(flight.message, "entries", ())))
    cluster.propose(1, b"lost")
    cluster.propose(1, b"kept")
    cluster.settle()
    cluster.crash(1)
    cluster.network.held.clear()
    cluster.release()
    assert cluster.run_until(lambda: cluster.leader() in (2, 3), 80)
    cluster.settle()
    kinds = [entry.kind for entry in cluster.applied(cluster.leader())]
    assert kinds == [EntryKind.NOOP, EntryKind.COMMAND]
