"""A client of a cluster, for trio: it finds the leader, keeps many requests in flight, and never
guesses.

::

    async with replog.Client("127.0.0.1:8001,127.0.0.1:8002,127.0.0.1:8003") as client:
        await client.call(Kv.put, "key", b"value")

Every command ends in exactly one of three outcomes:

* **done**: its result is returned, or raised as :class:`~replog.errors.CommandFailed` when it is an
  error that the state machine declares;
* **definitely not done**: a :class:`~replog.errors.NotDone`.  What another node may do better (a
  node that does not lead) or later (a leader that is overloaded, or whose disk is full) was tried
  again until the deadline;
* **unknown**: :class:`~replog.errors.OutcomeUnknown`, when the connection or the patience ended
  after the command had left and before its reply came.  It is never sent again behind the caller's
  back: it might be done twice.

What is decided, :mod:`replog.client_logic` decides; :mod:`replog.aio` and :mod:`replog.blocking`
are the same client for asyncio and for threads.  This module has the clock, the sockets and the
tasks: one that gives the logic its turns, so that commands of one turn of the event loop leave with
one system call, one for what is due at a time, and one per connection, which reads replies and
wakes the callers directly.

Why not a channel or a lock around the connection: a hop through a channel costs more than
everything else that the client does for a command.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import ParamSpec, TypeVar, cast

import trio

from replog.changes import ChangeCursor, ChangesPage
from replog.client_actions import NEVER, Command, Connect, Line, Send
from replog.client_logic import ClientLogic
from replog.client_session import READ_LOG, ClientSession
from replog.client_surface import (
    DEADLINE_SECONDS,
    CommandOutcome,
    LogCursor,
    NodeDump,
    check_size,
    dump_body,
    log_page_in,
    make_logic,
    outcome_of,
    page_in,
    propose_all,
    reason_of,
    result_of,
    session_of,
    status_in,
    watch_cursor,
)
from replog.config import Config
from replog.errors import BadCommand, Unavailable
from replog.limits import FOLLOW_MS, Limits
from replog.sessions import SessionId
from replog.statemachine import Call
from replog.transport.connection import Connection, connect
from replog.types import Applied, Change, LogEntry, LogIndex, NodeId, ReadLevel
from replog.wakeup import Wakeup

__all__ = ["Client", "NodeDump", "Session"]

P = ParamSpec("P")
R = TypeVar("R")


class _Waiter:
    """A task that waits for commands."""

    __slots__ = ("count", "is_waiting", "task")

    def __init__(self, count: int) -> None:
        self.count = count
        """How many of them have not ended."""
        self.is_waiting = False
        """Whether the task is to be woken: a command may end before it waits."""
        self.task = trio.lowlevel.current_task()


class _Carrier:
    """What carries a line: a connection, as soon as there is one, within a scope of its own."""

    __slots__ = ("connection", "refused_bytes", "scope")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.scope = trio.CancelScope()
        self.refused_bytes = 0
        """Bytes that a connection did not take because it had just ended."""

    @property
    def unsent_bytes(self) -> int:
        """Bytes that were never handed to the kernel."""
        return self.refused_bytes + (self.connection.queued_bytes if self.connection else 0)

    def send(self, data: bytes) -> None:
        """Hand bytes to the kernel, as far as it takes them."""
        assert self.connection is not None, "a line has a connection before anything is sent"
        if not self.connection.queue(data):
            assert self.connection.is_closed, "what the logic lets leave fits into the queue"
            self.refused_bytes += len(data)
        self.connection.flush()

    def close(self) -> None:
        """Close the connection, or give the attempt up."""
        self.scope.cancel()
        if self.connection is not None:
            self.connection.close()


class Client:
    """A client of one cluster, for use in ``async with``; any number of tasks may share it."""

    def __init__(
        self,
        nodes: Config | str | Iterable[str],
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
        cluster_id: str = "",
        limits: Limits | None = None,
    ) -> None:
        """``nodes`` are the client addresses of some nodes of the cluster, which name the others:
        a list, a text with commas, or the cluster's configuration.

        ``deadline_seconds`` is how long a call may take.  ``cluster_id`` makes nodes of any other
        cluster refused (empty: whichever answers first).  ``limits`` are those of the cluster.
        Raises :class:`~replog.errors.AddressError` and :class:`~replog.errors.ConfigError`.
        """
        assert deadline_seconds > 0
        self.deadline_seconds = deadline_seconds
        self._logic: ClientLogic[_Waiter]
        self._logic, self._limits = make_logic(nodes, cluster_id, limits)
        self._carriers: dict[Line[_Waiter], _Carrier] = {}
        self._turn_due = Wakeup()
        self._timer_at = NEVER
        """When the logic is told the time again."""
        self._timer_earlier = Wakeup()
        self._nursery: trio.Nursery | None = None
        self._nursery_block: AbstractAsyncContextManager[trio.Nursery] = trio.open_nursery()

    async def __aenter__(self) -> Client:
        """Start the client; nothing is connected until something is asked for."""
        assert self._nursery is None, "a client is opened once"
        self._nursery = await self._nursery_block.__aenter__()
        self._logic.open()
        self._nursery.start_soon(self._run_turns)
        self._nursery.start_soon(self._run_timer)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Close the connection; whoever still waits gets its outcome, as far as it is known."""
        assert self._nursery is not None
        self._logic.close()
        self._act()
        self._nursery.cancel_scope.cancel()
        try:
            return await self._nursery_block.__aexit__(kind, error, traceback)
        except BaseExceptionGroup as group:
            if group.exceptions == (error,):
                return False  # The block's own error leaves it as it was, not in a group.
            raise

    @property
    def leader_id(self) -> NodeId:
        """The leader as far as is known; ``NO_NODE``: none."""
        return self._logic.search.leader_id

    # -- commands --

    async def call(self, call: Call[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one call of a state machine, ``client.call(Kv.get, "k")``: a command is replicated, a
        query is read, linearizably.

        Raises what :meth:`propose` or :meth:`query` raises, and
        :class:`~replog.errors.BadCommand` for arguments that the call does not take.
        """
        payload = call.encode(*args, **kwargs)
        if call.is_query:
            applied = await self._query(payload, ReadLevel.LINEARIZABLE)
        else:
            applied = await self.propose(payload)
        return cast(R, applied.result)

    async def query(
        self,
        call: Call[..., object],
        /,
        *args: object,
        level: ReadLevel = ReadLevel.LINEARIZABLE,
        at_least: LogIndex | None = None,
        node: NodeId | str | None = None,
        deadline_seconds: float | None = None,
    ) -> Applied:
        """Run a query on the state of a node; its result, and the index as of which it was read.

        ``node`` is an id or an address; ``None`` is the leader.  At the level ``timeline`` the
        node's state holds at least ``at_least``: ``None`` is whatever this client has seen, so that
        its reads never go back.  See ``docs/reads.md``.

        Raises a :class:`~replog.errors.NotDone` when no answer came, so that it can be asked again,
        as :class:`~replog.errors.QueryFailed` and :class:`~replog.errors.BadCommand` for a command;
        and :class:`~replog.errors.CommandFailed` with the error that the query declares.
        """
        if not call.is_query:
            raise BadCommand(f"{call.name} is a command, which goes through the log; call it")
        return await self._query(call.encode(*args), level, at_least, node, deadline_seconds)

    async def propose(self, payload: bytes, *, deadline_seconds: float | None = None) -> Applied:
        """Replicate one command and return its index and result.

        ``deadline_seconds`` of ``None`` is the client's.  Raises a
        :class:`~replog.errors.NotDone` when it was definitely not done,
        :class:`~replog.errors.OutcomeUnknown` when it may have been, and
        :class:`~replog.errors.CommandFailed` when it was and its result is a declared error.  When
        the wait is cancelled, the command may still be done.
        """
        return await self._propose(payload, deadline_seconds, None)

    async def propose_many(
        self, payloads: Iterable[bytes], *, deadline_seconds: float | None = None
    ) -> list[CommandOutcome]:
        """Replicate commands, all in flight together, and return the outcome of each, in order.

        An outcome is what :meth:`propose` returns, or the error that it would raise, as a value:
        whatever happens to one command, the others go on and none is lost.  They are sent in order;
        one that has to be sent again may be applied after later ones.  ``deadline_seconds`` is for
        all together.  Raises :class:`~replog.errors.Unavailable` when the client is not open; when
        the wait is cancelled, each may still be done.
        """
        return await self._propose_many(payloads, deadline_seconds, None)

    async def entries(
        self,
        from_index: LogIndex = 1,
        *,
        follow: bool = True,
        node: NodeId | str | None = None,
    ) -> AsyncIterator[LogEntry]:
        """The commands in the log from ``from_index`` on, in order, none missed and none twice.

        ``follow``: also what is appended later, without end; otherwise up to all that was committed
        before.  ``node`` is an id or an address; ``None`` is the leader.  To go on after an error,
        begin behind the last entry that came.

        Raises :class:`~replog.errors.Compacted` where a snapshot stands for what is asked for, also
        where that overtook whoever reads too slowly, and a :class:`~replog.errors.NotDone` when no
        answer came.
        """
        cursor = LogCursor(from_index, follow, is_any_node=node is None)
        while not cursor.is_at_end:
            applied = await self._read_log(cursor, node)
            for entry in cursor.take(log_page_in(applied.result), applied.index):
                yield entry

    async def _read_log(self, cursor: LogCursor, node: NodeId | str | None) -> Applied:
        def ask(
            logic: ClientLogic[_Waiter], now: float, seconds: float, waiter: _Waiter
        ) -> Command[_Waiter]:
            return logic.read(now, READ_LOG, cursor.body, node, seconds, waiter)

        return result_of(await self._order(ask, self.deadline_seconds + FOLLOW_MS / 1000))

    async def watch(
        self,
        call: Call[..., ChangesPage],
        /,
        *args: object,
        after: LogIndex | None = None,
        node: NodeId | str | None = None,
    ) -> AsyncIterator[Change]:
        """What a state machine changes, one after the other, none missed and none twice:
        ``client.watch(Kv.changes, "prefix", after=index)``.

        ``call`` is a query that gives out pages of changes (``docs/watch.md``), and ``args`` what
        it takes behind its index.  ``after`` is the index of the last change that the caller knows,
        or that as of which it read the state; ``None``: what is changed from the first page on.
        Nodes and errors as of :meth:`entries`, with :class:`~replog.errors.FellBehind` for
        ``Compacted``; to go on after an error, watch from behind the last change that came.
        """
        cursor = watch_cursor(call, args, after, node)
        while True:
            applied = await self._next_changes(cursor, node)
            for change in cursor.take(applied.result, applied.index):
                yield change

    async def _next_changes(self, cursor: ChangeCursor, node: NodeId | str | None) -> Applied:
        seconds = self.deadline_seconds + FOLLOW_MS / 1000
        return await self._query(cursor.payload, cursor.level, cursor.at_least, node, seconds)

    async def open_session(self, *, deadline_seconds: float | None = None) -> Session:
        """Open a session, in which every command is applied once, however often it is sent.

        Raises a :class:`~replog.errors.NotDone`, as :class:`~replog.errors.Overloaded` while the
        cluster has ``limits.sessions_max`` of them.
        """
        return Session(
            self, session_of(await self._order(ClientLogic.open_session, deadline_seconds))
        )

    async def _propose(
        self, payload: bytes, deadline_seconds: float | None, session: ClientSession | None
    ) -> Applied:
        check_size(payload, self._limits)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        seconds = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        command = self._logic.propose(trio.current_time(), payload, seconds, _Waiter(1), session)
        self._turn_due.set()
        await self._wait(command)
        return result_of(command)

    async def _propose_many(
        self,
        payloads: Iterable[bytes],
        deadline_seconds: float | None,
        session: ClientSession | None,
    ) -> list[CommandOutcome]:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        seconds = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        waiter = _Waiter(0)
        asked = propose_all(
            self._logic, self._limits, trio.current_time(), payloads, seconds, waiter, session
        )
        commands = [each for each in asked if isinstance(each, Command)]
        waiter.count = len(commands)
        self._turn_due.set()
        await self._wait(*commands)
        return [outcome_of(each) if isinstance(each, Command) else each for each in asked]

    async def _query(
        self,
        payload: bytes,
        level: ReadLevel,
        at_least: LogIndex | None = None,
        node: NodeId | str | None = None,
        deadline_seconds: float | None = None,
    ) -> Applied:
        check_size(payload, self._limits)

        def ask(
            logic: ClientLogic[_Waiter], now: float, seconds: float, waiter: _Waiter
        ) -> Command[_Waiter]:
            return logic.query(now, payload, level, at_least, node, seconds, waiter)

        return result_of(await self._order(ask, deadline_seconds))

    async def _order(
        self, ask: Callable[..., Command[_Waiter]], deadline_seconds: float | None
    ) -> Command[_Waiter]:
        """Have the leader do something that is no command; it has ended on return."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        seconds = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        command = ask(self._logic, trio.current_time(), seconds, _Waiter(1))
        self._turn_due.set()
        await self._wait(command)
        return command

    def _check_open(self) -> None:
        if not self._logic.is_open:
            raise Unavailable("the client is not open; make calls inside its 'async with' block")

    async def _wait(self, *commands: Command[_Waiter]) -> None:
        """Wait until each of the commands, which have one waiter, has ended."""

        def stop_waiting(_: Callable[[], None]) -> trio.lowlevel.Abort:
            for command in commands:
                self._logic.cancel(command)
            self._act()
            return trio.lowlevel.Abort.SUCCEEDED

        if commands and commands[0].waiter.count:
            commands[0].waiter.is_waiting = True
            await trio.lowlevel.wait_task_rescheduled(stop_waiting)
        else:
            await trio.lowlevel.checkpoint()

    # -- questions to one node --

    async def status(self, node: NodeId | str | None = None) -> Mapping[str, object]:
        """What a node says of itself: role, term, indexes, peers, as names and values.

        ``node`` is an id or an address; ``None`` is whichever node answers first, the leader by
        preference.  Raises :class:`~replog.errors.Unavailable` and
        :class:`~replog.errors.AddressError`.
        """
        return status_in(await self._ask(node, "status", b""))

    async def dump(
        self, cursor: bytes = b"", items_max: int = 1000, *, node: NodeId | str | None = None
    ) -> NodeDump:
        """A page of at most ``items_max`` items of what one node's state machine holds.

        The first page is at ``b""``, every other at the cursor of the page before.  ``node`` is as
        for :meth:`status`, whose errors this raises, and
        :class:`~replog.errors.DumpUnavailable`.
        """
        return page_in(await self._ask(node, "dump", dump_body(cursor, items_max)))

    async def _ask(self, node: NodeId | str | None, verb: str, body: bytes) -> object:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        question = self._logic.ask_node(
            trio.current_time(), verb, body, node, self.deadline_seconds, _Waiter(1)
        )
        self._act()
        await self._wait(question)
        return result_of(question).result

    # -- what the logic decides is done --

    def _act(self) -> None:
        """Do what the logic wants done, see to its next turn, and to the time."""
        while actions := self._logic.take_actions():
            for action in actions:
                if isinstance(action, Command):
                    waiter = action.waiter
                    waiter.count -= 1
                    if not waiter.count and waiter.is_waiting:
                        trio.lowlevel.reschedule(waiter.task)
                elif isinstance(action, Send):
                    carrier = self._carriers[action.line]
                    carrier.send(action.data)
                    self._logic.wrote(action.line, carrier.unsent_bytes)
                elif isinstance(action, Connect):
                    self._connect(action)
                else:
                    self._end_line(action.line)
        if self._logic.is_turn_due:
            self._turn_due.set()
        if self._logic.next_time() < self._timer_at:
            self._timer_earlier.set()

    def _connect(self, action: Connect[_Waiter]) -> None:
        assert self._nursery is not None, "only an open client connects"
        carrier = self._carriers[action.line] = _Carrier()
        self._nursery.start_soon(self._run_line, action, carrier)

    def _end_line(self, line: Line[_Waiter]) -> None:
        """Close what carries a line, and tell the logic what has not left; once for each line."""
        carrier = self._carriers.pop(line, None)
        if carrier is not None:
            carrier.close()
            self._logic.ended(trio.current_time(), line, carrier.unsent_bytes)

    async def _run_turns(self) -> None:
        """Give the logic a turn when one is due: all that was asked since leaves together."""
        while True:
            await self._turn_due.wait()
            self._note_written()
            self._logic.turn(trio.current_time())
            self._act()

    async def _run_timer(self) -> None:
        """Tell the logic the time when it wants to know it."""
        while True:
            self._timer_at = self._logic.next_time()
            with trio.move_on_at(self._timer_at) as scope:
                await self._timer_earlier.wait()
            if scope.cancelled_caught:
                self._timer_at = -NEVER  # What is decided now is looked at above.
                self._note_written()
                self._logic.time_passed(trio.current_time())
                self._act()

    def _note_written(self) -> None:
        for line, carrier in self._carriers.items():
            self._logic.wrote(line, carrier.unsent_bytes)

    async def _run_line(self, action: Connect[_Waiter], carrier: _Carrier) -> None:
        """Connect, and read until the connection ends; the name is looked up anew."""
        line = action.line
        try:
            with carrier.scope:
                carrier.connection = await connect(
                    action.host, action.port, self._limits.client_queue_bytes_max
                )
                self._logic.connected(line)
                self._act()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(carrier.connection.run_writer)
                    await self._run_reader(line, carrier, carrier.connection)
                    nursery.cancel_scope.cancel()
        except OSError as failure:
            self._carriers.pop(line, None)
            self._logic.failed(trio.current_time(), line, reason_of(failure))
        finally:
            self._end_line(line)
            carrier.close()  # Its line may have ended while it connected.
            self._act()

    async def _run_reader(
        self, line: Line[_Waiter], carrier: _Carrier, connection: Connection
    ) -> None:
        """Hand over what arrives; all replies of one read are given out in one go."""
        while data := await connection.receive():
            self._logic.wrote(line, carrier.unsent_bytes)
            self._logic.received(trio.current_time(), line, data)
            self._act()


class Session:
    """Commands that are each applied once, however often they had to be sent; made by
    :meth:`Client.open_session`.

    The client sends a command again until it is answered, to whoever leads, and the answer is that
    of the first time.  So :class:`~replog.errors.OutcomeUnknown` comes at the deadline alone, or
    when the client is closed.  A session that sends nothing for ``limits.session_idle_ms_max`` is
    gone: then a command raises :class:`~replog.errors.SessionExpired`, and was not done.
    """

    def __init__(self, client: Client, session: ClientSession) -> None:
        self._client = client
        self._session = session

    @property
    def session_id(self) -> SessionId:
        """What the cluster calls it."""
        return self._session.session_id

    @property
    def repeated_count(self) -> int:
        """How often a command was sent again although it may have been done."""
        return self._session.repeated_count

    async def call(self, call: Call[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """As :meth:`Client.call`; a command is applied once."""
        if call.is_query:
            return await self._client.call(call, *args, **kwargs)
        applied = await self.propose(call.encode(*args, **kwargs))
        return cast(R, applied.result)

    async def propose(self, payload: bytes, *, deadline_seconds: float | None = None) -> Applied:
        """As :meth:`Client.propose`, applied once."""
        return await self._client._propose(payload, deadline_seconds, self._session)

    async def propose_many(
        self, payloads: Iterable[bytes], *, deadline_seconds: float | None = None
    ) -> list[CommandOutcome]:
        """As :meth:`Client.propose_many`, each applied once, in whatever order."""
        return await self._client._propose_many(payloads, deadline_seconds, self._session)

    async def close(self, *, deadline_seconds: float | None = None) -> None:
        """Have the cluster forget the session; raises a :class:`~replog.errors.NotDone`."""
        ask = partial(ClientLogic.close_session, session=self._session)
        result_of(await self._client._order(ask, deadline_seconds))
