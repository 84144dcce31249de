"""The nodes of a test cluster: a real replica, a model of its disk, and what was seen of both.

A node may crash and be started again: each start is a *run* with a replica and a machine of its
own, made from what the disk's synced layer holds.  What this module keeps beside the replica is the
driver's own record (what was applied, what role was last seen), which the invariants judge the
replica by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TypeAlias

from replog.envelope import mark_command
from replog.errors import NotDone, OutcomeUnknown
from replog.formation import NOBODY_MET, Formation
from replog.machine import ApplyContext, DumpPage, Machine
from replog.replica import Replica
from replog.storage.protocol import Recovered
from replog.stored_log import HeldLog
from replog.testing.disk import Disk, DiskModel
from replog.testing.log_disk import LogDisk
from replog.testing.network import Flight
from replog.testing.snapshot_disk import SnapshotDisk, made_files
from replog.turns import Turns
from replog.types import Entry, LogIndex, NodeId, Status, Term, TermId, Voter


class Recorder:
    """A machine that only remembers its payloads; the result of each is its index.  A snapshot of
    it is the payloads, one after the other."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        """Remember the payload."""
        self.payloads.append(payload)
        return context.index

    def answer(self, payload: bytes) -> object:
        """The payloads so far, whatever is asked."""
        return tuple(self.payloads)

    def check_payload(self, payload: bytes) -> None:
        """Every payload will do."""

    def dump(self, cursor: bytes, items_max: int) -> DumpPage:
        """The payloads in order; a cursor is the number of those before the page."""
        first = int(cursor or b"0")
        last = first + items_max
        return DumpPage(
            items=tuple(self.payloads[first:last]),
            cursor=b"%d" % last if last < len(self.payloads) else None,
        )

    def freeze(self) -> Iterable[bytes]:
        """See :class:`~replog.machine.ConcurrentMachine`."""
        return [len(payload).to_bytes(4, "big") + payload for payload in self.payloads]

    def restore(self, chunks: Iterable[bytes]) -> None:
        """See :class:`~replog.machine.ConcurrentMachine`."""
        whole, at = b"".join(chunks), 0
        self.payloads = []
        while at < len(whole):
            end = at + 4 + int.from_bytes(whole[at : at + 4], "big")
            self.payloads.append(whole[at + 4 : end])
            at = end


class MachineDisk:
    """What a machine of one node has made durable, through all runs of the node."""

    __slots__ = ("answers", "index", "state", "time_ms")

    def __init__(self) -> None:
        self.index: LogIndex = 0
        self.time_ms = 0
        self.state = b""
        self.answers: dict[LogIndex, bytes] = {}
        """What commands in sessions were answered, of a machine that keeps that."""


class Outcome(Enum):
    """How a proposal ended (see :mod:`replog.errors`)."""

    PENDING = "pending"
    """It did not end yet."""
    DONE = "done"
    """Applied; ``result`` or a declared ``error`` is its replicated outcome."""
    NOT_DONE = "not_done"
    """Definitely not done, now or ever."""
    UNKNOWN = "unknown"
    """Nobody can tell: the node crashed, or lost its leadership."""


Ended: TypeAlias = "Callable[[Proposal, LogIndex, object, Exception | None], None]"
"""Is told how a proposal ended."""


class Proposal:
    """One proposed payload and what became of it."""

    __slots__ = (
        "_ended",
        "answer_index",
        "began",
        "client",
        "ended",
        "error",
        "expected",
        "index",
        "mark",
        "node_id",
        "number",
        "outcome",
        "payload",
        "result",
        "stamp_ms",
        "term",
    )

    def __init__(self, number: int, node_id: NodeId, payload: bytes, ended: Ended) -> None:
        self._ended = ended
        self.number = number
        """From 1, in the order in which the cluster was asked."""
        self.node_id = node_id
        self.payload = payload
        self.client = 0
        """Which client of a simulation asked; 0: none."""
        self.mark: tuple[int, int, int] | None = None
        """The session, the sequence number in it and the lowest one unacknowledged; ``None``: it is
        in no session."""
        self.expected: TermId | None = None
        """In which term alone it is to be done; ``None``: in any."""
        self.began = 0
        """When it was asked for, and ..."""
        self.ended = 0
        """... when its outcome was known (0: not yet), in the order of all such moments."""
        self.index: LogIndex = 0
        """Where it was proposed; 0 if nothing was."""
        self.answer_index: LogIndex = 0
        """Where it was done: in a session, an earlier copy of it may have been."""
        self.term: Term = 0
        """In which term it was proposed."""
        self.stamp_ms = 0
        """What the clock of the node showed then."""
        self.outcome = Outcome.PENDING
        self.result: object = None
        self.error: Exception | None = None

    def end(self, index: LogIndex, result: object, error: Exception | None) -> None:
        """Note the outcome; a :data:`~replog.types.Waiter` ends here."""
        assert self.outcome is Outcome.PENDING, f"proposal {self.number} ended twice"
        self.result, self.error = result, error
        if index > 0:
            assert index == self.index or self.mark, f"proposal {self.number}: another index"
            self.answer_index = index
            self.outcome = Outcome.DONE
        elif isinstance(error, NotDone):
            self.outcome = Outcome.NOT_DONE
        else:
            assert isinstance(error, OutcomeUnknown), f"proposal {self.number} ended without a word"
            self.outcome = Outcome.UNKNOWN

    @property
    def size_bytes(self) -> int:
        """What it counts for in a node that holds it."""
        return len(mark_command(self.payload, self.mark, self.expected))

    def __call__(self, index: LogIndex, result: object, error: Exception | None) -> None:
        """A proposal waits for itself; see :data:`~replog.types.Waiter`."""
        self._ended(self, index, result, error)

    def pairs(self) -> dict[str, object]:
        """What the trace says of the outcome."""
        found: dict[str, object] = {"index": self.index} if self.index else {}
        if self.error is not None:
            is_declared = self.outcome is Outcome.DONE
            found["error" if is_declared else "reason"] = type(self.error).__name__
        return found


class ClusterNode:
    """One node of the cluster through all its runs."""

    __slots__ = (
        "after_sync",
        "applied",
        "birth",
        "clock_ahead_ms",
        "clock_phase",
        "clock_rate",
        "disk",
        "formation",
        "full_run",
        "handed_index",
        "inbox",
        "incarnation",
        "incarnation_wanted",
        "installed_index",
        "is_damaged",
        "is_lost",
        "is_paused",
        "is_up",
        "issued_writes_count",
        "learners_seen",
        "lease_rate",
        "log_disk",
        "lost_entries",
        "lost_index",
        "machine_disk",
        "met",
        "node_id",
        "run",
        "seeks_room",
        "snapshots",
        "status_seen",
        "term_tick",
        "turns",
        "unproposed",
        "wants_turn",
        "was_full",
    )

    def __init__(self, node_id: NodeId, recovered: Recovered, disk_model: DiskModel) -> None:
        self.node_id = node_id
        self.disk = Disk(recovered, disk_model.is_synced)
        self.log_disk: LogDisk | None = None
        """The real log beneath the modelled disk, if there is one."""
        if disk_model.is_real:
            self.log_disk = LogDisk(node_id, is_synced=disk_model.is_synced)
        files = made_files() if self.log_disk is None else self.log_disk.files
        self.snapshots = SnapshotDisk(files)
        """The node's snapshots, which are on files at any rate."""
        self.machine_disk = MachineDisk()
        """What a machine on a disk of its own has made durable."""
        self.run = 0
        """How often the node was started."""
        self.is_up = False
        self.is_paused = False
        """Alive but standing still, as a stopped process: what arrives waits."""
        self.inbox: list[Flight] = []
        """What arrived while the node was paused."""
        self.handed_index: LogIndex = 0
        """How far this run's engine handed out committed entries."""
        self.installed_index: LogIndex = 0
        """Where the last snapshot ends that this run installed; 0: none."""
        self.applied: list[Entry] = []
        """What this run handed to its machine, in order; what the machine was filled with comes
        first, as if it had been handed to it."""
        self.issued_writes_count = 0
        """How many writes the disk will have synced when all that this run asked for is durable."""
        self.after_sync: dict[int, tuple[object, list[int]]] = {}
        """The messages that may not leave yet, by identity, each with the count of writes that must
        be durable before it, for each Ready that holds it."""
        self.unproposed: list[Proposal] = []
        """What was submitted to this run, and neither proposed nor refused."""
        self.wants_turn = False
        """Whether the node asked for another turn."""
        self.was_full = False
        """Whether the disk was full when the node last began a turn, and so knew of it."""
        self.full_run = 0
        """The run in which the disk was full and nothing was written since; 0: none."""
        self.seeks_room = False
        """Whether the current run is to seek room on its disk soon."""
        self.is_damaged = False
        """Whether somebody flipped a bit of the node's log, or a power cut took some of it that
        counted."""
        self.is_lost = False
        """Whether the node takes part no more, for ever: its disk is gone, or not to be trusted."""
        self.lost_entries: Mapping[LogIndex, Entry] = {}
        """What was on a disk that is lost, of a node that takes part no more: the votes that it
        gave stay given, and no quorum will ever be met without them."""
        self.lost_index: LogIndex = 0
        """Up to where a snapshot on that disk reached."""
        self.incarnation = node_id
        """Of the node's directory: a founding voter's is its id."""
        self.incarnation_wanted = node_id
        """The newest that the operator wants to be taken in; another one than its directory's while
        the node runs and is to be replaced."""
        self.birth = 0
        """Of the node's directory; it has another one when its disk was wiped."""
        self.met = NOBODY_MET
        """Whom the directory has met, durably."""
        self.formation: Formation
        """Of the current (or last) run."""
        self.clock_rate = self.lease_rate = 100
        """How many ticks the node's clock makes in 100 of the cluster's; the other is that of the
        clock by which its leases run, which never changes."""
        self.clock_phase = 0
        self.clock_ahead_ms = 0
        """How far the node's clock is ahead of the cluster's time; may be negative."""
        self.term_tick = 0
        """The tick at which the node's term last changed."""

    def start(self, turns: Turns, applied: Sequence[Entry]) -> None:
        """Begin a run; ``applied`` is what its machine is filled with."""
        assert not self.is_up
        self.run += 1
        self.is_up = True
        self.is_paused = self.wants_turn = self.was_full = self.seeks_room = False
        self.applied = list(applied)
        self.handed_index = len(applied)
        self.installed_index = 0
        self.issued_writes_count = self.disk.synced_writes_count
        self.after_sync.clear()
        self.unproposed.clear()
        self.turns = turns
        self.status_seen: Status = self.replica.engine.status()
        """The status after the last event, by which changes are noticed."""
        self.learners_seen: Sequence[Voter] = self.replica.engine.learners
        """Who counted in no quorum then."""

    @property
    def own(self) -> Voter:
        """Which incarnation of which node this is."""
        return Voter(self.node_id, self.incarnation)

    @property
    def is_learner(self) -> bool:
        """Whether the directory is another one than the founding voter's."""
        return self.incarnation != self.node_id

    def incarnation_of(self, node_id: NodeId) -> int:
        """For whom the node's engine took another one, when its status was last seen."""
        for learner in self.learners_seen:
            if learner.node_id == node_id:
                return learner.incarnation
        return node_id

    def renew(self) -> None:
        """Lose the disk, and have an empty one under the incarnation that is wanted."""
        assert self.incarnation_wanted != self.incarnation
        self.wipe(fenced=True)
        self.incarnation = self.incarnation_wanted
        self.is_damaged = self.is_lost = False
        self.run += 1  # so that nothing that was planned for the old directory befalls the new one

    def holds_as_voter(self, entry: Entry) -> bool:
        """Whether the voter's disk holds an entry, or held it when it was lost; what is on the disk
        of a learner counts for nothing."""
        held, base_index = self.lost_entries.get(entry.index), self.lost_index
        if not self.is_learner:
            held = self.disk.entries.get(entry.index) or held
            base_index = max(self.disk.base_index, base_index)
        return entry.index <= base_index or (held is not None and held.body == entry.body)

    def wipe(self, fenced: bool) -> None:
        """Lose the disk; ``fenced``: nobody will take the node for what it was."""
        assert not self.is_up, f"node {self.node_id} runs"
        if fenced and not self.is_learner:
            self.lost_entries = dict(self.disk.entries)
            self.lost_index = self.disk.base_index
        is_synced = self.disk.is_synced
        self.disk = Disk(Recovered(None, HeldLog()), is_synced)
        if self.log_disk is not None:
            self.log_disk = LogDisk(self.node_id, is_synced=is_synced)
        self.snapshots = SnapshotDisk(
            made_files() if self.log_disk is None else self.log_disk.files
        )
        self.machine_disk = MachineDisk()

    def fill_disk(self, room_groups: int, room_bytes: int) -> None:
        """Leave so little room on the disk: for so many groups with entries on a modelled one, and
        for so many bytes in files."""
        if self.log_disk is None:
            self.disk.fill(room_groups)
        files = self.snapshots.files
        files.capacity_bytes = files.used_bytes + room_bytes

    def clear_disk(self) -> None:
        """Let there be any room on the disk; the node finds out when it seeks some."""
        self.disk.room_groups = None
        self.snapshots.files.capacity_bytes = None

    def write_back(self) -> None:
        """Make durable whatever the operating system has of the node's log and files."""
        self.disk.write_back()
        self.snapshots.files.write_back()

    @property
    def is_full(self) -> bool:
        """Whether the node's storage says that it has no room for more entries."""
        return self.disk.is_full if self.log_disk is None else self.log_disk.is_full

    @property
    def base_index(self) -> LogIndex:
        """How far what is durable of the node's past reaches in snapshots alone."""
        return max(self.disk.base_index, self.snapshots.durable_index)

    def disk_entry(self, index: LogIndex) -> Entry | None:
        """What the node's disk holds at an index, in the log or within a snapshot; of the latter
        only the value counts."""
        held = self.disk.entries.get(index)
        if 0 < index <= len(self.applied) and index <= self.base_index:
            applied = self.applied[index - 1]
            if held is None or held.body != applied.body:
                # A snapshot from elsewhere stands for more than the log that it came to.
                return applied
        return held

    def take_ticks(self) -> int:
        """How many ticks the node's clock makes in this one of the cluster."""
        self.clock_phase += self.clock_rate
        ticks, self.clock_phase = divmod(self.clock_phase, 100)
        return ticks

    @property
    def is_running(self) -> bool:
        """Whether the node is up and not paused."""
        return self.is_up and not self.is_paused

    @property
    def is_fetching(self) -> bool:
        """Whether the node is up and fetches a snapshot, or has not made durable yet that its log
        begins behind one."""
        if not self.is_up:
            return False
        snapshots = self.turns.snapshots
        is_arriving = snapshots.transfer.picture.arriving is not None
        return is_arriving or snapshots.is_installing or self.disk.base_index < self.installed_index

    @property
    def replica(self) -> Replica:
        """The replica of the current (or last) run."""
        return self.turns.replica

    @property
    def machine(self) -> Machine:
        """The state machine of the current (or last) run."""
        return self.replica.machine

    @property
    def applied_index(self) -> LogIndex:
        """The index of the last entry that this run applied; 0 if none."""
        return self.applied[-1].index if self.applied else 0
