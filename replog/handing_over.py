"""A leader whose disk is full hands over, to one peer after the other; see :mod:`replog.turns`."""

from __future__ import annotations

from typing import Final

from replog.replica import Replica
from replog.types import Role

HAND_OVER_MS: Final = 1000
"""After so long a leader whose disk is full hands over, ..."""
HAND_OVER_DOUBLINGS: Final = 6
"""... and if it leads then, after twice as long, so many times."""


class HandingOver:
    """When one node's leader hands over next, and to whom."""

    __slots__ = ("_count", "_replica", "_tick_ms", "_ticks")

    def __init__(self, replica: Replica, tick_ms: int) -> None:
        self._replica = replica
        self._tick_ms = tick_ms
        self._ticks = 0
        """How long this node leads on a full disk, since it last tried to hand over, ..."""
        self._count = 0
        """... and how often it did since the disk was full."""

    def begin(self) -> None:
        """The disk is full since now, or has room again."""
        self._ticks = self._count = 0

    def tick(self) -> None:
        """One unit of time has passed, and the disk is full."""
        engine = self._replica.engine
        if engine.soft_state.role is not Role.LEADER:
            self._ticks = 0
            return
        self._ticks += 1
        wait_ms = HAND_OVER_MS << min(self._count, HAND_OVER_DOUBLINGS)
        learner_ids = [learner.node_id for learner in engine.learners]
        peers = [peer for peer in engine.status().peers if peer.node_id not in learner_ids]
        if self._ticks * self._tick_ms < wait_ms or not peers:
            return
        furthest = sorted(peers, key=lambda peer: (not peer.recently_active, -peer.match_index))
        to = furthest[self._count % len(furthest)].node_id
        self._ticks = 0
        self._count += 1
        self._replica.transfer(to)
