"""A set of log indexes, kept as the ranges that it consists of.

Most of what an acceptor and a leader remember about slots (held at this ballot, on disk, accepted
by a peer, known as chosen) is one long range with a hole now and then.  So a set costs as much as
it has holes, and adding behind the last range costs nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable
from typing import Final, TypeAlias

from replog.types import LogIndex

INDEX_MAX: Final = (1 << 64) - 1
"""The end of a range that goes on for ever."""

Range: TypeAlias = tuple[LogIndex, LogIndex]
"""(first, last), both included."""


class IndexSet:
    """Indexes as ranges that are ascending, disjoint and not adjacent."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._firsts: list[LogIndex] = []
        self._lasts: list[LogIndex] = []
        for first, last in ranges:
            self.add(first, last)

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __contains__(self, index: LogIndex) -> bool:
        at = bisect_right(self._firsts, index) - 1
        return at >= 0 and index <= self._lasts[at]

    @property
    def last(self) -> LogIndex:
        """The highest index; 0 in an empty set."""
        return self._lasts[-1] if self._lasts else 0

    def add(self, first: LogIndex, last: LogIndex) -> None:
        """Add every index from ``first`` to ``last``, both included."""
        assert first <= last
        firsts, lasts = self._firsts, self._lasts
        if not lasts or first > lasts[-1] + 1:
            firsts.append(first)
            lasts.append(last)
            return
        if first >= firsts[-1]:
            if last > lasts[-1]:
                lasts[-1] = last
            return
        start = bisect_left(lasts, first - 1)  # the first range that is reached
        end = bisect_right(firsts, last + 1)  # behind the last one
        if start < end:
            first, last = min(first, firsts[start]), max(last, lasts[end - 1])
        firsts[start:end] = [first]
        lasts[start:end] = [last]

    def remove(self, first: LogIndex, last: LogIndex) -> None:
        """Remove every index from ``first`` to ``last``, both included."""
        firsts, lasts = self._firsts, self._lasts
        start = bisect_left(lasts, first)
        end = bisect_right(firsts, last)
        if start >= end:
            return
        kept: list[Range] = []
        if firsts[start] < first:
            kept.append((firsts[start], first - 1))
        if lasts[end - 1] > last:
            kept.append((last + 1, lasts[end - 1]))
        firsts[start:end] = [low for low, _ in kept]
        lasts[start:end] = [high for _, high in kept]

    def reach(self, index: LogIndex) -> LogIndex:
        """The end of the range that holds ``index``; ``index - 1`` when it is not in the set."""
        firsts = self._firsts
        if not firsts:
            return index - 1
        at = len(firsts) - 1
        if firsts[at] > index:
            at = bisect_right(firsts, index) - 1
        if at < 0 or self._lasts[at] < index:
            return index - 1
        return self._lasts[at]

    def within(self, first: LogIndex, last: LogIndex) -> list[Range]:
        """The ranges between ``first`` and ``last``, both included, clipped to them."""
        if first > last:
            return []
        start = bisect_left(self._lasts, first)
        end = bisect_right(self._firsts, last)
        return [
            (max(first, self._firsts[at]), min(last, self._lasts[at])) for at in range(start, end)
        ]

    def gaps(self, first: LogIndex, last: LogIndex) -> list[Range]:
        """The ranges between ``first`` and ``last``, both included, that are not in the set."""
        found: list[Range] = []
        for low, high in self.within(first, last):
            if low > first:
                found.append((first, low - 1))
            first = high + 1
        if first <= last:
            found.append((first, last))
        return found

    def ranges(self) -> tuple[Range, ...]:
        """All of it."""
        return tuple(zip(self._firsts, self._lasts, strict=True))

    def clone(self) -> IndexSet:
        """An independent copy."""
        copy = IndexSet()
        copy._firsts = self._firsts.copy()
        copy._lasts = self._lasts.copy()
        return copy

    def key(self) -> Hashable:
        """Equal for equal sets."""
        return self.ranges()
