"""A client of a cluster, for programs without an event loop; any number of threads may share it.

::

    with replog.blocking.Client("127.0.0.1:8001,127.0.0.1:8002,127.0.0.1:8003") as client:
        client.call(Kv.put, "key", b"value")

It is :class:`replog.aio.Client` on a loop in a thread of its own, so the outcomes, the search for
the leader and the limits are those of every client, and commands of many threads share one
connection.  Leaving the block ends every call with what is known, and the thread.

Ctrl-C ends the call that the main thread waits in, as a cancellation does: the command may still be
done.  After a fork the child has the client but not its thread, and its sockets are the parent's:
there every call is refused.  A client of the child's own is opened in the child.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from replog import aio
from replog.changes import ChangesPage
from replog.client_surface import (
    DEADLINE_SECONDS,
    CommandOutcome,
    LogCursor,
    NodeDump,
    log_page_in,
    page_cursor,
    watch_cursor,
)
from replog.config import Config
from replog.errors import Unavailable
from replog.limits import Limits
from replog.pages import ItemsPage
from replog.sessions import SessionId
from replog.statemachine import Call
from replog.types import Applied, Change, LogEntry, LogIndex, NodeId, ReadLevel, TermId

__all__ = ["Client", "CommandOutcome", "NodeDump", "Session"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Client:
    """A client of one cluster, for use in ``with``; any number of threads may share it."""

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
        self._client = aio.Client(
            nodes, deadline_seconds=deadline_seconds, cluster_id=cluster_id, limits=limits
        )
        self._lock = threading.Lock()
        """Held while calls are handed over, so that none comes behind the closing."""
        self._is_open = False
        self._thread: threading.Thread | None = None
        self._process_id = 0
        """Of the process that has the thread."""
        self._loop: asyncio.AbstractEventLoop
        self._closing: asyncio.Event

    def __enter__(self) -> Client:
        """Start the client and its thread; nothing is connected until something is asked for."""
        assert self._thread is None, "a client is opened once"
        started: Future[None] = Future()
        self._process_id = os.getpid()
        # A daemon: a program that never leaves the block can still end.
        self._thread = threading.Thread(
            target=self._run_thread, args=(started,), name="replog client", daemon=True
        )
        self._thread.start()
        started.result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection and end the thread; whoever still waits gets its outcome, as far as
        it is known."""
        if os.getpid() != self._process_id:
            return  # The thread and the connection are the parent's.
        assert self._thread is not None, "a client is closed that was opened"
        with self._lock:
            was_open, self._is_open = self._is_open, False
            if was_open:
                self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    @property
    def deadline_seconds(self) -> float:
        """How long a call may take."""
        return self._client.deadline_seconds

    @property
    def leader_id(self) -> NodeId:
        """The leader as far as is known; ``NO_NODE``: none."""
        return self._client.leader_id

    # -- commands --

    def call(self, call: Call[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one call of a state machine, ``client.call(Kv.get, "k")``: a command is replicated, a
        query is read, linearizably.

        Raises what :meth:`propose` or :meth:`query` raises, and
        :class:`~replog.errors.BadCommand` for arguments that the call does not take.
        """
        return self._wait(lambda: self._client.call(call, *args, **kwargs))

    def query(
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
        return self._wait(
            lambda: self._client.query(
                call,
                *args,
                level=level,
                at_least=at_least,
                node=node,
                deadline_seconds=deadline_seconds,
            )
        )

    def propose(
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
        the wait is interrupted, the command may still be done.
        """
        return self._wait(
            lambda: self._client.propose(
                payload, expect_term=expect_term, deadline_seconds=deadline_seconds
            )
        )

    def propose_many(
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
        the wait is interrupted, each may still be done.
        """
        commands = list(payloads)
        return self._wait(
            lambda: self._client.propose_many(
                commands, expect_term=expect_term, deadline_seconds=deadline_seconds
            )
        )

    def entries(
        self,
        from_index: LogIndex = 1,
        *,
        follow: bool = True,
        node: NodeId | str | None = None,
    ) -> Iterator[LogEntry]:
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
            applied = self._wait(lambda: self._client._read_log(cursor, node))
            yield from cursor.take(log_page_in(applied.result), applied.index)

    def watch(
        self,
        call: Call[..., ChangesPage],
        /,
        *args: object,
        after: LogIndex | None = None,
        node: NodeId | str | None = None,
    ) -> Iterator[Change]:
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
            applied = self._wait(lambda: self._client._next_changes(cursor, node))
            yield from cursor.take(applied.result, applied.index)

    def items(
        self,
        call: Call[..., ItemsPage],
        /,
        *args: object,
        level: ReadLevel = ReadLevel.LINEARIZABLE,
        node: NodeId | str | None = None,
        deadline_seconds: float | None = None,
    ) -> Iterator[Any]:
        """The items of a query that answers in pages, ``client.items(Kv.scan, "prefix")``: a result
        of any size, a page in memory at a time.

        ``args`` are what the query takes behind where to go on.  Each page is read at ``level``, so
        an item is as of its page; one that is there all the time comes exactly once.
        ``deadline_seconds`` is for each page; ``None`` is the client's.  Raises what :meth:`query`
        raises, for any page.
        """
        cursor = page_cursor(call, args)
        while not cursor.is_at_end:
            applied = self._wait(
                lambda: self._client._next_items(cursor, level, node, deadline_seconds)
            )
            yield from cursor.take(applied.result)

    def leading_term(self, *, deadline_seconds: float | None = None) -> TermId:
        """The term in which the leader leads, confirmed by a quorum, for ``expect_term``; from now
        on nothing is done that expects an earlier one (``docs/one-term.md``).

        Raises a :class:`~replog.errors.NotDone` when no answer came.
        """
        return self._wait(lambda: self._client.leading_term(deadline_seconds=deadline_seconds))

    def open_session(self, *, deadline_seconds: float | None = None) -> Session:
        """Open a session, in which every command is applied once, however often it is sent.

        Raises a :class:`~replog.errors.NotDone`, as :class:`~replog.errors.Overloaded` while the
        cluster has ``limits.sessions_max`` of them.
        """
        return Session(
            self,
            self._wait(lambda: self._client.open_session(deadline_seconds=deadline_seconds)),
        )

    # -- questions to one node --

    def status(self, node: NodeId | str | None = None) -> Mapping[str, object]:
        """What a node says of itself: role, term, indexes, peers, as names and values.

        ``node`` is an id or an address; ``None`` is whichever node answers first, the leader by
        preference.  Raises :class:`~replog.errors.Unavailable` and
        :class:`~replog.errors.AddressError`.
        """
        return self._wait(lambda: self._client.status(node))

    def dump(
        self, cursor: bytes = b"", items_max: int = 1000, *, node: NodeId | str | None = None
    ) -> NodeDump:
        """A page of at most ``items_max`` items of what one node's state machine holds.

        The first page is at ``b""``, every other at the cursor of the page before.  ``node`` is as
        for :meth:`status`, whose errors this raises, and
        :class:`~replog.errors.DumpUnavailable`.
        """
        return self._wait(lambda: self._client.dump(cursor, items_max, node=node))

    # -- the thread --

    def _wait(self, make: Callable[[], Coroutine[object, object, T]]) -> T:
        """Have the thread do something, and wait for what comes of it."""
        if os.getpid() != self._process_id and self._process_id:
            raise Unavailable(
                f"this client was opened in process {self._process_id}, and process {os.getpid()} "
                "is a fork of that without its thread; open a client of its own in each process"
            )
        with self._lock:
            if not self._is_open:
                raise Unavailable("the client is not open; make calls inside its 'with' block")
            asked = asyncio.run_coroutine_threadsafe(make(), self._loop)
        try:
            return asked.result()
        except BaseException:
            asked.cancel()  # Ctrl-C, unless it is the outcome: nobody waits for this any more.
            raise

    def _run_thread(self, started: Future[None]) -> None:
        try:
            asyncio.run(self._run(started))
        except BaseException as failure:
            if started.done():
                raise
            started.set_exception(failure)
        finally:
            self._is_open = False

    async def _run(self, started: Future[None]) -> None:
        """Keep the client open until it is closed, and until every call has its outcome."""
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        async with self._client:
            self._is_open = True
            started.set_result(None)
            await self._closing.wait()
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        if calls:
            await asyncio.wait(calls)


class Session:
    """Commands that are each applied once, however often they had to be sent; made by
    :meth:`Client.open_session`.

    The client sends a command again until it is answered, to whoever leads, and the answer is that
    of the first time.  So :class:`~replog.errors.OutcomeUnknown` comes at the deadline alone, or
    when the client is closed.  A session that sends nothing for ``limits.session_idle_ms_max`` is
    gone: then a command raises :class:`~replog.errors.SessionExpired`, and was not done.
    """

    def __init__(self, client: Client, session: aio.Session) -> None:
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

    def call(self, call: Call[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """As :meth:`Client.call`; a command is applied once."""
        session = self._session
        return self._client._wait(lambda: session.call(call, *args, **kwargs))

    def propose(
        self,
        payload: bytes,
        *,
        expect_term: TermId | None = None,
        deadline_seconds: float | None = None,
    ) -> Applied:
        """As :meth:`Client.propose`, applied once.  What was done in its term has its answer in
        every later one, too."""
        session = self._session
        return self._client._wait(
            lambda: session.propose(
                payload, expect_term=expect_term, deadline_seconds=deadline_seconds
            )
        )

    def propose_many(
        self,
        payloads: Iterable[bytes],
        *,
        expect_term: TermId | None = None,
        deadline_seconds: float | None = None,
    ) -> list[CommandOutcome]:
        """As :meth:`Client.propose_many`, each applied once, in whatever order."""
        session, commands = self._session, list(payloads)
        return self._client._wait(
            lambda: session.propose_many(
                commands, expect_term=expect_term, deadline_seconds=deadline_seconds
            )
        )

    def close(self, *, deadline_seconds: float | None = None) -> None:
        """Have the cluster forget the session; raises a :class:`~replog.errors.NotDone`."""
        session = self._session
        self._client._wait(lambda: session.close(deadline_seconds=deadline_seconds))
