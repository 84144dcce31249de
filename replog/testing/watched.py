"""A replica that is watched from outside while the node's own turn drives it.

The turn (:mod:`replog.turns`) is the code under test, so nothing in it reports to the simulator.
What must be judged is seen where the turn meets the replica: what it is told to do, what it was
told of as durable, and what it applies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from replog.engine import Engine
from replog.limits import Limits
from replog.loading import Loaded
from replog.machine import Machine
from replog.replica import Replica
from replog.sessions import Sessions
from replog.types import LogIndex, Ready, SnapshotMeta, Voter, Waiter


class Watcher(Protocol):
    """Is told of what passes between a turn and a replica."""

    def handle_step(self, message: object) -> None:
        """The replica is about to be given a message."""

    def handle_ready(self, ready: Ready) -> None:
        """The replica handed out a Ready; nothing of it is carried out yet."""

    def handle_advanced(self, ready: Ready) -> None:
        """The replica was told that a Ready is durable."""

    def handle_installed(self, last_index: LogIndex) -> None:
        """The machine was filled from a snapshot, and the replica goes on behind it."""

    def handle_apply(self, ready: Ready) -> None:
        """The replica is about to apply what a Ready committed."""

    def handle_offered(self, waiters: Sequence[Waiter]) -> None:
        """Commands are about to be proposed, or refused."""

    def handle_proposed(self, waiters: Sequence[Waiter], first_index: LogIndex) -> None:
        """Commands were proposed, at contiguous indexes."""


class WatchedReplica(Replica):
    """A :class:`~replog.replica.Replica` that tells a watcher what is done with it."""

    __slots__ = ("_watcher",)

    def __init__(
        self,
        engine: Engine,
        machine: Machine,
        limits: Limits,
        loaded: Loaded,
        watcher: Watcher,
        own: Voter,
        is_voter: bool,
    ) -> None:
        super().__init__(
            engine,
            machine,
            limits,
            loaded.sessions,
            loaded.applied_index,
            loaded.time_ms,
            loaded.learners,
            own,
            is_voter,
            loaded.learners_index,
            loaded.highest_term,
        )
        self._watcher = watcher

    def step(self, message: object) -> None:
        """See :class:`~replog.replica.Replica`."""
        self._watcher.handle_step(message)
        super().step(message)

    def install(self, meta: SnapshotMeta, sessions: Sessions) -> None:
        """See :class:`~replog.replica.Replica`."""
        super().install(meta, sessions)
        self._watcher.handle_installed(meta.last.index)

    def ready(self) -> Ready | None:
        """See :class:`~replog.replica.Replica`."""
        ready = super().ready()
        if ready is not None:
            self._watcher.handle_ready(ready)
        return ready

    def advance(self, ready: Ready) -> None:
        """See :class:`~replog.replica.Replica`."""
        self.engine.advance(ready)
        self._watcher.handle_advanced(ready)

    def apply(self, ready: Ready) -> None:
        """See :class:`~replog.replica.Replica`."""
        self._watcher.handle_apply(ready)
        super().apply(ready)

    def propose_batch(
        self, payloads: Sequence[bytes], time_ms: int, waiters: Sequence[Waiter]
    ) -> LogIndex:
        """See :class:`~replog.replica.Replica`."""
        self._watcher.handle_offered(waiters)
        first_index = super().propose_batch(payloads, time_ms, waiters)
        self._watcher.handle_proposed(waiters, first_index)
        return first_index
