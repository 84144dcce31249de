"""The learner: what is chosen, and the values, asked for and told by anyone (PMS §2.3).

A chosen value is a fact, whoever knows it.  The rules:

* A fact travels with the highest ballot that its sender has promised, and the receiver promises
  that ballot first (the fence): otherwise a late Accept of a lower ballot could pass the receiver's
  old promise and overwrite the chosen value.
* What is stored never replaces a record of a higher ballot, and a record in a slot that is known as
  chosen is never of a lower ballot than one at which it was chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from replog.entries import ENTRY_OVERHEAD_BYTES_MAX
from replog.errors import InvariantViolated, SchemaError
from replog.types import Entry, LogIndex, NodeId
from replog_multipaxos.indexes import Range
from replog_multipaxos.messages import RANGES_MAX, Accepted, Learn, LearnRequest, Trimmed
from replog_multipaxos.slots import is_too_far

if TYPE_CHECKING:
    from replog_multipaxos.multipaxos import MultiPaxos


def choose_held(engine: MultiPaxos, upto: LogIndex) -> None:
    """Every slot up to ``upto`` is chosen, says a node at the promised ballot: take those whose
    vote is *of that ballot*; the value of any other vote may be another.

    Why the ballot decides: of a ballot there is one proposal per slot, and when a slot was
    chosen at a ballot not above this one, every proposal from there on has the chosen value
    (PMS §2.2, P2b).
    """
    commit_index = engine.commit_index
    if upto <= commit_index:
        return
    held = engine.slots.held
    reach = min(upto, held.reach(commit_index + 1))
    if reach > commit_index:
        advance_commit_index(engine, reach)
    for first, last in held.within(reach + 1, upto):
        engine.chosen.add(first, last)
    # What was filled may join on to slots that were known as chosen before.
    advance_over_chosen(engine)


def advance_over_chosen(engine: MultiPaxos) -> None:
    """A hole was filled: the chosen slots behind it are committed in order with it."""
    if engine.chosen:
        reach = engine.chosen.reach(engine.commit_index + 1)
        if reach > engine.commit_index:
            advance_commit_index(engine, reach)


def advance_commit_index(engine: MultiPaxos, index: LogIndex) -> None:
    """Every slot up to ``index`` is chosen, and its value is here."""
    assert engine.commit_index < index <= engine.slots.last_index
    if engine.leader is not None:
        # Everything above the commit index was proposed by this leadership.
        size_bytes = engine.slots.size_bytes(engine.commit_index + 1, index)
        engine.leader.uncommitted_bytes -= size_bytes
    engine.commit_index = index
    if engine.chosen:
        engine.chosen.remove(0, index)


def maybe_ask(engine: MultiPaxos, chosen_upto: LogIndex) -> None:
    """Ask for what is chosen and not here, if nothing came of itself since the last heartbeat."""
    if engine.commit_index >= chosen_upto:
        engine.stuck_index = -1
        return
    if engine.commit_index == engine.stuck_index:
        missing = engine.chosen.gaps(engine.commit_index + 1, chosen_upto)
        ask(engine, missing)
    engine.stuck_index = engine.commit_index


def ask(engine: MultiPaxos, ranges: list[Range]) -> None:
    """Ask one peer, another one each time: whoever was asked last may not have it, or be gone."""
    if not ranges or not engine.peer_ids:
        return
    to = engine.peer_ids[engine.ask_count % len(engine.peer_ids)]
    engine.ask_count += 1
    engine.send_stating_term(
        LearnRequest(
            engine.epoch.number, engine.term, engine.node_id, to, tuple(ranges[:RANGES_MAX])
        )
    )


def handle_learn_request(engine: MultiPaxos, message: LearnRequest) -> None:
    """Tell what of the asked slots is known here as chosen, one message full; and that some were
    trimmed, if it is so."""
    base_index = engine.slots.base_index
    if message.ranges and message.ranges[0][0] <= base_index:
        engine.send_stating_term(
            Trimmed(engine.epoch.number, engine.term, engine.node_id, message.sender, base_index)
        )
    found: list[Entry] = []
    budget = engine.setup.limits.message_bytes_max
    for first, last in known_ranges(engine, message.ranges):
        while first <= last:
            # What is not in memory is read a stretch at a time.
            entries, size_bytes = engine.slots.slice_within(first, last, budget)
            if found and size_bytes > budget:
                break
            found += entries
            budget -= size_bytes
            first = entries[-1].index + 1
        if first <= last:
            break
    if found:
        tell(engine, message.sender, tuple(found))


def known_ranges(engine: MultiPaxos, ranges: tuple[Range, ...]) -> Iterator[Range]:
    """The slots in ``ranges`` whose chosen values are here, ascending."""
    base_index, commit_index = engine.slots.base_index, engine.commit_index
    for first, last in ranges:
        low, high = max(first, base_index + 1), min(last, commit_index)
        if low <= high:
            yield low, high
        yield from engine.chosen.within(max(first, commit_index + 1), last)


def tell(engine: MultiPaxos, to: NodeId, entries: tuple[Entry, ...]) -> None:
    """Send chosen values, with the ballot that the receiver has to promise first."""
    engine.send_stating_term(
        Learn(engine.epoch.number, engine.term, engine.node_id, to, entries=entries)
    )


def handle_learn(engine: MultiPaxos, message: Learn) -> None:
    """Take facts; a leader that told them hears how far its peer has come."""
    entries = message.entries
    if any(entry.term > message.term or entry.epoch != message.epoch for entry in entries):
        raise SchemaError(
            f"node {message.sender} tells values of ballots above its own promise {message.term}, "
            "or of another epoch"
        )
    if is_too_far(entries, engine.commit_index) or not has_room(engine, entries):
        return  # it will be asked for again when a snapshot has been installed
    take_facts(engine, entries)
    if message.sender == engine.leader_id:
        engine.acknowledge(
            Accepted(
                engine.epoch.number,
                engine.term,
                engine.node_id,
                message.sender,
                chosen_upto=engine.commit_index,
                ranges=(),
            )
        )


def handle_trimmed(engine: MultiPaxos, message: Trimmed) -> None:
    """Another node holds no more what we asked for; a snapshot does."""
    engine.wanted_index = max(engine.wanted_index, message.trimmed_upto)


def has_room(engine: MultiPaxos, entries: Sequence[Entry]) -> bool:
    """Whether a node may take ``entries`` in; what it does not, it has not heard.

    Behind slots that others have trimmed nothing is applied until a snapshot is installed, and
    until then all of it is in memory: so it is as much as a leader may have on its way to a node,
    and no more.  What joins on to the commit index needs no snapshot.
    """
    if engine.wanted_index <= engine.commit_index:
        engine.waiting_bytes = 0
        return True
    if not entries or entries[0].index <= engine.commit_index + 1:
        return True
    size_bytes = sum([len(entry.body) + ENTRY_OVERHEAD_BYTES_MAX for entry in entries])
    if engine.waiting_bytes + size_bytes > engine.setup.limits.in_flight_bytes_max:
        return False
    engine.waiting_bytes += size_bytes
    return True


def take_facts(engine: MultiPaxos, entries: tuple[Entry, ...] | list[Entry]) -> None:
    """Each of ``entries`` holds the value that was chosen in its slot, and its ballot is not above
    the promised one."""
    slots = engine.slots
    fresh: list[Entry] = []
    held: list[Entry] = []
    for entry in entries:
        index = entry.index
        if index < slots.first_held_index:
            continue  # known as chosen
        vote = slots.at(index)
        is_known = index <= engine.commit_index or index in engine.chosen
        if (is_known or vote.term >= entry.term) and vote.body != entry.body:
            raise InvariantViolated(
                f"node {engine.node_id} is told that the value of ballot {entry.term} is chosen in "
                f"slot {index}, where it holds another one of ballot {vote.term}"
            )
        if is_known:
            continue
        if vote.term < entry.term:
            # Even if the value is the same: a vote in a chosen slot is never of a lower ballot than
            # one at which it was chosen, so whoever holds another value of a ballot in between
            # is told a higher one.
            (held if entry.term == engine.term else fresh).append(entry)
        engine.chosen.add(index, index)
    if fresh:
        slots.put(fresh, held=False)
    if held:
        slots.put(held, held=True)
    advance_over_chosen(engine)
