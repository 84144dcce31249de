"""Where the time of a group goes, from its first command to its results, within the leader.

The steps of a node are watched from outside, by wrapping the methods that a group passes through,
so that the node itself pays nothing for a clock that is hardly ever read.  It costs some
microseconds per group and is no measurement of throughput.

A *group* is what is written with one sync.  The times of its stages are counted from the moment at
which its first command was submitted; the disk and the peers work beside each other, so the stages
of the two may come in either order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Final

from replog.node import Node
from replog.replica import Replica
from replog.storage.protocol import Write
from replog.storage.wal import Wal
from replog.sync_thread import SyncThread
from replog.transport.tcp import TcpTransport
from replog.types import LogIndex, Ready, Waiter

ENCODING: Final = "the turn begins: encoding"
HANDED_OVER: Final = "handed to the sync thread"
SENT: Final = "sent to the peers"
SYNC_STARTED: Final = "the sync thread has started"
SYNCED: Final = "synced"
SYNC_TAKEN: Final = "the loop knows of the sync"
ACKNOWLEDGED: Final = "the first peer's answer was taken"
APPLIED: Final = "applied, results handed out"
STAGES: Final = (
    ENCODING,
    HANDED_OVER,
    SENT,
    SYNC_STARTED,
    SYNCED,
    SYNC_TAKEN,
    ACKNOWLEDGED,
    APPLIED,
)


class _Group:
    """The stages of one group."""

    __slots__ = ("began", "count", "last_index", "times")

    def __init__(self, began: float, count: int, last_index: LogIndex) -> None:
        self.began = began
        """When its first command was submitted."""
        self.count = count
        self.last_index = last_index
        self.times: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        """Note the first time that a stage is reached."""
        if stage not in self.times:
            self.times[stage] = perf_counter() - self.began


class Timeline:
    """Watches the one node of this process; make it before the node is opened."""

    def __init__(self) -> None:
        self._groups: list[_Group] = []
        self._open: deque[_Group] = deque()
        """Groups that are not applied yet, oldest first."""
        self._writing: _Group | None = None
        """The group on its way to disk."""
        self._first_submitted = 0.0
        """0: nothing since the last group."""
        self._watch_commands()
        self._watch_disk()
        self._watch_peers()

    def begin(self) -> None:
        """Forget what was seen so far."""
        self._groups = []

    def _begin_group(self, writes: Sequence[Write]) -> None:
        entries = [entry for write in writes for entry in write.entries]
        self._writing = None
        if entries and self._first_submitted:
            self._writing = _Group(self._first_submitted, len(entries), entries[-1].index)
            self._writing.mark(ENCODING)
            self._groups.append(self._writing)
            self._open.append(self._writing)
        self._first_submitted = 0.0

    def _mark_writing(self, stage: str) -> None:
        if self._writing is not None:
            self._writing.mark(stage)

    def _watch_commands(self) -> None:
        submit, apply = Node.submit, Replica.apply

        def watched_submit(node: Node, payload: bytes, waiter: Waiter) -> None:
            if not self._first_submitted:
                self._first_submitted = perf_counter()
            submit(node, payload, waiter)

        def watched_apply(replica: Replica, ready: Ready) -> None:
            apply(replica, ready)
            while self._open and self._open[0].last_index <= replica.applied_index:
                self._open.popleft().mark(APPLIED)

        Node.submit = watched_submit  # type: ignore[assignment,method-assign]
        Replica.apply = watched_apply  # type: ignore[assignment,method-assign]

    def _watch_disk(self) -> None:
        encode, persist = Wal.encode, Wal.persist
        hand_over, take_ended = SyncThread.submit, SyncThread.take_ended

        def watched_encode(wal: Wal, writes: Sequence[Write]) -> object:
            self._begin_group(writes)
            return encode(wal, writes)

        def watched_hand_over(syncs: SyncThread, group: object) -> None:
            self._mark_writing(HANDED_OVER)
            hand_over(syncs, group)

        def watched_persist(wal: Wal, group: bytes) -> None:
            self._mark_writing(SYNC_STARTED)
            persist(wal, group)
            self._mark_writing(SYNCED)

        def watched_take_ended(syncs: SyncThread) -> bool:
            has_ended = take_ended(syncs)
            if has_ended:
                self._mark_writing(SYNC_TAKEN)
            return has_ended

        Wal.encode = watched_encode  # type: ignore[assignment,method-assign]
        Wal.persist = watched_persist  # type: ignore[assignment,method-assign]
        SyncThread.submit = watched_hand_over  # type: ignore[assignment,method-assign]
        SyncThread.take_ended = watched_take_ended  # type: ignore[assignment,method-assign]

    def _watch_peers(self) -> None:
        flush, step = TcpTransport.flush, Replica.step

        def watched_flush(transport: TcpTransport) -> None:
            flush(transport)
            self._mark_writing(SENT)

        def watched_step(replica: Replica, message: object) -> None:
            step(replica, message)
            waiting = [group for group in self._open if ACKNOWLEDGED not in group.times]
            if waiting:
                peers = replica.status().peers
                matched = max((peer.match_index for peer in peers), default=0)
                for group in waiting:
                    if group.last_index <= matched:
                        group.mark(ACKNOWLEDGED)

        TcpTransport.flush = watched_flush  # type: ignore[assignment,method-assign]
        Replica.step = watched_step  # type: ignore[assignment,method-assign]

    def text(self) -> str:
        """The stages in the order of their medians, for people."""
        complete = [group for group in self._groups if len(group.times) == len(STAGES)]
        if not complete:
            return "no group passed through every stage\n"
        medians = {
            stage: median(group.times[stage] for group in complete) * 1e6 for stage in STAGES
        }
        entries = median(group.count for group in complete)
        lines = [
            f"{len(complete)} groups of {entries:g} commands (median); microseconds since the "
            "first command of a group was submitted, medians, and since the line above:"
        ]
        before = 0.0
        for stage, at in sorted(medians.items(), key=lambda item: item[1]):
            lines.append(f"{at:9.0f} {at - before:+8.0f}  {stage}")
            before = at
        return "\n".join(lines) + "\n"
