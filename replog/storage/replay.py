"""The meaning of a sequence of writes: what holds after all of them, whoever stored them.

The last write per index wins; a truncation voids everything at and above its index; a base voids
everything at and below it.  Every storage replays by these rules: the log on disk keeps where its
entries stand (:mod:`replog.storage.places`), the one in memory the entries themselves.
"""

from __future__ import annotations

from typing import Protocol

from replog.storage.protocol import Recovered, Write
from replog.stored_log import HeldLog
from replog.types import EntryId, HardState, LogIndex


class Sink(Protocol):
    """What the records of a log are told to, in their order."""

    hard_state: HardState | None

    def cut(self, base: EntryId) -> None:
        """Void everything at and below a base."""

    def truncate(self, from_index: LogIndex) -> None:
        """Void everything at and above ``from_index``."""

    def put_packed(self, content: bytes) -> None:
        """Put entries (:func:`replog.entries.pack_entries`), each at its index."""


class Replay:
    """What holds so far, entries and all; its log is live."""

    def __init__(self) -> None:
        self.hard_state: HardState | None = None
        self.log = HeldLog()

    def apply(self, write: Write) -> None:
        """All of one write, in the order of its fields."""
        if write.hard_state is not None:
            self.hard_state = write.hard_state
        if write.base is not None:
            self.log.cut(write.base)
        if write.truncate_from is not None:
            self.log.truncate(write.truncate_from)
        self.log.put(write.entries)

    def recovered(self) -> Recovered:
        """What holds now; there may be holes."""
        return Recovered(self.hard_state, self.log)
