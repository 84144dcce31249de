"""The three client libraries behind one face, so that every test of a client's behaviour is run for
each: a test is a trio program, whatever the client inside it runs on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar

import trio

import replog
from replog import aio, blocking
from replog.changes import ChangesPage
from replog.client_logic import ClientLogic
from replog.client_surface import CommandOutcome, NodeDump
from replog.pages import ItemsPage
from replog.statemachine import Call
from replog.types import Applied, Change, LogEntry, NodeId, ReadLevel, TermId

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

LIBRARIES = ("trio", "asyncio", "blocking")
CLASSES = {"trio": replog.Client, "asyncio": aio.Client, "blocking": blocking.Client}


class AnyClient(Protocol):
    """What the clients of all libraries can do."""

    @property
    def client(self) -> Any: ...
    @property
    def leader_id(self) -> NodeId: ...
    @property
    def logic(self) -> ClientLogic[Any]: ...
    async def call(self, call: Call[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def propose(
        self,
        payload: bytes,
        *,
        expect_term: TermId | None = None,
        deadline_seconds: float | None = None,
    ) -> Applied: ...
    async def propose_many(
        self,
        payloads: Iterable[bytes],
        *,
        expect_term: TermId | None = None,
        deadline_seconds: float | None = None,
    ) -> list[CommandOutcome]: ...
    async def leading_term(self, *, deadline_seconds: float | None = None) -> TermId: ...
    async def query(
        self,
        call: Call[..., object],
        /,
        *args: object,
        level: ReadLevel = ReadLevel.LINEARIZABLE,
        at_least: int | None = None,
        node: NodeId | str | None = None,
        deadline_seconds: float | None = None,
    ) -> Applied: ...
    def items(
        self,
        call: Call[..., ItemsPage],
        /,
        *args: object,
        level: ReadLevel = ReadLevel.LINEARIZABLE,
        node: NodeId | str | None = None,
        deadline_seconds: float | None = None,
    ) -> AsyncIterator[Any]: ...
    def entries(
        self, from_index: int = 1, *, follow: bool = True, node: NodeId | str | None = None
    ) -> AsyncIterator[LogEntry]: ...
    def watch(
        self,
        call: Call[..., ChangesPage],
        /,
        *args: object,
        after: int | None = None,
        node: NodeId | str | None = None,
    ) -> AsyncIterator[Change]: ...
    async def open_session(self, *, deadline_seconds: float | None = None) -> AnySession: ...
    async def status(self, node: NodeId | str | None = None) -> Mapping[str, object]: ...
    async def dump(
        self, cursor: bytes = b"", items_max: int = 1000, *, node: NodeId | str | None = None
    ) -> NodeDump: ...


class AnySession(Protocol):
    """What the sessions of all libraries can do."""

    @property
    def client(self) -> Any: ...
    async def call(self, call: Call[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def propose(
        self,
        payload: bytes,
        *,
        expect_term: TermId | None = None,
        deadline_seconds: float | None = None,
    ) -> Applied: ...
    async def propose_many(
        self,
        payloads: Iterable[bytes],
        *,
        expect_term: TermId | None = None,
        deadline_seconds: float | None = None,
    ) -> list[CommandOutcome]: ...
    async def close(self, *, deadline_seconds: float | None = None) -> None: ...


OpenClient: TypeAlias = "Callable[..., AbstractAsyncContextManager[AnyClient]]"


class _Face:
    """A client whose methods are run by ``run``, in whatever way its library needs."""

    def __init__(
        self, client: Any, logic: ClientLogic[Any], run: Callable[[Callable[[], Any]], Any]
    ) -> None:
        self.client = client
        self.logic = logic
        self._run = run

    @property
    def leader_id(self) -> NodeId:
        return int(self.client.leader_id)

    async def open_session(self, **kwargs: Any) -> _Face:
        """A session has the same face."""
        session = await self._run(partial(self.client.open_session, **kwargs))
        return _Face(session, self.logic, self._run)

    def entries(self, *args: Any, **kwargs: Any) -> AsyncIterator[LogEntry]:
        """See :meth:`_pulled`."""
        return self._pulled(self.client.entries(*args, **kwargs))

    def items(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """See :meth:`_pulled`."""
        return self._pulled(self.client.items(*args, **kwargs))

    def watch(self, *args: Any, **kwargs: Any) -> AsyncIterator[Change]:
        """See :meth:`_pulled`."""
        return self._pulled(self.client.watch(*args, **kwargs))

    async def _pulled(self, iterator: Any) -> AsyncIterator[Any]:
        """One after the other, each in the library's own way."""

        async def pull() -> object:
            return await anext(iterator, None)

        is_blocking = hasattr(iterator, "__next__")
        while item := await self._run(partial(next, iterator, None) if is_blocking else pull):
            yield item

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def ask(*args: Any, **kwargs: Any) -> Any:
            return await self._run(partial(getattr(self.client, name), *args, **kwargs))

        return ask


@asynccontextmanager
async def open_trio_client(*args: Any, **kwargs: Any) -> AsyncIterator[AnyClient]:
    """A client for trio, in this very loop."""

    async def run(make: Callable[[], Awaitable[T]]) -> T:
        return await make()

    async with replog.Client(*args, **kwargs) as client:
        yield _Face(client, client._logic, run)


class _AsyncioThread:
    """An asyncio loop in a thread, whose tasks a trio task waits for and cancels as its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop)
        self._thread.start()

    def _run_loop(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            self._stop = asyncio.Event()
            runner.run(self._stop.wait())  # type: ignore[arg-type]

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        token, ended = trio.lowlevel.current_trio_token(), trio.Event()
        tasks: list[asyncio.Task[T]] = []

        def start() -> None:
            tasks.append(self.loop.create_task(make()))
            tasks[0].add_done_callback(lambda _: token.run_sync_soon(ended.set))

        self.loop.call_soon_threadsafe(start)
        try:
            await ended.wait()
        except trio.Cancelled:
            self.loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            with trio.CancelScope(shield=True):
                await ended.wait()
            raise
        return tasks[0].result()


@asynccontextmanager
async def open_asyncio_client(*args: Any, **kwargs: Any) -> AsyncIterator[AnyClient]:
    """A client for asyncio, on a loop in a thread."""
    client = aio.Client(*args, **kwargs)
    thread = _AsyncioThread()
    try:
        await thread.run(client.__aenter__)
        try:
            yield _Face(client, client._logic, thread.run)
        finally:
            with trio.CancelScope(shield=True):
                await thread.run(lambda: client.__aexit__(None, None, None))
    finally:
        thread.close()


@asynccontextmanager
async def open_blocking_client(*args: Any, **kwargs: Any) -> AsyncIterator[AnyClient]:
    """A client for threads: every call waits in one of its own, which a cancelled test leaves."""
    limiter = trio.CapacityLimiter(300)

    async def run(make: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(make, abandon_on_cancel=True, limiter=limiter)

    client = blocking.Client(*args, **kwargs)
    await run(client.__enter__)
    try:
        yield _Face(client, client._client._logic, run)
    finally:
        with trio.CancelScope(shield=True):
            await run(lambda: client.__exit__(None, None, None))


OPENERS: Mapping[str, OpenClient] = {
    "trio": open_trio_client,
    "asyncio": open_asyncio_client,
    "blocking": open_blocking_client,
}
