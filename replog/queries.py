"""The queries of one replica: what is read from its own state, and when that is new enough.

A query goes through no log.  At the level ``linearizable`` the engine says up to which index must
be applied (:mod:`replog.reads`), at ``timeline`` whoever asks says it, and ``stale`` is served as
it is; see :class:`~replog.types.ReadLevel`.

The rules this module keeps: a query is run between two entries, on a state that holds everything up
to its index; every waiter is called exactly once, and never within the call that asked; what waits
is bounded in number (``limits.reads_max``) and in time (``limits.read_wait_ms``).  A query changes
nothing, so one that was not served may be asked again, of any node.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from replog.engine import Engine
from replog.errors import (
    BadCommand,
    FatalError,
    Overloaded,
    QueryFailed,
    StateMachineError,
    Unavailable,
)
from replog.limits import Limits
from replog.machine import Machine
from replog.types import LogIndex, ReadIndex, ReadLevel, Waiter, record


@record
class Query:
    """One query that has no answer yet."""

    payload: bytes
    waiter: Waiter
    tick: int
    """When it was asked."""


class Queries:
    """What is asked of one replica and not answered yet."""

    __slots__ = ("_due", "_engine", "_last_id", "_limits", "_machine", "_now", "_open")

    def __init__(self, engine: Engine, machine: Machine, limits: Limits) -> None:
        self._engine = engine
        self._machine = machine
        self._limits = limits
        self._open: dict[int, Query] = {}
        """By id, in the order in which they came."""
        self._due: list[tuple[LogIndex, int]] = []
        """A heap of those whose index is known, with their ids."""
        self._last_id = 0
        self._now = 0

    def ask(self, payload: bytes, level: ReadLevel, at_least: LogIndex, waiter: Waiter) -> None:
        """Take a query; see :meth:`replog.replica.Replica.query`."""
        if len(self._open) >= self._limits.reads_max:
            raise Overloaded(
                f"{len(self._open)} queries wait, which is limits.reads_max; try again a little "
                "later"
            )
        self._last_id += 1
        self._open[self._last_id] = Query(payload, waiter, self._now)
        if level is ReadLevel.LINEARIZABLE:
            self._engine.read(self._last_id)
        else:
            index = at_least if level is ReadLevel.TIMELINE else 0
            heappush(self._due, (index, self._last_id))

    def hear(self, reads: Sequence[ReadIndex]) -> None:
        """The engine says where to read, or that it cannot."""
        for read in reads:
            if read.index is not None:
                heappush(self._due, (read.index, read.read_id))
            elif (query := self._open.pop(read.read_id, None)) is not None:
                refusal = "no leader confirmed in time that it still leads; ask again"
                query.waiter(0, None, Unavailable(refusal))

    def serve(self, applied_index: LogIndex) -> None:
        """Run what may be run on a state that holds everything up to ``applied_index``."""
        due = self._due
        while due and due[0][0] <= applied_index:
            _, read_id = heappop(due)
            if read_id in self._open:  # else it waited too long
                self._run(read_id, applied_index)

    def _run(self, read_id: int, applied_index: LogIndex) -> None:
        """Run one query.  A :class:`~replog.errors.FatalError` (the machine's disk failed) stops
        the node, and the query is answered with all that wait."""
        query = self._open[read_id]
        result: object = None
        error: Exception | None = None
        try:
            result = self._machine.answer(query.payload)
        except StateMachineError as declared:
            error = declared
        except BadCommand as refusal:
            applied_index, error = 0, refusal
        except FatalError:
            raise
        except Exception as crash:
            # Nothing was changed, and no other replica ran it: no reason to stop the node.
            sentence = f"the query raised {type(crash).__name__}: {crash}; mend the state machine"
            applied_index, error = 0, QueryFailed(sentence)
        del self._open[read_id]
        query.waiter(applied_index, result, error)

    def tick(self) -> None:
        """One unit of time has passed: refuse what waited too long."""
        self._now += 1
        last_tick = self._now - self._limits.read_ticks_max
        late = self._first_ids(last_tick)
        if not late:
            return
        queries = [self._open.pop(read_id) for read_id in late]
        self._due = [each for each in self._due if each[1] in self._open]
        heapify(self._due)
        for query in queries:
            query.waiter(
                0,
                None,
                Unavailable(
                    "the query could not be served within limits.read_wait_ms: no leader was "
                    "heard, or what it must see is not applied here; ask again, or another node"
                ),
            )

    def _first_ids(self, last_tick: int) -> list[int]:
        """The ids of those that were asked up to a tick."""
        found: list[int] = []
        for read_id, query in self._open.items():
            if query.tick > last_tick:
                break
            found.append(read_id)
        return found

    def end(self, error: Exception) -> None:
        """The node stops: answer everybody who waits."""
        queries = list(self._open.values())
        self._open.clear()
        self._due.clear()
        for query in queries:
            query.waiter(0, None, error)
