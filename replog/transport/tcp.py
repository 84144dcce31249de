"""The peers' transport over TCP: one connection per direction, made and kept by the sender.

Node a calls node b and sends its messages there; b's messages come over b's own call.  A call
begins with a handshake: the caller says its protocol versions, cluster, id, incarnation, engine and
whom it means to have called; the other side welcomes it or refuses with a sentence.  So a node of
another cluster, a wiped node or a mistaken address never gets a message through, and of two
incarnations of one node only that which takes part (:mod:`replog.control`).  Both sides also
say by which birth their directory goes and whom it has met, and what a node hears of that is
durable before it answers (:mod:`replog.formation`).

The rules this module keeps: a slow peer costs memory up to ``limits.peer_queue_bytes_max``, then
messages to it are dropped, and never the other peers' pace; a connection on which nothing arrives
for ``limits.connection_idle_ms`` is closed (both sides send keepalives, so a half-open one is
noticed); whatever is not a correct peer is refused, counted, and logged at a limited rate.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Final

import structlog
import trio

from replog.address import Address
from replog.control import incarnation_in_force
from replog.errors import FrameError, HandshakeError, PeerError, SchemaError
from replog.frames import (
    HANDSHAKE_LIMITS,
    FrameCodec,
    FrameType,
    PeerHello,
    PeerWelcome,
    Refusal,
    refusal_of_first,
)
from replog.limits import Limits
from replog.transport.connection import Connection, closing, connect, take_over
from replog.transport.listening import (
    Refusals,
    close_listeners,
    open_listeners,
    receive_first,
)
from replog.transport.meetings import Meetings
from replog.types import Epoch, NodeId, Voter, record
from replog.wire import FrameReader, MessageCodec, pack_frame

PROTOCOL_VERSION: Final = 1
"""Of what follows the handshake between peers."""

_BACKOFF_SECONDS_MIN: Final = 0.05
_BACKOFF_SECONDS_MAX: Final = 2.0
_CALLS_AGAIN_SECONDS: Final = _BACKOFF_SECONDS_MAX
"""After so long a node that runs would have called again."""
_CHECKS_PER_IDLE: Final = 4
"""How often a connection is looked at before its silence has lasted too long."""
_KEEPALIVE: Final = pack_frame(FrameType.KEEPALIVE, b"")
_ends_of: Final[Callable[[object], tuple[NodeId, NodeId]]] = attrgetter("sender", "to")
_receiver_of: Final[Callable[[object], NodeId]] = attrgetter("to")


@record
class Member:
    """Who a node is, as the handshake states it."""

    cluster_id: str
    node_id: NodeId
    incarnation: int
    epoch: Epoch
    """The record in force: its voters are the peers, each with exactly one incarnation."""
    founders: tuple[Voter, ...]
    """Whom the founding record names."""
    learners: Callable[[], Sequence[Voter]] = tuple
    """Who takes part without a vote, as far as this node has applied."""

    def incarnation_of(self, node_id: NodeId) -> int | None:
        """The incarnation that is accepted now as ``node_id``; ``None``: it is no member."""
        return incarnation_in_force(self.epoch, self.learners(), node_id)

    def is_founding(self, node_id: NodeId, incarnation: int) -> bool:
        """Whether that is an incarnation of the founding record, which any directory may bear that
        was made from it: only its birth tells which one it is."""
        return Voter(node_id, incarnation) in self.founders


class _Link:
    """The way to one peer."""

    __slots__ = ("address", "connection", "dropped_count", "has_called", "incarnation", "peer_id")

    def __init__(self, peer_id: NodeId, address: Address) -> None:
        self.peer_id = peer_id
        self.address = address
        self.connection: Connection | None = None
        self.incarnation = 0
        """Of whoever answered there last."""
        self.dropped_count = 0
        """Messages dropped because the peer was not connected or too slow."""
        self.has_called = trio.Event()
        """The peer was welcomed here since we last called it: so it can be reached now."""


@record
class _Caller:
    """A peer that calls, on the connection that it uses now."""

    incarnation: int
    connection: Connection


def reason_of(failure: BaseException) -> str:
    """Why a call failed, in one line: the first cause where several addresses were tried."""
    while failure.__cause__ is not None and isinstance(failure, OSError):
        failure = failure.__cause__
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    if isinstance(failure, OSError) and failure.strerror:
        return failure.strerror.lower()
    return str(failure) or "the handshake took too long"


class TcpTransport:
    """One node's connections to and from its peers."""

    def __init__(
        self,
        member: Member,
        listen: Address,
        addresses: dict[NodeId, Address],
        codec: MessageCodec,
        limits: Limits,
        on_message: Callable[[object], None],
        on_batch: Callable[[], None],
        meetings: Meetings,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """``on_message`` takes each message that arrives, ``on_batch`` follows a batch of them."""
        self._member = member
        self._meetings = meetings
        self._listen = listen
        self._listeners: list[trio.SocketListener] = []
        self._codec = codec
        self._frames = FrameCodec(limits)
        self._limits = limits
        self._on_message = on_message
        self._on_batch = on_batch
        self._log = log
        self._has_queued = False
        """Whether something was queued since the last ``flush``."""
        self._links = {
            peer: _Link(peer, address)
            for peer, address in sorted(addresses.items())
            if peer != member.node_id
        }
        self._incoming: dict[NodeId, _Caller] = {}
        self._gone_at: dict[NodeId, float] = {}
        """When the last connection of a peer ended, if it was not for a new one."""
        self._frame_limits = {**codec.frame_limits, FrameType.KEEPALIVE: 0}
        self._refusals = Refusals("peer", limits, log)

    # -- sending --

    def send(self, message: object) -> None:
        """Queue a message for its receiver; dropped when it cannot be sent now."""
        link = self._links[_receiver_of(message)]
        connection = link.connection
        if connection is None or not connection.queue(self._codec.encode(message)):
            link.dropped_count += 1
        else:
            self._has_queued = True

    def flush(self) -> None:
        """Hand everything that was queued to the kernel: one system call per peer."""
        if not self._has_queued:
            return
        self._has_queued = False
        for link in self._links.values():
            if link.connection is not None:
                link.connection.flush()

    # -- running --

    async def open(self) -> None:
        """Listen for the peers; raises :class:`~replog.errors.AddressError`."""
        self._listeners = await open_listeners(self._listen, "peers")

    def close(self) -> None:
        """Listen no more; may be called without ``run``."""
        close_listeners(self._listeners)

    async def run(self) -> None:
        """Call the peers and hear their calls until cancelled."""
        async with trio.open_nursery() as nursery:
            for link in self._links.values():
                nursery.start_soon(self._run_link, link)
            nursery.start_soon(self._run_watch)
            nursery.start_soon(partial(trio.serve_listeners, self._serve_caller, self._listeners))

    async def _run_watch(self) -> None:
        """Keep connections alive, and close those on which nothing arrives any more.

        Both sides send keepalives of their own and answer none: behind a large message on a slow
        link an answer would come too late, and the message would begin anew for ever.
        """
        idle_seconds = self._limits.connection_idle_ms / 1000
        while True:
            await trio.sleep(idle_seconds / _CHECKS_PER_IDLE)
            outgoing = [link.connection for link in self._links.values() if link.connection]
            incoming = [caller.connection for caller in self._incoming.values()]
            for connection in (*outgoing, *incoming):
                connection.silent_checks += 1
                if connection.silent_checks > _CHECKS_PER_IDLE:
                    connection.close()
                    continue
                connection.queue(_KEEPALIVE)
                connection.flush()

    # -- calling --

    async def _run_link(self, link: _Link) -> None:
        """Call a peer, again and again, with growing pauses while it does not answer."""
        backoff = _BACKOFF_SECONDS_MIN
        reported = ""
        while True:
            reason = ""
            link.has_called = trio.Event()
            try:
                connection = await self._call(link)
            except (OSError, PeerError, trio.TooSlowError) as failure:
                reason = reason_of(failure)
            else:
                self._log.info(
                    "peer_connected",
                    peer=link.peer_id,
                    address=str(link.address),
                    dropped_messages=link.dropped_count,
                )
                reported = ""
                backoff = _BACKOFF_SECONDS_MIN
                await self._keep_link(link, connection)
                reason = "the connection ended"
            if reason != reported:
                self._log.info(
                    "peer_unreachable", peer=link.peer_id, address=str(link.address), reason=reason
                )
                reported = reason
            # Jitter: nodes that lost each other together should not call together.
            with trio.move_on_after(backoff * random.uniform(0.5, 1.0)):
                await link.has_called.wait()
            backoff = min(2 * backoff, _BACKOFF_SECONDS_MAX)

    async def _call(self, link: _Link) -> Connection:
        """Connect and shake hands."""
        with trio.fail_after(self._limits.handshake_ms / 1000):
            connection = await connect(
                link.address.host, link.address.port, self._limits.peer_queue_bytes_max
            )
            try:
                await self._introduce(link, connection)
            except BaseException:
                connection.close()
                raise
            return connection

    async def _introduce(self, link: _Link, connection: Connection) -> None:
        me = self._member
        hello = PeerHello(
            version_min=PROTOCOL_VERSION,
            version_max=PROTOCOL_VERSION,
            cluster_id=me.cluster_id,
            sender=me.node_id,
            incarnation=me.incarnation,
            receiver=link.peer_id,
            engine=me.epoch.engine,
            epoch=me.epoch.number,
            birth=self._meetings.birth,
            met=self._meetings.told,
        )
        connection.queue(self._frames.encode(hello))
        connection.flush()
        answer = self._frames.decode(
            *await receive_first(connection, FrameReader(HANDSHAKE_LIMITS))
        )
        if isinstance(answer, Refusal):
            raise HandshakeError(answer.reason)
        if not isinstance(answer, PeerWelcome):
            raise HandshakeError(f"{link.address} is not the peer port of a node")
        if answer.version != PROTOCOL_VERSION:
            raise HandshakeError(
                f"node {answer.sender} answered in version {answer.version} of the peer protocol, "
                f"and this node speaks version {PROTOCOL_VERSION}; upgrade the older of the two"
            )
        if answer.sender != link.peer_id:
            raise HandshakeError(
                f"{link.address} is node {answer.sender}, not node {link.peer_id}; check the peer "
                "addresses"
            )
        link.incarnation = answer.incarnation
        self._check_incarnation(answer)
        await self._meet(answer)
        # Somebody else may have come in its place while that was made durable.
        self._check_incarnation(answer)

    async def _keep_link(self, link: _Link, connection: Connection) -> None:
        """Let messages out over a fresh connection until it ends."""
        reader = FrameReader({FrameType.KEEPALIVE: 0, **HANDSHAKE_LIMITS})
        link.connection = connection
        with closing(connection):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run_writer)
                self._on_batch()
                while data := await connection.receive():
                    try:
                        reader.feed(data)  # keepalives, or a refusal before the end
                    except FrameError:
                        break
                nursery.cancel_scope.cancel()
            link.connection = None

    # -- being called --

    async def _serve_caller(self, stream: trio.SocketStream) -> None:
        connection = take_over(stream, self._limits.peer_queue_bytes_max)
        with closing(connection):
            try:
                reader = FrameReader(HANDSHAKE_LIMITS)
                with trio.fail_after(self._limits.handshake_ms / 1000):
                    first = await receive_first(connection, reader)
                caller_id = await self._welcome(connection, *first)
                reader.accept(self._frame_limits)
                await self._receive_messages(connection, reader, caller_id)
            except (PeerError, trio.TooSlowError) as failure:
                await self._refusals.refuse(connection, failure)

    async def _welcome(self, connection: Connection, frame_type: int, content: bytes) -> NodeId:
        """Check who calls; raises :class:`~replog.errors.HandshakeError`."""
        me = self._member
        if refusal := refusal_of_first(FrameType.PEER_HELLO, frame_type):
            raise HandshakeError(refusal)
        hello = self._frames.decode(frame_type, content)
        assert isinstance(hello, PeerHello)
        self._check_hello(hello)
        await self._meet(hello)
        # Somebody else may have come in its place while that was made durable.
        self._check_incarnation(hello)
        older = self._incoming.pop(hello.sender, None)
        if older is not None:
            older.connection.close()  # the caller lost it, or it would not have called again
        self._incoming[hello.sender] = _Caller(hello.incarnation, connection)
        welcome = PeerWelcome(
            version=PROTOCOL_VERSION,
            sender=me.node_id,
            incarnation=me.incarnation,
            birth=self._meetings.birth,
            met=self._meetings.told,
        )
        connection.queue(self._frames.encode(welcome))
        connection.flush()
        if hello.sender in self._links:
            self._links[hello.sender].has_called.set()
        return hello.sender

    async def _meet(self, other: PeerHello | PeerWelcome) -> None:
        """Remember whose directory it is, durably, before anything rests on it."""
        me = self._member
        if me.is_founding(me.node_id, me.incarnation) and me.is_founding(
            other.sender, other.incarnation
        ):
            await self._meetings.take_in(other.sender, other.birth, other.met)

    def _check_hello(self, hello: PeerHello) -> None:
        me = self._member
        if not hello.version_min <= PROTOCOL_VERSION <= hello.version_max:
            raise HandshakeError(
                f"node {me.node_id} speaks version {PROTOCOL_VERSION} of the peer protocol, not "
                f"{hello.version_min} to {hello.version_max}; upgrade the older of the two"
            )
        if hello.cluster_id != me.cluster_id:
            raise HandshakeError(
                f"this is node {me.node_id} of cluster '{me.cluster_id}', not of "
                f"'{hello.cluster_id}'; check the peer addresses of both clusters"
            )
        if hello.receiver != me.node_id:
            raise HandshakeError(
                f"this is node {me.node_id}, not node {hello.receiver}; check the peer addresses"
            )
        self._check_incarnation(hello)
        if hello.sender == me.node_id:
            raise HandshakeError(
                f"node {me.node_id} is called by a node of the same id; stop one of the two"
            )
        if hello.engine != me.epoch.engine:
            raise HandshakeError(
                f"this cluster runs the engine '{me.epoch.engine}', not '{hello.engine}'"
            )

    def _check_incarnation(self, other: PeerHello | PeerWelcome) -> None:
        """Refuse all but the one incarnation of a node that takes part, as far as is applied here.

        A node that rejoins is refused until the entry that takes it in was applied, and the one in
        whose place it came from then on.
        """
        me = self._member
        expected = me.incarnation_of(other.sender)
        if expected is None:
            raise HandshakeError(f"node {other.sender} is no member of cluster '{me.cluster_id}'")
        if other.incarnation != expected:
            raise HandshakeError(
                f"node {other.sender} has incarnation {other.incarnation}, and node {me.node_id} "
                f"knows it as {expected}: its directory was founded apart, or made by `replog "
                "rejoin`, which has not come so far here, or came again since"
            )

    def is_called_by(self, peer_id: NodeId) -> bool:
        """Whether a connection of that peer stands, on which something was heard not long ago, or
        broke off so lately that it may call again."""
        gone_at = self._gone_at.get(peer_id)
        is_near = gone_at is not None and trio.current_time() - gone_at < _CALLS_AGAIN_SECONDS
        return peer_id in self._incoming or is_near

    def close_replaced(self) -> None:
        """Who takes part has changed: end the connections of those who do no more."""
        incarnation_of = self._member.incarnation_of
        for link in self._links.values():
            if link.connection and link.incarnation != incarnation_of(link.peer_id):
                link.connection.close()
        for peer_id, caller in sorted(self._incoming.items()):
            if caller.incarnation != incarnation_of(peer_id):
                caller.connection.close()

    async def _receive_messages(
        self, connection: Connection, reader: FrameReader, caller_id: NodeId
    ) -> None:
        """Hand every message to the engine, a batch per wake-up."""
        ends = (caller_id, self._member.node_id)
        decode, on_message = self._codec.decode, self._on_message
        try:
            while data := await connection.receive():
                for frame_type, content in reader.feed(data):
                    if frame_type == FrameType.KEEPALIVE:
                        continue
                    message = decode(frame_type, content)
                    if _ends_of(message) != ends:
                        raise SchemaError(f"node {caller_id} sent a message that is not its own")
                    on_message(message)
                self._on_batch()
        finally:
            caller = self._incoming.get(caller_id)
            if caller is not None and caller.connection is connection:
                del self._incoming[caller_id]
                self._gone_at[caller_id] = trio.current_time()
