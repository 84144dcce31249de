"""Clients of the simulator that only read, at any node and at every level but ``lease``.

What each has seen it hands in at the level ``timeline``, as the client libraries do.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from replog.testing.nodes import Outcome
from replog.testing.queries import ANY_NODE_LEVELS, Query
from replog.types import LogIndex

if TYPE_CHECKING:
    from replog.testing.cluster import Cluster
    from replog.testing.registers import Workload


class Readers:
    """Some such clients; each waits for its answer before it asks for something else."""

    def __init__(
        self,
        random: Random,
        cluster: Cluster,
        workload: Workload,
        first_client: int,
        ask_chance: float,
    ) -> None:
        """The clients are numbered from ``first_client`` on; who waits for nothing asks in a tick
        with the given chance."""
        self._random = random
        self._cluster = cluster
        self._workload = workload
        self._first_client = first_client
        self._ask_chance = ask_chance
        self._queries: list[Query | None] = [None] * random.choice((0, 0, 1, 3))
        """What each client waits for."""
        self._seen: list[LogIndex] = [0] * len(self._queries)
        """The highest index as of which it has read."""

    def __len__(self) -> int:
        """How many clients there are."""
        return len(self._queries)

    def tick(self, operations_max: int) -> None:
        """Let each client ask any node, at a level that chance decides, unless clients have asked
        for so many commands."""
        random, cluster = self._random, self._cluster
        number = len(cluster.proposals) + 1
        for reader, last in enumerate(self._queries):
            if last is not None:
                if last.outcome is Outcome.PENDING:
                    continue
                self._seen[reader] = max(self._seen[reader], last.index)
            asks, guess = random.random() < self._ask_chance, random.random()
            level = random.choice(ANY_NODE_LEVELS)
            payload = self._workload.draw_query(random, number)
            running = [node_id for node_id, node in cluster.nodes.items() if node.is_running]
            if asks and running and payload and number <= operations_max:
                node_id = running[int(guess * 1000) % len(running)]
                client, seen = self._first_client + reader, self._seen[reader]
                self._queries[reader] = cluster.query(node_id, payload, level, seen, client)
