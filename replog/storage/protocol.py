"""What every storage offers: one atomic write, one sync, and recovery.  The same for every engine.

The rules:

* A :class:`Write` is what one ``Ready`` asks for.  Several of them make one *group*, which is
  written and synced as one and is found again whole or not at all.
* ``encode`` runs on the event loop and does no I/O; ``persist`` blocks and may run in a thread of
  its own.  Groups are persisted in the order in which they were encoded.
* When ``persist`` returns, the group and every earlier one survive a crash (sync level ``always``).
* ``persist`` that fails poisons the storage: what is on disk is unknown (a failed fsync may have
  dropped the pages), so nothing is retried and every later call fails.
* A disk without room is no such failure.  A full storage says so (``is_full``), and nobody proposes
  or takes in entries for it; what has none goes on in the room that it kept for that.  A group that
  does not fit all the same is refused with :class:`~replog.errors.StorageFull`: nothing of it
  counts, nothing is poisoned, and it is the next group to be persisted, again, when ``make_room``
  has found room.
  Whatever is encoded behind it waits for it: until then no term, vote, promise or acknowledgement
  of this node becomes durable, so it tells of none.  It is as silent as a node on a slow disk, and
  as safe; messages that wait for no sync, heartbeats among them, go on.
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

    @property
    def is_full(self) -> bool:
        """There is no room for more entries at present: a driver proposes nothing and takes in no
        entries until it is False again.  What was on its way then, what an engine writes of its own
        when its node begins to lead, and writes without entries go on.

        Of the event loop, at any time; False before ``recover``.
        """

    @property
    def written_bytes(self) -> int:
        """How many bytes were encoded since ``recover``, by which it is judged when a snapshot is
        due; 0 always: a storage that does not count."""

    def recover(self) -> Recovered:
        """Read everything; called once, before the first ``encode``.

        Raises :class:`~replog.errors.LogDamaged` for any damage but a torn, unacknowledged tail.
        """

    def encode(self, writes: Sequence[Write]) -> object:
        """One group, to be given to :meth:`persist`, in order.  No I/O."""

    def persist(self, group: object) -> None:
        """Append the group and sync it.  Blocks; raises ``StorageFailed`` and is then poisoned.

        Raises ``StorageFull`` where there is no room: then the next group to be persisted is this
        one, as it is.
        """

    def make_room(self) -> None:
        """Try to grow again while ``is_full``, which is False then if that succeeded.

        Blocks; called where ``persist`` is, never beside it, about once a second.  That there is
        no room is no error; anything else poisons, as in ``persist``.
        """

    def close(self) -> None:
        """Release the files; what was not persisted is lost."""
