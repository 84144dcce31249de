"""The end of a log in memory, and what is older where it is stored: one log to whoever reads it.

An engine works at the end of its log, and now and then tells a slow peer what is older.  So the
end is held here, and what was handed out to be applied and is durable may be *evicted* once it
takes more of memory than ``limits.log_cache_bytes_max``: then it is read from the
:class:`~replog.stored_log.StoredLog`, a stretch at a time.

The rules this module keeps:

* From ``first_index`` on everything is held, up to ``last_index``; below it the storage holds it.
  A slot with nothing in it is a :data:`HOLE`.
* What is not durable, or not handed out yet, is never evicted: so what is truncated or written
  anew is held, but for a log that was just recovered, of which no more is held than is worth it.

Whether something may be put or truncated is the caller's affair; this module only holds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from itertools import chain
from typing import Final

from replog.entries import ENTRY_OVERHEAD_BYTES_MAX
from replog.limits import MIB
from replog.stored_log import StoredLog
from replog.types import Entry, LogIndex, Term

HOLE: Final = Entry(0, 0, 0, b"")
"""Stands where nothing is; its term is below every other."""

RECOVERED_COUNT_MAX: Final = 4096
"""So many of the entries that were recovered are held at first, if their bytes allow it."""

READ_BYTES: Final = 1 * MIB
"""How much is read at a time of a longer stretch."""

STRETCH_COUNT: Final = 512
"""How many entries are counted at a time where it is sought how many fit."""

ENTRY_MEMORY_BYTES: Final = 140
"""What an entry takes of memory beside its body's bytes: the objects, and its place in a list."""

UNCOUNTED: Final = -1
"""Nobody asked yet how many bytes these are."""


class Tail:
    """The entries of one epoch."""

    __slots__ = (
        "_bytes_max",
        "_entries",
        "_log",
        "_marks",
        "_origin",
        "_released_bytes",
        "_released_index",
        "_slice",
        "_slice_bytes",
        "_slice_span",
        "_within_asked",
        "_within_last",
        "first_index",
        "last_index",
    )

    def __init__(
        self, log: StoredLog, base_index: LogIndex, known_index: LogIndex, bytes_max: int
    ) -> None:
        """Hold the end of what was recovered: all that is above ``known_index``, and what is
        below as far as ``bytes_max`` allows."""
        self._log = log
        self._bytes_max = bytes_max
        self.last_index: LogIndex = max(base_index, log.runs.last_index)
        """The highest index at which there is something; the base's where there is nothing."""
        self.first_index: LogIndex = self.last_index + 1
        """Everything from here on is in memory."""
        self._entries: list[Entry] = []
        self._origin: LogIndex = self.first_index
        """The index of the first of ``_entries``; what stands there below ``first_index`` is a
        :data:`HOLE`, for taking it out of a long list costs more than leaving it in."""
        self._released_index: LogIndex = base_index
        self._released_bytes = 0
        """Of what is held and was released."""
        self._marks: deque[tuple[LogIndex, int]] = deque()
        """The same by release: up to where it went, and its bytes; so that whoever evicts need not
        look at every entry."""
        self._forget_slices()
        self._hold_recovered(base_index, known_index)

    def _hold_recovered(self, base_index: LogIndex, known_index: LogIndex) -> None:
        known_index = max(known_index, base_index)
        last, count = self.last_index, RECOVERED_COUNT_MAX
        while count:
            first = max(base_index + 1, last + 1 - count)
            held = self._read_slots(first, last, self._bytes_max)
            if len(held) == last + 1 - first:
                break
            count //= 4
        else:
            first, held = last + 1, []
        if first > known_index + 1:
            held = self._read_slots(known_index + 1, first - 1, 1 << 62) + held
            first = known_index + 1
        assert first > base_index
        self._entries, self._origin, self.first_index = held, first, first

    def _read_slots(self, first: LogIndex, last: LogIndex, bytes_max: int) -> list[Entry]:
        """What the storage holds from ``first`` to ``last``, holes included; cut off where it takes
        more of memory than ``bytes_max``."""
        found: list[Entry] = []
        for entry in chain.from_iterable(self._stored(first, last)):
            bytes_max -= len(entry.body) + ENTRY_MEMORY_BYTES
            if bytes_max < 0:
                return found
            found += [HOLE] * (entry.index - first - len(found))
            found.append(entry)
        return found + [HOLE] * (last + 1 - first - len(found))

    def _stored(self, first: LogIndex, last: LogIndex) -> Iterator[Sequence[Entry]]:
        """What the storage holds from ``first`` to ``last``, a stretch at a time, without the
        holes."""
        log = self._log
        while first <= last:
            run = log.runs.next_from(first)
            if run is None or run.first > last:
                return
            entries = log.read(max(first, run.first), min(last, run.last), READ_BYTES)
            yield entries
            first = entries[-1].index + 1

    def _forget_slices(self) -> None:
        self._keep_slice((), 0, 0)
        self._within_asked = (0, 0, 0)
        self._within_last: LogIndex = 0

    def _keep_slice(self, entries: tuple[Entry, ...], first: LogIndex, last: LogIndex) -> None:
        """Have these at hand, which are from ``first`` to ``last``: much is asked of the same."""
        self._slice = entries
        self._slice_span = (first, last)
        self._slice_bytes = UNCOUNTED

    # -- reading --

    def at(self, index: LogIndex) -> Entry:
        """What is at ``index``; :data:`HOLE` where there is nothing.  Below ``first_index`` it is
        read from the storage."""
        if self.first_index <= index <= self.last_index:
            return self._entries[index - self._origin]
        if index > self.last_index or self._log.runs.at(index) is None:
            return HOLE
        (entry,) = self._log.read(index, index, 1)
        return entry

    def term_at(self, index: LogIndex) -> Term:
        """The term of what is at ``index``; 0 where there is nothing."""
        if self.first_index <= index <= self.last_index:
            return self._entries[index - self._origin].term
        return self._log.runs.term_at(index) if index < self.first_index else 0

    def last_index_at_most(self, index: LogIndex, term: Term) -> LogIndex:
        """The highest index not above ``index`` whose term is not above ``term``, 0 if there is
        none; only for terms that never fall along the log, as Raft's do."""
        first, origin = self.first_index, self._origin
        low = first - origin
        high = max(low, min(index, self.last_index) - origin + 1)
        at = bisect_right(self._entries, term, low, high, key=_term_of)
        if at > low:
            return origin + at - 1
        return self._log.runs.last_at_most(min(index, first - 1), term)

    def slice(self, first: LogIndex, last: LogIndex) -> tuple[Entry, ...]:
        """The entries from ``first`` to ``last``, both included, among which there is no hole.

        A leader asks for the same stretch once per peer and once for its disk; the last answer is
        kept, or what was put last, so that all of them share one object, which is encoded once.
        """
        assert first <= last <= self.last_index
        if self._slice_span != (first, last):
            origin = self._origin
            if first >= self.first_index:
                entries = tuple(self._entries[first - origin : last - origin + 1])
            else:
                entries = self._mixed(first, last)
            self._keep_slice(entries, first, last)
        return self._slice

    def _mixed(self, first: LogIndex, last: LogIndex) -> tuple[Entry, ...]:
        """A stretch that begins below what is held."""
        held, origin = self.first_index, self._origin
        found: list[Entry] = []
        for entries in self._stored(first, min(last, held - 1)):
            found += entries
        if last >= held:
            found += self._entries[held - origin : last - origin + 1]
        return tuple(found)

    def slice_within(
        self, first: LogIndex, last: LogIndex, bytes_max: int
    ) -> tuple[tuple[Entry, ...], int]:
        """The entries from ``first`` to at most ``last`` that fit into ``bytes_max`` as they
        travel, at least one, and how many bytes they take at most; there is no hole among them."""
        held = self.first_index
        if first < held:
            return self._stored_within(first, min(last, held - 1), bytes_max)
        asked = (first, last, bytes_max)
        if self._within_asked != asked:
            self._within_last = self._last_within(first, last, bytes_max)
            self._within_asked = asked
        last = self._within_last
        overhead_bytes = (last + 1 - first) * ENTRY_OVERHEAD_BYTES_MAX
        return self.slice(first, last), self.size_bytes(first, last) + overhead_bytes

    def _last_within(self, first: LogIndex, last: LogIndex, bytes_max: int) -> LogIndex:
        """The last of those from ``first`` on that fit; not below ``first``."""
        end = first - 1
        while end < last:
            # A stretch at a time, and entry by entry only where the last one ends.
            upto = min(last, end + STRETCH_COUNT)
            stretch_bytes = self.size_bytes(end + 1, upto)
            stretch_bytes += (upto - end) * ENTRY_OVERHEAD_BYTES_MAX
            if stretch_bytes > bytes_max:
                break
            bytes_max -= stretch_bytes
            end = upto
        else:
            return last
        for entry in self._entries[end + 1 - self._origin : upto + 1 - self._origin]:
            bytes_max -= len(entry.body) + ENTRY_OVERHEAD_BYTES_MAX
            if bytes_max < 0:
                break
            end += 1
        return max(end, first)

    def _stored_within(
        self, first: LogIndex, last: LogIndex, bytes_max: int
    ) -> tuple[tuple[Entry, ...], int]:
        entries = self._log.read(first, last, bytes_max)
        return entries, sum([len(entry.body) + ENTRY_OVERHEAD_BYTES_MAX for entry in entries])

    def read_within(self, first: LogIndex, last: LogIndex, bytes_max: int) -> tuple[Entry, ...]:
        """As :meth:`slice_within`, for whoever reads at a place of its own: what the peers and the
        disk are told next stays at hand."""
        held, origin = self.first_index, self._origin
        if first < held:
            return self._stored_within(first, min(last, held - 1), bytes_max)[0]
        last = self._last_within(first, last, bytes_max)
        return tuple(self._entries[first - origin : last - origin + 1])

    def found_within(self, first: LogIndex, bytes_max: int) -> tuple[tuple[Entry, ...], LogIndex]:
        """The entries from ``first`` on that fit into ``bytes_max``, at least one if there is one,
        without the holes; and the index up to which that is all, 0 if it is all there is."""
        found: list[Entry] = []
        size_bytes = 0
        for entry in self._found(first):
            size_bytes += len(entry.body) + ENTRY_OVERHEAD_BYTES_MAX
            if size_bytes > bytes_max and found:
                return tuple(found), entry.index - 1
            found.append(entry)
        return tuple(found), 0

    def _found(self, first: LogIndex) -> Iterator[Entry]:
        yield from chain.from_iterable(self._stored(first, self.first_index - 1))
        for at in range(max(first, self.first_index) - self._origin, len(self._entries)):
            if (entry := self._entries[at]) is not HOLE:
                yield entry

    def size_bytes(self, first: LogIndex, last: LogIndex) -> int:
        """The bytes of the bodies from ``first`` to ``last``, both included, which are held."""
        if self._slice_span != (first, last):
            origin = self._origin
            assert first >= self.first_index
            return _body_bytes(self._entries[first - origin : last - origin + 1])
        if self._slice_bytes == UNCOUNTED:
            self._slice_bytes = _body_bytes(self._slice)
        return self._slice_bytes

    # -- changing --

    def put(self, entries: Sequence[Entry]) -> None:
        """Put entries at contiguous indexes, in place of what was there; all of it is held, or
        behind the last."""
        first, last = entries[0].index, entries[-1].index
        behind = self.last_index + 1
        if first >= behind:
            if first > behind:
                self._entries += [HOLE] * (first - behind)
            self._entries += entries
            self.last_index = last
            if type(entries) is tuple:
                self._keep_slice(entries, first, last)
            return
        origin = self._origin
        assert first >= self.first_index
        self._entries[first - origin : last - origin + 1] = entries
        self.last_index = max(self.last_index, last)
        self._forget_slices()

    def truncate(self, from_index: LogIndex) -> None:
        """Void everything at and above ``from_index``."""
        del self._entries[max(0, from_index - self._origin) :]
        self._origin = min(self._origin, from_index)
        self.first_index = min(self.first_index, from_index)
        self.last_index = from_index - 1
        self._forget_slices()

    def release(self, entries: Sequence[Entry], durable_index: LogIndex) -> None:
        """``entries`` were handed out to be applied, behind those that were before; what is up to
        ``durable_index`` can be read back.  Of what is both the oldest go, above the limit."""
        last = entries[-1].index
        # From where the last ones ended: those in between were applied without being handed out.
        first = max(self.first_index, self._released_index + 1)
        if first <= last:
            size_bytes = self.size_bytes(first, last) + (last + 1 - first) * ENTRY_MEMORY_BYTES
            self._marks.append((last, size_bytes))
            self._released_bytes += size_bytes
        self._released_index = last
        if self._released_bytes > self._bytes_max:
            self._evict(min(self._released_index, durable_index))

    def _evict(self, upto: LogIndex) -> None:
        """What is above the limit.  What was released at once goes at once.

        So about as much goes as came, and the interpreter, which looks for cyclic garbage whenever
        hundreds of objects were made that were not freed, seldom has reason to.
        """
        marks, origin, behind = self._marks, self._origin, self.first_index
        while self._released_bytes > self._bytes_max and marks[0][0] <= upto:
            last, size_bytes = marks.popleft()
            self._released_bytes -= size_bytes
            behind = last + 1
        self._entries[self.first_index - origin : behind - origin] = [HOLE] * (
            behind - self.first_index
        )
        self.first_index = behind
        if behind - origin > len(self._entries) // 8:
            del self._entries[: behind - origin]
            self._origin = behind

    def trim(self, upto: LogIndex) -> None:
        """Forget everything up to ``upto``: a snapshot stands for it."""
        gone = max(0, upto + 1 - self._origin)
        held = self._entries[self.first_index - self._origin : gone]
        released_count = self._released_index + 1 - self.first_index
        released = held[: max(0, released_count)]
        size_bytes = _body_bytes(released) + len(released) * ENTRY_MEMORY_BYTES
        self._released_bytes -= size_bytes
        marks = self._marks
        while marks and marks[0][0] <= upto:
            size_bytes -= marks.popleft()[1]
        if size_bytes:
            marks[0] = (marks[0][0], marks[0][1] - size_bytes)
        del self._entries[:gone]
        self._origin = max(self._origin, upto + 1)
        self.first_index = max(self.first_index, upto + 1)
        self.last_index = max(self.last_index, upto)
        self._released_index = max(self._released_index, upto)
        self._forget_slices()

    def clone(self) -> Tail:
        """An independent copy over the same storage."""
        copy: Tail = object.__new__(Tail)
        copy._log, copy._bytes_max = self._log, self._bytes_max
        copy._entries = self._entries.copy()
        copy._origin = self._origin
        copy.first_index, copy.last_index = self.first_index, self.last_index
        copy._released_index = self._released_index
        copy._released_bytes, copy._marks = self._released_bytes, self._marks.copy()
        copy._forget_slices()
        return copy

    def key(self) -> Hashable:
        """Equal for two tails of the same entries, of which they hold the same.

        Reads what is not held: for logs that fit into memory, where all is.
        """
        below = tuple(chain.from_iterable(self._stored(1, self.first_index - 1)))
        held = tuple(self._entries[self.first_index - self._origin :])
        return (below, held, self.first_index, self._released_bytes)


def _body_bytes(entries: Sequence[Entry]) -> int:
    return sum([len(entry.body) for entry in entries])


def _term_of(entry: Entry) -> Term:
    return entry.term
