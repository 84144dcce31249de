"""The disk of a test node: a *pending* layer that a crash loses, and a *synced* one that stays.

A node's turn puts a *group* of writes on its way; a sync moves the oldest group to the synced
layer.  The rules this module keeps: a group is durable as a whole or not at all; groups become
durable in the order in which they were issued; the last write per index wins, and a truncation
voids everything at and above its index (the rules of :mod:`replog.storage.protocol`).

Entries are held by index and may have holes, because not every engine writes them without.

At the sync level ``os`` a group counts as synced when the operating system has it.  The end of the
process takes none of these away; a power cut takes all that was not *written back* since, with no
regard to what was said of it.

This layer is also what the real log is judged by: see :mod:`replog.testing.log_disk`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from replog.storage.protocol import Recovered, Write
from replog.storage.replay import Replay
from replog.stored_log import all_entries
from replog.types import NO_NODE, Entry, HardState, LogIndex, record

GROUPS_UNBOUNDED: Final = 1 << 30

_FIRST_STATE: Final = HardState(1, 0, NO_NODE)


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
    is_synced: bool = True
    """Whether a group is synced before it counts (sync level ``always``); else it counts when the
    operating system has it (``os``)."""


def is_same(one: Recovered, other: Recovered) -> bool:
    """Whether two recoveries found the same.

    Who has not voted may have no hard state, or the first one: a log in which something else was
    written has that.
    """
    return (
        (one.hard_state or _FIRST_STATE) == (other.hard_state or _FIRST_STATE)
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
        "_written_back",
        "entries",
        "is_full",
        "is_held",
        "is_refusing",
        "is_synced",
        "pending",
        "room_groups",
        "synced_count",
        "synced_writes_count",
        "unsynced",
        "written_bytes",
        "written_count",
    )

    def __init__(self, recovered: Recovered, is_synced: bool = True) -> None:
        self._synced = _replayed(recovered)
        self._written_back = None if is_synced else _replayed(recovered)
        """What a power cut leaves; ``None``: the synced layer."""
        self.is_synced = is_synced
        """Whether what counts as synced survives a power cut; see :class:`DiskModel`."""
        self.unsynced: deque[Group] = deque()
        """The groups that count and that the operating system alone has, oldest first."""
        self.entries: Mapping[LogIndex, Entry] = self._synced.log.entries
        """Of the synced layer, by index."""
        self.pending: deque[Group] = deque()
        """The groups that are not durable, oldest first."""
        self.written_count = 0
        """How many groups the node issued, in all its runs."""
        self.written_bytes = 0
        """About how many bytes of entries that were."""
        self.synced_count = 0
        """The number of the newest group that is durable."""
        self.synced_writes_count = 0
        """How many writes (one for each Ready that writes) were made durable."""
        self.is_held = False
        """Whether syncs wait for the test that holds them."""
        self.room_groups: int | None = None
        """For how many more groups with entries there is room; ``None``: for any number."""
        self.is_full = False
        """What a storage on this disk says of itself (of a real log, its own word counts)."""
        self.is_refusing = False
        """Whether the oldest pending group found no room, and waits until room was sought."""

    @property
    def stands_still(self) -> bool:
        """Whether nothing becomes durable by itself."""
        return self.is_held or self.is_refusing

    def fill(self, room_groups: int) -> None:
        """Leave room for so many groups with entries; with any left, that is known at once."""
        self.room_groups = room_groups
        self.is_full = room_groups > 0

    def refuses(self, group: Group) -> bool:
        """Whether there is no room for a group; else it takes some."""
        if self.room_groups is None or not any(write.entries for write in group.writes):
            return False
        if self.room_groups == 0:
            self.is_full = True
            return True
        self.room_groups -= 1
        return False

    def make_room(self) -> None:
        """See whether there is room again."""
        if self.room_groups is None:
            self.is_full = False

    @property
    def base_index(self) -> LogIndex:
        """The log in the synced layer begins behind it."""
        return self._synced.log.base.index

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
        self.written_bytes += sum(len(entry.body) for write in writes for entry in write.entries)
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
        if not self.is_synced:
            self.unsynced.append(group)
        return group.writes

    def write_back(self) -> None:
        """Make durable what the operating system has, as it does when it likes, and as every
        recovery does."""
        while self._written_back is not None and self.unsynced:
            for write in self.unsynced.popleft().writes:
                self._written_back.apply(write)

    def cut_power(self) -> Sequence[Group]:
        """Lose what the operating system alone has; returns those groups."""
        lost = list(self.unsynced)
        if self._written_back is not None and lost:
            self._synced = _replayed(self._written_back.recovered())
            self.entries = self._synced.log.entries
            self.synced_count = lost[0].number - 1
            self.unsynced.clear()
        return lost

    def crash(self) -> int:
        """Lose the pending layer; returns how many groups it held."""
        lost = len(self.pending)
        self.pending.clear()
        self.is_full = self.is_refusing = False
        return lost

    def recover(self) -> Recovered:
        """What a restarted node finds: the synced layer, which lives on."""
        return self._synced.recovered()


def _replayed(recovered: Recovered) -> Replay:
    """A layer of its own that holds what was recovered."""
    replay = Replay()
    replay.hard_state = recovered.hard_state
    replay.log.cut(recovered.log.base)
    replay.log.put(all_entries(recovered.log))
    return replay
