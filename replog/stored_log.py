"""The log where it is kept, to be read a stretch at a time: what an engine knows of storage.

An engine holds the end of its log in memory; what is older it reads here, when a peer is behind.
It is synchronous: what is read was written a while ago and stands in the page cache mostly, and
whoever asks has a frame to fill.  How long that takes is in
``docs/decisions/0015-old-entries-are-read-back.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from replog.entries import ENTRY_OVERHEAD_BYTES_MAX
from replog.errors import Compacted, InvariantViolated
from replog.runs import Runs
from replog.types import NO_ENTRY, Entry, EntryId, LogIndex


class StoredLog(Protocol):
    """The entries of a log where they are kept, to be read a stretch at a time.

    What was encoded counts, durable or not.
    """

    @property
    def base(self) -> EntryId:
        """The log begins behind it; ``NO_ENTRY``: nothing was ever cut off."""

    @property
    def runs(self) -> Runs:
        """Which entries there are, and of which term; not to be changed."""

    def read(self, first: LogIndex, last: LogIndex, bytes_max: int) -> tuple[Entry, ...]:
        """The entries from ``first`` on, at contiguous indexes, at most up to ``last``, as many as
        fit into ``bytes_max`` as they travel, and one at least.

        Reads from the disk, from the page cache mostly.  Raises
        :class:`~replog.errors.Compacted` where the base is not below ``first``,
        :class:`~replog.errors.LogDamaged` for bytes that are not what was written, and
        :class:`~replog.errors.InvariantViolated` where there never was such an entry.
        """


class HeldLog:
    """A :class:`StoredLog` in memory, whose owner may change it: of a storage that keeps everything
    there, and of tests."""

    __slots__ = ("base", "entries", "runs")

    def __init__(self, entries: Iterable[Entry] = (), base: EntryId = NO_ENTRY) -> None:
        self.base = base
        self.runs = Runs()
        self.entries: dict[LogIndex, Entry] = {}
        """By index."""
        self.put(tuple(entries))

    def put(self, entries: Sequence[Entry]) -> None:
        """Put each entry at its index, above the base; they ascend."""
        base_index = self.base.index
        if entries and entries[0].index <= base_index:
            entries = [entry for entry in entries if entry.index > base_index]
        self.runs.put_entries(entries)
        for entry in entries:
            self.entries[entry.index] = entry

    def truncate(self, from_index: LogIndex) -> None:
        """Void everything at and above ``from_index``."""
        for run in list(self.runs):
            for index in range(max(run.first, from_index), run.last + 1):
                del self.entries[index]
        self.runs.truncate(from_index)

    def cut(self, base: EntryId) -> None:
        """Void everything up to a base, if it is above the one in force."""
        if base.index <= self.base.index:
            return
        self.base = base
        for run in list(self.runs):
            for index in range(run.first, min(run.last, base.index) + 1):
                del self.entries[index]
        self.runs.remove(0, base.index)

    def read(self, first: LogIndex, last: LogIndex, bytes_max: int) -> tuple[Entry, ...]:
        """See :meth:`StoredLog.read`."""
        check_stored(self, first)
        found: list[Entry] = []
        size_bytes = 0
        for index in range(first, last + 1):
            entry = self.entries.get(index)
            if entry is None:
                break
            size_bytes += len(entry.body) + ENTRY_OVERHEAD_BYTES_MAX
            if found and size_bytes > bytes_max:
                break
            found.append(entry)
        return tuple(found)


def all_entries(log: StoredLog) -> tuple[Entry, ...]:
    """Every entry of a log, ascending; for tests and tools, and for logs that fit into memory."""
    found: list[Entry] = []
    for run in log.runs:
        while not found or found[-1].index < run.last:
            first = max(run.first, found[-1].index + 1 if found else 0)
            found += log.read(first, run.last, 1 << 20)
    return tuple(found)


def check_stored(log: StoredLog, index: LogIndex) -> None:
    """Raise unless ``index`` is in a log."""
    if index <= log.base.index:
        raise Compacted(log.base.index + 1)
    if log.runs.at(index) is None:
        raise InvariantViolated(f"entry {index} is asked for, and the log does not hold it")
