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
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, ParamSpec, TypeVar

from replog.client_actions import NEVER, Command, Connect, Line, Send
from replog.client_async import AsyncClient, Session
from replog.client_logic import ClientLogic
from replog.client_session import ClientSession
from replog.client_surface import (
    DEADLINE_SECONDS,
    CommandOutcome,
    NodeDump,
    check_size,
    make_logic,
    outcome_of,
    propose_all,
    reason_of,
    result_of,
)
from replog.config import Config
from replog.errors import Unavailable
from replog.limits import Limits
from replog.types import Applied, NodeId, TermId

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


class Client(AsyncClient[_Waiter]):
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

    # -- what a call waits for --

    async def _propose(
        self,
        payload: bytes,
        deadline_seconds: float | None,
        session: ClientSession | None,
        term: TermId | None,
    ) -> Applied:
        check_size(payload, self._limits)
        self._check_open()
        seconds = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        waiter = _Waiter(1, self._loop.create_future())
        command = self._logic.propose(self._loop.time(), payload, seconds, waiter, session, term)
        self._want_turn()
        await self._wait(waiter, command)
        return result_of(command)

    async def _propose_many(
        self,
        payloads: Iterable[bytes],
        deadline_seconds: float | None,
        session: ClientSession | None,
        term: TermId | None,
    ) -> list[CommandOutcome]:
        self._check_open()
        seconds = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        waiter = _Waiter(0, self._loop.create_future())
        asked = propose_all(
            self._logic, self._limits, self._loop.time(), payloads, seconds, waiter, session, term
        )
        commands = [each for each in asked if isinstance(each, Command)]
        waiter.count = len(commands)
        self._schedule_turn()
        if commands:
            await self._wait(waiter, *commands)
        return [outcome_of(each) if isinstance(each, Command) else each for each in asked]

    async def _order(
        self, ask: Callable[..., Command[_Waiter]], deadline_seconds: float | None
    ) -> Command[_Waiter]:
        self._check_open()
        seconds = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        waiter = _Waiter(1, self._loop.create_future())
        command = ask(self._logic, self._loop.time(), seconds, waiter)
        self._want_turn()
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
        """All that is asked before the loop comes round leaves together, but for what is very much
        (:data:`~replog.client_async.TURN_COMMANDS_MAX`)."""
        if not self._is_turn_scheduled:
            self._is_turn_scheduled = True
            self._loop.call_soon(self._run_turn)

    def _run_turn(self) -> None:
        self._is_turn_scheduled = False
        self._take_turn()

    def _take_turn(self) -> None:
        self._asked_count = 0
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
