"""Where in the log each live entry stands: by index, the group that wrote it.  Pure.

A million entries in memory take some 250 MB; where they stand takes 8.  A group is the unit that is
checked, so it is the unit that is read back: the checksum is verified each time, and what a disk
altered meanwhile reaches nobody.

The rules: the last write per index wins, a truncation voids everything at and above its index, and
what is at or below the base is void.  The runs say what is live; what they do not hold is void,
whatever stands in the blocks.
"""

from __future__ import annotations

from array import array
from typing import Final

from replog.runs import Runs
from replog.types import NO_ENTRY, EntryId, EpochNumber, LogIndex, Term

_BLOCK: Final = 4096
"""So many indexes share an array; a hole of any width costs two of them at most."""


class Places:
    """By index, the group that wrote what is live there; and the runs of the log."""

    __slots__ = ("_blocks", "base", "runs")

    def __init__(self) -> None:
        self.base: EntryId = NO_ENTRY
        """Everything up to it is void here: a snapshot holds it."""
        self.runs = Runs()
        self._blocks: dict[int, array[int]] = {}

    def group_of(self, index: LogIndex) -> int:
        """The number of the group that wrote the entry at ``index``, which is live."""
        return self._blocks[index // _BLOCK][index % _BLOCK]

    def reach_of(self, group: int, first: LogIndex, last: LogIndex) -> int:
        """How many indexes from ``first`` on, at most up to ``last``, ``group`` wrote; all of them
        are live, and the first one is its."""
        number, at = divmod(first, _BLOCK)
        here = self._blocks[number][at : at + last - first + 1]
        if here.count(group) == len(here):
            return len(here)
        return next(count for count, other in enumerate(here) if other != group)

    def put(self, first: LogIndex, count: int, epoch: EpochNumber, term: Term, group: int) -> None:
        """A group puts ``count`` entries from ``first`` on."""
        last = first + count - 1
        first = max(first, self.base.index + 1)
        if first > last:
            return
        self.runs.put(first, last, epoch, term)
        blocks = self._blocks
        while first <= last:
            number, at = divmod(first, _BLOCK)
            block = blocks.get(number)
            if block is None:
                block = blocks[number] = array("Q", bytes(8 * _BLOCK))
            fresh = array("Q", (group,)) * (min(last + 1, (number + 1) * _BLOCK) - first)
            block[at : at + len(fresh)] = fresh
            first += len(fresh)

    def truncate(self, from_index: LogIndex) -> None:
        """Void everything at and above ``from_index``."""
        self.runs.truncate(from_index)
        self._forget_blocks()

    def cut(self, base: EntryId) -> None:
        """Void everything up to the base, which never falls."""
        if base.index > self.base.index:
            self.base = base
            self.runs.remove(0, base.index)
            self._forget_blocks()

    def _forget_blocks(self) -> None:
        """Forget the blocks below the first run and above the last."""
        low = self.base.index // _BLOCK
        high = self.runs.last_index // _BLOCK
        for number in [number for number in self._blocks if not low <= number <= high]:
            del self._blocks[number]
