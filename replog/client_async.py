"""What the clients of the two kinds of event loop offer their callers, written once.

:class:`AsyncClient` has every method that a program calls; :mod:`replog.client` and
:mod:`replog.aio` add how one waits, connects and tells the time.  Nothing here, or imported from
here, needs either loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Generic, ParamSpec, TypeVar, cast

from replog.changes import ChangeCursor, ChangesPage
from replog.client_actions import Command
from replog.client_logic import ClientLogic
from replog.client_session import LEADING_TERM, READ_LOG, ClientSession
from replog.client_surface import (
    CommandOutcome,
    LogCursor,
    NodeDump,
    check_size,
    dump_body,
    log_page_in,
    page_cursor,
    page_in,
    result_of,
    session_of,
    status_in,
    term_in,
    watch_cursor,
)
from replog.errors import BadCommand
from replog.limits import FOLLOW_MS, Limits
from replog.pages import ItemsPage, PageCursor
from replog.sessions import SessionId
from replog.statemachine import Call
from replog.types import Applied, Change, LogEntry, LogIndex, NodeId, ReadLevel, TermId

TURN_COMMANDS_MAX: Final = 64
"""As soon as so many wait for a turn they leave, and the node begins with them, while tasks that
were woken together still ask for more: else client and node would only ever work by turns."""

W = TypeVar("W")
P = ParamSpec("P")
R = TypeVar("R")


class AsyncClient(Generic[W]):
    """A client of one cluster, but for its loop; ``W`` is a task that waits there."""

    deadline_seconds: float
    """How long a call may take where its caller says nothing else."""
    _limits: Limits
    _logic: ClientLogic[W]
    _asked_count = 0
    """How many commands were asked for since the last turn."""

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
            applied = result_of(await self._query(payload, ReadLevel.LINEARIZABLE))
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
        payload = call.encode(*args)
        return result_of(await self._query(payload, level, at_least, node, deadline_seconds))

    async def propose(
        self,
        payload: bytes,
        *,
        expect_term: TermId | None = None,
        deadline_seconds: float | None = None,
    ) -> Applied:
        """Replicate one command and return its index and result.

        ``expect_term``: it is done in this term only (:meth:`leading_term`), and else refused with
        :class:`~replog.errors.TermChanged`.  ``deadline_seconds`` of ``None`` is the client's.
        Raises a :class:`~replog.errors.NotDone` when it was definitely not done,
        :class:`~replog.errors.OutcomeUnknown` when it may have been, and
        :class:`~replog.errors.CommandFailed` when it was and its result is a declared error.  When
        the wait is cancelled, the command may still be done.
        """
        return await self._propose(payload, deadline_seconds, None, expect_term)

    async def propose_many(
        self,
        payloads: Iterable[bytes],
        *,
        expect_term: TermId | None = None,
        deadline_seconds: float | None = None,
    ) -> list[CommandOutcome]:
        """Replicate commands, all in flight together, and return the outcome of each, in order.

        An outcome is what :meth:`propose` returns, or the error that it would raise, as a value:
        whatever happens to one command, the others go on and none is lost.  They are sent in order;
        one that has to be sent again may be applied after later ones.  ``deadline_seconds`` is for
        all together.  Raises :class:`~replog.errors.Unavailable` when the client is not open; when
        the wait is cancelled, each may still be done.
        """
        return await self._propose_many(payloads, deadline_seconds, None, expect_term)

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
        def ask(logic: ClientLogic[W], now: float, seconds: float, waiter: W) -> Command[W]:
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
        return result_of(
            await self._query(cursor.payload, cursor.level, cursor.at_least, node, seconds)
        )

    async def items(
        self,
        call: Call[..., ItemsPage],
        /,
        *args: object,
        level: ReadLevel = ReadLevel.LINEARIZABLE,
        node: NodeId | str | None = None,
        deadline_seconds: float | None = None,
    ) -> AsyncIterator[Any]:
        """The items of a query that answers in pages, ``client.items(Kv.scan, "prefix")``: a result
        of any size, a page in memory at a time.

        ``args`` are what the query takes behind where to go on.  Each page is read at ``level``, so
        an item is as of its page; one that is there all the time comes exactly once.
        ``deadline_seconds`` is for each page; ``None`` is the client's.  Raises what :meth:`query`
        raises, for any page.
        """
        cursor = page_cursor(call, args)
        while not cursor.is_at_end:
            applied = await self._next_items(cursor, level, node, deadline_seconds)
            for item in cursor.take(applied.result):
                yield item

    async def _next_items(
        self,
        cursor: PageCursor,
        level: ReadLevel,
        node: NodeId | str | None,
        deadline_seconds: float | None,
    ) -> Applied:
        return result_of(await self._query(cursor.payload, level, None, node, deadline_seconds))

    async def leading_term(self, *, deadline_seconds: float | None = None) -> TermId:
        """The term in which the leader leads, confirmed by a quorum, for ``expect_term``; from now
        on nothing is done that expects an earlier one (``docs/one-term.md``).

        Raises a :class:`~replog.errors.NotDone` when no answer came.
        """

        def ask(logic: ClientLogic[W], now: float, seconds: float, waiter: W) -> Command[W]:
            return logic.read(now, LEADING_TERM, b"", None, seconds, waiter)

        return term_in(result_of(await self._order(ask, deadline_seconds)).result)

    async def open_session(self, *, deadline_seconds: float | None = None) -> Session:
        """Open a session, in which every command is applied once, however often it is sent.

        Raises a :class:`~replog.errors.NotDone`, as :class:`~replog.errors.Overloaded` while the
        cluster has ``limits.sessions_max`` of them.
        """
        return Session(
            self, session_of(await self._order(ClientLogic.open_session, deadline_seconds))
        )

    def _query(
        self,
        payload: bytes,
        level: ReadLevel,
        at_least: LogIndex | None = None,
        node: NodeId | str | None = None,
        deadline_seconds: float | None = None,
    ) -> Awaitable[Command[W]]:
        """A query that has ended when it was awaited."""
        check_size(payload, self._limits)

        def ask(logic: ClientLogic[W], now: float, seconds: float, waiter: W) -> Command[W]:
            return logic.query(now, payload, level, at_least, node, seconds, waiter)

        return self._order(ask, deadline_seconds)

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

    def _want_turn(self) -> None:
        """A command was asked for: it leaves with all that are until the next turn."""
        self._asked_count += 1
        if self._asked_count < TURN_COMMANDS_MAX:
            self._schedule_turn()
        else:
            self._take_turn()

    # -- what each loop adds --

    def _schedule_turn(self) -> None:
        """Have :meth:`_take_turn` called soon, behind the tasks that can run now."""
        raise NotImplementedError

    def _take_turn(self) -> None:
        """Give the logic a turn, and act on it; nothing was asked for since."""
        raise NotImplementedError

    async def _propose(
        self,
        payload: bytes,
        deadline_seconds: float | None,
        session: ClientSession | None,
        term: TermId | None,
    ) -> Applied:
        """Replicate one command; see :meth:`propose`."""
        raise NotImplementedError

    async def _propose_many(
        self,
        payloads: Iterable[bytes],
        deadline_seconds: float | None,
        session: ClientSession | None,
        term: TermId | None,
    ) -> list[CommandOutcome]:
        """Replicate commands, all in flight together; see :meth:`propose_many`."""
        raise NotImplementedError

    async def _order(
        self,
        ask: Callable[[ClientLogic[W], float, float, W], Command[W]],
        deadline_seconds: float | None,
    ) -> Command[W]:
        """Have the leader do something that is no command; it has ended on return.  ``ask`` is
        given the logic, the time, the seconds that it may take, and who waits."""
        raise NotImplementedError

    async def _ask(self, node: NodeId | str | None, verb: str, body: bytes) -> object:
        """Ask one node over a line of its own."""
        raise NotImplementedError


class Session:
    """Commands that are each applied once, however often they had to be sent; made by
    :meth:`AsyncClient.open_session`.

    The client sends a command again until it is answered, to whoever leads, and the answer is that
    of the first time.  So :class:`~replog.errors.OutcomeUnknown` comes at the deadline alone, or
    when the client is closed.  A session that sends nothing for ``limits.session_idle_ms_max`` is
    gone: then a command raises :class:`~replog.errors.SessionExpired`, and was not done.
    """

    def __init__(self, client: AsyncClient[Any], session: ClientSession) -> None:
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
        """As :meth:`AsyncClient.call`; a command is applied once."""
        if call.is_query:
            return await self._client.call(call, *args, **kwargs)
        applied = await self.propose(call.encode(*args, **kwargs))
        return cast(R, applied.result)

    async def propose(
        self,
        payload: bytes,
        *,
        expect_term: TermId | None = None,
        deadline_seconds: float | None = None,
    ) -> Applied:
        """As :meth:`AsyncClient.propose`, applied once.  What was done in its term has its answer
        in every later one, too."""
        return await self._client._propose(payload, deadline_seconds, self._session, expect_term)

    async def propose_many(
        self,
        payloads: Iterable[bytes],
        *,
        expect_term: TermId | None = None,
        deadline_seconds: float | None = None,
    ) -> list[CommandOutcome]:
        """As :meth:`AsyncClient.propose_many`, each applied once, in whatever order."""
        return await self._client._propose_many(
            payloads, deadline_seconds, self._session, expect_term
        )

    async def close(self, *, deadline_seconds: float | None = None) -> None:
        """Have the cluster forget the session; raises a :class:`~replog.errors.NotDone`."""
        ask = partial(ClientLogic.close_session, session=self._session)
        result_of(await self._client._order(ask, deadline_seconds))
