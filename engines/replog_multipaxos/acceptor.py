"""The acceptor: promises and votes (PMS §2.2, phases 1b and 2b), and what a Commit tells it.

These functions are given the engine they act for; they write its slots and its outbox.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replog.errors import InvariantViolated, SchemaError
from replog.types import NO_NODE, Entry, LogIndex, NodeId, Role
from replog_multipaxos import learner
from replog_multipaxos.indexes import INDEX_MAX, IndexSet, Range
from replog_multipaxos.messages import (
    RANGES_MAX,
    Accept,
    Accepted,
    Commit,
    CommitReply,
    Prepare,
    Promise,
)
from replog_multipaxos.slots import is_too_far

if TYPE_CHECKING:
    from replog_multipaxos.multipaxos import MultiPaxos


def handle_prepare(engine: MultiPaxos, message: Prepare) -> None:
    """Promise, and tell every vote from ``from_slot`` on; or say whether we would promise."""
    if engine.is_learner:
        return
    if message.pre:
        answer_pre_round(engine, message)
        return
    engine.check_owner(message)
    if engine.faith.refuses(message.ordered_in):
        engine.refuse(message.sender, message.term)
        return
    # The fence let it pass, so its ballot is the promised one, if only just now.
    if engine.role is not Role.FOLLOWER:
        engine.become_follower(NO_NODE)
    engine.election_elapsed = 0
    engine.hold_left = engine.options.hold_ticks
    engine.send_after_sync(promise_page(engine, message))


def answer_pre_round(engine: MultiPaxos, message: Prepare) -> None:
    """Agree only if nobody leads whom we hear, and nobody else's phase 1 is under way."""
    is_bound = engine.hears_leader or engine.faith.refuses(ordered_in=0)
    if message.term <= engine.term or is_bound or engine.hold_left:
        engine.refuse(message.sender, message.term)
        return
    engine.send(
        Promise(
            engine.epoch.number,
            message.term,
            engine.node_id,
            message.sender,
            pre=True,
            from_slot=message.from_slot,
            upto_slot=0,
            trimmed_upto=0,
            chosen_upto=0,
            entries=(),
        )
    )


def promise_page(engine: MultiPaxos, message: Prepare) -> Promise:
    """One page of our votes: all from ``from_slot`` on, as far as they fit.

    Slots that we know as chosen, or applied long ago, are told like all others: a candidate that
    heard nothing of them would take them for empty and propose something else.
    """
    slots = engine.slots
    entries, upto_slot = slots.votes_within(
        message.from_slot, engine.setup.limits.message_bytes_max
    )
    return Promise(
        engine.epoch.number,
        engine.term,
        engine.node_id,
        message.sender,
        pre=False,
        from_slot=message.from_slot,
        upto_slot=upto_slot,
        trimmed_upto=slots.base_index,
        chosen_upto=engine.commit_index,
        entries=entries,
    )


def handle_accept(engine: MultiPaxos, message: Accept) -> None:
    """Vote for every slot of the message: its ballot is the promised one (PMS §2.2, P1a)."""
    entries = message.entries
    engine.check_owner(message)
    check_proposals(message)
    engine.follow(message.sender)
    if is_too_far(entries, engine.commit_index):
        report_missing(engine, message.sender, entries[0].index - 1, round_number=0)
        return
    if not learner.has_room(engine, entries):
        return  # silence: the window of the leader fills up, and it sends no more
    slots = engine.slots
    if entries and entries[0].index > slots.last_index + 1:
        # A hole has come up: what was to fill it was sent before this, and is probably lost.
        report_missing(engine, message.sender, entries[0].index - 1, round_number=0)
    first, last = message.chosen_upto + 1, INDEX_MAX
    if entries:
        first, last = min(first, entries[0].index), entries[-1].index
        if entries[0].index > slots.last_index and last - entries[0].index == len(entries) - 1:
            slots.put(entries, held=True)
        else:
            accept_each(engine, entries)
    # With the slots of the message all that are open in front of them: an answer that was lost
    # is made good by the next one.  Who asks to be told again needs the lowest first.
    held = slots.held.within(first, last)
    ranges = tuple(held[-RANGES_MAX:] if entries else held[:RANGES_MAX])
    learner.choose_held(engine, message.chosen_upto)
    engine.acknowledge(
        Accepted(
            engine.epoch.number,
            engine.term,
            engine.node_id,
            message.sender,
            chosen_upto=engine.commit_index,
            ranges=ranges,
        )
    )


def check_proposals(message: Accept) -> None:
    """Refuse what no correct leader sends; indexes ascend already (:mod:`replog.entries`).

    Raises :class:`~replog.errors.SchemaError`.
    """
    entries = message.entries
    count = len(entries)
    if [entry.term for entry in entries].count(message.term) != count or [
        entry.epoch for entry in entries
    ].count(message.epoch) != count:
        raise SchemaError(
            f"node {message.sender} proposes entries {entries[0].index} to {entries[-1].index} of "
            f"another ballot or epoch than its own ({message.term})"
        )


def accept_each(engine: MultiPaxos, entries: tuple[Entry, ...]) -> None:
    """Vote slot by slot: some hold votes already, of this ballot (a repetition) or a lower one."""
    slots = engine.slots
    fresh: list[Entry] = []
    for entry in entries:
        index = entry.index
        if index < slots.first_held_index:
            # Known as chosen: the answer says so, and counts as no vote.  The values are not
            # compared, for that would take a read; whoever holds the vote in memory does.
            continue
        vote = slots.at(index)
        if vote.term == entry.term or index <= engine.commit_index or index in engine.chosen:
            check_same_value(engine, vote, entry)
        if vote.term != entry.term:
            fresh.append(entry)
    if fresh:
        slots.put(fresh, held=True)


def check_same_value(engine: MultiPaxos, vote: Entry, entry: Entry) -> None:
    """A second value, of one ballot or in a chosen slot: some node broke the protocol (P2c)."""
    if vote.body != entry.body:
        raise InvariantViolated(
            f"node {engine.node_id} holds a value in slot {entry.index} (ballot {vote.term}) and "
            f"is given another one (ballot {entry.term}), although the slot is chosen or the "
            "ballots are equal"
        )


def merge_accepted(last: Accepted, message: Accepted) -> Accepted | None:
    """One Accepted that says what two of one ballot say; ``None`` when it would be too long."""
    before, after = last.ranges, message.ranges
    if len(before) == len(after) == 1 and before[0][0] <= after[0][0] <= before[0][1] + 1:
        # The usual case: one stretch without holes, told again as far as it has grown.
        ranges: tuple[Range, ...] = ((before[0][0], max(before[0][1], after[0][1])),)
    else:
        ranges = IndexSet((*before, *after)).ranges()
    if len(ranges) > RANGES_MAX:
        return None
    return Accepted(
        last.epoch,
        last.term,
        last.sender,
        last.to,
        max(last.chosen_upto, message.chosen_upto),
        ranges,
    )


def handle_commit(engine: MultiPaxos, message: Commit) -> None:
    """The leader lives; take what it says is chosen, and say what of it never arrived."""
    engine.check_owner(message)
    engine.follow(message.sender)
    learner.choose_held(engine, message.chosen_upto)
    if not message.round:
        return
    report_missing(engine, message.sender, message.sent_upto, message.round)
    if message.chosen_upto:
        learner.maybe_ask(engine, message.chosen_upto)


def report_missing(engine: MultiPaxos, to: NodeId, sent_upto: LogIndex, round_number: int) -> None:
    """Say where we stand, and which of the slots up to ``sent_upto`` never arrived."""
    engine.send_stating_term(
        CommitReply(
            engine.epoch.number,
            engine.term,
            engine.node_id,
            to,
            round_number,
            chosen_upto=min(engine.commit_index, engine.slots.durable_index),
            sent_upto=sent_upto,
            ranges=tuple(missing_slots(engine, sent_upto)[:RANGES_MAX]),
        )
    )


def missing_slots(engine: MultiPaxos, upto: LogIndex) -> list[Range]:
    """The slots up to ``upto`` that we neither hold at this ballot nor know as chosen."""
    first = engine.commit_index + 1
    if engine.slots.held.reach(first) >= upto:
        return []
    found: list[Range] = []
    for low, high in engine.slots.held.gaps(first, upto):
        found += engine.chosen.gaps(low, high)
    return found
