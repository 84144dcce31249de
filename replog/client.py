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
one system call (with a few, where they are very many), one for what is due at a time, and one per
connection, which reads replies and wakes the callers directly.

Why not a channel or a lock around the connection: a hop through a channel costs more than
everything else that the client does for a command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import ParamSpec, TypeVar

import trio

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
from replog.transport.connection import Connection, connect
from replog.types import Applied, NodeId, TermId
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


class Client(AsyncClient[_Waiter]):
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

    # -- what a call waits for --

    async def _propose(
        self,
        payload: bytes,
        deadline_seconds: float | None,
        session: ClientSession | None,
        term: TermId | None,
    ) -> Applied:
        check_size(payload, self._limits)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        seconds = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        command = self._logic.propose(
            trio.current_time(), payload, seconds, _Waiter(1), session, term
        )
        self._want_turn()
        await self._wait(command)
        return result_of(command)

    async def _propose_many(
        self,
        payloads: Iterable[bytes],
        deadline_seconds: float | None,
        session: ClientSession | None,
        term: TermId | None,
    ) -> list[CommandOutcome]:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        seconds = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        waiter = _Waiter(0)
        asked = propose_all(
            self._logic, self._limits, trio.current_time(), payloads, seconds, waiter, session, term
        )
        commands = [each for each in asked if isinstance(each, Command)]
        waiter.count = len(commands)
        self._turn_due.set()
        await self._wait(*commands)
        return [outcome_of(each) if isinstance(each, Command) else each for each in asked]

    async def _order(
        self, ask: Callable[..., Command[_Waiter]], deadline_seconds: float | None
    ) -> Command[_Waiter]:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        seconds = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        command = ask(self._logic, trio.current_time(), seconds, _Waiter(1))
        self._want_turn()
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
            self._take_turn()

    def _schedule_turn(self) -> None:
        self._turn_due.set()

    def _take_turn(self) -> None:
        self._asked_count = 0
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
