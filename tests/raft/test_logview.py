"""The view of the log, against a disk that does what it is told."""

from __future__ import annotations

from collections import deque
from random import Random

import pytest

from replog.stored_log import HeldLog
from replog.types import Entry, EntryId, EntryKind, LogIndex, Term, entry_body
from replog_raft.logview import LogView


def entry(index: LogIndex, term: Term, size_bytes: int = 0) -> Entry:
    """An entry whose data has ``size_bytes`` bytes."""
    return Entry(1, index, term, entry_body(EntryKind.COMMAND, 1, term, index, bytes(size_bytes)))


def view_of(*terms: Term, base_index: LogIndex = 0) -> LogView:
    """A view that recovered one entry for each of ``terms``."""
    return LogView(
        base_index,
        HeldLog([entry(base_index + at, term) for at, term in enumerate(terms, 1)]),
        1 << 20,
    )


def indexes(entries: tuple[Entry, ...]) -> list[LogIndex]:
    """Where the entries stand."""
    return [one.index for one in entries]


class Disk:
    """What the view told the disk, write by write."""

    def __init__(self, view: LogView) -> None:
        first = view.base_index + 1
        self.entries = {
            index: view.slice(index, index)[0] for index in range(first, view.last_index + 1)
        }
        self.under_way: deque[tuple[EntryId | None, LogIndex | None, tuple[Entry, ...]]] = deque()

    def take(self, view: LogView) -> None:
        """Start a write."""
        self.under_way.append(view.take_unsaved())

    def finish(self, view: LogView) -> None:
        """End the oldest write."""
        _, truncate_from, entries = self.under_way.popleft()
        if truncate_from is not None:
            self.entries = {at: one for at, one in self.entries.items() if at < truncate_from}
        self.entries.update({one.index: one for one in entries})
        view.advance_durable()


# -- reading --


def test_recovered_is_durable() -> None:
    """What was recovered is all on disk: nothing is to be written."""
    view = view_of(1, 1, 2)
    assert (view.last_index, view.last_term, view.durable_index) == (3, 2, 3)
    assert not view.has_unsaved


@pytest.mark.parametrize("base_index", [0, 10])
def test_term_at_everywhere(base_index: LogIndex) -> None:
    """The term is 0 at the base, the entry's in the log, and unknown outside."""
    view = view_of(1, 3, 3, base_index=base_index)
    found = [view.term_at(base_index + offset) for offset in range(-1, 5)]
    assert found == [None, 0, 1, 3, 3, None]


@pytest.mark.parametrize("base_index", [0, 10])
def test_term_at_empty(base_index: LogIndex) -> None:
    """An empty log ends at its base, with term 0."""
    view = view_of(base_index=base_index)
    assert (view.last_index, view.last_term) == (base_index, 0)
    assert [view.term_at(base_index + offset) for offset in (-1, 0, 1)] == [None, 0, None]


def test_slice_both_ends() -> None:
    """A slice has both its ends; asked twice it is the same object, so it is encoded once."""
    view = view_of(1, 1, 2, 2, base_index=10)
    assert indexes(view.slice(12, 13)) == [12, 13]
    assert view.slice(12, 13) is view.slice(12, 13)
    assert view.slice(12, 12)[0] == view.slice(12, 12)[0]


def test_slice_after_truncation() -> None:
    """A kept slice is forgotten when the log under it is replaced."""
    view = view_of(1, 1, 1)
    view.slice(2, 3)
    view.slice_within(2, 10_000)
    view.truncate(2)
    view.extend([entry(2, 2), entry(3, 2)])
    assert [one.term for one in view.slice(2, 3)] == [2, 2]
    assert [one.term for one in view.slice_within(2, 10_000)[0]] == [2, 2]


def test_slice_within_bytes() -> None:
    """As many entries as fit are taken, at least one, and their bytes are counted."""
    view = LogView(0, HeldLog([entry(index, 1, 1000) for index in range(1, 6)]), 1 << 20)
    taken, size_bytes = view.slice_within(2, 2500)
    assert indexes(taken) == [2, 3]
    assert 2000 <= size_bytes <= 2500
    assert indexes(view.slice_within(5, 10)[0]) == [5]
    assert indexes(view.slice_within(1, 10)[0]) == [1]
    assert indexes(view.slice_within(1, 10_000)[0]) == [1, 2, 3, 4, 5]


def test_slice_within_exact_bytes() -> None:
    """Entries that fill the limit to the last byte fit."""
    view = LogView(0, HeldLog([entry(index, 1, 1000) for index in range(1, 6)]), 1 << 20)
    size_bytes = view.slice_within(1, 2500)[1]
    assert indexes(view.slice_within(1, size_bytes)[0]) == [1, 2]
    assert indexes(view.slice_within(1, size_bytes - 1)[0]) == [1]


def test_slice_within_asked_again() -> None:
    """The same question gets the same answer, bytes included, whatever was sliced in between."""
    view = LogView(0, HeldLog([entry(index, 1, 1000) for index in range(1, 6)]), 1 << 20)
    first = view.slice_within(1, 2500)
    assert view.slice_within(1, 2500) == first
    view.slice(2, 4)
    assert view.slice_within(1, 2500) == first


def test_slice_within_grown_log() -> None:
    """A kept answer is not given any more when the log has grown."""
    view = view_of(1, 1)
    assert indexes(view.slice_within(1, 10_000)[0]) == [1, 2]
    view.extend([entry(3, 1)])
    assert indexes(view.slice_within(1, 10_000)[0]) == [1, 2, 3]


def test_size_bytes_of_bodies() -> None:
    """The bytes of a stretch are those of its bodies."""
    view = LogView(0, HeldLog([entry(index, 1, index) for index in range(1, 5)]), 1 << 20)
    assert view.size_bytes(2, 3) == sum(len(view.slice(index, index)[0].body) for index in (2, 3))
    assert view.size_bytes(3, 2) == 0


@pytest.mark.parametrize("base_index", [0, 10])
def test_last_index_at_most_definition(base_index: LogIndex) -> None:
    """The highest index not above the given one whose term is not above the given one is found,
    the base included."""
    terms = (1, 1, 3, 3, 3, 6)
    view = view_of(*terms, base_index=base_index)
    for offset in range(-1, 9):
        for term in range(8):
            wanted = max(
                [at for at, of in enumerate((0, *terms)) if at <= offset and of <= term], default=0
            )
            found = view.last_index_at_most(base_index + offset, term)
            assert found == base_index + wanted, (offset, term)


# -- writing --


def test_append_and_extend() -> None:
    """Entries are added behind the last only."""
    view = view_of(1)
    view.extend([entry(2, 2)])
    assert (view.last_index, view.last_term) == (2, 2)
    view.extend([entry(3, 2), entry(4, 2)])
    assert (view.last_index, view.last_term, view.durable_index) == (4, 2, 1)
    with pytest.raises(AssertionError):
        view.extend([entry(4, 2)])
    with pytest.raises(AssertionError):
        view.extend([entry(6, 2)])


def test_truncate_bounds() -> None:
    """Neither the base nor what is not there can be truncated."""
    view = view_of(1, 1, base_index=10)
    for from_index in (10, 13):
        with pytest.raises(AssertionError):
            view.truncate(from_index)


def test_truncate_everything() -> None:
    """A log that is truncated from its first entry ends at its base."""
    view = view_of(1, 1, base_index=10)
    view.truncate(11)
    assert (view.last_index, view.last_term, view.durable_index) == (10, 0, 10)
    assert view.take_unsaved() == (None, 11, ())


def test_take_unsaved_once() -> None:
    """What is to be written is handed out once, and a truncation before what replaces it."""
    view = view_of(1, 1, 1)
    view.truncate(2)
    view.extend([entry(2, 2)])
    _, truncate_from, entries = view.take_unsaved()
    assert (truncate_from, indexes(entries)) == (2, [2])
    assert not view.has_unsaved


def test_truncate_unsaved_not_told() -> None:
    """A truncation of what the disk never knew is not told to it."""
    view = view_of(1)
    view.extend([entry(2, 1), entry(3, 1)])
    view.truncate(2)
    assert not view.has_unsaved
    view.extend([entry(2, 2)])
    _, truncate_from, entries = view.take_unsaved()
    assert (truncate_from, [one.term for one in entries]) == (None, [2])


def test_truncate_twice_told_lowest() -> None:
    """Of several truncations before one write the lowest is told."""
    view = view_of(1, 1, 1, 1)
    for from_index in (4, 2):
        view.truncate(from_index)
    view.extend([entry(2, 2)])
    view.truncate(2)
    assert view.take_unsaved() == (None, 2, ())


def test_advance_in_order() -> None:
    """Each write that ends makes durable what it held, in order."""
    view = view_of()
    for index in (1, 2, 3):
        view.extend([entry(index, 1)])
        view.take_unsaved()
    reached = []
    for _ in range(3):
        view.advance_durable()
        reached.append(view.durable_index)
    assert reached == [1, 2, 3]


def test_advance_clipped_by_truncation() -> None:
    """A write that a truncation overtook makes nothing durable of what stands there now."""
    view = view_of(1)
    view.extend([entry(2, 1), entry(3, 1)])
    view.take_unsaved()
    view.truncate(2)
    view.extend([entry(2, 2), entry(3, 2), entry(4, 2)])
    view.take_unsaved()
    view.advance_durable()
    assert view.durable_index == 1
    view.advance_durable()
    assert view.durable_index == 4


@pytest.mark.parametrize("seed", range(30))
def test_random_writes_match_disk(seed: int) -> None:
    """However writes and truncations interleave, what counts as durable is on disk as it stands in
    the view, and in the end the disk holds the whole view and nothing else."""
    random = Random(seed)
    view = view_of(1, 1, base_index=random.choice([0, 10]))
    disk = Disk(view)
    term = 1
    for _ in range(300):
        action = random.randrange(5)
        if action <= 1:
            count = random.randrange(1, 4)
            view.extend([entry(view.last_index + at, term) for at in range(1, count + 1)])
        elif action == 2 and view.last_index > view.base_index and random.random() < 0.5:
            term += 1
            view.truncate(random.randrange(view.base_index + 1, view.last_index + 1))
        elif action == 3 and view.has_unsaved:
            disk.take(view)
        elif action == 4 and disk.under_way:
            disk.finish(view)
        for index in range(view.base_index + 1, view.durable_index + 1):
            assert disk.entries[index] == view.slice(index, index)[0]
    if view.has_unsaved:
        disk.take(view)
    while disk.under_way:
        disk.finish(view)
    assert view.durable_index == view.last_index
    whole = range(view.base_index + 1, view.last_index + 1)
    assert disk.entries == {index: view.slice(index, index)[0] for index in whole}


def test_clone_independent() -> None:
    """A clone has an equal key and goes its own way, writes under way included."""
    view = view_of(1, 1, 1)
    view.truncate(3)
    view.extend([entry(3, 2)])
    view.take_unsaved()
    view.extend([entry(4, 2)])
    view.truncate(3)
    view.extend([entry(3, 3)])
    clone = view.clone()
    assert clone.key() == view.key()
    before = view.key()
    clone.advance_durable()
    clone.extend([entry(4, 3)])
    clone.take_unsaved()
    assert view.key() == before
    view.extend([entry(4, 3)])
    assert view.take_unsaved() == (None, 3, (entry(3, 3), entry(4, 3)))


def test_key_tells_durability_apart() -> None:
    """Two views with equal entries differ while a write of one is still under way."""
    one, other = view_of(1), view_of()
    other.extend([entry(1, 1)])
    assert one.key() != other.key()
    other.take_unsaved()
    assert one.key() != other.key()
    other.advance_durable()
    assert one.key() == other.key()
