"""Bugs for the Multi-Paxos engine: each a patch that breaks one thing that it must keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import UnionType
from typing import TypeAlias

import pytest

from replog.errors import NotLeader
from replog.progress import Progress
from replog.quorum import Threshold
from replog.types import Entry, EntryKind, LogIndex, Role, Term, entry_body
from replog_multipaxos import MultiPaxos, acceptor, election, leader, learner
from replog_multipaxos.election import Candidacy
from replog_multipaxos.indexes import Range
from replog_multipaxos.messages import Accept, Accepted, CommitReply, Message, Prepare, Promise
from replog_multipaxos.multipaxos import TABLE
from replog_multipaxos.slots import HOLE, Slots

Bug: TypeAlias = Callable[[pytest.MonkeyPatch], None]


def noop(slot: LogIndex, ballot: Term) -> Entry:
    """A no-op that a leader proposes in a slot at its own ballot."""
    return Entry(1, slot, ballot, entry_body(EntryKind.NOOP, 1, ballot, slot, b""))


def sends_other_bytes(patch: pytest.MonkeyPatch) -> None:
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


def forgets_old_votes(patch: pytest.MonkeyPatch) -> None:
    """A new leader proposes no-ops, whoever voted for what."""
    right = election.open_proposals

    def wrong(engine: MultiPaxos, candidacy: Candidacy) -> tuple[list[Entry], int]:
        proposals, _ = right(engine, candidacy)
        return [noop(entry.index, engine.term) for entry in proposals], len(proposals)

    patch.setattr(election, "open_proposals", wrong)


def fills_holes_with_old_values(patch: pytest.MonkeyPatch) -> None:
    """A new leader proposes in a hole what stands in the slot behind it."""
    right = election.open_proposals

    def wrong(engine: MultiPaxos, candidacy: Candidacy) -> tuple[list[Entry], int]:
        proposals, noop_count = right(engine, candidacy)
        for at, entry in enumerate(proposals[:-1]):
            if entry.origin.term == engine.term:
                proposals[at] = replace(entry, body=proposals[at + 1].body)
        return proposals, noop_count

    patch.setattr(election, "open_proposals", wrong)


def accepts_below_promise(patch: pytest.MonkeyPatch) -> None:
    """A node votes in an empty slot at a ballot below its promise."""
    right = MultiPaxos.step

    def wrong(engine: MultiPaxos, message: Message) -> None:
        right(engine, message)
        if not isinstance(message, Accept) or message.term >= engine.term:
            return
        for entry in message.entries:
            if engine.slots.at(entry.index) is HOLE:
                engine.slots.put((entry,), held=False)
                ranges = ((entry.index, entry.index),)
                engine.send_after_sync(
                    Accepted(1, message.term, message.to, message.sender, 0, ranges)
                )

    patch.setattr(MultiPaxos, "step", wrong)


def replaces_votes(patch: pytest.MonkeyPatch) -> None:
    """A node that is asked for a vote below its promise stores it, and says nothing of it."""
    right = MultiPaxos.step

    def wrong(engine: MultiPaxos, message: Message) -> None:
        right(engine, message)
        if isinstance(message, Accept) and message.entries and message.term < engine.term:
            engine.slots.put(message.entries, held=False)

    patch.setattr(MultiPaxos, "step", wrong)


def takes_next_number(patch: pytest.MonkeyPatch) -> None:
    """A node takes the next number for its ballot, whoever owns that."""
    patch.setattr(MultiPaxos, "next_ballot", property(lambda engine: engine.term + 1))


def waits_for_no_sync(patch: pytest.MonkeyPatch) -> None:
    """What waits for a sync leaves at once, in all ballots but the first."""
    right = MultiPaxos.send_after_sync

    def wrong(engine: MultiPaxos, message: Message) -> None:
        send = MultiPaxos.send if engine.durable.term else right
        send(engine, message)

    patch.setattr(MultiPaxos, "send_after_sync", wrong)


def acknowledges_at_once(patch: pytest.MonkeyPatch) -> None:
    """A vote is told before it is on disk."""
    patch.setattr(MultiPaxos, "acknowledge", MultiPaxos.send)


def tells_position_early(patch: pytest.MonkeyPatch) -> None:
    """A follower tells how far it knows the log as chosen, not how far its disk has it."""
    right = MultiPaxos.send_stating_term

    def wrong(engine: MultiPaxos, message: Message) -> None:
        if isinstance(message, CommitReply):
            message = replace(message, chosen_upto=engine.commit_index)
        right(engine, message)

    patch.setattr(MultiPaxos, "send_stating_term", wrong)


def takes_written_for_durable(patch: pytest.MonkeyPatch) -> None:
    """What is handed to the disk counts as if it were on it."""
    right = Slots.take_unsaved

    def wrong(slots: Slots) -> tuple[Entry, ...]:
        entries = right(slots)
        for entry in entries:
            slots.durable.add(entry.index, entry.index)
        return entries

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


def takes_sent_for_held(patch: pytest.MonkeyPatch) -> None:
    """A leader takes what it sent for what its peer holds."""
    right = Progress.handle_sent

    def wrong(progress: Progress, last_index: LogIndex, size_bytes: int) -> None:
        right(progress, last_index, size_bytes)
        progress.match_index = progress.next_index - 1

    patch.setattr(Progress, "handle_sent", wrong)


def leads_with_one_less(patch: pytest.MonkeyPatch) -> None:
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
    waits_for_no_sync(patch)
    right = election.maybe_lead

    def wrong(engine: MultiPaxos) -> None:
        engine.durable = replace(engine.durable, term=engine.term)
        right(engine)

    patch.setattr(election, "maybe_lead", wrong)


def promises_without_chosen(patch: pytest.MonkeyPatch) -> None:
    """A promise leaves out what its sender knows as chosen."""
    right = acceptor.promise_page

    def wrong(engine: MultiPaxos, message: Prepare) -> Promise:
        page = right(engine, message)
        told = tuple(each for each in page.entries if each.index > engine.commit_index)
        return replace(page, entries=told)

    patch.setattr(acceptor, "promise_page", wrong)


def window_ignored(patch: pytest.MonkeyPatch) -> None:
    """A leader sends on however much is unanswered."""
    patch.setattr(Progress, "is_paused", False)


def bytes_window_ignored(patch: pytest.MonkeyPatch) -> None:
    """A leader counts messages, and not their bytes."""
    right = Progress.handle_sent
    patch.setattr(Progress, "handle_sent", lambda self, last, _: right(self, last, 0))


def counts_every_other(patch: pytest.MonkeyPatch) -> None:
    """A leader counts every other message that it sends."""
    right = Progress.handle_sent

    def wrong(progress: Progress, last_index: LogIndex, size_bytes: int) -> None:
        right(progress, last_index, size_bytes)
        if last_index % 2:
            progress._in_flight_bytes -= progress._in_flight.pop()[1]

    patch.setattr(Progress, "handle_sent", wrong)


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


def ignores_ballot_of(kinds: type | UnionType, patch: pytest.MonkeyPatch) -> None:
    """A higher ballot binds nobody that is told of it in some kinds of messages."""
    right = MultiPaxos._admit_ballot

    def wrong(engine: MultiPaxos, message: Message) -> bool:
        return isinstance(message, kinds) or right(engine, message)

    patch.setattr(MultiPaxos, "_admit_ballot", wrong)


def tells_votes_as_facts(patch: pytest.MonkeyPatch) -> None:
    """Who is asked for chosen values tells every vote that it has on disk."""

    def wrong(engine: MultiPaxos, ranges: tuple[Range, ...]) -> Iterator[LogIndex]:
        for first, last in ranges:
            yield from range(first, min(last, engine.slots.durable_index) + 1)

    patch.setattr(learner, "known_slots", wrong)
