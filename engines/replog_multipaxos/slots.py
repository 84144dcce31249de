"""The acceptor's record of slots: what it accepted where, with holes, and what of it is on disk.

The rules this module keeps:

* A slot holds the entry that was accepted last, with the ballot at which it was accepted; a higher
  ballot overwrites it.  Nothing is ever cut off at the end: within an epoch a vote may be needed.
* ``held`` are the slots whose record is of the promised ballot, ``durable`` those whose record is
  on disk.  A record that is overwritten is neither until the new one is, and a write that was
  overtaken on its way to disk does not count for the record that replaced it.
* Slots up to ``base_index`` were trimmed: all of them were chosen and applied.
* Slots below ``first_held_index`` are known as chosen, and their votes on disk; they are read back
  to be told, and never written again.

Whether an entry may be accepted is the acceptor's affair; this module only stores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Final

from replog.errors import Compacted
from replog.stored_log import StoredLog
from replog.tail import HOLE, Tail
from replog.types import Entry, EntryId, LogIndex, Term
from replog_multipaxos.indexes import IndexSet

SLOTS_AHEAD_MAX: Final = 1 << 22
"""How far above the commit index a slot may be that is taken in.

So few that one message cannot use up the memory: a hole takes one reference.  A node that lags
further behind what the others have trimmed needs their snapshot before it can vote again.
"""


def is_too_far(entries: Sequence[Entry], commit_index: LogIndex) -> bool:
    """Whether some of the slots are too far ahead to be taken in."""
    return bool(entries) and entries[-1].index > commit_index + SLOTS_AHEAD_MAX


class Slots:
    """The votes of one acceptor in one epoch, in memory."""

    __slots__ = (
        "_moved_base",
        "_spans",
        "_tail",
        "_unsaved",
        "base_index",
        "durable",
        "held",
        "last_index",
    )

    def __init__(
        self,
        base_index: LogIndex,
        log: StoredLog,
        ballot: Term,
        known_index: LogIndex,
        cache_bytes_max: int,
    ) -> None:
        self.base_index: LogIndex = max(base_index, log.base.index)
        """Everything up to here was trimmed."""
        self._moved_base: EntryId | None = None
        """The base, if the disk does not know it yet."""
        self._tail = Tail(log, self.base_index, known_index, cache_bytes_max)
        self.last_index = self._tail.last_index
        """The highest slot with a vote; ``base_index`` if there is none."""
        self.held = IndexSet()
        self.durable = IndexSet()
        self._unsaved = IndexSet()
        self._spans: deque[IndexSet] = deque()
        """What each write that is on its way will make durable."""
        for run in log.runs:
            self.durable.add(run.first, run.last)
            if run.term == ballot:
                self.held.add(run.first, run.last)

    # -- reading --

    def at(self, index: LogIndex) -> Entry:
        """The vote in a slot; :data:`~replog.tail.HOLE` where there is none, or none any more."""
        return self._tail.at(index) if index > self.base_index else HOLE

    @property
    def first_held_index(self) -> LogIndex:
        """The votes in the slots from here on are in memory."""
        return self._tail.first_index

    @property
    def durable_index(self) -> LogIndex:
        """Every slot up to here has a vote that is on disk."""
        return self.durable.reach(self.base_index + 1)

    def slice(self, first: LogIndex, last: LogIndex) -> tuple[Entry, ...]:
        """See :meth:`Tail.slice <replog.tail.Tail.slice>`."""
        assert self.base_index < first
        return self._tail.slice(first, last)

    def slice_within(
        self, first: LogIndex, last: LogIndex, bytes_max: int
    ) -> tuple[tuple[Entry, ...], int]:
        """See :meth:`Tail.slice_within <replog.tail.Tail.slice_within>`."""
        return self._tail.slice_within(first, last, bytes_max)

    def applied(self, first: LogIndex, last: LogIndex, bytes_max: int) -> tuple[Entry, ...]:
        """Those that fit into ``bytes_max``, at least one, for whoever reads the log as a log.

        Below the base the disk may hold other votes than for what a snapshot stands for.
        """
        if first <= self.base_index:
            raise Compacted(self.base_index + 1)
        return self._tail.read_within(first, last, bytes_max)

    def votes_within(self, first: LogIndex, bytes_max: int) -> tuple[tuple[Entry, ...], LogIndex]:
        """See :meth:`Tail.found_within <replog.tail.Tail.found_within>`."""
        return self._tail.found_within(max(first, self.base_index + 1), bytes_max)

    def size_bytes(self, first: LogIndex, last: LogIndex) -> int:
        """See :meth:`Tail.size_bytes <replog.tail.Tail.size_bytes>`."""
        return self._tail.size_bytes(first, last)

    # -- writing --

    def enter_ballot(self) -> None:
        """A higher ballot was promised: nothing is held at it yet."""
        self.held = IndexSet()

    def put(self, entries: Sequence[Entry], held: bool) -> None:
        """Accept each entry in its slot, in place of what was there; they ascend by index.

        ``held``: they are of the promised ballot.
        """
        first, last = entries[0].index, entries[-1].index
        if last - first == len(entries) - 1:
            self._put_run(entries, first, last, held)
            return
        start = 0
        for at in range(1, len(entries) + 1):
            if at == len(entries) or entries[at].index != entries[at - 1].index + 1:
                run = entries[start:at]
                self._put_run(run, run[0].index, run[-1].index, held)
                start = at

    def _put_run(
        self, entries: Sequence[Entry], first: LogIndex, last: LogIndex, held: bool
    ) -> None:
        assert first >= self.first_held_index
        if first <= self.last_index:
            self._void(first, min(last, self.last_index))
        self._tail.put(entries)
        self.last_index = max(self.last_index, last)
        self._unsaved.add(first, last)
        if held:
            self.held.add(first, last)

    def _void(self, first: LogIndex, last: LogIndex) -> None:
        """The records from ``first`` to ``last`` are replaced: what is on disk is not they."""
        self.durable.remove(first, last)
        self.held.remove(first, last)
        for span in self._spans:
            span.remove(first, last)

    def release(self, entries: Sequence[Entry]) -> None:
        """These were handed out to be applied, and need not be held any longer."""
        self._tail.release(entries, self.durable_index)

    def trim(self, base: EntryId) -> None:
        """Forget the slots up to a base, which were all chosen and applied."""
        assert base.index <= self.durable_index, "trimmed beyond what is on disk"
        self.install(base)

    def install(self, base: EntryId) -> None:
        """A snapshot stands for every slot up to a base; nothing behind it goes."""
        assert self.base_index < base.index
        self._tail.trim(base.index)
        self.base_index, self._moved_base = base.index, base
        self.last_index = max(self.last_index, base.index)
        for indexes in (self.durable, self.held, self._unsaved, *self._spans):
            indexes.remove(0, base.index)

    @property
    def has_unsaved(self) -> bool:
        """Whether the disk has something to be told."""
        return bool(self._unsaved) or self._moved_base is not None

    def take_unsaved(self) -> tuple[EntryId | None, tuple[Entry, ...]]:
        """What the disk does not know yet, as (base, entries); answered by one
        :meth:`advance_durable`, in order."""
        base, self._moved_base = self._moved_base, None
        ranges = self._unsaved.ranges()
        self._spans.append(self._unsaved)
        self._unsaved = IndexSet()
        if len(ranges) == 1:
            return base, self.slice(*ranges[0])
        return base, tuple(entry for first, last in ranges for entry in self.slice(first, last))

    def advance_durable(self) -> None:
        """The oldest take that is still on its way is on disk."""
        for first, last in self._spans.popleft().ranges():
            self.durable.add(first, last)

    def clone(self) -> Slots:
        """An independent copy."""
        copy: Slots = object.__new__(Slots)
        copy._tail = self._tail.clone()
        copy.base_index, copy.last_index = self.base_index, self.last_index
        copy._moved_base = self._moved_base
        copy.held, copy.durable = self.held.clone(), self.durable.clone()
        copy._unsaved = self._unsaved.clone()
        copy._spans = deque(span.clone() for span in self._spans)
        return copy

    def key(self) -> Hashable:
        """Equal for two records that hold the same votes with the same durability."""
        return (
            (self.base_index, self._moved_base),
            self._tail.key(),
            self.held.key(),
            self.durable.key(),
            self._unsaved.key(),
            tuple(span.key() for span in self._spans),
        )
