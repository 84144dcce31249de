"""The storage ``memory``: for tests, trials and measurements.  It promises nothing.

It keeps the contract of :mod:`replog.storage.protocol` within the life of its object, so that it
is a twin of the real log: what was persisted is recovered by a second ``recover``, what was only
encoded is not.  With the process everything is lost, so a node must not start on it twice
(:mod:`replog.storage.directory` sees to that).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from replog.storage.plugin import StorageHome
from replog.storage.protocol import Recovered, Storage, Write
from replog.storage.replay import Replay


class MemoryStorage:
    """A log that lives as long as this object."""

    durable = False

    def __init__(self) -> None:
        self._replay = Replay()
        self._encoded: deque[tuple[int, Sequence[Write]]] = deque()
        self._encoded_count = 0

    def recover(self) -> Recovered:
        """What was persisted; what was only encoded is forgotten, as by a crash."""
        self._encoded.clear()
        return self._replay.recovered()

    def encode(self, writes: Sequence[Write]) -> int:
        """A ticket for the writes: nothing has to become bytes in order to stay in memory."""
        self._encoded_count += 1
        ticket = self._encoded_count
        self._encoded.append((ticket, tuple(writes)))
        return ticket

    def persist(self, group: object) -> None:
        """Apply the writes of the ticket ``group``."""
        ticket, writes = self._encoded.popleft()
        if group != ticket:
            raise AssertionError("groups are persisted in the order in which they were encoded")
        for write in writes:
            self._replay.apply(write)

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
