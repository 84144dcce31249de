"""Virtual time: what is to happen, at which tick, and in which order within a tick.

One heap holds everything that will happen by itself: arrivals, syncs, and the ends of faults.  The
order is total (tick, then priority, then the order of planning), so a run is a function of its
seed.  What was planned and is no longer wanted is not searched for: the act finds that out itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Agenda:
    """The clock of one cluster, and what it will bring."""

    __slots__ = ("_heap", "_planned_count", "now")

    def __init__(self) -> None:
        self.now = 0
        """The current tick."""
        self._heap: list[tuple[int, int, int, Callable[[], object]]] = []
        self._planned_count = 0

    def plan(self, due: int, act: Callable[[], object], priority: int = 0) -> None:
        """Have ``act`` called at tick ``due``; lower priorities come first within a tick."""
        assert due >= self.now, "nothing can be planned for the past"
        self._planned_count += 1
        heapq.heappush(self._heap, (due, priority, self._planned_count, act))

    def take_due(self) -> Callable[[], object] | None:
        """The next act whose tick has come; ``None`` when there is none."""
        if self._heap and self._heap[0][0] <= self.now:
            return heapq.heappop(self._heap)[3]
        return None
