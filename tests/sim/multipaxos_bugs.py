"""Bugs to plant in the Multi-Paxos engine: each breaks one rule, as an honest mistake would.

A bug is a function that replaces a piece of the engine for the time of a test; its docstring says
what is wrong.  They are the measure of the random runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest

from replog.engine import EngineSetup
from replog.quorum import Threshold
from replog.types import Entry, EntryKind, HardState, LogIndex, NodeId, Role, Term, entry_body
from replog_multipaxos import MultiPaxos, MultiPaxosOptions, acceptor, election, leader, learner
from replog_multipaxos.election import Candidacy
from replog_multipaxos.leader import Leader
from replog_multipaxos.messages import (
    Accept,
    Accepted,
    CommitReply,
    Learn,
    Message,
    Nack,
    Prepare,
    Promise,
)
from replog_multipaxos.multipaxos import TABLE
from replog_multipaxos.slots import HOLE, Slots

Bug = Callable[[pytest.MonkeyPatch], None]


def handle_by(patch: pytest.MonkeyPatch, message: type, handler: Callable[..., None]) -> None:
    """Have another function handle a message, in every role that does not ignore it."""
    right = {row[message] for row in TABLE.values()}
    names = {function.__name__ for function in right} - {"ignore", "refuse_second_owner"}
    for row in TABLE.values():
        if row[message].__name__ in names:
            patch.setitem(row, message, handler)


def sent_at_once(patch: pytest.MonkeyPatch, message_type: type) -> None:
    """Let messages of a type leave before the sync."""
    right = MultiPaxos.send_after_sync

    def wrong(engine: MultiPaxos, message: Message) -> None:
        (MultiPaxos.send if isinstance(message, message_type) else right)(engine, message)

    patch.setattr(MultiPaxos, "send_after_sync", wrong)


def promise_leaves_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A promise is sent before it is on disk."""
    sent_at_once(patch, Promise)


def prepare_leaves_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A candidate asks before its own promise is on disk."""
    sent_at_once(patch, Prepare)


def accepted_leaves_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A vote is told before it is on disk."""
    patch.setattr(MultiPaxos, "acknowledge", MultiPaxos.send)


def repeated_accepted_overtakes_sync(patch: pytest.MonkeyPatch) -> None:
    """A vote that was asked for twice is told at once, though the first is not synced."""
    right = MultiPaxos.acknowledge

    def wrong(engine: MultiPaxos, message: Accepted) -> None:
        (right if engine.slots.has_unsaved else MultiPaxos.send)(engine, message)

    patch.setattr(MultiPaxos, "acknowledge", wrong)


def own_promise_counted_early(patch: pytest.MonkeyPatch) -> None:
    """A candidate counts its own promise before its disk has it."""
    right = election.maybe_lead

    def wrong(engine: MultiPaxos) -> None:
        durable = engine.durable
        engine.durable = HardState(durable.epoch, engine.term, engine.node_id)
        right(engine)
        engine.durable = durable

    patch.setattr(election, "maybe_lead", wrong)


def leader_counts_itself_early(patch: pytest.MonkeyPatch) -> None:
    """A leader counts its own votes before its disk has them."""
    right = leader.count_votes

    def wrong(engine: MultiPaxos, leading: Leader, ranges: object) -> None:
        durable = engine.slots.durable
        engine.slots.durable = durable.clone()
        for first, last in engine.slots.held.ranges():
            engine.slots.durable.add(first, last)
        right(engine, leading, ranges)  # type: ignore[arg-type]
        engine.slots.durable = durable

    patch.setattr(leader, "count_votes", wrong)


def promise_omits_chosen(patch: pytest.MonkeyPatch) -> None:
    """A promise leaves out the slots that its sender knows as chosen."""
    right = acceptor.promise_page

    def wrong(engine: MultiPaxos, message: Prepare) -> Promise:
        page = right(engine, message)
        kept = tuple(each for each in page.entries if each.index > engine.commit_index)
        return replace(page, entries=kept, chosen_upto=0)

    patch.setattr(acceptor, "promise_page", wrong)


def first_page_is_enough(patch: pytest.MonkeyPatch) -> None:
    """A promise counts with its first page, whatever that covers."""
    right = election.handle_promise

    def wrong(engine: MultiPaxos, message: Promise) -> None:
        right(engine, replace(message, upto_slot=0))

    handle_by_role(patch, Role.CANDIDATE, Promise, wrong)


def handle_by_role(
    patch: pytest.MonkeyPatch, role: Role, message: type, handler: Callable[..., None]
) -> None:
    """Have another function handle a message in one role."""
    patch.setitem(TABLE[role], message, handler)


def proposing(patch: pytest.MonkeyPatch, choose: Callable[[Entry, Entry], Entry]) -> None:
    """Have the value of each open slot chosen otherwise: ``choose(own, told)``."""

    def wrong(engine: MultiPaxos, candidacy: Candidacy) -> tuple[list[Entry], int]:
        ballot, slots = engine.term, engine.slots
        last_slot = max(slots.last_index, max(candidacy.votes, default=0))
        found: list[Entry] = []
        for slot in range(engine.commit_index + 1, last_slot + 1):
            vote = choose(slots.at(slot), candidacy.votes.get(slot, HOLE))
            noop = entry_body(EntryKind.NOOP, engine.epoch.number, ballot, slot, b"")
            found.append(Entry(1, slot, ballot, noop if vote is HOLE else vote.body))
        return found, last_slot

    patch.setattr(election, "open_proposals", wrong)


def own_vote_preferred(patch: pytest.MonkeyPatch) -> None:
    """A new leader proposes its own vote, whatever ballot others voted at."""
    proposing(patch, lambda own, told: told if own is HOLE else own)


def told_vote_preferred(patch: pytest.MonkeyPatch) -> None:
    """A new leader proposes what it was told, though its own vote is of a higher ballot."""
    proposing(patch, lambda own, told: own if told is HOLE else told)


def own_votes_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A new leader proposes no-ops where only it has voted."""
    proposing(patch, lambda _own, told: told)


def open_slots_emptied(patch: pytest.MonkeyPatch) -> None:
    """A new leader proposes a no-op in every open slot."""
    proposing(patch, lambda _own, _told: HOLE)


def lowest_ballot_adopted(patch: pytest.MonkeyPatch) -> None:
    """Of two votes the one of the lower ballot is proposed again."""
    proposing(
        patch,
        lambda own, told: (
            min((each for each in (own, told) if each is not HOLE), key=term_of)
            if (own, told) != (HOLE, HOLE)
            else HOLE
        ),
    )


def term_of(entry: Entry) -> Term:
    return entry.term


def last_told_vote_wins(patch: pytest.MonkeyPatch) -> None:
    """Of two promised votes the one that came last is taken, whatever their ballots."""
    right = election.handle_promise

    def wrong(engine: MultiPaxos, message: Promise) -> None:
        assert engine.candidacy is not None
        for vote in message.entries:
            engine.candidacy.votes.pop(vote.index, None)
        right(engine, message)

    handle_by_role(patch, Role.CANDIDATE, Promise, wrong)


def passing_the_fence(patch: pytest.MonkeyPatch, message_type: type) -> None:
    """Let messages of lower ballots through."""
    right = MultiPaxos._admit_ballot

    def wrong(engine: MultiPaxos, message: Message) -> bool:
        if isinstance(message, message_type) and message.term < engine.term:
            return True
        return right(engine, message)

    patch.setattr(MultiPaxos, "_admit_ballot", wrong)


def old_votes_counted(patch: pytest.MonkeyPatch) -> None:
    """A leader counts votes of an earlier ballot."""
    passing_the_fence(patch, Accepted)


def old_promises_counted(patch: pytest.MonkeyPatch) -> None:
    """A candidate counts promises of an earlier ballot."""
    passing_the_fence(patch, Promise)


def accepts_below_promise(patch: pytest.MonkeyPatch) -> None:
    """A follower accepts at a ballot below its promise."""
    right = MultiPaxos._admit_ballot

    def wrong(engine: MultiPaxos, message: Message) -> bool:
        if isinstance(message, Accept) and message.term < engine.term:
            return engine.role is Role.FOLLOWER
        return right(engine, message)

    patch.setattr(MultiPaxos, "_admit_ballot", wrong)


def promise_not_written(patch: pytest.MonkeyPatch) -> None:
    """A ballot that is promised is not made durable."""
    right = MultiPaxos.update_term

    def wrong(engine: MultiPaxos, ballot: Term) -> None:
        right(engine, ballot)
        engine._is_hard_state_new = False

    patch.setattr(MultiPaxos, "update_term", wrong)


def leader_stays_above_its_ballot(patch: pytest.MonkeyPatch) -> None:
    """A leader that hears of a higher ballot takes it over and goes on leading."""
    right = MultiPaxos.update_term

    def wrong(engine: MultiPaxos, ballot: Term) -> None:
        if engine.role is Role.LEADER:
            engine.term = ballot
            engine._is_hard_state_new = True
            return
        right(engine, ballot)

    patch.setattr(MultiPaxos, "update_term", wrong)


def commit_marks_any_vote(patch: pytest.MonkeyPatch) -> None:
    """A Commit chooses every slot in which there is a vote, of whatever ballot."""

    def wrong(engine: MultiPaxos, upto: LogIndex) -> None:
        index = engine.commit_index
        while index < upto and engine.slots.at(index + 1) is not HOLE:
            index += 1
        if index > engine.commit_index:
            learner.advance_commit_index(engine, index)

    patch.setattr(learner, "choose_held", wrong)


def fact_replaces_any_vote(patch: pytest.MonkeyPatch) -> None:
    """A fact is stored in place of any vote, of a higher ballot too."""

    def wrong(engine: MultiPaxos, entries: tuple[Entry, ...] | list[Entry]) -> None:
        fresh = [each for each in entries if each.index > engine.commit_index]
        if fresh:
            engine.slots.put(fresh, held=False)
        for entry in fresh:
            engine.chosen.add(entry.index, entry.index)
        learner.advance_over_chosen(engine)

    patch.setattr(learner, "take_facts", wrong)


def fact_raises_no_promise(patch: pytest.MonkeyPatch) -> None:
    """Who learns a value does not promise the ballot that it came with."""
    right = MultiPaxos._admit_ballot

    def wrong(engine: MultiPaxos, message: Message) -> bool:
        return isinstance(message, Learn) or right(engine, message)

    patch.setattr(MultiPaxos, "_admit_ballot", wrong)


def quorum_one_too_small(patch: pytest.MonkeyPatch, name: str) -> None:
    """Have a quorum need one node less."""
    right = MultiPaxos.__init__

    def wrong(engine: MultiPaxos, setup: EngineSetup) -> None:
        right(engine, setup)
        quorum: Threshold = getattr(engine, name)
        setattr(engine, name, Threshold(quorum.voters, max(1, quorum.size - 1)))

    patch.setattr(MultiPaxos, "__init__", wrong)


def phase1_quorum_too_small(patch: pytest.MonkeyPatch) -> None:
    """A leader needs one promise less than it must."""
    quorum_one_too_small(patch, "phase1_quorum")


def phase2_quorum_too_small(patch: pytest.MonkeyPatch) -> None:
    """A value needs one vote less than it must."""
    quorum_one_too_small(patch, "phase2_quorum")


def promise_forgotten_by_restart(patch: pytest.MonkeyPatch) -> None:
    """A restarted node does not know what it promised."""
    right = MultiPaxos.__init__

    def wrong(engine: MultiPaxos, setup: EngineSetup) -> None:
        right(engine, setup)
        engine.term = max((entry.term for entry in setup.entries), default=0)

    patch.setattr(MultiPaxos, "__init__", wrong)


def votes_forgotten_by_restart(patch: pytest.MonkeyPatch) -> None:
    """A restarted node knows only the votes that it knows as chosen."""
    right = MultiPaxos.__init__

    def wrong(engine: MultiPaxos, setup: EngineSetup) -> None:
        hint = setup.hard_state.commit_hint
        kept = [entry for entry in setup.entries if entry.index <= hint]
        right(engine, replace(setup, entries=kept))

    patch.setattr(MultiPaxos, "__init__", wrong)


def late_promise_proposed(patch: pytest.MonkeyPatch) -> None:
    """A leader that hears of an older vote replaces its own proposal by it."""

    def wrong(engine: MultiPaxos, message: Promise) -> None:
        for vote in message.entries:
            if engine.commit_index < vote.index <= engine.slots.last_index:
                engine.slots.put([Entry(1, vote.index, engine.term, vote.body)], held=True)

    handle_by_role(patch, Role.LEADER, Promise, wrong)


def hint_too_high(patch: pytest.MonkeyPatch) -> None:
    """The hint covers every slot that is stored, chosen or not."""
    right = MultiPaxos.ready

    def wrong(engine: MultiPaxos) -> object:
        ready = right(engine)
        if ready is None or ready.hard_state is None:
            return ready
        hint = engine.slots.durable_index
        return replace(ready, hard_state=replace(ready.hard_state, commit_hint=hint))

    patch.setattr(MultiPaxos, "ready", wrong)


def overtaken_write_counts(patch: pytest.MonkeyPatch) -> None:
    """A write that a higher ballot overtook makes the new vote durable."""
    right = Slots._void

    def wrong(slots: Slots, first: LogIndex, last: LogIndex) -> None:
        durable, spans = slots.durable.clone(), [span.clone() for span in slots._spans]
        right(slots, first, last)
        slots.durable = durable
        slots._spans.clear()
        slots._spans.extend(spans)

    patch.setattr(Slots, "_void", wrong)


def behind_a_hole_without_quorum(patch: pytest.MonkeyPatch) -> None:
    """Behind a hole one vote beside the leader's is enough."""

    def wrong(engine: MultiPaxos, leading: Leader, ranges: tuple[tuple[int, int], ...]) -> None:
        for first, last in ranges:
            for slot in range(max(first, engine.commit_index + 1), last + 1):
                engine.chosen.add(slot, slot)

    patch.setattr(leader, "choose_behind_holes", wrong)


def lost_accept_not_repeated(patch: pytest.MonkeyPatch) -> None:
    """A leader does not send again what a peer says never arrived."""

    def wrong(engine: MultiPaxos, leading: Leader, peer: NodeId, message: CommitReply) -> None:
        """Say nothing."""

    patch.setattr(leader, "repeat_lost", wrong)


def lost_accepted_not_asked_for(patch: pytest.MonkeyPatch) -> None:
    """A leader does not ask for an answer that was lost."""
    right = leader.send_entries

    def wrong(
        engine: MultiPaxos, leading: Leader, peer: NodeId, entries: tuple[Entry, ...]
    ) -> None:
        if entries:
            right(engine, leading, peer, entries)

    patch.setattr(leader, "send_entries", wrong)


def facts_not_taken(patch: pytest.MonkeyPatch) -> None:
    """A node that is told chosen values does not take them."""

    def wrong(engine: MultiPaxos, message: Learn) -> None:
        """Take nothing."""

    handle_by(patch, Learn, wrong)


def nack_never_sent(patch: pytest.MonkeyPatch) -> None:
    """Who acts at a lower ballot meets silence."""

    def wrong(engine: MultiPaxos, to: NodeId, rejected: Term) -> None:
        """Say nothing."""

    patch.setattr(MultiPaxos, "refuse", wrong)


def nack_does_not_count(patch: pytest.MonkeyPatch) -> None:
    """A Nack raises no promise, so its receiver never learns of the higher ballot."""
    right = MultiPaxos._admit_ballot

    def wrong(engine: MultiPaxos, message: Message) -> bool:
        return not isinstance(message, Nack) and right(engine, message)

    patch.setattr(MultiPaxos, "_admit_ballot", wrong)


def timeouts_alike(patch: pytest.MonkeyPatch) -> None:
    """Every timeout of every node is the same, and nobody waits for anybody."""

    def wrong(
        options: MultiPaxosOptions, seed: int, node: int, term: int, attempt: int, nacks: int
    ) -> int:
        return options.election_ticks_min

    patch.setattr(MultiPaxosOptions, "election_ticks", wrong)
    patch.setattr(MultiPaxosOptions, "hold_ticks", 0)


def same_ballot_twice(patch: pytest.MonkeyPatch) -> None:
    """A node begins every election at the first ballot above the highest vote that it holds."""

    def wrong(engine: MultiPaxos) -> Term:
        seen = max(engine.term - (1 << 16), 0)
        return max(((seen >> 16) + 1) << 16 | engine.node_id, engine.term + 1)

    patch.setattr(MultiPaxos, "next_ballot", property(wrong))


BUGS: Final[tuple[Bug, ...]] = (
    promise_leaves_before_sync,
    prepare_leaves_before_sync,
    accepted_leaves_before_sync,
    repeated_accepted_overtakes_sync,
    leader_counts_itself_early,
    promise_omits_chosen,
    first_page_is_enough,
    own_vote_preferred,
    own_votes_forgotten,
    open_slots_emptied,
    lowest_ballot_adopted,
    last_told_vote_wins,
    old_promises_counted,
    accepts_below_promise,
    promise_not_written,
    leader_stays_above_its_ballot,
    commit_marks_any_vote,
    phase1_quorum_too_small,
    phase2_quorum_too_small,
    promise_forgotten_by_restart,
    votes_forgotten_by_restart,
    late_promise_proposed,
    hint_too_high,
    behind_a_hole_without_quorum,
    lost_accept_not_repeated,
    lost_accepted_not_asked_for,
    facts_not_taken,
    same_ballot_twice,
)
"""What the random runs must find."""

RARE: Final[tuple[Bug, ...]] = (
    own_promise_counted_early,
    told_vote_preferred,
    old_votes_counted,
    fact_replaces_any_vote,
    fact_raises_no_promise,
    overtaken_write_counts,
    nack_never_sent,
    nack_does_not_count,
    timeouts_alike,
)
"""What they may miss in a hundred runs.  The own promise is on disk before anybody can answer, so
counting it early shows in a cluster of one alone; the others need several rare things in one order,
or only make a cluster slower.  ``tests/multipaxos`` holds a test of its own against each."""
