"""Simulated readers of the log as a log, each of whom goes on where it was, at whatever node runs.

What is judged (I23): a page holds exactly the commands that are committed between where its reader
was and where it is to go on, as they were proposed; who is told that the log begins later is told
so by a node whose log does; nobody is told of any other fault than that a read was not served; and
a linearizable page is as of an index that is not below anything that was committed when it was
asked for.  So no reader ever misses an entry or gets one twice.

They ask within turns that are taken anyway, and draw from a source of their own: the runs of the
seeds are as they would be without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from random import Random
from typing import Final, cast

from replog.envelope import open_envelope
from replog.errors import Compacted, Overloaded, Unavailable
from replog.testing.checks import Broken
from replog.testing.driver import Driver
from replog.testing.nodes import ClusterNode
from replog.types import Entry, EntryKind, LogIndex, LogPage, NodeId, ReadLevel

ASK_CHANCE: Final = 0.3
"""How likely a follower that waits for nothing is to ask, in a tick, ..."""

WAITS_CHANCE: Final = 0.5
"""... and then to have the node wait where there is nothing yet, ..."""

LINEARIZABLE_CHANCE: Final = 0.3
"""... and to ask for a page that is linearizable."""

READS_MANY: Final = 1000
"""Below so many places for reads nobody is waited for: others would be refused."""


class Follower:
    """One reader, and what it asked."""

    __slots__ = ("next_index", "node_id", "run")

    def __init__(self) -> None:
        self.next_index: LogIndex = 1
        self.node_id: NodeId = 0
        """Who was asked last, ..."""
        self.run = 0
        """... and in which of its runs; 0: that is answered."""


class Followers:
    """All readers of the log of one run; see the module."""

    def __init__(
        self,
        driver: Driver,
        nodes: Mapping[NodeId, ClusterNode],
        random: Random,
        count: int,
        reads_max: int,
    ) -> None:
        self._driver = driver
        self._nodes = nodes
        self._random = random
        self._followers = [Follower() for _ in range(count)]
        self._waits_chance = WAITS_CHANCE if reads_max >= READS_MANY else 0.0

    def tick(self) -> None:
        """Let each reader that waits for nothing ask some node, if it likes."""
        random = self._random
        for follower in self._followers:
            asks, guess = random.random() < ASK_CHANCE, random.random()
            waits = random.random() < self._waits_chance
            is_fresh = random.random() < LINEARIZABLE_CHANCE and self._waits_chance > 0
            if follower.run and self._nodes[follower.node_id].run == follower.run:
                continue  # it waits for an answer; none comes from a run that has ended
            running = [node for node in self._nodes.values() if node.is_running]
            if asks and running:
                level = ReadLevel.LINEARIZABLE if is_fresh else ReadLevel.STALE
                self._ask(follower, running[int(guess * 1000) % len(running)], level, waits)

    def _ask(self, follower: Follower, node: ClusterNode, level: ReadLevel, waits: bool) -> None:
        if node.turns.waits_for:
            return  # it takes no part yet
        if follower.run and follower.node_id == node.node_id:
            self._driver.goals.reach("log_followed_over_a_crash")
        follower.node_id, follower.run = node.node_id, node.run
        floor = len(self._driver.invariants.chosen) if level is ReadLevel.LINEARIZABLE else 0
        hear = partial(self._hear, follower, node, node.run, floor)
        try:
            node.replica.read_log(follower.next_index, level, waits, hear)
        except Overloaded:
            follower.run = 0

    def _hear(
        self,
        follower: Follower,
        node: ClusterNode,
        run: int,
        floor: LogIndex,
        index: LogIndex,
        result: object,
        error: Exception | None,
    ) -> None:
        if follower.run != run or follower.node_id != node.node_id:
            return  # the run has ended, and the reader has asked elsewhere
        follower.run = 0
        if isinstance(error, Compacted):
            self._hear_compacted(follower, node, error.first_available)
        elif error is None:
            self._judge(follower, node, index, cast(LogPage, result))
            if index < floor:
                raise Broken(
                    f"I23: a linearizable page was read at node {node.node_id} as of {index}, and "
                    f"{floor} entries were committed when it was asked for"
                )
        elif not isinstance(error, Unavailable):
            raise Broken(f"I23: node {node.node_id} cannot read its log: {error}")

    def _hear_compacted(
        self, follower: Follower, node: ClusterNode, first_available: LogIndex
    ) -> None:
        base_index = node.replica.engine.status().base_index
        if first_available != base_index + 1 or first_available <= follower.next_index:
            raise Broken(
                f"I23: who reads from {follower.next_index} at node {node.node_id} is told that "
                f"the log begins at {first_available}, and its base is {base_index}"
            )
        self._driver.goals.reach("log_reader_fell_behind")
        follower.next_index = first_available

    def _judge(self, follower: Follower, node: ClusterNode, index: LogIndex, page: LogPage) -> None:
        first, upto = follower.next_index, page.next_index
        chosen = self._driver.invariants.chosen
        due = [
            (entry.index, *open_envelope(entry))
            for entry in map(chosen.get, range(first, upto))
            if isinstance(entry, Entry) and entry.kind == EntryKind.COMMAND
        ]
        found = [(entry.index, entry.time_ms, entry.data) for entry in page.entries]
        if found != due or not first <= upto <= max(first, index + 1):
            raise Broken(
                f"I23: who reads from {first} at node {node.node_id} gets the commands "
                f"{[entry.index for entry in page.entries]} and is to go on at {upto}; the node "
                f"has applied {index}, and the commands there are {[each[0] for each in due]}"
            )
        follower.next_index = upto
