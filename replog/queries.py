"""The queries of one replica: what is read from its own state, and when that is new enough.

A query goes through no log.  At the level ``linearizable`` the engine says up to which index must
be applied (:mod:`replog.reads`), at ``lease`` too, without asking anybody if it can; at
``timeline`` whoever asks says it, and ``stale`` is served as it is; see
:class:`~replog.types.ReadLevel`.

A query that has nothing to tell yet says when to run it again (:class:`~replog.errors.NotYet`): so
the log and the changes of a state machine are followed, a page at a time.

Many that wait on a busy log must not cost a run each for every batch that is applied: all together
are run again ``limits.query_reruns_max`` times in a tick, in turn, and what is left waits for the
next tick.

The linearizable queries of one turn share one read of the engine, which is asked for when all of
them have come (:meth:`Queries.begin`): so a read costs the engine the same, however many wait.

The rules this module keeps: a query is run between two entries, on a state that holds everything up
to its index; every waiter is called exactly once, and never within the call that asked; what waits
is bounded in number (``limits.reads_max``) and in time (``limits.read_wait_ms``).  A query changes
nothing, so one that was not served may be asked again, of any node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Final

from replog.engine import Engine
from replog.errors import (
    BadCommand,
    Compacted,
    FatalError,
    NotYet,
    Overloaded,
    QueryFailed,
    StateMachineError,
    Unavailable,
)
from replog.limits import Limits
from replog.types import LogIndex, ReadIndex, ReadLevel, Waiter

_TOO_LATE: Final = (
    "the query could not be served within limits.read_wait_ms: no leader was heard, or what it "
    "must see is not applied here; ask again, or another node"
)


@dataclass(slots=True)
class Query:
    """One query that has no answer yet."""

    run: Callable[[], object]
    waiter: Waiter
    tick: int
    """When it was asked."""
    is_read: bool = False
    """Whether it was run, and had nothing to tell; then ``result`` is told in the end, ..."""
    result: object = None
    upto: LogIndex = 0
    """... which is as of this index at most, however much was applied since."""


class Queries:
    """What is asked of one replica and not answered yet."""

    __slots__ = (
        "_again",
        "_applied_index",
        "_asked",
        "_due",
        "_engine",
        "_fresh",
        "_last_id",
        "_limits",
        "_now",
        "_open",
        "_reruns_left",
    )

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits
        self._open: dict[int, Query] = {}
        """By id, in the order in which they came."""
        self._fresh: list[int] = []
        """The linearizable ones that came since the engine was last asked."""
        self._asked: dict[int, list[int]] = {}
        """By the id of a read that the engine has not answered: all whose read it is."""
        self._due: list[tuple[LogIndex, list[int]]] = []
        """A heap of those that were not run and whose index is known, with their ids."""
        self._again: list[tuple[LogIndex, int]] = []
        """The same of those that were run and had nothing to tell: the lower its index, the longer
        ago a query was run."""
        self._reruns_left = limits.query_reruns_max
        """How many of those may be run again before the next tick."""
        self._last_id = 0
        self._now = 0
        self._applied_index: LogIndex = 0
        """As of the last time that queries were served."""

    def ask(
        self,
        run: Callable[[], object],
        level: ReadLevel,
        at_least: LogIndex,
        waiter: Waiter,
        now_ns: int | None = None,
    ) -> None:
        """Take a query, which is carried out by ``run()``; see
        :meth:`replog.replica.Replica.query`."""
        if len(self._open) >= self._limits.reads_max:
            raise Overloaded(
                f"{len(self._open)} queries wait, which is limits.reads_max; try again a little "
                "later"
            )
        self._last_id += 1
        self._open[self._last_id] = Query(run, waiter, self._now)
        if level is ReadLevel.LINEARIZABLE:
            self._fresh.append(self._last_id)
        elif level is ReadLevel.LEASE:
            self._asked[self._last_id] = [self._last_id]
            self._engine.read(self._last_id, now_ns)
        else:
            index = at_least if level is ReadLevel.TIMELINE else 0
            heappush(self._due, (index, [self._last_id]))

    def begin(self) -> None:
        """Ask the engine where to read, once for all that have come; must precede its ``ready``.

        Whoever comes later waits for the next time, or it might be answered with what was true
        before it asked.
        """
        if self._fresh:
            fresh, self._fresh = self._fresh, []
            self._asked[fresh[0]] = fresh
            self._engine.read(fresh[0])

    def hear(self, reads: Sequence[ReadIndex]) -> None:
        """The engine says where to read, or that it cannot."""
        for read in reads:
            sharing = self._asked.pop(read.read_id, [])
            if read.index is not None:
                heappush(self._due, (read.index, sharing))
                continue
            for read_id in sharing:
                if (query := self._open.pop(read_id, None)) is not None:
                    refusal = "no leader confirmed in time that it still leads; ask again"
                    query.waiter(0, None, Unavailable(refusal))

    def serve(self, applied_index: LogIndex) -> None:
        """Run what may be run on a state that holds everything up to ``applied_index``."""
        self._applied_index = applied_index
        due, again = self._due, self._again
        while due and due[0][0] <= applied_index:
            _, sharing = heappop(due)
            for read_id in sharing:
                if read_id in self._open:  # else it waited too long
                    self._run(read_id, applied_index)
        while again and again[0][0] <= applied_index and self._reruns_left:
            _, read_id = heappop(again)
            self._reruns_left -= 1
            self._run(read_id, applied_index)

    def _run(self, read_id: int, applied_index: LogIndex) -> None:
        """Run one query.  A :class:`~replog.errors.FatalError` (the machine's disk failed) stops
        the node, and the query is answered with all that wait."""
        query = self._open[read_id]
        result: object = None
        error: Exception | None = None
        try:
            result = query.run()
        except NotYet as nothing:
            # Not before something more is applied, or it would be run without end.
            at_index = max(nothing.at_index, applied_index + 1)
            query.is_read, query.result, query.upto = True, nothing.result, at_index - 1
            heappush(self._again, (at_index, read_id))
            return
        except StateMachineError as declared:
            error = declared
        except (BadCommand, Compacted) as refusal:
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
        """One unit of time has passed: answer what waited too long.

        Queries are to be served behind it, though nothing more be applied: some may be run again
        that could not be before.
        """
        self._now += 1
        self._reruns_left = self._limits.query_reruns_max
        late = self._late_ids()
        if not late:
            return
        queries = [self._open.pop(read_id) for read_id in late]
        self._forget_late()
        for query in queries:
            if query.is_read:
                query.waiter(min(self._applied_index, query.upto), query.result, None)
            else:
                query.waiter(0, None, Unavailable(_TOO_LATE))

    def _forget_late(self) -> None:
        """Keep the ids of those alone that are open, or they might be without bound."""
        still = self._open.__contains__
        self._fresh = [*filter(still, self._fresh)]
        asked = ((read_id, [*filter(still, ids)]) for read_id, ids in self._asked.items())
        self._asked = {read_id: sharing for read_id, sharing in asked if sharing}
        due = ((index, [*filter(still, sharing)]) for index, sharing in self._due)
        self._due = [each for each in due if each[1]]
        self._again = [each for each in self._again if still(each[1])]
        heapify(self._due)
        heapify(self._again)

    def _late_ids(self) -> list[int]:
        """The ids of those whose time is over."""
        follow_tick = self._now - self._limits.follow_ticks_max
        read_tick = self._now - self._limits.read_ticks_max
        found: list[int] = []
        for read_id, query in self._open.items():
            if query.tick > max(follow_tick, read_tick):
                break
            if query.tick <= (follow_tick if query.is_read else read_tick):
                found.append(read_id)
        return found

    def end(self, error: Exception) -> None:
        """The node stops: answer everybody who waits."""
        queries = list(self._open.values())
        self._open.clear()
        self._fresh.clear()
        self._asked.clear()
        self._due.clear()
        self._again.clear()
        for query in queries:
            query.waiter(0, None, error)
