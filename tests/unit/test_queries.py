"""The queries of a replica: which wait for what, and that each is answered once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest

from replog.errors import (
    BadCommand,
    NotYet,
    Overloaded,
    QueryFailed,
    StateMachineError,
    StorageFailed,
    Unavailable,
)
from replog.limits import Limits
from replog.queries import Queries
from replog.types import LogIndex, ReadIndex, ReadLevel

LINEARIZABLE, _, TIMELINE, STALE = ReadLevel
LIMITS = Limits(tick_ms=250, read_wait_ms=1000, reads_max=3, query_reruns_max=2)


class Declared(StateMachineError):
    """What the machine declares."""


class Shelf:
    """A machine that answers with what is asked, or fails as it is told."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.applied_index = 0

    def answer(self, payload: bytes) -> object:
        """Note the query."""
        self.asked.append(payload)
        errors = {
            b"declared": Declared("no"),
            b"command": BadCommand("no"),
            b"crash": KeyError(),
            b"disk": StorageFailed("the machine's disk failed"),
        }
        if payload in errors:
            raise errors[payload]
        if payload.startswith(b"not before") and self.applied_index < int(payload[10:]):
            raise NotYet(int(payload[10:]), b"nothing")
        return payload.upper()


class Reading:
    """An engine that notes the reads."""

    def __init__(self) -> None:
        self.read_ids: list[int] = []

    def read(self, read_id: int, now_ns: int | None = None) -> None:
        """Note the read."""
        self.read_ids.append(read_id)


class World:
    """Queries over such an engine and machine, and what became of them."""

    def __init__(self) -> None:
        self.engine, self.machine = Reading(), Shelf()
        self.queries = Queries(self.engine, LIMITS)  # type: ignore[arg-type]
        self.ended: list[tuple[bytes, LogIndex, object, str]] = []

    def ask(
        self, payload: bytes, level: ReadLevel, at_least: LogIndex = 0, *, is_last: bool = True
    ) -> None:
        """Ask, as the last one of a turn or not, and note what comes of it."""

        def end_wait(index: LogIndex, result: object, error: Exception | None) -> None:
            self.ended.append((payload, index, result, type(error).__name__ if error else ""))

        self.queries.ask(partial(self.machine.answer, payload), level, at_least, end_wait)
        if is_last:
            self.queries.begin()

    def hear(self, *reads: ReadIndex) -> None:
        """The engine answers."""
        self.queries.hear(reads)

    def names(self) -> Sequence[bytes]:
        """Which queries ended."""
        return [payload for payload, *_ in self.ended]


def test_linearizable_waits_for_its_index() -> None:
    """A linearizable query is run when the index that the engine named is applied, and not
    before."""
    world = World()
    world.ask(b"a", LINEARIZABLE)
    world.queries.serve(100)
    assert world.ended == []
    world.hear(ReadIndex(world.engine.read_ids[0], 7))
    world.queries.serve(6)
    assert world.machine.asked == []
    world.queries.serve(9)
    assert world.ended == [(b"a", 9, b"A", "")]


def test_queries_of_a_turn_share_a_read() -> None:
    """What is asked for in one turn is one read of the engine; what comes later has one of its own,
    and is not served by the answer to the one before."""
    world = World()
    world.ask(b"a", LINEARIZABLE, is_last=False)
    assert world.engine.read_ids == []
    world.ask(b"b", LINEARIZABLE)
    world.queries.begin()
    (shared,) = world.engine.read_ids
    world.ask(b"c", LINEARIZABLE)
    world.hear(ReadIndex(shared, 7))
    world.queries.serve(9)
    assert world.names() == [b"a", b"b"]
    world.hear(ReadIndex(shared, 7))
    world.queries.serve(9)
    assert world.names() == [b"a", b"b"]
    world.hear(ReadIndex(world.engine.read_ids[1], None))
    assert world.ended[-1] == (b"c", 0, None, "Unavailable")


def test_late_ones_leave_a_shared_read() -> None:
    """Those of a shared read that waited too long are answered, and the others are served; who
    shared it counts no more."""
    world = World()
    world.ask(b"a", LINEARIZABLE, is_last=False)
    world.queries.tick()
    world.ask(b"b", LINEARIZABLE)
    world.ask(b"t", TIMELINE, 7)
    for _ in range(3):
        world.queries.tick()
    assert world.names() == [b"a"]
    assert [*world.queries._asked.values()] == [[2]]
    world.hear(ReadIndex(world.engine.read_ids[0], 5))
    world.queries.serve(5)
    assert world.names() == [b"a", b"b"]
    world.queries.tick()
    assert world.names() == [b"a", b"b", b"t"]
    assert world.queries._due == []


def test_levels_below_ask_no_engine() -> None:
    """The other levels ask nobody: one waits for the index that the client names, the other for
    nothing but the turn."""
    world = World()
    world.ask(b"t", TIMELINE, 5)
    world.ask(b"s", STALE, 5)
    assert world.ended == []
    world.queries.serve(0)
    assert world.names() == [b"s"]
    world.queries.serve(5)
    assert world.names() == [b"s", b"t"]
    assert world.engine.read_ids == []


def test_refused_read_is_not_done() -> None:
    """What the engine does not serve is definitely not done, and is answered once."""
    world = World()
    world.ask(b"a", LINEARIZABLE)
    world.hear(ReadIndex(1, None), ReadIndex(1, None))
    world.queries.serve(9)
    assert [(name, error) for name, _, _, error in world.ended] == [(b"a", Unavailable.__name__)]


@pytest.mark.parametrize(
    ("payload", "index", "error"),
    [(b"declared", 4, Declared), (b"command", 0, BadCommand), (b"crash", 0, QueryFailed)],
    ids=["declared", "command", "crash"],
)
def test_errors_of_the_machine(payload: bytes, index: LogIndex, error: type) -> None:
    """A declared error is a result, as of an index; any other means that nothing was read, and
    stops nobody."""
    world = World()
    world.ask(payload, STALE)
    world.queries.serve(4)
    assert world.ended == [(payload, index, None, error.__name__)]


def test_failed_disk_stops_the_node() -> None:
    """What must stop the node is not made a query's affair; who asked is answered as it stops."""
    world = World()
    world.ask(b"disk", STALE)
    with pytest.raises(StorageFailed):
        world.queries.serve(4)
    assert world.ended == []
    world.queries.end(Unavailable("it stops"))
    assert world.names() == [b"disk"]


def test_waits_end_in_time() -> None:
    """What waited for ``read_wait_ms`` is refused, whatever it waited for, and is not run later."""
    world = World()
    world.ask(b"l", LINEARIZABLE)
    world.ask(b"t", TIMELINE, 1 << 60)
    world.queries.tick()
    world.ask(b"u", TIMELINE, 9)
    for _ in range(3):
        world.queries.tick()
    assert [(name, error) for name, _, _, error in world.ended] == [
        (b"l", Unavailable.__name__),
        (b"t", Unavailable.__name__),
    ]
    world.hear(ReadIndex(1, 3))
    world.queries.serve(9)
    assert world.names() == [b"l", b"t", b"u"]
    assert world.machine.asked == [b"u"]


def test_nothing_to_tell_is_asked_again() -> None:
    """A query that has nothing to tell yet is run when what it waits for is applied, not before,
    and again if it says so again."""
    world = World()
    world.ask(b"not before 7", STALE)
    for index in (3, 4, 6):
        world.machine.applied_index = index
        world.queries.serve(index)
    assert (world.machine.asked, world.ended) == ([b"not before 7"], [])
    world.queries.serve(7)  # the machine, at 6, says the same again
    world.queries.serve(7)
    assert (len(world.machine.asked), world.ended) == (2, [])
    world.machine.applied_index = 8
    world.queries.serve(8)
    assert world.ended == [(b"not before 7", 8, b"NOT BEFORE 7", "")]


def test_nothing_to_tell_is_told_in_time() -> None:
    """A query that had nothing to tell for ``FOLLOW_MS`` says so, as of what is applied then;
    one that could not even be run is refused, after ``read_wait_ms``."""
    world = World()
    world.ask(b"u", TIMELINE, 50)
    world.ask(b"not before 90", STALE)
    world.ask(b"not before 80", LINEARIZABLE)
    world.queries.serve(4)
    world.queries.tick()
    world.queries.serve(5)
    world.queries.tick()
    assert world.ended == [(b"not before 90", 5, b"nothing", "")]
    world.hear(ReadIndex(3, 5))
    world.queries.serve(5)
    world.queries.tick()
    assert world.ended[1:] == [(b"not before 80", 5, b"nothing", "")]
    world.queries.tick()
    assert [(name, error) for name, _, _, error in world.ended[2:]] == [
        (b"u", Unavailable.__name__)
    ]
    world.queries.serve(100)
    assert len(world.ended) == 3


def test_reruns_are_bounded() -> None:
    """However many turns a tick has, what waits is run again ``query_reruns_max`` times in it, all
    together and in turn; the next tick goes on though nothing more is applied, and loses none."""
    world = World()
    for payload in (b"not before 90", b"not before 91", b"not before 92"):
        world.ask(payload, STALE)
    world.queries.serve(89)
    world.machine.asked.clear()
    for index in range(95, 145):
        world.queries.serve(index)  # the machine stays behind, and says "not yet" to each
    assert world.machine.asked == [b"not before 90", b"not before 91"]
    world.machine.applied_index = 144
    world.queries.tick()
    world.queries.serve(144)
    assert world.names() == [b"not before 92", b"not before 90"]


def test_first_run_is_free() -> None:
    """What was never run is run at once, also when nothing may be run again in this tick."""
    world = World()
    world.ask(b"not before 90", STALE)
    for index in range(90, 95):
        world.queries.serve(index)
    assert len(world.machine.asked) == 3
    world.ask(b"a", STALE)
    world.queries.serve(95)
    assert world.names() == [b"a"]


def test_result_is_not_newer_than_its_run() -> None:
    """The answer of a query that was not run since is not as of what was applied since."""
    world = World()
    world.ask(b"not before 4", STALE)
    for index in range(1, 20):
        world.queries.serve(index)
    assert len(world.machine.asked) == 3  # with 3, 4 and 5 applied, for the machine stays behind
    world.queries.tick()
    world.queries._reruns_left = 0
    world.queries.serve(21)
    world.queries.tick()
    assert world.ended == [(b"not before 4", 5, b"nothing", "")]


def test_limit_refuses() -> None:
    """Above ``reads_max`` nothing is taken; room comes with the answers."""
    world = World()
    for payload in (b"a", b"b", b"c"):
        world.ask(payload, LINEARIZABLE)
    with pytest.raises(Overloaded, match="reads_max"):
        world.ask(b"d", STALE)
    world.hear(ReadIndex(2, 1))
    world.queries.serve(1)
    world.ask(b"d", STALE)
    assert world.names() == [b"b"]


def test_end_answers_everybody() -> None:
    """A node that stops answers every query that waits, once."""
    world = World()
    for payload in (b"a", b"b"):
        world.ask(payload, LINEARIZABLE)
    world.hear(ReadIndex(1, 50))
    world.queries.end(Unavailable("it stops"))
    world.queries.serve(100)
    world.hear(ReadIndex(2, 1))
    assert world.names() == [b"a", b"b"]
