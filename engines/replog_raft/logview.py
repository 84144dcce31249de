"""The volatile view of the log: a base and the entries above it, and how much of it is on disk.

The rules this module keeps:

* Entries are contiguous from ``base_index + 1``.  The base is what lies below the epoch: it has
  term 0 and is never compared, truncated or sent.
* Three watermarks: ``durable_index`` (on disk), ``_unsaved_index - 1`` (handed out to be written)
  and ``last_index`` (known).  A truncation lowers all three; and it clips the spans that are still
  on their way to disk, so that a write which was overtaken by a truncation never marks the entry
  that replaced it as durable.

The caller decides *whether* to truncate; this module only asserts what every protocol needs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Hashable, Sequence

from replog.entries import ENTRY_OVERHEAD_BYTES_MAX
from replog.types import Entry, LogIndex, Term


class LogView:
    """The entries of one epoch, in memory."""

    __slots__ = (
        "_entries",
        "_slice",
        "_slice_span",
        "_spans",
        "_truncated_from",
        "_unsaved_index",
        "_within_asked",
        "_within_bytes",
        "_within_span",
        "base_index",
        "durable_index",
        "last_index",
        "last_term",
    )

    def __init__(self, base_index: LogIndex, recovered: Sequence[Entry]) -> None:
        self.base_index = base_index
        self._entries: list[Entry] = list(recovered)
        self.last_index: LogIndex = base_index + len(self._entries)
        self.last_term: Term = self._entries[-1].term if self._entries else 0
        self.durable_index = self.last_index
        self._unsaved_index = self.last_index + 1
        self._truncated_from: LogIndex | None = None
        self._spans: deque[LogIndex] = deque()
        self._slice: tuple[Entry, ...] = ()
        self._slice_span: tuple[LogIndex, LogIndex] = (0, 0)
        self._within_asked = (0, 0, 0)
        self._within_span: tuple[LogIndex, LogIndex] = (0, 0)
        self._within_bytes = 0

    def term_at(self, index: LogIndex) -> Term | None:
        """The term of the entry at ``index``: 0 at the base, ``None`` where nothing is known."""
        if index == self.last_index:
            return self.last_term
        if self.base_index < index < self.last_index:
            return self._entries[index - self.base_index - 1].term
        return 0 if index == self.base_index else None

    def entry_at(self, index: LogIndex) -> Entry:
        """The entry at ``index``, which must be known."""
        assert self.base_index < index <= self.last_index
        return self._entries[index - self.base_index - 1]

    def slice(self, first: LogIndex, last: LogIndex) -> tuple[Entry, ...]:
        """The entries from ``first`` to ``last``, both included.

        A leader asks for the same stretch once per peer and once for its disk; the last answer is
        kept, so that all of them share one object, which is encoded once.
        """
        assert self.base_index < first <= last <= self.last_index
        span = (first, last)
        if self._slice_span != span:
            offset = self.base_index + 1
            self._slice = tuple(self._entries[first - offset : last - offset + 1])
            self._slice_span = span
        return self._slice

    def slice_within(self, first: LogIndex, bytes_max: int) -> tuple[tuple[Entry, ...], int]:
        """The entries from ``first`` on that fit into ``bytes_max`` as they travel, at least one,
        and how many bytes they take at most."""
        asked = (first, self.last_index, bytes_max)
        if self._within_asked == asked and self._slice_span == self._within_span:
            return self._slice, self._within_bytes
        offset = self.base_index + 1
        size_bytes = 0
        last = first - 1
        for at in range(first - offset, len(self._entries)):
            entry_bytes = len(self._entries[at].body) + ENTRY_OVERHEAD_BYTES_MAX
            if size_bytes + entry_bytes > bytes_max and last >= first:
                break
            size_bytes += entry_bytes
            last += 1
        entries = self.slice(first, last)
        self._within_asked, self._within_span = asked, (first, last)
        self._within_bytes = size_bytes
        return entries, size_bytes

    def size_bytes(self, first: LogIndex, last: LogIndex) -> int:
        """The bytes of the bodies from ``first`` to ``last``, both included."""
        offset = self.base_index + 1
        return sum([len(entry.body) for entry in self._entries[first - offset : last - offset + 1]])

    def extend(self, entries: Sequence[Entry]) -> None:
        """Add entries behind the last."""
        assert entries[0].index == self.last_index + 1
        self._entries.extend(entries)
        self.last_index = entries[-1].index
        self.last_term = entries[-1].term
        assert self.last_index == self.base_index + len(self._entries)

    def truncate(self, from_index: LogIndex) -> None:
        """Void every entry at and above ``from_index``, in memory now, on disk with the next
        write."""
        assert self.base_index < from_index <= self.last_index
        del self._entries[from_index - self.base_index - 1 :]
        self.last_index = from_index - 1
        self.last_term = self._entries[-1].term if self._entries else 0
        self._slice_span = self._within_span = (0, 0)
        self._within_asked = (0, 0, 0)
        self.durable_index = min(self.durable_index, self.last_index)
        self._spans = deque(min(last, self.last_index) for last in self._spans)
        if from_index < self._unsaved_index:
            # Handed out before, so the disk must be told; above that it never knew.
            self._truncated_from = self._unsaved_index = from_index

    def last_index_at_most(self, index: LogIndex, term: Term) -> LogIndex:
        """The highest index not above ``index`` whose term is not above ``term``.

        Needs terms that never fall along the log, as Raft's do.  The base has term 0.
        """
        high = min(index, self.last_index) - self.base_index
        return self.base_index + bisect_right(
            self._entries, term, hi=max(0, high), key=lambda entry: entry.term
        )

    @property
    def has_unsaved(self) -> bool:
        """Whether the disk has something to be told."""
        return self._unsaved_index <= self.last_index or self._truncated_from is not None

    def take_unsaved(self) -> tuple[LogIndex | None, tuple[Entry, ...]]:
        """What the disk does not know yet: (truncate from, entries).

        Each take is answered by one :meth:`advance_durable`, in order.
        """
        truncated_from, self._truncated_from = self._truncated_from, None
        entries: tuple[Entry, ...] = ()
        if self._unsaved_index <= self.last_index:
            entries = self.slice(self._unsaved_index, self.last_index)
            self._unsaved_index = self.last_index + 1
        self._spans.append(self.last_index)
        return truncated_from, entries

    def advance_durable(self) -> None:
        """The oldest take that is still on its way is on disk."""
        self.durable_index = max(self.durable_index, self._spans.popleft())

    def clone(self) -> LogView:
        """An independent copy."""
        copy = LogView(self.base_index, self._entries)
        copy.durable_index = self.durable_index
        copy._unsaved_index = self._unsaved_index
        copy._truncated_from = self._truncated_from
        copy._spans = self._spans.copy()
        return copy

    def key(self) -> Hashable:
        """Equal for two views that hold the same entries with the same durability."""
        return (
            tuple(self._entries),
            self.base_index,
            self.durable_index,
            self._unsaved_index,
            self._truncated_from,
            tuple(self._spans),
        )
