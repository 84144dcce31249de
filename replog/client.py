"""A client of a cluster: it finds the leader, keeps many requests in flight, and never guesses.

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

How: requests wait in one queue.  One task finds the leader, hands over whatever waits with one
system call per turn of the event loop, and starts over when the connection ends; another reads
replies and wakes the callers directly.  What a frame means is decided in :mod:`replog.client_core`,
and where to look next in :mod:`replog.client_search`; this module has the clock and the dice.

A leader that owes replies and sends none for about a second may be frozen or cut off, so the other
nodes are asked.  When one says that it leads, new commands go there.  What was sent stays where it
is, on at most one connection that only drains, until its reply, its deadline or the end of that
connection.

Why not a channel or a lock around the connection: a hop through a channel costs more than
everything else that the client does for a command.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final, ParamSpec, TypeVar, cast

import trio

from replog.address import Address
from replog.cbor import strict_dumps
from replog.client_core import (
    REQUEST_OVERHEAD_BYTES,
    Answered,
    Broken,
    failure_of,
)
from replog.client_link import (
    FAILURES,
    Link,
    ask_once,
    await_drained,
    await_missing_reply,
    is_final_failure,
    open_link,
    reason_of,
    watch_silence,
)
from replog.client_search import LeaderSearch, parse_addresses
from replog.config import Config
from replog.errors import (
    AddressError,
    CommandTooLarge,
    ConfigError,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    Refused,
    SchemaError,
    Unavailable,
)
from replog.frames import FrameCodec, Outcome, Reply
from replog.limits import Limits
from replog.statemachine import Call
from replog.transport.connection import closing
from replog.types import NO_NODE, Applied, LogIndex, NodeId, record
from replog.wakeup import Wakeup

P = ParamSpec("P")
R = TypeVar("R")

DEADLINE_SECONDS: Final = 10.0

_DRAIN_SECONDS: Final = 1.0
"""How long a node that lost its leadership may take to answer what is still in flight there."""

_BACKOFF_SECONDS_MIN: Final = 0.02
_BACKOFF_SECONDS_MAX: Final = 0.5
"""Of a search, and of a command that the leader was too busy for."""

_DEADLINE_GRAIN_SECONDS: Final = 0.01
"""Deadlines are looked at no more often than this."""

_REMEDY: Final = "it may or may not be done: look, or repeat it only if repeating does no harm"


@record
class NodeDump:
    """A page of the state of one node's state machine."""

    applied_index: LogIndex
    """What the node had applied when it made the page; of two nodes, compare equal ones only."""
    items: Sequence[object]
    cursor: bytes | None
    """Where the next page starts; ``None``: this page is the last."""


class _Pending:
    """A command whose outcome is not known yet, and the task that waits for it."""

    __slots__ = (
        "applied",
        "deadline",
        "failure",
        "link",
        "payload",
        "request_id",
        "seconds",
        "task",
    )

    def __init__(self, payload: bytes, seconds: float) -> None:
        self.payload = payload
        self.seconds = seconds
        self.deadline = trio.current_time() + seconds
        self.task = trio.lowlevel.current_task()
        self.link: Link[_Pending] | None = None
        """Where it is in flight; ``None`` while it is only queued: nothing of it has left."""
        self.request_id = 0
        """What it is called there."""
        self.applied: Applied | None = None
        self.failure: Exception | None = None


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
        members: dict[NodeId, str] = {}
        if isinstance(nodes, Config):
            members = {node.id: str(node.client) for node in nodes.nodes}
            cluster_id = cluster_id or nodes.cluster_id
            limits = limits or nodes.limits
            nodes = members.values()
        assert deadline_seconds > 0
        self.deadline_seconds = deadline_seconds
        self._limits = limits or Limits()
        if problems := self._limits.problems():
            raise ConfigError("limits", problems)
        self._codec = FrameCodec(self._limits)
        self._search = LeaderSearch(parse_addresses(nodes), members, cluster_id)
        self._waiting: dict[_Pending, None] = {}
        """Every command whose caller waits, queued or in flight."""
        self._queued: OrderedDict[_Pending, None] = OrderedDict()
        """Those of them that have not left, in the order in which they will."""
        self._link: Link[_Pending] | None = None
        """The connection to the leader, over which commands are sent."""
        self._draining: Link[_Pending] | None = None
        """The connection to a leader that fell silent and was succeeded, while it owes replies."""
        self._wakeup = Wakeup()
        self._fruitless_count = 0
        """Rounds of the search since the last command that a leader took."""
        self._deadline_next = 0.0
        """When deadlines are looked at again."""
        self._deadline_earlier = Wakeup()
        self._is_open = False
        self._nursery: trio.Nursery | None = None
        self._nursery_block: AbstractAsyncContextManager[trio.Nursery] = trio.open_nursery()

    async def __aenter__(self) -> Client:
        """Start the client; nothing is connected until something is asked for."""
        assert self._nursery is None, "a client is opened once"
        self._nursery = await self._nursery_block.__aenter__()
        self._is_open = True
        self._nursery.start_soon(self._run)
        self._nursery.start_soon(self._run_deadlines)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Close the connection; whoever still waits gets its outcome, as far as it is known."""
        assert self._nursery is not None
        self._is_open = False
        for pending in list(self._waiting):
            failure: Exception = Unavailable("the client was closed before the command was sent")
            if pending.link is not None:
                failure = OutcomeUnknown(
                    f"the client was closed before the command was answered; {_REMEDY}"
                )
            self._withdraw(pending)
            self._end_wait(pending, failure)
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
        return self._search.leader_id

    # -- commands --

    async def call(self, call: Call[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Replicate one call of a state machine's command or query: ``client.call(Kv.get, "k")``.

        Raises what :meth:`propose` raises, and :class:`~replog.errors.BadCommand` for arguments
        that the command does not take.
        """
        applied = await self.propose(call.encode(*args, **kwargs))
        return cast(R, applied.result)

    async def propose(self, payload: bytes, *, deadline_seconds: float | None = None) -> Applied:
        """Replicate one command and return its index and result.

        ``deadline_seconds`` of ``None`` is the client's.  Raises a
        :class:`~replog.errors.NotDone` when it was definitely not done,
        :class:`~replog.errors.OutcomeUnknown` when it may have been, and
        :class:`~replog.errors.CommandFailed` when it was and its result is a declared error.  When
        the wait is cancelled, the command may still be done.
        """
        assert isinstance(payload, bytes)
        if len(payload) > self._limits.command_bytes_max:
            raise CommandTooLarge(len(payload), self._limits.command_bytes_max)
        await trio.lowlevel.checkpoint_if_cancelled()
        pending = _Pending(
            payload, self.deadline_seconds if deadline_seconds is None else deadline_seconds
        )
        await self._await_outcome(pending)
        backoff = _BACKOFF_SECONDS_MIN
        while isinstance(pending.failure, Overloaded) and trio.current_time() < pending.deadline:
            pause = trio.current_time() + _jittered(backoff)
            await trio.sleep_until(min(pause, pending.deadline))
            backoff = min(2 * backoff, _BACKOFF_SECONDS_MAX)
            if pause < pending.deadline:
                await self._await_outcome(pending)
        if pending.failure is not None:
            raise pending.failure
        assert pending.applied is not None
        return pending.applied

    async def _await_outcome(self, pending: _Pending) -> None:
        """Queue a command and wait until :meth:`_end_wait` is called for it."""
        if not self._is_open:
            raise Unavailable("the client is not open; make calls inside its 'async with' block")

        def stop_waiting(_: Callable[[], None]) -> trio.lowlevel.Abort:
            self._withdraw(pending)
            del self._waiting[pending]
            return trio.lowlevel.Abort.SUCCEEDED

        self._waiting[pending] = None
        self._queued[pending] = None
        self._wakeup.set()
        if pending.deadline < self._deadline_next:
            self._deadline_earlier.set()
        await trio.lowlevel.wait_task_rescheduled(stop_waiting)

    def _end_wait(self, pending: _Pending, failure: Exception | None) -> None:
        """Wake the task of a command that is neither queued nor in flight any more."""
        del self._waiting[pending]
        pending.link = None
        pending.failure = failure
        trio.lowlevel.reschedule(pending.task)

    def _withdraw(self, pending: _Pending) -> None:
        """Nobody is interested in the outcome any more: do not send it, or ignore its reply."""
        if pending.link is None:
            del self._queued[pending]
        else:
            pending.link.core.forget(pending.request_id)

    def _requeue(self, pending: _Pending) -> None:
        """A command that was certainly not taken waits to be sent again."""
        pending.link = None
        self._queued[pending] = None

    # -- deadlines --

    async def _run_deadlines(self) -> None:
        """End the waits whose time is over.

        One task for all of them: a cancel scope per command would cost as much as encoding it.
        """
        while True:
            now = trio.current_time()
            for pending in [pending for pending in self._waiting if pending.deadline <= now]:
                failure = self._lateness(pending)
                self._withdraw(pending)
                self._end_wait(pending, failure)
            earliest = min((pending.deadline for pending in self._waiting), default=float("inf"))
            self._deadline_next = max(earliest, now + _DEADLINE_GRAIN_SECONDS)
            with trio.move_on_at(self._deadline_next):
                await self._deadline_earlier.wait()
                await trio.sleep(_DEADLINE_GRAIN_SECONDS)

    def _lateness(self, pending: _Pending) -> Exception:
        """What a deadline that has passed means for a command."""
        seconds = f"{pending.seconds:g} s"
        if pending.link is not None:
            name = pending.link.name
            return OutcomeUnknown(f"{name} did not answer within {seconds}; {_REMEDY}")
        if isinstance(pending.failure, Overloaded):
            return pending.failure
        link = self._link
        if link is not None and link.is_leading:
            return Unavailable(
                f"the command was not sent within {seconds}, because {link.name} leaves "
                f"{link.core.open_count} others unanswered; send fewer at once"
            )
        return Unavailable(
            f"no leader took the command within {seconds} and it was not done "
            f"({self._search.reasons()}); see that enough of the nodes run to elect a leader, and "
            "check the client's addresses"
        )

    # -- questions to one node --

    async def status(self, node: NodeId | str | None = None) -> Mapping[str, object]:
        """What a node says of itself: role, term, indexes, peers, as names and values.

        ``node`` is an id or an address; ``None`` is whichever node answers first, the leader by
        preference.  Raises :class:`~replog.errors.Unavailable` and
        :class:`~replog.errors.AddressError`.
        """
        value = await self._ask(node, "status", b"")
        if not isinstance(value, dict):
            raise SchemaError("a node's status is not a map; run the same release on both sides")
        return value

    async def dump(
        self, cursor: bytes = b"", items_max: int = 1000, *, node: NodeId | str | None = None
    ) -> NodeDump:
        """A page of at most ``items_max`` items of what one node's state machine holds.

        The first page is at ``b""``, every other at the cursor of the page before.  ``node`` is as
        for :meth:`status`, whose errors this raises, and
        :class:`~replog.errors.DumpUnavailable`.
        """
        value = await self._ask(node, "dump", strict_dumps([cursor, items_max]))
        match value:
            case [int(applied_index), list(items), bytes() | None as cursor_next]:
                return NodeDump(applied_index, items, cursor_next)
        raise SchemaError("a node's dump is no page; run the same release on both sides")

    async def _ask(self, node: NodeId | str | None, verb: str, body: bytes) -> object:
        """Ask over a connection of its own, so that any node can be asked, also a lost one.

        Nothing is changed by it, so the next address is tried whatever went wrong.
        """
        reasons: list[str] = []
        with trio.move_on_after(self.deadline_seconds):
            for address in await self._addresses_of_node(node):
                try:
                    reply, value = await self._ask_address(address, verb, body)
                except FAILURES as failure:
                    reasons.append(f"{address}: {reason_of(failure)}")
                    continue
                if reply.outcome is Outcome.DONE:
                    return value
                raise failure_of(reply, NO_NODE, len(body))
        found = "; ".join(reasons) or f"nothing came within {self.deadline_seconds:g} s"
        raise Unavailable(f"no node answered ({found}); see that it runs, and check the address")

    async def _addresses_of_node(self, node: NodeId | str | None) -> Iterable[str]:
        if isinstance(node, str):
            return [str(Address.parse(node))]
        if node is None:
            return list(self._search.addresses())
        if node not in self._search.members:
            await self._ask(None, "status", b"")  # Whoever answers names the members.
        members = self._search.members
        if node not in members:
            ids = ", ".join(map(str, sorted(members)))
            raise AddressError(f"the cluster has no node {node}; its nodes are {ids}")
        return [members[node]]

    async def _ask_address(self, address: str, verb: str, body: bytes) -> tuple[Reply, object]:
        link: Link[None] = await open_link(
            address, self._codec, self._limits, self._search.cluster_id
        )
        with closing(link.connection):
            self._search.note_members(link.hello)
            return await ask_once(link, verb, body)

    # -- the connection to the leader --

    async def _run(self) -> None:
        """Find the leader when there is something to send, and send until it leads no more."""
        while True:
            while not self._queued:
                await self._wakeup.wait()
            link = await self._find_leader()
            if link is not None:
                self._use(link)
            while self._link is not None:
                if self._link.is_leading:
                    self._send_queued(self._link)
                await self._wakeup.wait()

    async def _find_leader(self) -> Link[_Pending] | None:
        """Connect to the leader; ``None``: nobody waits for it any more."""
        search = self._search
        if self._fruitless_count:
            await self._back_off()
        while self._queued:
            address = search.next_address()
            if address is not None:
                link = await self._try_address(address)
                if link is not None:
                    return link
                continue
            if search.is_hopeless:
                self._give_up()
            else:
                await self._back_off()
            search.begin_round()
        return None

    async def _try_address(self, address: str) -> Link[_Pending] | None:
        """Connect to one address; ``None``: the leader is not there, as the search now knows."""
        search = self._search
        try:
            link: Link[_Pending] = await open_link(
                address, self._codec, self._limits, search.cluster_id
            )
        except FAILURES as failure:
            search.note_failed(address, reason_of(failure), is_refusal=is_final_failure(failure))
            return None
        if search.note_hello(address, link.hello):
            return link
        link.connection.close()
        return None

    async def _back_off(self) -> None:
        self._fruitless_count += 1
        backoff = _BACKOFF_SECONDS_MIN * 2.0 ** min(self._fruitless_count - 1, 10)
        await trio.sleep(_jittered(min(backoff, _BACKOFF_SECONDS_MAX)))

    def _give_up(self) -> None:
        """No address will ever do: tell so at once, not when the deadline has passed."""
        reasons = self._search.reasons()
        for pending in list(self._queued):
            failure = Refused(f"no address leads to the cluster ({reasons})")
            self._withdraw(pending)
            self._end_wait(pending, failure)

    def _use(self, link: Link[_Pending]) -> None:
        """From now on, commands are sent over this connection."""
        assert self._nursery is not None, "only an open client connects"
        self._link = link
        self._fruitless_count += 1  # until a reply shows that the way was not in vain
        self._nursery.start_soon(self._run_link, link)

    async def _run_link(self, link: Link[_Pending]) -> None:
        """Take the replies, until the connection ends or nobody waits for one that is not used."""
        try:
            with link.scope:
                async with trio.open_nursery() as nursery:
                    idle_seconds = self._limits.connection_idle_ms / 1000
                    nursery.start_soon(link.connection.run_writer)
                    nursery.start_soon(watch_silence, link, idle_seconds)
                    nursery.start_soon(self._run_succession, link)
                    await self._run_reader(link)
                    nursery.cancel_scope.cancel()
        finally:
            self._end_link(link)

    async def _run_succession(self, link: Link[_Pending]) -> None:
        """When a node owes replies in silence and another one leads, let the silent one drain."""
        successor = None
        while successor is None:
            await await_missing_reply(link.core)
            if self._draining is None:
                successor = await self._find_successor(link)
        link.is_leading = False
        self._draining = link
        self._use(successor)
        self._wakeup.set()
        await await_drained(link.core)
        link.scope.cancel()

    async def _find_successor(self, link: Link[_Pending]) -> Link[_Pending] | None:
        """Ask every other node once; a connection to one that says that it leads."""
        search = self._search
        search.begin_round()
        search.note_failed(link.address, "it does not answer")
        while (address := search.next_address()) is not None:
            successor = await self._try_address(address)
            if successor is not None and successor.hello.node_id == link.hello.node_id:
                # The same node under another address: slow, but it lives and leads.
                successor.connection.close()
                return None
            if successor is not None:
                return successor
        return None

    def _send_queued(self, link: Link[_Pending]) -> None:
        """Let everything that is queued leave together, within the limits."""
        connection, core = link.connection, link.core
        queued = self._queued
        bytes_max = self._limits.client_queue_bytes_max
        if connection.is_closed:
            return
        for _ in range(min(core.room, len(queued))):
            pending = next(iter(queued))
            if connection.queued_bytes + len(pending.payload) + REQUEST_OVERHEAD_BYTES > bytes_max:
                break  # Replies, which make this run again, come when the node has read more.
            del queued[pending]
            pending.request_id, frame = core.request("propose", pending.payload, pending)
            pending.link = link
            connection.queue(frame)
        connection.flush()

    async def _run_reader(self, link: Link[_Pending]) -> None:
        """Hand out the replies, all of one read in one go."""
        connection, core = link.connection, link.core
        while data := await connection.receive():
            for event in core.receive(data):
                if isinstance(event, Answered):
                    self._handle_reply(link, event.waiter, event.reply, event.value)
                elif isinstance(event, Broken):
                    link.end_reason = str(event.failure)
                    connection.close()
            if not link.is_leading and not core.open_count:
                return
            if self._queued:
                self._wakeup.set()  # Replies have made room for more.

    def _handle_reply(
        self, link: Link[_Pending], pending: _Pending, reply: Reply, value: object
    ) -> None:
        if reply.outcome is Outcome.DONE:
            pending.applied = Applied(reply.index, value)
            self._fruitless_count = 0
            self._end_wait(pending, None)
            return
        failure = failure_of(reply, link.hello.node_id, len(pending.payload))
        if isinstance(failure, NotLeader):
            if link.is_leading:
                link.is_leading = False
                link.end_reason = f"node {link.hello.node_id} does not lead any more"
                link.scope.deadline = trio.current_time() + _DRAIN_SECONDS
                self._search.note_hint(reply.leader_id, reply.leader_address)
            self._requeue(pending)
            return
        self._fruitless_count = 0
        self._end_wait(pending, failure)

    def _end_link(self, link: Link[_Pending]) -> None:
        """Close a connection: what certainly did not leave is queued again, the rest is unknown."""
        link.connection.close()
        if link is self._link:
            self._link = None
            self._search.begin_round()
            self._search.note_failed(link.address, link.end_reason)
        elif link is self._draining:
            self._draining = None
        for pending, may_have_arrived in link.core.end(link.connection.queued_bytes):
            if may_have_arrived:
                self._end_wait(
                    pending,
                    OutcomeUnknown(
                        f"the connection to {link.name} was lost before the command was answered "
                        f"({link.end_reason}); {_REMEDY}"
                    ),
                )
            else:
                self._requeue(pending)
        self._wakeup.set()


def _jittered(seconds: float) -> float:
    """Clients that lost a leader together should not come back together."""
    return seconds * random.uniform(0.5, 1.0)
