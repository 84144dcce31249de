"""The volatile view of the log: a base and the entries above it, and how much of it is on disk.

The rules this module keeps:

* Entries are contiguous from ``base_index + 1``.  The base is what lies below the epoch, or in a
  snapshot: its term is known, and it is never truncated or sent.
* The base moves by a trim (of what is on disk here) or by an install (of what a snapshot holds),
  and the disk is told with the next write.
* Three watermarks: ``durable_index`` (on disk), ``_unsaved_index - 1`` (handed out to be written)
  and ``last_index`` (known).  A truncation lowers all three; and it clips the spans that are still
  on their way to disk, so that a write which was overtaken by a truncation never marks the entry
  that replaced it as durable.

Which of the entries are in memory is :class:`~replog.tail.Tail`'s affair.  The caller decides
*whether* to truncate; this module only asserts what every protocol needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence

from replog.errors import Compacted
from replog.stored_log import StoredLog
from replog.tail import Tail
from replog.types import Entry, EntryId, EpochNumber, LogIndex, Term


class LogView:
    """The entries of one epoch."""

    __slots__ = (
        "_moved_base",
        "_spans",
        "_tail",
        "_truncated_from",
        "_unsaved_index",
        "base_index",
        "base_term",
        "durable_index",
        "last_index",
        "last_term",
    )

    def __init__(self, base_index: LogIndex, log: StoredLog, cache_bytes_max: int) -> None:
        self.base_index: LogIndex = max(base_index, log.base.index)
        self.base_term: Term = log.base.term
        self._tail = Tail(log, self.base_index, log.runs.last_index, cache_bytes_max)
        self.last_index: LogIndex = self._tail.last_index
        self.last_term: Term = self._tail.term_at(self.last_index) or self.base_term
        self.durable_index = self.last_index
        self._unsaved_index = self.last_index + 1
        self._truncated_from: LogIndex | None = None
        self._moved_base: EntryId | None = None
        """The base, if the disk does not know it yet."""
        self._spans: deque[LogIndex] = deque()

    def term_at(self, index: LogIndex) -> Term | None:
        """The term of the entry at ``index``, or of the base; ``None`` where nothing is known."""
        if index == self.last_index:
            return self.last_term
        if self.base_index < index < self.last_index:
            return self._tail.term_at(index)
        return self.base_term if index == self.base_index else None

    def slice(self, first: LogIndex, last: LogIndex) -> tuple[Entry, ...]:
        """See :meth:`Tail.slice`."""
        return self._tail.slice(first, last)

    @property
    def first_held_index(self) -> LogIndex:
        """The entries from here on are in memory."""
        return self._tail.first_index

    def slice_within(self, first: LogIndex, bytes_max: int) -> tuple[tuple[Entry, ...], int]:
        """See :meth:`Tail.slice_within`; up to the last."""
        return self._tail.slice_within(first, self.last_index, bytes_max)

    def applied(self, first: LogIndex, last: LogIndex, bytes_max: int) -> tuple[Entry, ...]:
        """Those that fit into ``bytes_max``, at least one, for whoever reads the log as a log.

        Below the base the disk may hold another log than the one that a snapshot stands for.
        """
        if first <= self.base_index:
            raise Compacted(self.base_index + 1)
        return self._tail.read_within(first, last, bytes_max)

    def size_bytes(self, first: LogIndex, last: LogIndex) -> int:
        """See :meth:`Tail.size_bytes`."""
        return self._tail.size_bytes(first, last)

    def extend(self, entries: Sequence[Entry]) -> None:
        """Add entries behind the last."""
        assert entries[0].index == self.last_index + 1
        self._tail.put(entries)
        self.last_index = entries[-1].index
        self.last_term = entries[-1].term
        assert self.last_index - entries[0].index == len(entries) - 1

    def truncate(self, from_index: LogIndex) -> None:
        """Void every entry at and above ``from_index``, in memory now, on disk with the next
        write."""
        assert self.base_index < from_index <= self.last_index
        self._tail.truncate(from_index)
        self.last_index = from_index - 1
        self.last_term = self._tail.term_at(self.last_index) or self.base_term
        self.durable_index = min(self.durable_index, self.last_index)
        self._spans = deque(min(last, self.last_index) for last in self._spans)
        if from_index < self._unsaved_index:
            # Handed out before, so the disk must be told; above that it never knew.
            self._truncated_from = self._unsaved_index = from_index

    def trim(self, upto: LogIndex, epoch: EpochNumber) -> None:
        """Forget the entries up to ``upto``, which are on disk and in a snapshot."""
        assert self.base_index < upto <= self.durable_index
        term = self.term_at(upto)
        assert term is not None
        self._move_base(EntryId(epoch, term, upto))

    def install(self, last: EntryId) -> None:
        """A snapshot stands for everything up to ``last``.

        What is behind it stays if ``last`` itself is here, for then all in front of it is the same
        (Raft §7); otherwise nothing stays.
        """
        if self.term_at(last.index) != last.term and self.last_index > last.index:
            self.truncate(last.index + 1)
        self.durable_index = max(self.durable_index, last.index)
        self._unsaved_index = max(self._unsaved_index, last.index + 1)
        if self.last_index <= last.index:
            self.last_index, self.last_term = last.index, last.term
        self._move_base(last)

    def _move_base(self, base: EntryId) -> None:
        self._tail.trim(base.index)
        self.base_index, self.base_term = base.index, base.term
        self._moved_base = base

    def last_index_at_most(self, index: LogIndex, term: Term) -> LogIndex:
        """The highest index not above ``index`` whose term is not above ``term``; the base's where
        there is none.  Needs terms that never fall along the log, as Raft's do."""
        return max(self.base_index, self._tail.last_index_at_most(index, term))

    def release(self, entries: Sequence[Entry]) -> None:
        """These were handed out to be applied, and need not be held any longer."""
        self._tail.release(entries, self.durable_index)

    @property
    def has_unsaved(self) -> bool:
        """Whether the disk has something to be told."""
        return (
            self._unsaved_index <= self.last_index
            or self._truncated_from is not None
            or self._moved_base is not None
        )

    def take_unsaved(self) -> tuple[EntryId | None, LogIndex | None, tuple[Entry, ...]]:
        """What the disk does not know yet: (base, truncate from, entries).

        Each take is answered by one :meth:`advance_durable`, in order.
        """
        base, self._moved_base = self._moved_base, None
        truncated_from, self._truncated_from = self._truncated_from, None
        entries: tuple[Entry, ...] = ()
        if self._unsaved_index <= self.last_index:
            entries = self._tail.slice(self._unsaved_index, self.last_index)
            self._unsaved_index = self.last_index + 1
        self._spans.append(self.last_index)
        return base, truncated_from, entries

    def advance_durable(self) -> None:
        """The oldest take that is still on its way is on disk."""
        self.durable_index = max(self.durable_index, self._spans.popleft())

    def clone(self) -> LogView:
        """An independent copy."""
        copy: LogView = object.__new__(LogView)
        for name in self.__slots__:
            setattr(copy, name, getattr(self, name))
        copy._tail = self._tail.clone()
        copy._spans = self._spans.copy()
        return copy

    def key(self) -> Hashable:
        """Equal for two views that hold the same entries with the same durability."""
        return (
            self._tail.key(),
            (self.base_index, self.base_term, self._moved_base),
            self.durable_index,
            self._unsaved_index,
            self._truncated_from,
            tuple(self._spans),
        )
