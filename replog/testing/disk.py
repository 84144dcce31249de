"""The disk of a test node: a *pending* layer that a crash loses, and a *synced* one that stays.

A node's turn puts a *group* of writes on its way; a sync moves the oldest group to the synced
layer.  The rules this module keeps: a group is durable as a whole or not at all; groups become
durable in the order in which they were issued; the last write per index wins, and a truncation
voids everything at and above its index (the rules of :mod:`replog.storage.protocol`).

Entries are held by index and may have holes, because not every engine writes them without.

This layer is also what the real log is judged by: see :mod:`replog.testing.log_disk`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from replog.storage.protocol import Recovered, Write
from replog.storage.replay import Replay
from replog.stored_log import all_entries
from replog.types import Entry, HardState, LogIndex, record

GROUPS_UNBOUNDED: Final = 1 << 30


@record
class DiskModel:
    """How the disks of a cluster behave on a good day."""

    sync_ticks: int = 0
    """How long a group takes to be durable."""
    groups_max: int = GROUPS_UNBOUNDED
    """How many groups may be on their way at a time: a node of a real cluster has one, and an
    engine must bear any number."""
    is_real: bool = False
    """Whether the log's own code is beneath, on files in memory: ``groups_max`` is 1 then."""


def is_same(one: Recovered, other: Recovered) -> bool:
    """Whether two recoveries found the same."""
    return (
        one.hard_state == other.hard_state
        and one.log.base == other.log.base
        and all_entries(one.log) == all_entries(other.log)
    )


class Group:
    """Writes on their way to the disk, durable together."""

    __slots__ = ("data", "due", "number", "writes")

    def __init__(self, number: int, writes: Sequence[Write], due: int) -> None:
        self.number = number
        """From 1, in the order in which the node's turns issued them."""
        self.writes = writes
        self.due = due
        """The tick at which it will be durable."""
        self.data: object = None
        """The group as a real log encodes it, where there is one."""


class Disk:
    """The two layers of one node's disk."""

    __slots__ = (
        "_synced",
        "entries",
        "is_held",
        "pending",
        "synced_count",
        "synced_writes_count",
        "written_count",
    )

    def __init__(self, recovered: Recovered) -> None:
        self._synced = Replay()
        self._synced.hard_state = recovered.hard_state
        self._synced.log.cut(recovered.log.base)
        self._synced.log.put(all_entries(recovered.log))
        self.entries: Mapping[LogIndex, Entry] = self._synced.log.entries
        """Of the synced layer, by index."""
        self.pending: deque[Group] = deque()
        """The groups that are not durable, oldest first."""
        self.written_count = 0
        """How many groups the node issued, in all its runs."""
        self.synced_count = 0
        """The number of the newest group that is durable."""
        self.synced_writes_count = 0
        """How many writes (one for each Ready that writes) were made durable."""
        self.is_held = False
        """Whether syncs wait for the test that holds them."""

    @property
    def hard_state(self) -> HardState | None:
        """Of the synced layer; ``None``: never written."""
        return self._synced.hard_state

    @hard_state.setter
    def hard_state(self, hard_state: HardState | None) -> None:
        self._synced.hard_state = hard_state

    def write(self, writes: Sequence[Write], due: int) -> Group:
        """Put a group on its way; it cannot be durable before the ones ahead of it."""
        if self.pending:
            due = max(due, self.pending[-1].due)
        self.written_count += 1
        group = Group(self.written_count, writes, due)
        self.pending.append(group)
        return group

    def sync_next(self) -> Sequence[Write]:
        """Make the oldest pending group durable and return its writes."""
        group = self.pending.popleft()
        assert group.number > self.synced_count, "groups become durable in order"
        self.synced_count = group.number
        self.synced_writes_count += len(group.writes)
        for write in group.writes:
            self._synced.apply(write)
        return group.writes

    def crash(self) -> int:
        """Lose the pending layer; returns how many groups it held."""
        lost = len(self.pending)
        self.pending.clear()
        return lost

    def recover(self) -> Recovered:
        """What a restarted node finds: the synced layer, which lives on."""
        return self._synced.recovered()
