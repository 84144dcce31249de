"""The disk of a test node: a *pending* layer that a crash loses, and a *synced* one that stays.

What a Ready asks to be written goes to the pending layer; a sync moves the oldest of it to the
synced layer.  The rules this module keeps: a Ready is durable as a whole or not at all; Readys
become durable in the order in which they were issued, those that write nothing in their turn; the
last write per index wins, and a truncation voids everything at and above its index (the rules of
:mod:`replog.storage.protocol`).

Entries are held by index and may have holes, because not every engine writes them without.
"""

from __future__ import annotations

from collections import deque

from replog.storage.protocol import Recovered
from replog.types import Entry, HardState, LogIndex, Ready


class Pending:
    """One Ready on its way to the disk."""

    __slots__ = ("due", "number", "ready")

    def __init__(self, number: int, ready: Ready, due: int) -> None:
        self.number = number
        """From 1, in the order in which the node's engine issued its Readys."""
        self.ready = ready
        self.due = due
        """The tick at which it will be durable."""


class Disk:
    """The two layers of one node's disk."""

    __slots__ = ("entries", "hard_state", "is_held", "pending", "synced_count", "written_count")

    def __init__(self, recovered: Recovered) -> None:
        self.hard_state: HardState | None = recovered.hard_state
        """Of the synced layer; ``None``: never written."""
        self.entries: dict[LogIndex, Entry] = {entry.index: entry for entry in recovered.entries}
        """Of the synced layer."""
        self.pending: deque[Pending] = deque()
        """The Readys that are not durable, oldest first."""
        self.written_count = 0
        """How many Readys the node issued, in all its runs."""
        self.synced_count = 0
        """The number of the newest Ready that is durable."""
        self.is_held = False
        """Whether syncs wait for the test that holds them."""

    def write(self, ready: Ready, due: int) -> Pending:
        """Put a Ready on its way; it cannot be durable before the ones ahead of it."""
        if self.pending:
            due = max(due, self.pending[-1].due)
        self.written_count += 1
        pending = Pending(self.written_count, ready, due)
        self.pending.append(pending)
        return pending

    def sync_next(self) -> Ready:
        """Make the oldest pending Ready durable and return it."""
        pending = self.pending.popleft()
        assert pending.number > self.synced_count, "Readys become durable in order"
        self.synced_count = pending.number
        ready = pending.ready
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if ready.truncate_from is not None:
            for index in [index for index in self.entries if index >= ready.truncate_from]:
                del self.entries[index]
        for entry in ready.entries:
            self.entries[entry.index] = entry
        return ready

    def crash(self) -> int:
        """Lose the pending layer; returns how many writes it held."""
        lost = sum(1 for pending in self.pending if pending.ready.writes)
        self.pending.clear()
        return lost

    def recover(self) -> Recovered:
        """What a restarted node finds: the synced layer."""
        return Recovered(
            hard_state=self.hard_state,
            entries=tuple(self.entries[index] for index in sorted(self.entries)),
        )
