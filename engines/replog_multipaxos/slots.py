"""The acceptor's record of slots: what it accepted where, with holes, and what of it is on disk.

The rules this module keeps:

* A slot holds the entry that was accepted last, with the ballot at which it was accepted; a higher
  ballot overwrites it.  Nothing is ever cut off at the end: within an epoch a vote may be needed.
* ``held`` are the slots whose record is of the promised ballot, ``durable`` those whose record is
  on disk.  A record that is overwritten is neither until the new one is, and a write that was
  overtaken on its way to disk does not count for the record that replaced it.
* Slots up to ``base_index`` were trimmed: all of them were chosen and applied.

Whether an entry may be accepted is the acceptor's affair; this module only stores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Final

from replog.entries import ENTRY_OVERHEAD_BYTES_MAX
from replog.errors import SchemaError
from replog.types import Entry, LogIndex, NodeId, Term
from replog_multipaxos.indexes import IndexSet

HOLE: Final = Entry(0, 0, 0, b"")
"""Stands in a slot in which nothing was accepted; its ballot is below every other."""


SLOTS_AHEAD_MAX: Final = 1 << 22
"""How far above the commit index a slot may be that another node tells of.

Far more than the windows of a leader let it send to a node that does not answer, and than it may
have open; and so few that one message cannot use up the memory: a hole takes one reference.
"""


def check_not_ahead(sender: NodeId, entries: Sequence[Entry], commit_index: LogIndex) -> None:
    """Refuse slots that are too far ahead; raises :class:`~replog.errors.SchemaError`."""
    if entries and entries[-1].index > commit_index + SLOTS_AHEAD_MAX:
        raise SchemaError(
            f"node {sender} tells of slot {entries[-1].index}, more than {SLOTS_AHEAD_MAX} above "
            f"{commit_index}, the last that is known as chosen here"
        )


class Slots:
    """The votes of one acceptor in one epoch, in memory."""

    __slots__ = (
        "_entries",
        "_slice",
        "_slice_span",
        "_spans",
        "_unsaved",
        "_within_asked",
        "_within_bytes",
        "_within_span",
        "base_index",
        "durable",
        "held",
        "last_index",
    )

    def __init__(self, base_index: LogIndex, recovered: Sequence[Entry], ballot: Term) -> None:
        self.base_index = base_index
        """Everything up to here was trimmed."""
        self._entries: list[Entry] = []
        self.last_index = base_index
        """The highest slot with a vote; ``base_index`` if there is none."""
        self.held = IndexSet()
        self.durable = IndexSet()
        self._unsaved = IndexSet()
        self._spans: deque[IndexSet] = deque()
        """What each write that is on its way will make durable."""
        self._forget_slices()
        for entry in recovered:
            self._entries += [HOLE] * (entry.index - self.last_index - 1)
            self._entries.append(entry)
            self.last_index = entry.index
            self.durable.add(entry.index, entry.index)
            if entry.term == ballot:
                self.held.add(entry.index, entry.index)

    def _forget_slices(self) -> None:
        self._slice: tuple[Entry, ...] = ()
        self._slice_span: tuple[LogIndex, LogIndex] = (0, 0)
        self._within_asked = (0, 0, 0)
        self._within_span: tuple[LogIndex, LogIndex] = (0, 0)
        self._within_bytes = 0

    # -- reading --

    def at(self, index: LogIndex) -> Entry:
        """The vote in a slot; :data:`HOLE` where there is none, or none any more."""
        if self.base_index < index <= self.last_index:
            return self._entries[index - self.base_index - 1]
        return HOLE

    @property
    def durable_index(self) -> LogIndex:
        """Every slot up to here has a vote that is on disk."""
        return self.durable.reach(self.base_index + 1)

    def slice(self, first: LogIndex, last: LogIndex) -> tuple[Entry, ...]:
        """The slots from ``first`` to ``last``, both included, among which there is no hole.

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

    def slice_within(
        self, first: LogIndex, last: LogIndex, bytes_max: int
    ) -> tuple[tuple[Entry, ...], int]:
        """The slots from ``first`` to at most ``last`` that fit into ``bytes_max`` as they travel,
        at least one, and how many bytes they take at most; there is no hole among them."""
        asked = (first, last, bytes_max)
        if self._within_asked == asked and self._slice_span == self._within_span:
            return self._slice, self._within_bytes
        offset = self.base_index + 1
        size_bytes = 0
        end = first - 1
        for at in range(first - offset, last - offset + 1):
            entry_bytes = len(self._entries[at].body) + ENTRY_OVERHEAD_BYTES_MAX
            if size_bytes + entry_bytes > bytes_max and end >= first:
                break
            size_bytes += entry_bytes
            end += 1
        entries = self.slice(first, end)
        self._within_asked, self._within_span = asked, (first, end)
        self._within_bytes = size_bytes
        return entries, size_bytes

    def votes_within(self, first: LogIndex, bytes_max: int) -> tuple[tuple[Entry, ...], LogIndex]:
        """The votes from ``first`` on that fit into ``bytes_max``, at least one if there is one,
        without the holes; and the slot up to which that is all, 0 if it is all there is."""
        found: list[Entry] = []
        size_bytes = 0
        for index in range(max(first, self.base_index + 1), self.last_index + 1):
            entry = self._entries[index - self.base_index - 1]
            if entry is HOLE:
                continue
            size_bytes += len(entry.body) + ENTRY_OVERHEAD_BYTES_MAX
            if size_bytes > bytes_max and found:
                return tuple(found), index - 1
            found.append(entry)
        return tuple(found), 0

    def size_bytes(self, first: LogIndex, last: LogIndex) -> int:
        """The bytes of the bodies from ``first`` to ``last``, both included."""
        offset = self.base_index + 1
        return sum([len(entry.body) for entry in self._entries[first - offset : last - offset + 1]])

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
        assert first > self.base_index
        behind = self.last_index + 1
        if first < behind:
            self._void(first, min(last, self.last_index))
            offset = self.base_index + 1
            self._entries[first - offset : last - offset + 1] = entries
        else:
            if first > behind:
                self._entries += [HOLE] * (first - behind)
            self._entries += entries
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
        self._forget_slices()

    def trim(self, upto: LogIndex) -> None:
        """Forget the slots up to ``upto``, which were all chosen and applied."""
        assert self.base_index <= upto <= self.durable_index, "trimmed beyond what is on disk"
        del self._entries[: upto - self.base_index]
        self.base_index = upto
        for indexes in (self.durable, self.held, self._unsaved, *self._spans):
            indexes.remove(0, upto)
        self._forget_slices()

    @property
    def has_unsaved(self) -> bool:
        """Whether the disk has something to be told."""
        return bool(self._unsaved)

    def take_unsaved(self) -> tuple[Entry, ...]:
        """What the disk does not know yet; answered by one :meth:`advance_durable`, in order."""
        ranges = self._unsaved.ranges()
        self._spans.append(self._unsaved)
        self._unsaved = IndexSet()
        if len(ranges) == 1:
            return self.slice(*ranges[0])
        offset = self.base_index + 1
        found: list[Entry] = []
        for first, last in ranges:
            found += self._entries[first - offset : last - offset + 1]
        return tuple(found)

    def advance_durable(self) -> None:
        """The oldest take that is still on its way is on disk."""
        for first, last in self._spans.popleft().ranges():
            self.durable.add(first, last)

    def clone(self) -> Slots:
        """An independent copy."""
        copy = Slots(self.base_index, (), 0)
        copy._entries = self._entries.copy()
        copy.last_index = self.last_index
        copy.held, copy.durable = self.held.clone(), self.durable.clone()
        copy._unsaved = self._unsaved.clone()
        copy._spans = deque(span.clone() for span in self._spans)
        return copy

    def key(self) -> Hashable:
        """Equal for two records that hold the same votes with the same durability."""
        return (
            self.base_index,
            tuple(self._entries),
            self.held.key(),
            self.durable.key(),
            self._unsaved.key(),
            tuple(span.key() for span in self._spans),
        )
