"""Bugs to plant in the Multi-Paxos engine, each of one line, as an honest mistake would make them.

See ``broken_raft.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final

import pytest

from replog.types import Entry, EntryKind, LogIndex, Ready, Role, entry_body
from replog_multipaxos import MultiPaxos, acceptor, election, leader, learner, slots
from replog_multipaxos.election import Candidacy
from replog_multipaxos.indexes import Range
from replog_multipaxos.leader import Leader
from replog_multipaxos.messages import Accept, Accepted, Learn, Message, Prepare, Promise
from replog_multipaxos.multipaxos import TABLE
from replog_multipaxos.slots import HOLE

Bug = Callable[[pytest.MonkeyPatch], None]


def sent_at_once(patch: pytest.MonkeyPatch, message_type: type) -> None:
    """Let messages of a type leave before the sync."""
    right = MultiPaxos.send_after_sync

    def wrong(engine: MultiPaxos, message: Message) -> None:
        (MultiPaxos.send if isinstance(message, message_type) else right)(engine, message)

    patch.setattr(MultiPaxos, "send_after_sync", wrong)


def promise_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A promise is sent before it is on disk."""
    sent_at_once(patch, Promise)


def prepare_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A candidate asks before its own promise is on disk."""
    sent_at_once(patch, Prepare)


def accepted_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A vote is told before it is on disk."""
    patch.setattr(MultiPaxos, "acknowledge", MultiPaxos.send)


def repeated_accepted_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A vote that was asked for twice is told at once, though the first is not synced."""
    right = MultiPaxos.acknowledge

    def wrong(engine: MultiPaxos, message: Accepted) -> None:
        (right if engine.slots.has_unsaved else MultiPaxos.send)(engine, message)

    patch.setattr(MultiPaxos, "acknowledge", wrong)


def own_vote_counted_early(patch: pytest.MonkeyPatch) -> None:
    """A leader counts its own votes before its disk has them."""
    right = leader.count_votes

    def wrong(engine: MultiPaxos, leading: Leader, ranges: Iterable[tuple[int, int]]) -> None:
        durable = engine.slots.durable
        engine.slots.durable = durable.clone()
        for first, last in engine.slots.held.ranges():
            engine.slots.durable.add(first, last)
        right(engine, leading, tuple(ranges))
        engine.slots.durable = durable

    patch.setattr(leader, "count_votes", wrong)


def proposing(patch: pytest.MonkeyPatch, choose: Callable[[Entry, Entry], Entry]) -> None:
    """Have the value of each open slot chosen otherwise: ``choose(own, told)``."""

    def wrong(engine: MultiPaxos, candidacy: Candidacy) -> tuple[list[Entry], int]:
        ballot = engine.term
        last_slot = max(engine.slots.last_index, max(candidacy.votes, default=0))
        found: list[Entry] = []
        for slot in range(engine.commit_index + 1, last_slot + 1):
            vote = choose(engine.slots.at(slot), candidacy.votes.get(slot, HOLE))
            noop = entry_body(EntryKind.NOOP, engine.epoch.number, ballot, slot, b"")
            found.append(Entry(1, slot, ballot, noop if vote is HOLE else vote.body))
        return found, last_slot

    patch.setattr(election, "open_proposals", wrong)


def own_vote_preferred(patch: pytest.MonkeyPatch) -> None:
    """A new leader proposes its own vote, whatever ballot others voted at (PMS §2.2, P2c)."""
    proposing(patch, lambda own, told: told if own is HOLE else own)


def told_vote_preferred(patch: pytest.MonkeyPatch) -> None:
    """A new leader proposes what it was told, though its own vote is of a higher ballot."""
    proposing(patch, lambda own, told: own if told is HOLE else told)


def open_slots_emptied(patch: pytest.MonkeyPatch) -> None:
    """A new leader proposes a no-op in every open slot."""
    proposing(patch, lambda _own, _told: HOLE)


def last_told_vote_wins(patch: pytest.MonkeyPatch) -> None:
    """Of two promised votes the one that came last is taken, whatever their ballots."""
    right = election.handle_promise

    def wrong(engine: MultiPaxos, message: Promise) -> None:
        assert engine.candidacy is not None
        for vote in message.entries:
            engine.candidacy.votes.pop(vote.index, None)
        right(engine, message)

    patch.setitem(TABLE[Role.CANDIDATE], Promise, wrong)


def learn_raises_no_promise(patch: pytest.MonkeyPatch) -> None:
    """Who learns a value does not promise the ballot that it came with."""
    right = MultiPaxos._admit_ballot

    def wrong(engine: MultiPaxos, message: Message) -> bool:
        return isinstance(message, Learn) or right(engine, message)

    patch.setattr(MultiPaxos, "_admit_ballot", wrong)


def accepts_below_promise(patch: pytest.MonkeyPatch) -> None:
    """A follower accepts at a ballot below its promise."""
    right = MultiPaxos._admit_ballot

    def wrong(engine: MultiPaxos, message: Message) -> bool:
        if isinstance(message, Accept) and message.term < engine.term:
            return engine.role is Role.FOLLOWER
        return right(engine, message)

    patch.setattr(MultiPaxos, "_admit_ballot", wrong)


def old_acceptances_counted(patch: pytest.MonkeyPatch) -> None:
    """A leader counts votes of an earlier ballot."""
    right = MultiPaxos._admit_ballot

    def wrong(engine: MultiPaxos, message: Message) -> bool:
        if isinstance(message, Accepted) and message.term < engine.term:
            return True
        return right(engine, message)

    patch.setattr(MultiPaxos, "_admit_ballot", wrong)


def hint_covers_open_slots(patch: pytest.MonkeyPatch) -> None:
    """The commit hint covers every slot that is stored, chosen or not."""
    right = MultiPaxos.ready

    def wrong(engine: MultiPaxos) -> Ready | None:
        ready = right(engine)
        if ready is None or ready.hard_state is None:
            return ready
        hint = engine.slots.durable_index
        return replace(ready, hard_state=replace(ready.hard_state, commit_hint=hint))

    patch.setattr(MultiPaxos, "ready", wrong)


def far_slots_taken(patch: pytest.MonkeyPatch) -> None:
    """Whoever tells of a far slot has every slot up to it made room for."""
    for module in (slots, acceptor, election, learner):
        patch.setattr(module, "check_not_ahead", lambda *_: None, raising=False)


def votes_told_as_facts(patch: pytest.MonkeyPatch) -> None:
    """Who is asked for chosen values tells its votes, chosen or not."""

    def wrong(engine: MultiPaxos, ranges: tuple[Range, ...]) -> Iterator[LogIndex]:
        for first, last in ranges:
            yield from range(first, min(last, engine.slots.durable_index) + 1)

    patch.setattr(learner, "known_slots", wrong)


BUGS: Final[dict[Bug, str]] = {
    promise_before_sync: "crashes.voter_dies_between_leaders",
    prepare_before_sync: "crashes.candidate_dies_having_asked",
    accepted_before_sync: "crashes.acceptor_dies_with_answer_out",
    repeated_accepted_before_sync: "crashes.acceptor_dies_with_answer_out",
    own_vote_counted_early: "faults.held_majority",
    own_vote_preferred: "crashes.two_old_values",
    told_vote_preferred: "crashes.two_old_values",
    open_slots_emptied: "crashes.two_old_values",
    last_told_vote_wins: "crashes.two_old_values",
    learn_raises_no_promise: "crashes.lagging_node_learns_late",
    accepts_below_promise: "crashes.old_proposal_comes_late",
    old_acceptances_counted: "crashes.old_answer_comes_late",
    votes_told_as_facts: "crashes.asked_node_has_an_old_value",
    hint_covers_open_slots: "crashes.open_value_stays_open",
    far_slots_taken: "refusals.out_of_range_survived",
}
"""Each with the scenario that finds it."""
