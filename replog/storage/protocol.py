"""What every storage offers: one atomic write, one sync, and recovery.  The same for every engine.

The rules:

* A :class:`Write` is what one ``Ready`` asks for.  Several of them make one *group*, which is
  written and synced as one and is found again whole or not at all.
* ``encode`` runs on the event loop and does no I/O; ``persist`` blocks and may run in a thread of
  its own.  Groups are persisted in the order in which they were encoded.
* When ``persist`` returns, the group and every earlier one survive a crash (sync level ``always``).
* ``persist`` that fails poisons the storage: what is on disk is unknown (a failed fsync may have
  dropped the pages), so nothing is retried and every later call fails.
* Replay: within and across groups, the last write per index wins; a truncation voids everything at
  and above its index; a base voids everything at and below it, for ever.
* Entries are read back one stretch at a time; nobody has to hold a whole log in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from replog.stored_log import StoredLog
from replog.types import Entry, EntryId, HardState, LogIndex, record


@record
class Write:
    """What one Ready wants durable, all of it or nothing."""

    hard_state: HardState | None
    truncate_from: LogIndex | None
    entries: Sequence[Entry]
    """In place of what was at their indexes, after the truncation."""
    base: EntryId | None = None
    """A durable snapshot holds everything up to here: the log begins behind it.  It comes before
    the truncation and the entries."""


@record
class Recovered:
    """What a storage held when it was opened."""

    hard_state: HardState | None
    """``None`` in a storage that was never written."""
    log: StoredLog


class Storage(Protocol):
    """The durable part of one node; made by a :class:`StoragePlugin`."""

    @property
    def durable(self) -> bool:
        """Whether what was persisted survives a power cut; False is shown wherever it matters."""

    def recover(self) -> Recovered:
        """Read everything; called once, before the first ``encode``.

        Raises :class:`~replog.errors.LogDamaged` for any damage but a torn, unacknowledged tail.
        """

    def encode(self, writes: Sequence[Write]) -> object:
        """One group, to be given to :meth:`persist`, in order.  No I/O."""

    def persist(self, group: object) -> None:
        """Append the group and sync it.  Blocks; raises ``StorageFailed`` and is then poisoned."""

    def close(self) -> None:
        """Release the files; what was not persisted is lost."""
