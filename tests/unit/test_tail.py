"""The tail of a log reads like the whole log, whatever of it is in memory."""

from __future__ import annotations

from random import Random

import pytest

from replog.entries import ENTRY_OVERHEAD_BYTES_MAX
from replog.stored_log import HeldLog, all_entries
from replog.tail import ENTRY_MEMORY_BYTES, HOLE, Tail
from replog.types import Entry, EntryId, EntryKind, LogIndex, Term, entry_body

ENTRY_BYTES = 29 + ENTRY_MEMORY_BYTES
"""Of one whose command is as small as here."""

CACHE_BYTES_MAX = 11 * ENTRY_BYTES


def entry(index: LogIndex, term: Term, size_bytes: int = 8) -> Entry:
    """An entry whose data has ``size_bytes`` bytes."""
    return Entry(1, index, term, entry_body(EntryKind.COMMAND, 1, term, index, bytes(size_bytes)))


def check_reads(tail: Tail, model: dict[LogIndex, Entry], random: Random) -> None:
    """Everything that can be asked is answered as by the whole log."""
    last = max(model, default=0)
    assert tail.last_index == last
    for index in range(1, last + 2):
        held = model.get(index)
        assert tail.at(index) == (held or HOLE)
        assert tail.term_at(index) == (held.term if held else 0)
    for _ in range(5):
        first = random.randint(1, last + 1)
        bytes_max = random.choice((1, 100, 1000))
        found, upto = tail.found_within(first, bytes_max)
        wanted = [model[index] for index in sorted(model) if index >= first]
        assert list(found) == wanted[: len(found)]
        assert bool(found) == bool(wanted)
        assert upto == (wanted[len(found)].index - 1 if len(found) < len(wanted) else 0)
        if first not in model:
            continue
        reach = first
        while reach + 1 in model:
            reach += 1
        assert list(tail.slice(first, reach)) == [model[at] for at in range(first, reach + 1)]
        entries, size_bytes = tail.slice_within(first, reach, bytes_max)
        assert list(entries) == [model[at] for at in range(first, first + len(entries))]
        assert entries
        assert size_bytes == sum(len(each.body) + ENTRY_OVERHEAD_BYTES_MAX for each in entries)
        assert size_bytes <= bytes_max or len(entries) == 1
        assert tail.slice_within(first, reach, bytes_max) == (entries, size_bytes)
        if first < tail.first_index:
            continue
        if first + len(entries) <= reach:
            following = model[first + len(entries)]
            assert size_bytes + len(following.body) + ENTRY_OVERHEAD_BYTES_MAX > bytes_max
        body_bytes = sum(len(model[at].body) for at in range(first, reach + 1))
        assert tail.size_bytes(first, reach) == body_bytes


@pytest.mark.parametrize("seed", range(40))
def test_tail_reads_like_whole_log(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random puts, truncations and evictions, with or without holes, against a plain dictionary."""
    monkeypatch.setattr("replog.tail.STRETCH_COUNT", 1 + seed % 5)
    random = Random(seed)
    log, model = HeldLog(), dict[LogIndex, Entry]()
    recovered = random.randrange(12)
    for index in range(1, recovered + 1):
        if seed % 2 or random.random() < 0.8:
            model[index] = entry(index, 1)
    log.put(tuple(model.values()))
    known = 0
    while known + 1 in model and random.random() < 0.8:
        known += 1
    tail = Tail(log, 0, known, random.choice((1, CACHE_BYTES_MAX)))
    assert tail.first_index <= known + 1
    released = known
    for term in range(2, 30):
        kind = random.random()
        last = max(model, default=0)
        if kind < 0.6:
            first = last + 1 if random.random() < 0.7 else random.randint(released + 1, last + 3)
            fresh = tuple(entry(first + at, term) for at in range(random.randint(1, 4)))
            tail.put(fresh)
            tail.size_bytes(first, first + len(fresh) - 1)
            model.update({each.index: each for each in fresh})
            log.put(fresh)
        elif kind < 0.7 and last > released:
            from_index = random.randint(released + 1, last)
            for index in [index for index in model if index >= from_index]:
                del model[index]
            # A truncation that ends in a hole is no engine's; all of the hole goes.
            while from_index > 1 and from_index - 1 not in model:
                from_index -= 1
            if from_index <= released:
                return
            tail.truncate(from_index)
            log.truncate(from_index)
        else:
            reach = released
            while reach + 1 in model and random.random() < 0.7:
                reach += 1
            if reach > released:
                tail.release(tail.slice(released + 1, reach), durable_index=reach)
                released = reach
        check_reads(tail, model, random)
        check_reads(tail.clone(), model, random)


def test_evicted_down_to_the_limit() -> None:
    """What was handed out goes, oldest first, and only as far as it is durable."""
    log = HeldLog()
    tail = Tail(log, 0, 0, CACHE_BYTES_MAX)
    entries = [entry(index, 1) for index in range(1, 31)]
    tail.put(entries)
    log.put(entries)
    assert len(entries[0].body) + ENTRY_MEMORY_BYTES == ENTRY_BYTES
    tail.release(entries[:3], durable_index=30)
    tail.release(entries[3:10], durable_index=30)
    assert tail.first_index == 1, "within the limit nothing goes"
    tail.release(entries[10:20], durable_index=3)
    assert tail.first_index == 4, "what is not durable stays"
    tail.release(entries[20:25], durable_index=30)
    assert tail.first_index == 21, "what was released at once goes at once"
    for each in entries[25:]:
        tail.release([each], durable_index=30)
        held_bytes = (each.index + 1 - tail.first_index) * ENTRY_BYTES
        assert held_bytes <= CACHE_BYTES_MAX
    tail.trim(27)
    assert (tail.first_index, tail.key()[-1]) == (28, 3 * ENTRY_BYTES)  # type: ignore[index]


def test_recovered_held_within_limit() -> None:
    """Of a long log that was recovered, the end is held, and never more than the limit allows."""
    log = HeldLog([entry(index, 1) for index in range(1, 10_001)])
    assert Tail(log, 0, 10_000, 1 << 20).first_index == 10_001 - 4096
    assert Tail(log, 0, 10_000, CACHE_BYTES_MAX).first_index > 9_980
    assert Tail(log, 0, 10_000, 1).first_index == 10_001
    assert Tail(log, 0, 9_000, 1).first_index == 9_001, "what may be written anew is held"


def test_trim_forgets() -> None:
    """What a snapshot stands for is neither held nor read any more."""
    log = HeldLog([entry(index, 1) for index in range(1, 11)])
    tail = Tail(log, 0, 10, 1 << 20)
    tail.trim(4)
    log.cut(EntryId(1, 1, 4))
    assert (tail.first_index, tail.last_index) == (5, 10)
    assert tail.found_within(1, 1 << 20)[0] == all_entries(log)
    tail.trim(12)
    assert (tail.first_index, tail.last_index) == (13, 12)
    tail.put([entry(13, 2)])
    assert tail.at(13).term == 2


def test_released_bytes_counted_once() -> None:
    """What was applied before a start, and so is not handed out, counts like what is."""
    log = HeldLog([entry(index, 1) for index in range(1, 11)])
    tail = Tail(log, 0, 10, 1 << 20)
    following = entry(11, 1)
    tail.put([following])
    tail.release([following], durable_index=11)
    *_, released_bytes = tail.key()  # type: ignore[misc]
    assert released_bytes == 11 * (len(following.body) + ENTRY_MEMORY_BYTES)
    tail.trim(11)
    *_, released_bytes = tail.key()  # type: ignore[misc]
    assert released_bytes == 0


def test_last_index_at_most_over_both_parts() -> None:
    """The highest index of a term is found in memory and in the storage alike."""
    terms = [1, 1, 2, 4, 4, 7]
    log = HeldLog([entry(index, term) for index, term in enumerate(terms, 1)])
    for bytes_max in (1, 2 * ENTRY_BYTES, 1 << 20):
        tail = Tail(log, 0, 6, bytes_max)
        for index in range(8):
            for term in range(9):
                fitting = [at for at in range(1, 7) if at <= index and terms[at - 1] <= term]
                assert tail.last_index_at_most(index, term) == max(fitting, default=0)


def test_key_of_all_entries() -> None:
    """Keys are equal for equal entries, whatever of them is where they are stored."""
    entries = [entry(index, 1) for index in range(1, 5)]
    stored = Tail(HeldLog(entries), 0, 4, 1)
    other = Tail(HeldLog([*entries[:3], entry(4, 2)]), 0, 4, 1)
    assert stored.first_index == other.first_index == 5
    assert stored.key() == Tail(HeldLog(entries), 0, 4, 1).key() == stored.clone().key()
    assert stored.key() != other.key()


def test_base_above_what_is_known() -> None:
    """Nothing at or below the base is held, however little was known when the base was written."""
    for log in (HeldLog([entry(6, 1)], EntryId(1, 1, 5)), HeldLog((), EntryId(1, 1, 5_000_000))):
        for known in (0, log.base.index - 1, log.base.index):
            tail = Tail(log, log.base.index, known, 1 << 20)
            assert tail.first_index == log.base.index + 1
            assert tail.last_index == max(log.base.index, log.runs.last_index)
