"""The nodes of a test cluster: a real replica, a model of its disk, and what was seen of both.

A node may crash and be started again: each start is a *run* with a replica and a machine of its
own, made from what the disk's synced layer holds.  What this module keeps beside the replica is the
driver's own record (what was applied, what role was last seen), which the invariants judge the
replica by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import TypeAlias

from replog.errors import NotDone, OutcomeUnknown
from replog.machine import ApplyContext, DumpPage, Machine
from replog.replica import Replica
from replog.storage.protocol import Recovered
from replog.stored_log import HeldLog
from replog.testing.disk import Disk
from replog.testing.log_disk import LogDisk
from replog.testing.network import Flight
from replog.turns import Turns
from replog.types import Entry, LogIndex, NodeId, Status, Term


class Recorder:
    """A machine that only remembers its payloads; the result of each is its index."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        """Remember the payload."""
        self.payloads.append(payload)
        return context.index

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
        "began",
        "client",
        "ended",
        "error",
        "index",
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
        self.began = 0
        """When it was asked for, and ..."""
        self.ended = 0
        """... when its outcome was known (0: not yet), in the order of all such moments."""
        self.index: LogIndex = 0
        """Where it was proposed; 0 if nothing was."""
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
            assert index == self.index, f"proposal {self.number} is done at another index"
            self.outcome = Outcome.DONE
        elif isinstance(error, NotDone):
            self.outcome = Outcome.NOT_DONE
        else:
            assert isinstance(error, OutcomeUnknown), f"proposal {self.number} ended without a word"
            self.outcome = Outcome.UNKNOWN

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
        "clock_ahead_ms",
        "clock_phase",
        "clock_rate",
        "disk",
        "handed_index",
        "inbox",
        "is_damaged",
        "is_lost",
        "is_paused",
        "is_up",
        "issued_writes_count",
        "log_disk",
        "lost_entries",
        "node_id",
        "run",
        "status_seen",
        "term_tick",
        "turns",
        "unproposed",
        "wants_turn",
    )

    def __init__(
        self, node_id: NodeId, recovered: Recovered, log_disk: LogDisk | None = None
    ) -> None:
        self.node_id = node_id
        self.disk = Disk(recovered)
        self.log_disk = log_disk
        """The real log beneath the modelled disk, if there is one."""
        self.run = 0
        """How often the node was started."""
        self.is_up = False
        self.is_paused = False
        """Alive but standing still, as a stopped process: what arrives waits."""
        self.inbox: list[Flight] = []
        """What arrived while the node was paused."""
        self.handed_index: LogIndex = 0
        """How far this run's engine handed out committed entries."""
        self.applied: list[Entry] = []
        """What this run handed to its machine, in order."""
        self.issued_writes_count = 0
        """How many writes the disk will have synced when all that this run asked for is durable."""
        self.after_sync: dict[int, tuple[object, list[int]]] = {}
        """The messages that may not leave yet, by identity, each with the count of writes that must
        be durable before it, for each Ready that holds it."""
        self.unproposed: list[Proposal] = []
        """What was submitted to this run, and neither proposed nor refused."""
        self.wants_turn = False
        """Whether the node asked for another turn."""
        self.is_damaged = False
        """Whether somebody flipped a bit of the node's log."""
        self.is_lost = False
        """Whether the node takes part no more, for ever: its disk is gone, or not to be trusted."""
        self.lost_entries: Mapping[LogIndex, Entry] = {}
        """What was on a disk that is lost, of a node that takes part no more: the votes that it
        gave stay given, and no quorum will ever be met without them."""
        self.clock_rate = 100
        """How many ticks the node's clock makes in 100 of the cluster's."""
        self.clock_phase = 0
        self.clock_ahead_ms = 0
        """How far the node's clock is ahead of the cluster's time; may be negative."""
        self.term_tick = 0
        """The tick at which the node's term last changed."""

    def start(self, recovered: Recovered, make_turns: Callable[[Recovered], Turns]) -> None:
        """Begin a run from what was recovered from the disk."""
        assert not self.is_up
        self.run += 1
        self.is_up = True
        self.is_paused = self.wants_turn = False
        self.applied = []
        self.handed_index = 0
        self.issued_writes_count = self.disk.synced_writes_count
        self.after_sync.clear()
        self.unproposed.clear()
        self.turns = make_turns(recovered)
        self.status_seen: Status = self.replica.engine.status()
        """The status after the last event, by which changes are noticed."""

    def wipe(self, fenced: bool) -> None:
        """Lose the disk; ``fenced``: nobody will take the node for what it was."""
        assert not self.is_up, f"node {self.node_id} runs"
        if fenced:
            self.lost_entries = dict(self.disk.entries)
        self.disk = Disk(Recovered(None, HeldLog()))
        if self.log_disk is not None:
            self.log_disk = LogDisk(self.node_id)

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
