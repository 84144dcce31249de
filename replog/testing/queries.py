"""Queries to the nodes of a cluster: what each was asked, what came of it, and what it must see.

The judge of a query knows what every node of the cluster was ever handed to apply, so it needs no
history: a linearizable query must be read as of an index that is not below anything that was
committed, anywhere, when it was asked (I22).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from replog.errors import NotDone
from replog.testing.nodes import Outcome
from replog.types import LogIndex, NodeId, ReadLevel

STRICT_LEVELS: Final = (ReadLevel.LINEARIZABLE, ReadLevel.LEASE)
"""The levels of queries that must be linearizable."""

ANY_NODE_LEVELS: Final = (
    ReadLevel.LINEARIZABLE,
    ReadLevel.LINEARIZABLE,
    ReadLevel.TIMELINE,
    ReadLevel.STALE,
)
"""What simulated clients draw from that ask any node."""

Answered: TypeAlias = "Callable[[Query, LogIndex, object, Exception | None], None]"
"""Is told how a query ended."""


class Query:
    """One query and what became of it."""

    __slots__ = (
        "_answered",
        "at_least",
        "began",
        "client",
        "ended",
        "error",
        "floor",
        "index",
        "is_at_leader",
        "is_by_lease",
        "level",
        "node_id",
        "number",
        "outcome",
        "payload",
        "result",
        "run",
    )

    def __init__(
        self,
        number: int,
        node_id: NodeId,
        run: int,
        payload: bytes,
        level: ReadLevel,
        at_least: LogIndex,
        answered: Answered,
    ) -> None:
        self._answered = answered
        self.number = number
        """From 1, in the order in which the cluster was asked."""
        self.node_id = node_id
        self.run = run
        """In which run of the node it was asked."""
        self.payload = payload
        self.level = level
        self.at_least = at_least
        self.client = 0
        """Which client of a simulation asked; 0: none."""
        self.began = self.ended = 0
        """As of :class:`~replog.testing.nodes.Proposal`."""
        self.floor: LogIndex = 0
        """Up to where entries were committed when it was asked."""
        self.is_at_leader = False
        """Whether the node took itself for the leader then."""
        self.is_by_lease = False
        """Whether the leader's lease ran when it was asked."""
        self.outcome = Outcome.PENDING
        """``UNKNOWN``: the node crashed, and nobody was told anything."""
        self.index: LogIndex = 0
        """As of which it was read."""
        self.result: object = None
        self.error: Exception | None = None

    def __call__(self, index: LogIndex, result: object, error: Exception | None) -> None:
        """A query waits for itself; see :data:`~replog.types.Waiter`."""
        self._answered(self, index, result, error)

    def end(self, index: LogIndex, result: object, error: Exception | None) -> None:
        """Note the outcome."""
        assert self.outcome is Outcome.PENDING, f"query {self.number} ended twice"
        self.index, self.result, self.error = index, result, error
        self.outcome = Outcome.NOT_DONE if isinstance(error, NotDone) else Outcome.DONE

    def problem(self) -> str:
        """What is wrong with the answer; empty if nothing is (I22)."""
        if self.outcome is not Outcome.DONE:
            return ""
        needed = self.floor if self.level in STRICT_LEVELS else 0
        if self.level is ReadLevel.TIMELINE:
            needed = self.at_least
        if self.index >= needed:
            return ""
        return (
            f"I22: q{self.number} ({self.level.value}) was read at node {self.node_id} as of index "
            f"{self.index}, and {needed} was the least that it had to see"
        )

    def pairs(self) -> dict[str, object]:
        """What the trace says of the outcome."""
        found: dict[str, object] = {"index": self.index} if self.index else {}
        if self.error is not None:
            is_declared = self.outcome is Outcome.DONE
            found["error" if is_declared else "reason"] = type(self.error).__name__
        return found
