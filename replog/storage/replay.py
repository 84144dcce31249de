"""The meaning of a sequence of writes: what holds after all of them, whoever stored them.

The last write per index wins; a truncation voids everything at and above its index.  The log on
disk and the one in memory replay by this one definition.
"""

from __future__ import annotations

from collections.abc import Sequence

from replog.storage.protocol import Recovered
from replog.types import Entry, HardState, LogIndex


class Replay:
    """What holds so far."""

    def __init__(self) -> None:
        self.hard_state: HardState | None = None
        self._entries: dict[LogIndex, Entry] = {}
        self._last_index_max: LogIndex = 0
        """No entry lies above it."""

    def truncate(self, from_index: LogIndex) -> None:
        """Void everything at and above ``from_index``."""
        span = self._last_index_max - from_index + 1
        if span <= 0:
            return
        entries = self._entries
        if span <= len(entries):
            for index in range(from_index, self._last_index_max + 1):
                entries.pop(index, None)
        else:  # a gap is wider than the log is long
            self._entries = {at: entry for at, entry in entries.items() if at < from_index}
        self._last_index_max = from_index - 1

    def put(self, entries: Sequence[Entry]) -> None:
        """Put each entry at its index."""
        held = self._entries
        for entry in entries:
            held[entry.index] = entry
        if entries:
            self._last_index_max = max(self._last_index_max, entries[-1].index)

    def recovered(self) -> Recovered:
        """What holds now, ascending by index; there may be gaps."""
        entries = self._entries
        return Recovered(self.hard_state, [entries[index] for index in sorted(entries)])
