"""The nodes of a test cluster: a real replica, a model of its disk, and what was seen of both.

A node may crash and be started again: each start is a *run* with a replica and a machine of its
own, made from what the disk's synced layer holds.  What this module keeps beside the replica is the
driver's own record (what was applied, what role was last seen), which the invariants judge the
replica by.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from replog.errors import DumpUnavailable, NotDone, OutcomeUnknown
from replog.machine import ApplyContext, DumpPage, Machine
from replog.replica import Replica
from replog.storage.protocol import Recovered
from replog.testing.disk import Disk
from replog.testing.network import Flight
from replog.types import Entry, LogIndex, NodeId, Status


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
        """The payloads, in one page if they fit."""
        if cursor or len(self.payloads) > items_max:
            raise DumpUnavailable("this machine has a single page; ask for more items")
        return DumpPage(items=tuple(self.payloads), cursor=None)


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


class Proposal:
    """One proposed payload and what became of it."""

    __slots__ = ("error", "index", "node_id", "number", "outcome", "payload", "result")

    def __init__(self, number: int, node_id: NodeId, payload: bytes) -> None:
        self.number = number
        """From 1, in the order in which the cluster was asked."""
        self.node_id = node_id
        self.payload = payload
        self.index: LogIndex = 0
        """Where it was proposed; 0 if nothing was."""
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
        "applied",
        "disk",
        "inbox",
        "is_paused",
        "is_up",
        "node_id",
        "replica",
        "run",
        "status_seen",
        "term_tick",
    )

    def __init__(self, node_id: NodeId, recovered: Recovered) -> None:
        self.node_id = node_id
        self.disk = Disk(recovered)
        self.run = 0
        """How often the node was started."""
        self.is_up = False
        self.is_paused = False
        """Alive but standing still, as a stopped process: what arrives waits."""
        self.inbox: list[Flight] = []
        """What arrived while the node was paused."""
        self.applied: list[Entry] = []
        """What this run handed to its machine, in order."""
        self.term_tick = 0
        """The tick at which the node's term last changed."""

    def start(self, make_replica: Callable[[Recovered], Replica]) -> None:
        """Begin a run from the synced layer."""
        assert not self.is_up
        self.run += 1
        self.is_up = True
        self.is_paused = False
        self.applied = []
        self.replica = make_replica(self.disk.recover())
        self.status_seen: Status = self.replica.engine.status()
        """The status after the last event, by which changes are noticed."""

    def wipe(self) -> None:
        """Lose the disk."""
        assert not self.is_up, f"node {self.node_id} runs"
        self.disk = Disk(Recovered(hard_state=None, entries=()))

    @property
    def is_running(self) -> bool:
        """Whether the node is up and not paused."""
        return self.is_up and not self.is_paused

    @property
    def machine(self) -> Machine:
        """The state machine of the current (or last) run."""
        return self.replica.machine

    @property
    def applied_index(self) -> LogIndex:
        """The index of the last entry that this run applied; 0 if none."""
        return self.applied[-1].index if self.applied else 0
