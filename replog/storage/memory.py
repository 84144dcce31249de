"""The storage ``memory``: for tests, trials and measurements.  It promises nothing.

It keeps the contract of :mod:`replog.storage.protocol` within the life of its object, so that it
is a twin of the real log: what was encoded can be read, what was persisted is recovered by a second
``recover``, what was only encoded is not.  With the process everything is lost, so a node must not
start on it twice (:mod:`replog.storage.directory` sees to that).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from replog.storage.plugin import StorageHome
from replog.storage.protocol import Recovered, Storage, Write
from replog.storage.replay import Replay
from replog.stored_log import HeldLog


class MemoryStorage:
    """A log that lives as long as this object."""

    durable = False
    is_full = False
    written_bytes = 0

    def __init__(self) -> None:
        self._persisted = Replay()
        """Of whoever persists, but for ``recover``."""
        self._live = Replay()
        """What can be read: what was encoded counts."""
        self._encoded: deque[tuple[int, Sequence[Write]]] = deque()
        self._encoded_count = 0

    def recover(self) -> Recovered:
        """What was persisted; what was only encoded is forgotten, as by a crash."""
        self._encoded.clear()
        self._live = Replay()
        self._live.hard_state = self._persisted.hard_state
        log = self._persisted.log
        self._live.log = HeldLog((log.entries[index] for index in sorted(log.entries)), log.base)
        return self._live.recovered()

    def encode(self, writes: Sequence[Write]) -> int:
        """A ticket for the writes: nothing has to become bytes in order to stay in memory."""
        self._encoded_count += 1
        ticket = self._encoded_count
        self._encoded.append((ticket, tuple(writes)))
        for write in writes:
            self._live.apply(write)
        return ticket

    def persist(self, group: object) -> None:
        """Apply the writes of the ticket ``group``."""
        ticket, writes = self._encoded[0]
        if group != ticket:
            raise AssertionError("groups are persisted in the order in which they were encoded")
        self._encoded.popleft()
        for write in writes:
            self._persisted.apply(write)

    def make_room(self) -> None:
        """It takes no room on a disk."""

    def close(self) -> None:
        """Nothing is held but memory."""


class MemoryPlugin:
    """The storage ``memory``."""

    name = "memory"
    title = "in memory: not durable, the log is lost with the process"
    durable = False

    def owns(self, name: str) -> bool:
        """See :meth:`~replog.storage.plugin.StoragePlugin.owns`."""
        return False

    def found(self, home: StorageHome) -> None:
        """Nothing to make."""

    def open(self, home: StorageHome) -> Storage:
        """An empty log."""
        return MemoryStorage()


MEMORY: Final = MemoryPlugin()
