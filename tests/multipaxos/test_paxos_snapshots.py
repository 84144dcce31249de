"""Multi-Paxos and snapshots: trimmed is not empty, a snapshot is a fact, votes behind it stay."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paxos_given import answers, b, carried_out, engine_of, led, lone, vote

from replog.limits import Limits
from replog.testing import Cluster, Outcome
from replog.testing.nodes import Recorder
from replog.types import EntryId, Role
from replog_multipaxos import MultiPaxosOptions
from replog_multipaxos.messages import (
    Accept,
    Accepted,
    Commit,
    CommitReply,
    Learn,
    LearnRequest,
    Promise,
    Trimmed,
)

BY_HAND = MultiPaxosOptions(automatic_elections=False)
TINY = Limits(trim_margin_entries=1, snapshot_chunk_bytes=40)


def base(index: int) -> EntryId:
    """The base of a log that was trimmed up to an index."""
    return EntryId(1, 0, index)


# -- trimming --


def test_trim_tells_the_disk() -> None:
    """A trim is told to the disk once, by a base without a term: votes for one value may be of
    different ballots."""
    votes = tuple(vote(slot, b(1, 1)) for slot in (1, 2, 3))
    engine = lone(promised=b(1, 1), entries=votes, hint=3)
    carried_out(engine)
    assert engine.snapshot_id(3) == base(3)
    assert engine.trim(2) == 2
    assert engine.status().base_index == 2
    [ready] = carried_out(engine)
    assert (ready.base, ready.entries, ready.writes) == (base(2), (), True)
    assert carried_out(engine) == []


# -- who needs a snapshot --


def test_trimmed_slots_are_wanted() -> None:
    """Who is told that what it asked for was trimmed wants a snapshot that reaches as far."""
    engine = lone(promised=b(1, 1))
    engine.step(Trimmed(1, b(1, 1), 1, 2, 5))
    assert engine.status().wanted_index == 5
    engine.step(Trimmed(1, b(1, 1), 3, 2, 4))
    assert engine.status().wanted_index == 5
    engine.install(base(6))
    assert engine.status().wanted_index == 0


def test_trimmed_is_a_fact_at_any_ballot() -> None:
    """A node that promised less may tell what it trimmed; one that promised more binds as well."""
    engine = lone(promised=b(2, 1))
    engine.step(Trimmed(1, b(1, 3), 3, 2, 5))
    assert engine.status().wanted_index == 5
    engine.step(Trimmed(1, b(3, 3), 3, 2, 5))
    assert engine.term == b(3, 3)


def test_request_is_answered_with_how_far_is_trimmed() -> None:
    """The answer has the base, not what was asked for: less would not do."""
    votes = [vote(slot, b(1, 1)) for slot in range(1, 5)]
    engine = lone(promised=b(1, 1), entries=votes, hint=4)
    carried_out(engine)
    engine.trim(3)
    carried_out(engine)
    engine.step(LearnRequest(1, b(1, 1), 1, 2, ((1, 1),)))
    assert answers(engine) == [Trimmed(1, b(1, 1), 2, 1, 3)]


def test_follower_behind_the_trim_asks_and_wants() -> None:
    """A follower whose leader trimmed what it lacks finds out by asking for it."""
    engine = lone(promised=b(1, 1))
    for _ in range(2):
        engine.step(Commit(1, b(1, 1), 1, 2, chosen_upto=5, sent_upto=5, round=1))
    [request] = [each for each in answers(engine) if isinstance(each, LearnRequest)]
    assert request.ranges == ((1, 5),)


def test_votes_behind_a_trim_are_bounded() -> None:
    """Who waits for a snapshot holds no more votes than a leader may have on their way to it; the
    others it has not heard, and it takes them when the snapshot is in."""
    limits = Limits(message_bytes_max=1000, in_flight_bytes_max=1000)
    engine = lone(promised=b(1, 1), limits=limits)
    engine.step(Trimmed(1, b(1, 1), 1, 2, 5))
    for slot in (10, 11, 12):
        engine.step(Accept(1, b(1, 1), 1, 2, 5, (vote(slot, b(1, 1), bytes(400)),)))
    engine.step(Learn(1, b(1, 1), 3, 2, (vote(13, b(1, 1), bytes(400)),)))
    said = [each for each in answers(engine) if isinstance(each, Accepted)]
    assert [each.ranges for each in said] == [((10, 11),)]
    assert engine.slots.last_index == 11
    # What joins on to the commit index is applied, and needs no room.
    engine.step(Learn(1, b(1, 1), 3, 2, (vote(1, b(1, 1), bytes(400)),)))
    assert engine.commit_index == 1
    engine.install(base(9))
    for slot in (12, 13, 14, 15):
        engine.step(Accept(1, b(1, 1), 1, 2, 9, (vote(slot, b(1, 1), bytes(400)),)))
    assert engine.slots.last_index == 15
    engine.check()


# -- installing --


def test_install_keeps_the_votes_behind_it() -> None:
    """Slots behind the snapshot keep their votes, chosen or not; those within are gone."""
    votes = (vote(2, b(1, 1)), vote(4, b(1, 1)), vote(6, b(1, 1)))
    engine = lone(promised=b(1, 1), entries=votes)
    engine.install(base(4))
    assert (engine.commit_index, engine.status().applied_index) == (4, 4)
    assert [entry.index for entry in engine.slots.votes_within(1, 1000)[0]] == [6]
    [ready] = carried_out(engine)
    assert (ready.base, ready.truncate_from, ready.entries) == (base(4), None, ())
    engine.check()


def test_install_joins_what_was_chosen_behind_it() -> None:
    """Slots that were known as chosen behind the snapshot are handed out now."""
    engine = lone(promised=b(1, 1))
    engine.step(Accept(1, b(1, 1), 1, 2, 6, (vote(5, b(1, 1)), vote(6, b(1, 1)))))
    carried_out(engine)
    assert engine.commit_index == 0
    engine.install(base(4))
    assert engine.commit_index == 6
    [ready] = carried_out(engine)
    assert [entry.index for entry in ready.committed] == [5, 6]


def test_install_far_ahead() -> None:
    """Behind a snapshot that reaches beyond every vote the slots go on."""
    engine = lone(promised=b(1, 1), entries=(vote(1, b(1, 1)),))
    engine.install(base(9))
    carried_out(engine)
    assert (engine.slots.last_index, engine.slots.durable_index) == (9, 9)
    engine.step(Accept(1, b(1, 1), 1, 2, 9, (vote(10, b(1, 1)),)))
    [accepted] = [each for each in answers(engine) if isinstance(each, Accepted)]
    assert accepted.ranges == ((10, 10),)
    engine.step(Commit(1, b(1, 1), 1, 2, chosen_upto=10, sent_upto=10, round=1))
    [reply] = [each for each in answers(engine) if isinstance(each, CommitReply)]
    assert (reply.chosen_upto, reply.ranges) == (10, ())


def test_install_ahead_of_what_was_handed_out() -> None:
    """What is chosen and waits to be handed out is in the machine now: it is not handed out any
    more, and may be trimmed."""
    votes = tuple(vote(slot, b(1, 1)) for slot in (1, 2, 3, 4))
    engine = lone(promised=b(1, 1), entries=votes, hint=4)
    engine.install(base(3))
    assert engine.trim(3) == 3
    committed = [each.index for ready in carried_out(engine) for each in ready.committed]
    assert committed == [4]


def test_request_for_many_slots_is_answered_a_message_full() -> None:
    """Chosen values are told a message full at a time, across stretches."""
    votes = [vote(slot, b(1, 1), bytes(100)) for slot in (1, 2, 3, 4, 5, 6)]
    limits = Limits(message_bytes_max=400)
    engine = lone(promised=b(1, 1), entries=votes, hint=6, limits=limits)
    carried_out(engine)
    engine.step(LearnRequest(1, b(1, 1), 1, 2, ((1, 1), (3, 6))))
    [told] = [each for each in answers(engine) if isinstance(each, Learn)]
    assert [entry.index for entry in told.entries] == [1, 3]


def test_install_amid_a_write() -> None:
    """A vote that was on its way to disk when a snapshot came over its slot is not counted."""
    engine = lone(promised=b(1, 1))
    engine.step(Accept(1, b(1, 1), 1, 2, 0, (vote(1, b(1, 1)), vote(2, b(1, 1)))))
    written = engine.ready()
    assert written is not None
    engine.install(base(1))
    engine.advance(written)
    assert engine.slots.durable.ranges() == ((2, 2),)
    engine.check()


def test_install_of_less_changes_nothing() -> None:
    """A snapshot of what is known as chosen says nothing new."""
    engine = lone(promised=b(1, 1), entries=(vote(1, b(1, 1)), vote(2, b(1, 1))), hint=2)
    carried_out(engine)
    before = engine.key()
    engine.install(base(2))
    assert engine.key() == before


def test_install_at_a_leader() -> None:
    """A leader that hears of more than it knew as chosen counts it as such, once."""
    engine = lone(1, options=BY_HAND)
    engine.campaign()
    carried_out(engine)
    engine.step(Promise(1, b(1, 1), 2, 1, False, 1, 0, 0, 0, ()))
    engine.propose(b"x" * 100)
    engine.propose(b"y")
    carried_out(engine)
    assert engine.leader is not None
    held_bytes = engine.leader.uncommitted_bytes
    engine.install(base(1))
    assert engine.role is Role.LEADER
    assert held_bytes - engine.leader.uncommitted_bytes > 100
    engine.install(base(2))
    assert engine.leader.uncommitted_bytes == 0
    engine.check()


def test_candidate_leads_when_it_has_the_snapshot() -> None:
    """A candidate whose only promise is of a node that trimmed what it lacks waits for a snapshot,
    and leads when it has got one."""
    engine = lone(1, options=BY_HAND)
    engine.campaign()
    carried_out(engine)
    votes = (vote(4, b(0, 2)),)
    engine.step(Promise(1, b(1, 1), 2, 1, False, 1, 0, 3, 3, votes))
    assert engine.role is Role.CANDIDATE
    assert [each.ranges for each in answers(engine) if isinstance(each, LearnRequest)] == [
        ((1, 3),)
    ]
    engine.install(base(3))
    assert engine.role is Role.LEADER
    [ready] = carried_out(engine)[:1]
    assert [(entry.index, entry.data) for entry in ready.entries] == [(4, b"")]


def test_observed_ballot_is_promised() -> None:
    """A fact of a higher ballot deposes, and the promise is to be durable."""
    engine = lone(1, options=BY_HAND)
    engine.campaign()
    carried_out(engine)
    engine.step(Promise(1, b(1, 1), 2, 1, False, 1, 0, 0, 0, ()))
    assert engine.role is Role.LEADER
    engine.observe_term(b(4, 3))
    assert (engine.role, engine.term) == (Role.FOLLOWER, b(4, 3))
    assert engine.status().durable_term == b(1, 1)
    carried_out(engine)
    assert engine.status().durable_term == b(4, 3)


# -- starting --


def test_start_behind_a_snapshot_in_the_log() -> None:
    """What was committed when the hint was written is what was chosen, so the log is kept."""
    votes = tuple(vote(slot, b(1, 1)) for slot in range(1, 6))
    engine = lone(promised=b(1, 1), entries=votes, hint=4, snapshot_index=3, applied_index=3)
    assert engine.slots.base_index == 0
    [ready] = carried_out(engine)
    assert ([entry.index for entry in ready.committed], ready.base) == ([4], None)


@pytest.mark.parametrize("hint", [0, 2])
def test_start_behind_a_snapshot_from_elsewhere(hint: int) -> None:
    """Of a snapshot above the hint nobody knows whether the votes within it are what was chosen:
    they are forgotten, and those behind it stay."""
    votes = tuple(vote(slot, b(1, 1)) for slot in range(1, 6))
    engine = lone(promised=b(1, 1), entries=votes, hint=hint, snapshot_index=3, applied_index=3)
    assert (engine.slots.base_index, engine.commit_index, engine.slots.last_index) == (3, 3, 5)
    [ready] = carried_out(engine)
    assert (ready.base, ready.committed) == (base(3), ())


def test_start_of_a_machine_that_lags_its_snapshot() -> None:
    """A machine on its own disk may have come less far than the snapshot; it is given the rest."""
    votes = tuple(vote(slot, b(1, 1)) for slot in range(1, 5))
    engine = lone(promised=b(1, 1), entries=votes, hint=4, snapshot_index=3, applied_index=1)
    [ready] = carried_out(engine)
    assert [entry.index for entry in ready.committed] == [2, 3, 4]


def test_start_behind_a_base() -> None:
    """A log that begins behind a base goes on there."""
    engine = lone(
        promised=b(1, 1),
        entries=(vote(6, b(1, 1)),),
        base_index=5,
        snapshot_index=5,
        applied_index=5,
    )
    assert (engine.commit_index, engine.status().applied_index) == (5, 5)
    assert carried_out(engine) == []


def test_clone_keeps_the_moved_base() -> None:
    """A clone tells its disk of the base as the original does."""
    engine = lone(promised=b(1, 1), entries=(vote(1, b(1, 1)), vote(2, b(1, 1))), hint=2)
    carried_out(engine)
    engine.trim(1)
    clone = engine.clone()
    assert clone.key() == engine.key()
    assert [ready.base for ready in carried_out(clone)] == [base(1)]
    assert clone.key() != engine.key()


# -- whole clusters --


def leave_behind(cluster: Cluster) -> None:
    """Have node 3 lack twelve commands, of which the others have trimmed all but the last."""
    cut = cluster.isolate(3)
    for at in range(12):
        cluster.propose(1, b"x%d" % at)
        cluster.settle()
    cluster.take_snapshot(1)
    cluster.take_snapshot(2)
    cluster.tick()
    assert cluster.nodes[1].disk.base_index == 11
    cluster.mend(cut)


def test_laggard_is_filled_from_a_snapshot() -> None:
    """A node that lacks what the others trimmed gets a snapshot and then the rest, and its machine
    holds what all hold."""
    cluster = led(limits=TINY)
    leave_behind(cluster)
    last = cluster.propose(cluster.leader(), b"last")
    assert cluster.run_until(cluster.is_converged, 120)
    assert last.outcome is Outcome.DONE
    machine = cluster.nodes[3].machine
    assert isinstance(machine, Recorder)
    assert machine.payloads == [*(b"x%d" % at for at in range(12)), b"last"]
    assert sum(" install " in line for line in cluster.trace.lines()) == 1


def test_laggard_that_the_quorum_needs_is_filled_first() -> None:
    """Where nothing is chosen without the node that waits for a snapshot, proposals wait as well,
    and are done when it has it."""
    limits = replace(TINY, message_bytes_max=200, in_flight_bytes_max=200)
    cluster = led(limits=limits, options=BY_HAND)
    leave_behind(cluster)
    cluster.crash(2)
    proposals = [cluster.propose(1, bytes(40)) for _ in range(20)]
    cluster.tick(3)
    laggard = engine_of(cluster, 3)
    assert laggard.wanted_index > laggard.commit_index
    assert 0 < laggard.waiting_bytes <= limits.in_flight_bytes_max
    assert cluster.run_until(lambda: all(each.outcome is Outcome.DONE for each in proposals), 200)
    assert laggard.waiting_bytes == 0
    assert cluster.applied(3) == cluster.applied(1)


def test_candidate_that_lags_is_filled_and_leads() -> None:
    """A node that lacks what all others trimmed can still be made leader: it promises, asks, is
    filled, and goes on."""
    cluster = led(limits=replace(TINY, snapshot_chunk_bytes=1000), options=BY_HAND)
    cut = cluster.isolate(3)
    for at in range(6):
        cluster.propose(1, b"x%d" % at)
        cluster.settle()
    cluster.take_snapshot(2)
    cluster.tick(8)
    assert engine_of(cluster, 2).slots.base_index == 5
    cluster.crash(1)
    cluster.mend(cut)
    cluster.campaign(3)
    assert cluster.run_until(lambda: cluster.leader() == 3, 120)
    assert cluster.applied(3)[:6] == cluster.applied(2)[:6]
    proposal = cluster.propose(3, b"after")
    cluster.settle()
    assert proposal.outcome is Outcome.DONE
