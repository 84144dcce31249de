"""A client of a cluster, for asyncio.

::

    async with replog.aio.Client("127.0.0.1:8001,127.0.0.1:8002,127.0.0.1:8003") as client:
        await client.call(Kv.put, "key", b"value")

It is :class:`replog.Client` with another loop beneath: the same three outcomes, the same search for
the leader, the same limits, all of which :mod:`replog.client_logic` decides.  Nothing here, or
imported from here, needs trio.

Commands of one turn of the loop leave with one ``write``; replies are given out where they arrive,
in the callback of the transport.  Protocols and not streams: a stream costs a task switch and a
copy for each read.

The transport is given no more than a piece at a time, and the next one when that has left.  For
when a connection breaks, a transport forgets what it had not sent: then the commands of that piece
are unknown, and all that came behind it is known not to have left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Final, ParamSpec, TypeVar, cast

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
from replog.types import Applied, Change, LogEntry, LogIndex, NodeId, ReadLevel

__all__ = ["Client", "CommandOutcome", "NodeDump", "Session"]

P = ParamSpec("P")
R = TypeVar("R")

_PIECE_BYTES: Final = 256 * 1024
"""What a transport is given at a time."""

_NEXT_ADDRESS_SECONDS: Final = 0.25
"""How long one address of a name may be silent before the next is tried beside it (RFC 8305)."""


class _Waiter:
    """A task that waits for commands."""

    __slots__ = ("count", "future")

    def __init__(self, count: int, future: asyncio.Future[None]) -> None:
        self.count = count
        """How many of them have not ended."""
        self.future = future


class _Carrier(asyncio.Protocol):
    """What carries a line: the attempt to connect, then a transport."""

    def __init__(self, client: Client, line: Line[_Waiter]) -> None:
        self._client = client
        self._line = line
        self._transport: asyncio.Transport | None = None
        self._backlog = bytearray()
        """What waits until the transport has sent what it was given."""
        self._is_blocked = False
        self._attempt: asyncio.Task[None] | None = None
        self.ended: asyncio.Future[None] = client._loop.create_future()
        """Done when nothing is left of it."""

    @property
    def unsent_bytes(self) -> int:
        """Bytes that were never handed to the kernel; without what a transport had that broke."""
        if self._transport is None or self._transport.is_closing():
            return len(self._backlog)
        return len(self._backlog) + self._transport.get_write_buffer_size()

    def send(self, data: bytes) -> None:
        """Hand bytes to the transport, or remember them until it takes more."""
        assert self._transport is not None, "a line has a connection before anything is sent"
        is_free = not (self._is_blocked or self._backlog or self._transport.is_closing())
        if is_free and len(data) <= _PIECE_BYTES:
            self._transport.write(data)
        else:
            self._backlog += data
            self._send_backlog()

    def _send_backlog(self) -> None:
        assert self._transport is not None, "a line has a connection before anything is sent"
        while self._backlog and not self._is_blocked and not self._transport.is_closing():
            piece = bytes(self._backlog[:_PIECE_BYTES])
            del self._backlog[:_PIECE_BYTES]
            self._transport.write(piece)

    def close(self) -> None:
        """Close the connection, or give the attempt up."""
        if self._transport is not None:
            self._transport.abort()
        elif self._attempt is not None:
            self._attempt.cancel()

    def begin(self, host: str, port: int) -> None:
        """Try to connect; the name is looked up anew."""
        self._attempt = self._client._loop.create_task(self._connect(host, port))
        # A task that is cancelled before it has begun runs no line of its own.
        self._attempt.add_done_callback(self._end_attempt)

    async def _connect(self, host: str, port: int) -> None:
        client = self._client
        try:
            await client._loop.create_connection(
                lambda: self, host, port, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS
            )
        except OSError as failure:
            client._note_failed(self._line, reason_of(failure))

    def _end_attempt(self, attempt: asyncio.Task[None]) -> None:
        if self._transport is None:
            self.ended.set_result(None)
        if not attempt.cancelled():
            attempt.result()

    # -- what the transport calls --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """There is a connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)
        if not self._client._note_connected(self._line):
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        self._client._note_received(self._line, data)

    def pause_writing(self) -> None:
        """The kernel did not take all of it."""
        self._is_blocked = True

    def resume_writing(self) -> None:
        """All of it has left."""
        self._is_blocked = False
        self._send_backlog()
        self._client._note_written(self._line, self.unsent_bytes)

    def eof_received(self) -> None:
        """The node sends nothing more, so nothing more is sent to it."""
        self._client._end_line(self._line)
        self._client._act()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended, whoever ended it."""
        self._client._end_line(self._line)
        self._client._act()
        self.ended.set_result(None)


class Client:
    """A client of one cluster, for use in ``async with``; any number of tasks of one event loop may
    share it."""

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
        self._begun: dict[asyncio.Future[None], None] = {}
        """One for each carrier of which something is left, also when its line has ended."""
        self._is_turn_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._is_entered = False

    async def __aenter__(self) -> Client:
        """Start the client; nothing is connected until something is asked for."""
        assert not self._is_entered, "a client is opened once"
        self._is_entered = True
        self._loop = asyncio.get_running_loop()
        self._logic.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection; whoever still waits gets its outcome, as far as it is known."""
        self._logic.close()
        self._act()
        if self._timer is not None:
            self._timer.cancel()
        if self._begun:
            await asyncio.wait(self._begun)

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
        the task is cancelled, the command may still be done.
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
        the task is cancelled, each may still be done.
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
        """As :meth:`replog.Client.watch`."""
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
        self._check_open()
        seconds = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        waiter = _Waiter(1, self._loop.create_future())
        command = self._logic.propose(self._loop.time(), payload, seconds, waiter, session)
        self._schedule_turn()
        await self._wait(waiter, command)
        return result_of(command)

    async def _propose_many(
        self,
        payloads: Iterable[bytes],
        deadline_seconds: float | None,
        session: ClientSession | None,
    ) -> list[CommandOutcome]:
        self._check_open()
        seconds = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        waiter = _Waiter(0, self._loop.create_future())
        asked = propose_all(
            self._logic, self._limits, self._loop.time(), payloads, seconds, waiter, session
        )
        commands = [each for each in asked if isinstance(each, Command)]
        waiter.count = len(commands)
        self._schedule_turn()
        if commands:
            await self._wait(waiter, *commands)
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
        self._check_open()
        seconds = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        waiter = _Waiter(1, self._loop.create_future())
        command = ask(self._logic, self._loop.time(), seconds, waiter)
        self._schedule_turn()
        await self._wait(waiter, command)
        return command

    def _check_open(self) -> None:
        if not self._logic.is_open:
            raise Unavailable("the client is not open; make calls inside its 'async with' block")

    async def _wait(self, waiter: _Waiter, *commands: Command[_Waiter]) -> None:
        """Wait until each of the commands of this waiter has ended."""
        try:
            await waiter.future
        except asyncio.CancelledError:
            for command in commands:
                self._logic.cancel(command)
            self._act()
            raise

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
        self._check_open()
        waiter = _Waiter(1, self._loop.create_future())
        question = self._logic.ask_node(
            self._loop.time(), verb, body, node, self.deadline_seconds, waiter
        )
        self._act()
        await self._wait(waiter, question)
        return result_of(question).result

    # -- what the logic decides is done; the carriers come back here --

    def _act(self) -> None:
        """Do what the logic wants done, see to its next turn, and to the time."""
        while actions := self._logic.take_actions():
            for action in actions:
                if isinstance(action, Command):
                    waiter = action.waiter
                    waiter.count -= 1
                    if not waiter.count and not waiter.future.done():
                        waiter.future.set_result(None)
                elif isinstance(action, Send):
                    carrier = self._carriers[action.line]
                    carrier.send(action.data)
                    self._logic.wrote(action.line, carrier.unsent_bytes)
                elif isinstance(action, Connect):
                    carrier = self._carriers[action.line] = _Carrier(self, action.line)
                    self._begun[carrier.ended] = None
                    carrier.ended.add_done_callback(self._begun.pop)
                    carrier.begin(action.host, action.port)
                else:
                    self._end_line(action.line)
        if self._logic.is_turn_due:
            self._schedule_turn()
        self._set_timer()

    def _schedule_turn(self) -> None:
        """All that is asked before the loop comes round leaves together."""
        if not self._is_turn_scheduled:
            self._is_turn_scheduled = True
            self._loop.call_soon(self._run_turn)

    def _run_turn(self) -> None:
        self._is_turn_scheduled = False
        self._logic.turn(self._loop.time())
        self._act()

    def _set_timer(self) -> None:
        at = self._logic.next_time()
        if at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = at
            self._timer = self._loop.call_at(at, self._run_timer)

    def _run_timer(self) -> None:
        self._timer, self._timer_at = None, NEVER
        self._logic.time_passed(self._loop.time())
        self._act()

    def _end_line(self, line: Line[_Waiter]) -> None:
        """Close what carries a line, and tell the logic what has not left; once for each line."""
        carrier = self._carriers.pop(line, None)
        if carrier is not None:
            unsent_bytes = carrier.unsent_bytes
            carrier.close()
            self._logic.ended(self._loop.time(), line, unsent_bytes)

    def _note_failed(self, line: Line[_Waiter], reason: str) -> None:
        """No connection came about."""
        if self._carriers.pop(line, None) is not None:
            self._logic.failed(self._loop.time(), line, reason)
            self._act()

    def _note_connected(self, line: Line[_Waiter]) -> bool:
        """There is a connection; False: it is not wanted any more."""
        if line not in self._carriers:
            return False
        self._logic.connected(line)
        self._act()
        return True

    def _note_received(self, line: Line[_Waiter], data: bytes) -> None:
        """Bytes have arrived; all replies in them are given out in one go."""
        self._logic.received(self._loop.time(), line, data)
        self._act()

    def _note_written(self, line: Line[_Waiter], unsent_bytes: int) -> None:
        """Bytes have left that had waited."""
        self._logic.wrote(line, unsent_bytes)
        if self._logic.is_turn_due:
            self._schedule_turn()


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
