"""Bugs to plant in the Multi-Paxos engine; see ``shared_bugs.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import pytest
from shared_bugs import sent_at_once

from replog.engine import EngineSetup
from replog.errors import NotLeader
from replog.quorum import Threshold
from replog.types import Entry, EntryId, EntryKind, LogIndex, Ready, Role, Term, entry_body
from replog_multipaxos import MultiPaxos, acceptor, election, leader, learner, slots
from replog_multipaxos.ballot import owner_of
from replog_multipaxos.election import Candidacy
from replog_multipaxos.indexes import Range
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
from replog_multipaxos.slots import HOLE, Slots
from replog_multipaxos.table import TABLE

# -- what waits for a sync --


def promise_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A promise is sent before it is on disk."""
    sent_at_once(patch, MultiPaxos, Promise)


def prepare_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A candidate asks before its own promise is on disk."""
    sent_at_once(patch, MultiPaxos, Prepare)


def accepted_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A vote is told before it is on disk."""
    patch.setattr(MultiPaxos, "acknowledge", MultiPaxos.send)


def repeated_accepted_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A vote that was asked for twice is told at once, though the first is not synced."""
    right = MultiPaxos.acknowledge

    def wrong(engine: MultiPaxos, message: Accepted) -> None:
        (right if engine.slots.has_unsaved else MultiPaxos.send)(engine, message)

    patch.setattr(MultiPaxos, "acknowledge", wrong)


def no_sync_awaited(patch: pytest.MonkeyPatch) -> None:
    """What waits for a sync leaves at once, in all ballots but the first."""
    right = MultiPaxos.send_after_sync

    def wrong(engine: MultiPaxos, message: Message) -> None:
        send = MultiPaxos.send if engine.durable.term else right
        send(engine, message)

    patch.setattr(MultiPaxos, "send_after_sync", wrong)


def position_told_early(patch: pytest.MonkeyPatch) -> None:
    """A follower tells how far it knows the log as chosen, not how far its disk has it."""
    right = MultiPaxos.send_stating_term

    def wrong(engine: MultiPaxos, message: Message) -> None:
        if isinstance(message, CommitReply):
            message = replace(message, chosen_upto=engine.commit_index)
        right(engine, message)

    patch.setattr(MultiPaxos, "send_stating_term", wrong)


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


def written_taken_for_durable(patch: pytest.MonkeyPatch) -> None:
    """What is handed to the disk counts as if it were on it."""
    right = Slots.take_unsaved

    def wrong(slots: Slots) -> tuple[EntryId | None, tuple[Entry, ...]]:
        base, entries = right(slots)
        for entry in entries:
            slots.durable.add(entry.index, entry.index)
        return base, entries

    patch.setattr(Slots, "take_unsaved", wrong)


def replaced_stays_durable(patch: pytest.MonkeyPatch) -> None:
    """A record that takes the place of a durable one counts as durable, too."""
    right = Slots._void

    def wrong(slots: Slots, first: LogIndex, last: LogIndex) -> None:
        kept = slots.durable.within(first, last)
        right(slots, first, last)
        for low, high in kept:
            slots.durable.add(low, high)

    patch.setattr(Slots, "_void", wrong)


# -- ballots --


def foreign_ballot_taken(patch: pytest.MonkeyPatch) -> None:
    """A node takes the next number for its ballot, whoever owns that."""
    patch.setattr(MultiPaxos, "next_ballot", property(lambda engine: engine.term + 1))


def ballot_used_again(patch: pytest.MonkeyPatch) -> None:
    """A node that has promised its own ballot begins at the same one again."""
    right = vars(MultiPaxos)["next_ballot"].__get__

    def wrong(engine: MultiPaxos) -> Term:
        return engine.term if owner_of(engine.term) == engine.node_id else right(engine)

    patch.setattr(MultiPaxos, "next_ballot", property(wrong))


def admitting(
    patch: pytest.MonkeyPatch,
    message_type: type,
    is_admitted: Callable[[MultiPaxos, Message], bool],
) -> None:
    """Have messages of a type that come with another ballot pass the fence where ``is_admitted``
    says so, and leave no trace there."""
    right = MultiPaxos._admit_ballot

    def wrong(engine: MultiPaxos, message: Message) -> bool:
        if isinstance(message, message_type) and is_admitted(engine, message):
            return True
        return right(engine, message)

    patch.setattr(MultiPaxos, "_admit_ballot", wrong)


def learn_raises_no_promise(patch: pytest.MonkeyPatch) -> None:
    """Who learns a value does not promise the ballot that it came with."""
    admitting(patch, Learn, lambda _engine, _message: True)


def nack_raises_no_promise(patch: pytest.MonkeyPatch) -> None:
    """Who is refused does not promise the ballot that it is told of."""
    admitting(patch, Nack, lambda _engine, _message: True)


def old_acceptances_counted(patch: pytest.MonkeyPatch) -> None:
    """A leader counts votes of an earlier ballot."""
    admitting(patch, Accepted, lambda engine, message: message.term < engine.term)


def accepts_below_promise(patch: pytest.MonkeyPatch) -> None:
    """A follower takes a proposal of a ballot below its promise for one of the promised ballot."""
    admitting(
        patch,
        Accept,
        lambda engine, message: message.term < engine.term and engine.role is Role.FOLLOWER,
    )


def meeting_refused(patch: pytest.MonkeyPatch, store: Callable[[MultiPaxos, Accept], None]) -> None:
    """Have something stored of each proposal below the promise, once it was refused."""
    right = MultiPaxos.step

    def wrong(engine: MultiPaxos, message: Message) -> None:
        right(engine, message)
        if isinstance(message, Accept) and message.entries and message.term < engine.term:
            store(engine, message)

    patch.setattr(MultiPaxos, "step", wrong)


def refused_gets_vote(patch: pytest.MonkeyPatch) -> None:
    """A node votes in an empty slot at a ballot below its promise, and tells it at that ballot."""

    def vote(engine: MultiPaxos, message: Accept) -> None:
        for entry in message.entries:
            if engine.slots.at(entry.index) is HOLE:
                engine.slots.put((entry,), held=False)
                ranges = ((entry.index, entry.index),)
                engine.send_after_sync(
                    Accepted(1, message.term, message.to, message.sender, 0, ranges)
                )

    meeting_refused(patch, vote)


def refused_replaces_vote(patch: pytest.MonkeyPatch) -> None:
    """A node that is asked for a vote below its promise stores it, and says nothing of it."""
    meeting_refused(patch, lambda engine, message: engine.slots.put(message.entries, held=False))


# -- promises --


def promise_forgotten_by_restart(patch: pytest.MonkeyPatch) -> None:
    """A restarted node does not know what it promised."""
    right = MultiPaxos.__init__

    def wrong(engine: MultiPaxos, setup: EngineSetup) -> None:
        right(engine, setup)
        engine.term = max((run.term for run in setup.log.runs), default=0)

    patch.setattr(MultiPaxos, "__init__", wrong)


def telling(patch: pytest.MonkeyPatch, change: Callable[[MultiPaxos, Promise], Promise]) -> None:
    """Have each page of a promise changed before it is sent."""
    right = acceptor.promise_page

    def wrong(engine: MultiPaxos, message: Prepare) -> Promise:
        return change(engine, right(engine, message))

    patch.setattr(acceptor, "promise_page", wrong)


def promise_omits_votes(patch: pytest.MonkeyPatch) -> None:
    """A promise leaves out what its sender has voted for."""
    telling(patch, lambda _engine, page: replace(page, entries=(), chosen_upto=0))


def promise_omits_chosen(patch: pytest.MonkeyPatch) -> None:
    """A promise leaves out what its sender knows as chosen."""

    def open_only(engine: MultiPaxos, page: Promise) -> Promise:
        told = tuple(each for each in page.entries if each.index > engine.commit_index)
        return replace(page, entries=told)

    telling(patch, open_only)


def one_promise_too_few(patch: pytest.MonkeyPatch) -> None:
    """A candidate leads with one promise less than it needs."""
    right = election.maybe_lead

    def wrong(engine: MultiPaxos) -> None:
        quorum = engine.phase1_quorum
        engine.phase1_quorum = Threshold(quorum.voters, max(1, quorum.size - 1))
        right(engine)
        engine.phase1_quorum = quorum

    patch.setattr(election, "maybe_lead", wrong)


def first_page_is_enough(patch: pytest.MonkeyPatch) -> None:
    """A candidate takes the first page of a promise for all of it."""
    right = election.handle_promise

    def wrong(engine: MultiPaxos, message: Promise) -> None:
        right(engine, replace(message, upto_slot=0))

    patch.setitem(TABLE[Role.CANDIDATE], Promise, wrong)


def leads_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A candidate asks and leads before its own promise is on disk."""
    no_sync_awaited(patch)
    right = election.maybe_lead

    def wrong(engine: MultiPaxos) -> None:
        engine.durable = replace(engine.durable, term=engine.term)
        right(engine)

    patch.setattr(election, "maybe_lead", wrong)


# -- what a new leader proposes --


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


def told_votes_emptied(patch: pytest.MonkeyPatch) -> None:
    """A new leader proposes its own votes alone, and no-ops besides, whatever it was told."""
    proposing(patch, lambda own, _told: own)


def open_slots_emptied(patch: pytest.MonkeyPatch) -> None:
    """A new leader proposes a no-op in every open slot, whoever voted for what."""
    proposing(patch, lambda _own, _told: HOLE)


def hole_gets_value(patch: pytest.MonkeyPatch) -> None:
    """A new leader proposes in a hole what stands in the slot behind it."""
    right = election.open_proposals

    def wrong(engine: MultiPaxos, candidacy: Candidacy) -> tuple[list[Entry], int]:
        proposals, noop_count = right(engine, candidacy)
        for at, entry in enumerate(proposals[:-1]):
            if entry.origin.term == engine.term:
                proposals[at] = replace(entry, body=proposals[at + 1].body)
        return proposals, noop_count

    patch.setattr(election, "open_proposals", wrong)


def last_told_vote_wins(patch: pytest.MonkeyPatch) -> None:
    """Of two promised votes the one that came last is taken, whatever their ballots."""
    right = election.handle_promise

    def wrong(engine: MultiPaxos, message: Promise) -> None:
        assert engine.candidacy is not None
        for vote in message.entries:
            engine.candidacy.votes.pop(vote.index, None)
        right(engine, message)

    patch.setitem(TABLE[Role.CANDIDATE], Promise, wrong)


def other_bytes_sent(patch: pytest.MonkeyPatch) -> None:
    """A leader proposes to each peer a value of its own."""
    right = MultiPaxos.send

    def wrong(engine: MultiPaxos, message: Message) -> None:
        if isinstance(message, Accept):
            entries = tuple(
                replace(each, body=each.body + b"%d" % message.to) for each in message.entries
            )
            message = replace(message, entries=entries)
        right(engine, message)

    patch.setattr(MultiPaxos, "send", wrong)


# -- what is chosen --


def votes_told_as_facts(patch: pytest.MonkeyPatch) -> None:
    """Who is asked for chosen values tells every vote that it has on disk, chosen or not."""

    def wrong(engine: MultiPaxos, ranges: tuple[Range, ...]) -> Iterator[Range]:
        for first, last in ranges:
            if first <= min(last, engine.slots.durable_index):
                yield first, min(last, engine.slots.durable_index)

    patch.setattr(learner, "known_ranges", wrong)


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


def lost_peer_remembered(patch: pytest.MonkeyPatch) -> None:
    """A leader takes a learner to hold what the lost incarnation had accepted."""
    patch.setattr(leader, "forget_peers", lambda *_: None)


# -- snapshots --


def fact_binds_nobody(patch: pytest.MonkeyPatch) -> None:
    """A node takes what a higher ballot brings, and promises nothing."""
    patch.setattr(MultiPaxos, "observe_term", lambda *_: None)


def install_drops_votes(patch: pytest.MonkeyPatch) -> None:
    """A snapshot takes away the votes in the slots behind it."""
    right = Slots.install

    def wrong(held: Slots, base: EntryId) -> None:
        right(held, base)
        held.last_index = base.index
        for behind in (held.durable, held.held):
            behind.remove(base.index + 1, 1 << 62)

    patch.setattr(Slots, "install", wrong)


def base_not_told(patch: pytest.MonkeyPatch) -> None:
    """The disk is not told where the slots begin."""
    right = Slots.trim

    def wrong(held: Slots, base: EntryId) -> None:
        right(held, base)
        held._moved_base = None

    patch.setattr(Slots, "trim", wrong)


# -- limits --


def far_slots_taken(patch: pytest.MonkeyPatch) -> None:
    """Whoever tells of a far slot has every slot up to it made room for."""
    for module in (slots, acceptor, election, learner):
        patch.setattr(module, "is_too_far", lambda *_: False, raising=False)


def message_size_ignored(patch: pytest.MonkeyPatch) -> None:
    """A leader puts all that a peer lacks into one message."""
    right = Slots.slice_within
    patch.setattr(
        Slots, "slice_within", lambda self, first, last, _: right(self, first, last, 1 << 40)
    )


def uncommitted_ignored(patch: pytest.MonkeyPatch) -> None:
    """A leader takes proposals however many bytes are uncommitted."""
    right = MultiPaxos.propose_batch

    def wrong(engine: MultiPaxos, datas: Sequence[bytes], kind: EntryKind) -> Sequence[Entry]:
        if engine.leader is not None:
            engine.leader.uncommitted_bytes = 0
        return right(engine, datas, kind)

    patch.setattr(MultiPaxos, "propose_batch", wrong)


def open_slots_ignored(patch: pytest.MonkeyPatch) -> None:
    """A leader takes proposals however many slots are open."""

    def wrong(engine: MultiPaxos, datas: Sequence[bytes], kind: EntryKind) -> Sequence[Entry]:
        if engine.leader is None:
            raise NotLeader(engine.node_id, engine.leader_id)
        return leader.propose_entries(engine, engine.leader, kind, datas)

    patch.setattr(MultiPaxos, "propose_batch", wrong)
